"""A lock file: one run at a time in a folder, on any machine that shares it.

The lock is the operating system's (flock), so it ends with its process, however that ends. The file's content only
names the holder. A file without a lock is therefore stale: what a killed process has left.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from fastfid.runtime.errors import shown
from fastfid.runtime.input_files import json_of

# Errors of file systems without locks, such as Lustre mounted without them.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# Bytes of a lock file that are read: a holder takes about 100.
LONGEST = 1_000


@contextmanager
def held(path: Path, flag: str, place: Path) -> Iterator[str | None]:
    """Hold the lock file `path` inside a with-block and remove it afterwards.

    flag, place  what the lock is of, such as "--out" and the folder of a run

    Yields a note if a killed process had left the file, or if the file system has no locks; else None. ValueError,
    with the holder's name, if another process holds it; nothing is changed then.
    """
    handle, note = _open_locked(path, flag, place)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, _this_process().encode())
        yield note
    finally:
        path.unlink(missing_ok=True)  # before the lock ends, so that no other process's new file is removed
        os.close(handle)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock file `path`; True as well where the file system has no locks to ask."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(handle)


def _open_locked(path: Path, flag: str, place: Path) -> tuple[int, str | None]:
    """A handle that holds the lock, and the note of `held`."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(handle) or "another process"
            if error.errno in NO_LOCKS:
                return handle, f"the file system of {path} has no locks: a second run there would not be noticed"
            os.close(handle)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise ValueError(
                    f"{flag} {place} is in use by {holder}; wait until it ends, or choose another {flag}"
                ) from None
            raise
        if _is_file_of(path, handle):
            left = _holder(handle)
            return handle, left and f"{path.name} was left by {left}, which has ended"
        os.close(handle)  # its holder has just removed it


def _is_file_of(path: Path, handle: int) -> bool:
    """Whether the path is still that of the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _this_process() -> str:
    """The content of the file."""
    start = datetime.now().astimezone().isoformat(" ", timespec="seconds")
    return json.dumps({"process": os.getpid(), "host": socket.gethostname(), "start": start}) + "\n"


def _holder(handle: int) -> str | None:
    """The holder in words; None if the content does not name one."""
    try:
        told = json_of(os.pread(handle, LONGEST, 0))
        return shown(f"process {told['process']} on {told['host']} since {told['start']}")
    except (OSError, ValueError, KeyError, TypeError):
        return None
