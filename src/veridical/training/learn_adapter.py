"""Phase 1 of TFMLC: teach an adapter on frozen features to order images by the strength of a degradation.

Triplet margin loss: the weakly degraded image must lie nearer to the sharp one than the strongly degraded one, by a
margin. The backbone never changes, so each crop goes through it once; an epoch is then three small layers on numbers
that are kept. Every number of an epoch is a function of (settings, seed, epoch): a run that was killed goes on to the
same bits.
"""

import io
import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from veridical import __version__
from veridical.core.catalog import unknown
from veridical.core.errors import BadOption, NonFiniteLoss
from veridical.core.files import atomic_write, remove_unfinished
from veridical.core.lock import locked
from veridical.core.options import check_number, check_whole
from veridical.features.adapter import Adapter, Base
from veridical.features.base import Features
from veridical.features.clip import TOWERS
from veridical.features.networks import IMAGE, PLANS
from veridical.training import checkpoint as checkpoints
from veridical.training.checkpoint import Checkpoint, storage
from veridical.training.data import generator_for
from veridical.training.device import choose_device
from veridical.training.learned_file import check_out, run_folder
from veridical.training.loop import deferred_interrupt
from veridical.training.triplets import Triplet, Triplets, picture

# Where a network is looked at when nobody says: in its middle.
TAPS = {"vgg16": "relu3_3", "vgg19": "relu3_3", "alexnet": "relu3", "squeezenet1_1": "fire5"}
BLOCK = 3
CHUNK = 8  # triplets that go through the backbone together
EPS = 1e-6  # F.triplet_margin_loss's
BETTER = 1e-4  # by how much, relatively, a validation loss must fall to count, as ReduceLROnPlateau
ROWS = ("epoch", "loss", "validation_loss", "same", "across", "ratio", "lr", "seconds")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to learn; the defaults are the paper's, where it has them.

    Attributes: kind, width, pool: of the `Adapter`. epochs: at most. patience: epochs without a lower validation loss
                after which it stops; plateau: after which the learning rate falls to a tenth. memory_gb: features that
                need more are kept in a file. save_s: seconds between checkpoints.
    """

    kind: str = "flattened"
    width: int = 1024
    pool: int = 0
    epochs: int = 300
    batch_size: int = 64
    lr: float = 1e-4
    margin: float = 1.0
    plateau: int = 10
    patience: int = 30
    seed: int = 0
    device: str = "cpu"
    memory_gb: float = 4.0
    save_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "plateau", "patience"):
            check_whole(f"{name} of learning an adapter", getattr(self, name), low=1)
        for name in ("lr", "margin"):
            check_number(f"{name} of learning an adapter", getattr(self, name), low=1e-12)
        for name in ("memory_gb", "save_s"):
            check_number(f"{name} of learning an adapter", getattr(self, name), low=0)


@dataclass(frozen=True)
class Ranking:
    """How well a distance orders triplets. Shares from 0 to 1.

    Attributes: same: triplets in which weak is nearer to sharp than strong. across: pairs of the weak image of one
                triplet and the strong one of any, each to its own sharp one: 1 when the distance measures the
                degradation alone, whatever is in the picture. ratio: the median over triplets of how many times farther
                strong is than weak.
    """

    same: float
    across: float
    ratio: float


@dataclass(frozen=True)
class Learned:
    """Rankings are of the validation triplets. frozen: the features without an adapter. before: with an untrained one.
    seconds: of the epochs, over every time the run was taken up; features_s: of the backbone, this time."""

    path: Path
    frozen: Ranking
    before: Ranking
    after: Ranking
    epochs: int
    best_epoch: int
    parameters: int
    features_mb: float
    features_s: float
    seconds: float


class Watcher:
    """Hears how the learning goes; a subclass shows it."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def doing(self, what: str, done: int, total: int, said: str = "") -> None:
        """Progress; it ends with done == total, epochs often before."""


