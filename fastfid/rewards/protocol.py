"""What a set reward is: a distance of a set of generated images to the real ones, and its exact changes.

A reward prepares the real side once.  Each time the set changes, `prepare` returns a new value that holds the set:

    reward = FrechetReward(real_moments)
    prepared = reward.prepare(features, labels)
    prepared.change(removed, added)               candidates that replace several images
    swap_credit(prepared, removed, added)         each new image on its own           (rewards/credit.py)
    prepared.leave_one_out()                      each image of the set itself

Signs: a distance is better when it is lower.  A change below 0 is an improvement, and an image is worth what the
distance gains when it is left out.

Legend: N images of the set, d features, B candidates, m_r rows removed and m_a added a candidate.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


class SetReward(Protocol):
    """A distance to real images, prepared once.

    `rows` are what the reward reads: features [N, d] of one network, or images [N, c, h, w].
    """

    @property
    def name(self) -> str:
        """Name of the component, for logs and errors."""

    def prepare(self, rows: object, labels: object = None) -> PreparedSet:
        """The set of these rows [N, ...] with the int64 labels [N], N ≥ 2; ValueError for rows that it cannot use."""


class PreparedSet(Protocol):
    """A set of generated images, and the exact changes of its distance.  It never changes itself.

    It may have `rounding`, a float: how far the changes by two equal images may differ.  Comparisons of images
    ignore smaller differences.  A set without the attribute has a rounding of 0.
    """

    @property
    def count(self) -> int:
        """Number N of images."""

    @property
    def distance(self) -> float:
        """Distance of the set; lower is better."""

    def change(self, removed: object, added: object, labels: object = None) -> Tensor:
        """Exact change of the distance for each candidate [B] float64.

        removed  [B, m_r] int64 rows of the set, no repeats inside a candidate
        added    [B, m_a, ...] rows that come in; m_a may differ from m_r
        labels   [B, m_a] int64 of the added rows; by default added row j has the label of removed row j
        """

    def leave_one_out(self) -> Tensor:
        """Exact change when one image is left out, for each of them [N] float64: the credit of the set's images."""


@runtime_checkable
class DifferentiableSet(PreparedSet, Protocol):
    """A prepared set whose distance has a gradient in the features."""

    def gradient(self) -> Tensor:
        """∂ distance/∂ features [N, d] float64."""
