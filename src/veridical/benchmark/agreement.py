"""Do our metrics give what others give? Measured on real pairs of images: pairs in, differences out."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from veridical.benchmark import peers
from veridical.benchmark.cases import Case
from veridical.benchmark.measure import Call
from veridical.benchmark.peers import Peer
from veridical.benchmark.run import Progress, build_ours, choose, describe, missing_packages
from veridical.benchmark.supply import RANDOM, Supply
from veridical.comparison.score import Pair
from veridical.core.errors import VeridicalError
from veridical.core.files import read_image
from veridical.metrics import needs as metric_needs


@dataclass(frozen=True)
class Agreement:
    """One metric of ours beside one of somebody else's, over the images.

    Attributes: ours, theirs: means. largest: of the differences of single images, without sign; image: where.
                random: the networks had random weights of the right shapes. note: why it differs, where we know.
    """

    metric: str
    peer: str
    version: str
    ours: float
    theirs: float
    largest: float
    image: str
    images: int
    random: bool
    note: str


@dataclass(frozen=True)
class Agreements:
    """Everything that was compared. missing: "metric: peer" -> why it was not. data: where the images are."""

    machine: Mapping[str, Any]
    data: str
    rows: tuple[Agreement, ...]
    missing: Mapping[str, str]


def agree(
    pairs: Sequence[Pair], data: str, only: Sequence[str] = (), progress: Progress = lambda *_: None
) -> Agreements:
    """Ours and every peer of each metric, on every pair; one image at a time.

    Args:   pairs: at least one, with references. only: metrics, all when empty. progress(number, all, name).
    Errors: UnknownName for a metric that no case is of; DataError for an image that cannot be read.
    """
    cases = [case for case in choose([f"metric {name}" for name in only]) if case.metric]
    rows: list[Agreement] = []
    missing: dict[str, str] = {}
    with Supply() as supply, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own
        absent = missing_packages(supply)
        for number, case in enumerate(cases):
            progress(number, len(cases), case.name)
            rows += _of_case(case, pairs, supply, absent, missing)
        progress(len(cases), len(cases), "")
    return Agreements(describe(torch.device("cpu")), data, tuple(rows), missing)


def _of_case(
    case: Case, pairs: Sequence[Pair], supply: Supply, absent: Mapping[str, str], missing: dict[str, str]
) -> list[Agreement]:
    device = torch.device("cpu")
    try:
        mine = build_ours(case, supply, device)
    except (VeridicalError, RuntimeError) as error:
        missing[case.spec] = peers.why(error)
        return []
    calls: dict[str, Call] = {}
    contestants: dict[str, Peer] = {}
    for peer in case.peers:
        if peer.package in absent:
            missing[f"{case.spec}: {peer.name}"] = absent[peer.package]
            continue
        try:
            calls[peer.name] = peers.build(peer, supply, device)
        except Exception as error:  # whatever a stranger's code may raise
            missing[f"{case.spec}: {peer.name}"] = peers.why(error)
            continue
        contestants[peer.name] = peer
    random = any(supply.origins.get(name) == RANDOM for name in metric_needs(case.spec))
    ours: list[float] = []
    theirs: dict[str, list[float]] = {name: [] for name in calls}
    for pair in pairs:
        prediction, target = read_pair(pair)
        ours.append(float(mine(prediction, target)))
        for name in list(calls):
            try:
                theirs[name].append(float(calls[name](prediction, target)))
            except Exception as error:
                missing[f"{case.spec}: {name}"] = peers.why(error)
                del calls[name]
    return [_row(case, contestants[name], ours, theirs[name], pairs, random=random) for name in calls]


def _row(
    case: Case, peer: Peer, ours: Sequence[float], theirs: Sequence[float], pairs: Sequence[Pair], *, random: bool
) -> Agreement:
    apart = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    worst = max(range(len(apart)), key=apart.__getitem__)
    return Agreement(
        metric=case.spec,
        peer=peer.name,
        version=peers.version(peer.package) if peer.package else "",
        ours=sum(ours) / len(ours),
        theirs=sum(theirs) / len(theirs),
        largest=apart[worst],
        image=pairs[worst].name,
        images=len(pairs),
        random=random,
        note=peer.note,
    )


def read_pair(pair: Pair) -> tuple[Tensor, Tensor]:
    """Prediction and target, (1, C, H, W) each."""
    assert pair.reference is not None
    prediction, target = (read_image(path).pixels[None] for path in (pair.image, pair.reference))
    return prediction, target


COLUMNS = ("metric", "beside", "ours", "theirs", "largest difference", "images", "remark")


def table(found: Agreements) -> list[tuple[str, ...]]:
    """One line for each peer of each metric, under COLUMNS."""
    return [
        (
            row.metric,
            f"{row.peer} {row.version}".strip(),
            f"{row.ours:.5g}",
            f"{row.theirs:.5g}",
            f"{row.largest:.1e}",
            str(row.images),
            "; ".join(filter(None, [row.note, "random weights" if row.random else ""])),
        )
        for row in found.rows
    ]


def markdown(found: Agreements) -> str:
    """A page: the table, what is missing, the machine."""
    versions = ", ".join(f"{name} {version}" for name, version in found.machine["peers"].items())
    lines = [
        "# Agreement of the metrics",
        "",
        f"Printed by `veridical bench metrics`: ours beside other libraries on {found.data}. Means over the images; "
        "the largest difference is that of a single image.",
        "",
        f"veridical {found.machine['veridical']}, torch {found.machine['torch']}, {found.machine['date']}; {versions}.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
        *(f"| {' | '.join(line)} |" for line in table(found)),
        "",
        *(f"- Left out: {name}: {why}." for name, why in found.missing.items()),
    ]
    return "\n".join(lines).rstrip() + "\n"
