"""What a loss sees: its value for distortions of equal PSNR, and the image that descending it leads to.

The first is figure 17 of the MDF paper (Mustafa et al. 2022), for any loss. The second takes the pixels themselves for
parameters: no network stands between the loss and the image, so what is in the picture is the loss's own doing.

Writes a folder (probe.json and images/), which `probe_page` reads.
"""

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from veridical import __version__
from veridical.comparison.distortions import DISTORTIONS, Distorted, OutOfReach, distort
from veridical.comparison.evaluate import quantise, score_image
from veridical.comparison.folder import slugs, write_json
from veridical.comparison.pictures import interesting
from veridical.core.errors import BadOption, DataError, MissingExtra, VeridicalError, WeightsMissing
from veridical.core.files import read_image, write_image
from veridical.degradations import degradation
from veridical.losses import Loss, needs
from veridical.losses import loss as make_loss
from veridical.measures import psnr
from veridical.metrics import Metric, metric
from veridical.training.device import choose_device
from veridical.training.photographs import EVALUATE, demo_photographs

Progress = Callable[[int, int, str], None]
"""progress(done, all, name of the loss)."""

DEMO_IMAGE = "chelsea"  # fur, eyes, a smooth background: texture, edges and flat parts in one crop
METRICS = ("psnr", "ssim", "lpips")


class NothingToProbe(VeridicalError):
    """Every loss had to be left out; the message says why of each."""


@dataclass(frozen=True)
class Settings:
    """image: a file, or the demo's photograph. crop: its side in px, where there is most detail. psnr_db: of the
    distortions. start: the degradation that descending begins from. steps, lr: of Adam on the pixels."""

    image: Path | None = None
    crop: int = 192
    psnr_db: tuple[float, ...] = (24.0, 28.0, 32.0)
    start: str = "gaussian-blur(sigma_px=2)"
    steps: int = 150
    lr: float = 0.02
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, least in (("crop", 16), ("steps", 0)):
            if getattr(self, name) < least:
                raise BadOption(f"{name} of a probe must be at least {least}; got {getattr(self, name)}.")
        if not self.psnr_db or not all(0 < value < 80 for value in self.psnr_db):
            raise BadOption(f"the PSNRs of a probe must be numbers of dB between 0 and 80; got {self.psnr_db}.")
        if not 0 < self.lr <= 1:
            raise BadOption(f"lr of a probe must be above 0 and at most 1; got {self.lr}.")


@dataclass
class Descent:
    """How an image changed while a loss was descended on its pixels."""

    image: Tensor
    gradient: Tensor | None = None
    values: list[float] = field(default_factory=list)
    psnr_db: list[float] = field(default_factory=list)
    stopped: str = ""


