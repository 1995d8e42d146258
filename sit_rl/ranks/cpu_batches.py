"""Several batches at a time on the cores of a CPU, each batch on one thread.

Small matrix products gain little from several threads. With 200 images per batch, two streams of one thread were 1.2
times as fast as one stream of two threads on two idle cores. Beside another busy process they were 2.8 times as fast,
because threads that meet at every product wait for the slowest. On one thread, the bits of a batch also do not depend
on the number of cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Protocol, TypeVar

import torch

In = TypeVar("In")
Mid = TypeVar("Mid")
Out = TypeVar("Out")


def map_batches(work: Callable[[In], Out], batches: Sequence[In], device: torch.device) -> Iterator[Out]:
    """work(batch) of every batch, in order, without gradients: in parallel on a CPU, one after the other elsewhere.

    If there are fewer batches than threads, each batch gets several threads. The first exception ends the iteration,
    and batches that have not begun are dropped.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    workers = min(threads, len(batches))
    if workers <= 1:
        with torch.no_grad():
            yield from map(work, batches)
        return
    pool = ThreadPoolExecutor(workers, initializer=enter_worker, initargs=(threads // workers,))
    try:
        yield from pool.map(_without_gradients(work), batches)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # new threads take this count


def map_in_two_stages(
    first: Callable[[In], Mid], second: Callable[[Mid], Out], batches: Sequence[In], device: torch.device
) -> Iterator[Out]:
    """second(first(batch)) of every batch, in order, without gradients. The stages of different batches overlap.

    On a CPU whole batches run in parallel. Elsewhere `second` runs in a thread of its own (on a GPU also in a stream of
    its own) while `first` works on the next batch.
    """
    if device.type == "cpu":
        yield from map_batches(lambda batch: second(first(batch)), batches, device)
    else:
        yield from overlap(first, second, batches, second_stream(device, "decode"))


def overlap(
    first: Callable[[In], Mid], second: Callable[[Mid], Out], batches: Sequence[In], lane: Lane
) -> Iterator[Out]:
    """The two stages, one batch in each. `lane` is where the second stage runs."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for batch in batches:
            with torch.no_grad():
                made = first(batch)
            following = pool.submit(_without_gradients(lane.work), (second, made, lane.mark()))
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


class Lane(Protocol):
    """Where the second stage runs: on a GPU a stream of its own."""

    def mark(self) -> torch.cuda.Event:
        """The point in the first stage's work that the second stage waits for."""

    def work(self, call: tuple[Callable[[Mid], Out], Mid, torch.cuda.Event]) -> Out:
        """(second, made, ready) → second(made), started after `ready`."""


@lru_cache
def second_stream(device: torch.device, purpose: str) -> _SecondStream:
    """A device's stream for a purpose, always the same: the allocator keeps the free memory of every stream apart."""
    return _SecondStream(device)


class _SecondStream:
    """A second CUDA stream. Its work starts after a mark in the first stream and is finished when `work` returns."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)

    def mark(self) -> torch.cuda.Event:
        event: torch.cuda.Event = torch.cuda.current_stream(self.stream.device).record_event()
        return event

    def work(self, call: tuple[Callable[[Mid], Out], Mid, torch.cuda.Event]) -> Out:
        second, made, ready = call
        with torch.cuda.device(self.stream.device), torch.cuda.stream(self.stream):
            self.stream.wait_event(ready)
            out = second(made)
        self.stream.synchronize()  # only this thread waits; after it any stream may use `out`
        return out


def enter_worker(threads: int) -> None:
    """Set what belongs to a thread: how many threads it may use, and denormal numbers as zero, which are slow."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def _without_gradients(work: Callable[[In], Out]) -> Callable[[In], Out]:
    """`work` under no_grad, which each thread must set for itself."""

    def call(batch: In) -> Out:
        with torch.no_grad():
            return work(batch)

    return call
