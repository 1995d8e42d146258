"""Makes torchrun end with one sentence where a command of this project failed in an expected way.

torchrun prints a log line, a traceback of its own and a table for every process that fails, and no flag turns this off.
When it starts, it loads the entry points `torchrun.handlers` of the installed packages, which are meant for rendezvous
back ends.  `quiet_ending` is one of them (pyproject.toml).  It changes nothing for other programs' processes: only an
error file that a command of this project wrote (`command_line.report`) makes it silent.  The exit status stays
torchrun's.  Where the package is on the path but not installed, torchrun prints what it always does, and its table ends
with the sentence.

Nothing here loads torch.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from fastfid.runtime.terminal import printable

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # the variable that names the file for a process's error
EXPECTED = "expected by fastfid"  # key of an error file that `leave_sentence` wrote: the terminal it was printed on
PACKAGES = ("fastfid", "sit_rl")
FOLDERS = tuple(Path(__file__).resolve().parents[2] / name for name in PACKAGES)
# Loggers of torch that report a failed process, and the beginnings of the messages that only repeat its failure.
LOGGERS = tuple(f"torch.distributed.elastic.multiprocessing.{name}" for name in ("api", "errors.error_handler"))
BAD_INPUT_LOGGED = "failed (exitcode: 2)"
REPEATED = (BAD_INPUT_LOGGED, "Sending process ", "no error file defined for parent")


def leave_sentence(sentence: str) -> None:
    """Leave the sentence, which was printed, where torchrun looks for the cause of a failure."""
    path = os.environ.get(ERROR_FILE)
    if path is None:
        return
    cause = {"py_callstack": sentence, "timestamp": str(int(time.time())), EXPECTED: _terminal()}
    with suppress(OSError):
        Path(path).write_text(json.dumps({"message": {"message": sentence, "extraInfo": cause}}), encoding="utf-8")


def quiet_ending() -> Callable[[Any], NoReturn]:
    """The entry point: call `quieten`, and return a rendezvous back end that only raises."""
    quieten()
    return _no_rendezvous


def quieten() -> None:
    """Let this launcher end without a traceback if one of its processes has printed its sentence."""
    sys.excepthook = partial(_end, sys.excepthook)
    if _runs_ours(sys.argv):
        for name in LOGGERS:
            logging.getLogger(name).addFilter(_is_news)


def _end(otherwise: Callable[..., Any], kind: type[BaseException], error: BaseException, trace: TracebackType) -> None:
    """sys.excepthook: print the sentences that are not on this terminal yet; print unexpected errors as usual."""
    sentences = _sentences(error)
    if sentences is None:
        otherwise(kind, error, trace)
        return
    for sentence in sentences:
        print(printable(sentence), file=sys.stderr, flush=True)


def _sentences(error: BaseException) -> list[str] | None:
    """The sentences of an expected error that are not on this terminal yet; None for any other error."""
    if type(error).__name__ == "SignalException" and _runs_ours(sys.argv):  # processes printed how they stopped
        number = getattr(error, "sigval", "a signal")
        return [f"torchrun: stopped by {getattr(number, 'name', number)}"]
    if type(error).__name__ != "ChildFailedError":
        return None
    causes = [_cause(failure) for failure in getattr(error, "failures", {}).values()]
    expected = [cause for cause in causes if EXPECTED in cause]
    elsewhere = [str(cause["py_callstack"]) for cause in expected if cause[EXPECTED] != _terminal()]
    return list(dict.fromkeys(elsewhere)) if expected else None


def _cause(failure: object) -> dict[str, Any]:
    """The `extraInfo` of a failed process's error file, empty without one."""
    message = getattr(failure, "message", None)
    found = message.get("extraInfo") if isinstance(message, dict) else None
    return found if isinstance(found, dict) else {}


def _terminal() -> list[int] | None:
    """Device and inode of stderr, by which two processes see whether they share it; None if it is closed."""
    try:
        status = os.fstat(2)
    except OSError:
        return None
    return [status.st_dev, status.st_ino]


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a message of torch says more than that a process ended, which the process has printed itself."""
    return not record.getMessage().startswith(REPEATED)


def _runs_ours(words: list[str]) -> bool:
    """Whether the words of a launcher start a command of this project: sit-rl, a script or a module of it."""
    if not words or Path(words[0]).name == "sit-rl":
        return bool(words)
    for word in words[1:]:
        if word.endswith(".py"):
            return any(folder in Path(word).resolve().parents for folder in FOLDERS)
        if word.partition(".")[0] in PACKAGES:
            return True
    return False


def _no_rendezvous(parameters: object) -> NoReturn:
    """ValueError: --rdzv-backend fastfid has nothing to offer."""
    raise ValueError("fastfid is no rendezvous back end; pass --rdzv-backend c10d")