def base_named(features: str, block: str | None = None) -> Base:
    """The features to adapt: "clip-vit-b16" or "vit-b-16" with a block (a number), "vgg16" with a tap (relu3_3).

    >>> base_named("clip-vit-b16", "3")
    Base(network='vit-b-16', tap='block3', options={}, sha256='')
    >>> base_named("alexnet").tap
    'relu3'
    """
    plain = features.lower().removeprefix("clip-").replace("-", "").replace("_", "")
    names = {name.replace("-", "").replace("_", ""): name for name in (*TOWERS, *PLANS)}
    if plain not in names:
        raise unknown("features", features, [*(f"clip-{name}" for name in TOWERS), *PLANS])
    name = names[plain]
    if name in TOWERS:
        number = (block or str(BLOCK)).removeprefix("block")
        if not number.isdecimal():
            raise BadOption(f"the block of a CLIP tower is a whole number, counted from 0; got {block!r}.")
        return Base(name, f"block{int(number)}")
    tap = block or TAPS[name]
    known = [IMAGE, *(layer.name for layer in PLANS[name])]
    if tap not in known:
        raise unknown(f"layer of {name} (--block)", tap, known)
    return Base(name, tap)


def default_crop(base: Base) -> int:
    """Side of a crop in px: what the towers look at; elsewhere what keeps the features small."""
    return 224 if base.network in TOWERS else 96


def learn_adapter(
    base: Base,
    triplets: Triplets,
    validation: Triplets,
    out: Path,
    settings: Settings | None = None,
    *,
    weights: str | Path | None = None,
    task: str = "",
    watcher: Watcher | None = None,
) -> Learned:
    """Learn an adapter and write it to `out`, a .safetensors file; beside it the folder `out` with ".run" in place of
    the suffix (training.csv, checkpoints, triplets.png).

    The weights of the epoch with the lowest validation loss are kept. Where the folder holds a checkpoint, goes on from
    it, on one machine to the same bits. Ctrl-C finishes the epoch, saves a checkpoint and then raises
    KeyboardInterrupt; a second one stops at once.

    Args:   triplets, validation: to learn from, and others to say when to stop. weights: file or folder of the network.
            task: noted in the file.
    Errors: BadOption when `out` is there already, or an option is impossible; WeightsMissing; DataError; RecipeError
            when the folder holds a run of other settings; FolderInUse; NonFiniteLoss; StorageError.
    """
    settings, watcher = settings or Settings(), watcher or Watcher()
    out = Path(out)
    check_out(out)
    with locked(run_folder(out), watcher.note):
        remove_unfinished(run_folder(out))
        return _learn_adapter(base, triplets, validation, out, settings, weights, task, watcher)


