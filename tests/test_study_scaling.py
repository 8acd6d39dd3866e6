"""Votes -> a scale in JND, against closed forms, SciPy's optimiser, choix's Bradley-Terry and simulated truth."""

import csv
import itertools
import json
import math
import re
import string
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats
from typer.testing import CliRunner

from tests.shared import shared_data
from veridical.cli import app
from veridical.core.errors import BadOption, DataError
from veridical.study import active, scale_page, scaling
from veridical.study.active import Course, Design, expected_gain, next_pair
from veridical.study.scaling import SIGMA, Settings, Unit, count, fit, judge_raters, scale, share, uncertainty
from veridical.study.votes import COLUMNS, read_methods, read_votes, votes_from_rows

TRUTH = np.array([1.1, 0.5, 0.1, -0.5, -1.2])
NAMES = ("mdf", "lpips", "ssim", "l1", "l2")


def simulated(truth, *, raters=30, votes=20, images=10, seed=0, clickers=0, careless=0):
    """Rows of a study by Thurstone's model; `clickers` raters answer at random, `careless` fail a screening pair."""
    random = np.random.default_rng(seed)
    names = NAMES[: len(truth)]
    pairs = list(itertools.combinations(range(len(truth)), 2))
    preferred = stats.norm.cdf((truth[:, None] - truth[None]) / SIGMA)
    rows = []
    for rater in range(raters):
        for _ in range(votes):
            i, j = random.permutation(pairs[random.integers(len(pairs))])
            p = 0.5 if rater < clickers else preferred[i, j]
            rows.append(
                {
                    "image": f"photo{random.integers(images)}",
                    "method_1": names[i],
                    "method_2": names[j],
                    "result": 1 if random.random() < p else 2,
                    "rater": f"r{rater:03d}",
                    "screening": "",
                }
            )
        answer = 2 if rater < careless else 1
        rows.append(
            {
                "image": "easy",
                "method_1": "x",
                "method_2": "y",
                "result": answer,
                "rater": f"r{rater:03d}",
                "screening": 1,
            }
        )
    return rows


def written(path, rows, *, header=True, delimiter=",", order=COLUMNS[:4]):
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        if header:
            writer.writerow(order)
        writer.writerows([row[column] for column in order] for row in rows)
    return path


# Reading


def test_a_plain_file_is_read_with_and_without_a_header_line(tmp_path):
    text = "7,1,2,1\n8,2,10,2\n"
    (tmp_path / "bare.csv").write_text(text)
    (tmp_path / "named.csv").write_text("Image ID,Method 1,Method 2,Result\n" + text)
    for votes in (read_votes(tmp_path / "bare.csv"), read_votes(tmp_path / "named.csv")):
        assert votes.methods == ("1", "2", "10")  # as numbers
        assert votes.images == ("7", "8")
        assert votes.raters == ()
        assert count(votes).tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 0]]
        assert votes.bad == ()


def test_columns_come_in_any_order_with_any_delimiter_and_byte_order_mark(tmp_path):
    (tmp_path / "votes.csv").write_text("﻿Result;Comment;method_b;Observer;Method A;scene\r\n2;fine;y;anna;x;barn\r\n")
    votes = read_votes(tmp_path / "votes.csv")
    assert (votes.methods, votes.images, votes.raters) == (("x", "y"), ("barn",), ("anna",))
    assert count(votes).tolist() == [[0, 0], [1, 0]]


