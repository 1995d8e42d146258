"""Checks of a command's paths before any work: one error names all missing paths, each with its flag; an error while a
file is read names its flag; so does a missing package."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fastfid.runtime.shard_patterns import files_of
from sit_rl.files.tensor_files import damage

# Suffixes of weights files: their first bytes and size may explain more than the error of their reader.
WEIGHTS_FILES = (".pt", ".pth", ".safetensors")
# Flag → (package that it needs, extra of fastfid that installs the package).
EXTRAS = {"--vae": ("diffusers", "latent"), "--lora": ("peft", "lora"), "--wandb": ("wandb", "wandb")}
# The same for values of --model.
MODEL_EXTRAS = {"--model diffusers": (("diffusers", "transformers"), "prompts")}


def require_paths(given: Iterable[tuple[str, Path | str | None]], lacking: str | None = None) -> None:
    """FileNotFoundError, in one sentence, that names every path that is missing or may not be read, with its flag.

    given    (flag, path) pairs; pairs with the path None are ignored; a path with braces stands for several files
    lacking  a sentence about missing flags, which is put first; without bad paths it is a ValueError
    """
    named = [(flag, file) for flag, path in given if path is not None for file in files_of(path)]
    pairs = list(dict.fromkeys((flag, str(file)) for flag, file in named))
    absent = [f"{flag} {path}" for flag, path in pairs if not Path(path).exists()]
    closed = [f"{flag} {path}" for flag, path in pairs if Path(path).exists() and not os.access(path, os.R_OK)]
    told = [] if lacking is None else [lacking]
    if absent:
        told.append(f"{listed(absent)} {'does' if len(absent) == 1 else 'do'} not exist; correct the path")
    if closed:
        told.append(f"{listed(closed)} may not be read by this user; change the permissions")
    if told:
        raise (FileNotFoundError if absent or closed else ValueError)("; ".join(told))


def require_utf8(flag: str, path: Path) -> None:
    """ValueError for a path that is not UTF-8: what is written there as safetensors could not be read again."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{flag} {path} is not UTF-8, as safetensors needs its paths; choose another name") from None


def require_extra(flag: str) -> None:
    """ModuleNotFoundError, with the flag and the pip command, if the package of a flag cannot be imported."""
    packages, extra = MODEL_EXTRAS[flag] if flag in MODEL_EXTRAS else ((EXTRAS[flag][0],), EXTRAS[flag][1])
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise ModuleNotFoundError(f"{flag} needs {package}: pip install 'fastfid[{extra}]'") from None


def names_or_paths(names: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """The name of each path, or the whole path where two names are equal."""
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def listed(words: list[str]) -> str:
    """Words as a list for a sentence: a, b and c."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


@contextmanager
def reading(flag: str, path: Path | str, alone: bool = True) -> Iterator[None]:
    """Inside the block, a ValueError or OSError gets the flag of the file, and its path if the error lacks it.

    alone  True: only this file is read inside; False: an error without this path is of another file and passes
    """
    try:
        yield
    except (ValueError, OSError) as error:
        text = str(error)
        if text.startswith(flag) or not (alone or str(path) in text):
            raise
        wrong = damage(Path(path)) if Path(path).suffix in WEIGHTS_FILES and Path(path).is_file() else None
        if wrong is not None and wrong not in text:  # more specific than the reader's error
            text = f"{path} is not a complete weights file ({wrong}); download or copy it again"
        kind = next(k for k in (FileNotFoundError, OSError, ValueError) if isinstance(error, k))
        between = " " if text.startswith(str(path)) else ": " if str(path) in text else f" {path}: "
        raise kind(f"{flag}{between}{text}") from None
