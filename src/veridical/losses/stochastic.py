"""The Stochastic Perceptual Loss and its family: perceptual losses without pretrained weights."""

from collections.abc import Callable

from veridical.distances import L1, FeatureDistance
from veridical.features import StochasticNetwork
from veridical.features.stochastic import BLOCKS
from veridical.losses.base import FeatureLoss

_TEXTS = {
    "a": "block 1 is re-drawn at every step, the others keep their first random values",
    "b": "as A, without the four max-pools",
    "c": "all four blocks are re-drawn at every step",
    "d": "nothing is re-drawn. D differs from A in the scale of block 1 as well as in randomness: a confound",
}


def _family(variant: str, last: bool) -> Callable[..., FeatureLoss]:
    redraw = {"a": BLOCKS[:1], "b": BLOCKS[:1], "c": BLOCKS, "d": ()}[variant]
    lambdas = {"block4": 1.0} if last else {block: 2.0**k for k, block in enumerate(BLOCKS)}

    def build(*, seed: int = 0) -> FeatureLoss:
        features = StochasticNetwork(taps=tuple(lambdas), redraw=redraw, pool=variant != "b", seed=seed)
        return FeatureLoss(FeatureDistance(features, {tap: L1() for tap in lambdas}, weights=lambdas))

    weights = "the last block only" if last else "weights 1, 2, 4, 8 on the four blocks"
    build.__name__ = build.__qualname__ = f"spl_{variant}{'_last' if last else ''}"
    build.__doc__ = f"""Stochastic Perceptual Loss {variant.upper()}{", last block" if last else ""}: {_TEXTS[variant]}.

    L1 between the maps of a small random network (4 x Conv3x3-LeakyReLU-MaxPool, 3-8-16-32-64); {weights}.
    In training mode each forward draws anew, the same for prediction and target; in evaluation mode the draw is fixed.

    Range:  [0, inf), about the scale of the pixels.
    Args:   seed: of the draws, which are a pure function of (seed, step).
    Source: the Stochastic Perceptual Loss comparison of 12 losses.
    """
    return build


SPL: dict[str, Callable[..., FeatureLoss]] = {
    f"spl-{variant}{'-last' if last else ''}": _family(variant, last) for variant in "abcd" for last in (False, True)
}