def test_bad_rows_are_listed_with_their_line_and_the_reason(tmp_path):
    good = "barn,a,b,1\n" * 40
    bad = "barn,a,b,3\n,a,b,1\nbarn,a,a,1\nbarn,a,b\n\nbarn,a,b,1,again\nbarn,a,,2\n"
    (tmp_path / "votes.csv").write_text("image,method_1,method_2,result\n" + good + bad)
    votes = read_votes(tmp_path / "votes.csv")
    assert [(row.line, row.why) for row in votes.bad] == [
        (42, "result is '3', where 1 or 2 is expected"),
        (43, "image is empty"),
        (44, "method a is compared with itself"),
        (45, "it has 3 cells, where the header has 4"),
        (47, "it has 5 cells, where the header has 4"),
        (48, "method_2 is empty"),
    ]
    assert votes.bad[0].text == "barn,a,b,3"
    assert (len(votes), votes.rows) == (40, 46)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"votes\.csv has no votes"),
        ("image,method_1,method_2,result\n\n", r"votes\.csv has no votes"),
        ("image,method_1,method_2,result,rater,screening\nbarn,x,y,1,r1,1\n", "screening votes alone"),
        ("barn,a,b,1\nbarn,a,b,5\n", r"1 of 2 rows cannot be used\. Line 2: result is '5'"),
        ("image,method_1,method_2,seconds\nbarn,a,b,1\n", "has no column 'result'"),
        ("image,method_1,method_2,result,vote\nbarn,a,b,1,1\n", "names the column 'result' twice"),
        ("barn,a,b,1,r1,,3.2,now\n", r"8 cells, where a file without a header line has 4.*with a header line"),
    ],
)
def test_what_is_no_table_of_votes_is_refused_in_words(tmp_path, text, said):
    (tmp_path / "votes.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        read_votes(tmp_path / "votes.csv")


def test_numbers_stand_for_listed_methods_from_one(tmp_path):
    (tmp_path / "methods.txt").write_bytes(b"Blur\r\nXu-10\r\nPan-14")
    methods = read_methods(tmp_path / "methods.txt")
    (tmp_path / "votes.csv").write_text("7,1,3,2\n" * 9 + "7,1,4,1\n7,Blur,3,1\n")
    votes = read_votes(tmp_path / "votes.csv", methods=methods)
    assert votes.methods == ("Blur", "Pan-14")
    assert [row.why for row in votes.bad] == [
        "method_2 is '4', where a number from 1 to 3 or a listed name is expected"
    ]
    assert count(votes).tolist() == [[0, 1], [9, 0]]
    (tmp_path / "methods.txt").write_text("Blur\nBlur\n")
    with pytest.raises(DataError, match="names 'Blur' twice"):
        read_methods(tmp_path / "methods.txt")


NAME = st.text(string.ascii_letters + string.digits + " ,;\"'\n-é", min_size=1, max_size=8).map(str.strip).filter(bool)


@given(
    st.lists(st.tuples(NAME, NAME, NAME, st.sampled_from(["1", "2"])).filter(lambda r: r[1] != r[2]), min_size=1),
    st.permutations(COLUMNS[:4]),
    st.sampled_from([",", ";", "\t"]),
)
def test_what_was_written_is_read_whatever_the_names(tmp_path_factory, cells, order, delimiter):
    rows = [dict(zip(COLUMNS[:4], row, strict=True)) for row in cells]
    path = written(tmp_path_factory.mktemp("votes") / "votes.csv", rows, delimiter=delimiter, order=order)
    votes = read_votes(path)
    got = [
        (votes.images[i], votes.methods[a], votes.methods[b], str(r))
        for i, a, b, r in zip(votes.image, votes.first, votes.second, votes.result, strict=True)
    ]
    assert got == cells
    assert votes.bad == ()


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_in_words(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("votes") / "votes.csv"
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        votes = read_votes(path)
    except DataError:
        return
    assert len(votes) + len(votes.bad) == votes.rows


def test_leaving_out_a_method_leaves_out_its_votes():
    votes = votes_from_rows(simulated(TRUTH))
    rest = votes.without(["ssim"])
    assert rest.methods == ("l1", "l2", "lpips", "mdf")
    whole = count(votes)
    keep = [votes.methods.index(name) for name in rest.methods]
    assert (count(rest) == whole[np.ix_(keep, keep)]).all()
    assert (~rest.ordinary).sum() == (~votes.ordinary).sum()
    with pytest.raises(DataError, match="no method 'gan'"):
        votes.without(["gan"])
    with pytest.raises(DataError, match="fewer than two"):
        votes.without(["l1", "l2", "lpips", "mdf"])


# The model


@pytest.mark.parametrize("p", [0.51, 0.75, 0.947])
def test_two_methods_lie_apart_as_the_normal_quantile_says(p):
    wins = np.array([[0, 1000 * p], [1000 * (1 - p), 0]])
    q = fit(wins, prior_jnd=1e6)
    assert q[0] - q[1] == pytest.approx(1.4826 * stats.norm.ppf(p), rel=1e-9)


def test_the_readings_of_the_papers():
    assert share(1.0) == pytest.approx(0.75, abs=1e-5)
    assert share(2.4) == pytest.approx(0.947, abs=5e-4)  # Mustafa et al. 2022, section 4.3
    made = scale(votes_from_rows(simulated(np.linspace(1, -1, 5))))
    assert len(made.differences) == 10
    eight = scaling.differences([str(k) for k in range(8)], np.arange(8.0)[::-1], np.eye(8), np.ones((8, 8)))
    assert len(eight) == 28


def test_the_fit_is_the_maximum_that_another_optimiser_finds():
    random = np.random.default_rng(3)
    wins = random.integers(0, 12, (6, 6)) * (1 - np.eye(6))
    wins[0] *= 3

    def loss(q):  # plain: no log-space care, no gradient
        p = stats.norm.cdf((q[:, None] - q[None]) / 1.4826)
        return -(wins * np.log(p)).sum() + (q**2).sum() / (2 * 5.0**2)

    found = optimize.minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-7}).x
    q = fit(wins)
    np.testing.assert_allclose(q, found, atol=1e-5)
    assert q.mean() == pytest.approx(0, abs=1e-12)