def _learn_adapter(
    base: Base,
    triplets: Triplets,
    validation: Triplets,
    out: Path,
    settings: Settings,
    weights: str | Path | None,
    task: str,
    watcher: Watcher,
) -> Learned:
    run = run_folder(out)
    device = choose_device(settings.device)
    features = base.build(weights=weights)
    if triplets.crop < features.min_size:
        raise BadOption(
            f"{base.network} needs crops of at least {features.min_size} px up to {base.tap}; got {triplets.crop}."
        )
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.seed)
        adapter = Adapter.fitting(
            base, features, size=triplets.crop, kind=settings.kind, width=settings.width, pool=settings.pool
        )
    features.to(device)
    adapter.to(device)
    identity = _identity(adapter, triplets, validation, settings, task)
    saved, messages = checkpoints.load(run / "checkpoints")
    for message in messages:
        watcher.note(message)
    if saved:
        checkpoints.check_fingerprint(saved, identity, run / "checkpoints")

    with storage(run, last_good=checkpoints.newest(run / "checkpoints")):
        run.mkdir(parents=True, exist_ok=True)
    clock = time.perf_counter()
    kept = Kept(features, adapter, triplets, run / "features.bin", settings, watcher, "features to learn from")
    held = Kept(features, adapter, validation, run / "features-held.bin", settings, watcher, "features to validate on")
    features_s = time.perf_counter() - clock
    sheet = io.BytesIO()
    picture(held.shown).save(sheet, format="PNG")
    atomic_write(run / "triplets.png", sheet.getvalue())
    megabytes = (kept.bytes + held.bytes) / 1e6
    where = "in memory" if kept.in_memory and held.in_memory else f"in {run}, since they exceed the memory allowed"
    watcher.note(
        f"{len(triplets)} triplets to learn from, {len(validation)} to validate on; their features: {megabytes:.0f} MB "
        f"{where}; the adapter: {sum(p.numel() for p in adapter.parameters())} numbers"
    )

    before = evaluate(adapter, held, settings).ranking
    watcher.note(f"before: {before.same:.1%} of the triplets held out are ranked right (weak nearer to sharp)")
    progress = _learn(adapter, kept, held, settings, run, identity, saved, watcher)
    adapter.load_state_dict(progress.best)
    after = evaluate(adapter, held, settings).ranking
    learned = {
        "task": task,
        "degradation": triplets.label,
        "crop": triplets.crop,
        "triplets": len(triplets),
        "validation_triplets": len(validation),
        "data": triplets.data,
        "validation_data": validation.data,
        "ranking": {"frozen": asdict(held.frozen), "before": asdict(before), "after": asdict(after)},
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        **{name: getattr(settings, name) for name in ("lr", "batch_size", "margin", "plateau", "patience", "seed")},
        "veridical": __version__,
    }
    with storage(out, last_good=checkpoints.newest(run / "checkpoints")):
        adapter.cpu().save(out, learned=learned)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    kept.close()
    held.close()
    return Learned(
        out, held.frozen, before, after, progress.epoch, progress.best_epoch,
        sum(p.numel() for p in adapter.parameters()), megabytes, features_s, progress.seconds,
    )  # fmt: skip


