"""What a comparison says in words: which loss, what is supported, what is not, and what to know before believing it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from veridical.comparison.run import Run
from veridical.comparison.statistics import (
    INPUT,
    LEVEL,
    START,
    Column,
    PairedTest,
    against_the_rest,
    holm,
)

FEW_IMAGES = 10
SEVERAL_SEEDS = "--seeds 3"
_NO_GAIN = "By this score no {} improved on the degraded input: train longer, or check the data."
_NO_FURTHER = "By this score no {} improved on the model that training started from (init)."


class Support(StrEnum):
    """What the two tests of one lead say together."""

    YES = "supported"
    DISPUTED = "disputed"  # one of the two tests finds it, the other does not
    NO = "not supported"
    UNTESTED = "cannot be tested"


def support(test: PairedTest) -> Support:
    """Whether a lead is more than chance: below 0.05 after Holm's correction by the t-test and by Wilcoxon's."""
    if test.corrected is None:
        return Support.UNTESTED
    ranked = test.significant if test.wilcoxon_corrected is None else test.wilcoxon_corrected < LEVEL
    if ranked != test.significant:
        return Support.DISPUTED
    return Support.YES if ranked else Support.NO


@dataclass(frozen=True)
class Claims:
    """The sentences of the first screen, by what the tests say of them."""

    supported: tuple[str, ...]
    disputed: tuple[str, ...]
    unsupported: tuple[str, ...]

    @property
    def titled(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Title and sentences of the three groups."""
        return (
            ("Supported", self.supported),
            ("By one test alone", self.disputed),
            ("Not supported", self.unsupported),
        )


def claims(run: Run, name: Callable[[str], str] = str) -> Claims:
    """What this run shows and what it does not: by the score and by each of its metrics, the best against the others;
    the winner against the degraded input; and whether it would hold for a new training.

    Args: name: how a loss is written.
    """
    analysis = run.analysis
    subjects = [("the score", analysis.winner, analysis.tests)]
    if len(analysis.score.columns) > 1:
        subjects += [(m.column.label, m.best, m.tests) for m in analysis.metrics if m.column in analysis.score.columns]
    found: dict[Support, list[str]] = {kind: [] for kind in Support}
    for by, best, tests in subjects:
        for kind, some in _grouped(tests).items():
            verb = "beats" if kind in (Support.YES, Support.DISPUTED) else "over"
            whom = _whom(run, some, tests, name)
            found[kind].append(f"By {by}, {name(best)} {verb} {whom}{_because(run, kind, some, len(tests))}.")
    tests = _over_input(run)
    for kind, some in _grouped(tests).items():
        that = "" if kind in (Support.YES, Support.DISPUTED) else "That "
        by = join([test.loss for test in some])
        said = f"{that}{name(analysis.winner)} improves on the degraded input by {by}"
        found[kind].append(f"{said}{_because(run, kind, some, len(tests))}.")
    unsupported = [*found[Support.NO], *found[Support.UNTESTED]]
    if not several_seeds(run):
        unsupported.append(f"That this holds for another training: {luck(run)}")
    return Claims(tuple(found[Support.YES]), tuple(found[Support.DISPUTED]), tuple(unsupported))


def _grouped(tests: Sequence[PairedTest]) -> dict[Support, list[PairedTest]]:
    """The tests by what they say; no empty group."""
    groups = {kind: [test for test in tests if support(test) is kind] for kind in Support}
    return {kind: some for kind, some in groups.items() if some}


def _because(run: Run, kind: Support, tests: Sequence[PairedTest], of: int) -> str:
    """What a claim about these tests rests on. of: how many were made with them."""
    if kind is Support.UNTESTED:
        return f" cannot be tested: {tests[0].reason}"
    if kind is Support.DISPUTED:
        return f": {_dispute(run, tests, of)}"
    p_values = [test.corrected for test in tests if test.corrected is not None]
    if kind is Support.YES:
        return f" ({_at_most(max(p_values), len(tests))})"
    return f" ({_at_least(min(p_values), len(tests))})"


