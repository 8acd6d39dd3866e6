"""From another library to ours: the calls of `side_by_side`, executed as they are written, and the tables of
docs/migration made of what came out."""

import contextlib
import io
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from veridical.benchmark import peers
from veridical.benchmark.agreement import read_pair
from veridical.benchmark.run import Progress, describe
from veridical.benchmark.side_by_side import PAGES, Page, Row
from veridical.benchmark.supply import RANDOM, Supply
from veridical.benchmark.trunks import trunks
from veridical.comparison.score import Pair
from veridical.core.catalog import lookup
from veridical.core.errors import VeridicalError
from veridical.core.files import atomic_write
from veridical.core.options import check_whole
from veridical.distances.lpips import linear_weights
from veridical.features import weights

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
COLUMNS = ("theirs", "ours", "theirs gives", "ours gives", "largest difference", "held to", "weight", "remark")


@dataclass(frozen=True)
class Compared:
    """One row, executed on every pair.

    Attributes: theirs, ours: the value for each pair. ratio: length of their gradient over that of ours, for each
                pair; cosine: the smallest between both; for losses alone. random: a network had random weights.
    """

    row: Row
    theirs: tuple[float, ...]
    ours: tuple[float, ...]
    ratio: tuple[float, ...] = ()
    cosine: float = 1.0
    random: bool = False

    @property
    def largest(self) -> float:
        """Of the differences of single pairs, without sign."""
        return max(abs(a - b) for a, b in zip(self.theirs, self.ours, strict=True))


@dataclass(frozen=True)
class State:
    """What a module adds to a checkpoint and to an optimiser. bytes: of its state_dict. trainable: numbers."""

    text: str
    bytes: int
    trainable: int


@dataclass(frozen=True)
class Measured:
    """A page. missing: calls -> why they could not be executed. data: which images."""

    page: Page
    rows: tuple[Compared, ...]
    states: tuple[tuple[State, State], ...]
    missing: Mapping[str, str]
    data: str
    machine: Mapping[str, Any]


