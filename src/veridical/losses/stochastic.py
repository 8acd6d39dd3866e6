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
    "d": "nothing is re-drawn",
}

_USES = {
    "a": "where texture matters: under camera shake with noise it took a fifth off L1's LPIPS. Descended on the pixels "
    "(docs/evidence), A with all blocks comes some 6 dB nearer to the truth than D, which draws once.",
    "b": "where PSNR and SSIM must not suffer: its last-block form keeps most of both, in the comparison and here.",
    "c": "to study drawing everything anew.",
    "d": "as the control of A: what one fixed random network gives.",
}
_WEAK = {
    "a": "drawing anew makes the gradient noisy; in the comparison A beats D, in our short trainings it did not.",
    "b": "maps of the image's full size, 64 channels deep: the dearest of the family in time and memory.",
    "c": "the noisiest gradient of the family; in C block 4 outweighs the others, whose values are as large.",
    "d": "what this one network does not see is never corrected.",
}
_DRAWS = (
    "In training mode each forward draws anew, the same for prediction and target; in evaluation the draw is fixed."
)
_POOLED = "Each max-pool passes the gradient to one position in four. "
_LAST = "The last block alone keeps the place of a feature only to 16 px: A and D lost 3.4 dB of PSNR by it, C 0.3. "


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
    {_DRAWS if redraw else "It differs from A in the scale of block 1 as well as in randomness: a confound."}

    Formula: {"L1(φ4(x̂), φ4(x))" if last else "Σ_k λ_k L1(φ_k(x̂), φ_k(x)), λ = (1, 2, 4, 8)"}, φ_k: after block k.
    Range:  [0, inf), about the scale of the pixels.
    Use:    {_USES[variant]} No pretrained
            weights are needed.
    Weak:   {_WEAK[variant]}
            {_POOLED if variant != "b" else ""}{_LAST if last and variant != "b" else ""}No
            random network knows what people see: none of the family reached L2's LPIPS on a 5x5 box blur.
    Args:   seed: of the draws, which are a pure function of (seed, step).
    Source: the Stochastic Perceptual Loss comparison of 12 losses.
    """
    return build


SPL: dict[str, Callable[..., FeatureLoss]] = {
    f"spl-{variant}{'-last' if last else ''}": _family(variant, last) for variant in "abcd" for last in (False, True)
}
