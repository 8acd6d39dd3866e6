"""The table of losses. A new loss is one file and one line here; one of your own needs neither: "my_file.py:MyLoss"."""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from veridical.core.catalog import Term, call, lookup, options_of, parse, summary_of
from veridical.core.errors import VeridicalError
from veridical.core.options import check_choice, check_number
from veridical.distances import dists_needs, lpips_needs
from veridical.features.convolution import kernel
from veridical.losses.adversarial import GANLoss, HingeGANLoss, LSGANLoss, RaGANLoss
from veridical.losses.auto_weight import AutoWeight
from veridical.losses.base import REDUCTIONS, FeatureLoss, Loss, Prepared
from veridical.losses.clip import fmlc, tfmlc, tfmlc_needs
from veridical.losses.contextual import cobi, contextual
from veridical.losses.dists import dists
from veridical.losses.feature import feature, feature_needs
from veridical.losses.focal_frequency import FocalFrequencyLoss
from veridical.losses.mdf import mdf, mdf_needs
from veridical.losses.perceptual import lpips, network_needs, pdl, vgg16, vgg19
from veridical.losses.pixel import PSNRLoss, charbonnier, edge, gradient, l1, l2
from veridical.losses.sharpness import SharpnessQLoss
from veridical.losses.similarity import MSSSIML1Loss, MSSSIMLoss, SSIMLoss
from veridical.losses.stochastic import SPL
from veridical.losses.style import style
from veridical.losses.total_variation import TVLoss
from veridical.losses.weighted_sum import WeightedSum


@dataclass(frozen=True)
class LossEntry:
    """One line of the table.

    Attributes: build: keyword options -> Loss; its docstring describes the loss (see reference.py).
                optimises: the metrics that it optimises directly. needs: options -> names of pretrained weights.
                extra: what to install for it, such as "clip". kernel: -> which code computes it on this machine.
                by_task: has an option `task`, which in a recipe is that of the recipe; see `at_task`.
    """

    build: Callable[..., Loss]
    optimises: tuple[str, ...] = ()
    needs: Callable[[Mapping[str, Any]], tuple[str, ...]] = lambda options: ()
    extra: str = ""
    kernel: Callable[[], str] = lambda: "PyTorch"
    by_task: bool = False

    @property
    def summary(self) -> str:
        return summary_of(self.build)


LOSSES: dict[str, LossEntry] = {
    "l1": LossEntry(l1),
    "l2": LossEntry(l2, optimises=("psnr",)),
    "charbonnier": LossEntry(charbonnier),
    "edge": LossEntry(edge),
    "gradient": LossEntry(gradient),
    "focal-frequency": LossEntry(FocalFrequencyLoss),
    "psnr": LossEntry(PSNRLoss, optimises=("psnr",)),
    "ssim": LossEntry(SSIMLoss, optimises=("ssim",)),
    "ms-ssim": LossEntry(MSSSIMLoss, optimises=("ms-ssim",)),
    "ms-ssim-l1": LossEntry(MSSSIML1Loss, optimises=("ms-ssim",)),
    "vgg16": LossEntry(vgg16, needs=network_needs("vgg16"), kernel=kernel),
    "vgg19": LossEntry(vgg19, needs=network_needs("vgg19"), kernel=kernel),
    "lpips": LossEntry(lpips, optimises=("lpips",), needs=lpips_needs, kernel=kernel),
    "dists": LossEntry(dists, optimises=("dists",), needs=dists_needs, kernel=kernel),
    "style": LossEntry(style, needs=network_needs("vgg16"), kernel=kernel),
    "pdl": LossEntry(pdl, needs=network_needs("vgg16"), kernel=lambda: f"{kernel()}; on a CPU NumPy sorts"),
    "mdf": LossEntry(mdf, needs=mdf_needs, kernel=kernel, by_task=True),
    "fmlc": LossEntry(fmlc, extra="clip"),
    "tfmlc": LossEntry(tfmlc, needs=tfmlc_needs),
    "contextual": LossEntry(contextual, needs=network_needs("vgg16"), kernel=kernel),
    "cobi": LossEntry(cobi, needs=network_needs("vgg16"), kernel=kernel),
    **{name: LossEntry(build) for name, build in SPL.items()},
    "feature": LossEntry(feature, needs=feature_needs, kernel=kernel),
    "tv": LossEntry(TVLoss),
    "sharpness-q": LossEntry(SharpnessQLoss, optimises=("sharpness-q",)),
    "gan": LossEntry(GANLoss),
    "ragan": LossEntry(RaGANLoss),
    "hinge-gan": LossEntry(HingeGANLoss),
    "lsgan": LossEntry(LSGANLoss),
}


