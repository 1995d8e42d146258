"""A polite end: SIGTERM or SIGUSR1 lets the run save what it has and exit 0; the same command goes on from there.

The step under way is finished and saved if that takes no longer than `--grace` seconds. A longer one is dropped at the
end of the batch under way and repeated on resume, so a run ends within the grace, one batch, and the save in progress.
Before the first step, while features of real images are computed, it ends after the batch under way.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tqdm import tqdm

from sit_rl.ranks.collectives import any_rank
from sit_rl.ranks.process_group import is_main

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# When a signal came, of which the state belongs to the process as the signal does: its name, and the time to stop by.
_notice: tuple[str, float] | None = None


class Preempted(Exception):
    """Raised on every rank at once where a run stops for a signal."""


@contextmanager
def watch(grace: float) -> Iterator[None]:
    """Listen for SIGTERM and SIGUSR1 inside a with-block (main thread); `grace` in seconds."""
    global _notice
    _notice = None

    def note(number: int, _frame: FrameType | None) -> None:
        global _notice
        if _notice is None:
            _notice = signal.Signals(number).name, time.monotonic() + grace
            if is_main():
                tqdm.write(
                    f"{_notice[0]}: saving after this step if it ends within {grace:g} s (--grace), "
                    "else stopping after the batch under way; the same command resumes"
                )

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _notice = None


def overdue() -> bool:
    """Whether this rank was told to stop and its grace is over."""
    return _notice is not None and time.monotonic() >= _notice[1]


def stop_if_overdue() -> None:
    """Raise Preempted on all ranks if any is overdue; every rank calls it."""
    if any_rank(overdue()):
        raise Preempted


def stop_if_told() -> None:
    """Raise Preempted on all ranks if any was told to stop, for work of which nothing is kept; every rank calls it."""
    if told_to_stop():
        raise Preempted


def told_to_stop() -> bool:
    """Whether any rank was told to stop; every rank calls it."""
    return any_rank(_notice is not None)
