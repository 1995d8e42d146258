"""A reward component from a function in a user's Python file."""

from __future__ import annotations

import importlib.util

from fastfid import CallableReward
from fastfid.runtime.errors import first_line
from sit_rl.reward_names import ComponentName


def load_function(component: ComponentName) -> CallableReward:
    """The function of `python:FILE:NAME`; ValueError, in one sentence, if the file or the function cannot be had."""
    path, name = component.function
    spec = importlib.util.spec_from_file_location(f"reward_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"--reward {component}: {path} is no Python file; write python:FILE.py:NAME")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"--reward {component}: {path} raised {what} while it was imported") from error
    if not callable(getattr(module, name, None)):
        raise ValueError(f"--reward {component}: {path} has no function {name}")
    return CallableReward(getattr(module, name), str(component))
