"""What a generator can be asked for: class labels or prompts, by number, and the groups that stratify a set of images.

A condition is an opaque key: code that trains, scores and evaluates sees its number alone.  A group holds conditions
that stand for each other: a new image takes the place of an old one of the same group.  Without groups, every
condition is a group of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastfid.runtime.hashes import sha256


class Conditions:
    """Conditions 0 … n − 1 with their names, and the group 0 … G − 1 of each.

    names   text of each condition, for people
    groups  name of the group of each condition; None: each condition is a group of its own
    """

    def __init__(self, names: Sequence[str], groups: Sequence[str] | None = None):
        self.names = tuple(names)
        self.group_names = self.names if groups is None else tuple(dict.fromkeys(groups))
        numbers: Sequence[int] = range(len(self.names))
        if groups is not None:
            number = {name: i for i, name in enumerate(self.group_names)}
            numbers = [number[name] for name in groups]
        self.groups = torch.tensor(list(numbers), dtype=torch.int64)
        self._members = torch.argsort(self.groups, stable=True)  # conditions, group by group
        self._sizes = torch.bincount(self.groups, minlength=len(self.group_names))
        self._starts = self._sizes.cumsum(0) - self._sizes

    @classmethod
    def numbered(cls, count: int) -> Conditions:
        """Classes that have numbers and no names."""
        return cls([str(i) for i in range(count)])

    def __len__(self) -> int:
        return len(self.names)

    @property
    def group_count(self) -> int:
        """G."""
        return len(self.group_names)

    @property
    def identity(self) -> str:
        """SHA-256 of all names and groups."""
        return sha256(f"{name}\0{self.group_names[g]}\0" for name, g in zip(self.names, self.groups, strict=True))

    def balanced(self, count: int, first: int = 0) -> torch.Tensor:
        """Conditions int64 [count] of images first … first + count − 1.

        All groups are equally frequent (± 1), and so are the conditions of a group.  Image i of classes has class
        i mod n.
        """
        i = first + torch.arange(count)
        return self._pick(i % self.group_count, i // self.group_count)

    def renewed(self, conditions: torch.Tensor, first: int) -> torch.Tensor:
        """Conditions int64 [n] of the images that replace images of `conditions` [n]: each of the same group.

        The conditions of a group take turns; `first` is the number of images generated before.
        """
        groups = self.groups[conditions]
        order = torch.argsort(groups, stable=True)
        counts = torch.bincount(groups, minlength=self.group_count)
        turns = torch.empty_like(order)
        turns[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts)[groups[order]]
        return self._pick(groups, first // self.group_count + turns)

    def _pick(self, groups: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """The condition of each group whose turn it is."""
        return self._members[self._starts[groups] + turns % self._sizes[groups]]
