"""Preemption: after SIGTERM or SIGUSR1 a run saves and exits with status 0. The same command resumes it.

The current step is finished and saved if that takes at most `--grace` seconds. A longer step is dropped after its
current batch and repeated on resume. So a run ends within the grace period, one batch, and the save in progress. Before
the first step, while features of real images are computed, it ends after the current batch.
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
# Name of the signal that came, and the time to stop by. Global, because a signal belongs to the whole process.
_notice: tuple[str, float] | None = None


class Preempted(Exception):
    """Raised on all ranks at the same point when a run stops because of a signal."""


@contextmanager
def watch(grace: float) -> Iterator[None]:
    """Listen for SIGTERM and SIGUSR1 inside a with-block, in the main thread; `grace` in seconds."""
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
    """Whether this rank was told to stop and its grace period is over."""
    return _notice is not None and time.monotonic() >= _notice[1]


def stop_if_overdue() -> None:
    """Raise Preempted on all ranks if any rank is overdue. All ranks call it."""
    if any_rank(overdue()):
        raise Preempted


def stop_if_told() -> None:
    """Raise Preempted on all ranks if any rank was told to stop: for work that is not saved. All ranks call it."""
    if told_to_stop():
        raise Preempted


def told_to_stop() -> bool:
    """Whether any rank was told to stop. All ranks call it."""
    return any_rank(_notice is not None)
