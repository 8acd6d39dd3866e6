"""The recipe: all that decides what a comparison computes, in one TOML file, checked before anything runs."""

import copy
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from veridical.core.catalog import nearest
from veridical.core.errors import RecipeError
from veridical.core.untrusted import read_file, short
from veridical.degradations import TASKS
from veridical.training.settings import Settings

MOST_BYTES = 2**20
"""Of a recipe's file."""
MOST_LOSSES = 1000
"""Of a recipe, and of models and methods."""
_DEEPEST = 8  # tables inside each other; [small.training] and a list in it make 4


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Data(_Part):
    """Where photographs come from. Without any of these: the demo's photographs.

    train:          folder of sharp photographs, degraded as they are drawn; or a set of real pairs as its authors ship
                    it, LAYOUT:FOLDER with a layout of training/layouts.py, such as gopro:GOPRO_Large.
    evaluate:       the same to evaluate on, of a set its test part; without it, some of `train` are held out.
    pairs:          two folders of real pairs to train on: degraded, sharp.
    pairs_evaluate: two folders of real pairs to evaluate on; without it, some of `pairs` are held out.
    kernels:        folder of .npy files, the measured blur kernels of the real pairs that are evaluated on, for what
                    needs them (`classical`). A pair takes the one of its own name, else the one whose name ends with
                    the same number: im05_ker03 takes kernel03.npy.
    flip_kernels:   the files hold kernels of a correlation, such as Levin's: turn them by half a circle.
    """

    train: str | None = None
    evaluate: str | None = None
    pairs: tuple[str, str] | None = Field(default=None, strict=False)
    pairs_evaluate: tuple[str, str] | None = Field(default=None, strict=False)
    kernels: str | None = None
    flip_kernels: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        if self.train and self.pairs:
            raise ValueError("data.train and data.pairs are both set; train on photographs or on real pairs.")
        if self.evaluate and self.pairs_evaluate:
            raise ValueError("data.evaluate and data.pairs_evaluate are both set; evaluate on one of them.")
        return self


class Model(_Part):
    """The restorer. None means: what the task (name) or the model (width) has by default.

    channels: 3 (RGB) or 1 (luma), of the model and of all images.
    """

    name: str | None = None
    width: int | None = Field(default=None, ge=1, le=65536)
    channels: int = 3

    @field_validator("channels")
    @classmethod
    def _rgb_or_luma(cls, channels: int) -> int:
        if channels not in (1, 3):
            raise ValueError(f"model.channels must be 3 (RGB) or 1 (luma), but got {channels}.")
        return channels


class Resources(_Part):
    """What one training of a comparison asks of the machines that `--on` names.

    cpus:      cores, which are also its threads of torch. gpus: None means `training.devices` where the machines have
               GPUs and the device is cuda or auto, else none; 0.5 puts two trainings on one.
    memory_gb: of main memory; None asks for none.
    custom:    of what the machines call their own resources, such as {a100 = 1}.
    retries:   how often a training is taken up again, from its last checkpoint, when its machine or process is lost.
    """

    cpus: float = Field(default=1, gt=0, strict=False)
    gpus: float | None = Field(default=None, ge=0, strict=False)
    memory_gb: float | None = Field(default=None, gt=0, strict=False)
    custom: dict[str, float] = Field(default_factory=dict, strict=False)
    retries: int = Field(default=3, ge=0)