def migrate(
    pairs: Sequence[Pair], data: str, only: Sequence[str] = (), *, take: int = 2,
    progress: Progress = lambda *_: None,
) -> tuple[dict[str, Measured], dict[str, str]]:  # fmt: skip
    """Execute the calls of each peer's page on pairs of images.

    Args:   only: peers, all when empty. take: so many pairs, evenly over all. progress(number, all, name).
    Returns: what was measured, and the peers that could not be imported, with the reason.
    Errors: UnknownName for a peer without a page; DataError for an image that cannot be read; VeridicalError for one
            that is too small.
    """
    check_whole("take", take, low=1)
    pages = {name: lookup(PAGES, name, "peer") for name in only or PAGES}
    chosen = [pairs[k * len(pairs) // min(take, len(pairs))] for k in range(min(take, len(pairs)))]
    images = {pair.name: read_pair(pair) for pair in chosen}
    what = f"{data}: {', '.join(images)}"
    found: dict[str, Measured] = {}
    absent: dict[str, str] = {}
    with Supply() as supply, ready(supply) as asked:
        for number, (name, page) in enumerate(pages.items()):
            progress(number, len(pages), name)
            names: dict[str, Any] = {}
            try:
                exec(page.imports, names)
            except Exception as error:  # whatever a stranger's code may raise
                absent[name] = peers.why(error)
                continue
            with offline(page, supply):
                found[name] = _measure(page, names, images, what, supply, asked)
        progress(len(pages), len(pages), "")
    return found, absent


def _middle(name: str, pair: tuple[Tensor, Tensor], px: int) -> tuple[Tensor, ...]:
    height, width = pair[0].shape[-2:]
    if min(height, width) < px:
        raise VeridicalError(f"{name} is {width}x{height} px. Expected images of at least {px} px a side.")
    top, left = (height - px) // 2, (width - px) // 2
    return tuple(each[..., top : top + px, left : left + px].contiguous() for each in pair)


def _measure(
    page: Page, names: dict[str, Any], images: Mapping[str, tuple[Tensor, Tensor]], data: str, supply: Supply,
    asked: set[str],
) -> Measured:  # fmt: skip
    rows, states, missing = [], [], {}
    for row in page.rows:
        asked.clear()
        parts = [_middle(name, pair, row.px) for name, pair in images.items()]
        try:
            rows.append(_compare(row, names, parts))
        except Exception as error:
            missing[row.theirs] = _whose(error)
            continue
        if any(supply.origins.get(name) == RANDOM for name in asked):
            rows[-1] = replace(rows[-1], random=True)
    for theirs, ours in page.states:
        try:
            states.append((state(theirs, names), state(ours, names)))
        except Exception as error:
            missing[theirs] = _whose(error)
    return Measured(page, tuple(rows), tuple(states), missing, data, describe(torch.device("cpu")))


def _whose(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{peers.why(error)} ({Path(last.filename).name})"


def _compare(row: Row, names: Mapping[str, Any], images: Iterable[tuple[Tensor, ...]]) -> Compared:
    found = []
    for x, y in images:
        theirs, their_gradient = evaluate(row.theirs, names, x, y, with_gradient=row.loss)
        ours, our_gradient = evaluate(row.ours, names, x, y, with_gradient=row.loss)
        ratio = cosine = 1.0
        if their_gradient is not None and our_gradient is not None:
            lengths = float(their_gradient.norm()), float(our_gradient.norm())
            ratio = lengths[0] / lengths[1]
            cosine = float((their_gradient * our_gradient).sum()) / (lengths[0] * lengths[1])
        found.append((float(theirs.mean()), float(ours.mean()), ratio, cosine))
    theirs_, ours_, ratios, cosines = zip(*found, strict=True)
    return Compared(row, theirs_, ours_, ratios if row.loss else (), min(cosines))


def evaluate(
    text: str, names: Mapping[str, Any], x: Tensor, y: Tensor, *, with_gradient: bool = False
) -> tuple[Tensor, Tensor | None]:
    """What an expression of a page gives for the prediction x and the target y, and its gradient to x, in float64.

    Args:   names: what its imports have defined. x, y: (N, 3, H, W) in [0, 1].
    Errors: whatever the expression raises.
    """
    x = x.detach().requires_grad_(with_gradient)
    with torch.set_grad_enabled(with_gradient), _quiet():
        value = torch.as_tensor(eval(text, {**names, "x": x, "y": y}))
        gradient = torch.autograd.grad(value.sum(), x)[0].double() if with_gradient else None
    return value.detach().double(), gradient


def state(text: str, names: Mapping[str, Any]) -> State:
    """What the module that an expression makes has to save and to train."""
    with _quiet():
        module: nn.Module = eval(text, dict(names))
    tensors = (each for each in module.state_dict().values() if isinstance(each, Tensor))
    saved = sum(each.numel() * each.element_size() for each in tensors)
    return State(text, saved, sum(each.numel() for each in module.parameters() if each.requires_grad))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the peers' messages."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


# ---- weights ----


@contextlib.contextmanager
def ready(supply: Supply) -> Iterator[set[str]]:
    """Inside, ours and the peers' networks have the same weights, and nothing is fetched. Yields the networks that are
    asked for, by name."""
    asked: set[str] = set()
    real = weights.available

    def available(name: str) -> Path | None:
        asked.add(name)
        with mock.patch.object(weights, "available", real):
            path = supply.options((name,)).get("weights")
            return Path(path) if path else real(name)

    def tensors(name: str) -> Mapping[str, Tensor]:
        asked.add(name)
        with mock.patch.object(weights, "available", real):
            return supply.tensors(name)

    with mock.patch.object(weights, "available", available), trunks(tensors), peers.published(supply), _quiet():
        yield asked


@contextlib.contextmanager
def offline(page: Page, supply: Supply) -> Iterator[None]:
    """Inside, the files that piq and pyiqa fetch come from our copies of the same numbers."""
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        if page.package == "piq":
            found = supply.tensors("brisque")
            pair = (found["coefficients"].float(), found["vectors"].float())
            # It turns the vectors in place, so each call gets a copy. `piq.brisque` is a function, too: by its module.
            module = sys.modules["piq.brisque"]
            copies = mock.Mock(side_effect=lambda *_, **__: tuple(each.clone() for each in pair))
            stack.enter_context(mock.patch.object(module, "load_url", copies))
        if page.package == "pyiqa":
            files = _pyiqa_files(Path(folder), supply)
            for name in ("arch_util", "niqe_arch", "brisque_arch"):
                stack.enter_context(mock.patch(f"pyiqa.archs.{name}.load_file_from_url", files))
        yield


def _pyiqa_files(folder: Path, supply: Supply) -> Any:
    """What stands for pyiqa's download: url -> path, in the form that it reads."""
    from scipy import io as matlab

    def fetch(url: str, *_: object, **__: object) -> str:
        path = folder / url.rpartition("/")[2]
        name = path.name.lower()
        if path.exists():
            return str(path)
        if name.startswith("lpips"):
            layers = linear_weights("vgg" if "vgg" in name else "alex")
            torch.save({f"lin{k}.model.1.weight": w[None, :, None, None] for k, w in enumerate(layers)}, path)
        elif name.startswith("dists"):
            alpha, beta = peers.dists_as_published()
            torch.save({"alpha": alpha, "beta": beta}, path)
        elif name.startswith("niqe_modelparameters"):
            found = supply.tensors("niqe")
            means = {"mu_prisparam": found["mu_pris_param"].numpy(), "cov_prisparam": found["cov_pris_param"].numpy()}
            matlab.savemat(path, means)
        elif name.startswith("brisque_svm"):
            found = supply.tensors("brisque")
            torch.save((found["coefficients"].float(), found["vectors"].float()), path)
        else:
            raise FileNotFoundError(f"{path.name} could not be had")
        return str(path)

    return fetch


# ---- the page ----


def write(measured: Measured, folder: Path, name: str) -> Path:
    """Put what was measured into FOLDER/NAME.md, between its two markers.

    Errors: VeridicalError when there is no such page, or it lacks the markers.
    """
    path = folder / f"{name}.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise VeridicalError(f"{path} has no place for the table. Expected a page with {BEGIN} and {END}.")
    atomic_write(path, f"{before}{BEGIN}\n\n{markdown(measured)}\n{END}{after}".encode())
    return path


def markdown(measured: Measured) -> str:
    """The imports, the table of the calls, what the modules save, and what could not be executed."""
    page = measured.page
    version = peers.version(page.package)
    sizes = " or ".join(map(str, sorted({each.row.px for each in measured.rows})))
    lines = [
        f"Printed by `veridical bench migration`: {page.package} {version}, torch {measured.machine['torch']}, "
        f"{measured.machine['date']}. Images: {measured.data}; of each the middle {sizes} px. x is the prediction, y "
        "the target, (N, 3, H, W) in "
        "[0, 1]; values are means over the images.",
        "",
        "```python",
        *page.imports.strip().splitlines(),
        "```",
        "",
        _line(COLUMNS),
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
        *(_line(_cells(row)) for row in measured.rows),
    ]
    if measured.states:
        lines += ["", _line(("module", "in a checkpoint, MB", "trained by an optimiser that is given its parameters"))]
        lines += ["| --- | ---: | ---: |"]
        for each in (each for both in measured.states for each in both):
            lines.append(_line((f"`{each.text}`", f"{each.bytes / 1e6:.1f}", f"{each.trainable:,}")))
    lines += ["", *(f"- Not measured: `{text}`: {why}." for text, why in measured.missing.items())]
    return "\n".join(lines).rstrip() + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(found: Compared) -> tuple[str, ...]:
    row = found.row
    remarks = [row.why, "random weights" if found.random else ""]
    return (
        f"`{row.theirs}`",
        f"`{row.ours}`",
        f"{sum(found.theirs) / len(found.theirs):.5g}",
        f"{sum(found.ours) / len(found.ours):.5g}",
        f"{found.largest:.1e}",
        "" if row.within is None else f"{row.within:.0e}",
        weight(found),
        "; ".join(filter(None, remarks)),
    )


def weight(found: Compared) -> str:
    """By how much to multiply an old weight, and the cosine where the gradients do not point the same way."""
    if not found.ratio:
        return ""
    low, high = min(found.ratio), max(found.ratio)
    text = f"{sum(found.ratio) / len(found.ratio):.4g}" if high < 1.01 * low else f"{low:.3g} to {high:.3g}"
    return text if found.cosine > 0.999 else f"{text}, cosine {found.cosine:.2f}"