def test_laplaces_covariance_is_the_inverse_of_the_curvature():
    wins = np.random.default_rng(4).integers(1, 20, (4, 4)) * (1 - np.eye(4))
    q = fit(wins)

    def value(q):
        p = stats.norm.logcdf((q[:, None] - q[None]) / 1.4826)
        return -(wins * p).sum() + (q**2).sum() / (2 * 5.0**2)

    h, eye = 1e-3, np.eye(4)
    hessian = [
        [
            (value(q + h * (a + b)) - value(q + h * (a - b)) - value(q - h * (a - b)) + value(q - h * (a + b)))
            / (4 * h * h)
            for b in eye
        ]
        for a in eye
    ]
    centre = np.eye(4) - 0.25
    np.testing.assert_allclose(uncertainty(wins, q), centre @ np.linalg.inv(hessian) @ centre, rtol=1e-4, atol=1e-6)


def test_unanimous_pairs_stay_finite_and_in_order():
    wins = np.triu(np.full((5, 5), 1000.0), 1)
    q = fit(wins)
    assert np.isfinite(q).all()
    assert (np.diff(q) < -1).all()
    assert q[0] - q[-1] < 100


def test_many_scales_at_once_are_those_of_each():
    random = np.random.default_rng(5)
    wins = random.integers(0, 30, (7, 5, 5)) * (1 - np.eye(5))
    np.testing.assert_allclose(fit(wins), [fit(each) for each in wins], atol=1e-9)


def test_methods_that_were_never_compared_are_named():
    rows = [
        {"image": "barn", "method_1": a, "method_2": b, "result": 1}
        for a, b in [("a", "b"), ("c", "d"), ("d", "e")] * 3
    ]
    with pytest.raises(DataError, match=r"2 groups.*\(a, b\); \(c, d, e\)"):
        scale(votes_from_rows(rows))


# Against Bradley-Terry


def bradley_terry(wins):
    """choix's maximum-likelihood Bradley-Terry scale of the same counts, mean 0."""
    choix = pytest.importorskip("choix", reason="needs the package choix, an independent Bradley-Terry fit")
    data = [pair for pair in zip(*np.nonzero(wins), strict=True) for _ in range(int(wins[pair]))]
    strength = choix.ilsr_pairwise(len(wins), [(int(i), int(j)) for i, j in data])
    return strength - strength.mean()


def agrees_with_bradley_terry(wins, methods):
    """The two scales are one straight line, but for what differs between the normal and the logistic curve."""
    ours, theirs = fit(wins), bradley_terry(wins)
    slope = (ours @ theirs) / (theirs @ theirs)
    # at p = 0.75 both curves say 1 JND: 1.4826 Φ⁻¹(0.75) = 1 and logit(0.75) = 1.0986
    assert slope == pytest.approx(1 / 1.0986, rel=0.06)
    assert np.abs(ours - slope * theirs).max() < 0.05
    apart = np.abs(ours[:, None] - ours[None])
    swapped = (np.sign(ours[:, None] - ours[None]) != np.sign(theirs[:, None] - theirs[None])) & (apart > 0.02)
    assert not swapped.any(), [(methods[i], methods[j]) for i, j in zip(*np.nonzero(swapped), strict=True)]
    return stats.spearmanr(ours, theirs).statistic


def test_simulated_votes_are_ordered_as_by_bradley_terry():
    wins = count(votes_from_rows(simulated(TRUTH, raters=60)))
    assert agrees_with_bradley_terry(wins, NAMES) == pytest.approx(1)


@pytest.mark.parametrize("name", ["uniform", "nonuniform"])
def test_real_votes_are_ordered_as_by_bradley_terry(name):
    votes = read_votes(shared_data(f"votes/lai2016_{name}.csv"))
    assert agrees_with_bradley_terry(count(votes), votes.methods) > 0.99


# Intervals and tests


