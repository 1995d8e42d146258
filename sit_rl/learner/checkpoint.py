"""Checkpoints of a training, by torch.distributed.checkpoint in safetensors, written in the background.

A checkpoint is a folder step-NNNNNN/ with three kinds of file, none of which can contain code:

    shard-0000R-….safetensors   rank R's part of every tensor; any number of ranks can load them
    state.json                  the plain values: step, settings, seconds, evaluations
    SHA256SUMS                  the SHA-256 of each of the others, written last and compared before anything is loaded

It is written under a hidden name, flushed to the disk, and renamed. An old one is renamed before it is deleted. A crash
at any moment therefore leaves only whole checkpoints and hidden folders of known names, which `clean` removes.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from fastfid.runtime.distributed import from_main
from fastfid.runtime.errors import one_line, shown
from fastfid.runtime.input_files import json_of, read_text
from sit_rl.files.checksums import SUMS, check_sums, sums_of
from sit_rl.ranks.collectives import sum_scalars
from sit_rl.ranks.process_group import LOST_CONTACT, barrier, checkpoint_group, is_main

# What a save or load may raise; CheckpointException is not a subclass of Exception.
FAILURES = (Exception, CheckpointException)
# torch warns at every save on a single rank. Saves run in threads, so the filter must be global.
warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
# torch makes two debug records for every tensor and drops them: 0.1 s of a save's 0.28 s on one slow core.
logging.getLogger("c10d-NullHandler-dcp_logger").setLevel(logging.WARNING)
# The step, and a number if the same step is saved again, such as after an evaluation.
NAME = re.compile(r"step-(\d{6,})(?:-(\d+))?")
# What an interrupted save or deletion leaves; other hidden files and folders are not the trainer's.
LEFT = re.compile(rf"\.{NAME.pattern}\.(tmp|old)")
VALUES = "state.json"
# Files of a checkpoint that SHA256SUMS must list. torch reads every safetensors file of the folder.
CHECKED = re.compile(r"state\.json|.*\.safetensors", re.DOTALL)
# Free space to leave beside a checkpoint: logs, figures and a report take about 10 MB.
SPARE_BYTES = 64 * 2**20


class Writer:
    """Writes one checkpoint at a time in the background; the training continues once the tensors are copied."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def save(self, step: int, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Begin to write `tensors` and `values` (plain, for JSON) as step-NNNNNN; every rank calls it.

        Waits for the previous save first. OSError, before anything is written, if the disk has no room.
        """
        self.wait()
        number = int(sum_scalars({"number": self._next_number(step) if is_main() else 0.0})["number"])
        path = self.folder / f"step-{step:06d}{f'-{number}' if number else ''}"
        temporary = path.with_name(f".{path.name}.tmp")
        if is_main():
            require_space(self.folder, sum(t.numel() * t.element_size() for t in tensors.values()), path)
            temporary.mkdir(parents=True, exist_ok=True)
        barrier()
        try:
            written = state_dict_saver.async_save(
                tensors,
                storage_writer=HuggingFaceStorageWriter(str(temporary), save_distributed=True),
                process_group=checkpoint_group(),
            )
        except FAILURES as error:
            raise self._failure(path, error) from None
        assert isinstance(written, Future)  # a thread's, not a process's
        text = json.dumps(values)  # now, because the training will change them
        self._pending = self._thread.submit(self._publish, written, temporary, path, text)

    def wait(self) -> None:
        """Wait until the current save is on disk; raises its error."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _publish(self, written: Future[None], temporary: Path, path: Path, values: str) -> None:
        """After every rank has written: write values and sums, rename, delete the oldest checkpoints (main rank)."""
        try:
            written.result()
            if not is_main():
                return
            _write_to_disk(temporary / VALUES, values)
            _write_to_disk(temporary / SUMS, sums_of(temporary))
            _sync_folder(temporary)
            os.rename(temporary, path)
            _sync_folder(self.folder)
        except FAILURES as error:
            raise self._failure(path, error) from None
        discard_old(self.folder, self.keep)

    def _next_number(self, step: int) -> int:
        """0, or one more than an older save of the same step, which is kept until the new one is complete."""
        return max((_order(p)[1] + 1 for p in checkpoints(self.folder) if _order(p)[0] == step), default=0)

    def _failure(self, path: Path, error: BaseException) -> OSError:
        cause = _cause(error)
        if isinstance(cause, RuntimeError) and LOST_CONTACT.search(str(cause)):
            return ConnectionError(
                f"could not save {path}: lost contact with another rank ({one_line(cause, 160)}): it has "
                "died, its own message may say why; run the same command again, it resumes from the last checkpoint"
            )
        free = shutil.disk_usage(self.folder).free / 1e6
        return OSError(
            f"could not save {path} ({_reason(error)}; {free:.0f} MB free): make room and run the same command, "
            "it resumes from the last checkpoint"
        )