class Kept:
    """What the frozen features make of triplets: `maps` (triplets, 3, C, h, w), pooled as the adapter would.

    In memory, or where that would exceed `memory_gb`, in a file that is mapped.

    Attributes: frozen: how the features themselves order the triplets. shown: some triplets, for a picture.
    """

    def __init__(
        self,
        features: Features,
        adapter: Adapter,
        triplets: Triplets,
        file: Path,
        settings: Settings,
        watcher: Watcher,
        what: str,
    ) -> None:
        self._file = file
        distances: list[Tensor] = []
        chunk: list[Triplet] = []
        self.shown: list[Triplet] = []
        shown = {len(triplets) * place // 5 for place in range(5)}
        device = next(adapter.parameters()).device
        weights, (tap,) = features.draw(), features.taps
        maps: Tensor | None = None
        done = 0
        for place, triplet in enumerate(triplets):
            chunk.append(triplet)
            if place in shown:
                self.shown.append(triplet)
            if len(chunk) == CHUNK or place + 1 == len(triplets):
                with torch.no_grad():
                    images = torch.stack([image for each in chunk for image in each]).to(device)
                    found = features(images, weights)[tap]
                    seen = found.unflatten(0, (-1, 3))  # (triplets, 3, C, h, w)
                    distances.append((seen[:, 1:] - seen[:, :1]).square().flatten(2).mean(2).sqrt().cpu())
                    if adapter.pool:
                        seen = F.adaptive_avg_pool2d(found, adapter.pool).unflatten(0, (-1, 3))
                if maps is None:
                    maps = self._room((len(triplets), *seen.shape[1:]), settings.memory_gb)
                maps[done : done + len(chunk)] = seen.cpu()
                done += len(chunk)
                chunk = []
                watcher.doing(what, done, len(triplets))
        assert maps is not None
        self.maps = maps
        self.bytes = maps.numel() * 4
        weak, strong = torch.cat(distances).unbind(1)
        self.frozen = ranking(weak, strong)

    def _room(self, shape: tuple[int, ...], memory_gb: float) -> Tensor:
        self.in_memory = math.prod(shape) * 4 <= memory_gb * 1e9
        if self.in_memory:
            return torch.empty(shape)
        with storage(self._file, last_good=None), self._file.open("wb") as stream:
            size = math.prod(shape) * 4
            # Room that is only promised would end the process when it is missing later.
            os.posix_fallocate(stream.fileno(), 0, size) if hasattr(os, "posix_fallocate") else stream.truncate(size)
            return torch.from_numpy(np.memmap(self._file, dtype=np.float32, mode="r+", shape=shape))

    def close(self) -> None:
        del self.maps
        self._file.unlink(missing_ok=True)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """(N, width, h, w) -> (N,): Euclidean over the width, root mean square over positions. For one position it is
    F.pairwise_distance, and its square is, but for a factor, what the loss tfmlc will measure."""
    return (a - b + EPS).square().sum(1).flatten(1).mean(1).sqrt()


def triplet_loss(sharp: Tensor, weak: Tensor, strong: Tensor, margin: float) -> Tensor:
    """Mean of max(0, d(sharp, weak) - d(sharp, strong) + margin): F.triplet_margin_loss by `distance`."""
    return F.relu(distance(sharp, weak) - distance(sharp, strong) + margin).mean()


def ranking(weak: Tensor, strong: Tensor) -> Ranking:
    """Of the distances (N,) of the weak and of the strong images to their sharp ones. A tie is no success."""
    in_order, _ = strong.sort()
    nearer = len(strong) - torch.searchsorted(in_order, weak.contiguous(), right=True)
    ratio = (strong.double() / weak.double().clamp_min(1e-30)).median().item()
    return Ranking((weak < strong).double().mean().item(), nearer.double().mean().item() / len(strong), ratio)


@dataclass(frozen=True)
class Evaluation:
    loss: float
    ranking: Ranking


@torch.no_grad()
def evaluate(adapter: Adapter, held: Kept, settings: Settings) -> Evaluation:
    """How an adapter does on validation triplets, in evaluation mode."""
    adapter.eval()
    device = next(adapter.parameters()).device
    weak, strong = [], []
    for maps in held.maps.split(settings.batch_size):
        seen = adapter(maps.to(device).flatten(0, 1)).unflatten(0, (-1, 3))
        weak.append(distance(seen[:, 0], seen[:, 1]).cpu())
        strong.append(distance(seen[:, 0], seen[:, 2]).cpu())
    near, far = torch.cat(weak), torch.cat(strong)
    loss = F.relu(near.double() - far.double() + settings.margin).mean().item()
    return Evaluation(loss, ranking(near, far))


@dataclass
class _Progress:
    """What a checkpoint holds beside the adapter and the optimiser."""

    epoch: int
    lr: float
    best: dict[str, Tensor]
    best_loss: float = math.inf
    best_epoch: int = 0
    waited: int = 0  # epochs since the last better loss or fall of the learning rate
    seconds: float = 0.0


def _learn(
    adapter: Adapter,
    kept: Kept,
    held: Kept,
    settings: Settings,
    run: Path,
    identity: Mapping[str, str],
    saved: Checkpoint | None,
    watcher: Watcher,
) -> _Progress:
    device = next(adapter.parameters()).device
    optimizer = torch.optim.Adam(adapter.parameters(), lr=settings.lr)
    now = _Progress(0, settings.lr, _copied(adapter))
    rows: list[list[float]] = []
    if saved:
        adapter.load_state_dict(saved.model)
        checkpoints.restore_optimizer(optimizer, saved.part("optimizer"))
        facts = saved.part("progress")
        rows = facts.pop("rows").tolist()
        now = _Progress(
            saved.step, best=saved.part("best"), seconds=saved.seconds,
            lr=float(facts["lr"]), best_loss=float(facts["best_loss"]), best_epoch=int(facts["best_epoch"]),
            waited=int(facts["waited"]),
        )  # fmt: skip
        watcher.note(f"going on after epoch {now.epoch}")
    folder = run / "checkpoints"
    began = time.perf_counter() - now.seconds
    last_saved = time.perf_counter()

    def save() -> None:
        facts = {name: torch.tensor(getattr(now, name)) for name in ("best_epoch", "waited")}
        facts |= {name: torch.tensor(getattr(now, name), dtype=torch.float64) for name in ("lr", "best_loss")}
        facts["rows"] = torch.tensor(rows, dtype=torch.float64)
        state = {f"progress.{key}": value for key, value in facts.items()}
        state |= {f"best.{key}": value for key, value in now.best.items()}
        state |= {f"optimizer.{key}": value for key, value in checkpoints.optimizer_tensors(optimizer).items()}
        checkpoints.save(folder, Checkpoint(now.epoch, now.seconds, identity, adapter.state_dict(), state))

    with deferred_interrupt() as interrupt:
        while now.epoch < settings.epochs and not _converged(now, settings):
            now.epoch += 1
            adapter.train()
            for group in optimizer.param_groups:
                group["lr"] = now.lr
            total = 0.0
            order = torch.randperm(len(kept.maps), generator=generator_for(settings.seed, "epoch", now.epoch))
            for places in order.split(settings.batch_size):
                maps = kept.maps[places].to(device)
                # All three together, so that BatchNorm sees one distribution, as it will when the loss is used.
                sharp, weak, strong = adapter(maps.flatten(0, 1)).unflatten(0, (-1, 3)).unbind(1)
                loss = triplet_loss(sharp, weak, strong, settings.margin)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += loss.item() * len(places)
            mean = total / len(order)
            found = evaluate(adapter, held, settings)
            if not (math.isfinite(mean) and math.isfinite(found.loss)):
                newest = checkpoints.newest(folder)
                raise NonFiniteLoss(
                    f"the triplet loss became NaN or infinite in epoch {now.epoch}. "
                    f"{f'The last good checkpoint is {newest}' if newest else 'There is no checkpoint yet'}. "
                    "Try a smaller --lr."
                )
            lr = now.lr
            if found.loss < now.best_loss * (1 - BETTER):
                now.best_loss, now.best_epoch, now.best, now.waited = found.loss, now.epoch, _copied(adapter), 0
            else:
                now.waited += 1
                if now.waited > settings.plateau:
                    now.lr, now.waited = now.lr * 0.1, 0
            now.seconds = time.perf_counter() - began
            rows.append([now.epoch, mean, found.loss, *astuple(found.ranking), lr, now.seconds])
            with storage(run / "training.csv", last_good=checkpoints.newest(folder)):
                atomic_write(run / "training.csv", _csv(rows))
            watcher.doing(
                "epochs",
                now.epoch,
                settings.epochs,
                f"loss {mean:.3g}, held out {found.loss:.3g}: {found.ranking.same:.1%} right",
            )
            if interrupt.is_set() or time.perf_counter() - last_saved >= settings.save_s:
                save()
                last_saved = time.perf_counter()
            if interrupt.is_set():
                watcher.note(f"stopped after epoch {now.epoch}, which is saved.")
                raise KeyboardInterrupt
    return now


def _converged(now: _Progress, settings: Settings) -> bool:
    """Whether the validation loss falls no more. Below 0 it cannot."""
    return now.best_loss == 0 or (now.epoch > 0 and now.epoch - now.best_epoch >= settings.patience)


def _copied(adapter: Adapter) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in adapter.state_dict().items()}


def _csv(rows: list[list[float]]) -> bytes:
    lines = [",".join(ROWS), *(",".join([str(int(epoch)), *map(repr, rest)]) for epoch, *rest in rows)]
    return ("\n".join(lines) + "\n").encode()


def _identity(
    adapter: Adapter, triplets: Triplets, validation: Triplets, settings: Settings, task: str
) -> dict[str, str]:
    """All that must be the same for a run to go on."""
    fixed: dict[str, Any] = asdict(settings)
    for name in ("device", "memory_gb", "save_s"):
        del fixed[name]
    return {
        **{name: str(value) for name, value in fixed.items()},
        "adapter": json.dumps(adapter.settings),
        "task": task,
        "degradation": triplets.label,
        "crop": str(triplets.crop),
        "triplets": f"{len(triplets)} and {len(validation)}",
        "data": json.dumps([triplets.data, validation.data]),
    }
