"""What a comparison costs: measured in pieces, and put together again. No time is asserted."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.photographs import write_photographs
from veridical.cli import app
from veridical.comparison import estimate_tables
from veridical.comparison.estimate import (
    EvaluationCosts,
    Measured,
    PhotographCosts,
    StepCost,
    read_measured,
)
from veridical.comparison.forecast import Assumed, Grid, bytes_per_step, cells, forecast, read_grid
from veridical.core.errors import DataError, VeridicalError
from veridical.training.data import CACHE_BYTES

STEP = StepCost("l1", model=0.04, loss=0.01, learning=0.0, optimiser=0.01, peak_bytes=10**6)
MEASURED = Measured(
    machine={"cpu": "made up", "cores": 4, "device": "cuda", "threads": 4},
    recipe={
        "steps": 1000, "batch_size": 8, "crop": 64, "seeds": 1, "makers": 0, "log_every": 100, "checkpoint_every": 250,
    },
    start_s=3.0,
    preparing_s=1.0,
    cell_preparing_s=0.5,
    photographs=PhotographCosts(count=10, file_bytes=10**7, decoded_bytes=10**8, reading_s=6.0, decode_s=0.5),
    batch_s=0.02,
    rest_s=0.005,
    steps=(STEP, replace(STEP, name="vgg16", loss=0.235)),
    models=("unet", "unet"),
    checkpoint_s=0.5,
    checkpoint_bytes=3 * 10**6,
    model_bytes=10**6,
    row_bytes=300.0,
    result_bytes=5000.0,
    image_bytes=2e6,
    evaluation=EvaluationCosts(4, 8.0, degrading=1.0, restoring={"unet": 2.0}, metrics={"psnr": 1.0}, writing=4.0),
    record_s=0.25,
    record_growth_s=0.125,
)  # fmt: skip


def veridical(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def estimated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A tiny recipe of two losses and two models, measured by the command."""
    folder = tmp_path_factory.mktemp("estimate")
    data = write_photographs(folder / "photos", count=9)
    options = [
        "--losses",
        "l1,l1 + auto*edge",
        "--models",
        "unet(levels=1, convs=1, width=4),srresnet(blocks=1, width=4)",
    ]
    options += ["--steps", "40", "--batch-size", "2", "--crop", "32", "--device", "cpu", "--metrics", "psnr,gmsd"]
    options += ["--task", "super-resolve", "--degradation", "bicubic-downscale(scale=4)", "--set", "training.seeds=2"]
    result = veridical(
        "estimate", "--data", data, *options, "--rounds", 2, "--workers", "1,3", "--speed", "1,10",
        "--out", folder / "out",
    )  # fmt: skip
    return folder / "out", result


def test_the_command_measures_every_part_and_leaves_one_file(estimated: tuple[Path, Result]) -> None:
    out, result = estimated
    assert result.exit_code == 0, result.output
    assert [path.name for path in out.iterdir()] == ["estimate.json"]
    found = read_measured(out / "estimate.json")
    names = [each.name for each in found.steps]
    assert len(names) == 4
    assert [name.partition(": ")[2] for name in names] == ["l1", "l1 + auto*edge"] * 2
    for each in found.steps:
        assert min(each.model, each.loss, each.optimiser, each.peak_bytes) > 0
        assert each.learning >= 0
    assert set(found.evaluation.restoring) == set(found.models)
    assert set(found.evaluation.metrics) == {"psnr", "gmsd"}
    for value in (found.start_s, found.preparing_s, found.batch_s, found.checkpoint_s, found.record_s):
        assert value > 0
    assert found.photographs.count == 8
    assert found.photographs.decoded_bytes == 8 * 56 * 64 * 3
    assert found.photographs.missing(8) == 0
    assert found.checkpoint_bytes > 2 * found.model_bytes > 0  # Adam keeps two numbers for each weight
    assert found.recipe["seeds"] == 2


