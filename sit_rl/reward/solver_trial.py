"""Which solver decomposes the reference set of a run on a GPU: the device's, or the host's.

Both work beside the loop, in the reward's thread.  The device's solver runs in a stream of its own and takes processors
from rollout and update.  The host's takes cores from the thread that launches them, and two matrices are copied.  Which
one costs the loop less depends on the machine.  So the first preparations take turns, and what is compared is the time
from the start of a preparation to the first score that needs it.  This has the work of the loop meanwhile and the wait.

The two differ by rounding.  So the order of turns is fixed, and a checkpoint keeps turns and choice: a resumed run
decomposes each reference set where the run before it did or would have.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from fastfid.linalg.eigensolver import EIGENSOLVERS
from sit_rl.ranks.collectives import sum_scalars

# Turns of each solver.  The first one loads its library, and so does the loop its kernels; of the others the shortest
# counts, as some steps also evaluate or save.
TURNS = 4
WORDS = {"device": "on the GPU in a side stream", "host": "on the host in a thread"}


class SolverTrial:
    """The turns of the solvers, and the choice after them.

    kept   `state` of an earlier process
    clock  seconds
    """

    def __init__(self, kept: Mapping[str, Any] | None = None, clock: Callable[[], float] = time.perf_counter):
        kept = kept or {}
        self.chosen: str | None = kept.get("chosen")
        self._seconds: list[float | None] = list(kept.get("seconds", []))  # None: not counted
        self._where: str | None = kept.get("where")  # of the present preparation
        self._ended, self._again = bool(kept.get("ended")), self._where is not None
        self._clock, self._begun, self._first = clock, 0.0, True

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {
            "chosen": self.chosen, "seconds": list(self._seconds), "where": self._where, "ended": self._ended
        }  # fmt: skip

    def begin(self) -> str:
        """Where the next preparation is computed, of EIGENSOLVERS; its time begins.

        The first one of a resumed run is the present one of the checkpoint, made again.
        """
        self._begun = self._clock()
        if self._where is None or not self._again:
            self._where = self.chosen or EIGENSOLVERS[len(self._seconds) % len(EIGENSOLVERS)]
            self._ended = False
        self._again = False
        return self._where

    def end(self) -> None:
        """The loop has what it needs.  The first preparation of a process is not counted: its libraries are loaded."""
        if self.chosen is None and not self._ended:
            early = self._first or len(self._seconds) < len(EIGENSOLVERS)
            self._seconds.append(None if early else self._clock() - self._begun)
        self._first, self._ended = False, True

    def decide(self) -> str | None:
        """Choose after the last turn, and say so in a sentence; every rank calls it, and all choose alike."""
        if self.chosen is not None or len(self._seconds) < TURNS * len(EIGENSOLVERS):
            return None
        shortest = sum_scalars({where: self._shortest(where) for where in EIGENSOLVERS})
        if math.inf in shortest.values():  # a run that was resumed again and again has not measured one yet
            return None
        self.chosen = min(EIGENSOLVERS, key=lambda where: shortest[where])
        other = next(where for where in EIGENSOLVERS if where != self.chosen)
        return (
            f"reference sets are now decomposed {WORDS[self.chosen]}: a step's work beside it and the wait for it take "
            f"{shortest[self.chosen]:.3g} s, and {shortest[other]:.3g} s {WORDS[other]}; --eigensolver {self.chosen} "
            "chooses it from the first step on"
        )

    def _shortest(self, where: str) -> float:
        turns = self._seconds[EIGENSOLVERS.index(where) :: len(EIGENSOLVERS)]
        return min((turn for turn in turns if turn is not None), default=math.inf)
