"""A run folder in, one page out: what its first screen says, what it marks, that it needs nothing else."""

import base64
import io
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from PIL import Image
from rich.console import Console
from scipy import stats
from typer.testing import CliRunner

from tests.browser import chromium, program
from veridical.cli import app
from veridical.comparison import charts, pictures, plane
from veridical.comparison.failures import Kind, failures, judge
from veridical.comparison.report import markdown, read_run, table, verdict, write_report
from veridical.comparison.statistics import Column, Interval, Values, mean_interval
from veridical.comparison.wording import claims, pill
from veridical.core.errors import DataError

METRICS = {
    "psnr": (True, "dB", True),
    "ssim": (True, "", True),
    "ms-ssim": (True, "", True),
    "lpips": (False, "", True),
    "sharpness-q": (True, "", False),
}
# PSNR, SSIM, MS-SSIM, LPIPS, Q: "pdl" has the best score because its LPIPS is by far the lowest.
MEANS = {
    "input": (24.0, 0.70, 0.90, 0.40, 0.05),
    "l2": (30.0, 0.90, 0.970, 0.25, 0.07),
    "ms-ssim-l1(scales=3)": (29.5, 0.91, 0.975, 0.22, 0.08),
    "0.8*l2 + 0.2*lpips": (29.0, 0.89, 0.965, 0.15, 0.09),
    "pdl": (28.8, 0.88, 0.960, 0.10, 0.11),
}
OPTIMISES = {
    "l2": ["psnr"],
    "ms-ssim-l1(scales=3)": ["ms-ssim", "ssim"],
    "0.8*l2 + 0.2*lpips": ["psnr", "lpips"],
}
SIZE = (60, 44)  # width, height


def make_run(
    folder,
    *,
    means=MEANS,
    images=12,
    metrics=tuple(METRICS),
    failed=(),
    notes=(),
    names=None,
    size=SIZE,
    noise=0.004,
    seeds=(),
    luck=0.0,
):
    """A run folder as `veridical compare` leaves it, with small invented pictures and values. seeds: of training, none
    for a run from before there were several; luck: what a training adds to every value, in parts of it."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    names = names or [f"photo {j}" for j in range(images)]
    slugs = {loss: f"loss-{i}" for i, loss in enumerate(means)} | {"input": "input"}
    rows = []
    lucky = {
        (loss, seed): 1 + luck * np.random.default_rng([k, seed]).normal()
        for k, loss in enumerate(means)
        for seed in seeds
    }
    for name in names:
        hard = 1 + 0.03 * rng.normal()  # shared by all losses: an image is easy or hard for every one
        for loss, values in means.items():
            for metric, value in zip(METRICS, values, strict=True):
                if metric in metrics:
                    for seed in (loss != "input" and seeds) or (0,):
                        one = value * hard * (1 + noise * rng.normal()) * lucky.get((loss, seed), 1.0)
                        rows.append((name, loss, seed, metric, one))
    frame = pl.DataFrame(rows, schema=["image", "loss", "seed", "metric", "value"], orient="row")
    frame = frame if seeds else frame.drop("seed")
    frame.write_parquet(folder / "rows.parquet")
    for variant in (*slugs.values(), "truth"):
        (folder / "images" / variant).mkdir(parents=True)
        for j in range(len(names)):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / variant / f"photo-{j}.png")
    losses = [loss for loss in means if loss != "input"]
    for i, loss in enumerate(losses):
        (folder / slugs[loss]).mkdir()
        lines = [f"{step},{(i + 1) * 0.9**step},{(i + 1) * 0.9**step},0.001,9.5" for step in range(1, 21)]
        header = f"step,total,term:{i},lr,rate"
        (folder / slugs[loss] / "training.csv").write_text("\n".join([header, *lines]) + "\n")
    about = {
        "version": "0.1.0",
        "created": "2026-01-02T03:04:05+00:00",
        "machine": {"cpu": "a CPU", "cores": 2, "device": "cpu", "python": "3.11", "torch": "2.9"},
        "task": "deblur",
        "degradation": "box-blur(size=5)",
        "dataset": {"train": "8 photographs", "evaluate": f"{len(names)} photographs"},
        "model": {"name": "unet", "options": {"width": 8}, "parameters": 123456},
        "steps": 20,
        "batch_size": 4,
        "crop": 32,
        "losses": [
            {
                "name": loss,
                "slug": slugs[loss],
                "spec": loss,
                "optimises": OPTIMISES.get(loss, []),
                "seconds": 2.0,
                "seconds_per_step": 0.1234,
                "status": "done",
                "error": None,
                "weight_hashes": {"vgg16": "abc123"} if loss == "pdl" else {},
            }
            for loss in losses
        ]
        + [
            {
                "name": loss,
                "slug": "failed",
                "spec": loss,
                "optimises": [],
                "seconds": None,
                "seconds_per_step": None,
                "status": "failed",
                "error": "the term became NaN at step 7",
                "weight_hashes": {},
            }
            for loss in failed
        ],
        "metrics": [
            {
                "name": metric,
                "label": metric,
                "higher_is_better": METRICS[metric][0],
                "unit": METRICS[metric][1],
                "range": "",
                "reference": METRICS[metric][2],
            }
            for metric in metrics
        ],
        "notes": list(notes),
        "images": [
            {"name": name, "slug": f"photo-{j}", "width": size[0], "height": size[1]} for j, name in enumerate(names)
        ],
    }
    (folder / "comparison.json").write_text(json.dumps(about))
    (folder / "recipe.toml").write_text('task = "deblur"\n\n[training]\nseed = 41\n')
    return folder


class Page(HTMLParser):
    """The text of a page without style and script, the cells of its first table, and every tag."""

    def __init__(self, html):
        super().__init__()
        self.text, self.tags, self.rows, self._skip, self._tables = "", [], [], 0, 0
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._skip += tag in ("style", "script")
        self._tables += tag == "table"
        if self._tables == 1 and tag == "tr":
            self.rows.append([])
        if self._tables == 1 and tag in ("td", "th"):
            self.rows[-1].append("")
        if self._tables == 1 and tag == "strong" and self.rows:
            self.rows[-1][-1] += "*"

    def handle_endtag(self, tag):
        self._skip -= tag in ("style", "script")
        self._tables += tag == "table"

    def handle_data(self, data):
        if not self._skip:
            self.text += " " + data
            if self._tables == 1 and self.rows and self.rows[-1]:
                self.rows[-1][-1] += data.strip()


def report(run):
    html = write_report(read_run(run)).read_text(encoding="utf-8")
    return html, Page(html)


def first_screen(page):
    shown = page.text[: page.text.index("Loss Score")]
    return re.sub(r" (?=[,.;:])", "", shown)  # a name in bold ends with a space in page.text


def parts(page):
    """What the first screen says is supported, is found by one test alone, and is not supported."""
    rest, _, unsupported = first_screen(page).partition(" Not supported ")
    rest, _, disputed = rest.partition(" By one test alone ")
    return rest.partition(" Supported ")[2], disputed, unsupported


def test_first_screen_names_the_winner_its_margin_and_the_evidence(tmp_path):
    run = make_run(tmp_path / "run")
    _, page = report(run)
    assert "Which loss should I use? Use pdl significant over 12 images" in first_screen(page)
    assert re.search(r"pdl has the highest aggregate score, 0\.9\d\d; next is .* a margin of 0\.[23]\d\d\.", page.text)
    supported, _, unsupported = parts(page)
    assert "By the score, pdl beats all 3 other losses (p < 0.001)." in supported
    assert "By PSNR, l2 beats all 3 other losses (p < 0.001)." in supported
    assert "pdl improves on the degraded input by PSNR, MS-SSIM and LPIPS (p < 0.001)." in supported
    basis = "Supported means p < 0.05 by both a paired t-test and Wilcoxon's signed-rank test over 12 images, each Holm"
    assert basis in first_screen(page)
    assert "each loss was trained once, so the luck of a training is not measured; --seeds 3 would." in unsupported
    plain = verdict(read_run(run))
    assert plain.startswith("Use pdl. pdl has the highest aggregate score")
    assert basis in plain
    assert "\n- By the score, pdl beats all 3 other losses (p < 0.001).\n" in plain
    assert "\nNot supported:\n- That this holds for another training: " in plain
    assert "<" not in plain.replace("p < ", "")


def test_says_when_the_lead_is_not_significant(tmp_path):
    means = {"input": MEANS["input"], "l1": MEANS["l2"], "l2": MEANS["l2"]}
    run = make_run(tmp_path / "run", means=means)
    _, page = report(run)
    winner, other = ("l1", "l2") if "Use l1" in verdict(read_run(run)) else ("l2", "l1")
    assert f"Use {winner} no significant lead over {other}" in page.text
    supported, _, unsupported = parts(page)
    assert re.search(rf"By the score, {winner} over {other} \(p = [\d.]+\)\.", unsupported)
    assert "By the score" not in supported


def test_few_images_are_not_enough_for_ranks_and_the_page_says_so(tmp_path):
    """All four agree, which is p = 1/16 of Wilcoxon's test, whatever the t-test says."""
    run = make_run(tmp_path / "run", means={k: MEANS[k] for k in ("input", "l2", "pdl")}, images=4)
    _, page = report(run)
    said = "By LPIPS, pdl beats l2: the t-test finds it (p < 0.001), Wilcoxon's cannot with only 4 images."
    assert said in parts(page)[1]
    assert "Use pdl the tests disagree on the lead over l2" in page.text
    assert "it cannot go below 0.062" in page.text
    assert f"- {said}" in verdict(read_run(run))


