"""What the recipes ask of a machine at full scale: python -m experiments.work [RECIPE ...] [--tflops 10]

Counted, not measured: the operations (two for a multiply-add) of convolutions, matrix products and attention, in the
model and in the loss, forward and backward, for one crop on torch's meta device, where nothing is computed; times
batch, steps and trainings. Evaluation, sorting, optimiser and the making of batches are not counted.

The days are an assumption: the operations over --tflops, the rate at which one device is taken to do them. To measure
instead, on the machine that will train: veridical estimate RECIPE --data FOLDER --device cuda.
"""

import argparse
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

import veridical
from veridical.core.errors import VeridicalError
from veridical.degradations import TASKS, degradation
from veridical.losses import at_task, loss
from veridical.training.recipe import Recipe, make_recipe
from veridical.training.recipes import named_recipe, recipe_names

DAY = 86_400


def _backward(gradient: list[int], image: list[int], weight: list[int], *rest: Any, **_: object) -> int:
    """Of a convolution: as much as forward for each of image and weights that is asked for. torch's own formula counts
    all pairs of channels where a convolution has groups, nine times too many for Restormer."""
    transposed, output_mask = bool(rest[4]), rest[7]
    asked = sum(map(bool, output_mask[:2]))
    return asked * conv_flop_count(image, weight, gradient, transposed=transposed)


def counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _backward})


def recipe(name: str) -> Recipe:
    """At full scale."""
    return make_recipe(named_recipe(name, "full"))


def models(of: Recipe) -> list[str]:
    """Specs of what is trained: where training goes on, those of the recipe that it goes on from."""
    if of.init is None:
        return list(of.models.values()) if of.models else [of.model.name]
    before, row = PurePosixPath(str(of.init)).parts[-2:]
    start = recipe(before)
    if not start.models:
        return models(start)
    return [spec for name, spec in start.models.items() if row.startswith(name)]


def of_model(spec: str, channels: int, crop: int, scale: int) -> int:
    """Operations of a training step of one crop, without the loss."""
    # DDNet asks autocast for the device's name, and there is none for meta.
    with torch.device("cpu" if spec.startswith("ddnet") else "meta"):
        built = veridical.model(spec, channels=channels).train()
        image = torch.zeros(1, channels, crop // scale, crop // scale)
    with counter() as counted:
        built(image).sum().backward()
    return counted.get_total_flops()


def of_loss(spec: str, channels: int, crop: int) -> int | None:
    """The same of a loss; None when its weights are not at hand."""
    try:
        built = loss(spec).to("meta").train()
    except (VeridicalError, OSError):
        return None
    target = torch.zeros(1, channels, crop, crop, device="meta")
    prediction: Tensor = torch.zeros_like(target).requires_grad_()
    with counter() as counted:
        built(prediction, target).backward()
    return counted.get_total_flops()


def row(name: str, tflops: float) -> str:
    """One recipe as a line of the table."""
    of = recipe(name)
    training = of.training
    task = TASKS[of.task]
    shrunk = degradation(of.degradation).scale if of.degradation else 1
    total, trainings, each, unknown = 0.0, 0, [], 0
    for model in models(of):
        base = of_model(model, of.model.channels, training.crop, shrunk)
        for spec in of.losses.values():
            found = of_loss(at_task(spec, task.learned), of.model.channels, training.crop)
            unknown += found is None
            trainings += 1
            each.append((base + (found or 0)) * training.batch_size / 1e12)
            total += each[-1] * training.steps
    step = f"{min(each):.2g}" if f"{min(each):.2g}" == f"{max(each):.2g}" else f"{min(each):.2g} to {max(each):.2g}"
    without = f", without the loss of {unknown}" if unknown else ""
    return (
        f"| `{name}` | {trainings} of {training.steps:,} steps | {step}{without} | {total / 1e6:.2g} | "
        f"{total / tflops / DAY:.2g} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.work", description="The work of the recipes.")
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="those alone; all when left out")
    parser.add_argument("--tflops", type=float, default=10.0, help="assumed of one device: 10^12 operations a second")
    asked = parser.parse_args()
    days = f"days of a device of {asked.tflops:g} TFLOP/s"
    print(f"| recipe | trainings | 10^12 operations a step | 10^18 in all | {days} |")
    print("|---|---|---|---|---|")
    for name in asked.recipes or recipe_names():
        print(row(name, asked.tflops), flush=True)


if __name__ == "__main__":
    main()
