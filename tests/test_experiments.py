"""The papers' record, how runs are held beside it, and how they are filled into a page."""

import numpy as np
import pytest

from experiments.agreement import PAPERS, Verdict, agree, markdown, read_papers, spearman
from experiments.places import END
from experiments.tables import fill
from tests.test_report import make_run
from veridical.comparison.run import read_run
from veridical.comparison.statistics import mean_interval
from veridical.core.errors import DataError
from veridical.metrics import METRICS

RECORD = read_papers()
ABBREVIATED = """
[toy]
source = "a toy"
columns = ["psnr", "lpips"]
rows = [["A", ["x", "l2"], 30.0, 0.20], ["B", ["pdl"], 29.0, 0.10], ["C", ["ms-ssim-l1(scales=3)"], 29.0, 0.30], ["D", ["gone"], 1.0, 1.0]]
claims = [
    { says = "A has the most PSNR", better = "x", worse = "all", by = "psnr" },
    { says = "A has the lowest LPIPS", better = "x", worse = "all", by = "lpips" },
    { says = "D before A", better = ["gone"], worse = ["x"], by = "psnr" },
]
"""  # noqa: E501


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_run(make_run(tmp_path_factory.mktemp("runs") / "toy"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("papers") / "papers.toml"
    path.write_text(ABBREVIATED)
    return read_papers(path)["toy"]


@pytest.mark.parametrize("name", RECORD)
def test_each_claim_is_true_of_the_papers_own_numbers(name):
    table = RECORD[name]
    row = {names[0]: k for k, names in enumerate(table.names) if names}
    for claim in table.claims:
        column = table.values[:, table.columns.index(claim.by)]
        sign = 1 if METRICS[claim.by].higher_is_better else -1
        assert claim.pairs
        for better, worse in claim.pairs:
            assert sign * (column[row[better]] - column[row[worse]]) > 0, (claim.says, better, worse)


@pytest.mark.parametrize("name", ["pdl-table-1", "pdl-table-6", "pdl-table-7"])
def test_the_printed_score_follows_from_the_printed_metrics(name):
    """Equation 7 with the printed best values: a slip of the typist would show."""
    values = RECORD[name].values
    psnr, ms_ssim, lpips, score = values.T
    best = values[-1]
    assert RECORD[name].labels[-1].startswith("best")
    found = psnr / best[0] * ms_ssim / best[1] * best[2] / lpips
    np.testing.assert_allclose(found, score, atol=0.006)  # half of LPIPS's last digit is 1 in 200


def test_preferences_of_two_add_up_to_one():
    for name in ("pdl-table-2", "pdl-table-4"):
        values = RECORD[name].values
        off = ~np.eye(len(values), dtype=bool)
        np.testing.assert_allclose((values + values.T)[off], 1.0, atol=1e-9)


def test_spearman_of_an_order_with_one_swap():
    """1 - 6 Σd² / (n (n² - 1)), d = 1 twice, n = 4."""
    found = spearman(np.array([[1.0, 2.0, 4.0, 3.0], [5.0, 5.0, 5.0, 5.0]]), np.array([0.1, 0.2, 0.3, 0.4]))
    assert found[0] == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert np.isnan(found[1])


def test_the_order_of_a_run_beside_a_table(run, toy):
    """Means of the run: PSNR l2 30, ms-ssim-l1 29.5, pdl 28.8; LPIPS pdl 0.10, ms-ssim-l1 0.22, l2 0.25. B and C are
    equal by the paper's PSNR, so that only A counts, before both."""
    found = agree(run, toy)
    psnr, lpips = found.orders
    assert (psnr.same, psnr.pairs, psnr.supported, psnr.against) == (2, 2, 2, 0)
    assert (lpips.same, lpips.pairs, lpips.supported, lpips.against) == (2, 3, 2, 1)
    assert lpips.spearman.value == pytest.approx(0.5)
    assert lpips.spearman.low == lpips.spearman.high == pytest.approx(0.5)  # the differences dwarf the noise
    assert (found.rows, found.lacking, found.unjudged) == (3, ("D",), ("D before A",))


def test_a_claim_rests_on_the_pair_that_decides(run, toy):
    most, lowest = agree(run, toy).claims
    assert most.verdict is Verdict.HOLDS
    assert most.pair == ("l2", "ms-ssim-l1(scales=3)")
    assert most.counts == (2, 0, 0)
    values = run.analysis.values
    k = [column.base for column in values.columns].index("psnr")
    expected = mean_interval(values.seeds_of("l2")[..., k] - values.seeds_of("ms-ssim-l1(scales=3)")[..., k])
    assert (most.lead.value, most.lead.low) == pytest.approx((expected.value, expected.low))
    assert lowest.verdict is Verdict.FAILS
    assert lowest.pair == ("l2", "pdl")
    assert lowest.lead.high < 0
    assert "| A has the lowest LPIPS | `l2` over `pdl`: −0.1" in markdown(run, agree(run, toy))


def test_a_claim_whose_interval_has_0_is_open(tmp_path, toy):
    means = {"l2": (30.0, 0.9, 0.9, 0.2, 0.1), "pdl": (30.0, 0.9, 0.9, 0.2, 0.1)}
    found = agree(read_run(make_run(tmp_path / "run", means=means)), toy)
    assert [each.verdict for each in found.claims] == [Verdict.OPEN, Verdict.OPEN]


def test_a_run_without_rows_of_the_table_is_an_error(run):
    with pytest.raises(DataError, match="share 0 rows"):
        agree(run, RECORD["tfmlc-table-2"])


def test_a_page_takes_the_runs_that_are_there_and_keeps_the_rest(run, toy):
    place = f"<!-- run: toy -->\nof before\n{END}"
    page = f"# Title\n\n{place}\n\nbetween\n\n<!-- run: absent, paper: toy -->\nkept\n{END}\n"
    text, filled, missing = fill(page, run.folder.parent, {"toy": toy})
    assert (filled, missing) == (["toy"], ["absent"])
    assert "of before" not in text
    assert "| pdl | 0.9" in text
    assert "2 of 3" in text
    assert text.endswith(f"between\n\n<!-- run: absent, paper: toy -->\nkept\n{END}\n")
    assert fill(text, run.folder.parent, {"toy": toy})[0] == text


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<!-- run: toy -->\n", "has no <!-- end -->"),
        (f"<!-- run: toy -->\n<!-- run: other -->\n{END}", "before <!-- run: other -->"),
        (f"<!-- run: toy, paper: none -->\n{END}", "no table 'none'"),
    ],
)
def test_a_place_that_cannot_be_filled_is_an_error(run, page, message):
    with pytest.raises(DataError, match=message):
        fill(page, run.folder.parent, {})


def test_the_page_of_results_names_tables_of_the_record(tmp_path):
    page = (PAPERS.parents[1] / "docs" / "results.md").read_text()
    text, filled, missing = fill(page, tmp_path, RECORD)
    assert text == page
    assert not filled
    assert "spl-table" in missing
