"""Restorers without training: from a blurred image and its blur to an estimate of the sharp one.

One table of methods, and `method()`, which reads a spec.
"""

from typing import Any

from veridical.core.catalog import call, lookup, parse_one
from veridical.deconvolution.base import Iterative, Method, Progress, Result
from veridical.deconvolution.black_box import Landweber, LevenbergMarquardt, RichardsonLucy
from veridical.deconvolution.blur import BORDERS, BlackBox, KernelBlur
from veridical.deconvolution.denoisers import DENOISERS, Bilateral, DnCNNDenoiser, denoiser
from veridical.deconvolution.noise import noise_sigma
from veridical.deconvolution.red import RedFixedPoint, RedSteepestDescent
from veridical.deconvolution.wiener import Wiener

__all__ = [
    "BORDERS",
    "DENOISERS",
    "METHODS",
    "Bilateral",
    "BlackBox",
    "DnCNNDenoiser",
    "Iterative",
    "KernelBlur",
    "Landweber",
    "LevenbergMarquardt",
    "Method",
    "Progress",
    "RedFixedPoint",
    "RedSteepestDescent",
    "Result",
    "RichardsonLucy",
    "Wiener",
    "denoiser",
    "method",
    "noise_sigma",
]

# name -> class; its keyword arguments are the options, the first line of its docstring says what it is.
METHODS: dict[str, type[Method]] = {
    kind.name: kind
    for kind in (Wiener, Landweber, RichardsonLucy, LevenbergMarquardt, RedFixedPoint, RedSteepestDescent)
}


def method(spec: str, **options: Any) -> Method:
    """The method that a spec names: "wiener", "landweber(iterations=100, border=reflect)".

    Args:   spec: one name of METHODS with its options in brackets. options: more options; they win over those in
            brackets.
    Errors: UnknownName for a name or an option that does not exist (suggests the nearest), BadOption (a ValueError)
            for an impossible value, DataError for a denoiser's weights that cannot be read.

    >>> method("wiener(nsr=0.01)").label
    'wiener(nsr=0.01)'
    """
    term = parse_one(spec, "method", "wiener(nsr=0.01)")
    return call(lookup(METHODS, term.name, "method"), {**term.options, **options}, term.name)
