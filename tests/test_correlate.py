"""Agreement of metrics and losses with human scores."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from scipy import stats
from typer.testing import CliRunner

from tests.photographs import photograph
from veridical.cli import app
from veridical.comparison.correlate import Human, correlate, correlate_images, correlate_run, logistic, read_human
from veridical.core.errors import DataError, VeridicalError


def _human(scores: np.ndarray, references: tuple[str, ...] = (), sign: float = 1.0) -> Human:
    return Human(tuple(f"i{k}" for k in range(len(scores))), scores, references, "mos", sign)


def _rows(**metrics: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"image": f"i{k}", "metric": name, "value": float(value)}
            for name, values in metrics.items()
            for k, value in enumerate(values)
        ]
    )


def test_the_three_correlations_are_scipys() -> None:
    generator = np.random.default_rng(1)
    people = generator.normal(size=30).round(1)  # with ties
    good, bad = people + generator.normal(size=30), -people + 0.3 * generator.normal(size=30)
    found = correlate(_rows(up=good, down=bad), {"up": True, "down": False}, _human(people), draws=200)
    assert [a.name for a in found.agreements] == ["down", "up"]
    down, up = found.agreements
    for agreement, values in ((up, good), (down, -bad)):
        assert agreement.srocc.value == pytest.approx(stats.spearmanr(values, people).statistic, abs=1e-12)
        assert agreement.krocc.value == pytest.approx(stats.kendalltau(values, people).statistic, abs=1e-12)
        assert agreement.plcc.value == pytest.approx(stats.pearsonr(values, people).statistic, abs=1e-12)
        for each in (agreement.srocc, agreement.krocc, agreement.plcc):
            assert each.low < each.value < each.high
    assert down.behind is None
    assert up.behind.value == pytest.approx(down.srocc.value - up.srocc.value)
    assert up.behind.low > 0, "one metric is clearly better here"


def test_human_scores_that_run_the_other_way_turn_the_sign() -> None:
    people = np.arange(12.0)
    found = correlate(_rows(m=people), {"m": True}, _human(people, sign=-1.0), draws=50)
    assert found.agreements[0].srocc.value == pytest.approx(-1)


def test_the_interval_of_pearson_holds_the_truth_as_often_as_it_says() -> None:
    """60 samples of 60 points with a true correlation of 0.7: 95 % of 60 is 57, three standard deviations below 52."""
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(60):
        x = generator.normal(size=60)
        y = 0.7 * x + np.sqrt(1 - 0.49) * generator.normal(size=60)
        each = correlate(_rows(m=x), {"m": True}, _human(y), draws=200).agreements[0].plcc
        inside += each.low <= 0.7 <= each.high
    assert inside >= 52


def test_versions_of_one_photograph_are_drawn_together() -> None:
    """Ten versions each of six photographs; the photograph decides both numbers, so there are six points, not sixty."""
    generator = np.random.default_rng(3)
    people, values = (np.repeat(generator.normal(size=6), 10) + 0.01 * generator.normal(size=60) for _ in range(2))
    references = tuple(f"r{k // 10}" for k in range(60))
    alone = correlate(_rows(m=values), {"m": True}, _human(people), draws=400)
    together = correlate(_rows(m=values), {"m": True}, _human(people, references), draws=400)
    assert (alone.groups, together.groups) == (60, 6)
    narrow, wide = alone.agreements[0].srocc, together.agreements[0].srocc
    assert narrow.value == wide.value
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_the_logistic_fit_makes_a_curve_straight() -> None:
    x = np.linspace(-3, 3, 40)
    people = 20 + 60 / (1 + np.exp(-(x - 0.4) / 0.5))
    assert logistic(x, people) == pytest.approx(people, abs=1e-3)
    rows, human = _rows(m=x), _human(people)
    plain = correlate(rows, {"m": True}, human, draws=10).agreements[0].plcc.value
    fitted = correlate(rows, {"m": True}, human, fit="logistic", draws=10).agreements[0].plcc.value
    assert plain < 0.97
    assert fitted == pytest.approx(1, abs=1e-6)


def test_a_value_that_is_missing_or_infinite_is_left_out_and_said() -> None:
    people = np.arange(8.0)
    a, b = people.copy(), people.copy()
    a[2], b[5] = np.nan, np.inf
    found = correlate(_rows(a=a, b=b), {"a": True, "b": True}, _human(people), draws=20)
    assert found.count == 6
    assert "2 of 8 have no finite value for some metric: i2, i5" in found.skipped[0]


def test_a_metric_that_never_changes_has_no_correlation_and_comes_last() -> None:
    people = np.arange(8.0)
    found = correlate(_rows(flat=np.ones(8), good=people), {"flat": True, "good": True}, _human(people), draws=20)
    assert [a.name for a in found.agreements] == ["good", "flat"]
    assert np.isnan(found.agreements[1].srocc.value)
    assert found.agreements[0].behind is None


@pytest.mark.parametrize(
    ("people", "message"), [(np.arange(3.0), "3 points have a human score"), (np.ones(6), "all human scores are equal")]
)
def test_too_few_points_or_no_order_is_an_error(people: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        correlate(_rows(m=np.arange(len(people))), {"m": True}, _human(people))


# ---- tables of human scores ----


def test_tables_of_scores_are_read_as_databases_write_them(tmp_path: Path) -> None:
    table = tmp_path / "dmos.csv"
    table.write_text(
        "dist_img,ref_img,dmos,var\na1.png,a.png,4.5,1\na2.png,a.png,2,1\n\nb1.png,b.png,3,1\nb1.png,b.png,4,1\n"
    )
    with pytest.raises(DataError, match="say which with --lower-is-better or --higher-is-better"):
        read_human(table)
    human = read_human(table, lower_is_better=False)
    assert human.names == ("a1.png", "a2.png", "b1.png")
    assert human.references == ("a.png", "a.png", "b.png")
    assert human.scores.tolist() == [4.5, 2.0, 3.5], "two scores of one image are averaged"
    assert human.sign == 1.0
    assert read_human(table, score="var", lower_is_better=True).sign == -1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("picture,points\na,1\n", "first line of .* is picture, points"),
        ("image,mos\na,1\nb,good\n", "line 3 of .* has no score: 'b,good'"),
        ("image,mos\na\n", "line 2 of .* has no score"),
        ("image,mos\na,nan\n", "is not finite"),
    ],
)
def test_a_bad_table_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_human(tmp_path / "t.csv")


# ---- images and runs ----


def _database(folder: Path) -> Path:
    """Two photographs, each with five strengths of noise, scored by how little there is."""
    (folder / "ref").mkdir(parents=True)
    (folder / "dist").mkdir()
    lines = ["dist_img,ref_img,mos"]
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        sharp = photograph(ord(name), 64, 64)
        Image.fromarray(sharp).save(folder / "ref" / f"{name}.png")
        for level in range(1, 6):
            noisy = sharp + generator.normal(0, 8 * level, sharp.shape)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / "dist" / f"{name}_{level}.png")
            lines.append(f"{name}_{level}.png,{name}.png,{5 - level + 0.01 * generator.normal():.3f}")
    (folder / "mos.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_metrics_and_losses_are_judged_on_images(tmp_path: Path) -> None:
    database = _database(tmp_path)
    human = read_human(database / "mos.csv")
    found = correlate_images(database / "dist", database / "ref", human, ["psnr", "ssim"], ["l1", "spl-a"], draws=50)
    by_name = {a.name: a for a in found.agreements}
    assert set(by_name) == {"psnr", "ssim", "loss l1", "loss spl-a"}
    assert by_name["loss l1"].srocc.value > 0.95, "a loss falls with quality, agreement is positive all the same"
    assert (found.count, found.groups) == (10, 2)
    assert found.values.columns == ["name", "human", "psnr", "ssim", "loss l1", "loss spl-a"]


def test_a_scored_image_that_is_not_there_is_named(tmp_path: Path) -> None:
    database = _database(tmp_path)
    (database / "dist" / "a_3.png").unlink()
    with pytest.raises(DataError, match=r"has no image 'a_3\.png', which the human scores name"):
        correlate_images(database / "dist", database / "ref", read_human(database / "mos.csv"), ["psnr"])


def test_a_loss_that_learns_is_refused(tmp_path: Path) -> None:
    database = _database(tmp_path)
    with pytest.raises(VeridicalError, match="learns as it trains"):
        correlate_images(database / "dist", database / "ref", read_human(database / "mos.csv"), [], ["gan"])


def test_the_losses_of_a_run_against_a_scale(tmp_path: Path) -> None:
    losses = ("input", "l1", "l2", "lpips", "ssim")
    (tmp_path / "comparison.json").write_text(
        json.dumps(
            {
                "losses": [{"name": name, "slug": name} for name in losses],
                "metrics": [{"name": "psnr", "higher_is_better": True}, {"name": "lpips", "higher_is_better": False}],
            }
        )
    )
    pl.DataFrame(
        [
            {"image": f"{i}", "loss": loss, "metric": metric, "value": float(value + i)}
            for metric, values in (("psnr", (20, 30, 31, 28, 29)), ("lpips", (9, 5, 6, 1, 4)))
            for loss, value in zip(losses, values, strict=True)
            for i in range(3)
        ]
    ).write_parquet(tmp_path / "rows.parquet")
    (tmp_path / "scale.csv").write_text("method,jnd,low,high\ninput,-2,,\nl2,0,,\nl1,0.5,,\nssim,1,,\nlpips,2,,\n")
    found = correlate_run(tmp_path, read_human(tmp_path / "scale.csv"), draws=100)
    # Ranks by people: input 1, l2 2, l1 3, ssim 4, lpips 5. LPIPS has the same; PSNR's differences are 0, 3, 1, 1, 3.
    expected = {"lpips": 1.0, "psnr": 1 - 6 * (9 + 1 + 1 + 9) / (5 * 24)}
    assert {a.name: a.srocc.value for a in found.agreements} == pytest.approx(expected, abs=1e-9)
    result = CliRunner().invoke(
        app, ["correlate", str(tmp_path), "--human", str(tmp_path / "scale.csv"), "--draws", "50"]
    )
    assert result.exit_code == 0, result.output
    assert "5 points" in result.output
    assert "Only 5 points to draw from: the intervals say little." in result.output


def test_the_command_prints_the_best_first(tmp_path: Path) -> None:
    database = _database(tmp_path)
    table = tmp_path / "values.csv"
    result = CliRunner().invoke(
        app,
        ["correlate", str(database / "dist"), str(database / "ref"), "--human", str(database / "mos.csv"),
         "--draws", "50", "--metrics", "psnr,ssim", "--losses", "l1", "--csv", str(table)],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "10 points; intervals by 50 draws of 2 references" in result.output
    assert pl.read_csv(table).height == 10
