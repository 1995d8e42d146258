"""Batches side by side on a CPU's cores: each batch on one thread, several batches at a time.

Small matrix products share badly among threads. Two one-thread streams of the default model ran 1.2 times as fast as
one two-thread stream on two idle cores, and 2.8 times as fast beside another busy process, where threads that meet at
every product wait for the slower one (200 images a batch). A batch on one thread also has the same bits whatever the
number of cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

In, Out = TypeVar("In"), TypeVar("Out")


def map_batches(work: Callable[[In], Out], batches: Sequence[In], device: torch.device) -> Iterator[Out]:
    """work(batch) of every batch, in order, without gradients; in parallel on a CPU, one after the other elsewhere.

    Fewer batches than threads share the threads among them. The first exception ends the iteration, and batches that
    have not begun are dropped.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    workers = min(threads, len(batches))
    if workers <= 1:
        with torch.no_grad():
            yield from map(work, batches)
        return
    pool = ThreadPoolExecutor(workers, initializer=_enter_worker, initargs=(threads // workers,))
    try:
        yield from pool.map(_without_gradients(work), batches)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # the count that threads not yet begun will take


def _enter_worker(threads: int) -> None:
    """Settings that belong to a thread: how many it may use, and no slow arithmetic far below float32's range."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def _without_gradients(work: Callable[[In], Out]) -> Callable[[In], Out]:
    """`work` under no_grad, which belongs to a thread too."""

    def call(batch: In) -> Out:
        with torch.no_grad():
            return work(batch)

    return call
