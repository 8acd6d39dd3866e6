"""A run folder in, one page out: what its first screen says, what it marks, that it needs nothing else."""

import base64
import io
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

from veridical.comparison import charts, pictures
from veridical.comparison.report import markdown, read_run, table, verdict, write_report
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
    """What the first screen says is supported, and what is not."""
    _, _, rest = first_screen(page).partition(" Supported ")
    supported, _, rest = rest.partition(" Not supported ")
    return supported, rest


def test_first_screen_names_the_winner_its_margin_and_the_evidence(tmp_path):
    run = make_run(tmp_path / "run")
    _, page = report(run)
    assert "Which loss should I use? Use pdl significant over 12 images" in first_screen(page)
    assert re.search(r"pdl has the highest aggregate score, 0\.9\d\d; next is .* a margin of 0\.[23]\d\d\.", page.text)
    supported, unsupported = parts(page)
    assert "By the score, pdl beats all 3 other losses (p < 0.001)." in supported
    assert "By PSNR, l2 beats all 3 other losses (p < 0.001)." in supported
    assert "pdl improves on the degraded input by PSNR, MS-SSIM and LPIPS." in supported
    assert "Supported: 12 images; p < 0.05 by a paired t-test and by Wilcoxon's signed-rank test" in first_screen(page)
    assert "each loss was trained once, so the luck of a training is not measured; --seeds 3 would." in unsupported
    plain = verdict(read_run(run))
    assert plain.startswith("Use pdl. pdl has the highest aggregate score")
    assert "\nSupported (12 images; " in plain
    assert "\n- By the score, pdl beats all 3 other losses (p < 0.001).\n" in plain
    assert "\nNot supported:\n- That this holds for another training: " in plain
    assert "<" not in plain.replace("p < ", "")


def test_says_when_the_lead_is_not_significant(tmp_path):
    means = {"input": MEANS["input"], "l1": MEANS["l2"], "l2": MEANS["l2"]}
    run = make_run(tmp_path / "run", means=means)
    _, page = report(run)
    winner, other = ("l1", "l2") if "Use l1" in verdict(read_run(run)) else ("l2", "l1")
    assert f"Use {winner} no significant lead over {other}" in page.text
    supported, unsupported = parts(page)
    assert re.search(rf"By the score, {winner} over {other} \(p = [\d.]+\)\.", unsupported)
    assert "By the score" not in supported


def test_few_images_are_not_enough_for_ranks_and_the_page_says_so(tmp_path):
    """All four agree, which is p = 1/16 of Wilcoxon's test, whatever the t-test says."""
    run = make_run(tmp_path / "run", means={k: MEANS[k] for k in ("input", "l2", "pdl")}, images=4)
    _, page = report(run)
    said = "By LPIPS, pdl over l2: the t-test finds it (p < 0.001), Wilcoxon's cannot with only 4 images."
    assert said in first_screen(page)
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
        r"By LPIPS, pdl over l2: Wilcoxon's test finds it \(p = 0\.0\d+\), the t-test does not \(p = 0\.[\d]+\)\."
    )
    assert re.search(expected, parts(page)[1])


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
        assert "Supported: 12 images × 3 trainings" in page.text
        assert "It speaks for new images and new trainings" in page.text
    else:
        assert f"By the score, {winner} over {other}: so for these trainings" in parts(page)[1]
        assert ", but not for new ones (p = 0." in parts(page)[1]
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
    assert not re.search(r"\bnan\b", page.text, re.IGNORECASE)
    assert "NaN" not in html


def test_one_loss_is_nothing_to_choose_between_but_is_held_against_the_input(tmp_path):
    run = make_run(tmp_path / "run", means={k: MEANS[k] for k in ("input", "pdl")})
    _, page = report(run)
    said = verdict(read_run(run))
    assert said.startswith("pdl is the only loss with a result: whether another would do better is not known.\n")
    assert "- pdl improves on the degraded input by PSNR, MS-SSIM and LPIPS." in said.partition("Not supported")[0]
    assert "Use pdl not tested" in page.text
    assert "Who beats whom" not in page.text
    assert "furthest behind" not in page.text.partition("Where each loss fails")[2].partition("Nothing here")[2]


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
    html, page = report(run)
    assert "<script>alert" not in html
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
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium to run the page's script")
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
    compare = shown[shown.index('<div id="compare">') :]
    assert re.search(r'<span class="tag l">input</span><span class="tag r">pdl</span>', compare)
    assert compare.count("translate(0%, 0%) scale(1)") >= 2
    assert re.search(r'<select id="right">.*?<option value="truth">truth</option>', compare)


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
