"""Objects of a user's Python code by name: package.module:NAME, or FILE.py:NAME."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from fastfid.runtime.errors import first_line


def load_object(flag: str, text: str) -> Any:
    """The object that `text` names; ValueError, in one sentence that begins with the flag, if it cannot be had.

    Modules are looked for in the working folder as well.  A file is executed once a process.
    """
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise ValueError(f"{flag} {text} names no object; write package.module:NAME or FILE.py:NAME")
    module = _file(flag, text, Path(place)) if place.endswith(".py") else _module(flag, text, place)
    if not hasattr(module, name):
        raise ValueError(f"{flag} {text}: {place} has no {name}; correct the name after the colon")
    return getattr(module, name)


def is_file(text: str) -> bool:
    """Whether the text names an object of a file, and not of a module."""
    return text.rpartition(":")[0].endswith(".py")


def _file(flag: str, text: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"{flag} {text}: {path} does not exist; correct the path")
    key = f"_sit_rl_file_{path.resolve()}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # dataclasses look for their module there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[key]
        raise _raised(flag, text, place=str(path), error=error) from error
    return module


def _module(flag: str, text: str, name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise _raised(flag, text, name, error) from error
        raise ValueError(
            f"{flag} {text}: there is no module {error.name}; correct the name, install it, or write FILE.py:NAME"
        ) from None
    except Exception as error:
        raise _raised(flag, text, name, error) from error
    finally:
        sys.path.remove(str(Path.cwd()))


def _raised(flag: str, text: str, place: str, error: Exception) -> ValueError:
    return ValueError(
        f"{flag} {text}: {place} raised {type(error).__name__} while it was imported ({first_line(error)}); correct it"
    )
