"""Sharp -> degraded. One table of degradations, one of tasks, and `degradation()`, which reads a spec.

All chance comes from a `torch.Generator` that is handed in, drawn on the CPU in a fixed order: the result is
a function of the image, the options and the generator's state.
"""

from typing import Any

from veridical.core.catalog import call, lookup, parse
from veridical.core.errors import BadOption
from veridical.degradations.base import Degradation
from veridical.degradations.blur import Blur, BoxBlur, DiscBlur, GaussianBlur
from veridical.degradations.camera_shake import CameraShake
from veridical.degradations.chain import Chain, blur_of, enlarged
from veridical.degradations.jpeg import Jpeg
from veridical.degradations.mosaic import BayerMosaic
from veridical.degradations.noise import GaussianNoise
from veridical.degradations.resize import BicubicDownscale, BicubicUpscale
from veridical.degradations.tasks import TASKS, Task

__all__ = [
    "DEGRADATIONS",
    "TASKS",
    "BadOption",
    "BayerMosaic",
    "BicubicDownscale",
    "BicubicUpscale",
    "Blur",
    "BoxBlur",
    "CameraShake",
    "Chain",
    "Degradation",
    "DiscBlur",
    "GaussianBlur",
    "GaussianNoise",
    "Jpeg",
    "Task",
    "blur_of",
    "degradation",
    "enlarged",
]

# name -> class; its keyword arguments are the options, the first line of its docstring says what it does.
DEGRADATIONS: dict[str, type[Degradation]] = {
    kind.name: kind
    for kind in (
        BoxBlur,
        GaussianBlur,
        DiscBlur,
        CameraShake,
        GaussianNoise,
        Jpeg,
        BicubicDownscale,
        BicubicUpscale,
        BayerMosaic,
    )
}


def degradation(spec: str, **options: Any) -> Degradation:
    """The degradation that a spec names: "box-blur(size=5)", or steps in order joined by "+", read as "then".

    Args:   spec: names of DEGRADATIONS with their options in brackets.
            options: more options, for a spec of a single step; they win over those in the brackets.
    Errors: UnknownName for a name or an option that does not exist (suggests the nearest), BadOption (a
            ValueError) for an impossible value, a weight, or options that could belong to several steps.

    >>> degradation("camera-shake + gaussian-noise(sigma_8bit=(0, 15))").label
    'camera-shake(size=31) + gaussian-noise(sigma_8bit=(0, 15))'
    >>> degradation("box-blur", size=7).label
    'box-blur(size=7)'
    """
    terms = parse(spec, "degradation")
    if options and len(terms) > 1:
        raise BadOption(
            f"the options {', '.join(options)} could belong to any step of {spec!r}. "
            "Write them in the spec: 'box-blur(size=5) + jpeg(quality=20)'."
        )
    steps = []
    for term in terms:
        if term.weight != 1:
            raise BadOption(f"{str(term)!r} has a weight, but degradations are steps, not a sum. Write {term.label!r}.")
        kind = lookup(DEGRADATIONS, term.name, "degradation")
        steps.append(call(kind, {**term.options, **options}, term.name))
    return steps[0] if len(steps) == 1 else Chain(steps)
