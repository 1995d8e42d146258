"""Objects that a user names: package.module:NAME, or FILE.py:NAME.

To import a module or a file is to run its code, so name only what you trust.  Nothing here loads torch.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import inspect
import os
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

from fastfid.runtime.errors import first_line, shown
from fastfid.runtime.input_files import TEXT_BYTES, file_bytes

FORM = "package.module:NAME or FILE.py:NAME"  # how messages and help name the form


class NoModule(ValueError):
    """There is no module of this `name`."""

    def __init__(self, name: str):
        self.name = name
        super().__init__(
            f"there is no module {name}: Python looked in the installed packages and in {Path.cwd()}; install it, or "
            "write FILE.py:NAME"
        )


class ImportRaised(ValueError):
    """A module or file at `place` raised `error` while it was imported."""

    def __init__(self, place: str, error: BaseException):
        self.place, self.error = place, error
        super().__init__(f"{place} raised {type(error).__name__}: {first_line(error)} while it was imported")


class NoName(ValueError):
    """A module or file has no such name."""


@dataclass(frozen=True)
class ObjectName:
    """Where an object is.

    place  a module that Python can import, or the path of a .py file
    name   of the object inside it, with dots for what lies inside a class
    """

    place: str
    name: str

    @property
    def file(self) -> Path | None:
        """The path of the file; None for a module."""
        return Path(self.place) if self.place.endswith(".py") else None

    @property
    def short(self) -> str:
        """The name without the folders of its file."""
        return f"{self.place if self.file is None else self.file.name}:{self.name}"


def object_name(text: str) -> ObjectName | None:
    """The object that a text of the form FORM names; None for a text of another form."""
    place, _, name = text.rpartition(":")
    if not _is_dotted(name) or not (place.endswith(".py") or _is_dotted(place)):
        return None
    return ObjectName(place, name)


def load_object(where: ObjectName, kind: str = "object") -> Any:
    """Import the object; its `kind` is for messages.

    Modules are looked for where Python looks, then in the working directory.  A file is run once for each content.
    ValueError, in one sentence, if there is no such module, file or name, or if importing it raises.
    """
    module = _imported(where.place) if where.file is None else _executed(where.place, where.file)
    try:
        return reduce(getattr, where.name.split("."), module)
    except AttributeError:
        near = get_close_matches(where.name, [name for name in vars(module) if not name.startswith("_")], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise NoName(f"{where.place} has no {kind} {where.name}{hint}") from None


def source_sha256(found: Any) -> str:
    """SHA-256 of the file that defines an object or its class, hexadecimal; of its type's name if there is no file."""
    plain = found if inspect.isroutine(found) or inspect.isclass(found) else type(found)
    try:
        content = Path(inspect.getfile(plain)).read_bytes()
    except (OSError, TypeError):  # a built-in, or made at run time
        content = f"{plain.__module__}.{plain.__qualname__}".encode()
    return hashlib.sha256(content).hexdigest()


def _is_dotted(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _imported(place: str) -> ModuleType:
    _make_findable(Path.cwd())
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as missing:
        if missing.name is None or not f"{place}.".startswith(f"{missing.name}."):
            raise ImportRaised(place, missing) from missing
        raise NoModule(missing.name) from None
    except (Exception, SystemExit) as error:  # a module may raise anything
        raise ImportRaised(place, error) from error


def _executed(place: str, path: Path) -> ModuleType:
    """The module of a file.  It can import its neighbours, and its classes can be found by their module's name."""
    try:
        if file_bytes(path) > TEXT_BYTES:
            raise ValueError(f"{place} has more than {TEXT_BYTES:,} bytes, as no source code does; correct the path")
        source = path.read_bytes()
    except OSError as error:
        reason = shown(error.strerror or os.strerror(errno.ENOENT))
        raise ValueError(f"{place} cannot be read ({reason}); correct the path") from None
    path = path.resolve()
    name = f"own_{path.stem}_{hashlib.sha256(bytes(path) + b':' + source).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(path)
    _make_findable(path.parent)
    sys.modules[name] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ImportRaised(place, error) from error
    return module


def _make_findable(folder: Path) -> None:
    """Let modules of a folder be imported; it comes last, so that it hides no installed package."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
