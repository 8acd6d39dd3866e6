"""How the peers are built and called, so that each computes what ours does.

Every builder takes the weights (see `Supply`) and returns (prediction, target) -> a number, or one for each image. A
peer is imported when it is built: one that is not installed, or that cannot be imported, is named and left out.
"""

import functools
import importlib
import importlib.metadata
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from veridical.benchmark.measure import Call
from veridical.benchmark.supply import Supply
from veridical.benchmark.trunks import trunks
from veridical.core.colour import luma
from veridical.distances.dists import dists_weights
from veridical.distances.lpips import linear_weights
from veridical.losses import loss, needs

Build = Callable[[Supply], Call]


@dataclass(frozen=True)
class Peer:
    """Somebody else's code for a case, or a plain form of ours.

    Attributes: name: as printed. build: see the top of this file. package: what has to be installed, or "" for ours.
                same: whether it computes the same number as ours. constant: but for a constant of the target, so
                that the gradients are the same. note: what a reader has to know of it.
    """

    name: str
    build: Build
    package: str = ""
    same: bool = True
    constant: bool = False
    note: str = ""


def version(package: str) -> str:
    """The version of an installed package, or "" """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def build(peer: Peer, supply: Supply, device: torch.device) -> Call:
    """The peer, ready to be called on that device.

    Errors: whatever it raises when it is not installed, or does not fit this machine; see `why`.
    """
    with torch.device(device):
        if not peer.package:
            return peer.build(supply)
        with trunks(supply.tensors), published(supply), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return peer.build(supply)


def why(error: BaseException) -> str:
    """One line that says why a peer could not be built or run."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


@contextmanager
def published(supply: Supply) -> Iterator[None]:
    """Inside, what the peers would fetch from the web when they are built comes from our copies of the same files."""

    def load(url: str, *_: object, **__: object) -> Any:
        if "PieAPP" in url:
            return dict(supply.tensors("pieapp"))
        if "dists" in url:
            return dict(zip(("alpha", "beta"), dists_as_published(), strict=True))
        net = re.search(r"v0\.1/(alex|vgg|squeeze)\.pth", url)
        layers = [weight[None, :, None, None] for weight in linear_weights(net[1] if net else "vgg")]
        return {f"lin{k}.model.1.weight": layer for k, layer in enumerate(layers)} if net else layers

    before = torch.hub.load_state_dict_from_url
    torch.hub.load_state_dict_from_url = load
    try:
        yield
    finally:
        torch.hub.load_state_dict_from_url = before


def dists_as_published() -> tuple[Tensor, Tensor]:
    """DISTS's alpha and beta, (1, 1475, 1, 1) each."""
    alpha, beta = (torch.cat(parts).view(1, -1, 1, 1) for parts in zip(*dists_weights(), strict=True))
    return alpha, beta


def _frozen(network: nn.Module) -> nn.Module:
    """No gradient to weights: as one uses a loss. Some peers leave their linear layers trainable."""
    return network.eval().requires_grad_(False)


def ours(spec: str, **options: Any) -> Build:
    """One of our own losses as a contestant, such as the same network without what is to be weighed."""

    def make(supply: Supply) -> Call:
        return loss(spec, **options, **supply.options(needs(spec))).to(torch.get_default_device())

    return make


def plain(function: Callable[..., Tensor], *args: Any, **options: Any) -> Build:
    """A function that needs no weights."""
    return lambda _: functools.partial(function, *args, **options)


# ---- structural similarity ----


def ssim_of(package: str, *, scales: bool = False) -> Build:
    """SSIM or MS-SSIM with an 11 px Gaussian window over whole windows only."""

    def make(_: Supply) -> Call:
        module = importlib.import_module(package)
        if package == "pytorch_msssim":
            function = module.ms_ssim if scales else module.ssim
            return lambda x, y: function(x, y, data_range=1.0, size_average=False)
        if package == "piq":
            if scales:
                return lambda x, y: module.multi_scale_ssim(x, y, reduction="none")
            return lambda x, y: module.ssim(x, y, downsample=False, reduction="none")
        if package == "piqa":
            return (module.MS_SSIM if scales else module.SSIM)(reduction="none")
        if package == "torchmetrics":
            image = importlib.import_module("torchmetrics.functional.image")
            function = (
                image.multiscale_structural_similarity_index_measure
                if scales
                else image.structural_similarity_index_measure
            )
            return lambda x, y: function(x, y, data_range=1.0, reduction="none")
        metrics = importlib.import_module("kornia.metrics")
        return lambda x, y: metrics.ssim(x, y, 11, padding="valid").mean((1, 2, 3))

    return make


