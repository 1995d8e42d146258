"""fastfid: exact Fréchet distances of many sample swaps at once, and the distribution metrics around them.

The public names are those of api.py.  It is imported when the first of them is used, because torch takes seconds to
load and the command line's help and its errors about arguments do not need it.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastfid.api import *  # noqa: F403

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """A module of the package or a public name, imported on first use (PEP 562)."""
    if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    if name == "__all__" or not name.startswith("_"):
        interface = import_module(f"{__name__}.api")
        loaded = ("__all__", *(public for public in interface.__all__ if public not in interface.METRIC_CLASSES))
        globals().update({public: getattr(interface, public) for public in loaded})
        if name in interface.METRIC_CLASSES:
            globals()[name] = getattr(interface, name)
    if name in globals():
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