def test_the_scale_finds_the_truth_and_its_intervals_hold_it():
    """Coverage of the 95 % intervals over 100 simulated studies of 40 raters, by method."""
    inside, width = np.zeros(len(TRUTH)), []
    for seed in range(100):
        made = scale(votes_from_rows(simulated(TRUTH, raters=40, votes=10, seed=seed)), Settings(draws=500, seed=seed))
        for each in made.placed:
            inside[NAMES.index(each.method)] += each.low <= TRUTH[NAMES.index(each.method)] <= each.high
            width.append(each.high - each.low)
    # 5 x 100 intervals of 95 %: the binomial standard deviation is 1 point, and the methods of a study share votes
    assert 91 <= inside.sum() / len(TRUTH) <= 98
    assert inside.min() >= 88
    assert np.mean(width) == pytest.approx(0.52, abs=0.06)


def test_a_z_test_of_equal_methods_finds_little():
    """Five equal methods: at 5 %, Holm-corrected, about one study in twenty supports a difference."""
    found = sum(
        any(
            each.supported
            for each in scale(votes_from_rows(simulated(np.zeros(5), seed=seed)), Settings(draws=500)).differences
        )
        for seed in range(60)
    )
    assert found <= 8


def test_differences_are_tested_with_their_own_covariance():
    q, covariance = np.array([1.0, 0.0, -1.0]), np.array([[0.25, 0.2, 0.0], [0.2, 0.25, 0.0], [0.0, 0.0, 0.25]])
    tests = scaling.differences(["a", "b", "c"], q, covariance, np.full((3, 3), 10))
    z = [1 / math.sqrt(0.1), 2 / math.sqrt(0.5), 1 / math.sqrt(0.5)]
    assert [each.z for each in tests] == pytest.approx(z)
    p = [2 * (1 - stats.norm.cdf(value)) for value in z]
    assert [each.p for each in tests] == pytest.approx(p)
    assert [each.corrected for each in tests] == pytest.approx([3 * p[0], 2 * p[1], p[2]])
    assert [each.share for each in tests] == pytest.approx(stats.norm.cdf(np.array([1, 2, 1]) / 1.4826))


def test_intervals_are_over_raters_else_images_else_votes():
    rows = simulated(TRUTH)
    assert scale(votes_from_rows(rows)).unit is Unit.RATER
    nameless = [{**row, "rater": ""} for row in rows if not row["screening"]]
    over_images = scale(votes_from_rows(nameless))
    assert (over_images.unit, over_images.units, over_images.images) == (Unit.IMAGE, 10, 10)
    over_votes = scale(votes_from_rows([{**row, "image": "barn"} for row in nameless]))
    assert (over_votes.unit, over_votes.units) == (Unit.VOTE, 600)
    jnd = [[each.jnd for each in made.placed] for made in (over_images, over_votes)]
    assert jnd[0] == pytest.approx(jnd[1])
    # independent votes: the bootstrap's standard error is Laplace's
    wins = over_votes.wins
    laplace = np.sqrt(np.diag(uncertainty(wins, fit(wins))))
    np.testing.assert_allclose(np.sqrt(np.diag(over_votes.covariance)), laplace, rtol=0.15)


def test_votes_that_hang_together_widen_the_intervals():
    """Every rater votes 20 times the same: the study holds as much as its raters, not as its votes."""
    rows = simulated(TRUTH, raters=30, votes=1)
    again = [row for row in rows if not row["screening"] for _ in range(20)]
    made = scale(votes_from_rows(again))
    blind = scale(votes_from_rows([{**row, "rater": "", "image": "barn"} for row in again]))
    ours, theirs = (np.trace(each.covariance) for each in (made, blind))
    assert ours > 8 * theirs


def test_a_scale_is_the_same_again_and_begins_where_asked():
    votes = votes_from_rows(simulated(TRUTH))
    made = scale(votes)
    assert scale(votes).placed == made.placed
    assert scale(votes, Settings(seed=1)).placed != made.placed
    assert sum(each.jnd for each in made.placed) == pytest.approx(0, abs=1e-9)
    lowest = scale(votes, Settings(zero="lowest"))
    assert (lowest.placed[-1].jnd, lowest.placed[-1].low, lowest.placed[-1].high) == (0, 0, 0)
    middle = scale(votes, Settings(zero="ssim"))
    assert {each.method: each.jnd for each in middle.placed}["ssim"] == 0
    for other in (lowest, middle):
        shift = other.placed[0].jnd - made.placed[0].jnd
        assert [each.jnd for each in other.placed] == pytest.approx([each.jnd + shift for each in made.placed])
        assert other.differences == made.differences
    with pytest.raises(BadOption, match="zero must be"):
        scale(votes, Settings(zero="gan"))
    for wrong in ({"draws": 10}, {"prior_jnd": 0.0}, {"mistakes": -1}):
        with pytest.raises(BadOption):
            Settings(**wrong)


# Raters


