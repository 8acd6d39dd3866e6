"""What comparison.json of a run may say: checked where it is read, as a run may come from anybody."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from veridical.core.errors import DataError
from veridical.core.untrusted import is_name, printable, short

MOST_NAMES = 10_000
"""Of losses and models together, of metrics, and of images a hundred times as many."""


def _name(text: str) -> str:
    if text != printable(text) or "\n" in text or "\t" in text:
        raise ValueError("a name with control characters")
    return text


def _slug(text: str) -> str:
    """What begins no path that leads elsewhere."""
    if not is_name(text):
        raise ValueError("expected small letters, digits and hyphens, as `veridical compare` names its folders")
    return text


Name = Annotated[str, Field(max_length=4096), AfterValidator(_name)]
Slug = Annotated[str, AfterValidator(_slug)]
Whole = Annotated[int, Field(ge=0, lt=2**63)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Loss(_Part):
    name: Name
    slug: Slug
    spec: str | None = None
    fixed_spec: str | None = None
    model: str | None = None
    status: str | None = None
    error: str | None = None
    optimises: list[str] | None = None
    seconds: FiniteFloat | None = None
    seconds_per_step: FiniteFloat | None = None
    classical: bool | None = None
    cost: dict[str, FiniteFloat | None] | None = None
    weight_hashes: dict[str, str] | None = None
    seeds: list[Whole] | None = None


class _Metric(_Part):
    name: Name
    higher_is_better: bool
    label: Name | None = None
    unit: str | None = None
    range: str | None = None
    reference: bool | None = None


class _Image(_Part):
    name: Name
    slug: Slug


class _Model(_Part):
    name: str | None = None
    label: str | None = None
    options: dict[str, Any] | None = None
    parameters: Whole | None = None


class _Init(_Part):
    folder: str | None = None
    sha256: str | None = None
    loss: str | None = None
    steps: Whole | None = None


class _About(_Part):
    losses: list[_Loss] = Field(default=[], max_length=MOST_NAMES)
    metrics: list[_Metric] = Field(default=[], max_length=MOST_NAMES)
    images: list[_Image] | None = Field(default=None, max_length=100 * MOST_NAMES)
    model: _Model | None = None
    models: list[_Model] | None = None
    init: _Init | None = None
    dataset: dict[str, Any] | None = None
    machine: dict[str, Any] | None = None
    notes: list[str] | None = None
    seeds: list[Whole] | None = None
    steps: Whole | None = None
    batch_size: Whole | None = None
    crop: Whole | None = None
    task: str | None = None
    degradation: str | None = None
    command: str | None = None
    created: str | None = None
    version: str | None = None


def check_about(about: dict[str, Any], path: Path) -> None:
    """DataError that names the first key of comparison.json with a value that cannot be one of a run's: of another
    type, a number that is not finite, or a folder's name that leads out of the run."""
    try:
        _About.model_validate(about)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        reason = str(fault.get("ctx", {}).get("error") or fault["msg"])
        raise DataError(f"{path}: {where} is {short(fault['input'])}, which no run has: {reason}.") from error
