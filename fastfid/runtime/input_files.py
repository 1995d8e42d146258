"""The boundary of every reader: what a file may be, what it may become, and one sentence for whatever goes wrong.

    with reading(path, "save it again"):
        check_growth(path, size)  # by a header, before the array is made
        ...                       # any library's reader, which may raise anything

Libraries raise nearly anything for damaged files: tokenizer errors, zlib's, recursion, panics of Rust.  A reader names
none of them; whatever leaves the block is one sentence with the file's name.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastfid.runtime.errors import first_line

# What the content of any file may take without a question: every machine has it to spare.
FREE_BYTES = 1 << 28
# Beyond that, bytes of content for a byte of the file.  Features compress by 1.1, photographs hardly, drawings by 20 to
# 50; deflate reaches 1,032 on nothing but zeros.
MOST_GROWTH = 100
# Bytes of a text file that is read whole: settings, summaries and records are some thousands.
TEXT_BYTES = 1 << 24

KINDS = {
    stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device", stat.S_IFBLK: "device",
}  # fmt: skip

# Words of torch, safetensors and zlib for an allocation that the system refused.
REFUSED_MEMORY = re.compile(r"(can't|cannot|failed to|unable to) allocate|not enough memory|out of memory", re.I)

STOPPING = (KeyboardInterrupt, SystemExit, GeneratorExit)  # what no reader raises


class NoRoom(OSError):
    """Neither memory nor the disk has room for what a file holds; the file itself may be sound."""


@contextmanager
def reading(path: str | os.PathLike[str], remedy: str, how: str = "") -> Iterator[None]:
    """Whatever is raised inside becomes one sentence that names the file.

    remedy  what to do about a damaged file
    how     how it is read, in the sentence "x.npz cannot be read by NumPy (…)"

    ValueError for a file that is damaged or no regular file, OSError for one that the system does not give, NoRoom
    where memory is short.  A ValueError or OSError of this project that names the file passes.
    """
    try:
        file_bytes(path)
        yield
    except STOPPING:
        raise
    except BaseException as failed:  # panics of Rust are no Exception
        if isinstance(failed, NoRoom) or _names(path, failed):
            raise
        raise _sentence(path, failed, remedy, how) from None


def file_bytes(path: str | os.PathLike[str]) -> int:
    """Size of a regular file, links followed; FileNotFoundError if missing, ValueError for a folder, pipe or device.

    A pipe would be waited for without an end, and a device may never end.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; correct the path") from None
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "special file")
        raise ValueError(f"{path} is a {kind}, not a file; pass a file that lies on a disk")
    return status.st_size


def check_growth(path: str | os.PathLike[str], becomes: int) -> None:
    """ValueError if the content, `becomes` bytes by its headers, is out of proportion to the file that claims it.

    NoRoom if a fitting content is more than this process may have.
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
    """Bytes that the content of a file may take, whatever it claims."""
    return FREE_BYTES + MOST_GROWTH * file_bytes(path)


def memory_bytes() -> int | None:
    """Memory that this process may have: the machine's, or less by its limit (ulimit -v) or its control group.

    None on systems that do not tell.
    """
    limits = [_machine_memory(), _address_limit(), _group_limit()]
    return min((limit for limit in limits if limit is not None), default=None)


def read_text(path: str | os.PathLike[str], most: int = TEXT_BYTES) -> str:
    """The UTF-8 text of a regular file of at most `most` bytes; ValueError (a UnicodeDecodeError, too) for others."""
    size = file_bytes(path)
    if size > most:
        raise ValueError(f"{path} has {size:,} bytes, more than the {most:,} of any file of its kind; restore it")
    return Path(path).read_text(encoding="utf-8")


def _names(path: str | os.PathLike[str], error: BaseException) -> bool:
    """Whether the error is a sentence of this project about the file: the system's own have a number."""
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
    """Whether any library's error says that the system refused memory."""
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
    """The limit of the process's control group, as containers see it: version 2's file, or version 1's."""
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(place).read_text())
        except (OSError, ValueError):  # absent, or "max"
            continue
    return None