def edit_rows(run, change):
    rows = pl.read_parquet(run / "rows.parquet")
    rows.with_columns(change).write_parquet(run / "rows.parquet")


def set_lpips(run, loss, values):
    """The LPIPS of one loss, image by image in the order of the rows."""
    rows = pl.read_parquet(run / "rows.parquet")
    here = ((rows["loss"] == loss) & (rows["metric"] == "lpips")).to_numpy()
    new = rows["value"].to_numpy().copy()
    new[here] = values
    rows.with_columns(pl.Series("value", new)).write_parquet(run / "rows.parquet")


def test_one_image_that_outweighs_the_others_makes_the_tests_disagree(tmp_path):
    """Ahead on 11 of 12 images by a little, behind on one by a lot: the mean says nothing, the ranks do."""
    run = make_run(tmp_path / "run", means={k: MEANS[k] for k in ("input", "l2", "pdl")})
    set_lpips(run, "l2", np.full(12, 0.2))
    set_lpips(run, "pdl", np.r_[0.2 - 0.01 * (1 + 0.1 * np.arange(11)), 0.29])
    analysis = read_run(run).analysis
    (test,) = next(m for m in analysis.metrics if m.column.base == "lpips").tests
    difference = np.r_[0.01 * (1 + 0.1 * np.arange(11)), -0.09]
    assert test.corrected == pytest.approx(stats.ttest_1samp(difference, 0, alternative="greater").pvalue)
    assert test.wilcoxon_corrected == pytest.approx(stats.wilcoxon(difference, alternative="greater").pvalue)
    assert not test.significant
    assert test.wilcoxon_corrected < 0.05
    _, page = report(run)
    expected = (
        r"By LPIPS, pdl beats l2: Wilcoxon's test finds it \(p = 0\.0\d+\), the t-test does not \(p = 0\.[\d]+\)\."
    )
    assert re.search(expected, parts(page)[1])
    _, _, panel = page.text.partition("LPIPS ↓ over 12 images")
    # Mean, worst 5 %, behind the best, t-test, Wilcoxon, effect: 0.00625 on average, 0.0305 the standard deviation.
    assert "best l2 0.200 0.200 to 0.200 0.200 0.200 to 0.200 0.006 0.25 0.017 0.21 disputed" in panel


def test_a_claim_names_whom_it_holds_against_and_whom_not(tmp_path):
    """Five losses are one and the same but for noise, two are far worse."""
    alike = {f"twin {i}": MEANS["l2"] for i in range(5)}
    means = {"input": MEANS["input"], **alike, "bad": MEANS["input"], "worse": tuple(0.9 * v for v in MEANS["input"])}
    run = read_run(make_run(tmp_path / "run", means=means, images=8, metrics=("psnr",)))
    said = claims(run)
    best = run.analysis.winner
    assert said.supported[0] == f"By the score, {best} beats bad and worse (p < 0.001)."
    assert re.fullmatch(
        rf"By the score, {best} over (twin \d), (twin \d) and 2 more \(p ≥ 0\.\d+\)\.", said.unsupported[0]
    )
    assert not any(best in claim and "PSNR beats" in claim for claim in said.supported)  # the score is PSNR alone
    assert pill(run)[1] == f"no significant lead over {'twin 0' if best != 'twin 0' else 'twin 1'} and 3 others"


@pytest.mark.parametrize(("luck", "holds"), [(0.0, True), (0.05, False)])
def test_several_seeds_say_whether_a_lead_holds_for_new_trainings(tmp_path, luck, holds):
    means = {"input": MEANS["input"], "l2": MEANS["l2"], "l1": (30.3, 0.909, 0.980, 0.245, 0.07)}
    run = make_run(tmp_path / "run", means=means, seeds=(5, 6, 7), luck=luck)
    _, page = report(run)
    winner = read_run(run).analysis.winner
    other = next(loss for loss in means if loss not in (winner, "input"))
    assert "Each loss was trained 3 times" in page.text
    assert "the luck of a training is not measured" not in page.text
    assert (f"For new trainings too, {winner} beats {other}" in page.text) == holds
    assert (f"That {winner} beats {other} is not shown to hold for new trainings" in page.text) != holds
    if holds:
        assert f"Use {winner} significant over 12 images and 3 trainings" in page.text
        assert "by both a t-test over 3 trainings and 12 images and Wilcoxon's signed-rank test over the" in page.text
        assert "it then holds for new images and new trainings." in page.text
        assert "Means over 12 images and 3 trainings." in page.text
    else:
        assert f"By the score, {winner} beats {other}: true of these trainings (Wilcoxon p" in parts(page)[1]
        assert ", not shown for new ones (p = 0." in parts(page)[1]
    assert "Pictures are of the first training of each loss" in page.text
    assert "5, 6, 7" in page.text[page.text.rindex("Provenance") :]


