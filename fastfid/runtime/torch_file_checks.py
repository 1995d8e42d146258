"""Checks of pickles and torch files before anything in them is built.

A few bytes of a pickle can take gigabytes or hours.  A large memo index makes the reader's table as long, and hashing a
tuple that holds another one twice, thirty levels deep, takes minutes.  pickletools lists the operations of a pickle
without executing them.
"""

from __future__ import annotations

import mmap
import pickletools
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from fastfid.runtime.errors import shown
from fastfid.runtime.input_files import check_growth

ZIP_START = b"PK\x03\x04"  # of a torch file since torch 1.6 (PKWARE's APPNOTE, local file header)
# At the beginning of an older one: a magic number, the protocol, the system, the content and the keys of its values.
LEGACY_PICKLES = 5
# Most objects that a pickle may repeat, counted with their content; hashing as many takes half a second.
MOST_REPEATED = 1 << 22
# Most operations of a pickle; following them takes three seconds.  A checkpoint of 1,000 tensors has some 10,000.
MOST_OPERATIONS = 1 << 21
READ_BYTES = 1 << 20  # of a part at once
WRITES = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
READS = frozenset({"GET", "BINGET", "LONG_BINGET"})


class Damaged(ValueError):
    """A file whose content does not fit its own checksums."""


def check_pickle(path: Path) -> None:
    """ValueError for a pickle that asks for far more than it holds; a damaged one raises what pickletools raises."""
    with _mapped(path) as content:
        _check_operations(content)


def check_torch_file(path: Path) -> None:
    """`check_pickle` for a file of torch.save; also refuses a zip whose members inflate too much.

    Damaged for a zip with a part that does not fit its checksum, which torch.load does not compare.
    """
    with open(path, "rb") as file:
        zipped = file.read(len(ZIP_START)) == ZIP_START
    if zipped:
        _check_torch_zip(path)
        return
    with _mapped(path) as content:
        for _ in range(LEGACY_PICKLES):
            _check_operations(content)


def check_tensors(path: Path, tensors: Iterable[Tensor]) -> None:
    """ValueError for tensors without a plain array of values in memory, as sparse ones and those of the device meta.

    ValueError or NoRoom if they have more values than the file can hold, as expanded tensors do.
    """
    size = 0
    for x in tensors:
        if x.layout != torch.strided:
            layout = str(x.layout).removeprefix("torch.")
            raise ValueError(f"{path} holds a {layout} tensor; save its .to_dense()")
        if x.device.type != "cpu":
            raise ValueError(
                f"{path} holds a tensor on the device {x.device}, without values; save it from a device that has them"
            )
        size += x.numel() * x.element_size()
    check_growth(path, size)


@contextmanager
def _mapped(path: Path) -> Iterator[IO[bytes]]:
    """The file as a memory map, which never returns more bytes than the file has."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield cast("IO[bytes]", content)  # it has read and readline, all that pickletools needs


def _check_torch_zip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        check_growth(path, sum(member.file_size for member in members))
        other = next((m for m in members if m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)), None)
        if other is not None:
            raise ValueError(f"{other.filename} is compressed in a way that torch does not write")
        damaged = [member for member in members if not _sum_holds(archive, member)]
        if 0 < len(damaged) < len(members):
            raise Damaged(
                f"{path} is damaged: the checksum of its part {shown(damaged[0].filename)} does not fit its content; "
                "download or copy it again"
            )
        for member in members:
            if member.filename.endswith("data.pkl"):
                if damaged:  # of all parts: torch.serialization.set_crc32_options(False) writes no checksums
                    member.CRC = None  # type: ignore[assignment]  # then zipfile compares none
                with archive.open(member) as content:
                    _check_operations(content)


def _sum_holds(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    """Whether a part has the CRC-32 that its entry states; zipfile compares them at the part's end."""
    try:
        with archive.open(member) as content:
            while content.read(READ_BYTES):
                pass
    except zipfile.BadZipFile:
        return False
    return True


def _operations(content: IO[bytes]) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
    """The operations of one pickle; EOFError if the file ends before it."""
    try:
        yield from pickletools.genops(content)
    except ValueError:
        if content.read(1):
            raise
        raise EOFError("EOF: it ends before its pickle does") from None


def _check_operations(content: IO[bytes]) -> None:
    """Follow one pickle to its end and count the objects inside each object on its stack."""
    stack: list[int | None] = []  # None is a mark
    memo: dict[int, int] = {}
    repeated = 0
    for done, (operation, argument, _) in enumerate(_operations(content)):
        if done == MOST_OPERATIONS:
            raise ValueError(f"it has more than {MOST_OPERATIONS:,} operations, which arrays do not need")
        if operation.name in WRITES:
            index = len(memo) if argument is None else argument
            if index > done + 1:  # every object takes an operation; Python 2 counted from 1
                raise ValueError(f"it numbers an object {index:,} after {done} operations")
            memo[index] = stack[-1] or 0
        elif operation.name in READS or operation.name == "DUP":
            again = (stack[-1] if argument is None else memo[argument]) or 0
            repeated += again
            if repeated > MOST_REPEATED:
                raise ValueError(f"it repeats more than {MOST_REPEATED:,} objects")
            stack.append(again)
        elif operation.name == "MARK":
            stack.append(None)
        else:
            weight = 1 + _taken(stack, operation)
            stack += [weight] * len(operation.stack_after)


def _taken(stack: list[int | None], operation: pickletools.OpcodeInfo) -> int:
    """Remove the operands of an operation from the stack; returns the number of objects in them."""
    before, total = list(operation.stack_before), 0
    if pickletools.stackslice in before:
        before = before[: before.index(pickletools.markobject)]
        while (weight := stack.pop()) is not None:
            total += weight
    for _ in before:
        total += stack.pop() or 0
    return total
