"""The benchmark: its arithmetic, and that what it times is one and the same function. No test looks at a time."""

import json
import sys
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from veridical.benchmark import peers, report, run
from veridical.benchmark.cases import CASES, PACKAGES, Target
from veridical.benchmark.measure import Images, Times, interleaved, peak_memory
from veridical.benchmark.peers import Peer
from veridical.benchmark.roofline import Rates, Work, count
from veridical.benchmark.run import OURS, Measured, Result, Row, Settings
from veridical.benchmark.supply import Supply
from veridical.benchmark.trunks import NAMES, features, trunks
from veridical.cli import app
from veridical.core.errors import UnknownName, VeridicalError
from veridical.core.memory import Memory
from veridical.features import FrozenNetwork
from veridical.features.weights import FILES
from veridical.losses import LOSSES, needs
from veridical.metrics import METRICS
from veridical.metrics import needs as metric_needs

MIB = 2**20
RATES = Rates(1e9, 1e9, 1e9)


@pytest.fixture(scope="module")
def supply() -> Iterator[Supply]:
    with Supply(always_random=True) as made:
        yield made


def images(shape=(2, 3, 32, 32), *, with_gradient=True) -> Images:
    return run.pictures(shape, torch.device("cpu"), with_gradient=with_gradient)


def measured(name: str, seconds: float, memory: int, **rest) -> Measured:
    return Measured(
        name=name,
        time=Times(seconds, seconds, seconds, 3),
        memory=Memory(memory, None),
        value=1.0,
        value_difference=rest.pop("value_difference", 0.0),
        gradient_difference=rest.pop("gradient_difference", 0.0),
        **rest,
    )


def row(*others: Measured, target: Target | None = None) -> Row:
    contestants = (measured(OURS, 1.0, 10 * MIB), *others)
    target = target or Target(0.5, 0.5)
    return Row("x", (1, 3, 8, 8), False, target, contestants, flop=None, bytes=None, attainable=0.5)


# ---- arithmetic ----


def test_ratios_are_to_the_fastest_and_to_the_leanest_peer():
    found = row(measured("quick", 4.0, 40 * MIB), measured("small", 10.0, 20 * MIB))
    assert (found.fastest.name, found.leanest.name) == ("quick", "small")
    assert (found.time_ratio, found.memory_ratio, found.roofline) == (0.25, 0.5, 2.0)
    assert found.met is True
    assert row(measured("quick", 4.0, 19 * MIB)).met is False  # memory
    assert row(measured("quick", 1.9, 40 * MIB)).met is False  # time


def test_a_case_without_a_peer_or_a_target_is_neither_met_nor_missed():
    assert row().time_ratio is None
    assert row().met is None
    assert row(measured("quick", 4.0, 1), target=Target()).met is None


def test_who_computes_something_else_is_no_yardstick():
    other = measured("other", 0.1, 1, value_difference=0.5)
    assert row(other).time_ratio is None
    assert row(other, measured("same", 2.0, 40 * MIB)).time_ratio == 0.5
    border = measured("border", 4.0, 40 * MIB, value_difference=0.1, note="another border")
    assert row(border).time_ratio == 0.25
    wrong_gradient = measured("gradient", 0.1, 1, gradient_difference=0.5)
    assert row(wrong_gradient).time_ratio is None


def test_a_target_may_name_whom_it_is_held_against():
    half = measured("half", 0.9, 1, value_difference=None, gradient_difference=None)
    found = row(half, measured("same", 0.1, 1), target=Target(time=1.2, against="half"))
    assert found.time_ratio == pytest.approx(1 / 0.9)
    assert found.met is True


def test_times_are_medians_and_quartiles():
    assert Times.of([4.0, 1.0, 2.0, 3.0, 100.0]) == Times(3.0, 2.0, 4.0, 5)
    assert Times.of([2.0]) == Times(2.0, 2.0, 2.0, 1)


def test_calls_take_turns_until_the_time_is_up_but_never_fewer_than_asked():
    order, now = [], [0.0]

    def call(name):
        def step(prediction, target):
            order.append(name)
            now[0] += 1.0
            return (prediction - target).square().mean()

        return step

    found = interleaved({name: call(name) for name in "abc"}, images(), seconds=0, repeats=3, clock=lambda: now[0])
    assert "".join(order) == "abcbcacab"  # who begins changes
    assert all(times == Times(1.0, 1.0, 1.0, 3) for times in found.values())
    order.clear()
    interleaved({"a": call("a")}, images(), seconds=5.5, repeats=3, clock=lambda: now[0])
    assert len(order) == 6