def test_raters_who_fail_an_obvious_pair_are_left_out():
    rows = simulated(TRUTH, raters=12, careless=3)
    made = scale(votes_from_rows(rows))
    assert [each.name for each in made.raters if not each.kept] == ["r000", "r001", "r002"]
    assert made.raters[0].why == "1 of 1 screening pairs wrong"
    without = [row for row in rows if row["rater"] > "r002"]
    assert scale(votes_from_rows(without)).placed == made.placed
    lenient = scale(votes_from_rows(rows), Settings(mistakes=1))
    assert all(each.kept for each in lenient.raters)
    assert lenient.votes == 12 * 20
    with pytest.raises(DataError, match="all 12 raters failed"):
        scale(votes_from_rows(simulated(TRUTH, raters=12, careless=12)))


def test_agreement_is_the_likelihood_under_the_others_scale():
    votes = votes_from_rows(simulated(TRUTH, raters=9))
    rater = judge_raters(votes, Settings())[4]
    mine = votes.ordinary & (votes.rater == 4)
    q = fit(count(votes.keep(~mine)))
    logs = stats.norm.logcdf((q[votes.winner] - q[votes.loser])[mine] / SIGMA)
    p = stats.norm.cdf((q[votes.first] - q[votes.second])[mine] / SIGMA)
    expected = p * np.log(p) + (1 - p) * np.log(1 - p)
    variance = p * (1 - p) * (np.log(p) - np.log(1 - p)) ** 2
    assert rater.likelihood == pytest.approx(logs.mean())
    assert rater.agreement == pytest.approx((logs.sum() - expected.sum()) / math.sqrt(variance.sum()))


def test_a_rater_who_clicks_at_random_stands_out():
    rows = simulated(2 * TRUTH, raters=30, votes=60, clickers=2)
    made = scale(votes_from_rows(rows))
    assert [each.name for each in made.raters if each.outlier] == ["r000", "r001"]
    assert all(each.kept for each in made.raters)
    dropped = scale(votes_from_rows(rows), Settings(drop_outliers=True))
    assert [each.name for each in dropped.raters if not each.kept] == ["r000", "r001"]
    assert dropped.votes == 28 * 60


def test_a_method_that_is_compared_with_itself_is_pointed_out():
    rows = simulated(TRUTH) + [{"image": "barn", "method_1": "l1", "method_2": "l1", "result": 1}] * 9
    votes = votes_from_rows(rows)
    notes = scale(votes).notes
    assert notes[0].startswith("9 of 639 rows could not be used")
    assert "l1 is compared with itself in 9 rows" in notes[1]
    assert len(scale(votes.without(["l1"])).notes) == 1


# The real votes


@pytest.mark.parametrize(
    ("name", "rows", "bad", "methods", "best"),
    [("uniform", 28120, 339, 13, ["Xu-10", "Sun-13", "Xu-13"]), ("nonuniform", 28533, 0, 14, ["Pan-14", "Perrone-14"])],
)
def test_real_votes_are_scaled(name, rows, bad, methods, best):
    names = read_methods(shared_data("votes/lai2016_methods.txt"))
    votes = read_votes(shared_data(f"votes/lai2016_{name}.csv"), methods=names)
    made = scale(votes, Settings(draws=500))
    assert (made.rows, len(made.bad), len(made.methods), made.unit, made.units) == (rows, bad, methods, Unit.IMAGE, 100)
    assert list(made.methods[: len(best)]) == best
    assert set(made.methods[-2:]) == {"Blur", "Fergus-06"}
    assert made.votes == rows - bad
    assert made.misfit < 0.05
    assert len(made.differences) == methods * (methods - 1) // 2


# Which pair to ask next


@pytest.fixture(scope="module")
def asked():
    """Counts of votes on five methods, some pairs often, some never."""
    random = np.random.default_rng(6)
    wins = random.integers(0, 15, (5, 5)) * (1 - np.eye(5))
    wins[0, 4] = wins[4, 0] = 0
    return wins


def test_the_gain_in_variance_is_what_one_more_answer_brings(asked):
    """The trace of Laplace's covariance before and after, the answer's Fisher information by plain integration."""
    q = fit(asked, prior_jnd=1.0)
    covariance = uncertainty(asked, q, prior_jnd=1.0)
    gain = expected_gain(asked, Design.VARIANCE, prior_jnd=1.0)
    for i, j in itertools.combinations(range(5), 2):
        a = np.eye(5)[i] - np.eye(5)[j]
        grid = np.linspace(-12, 12, 20001)
        density = stats.norm.pdf(grid, q[i] - q[j], math.sqrt(a @ covariance @ a))
        p = stats.norm.cdf(grid / SIGMA)
        fisher = stats.norm.pdf(grid / SIGMA) ** 2 / (p * (1 - p)) / SIGMA**2
        worth = np.trapezoid(density * fisher, grid)
        after = np.linalg.inv(np.linalg.inv(covariance + 1.0) + worth * np.outer(a, a)) - 1.0  # the mean put in and out
        assert gain[i, j] == pytest.approx(np.trace(covariance) - np.trace(after), rel=2e-3)
        assert gain[j, i] == pytest.approx(gain[i, j])
    assert (np.diag(gain) == 0).all()


