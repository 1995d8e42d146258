"""A run's configuration in files: the saved config.yaml, and the fields that a file of --config gives.

Files use the flat names of the fields.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from fastfid.runtime.errors import one_line, shown
from fastfid.runtime.input_files import read_text, reading
from sit_rl.config import Config, places, plain, resolve
from sit_rl.sampling.sampler_config import SamplerConfig

NEAR = 0.7  # similarity of a mistyped field to the one that is meant; unrelated words reach 0.6
CONFIG_BYTES = 1 << 16  # of config.yaml, which has 4 KiB; a parser of YAML in Python takes seconds for a MiB
DEEPEST = 10  # lists and tables in brackets inside each other; a config has 2


def load_config(path: Path) -> Config:
    """Read a saved config; ValueError if it cannot be read, or has a field of unknown name or of another type."""
    remedy = "restore it, or choose another --out"
    values = read_yaml(path, CONFIG_BYTES, remedy)
    try:
        config = Config.of(**_converted(values, {name: place.hint for name, place in places().items()}))
        resolve(config).check()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}; {remedy}") from None
    return config


def texts_in(path: Path) -> dict[str, str]:
    """The fields of a file of --config that are texts, by name; ValueError if the file cannot be read."""
    values = _given(path)
    return {k: v for k, v in values.items() if isinstance(v, str)} if isinstance(values, dict) else {}


def with_file(default: Config, path: Path) -> Config:
    """`default` with the fields of a file of --config; ValueError, in one sentence, as `with_plain_values`."""
    values = _given(path)
    with _named(path):
        return with_plain_values(default, values)


def values_in(path: Path, hints: dict[str, Any]) -> dict[str, Any]:
    """The fields of a file of --config whose types are `hints`, by name; ValueError, in one sentence, otherwise."""
    values = _given(path)
    with _named(path):
        return _converted(values, hints)


def _given(path: Path) -> Any:
    """The plain value of a file of --config."""
    return read_yaml(path, CONFIG_BYTES, "correct --config")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Inside the block, an error about the fields of a file of --config names the file."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ValueError(f"--config {path}: {error}") from None


def with_plain_values(config: Config, values: Any) -> Config:
    """A copy with values by flat name, as a file gives them; a table for a sampler changes only the fields in it.

    ValueError for an unknown name, with the nearest one, or a value of another type.
    """
    hints = {name: place.hint for name, place in places().items()}
    if isinstance(values, dict):
        values = {name: _completed(config[name], value) if name in hints else value for name, value in values.items()}
    return config.changed(**_converted(values, hints))


def _completed(present: Any, value: Any) -> Any:
    """A file's value, of a sampler with the other fields of the present one."""
    if isinstance(present, SamplerConfig) and isinstance(value, dict):
        return plain(present) | value
    return value


def read_yaml(path: Path, most: int, remedy: str) -> Any:
    """The plain value of a YAML file of at most `most` bytes; ValueError if it cannot be read, with the remedy."""
    if not path.exists():
        raise ValueError(f"{path} cannot be read (No such file or directory); {remedy}")
    with reading(path, remedy):
        try:
            return yaml.load(read_text(path, most), _PlainLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = one_line(error)
            raise ValueError(f"{path} is not YAML ({reason}); {remedy}") from None


class _PlainLoader(yaml.SafeLoader):
    """Refuses what no saved config has: aliases, by which a few lines stand for billions of values, and deep nesting.

    The parser's time grows with the square of the depth.  A key that stands twice is refused as well: the first value
    would be dropped without a word.
    """

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        """The start of a list or table in brackets; YAMLError inside DEEPEST others."""
        if self.flow_level == DEEPEST:
            raise yaml.YAMLError(f"it has more than {DEEPEST} brackets inside each other, which no saved config has")
        super().fetch_flow_collection_start(token)  # type: ignore[misc]  # PyYAML's stubs leave it out

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next value of the file; YAMLError for an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias, which no saved config has")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A table; YAMLError for a key that stands twice in it."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key, count in Counter(keys).items() if count > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"it has the key {shown(repr(twice))} twice in one table")
        return super().construct_mapping(node, deep)


def _converted(values: Any, hints: dict[str, Any]) -> dict[str, Any]:
    """Values by name, each converted to its type; ValueError unless `values` is a dict of known names."""
    if not isinstance(values, dict):
        raise ValueError(f"{type(values).__name__} in place of a table of fields")
    unknown = sorted(str(name) for name in set(values) - set(hints))
    if unknown:
        near = get_close_matches(unknown[0].lstrip("-").replace("-", "_"), [str(name) for name in hints], 1, NEAR)
        hint = f"did you mean {near[0]}?" if near else "--help lists the fields"
        raise ValueError(f"unknown field {shown(repr(unknown[0]))}; {hint}")
    return {name: _convert(name, value, hints[name]) for name, value in values.items()}


def _convert(name: str, value: Any, hint: Any) -> Any:
    """`value` converted to the type `hint`; ValueError, which names the field, if it has another type."""
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for choice in choices:
        if get_origin(choice) is Literal and value in get_args(choice):
            return value
        if choice is Path and isinstance(value, str):
            return Path(value)
        if choice == tuple[str, ...] and isinstance(value, str):  # --judge-features named one network before
            return (value,)
        if get_origin(choice) is tuple and isinstance(value, (list, tuple)):
            return tuple(_convert(name, item, get_args(choice)[0]) for item in value)
        if choice is SamplerConfig and isinstance(value, dict):
            return SamplerConfig(**_converted(value, get_type_hints(SamplerConfig)))
        if choice is float and (type(value) in (int, float) or _is_number(value)):
            try:
                return float(value)
            except OverflowError:
                raise ValueError(f"{name} is {shown(repr(value))}, which is beyond the largest float") from None
        if isinstance(choice, type) and type(value) is choice:
            return value
    raise ValueError(f"{name} is {shown(repr(value))}, which is not of its type {_words(hint)}")


def _is_number(value: Any) -> bool:
    """Whether a value is a number that YAML 1.1 takes for text: 1e-4, without a point."""
    return isinstance(value, str) and bool(re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value))


def _words(hint: Any) -> str:
    """A type in words: int, one of sit, dit, a list of str."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list of {_words(get_args(hint)[0])}"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_words(choice) for choice in get_args(hint))
    return {type(None): "null", Path: "a path", SamplerConfig: "a sampler"}.get(
        hint, getattr(hint, "__name__", f"{hint}")
    )