def test_the_variance_of_trainings_and_images_is_shown_for_each_loss(tmp_path):
    run = make_run(tmp_path / "run", seeds=(0, 1, 2), luck=0.05)
    html, _ = report(run)
    split = next(m for m in read_run(run).analysis.metrics if m.column.base == "psnr").splits["pdl"]
    panel = html[html.index("between the 3 trainings of a loss") :]
    row = panel[panel.index(">pdl</span>") : panel.index("</tr>", panel.index(">pdl</span>"))]
    cells = re.findall(r"<td>([\d.]+)</td>", row)
    assert cells == [f"{each:.2f}" for each in (split.seed, split.image, split.rest)]
    assert f"{100 * split.shares[0]:.0f} % trainings, {100 * split.shares[1]:.0f} % images" in row


def test_without_several_seeds_no_variance_is_split(tmp_path):
    _, page = report(make_run(tmp_path / "run", seeds=(3,)))
    assert "Between trainings and between images" not in page.text
    assert "Each loss was trained once, so the luck of a training is not measured; --seeds 3 would." in page.text


def test_one_image_cannot_be_tested(tmp_path):
    html, page = report(make_run(tmp_path / "run", images=1))
    assert "Use pdl not tested" in page.text
    assert "With only one evaluated image, chance cannot be tested." in page.text
    assert "cannot be tested: only one image" in page.text
    assert "Only 1 image evaluated" in page.text
    assert "By the score, pdl over all 3 other losses cannot be tested: only one image." in parts(page)[2]
    reason = "That pdl improves on the degraded input by PSNR, MS-SSIM and LPIPS cannot be tested: only one image."
    assert reason in parts(page)[2]
    assert not re.search(r"\bnan\b", page.text, re.IGNORECASE)
    assert "NaN" not in html


def test_one_loss_is_nothing_to_choose_between_but_is_held_against_the_input(tmp_path):
    run = make_run(tmp_path / "run", means={k: MEANS[k] for k in ("input", "pdl")})
    _, page = report(run)
    said = verdict(read_run(run))
    assert said.startswith("pdl is the only loss with a result: whether another would do better is not known.\n")
    supported = said.partition("Not supported")[0]
    assert "- pdl improves on the degraded input by PSNR, MS-SSIM and LPIPS (p < 0.001)." in supported
    assert "Use pdl not tested" in page.text
    assert "Who beats whom" not in page.text
    assert "furthest behind" not in page.text.partition("Where each loss fails")[2].partition("Nothing here")[2]


def test_a_single_loss_gets_the_same_words_with_only_and_without(tmp_path):
    run = make_run(tmp_path / "run", means={k: MEANS[k] for k in ("input", "pdl")})
    said = verdict(read_run(run))
    for options in ((), ("--only", "photo")):
        result = CliRunner().invoke(app, ["report", str(run), *options])
        assert result.exit_code == 0, result.output
        assert said in result.output


def test_markdown_ends_with_what_is_supported(tmp_path):
    text = markdown(read_run(make_run(tmp_path / "run")))
    table_lines, _, words = text.partition("\n\n")
    assert all(line.startswith("|") for line in table_lines.splitlines())
    assert words.startswith("Supported:\n\n- By the score, pdl beats all 3 other losses")
    assert "\n- By LPIPS, pdl beats all 3 other losses (p < 0.001).\n" in words
    assert "\n\nNot supported:\n\n- " in words
    assert words.splitlines()[-1].startswith("Supported means p < 0.05")


def test_the_stars_of_sums_in_markdown_are_no_italics(tmp_path):
    means = {name: MEANS[name] for name in ("input", "0.8*l2 + 0.2*lpips")}
    text = markdown(read_run(make_run(tmp_path / "run", means=means)))
    assert "| 0.8\\*l2 + 0.2\\*lpips |" in text
    assert "0.8\\*l2 + 0.2\\*lpips" in text.partition("\n\n")[2]
    assert not re.search(r"(?<![*\\])\*(?!\*)", text)
    assert "| **" in text


def test_one_test_set_alone_as_markdown_with_intervals(tmp_path):
    names = [f"kodak/{k}" for k in range(5)] + [f"set5/{k}" for k in range(5)]
    make_run(tmp_path / "run", names=names)
    run = read_run(tmp_path / "run", only="kodak/")
    assert list(run.analysis.values.images) == names[:5]
    lines = markdown(run).splitlines()
    assert lines[0].startswith("| loss | score | PSNR dB ↑ | ")
    assert lines[2].startswith("| degraded input | ")
    rows = pl.read_parquet(tmp_path / "run" / "rows.parquet")
    wanted = pl.col("image").str.starts_with("kodak/") & (pl.col("loss") == "pdl") & (pl.col("metric") == "lpips")
    values = rows.filter(wanted)["value"].to_numpy()
    mean, half = values.mean(), 2.776445 * values.std(ddof=1) / np.sqrt(5)  # t of 4 degrees of freedom, 97.5 %
    cell = next(line for line in lines if line.startswith("| pdl |")).split("|")[6].strip()
    assert cell == f"**{mean:.3f}** ({mean - half:.3f} to {mean + half:.3f})"
    with pytest.raises(DataError, match="no images whose names begin with 'kodac/'; it has kodak/0"):
        read_run(tmp_path / "run", only="kodac/")


def test_table_starts_with_the_input_and_falls_by_score(tmp_path):
    _, page = report(make_run(tmp_path / "run", noise=0))
    header, *rows = page.rows
    assert header == [
        "Loss",
        "Score ↑",
        "PSNR ↑dB",
        "SSIM ↑",
        "MS-SSIM ↑",
        "LPIPS ↓",
        "Sharpness Q ↑",
        "Times/step",
    ]
    assert [row[0] for row in rows] == [
        "degraded input",
        "pdl",
        "0.8*l2 + 0.2*lpips",
        "ms-ssim-l1(scales=3)",
        "l2",
    ]
    scores = [float(row[1].strip("*")) for row in rows[1:]]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(28.8 / 30 * 0.960 / 0.975, abs=6e-4)
    assert {row[-1] for row in rows} == {"–", "0.12"}


def test_best_values_are_bold_and_optimised_metrics_carry_a_dagger(tmp_path):
    html, page = report(make_run(tmp_path / "run", noise=0))
    rows = {row[0]: row[1:] for row in page.rows}
    bold = {name: [i for i, cell in enumerate(row) if cell.startswith("*")] for name, row in rows.items()}
    assert bold["degraded input"] == []
    assert bold["pdl"] == [0, 4, 5]
    assert bold["l2"] == [1]
    assert bold["ms-ssim-l1(scales=3)"] == [2, 3]
    dagger = {name: [i for i, cell in enumerate(row) if cell.endswith("†")] for name, row in rows.items()}
    assert dagger["l2"] == [1]
    assert dagger["ms-ssim-l1(scales=3)"] == [2, 3]
    assert dagger["0.8*l2 + 0.2*lpips"] == [1, 4]
    assert dagger["pdl"] == []
    assert "† the loss was trained on this metric" in page.text
    assert "Sharpness Q looks at the image alone" in page.text
    assert html.count("data:image/webp") > 0


def test_a_winner_trained_on_the_score_is_a_caveat(tmp_path):
    means = {k: MEANS[k] for k in ("input", "l2", "0.8*l2 + 0.2*lpips")}
    _, page = report(make_run(tmp_path / "run", means=means))
    assert "0.8*l2 + 0.2*lpips was trained on PSNR and LPIPS, which are part of the score" in page.text


