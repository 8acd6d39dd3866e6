"""What active selection saves, from simulated studies: a table for people, designs.csv and designs.svg."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from veridical.comparison import charts
from veridical.core.errors import BadOption
from veridical.core.files import atomic_write
from veridical.study.active import Course, Design, Saving, savings, simulate
from veridical.study.scale_page import environment

COLUMNS = ("design", "as good as full with", "measure", "level", "votes of full", "votes needed", "saved")

_LABELS = {"rmse": "error of the scale, JND", "order": "rank correlation with the truth"}


def compare_designs(
    preferred: np.ndarray,
    truth: np.ndarray,
    *,
    per_pair: int,
    seed: int = 0,
    on_vote: Callable[[int, int, str], None] | None = None,
) -> tuple[list[Course], list[Saving]]:
    """Every design on the same truths, and what each saves beside the full one at a quarter, half and all of per_pair.

    The simulation goes on for half as many votes again, to see how much longer a worse design takes.
    Shapes: preferred (S, M, M), truth (S, M), as `active.simulate` takes them.
    Args:   on_vote: called with (votes, all, design).
    Errors: BadOption for fewer than 4 votes a pair.
    """
    if per_pair < 4:
        raise BadOption(f"per_pair must be 4 or more, to compare designs at a quarter of it, but got {per_pair}.")
    pairs = truth.shape[1] * (truth.shape[1] - 1) // 2
    courses = []
    for design in Design:

        def advance(done: int, total: int, name: str = str(design)) -> None:
            if on_vote is not None:
                on_vote(done, total, name)

        courses.append(simulate(preferred, truth, design, per_pair=per_pair * 3 // 2, seed=seed, on_vote=advance))
    full, *others = courses
    levels = sorted({per_pair // 4, per_pair // 2, per_pair})
    return courses, [found for other in others for k in levels for found in savings(full, other, k, pairs=pairs)]


def table(found: Sequence[Saving]) -> list[tuple[str, ...]]:
    """Rows in the order of COLUMNS."""
    return [
        (
            str(each.design),
            f"{each.per_pair} a pair",
            _LABELS[each.measure],
            f"{each.level:.3f}",
            f"{each.full:,}",
            "not reached" if each.needed is None else f"{each.needed:,.0f}",
            "–" if each.saved is None else f"{100 * each.saved:+.0f} %".replace("-", "−"),
        )
        for each in found
    ]


def write(courses: Sequence[Course], out: Path) -> tuple[Path, Path]:
    """Write designs.csv (design, votes, rmse, order, stretch) and designs.svg into `out`; returns their paths."""
    rows = [
        {
            "design": str(course.design),
            "votes": int(course.votes[k]),
            "rmse": float(course.rmse[k]),
            "order": float(course.order[k]),
            "stretch": float(course.stretch[k]),
        }
        for course in courses
        for k in range(len(course.votes))
    ]
    atomic_write(out / "designs.csv", pl.DataFrame(rows).write_csv(float_precision=6).encode("utf-8"))
    panels = [
        {
            "label": label,
            "chart": charts.lines(
                [
                    (str(course.design), k, course.votes.tolist(), getattr(course, measure).tolist())
                    for k, course in enumerate(courses)
                ],
                width=480,
                height=320,
                labels=True,
            ),
        }
        for measure, label in _LABELS.items()
    ]
    svg = environment().get_template("designs.svg").render(panels=panels)
    atomic_write(out / "designs.svg", "\n".join(filter(str.strip, svg.splitlines())).encode("utf-8"))
    return out / "designs.csv", out / "designs.svg"