def test_the_information_is_the_mutual_information(asked):
    q = fit(asked)
    covariance = uncertainty(asked, q)
    gain = expected_gain(asked, Design.INFORMATION, prior_jnd=scaling.PRIOR_JND)

    def entropy(p):
        return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))

    for i, j in itertools.combinations(range(5), 2):
        spread = math.sqrt(covariance[i, i] + covariance[j, j] - 2 * covariance[i, j])
        grid = q[i] - q[j] + spread * np.linspace(-6, 6, 4001)
        density = stats.norm.pdf(grid, q[i] - q[j], spread)
        p = np.clip(stats.norm.cdf(grid / SIGMA), 1e-12, 1 - 1e-12)
        exact = entropy(np.trapezoid(density * p, grid)) - np.trapezoid(density * entropy(p), grid)
        assert gain[i, j] == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("design", [Design.VARIANCE, Design.INFORMATION])
def test_the_next_pair_is_one_that_nobody_was_asked_else_the_open_one(asked, design):
    random = np.random.default_rng(0)
    assert next_pair(asked, rng=random, design=design) == (0, 4)
    assert {next_pair(np.zeros((3, 3)), rng=random, design=design) for _ in range(60)} == {(0, 1), (0, 2), (1, 2)}
    # all are as good as each other, but 1 and 2 were hardly compared
    wins = np.array([[0, 20, 20], [20, 0, 2], [20, 2, 0]])
    drawn = Counter(next_pair(wins, rng=random, design=design) for _ in range(2000))
    worth = expected_gain(wins, design) ** 4
    expected = {pair: 2000 * worth[pair] / np.triu(worth).sum() for pair in [(0, 1), (0, 2), (1, 2)]}
    assert expected[1, 2] > 1500
    for pair, often in expected.items():
        assert abs(drawn[pair] - often) < 4 * math.sqrt(often)
    allowed = np.zeros((3, 3), dtype=bool)
    allowed[2, 0] = True
    assert next_pair(wins, allowed=allowed, rng=random, design=design) == (0, 2)


@pytest.mark.parametrize(
    ("wins", "options", "said"),
    [
        (np.zeros((3, 2)), {}, "two or more methods"),
        (np.full((3, 3), -1.0), {}, "not negative"),
        (np.zeros((3, 3)), {"allowed": np.zeros((3, 3))}, "no pair is allowed"),
        (np.zeros((3, 3)), {"allowed": np.ones((2, 2))}, "shape of wins"),
        (np.zeros((3, 3)), {"design": Design.FULL}, "a full design needs no votes"),
    ],
)
def test_what_is_no_table_of_counts_is_refused(wins, options, said):
    with pytest.raises(BadOption, match=said):
        next_pair(wins, rng=np.random.default_rng(0), **options)


def test_active_selection_saves_votes_where_methods_lie_far_apart():
    """100 studies of eight methods, spread 2 JND: as good as 10 votes a pair with a sixth less, by rmse."""
    preferred, truth = active.normal_truths(8, 2.0, 100)
    full, ours = (active.simulate(preferred, truth, design, per_pair=12) for design in (Design.FULL, Design.VARIANCE))
    by_rmse, _ = active.savings(full, ours, 10, pairs=28)
    assert by_rmse.full == 280
    assert by_rmse.saved > 1 / 6
    assert full.rmse[-1] < full.rmse[0]
    assert 0.9 < full.order[-1] <= 1


def test_always_asking_the_worthiest_pair_stretches_the_scale_and_a_draw_does_less(monkeypatch):
    """Eight methods, spread 0.5 JND, three votes a pair: taken by information, distances come out a third too long."""
    preferred, truth = active.normal_truths(8, 0.5, 100)

    def stretch(design):
        return active.simulate(preferred, truth, design, per_pair=3).stretch[-1]

    full, drawn = stretch(Design.FULL), stretch(Design.INFORMATION)
    monkeypatch.setattr(active, "POWER", 1e6)
    assert full == pytest.approx(1.1, abs=0.05)
    assert drawn < full + 0.1
    assert stretch(Design.INFORMATION) > full + 0.15