def test_failed_and_left_out_losses_are_named_with_their_reason(tmp_path):
    run = make_run(tmp_path / "run", failed=["contextual"], notes=["vgg16 weights could not be had: vgg16 left out"])
    _, page = report(run)
    first = page.text[: page.text.index("Loss Score")]
    assert "contextual failed and is not ranked: the term became NaN at step 7" in first
    assert "vgg16 weights could not be had: vgg16 left out" in first


def test_without_lpips_the_page_says_what_the_score_is(tmp_path):
    _, page = report(make_run(tmp_path / "run", metrics=("psnr", "ssim", "ms-ssim")))
    assert "Equation 7 of the PDL paper without LPIPS, which was not measured." in page.text
    assert "It then rewards fidelity more than looks." in page.text
    assert "Score = PSNR / PSNR max · MS-SSIM / MS-SSIM max" in page.text
    assert "MS-SSIM (higher is better)" in page.text  # the second axis of the plot


def test_a_single_metric_still_gives_a_page(tmp_path):
    html, page = report(make_run(tmp_path / "run", metrics=("sharpness-q",)))
    assert "the score is Sharpness Q alone" in page.text
    assert "Fidelity against perception" not in page.text
    assert 'href="#tradeoff"' not in html


def test_page_loads_nothing_from_anywhere(tmp_path):
    html, page = report(make_run(tmp_path / "run"))
    assert not re.search(r"https?:|//\w+\.\w+/|@import", html)
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value[:80])
        assert not [name for name in attributes if name.startswith("on")], "no inline handlers"
    assert "default-src 'none'" in html


def test_page_has_a_dark_mode_and_a_phone_width(tmp_path):
    html, _ = report(make_run(tmp_path / "run"))
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport" content="width=device-width' in html
    assert "max-width: 640px" in html


def test_hostile_names_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    means = {"input": MEANS["input"], evil: MEANS["pdl"], "l2": MEANS["l2"], "[red]x": MEANS["l2"]}
    names = ["</script><img src=x onerror=alert(2)>", 'a"b', "[bold]c", "d & e"]
    run = make_run(tmp_path / "run", means=means, names=names, notes=["<b onclick=x>note</b>"], failed=["<i>f</i>"])
    about = json.loads((run / "comparison.json").read_text())
    about["metrics"][0]["label"] = "psnr(<u>y</u>)"
    (run / "comparison.json").write_text(json.dumps(about))
    html, page = report(run)
    assert "<script>alert" not in html
    assert "<u>" not in html
    assert "By PSNR (<u>y</u>), " in page.text
    assert "<img src=x" not in html
    assert "<b onclick" not in html
    assert "<i>f</i>" not in html
    assert evil in page.text
    assert [
        attributes.get("src") for tag, attributes in page.tags if tag == "img" and attributes.get("src") == "x"
    ] == []
    console = Console(file=io.StringIO(), width=200)
    console.print(table(read_run(run)))
    assert "[red]x" in console.file.getvalue()
    assert evil in verdict(read_run(run))


def test_crops_are_lossless(tmp_path):
    run = make_run(tmp_path / "run", images=2)
    html, _ = report(run)
    embedded = re.search(r'id="crop-0-0" src="data:image/webp;base64,([^"]+)" [^>]*alt="(photo \d): input"', html)
    crop = np.asarray(Image.open(io.BytesIO(base64.b64decode(embedded[1]))).convert("RGB"))
    saved = np.asarray(Image.open(run / "images" / "input" / f"{embedded[2].replace(' ', '-')}.png"))
    assert (crop == saved).all()  # 60 × 44 is smaller than a crop, so the crop is the image


def test_page_stays_under_its_size_and_says_what_it_left_out(tmp_path):
    # Noise does not compress: 6 pictures of 700 × 500 for each of 6 images are 38 MB.
    run = make_run(tmp_path / "run", images=6, size=(700, 500))
    path = write_report(read_run(run))
    assert path.stat().st_size < 15e6
    page = Page(path.read_text(encoding="utf-8"))
    assert re.search(r"\d of 6 test images, spread evenly|Full frames of \d, crops of the rest", page.text)


def test_full_frames_are_shown_when_there_is_room(tmp_path):
    html, page = report(make_run(tmp_path / "run", images=1, size=(300, 280)))
    frames = re.search(r'data-frames="photo 0">(.*?)</script>', html)
    assert set(json.loads(frames[1])) == {"input", "loss-1", "loss-2", "loss-3", "loss-4", "truth"}
    assert "the 256 × 256 px with the most detail" in page.text


def test_provenance_tells_how_to_repeat_the_run(tmp_path):
    _, page = report(make_run(tmp_path / "run"))
    tail = page.text[page.text.rindex("Provenance") :]
    for fact in (
        "box-blur(size=5)",
        "unet(width=8), 123,456 parameters",
        "41",
        "veridical 0.1.0",
        "a CPU",
        "abc123",
    ):
        assert fact in tail
    assert f"veridical compare {tmp_path / 'run' / 'recipe.toml'} --out again" in tail


def test_report_is_the_same_from_csv_and_keeps_numeric_names_as_text(tmp_path):
    run = make_run(tmp_path / "run", names=["001", "002", "003"])
    expected = verdict(read_run(run))
    rows = pl.read_parquet(run / "rows.parquet")
    rows.write_csv(run / "rows.csv")
    (run / "rows.parquet").unlink()
    assert verdict(read_run(run)) == expected
    _, page = report(run)
    assert "002" in page.text


def test_missing_curves_and_images_are_said_not_fatal(tmp_path):
    run = make_run(tmp_path / "run")
    shutil.rmtree(run / "images")
    (run / "loss-1" / "training.csv").unlink()
    _, page = report(run)
    assert "Not drawn: l2: no training.csv" in page.text
    assert "This run has no images" in page.text


def test_a_run_without_a_drawable_curve_says_why(tmp_path):
    """Every total begins at zero or below, where a logarithm has no place."""
    run = make_run(tmp_path / "run")
    for path in run.glob("loss-*/training.csv"):
        path.write_text("step,total\n10,-0.5\n20,-0.6\n")
    _, page = report(run)
    assert "Not drawn: l2: its first total is not positive" in page.text
    assert "each curve is divided by" not in page.text


def test_without_bold_the_best_values_carry_a_star(tmp_path):
    console = Console(record=True, width=160)
    console.print(table(read_run(make_run(tmp_path / "run")), bold=False))
    text = console.export_text()
    assert "*: best of the losses" in text
    # One star in each column: the score and five metrics.
    assert len(re.findall(r"│ +\*\d", text)) == 1 + 5


def test_a_verdict_for_losses_that_gained_nothing_says_so(tmp_path):
    """Every loss is as blurred as the input."""
    worse = {**MEANS, **{loss: MEANS["input"] for loss in MEANS if loss != "input"}}
    said = verdict(read_run(make_run(tmp_path / "run", means={**worse, "input": MEANS["pdl"]})))
    assert said.endswith("no loss improved on the degraded input: train longer, or check the data.")
    assert "  " not in said