def test_every_call_is_given_a_new_target():
    seen = []

    def call(prediction, target):
        seen.append(target)
        return (prediction - target).mean()

    interleaved({"a": call}, images(), seconds=0, repeats=3)
    assert len({id(target) for target in seen}) == 3


# ---- memory ----


def test_the_meter_reads_a_known_allocation():
    """64 MiB and 32 MiB at once, then 80 MiB alone; the inputs and what is kept from before do not count."""
    kept = torch.zeros(4 * MIB)

    def call(prediction, target):
        one = torch.zeros(16 * MIB)
        two = torch.zeros(8 * MIB)
        del one, two
        torch.zeros(20 * MIB)
        return (prediction - target).sum() * kept[0]

    found = peak_memory(call, images(with_gradient=False)).tensors
    assert 96 * MIB <= found <= 96.5 * MIB


def test_the_meter_sees_what_the_backward_pass_takes():
    """exp keeps its result for the backward pass: 12 MiB; its gradient is as large, and so is the upstream one."""
    big = Images(torch.rand(1, 3, 1024, 1024), torch.rand(1, 3, 1024, 1024), True)
    forward = peak_memory(lambda x, y: x.exp().sum(), Images(big.prediction, big.target, False)).tensors
    both = peak_memory(lambda x, y: x.exp().sum(), big).tensors
    assert forward == pytest.approx(12 * MIB, abs=MIB)
    assert both == pytest.approx(24 * MIB, abs=MIB)


def test_the_process_grows_by_what_is_allocated_behind_torch_too():
    def call(prediction, target):
        np.ones(100 * MIB, dtype=np.uint8)
        return (prediction - target).mean()

    found = peak_memory(call, images())
    if found.process is None:
        pytest.skip("only Linux tells it")
    assert 95 * MIB <= found.process <= 130 * MIB
    assert found.tensors < 10 * MIB


# ---- roofline ----


def test_work_is_counted_forward_and_backward():
    """A 3x3 convolution from 3 to 8 channels of both images, and once back to the prediction."""
    weight = torch.rand(8, 3, 3, 3)

    def call(x, y):
        return (torch.conv2d(x, weight, padding=1) - torch.conv2d(y, weight, padding=1)).square().mean()

    pixels = 2 * 32 * 32
    pair = images()
    found, (value, gradient) = count(call, pair)
    torch.testing.assert_close((value, gradient), pair.run(call))
    assert found.flop == 3 * 2 * 9 * 3 * 8 * pixels
    assert found.bytes == 4 * (2 * (8 + 8 + 3) * pixels + 3 * 3 * pixels)


def test_what_is_attainable_is_the_longer_of_arithmetic_and_traffic():
    assert Work(flop=3 * 10**9, bytes=10**9).attainable(RATES) == 3.0
    assert Work(flop=10**9, bytes=3 * 10**9).attainable(RATES) == 3.0


# ---- the same function ----


def test_every_case_is_a_loss_or_a_metric_that_there_is():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    for case in CASES:
        needed = (metric_needs if case.metric else needs)(case.spec)
        assert all(name in FILES for name in needed)
        assert not case.counted or case.counted in [peer.name for peer in case.peers]
        assert not case.target.against or case.target.against in [peer.name for peer in case.peers]


NAIVE = [case for case in CASES if any(not peer.package and peer.same for peer in case.peers)]


