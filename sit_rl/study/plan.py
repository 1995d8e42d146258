"""A study's file: its rows, seeds and budget, and the runs that they make.

preset: fashion
seeds: [0, 1, 2]
match: [images, compute]               what the control's budget gives the others equally
settings: {steps: 24, lr: 1e-4}        of every row; names as in config.yaml
rows:                                  name: what differs
  rolling: {}
  fresh: {reference: fresh}
grid: {lr: [1e-4, 2e-4]}               every combination, for each row
evaluate:                              without training; `of` names a row, or `base`
  fresh at the last step, SDE 80: {of: fresh, evaluate_sde: {steps: 80}}
guidance:                              without training: every combination, under both samplers
  of: [base, fresh]
  scales: [1.1, 1.25, 1.5]
  intervals: [[0, 1]]
control: rolling                       default: the first row
"""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastfid.runtime.errors import one_line, shown
from fastfid.runtime.input_files import reading
from sit_rl.config import Config, resolve
from sit_rl.config_files import read_yaml, with_plain_values
from sit_rl.options.option import LARGEST
from sit_rl.presets import PRESETS
from sit_rl.study.budget import COUNTS, matched_steps, spent

FILE_BYTES = 1 << 18  # a study of a thousand rows takes less
MOST_ROWS = 10_000  # each is checked, which takes a millisecond, and runs for minutes at least
MOST_TOLD = 600  # characters of a sentence about a study, in which names of rows may be long
LONGEST_SLUG = 200  # bytes of a folder's name, beside the seed; file systems take 255
KEYS = ("preset", "seeds", "match", "settings", "rows", "grid", "evaluate", "guidance", "control")
BASE = "base"  # name of the untrained model as a row
SAMPLERS = ("evaluate_ode", "evaluate_sde")


@dataclass(frozen=True)
class Row:
    """One row of the study's table.

    config   without seed and folder
    trained  whether it trains, or only evaluates
    matched  what its steps are matched by: images, compute, both, or nothing
    of       the row whose weights it evaluates, None for the model that every row starts from
    """

    name: str
    config: Config
    trained: bool
    matched: tuple[str, ...] = ()
    of: str | None = None

    @property
    def slug(self) -> str:
        """Name of its folders, without the seed."""
        words = re.sub(r"[^\w.+=-]+", "-", self.name).strip("-")
        return f"{words}-{self.config.steps}-steps" if self.trained else words


@dataclass(frozen=True)
class Study:
    """The rows and seeds of a study; `control` is the row that the others are compared with."""

    name: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    control: str

    def rows_of(self, trained: bool) -> list[Row]:
        """The rows that train, or those that only evaluate."""
        return [row for row in self.rows if row.trained is trained]


def read_study(path: Path) -> Study:
    """The study of a YAML file; ValueError in one sentence that names the file, the key and its value."""
    values = read_yaml(path, FILE_BYTES, "correct the file")
    with reading(path, "correct the file"):
        try:
            return study_of(path.stem, values)
        except ValueError as error:
            raise ValueError(f"{path}: {one_line(error, MOST_TOLD)}") from None


def study_of(name: str, values: Any) -> Study:
    """The study of a file's plain values; ValueError for what cannot be run."""
    values = _table(values, "the study", KEYS)
    settings = _table(values.get("settings", {}), "settings")
    base = _changed(_preset(values.get("preset", "fashion")), settings, "settings")
    match = _match(values.get("match", ["images"]))
    configs = {
        name: _changed(base, changes, f"row {name}")
        for name, changes in _grid(_rows(values), values.get("grid", {})).items()
    }
    control = str(values.get("control", next(iter(configs), BASE)))
    if control not in (*configs, BASE):
        raise ValueError(f"control is {shown(repr(control))}, which is no row; choose one of {', '.join(configs)}")
    rows = _trained(configs, configs.get(control), match) + _evaluated(values, configs, base)
    _check_names(rows)
    return Study(name, tuple(rows), _seeds(values.get("seeds", [0])), control)