def test_terminal_table_has_every_loss_and_mark(tmp_path):
    run = make_run(tmp_path / "run", failed=["contextual"])
    console = Console(file=io.StringIO(), width=140)
    console.print(table(read_run(run)))
    text = console.file.getvalue()
    for word in (*MEANS, "degraded input", "PSNR dB ↑", "LPIPS ↓", "†", "contextual failed"):
        assert word in text or word == "input"


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda run: shutil.rmtree(run), "there is no run folder"),
        (lambda run: (run / "comparison.json").unlink(), "has no comparison.json"),
        (lambda run: (run / "recipe.toml").unlink(), "has no recipe.toml"),
        (lambda run: (run / "rows.parquet").unlink(), "neither rows.parquet nor rows.csv"),
        (lambda run: (run / "rows.parquet").write_bytes(b"no"), "cannot be read"),
        (lambda run: (run / "comparison.json").write_text("{"), "not valid JSON"),
        (lambda run: (run / "comparison.json").write_text("{}"), "no list 'losses'"),
        (
            lambda run: (run / "comparison.json").write_text('{"losses": [{"name": "l2"}], "metrics": [1]}'),
            "an entry of 'losses' has no 'slug'",
        ),
        (
            lambda run: pl.read_parquet(run / "rows.parquet").clear().write_parquet(run / "rows.parquet"),
            "are empty",
        ),
        (
            lambda run: pl.read_parquet(run / "rows.parquet").drop("value").write_parquet(run / "rows.parquet"),
            "lack the column 'value'",
        ),
        (
            lambda run: (
                pl.read_parquet(run / "rows.parquet")
                .filter(pl.col("loss") == "input")
                .write_parquet(run / "rows.parquet")
            ),
            "no values to compare",
        ),
        (lambda run: (run / "images" / "truth" / "photo-0.png").write_bytes(b"\x89PNG"), "photo-0.png"),
    ],
)
def test_an_unusable_folder_says_what_was_expected(tmp_path, harm, says):
    run = make_run(tmp_path / "run", images=1)
    harm(run)
    with pytest.raises(DataError, match=re.escape(says)):
        write_report(read_run(run))


def test_the_page_works_in_a_browser(tmp_path):
    browser = program()
    path = write_report(read_run(make_run(tmp_path / "run", images=2)))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    ]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run(
        [browser, *flags, "--virtual-time-budget=3000", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert '<div id="compare">' in shown  # no longer hidden: the script ran to its end
    assert '<div class="controls" id="axes">' in shown
    planes = re.findall(r'<figure class="plane" data-x="([^"]+)" data-y="([^"]+)"( hidden="")?>', shown)
    assert [(x, y) for x, y, hidden in planes if not hidden] == [("PSNR", "LPIPS")]
    compare = shown[shown.index('<div id="compare">') :]
    assert re.search(r'<span class="tag l">input</span><span class="tag r">pdl</span>', compare)
    assert compare.count("translate(0%, 0%) scale(1)") >= 2
    assert re.search(r'<select id="right">.*?<option value="truth">truth</option>', compare)


@pytest.mark.parametrize("width", [1280, 375])
def test_a_reader_chooses_axes_and_metrics_at_any_width(tmp_path, width):
    means = {"input": MEANS["input"]} | {f"a rather long name of loss {i}": MEANS["l2"] for i in range(12)}
    path = write_report(read_run(make_run(tmp_path / "run", means=means, images=5, seeds=(0, 1))))
    with chromium() as opened:
        page = opened.new_page(viewport={"width": width, "height": 800})
        wrong = []
        page.on("pageerror", lambda error: wrong.append(error))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width  # only tables scroll, by themselves
        page.locator("#axes select").nth(0).select_option("SSIM")
        page.locator("#axes select").nth(1).select_option("Sharpness Q")
        (shown,) = [plane for plane in page.locator("figure.plane").all() if plane.is_visible()]
        assert (shown.get_attribute("data-x"), shown.get_attribute("data-y")) == ("SSIM", "Sharpness Q")
        assert [chart.is_visible() for chart in shown.locator("svg.chart").all()] == [width > 640, width <= 640]
        page.locator("label", has_text=re.compile("^LPIPS$")).click()
        assert page.locator(".panel h3:visible").all_inner_texts() == ["LPIPS ↓ over 5 images and 2 trainings"]
        page.keyboard.press("ArrowLeft")
        assert page.locator(".panel h3:visible").all_inner_texts() == ["MS-SSIM ↑ over 5 images and 2 trainings"]
    assert not wrong


def test_the_most_detailed_window_is_chosen():
    truth = np.full((400, 500, 3), 128, dtype=np.uint8)
    truth[180:330, 290:440] = np.random.default_rng(0).integers(0, 256, (150, 150, 3))
    box = pictures.interesting(truth, 160)
    assert box.left <= 290
    assert box.left + box.width >= 440
    assert box.top <= 180
    assert box.top + box.height >= 330


def test_labels_of_the_plot_do_not_overlap():
    points = [charts.Point(f"loss number {i}", i, 30 + 0.01 * (i % 3), 0.1 + 0.001 * i) for i in range(8)]
    points.append(charts.Point("input", None, 20.0, 0.9))
    chart = charts.scatter(points, x_rises=True, y_rises=False, width=760, height=440)
    assert chart.off_chart
    assert len(chart.marks) == 8
    spans = []
    for mark in chart.marks:
        length = 7.2 * len(mark.name)
        start = mark.label_x - {"start": 0, "middle": length / 2, "end": length}[mark.anchor]
        spans.append((start, mark.label_y - 9, start + length, mark.label_y))
    for i, a in enumerate(spans):
        for b in spans[i + 1 :]:
            assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])


def test_a_single_loss_is_drawn_beside_the_input():
    points = [charts.Point("only", 0, 32.0, 0.1), charts.Point("input", None, 20.0, 0.9)]
    assert not charts.scatter(points, x_rises=True, y_rises=False, width=700, height=400).off_chart


def test_better_is_up_and_to_the_right_whatever_the_direction():
    points = [charts.Point("good", 0, 32.0, 0.1), charts.Point("bad", 1, 30.0, 0.3)]
    good, bad = charts.scatter(points, x_rises=True, y_rises=False, width=700, height=400).marks
    assert good.x > bad.x
    assert good.y < bad.y  # SVG's y grows downwards


def test_training_curves_start_at_one_and_drop_what_a_logarithm_cannot_show():
    steps = np.arange(1.0, 11)
    at, values = charts.relative(steps, np.array([4.0, 2, 1, 0, -1, np.nan, 1, 1, 1, 0.5]))
    assert values == pytest.approx([1, 0.5, 0.25, 0.25, 0.25, 0.25, 0.125])
    assert (at[0], at[-1]) == (1, 10)
    assert charts.relative(steps, -steps) is None


# Violins


def distribution(name, series, values, mean=None, worst=None):
    values = np.asarray(values, dtype=np.float64)
    mean = mean or Interval(values.mean(), values.mean() - 0.1, values.mean() + 0.1)
    worst = worst or Interval(values.min(), values.min(), values.min() + 0.2)
    return charts.Distribution(name, series, values, mean, worst)


def numbers(path):
    """The coordinates of an SVG path of points, (n, 2)."""
    return np.array([[float(v) for v in pair.split()] for pair in re.findall(r"-?[\d.]+ -?[\d.]+", path)])