class Recipe(_Part):
    """One task, one data set; several losses, one model or several.

    What is not given is the task's, where it has its own: the model's name and channels, settings of the training,
    metrics.

    degradation: a spec that takes the place of the task's own.
    losses:      name -> spec. A list in TOML gives each spec its own text as name.
    models:      name -> spec, in place of `model.name`: each is trained with each loss. A list as for losses.
    classical:   specs of methods without training, which are judged beside the models.
    init:        the folder of one loss of a finished run, runs/x/l1: every loss starts from its weights instead of
                 random ones, and the model is the one in it.
    resources:   of one training, on machines that share the work.
    out:         the run's folder, or the URL of one, such as s3://bucket/run.
    """

    task: str = "deblur"
    degradation: str | None = None
    losses: dict[str, str] = Field(default_factory=lambda: {"l2": "l2", "l1": "l1"})
    models: dict[str, str] | None = None
    classical: tuple[str, ...] = Field(default=(), strict=False)
    init: str | None = None
    metrics: tuple[str, ...] = Field(default=("psnr", "ssim", "ms-ssim", "lpips", "sharpness-q"), strict=False)
    data: Data = Data()
    model: Model = Model()
    training: Settings = Settings()
    resources: Resources = Resources()
    out: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _training_of_the_task(cls, values: Any) -> Any:
        task = TASKS.get(str(values.get("task", "deblur"))) if isinstance(values, dict) else None
        given = values.get("training", {}) if task else None
        if task and task.training and isinstance(given, dict):
            return {**values, "training": {**task.training, **given}}
        return values

    @model_validator(mode="after")
    def _rest_of_the_task(self) -> "Recipe":
        task = TASKS.get(self.task)  # an unknown one is the plan's to refuse
        if task and task.metrics and "metrics" not in self.model_fields_set:
            # Not as a field that was set: metrics that nobody asked for by name give way where they cannot be computed.
            object.__setattr__(self, "metrics", task.metrics)
        if task and "channels" not in self.model.model_fields_set:
            model = self.model.model_copy()  # with an update it would count as set, and contradict that of an `init`
            object.__setattr__(model, "channels", task.channels)
            object.__setattr__(self, "model", model)
        return self

    @field_validator("losses", "models", mode="before")
    @classmethod
    def _list_to_table(cls, specs: Any, info: ValidationInfo) -> Any:
        key = str(info.field_name)
        if isinstance(specs, str):
            specs = [specs]
        if isinstance(specs, list | tuple):
            specs = {spec: spec for spec in _specs(key, specs)}
        if isinstance(specs, dict) and not specs:
            example = {"losses": '["l1", "l2"]', "models": '["unet", "dncnn"]'}[key]
            raise ValueError(f"{key} is empty; name at least one, as in {key} = {example}.")
        if isinstance(specs, dict) and len(specs) > MOST_LOSSES:
            raise ValueError(f"{key} names {len(specs)}; expected {MOST_LOSSES} at most.")
        return specs

    @field_validator("classical", mode="before")
    @classmethod
    def _one_method_to_list(cls, methods: Any) -> Any:
        methods = [methods] if isinstance(methods, str) else methods
        return _specs("classical", methods) if isinstance(methods, list | tuple) else methods

    @field_validator("training", mode="before")
    @classmethod
    def _table_to_settings(cls, training: Any) -> Any:
        if not isinstance(training, dict):
            return training
        for key in training:
            if key not in _keys_at(["training"]):
                raise RecipeError(_unknown(["training", key]))
        return Settings(**training)

    @field_validator("metrics", mode="before")
    @classmethod
    def _one_metric_to_list(cls, metrics: Any) -> Any:
        metrics = [metrics] if isinstance(metrics, str) else metrics
        if isinstance(metrics, list | tuple) and not metrics:
            raise ValueError('metrics is empty; name at least one, as in metrics = ["psnr"].')
        return metrics

    @model_validator(mode="after")
    def _one_way_to_name_models(self) -> "Recipe":
        if self.models is None:
            return self
        for key, given in (("model.name", self.model.name), ("init", self.init)):
            if given is not None:
                raise ValueError(f"models and {key} are both set; name the models in one place.")
        if self.model.width is not None:
            raise ValueError(
                f"models and model.width are both set; write the width where it belongs: "
                f"models = ['unet(width={self.model.width})']."
            )
        return self

    def to_toml(self) -> str:
        """The recipe as TOML, with every default written out; `load_recipe` reads it back to an equal recipe.

        >>> Recipe.model_validate(tomllib.loads(Recipe().to_toml())) == Recipe()
        True
        """
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))


def _specs(key: str, specs: Sequence[Any]) -> list[str]:
    """The specs of a list, each with single spaces. Errors: ValueError for anything but text, and for one twice."""
    if not all(isinstance(spec, str) for spec in specs):
        raise ValueError(f"{key} must be specs in quotes, but got {short(list(specs))}.")
    if len(specs) > MOST_LOSSES:
        raise ValueError(f"{key} names {len(specs)}; expected {MOST_LOSSES} at most.")
    found = [" ".join(spec.split()) for spec in specs]
    twice = sorted({spec for spec in found if found.count(spec) > 1})
    if twice:
        raise ValueError(f"{key} names {', '.join(twice)} twice.")
    return found