@pytest.mark.parametrize("case", NAIVE, ids=lambda case: case.name)
def test_the_plain_forms_equal_ours(case, supply):
    """Value and gradient. cobi draws nothing here: 48x48 px have fewer positions than it takes. Which value ranks
    where, and which point is nearest, may hang on the last digit, and the gradients of pdl and cobi with it."""
    tolerance = 1e-2 if case.spec in ("pdl", "cobi") else 1e-3
    pair = images((2, 3, 48, 48), with_gradient=not case.metric)
    cpu = torch.device("cpu")
    ours, gradient = pair.run(run.build_ours(case, supply, cpu))
    for peer in case.peers:
        if peer.package or not peer.same:
            continue
        value, their_gradient = pair.run(peers.build(peer, supply, cpu))
        if not peer.constant:
            torch.testing.assert_close(value, ours, rtol=1e-5, atol=1e-7)
        if gradient is not None:
            assert (their_gradient - gradient).norm() <= tolerance * gradient.norm()


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "transformers"])
def test_the_peers_compute_what_ours_do(package, supply, monkeypatch):
    """Each that is installed, in every case that it takes part in, unless a note says how it differs."""
    # torchmetrics looks for a torchvision when it is imported, which another test may have done without ours.
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    reason = run.missing_packages(supply).get(package)
    if reason:
        pytest.skip(reason)
    for case in CASES:
        for peer in case.peers:
            if peer.package == package and peer.same and not peer.note:
                side = 176 if "ms-ssim" in case.spec else 64
                pair = images((1, 3, side, side), with_gradient=not case.metric)
                cpu = torch.device("cpu")
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    ours, gradient = pair.run(run.build_ours(case, supply, cpu))
                    theirs, their_gradient = pair.run(peers.build(peer, supply, cpu))
                assert theirs.item() == pytest.approx(ours.item(), rel=run.VALUE_AGREES), case.name
                if gradient is not None:
                    apart = (their_gradient - gradient).norm() / gradient.norm()
                    assert apart <= run.GRADIENT_AGREES, case.name


@pytest.mark.parametrize("name", NAMES)
def test_the_stand_in_has_the_layers_of_our_networks(name, supply):
    file = supply.options((name,))["weights"]
    last = {"vgg16": "pool5", "vgg19": "pool5", "alexnet": "relu5", "squeezenet1_1": "fire9"}[name]
    ours = FrozenNetwork(name, taps=[last], normalisation="none", weights=file)
    image = torch.rand(1, 3, 64, 64)
    theirs = features(name, supply.tensors(name))
    if name == "alexnet":
        theirs = theirs[:-1]  # its last pooling, which nobody looks through
    torch.testing.assert_close(theirs(image), ours(image, ours.draw())[last], rtol=1e-4, atol=1e-5)


def test_the_stand_in_leaves_when_the_peers_are_built(supply):
    before = sys.modules.get("torchvision")
    with trunks(supply.tensors):
        import torchvision  # type: ignore[import-not-found]

        assert isinstance(torchvision.models.vgg16(pretrained=True, progress=False).features, torch.nn.Sequential)
        if before is None:
            with pytest.raises(NotImplementedError, match=r"has no resnet50 in torchvision\.models"):
                torchvision.models.resnet50()
    assert sys.modules.get("torchvision") is before


def test_a_torchmetrics_that_found_no_torchvision_finds_the_stand_in(supply):
    """As where Lightning was imported first."""
    imports = pytest.importorskip("torchmetrics.utilities.imports")
    before = bool(imports._TORCHVISION_AVAILABLE)
    with trunks(supply.tensors):
        assert imports._TORCHVISION_AVAILABLE
    assert bool(imports._TORCHVISION_AVAILABLE) is before


# ---- the whole ----


def test_a_run_writes_json_markdown_and_a_plot(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "measure_rates", lambda device: RATES)
    monkeypatch.setattr(run, "missing_packages", lambda supply: {})  # to import all peers takes long
    wanted = ["--only", "l1,gradient,metric sharpness-q", "--size", "1x3x16x16", "--seconds", "0", "--repeats", "1"]
    done = CliRunner().invoke(app, ["bench", "losses", *wanted, "--random-weights", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "performance.json").read_text())
    assert [each["name"] for each in written["rows"]] == ["l1", "gradient", "metric sharpness-q"]
    assert written["rows"][0]["contestants"][0]["name"] == OURS
    assert written["rows"][0]["contestants"][1]["value_difference"] < 1e-5
    assert written["machine"]["torch"] == torch.__version__
    page = (tmp_path / "performance.md").read_text()
    for text in ("| l1 |", "| gradient | naive |", "## How it is measured", written["machine"]["processor"]):
        assert text in page
    ET.fromstring((tmp_path / "performance.svg").read_text())
    for text in ("metric sharpness-q", "case", str(tmp_path / "performance.json")):
        assert text in done.output


