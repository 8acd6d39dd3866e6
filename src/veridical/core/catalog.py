"""Names -> things: one way to look a name up, to check its options, and to read `0.8*l2 + 0.2*lpips(net=vgg)`.

The tables themselves (LOSSES, METRICS, DEGRADATIONS, MODELS) are plain dicts in their own rooms.
"""

import ast
import difflib
import importlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TypeVar

from veridical.core.errors import MissingExtra, UnknownName, VeridicalError

T = TypeVar("T")

MOST_LETTERS = 10_000
"""Of a spec."""

_NAME = r"[A-Za-z][\w-]*"
_FILE = r"[^\s*+(),=]+\.py:\w+"  # a class in a file of one's own
_WEIGHT = r"(?P<weight>-?[0-9.][0-9.eE+-]*|auto\s*(?:\((?P<auto>[^()]*)\))?)"
_TERM = re.compile(rf"(?:{_WEIGHT}\s*\*\s*)?(?P<name>{_FILE}|{_NAME})\s*(?:\((?P<options>.*)\))?", re.DOTALL)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like `name`, or None when nothing is close.

    >>> nearest("ms_ssim", ["ssim", "ms-ssim", "l1"])
    'ms-ssim'
    """
    by_plain = {_plain(k): k for k in known}
    close = difflib.get_close_matches(_plain(name), by_plain, n=1, cutoff=0.55)
    return by_plain[close[0]] if close else None


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def unknown(what: str, name: str, known: Iterable[str]) -> UnknownName:
    """The error for a name that is not in a table: suggests the nearest and lists what there is."""
    known = sorted(known)
    close = nearest(name, known)
    hint = f"Did you mean {close!r}? " if close else ""
    listing = ", ".join(known) if known else "none"
    return UnknownName(f"unknown {what} {name!r}. {hint}Known: {listing}.")


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """table[name], or an UnknownName error that suggests the nearest name."""
    if name not in table:
        raise unknown(what, name, table)
    return table[name]


def options_of(build: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The options of a builder, by name: whatever it takes by keyword."""
    by_keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {name: p for name, p in inspect.signature(build).parameters.items() if p.kind in by_keyword}


def summary_of(thing: object) -> str:
    """The first line of a docstring: what a table says of its entry."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def call(build: Callable[..., T], options: Mapping[str, Any], what: str) -> T:
    """build(**options); an option that `build` does not have is an error that suggests the nearest one."""
    known = options_of(build)
    for option in options:
        if option not in known:
            raise unknown(f"option of {what}", option, known)
    return build(**options)


@dataclass(frozen=True)
class Term:
    """One term of a spec: weight * name(options). A weight that is to be found is itself a term, called "auto".

    >>> str(Term("lpips", 0.2, {"net": "vgg"}))
    '0.2*lpips(net=vgg)'
    >>> str(Term("lpips", Term("auto", options={"ratio": 0.1})))
    'auto(ratio=0.1)*lpips'
    """

    name: str
    weight: "float | Term" = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{factor(self.weight)}{self.label}"

    @property
    def label(self) -> str:
        """The term without its weight."""
        options = ", ".join(f"{k}={_show(v)}" for k, v in self.options.items())
        return f"{self.name}({options})" if options else self.name


def factor(weight: float | Term) -> str:
    """A weight as it stands before a term, exactly: "", "2*", "0.1*", "auto*".

    >>> factor(1.0), factor(2.0), factor(0.123456789), factor(Term("auto"))
    ('', '2*', '0.123456789*', 'auto*')
    """
    if isinstance(weight, Term):
        return f"{weight}*"
    short = f"{weight:g}"
    return "" if weight == 1 else f"{short if float(short) == weight else repr(weight)}*"


def _show(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w.-]*", value) and value not in ("True", "False", "None"):
        return value
    return repr(value)


def parse(spec: str, what: str = "loss") -> list[Term]:
    """Read a sum of terms. Options are `key=value` with Python literals (and true, false); a bare word is a string.

    >>> [str(t) for t in parse("0.8*l2 + 0.2*lpips(net=vgg) + auto*pdl")]
    ['0.8*l2', '0.2*lpips(net=vgg)', 'auto*pdl']
    >>> parse("gaussian-noise(sigma_8bit=(0, 15))")[0].options
    {'sigma_8bit': (0, 15)}
    """
    if len(spec) > MOST_LETTERS:
        raise VeridicalError(
            f"the {what} {spec[:60]!r}... has {len(spec)} letters; expected {MOST_LETTERS} at most. Name fewer terms."
        )
    terms = []
    for part in _split(spec, "+", what):
        match = _TERM.fullmatch(part.strip())
        if not match:
            raise VeridicalError(
                f"cannot read {part.strip()!r} in the {what} {spec!r}. "
                "Expected terms like 'l2', '0.2*lpips', 'auto*lpips' or 'pdl(order=1)', joined by '+'."
            )
        terms.append(Term(match["name"], _weight(match, spec, what), _options(match["options"], spec, what)))
    return terms


def _weight(match: re.Match[str], spec: str, what: str) -> float | Term:
    weight = match["weight"]
    if weight is None:
        return 1.0
    if weight.startswith("auto"):
        return Term("auto", options=_options(match["auto"], spec, what))
    try:
        return float(weight)
    except ValueError:
        raise VeridicalError(f"{weight!r} in the {what} {spec!r} is not a number.") from None


def parse_one(spec: str, what: str, example: str) -> Term:
    """Read a spec that must name one thing, unweighted.

    >>> parse_one("unet(levels=2)", "model", "unet").options
    {'levels': 2}
    """
    term, *more = parse(spec, what)
    if more or term.weight != 1:
        raise VeridicalError(f"expected one {what}, such as {example!r}, but got {spec!r}.")
    return term


def _split(text: str, separator: str, what: str) -> list[str]:
    """Split at separators that stand outside brackets and quotes, and not inside an exponent such as 1e+3."""
    parts, depth, quote, start = [], 0, "", 0
    for i, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == separator and depth == 0 and not re.search(r"(?:^|[^\w-])[\d.]+[eE]$", text[start:i]):
            parts.append(text[start:i])
            start = i + 1
    if depth or quote:
        raise VeridicalError(f"the {what} {text!r} has an unclosed bracket or quote.")
    return [*parts, text[start:]]


def _options(text: str | None, spec: str, what: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if not text or not text.strip():
        return options
    for part in _split(text, ",", what):
        key, equals, value = part.partition("=")
        if not equals or not key.strip().isidentifier():
            raise VeridicalError(f"cannot read the option {part.strip()!r} in the {what} {spec!r}. Expected key=value.")
        options[key.strip()] = _literal(value.strip())
    return options


def _literal(text: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of Python, which this is not
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return {"true": True, "false": False}.get(text, text)
    except (RecursionError, MemoryError) as error:  # what the parser raises where brackets or signs stand too deep
        raise VeridicalError(f"the value {text[:60]!r}... is nested too deeply.") from error


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency, or raise MissingExtra naming the extra that brings it.

    >>> require("math", "compare", "nothing").pi > 3
    True
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"{purpose} needs {module.partition('.')[0]!r}, which cannot be imported ({error}). "
            f'Install it with: pip install "veridical[{extra}]"'
        ) from error