def test_the_command_prints_what_it_measured_assumed_and_forecasts(estimated: tuple[Path, Result]) -> None:
    _, result = estimated
    for word in ("a process starts", "evaluation of a cell", "l1 + auto*edge", "4 losses x 1 tasks x 2 seeds: 8"):
        assert word in result.output
    assert "assumed, not measured: a device 1, 10 times as fast" in result.output


def test_a_forecast_from_the_file_measures_nothing_and_is_the_same(estimated: tuple[Path, Result]) -> None:
    out, _ = estimated
    before = json.loads((out / "estimate.json").read_text())
    again = ["estimate", "--measured", out / "estimate.json", "--workers", "1,3", "--speed", "1,10"]
    result = veridical(*again, "--out", out.parent / "again")
    assert result.exit_code == 0, result.output
    assert json.loads((out.parent / "again" / "estimate.json").read_text()) == before
    larger = veridical(*again, "--grid", "7x2x3", "--out", out.parent / "larger")
    assert "7 losses x 2 tasks x 3 seeds: 42 trainings" in larger.output


def test_measurements_survive_json() -> None:
    assert Measured.from_dict(json.loads(json.dumps(MEASURED.as_dict()))) == MEASURED


@pytest.mark.parametrize("content", ["{}", "not json", '{"measured": {"start_s": 1}}'])
def test_a_file_without_measurements_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "estimate.json").write_text(content)
    with pytest.raises(DataError, match="veridical estimate"):
        read_measured(tmp_path / "estimate.json")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--grid", "100x5", "losses x tasks x seeds"),
        ("--workers", "0", "--workers must be numbers"),
        ("--workers", "1,many", "--workers must be numbers"),
        ("--speed", "-2", "speed must be greater than 0"),
        ("--storage-mb-s", "0", "storage must be greater than 0"),
        ("--cpus-per-worker", "0", "at least 1 core"),
        ("--rounds", "0", "rounds"),
    ],
)
def test_impossible_options_are_errors_in_words(option: str, value: str, message: str, tmp_path: Path) -> None:
    result = veridical("estimate", "--demo", option, value, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.output


def test_one_worker_takes_the_sum_of_what_was_measured() -> None:
    found = forecast(MEASURED, Grid(2), Assumed())
    step = [each.seconds + 0.005 + 0.02 for each in MEASURED.steps]
    before = 3 + 1 + 6 + (1.0 + 1.0 + 2 * 4.0)
    trained = 1000 * sum(step) + 2 * (4 * 0.5 + (1.0 + 2.0 + 1.0 + 4.0))
    assert found.schedule.seconds == pytest.approx(before + trained + 2 * 0.25 + (1 + 2) * 0.125)
    assert found.schedule.moved == 2 * (4 * 3 * 10**6 + 10**6 + 10 * 300 + 5000 + 2e6)
    assert found.disk == 2 * (2 * 3 * 10**6 + 10**6 + 10 * 300 + 5000 + 2e6)


def test_workers_apart_start_read_and_prepare_for_themselves() -> None:
    alone, apart = (forecast(MEASURED, Grid(2), Assumed(apart=each)).schedule for each in (False, True))
    reading = 6.0 * (1 + 4 / 10)  # with the images that are evaluated on
    assert apart.seconds == pytest.approx(alone.seconds + 3 + reading + 2 * 0.5 - 0.25 - 0.125)
    assert apart.moved == pytest.approx(alone.moved + 1.4 * 10**7)


def test_speed_is_of_the_device_alone() -> None:
    (slow, *_), (quick, *_) = (cells(MEASURED, Grid(2), Assumed(speed=speed)) for speed in (1, 10))
    assert slow.device_s == pytest.approx(0.06 + 0.005)
    assert quick.device_s == pytest.approx(0.006 + 0.005)
    assert quick.making_s == slow.making_s == 0.02
    assert quick.evaluation_s == pytest.approx(1 + 0.3 + 4)


def test_a_grid_repeats_the_measured_losses_and_writes_images_of_the_first_seed_alone() -> None:
    found = cells(MEASURED, Grid(5, 2, 3), Assumed())
    assert len(found) == len({each.name for each in found}) == 30
    assert [each.task for each in found] == ["0"] * 15 + ["1"] * 15
    assert sum(each.device_s > 0.2 for each in found) == 2 * 3 * 2  # the second and the fourth of five
    assert [each.result_bytes > 2e6 for each in found[:15]] == [True] * 5 + [False] * 10


def test_photographs_beyond_the_memory_are_decoded_again_for_their_share_of_the_samples() -> None:
    large = replace(MEASURED.photographs, decoded_bytes=4 * CACHE_BYTES)
    measured = replace(MEASURED, photographs=large)
    assert large.missing(0) == large.missing(1) == 0.75
    assert large.missing(8) == 1 - 1 / 32  # each process keeps its part
    assert measured.making_s(0) == pytest.approx(0.02 + 8 * 0.75 * 0.5)
    assert bytes_per_step(measured, 0)["files"] == 8 * 0.75 * 10**6
    assert bytes_per_step(MEASURED, 0)["files"] == 0
    advice = forecast(measured, Grid(4), Assumed(workers=2)).advice
    assert any("photographs that all fit into memory" in each for each in advice)


def test_more_photographs_and_images_cost_as_much_as_those_measured() -> None:
    more = MEASURED.of_more(photographs=80, images=100)
    assert (more.photographs.count, more.photographs.reading_s) == (80, 48.0)
    assert more.photographs.decoded_bytes == 8 * 10**8
    assert more.evaluation.seconds("unet") == 25 * MEASURED.evaluation.seconds("unet")
    assert more.steps == MEASURED.steps
    assert MEASURED.of_more() == MEASURED


def test_on_a_cpu_processes_that_make_batches_take_cores_from_the_model() -> None:
    four = {**MEASURED.recipe, "makers": 4}
    on_cpu = replace(MEASURED, recipe=four, machine={**MEASURED.machine, "device": "cpu"})
    (cell, *_) = cells(on_cpu, Grid(1), Assumed())
    assert cell.step_s(4) == pytest.approx(0.065 + 0.02 / 4)
    (cell, *_) = cells(replace(MEASURED, recipe=four), Grid(1), Assumed())
    assert cell.step_s(4) == pytest.approx(0.065)


def test_the_advice_names_what_would_help() -> None:
    told = forecast(MEASURED, Grid(6), Assumed(workers=5, speed=100, lost_every_hours=5)).advice
    assert any(re.match(r"4 to make batches for each worker .*: \d+% less time", each) for each in told)
    assert any("checkpoint every" in each for each in told)
    slow = forecast(MEASURED, Grid(40), Assumed(workers=8, speed=100, storage=1e6))
    assert slow.schedule.bottleneck == "storage"
    assert any("twice the bandwidth" in each for each in slow.advice)
    few = forecast(MEASURED, Grid(2), Assumed(workers=8)).advice
    assert any("only 2 cells" in each for each in few)
    assert any("the longest cell alone" in each and "vgg16" in each for each in few)


def test_tables_and_notes_are_text() -> None:
    found = [forecast(MEASURED, Grid(100, 5, 3), Assumed(workers=count)) for count in (1, 64)]
    for _, columns, rows in estimate_tables.tables(MEASURED, found):
        assert all(len(row) == len(columns) and all(isinstance(cell, str) for cell in row) for row in rows)
    assert all(isinstance(note, str) for note in estimate_tables.notes(found))
    assert json.loads(json.dumps([each.as_dict() for each in found]))[1]["workers"] == 64


def test_a_grid_is_read_or_refused() -> None:
    assert read_grid("100x5x3") == Grid(100, 5, 3)
    for wrong in ("", "0x1x1", "3", "1x2x3x4", "axbxc"):
        with pytest.raises(VeridicalError, match="losses x tasks x seeds"):
            read_grid(wrong)
    assert not math.isnan(forecast(MEASURED, Grid(1), Assumed()).hours)
