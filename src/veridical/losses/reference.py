"""What there is to know of each loss, read from its docstring and its line of the table: `veridical losses NAME` prints
it, `veridical losses --markdown` prints docs/losses.md from it, and `--pages docs/losses` writes a page of each."""

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

USED_AS = {
    "edge": "charbonnier + 0.05*edge",
    "gradient": "l1 + 0.1*gradient",
    "focal-frequency": "l1 + auto*focal-frequency",
    "vgg16": "0.8*l2 + 0.2*vgg16",
    "lpips": "0.8*l2 + 0.2*lpips",
    "dists": "l1 + auto*dists",
    "pdl": "l1 + 0.003*pdl",
    "contextual": "l1 + 0.01*contextual",
    "cobi": "l1 + auto*cobi",
    "style": "l1 + auto*style",
    "mdf": "mdf(task=deblur)",
    "fmlc": "charbonnier + 0.05*edge + 1*fmlc",
    "tfmlc": "l1 + auto*tfmlc(adapter=motion.safetensors)",
    "gan": "l1 + auto(ratio=0.1)*gan",
    "ragan": "l1 + auto(ratio=0.1)*ragan",
    "hinge-gan": "l1 + 0.01*hinge-gan(discriminator=patch)",
    "lsgan": "l1 + 0.01*lsgan(discriminator=patch)",
    "tv": "l1 + 0.01*tv",
    "feature": "l1 + auto*feature(features=random, distance=wasserstein)",
    "sharpness-q": "l1 + 0.01*sharpness-q",
}
"""A spec to begin with, of the losses that are not used alone or not without an option."""

PICTURED_AS = {
    "mdf": "mdf(task=deblur)",
    # A discriminator that learns on one small image, in as few steps as it is descended.
    **{name: f"{name}(width=16, lr=1e-3)" for name in FAMILIES["adversarial"].losses},
}
"""The specs by which a loss's page pictures it, where these are not the names alone."""

NOT_PICTURED = {
    "vgg19": "the weights of VGG19 were not to be had where the pictures were made; [vgg16](vgg16.md) is akin to it",
    "fmlc": "the weights of CLIP were not to be had where the pictures were made",
    "tfmlc": "it needs an adapter of one's own, and the weights of CLIP, to train one on, were not to be had "
    "where the pictures were made",
}
"""Losses without a picture, and why."""


def pictured_specs() -> list[str]:
    """What `veridical probe --losses all` looks at: every loss that has a picture, by itself."""
    names = [name for family in FAMILIES.values() for name in family.losses]
    return [PICTURED_AS.get(name, name) for name in names if name not in NOT_PICTURED]


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
    """docs/losses.md: a table of all losses, with links to a page of each."""
    lines = [
        "# Losses",
        "",
        *_wrapped(
            "Each loss has a page with its formula, when to use it and where it is weak, what it costs, and a picture. "
            "They are made from the docstrings: this one by `veridical losses --markdown > docs/losses.md`, the others "
            "by `veridical losses --pages docs/losses`; `veridical losses NAME` prints the same."
        ),
        "",
        *_wrapped(
            "Lower is better, and 0 is for identical images unless a page says otherwise. "
            f"Cost is time over that of l2: {measured_on() or 'not measured yet'}."
        ),
    ]
    for key, family in FAMILIES.items():
        lines += ["", f"**{family.title}** ([what they see](evidence/{key}.md))", ""]
        lines += ["| loss | what it is | needs | cost |", "|---|---|---|---|"]
        for name in family.losses:
            each = reference(name)
            ratio = "–" if each.cost is None else _ratio(each.cost)
            needs = ", ".join([*each.weights, *([f"[{each.extra}]"] if each.extra else [])]) or "–"
            lines.append(f"| [{name}](losses/{name}.md) | {_escaped(each.summary)} | {needs} | {ratio} |")
    return "\n".join(lines) + "\n"


def page(name: str) -> str:
    """docs/losses/<name>.md: one loss in full, with its picture.

    Errors: UnknownName, with the nearest one.
    """
    known = reference(name)
    spec = USED_AS.get(name, name)
    beside = "l2" if spec == "l1" else "l1"
    options = ", ".join(f"`{name}={default}`" for name, default in known.options.items())
    cost_said = cost(known) + (f" ({measured_on()})" if known.cost is not None else "")
    lines = [f"# {name}", "", *_wrapped(_escaped(known.summary))]
    for paragraph in filter(None, known.text.split("\n")):
        lines += ["", *_wrapped(_in_docs(_escaped(paragraph)))]
    lines += ["", *_facts({"Use": known.use, "Weak": known.weak})]
    lines += ["", "## Formula", "", "```text", *known.formula.split("; "), "```", ""]
    lines += _wrapped(
        "x̂ is the prediction, x the target, both (N, C, H, W) in [0, 1]. A value is of one image, a mean over channels "
        "and positions."
    )
    lines += ["", "## In a line", "", "```python", f'loss = veridical.loss("{spec}")', "```", "", "```sh"]
    lines += [f'veridical compare --demo --losses "{beside}, {spec}" --out runs/{name}', "```", ""]
    lines += ["## What it sees", "", *_picture(name), "", "## Facts", ""]
    lines += _facts(
        {
            "Range": known.range,
            "Options": f"{options}. {known.args}" if options else "none.",
            "Needs": f"{known.needs}.",
            "Optimises": f"{', '.join(known.optimises)}." if known.optimises else "",
            "Cost": f"{cost_said}.",
            "Source": known.source,
        }
    )
    return "\n".join(lines) + "\n"


def _picture(name: str) -> list[str]:
    """The picture of a loss and what is in it, or why there is none."""
    (key,) = (key for key, family in FAMILIES.items() if name in family.losses)
    more = f"Its family, with curves and tables: [{FAMILIES[key].title}](../evidence/{key}.md)."
    if name in NOT_PICTURED:
        return _wrapped(f"No picture: {NOT_PICTURED[name]}. {more}")
    described = (
        "the photograph, the blurred start, where descending it led, its gradient, and its answer to distortions"
    )
    spec = PICTURED_AS.get(name, name)
    return [
        f"![{name}: {described}]({name}.webp)",
        "",
        *_wrapped(
            f"`{spec}` alone changed the pixels of a blurred photograph, with no network between: whatever is in the "
            "picture, this loss has put there or could not see. The gradient is white where it pulls hardest. The bars "
            "are its values for eight distortions of equal PSNR over the mean of their sizes: at the line, 1, it makes "
            "of one as much as of them on the whole (l2 has 1 everywhere), 0 is unseen, below 0 is rewarded. Made by "
            "`veridical probe --losses all --steps 100 --cards docs/losses`."
        ),
        "",
        *_wrapped(more),
    ]


def _facts(facts: Mapping[str, str]) -> list[str]:
    return [
        line
        for label, text in facts.items()
        if text
        for line in _wrapped(f"- **{label}**: {_in_docs(_escaped(text))}", hang="  ")
    ]


def _in_docs(text: str) -> str:
    """Places of the repository as links from docs/losses/."""
    text = re.sub(r"docs/([\w-]+)\.md", r"[\1](../\1.md)", text)
    return re.sub(r"docs/evidence\b", "[what the losses see](../evidence/README.md)", text)


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