def require_space(folder: Path, size: int, path: Path | None = None) -> None:
    """OSError unless `folder`'s disk has room for `size` bytes of checkpoints and a little more."""
    while not folder.exists():
        folder = folder.parent
    free, what = shutil.disk_usage(folder).free, f"{path.name} takes" if path else "checkpoints take"
    if free < size + SPARE_BYTES:
        raise OSError(
            f"the disk of {path or folder} has {free / 1e6:.0f} MB free and {what} {size / 1e6:.0f} MB, beside "
            f"{SPARE_BYTES / 1e6:.0f} MB for logs and reports: make room, or lower --keep-checkpoints, and run the "
            "same command, it resumes from the last checkpoint"
        )


def bytes_of(folder: Path) -> int:
    """Size in bytes of a folder's files; 0 for a folder that does not exist."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    found = [p for p in folder.iterdir() if NAME.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(found, key=_order)


def _order(path: Path) -> tuple[int, int]:
    """Sort key of a checkpoint: its step, and its number among the saves of that step."""
    match = NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is not named like a checkpoint")
    return int(match[1]), int(match[2] or 0)


def step_of(path: Path) -> int:
    """The step that a checkpoint's name states; ValueError for another name."""
    return _order(path)[0]


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of a run; None if there is none."""
    return next(reversed(checkpoints(folder)), None)


def discard_old(folder: Path, keep: int) -> None:
    """Delete all but the newest checkpoint of each of the last `keep` steps."""
    found = checkpoints(folder)
    newest = {_order(path)[0]: path for path in found}
    for path in found:
        if path not in list(newest.values())[-keep:]:
            discard(path)


def clean(folder: Path) -> None:
    """Delete what interrupted saves and deletions have left."""
    for rubbish in folder.glob(".*") if folder.is_dir() else ():
        if LEFT.fullmatch(rubbish.name):
            shutil.rmtree(rubbish, ignore_errors=True)


def verify(path: Path) -> None:
    """ValueError, on every rank, unless all files of checkpoint `path` are as they were written; all ranks call it."""

    def check() -> None:
        try:
            check_sums(path, CHECKED)
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from None

    from_main(check)


def load_values(path: Path) -> dict[str, Any]:
    """The plain values of checkpoint `path`; ValueError if it is damaged."""
    try:
        values = json_of(read_text(path / VALUES))
        if not isinstance(values, dict):
            raise ValueError("state.json is not a table")
        return values
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None


def load_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Fill `tensors` (plain or sharded, on any number of ranks) in place from `path`; ValueError if it is damaged."""
    verify(path)
    try:
        state_dict_loader.load(
            tensors,
            storage_reader=HuggingFaceStorageReader(str(path)),
            process_group=checkpoint_group(),
        )
    except FAILURES as error:
        raise _damaged(path, error) from None


def names(path: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Name → (shape, dtype) of every tensor of checkpoint `path`."""
    try:
        entries = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    except FAILURES as error:
        raise _damaged(path, error) from None
    tensors = {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}
    return {name: (entry.size, entry.properties.dtype) for name, entry in tensors.items()}


def load_part(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names start with `prefix.`, by the rest of the name: `ema` gives the averaged weights.

    ValueError if the checkpoint is damaged, or has none.
    """
    verify(path)
    wanted = {name: kind for name, kind in names(path).items() if name.startswith(prefix + ".")}
    if not wanted:
        raise ValueError(f"checkpoint {path} has no part {shown(repr(prefix))}")
    try:
        tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in wanted.items()}
    except RuntimeError as error:  # sizes that no memory holds
        raise _damaged(path, error) from None
    load_tensors(path, tensors)
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items()}


def _damaged(path: Path, error: BaseException) -> ValueError:
    return ValueError(f"checkpoint {path} cannot be read ({_reason(error)}); {remedy(path)}")


def remedy(path: Path) -> str:
    """How to go on without checkpoint `path`, as the end of a sentence."""
    numbered = NAME.fullmatch(path.name) is not None
    before = [p for p in checkpoints(path.parent) if numbered and _order(p) < _order(path)]
    if not before:
        return "delete it to resume from the start, because there is none before it"
    return f"delete it to resume from the one before, {before[-1].name}"


def _reason(error: BaseException) -> str:
    """The cause of an error in one line."""
    return " ".join(str(_cause(error)).split())[-200:]


def _cause(error: BaseException) -> BaseException:
    """The error itself; the first rank's error if it comes from several ranks."""
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error


def discard(path: Path) -> None:
    """Delete a checkpoint: rename it to a hidden name first, then delete the files."""
    hidden = path.with_name(f".{path.name}.old")
    os.rename(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _write_to_disk(path: Path, text: str) -> None:
    """Write a text file and flush it to the disk."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
