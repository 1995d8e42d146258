"""What a command is given: every missing path is told at once, what is wrong with one names its flag, and a package
that a flag needs is asked for before any work."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sit_rl.files.tensor_files import damage

# Endings of files of weights, of which the first bytes and the size may tell more than what their reader says.
WEIGHTS_FILES = (".pt", ".pth", ".safetensors")
# Flag → (package that it needs, extra of fastfid that installs it).
EXTRAS = {"--vae": ("diffusers", "latent"), "--lora": ("peft", "lora"), "--wandb": ("wandb", "wandb")}


def require_paths(given: Iterable[tuple[str, Path | str | None]], lacking: str | None = None) -> None:
    """FileNotFoundError, in one sentence, naming every path that is not there or may not be read, with its flag.

    given    (flag, path) pairs; a path of None was not given and need not be
    lacking  a complaint about flags that were not given, which goes first; alone it is a ValueError
    """
    pairs = list(dict.fromkeys((flag, str(path)) for flag, path in given if path is not None))
    absent = [f"{flag} {path}" for flag, path in pairs if not Path(path).exists()]
    closed = [f"{flag} {path}" for flag, path in pairs if Path(path).exists() and not os.access(path, os.R_OK)]
    told = [] if lacking is None else [lacking]
    if absent:
        told.append(f"{listed(absent)} {'does' if len(absent) == 1 else 'do'} not exist; correct the path")
    if closed:
        told.append(f"{listed(closed)} may not be read by this user; change the permissions")
    if told:
        raise (FileNotFoundError if absent or closed else ValueError)("; ".join(told))


def require_extra(flag: str) -> None:
    """ModuleNotFoundError naming the flag and the pip command where the package it needs cannot be imported."""
    package, extra = EXTRAS[flag]
    try:
        importlib.import_module(package)
    except ImportError:
        raise ModuleNotFoundError(f"{flag} needs {package}: pip install 'fastfid[{extra}]'") from None


def listed(words: list[str]) -> str:
    """Words as a list in a sentence: a, b and c."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


@contextmanager
def reading(flag: str, path: Path | str, alone: bool = True) -> Iterator[None]:
    """Expected failures within name the flag that the file came by, and the file where they do not.

    alone  nothing else is read within; else a failure that does not tell the path is another file's, and stays as it is
    """
    try:
        yield
    except (ValueError, OSError) as error:
        text = str(error)
        if text.startswith(flag) or not (alone or str(path) in text):
            raise
        wrong = damage(Path(path)) if Path(path).suffix in WEIGHTS_FILES and Path(path).is_file() else None
        if wrong is not None and wrong not in text:  # the reader's own words say less
            text = f"{path} is no whole file of weights ({wrong}); download or copy it again"
        kind = next(k for k in (FileNotFoundError, OSError, ValueError) if isinstance(error, k))
        between = " " if text.startswith(str(path)) else ": " if str(path) in text else f" {path}: "
        raise kind(f"{flag}{between}{text}") from None
