"""What a computation of changes was made of: choices, nodes, repairs and seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fastfid.backend import Choice
from fastfid.linalg.quadrature import error_bound
from fastfid.swap.nodes import Nodes


@dataclass(frozen=True, eq=False)
class Report:
    """What one or several chunks needed; `then` adds up.

    choice      backend of the last determinants, None if there were none
    nodes       quadrature of the last determinants, None if there were none
    shift       the last shift of a singular spectrum, 0.0 where the last spectrum was regular
    recomputed  candidates that were computed twice, as they lose a rare direction
    clipped     eigenvalues that method "eigh" found below zero
    seconds     wall seconds of each phase
    """

    choice: Choice | None = None
    nodes: Nodes | None = None
    shift: float = 0.0
    recomputed: int = 0
    clipped: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, nodes: Nodes | None, choice: Choice | None = None) -> Report:
        """Of determinants at these nodes."""
        return cls(choice, nodes, nodes.shift if nodes is not None else 0.0)

    def then(self, later: Report) -> Report:
        """Both together: the later nodes and choice if there are any, counts and seconds added."""
        seconds = dict(self.seconds)
        for phase, spent in later.seconds.items():
            seconds[phase] = seconds.get(phase, 0.0) + spent
        return Report(
            later.choice or self.choice,
            self.nodes if later.nodes is None else later.nodes,
            self.shift if later.nodes is None else later.shift,
            self.recomputed + later.recomputed,
            self.clipped + later.clipped,
            seconds,
        )

    def without_counts(self) -> Report:
        """As a new call begins: nothing recomputed or clipped yet."""
        return replace(self, recomputed=0, clipped=0)

    def quadrature(self, scale: float) -> dict[str, object]:
        """The nodes in units of features, with Λ in units of `scale`; nan before the first nodes.

        `quadrature_bound` bounds the rule's error for one root eigenvalue.
        """
        nodes = self.nodes
        count, lo, hi = (len(nodes), nodes.lo, nodes.hi) if nodes is not None else (0, math.nan, math.nan)
        return {
            "nodes": count,
            "quadrature_bound": error_bound(count, lo, hi) * math.sqrt(hi * scale) if count else math.nan,
            "node_range": (lo * scale, hi * scale),
            "shift": self.shift * scale,
        }