def _preset(name: Any) -> Config:
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"preset is {shown(repr(name))}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name][1]


def _match(words: Any) -> tuple[str, ...]:
    found = tuple(words) if isinstance(words, list) else (words,)
    for word in found:
        if not isinstance(word, str) or word not in COUNTS:
            raise ValueError(f"match has {shown(repr(word))}; choose images, compute, or both")
    if len(set(found)) < max(1, len(found)):
        raise ValueError(f"match is {shown(repr(words))}; choose images, compute, or both, each once")
    return found


def _seeds(seeds: Any) -> tuple[int, ...]:
    if not isinstance(seeds, list) or not seeds or any(type(s) is not int or not 0 <= s <= LARGEST for s in seeds):
        raise ValueError(f"seeds is {shown(repr(seeds))}; write a list of numbers from 0 on, such as [0, 1, 2]")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds is {shown(repr(seeds))}, which names one twice")
    return tuple(seeds)


def _rows(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What differs in each trained row, by name."""
    rows = _table(values.get("rows", {} if "evaluate" in values or "guidance" in values else {"default": {}}), "rows")
    if not rows and "grid" in values:
        rows = {"": {}}
    out = {}
    for name, changes in rows.items():
        changes = _table({} if changes is None else changes, f"row {name}")
        if name == BASE:
            raise ValueError(f"a row is named {BASE}, which stands for the untrained model; choose another name")
        out[str(name)] = changes
    return out


def _grid(rows: dict[str, dict[str, Any]], grid: Any) -> dict[str, dict[str, Any]]:
    """Every row with every combination of the grid's values."""
    axes = _table(grid, "grid")
    for key, choices in axes.items():
        if not isinstance(choices, list) or not choices:
            raise ValueError(f"grid has {key}: {shown(repr(choices))}; write a list of values")
        if len(set(map(str, choices))) < len(choices):
            raise ValueError(f"grid has {key}: {shown(repr(choices))}, which names one twice")
    combinations = len(rows) * math.prod(map(len, axes.values()))
    if combinations > MOST_ROWS:
        raise ValueError(f"grid makes {combinations:,} rows; a study has at most {MOST_ROWS:,}")
    out = {}
    for name, changes in rows.items():
        for values in itertools.product(*axes.values()):
            words = [f"{key}={value}" for key, value in zip(axes, values, strict=True)]
            out[" ".join(filter(None, [name, *words]))] = changes | dict(zip(axes, values, strict=True))
    return out


def _changed(base: Config, changes: dict[str, Any], where: str) -> Config:
    """The base with a row's changes, checked; ValueError that names the row."""
    _require_names(changes, where)
    chosen = ("seed", "out", "resume", "dry_run", "preset", *(() if where == "settings" else ("steps",)))
    fixed = [key for key in chosen if key in changes]
    try:
        if fixed:
            raise ValueError(f"{fixed[0]} is the study's to choose (steps, seeds and preset are set once); remove it")
        config = with_plain_values(base, changes)
        resolve(config).check()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from None
    return config


def _trained(configs: dict[str, Config], control: Config | None, match: tuple[str, ...]) -> list[Row]:
    """Each trained row with the steps that match the control's budget: one row for both if they are equal."""
    rows = []
    of_control = {what: spent(resolve(control), what) for what in match} if control else {}
    for name, config in configs.items():
        full = resolve(config)
        by_steps: dict[int, list[str]] = {}
        for what in match:
            try:
                budget = of_control[what] if control else spent(full, what)
                by_steps.setdefault(matched_steps(full, what, budget), []).append(what)
            except ValueError as error:
                raise ValueError(f"row {name}, matched by {what}: {error}") from None
        rows += [Row(name, config.changed(steps=n), True, tuple(words)) for n, words in by_steps.items()]
    return rows


def _evaluated(values: dict[str, Any], configs: dict[str, Config], base: Config) -> list[Row]:
    """The rows without training, after the untrained model itself."""
    asked = {str(k): _table(v, f"row {k}") for k, v in _table(values.get("evaluate", {}), "evaluate").items()}
    asked |= _guidance(values.get("guidance"))
    rows = [Row(BASE, base, False)] if asked else []
    for name, changes in asked.items():
        of = str(changes.get("of", BASE))
        if of not in (*configs, BASE):
            raise ValueError(
                f"row {name}: of is {shown(repr(of))}, which is no row; choose {', '.join((BASE, *configs))}"
            )
        changes = {key: value for key, value in changes.items() if key != "of"}
        _require_names(changes, f"row {name}")
        wrong = [key for key in changes if not key.startswith("evaluate_") or key.startswith("evaluate_every")]
        if wrong:
            raise ValueError(f"row {name}: {wrong[0]} has no effect without training; set evaluate_… or move the row")
        config = configs.get(of, base)
        rows.append(Row(name, _changed(config, changes, f"row {name}"), False, of=None if of == BASE else of))
    return rows


def _guidance(sweep: Any) -> dict[str, dict[str, Any]]:
    """The rows of a sweep of guidance, by name."""
    if sweep is None:
        return {}
    sweep = _table(sweep, "guidance", ("of", "scales", "intervals"))
    of, scales, intervals = sweep.get("of", [BASE]), sweep.get("scales"), sweep.get("intervals", [[0.0, 1.0]])
    if not isinstance(scales, list) or not scales or not all(map(_is_number, scales)):
        raise ValueError(f"guidance has scales {shown(repr(scales))}; write a list of numbers such as [1.1, 1.25]")
    if not isinstance(intervals, list) or not intervals or not all(map(_is_interval, intervals)):
        raise ValueError(f"guidance has intervals {shown(repr(intervals))}; write pairs such as [[0, 1], [0.2, 0.8]]")
    rows = {}
    for row, scale, (first, last) in itertools.product(of if isinstance(of, list) else [of], scales, intervals):
        within = "" if [first, last] == [0, 1] else f" in {first:g}–{last:g}"
        guided = {"guidance": float(scale), "guidance_from": float(first), "guidance_until": float(last)}
        name = f"{row} + guidance {scale:g}{within}"
        if name in rows:
            raise ValueError(f"guidance names {shown(name)} twice; write scales that differ in six digits")
        rows[name] = {"of": row} | dict.fromkeys(SAMPLERS, guided)
    return rows


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number that a float holds."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _require_names(changes: dict[Any, Any], where: str) -> None:
    """ValueError for a key that is no text, as YAML's numbers are."""
    other = next((key for key in changes if not isinstance(key, str)), None)
    if other is not None:
        raise ValueError(f"{where} has the key {shown(repr(other))}, which is no name of a setting")


def _table(value: Any, what: str, keys: tuple[str, ...] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {shown(repr(value))}, not a table of names and values")
    unknown = [key for key in value if keys is not None and key not in keys]
    if unknown:
        raise ValueError(f"{what} has the unknown key {shown(repr(unknown[0]))}; it may have {', '.join(keys or ())}")
    return value


def _check_names(rows: list[Row]) -> None:
    """ValueError for no rows, and for two rows that would share a folder."""
    if not rows:
        raise ValueError("there is nothing to run: give rows, grid, evaluate or guidance")
    if len(rows) > MOST_ROWS:
        raise ValueError(f"there are {len(rows):,} rows; a study has at most {MOST_ROWS:,}")
    slugs = Counter(row.slug.casefold() for row in rows)  # some file systems do not tell A from a
    for row in rows:
        if slugs[row.slug.casefold()] > 1:
            raise ValueError(f"two rows would have the folder {row.slug}; give them names that differ in letters")
        if len(row.slug.encode()) > LONGEST_SLUG:
            raise ValueError(f"row {shown(row.name)} has a name of {len(row.name)} characters; give it a shorter one")
        if not row.name.isprintable():
            raise ValueError(f"row {shown(row.name)} has a control character in its name; remove it")


def with_seed(row: Row, seed: int, folder: Path) -> Config:
    """The config of one run of a row."""
    return replace(row.config, seed=seed, out=folder)
