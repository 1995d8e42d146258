"""A user's own set reward: what it raises, or returns in another shape, is one sentence with its name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from fastfid.rewards.checks import computed_in
from fastfid.rewards.per_image import ROUNDINGS
from fastfid.rewards.protocol import PreparedSet, SetReward
from fastfid.runtime.devices import as_tensor
from fastfid.runtime.errors import first_line

Result = TypeVar("Result")

MEMBERS = ("distance", "change", "leave_one_out")  # of a prepared set that are used


class CheckedReward:
    """Any set reward, checked.

    ValueError, in one sentence with the reward's name, where a method raises, or returns no PreparedSet, another shape,
    NaN or infinity.
    """

    def __init__(self, reward: SetReward, name: str | None = None):
        self.reward, self.name = reward, name or reward.name

    def prepare(self, rows: object, labels: object = None) -> CheckedSet:
        """The set of these rows [N, ...]; ValueError as above."""
        prepared = _called(f"{self.name} raised", f"in prepare of {_shape(rows)}", self.reward.prepare, rows, labels)
        missing = [member for member in MEMBERS if not hasattr(type(prepared), member)]
        missing = [member for member in missing if not hasattr(prepared, member)]
        if missing:
            raise ValueError(
                f"reward {self.name}: prepare returned a {type(prepared).__name__} without {missing[0]}; return a set "
                f"with {', '.join(MEMBERS)} (fastfid.rewards.PreparedSet)"
            )
        return CheckedSet(prepared, self.name, len(as_tensor(rows, "rows")))


class CheckedSet:
    """A prepared set of a user's own reward, checked; made by `CheckedReward.prepare`."""

    def __init__(self, prepared: PreparedSet, name: str, count: int):
        self.prepared, self.name, self.count = prepared, name, count
        self.rounding = 0.0  # of the numbers so far; two of them that differ by less are equal

    @property
    def distance(self) -> float:
        """Distance of the set, finite."""
        found = _called(f"{self.name} raised", "in distance", lambda: float(self.prepared.distance))
        if not math.isfinite(found):
            raise ValueError(f"reward {self.name} has distance {found}; return a finite number")
        return found

    def change(self, removed: object, added: object, labels: object = None) -> Tensor:
        """Change of the distance for each candidate [B] float64."""
        where = f"in change for removed {_shape(removed)} and added {_shape(added)}"
        found = _called(f"{self.name} raised", where, self.prepared.change, removed, added, labels)
        return self._numbers(found, len(as_tensor(removed, "removed")), "change", "candidate")

    def leave_one_out(self) -> Tensor:
        """Change when one image is left out, for each of them [N] float64."""
        found = _called(f"{self.name} raised", "in leave_one_out", self.prepared.leave_one_out)
        return self._numbers(found, self.count, "leave_one_out", "image")

    def _numbers(self, found: object, count: int, method: str, noun: str) -> Tensor:
        try:
            numbers = as_tensor(found)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"reward {self.name}: {method} returned a {type(found).__name__}; return [{count}] numbers"
                             ) from None  # fmt: skip
        if numbers.is_complex():
            raise ValueError(f"reward {self.name}: {method} returned {numbers.dtype}; return real numbers")
        if tuple(numbers.shape) != (count,):
            raise ValueError(
                f"reward {self.name}: {method} returned shape {tuple(numbers.shape)}; return one number a {noun}, "
                f"shape ({count},)"
            )
        bad = (~torch.isfinite(numbers)).nonzero().flatten()
        if len(bad):
            raise ValueError(
                f"reward {self.name}: {method} returned NaN or infinity for {len(bad)} of {count} {noun}s, first "
                f"{bad[0].item()}; return finite numbers"
            )
        if numbers.is_floating_point() and len(numbers):
            largest = numbers.abs().max().item()
            eps = torch.finfo(computed_in(found, numbers)).eps
            self.rounding = max(self.rounding, ROUNDINGS * eps * largest)
        return numbers.detach().to(torch.float64)


def _called(who: str, where: str, method: Callable[..., Result], *arguments: object) -> Result:
    try:
        return method(*arguments)
    except (MemoryError, torch.OutOfMemoryError):
        raise  # the caller says which option to lower
    except Exception as error:
        raise ValueError(f"reward {who} {type(error).__name__} {where}: {first_line(error)}") from error


def _shape(x: object) -> str:
    return str(tuple(getattr(x, "shape", ())))
