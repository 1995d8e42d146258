"""Batches side by side on a CPU's cores: each batch on one thread, several batches at a time.

Small matrix products share badly among threads. Two one-thread streams of the default model ran 1.2 times as fast as
one two-thread stream on two idle cores, and 2.8 times as fast beside another busy process, where threads that meet at
every product wait for the slower one (200 images a batch). A batch on one thread also has the same bits whatever the
number of cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch

In = TypeVar("In")
Mid = TypeVar("Mid")
Out = TypeVar("Out")


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
    pool = ThreadPoolExecutor(workers, initializer=enter_worker, initargs=(threads // workers,))
    try:
        yield from pool.map(_without_gradients(work), batches)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # the count that threads not yet begun will take


def map_in_two_stages(
    first: Callable[[In], Mid], second: Callable[[Mid], Out], batches: Sequence[In], device: torch.device
) -> Iterator[Out]:
    """second(first(batch)) of every batch, in order, without gradients; the stages of different batches overlap.

    On a CPU whole batches run side by side. Elsewhere `second` works in a thread, and on a GPU in a stream, of its own
    on one batch while `first` works on the next.
    """
    if device.type == "cpu":
        yield from map_batches(lambda batch: second(first(batch)), batches, device)
    else:
        yield from overlap(first, second, batches, _Stream(device))


def overlap(
    first: Callable[[In], Mid], second: Callable[[Mid], Out], batches: Sequence[In], side: Side
) -> Iterator[Out]:
    """The two stages with one batch in each; `side` orders their work where they are on a GPU."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for batch in batches:
            with torch.no_grad():
                made = first(batch)
            following = pool.submit(_without_gradients(side.work), (second, made, side.mark()))
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


class Side(Protocol):
    """Where the second stage works: its own place in the order of the device's work."""

    def mark(self) -> torch.cuda.Event:
        """The point in the first stage's work that the second one waits for."""

    def work(self, call: tuple[Callable[[Mid], Out], Mid, torch.cuda.Event]) -> Out:
        """(second, made, ready) → second(made), begun after `ready`."""


class _Stream:
    """A second CUDA stream: its work begins after a mark in the first, and is done when `work` returns."""

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
        self.stream.synchronize()  # this thread alone waits; then no other stream can come too early
        return out


def enter_worker(threads: int) -> None:
    """Settings that belong to a thread: how many it may use, and no slow arithmetic far below float32's range."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def _without_gradients(work: Callable[[In], Out]) -> Callable[[In], Out]:
    """`work` under no_grad, which belongs to a thread too."""

    def call(batch: In) -> Out:
        with torch.no_grad():
            return work(batch)

    return call
