"""Seconds that the phases of a call take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class PhaseTimer:
    """Wall seconds by phase; those of a CUDA device until its work is done."""

    def __init__(self, device: torch.device):
        self.seconds: dict[str, float] = {}
        self._device = device

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add this block's seconds to the phase; blocks may be nested, and each counts its own."""
        start = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
