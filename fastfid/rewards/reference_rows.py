"""The newest images that stand for a generator: their features in each network, their keys, and which are the oldest.

A key says what an image was made for: a class, or a prompt.  A new image replaces the oldest one of its key, so the set
keeps its mix of keys.  Where no image of the key is left, it replaces the oldest one of all.

Legend: N images of the set, n new ones.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastfid.runtime.errors import shown

MOST_LABEL = 2**63 - 1  # of an int64 key


@dataclass(frozen=True, eq=False)
class ReferenceRows:
    """A set of images.  It never changes itself.

    features  [N, d] of each network
    keys      int64 [N]
    ages      int64 [N], lower is older; no two are equal
    """

    features: tuple[Tensor, ...]
    keys: Tensor
    ages: Tensor

    @classmethod
    def empty(cls, dims: Sequence[int], device: torch.device) -> ReferenceRows:
        """No images; `dims` are the widths of the networks' features."""
        nothing = torch.empty(0, dtype=torch.int64)
        return cls(tuple(torch.empty(0, d, device=device) for d in dims), nothing, nothing)

    def __len__(self) -> int:
        return len(self.keys)

    def oldest(self, keys: Tensor) -> Tensor:
        """The image int64 [n] that each new one with keys int64 [n] replaces, n ≤ N, no two the same."""
        order = torch.argsort(self.ages).tolist()
        of_key: dict[int, deque[int]] = defaultdict(deque)
        for place in order:
            of_key[int(self.keys[place])].append(place)
        taken: set[int] = set()
        any_key = (place for place in order if place not in taken)
        found = []
        for key in keys.tolist():
            place = _first(of_key[key], taken)
            place = next(any_key) if place is None else place
            taken.add(place)
            found.append(place)
        return torch.tensor(found, dtype=torch.int64)

    def replaced(self, places: Tensor, features: Sequence[Tensor], keys: Tensor) -> ReferenceRows:
        """The set with new images at `places` int64 [n]."""
        rows = tuple(old.clone() for old in self.features)
        for old, new in zip(rows, features, strict=True):
            old[places.to(old.device)] = new.to(old)
        all_keys, ages = self.keys.clone(), self.ages.clone()
        all_keys[places], ages[places] = keys, self._newest(len(keys))
        return ReferenceRows(rows, all_keys, ages)

    def appended(self, features: Sequence[Tensor], keys: Tensor, most: int) -> ReferenceRows:
        """The set with new images at its end, of which the newest `most` stay."""
        rows = tuple(torch.cat([old, new.to(old)]) for old, new in zip(self.features, features, strict=True))
        all_keys, ages = torch.cat([self.keys, keys]), torch.cat([self.ages, self._newest(len(keys))])
        stay = torch.argsort(ages)[-most:].sort().values
        return ReferenceRows(tuple(row[stay.to(row.device)] for row in rows), all_keys[stay], ages[stay])

    def _newest(self, count: int) -> Tensor:
        first = int(self.ages.max()) + 1 if len(self.ages) else 0
        return torch.arange(first, first + count)


def _first(queue: deque[int], taken: set[int]) -> int | None:
    """The first place of a queue that is not taken; it and all places before it leave the queue."""
    while queue:
        place = queue.popleft()
        if place not in taken:
            return place
    return None


class Keys:
    """Numbers of labels: class indices keep theirs, texts get one in the order of their first appearance."""

    def __init__(self, names: Sequence[str] = ()):
        self.numbers = {name: -1 - i for i, name in enumerate(names)}

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def numbered(self, labels: Sequence[int | str] | None, count: int) -> Tensor:
        """int64 [count] of labels as in `listed_labels`; all 0 without labels."""
        if labels is None:
            return torch.zeros(count, dtype=torch.int64)
        return torch.tensor([self._number(label) for label in labels], dtype=torch.int64)

    def _number(self, label: int | str) -> int:
        if isinstance(label, str):  # negative, so that texts and class indices never meet
            return self.numbers.setdefault(label, -1 - len(self.numbers))
        return label


def listed_labels(labels: object, count: int) -> list[int | str] | None:
    """Labels of `count` images as a list; None without any.

    labels  None, class indices (tensor, array or sequence), or texts such as prompts.  ValueError for others
    """
    if labels is None:
        return None
    values = labels.tolist() if hasattr(labels, "tolist") else labels
    if not isinstance(values, list | tuple) or len(values) != count:
        what = f"{len(values)} of them" if isinstance(values, list | tuple) else f"a {type(labels).__name__}"
        raise ValueError(f"labels must be one for each of the {count} images, got {what}")
    return [_label(value) for value in values]


def _label(value: object) -> int | str:
    """A text, or a class index of any whole type: an int, or a NumPy or torch scalar."""
    if isinstance(value, str):
        return str(value)
    kind = getattr(value, "dtype", None)
    plain = value.tolist() if hasattr(value, "tolist") and getattr(value, "ndim", 1) == 0 else value
    if isinstance(plain, bool) or not isinstance(plain, int) or not 0 <= plain <= MOST_LABEL:
        raise ValueError(
            f"labels must be class indices from 0, or texts, got {shown(repr(plain))}{f' of {kind}' if kind else ''}"
        )
    return plain
