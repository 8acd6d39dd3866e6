"""Runs into a page: python -m experiments.tables RUNS docs/results.md

Wherever the page says

    <!-- run: NAME, paper: TABLE, only: PREFIX -->
    <!-- end -->

and there is a run RUNS/NAME, what stands between the two lines is replaced by the scale of the run, its table as
`veridical report --markdown` prints it, and how far it agrees with TABLE of papers.toml. TABLE is NAME when left out;
where papers.toml has none, the run stands alone. PREFIX begins the names of the images that count. A run that is not
there leaves its place as it is.
"""

import argparse
import re
import tomllib
from pathlib import Path

from experiments.agreement import PaperTable, agree, markdown, read_papers
from experiments.places import fill_places
from veridical.comparison import report
from veridical.comparison.run import Run
from veridical.comparison.wording import decimals, heading
from veridical.core.errors import DataError
from veridical.core.files import atomic_write

START = re.compile(r"^<!-- run: (?P<run>[^,>]+?)(?:, paper: (?P<paper>[^,>]+?))?(?:, only: (?P<only>[^,>]+?))? -->$")


def fill(text: str, runs: Path, papers: dict[str, PaperTable]) -> tuple[str, list[str], list[str]]:
    """The page with its runs, the names of those that were filled in, and of those that are not there.

    Errors: DataError when a place has no end, or names a table that papers.toml has not.
    """

    def made(place: re.Match[str]) -> str | None:
        name, paper = place["run"], place["paper"] or place["run"]
        if place["paper"] and paper not in papers:
            raise DataError(f"{place[0]}: papers.toml has no table {paper!r}; it has {', '.join(papers)}.")
        if not (runs / name / "comparison.json").is_file():
            return None
        return block(report.read_run(runs / name, only=place["only"] or ""), papers.get(paper))

    page = fill_places(text, START, made)
    return page.text, [place["run"] for place in page.filled], [place["run"] for place in page.missing]


def block(run: Run, table: PaperTable | None) -> str:
    """What is said of one run."""
    parts = [f"{scale(run)}\n", report.markdown(run)]
    if table is not None:
        parts.append(markdown(run, agree(run, table)))
        if table.worst:
            parts.append(report.names_as_they_are(worst(run)))
    return "\n".join(parts)


def worst(run: Run) -> str:
    """Each loss on the worst 5 % of the images, with intervals, the best in bold."""
    metrics = run.analysis.metrics
    headings = [f"{heading(each.column)}, worst 5 %" for each in metrics]
    lines = [f"| {' | '.join([run.noun, *headings])} |", f"|{'---|' * (1 + len(metrics))}"]
    for name in run.analysis.ranking:
        cells = []
        for each in metrics:
            of_losses = {loss: each.worst[loss].value for loss in run.analysis.ranking}
            best = max if each.column.higher_is_better else min
            places = decimals(each.column, list(of_losses.values()))
            value, low, high = each.worst[name].value, each.worst[name].low, each.worst[name].high
            text = f"{value:.{places}f}"
            text = f"**{text}**" if value == best(of_losses.values()) else text
            cells.append(text if low is None or high is None else f"{text} ({low:.{places}f} to {high:.{places}f})")
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines) + "\n"


def scale(run: Run) -> str:
    """At what scale it was run, in a line; of folders the last part alone, as the rest is of one machine."""
    about, training = run.about, tomllib.loads(run.recipe).get("training", {})
    model = " and ".join(
        f"`{each.get('label') or each['name']}`, {each['parameters']:,} weights" for each in run.models
    )
    seeds = len(run.analysis.values.seeds)
    rate = f" at {training['lr']:g}" if "lr" in training else ""
    machine = about.get("machine", {})
    seconds = sum(float(each.get("seconds") or 0) for each in about["losses"])
    data = about.get("dataset", {})
    train, evaluate = (re.sub(r"\S*/(?=\S)", "", str(data.get(side, "?"))) for side in ("train", "evaluate"))
    times = f"{seeds} training{'s' if seeds > 1 else ''} of each"
    device = f"{machine.get('device')} ({machine.get('cpu')})"
    return (
        f"Run: {about.get('task')}, `{about.get('degradation')}`; {model}; {about.get('steps')} steps of "
        f"{about.get('batch_size')} crops of {about.get('crop')} px{rate}, {times}; "
        f"trained on {train}; evaluated on {evaluate}. {seconds / 60:.0f} min of training on "
        f"{device}, veridical {about.get('version')}, torch {machine.get('torch')}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.tables", description="Fill the runs into a page.")
    parser.add_argument("runs", type=Path, help="the folder that holds the run folders")
    parser.add_argument("page", type=Path, help="such as docs/results.md; it is written in place")
    asked = parser.parse_args()
    text, filled, missing = fill(asked.page.read_text(encoding="utf-8"), asked.runs, read_papers())
    atomic_write(asked.page, text.encode())
    for names, what in ((filled, "filled in"), (missing, f"not in {asked.runs}, left as they are")):
        if names:
            print(f"{what}: {', '.join(names)}")


if __name__ == "__main__":
    main()
