"""Work in the background: in a thread of its own, on a GPU also in a stream of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from sit_rl.ranks import cpu_batches

T = TypeVar("T")


class BackgroundWorker:
    """Does one piece of work at a time while the main thread goes on.

    name    of the thread, and on a GPU of the stream
    device  that the work computes on.  There it starts after what the main thread has enqueued so far, and it is done
            when its future is: any stream may then use the result
    """

    def __init__(self, name: str, device: torch.device):
        threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(1, name, cpu_batches.enter_worker, (threads,))
        self._lane = cpu_batches.second_stream(device, name) if device.type == "cuda" else None

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Begin `work`; the future has its result or its error."""
        if self._lane is None:
            return self._pool.submit(work)
        call: tuple[Callable[[None], T], None, torch.cuda.Event] = (lambda _: work(), None, self._lane.mark())
        return self._pool.submit(self._lane.work, call)