def test_the_density_is_that_of_scipy_and_of_the_formula_far_from_bounds():
    values = np.random.default_rng(0).normal(30, 2, 40)
    at = np.linspace(20, 40, 301)
    ours = charts.density(values, at)
    assert ours == pytest.approx(stats.gaussian_kde(values)(at))
    # Scott (1992), equation 6.42: a bandwidth of s n^(-1/5).
    width = values.std(ddof=1) * len(values) ** -0.2
    plain = np.exp(-0.5 * ((at[:, None] - values) / width) ** 2).sum(axis=1) / (
        len(values) * width * np.sqrt(2 * np.pi)
    )
    assert ours == pytest.approx(plain)
    assert np.trapezoid(ours, at) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("low", "high"), [(0.0, np.inf), (-np.inf, 1.0), (0.0, 1.0)])
def test_no_mass_of_the_density_is_lost_beyond_a_bound(low, high):
    values = np.random.default_rng(0).uniform(0.02, 0.98, 60)
    at = np.linspace(-1, 2, 30001)
    inside = (at >= low) & (at <= high)
    ours = charts.density(values, at, low, high)
    assert not ours[~inside].any()
    assert np.trapezoid(ours, at) == pytest.approx(1, abs=2e-4)  # the step of the grid at the bound
    without = charts.density(values, at)
    assert np.trapezoid(without[inside], at[inside]) < 0.97  # what an unreflected kernel would have lost


def test_marks_of_a_violin_stand_at_their_values_and_better_is_to_the_right():
    values = np.linspace(20, 30, 11)
    row = distribution("a", 0, values, Interval(25, 24, 26), Interval(20.5, 20, 21))
    for rises, sign in ((True, 1), (False, -1)):
        chart = charts.violins([row], rises=rises, width=900)
        (violin,) = chart.violins
        by_value = {float(tick.text): tick.at for tick in chart.x_ticks}
        per_unit = (by_value[30] - by_value[20]) / 10
        assert np.sign(per_unit) == sign
        assert violin.mean == pytest.approx(by_value[20] + 5 * per_unit)
        assert violin.worst == pytest.approx(by_value[20] + 0.5 * per_unit)
        assert violin.mean_range == pytest.approx(sorted((by_value[20] + 4 * per_unit, by_value[20] + 6 * per_unit)))
        assert violin.worst_range == pytest.approx(sorted((by_value[20], by_value[20] + per_unit)))
        outline = numbers(violin.shape)
        assert outline[:, 0].min() == pytest.approx(
            min(by_value[20], by_value[30]), abs=0.06
        )  # no further than the data
        assert outline[:, 0].max() == pytest.approx(max(by_value[20], by_value[30]), abs=0.06)
        assert outline[:, 1] - violin.y == pytest.approx(-(outline[::-1, 1] - violin.y), abs=0.11)  # symmetric
        assert np.ptp(outline[:, 1]) == pytest.approx(26, abs=0.2)
        assert sorted(numbers(violin.dots)[:, 0]) == pytest.approx(
            sorted(by_value[20] + per_unit * (values - 20)), abs=0.06
        )


@pytest.mark.parametrize(
    ("count", "shape", "dots"), [(1, False, True), (4, False, True), (5, True, True), (61, True, False)]
)
def test_few_values_are_dots_and_many_a_shape_alone(count, shape, dots):
    values = np.random.default_rng(0).normal(0.5, 0.1, count)
    (violin,) = charts.violins([distribution("a", 0, values)], rises=True, width=350).violins
    assert (bool(violin.shape), bool(violin.dots)) == (shape, dots)


def test_equal_values_have_no_density_but_are_drawn():
    (violin,) = charts.violins([distribution("a", 0, [0.5] * 8)], rises=True, width=900).violins
    assert not violin.shape
    assert violin.dots.count("h0") == 8


def test_a_row_that_squeezes_all_others_is_named_and_not_drawn():
    rng = np.random.default_rng(0)
    ours = [distribution(f"loss {i}", i, 30 + 0.1 * i + 0.2 * rng.normal(size=9)) for i in range(5)]
    chart = charts.violins([distribution("input", None, rng.normal(20, 0.1, 9)), *ours], rises=True, width=900)
    assert [violin.beyond for violin in chart.violins] == [True, *[False] * 5]
    broken = [*ours[:4], distribution("diverged", 4, rng.normal(8, 0.1, 9))]
    assert [v.beyond for v in charts.violins(broken, rises=True, width=900).violins] == [*[False] * 4, True]
    two = [distribution("wide", 0, rng.normal(30, 3, 9)), distribution("narrow", 1, rng.normal(20, 0.01, 9))]
    assert not any(v.beyond for v in charts.violins(two, rises=True, width=900).violins)


@pytest.mark.parametrize("width", [350, 900])
def test_violins_of_many_losses_stay_inside_the_plot_and_apart(width):
    rng = np.random.default_rng(0)
    rows = [distribution(f"a loss of number {i}", i, rng.normal(30, 1, 30)) for i in range(12)]
    chart = charts.violins(rows, rises=True, width=width)
    outlines = [numbers(violin.shape) for violin in chart.violins]
    for above, below in itertools.pairwise(outlines):
        assert above[:, 1].max() < below[:, 1].min()
    for violin, outline in zip(chart.violins, outlines, strict=True):
        assert chart.left <= outline[:, 0].min()
        assert outline[:, 0].max() <= chart.right
        assert numbers(violin.dots)[0, 1] < chart.bottom
        if width == 900:
            assert 18 + 7.2 * len(violin.name) < chart.left


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[-1, 1]", (-1, 1)),
        ("[0, inf]", (0, np.inf)),
        ("[0, 1.13)", (0, 1.13)),
        ("about 0 to 100", (-np.inf, np.inf)),
        ("", (-np.inf, np.inf)),
    ],
)
def test_the_bounds_of_a_metric_are_read_from_its_range(text, expected):
    assert charts.bounds_of(text) == expected


# The plane of distortion and perception


def columns(*names):
    falling = {"lpips", "dists", "niqe", "pi", "brisque", "pieapp", "gmsd"}
    alone = {"niqe", "pi", "brisque", "nrqm", "sharpness-q", "laplacian-variance"}
    return tuple(Column(n, n.upper(), n not in falling, reference=n not in alone) for n in names)


@pytest.mark.parametrize(
    ("measured", "x", "y"),
    [
        (("ssim", "psnr", "lpips", "sharpness-q"), "psnr", "lpips"),
        (("psnr", "lpips", "niqe", "brisque"), "psnr", "niqe"),
        (("lpips", "ssim", "sharpness-q", "brisque"), "ssim", "brisque"),
        (("psnr", "sharpness-q"), "psnr", "sharpness-q"),
        (("psnr", "ssim", "ms-ssim"), "psnr", "ms-ssim"),
        (("lpips", "niqe"), "lpips", "niqe"),
    ],
)
def test_the_axes_are_distortion_and_the_most_perceptual_metric(measured, x, y):
    horizontal, vertical = plane.axes(columns(*measured))
    assert (horizontal[0].base, vertical[0].base) == (x, y)
    assert not {c.name for c in horizontal} & {c.name for c in vertical}


def test_one_metric_spans_no_plane():
    assert plane.axes(columns("psnr")) == ([], [])