def test_savings_are_read_off_between_checkpoints():
    votes = np.array([10, 20, 30, 40])
    full = Course(Design.FULL, votes, np.array([0.8, 0.6, 0.4, 0.2]), np.array([0.5, 0.6, 0.7, 0.8]), np.ones(4))
    other = Course(Design.VARIANCE, votes, np.array([0.9, 0.5, 0.3, 0.1]), np.array([0.4, 0.5, 0.6, 0.65]), np.ones(4))
    rmse, order = active.savings(full, other, 3, pairs=10)
    assert (rmse.level, rmse.full, rmse.needed) == pytest.approx((0.4, 30, 25))
    assert rmse.saved == pytest.approx(1 / 6)
    assert (order.needed, order.saved) == (None, None)


def test_replayed_votes_are_drawn_from_the_observed_shares():
    wins = np.array([[0, 30, 9], [10, 0, 0], [1, 0, 0]])
    preferred, truth = active.replayed_truth(wins, 2)
    assert preferred.shape == (2, 3, 3)
    assert (preferred[1, 0, 1], preferred[1, 2, 0]) == (0.75, 0.1)
    assert preferred[0, 1, 2] == pytest.approx(float(share(truth[0, 1] - truth[0, 2])))


# The folder and the page


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A scale of 40 raters, of whom two fail the screening, made by the command."""
    place = tmp_path_factory.mktemp("scale")
    rows = [{**row, "seconds": "3.1", "at": ""} for row in simulated(TRUTH, raters=40, careless=2)]
    rows += [{**rows[0], "image": "<b>barn</b>", "result": 3}] * 2
    votes = written(place / "votes.csv", rows, order=COLUMNS)
    elsewhere = {"VERIDICAL_DATABASE": "postgresql://nobody@nowhere.invalid/none"}  # is not asked for a file
    done = CliRunner().invoke(app, ["study", "scale", str(votes), "--out", str(place / "scale")], env=elsewhere)
    assert done.exit_code == 0, done.output
    return place / "scale", done.output


def read(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_folder_holds_the_tables(folder):
    place, _ = folder
    about = json.loads((place / "scale.json").read_text())
    table = read(place / "scale.csv")
    assert [row["method"] for row in table] == [each["method"] for each in about["methods"]]
    assert [float(row["jnd"]) for row in table] == sorted((float(row["jnd"]) for row in table), reverse=True)
    assert all(float(row["low"]) < float(row["jnd"]) < float(row["high"]) for row in table)
    assert sum(int(row["votes"]) for row in table) == 2 * about["votes"] == 2 * 38 * 20
    shares, wins = read(place / "preferences.csv"), read(place / "wins.csv")
    for row, counts in zip(shares, wins, strict=True):
        for other in (each for each in NAMES if each != row["method"]):
            back = next(each for each in wins if each["method"] == other)
            mine, theirs = int(counts[other]), int(back[row["method"]])
            assert float(row[other]) == pytest.approx(mine / (mine + theirs), abs=1e-6)
        assert row[row["method"]] == ""
    assert len(read(place / "differences.csv")) == 10
    assert sum(row["kept"] == "false" for row in read(place / "raters.csv")) == 2
    assert [row["line"] for row in read(place / "bad_rows.csv")] == ["842", "843"]


def test_the_page_says_in_words_what_is_supported_and_needs_nothing_else(folder):
    place, output = folder
    html = (place / "scale.html").read_text()
    text = re.sub(r"<[^>]+>", " ", html)
    assert "mdf is preferred most" in text
    assert '<h2 class="yes">Supported</h2>' in html
    assert "2 left out" in text
    assert "&lt;b&gt;barn&lt;/b&gt;" in html
    assert not re.search(r"(src|href)=\"(?!#|data:)", html)
    assert "mdf is preferred most" in output
    assert "resampling" in output
    assert html.count("<circle") == 2 * 5  # once for wide screens, once for narrow ones
    svg = (place / "scale.svg").read_text()
    assert svg.startswith("<svg")
    assert svg.count("<circle") == 5


def test_a_point_stands_where_the_scale_puts_it():
    made = scale(votes_from_rows(simulated(TRUTH)))
    for width in (760, 350):
        drawn = scale_page.chart(made, width)
        jnd = np.array([each.jnd for each in made.placed])
        at = np.array([row.at for row in drawn.rows])
        slope, start = np.polyfit(jnd, at, 1)
        np.testing.assert_allclose(at, slope * jnd + start, atol=1e-6)
        assert start == pytest.approx(drawn.zero)
        assert [tick.text for tick in drawn.shares if abs(tick.at - drawn.zero) < 1e-6] == ["50 %"]
        at_one = [tick.text for tick in drawn.shares if abs(tick.at - drawn.zero - slope) < 1e-6]
        assert at_one in ([], ["75 %"])
        assert all(drawn.left <= row.low <= row.at <= row.high <= drawn.right for row in drawn.rows)


def test_words_of_two_methods_and_of_equal_ones():
    two = scale(votes_from_rows(simulated(np.array([0.6, -0.6]), raters=40)))
    assert scale_page.claims(two).supported == ("mdf is preferred to lpips (p < 0.001).",)
    assert scale_page.claims(two).unsupported == ()
    assert "the last" not in scale_page.lead(two)
    equal = scale_page.claims(scale(votes_from_rows(simulated(np.zeros(4), seed=2))))
    assert equal.supported == ()
    assert equal.unsupported[-1] == "6 of 6 differences in all."


def test_the_command_refuses_in_words(tmp_path):
    (tmp_path / "votes.csv").write_text("barn,a,b,1\n" * 9)
    for options, said in [
        (["--draws", "20"], "draws must be 500 or more"),
        (["--leave-out", "gan"], "no method 'gan'"),
        (["--zero", "gan"], "zero must be"),
    ]:
        done = CliRunner().invoke(
            app, ["study", "scale", str(tmp_path / "votes.csv"), "--out", str(tmp_path / "out"), *options]
        )
        assert done.exit_code == 2
        assert said in done.output
    assert not (tmp_path / "out").exists()


def test_an_earlier_scales_tables_do_not_stay(tmp_path):
    rows = simulated(TRUTH)
    scale_page.write(scale(votes_from_rows(rows)), tmp_path, source="a", command="b")
    assert (tmp_path / "raters.csv").exists()
    nameless = [{**row, "rater": ""} for row in rows if not row["screening"]]
    scale_page.write(scale(votes_from_rows(nameless)), tmp_path, source="a", command="b")
    assert not (tmp_path / "raters.csv").exists()


def test_the_simulation_is_written_and_told(tmp_path):
    done = CliRunner().invoke(
        app, ["study", "simulate", "--methods", "4", "--per-pair", "4", "--repeats", "5", "--out", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    rows = read(tmp_path / "designs.csv")
    assert {row["design"] for row in rows} == {"full", "variance", "information"}
    assert max(int(row["votes"]) for row in rows) == 6 * 6
    assert (tmp_path / "designs.svg").read_text().count('class="curve') == 6
    again = CliRunner().invoke(
        app, ["study", "simulate", "--methods", "4", "--per-pair", "4", "--repeats", "5", "--out", str(tmp_path / "b")]
    )
    assert (tmp_path / "b" / "designs.csv").read_text() == (tmp_path / "designs.csv").read_text()
    assert again.exit_code == 0


def test_a_study_is_scaled_from_its_folder(tmp_path):
    """People answer a made-up study on its store; one of them gets an obvious pair wrong."""
    pytest.importorskip("sqlalchemy", reason="needs the extra study")
    from veridical.study.design import OBVIOUS
    from veridical.study.load import made_up_study
    from veridical.study.store import open_store

    study = made_up_study(tmp_path, methods=3, images=8, per_pair=40, trials=12, screening=2)
    votes, random = open_store(study), np.random.default_rng(0)
    shown = {file: name for image in votes.design.files for name, file in image.items()}
    better = {str(k): 1.2 * (1 - k) for k in range(3)}  # of the method with this number
    while (rater := votes.begin()) is not None:
        for trial in votes.view(rater.number).trials:
            left, right = (shown[votes.file(rater.number, trial, side)] for side in ("left", "right"))
            if OBVIOUS in (left, right):
                choice = 2 if left == OBVIOUS else 1
                choice = 3 - choice if rater.number == 1 else choice
            else:
                choice = 1 if random.random() < share(better[left] - better[right]) else 2
            votes.vote(rater.number, trial, choice, 2.0)
    votes.dispose()
    for source in (study, tmp_path):
        done = CliRunner().invoke(app, ["study", "scale", str(source), "--out", str(tmp_path / "scale")])
        assert done.exit_code == 0, done.output
    about = json.loads((tmp_path / "scale" / "scale.json").read_text())
    assert [each["method"] for each in about["methods"]] == ["method-0", "method-1", "method-2"]
    assert [each["name"] for each in about["raters"] if not each["kept"]] == ["r001"]
    assert about["resampled"] == {"unit": "rater", "number": 9}
    assert all(each["supported"] for each in about["differences"])
    for each in about["methods"]:
        assert each["low"] < better[each["method"].removeprefix("method-")] < each["high"]