def load_recipe(
    source: Path | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    *,
    file: Path | None = None,
    allow_code: bool = False,
) -> Recipe:
    """A recipe from a TOML file, from nested tables, or from the defaults, with `key=value` overrides in order.

    A value is read as TOML, and a bare word as a string: training.lr=2e-4, task=denoise, losses=["l1",
    "pdl"]. Relative paths in a recipe start at the current folder.

    Args:   file: where the tables come from, when they were read from a file already.
            allow_code: a recipe's file may name losses such as "my_file.py:MyLoss", which run that file. Without it
            only those of `overrides` and of tables without a file, which whoever calls has written, may be such.
    Errors: RecipeError for a file that cannot be read, an unknown key (suggests the nearest), a wrong value, or code
            that is not allowed.
    """
    values: dict[str, Any] = {}
    if isinstance(source, Mapping):
        values = copy.deepcopy(dict(source))
    elif source is not None:
        file = Path(source)
        values = read_toml(file)
    given: dict[str, Any] = {}
    for override in overrides:
        _set(values, override)
        _set(given, override)
    recipe = make_recipe(values)
    if file is not None and not allow_code:
        _refuse_code(recipe, given.get("losses"), file)
    return recipe


def _refuse_code(recipe: Recipe, given: Any, file: Path) -> None:
    """RecipeError for a loss of somebody's own file, unless it is among the given ones."""
    written = given.values() if isinstance(given, dict) else [given] if isinstance(given, str) else given or ()
    own = {" ".join(spec.split()) for spec in written if isinstance(spec, str)}
    for spec in recipe.losses.values():
        if ".py:" in spec and " ".join(spec.split()) not in own:
            raise RecipeError(
                f"the recipe {file} names the loss {short(spec)}, whose file is code: it would run with all your "
                "rights. Read it; then allow it with --allow-code (in Python allow_code=True), or name the loss "
                "yourself: --losses."
            )


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a recipe's file. Errors: RecipeError when it cannot be read."""
    try:
        values = tomllib.loads(read_file(path, MOST_BYTES).decode("utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise RecipeError(f"the recipe {path} is not TOML: {error}.") from error
    level: list[Any] = [values]
    for _ in range(_DEEPEST):
        level = [each for one in level for each in (one.values() if isinstance(one, dict) else one)]
        level = [each for each in level if isinstance(each, dict | list)]
    if level:
        raise RecipeError(f"the recipe {path} has tables and lists inside each other, deeper than {_DEEPEST}.")
    return values


def make_recipe(values: Mapping[str, Any]) -> Recipe:
    """A recipe from nested tables. Errors: RecipeError that names every wrong key."""
    try:
        return Recipe.model_validate(dict(values))
    except ValidationError as error:
        faults = [_explain(fault) for fault in error.errors()]
        raise RecipeError("\n".join(dict.fromkeys(faults))) from error


def _set(values: dict[str, Any], override: str) -> None:
    """Put one `a.b=value` into nested tables."""
    key, equals, text = (part.strip() for part in override.partition("="))
    if not equals or not key:
        raise RecipeError(f"cannot read the setting {override!r}. Expected key=value, as in training.lr=2e-4.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    *tables, last = key.split(".")
    at = values
    for depth, name in enumerate(tables, start=1):
        at = at.setdefault(name, {})
        if not isinstance(at, dict):
            raise RecipeError(f"cannot set {key}: {'.'.join(tables[:depth])} is {at!r}, not a table of keys.")
    at[last] = value


def _explain(fault: Any) -> str:
    """One sentence or two for one of pydantic's errors."""
    keys = [str(step) for step in fault["loc"]]
    dotted = ".".join(keys)
    if fault["type"] == "extra_forbidden":
        return _unknown(keys)
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    if fault["type"] in ("dataclass_type", "dataclass_exact_type", "model_type"):
        return f"{dotted} must be a table of keys, but got {short(fault['input'])}."
    expected = fault["msg"].removeprefix("Input should be ")
    return f"{dotted} must be {expected}, but got {short(fault['input'])}."


def _unknown(keys: list[str]) -> str:
    """What to say of an unknown key: the same in another table is meant before one like it in this table."""
    known = _keys_at(keys[:-1])
    paths = {
        name: f"{table}.{name}" for table in ("training", "model", "data", "resources") for name in _keys_at([table])
    }
    close = paths.get(keys[-1]) or nearest(keys[-1], known) or paths.get(nearest(keys[-1], paths) or "")
    hint = f"Did you mean {close!r}? " if close else ""
    return f"unknown recipe key {'.'.join(keys)!r}. {hint}Known here: {', '.join(known)}."


def _keys_at(keys: list[str]) -> list[str]:
    """The keys a recipe knows below a path of keys."""
    at: Any = Recipe
    for key in keys:
        at = at.model_fields[key].annotation
    return [f.name for f in fields(at)] if is_dataclass(at) else list(at.model_fields)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    return value