def _whom(run: Run, some: Sequence[PairedTest], every: Sequence[PairedTest], name: Callable[[str], str]) -> str:
    if len(some) == len(every):
        every_other = "both" if len(some) == 2 else f"all {len(some)}"
        return name(some[0].loss) if len(some) == 1 else f"{every_other} other {run.nouns}"
    most = len(some) if len(some) <= 3 else 2
    named = [name(t.loss) for t in some[:most]]
    return join([*named, f"{len(some) - most} more"] if len(some) > most else named)


def _at_most(p: float, tests: int) -> str:
    return p_text(p) if tests == 1 or p < 0.001 else p_text(p).replace("=", "≤")


def _at_least(p: float, tests: int) -> str:
    return p_text(p) if tests == 1 else p_text(p).replace("=", "≥")


def _dispute(run: Run, tests: Sequence[PairedTest], of: int) -> str:
    """Which test finds a lead that the other does not. of: how many were made."""
    if len({t.significant for t in tests}) > 1:
        return "the t-test and Wilcoxon's disagree"
    test = tests[0]
    assert test.corrected is not None
    assert test.wilcoxon_corrected is not None  # else they could not disagree
    alone = len(tests) == 1
    t, w = (f" ({p_text(p)})" if alone else "" for p in (test.corrected, test.wilcoxon_corrected))
    if test.significant and of * 0.5**run.images >= LEVEL:  # its least p, when every image says the same
        return f"the t-test finds it{t}, Wilcoxon's cannot with only {run.images} images"
    if test.significant:
        return f"the t-test finds it{t}, Wilcoxon's does not{w}"
    if several_seeds(run):
        return f"true of these trainings{w.replace('p', 'Wilcoxon p', 1)}, not shown for new ones{t}"
    return f"Wilcoxon's test finds it{w}, the t-test does not{t}"


def _over_input(run: Run) -> tuple[PairedTest, ...]:
    """The winner against the degraded input by each metric of the score, whose label stands for the loss; corrected for
    that many metrics."""
    analysis, values = run.analysis, run.analysis.values
    if INPUT not in values.losses:
        return ()
    tests = []
    for column in analysis.score.columns:
        k, sign = values.columns.index(column), 1.0 if column.higher_is_better else -1.0
        pair = {loss: sign * values.seeds_of(loss)[..., k] for loss in (analysis.winner, INPUT)}
        tests.append(replace(against_the_rest(pair, analysis.winner)[0], loss=column.label))
    corrected = zip(holm([test.p for test in tests]), holm([test.wilcoxon for test in tests]), strict=True)
    return tuple(
        replace(test, corrected=p, wilcoxon_corrected=rank) for test, (p, rank) in zip(tests, corrected, strict=True)
    )


def several_seeds(run: Run) -> bool:
    """Whether each loss was trained more than once."""
    return len(run.analysis.values.seeds) > 1


def over(run: Run) -> str:
    """What the means are over."""
    images = count(run.images, "image")
    return f"{images} and {count(len(run.analysis.values.seeds), 'training')}" if several_seeds(run) else images


def luck(run: Run) -> str:
    """What the run knows of the luck of a training."""
    seeds = len(run.analysis.values.seeds)
    each = "each model was" if run.compares_restorers else "each loss was"
    if seeds == 1:
        return f"{each} trained once, so the luck of a training is not measured; {SEVERAL_SEEDS} would."
    return f"{each} trained {seeds} times, and the tests take trainings and images as drawn at random."


def seed_words(run: Run) -> list[str]:
    """With several seeds: over whom the winner's lead by the score would hold for new trainings, over whom that is not
    shown, and how much of what varies comes with the training. Empty with one."""
    analysis = run.analysis
    if not several_seeds(run):
        return []
    tested = [t for t in analysis.tests if t.corrected is not None]
    holds, fails = [t for t in tested if t.significant], [t for t in tested if not t.significant]
    said = []
    if holds:
        p = _at_most(max(t.corrected for t in holds if t.corrected is not None), len(holds))
        said.append(f"For new trainings too, {analysis.winner} beats {_whom(run, holds, analysis.tests, str)} ({p}).")
    if fails:
        p = _at_least(min(t.corrected for t in fails if t.corrected is not None), len(fails))
        whom = _whom(run, fails, analysis.tests, str)
        said.append(f"That {analysis.winner} beats {whom} is not shown to hold for new trainings ({p}).")
    if split := analysis.splits.get(analysis.winner):
        seed, image, _ = split.shares
        said.append(
            f"Of the variance of its score per image, {100 * seed:.0f} % lies between trainings and "
            f"{100 * image:.0f} % between images."
        )
    return said


