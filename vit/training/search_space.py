"""What a search may change: names of config fields, each with a range or a list of choices.

A suggestion is a dict such as {"train.learning_rate": 0.003, "model.depth": 4}. Whether the combination is allowed is
for the configs to say.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from vit.arguments import is_integer, is_number, nearest
from vit.config import TrainConfig, ViTConfig

_FIELDS = {
    f"{part}.{field.name}": field.type
    for part, config in (("model", ViTConfig), ("train", TrainConfig))
    for field in fields(config)
}


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones for a field that holds whole numbers.

    Args:
        log: whether equal ratios are equally likely, as suits learning rates, instead of equal differences.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            value = getattr(self, name)
            if not is_number(value) or not math.isfinite(value):
                raise ValueError(f"Range.{name}={value!r} must be a finite number")
            # numpy's numbers are stored as Python's
            object.__setattr__(self, name, int(value) if is_integer(value) else float(value))
        if not self.low < self.high:
            raise ValueError(f"Range.low={self.low} must be below high={self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"Range.low={self.low} must be above 0 with log=True")


Space = Mapping[str, Range | Sequence[Any]]


def check_space(space: Space) -> None:
    """Raises a ValueError unless every name is a config field and every value a range or choices that suit it."""
    if not isinstance(space, Mapping) or not space:
        raise ValueError(f"space={space!r} must be a dict with a name or more, such as 'train.learning_rate'")
    for name, values in space.items():
        if name not in _FIELDS:
            meant = _nearest_field(str(name))
            hint = f"did you mean {meant!r}? " if meant else ""
            raise ValueError(f"space has no field {name!r} to change; {hint}names: {', '.join(_FIELDS)}")
        if isinstance(values, Range):
            _check_range(name, values)
        elif not isinstance(values, (list, tuple)) or not values:
            raise ValueError(f"space[{name!r}]={values!r} must be a Range or a list of one or more choices")
        elif len({str(value) for value in values}) < len(values):
            raise ValueError(f"space[{name!r}]={values!r} holds a choice twice")


def _nearest_field(name: str) -> str:
    of_field = {known.partition(".")[2]: known for known in _FIELDS}  # no field is in both configs
    return of_field.get(nearest(name.rpartition(".")[2], of_field), "")


def _check_range(name: str, values: Range) -> None:
    if _FIELDS[name] not in (int, float, float | None):
        raise ValueError(f"space[{name!r}]={values} is a range, but the field holds no plain number: give a list")
    if _FIELDS[name] is int and not (isinstance(values.low, int) and isinstance(values.high, int)):
        raise ValueError(f"space[{name!r}]={values} must have whole numbers as bounds, as the field holds them")


def make_distributions(space: Space) -> dict[str, Any]:
    """The space in Optuna's terms. Choices go by their text, since Optuna knows no tuples."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def distribution(name: str, values: Range | Sequence[Any]) -> Any:
        if not isinstance(values, Range):
            return CategoricalDistribution([str(value) for value in values])
        kind = IntDistribution if _FIELDS[name] is int else FloatDistribution
        return kind(values.low, values.high, log=values.log)

    return {name: distribution(name, values) for name, values in space.items()}


def read_suggestion(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """Optuna's suggestion with the choices themselves in place of their texts."""
    return {
        name: params[name] if isinstance(values, Range) else next(v for v in values if str(v) == params[name])
        for name, values in space.items()
    }


def change_configs(
    model_config: ViTConfig, train_config: TrainConfig, changes: Mapping[str, Any]
) -> tuple[ViTConfig, TrainConfig]:
    """The configs with the changes made, or the ValueError of the one that refuses them."""
    of_part: dict[str, dict[str, Any]] = {"model": {}, "train": {}}
    for name, value in changes.items():
        part, _, field = name.partition(".")
        of_part[part][field] = value
    return replace(model_config, **of_part["model"]), replace(train_config, **of_part["train"])
