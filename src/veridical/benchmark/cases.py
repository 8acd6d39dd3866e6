"""What is measured: ours, beside whom, on what, and what it has to reach."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from veridical.benchmark import naive
from veridical.benchmark.peers import (
    VGG_TAPS,
    Peer,
    brisque_of_piq,
    cw_ssim_of_pyiqa,
    dists_of,
    fsim_of,
    gmsd_of,
    laplacian_of_opencv,
    less,
    lpips_of,
    niqe_of_pyiqa,
    ours,
    pieapp_of,
    piq_content,
    piq_style,
    plain,
    psnr_of,
    ssim_of,
    variation_of,
    vif_of,
)
from veridical.benchmark.supply import Supply

TRAINING = (4, 3, 256, 256)
EVALUATION = (1, 3, 512, 768)  # a photograph of Kodak's


@dataclass(frozen=True)
class Target:
    """What ours has to reach: at most this multiple of the fastest peer's time and of the leanest peer's memory.

    Attributes: against: only this peer counts.
    """

    time: float | None = None
    memory: float | None = None
    against: str = ""


@dataclass(frozen=True)
class Case:
    """One line of the benchmark.

    Attributes: spec: ours. metric: ours is a metric, measured without a gradient; else a loss, forward and backward.
                weights: the file of its network, where it does not ask features/weights.py for one.
                peers: the plainest form, which the roofline counts, is the one called `counted`, or there is none where
                ours does no more than look at each pixel. shape: by default that of training or of evaluation.
    """

    spec: str
    peers: tuple[Peer, ...]
    metric: bool = False
    weights: Callable[[Supply], Path] | None = None
    target: Target = field(default_factory=Target)
    counted: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return EVALUATION if self.metric else TRAINING

    @property
    def name(self) -> str:
        return f"metric {self.spec}" if self.metric else self.spec


NAIVE = "naive"
PACKAGES = {
    "lpips": "lpips",
    "piq": "piq",
    "piqa": "piqa",
    "torchmetrics": "torchmetrics",
    "pytorch-msssim": "pytorch_msssim",
    "kornia": "kornia",
    "DISTS-pytorch": "DISTS_pytorch",
    "pyiqa": "pyiqa",
    "transformers": "transformers",
    "opencv-python-headless": "cv2",
}  # what pip calls it -> what Python calls it
WITHOUT_DEPENDENCIES = ("lpips", "piq", "piqa", "pyiqa")  # they ask for torchvision, which is not needed here


def _of(build, packages, *arguments, wrap=lambda build: build, notes=None, **options) -> tuple[Peer, ...]:
    return tuple(
        Peer(name, wrap(build(PACKAGES[name], *arguments, **options)), name, note=(notes or {}).get(name, ""))
        for name in packages
    )


SSIM = ("pytorch-msssim", "piqa", "piq", "torchmetrics", "kornia")
BORDER = {"torchmetrics": "reflects the border and counts it in"}
MS_SSIM = SSIM[:-1]  # kornia's mixes it with L1, at widths of its own
DISTS = ("DISTS-pytorch", "piq", "torchmetrics", "pyiqa")
METRIC_DISTS = ("DISTS-pytorch", "torchmetrics", "pyiqa")  # piq makes large images smaller first
PSNR = ("piq", "piqa", "torchmetrics", "kornia")
LPIPS = ("lpips", "torchmetrics", "piqa", "pyiqa")
LPIPS_VGG = ("lpips", "piq", "torchmetrics", "piqa", "pyiqa")

ROUNDS = "rounds its luma to whole levels"
GMSD_NOTES = {"piqa": "divides by one pixel less", "pyiqa": f"{ROUNDS}; leaves an odd row out"}
CORNER = "shrinks in blocks from the corner, by a factor rounded half to even"
SATURATED = "counts the rounding errors of parts that are all white or black"
FSIM_NOTES = {"piq": CORNER, "pyiqa": CORNER, "piqa": "shrinks by a factor rounded down"}

_VGG = tuple(index for index, _ in VGG_TAPS.values())

CASES: tuple[Case, ...] = (
    Case("l1", (Peer("torch", plain(naive.absolute)),)),
    Case("l2", (Peer("torch", plain(naive.squared)),)),
    Case("charbonnier", (Peer(NAIVE, plain(naive.charbonnier)),)),
    Case("psnr", (Peer(NAIVE, plain(naive.psnr)),)),
    Case("edge", (Peer(NAIVE, plain(naive.edge)),), counted=NAIVE),
    Case("gradient", (Peer(NAIVE, plain(naive.gradient)),)),
    Case("focal-frequency", (Peer(NAIVE, plain(naive.focal_frequency)),), counted=NAIVE),
    Case("tv", (*_of(variation_of, ("kornia", "piqa")), Peer(NAIVE, plain(naive.total_variation)))),
    Case("sharpness-q", (Peer(NAIVE, plain(naive.sharpness_loss)),)),
    Case("ssim", _of(ssim_of, SSIM, wrap=less, notes=BORDER), target=Target(0.3, 0.7), counted="pytorch-msssim"),
    Case(
        "ms-ssim",
        _of(ssim_of, MS_SSIM, wrap=less, notes=BORDER, scales=True),
        target=Target(0.3, 0.7),
        counted="pytorch-msssim",
    ),
    Case("spl-a", (Peer(NAIVE, naive.spl),), counted=NAIVE),
    Case(
        "vgg16",
        (Peer("piq", piq_content, "piq"), Peer("BasicSR-style", naive.perceptual("vgg16", _VGG))),
        target=Target(0.5, 0.6),
        counted="BasicSR-style",
    ),
    Case("lpips(net=vgg)", _of(lpips_of, LPIPS_VGG, "vgg"), target=Target(0.5, 0.6), counted="lpips"),
    Case("lpips(net=alex)", _of(lpips_of, LPIPS, "alex"), target=Target(0.7, 0.8), counted="lpips"),
    Case("lpips(net=squeeze)", _of(lpips_of, LPIPS, "squeeze"), target=Target(0.7, 0.8), counted="lpips"),
    Case("dists", _of(dists_of, DISTS), target=Target(0.5, 0.6), counted="DISTS-pytorch"),
    Case("style", (Peer("piq", piq_style, "piq"), Peer(NAIVE, naive.style)), counted=NAIVE),
    Case(
        "pdl",
        (
            Peer("ours, not sorted", ours("vgg16(taps=conv4_3, distance=l1)"), same=False),
            Peer(NAIVE, naive.pdl),
        ),
        target=Target(time=1.1, against="ours, not sorted"),
        counted=NAIVE,
    ),
    Case(
        "contextual",
        (Peer("n x n, naive", naive.contextual, constant=True, note="without our term that makes it 0 at the target"),),
        target=Target(time=0.5),
        counted="n x n, naive",
    ),
    Case(
        "cobi",
        (Peer("n x n, naive", naive.cobi, constant=True, note="draws positions of its own"),),
        counted="n x n, naive",
    ),
    Case(
        "fmlc",
        (Peer("transformers", naive.fmlc, "transformers"),),
        weights=Supply.clip_tower,
        counted="transformers",
    ),
    Case(
        "mdf",
        (Peer("as released", naive.mdf),),
        weights=Supply.mdf,
        target=Target(0.35, 0.35),
        counted="as released",
    ),
    Case("psnr", _of(psnr_of, PSNR), metric=True, target=Target(0.7)),
    Case("ssim", _of(ssim_of, SSIM, notes=BORDER), metric=True, target=Target(0.7), counted="pytorch-msssim"),
    Case(
        "ms-ssim",
        _of(ssim_of, MS_SSIM, notes=BORDER, scales=True),
        metric=True,
        target=Target(0.7),
        counted="pytorch-msssim",
    ),
    Case("cw-ssim", (Peer("pyiqa", cw_ssim_of_pyiqa, "pyiqa", note=ROUNDS),), metric=True),
    Case("vif", _of(vif_of, ("pyiqa",), notes={"pyiqa": f"{ROUNDS}; in float32"}), metric=True),
    Case("vif(variant=pixel)", _of(vif_of, ("piq", "torchmetrics")), metric=True, counted="piq"),
    Case("gmsd", _of(gmsd_of, ("piq", "piqa", "pyiqa"), notes=GMSD_NOTES), metric=True, counted="piq"),
    Case("fsim", _of(fsim_of, ("piq", "piqa", "pyiqa"), notes=FSIM_NOTES), metric=True, counted="piq"),
    Case("pieapp", _of(pieapp_of, ("piq", "pyiqa")), metric=True, counted="piq"),
    Case("lpips", _of(lpips_of, LPIPS, "alex"), metric=True, target=Target(0.7), counted="lpips"),
    Case("lpips(net=vgg)", _of(lpips_of, LPIPS_VGG, "vgg"), metric=True, target=Target(0.7), counted="lpips"),
    Case("dists", _of(dists_of, METRIC_DISTS), metric=True, target=Target(0.7), counted="DISTS-pytorch"),
    Case("sharpness-q", (Peer(NAIVE, plain(naive.sharpness_metric)),), metric=True),
    Case("brisque", (Peer("piq", brisque_of_piq, "piq", note="in float32"),), metric=True),
    Case("niqe", (Peer("pyiqa", niqe_of_pyiqa, "pyiqa", note=SATURATED),), metric=True),
    Case(
        "laplacian-variance",
        (Peer("OpenCV", laplacian_of_opencv, "opencv-python-headless", note="its grey is a level off here and there"),),
        metric=True,
    ),
)
