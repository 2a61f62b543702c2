"""Bounds of an objective's parameters: what a user can get wrong is answered with value, bound and remedy."""

import dataclasses
import difflib
import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, get_args

from cong.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def nearest(word: str, known: Collection[str]) -> str:
    """A sentence that names the nearest known word, if one is near, and all of them."""
    matches = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {matches[0]!r}? " if matches else ""
    return f"{hint}Known: {', '.join(sorted(known)) or 'none'}"


def _refusal(objective: "DataclassInstance", parameter: str, problem: str) -> ConfigError:
    fields = {field.name: field.default for field in dataclasses.fields(objective)}
    name = getattr(objective, "name", type(objective).__name__)
    value = getattr(objective, parameter)
    return ConfigError(
        f"objective {name!r}: {parameter} = {value!r} {problem}; leave it out for the default {fields[parameter]!r}"
    )


def check_number(
    objective: "DataclassInstance",
    parameter: str,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
) -> None:
    """Refuse a parameter that is no finite number within its bounds."""
    value = getattr(objective, parameter)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _refusal(objective, parameter, "is not a finite number")
    if not (above < value < below and at_least <= value <= at_most):
        bounds = {"above": above, "at least": at_least, "at most": at_most, "below": below}
        told = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound))
        raise _refusal(objective, parameter, f"is out of bounds: it has to be {told}")


def check_choice(objective: "DataclassInstance", parameter: str, choices: Any) -> None:
    """Refuse a parameter that is none of the words of a Literal type."""
    words = get_args(choices)
    value = getattr(objective, parameter)
    if value not in words:
        raise _refusal(objective, parameter, f"is not a choice ({nearest(str(value), words)})")
