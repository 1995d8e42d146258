"""The settings of a run as tables, one for each group of options."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from sit_rl.config import places
from sit_rl.options.option import dashed

OWN = "run"  # heading of the options without a group
NEVER_CHANGED = ("out", "resume", "preset", "seed")  # different in every run


def settings_table(config: dict[str, Any], preset: dict[str, Any]) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """(group, [(flag, value, whether it differs from the preset's)]) of a config by flat names.

    Names that this version does not know are the last group.
    """
    known = [name for name in places() if name in config]
    groups = [
        (group or OWN, [_row(name, config, preset) for name in names])
        for group, names in groupby(known, key=lambda name: places()[name].group)
    ]
    others = [_row(name, config, {}) for name in config if name not in places()]
    return [*groups, ("other", others)] if others else groups


def _row(name: str, config: dict[str, Any], preset: dict[str, Any]) -> tuple[str, str, bool]:
    changed = name in preset and name not in NEVER_CHANGED and config[name] != preset[name]
    return dashed(name), _text(config[name]), changed


def _text(value: Any) -> str:
    """A value as text for people."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items())
    if isinstance(value, list):
        return " ".join(map(_text, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value}"
