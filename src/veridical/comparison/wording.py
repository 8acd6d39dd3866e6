"""What a comparison says in words: which loss, what is supported, what is not, and what to know before believing it."""

from collections.abc import Callable, Sequence

from veridical.comparison.run import Run
from veridical.comparison.start import START
from veridical.comparison.statistics import INPUT, Analysis, Column

FEW_IMAGES = 10
_NO_GAIN = "By this score no loss improved on the degraded input: train longer, or check the data."
_NO_FURTHER = "By this score no loss improved on the model that training started from (init)."


def verdict(run: Run) -> str:
    """Which loss won, by how much, and whether that could be chance: a few plain sentences."""
    said = lead(run.analysis, str)
    said = said if run.analysis.runner_up is None else f"Use {run.analysis.winner}. {said}"
    return " ".join([said, *disappointments(run.analysis)])


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def p_text(p: float) -> str:
    if p < 0.001:
        return "p < 0.001"
    decimals = 4 if 0.0495 <= p < 0.0505 else 3 if p < 0.1 else 2  # never a "significant, p = 0.050"
    return f"p = {p:.{decimals}f}"


def heading(column: Column) -> str:
    unit = f" {column.unit}" if column.unit else ""
    return f"{column.label}{unit} {'↑' if column.higher_is_better else '↓'}"


def decimals(column: Column, values: Sequence[float]) -> int:
    if column.unit == "dB":
        return 2
    return 4 if max(map(abs, values)) < 0.1 else 3


def lead(analysis: Analysis, name: Callable[[str], str]) -> str:
    """The winner's margin and whether it is significant. name: how a loss is written (escaped for HTML)."""
    winner, n = name(analysis.winner), len(analysis.values.images)
    score = f"{analysis.scores[analysis.winner]:.3f}"
    if analysis.runner_up is None:
        return f"{winner} is the only loss with a result, so there was nothing to compare it with."
    second = f"{analysis.scores[analysis.runner_up]:.3f}"
    # Of the printed scores, so that the reader's own subtraction agrees.
    margin = f"{float(score) - float(second):.3f}" if score != second else "less than 0.001"
    said = (
        f"{winner} has the highest aggregate score, {score}; next is {name(analysis.runner_up)} with "
        f"{second}, a margin of {margin}."
    )
    if n == 1:
        return said + " With only one evaluated image, chance cannot be tested."
    tested = [t for t in analysis.tests if t.corrected is not None]
    significant = [t for t in tested if t.significant]
    over = f" Over the {n} evaluated images "
    test = "paired t-test, Holm-corrected"
    if tested and len(significant) == len(tested):
        worst = max(t.corrected for t in significant if t.corrected is not None)
        others = "the other loss" if len(analysis.tests) == 1 else "every other loss"
        if analysis.untested:
            others = f"{len(significant)} of {len(analysis.tests)} other losses"
        at_most = " at most" if len(significant) > 1 and worst >= 0.001 else ""
        said += f"{over}this lead is significant against {others} ({test}: {p_text(worst)}{at_most})."
    elif tested:
        tied = [t for t in tested if not t.significant]
        most = len(tied) if len(tied) <= 3 else 2
        named = [f"{name(t.loss)} ({p_text(t.corrected)})" for t in tied[:most] if t.corrected is not None]
        named += [f"{len(tied) - most} more"] if len(tied) > most else []
        if significant:
            said += f"{over}this lead is significant against {len(significant)} of {len(analysis.tests)} losses, "
            said += f"but not against {join(named)}, which could be just as good ({test})."
        else:
            said += f"{over}this lead is not significant against {join(named)}: it could be chance ({test})."
    if analysis.untested:
        named = [name(t.loss) for t in analysis.untested[:4]]
        said += f" It cannot be tested against {join(named)}: {analysis.untested[0].reason}."
    return said


def caveats(run: Run) -> list[str]:
    """What to know before believing the answer."""
    analysis, said = run.analysis, []
    winner = run.entry(analysis.winner)
    own = [c.label for c in analysis.score.columns if winner.optimised(c)]
    if own:
        are = "is" if len(own) == 1 else "are"
        said.append(
            f"{winner.name} was trained on {join(own)}, which {are} part of the score, so the score flatters "
            "it. Look at the pictures below before trusting it."
        )
    said += disappointments(analysis)
    if run.images < FEW_IMAGES:
        said.append(
            f"Only {count(run.images, 'image')} evaluated: means move with each image. Prefer {FEW_IMAGES} or more."
        )
    if not analysis.score.complete:
        lacks_looks = all(c.base != "lpips" and c.reference for c in analysis.score.columns)
        said.append(analysis.score.note + (" It then rewards fidelity more than looks." if lacks_looks else ""))
    said += [f"{name} failed and is not ranked: {short(reason)}" for name, reason in run.failed]
    said += [short(str(note)) for note in run.about.get("notes") or ()]
    dropped = {name for name, _ in run.failed}
    said += [note for note in analysis.values.left_out if note.partition(":")[0] not in dropped]
    return said


def disappointments(analysis: Analysis) -> list[str]:
    """When the best loss is no better than what there was without it."""
    nothing = INPUT in analysis.scores and analysis.scores[analysis.winner] <= analysis.scores[INPUT]
    further = [_NO_FURTHER] if analysis.winner == START and analysis.runner_up is not None else []
    return ([_NO_GAIN] if nothing else []) + further


def short(text: str, most: int = 260) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def title(run: Run) -> str:
    parts = [str(run.about.get(key) or "") for key in ("task", "degradation")]
    return " · ".join(part for part in parts if part) or run.folder.name