def test_the_meaning_of_the_vertical_axis_is_said_honestly():
    niqe, lpips, sharpness, ssim = columns("niqe", "lpips", "sharpness-q", "ssim")
    assert "the mean of a score without reference stands in for it" in plane.meaning(niqe)
    assert "strictly, both axes are distortions" in plane.meaning(lpips)
    assert "not all of perception" in plane.meaning(sharpness)
    assert "No perceptual metric was measured" in plane.meaning(ssim)


@pytest.mark.parametrize("seeds", [1, 3])
def test_crosses_of_two_losses_are_the_paired_interval_over_the_root_of_two(seeds):
    """In closed form: d is the difference, each normalised value is plus or minus d / 2, and Morey's factor is 2."""
    rng = np.random.default_rng(0)
    hard = 10 * rng.normal(size=15)  # what both share
    a, b = (mean + hard + 0.1 * rng.normal(size=(seeds, 15)) + 0.1 * rng.normal(size=(seeds, 1)) for mean in (30, 29))
    one, other = plane.within_image_intervals(np.stack([a, b]))
    paired = stats.ttest_rel(a[0], b[0]).confidence_interval(0.95) if seeds == 1 else mean_interval(a - b)
    half = (paired.high - paired.low) / 2 / np.sqrt(2)
    for interval, values in ((one, a), (other, b)):
        assert interval.value == pytest.approx(values.mean())
        assert (interval.low, interval.high) == pytest.approx((values.mean() - half, values.mean() + half))


def test_crosses_of_unrelated_losses_are_nearly_their_own_intervals():
    values = np.random.default_rng(0).normal(size=(40, 1, 200))
    for interval, (each,) in zip(plane.within_image_intervals(values), values, strict=True):
        own = stats.t.interval(0.95, 199, each.mean(), stats.sem(each))
        assert (interval.low, interval.high) == pytest.approx(own, abs=0.02)


def test_one_loss_or_one_image_has_no_cross():
    assert plane.within_image_intervals(np.ones((1, 1, 9))) == [None]
    assert plane.within_image_intervals(np.ones((3, 2, 1))) == [None] * 3


def test_the_front_is_what_no_other_beats_on_both_axes():
    points = [
        charts.Point("sharp", 0, 28.0, 0.10),
        charts.Point("dull", 1, 27.0, 0.20),  # beaten by all others
        charts.Point("both", 2, 29.0, 0.15),
        charts.Point("faithful", 3, 31.0, 0.30),
        charts.Point("twin", 4, 31.0, 0.31),  # as faithful, looks worse
        charts.Point("input", None, 31.5, 0.09),  # not a loss, so it beats nobody
    ]
    chart = charts.scatter(points, x_rises=True, y_rises=False, width=760, height=440)
    assert chart.front == ("sharp", "both", "faithful")
    at = {mark.name: (mark.x, mark.y) for mark in chart.marks}
    stairs = [float(v) for v in re.findall(r"[\d.]+", chart.stairs)]
    expected = [chart.left, at["sharp"][1], at["sharp"][0], at["both"][1], at["both"][0], at["faithful"][1]]
    assert stairs == pytest.approx([*expected, at["faithful"][0], chart.bottom], abs=0.06)


def test_the_arms_of_a_cross_end_where_the_interval_does():
    points = [charts.Point("a", 0, 30.0, 0.1, (29.0, 31.5), (0.08, 0.12)), charts.Point("b", 1, 31.0, 0.2)]
    chart = charts.scatter(points, x_rises=True, y_rises=False, width=760, height=440)
    a, b = chart.marks
    per_x, per_y = b.x - a.x, (b.y - a.y) / 0.1
    assert a.x_arm == pytest.approx((a.x - per_x, a.x + 1.5 * per_x))
    assert a.y_arm == pytest.approx((a.y - 0.02 * per_y, a.y + 0.02 * per_y))
    assert (b.x_arm, b.y_arm) == (None, None)
    assert chart.left <= a.x_arm[0]
    assert a.x_arm[1] <= chart.right


def test_every_choice_of_axes_is_on_the_page_and_the_best_is_shown(tmp_path):
    html, page = report(make_run(tmp_path / "run"))
    figures = [attributes for tag, attributes in page.tags if tag == "figure" and attributes.get("class") == "plane"]
    assert [(f["data-x"], f["data-y"]) for f in figures] == [
        (x, y) for x in ("PSNR", "SSIM", "MS-SSIM") for y in ("LPIPS", "Sharpness Q")
    ]
    assert ["hidden" in f for f in figures] == [False, *[True] * 5]
    assert "Not beaten on both by another: l2, ms-ssim-l1(scales=3), 0.8*l2 + 0.2*lpips, pdl" in html.replace(
        "pdl, 0.8*l2 + 0.2*lpips, ms-ssim-l1(scales=3), l2", "l2, ms-ssim-l1(scales=3), 0.8*l2 + 0.2*lpips, pdl"
    )


# Who beats whom


def matrix(html, metric):
    """Row -> column -> (%, framed) of one metric's table."""
    start = html.index(f'aria-label="{metric}: who beats whom"')
    body = html[html.index("<tbody>", start) : html.index("</tbody>", start)]
    names, cells = [], []
    for row in body.split("<tr>")[1:]:
        names.append(re.search(r'class="name">(.*?)</span>', row)[1])
        cells.append(re.findall(r'<td class="([\w ]+)"[^>]*>([\d·]+)', row))
    return {
        name: {
            other: (int(text), "sure" in kind) for other, (kind, text) in zip(names, row, strict=True) if text != "·"
        }
        for name, row in zip(names, cells, strict=True)
    }


def test_the_matrix_says_on_how_many_images_the_row_beats_the_column(tmp_path):
    """LPIPS, of which less is better: pdl is below l2 on 9 of 12 images, and equal on one."""
    run = make_run(tmp_path / "run", means={k: MEANS[k] for k in ("input", "l2", "pdl")})
    set_lpips(run, "l2", np.full(12, 0.2))
    set_lpips(run, "pdl", np.r_[np.linspace(0.1, 0.15, 9), 0.2, 0.21, 0.21])
    html, page = report(run)
    found = matrix(html, "LPIPS")
    assert found == {"pdl": {"l2": (75, True)}, "l2": {"pdl": (17, False)}}
    assert list(found) == ["pdl", "l2"]  # the best mean first
    assert matrix(html, "PSNR") == {"l2": {"pdl": (100, True)}, "pdl": {"l2": (0, False)}}
    titles = [attributes.get("title", "") for tag, attributes in page.tags if tag == "td"]
    assert "pdl beats l2 on 75 % of the images; its mean is better with p < 0.001" in titles
    assert "significant" in html[html.index('aria-label="LPIPS: who beats whom"') :]  # for who sees no frame


def test_the_matrix_of_many_losses_shows_the_best_and_says_of_how_many(tmp_path, monkeypatch):
    monkeypatch.setattr("veridical.comparison.report.MATRIX_ROWS", 2)
    html, _ = report(
        make_run(tmp_path / "run", means={k: MEANS[k] for k in ("input", "l2", "pdl", "0.8*l2 + 0.2*lpips")})
    )
    assert len(matrix(html, "LPIPS")) == 2
    assert "Holm-corrected for all 6 pairs. Shown: the 2 of 3 with the best mean." in html


