"""A field of a group of options: its default, what it means, its lower bound, and whether a resumed run may change it.

`Config` (config.py) holds one of each group.  A function takes the group that it uses.
"""

from __future__ import annotations

import math
from dataclasses import Field, field, fields
from typing import Any, TypeVar

from fastfid.runtime.errors import shown

Value = TypeVar("Value")

LARGEST = 2**63 - 1  # whole number that torch takes


def option(
    default: Any,
    meaning: str = "",
    *,
    flag: str | None = None,
    least: float | None = None,
    above: float | None = None,
    machine: bool = False,
) -> Any:
    """A field of a group.

    meaning  help text of the flag
    flag     name on the command line and in files, without dashes; the field's name unless given
    least    smallest allowed value; `above` is the largest value that is not allowed
    machine  the field says where and how to run: results depend on it within rounding, and a resume may change it
    """
    metadata = {"meaning": meaning, "flag": flag, "least": least, "above": above, "machine": machine}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def flag_of(f: Field[Any]) -> str:
    """Name of a field on the command line and in files, without dashes."""
    return f.metadata["flag"] or f.name


def dashed(flag: str) -> str:
    """The flag as it is typed: --reference-size."""
    return "--" + flag.replace("_", "-")


def filled_in(value: Value | None) -> Value:
    """The value of a field whose default depends on the estimator; ValueError before `resolve` has filled it in."""
    if value is None:
        raise ValueError("a value of the config is still the estimator's default; call resolve first")
    return value


def check_bounds(group: Any) -> None:
    """ValueError for a number of a group that is not finite or is below its bound."""
    for f in fields(group):
        value = getattr(group, f.name)
        if value is None or "flag" not in f.metadata:
            continue
        name = dashed(flag_of(f))
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}; it must be a finite number")
        if isinstance(value, int) and value > LARGEST:
            raise ValueError(f"{name} is {shown(str(value))}; it must be at most {LARGEST}")
        least, above = f.metadata["least"], f.metadata["above"]
        if least == 0 and value < 0:
            raise ValueError(f"{name} is {value}; it must not be negative")
        if least is not None and value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
        if above is not None and not value > above:
            raise ValueError(f"{name} is {value}; it must be positive")
