"""The commands `veridical study ...`: a preference study, from its design to a scale in JND."""

from pathlib import Path
from typing import Annotated

import typer

from veridical.cli.common import complain, counted, counter, guarded, print_table, safe, say, split_list, study_app
from veridical.core.files import atomic_write

StudyFolder = Annotated[Path, typer.Argument(help="A run that has a study, or the study's folder.")]
Database = Annotated[
    str | None,
    typer.Option(
        envvar="VERIDICAL_DATABASE",
        help="Of a PostgreSQL: postgresql://user@host/name. By default study.sqlite in the study's folder.",
    ),
]


@study_app.command("new")
@guarded
def study_new(
    folder: Annotated[Path, typer.Argument(help="A finished comparison; with --reference, folders of images.")],
    per_pair: Annotated[int, typer.Option(help="Votes for each pair of losses, spread over the images.")],
    losses: Annotated[str | None, typer.Option(help="Those to compare, separated by commas. All by default.")] = None,
    images: Annotated[str | None, typer.Option(help="How many to draw, or names separated by commas.")] = None,
    with_input: Annotated[bool, typer.Option("--with-input", help="Compare the degraded input, too.")] = False,
    reference: Annotated[
        Path | None, typer.Option(help="A folder of reference images; FOLDER then has a folder for each method.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="By default FOLDER/study.")] = None,
    pairs: Annotated[
        str, typer.Option(help="full, or active: ask next what the votes so far leave most open.")
    ] = "full",
    trials: Annotated[int, typer.Option(help="Questions to each rater.")] = 18,
    screening: Annotated[int, typer.Option(help="Further ones to each, whose answer is obvious.")] = 2,
    crop: Annotated[
        int, typer.Option(help="Side in pixels to which larger images are cut, where most is to see.")
    ] = 800,
    seed: Annotated[int, typer.Option(help="Of all that is drawn by chance.")] = 0,
    title: Annotated[str | None, typer.Option(help="What raters read first.")] = None,
    contact: Annotated[str, typer.Option(help="Whom raters can ask, such as a name and an address.")] = "",
) -> None:
    """Design a preference study: which two results people compare, beside the reference.

    Every pair of losses gets --per-pair votes over all images (MDF: 50 votes a pair over 50 images). Images, order and
    sides are drawn by chance and balanced; nobody sees the same pair on the same image twice. For PDL's 25 raters for
    every pair and image, give 25 times the number of images.
    """
    from veridical.study.design import SECONDS_PER_TRIAL, TITLE, load_design, new_study

    safe.where, safe.again = out or folder / "study", "run the same command again"
    wanted = None if images is None else int(images) if images.isdecimal() else split_list(images, "images")
    with counter("preparing images") as advance:
        place = new_study(
            folder,
            per_pair=per_pair,
            reference=reference,
            out=out,
            losses=split_list(losses, "losses") if losses is not None else None,
            images=wanted,
            with_input=with_input,
            pairs=pairs,
            trials=trials,
            screening=screening,
            crop=crop,
            seed=seed,
            title=title or TITLE,
            contact=contact,
            on_image=advance,
        )
    design = load_design(place)
    number = len(design.methods)
    say(f"{place}: {counted(number, 'method')}, {counted(len(design.images), 'image')}")
    say(f"  {counted(number * (number - 1) // 2, 'pair')} x {per_pair} = {counted(design.votes, 'vote')}")
    say(
        f"  {counted(design.raters, 'rater')} who answer {trials} + {screening} screening questions each, "
        f"about {counted(design.minutes, 'minute')} at {SECONDS_PER_TRIAL} s a question"
    )
    say(f"Open it to them with: veridical study serve {place}")


@study_app.command("serve")
@guarded
def study_serve(
    study: StudyFolder,
    host: Annotated[str, typer.Option(help="0.0.0.0 for every network that this machine is in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    database: Database = None,
) -> None:
    """Open the study's web page until Ctrl-C. Stop and start it as you like: raters go on where they were.

    Raters on the internet need HTTPS: put a web server that has a certificate in front, which passes requests on.
    """
    from veridical.study.server import serve

    safe.where, safe.again = study, "run the same command again to go on"

    def ready(address: str) -> None:
        say(f"The study is at {address}  (Ctrl-C stops it; no vote is lost)", flush=True)

    if host not in ("127.0.0.1", "::1", "localhost"):
        complain("note: without HTTPS in front, answers and personal links can be read on the way.")
    serve(study, host=host, port=port, url=database, on_ready=ready)


@study_app.command("status")
@guarded
def study_status(study: StudyFolder, database: Database = None) -> None:
    """How far the study is."""
    from veridical.study.store import open_store

    with open_store(study, database) as store:
        found = store.progress()
    share, each = 100 * found.votes / found.wanted, f"{found.fewest} to {found.most}"
    say(f"{found.votes} of {counted(found.wanted, 'vote')} ({share:.0f} %), {each} for each pair")
    say(f"{counted(found.raters, 'rater')}, of whom {found.finished} have answered all they were asked")
    if found.closed:
        say("The study is closed.")


@study_app.command("close")
@guarded
def study_close(study: StudyFolder, database: Database = None) -> None:
    """End the study: no further vote is taken."""
    from veridical.study.store import open_store

    with open_store(study, database) as store:
        store.close()
    say(f"The study is closed. Its votes: veridical study export {study} --out votes.csv")


@study_app.command("forget")
@guarded
def study_forget(
    study: StudyFolder,
    rater: Annotated[str, typer.Argument(help="The number that the rater read on the last page, such as r007.")],
    database: Database = None,
) -> None:
    """Delete all that a rater answered. The questions are asked of others instead."""
    from veridical.study.store import open_store

    with open_store(study, database) as store:
        deleted = store.forget(rater)
    say(f"{counted(deleted, 'answer')} of {rater} deleted")


@study_app.command("export")
@guarded
def study_export(
    study: StudyFolder,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A CSV file. By default they are printed.")] = None,
    database: Database = None,
) -> None:
    """Write the votes as a table: image, the methods left and right, the preferred side, rater, screening, time."""
    from veridical.study.store import csv_of, export_rows

    rows = export_rows(database or study)
    if out is None:
        say(csv_of(rows), end="")
        return
    atomic_write(out, csv_of(rows).encode())
    say(f"{counted(len(rows), 'vote')} in {out}")


@study_app.command("scale")
@guarded
def study_scale(
    votes: Annotated[Path, typer.Argument(help="A CSV of votes, or a run that has a study.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the tables and scale.html.")],
    methods: Annotated[
        Path | None, typer.Option(help="The names of methods that the file numbers from 1, one per line.")
    ] = None,
    leave_out: Annotated[str | None, typer.Option(help="Methods to leave out, separated by commas.")] = None,
    draws: Annotated[int, typer.Option(help="Resamples for the intervals, 500 or more.")] = 1000,
    mistakes: Annotated[int, typer.Option(help="Screening pairs that a rater may get wrong.")] = 0,
    drop_outliers: Annotated[
        bool,
        typer.Option("--drop-outliers", help="Leave out raters who agree far less with the others than raters do."),
    ] = False,
    zero: Annotated[str, typer.Option(help="Where the scale has its 0: mean, lowest, or a method.")] = "mean",
    seed: Annotated[int, typer.Option(help="Of the resampling.")] = 0,
    database: Database = None,
) -> None:
    """Scale votes in JND: who is preferred, by how much, and which differences are more than chance.

    A CSV has the columns image, method_1, method_2 and result (1 or 2, the preferred one) in any order, or these four
    without a header line; rater and screening where they are known. Rows that cannot be used are listed.
    """
    import shlex
    import sys

    from veridical.study import scale_page
    from veridical.study.scaling import Settings, scale
    from veridical.study.votes import read_methods, read_votes, votes_from_rows

    settings = Settings(draws=draws, seed=seed, mistakes=mistakes, drop_outliers=drop_outliers, zero=zero)
    names = None if methods is None else read_methods(methods)
    if votes.is_dir():
        from veridical.study.store import export_rows

        found = votes_from_rows(export_rows(database or votes), methods=names)
    else:
        found = read_votes(votes, methods=names)
    if leave_out is not None:
        found = found.without(split_list(leave_out, "methods"))
    safe.where, safe.again = out, "run the same command again"
    with counter("resampling") as advance:
        made = scale(found, settings, on_draw=lambda done, total: advance(done, total, ""))
    page = scale_page.write(
        made, out, source=votes.name or str(votes), command=shlex.join(["veridical", *sys.argv[1:]])
    )
    rows = [
        (each.method, f"{each.jnd:.2f}", f"{each.low:.2f} to {each.high:.2f}", f"{each.votes:,}")
        for each in made.placed
    ]
    print_table(f"{votes.name}: {counted(made.votes, 'vote')}", ("method", "JND", "95 % interval", "votes"), rows)
    say(scale_page.verdict(made))
    say(f"page: {page}")


@study_app.command("simulate")
@guarded
def study_simulate(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for designs.csv and designs.svg.")],
    methods: Annotated[int, typer.Option(help="How many methods to make up.", min=3)] = 8,
    spread: Annotated[float, typer.Option(help="Standard deviation of their places, in JND.", min=0.01)] = 1.0,
    votes: Annotated[Path | None, typer.Option(help="A CSV of real votes to draw the answers from instead.")] = None,
    per_pair: Annotated[int, typer.Option(help="Votes for each pair in the full design.")] = 16,
    repeats: Annotated[int, typer.Option(help="Simulated studies of each design.", min=2)] = 100,
    seed: Annotated[int, typer.Option(help="Of all that is drawn by chance.")] = 0,
) -> None:
    """Simulate studies, to see how many votes active selection of pairs saves beside a full design."""
    from veridical.study import active, active_page
    from veridical.study.scaling import check_connected, count
    from veridical.study.votes import read_votes

    if votes is None:
        preferred, truth = active.normal_truths(methods, spread, repeats, seed)
        what = f"{methods} methods, {spread:g} JND apart (standard deviation)"
    else:
        found = read_votes(votes)
        wins = count(found)
        check_connected(wins, found.methods)
        preferred, truth = active.replayed_truth(wins, repeats)
        what = f"answers drawn from {votes}"
    safe.where, safe.again = out, "run the same command again"
    with counter("simulating") as advance:
        courses, saved = active_page.compare_designs(preferred, truth, per_pair=per_pair, seed=seed, on_vote=advance)
    paths = active_page.write(courses, out)
    print_table(f"{what}; {repeats} studies", active_page.COLUMNS, active_page.table(saved))
    say(f"every checkpoint: {paths[0]}; curves: {paths[1]}")
