"""A reward of each image as a set reward: D = c − mean of the images' scores.

A candidate changes the mean by (Σ_a (s_a − s̄) − Σ_r (s_r − s̄))/N', and leaving image i out by −(s_i − s̄)/(N − 1).
So per-image rewards, such as those of a classifier or an aesthetic model, run wherever a set reward does.

Legend: as in rewards/protocol.py; s the score of an image, s̄ the mean of the set's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastfid.rewards.checks import checked_labels, computed_in, labels_of_added
from fastfid.runtime.devices import as_tensor
from fastfid.runtime.errors import first_line
from fastfid.swap.checks import check_rows, checked_swap

# Scores are equal if they differ by at most this many roundings of their dtype: a mean of pixels in another order of
# summation makes a few.
ROUNDINGS = 8


class ScoredSet:
    """A set of images that each have a score.

    scores   [N] float64
    score    rows [n, ...], labels int64 [n] or None → scores [n] float64 of other images
    labels   int64 [N] of the set, or None
    row      shape of one row
    offset   c
    dtype    in which the scores were computed
    """

    def __init__(
        self,
        scores: Tensor,
        score: Callable[[Tensor, Tensor | None], Tensor],
        labels: Tensor | None,
        row: tuple[int, ...],
        offset: float = 0.0,
        dtype: torch.dtype = torch.float64,
    ):
        self.scores, self._score, self.labels, self._row, self._offset = scores, score, labels, row, offset
        # How far the changes by two images of one score may differ: s/(N − 1), rounded in that dtype.
        eps = torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
        self.rounding = ROUNDINGS * eps * scores.abs().max().item() / max(1, len(scores) - 1)

    @property
    def count(self) -> int:
        """Number N of images."""
        return len(self.scores)

    @property
    def distance(self) -> float:
        """c − s̄."""
        return self._offset - self.scores.mean().item()

    def change(self, removed: object, added: object, labels: object = None) -> Tensor:
        """Exact change for each candidate [B] float64; arguments as in `PreparedSet.change`."""
        removed, added = as_tensor(removed, "removed"), as_tensor(added, "added").detach()
        if added.ndim < 2 or tuple(added.shape[2:]) != self._row:
            raise ValueError(f"added must be [B, m_a, {', '.join(map(str, self._row))}], got {tuple(added.shape)}")
        like = self.scores.new_zeros(added.shape[:2])[..., None]
        removed, _ = checked_swap(removed, like, self.scores[:, None])
        of_added = None
        if self.labels is not None:
            of_added = labels_of_added(labels, removed, added.shape[1], self.labels).flatten()
        new = like[..., 0]
        if new.numel():
            new = self._score(added.flatten(0, 1), of_added).view(new.shape)
        mean = self.scores.mean()
        gain = (new - mean).sum(1) - (self.scores[removed] - mean).sum(1)
        return -gain / (self.count - removed.shape[1] + added.shape[1])

    def leave_one_out(self) -> Tensor:
        """Exact change when one image is left out, for each of them [N] float64."""
        return (self.scores - self.scores.mean()) / (self.count - 1)


class ScoreReward:
    """Scores that were computed elsewhere, rows [n, 1], as a reward."""

    def __init__(self, name: str):
        self.name = name

    def prepare(self, rows: object, labels: object = None) -> ScoredSet:
        """The set of scores [N, 1], N ≥ 2; labels are not used."""
        scores = as_tensor(rows, "rows").detach()
        check_rows(scores, "rows", 1)
        _check_different(scores, self.name, scores.dtype)
        return ScoredSet(_column(scores), lambda rows, labels: _column(rows), None, (1,), dtype=scores.dtype)


def _column(scores: Tensor) -> Tensor:
    """Scores [n, 1] as [n] float64."""
    return scores[:, 0].to(torch.float64)


def _check_different(scores: Tensor, name: str, dtype: torch.dtype) -> None:
    """ValueError where all scores [N] or [N, 1] are equal up to the rounding of the dtype they were computed in."""
    eps = torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
    exact = scores.to(torch.float64)
    if exact.max() - exact.min() <= ROUNDINGS * eps * exact.abs().max():
        raise ValueError(
            f"reward {name} gives all {len(scores)} images the same reward {exact.flatten()[0].item():.6g}: nothing "
            "distinguishes them; look at the function or leave it out"
        )


class CallableReward:
    """A function of images, images [n, ...] and int64 labels [n] or None → rewards [n], higher is better.

    ValueError, in one sentence with the component's name, where the function raises, or returns another shape, NaN or
    infinity, or the same reward for every image of a set, or writes into its images.
    """

    def __init__(self, function: Callable[[Tensor, Tensor | None], object], name: str):
        if not callable(function):
            raise ValueError(f"reward {name} is of type {type(function).__name__}; pass a function(images, labels)")
        self.function, self.name = function, name

    def prepare(self, rows: object, labels: object = None) -> ScoredSet:
        """The set of images [N, ...], N ≥ 2."""
        images = as_tensor(rows, "rows").detach()
        if images.ndim < 2 or len(images) < 2:
            raise ValueError(f"rows must be at least 2 images [N, ...], got shape {tuple(images.shape)}")
        of_set = None if labels is None else checked_labels(labels, len(images))
        scores, dtype = self._returned(images, of_set)
        _check_different(scores, self.name, dtype)
        return ScoredSet(scores, self.scores, of_set, tuple(images.shape[1:]), dtype=dtype)

    def scores(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Rewards [n] float64 on the images' device; ValueError as above, except for equal rewards."""
        return self._returned(images, labels)[0]

    @torch.no_grad()
    def _returned(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, torch.dtype]:
        """What the function returns [n], checked, as float64, and the dtype that it was computed in."""
        version = images._version
        try:
            returned = self.function(images, labels)
        except (MemoryError, torch.OutOfMemoryError):
            raise  # the caller says which option to lower
        except (Exception, SystemExit) as error:  # sys.exit would end a run without a word
            what = f"{type(error).__name__} for images {tuple(images.shape)}"
            raise ValueError(f"reward {self.name} raised {what}: {first_line(error)}") from error
        if images._version != version:
            raise ValueError(f"reward {self.name} wrote into its images; let it work on a copy, images.clone()")
        try:
            found = as_tensor(returned).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"reward {self.name} returned {type(returned).__name__}; return a tensor of shape ({len(images)},)"
            ) from error
        if tuple(found.shape) != (len(images),):
            raise ValueError(
                f"reward {self.name} returned shape {tuple(found.shape)} for {len(images)} images; "
                f"return one number an image, shape ({len(images)},)"
            )
        if found.is_complex():
            raise ValueError(f"reward {self.name} returned {found.dtype}; return real numbers")
        scores = found.to(images.device)
        bad = (~torch.isfinite(scores)).nonzero().flatten()
        if len(bad):
            raise ValueError(
                f"reward {self.name} returned NaN or infinity for {len(bad)} of {len(images)} images, first image "
                f"{bad[0].item()}; return finite numbers"
            )
        return scores.to(torch.float64), computed_in(returned, found)
