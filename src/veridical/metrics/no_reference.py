"""Builders of the metrics that look at one image alone; the table is in `metrics/__init__.py`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from veridical.core.options import check_choice
from veridical.features import weights as files
from veridical.measures import brisque, laplacian_variance, niqe, nrqm, perceptual_index, sharpness_q
from veridical.measures.brisque import LEAST_PX as BRISQUE_LEAST_PX
from veridical.measures.laplacian_variance import LEAST_PX as LAPLACIAN_LEAST_PX
from veridical.measures.niqe import LEAST_PX as NIQE_LEAST_PX
from veridical.measures.nrqm import LEAST_PX as NRQM_LEAST_PX
from veridical.measures.sharpness_q import PATCH, THRESHOLD, Variant
from veridical.metrics.parts import OfImage, weights_needed


def build_sharpness_q(*, variant: Variant = "singular") -> nn.Module:
    """Sharpness of the image alone, no reference; rewards ringing too."""
    check_choice("variant of sharpness-q", variant, THRESHOLD)
    return OfImage(partial(sharpness_q, variant=variant), PATCH)


def build_laplacian_variance() -> nn.Module:
    """Sharpness as the variance of the Laplacian, in squared levels of 255; no reference."""
    return OfImage(laplacian_variance, LAPLACIAN_LEAST_PX)


def build_brisque(*, weights: str | None = None) -> nn.Module:
    """Unnaturalness of the image alone, by statistics of its contrasts; no reference."""
    return OfImage(partial(brisque, regression=files.load("brisque", path=weights).tensors), BRISQUE_LEAST_PX)


def build_niqe(*, weights: str | None = None) -> nn.Module:
    """Distance of the statistics of an image's contrasts from natural ones; no reference."""
    return OfImage(partial(niqe, pristine=files.load("niqe", path=weights).tensors), NIQE_LEAST_PX)


def build_nrqm(*, weights: str | None = None) -> nn.Module:
    """Quality of a super-resolved image as people would score it; no reference."""
    return OfImage(partial(nrqm, model=files.load("nrqm", path=weights).tensors), NRQM_LEAST_PX)


def build_pi(*, niqe_weights: str | None = None, nrqm_weights: str | None = None) -> nn.Module:
    """Perceptual index ((10 - NRQM) + NIQE) / 2, by default on Y without its 4 px of border."""
    pristine, model = files.load("niqe", path=niqe_weights).tensors, files.load("nrqm", path=nrqm_weights).tensors
    return OfImage(partial(perceptual_index, pristine=pristine, model=model), max(NIQE_LEAST_PX, NRQM_LEAST_PX))


def pi_needs(options: Mapping[str, Any]) -> tuple[str, ...]:
    return weights_needed("niqe", "niqe_weights")(options) + weights_needed("nrqm", "nrqm_weights")(options)
