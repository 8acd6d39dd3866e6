"""Feature matching on a CLIP image tower, as it is or adapted to a degradation."""

from collections.abc import Mapping
from typing import Any

from veridical.core.errors import BadOption
from veridical.distances import L2, FeatureDistance
from veridical.features import weights as files
from veridical.features.adapter import AdaptedFeatures, Adapter, settings_of
from veridical.features.clip import CLIPNetwork
from veridical.losses.base import FeatureLoss


def fmlc(
    *,
    tower: str = "vit-b-16",
    block: int = 3,
    tokens: str = "all",
    size: str = "tower",
    normalisation: str = "clip",
    weights: str | None = None,
) -> FeatureLoss:
    """FMLC: mean squared difference of the tokens at an early block of a CLIP image tower.

    Formula: mean (φ(x̂) - φ(x))² over tokens and channels, φ: the output of one block of the tower.
    Range:  [0, inf), in squared feature units.
    Use:    as a term beside a deblurring network's own loss, to bring back texture: "charbonnier + 0.05*edge + 1*fmlc"
            for MPRNet, 1000*fmlc beside a PSNR loss for HINet, both fine-tuned with it.
    Weak:   it sees the image resized to the tower's 224 px, so it is blind to what a large image loses there (take
            crops, or size=interpolate). Patches make it blind to small shifts of content between them, and PSNR falls a
            little. Its features are of what pictures show, not of blur: see tfmlc.
    Args:   tower: vit-b-32, vit-b-16 or vit-l-14. block: counted from 0. The released code takes block 3, the paper
            says "ResBlock 3", which may be the same.
            tokens: "all" (the released code), "patch" or "class".
            size: "tower" resizes the image to the tower's (bicubic, no antialiasing, as released); "interpolate" keeps
            it, to the nearest multiple of the patch, and interpolates the positions.
            normalisation: "clip", or "none", which the released deblurring losses feed (their adapter was trained with
            "clip"). weights: folder of save_pretrained or .safetensors file to read the tower from; by default the
            Hugging Face hub or its cache (needs the extra "clip").
    Source: Chang et al. 2023, Task-Adaptive Feature Matching Loss for Image Deblurring, ICIP.
    """
    features = CLIPNetwork(tower, block=block, tokens=tokens, size=size, normalisation=normalisation, weights=weights)
    return FeatureLoss(FeatureDistance(features, {f"block{block}": L2()}))


def tfmlc(*, adapter: str = "", weights: str | None = None) -> FeatureLoss:
    """TFMLC: mean squared difference of features that an adapter was trained to order by strength of a degradation.

    Formula: mean (A(φ(x̂)) - A(φ(x)))², φ: one block of a CLIP tower, or one layer of VGG; A: the adapter, three linear
            layers trained so that a weakly degraded image lies nearer to the sharp one than a strongly degraded one.
    Range:  [0, inf), in squared feature units.
    Use:    as fmlc, for the degradation that the adapter was trained on: fine-tune a trained network with its own loss
            and this one, at a low learning rate.
    Weak:   those of fmlc; and it knows its own degradation alone. What the adapter maps to one point is free to change,
            so never without a pixel loss.
    Args:   adapter: its file, which says which features it is for; `veridical learn adapter` makes one. weights: folder
            or file of that network, where it should not be found by itself.
    Source: Chang et al. 2023, Task-Adaptive Feature Matching Loss for Image Deblurring, ICIP.
    """
    if not adapter:
        raise BadOption("tfmlc needs the file of an adapter, such as tfmlc(adapter=blur.safetensors); none was given.")
    features = AdaptedFeatures(Adapter.load(adapter), weights=weights)
    return FeatureLoss(FeatureDistance(features, {"adapted": L2()}))


def tfmlc_needs(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The network that the adapter is for, where weights.py finds it. CLIP towers are found by transformers."""
    if options.get("weights") or not options.get("adapter"):
        return ()
    path = str(options["adapter"])
    network = settings_of(files.notes(path, "the adapter"), path)["base"].get("network")
    return (str(network),) if network in files.FILES else ()
