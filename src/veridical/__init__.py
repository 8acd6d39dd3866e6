"""veridical: perceptual losses for image restoration, correct, fast, and compared on your own photographs.

>>> import torch, veridical
>>> loss = veridical.loss("0.84*ms-ssim(scales=3) + 0.16*l1")
>>> image = torch.rand(2, 3, 64, 64)
>>> loss(image, image).item()
0.0

Images are float tensors (N, C, H, W), RGB or Y, nominal [0, 1]. Importing this downloads, detects and prints nothing.
"""

from typing import Any

from torch import nn

from veridical import degradations, losses, metrics, models
from veridical.core.catalog import call, lookup, parse_one
from veridical.core.errors import VeridicalError
from veridical.degradations import DEGRADATIONS, TASKS, degradation
from veridical.losses import LOSSES, Loss, loss
from veridical.metrics import METRICS, metric
from veridical.models import MODELS

__version__ = "0.1.0"


def model(spec: str, **options: Any) -> nn.Module:
    """Make a restorer by its name in MODELS, or a spec such as "unet(levels=2)": (N, C, H, W) -> same, any size.

    Errors: UnknownName for a name or an option that there is not, with the nearest one.
    """
    term = parse_one(spec, "model", "unet(levels=2)")
    return call(lookup(MODELS, term.name, "model"), {**term.options, **options}, f"model {term.name!r}")


__all__ = [
    "DEGRADATIONS",
    "LOSSES",
    "METRICS",
    "MODELS",
    "TASKS",
    "Loss",
    "VeridicalError",
    "degradation",
    "degradations",
    "loss",
    "losses",
    "metric",
    "metrics",
    "model",
    "models",
]
