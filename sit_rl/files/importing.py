"""Objects that a flag names, as package.module:NAME or FILE.py:NAME, with errors that begin with the flag."""

from __future__ import annotations

from typing import Any

from fastfid.runtime import imported_objects
from fastfid.runtime.errors import first_line
from fastfid.runtime.imported_objects import FORM, ImportRaised, NoModule, NoName, object_name


def load_object(flag: str, text: str) -> Any:
    """The object that `text` names; ValueError, in one sentence that begins with the flag, if it cannot be imported."""
    where = object_name(text)
    if where is None:
        raise ValueError(f"{flag} {text} names no object; write {FORM}")
    if where.file is not None and not where.file.is_file():
        raise FileNotFoundError(f"{flag} {text}: {where.place} does not exist; correct the path")
    try:
        return imported_objects.load_object(where)
    except NoModule as missing:
        reason = f"there is no module {missing.name}; correct the name, install it, or write FILE.py:NAME"
    except NoName:
        reason = f"{where.place} has no {where.name}; correct the name after the colon"
    except ImportRaised as raised:
        kind, told = type(raised.error).__name__, first_line(raised.error)
        raise ValueError(
            f"{flag} {text}: {where.place} raised {kind} while it was imported ({told}); correct it"
        ) from raised.error
    raise ValueError(f"{flag} {text}: {reason}") from None