def test_missing_and_broken_peers_are_named_and_not_fatal(monkeypatch):
    def broken(_):
        raise ImportError("No module named 'requests'")

    strangers = (
        Peer("absent", broken, "piqa"),
        Peer("broken", broken, "piq"),
        Peer("fails", lambda _: lambda x, y: x.nonsense()),
        Peer("torch", lambda _: torch.nn.functional.l1_loss),
    )
    monkeypatch.setattr(run, "CASES", (run.Case("l1", strangers),))
    monkeypatch.setattr(run, "measure_rates", lambda device: RATES)
    monkeypatch.setattr(run, "missing_packages", lambda supply: {"piqa": "not installed"})
    result = run.measure(Settings(size=(1, 3, 16, 16), seconds=0, repeats=1, random_weights=True))
    (found,) = result.rows
    assert [each.name for each in found.contestants] == [OURS, "torch"]
    assert found.missing == {
        "absent": "not installed",
        "broken": "ImportError: No module named 'requests'",
        "fails": "AttributeError: 'Tensor' object has no attribute 'nonsense'",
    }
    said = "\n".join(report.notes(result))
    assert "Peer left out: piqa: not installed." in said
    assert "l1: broken could not be run: ImportError: No module named 'requests'." in said


def test_a_peer_that_is_not_installed_is_missing(monkeypatch, supply):
    monkeypatch.setattr(run, "PACKAGES", {"veridical-peer-of-nowhere": "nowhere", "torch": "no_such_module"})
    assert run.missing_packages(supply) == {
        "veridical-peer-of-nowhere": 'not installed: pip install "veridical[bench]"',
        "torch": "ModuleNotFoundError: No module named 'no_such_module'",
    }


def test_the_page_says_who_differs_and_what_was_random():
    other = measured("other", 0.1, 1, value_difference=0.5)
    result = Result({}, RATES, (row(other),), {"y": "no weights"}, {}, {"vgg16": "random", "alexnet": "0" * 64})
    said = report.notes(result)
    assert said[0].startswith("The weights of vgg16 are random")
    assert said[1] == "Not measured: y: no weights."
    assert said[2].startswith("x: other gives another value (value 5e-01")


def test_the_plot_holds_every_case_and_its_target():
    found = row(measured("quick", 4.0, 40 * MIB), target=Target(0.3))
    drawn = report.plot(Result({}, RATES, (found, row()), {}, {}, {}))
    ET.fromstring(drawn)
    assert drawn.count('r="5.5"') == 3  # ours in both panels, and in the legend; the case without a peer has no ratio


def test_costs_are_multiples_of_l2(monkeypatch, tmp_path):
    chosen = {name: LOSSES[name] for name in ("l1", "l2")}
    monkeypatch.setattr(run, "LOSSES", chosen)
    file = tmp_path / "costs.json"
    wanted = ["--costs", str(file), "--size", "1x3x16x16", "--seconds", "0", "--random-weights"]
    done = CliRunner().invoke(app, ["bench", "losses", *wanted])
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    assert set(found) == {"machine", "date", "shape", "relative_to_l2"}
    assert found["shape"] == [1, 3, 16, 16]
    assert set(found["relative_to_l2"]) == {"l1", "l2"}
    assert all(ratio > 0 for ratio in found["relative_to_l2"].values())


def test_an_unknown_case_or_size_suggests_the_right_one():
    with pytest.raises(UnknownName, match=r"unknown case 'sim'\. Did you mean 'ssim'"):
        run.choose(["sim"])
    assert len(run.choose(["lpips"])) == 3
    with pytest.raises(VeridicalError, match="4x3x256x256"):
        run.read_size("256x256")
    with pytest.raises(VeridicalError, match="not that of RGB images"):
        Settings(size=(1, 1, 8, 8))


def test_the_issue_s_targets_are_in_the_table():
    by_name = {case.name: case.target for case in CASES}
    assert (by_name["ssim"].time, by_name["ssim"].memory) == (0.3, 0.7)
    timed = {case.spec.partition("(")[0] for case in CASES if case.metric and case.target.time == 0.7}
    assert timed == {"psnr", "ssim", "ms-ssim", "lpips", "dists"}
    assert all(case.spec.partition("(")[0] in (METRICS if case.metric else LOSSES) for case in CASES)
