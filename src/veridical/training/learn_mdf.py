"""Phase 1 of MDF: discriminators that learn to notice what one degradation leaves behind, from one photograph.

A generator mends the degraded seed image, scale by scale, from the coarsest to the finest; at each scale a
discriminator learns to tell its result from the seed image. The generators are thrown away afterwards.

SinGAN trains on the whole image. What its networks see is 11 px wide, so a few small windows carry nearly as much at a
fraction of the time: quality "fast". Windows are cut with what surrounds them, and the image is mirrored at its
borders, so that neither network sees where a window ends.

Every draw is a function of (seed, scale, iteration): a run that was killed goes on to equal bits.
"""

import csv
import hashlib
import io
import itertools
import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from veridical import __version__
from veridical.core.catalog import lookup
from veridical.core.colour import as_rgb
from veridical.core.errors import BadOption, DataError, NonFiniteLoss
from veridical.core.files import atomic_write, remove_unfinished
from veridical.core.filters import pad
from veridical.core.lock import locked
from veridical.core.options import check_choice, check_number, check_whole
from veridical.degradations import TASKS, degradation
from veridical.features import mdf as format_
from veridical.features import weights as files
from veridical.training import checkpoint as checkpoints
from veridical.training.checkpoint import Checkpoint, storage
from veridical.training.data import generator_for, pick
from veridical.training.device import choose_device
from veridical.training.learned_file import check_out, run_folder
from veridical.training.loop import deferred_interrupt
from veridical.training.singan import REACH, Convolutions, Generator, discriminator, gradient_penalty

# What the paper adds at each scale; tasks that it does not know take their own degradation. None: nothing is added, and
# what the generator has to mend is the enlargement from the scale before.
DEGRADATIONS: dict[str, str | None] = {
    **{name: TASKS[name].degradation for name in dict.fromkeys(task.learned for task in TASKS.values())},
    "denoise": "gaussian-noise(sigma_8bit=(0, 55))",
    "jpeg": "jpeg(quality=(7, 10))",
    "super-resolve": None,
}

SPANS = {"demosaic": 2.0}  # of the generator; 1 elsewhere
INPUTS = ("chained", "seed")

LEAST_PX = 25  # the short side of the coarsest scale: SinGAN's
MARGIN = 16  # px around a window that a degradation sees besides: the reach of a kernel of 31 px
BORDER = MARGIN + REACH
WIDTH, WIDTH_DOUBLES = 32, 4  # channels of the coarsest scale, doubled every so many scales
WIDEST = 128
LR, BETAS = 5e-4, (0.5, 0.999)
PENALTY = 0.1
RECONSTRUCTION = 100.0
DECAY, DECAY_AT = 0.1, 0.8  # of the learning rate, after this share of a scale's iterations
LOG_EVERY = 25
SAVE_SECONDS = 30.0  # at the least between two checkpoints within a scale
STEADY = 0.05  # a mean that changes by less than this share has converged

COLUMNS = ("scale", "iteration", "gap", "reconstruction", "penalty", "lr")


@dataclass(frozen=True)
class Quality:
    """How much work goes into a scale.

    Attributes: iterations: at most. critic_steps, generator_steps: in each. penalty_every: iterations between two with
            a gradient penalty, which then weighs as much more. windows: of an iteration. window_px: their side; 0 for
            the whole image. variants: how many results of the scale before, each of other draws, serve as its input;
            0 makes a new one for every iteration. early: leave off where the critic has converged.
    """

    iterations: int
    critic_steps: int
    generator_steps: int
    penalty_every: int
    windows: int
    window_px: int
    variants: int
    early: bool


QUALITIES = {
    "fast": Quality(
        iterations=400,
        critic_steps=1,
        generator_steps=1,
        penalty_every=4,
        windows=4,
        window_px=32,
        variants=8,
        early=True,
    ),
    "paper": Quality(
        iterations=3000,
        critic_steps=3,
        generator_steps=3,
        penalty_every=1,
        windows=1,
        window_px=0,
        variants=0,
        early=False,
    ),
}