def probe(specs: Sequence[str], out: Path, settings: Settings, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Probe each loss and write probe.json and images/ into `out`; returns what probe.json holds.

    Losses whose weights or extras cannot be had, or that need a larger crop, are named in "left_out" and left out. An
    automatic weight is measured at the start of the descent. A loss that learns does so while it is descended, on this
    one image, and is looked at afterwards.
    Errors: UnknownName for a loss that there is not; DataError for an image that cannot be used; NothingToProbe when
    every loss is left out.
    """
    built, left_out = _build(specs, settings.crop)
    if not built:
        reasons = "\n".join(f"{each['name']}: {each['reason']}" for each in left_out)
        raise NothingToProbe(f"none of the losses can be probed:\n{reasons}")
    device = choose_device(settings.device)
    truth, about = _truth(settings)
    start = _start(truth, settings)
    metrics, notes = _metrics()
    distorted, levels = _distort(truth, settings)
    names = slugs([*built])
    images = out / "images"
    for name, image in {
        "truth": truth,
        "start": start,
        **{_file(*key): d.image for key, d in distorted.items()},
    }.items():
        write_image(images / f"{name}.png", image)

    total = len(built) * (settings.steps + 1)
    found = []
    for number, (spec, one) in enumerate(built.items()):
        done = number * (settings.steps + 1)
        progress(done, total, spec)
        one = one.to(device)
        weights = one.calibrate([(start[None].to(device), truth[None].to(device))]) if one.batches_to_calibrate else {}
        notes += [f"The automatic weight of {term} came to {found:g}." for term, found in weights.items()]
        descent = None
        if settings.steps:
            descent = descend(
                one,
                start.to(device),
                truth.to(device),
                steps=settings.steps,
                lr=settings.lr,
                on_step=lambda step, done=done, spec=spec: progress(done + step, total, spec),  # type: ignore[misc]
            )
        value = evaluator(one, truth.to(device))
        entry: dict[str, Any] = {
            "name": spec,
            "slug": names[spec],
            "weights": weights,
            "networks": one.weight_hashes,
            "random": one.random,
            "reference": one.reference,
            "learns": one.learns,
            "responses": {
                name: [
                    value(distorted[name, level].image.to(device)) if (name, level) in distorted else None
                    for level in settings.psnr_db
                ]
                for name in DISTORTIONS
            },
            "descent": None,
        }
        if descent is not None:
            reached = quantise(descent.image.cpu())
            write_image(images / f"{names[spec]}.png", reached)
            if descent.gradient is not None:
                write_image(images / f"{names[spec]}-gradient.png", picture_of(descent.gradient.cpu()))
            entry["descent"] = {
                "values": descent.values,
                "psnr_db": descent.psnr_db,
                "stopped": descent.stopped,
                "value_at_start": value(start.to(device)),
                "value_at_end": value(descent.image),
                "metrics": _measured(reached, truth, metrics),
            }
        found.append(entry)
        progress(done + settings.steps + 1, total, spec)
    if settings.steps and any(entry["learns"] for entry in found):
        notes.append("What learns did so while it was descended, on this one image; it is shown as it was at the end.")
    result = {
        "version": __version__,
        "command": _command(specs, settings),
        "image": about,
        "settings": {**vars(settings), "image": str(settings.image or DEMO_IMAGE), "psnr_db": list(settings.psnr_db)},
        "distortions": levels,
        "metrics": [one.name for one in metrics],
        "notes": notes,
        "start": _measured(quantise(start), truth, metrics),
        "losses": found,
        "left_out": left_out,
    }
    write_json(out / "probe.json", result)
    return result


# What goes in


def _build(specs: Sequence[str], crop: int) -> tuple[dict[str, Loss], list[dict[str, str]]]:
    for spec in specs:
        needs(spec)  # an unknown name is an error before anything is loaded
    built, left_out = {}, []
    for spec in dict.fromkeys(specs):
        try:
            one = make_loss(spec).eval()
        except (WeightsMissing, MissingExtra) as error:
            left_out.append({"name": spec, "reason": str(error).partition("\n")[0]})
            continue
        if one.min_size > crop:
            reason = f"it needs images of at least {one.min_size} px; the crop is {crop}."
            left_out.append({"name": spec, "reason": reason})
        else:
            built[spec] = one
    return built, left_out


def _truth(settings: Settings) -> tuple[Tensor, dict[str, Any]]:
    """The crop, (3, H, W) with 256 levels, and where it is from."""
    if settings.image is None:
        image = dict(demo_photographs()[1])[DEMO_IMAGE]
        name, credit = DEMO_IMAGE, EVALUATE[DEMO_IMAGE].credit
    else:
        image, name, credit = read_image(settings.image).pixels, settings.image.name, ""
    if min(image.shape[-2:]) < settings.crop:
        raise DataError(
            f"the image {name} is {image.shape[-1]}x{image.shape[-2]} px, smaller than the crop of {settings.crop}. "
            "Choose another image, or a smaller --crop."
        )
    box = interesting(image.permute(1, 2, 0).mul(255).round().byte().numpy(), settings.crop)
    crop = image[:, box.top : box.top + box.height, box.left : box.left + box.width].contiguous()
    return quantise(crop), {"name": name, "credit": credit, "left": box.left, "top": box.top, "size": settings.crop}


def _start(truth: Tensor, settings: Settings) -> Tensor:
    start = degradation(settings.start)(truth, torch.Generator().manual_seed(settings.seed))
    if start.shape != truth.shape:
        raise BadOption(f"--start {settings.start} changes the size of the image; name one that keeps it.")
    return start.clamp(0, 1)


def _metrics() -> tuple[list[Metric], list[str]]:
    made, lacking = [], []
    for name in METRICS:
        try:
            made.append(metric(name).eval())
        except WeightsMissing as error:
            lacking.append(f"{name} is not measured: {str(error).partition(chr(10))[0]}")
    return made, lacking


def _measured(image: Tensor, truth: Tensor, metrics: Sequence[Metric]) -> dict[str, float | None]:
    """None for the infinite PSNR of an image that is equal to the truth: JSON has no infinity."""
    values = score_image(image, truth, metrics, torch.device("cpu"))
    return {name: value if math.isfinite(value) else None for name, value in values}


def _command(specs: Sequence[str], settings: Settings) -> str:
    words = ["veridical", "probe", "--losses", ", ".join(specs)]
    for option in fields(Settings):
        value = getattr(settings, option.name)
        if value != option.default:
            text = ",".join(f"{each:g}" for each in value) if isinstance(value, tuple) else str(value)
            words += [f"--{option.name.removesuffix('_db')}", text]
    return shlex.join(words)


def _distort(truth: Tensor, settings: Settings) -> tuple[dict[tuple[str, float], Distorted], list[dict[str, Any]]]:
    """Every distortion at every PSNR that it reaches, and a description of all."""
    made: dict[tuple[str, float], Distorted] = {}
    levels = []
    for name, distortion in DISTORTIONS.items():
        about: list[dict[str, Any]] = []
        for psnr_db in settings.psnr_db:
            try:
                one = made[name, psnr_db] = distort(distortion, truth, psnr_db, seed=settings.seed)
                about.append({"psnr_db": one.psnr_db, "strength": one.said, "file": f"{_file(name, psnr_db)}.png"})
            except OutOfReach as error:
                about.append({"reason": str(error)})
        levels.append({"name": name, "text": distortion.text, "levels": about})
    return made, levels


def _file(name: str, psnr_db: float) -> str:
    return f"distorted-{name}-{psnr_db:g}db"


# What is done with it


def evaluator(loss: Loss, truth: Tensor) -> Callable[[Tensor], float]:
    """image (3, H, W) -> how much more the loss makes of it than of the truth itself, which is 0 for most losses. In
    evaluation mode, where a random loss has one draw."""
    loss.eval()
    prepared = loss.prepare(truth[None])
    with torch.no_grad():
        least = 0.0 if loss.reference and not loss.learns else loss(truth[None], prepared).item()

    def value(image: Tensor) -> float:
        loss.eval()
        with torch.no_grad():
            return loss(image[None], prepared).item() - least

    return value


def descend(
    loss: Loss,
    start: Tensor,
    truth: Tensor,
    *,
    steps: int,
    lr: float,
    on_step: Callable[[int], None] = lambda step: None,
) -> Descent:
    """Minimise the loss over the pixels of an image: Adam, its rate falling to 0 along a cosine, the image clamped to
    [0, 1] after each step. The loss is in training mode, so a random one draws anew.

    A loss that learns takes its own step after each of ours, as in a training.

    Adam divides by the gradient's own size, so one rate suits every loss; its eps is a thousandth of the first
    gradient's root mean square, so that numbers which are 0 but for rounding stay 0.
    """
    loss.train()
    image = start[None].clone().requires_grad_()
    target = truth[None]
    against = target if loss.random or loss.learns else loss.prepare(target)
    found = Descent(start)
    adam = torch.optim.Adam([image], lr=lr)
    for step in range(steps):
        adam.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        value = loss(image, against)
        (image.grad,) = torch.autograd.grad(value, image)
        if not (math.isfinite(value.item()) and bool(image.grad.isfinite().all())):
            found.stopped = f"the loss or its gradient was not finite at step {step}; the image before it is shown."
            break
        found.image = image.detach()[0].clone()
        found.values.append(value.item())
        found.psnr_db.append(psnr(found.image[None], target).item())
        if step == 0:
            found.gradient = image.grad[0].clone()
            adam.param_groups[0]["eps"] = max(1e-3 * image.grad.square().mean().sqrt().item(), 1e-20)
        adam.step()
        with torch.no_grad():
            image.clamp_(0, 1)
        if loss.learns:
            loss.learn(image.detach(), target)
        on_step(step + 1)
    else:
        found.image = image.detach()[0]
    loss.eval()
    return found


def picture_of(gradient: Tensor) -> Tensor:
    """Where a loss pulls: the gradient's length at each pixel, white at the strongest 0.5 %. (3, H, W) -> same."""
    length = gradient.square().sum(0, keepdim=True).sqrt()
    white = float(np.quantile(length.numpy(), 0.995)) or 1.0
    return (length / white).clamp(0, 1).expand(3, -1, -1)


def relative(responses: Mapping[str, Sequence[float | None]], level: int) -> dict[str, float | None]:
    """The responses at one PSNR over the mean of their sizes: 1 is as much as this loss makes of a distortion on the
    whole. Pixel losses that see the energy alone have 1 everywhere.

    >>> relative({"blur": [3.0], "noise": [1.0], "jpeg": [None]}, 0)
    {'blur': 1.5, 'noise': 0.5, 'jpeg': None}
    """
    values = {name: each[level] for name, each in responses.items()}
    sizes = [abs(value) for value in values.values() if value is not None]
    mean = sum(sizes) / len(sizes) if sizes else 0.0
    return {name: None if value is None or mean == 0 else value / mean for name, value in values.items()}