def less(build_: Build) -> Build:
    """One minus it: what is minimised."""

    def make(supply: Supply) -> Call:
        similarity = build_(supply)
        return lambda x, y: 1 - similarity(x, y)

    return make


def cw_ssim_of_pyiqa(_: Supply) -> Call:
    """With the levels and orientations of the authors' example."""
    return importlib.import_module("pyiqa.archs.ssim_arch").CW_SSIM(level=6, ori=16)


def vif_of(package: str) -> Build:
    """The wavelets' of pyiqa; the shortcut in pixels of the others."""

    def make(_: Supply) -> Call:
        if package == "pyiqa":
            return importlib.import_module("pyiqa.archs.vif_arch").VIF()
        if package == "piq":
            piq = importlib.import_module("piq")
            return lambda x, y: piq.vif_p(x, y, reduction="none")
        fidelity = importlib.import_module("torchmetrics.functional.image").visual_information_fidelity
        return lambda x, y: fidelity(255 * luma(x), 255 * luma(y), reduction="none")

    return make


def gmsd_of(package: str) -> Build:
    def make(_: Supply) -> Call:
        if package == "piq":
            piq = importlib.import_module("piq")
            return lambda x, y: piq.gmsd(x, y, reduction="none")
        if package == "piqa":
            return importlib.import_module("piqa").GMSD(reduction="none")
        return importlib.import_module("pyiqa.archs.gmsd_arch").GMSD()

    return make


def fsim_of(package: str) -> Build:
    """FSIMc."""

    def make(_: Supply) -> Call:
        if package == "piq":
            piq = importlib.import_module("piq")
            return lambda x, y: piq.fsim(x, y, reduction="none")
        if package == "piqa":
            return importlib.import_module("piqa").FSIM(reduction="none")
        return importlib.import_module("pyiqa.archs.fsim_arch").FSIM()

    return make


def psnr_of(package: str) -> Build:
    def make(_: Supply) -> Call:
        if package == "torchmetrics":
            image = importlib.import_module("torchmetrics.functional.image")
            return lambda x, y: image.peak_signal_noise_ratio(x, y, data_range=1.0, reduction="none", dim=(1, 2, 3))
        if package == "kornia":
            return lambda x, y: importlib.import_module("kornia.metrics").psnr(x, y, 1.0)
        module = importlib.import_module(package)
        if package == "piq":
            return lambda x, y: module.psnr(x, y, reduction="none")
        return module.PSNR(reduction="none")

    return make


def variation_of(package: str) -> Build:
    """Total variation of the prediction, less the target's: a mean over neighbours, where piqa adds them up."""

    def make(_: Supply) -> Call:
        if package == "kornia":
            variation = importlib.import_module("kornia.losses").total_variation
            return lambda x, y: (variation(x, "mean") - variation(y, "mean")).mean(1)
        variation = importlib.import_module("piqa.tv").tv

        def run(x: Tensor, y: Tensor) -> Tensor:
            if x.shape[2] != x.shape[3]:
                raise ValueError("a sum over neighbours equals our mean on square images alone")
            return (variation(x) - variation(y)) / (x[0].numel() - x[0, :, 0].numel())

        return run

    return make


# ---- no reference ----


def brisque_of_piq(supply: Supply) -> Call:
    """piq fetches its support vectors at every call: these are ours, the same file's."""
    module: Any = importlib.import_module("piq.brisque")
    found = supply.tensors("brisque")
    coefficients, vectors = found["coefficients"].float(), found["vectors"].float()

    def run(x: Tensor, _: Tensor) -> Tensor:
        # It turns the vectors in place, so each call gets a copy.
        with mock.patch.object(module, "load_url", return_value=(coefficients, vectors.clone())):
            return module.brisque(x, data_range=1.0, reduction="none")

    return run