class Watcher:
    """Hears how the learning goes; a subclass shows it."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def scale(self, scale: int, scales: int, size: tuple[int, int], iterations: int, start: int) -> None:
        """The training of a scale begins, or goes on after iteration `start`."""

    def step(self, iteration: int, gap: float, psnr_db: float) -> None:
        """Every LOG_EVERY iterations, and their means. gap: the critic's mean score of the seed image less that of what
        the generator makes; psnr_db: of what it makes."""


@dataclass(frozen=True)
class Plan:
    """What decides the result: the same plan on the same machine gives the same file."""

    task: str
    degradation: str | None
    images: tuple[tuple[str, str], ...]
    sizes: tuple[tuple[tuple[int, int], ...], ...]
    widths: tuple[int, ...]
    inputs: str
    span: float
    quality_name: str
    quality: Quality
    seed: int

    def fingerprint(self) -> dict[str, str]:
        return {name: json.dumps(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class ScaleResult:
    """size: (height, width) in px. gap, psnr_db: over the last LOG_EVERY iterations. input_psnr_db: of the degraded."""

    size: tuple[int, int]
    width: int
    iterations: int
    gap: float
    psnr_db: float
    input_psnr_db: float


@dataclass(frozen=True)
class Learned:
    """path: the discriminators. run: the folder of training.csv, the log, and scales.png, what each scale was shown."""

    path: Path
    run: Path
    scales: list[ScaleResult]
    seconds: float
    sha256: str


def learn_mdf(
    images: Sequence[tuple[str, Tensor]],
    to: Path,
    *,
    task: str,
    degradation_spec: str | None = None,
    quality: str | Quality = "fast",
    scales: int = 8,
    ratio: float = 2.0,
    max_px: int = 1024,
    inputs: str = "chained",
    span: float | None = None,
    iterations: int | None = None,
    seed: int = 0,
    half: bool = False,
    device: str = "auto",
    watcher: Watcher | None = None,
) -> Learned:
    """Train MDF's discriminators on seed images, and write them as a file that the loss `mdf` takes.

    Beside `to` stands the folder NAME.run, with training.csv, scales.png and, until it is finished, checkpoints, from
    which a killed call goes on when it is made again. Ctrl-C finishes the iteration, saves a checkpoint and then raises
    KeyboardInterrupt; a second one stops at once.

    Args:   images: name, (1 or 3, H, W) in [0, 1] of each seed image. One is enough; of several, each window comes
            from one that is drawn.
            task: a name of TASKS, or any other word beside a `degradation_spec`.
            degradation_spec: in place of the task's; any chain that keeps an image's size.
            quality: "fast", or "paper": 3000 iterations of 3 + 3 steps on the whole image.
            scales: how many discriminators. ratio: between two scales. Where the coarsest would be smaller than 25 px
            it is clamped to that, and the ratio with it; a note says so.
            max_px: a larger image is first shrunk until its longer side has so many: its finest pixels are often the
            camera's own artefacts, and what its scales need of memory grows with them.
            inputs: what the degradation of a scale is applied to. "chained": the result of the scale before, enlarged,
            as in the paper; what one scale could not mend, the next meets. "seed": the seed image itself.
            span: by how much the generator can change a pixel of -1..1; by default SinGAN's 1, and 2 for demosaic: a
            mosaic turns white into black, which 1 could not mend, and the critic's scores would grow without end.
            iterations: in place of those of the quality. half: write float16.
    Errors: DataError for an image that is too small, BadOption, RecipeError when the unfinished folder is of another
            call, FolderInUse, StorageError, NonFiniteLoss.
    """
    watcher = watcher or Watcher()
    check_out(to)
    plan = _plan(
        images,
        watcher,
        task=task,
        spec=degradation_spec,
        quality=quality,
        scales=scales,
        ratio=ratio,
        max_px=max_px,
        inputs=inputs,
        span=span,
        iterations=iterations,
        seed=seed,
    )
    learner = _Learner(plan, images, to, choose_device(device), watcher)
    with locked(learner.run_folder, watcher.note), torch.random.fork_rng([]):
        remove_unfinished(learner.run_folder)
        return learner.run(half=half)


def _plan(
    images: Sequence[tuple[str, Tensor]],
    watcher: Watcher,
    *,
    task: str,
    spec: str | None,
    quality: str | Quality,
    scales: int,
    ratio: float,
    max_px: int,
    inputs: str,
    span: float | None,
    iterations: int | None,
    seed: int,
) -> Plan:
    """Check what was asked of `learn_mdf`, and work out the scales."""
    check_whole("scales of mdf", scales, low=1)
    check_whole("seed", seed, low=0)
    check_number("ratio of mdf's scales", ratio, low=1.05, high=8)
    check_whole("the longest side", max_px, low=LEAST_PX)
    chosen = lookup(QUALITIES, quality, "quality") if isinstance(quality, str) else quality
    if iterations is not None:
        check_whole("iterations", iterations, low=1)
        chosen = replace(chosen, iterations=iterations)
    if spec is None:
        spec = lookup(DEGRADATIONS, task, "task")
    span = SPANS.get(task, 1.0) if span is None else span
    check_number("span", span, low=1e-3)
    check_choice("inputs of mdf's scales", inputs, INPUTS)
    if spec is None and inputs == "seed":
        raise BadOption(f"{task} has no degradation, so the seed image itself leaves nothing to mend; use 'chained'.")
    if spec is not None and degradation(spec).scale != 1:
        raise BadOption(f"the degradation {spec!r} changes the size of an image; mdf needs one that keeps it.")
    if not images:
        raise DataError("mdf learns from at least one seed image; none was given.")
    for name, image in images:
        if image.ndim != 3 or image.shape[0] not in (1, 3) or min(image.shape[1:]) < LEAST_PX:
            raise DataError(
                f"the seed image {name} must have 1 or 3 channels and at least {LEAST_PX} px a side; "
                f"got {tuple(image.shape)}."
            )
    finest = []
    for name, image in images:
        height, width = image.shape[1:]
        shrink = min(1.0, max_px / max(height, width))
        finest.append((round(height * shrink), round(width * shrink)))
        if shrink < 1:
            watcher.note(f"{name} is shrunk from {height}x{width} to {finest[-1][0]}x{finest[-1][1]} px")
    shortest = min(map(min, finest))
    if shortest < LEAST_PX:
        raise BadOption(f"at most {max_px} px leave less than {LEAST_PX} px of the shorter side; allow more.")
    if scales > 1 and shortest / ratio ** (scales - 1) < LEAST_PX:
        wanted, ratio = ratio, (shortest / LEAST_PX) ** (1 / (scales - 1))
        watcher.note(
            f"{shortest} px are too few for {scales} scales {wanted:g} apart: the coarsest is clamped to {LEAST_PX} "
            f"px, and they are {ratio:.3g} apart"
        )
    sizes = tuple(
        tuple((round(height / ratio**k), round(width / ratio**k)) for k in range(scales - 1, -1, -1))
        for height, width in finest
    )
    return Plan(
        task=task,
        degradation=None if spec is None else degradation(spec).label,
        images=tuple((name, _sha256(image)) for name, image in images),
        sizes=sizes,
        widths=tuple(min(WIDTH * 2 ** (k // WIDTH_DOUBLES), WIDEST) for k in range(scales)),
        inputs=inputs,
        span=span,
        quality_name=quality if isinstance(quality, str) and iterations is None else "own",
        quality=chosen,
        seed=seed,
    )


def _sha256(image: Tensor) -> str:
    """Of the picture at 8 bits: the same for every lossless file of it."""
    levels = as_rgb(image[None])[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).contiguous()
    return hashlib.sha256(levels.numpy()).hexdigest()


class _Learner:
    def __init__(
        self, plan: Plan, images: Sequence[tuple[str, Tensor]], to: Path, device: torch.device, watcher: Watcher
    ) -> None:
        self.plan, self.to, self.device, self.watcher = plan, to, device, watcher
        self.run_folder = run_folder(to)
        self.work = self.run_folder / "checkpoints"
        self.degrade = None if plan.degradation is None else degradation(plan.degradation)
        # pyramid[i][k]: image i at scale k, in [-1, 1]
        self.pyramid = [
            [_shrunk(as_rgb(image[None].float())[0], size) for size in sizes]
            for (_, image), sizes in zip(images, plan.sizes, strict=True)
        ]
        self.critics: list[Convolutions] = []
        self.generators: list[Generator] = []
        self.rows: list[tuple[float, ...]] = []
        self.interrupt = threading.Event()
        self.input_errors: list[float] = []  # the mean squared error of each scale's degraded input

    # -- the course of the training ------------------------------------------------------------------------

    def run(self, *, half: bool) -> Learned:
        began = time.perf_counter()
        saved = self._load()
        seconds_before = saved.seconds if saved else 0.0
        first = len(self.critics) - 1 if saved else 0
        with deferred_interrupt() as self.interrupt:
            for scale in range(first, len(self.plan.widths)):
                resumed = saved if scale == first else None
                self._learn_scale(scale, resumed, lambda: seconds_before + time.perf_counter() - began)
        seconds = seconds_before + time.perf_counter() - began
        self._draw_picture(self.run_folder / "scales.png")
        self._log()
        sha256 = self._write(half)
        shutil.rmtree(self.work, ignore_errors=True)
        return Learned(self.to, self.run_folder, self._results(), seconds, sha256)

    def _learn_scale(self, scale: int, saved: Checkpoint | None, seconds: Callable[[], float]) -> None:
        plan, quality = self.plan, self.plan.quality
        start, sums = 0, torch.zeros(3, device=self.device)
        if saved is None:
            self._add_scale(scale)
        else:
            start, sums = int(saved.state["iteration"]), saved.state["sums"].to(self.device)
        critic, generator = self.critics[scale], self.generators[scale]
        optimizers = [torch.optim.Adam(net.parameters(), lr=LR, betas=BETAS) for net in (critic, generator)]
        if saved:
            for name, optimizer in zip(("critic", "generator"), optimizers, strict=True):
                checkpoints.restore_optimizer(optimizer, saved.part(name))
        inputs = self._inputs(scale)
        if saved is None:
            self.input_errors.append(self._input_error(scale, inputs))
        self.watcher.scale(scale, len(plan.widths), plan.sizes[0][scale], quality.iterations, start)
        decay_from = self._decay_from(scale)
        saved_at = time.perf_counter()
        for iteration in itertools.count(start + 1):
            if iteration > self._end(decay_from):
                break
            lr = LR * (DECAY if iteration > decay_from else 1)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr
            sums += self._iterate(scale, iteration, optimizers, inputs)
            last = iteration == self._end(decay_from)
            logged = iteration % LOG_EVERY == 0 or last
            stopped = self.interrupt.is_set()
            if (logged or stopped) and not torch.isfinite(sums).all():
                raise NonFiniteLoss(
                    f"scale {scale + 1} became NaN or infinite by iteration {iteration}. The last good state is in "
                    f"{self.work}. Try another --seed, or a weaker degradation."
                )
            if logged:
                count = iteration - (self.rows[-1][1] if self.rows and self.rows[-1][0] == scale else 0)
                gap, error, penalty = (sums / count).tolist()
                sums.zero_()
                self.rows.append((scale, iteration, gap, error, penalty, lr))
                self.watcher.step(iteration, gap, _psnr(error))
                decay_from = self._decay_from(scale)
                last = iteration == self._end(decay_from)
            if last or stopped or (logged and time.perf_counter() - saved_at > SAVE_SECONDS):
                self._save(scale, iteration, sums, optimizers, seconds())
                saved_at = time.perf_counter()
            if stopped:
                self.watcher.note(f"stopped after iteration {iteration} of scale {scale + 1}, which is saved.")
                raise KeyboardInterrupt

    def _decay_from(self, scale: int) -> int:
        """The iteration after which the learning rate falls: where the scale has converged, or a share of them all."""
        quality = self.plan.quality
        at_most = math.ceil(DECAY_AT * quality.iterations)
        rows = [row for row in self.rows if row[0] == scale]
        if not quality.early:
            return at_most
        window = max(1, at_most // (4 * LOG_EVERY))  # rows in each of two windows that are compared
        for end in range(2 * window, len(rows) + 1):
            before, after = rows[end - 2 * window : end - window], rows[end - window : end]
            if rows[end - 1][1] >= at_most:
                break
            if all(_steady([row[i] for row in before], [row[i] for row in after]) for i in (2, 3)):
                return int(rows[end - 1][1])
        return at_most

    def _end(self, decay_from: int) -> int:
        """The last iteration of a scale."""
        return min(self.plan.quality.iterations, math.floor(decay_from / DECAY_AT))

    def _add_scale(self, scale: int) -> None:
        """A new pair of networks; they begin as those of the scale before where the width is the same."""
        widths, generator = self.plan.widths, generator_for(self.plan.seed, "networks", scale)
        critic = discriminator(widths[scale], generator)
        mender = Generator(widths[scale], generator, span=self.plan.span)
        if scale and widths[scale] == widths[scale - 1]:
            critic.load_state_dict(self.critics[-1].state_dict())
            mender.load_state_dict(self.generators[-1].state_dict())
        self._append(critic, mender)

    def _append(self, critic: Convolutions, mender: Generator) -> None:
        for earlier in self.generators:
            earlier.eval()
        for net in (critic, mender):
            net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.critics.append(critic)
        self.generators.append(mender)

    # -- one iteration -------------------------------------------------------------------------------------

    def _iterate(
        self, scale: int, iteration: int, optimizers: Sequence[torch.optim.Optimizer], inputs: list[list[Tensor]]
    ) -> Tensor:
        """Train both networks once -> gap, squared error, penalty: means over this iteration's steps."""
        quality, (critic, mender) = self.plan.quality, (self.critics[scale], self.generators[scale])
        of_critic, of_mender = optimizers
        chance = generator_for(self.plan.seed, "iteration", scale, iteration)
        if not quality.variants:
            inputs = self._inputs(scale, iteration)
        degraded, sharp = self._batch(scale, inputs, chance)
        gap = error = penalty = torch.zeros((), device=self.device)
        for _ in range(quality.critic_steps):
            with torch.no_grad():
                mended = mender(degraded)
            mix = torch.rand(len(sharp), 1, 1, 1, generator=chance).to(self.device)
            of_critic.zero_grad(set_to_none=True)
            real, fake = critic(sharp).mean(), critic(mended).mean()
            total = fake - real
            if (iteration - 1) % quality.penalty_every == 0:
                penalty = gradient_penalty(critic, sharp, mended, mix)
                total = total + PENALTY * quality.penalty_every * penalty
            total.backward()
            of_critic.step()
            gap = (real - fake).detach()
        for parameter in critic.parameters():
            parameter.requires_grad_(False)
        for _ in range(quality.generator_steps):
            of_mender.zero_grad(set_to_none=True)
            mended = mender(degraded)
            error = F.mse_loss(mended, sharp)
            (RECONSTRUCTION * error - critic(mended).mean()).backward()
            of_mender.step()
        for parameter in critic.parameters():
            parameter.requires_grad_(True)
        return torch.stack([gap, error.detach(), penalty.detach() * quality.penalty_every])

    def _batch(self, scale: int, inputs: list[list[Tensor]], chance: torch.Generator) -> tuple[Tensor, Tensor]:
        """Windows, degraded, with REACH px around: (N, 3, h + 10, w + 10); those of the seed image: (N, 3, h, w)."""
        quality = self.plan.quality
        degraded, sharp = [], []
        # Windows of one size make a batch, so they are no larger than the smallest image.
        least = [min(sizes[scale][axis] for sizes in self.plan.sizes) for axis in (0, 1)]
        height, width = (min(quality.window_px or side, side) for side in least)
        for _ in range(quality.windows):
            image = pick(len(inputs), chance)
            padded = inputs[image][pick(len(inputs[image]), chance)]
            truth = self.pyramid[image][scale]
            top, left = pick(truth.shape[1] - height + 1, chance), pick(truth.shape[2] - width + 1, chance)
            region = padded[:, top : top + height + 2 * BORDER, left : left + width + 2 * BORDER]
            degraded.append(self._degraded(region, chance)[:, MARGIN:-MARGIN, MARGIN:-MARGIN])
            sharp.append(truth[:, top : top + height, left : left + width])
        return self._on_device(degraded), self._on_device(sharp)

    def _on_device(self, images: list[Tensor]) -> Tensor:
        return torch.stack(images).to(self.device).contiguous(memory_format=torch.channels_last)

    def _degraded(self, image: Tensor, chance: torch.Generator) -> Tensor:
        if self.degrade is None:
            return image
        return 2 * self.degrade((image + 1) / 2, chance) - 1

    @torch.no_grad()
    def _inputs(self, scale: int, iteration: int = 0, *, variants: int | None = None) -> list[list[Tensor]]:
        """What the degradation of a scale is applied to: for each image, results of the scale before, enlarged and
        mirrored at the borders by BORDER px. At the coarsest scale, the seed image itself."""
        variants = max(self.plan.quality.variants, 1) if variants is None else variants
        if scale == 0 or self.plan.inputs == "seed":
            return [[_mirrored(levels[scale])] for levels in self.pyramid]
        result = []
        for number, levels in enumerate(self.pyramid):
            made = []
            for variant in range(variants):
                chance = generator_for(self.plan.seed, "input", scale, iteration, number, variant)
                image = levels[0]
                for before in range(scale):
                    wide = self._degraded(_mirrored(image), chance)[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
                    mended = self.generators[before](self._on_device([wide]))
                    size = levels[before + 1].shape[1:]
                    image = F.interpolate(mended, size, mode="bicubic", align_corners=False)[0].cpu()
                made.append(_mirrored(image))
            result.append(made)
        return result

    @torch.no_grad()
    def _input_error(self, scale: int, inputs: list[list[Tensor]]) -> float:
        """The mean squared error of degraded inputs of the whole images."""
        chance = generator_for(self.plan.seed, "input error", scale)
        errors = [
            F.mse_loss(self._degraded(padded, chance)[:, BORDER:-BORDER, BORDER:-BORDER], levels[scale])
            for variants, levels in zip(inputs, self.pyramid, strict=True)
            for padded in variants
        ]
        return float(torch.stack(errors).mean())

    # -- files ---------------------------------------------------------------------------------------------

    def _save(
        self,
        scale: int,
        iteration: int,
        sums: Tensor,
        optimizers: Sequence[torch.optim.Optimizer],
        seconds: float,
    ) -> None:
        before = {int(row[0]): int(row[1]) for row in self.rows if row[0] < scale}  # the last iteration of each
        model = {
            f"{kind}.{k}.{key}": value
            for kind, nets in (("critic", self.critics), ("generator", self.generators))
            for k, net in enumerate(nets)
            for key, value in net.state_dict().items()
        }
        state = {
            "rows": torch.tensor(self.rows, dtype=torch.float64),
            "inputs": torch.tensor(self.input_errors).double(),
            "iteration": torch.tensor(iteration),
            "sums": sums,
        }
        for name, optimizer in zip(("critic", "generator"), optimizers, strict=True):
            state |= {f"{name}.{key}": value for key, value in checkpoints.optimizer_tensors(optimizer).items()}
        step = sum(before.values()) + iteration
        checkpoints.save(self.work, Checkpoint(step, seconds, self.plan.fingerprint(), model, state))
        self._log()

    def _load(self) -> Checkpoint | None:
        saved, messages = checkpoints.load(self.work)
        for message in messages:
            self.watcher.note(message)
        if saved is None:
            return None
        checkpoints.check_fingerprint(saved, self.plan.fingerprint(), self.work)
        self.rows = [tuple(row) for row in saved.state["rows"].reshape(-1, len(COLUMNS)).tolist()]
        self.input_errors = saved.state["inputs"].tolist()
        for scale in range(len(self.input_errors)):
            blank = torch.Generator()
            critic = discriminator(self.plan.widths[scale], blank)
            mender = Generator(self.plan.widths[scale], blank, span=self.plan.span)
            for kind, net in (("critic", critic), ("generator", mender)):
                prefix = f"{kind}.{scale}."
                net.load_state_dict(
                    {key.removeprefix(prefix): value for key, value in saved.model.items() if key.startswith(prefix)}
                )
            self._append(critic, mender)
        return saved

    def _write(self, half: bool) -> str:
        """The discriminators, BatchNorm folded in -> the hash of the file."""
        tensors = {
            f"{k}.{key}": value.detach().cpu()
            for k, critic in enumerate(self.critics)
            for key, value in critic.state_dict().items()
        }
        folded: dict[str, Tensor] = {}
        for k, layers in enumerate(format_.fold(tensors, str(self.work))):
            for key, (weight, bias) in zip(format_.KEYS, layers, strict=True):
                name = f"{k}.{key}" if key == "tail" else f"{k}.{key}.conv"
                dtype = torch.float16 if half else torch.float32
                folded |= {f"{name}.weight": weight.to(dtype).contiguous(), f"{name}.bias": bias.to(dtype)}
        results = self._results()
        notes = {
            "format": format_.FORMAT,
            "range": "-1..1",
            "task": self.plan.task,
            "degradation": self.plan.degradation or "none",
            "seed_images": json.dumps([{"name": name, "sha256": sha256} for name, sha256 in self.plan.images]),
            "scales": json.dumps([result.size for result in results]),
            "widths": json.dumps(self.plan.widths),
            "iterations": json.dumps([result.iterations for result in results]),
            "inputs": self.plan.inputs,
            "span": f"{self.plan.span:g}",
            "quality": self.plan.quality_name,
            "settings": json.dumps(asdict(self.plan.quality)),
            "seed": str(self.plan.seed),
            "veridical": __version__,
        }
        with storage(self.to, last_good=checkpoints.newest(self.work)):
            files.write(self.to, folded, notes)
        return hashlib.sha256(self.to.read_bytes()).hexdigest()

    def _results(self) -> list[ScaleResult]:
        results = []
        for scale, width in enumerate(self.plan.widths):
            last = [row for row in self.rows if row[0] == scale][-1]
            results.append(
                ScaleResult(
                    self.plan.sizes[0][scale],
                    width,
                    int(last[1]),
                    last[2],
                    _psnr(last[3]),
                    _psnr(self.input_errors[scale]),
                )
            )
        return results

    def _log(self) -> None:
        path = self.run_folder / "training.csv"
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for scale, iteration, *values in self.rows:
            writer.writerow([int(scale) + 1, int(iteration), *(f"{value:.6g}" for value in values)])
        with storage(path, last_good=checkpoints.newest(self.work)):
            atomic_write(path, text.getvalue().encode())

    @torch.no_grad()
    def _draw_picture(self, path: Path, tile: int = 144) -> None:
        """A column for each scale of the first image: the seed image, what the generator was given, what it made, and
        where the discriminator (as it is used in the loss) finds it wanting. Middle parts of 1:1 where it is large."""
        columns = []
        for scale, critic in enumerate(self.critics):
            sharp = self.pyramid[0][scale]
            chance = generator_for(self.plan.seed, "picture", scale)
            wide = self._degraded(self._inputs(scale, variants=1)[0][0], chance)[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
            critic.eval()
            mended = self.generators[scale].eval()(self._on_device([wide]))
            edge = [F.pad(each[None], (REACH,) * 4, mode="reflect") for each in (sharp, mended[0].cpu())]
            scores = [critic(each.to(self.device))[0, 0].cpu() for each in edge]
            less = scores[0] - scores[1]
            less = (less / less.abs().quantile(0.99).clamp(min=1e-6)).expand(3, -1, -1)
            degraded = wide[:, REACH:-REACH, REACH:-REACH]
            columns.append(torch.cat([_tile(each, tile) for each in (sharp, degraded, mended[0].cpu(), less)], 1))
        levels = torch.cat(columns, 2).add(1).mul(127.5).clamp(0, 255).round().byte()
        file = io.BytesIO()
        Image.fromarray(levels.permute(1, 2, 0).numpy()).save(file, format="PNG")
        with storage(path, last_good=checkpoints.newest(self.work)):
            atomic_write(path, file.getvalue())


def _steady(before: list[float], after: list[float]) -> bool:
    """Whether a mean has stopped changing, by more than what the iterations scatter."""
    first, second = np.mean(before), np.mean(after)
    return bool(abs(second - first) <= STEADY * max(abs(first), abs(second)))


def _psnr(squared_error: float) -> float:
    """dB, of images in [-1, 1]."""
    return 10 * math.log10(4 / max(squared_error, 1e-12))


def _mirrored(image: Tensor) -> Tensor:
    return pad(image[None], (BORDER,) * 4, "reflect")[0]


def _shrunk(image: Tensor, size: tuple[int, int]) -> Tensor:
    """By Lanczos's filter, as the paper does: (3, H, W) in [0, 1] -> (3, h, w) in [-1, 1]."""
    if tuple(image.shape[1:]) != size:
        planes = [
            Image.fromarray(plane.numpy(), mode="F").resize(size[::-1], Image.Resampling.LANCZOS) for plane in image
        ]
        image = torch.from_numpy(np.stack([np.asarray(plane) for plane in planes]))
    return 2 * image - 1


def _tile(image: Tensor, side: int) -> Tensor:
    """(3, H, W) -> (3, side, side): the middle, enlarged by whole pixels where it is small."""
    times = max(1, math.ceil(side / min(image.shape[1:])))
    image = image.repeat_interleave(times, 1).repeat_interleave(times, 2)
    top, left = ((length - side) // 2 for length in image.shape[1:])
    return image[:, top : top + side, left : left + side]
