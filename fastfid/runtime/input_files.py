"""Checks that every reader of files shares: regular files only, bounded size, and one sentence for any failure.

    with reading(path, "save it again"):
        check_growth(path, size)  # by a header, before the array is made
        ...                       # any library's reader, which may raise anything

Libraries raise almost anything for damaged files: tokenizer and zlib errors, RecursionError, panics of Rust.  `reading`
turns all of them into one sentence that names the file.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastfid.runtime.errors import first_line

# Bytes that the content of any file may take.  Every machine has as much to spare.
FREE_BYTES = 1 << 28
# Additional bytes of content for each byte of the file.  Features compress by 1.1, drawings by 20 to 50; deflate
# reaches 1,032 on zeros.
MOST_GROWTH = 100
# Most bytes of a text file; settings, summaries and records have some thousands.
TEXT_BYTES = 1 << 24

KINDS = {
    stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device", stat.S_IFBLK: "device",
}  # fmt: skip

# The memory limit of the control group, as in a container, by versions 2 and 1.
GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

# How torch, safetensors and zlib say that the system refused memory.
REFUSED_MEMORY = re.compile(r"(can't|cannot|failed to|unable to) allocate|not enough memory|out of memory", re.I)

STOPPING = (KeyboardInterrupt, SystemExit, GeneratorExit)  # not raised by readers


class NoRoom(OSError):
    """Memory or disk is too small for the content of a file; the file itself may be intact."""


@contextmanager
def reading(path: str | os.PathLike[str], remedy: str, how: str = "") -> Iterator[None]:
    """Turn any exception inside the block into one sentence that names the file.

    remedy  what to do about a damaged file
    how     how it is read, in the sentence "x.npz cannot be read by NumPy (…)"

    ValueError for a damaged file or one that is not a regular file, OSError if the system cannot read it, NoRoom if
    memory is short.  A ValueError or OSError of this project that names the file is passed on.
    """
    try:
        file_bytes(path)
        yield
    except STOPPING:
        raise
    except BaseException as failed:  # a panic of Rust is not an Exception
        if isinstance(failed, NoRoom) or _names(path, failed):
            raise
        raise _sentence(path, failed, remedy, how) from None


def file_bytes(path: str | os.PathLike[str]) -> int:
    """Size of a regular file, links followed; FileNotFoundError if missing, ValueError for a folder, pipe or device.

    Reading a pipe could wait forever, and a device may never end.  A large file that is nearly all holes, which take no
    room on the disk, is a ValueError as well: it would be read to its end.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; correct the path") from None
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "special file")
        raise ValueError(f"{path} is a {kind}, not a file; pass a file that lies on a disk")
    if status.st_size > FREE_BYTES and _is_hollow(path, status.st_size):
        raise ValueError(
            f"{path} has {status.st_size:,} bytes, of which nearly all are holes that were never written; copy or make "
            "it again"
        )
    return status.st_size


def _is_hollow(path: str | os.PathLike[str], size: int) -> bool:
    """Whether fewer than one in MOST_GROWTH of a file's bytes were ever written; False where the system cannot tell."""
    if not hasattr(os, "SEEK_DATA"):
        return False
    written, end = 0, 0
    file = os.open(path, os.O_RDONLY)
    try:
        while written * MOST_GROWTH < size:
            start = os.lseek(file, end, os.SEEK_DATA)
            end = os.lseek(file, start, os.SEEK_HOLE)
            written += end - start
    except OSError as none:
        return none.errno == errno.ENXIO  # no more data; others: a file system that does not tell
    finally:
        os.close(file)
    return False


def check_growth(path: str | os.PathLike[str], becomes: int) -> None:
    """ValueError if the content, `becomes` bytes according to its headers, is too large for the size of the file.

    NoRoom if it is larger than the memory that this process may use.
    """
    held = file_bytes(path)
    if becomes > most_content(path):
        raise ValueError(
            f"{path} has {held:,} bytes and claims to hold {becomes:,}, as no sound file does; save it again"
        )
    memory = memory_bytes()
    if memory is not None and becomes > memory:
        raise NoRoom(
            f"{path} holds {becomes / (1 << 30):.1f} GiB and this process may have {memory / (1 << 30):.1f} GiB of "
            "memory; read it on a larger machine, or raise the limit (ulimit -v)"
        )


def most_content(path: str | os.PathLike[str]) -> int:
    """Most bytes that the content of a file may take."""
    return FREE_BYTES + MOST_GROWTH * file_bytes(path)


def memory_bytes() -> int | None:
    """Bytes of memory that this process may use: the machine's, or a lower limit by ulimit -v or the control group.

    None if the system does not tell.
    """
    limits = [_machine_memory(), _address_limit(), _group_limit()]
    return min((limit for limit in limits if limit is not None), default=None)


def read_text(path: str | os.PathLike[str], most: int = TEXT_BYTES) -> str:
    """The UTF-8 text of a regular file of at most `most` bytes; ValueError (a UnicodeDecodeError, too) for others."""
    size = file_bytes(path)
    if size > most:
        raise ValueError(f"{path} has {size:,} bytes, more than the {most:,} of any file of its kind; restore it")
    return Path(path).read_text(encoding="utf-8")


def json_of(text: str | bytes, table: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text that others wrote; ValueError for any other text, also for brackets without an end.

    table  makes a table of its pairs; None: a dict
    """
    try:
        return json.loads(text, object_pairs_hook=table)
    except RecursionError:
        raise ValueError("it has thousands of brackets inside each other") from None


def _names(path: str | os.PathLike[str], error: BaseException) -> bool:
    """Whether the error is a sentence of this project about the file; errors of the system have a number."""
    ours = isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno is None)
    text = str(error)
    return ours and os.fspath(path) in text and "\n" not in text


def _sentence(path: str | os.PathLike[str], failed: BaseException, remedy: str, how: str) -> Exception:
    if lacks_memory(failed):
        return NoRoom(
            f"{path} needs more memory than this process may have ({first_line(failed)}); end other programs, or raise "
            "the limit (ulimit -v)"
        )
    if isinstance(failed, OSError) and failed.errno is not None:
        return OSError(f"{path} cannot be read ({failed.strerror}); check its permissions and its disk")
    return ValueError(f"{path} cannot be read{how and ' '}{how} ({first_line(failed)}); {remedy}")


def lacks_memory(error: BaseException) -> bool:
    """Whether an error, of any library, says that the system refused memory."""
    out = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    return out or REFUSED_MEMORY.search(str(error)) is not None


def _machine_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None


def _address_limit() -> int | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _group_limit() -> int | None:
    """The memory limit of the control group; None without one."""
    for place in GROUP_LIMITS:
        try:
            return int(Path(place).read_text())
        except (OSError, ValueError):  # absent, or "max"
            continue
    return None