def basis(run: Run) -> str:
    """What it takes to be supported, and on how much of what."""
    images = count(run.images, "image")
    if not several_seeds(run):
        tests = f"a paired t-test and Wilcoxon's signed-rank test over {images}, each Holm-corrected."
    else:
        trainings = count(len(run.analysis.values.seeds), "training")
        tests = (
            f"a t-test over {trainings} and {images} and Wilcoxon's signed-rank test over the images, each "
            "Holm-corrected; it then holds for new images and new trainings."
        )
    return f"Supported means p < {LEVEL:g} by both {tests}"


def verdict(run: Run) -> str:
    """Which loss won and by how much, what that is worth, and what it is not: lines for the terminal."""
    said = lead(run)
    lines = [said if run.analysis.runner_up is None else f"Use {run.analysis.winner}. {said}"]
    lines += written(run)
    return "\n".join([*lines, *disappointments(run)])


def written(run: Run) -> list[str]:
    """The claims as lines of plain text, and what it takes to be supported."""
    lines = []
    for title, sentences in claims(run).titled:
        if sentences:
            lines += [f"{title}:", *(f"- {sentence}" for sentence in sentences)]
    return [*lines, basis(run)]


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


def lead(run: Run, name: Callable[[str], str] = str) -> str:
    """The winner and its margin. name: how a loss is written."""
    analysis = run.analysis
    winner = name(analysis.winner)
    score = f"{analysis.scores[analysis.winner]:.3f}"
    if analysis.runner_up is None:
        return f"{winner} is the only {run.noun} with a result: whether another would do better is not known."
    second = f"{analysis.scores[analysis.runner_up]:.3f}"
    # Of the printed scores, so that the reader's own subtraction agrees.
    margin = f"{float(score) - float(second):.3f}" if score != second else "less than 0.001"
    said = (
        f"{winner} has the highest aggregate score, {score}; next is {name(analysis.runner_up)} with "
        f"{second}, a margin of {margin}."
    )
    alone = len(analysis.values.images) == 1
    return said + (" With only one evaluated image, chance cannot be tested." if alone else "")


def pill(run: Run) -> tuple[Support, str]:
    """Beside the winner's name: whether its lead over the others is more than chance."""
    analysis = run.analysis
    kinds = {test.loss: support(test) for test in analysis.tests}
    if all(kind is Support.UNTESTED for kind in kinds.values()):
        return Support.UNTESTED, "not tested"
    weak = {loss: kind for loss, kind in kinds.items() if kind is not Support.YES}
    if not weak:
        trainings = f" and {len(analysis.values.seeds)} trainings" if several_seeds(run) else ""
        return Support.YES, f"significant over {run.images} images{trainings}"
    named = list(weak) if len(weak) <= 2 else [next(iter(weak)), f"{len(weak) - 1} others"]
    if set(weak.values()) == {Support.DISPUTED} and not several_seeds(run):
        return Support.DISPUTED, f"the tests disagree on the lead over {join(named)}"
    return Support.NO, f"no significant lead over {join(named)}"


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
    said += disappointments(run)
    if any(entry.classical for entry in run.entries):
        said.append(
            "The classical methods were told the blur of each image; of the models, only those that take a kernel were."
        )
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


def disappointments(run: Run) -> list[str]:
    """When the best loss is no better than what there was without it."""
    analysis = run.analysis
    nothing = INPUT in analysis.scores and analysis.scores[analysis.winner] <= analysis.scores[INPUT]
    further = [_NO_FURTHER.format(run.noun)] if analysis.winner == START and analysis.runner_up is not None else []
    return ([_NO_GAIN.format(run.noun)] if nothing else []) + further


def short(text: str, most: int = 260) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def title(run: Run) -> str:
    parts = [str(run.about.get(key) or "") for key in ("task", "degradation")]
    return " · ".join(part for part in parts if part) or run.folder.name
