"""What there is to know of each loss, read from its docstring and its line of the table: `veridical losses NAME` prints
it, and `veridical losses --markdown` writes docs/losses.md from it."""

import inspect
import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from veridical.core.catalog import lookup, options_of
from veridical.losses import LOSSES
from veridical.losses.stochastic import SPL

SECTIONS = ("Formula", "Range", "Use", "Weak", "Args", "Source")
"""What a loss's docstring says after its summary and its text, in this order; Args only where there are options."""

COST_FILE = Path(__file__).with_name("cost.json")
"""Written by `bench losses --costs`: {"machine", "date", "shape": [4, 3, ...], "relative_to_l2": {name: ratio}}."""


@dataclass(frozen=True)
class Family:
    """Losses that look at the same thing. shown: the specs by which `veridical probe --family` shows them, where these
    are not the names alone."""

    title: str
    losses: tuple[str, ...]
    shown: tuple[str, ...] = ()


FAMILIES: dict[str, Family] = {
    "pixel": Family("Pixels", ("l1", "l2", "charbonnier", "psnr", "edge", "gradient", "focal-frequency")),
    "similarity": Family("Structural similarity", ("ssim", "ms-ssim", "ms-ssim-l1")),
    "perceptual": Family(
        "Features of pretrained networks, position by position",
        ("vgg16", "vgg19", "lpips", "dists"),
        ("vgg16", "vgg19", "lpips", "lpips(net=vgg)", "0.8*l2 + 0.2*lpips", "dists"),
    ),
    "distribution": Family(
        "Features of pretrained networks, as distributions",
        ("pdl", "contextual", "cobi", "style"),
        ("pdl", "l1 + 0.01*pdl", "contextual", "cobi", "style"),
    ),
    "learned": Family(
        "Features trained for restoration",
        ("mdf", "fmlc", "tfmlc"),
        # Ours and the authors'; no adapter for tfmlc is at hand.
        (
            *(f"mdf(task={task})" for task in ("deblur", "denoise", "jpeg", "super-resolve")),
            *(f"mdf(task={task})" for task in ("released-sisr", "released-jpeg")),
            "fmlc",
        ),
    ),
    "stochastic": Family("Features of random networks", tuple(SPL)),
    "adversarial": Family(
        "Learned while the model is trained",
        ("gan", "ragan", "hinge-gan", "lsgan"),
        (
            "ragan(width=16, lr=1e-3)",
            *(f"l1 + auto(ratio=0.1)*{name}(width=16, lr=1e-3)" for name in ("gan", "ragan", "hinge-gan", "lsgan")),
        ),
    ),
    "grid": Family(
        "Any features with any distance",
        ("feature",),
        tuple(
            f"feature(features={features}, distance={distance})"
            for features in ("pixels", "vgg16", "random")
            for distance in ("unit-l2", "wasserstein")
        ),
    ),
    "no-reference": Family(
        "Without the truth",
        ("tv", "sharpness-q"),
        ("tv", "sharpness-q", "l1 + 0.01*sharpness-q"),
    ),
}
"""Every loss is in one of them."""


def family_specs(name: str) -> list[str]:
    """By which specs a family is shown."""
    return [*(FAMILIES[name].shown or FAMILIES[name].losses)]


@dataclass(frozen=True)
class Reference:
    """One loss, described. weights, extra: what it needs with its default options. optimises: the metrics that it is
    trained on. options: name -> default, as one writes it. cost: time over that of l2, where it was measured."""

    name: str
    summary: str
    text: str
    formula: str
    range: str
    use: str
    weak: str
    args: str
    source: str
    options: dict[str, str]
    weights: tuple[str, ...]
    extra: str
    optimises: tuple[str, ...]
    cost: float | None

    @property
    def needs(self) -> str:
        """Pretrained weights and extras in words, or "nothing"."""
        extra = f'pip install "veridical[{self.extra}]"' if self.extra else ""
        return "; ".join(filter(None, [_weights(self.weights), extra])) or "nothing"


def reference(name: str) -> Reference:
    """What there is to know of one loss.

    >>> reference("l2").formula
    'mean (x̂ - x)² over channels and pixels; PSNR = -10 log10 of it.'

    Errors: UnknownName, with the nearest one.
    """
    entry = lookup(LOSSES, name, "loss")
    said = sections(inspect.getdoc(entry.build) or "")
    summary, _, text = said[""].partition("\n")
    return Reference(
        name=name,
        summary=summary,
        text=text.strip(),
        **{section.lower(): said.get(section, "") for section in SECTIONS},
        options={option: _default(p) for option, p in options_of(entry.build).items()},
        weights=entry.needs({}),
        extra=entry.extra,
        optimises=entry.optimises,
        cost=costs().get("relative_to_l2", {}).get(name),
    )