def niqe_of_pyiqa(supply: Supply) -> Call:
    module = importlib.import_module("pyiqa.archs.niqe_arch")
    found = supply.tensors("niqe")
    mean, covariance = found["mu_pris_param"][0], found["cov_pris_param"]
    return lambda x, _: module.calculate_niqe(x, mu_pris_param=mean, cov_pris_param=covariance)


def laplacian_of_opencv(_: Supply) -> Call:
    cv2 = importlib.import_module("cv2")

    def run(x: Tensor, _: Tensor) -> Tensor:
        pictures = (x * 255).round().byte().movedim(1, -1).cpu().numpy()
        grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in pictures]
        return torch.tensor([cv2.Laplacian(each, cv2.CV_64F).var() for each in grey])

    return run


# ---- networks ----

VGG_TAPS = {"relu1_2": (3, 64), "relu2_2": (8, 128), "relu3_3": (15, 256), "relu4_3": (22, 512)}


def piq_content(_: Supply) -> Call:
    """piq sums over channels where ours averages: so its weights are one over the channels."""
    piq = importlib.import_module("piq")
    layers = list(VGG_TAPS)
    return _frozen(piq.ContentLoss("vgg16", layers=layers, weights=[1 / c for _, c in VGG_TAPS.values()]))


def piq_style(_: Supply) -> Call:
    """piq's Gram matrices are not divided, and it averages over them: so its weights are 1 / (h w)² of each tap."""
    network: Any = _frozen(importlib.import_module("piq").StyleLoss("vgg16", layers=list(VGG_TAPS), weights=[1.0] * 4))

    def run(x: Tensor, y: Tensor) -> Tensor:
        positions = [(x.shape[2] >> k) * (x.shape[3] >> k) for k in range(4)]
        network.weights = [torch.tensor(1.0 / n**2) for n in positions]
        return network(x, y)

    return run


def lpips_of(package: str, net: str) -> Build:
    """LPIPS 0.1 of images in [0, 1]."""

    def make(_: Supply) -> Call:
        if package == "lpips":
            network = _frozen(importlib.import_module("lpips").LPIPS(net=net, verbose=False))
            return lambda x, y: network(x, y, normalize=True)
        if package == "piq":
            return _frozen(importlib.import_module("piq").LPIPS(reduction="none"))
        if package == "piqa":
            return _frozen(importlib.import_module("piqa").LPIPS(network=net, reduction="none"))
        if package == "torchmetrics":
            image = importlib.import_module("torchmetrics.image")
            return _frozen(image.LearnedPerceptualImagePatchSimilarity(net_type=net, normalize=True))
        network = importlib.import_module("pyiqa.archs.lpips_arch").LPIPS(pretrained=False, net=net)
        for layer, weight in zip(network.lins, linear_weights(net), strict=True):
            layer.model[-1].weight.data.copy_(weight[None, :, None, None])
        return _frozen(network)

    return make


def dists_of(package: str) -> Build:
    def make(_: Supply) -> Call:
        if package == "piq":
            return _frozen(importlib.import_module("piq").DISTS(reduction="none"))
        if package == "pyiqa":
            network = importlib.import_module("pyiqa.archs.dists_arch").DISTS(pretrained=False)
        elif package == "torchmetrics":
            network = importlib.import_module("torchmetrics.functional.image.dists").DISTSNetwork(load_weights=False)
        else:
            network = importlib.import_module("DISTS_pytorch").DISTS(load_weights=False)
        for parameter, weight in zip((network.alpha, network.beta), dists_as_published(), strict=True):
            parameter.data.copy_(weight)
        network = _frozen(network)
        if package == "pyiqa":
            return network
        return lambda x, y: network(x, y, require_grad=torch.is_grad_enabled())

    return make


def pieapp_of(package: str) -> Build:
    """piq gives its network red first, where its authors' code and ours give blue: so its images are turned."""

    def make(supply: Supply) -> Call:
        if package == "piq":
            turned = _frozen(importlib.import_module("piq").PieAPP(reduction="none"))
            return lambda x, y: turned(x.flip(1), y.flip(1))
        network = importlib.import_module("pyiqa.archs.pieapp_arch").PieAPP(pretrained=False)
        network.load_state_dict(dict(supply.tensors("pieapp")))
        return _frozen(network)

    return make
