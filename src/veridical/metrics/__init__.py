"""The table of metrics: a measure with its direction, unit and range, applied as papers do (RGB or Y, border cut)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from veridical.core.catalog import Term, call, lookup, options_of, parse_one, summary_of, unknown
from veridical.core.colour import luma, luma_studio
from veridical.core.image import check_pair
from veridical.core.options import check_choice, check_whole
from veridical.distances import dists_needs, lpips_needs
from veridical.metrics.full_reference import (
    build_cw_ssim,
    build_dists,
    build_fsim,
    build_gmsd,
    build_lpips,
    build_ms_ssim,
    build_pieapp,
    build_psnr,
    build_ssim,
    build_vif,
)
from veridical.metrics.no_reference import (
    build_brisque,
    build_laplacian_variance,
    build_niqe,
    build_nrqm,
    build_pi,
    build_sharpness_q,
    pi_needs,
)
from veridical.metrics.parts import weights_needed

EXAMPLE = "psnr(channel=y)"


@dataclass(frozen=True)
class MetricEntry:
    """One line of the table.

    Attributes: build: keyword options -> module (prediction, target) -> (N); its docstring describes the metric.
                label: as papers print it. higher_is_better, unit, range: of its values. source: who defined it.
                reference: False when the target is not looked at. needs: options -> names of pretrained weights.
                channel, border: what `metric` takes unless it is told.
    """

    build: Callable[..., nn.Module]
    label: str
    higher_is_better: bool
    range: str
    source: str
    unit: str = ""
    reference: bool = True
    needs: Callable[[Mapping[str, Any]], tuple[str, ...]] = lambda options: ()
    channel: str = "rgb"
    border: int = 0

    @property
    def summary(self) -> str:
        return summary_of(self.build)


METRICS: dict[str, MetricEntry] = {
    "psnr": MetricEntry(
        build_psnr,
        "PSNR",
        higher_is_better=True,
        range="[0, inf]",
        source="10 log10(1 / mean squared error)",
        unit="dB",
    ),
    "ssim": MetricEntry(
        build_ssim,
        "SSIM",
        higher_is_better=True,
        range="[-1, 1]",
        source="Wang et al. 2004, doi:10.1109/TIP.2003.819861",
    ),
    "ms-ssim": MetricEntry(
        build_ms_ssim,
        "MS-SSIM",
        higher_is_better=True,
        range="[0, 1]",
        source="Wang, Simoncelli & Bovik 2003, doi:10.1109/ACSSC.2003.1292216",
    ),
    "cw-ssim": MetricEntry(
        build_cw_ssim,
        "CW-SSIM",
        higher_is_better=True,
        range="[0, 1]",
        source="Sampat et al. 2009, doi:10.1109/TIP.2009.2025923",
    ),
    "vif": MetricEntry(
        build_vif,
        "VIF",
        higher_is_better=True,
        range="[0, inf)",
        source="Sheikh & Bovik 2006, doi:10.1109/TIP.2005.859378",
    ),
    "gmsd": MetricEntry(
        build_gmsd,
        "GMSD",
        higher_is_better=False,
        range="[0, 0.5]",
        source="Xue et al. 2014, arXiv:1308.3052",
    ),
    "fsim": MetricEntry(
        build_fsim,
        "FSIM",
        higher_is_better=True,
        range="[0, 1]",
        source="Zhang et al. 2011, doi:10.1109/TIP.2011.2109730",
    ),
    "lpips": MetricEntry(
        build_lpips,
        "LPIPS",
        higher_is_better=False,
        range="[0, inf)",
        source="Zhang et al. 2018, arXiv:1801.03924",
        needs=lpips_needs,
    ),
    "dists": MetricEntry(
        build_dists,
        "DISTS",
        higher_is_better=False,
        range="[0, 1.13)",
        source="Ding et al. 2020, arXiv:2004.07728",
        needs=dists_needs,
    ),
    "pieapp": MetricEntry(
        build_pieapp,
        "PieAPP",
        higher_is_better=False,
        range="about 0 up",
        source="Prashnani et al. 2018, arXiv:1806.02067",
        needs=weights_needed("pieapp"),
    ),
    "sharpness-q": MetricEntry(
        build_sharpness_q,
        "Sharpness Q",
        higher_is_better=True,
        range="[0, inf)",
        source="Zhu & Milanfar 2010, doi:10.1109/TIP.2010.2052820",
        reference=False,
    ),
    "brisque": MetricEntry(
        build_brisque,
        "BRISQUE",
        higher_is_better=False,
        range="about 0 to 100",
        source="Mittal, Moorthy & Bovik 2012, doi:10.1109/TIP.2012.2214050",
        reference=False,
        needs=weights_needed("brisque"),
    ),
    "niqe": MetricEntry(
        build_niqe,
        "NIQE",
        higher_is_better=False,
        range="[0, inf)",
        source="Mittal, Soundararajan & Bovik 2013, doi:10.1109/LSP.2012.2227726",
        reference=False,
        needs=weights_needed("niqe"),
    ),
    "nrqm": MetricEntry(
        build_nrqm,
        "Ma",
        higher_is_better=True,
        range="about 0 to 10",
        source="Ma et al. 2017, arXiv:1612.05890",
        reference=False,
        needs=weights_needed("nrqm"),
    ),
    "pi": MetricEntry(
        build_pi,
        "PI",
        higher_is_better=False,
        range="about 0 to 10",
        source="Blau et al. 2018, arXiv:1809.07517",
        reference=False,
        needs=pi_needs,
        channel="y",
        border=4,
    ),
    "laplacian-variance": MetricEntry(
        build_laplacian_variance,
        "Laplacian variance",
        higher_is_better=True,
        range="[0, 1040400]",
        source="Pech-Pacheco et al. 2000, doi:10.1109/ICPR.2000.903548",
        reference=False,
    ),
}
ALIASES = {"ma": "nrqm"}
"""Other names of a metric in the literature."""


class Metric(nn.Module):
    """metric(prediction, target) -> (N) float32, one value per image, without a graph.

    Shapes: (N, 1 or 3, H, W) x 2, float in [0, 1].
    Attributes: name (the spec that makes it), higher_is_better, unit, range, reference, label, min_size, weights.
    """

    def __init__(self, name: str, entry: MetricEntry, measure: nn.Module, *, channel: str, border: int) -> None:
        super().__init__()
        self.name, self.channel, self.border = name, channel, border
        self.label, self.unit, self.range = entry.label, entry.unit, entry.range
        self.higher_is_better, self.reference = entry.higher_is_better, entry.reference
        self.measure = measure.eval()
        self.weights: tuple[str, ...] = ()

    @property
    def min_size(self) -> int:
        """The least height and width, in px, of the whole image."""
        return int(self.measure.min_size) + 2 * self.border  # type: ignore[arg-type]

    @torch.no_grad()
    def forward(self, prediction: Tensor, target: Tensor | None = None) -> Tensor:
        if target is None:
            if self.reference:
                raise ValueError(f"the metric {self.name!r} compares with a target: call metric(prediction, target).")
            target = prediction
        check_pair(prediction, target, f"the metric {self.name!r}", min_size=self.min_size, channels=(1, 3))
        prediction, target = (self._view(image) for image in (prediction, target))
        return self.measure(prediction, target).float()

    def _view(self, image: Tensor) -> Tensor:
        if self.border:
            image = image[:, :, self.border : -self.border, self.border : -self.border]
        return CHANNELS[self.channel](image)


Channel = Literal["rgb", "y", "luma"]
CHANNELS: dict[str, Callable[[Tensor], Tensor]] = {"rgb": lambda image: image, "y": luma_studio, "luma": luma}


def metric(spec: str, *, channel: Channel | None = None, border: int | None = None, **options: Any) -> Metric:
    """Make a metric from its name or spec: "ssim", "psnr(channel=y, border=4)", "lpips(net=vgg)".

    >>> metric("psnr")(torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 0.1)).round().tolist()
    [20.0, 20.0]

    Args:   channel: "rgb" (as the image comes), "y" (MATLAB's studio-range Y, as super-resolution papers) or "luma"
            (full-range BT.601). border: px cut from each side first. Both are "rgb" and 0, for pi "y" and 4, unless
            given. options: of the metric itself.
    Errors: UnknownName for a name or an option that there is not, with the nearest one; WeightsMissing.
    """
    term = parse_one(spec, "metric", EXAMPLE)
    name, given = ALIASES.get(term.name, term.name), {**term.options, **options}
    if channel is not None:
        given["channel"] = channel
    if border is not None:
        given["border"] = border
    entry = lookup(METRICS, name, "metric")
    shown = Term(name, options=given).label
    known = [*options_of(entry.build), "channel", "border"]
    for option in given:
        if option not in known:
            raise unknown(f"option of metric {name!r}", option, known)
    chosen, cut = given.pop("channel", entry.channel), given.pop("border", entry.border)
    check_choice(f"channel of {name}", chosen, CHANNELS)
    check_whole(f"border of {name}", cut, low=0)
    made = Metric(shown, entry, call(entry.build, given, f"metric {name!r}"), channel=chosen, border=cut)
    made.weights = entry.needs(given)
    return made


def needs(spec: str) -> tuple[str, ...]:
    """Names of the pretrained weights that a metric spec needs, without building it."""
    term = parse_one(spec, "metric", EXAMPLE)
    return lookup(METRICS, ALIASES.get(term.name, term.name), "metric").needs(term.options)


__all__ = ["METRICS", "Metric", "MetricEntry", "metric", "needs"]