def sections(docstring: str) -> dict[str, str]:
    """Section -> its text on one line; under "" what stands before the first one, its paragraphs on a line each.

    >>> sections('''What it is.
    ...
    ... Range:  [0, inf),
    ...         in dB.
    ... Source: a paper.''')
    {'': 'What it is.', 'Range': '[0, inf), in dB.', 'Source': 'a paper.'}
    """
    parts = re.split(rf"^({'|'.join(SECTIONS)}):", docstring, flags=re.MULTILINE)
    paragraphs = [_one_line(paragraph) for paragraph in re.split(r"\n\s*\n", parts[0].strip())]
    return {"": "\n".join(paragraphs)} | {
        name: _one_line(text) for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


@lru_cache
def costs() -> Mapping[str, Any]:
    """The measurement in COST_FILE; empty until there is one."""
    return json.loads(COST_FILE.read_text(encoding="utf-8")) if COST_FILE.is_file() else {}


def cost(known: Reference) -> str:
    """Its time over that of l2, in words."""
    return "not measured" if known.cost is None else f"{_ratio(known.cost)} x the time of l2"


def measured_on() -> str:
    """Of what and on what the costs were measured; empty when they were not."""
    if not costs():
        return ""
    shape = "x".join(map(str, costs()["shape"]))
    return f"forward and backward at {shape}, {costs()['machine']}, {costs()['date']}"


def markdown() -> str:
    """docs/losses.md: a table of all losses, then a section for each."""
    known = {name: reference(name) for family in FAMILIES.values() for name in family.losses}
    lines = [
        "# Losses",
        "",
        *_wrapped(
            "Generated from the docstrings by `veridical losses --markdown > docs/losses.md`; `veridical losses NAME` "
            "prints one of them."
        ),
        "",
        *_wrapped(
            "x̂ is the prediction, x the target, both (N, C, H, W) in [0, 1]. A value is of one image; lower is better, "
            "and it is 0 for identical images unless it says otherwise. A mean is over channels and positions."
        ),
        "",
        *_wrapped(f"Cost is time over that of l2: {measured_on() or 'not measured yet'}."),
    ]
    for key, family in FAMILIES.items():
        lines += ["", f"**{family.title}** ([what they see](evidence/{key}.md))", ""]
        lines += ["| loss | what it is | needs | cost |", "|---|---|---|---|"]
        for name in family.losses:
            each = known[name]
            ratio = "–" if each.cost is None else _ratio(each.cost)
            needs = ", ".join([*each.weights, *([f"[{each.extra}]"] if each.extra else [])]) or "–"
            lines.append(f"| [{name}](#{name}) | {_escaped(each.summary)} | {needs} | {ratio} |")
    for family in FAMILIES.values():
        for name in family.losses:
            lines += _section(known[name])
    return "\n".join(lines) + "\n"


def _section(known: Reference) -> list[str]:
    lines = ["", f"## {known.name}", "", *_wrapped(_escaped(known.summary))]
    for paragraph in filter(None, known.text.split("\n")):
        lines += ["", *_wrapped(_escaped(paragraph))]
    lines += ["", "```text", *_wrapped(known.formula, 100), "```", ""]
    options = ", ".join(f"`{name}={default}`" for name, default in known.options.items())
    facts = {
        "Range": _escaped(known.range),
        "Use": _escaped(known.use),
        "Weak": _escaped(known.weak),
        "Options": f"{options}. {_escaped(known.args)}" if options else "none.",
        "Needs": f"{known.needs}.",
        "Optimises": f"{', '.join(known.optimises)}." if known.optimises else "",
        "Cost": f"{cost(known)}.",
        "Source": _escaped(known.source),
    }
    for label, text in facts.items():
        lines += _wrapped(f"- **{label}**: {text}", hang="  ") if text else []
    return lines


def _default(parameter: inspect.Parameter) -> str:
    return "required" if parameter.default is parameter.empty else repr(parameter.default)


def _weights(names: tuple[str, ...]) -> str:
    return f"the {' and '.join(names)} weights" if names else ""


def _ratio(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _escaped(text: str) -> str:
    """Markdown that reads as the text does; what stands between backticks is code and stays."""
    parts = text.split("`")
    return "`".join(re.sub(r"([\\*_<>|\[\]])", r"\\\1", part) if k % 2 == 0 else part for k, part in enumerate(parts))


def _wrapped(text: str, width: int = 120, hang: str = "") -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False)