def loss(
    spec: str | Mapping[str, float | str | Mapping[str, Any]],
    *,
    weight: float = 1.0,
    reduction: str = "mean",
    **options: Any,
) -> Loss:
    """Make a loss from its name, a sum in words, a table, or a file of one's own.

    >>> loss("0.8*l2 + 0.2*l1").label
    '0.8*l2 + 0.2*l1'
    >>> loss({"l2": 0.8, "charbonnier": {"weight": 0.2, "eps": 0.01}}).label
    '0.8*l2 + 0.2*charbonnier(eps=0.01)'
    >>> loss({"l1": 1, "ssim": {"weight": "auto", "ratio": 0.1}}).label
    'l1 + auto(ratio=0.1)*ssim'

    Args:   spec: "l2", "lpips(net=vgg)", "0.8*l2 + 0.2*lpips"; {name: weight} or {name: {"weight": ..., option: ...}};
            "my_file.py:MyLoss", also with options and in sums, where MyLoss is a subclass of `veridical.losses.Loss`.
            A weight may be "auto" or "auto(ratio=0.1)": `calibrate` sets it such that the term's gradient on the
            prediction is that many times the first term's.
            weight: multiplies the whole. reduction: "mean" over images, or "none" for (N,).
            options: of a single named loss, such as net="vgg".
    Errors: UnknownName for a name or an option that there is not, with the nearest one; WeightsMissing.
    """
    check_number("weight", weight)
    check_choice("reduction", reduction, REDUCTIONS)
    terms = _terms(spec, options)
    built = [(_weight(term, weight), _build(term)) for term in terms]
    result = built[0][1] if len(built) == 1 and built[0][0] == 1 else WeightedSum(built)
    result.reduction = reduction
    return result


def needs(spec: str) -> tuple[str, ...]:
    """Names of the pretrained weights that a spec needs, without building it."""
    names = {
        name: None
        for term in _terms(spec, {})
        if not _is_file(term.name)
        for name in lookup(LOSSES, term.name, "loss").needs(term.options)
    }
    return tuple(names)


def at_task(spec: str, task: str) -> str:
    """The spec for a recipe of this task: what is learned for each task is that for this one, unless the spec names
    another task or a file. A spec that says all of it comes back as it is.

    >>> at_task("l1 + 0.01*mdf", "jpeg")
    'l1 + 0.01*mdf(task=jpeg)'
    """
    terms = _terms(spec, {})
    told = [_at_task(term, task) for term in terms]
    return spec if told == terms else " + ".join(map(str, told))


def _at_task(term: Term, task: str) -> Term:
    known = not _is_file(term.name) and term.name in LOSSES and LOSSES[term.name].by_task
    if not known or "task" in term.options or term.options.get("weights"):
        return term
    return Term(term.name, term.weight, {"task": task, **term.options})


def at_seed(spec: str, number: int) -> str:
    """The spec for another training: `number` is added to the seed of every loss in it that has one, so that what is
    drawn at random, or learns from random weights, does so from other numbers. 0 leaves it as it is.

    >>> at_seed("l1 + 0.01*spl-a + 0.1*gan(seed=5)", 2)
    'l1 + 0.01*spl-a(seed=2) + 0.1*gan(seed=7)'
    """
    if number == 0:
        return spec
    terms = _terms(spec, {})
    told = [_at_seed(term, number) for term in terms]
    return spec if told == terms else " + ".join(map(str, told))