def test_the_matrix_of_equal_losses_frames_nothing(tmp_path):
    means = {"input": MEANS["input"], "l1": MEANS["l2"], "l2": MEANS["l2"]}
    html, _ = report(make_run(tmp_path / "run", means=means, images=20))
    for row in matrix(html, "PSNR").values():
        assert not any(framed for _, framed in row.values())


# Where each loss fails


def values_of(table, metric="lpips"):
    """Values of one metric. table: loss -> values, image by image."""
    cube = np.array(list(table.values()), dtype=np.float64)[..., None]
    images = tuple(f"image {j}" for j in range(cube.shape[1]))
    return Values(tuple(table), images, columns(metric), cube, (), (0,), cube[:, None])


def test_failures_are_the_image_furthest_behind_and_the_worst_one():
    table = {
        "input": [0.9, 0.9, 0.9, 0.0],  # counts for nobody
        "a": [0.12, 0.30, 0.20, 0.40],
        "b": [0.30, 0.10, 0.25, 0.42],
        "c": [0.13, 0.35, 0.05, 0.38],
    }
    values = values_of(table)
    found = failures(values, values.columns[0], ["b", "a", "c"])
    assert [(f.loss, f.image, f.kinds, f.rival) for f in found] == [
        (
            "b",
            "image 2",
            (Kind.BEHIND,),
            "c",
        ),  # 0.25 against 0.05; on image 0 it is further behind the mean of the others
        ("b", "image 3", (Kind.WORST,), "c"),
        ("a", "image 1", (Kind.BEHIND,), "b"),  # 0.30 against 0.10
        ("a", "image 3", (Kind.WORST,), "c"),
        ("c", "image 1", (Kind.BEHIND,), "b"),
        ("c", "image 3", (Kind.WORST,), "a"),
    ]
    assert [(f.value, f.rival_value) for f in found[:2]] == [(0.25, 0.05), (0.42, 0.38)]
    # The same numbers of a metric of which more is better.
    rising = values_of(table, "psnr")
    first = failures(rising, rising.columns[0], ["a", "b", "c"])[:2]
    assert [(f.image, f.kinds, f.rival) for f in first] == [
        ("image 0", (Kind.BEHIND, Kind.WORST), "b"),
        ("image 1", (Kind.BEHIND, Kind.WORST), "c"),
    ]


def test_a_loss_that_is_the_best_everywhere_is_behind_nowhere():
    values = values_of({"a": [0.1, 0.2], "b": [0.35, 0.4]})
    found = failures(values, values.columns[0], ["a", "b"])
    assert [(f.loss, f.image, f.kinds) for f in found] == [
        ("a", "image 1", (Kind.WORST,)),
        ("b", "image 0", (Kind.BEHIND,)),
        ("b", "image 1", (Kind.WORST,)),
    ]
    alone = failures(values_of({"a": [0.1, 0.2]}), values.columns[0], ["a"])
    assert [(f.image, f.kinds, f.rival, f.rival_value) for f in alone] == [("image 1", (Kind.WORST,), None, None)]


def test_the_judge_is_a_perceptual_distance_to_the_truth_if_there_is_one():
    assert judge(columns("psnr", "niqe", "ssim", "lpips")).base == "lpips"
    assert judge(columns("sharpness-q", "psnr")).base == "psnr"
    assert (
        judge(
            columns(
                "niqe",
            )
        ).base
        == "niqe"
    )


def test_the_crop_of_a_failure_is_where_the_loss_is_off_and_the_other_is_not():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
    ours, rival = truth.copy(), truth.copy()
    ours[160:260, 240:340] = 128  # blurred away by ours alone
    ours[20:140, 20:140] = rival[20:140, 20:140] = 128  # a larger part, by both
    box = pictures.failing(truth, ours, rival, 128)
    assert (box.left <= 240, box.left + box.width >= 340) == (True, True)
    assert (box.top <= 160, box.top + box.height >= 260) == (True, True)
    alone = pictures.failing(truth, ours, None, 128)
    assert (alone.left <= 20, alone.top <= 20) == (True, True)


def test_the_page_shows_the_failures_as_lossless_crops(tmp_path):
    run = make_run(tmp_path / "run", means={k: MEANS[k] for k in ("input", "l2", "pdl")}, images=3)
    set_lpips(run, "l2", [0.2, 0.3, 0.2])
    set_lpips(run, "pdl", [0.1, 0.1, 0.25])
    html, page = report(run)
    part = html[html.index('<section id="failures">') : html.index('<section id="pictures">')]
    cases = re.findall(
        r'<h3>.*?class="name">(.*?)</span> <small>(.*?)</small>.*?<p class="note">(.*?)</p>', part, re.DOTALL
    )
    assert sorted(cases) == [
        ("l2", "furthest behind and worst image", "photo 1: LPIPS 0.300; the best other loss, pdl, 0.100"),
        ("pdl", "furthest behind and worst image", "photo 2: LPIPS 0.250; the best other loss, l2, 0.200"),
    ]
    for name, folder in (("input", "input"), ("l2", "loss-1"), ("pdl", "loss-2"), ("truth", "truth")):
        data = re.search(rf'src="data:image/webp;base64,([^"]+)"[^>]*alt="photo 1: {name}"', part)[1]
        crop = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
        assert (crop == np.asarray(Image.open(run / "images" / folder / "photo-1.png"))).all()
    assert "By LPIPS ↓: of each loss the image on which it is furthest behind the best other loss" in page.text


def test_failures_keep_to_their_share_and_say_what_they_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "BUDGET", 1_000_000)
    run = make_run(tmp_path / "run", images=6, size=(100, 100))
    path = write_report(read_run(run))
    html = path.read_text(encoding="utf-8")
    part = html[html.index('<section id="failures">') : html.index('<section id="pictures">')]
    crops = re.findall(r'src="(data:image/webp[^"]+)"', part)
    assert 0 < sum(map(len, crops)) <= pictures.FAILURE_SHARE * 1_000_000
    assert re.search(r"\d images? left out to keep this file small", part)


# What everybody must be able to read


def test_plots_have_names_and_descriptions_and_tables_have_headers(tmp_path):
    html, page = report(make_run(tmp_path / "run", seeds=(0, 1)))
    plots = re.findall(r'<svg class="chart.*?</svg>', html, re.DOTALL)
    assert len(plots) > 15
    for plot in plots:
        assert 'role="img" aria-label="' in plot[: plot.index(">")]
    violin = next(plot for plot in plots if "LPIPS over the images" in plot)
    assert re.search(r"<desc>.*pdl: mean 0\.\d+, worst 5 % 0\.\d+\.", violin)
    tables = re.findall(r"<table.*?</table>", html, re.DOTALL)
    for each in tables:
        assert 'scope="col"' in each
        for row in re.findall(r"<tr.*?</tr>", each[each.index("<tbody>") :], re.DOTALL):
            assert 'scope="row"' in row
    radios = [attributes for tag, attributes in page.tags if tag == "input" and attributes.get("type") == "radio"]
    labels = {attributes.get("for") for tag, attributes in page.tags if tag == "label"}
    assert len(radios) == len(METRICS)
    assert {radio["id"] for radio in radios} <= labels
    assert [("checked" in radio) for radio in radios] == [True, *[False] * (len(METRICS) - 1)]
