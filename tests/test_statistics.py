"""The numbers a report rests on, against published tables, SciPy and hand calculation."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from veridical.comparison.statistics import (
    Column,
    aggregate,
    analyse,
    arrange,
    holm,
    paired_p,
    percentile_interval,
    score_form,
    t_interval,
)

PSNR = Column("psnr", "PSNR", True, "dB")
SSIM = Column("ssim", "SSIM", True)
MS_SSIM = Column("ms-ssim", "MS-SSIM", True)
LPIPS = Column("lpips", "LPIPS", False)
Q = Column("sharpness-q", "Sharpness Q", True, reference=False)

# Mean PSNR, MS-SSIM, LPIPS and the printed score: arXiv:2012.09289, Table 6 (JPEG) and Table 1 (denoising).
TABLE_6 = {
    "input": (29.54, 0.953, 0.208, 0.450),
    "no-perceptual": (31.77, 0.974, 0.176, 0.584),
    "L1": (31.70, 0.973, 0.144, 0.713),
    "L2": (31.50, 0.972, 0.138, 0.738),
    "CTXDP": (31.48, 0.972, 0.113, 0.902),
    "CTXL2": (31.39, 0.971, 0.105, 0.961),
    "PDL 0.001": (31.63, 0.973, 0.135, 0.759),
    "PDL 0.005": (31.24, 0.970, 0.106, 0.947),
    "PDL 0.01": (31.07, 0.969, 0.103, 0.972),
}
TABLE_1 = {
    "input": (10.49, 0.416, 1.289, 0.032),
    "no-perceptual": (27.14, 0.906, 0.311, 0.748),
    "L1 0.005": (26.92, 0.900, 0.264, 0.868),
    "L2 0.001": (27.02, 0.905, 0.283, 0.820),
    "CTXDP 0.100": (26.57, 0.896, 0.241, 0.934),
    "CTXL2 0.010": (26.85, 0.901, 0.246, 0.931),
    "PDL 0.001": (27.10, 0.906, 0.250, 0.930),
    "PDL 0.010": (26.62, 0.898, 0.233, 0.972),
    "PDL 0.020": (26.36, 0.893, 0.239, 0.931),
}


def frame(values, columns):
    """loss -> (images, metrics) as rows."""
    rows = [
        (f"image {j}", loss, column.name, float(value))
        for loss, table in values.items()
        for j, image in enumerate(table)
        for column, value in zip(columns, image, strict=True)
    ]
    return pl.DataFrame(rows, schema=["image", "loss", "metric", "value"], orient="row")


def analysis(values, columns):
    return analyse(arrange(frame(values, columns), [v for v in values if v != "input"], columns))


def noisy(rng, mean, images, sigma):
    """(images, metrics) of normal values whose means over the images are exactly `mean`."""
    noise = rng.normal(0, sigma, (images, len(mean)))
    return np.asarray(mean) + noise - noise.mean(axis=0)


@pytest.mark.parametrize("table", [TABLE_6, TABLE_1], ids=["jpeg", "denoising"])
def test_score_agrees_with_the_tables_of_the_paper(table):
    result = analysis({k: [v[:3]] for k, v in table.items()}, [PSNR, MS_SSIM, LPIPS])
    assert result.score.complete
    for loss, (*_, score) in table.items():
        # LPIPS is printed to 0.001, so a value and the smallest of about 0.1 are each off by up to 0.5 %.
        assert result.scores[loss] == pytest.approx(score, rel=0.012, abs=0.0006), loss
    assert result.winner == max((k for k in table if k != "input"), key=lambda k: table[k][3])


def test_input_sets_no_extreme_of_the_score():
    values = {"input": [(40.0, 0.999, 0.01)], "l2": [(30.0, 0.9, 0.2)]}
    result = analysis(values, [PSNR, MS_SSIM, LPIPS])
    assert result.scores["l2"] == pytest.approx(1.0)
    assert result.scores["input"] == pytest.approx(40 / 30 * 0.999 / 0.9 * 0.2 / 0.01)
    assert result.ranking == ("l2",)
    assert result.margin is None


@pytest.mark.parametrize(
    ("columns", "used", "says"),
    [
        ([PSNR, SSIM, MS_SSIM, LPIPS], ["psnr", "ms-ssim", "lpips"], "in full"),
        ([PSNR, MS_SSIM], ["psnr", "ms-ssim"], "without LPIPS"),
        ([LPIPS, SSIM, PSNR], ["psnr", "ssim", "lpips"], "SSIM stands in for MS-SSIM"),
        ([Q, PSNR], ["psnr"], "without MS-SSIM and LPIPS"),
        ([Q], ["sharpness-q"], "Sharpness Q alone"),
    ],
)
def test_score_uses_what_was_measured_and_says_so(columns, used, says):
    form = score_form(columns)
    assert [c.name for c in form.columns] == used
    assert says in form.note
    assert form.complete is (says == "in full")


def test_a_perfect_or_negative_value_gives_a_finite_score():
    best = np.array([30.0, 0.0])
    assert aggregate(np.array([30.0, 0.0]), best, [True, False]) == 1.0
    assert 0 < aggregate(np.array([30.0, 0.1]), best, [True, False]) < 1e-4
    assert aggregate(np.array([-3.0, 0.1]), best, [True, False]) == 0.0


def test_paired_test_agrees_with_scipy():
    rng = np.random.default_rng(0)
    better, worse = rng.normal(1, 0.3, 12), rng.normal(0.9, 0.3, 12)
    expected = stats.ttest_rel(better, worse, alternative="greater").pvalue
    assert paired_p(better, worse) == pytest.approx(expected, rel=1e-12)
    assert paired_p(worse, better) == pytest.approx(1 - expected, rel=1e-12)


def test_paired_test_agrees_with_a_hand_calculation():
    # d = 1, 2, 3: mean 2, s = 1, t = 2√3 with 2 degrees of freedom, where p = 1/2 − t / (2 √(2 + t²)).
    t = 2 * np.sqrt(3)
    assert paired_p(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(
        0.5 - t / (2 * np.sqrt(2 + t * t)), rel=1e-12
    )


def test_holm_agrees_with_a_worked_example():
    # Sorted .005 ×4 = .02, .01 ×3 = .03, .03 ×2 = .06, .04 ×1 = .04 -> raised to .06 to stay in order.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_does_not_count_tests_that_were_not_made():
    assert holm([0.01, None, 0.04]) == [0.02, None, 0.04]


def test_interval_agrees_with_scipy():
    values = np.random.default_rng(1).normal(30, 2, 9)
    expected = stats.t.interval(0.95, 8, loc=values.mean(), scale=stats.sem(values))
    interval = t_interval(values)
    assert (interval.low, interval.high) == pytest.approx(expected, rel=1e-12)


def test_interval_covers_the_true_mean_nineteen_times_in_twenty():
    rng = np.random.default_rng(2)
    intervals = [t_interval(rng.normal(5, 1, 6)) for _ in range(2000)]
    covered = np.mean([i.low <= 5 <= i.high for i in intervals])
    assert covered == pytest.approx(0.95, abs=0.015)  # 3 standard errors


def test_percentile_interval_brackets_the_percentile_and_repeats():
    values = np.random.default_rng(3).normal(0, 1, 400)
    interval = percentile_interval(values, 5)
    assert interval.low < interval.value < interval.high
    assert interval.low < stats.norm.ppf(0.05) < interval.high
    assert interval == percentile_interval(values, 5)
    assert interval != percentile_interval(values, 5, seed=1)


def test_percentile_interval_agrees_with_scipy():
    values = np.random.default_rng(4).gamma(2, 1, 60)
    interval = percentile_interval(values, 95, draws=4000)
    expected = stats.bootstrap(
        (values,),
        lambda v, axis: np.percentile(v, 95, axis=axis),
        method="percentile",
        n_resamples=4000,
        rng=0,
    ).confidence_interval
    # Both are random: the interval's ends move by about 0.1 between seeds at this size.
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.25)


def test_a_clear_winner_is_significant_and_a_copy_of_it_is_not():
    rng = np.random.default_rng(5)
    base = noisy(rng, (30, 0.95, 0.10), 20, (1, 0.005, 0.01))
    values = {
        "input": base - (5, 0.1, -0.2),
        "pdl": base,
        "twin": base + noisy(rng, (0, 0, 0), 20, (0.01, 0.0001, 0.0001)),
        "l2": base + noisy(rng, (-0.5, -0.01, 0.05), 20, 0.003),
    }
    result = analysis(values, [PSNR, MS_SSIM, LPIPS])
    tests = {t.loss: t for t in result.tests}
    assert "input" not in tests
    assert tests["l2"].significant
    assert tests["l2"].difference.low > 0
    other = "twin" if result.winner == "pdl" else "pdl"
    assert result.tied == (other,)


def test_tests_are_corrected_for_the_number_of_losses():
    rng = np.random.default_rng(6)
    truth = rng.normal(30, 1, 10)
    values = {"best": truth[:, None] + 0.5}
    values |= {f"l{i}": (truth + rng.normal(0, 1, 10))[:, None] for i in range(6)}
    result = analysis(values, [PSNR])
    raw, corrected = [t.p for t in result.tests], [t.corrected for t in result.tests]
    assert corrected == holm(raw)
    assert min(corrected) == pytest.approx(min(1, 6 * min(raw)))


def test_per_metric_summary_turns_the_sign_for_lower_is_better():
    rng = np.random.default_rng(7)
    values = {
        "a": noisy(rng, (30.0, 0.30), 15, 0.01),
        "b": noisy(rng, (28.0, 0.10), 15, 0.01),
        "c": noisy(rng, (30.0, 0.10), 15, 0.01),
    }
    psnr, lpips = analysis(values, [PSNR, LPIPS]).metrics
    assert {psnr.best, *psnr.tied} >= {"a", "c"}
    assert "b" not in {psnr.best, *psnr.tied}
    assert "a" not in {lpips.best, *lpips.tied}
    assert all(t.difference.value > -1e-12 for t in (*psnr.tests, *lpips.tests))
    assert psnr.worst["a"].value == pytest.approx(np.percentile(values["a"][:, 0], 5))
    assert lpips.worst["a"].value == pytest.approx(np.percentile(values["a"][:, 1], 95))


def test_one_image_cannot_be_tested():
    result = analysis({"l1": [(30.0, 0.1)], "l2": [(29.0, 0.2)]}, [PSNR, LPIPS])
    (test,) = result.tests
    assert (test.p, test.corrected, test.significant) == (None, None, False)
    assert test.reason == "only one image"
    assert test.difference.low is None
    assert result.untested == (test,)
    assert result.tied == ()


def test_equal_differences_cannot_be_tested():
    same = [(30.0, 0.1), (31.0, 0.2), (32.0, 0.3)]
    result = analysis({"l1": same, "copy": same}, [PSNR, LPIPS])
    assert result.tests[0].p is None
    assert "same on every image" in result.tests[0].reason
    assert result.margin == 0


def test_images_without_a_finite_value_for_every_loss_are_left_out():
    nan = float("nan")
    values = {"l1": [(30.0,), (31.0,), (32.0,)], "l2": [(29.0,), (nan,), (28.0,)], "lost": [(nan,)] * 3}
    result = arrange(frame(values, [PSNR]), ["l1", "l2", "lost"], [PSNR, LPIPS])
    assert result.losses == ("l1", "l2")
    assert result.images == ("image 0", "image 2")
    assert [c.name for c in result.columns] == ["psnr"]
    assert np.isfinite(result.cube).all()
    text = " ".join(result.left_out)
    assert "LPIPS" in text
    assert "lost" in text
    assert "1 of 3 images" in text