def _at_seed(term: Term, number: int) -> Term:
    known = options_of(_class_from(term.name) if _is_file(term.name) else lookup(LOSSES, term.name, "loss").build)
    if "seed" not in known:
        return term
    given = term.options.get("seed", known["seed"].default)
    first = given if isinstance(given, int) else 0  # a loss of one's own may begin with None
    return Term(term.name, term.weight, {**term.options, "seed": first + number})


def files(spec: str) -> tuple[Path, ...]:
    """The files of one's own that a spec reads losses from: what they compute may change while their names stay."""
    return tuple(Path(term.name.rpartition(":")[0]) for term in _terms(spec, {}) if _is_file(term.name))


def _terms(spec: str | Mapping[str, Any], options: Mapping[str, Any]) -> list[Term]:
    if isinstance(spec, Mapping):
        terms = [_term(name, value) for name, value in spec.items()]
    elif not isinstance(spec, str):
        raise VeridicalError(f"a loss is a spec such as '0.8*l2 + 0.2*lpips' or a table of weights; got {spec!r}.")
    elif _is_whole_path(spec):
        terms = [Term(spec)]  # a path may hold what the grammar reads as something else, such as a space
    else:
        terms = parse(spec, "loss")
    if options:
        if len(terms) != 1:
            raise VeridicalError(
                f"options {dict(options)} were given for a sum of {len(terms)} losses; "
                "write them at the term, as in 'lpips(net=vgg)'."
            )
        terms = [Term(terms[0].name, terms[0].weight, {**terms[0].options, **options})]
    return terms


def _term(name: str, value: float | str | Mapping[str, Any]) -> Term:
    options = dict(value) if isinstance(value, Mapping) else {"weight": value}
    weight = options.pop("weight", 1.0)
    if weight == "auto":
        its_own = {key: options.pop(key) for key in options_of(AutoWeight) if key in options}
        return Term(name, Term("auto", options=its_own), options)
    check_number(f"the weight of {name}, unless 'auto',", weight)
    return Term(name, float(weight), options)


def _weight(term: Term, scale: float) -> float | AutoWeight:
    """`scale` times the weight. An automatic one follows the first term's, which is scaled."""
    if isinstance(term.weight, Term):
        return call(AutoWeight, term.weight.options, "an automatic weight")
    return scale * term.weight


def _build(term: Term) -> Loss:
    if _is_file(term.name):
        result = call(_class_from(term.name), term.options, f"loss {term.name!r}")
        result.label = term.label
        return result
    entry = lookup(LOSSES, term.name, "loss")
    result = call(entry.build, term.options, f"loss {term.name!r}")
    result.label = term.label
    result.optimises = entry.optimises
    return result


def _is_file(name: str) -> bool:
    return ".py:" in name


@lru_cache
def _module_from(path: Path, _version: int) -> ModuleType:
    """The module in a file; once, until the file changes, so that its classes stay the same objects."""
    spec = importlib.util.spec_from_file_location(f"veridical_own_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up there
    spec.loader.exec_module(module)
    return module


def _is_whole_path(spec: str) -> bool:
    file, _, name = spec.rpartition(":")
    return _is_file(spec) and name.isidentifier() and Path(file).is_file()


def _class_from(name: str) -> Callable[..., Loss]:
    file, _, attribute = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise VeridicalError(f"the loss {name!r} needs the file {path}, which does not exist.")
    module = _module_from(path.resolve(), path.stat().st_mtime_ns)
    found = getattr(module, attribute, None)
    if not (isinstance(found, type) and issubclass(found, Loss)):
        raise VeridicalError(f"{path} has no class {attribute!r} derived from veridical.losses.Loss.")
    return found


__all__ = [
    "LOSSES",
    "AutoWeight",
    "FeatureLoss",
    "Loss",
    "LossEntry",
    "Prepared",
    "WeightedSum",
    "at_seed",
    "at_task",
    "files",
    "loss",
    "needs",
]
