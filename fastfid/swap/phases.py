"""Seconds that the phases of a call take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class PhaseTimer:
    """Seconds by phase: of the host's clock, or of a CUDA device's own events, for which no phase waits."""

    def __init__(self, device: torch.device):
        self._seconds: dict[str, float] = {}
        self._device = device
        self._events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add this block's seconds to the phase; blocks may be nested, and each counts its own."""
        if self._device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            stream = torch.cuda.current_stream(self._device)
            start.record(stream)
            yield
            end.record(stream)
            self._events.append((name, start, end))
        else:
            begun = time.perf_counter()
            yield
            self._add(name, time.perf_counter() - begun)

    @property
    def seconds(self) -> dict[str, float]:
        """What the phases took so far; waits for a device only if its work is not done."""
        for name, start, end in self._events:
            if not end.query():
                end.synchronize()
            self._add(name, start.elapsed_time(end) / 1e3)
        self._events.clear()
        return dict(self._seconds)

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
