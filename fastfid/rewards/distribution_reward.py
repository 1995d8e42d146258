"""The change of a distribution distance as a score of single images, for any training loop.

    reward = DistributionReward("real_images/", "inception")
    reward.refresh(generated)              thousands of images of the generator: the reference set
    scores = reward(images)                one score an image, higher is better; the images then join the set
    reward.change(images).backward()       or the exact change of the distance, with its gradient in the pixels

The score of an image is what the distance gains by it: the distance without the old image that it would replace, less
the distance with it in that place.  Every network's scores are in units of their spread in the first call.  So several
networks weigh alike, and scores shrink as the generator improves.

Before the reference set is full, images join it first, and their score is the change by leaving them out.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastfid.distances.arguments import check_flag, check_whole
from fastfid.features.differentiable import differentiable_features
from fastfid.features.extractor import FeatureExtractor
from fastfid.images.arrays import to_uint8
from fastfid.images.open import check_range, open_images
from fastfid.rewards.credit import swap_credit
from fastfid.rewards.frechet import FrechetSet
from fastfid.rewards.network_parts import Make, Network, Part, Weights, parts_of
from fastfid.rewards.protocol import PreparedSet
from fastfid.rewards.reference_rows import Keys, ReferenceRows, listed_labels
from fastfid.rewards.reward_state import checked_state, kind_in_words
from fastfid.runtime import distributed
from fastfid.runtime.devices import as_tensor
from fastfid.runtime.errors import first_line
from fastfid.runtime.input_files import FREE_BYTES, MOST_GROWTH

# Part of the range by which floats may leave it before they are taken for another range: decoders overshoot by a tenth.
OVERSHOOT = 0.25
FEWEST = 3  # images of a set of which one is left out
SAME = 1e-6  # spread of credits, relative to the largest, that rounding alone makes in float32


class DistributionReward:
    """Scores of single images by a distance of all: the reference set, its networks, its ranks.

    real         images (as in `open_images`), or statistics or features as `fastfid` reads them; or {network: one}
    networks     "inception"  names or FeatureExtractors, one or several, or {network: weight}
    size         5000         images of the reference set
    make         None         function of real features [n, d] that makes the set reward; None: the Fréchet distance
    value_range  (0, 1)       of float images
    weights      None         weights file of the network, or {network: file}
    device       "cpu"        of networks given by name
    shared       True         all ranks of torch.distributed have one reference set, and call every method together;
                              False: each its own
    batch_size   256          images that a network sees at once
    options      of `SwapEngine`, such as dtype

    Images are uint8 or float, [n, c, h, w] or [n, h, w, c]; floats are rounded to 256 levels.  Labels are classes or
    prompts: a new image replaces the oldest one of its own label.  Calls from several threads take turns.  Errors are
    ValueErrors of one sentence.
    """

    def __init__(
        self,
        real: Any,
        networks: Network | Sequence[Network] | Mapping[Any, float] = "inception",
        *,
        size: int = 5_000,
        make: Make | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        weights: Weights = None,
        device: str | torch.device = "cpu",
        shared: bool = True,
        batch_size: int = 256,
        **options: Any,
    ):
        check_whole("size", size, FEWEST, f"the reference set needs at least {FEWEST} images, thousands to be useful")
        check_whole("batch_size", batch_size, 1, "a network sees at least 1 image at once")
        check_range(value_range)
        check_flag("shared", shared)
        if make is not None and not callable(make):
            raise ValueError(f"make is a {type(make).__name__}; pass a function of real features [n, d]")
        if make is not None and options:
            raise ValueError(
                f"{', '.join(options)} are options of the Fréchet distance, which make replaces; leave them out"
            )
        self.size, self.value_range, self.shared, self.batch_size = size, value_range, shared, batch_size
        with nullcontext() if shared else distributed.alone():
            self.parts = parts_of(real, networks, weights, device, value_range, make, options)
        self._reference = self._empty()
        self._prepared: list[PreparedSet] | None = None
        self._keys, self._turn = Keys(), threading.RLock()
        self.credits: dict[str, Tensor] = {}

    def __call__(self, images: Any, labels: object = None, roll: bool = True) -> Tensor:
        """Scores float64 [n] of images, on their device, higher is better.

        roll  True  the images join the reference set, each in the place of an old one; False: nothing changes

        `credits` then holds the unscaled credits [n] of each network: changes of its distance.
        """
        with self._turn:
            new = self._new(images, labels)
            full = len(self._reference) == self.size
            credits, after = self._swapped(new) if full else self._joined(new)
            scores = self._scores(credits)
            self.credits = {part.name: credit[new.mine] for part, credit in zip(self.parts, credits, strict=True)}
            if roll:
                self._renew(after)
            return scores[new.mine].to(_device_of(images))

    def refresh(self, images: Any, labels: object = None) -> None:
        """Make these images the reference set: an array of them, or what `open_images` takes, the newest `size`.

        With shared ranks, each rank passes its share.
        """
        with self._turn:
            if not isinstance(images, Tensor | np.ndarray):
                batches = [batch for batch in open_images(images, self.value_range).batches(self.batch_size)]
                images = torch.cat(batches)
            new = self._new(images, labels, most=False)
            if len(new.keys) < FEWEST:
                raise ValueError(
                    f"the reference set has {len(new.keys)} images; pass at least {FEWEST}, best {self.size}"
                )
            self._renew(self._empty().appended(new.features, new.keys, self.size))

    def roll(self, images: Any, labels: object = None) -> None:
        """Let images join the reference set without a score."""
        with self._turn:
            new = self._new(images, labels)
            if len(self._reference) < self.size:
                self._renew(self._reference.appended(new.features, new.keys, self.size))
            else:
                places = self._reference.oldest(new.keys)
                self._renew(self._reference.replaced(places, new.features, new.keys))

    def change(self, images: Tensor, labels: object = None, together: bool = True) -> Tensor:
        """Exact change of the Fréchet distance by float images [n, c, h, w], differentiable in their pixels.

        together  True  all of them at once, each in the place of an old image: 0-d float64.  False: each alone, [n]

        Below 0 is an improvement, so this is a loss.  Changes of several networks are added by their weights.  Nothing
        changes in the reference set; ranks do not exchange anything.
        """
        with self._turn:
            if not isinstance(images, Tensor) or images.ndim != 4:
                raise ValueError(f"images must be a float tensor [n, c, h, w], got {kind_in_words(images)}")
            keys = self._keys.numbered(listed_labels(labels, len(images)), len(images))
            if len(images) + 2 > len(self._reference):
                raise ValueError(
                    f"{len(images)} images cannot replace others in a reference set of {len(self._reference)}; pass "
                    "fewer, or call refresh with generated images"
                )
            self._check_range(images)
            removed = self._reference.oldest(keys).to(self._device)
            total = torch.zeros((), dtype=torch.float64, device=self._device)
            for part, prepared in zip(self.parts, self.prepared, strict=True):
                if not isinstance(prepared, FrechetSet):
                    raise ValueError(
                        f"change has a gradient for the Fréchet distance only, not for {part.reward.name}; leave "
                        "make out"
                    )
                with _named(part.extractor, images):
                    added = differentiable_features(part.extractor, images, self.value_range)
                shape = (1, -1) if together else (-1, 1)
                changes = prepared.change(removed.view(shape), added.view(*shape, added.shape[1]))
                total = total + part.weight * (changes.sum() if together else changes)
            return total / sum(part.weight for part in self.parts)

    @property
    def distances(self) -> dict[str, float]:
        """Distance of the reference set in each network; empty before it has images."""
        with self._turn:
            if len(self._reference) < FEWEST:
                return {}
            return {part.name: one.distance for part, one in zip(self.parts, self.prepared, strict=True)}

    @property
    def count(self) -> int:
        """Images of the reference set."""
        return len(self._reference)

    @property
    def prepared(self) -> list[PreparedSet]:
        """The reference set in each network, prepared for changes."""
        if self._prepared is None:
            self._prepared = _prepared(self.parts, self._reference)
        return self._prepared

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The reference set and the units, as tensors and plain values for torch.save.  The real side is not in it."""
        with self._turn:
            rows = {part.name: row.cpu() for part, row in zip(self.parts, self._reference.features, strict=True)}
            return {
                "networks": {part.name: part.extractor.identity.provenance() for part in self.parts},
                "real": {part.name: part.real for part in self.parts},
                "units": {part.name: part.unit for part in self.parts},
                "rows": rows,
                "keys": self._reference.keys,
                "ages": self._reference.ages,
                "texts": list(self._keys),
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a `state_dict`; ValueError for one of other networks, other real images or a larger set."""
        reference, units, keys = checked_state(state, self.state_dict(), self.parts, self.size)
        with self._turn:
            for part in self.parts:
                part.unit = units[part.name]
            self._keys = keys
            self._renew(reference)

    # --- scores ------------------------------------------------------------------------------------------------------

    @property
    def _device(self) -> torch.device:
        return self.parts[0].extractor.device

    def _empty(self) -> ReferenceRows:
        return ReferenceRows.empty([part.extractor.dim for part in self.parts], self._device)

    def _renew(self, reference: ReferenceRows) -> None:
        self._reference, self._prepared = reference, None

    def _swapped(self, new: _NewImages) -> tuple[list[Tensor], ReferenceRows]:
        """Credits [n] of images that each replace an old one, and the set with all of them."""
        places = self._reference.oldest(new.keys)
        credits = [
            swap_credit(prepared, places.to(rows.device), rows)
            for prepared, rows in zip(self.prepared, new.features, strict=True)
        ]
        return credits, self._reference.replaced(places, new.features, new.keys)

    def _joined(self, new: _NewImages) -> tuple[list[Tensor], ReferenceRows]:
        """Credits [n] of images that join a set that is not full, and the set with them."""
        after = self._reference.appended(new.features, new.keys, self.size)
        if len(after) < FEWEST:
            raise ValueError(
                f"the reference set has {len(after)} images with these; pass at least {FEWEST}, or call refresh first"
            )
        places = torch.argsort(after.ages)[-len(new.keys) :]
        credits = []
        for prepared, rows in zip(_prepared(self.parts, after), after.features, strict=True):
            nothing = rows.new_empty(len(places), 0, rows.shape[1])
            credits.append(prepared.change(places[:, None].to(rows.device), nothing))
        return credits, after

    def _scores(self, credits: Sequence[Tensor]) -> Tensor:
        """Weighted mean of the credits, each in its unit; the first call sets the units."""
        total = torch.zeros_like(credits[0])
        for part, credit in zip(self.parts, credits, strict=True):
            if part.unit is None:
                spread = credit.std().item() if len(credit) > 1 else 0.0
                if not spread > SAME * credit.abs().max().item():
                    raise ValueError(
                        f"the first {len(credit)} images have the same credit by {part.name}, so its unit is unknown; "
                        "pass at least 2 different images"
                    )
                part.unit = spread
            total += part.weight * credit / part.unit
        return total / sum(part.weight for part in self.parts)

    def _new(self, images: Any, labels: object, most: bool = True) -> _NewImages:
        """Features and keys of the images of all ranks, in the order of the ranks; `most`: `size` of them at most."""
        with self._agreement():
            pixels = self._uint8(images)
            told = listed_labels(labels, len(pixels))
            features = [_features(part.extractor, pixels, self.batch_size) for part in self.parts]
        mine = slice(0, len(pixels))
        if self.shared and distributed.world_size() > 1:
            features, told, mine = self._gathered(features, told, len(pixels))
        count = len(features[0])
        if not count:
            raise ValueError("there are no images; pass at least one")
        if most and count > self.size:
            raise ValueError(f"{count} images exceed the reference set of {self.size}; raise size, or pass fewer")
        for part, rows in zip(self.parts, features, strict=True):
            if not torch.isfinite(rows).all():
                raise ValueError(f"features of {part.name} have NaN or infinity; look at the images and the network")
        return _NewImages(features, self._keys.numbered(told, count), mine)

    def _agreement(self) -> AbstractContextManager[None]:
        """Where ranks work together, all of them leave this block, or none."""
        return distributed.agreement() if self.shared else nullcontext()

    def _gathered(
        self, features: list[Tensor], told: list[int | str] | None, count: int
    ) -> tuple[list[Tensor], list[int | str] | None, slice]:
        """Features and labels of all ranks, and the place of this rank's images among them."""
        everyone = distributed.gather_objects(([rows.cpu() for rows in features], told, count))
        counts = [there for _, _, there in everyone]
        first = sum(counts[: distributed.rank()])
        labels = [label for _, there, _ in everyone for label in there or ()]
        if len(labels) not in (0, sum(counts)):
            raise ValueError("some ranks passed labels and others did not; pass them on every rank")
        rows = [torch.cat(parts).to(self._device) for parts in zip(*(rows for rows, _, _ in everyone), strict=True)]
        return rows, labels or None, slice(first, first + count)

    def _uint8(self, images: Any) -> Tensor:
        x = as_tensor(images, "images").detach()
        _require_content(x)
        if x.is_floating_point():
            self._check_range(x)
            x = x.clamp(*self.value_range)
        return to_uint8("the images", x, self.value_range)

    def _check_range(self, x: Tensor) -> None:
        """ValueError for floats that are far out of the range that was stated."""
        x = as_tensor(x, "images").detach()
        if not x.is_floating_point() or not x.numel():
            return
        low, high = self.value_range
        slack = OVERSHOOT * (high - low)
        least, largest = x.min().item(), x.max().item()
        if not (least >= low - slack and largest <= high + slack):
            raise ValueError(
                f"images run from {least:.4g} to {largest:.4g} and value_range is {self.value_range}; pass the "
                "range that they have"
            )


def _require_content(images: Tensor) -> None:
    """ValueError for a view that repeats a few stored values many times; real sets of images never do."""
    values, stored = images.numel() * images.element_size(), images.untyped_storage().nbytes()
    if values > FREE_BYTES + MOST_GROWTH * stored:
        raise ValueError(
            f"images {tuple(images.shape)} are a view that repeats {stored:,} bytes up to {values:,} bytes; pass each "
            "image once"
        )


@dataclass(frozen=True, eq=False)
class _NewImages:
    """New images of all ranks: features [n, d] of each network, keys int64 [n], and which are this rank's."""

    features: list[Tensor]
    keys: Tensor
    mine: slice


def _prepared(parts: Sequence[Part], reference: ReferenceRows) -> list[PreparedSet]:
    if len(reference) < FEWEST:
        raise ValueError(f"the reference set has {len(reference)} images; call refresh with generated images first")
    keys = reference.keys.to(reference.features[0].device)
    return [part.reward.prepare(rows, keys) for part, rows in zip(parts, reference.features, strict=True)]


def _features(extractor: FeatureExtractor, images: Tensor, batch_size: int) -> Tensor:
    if not len(images):
        return torch.empty(0, extractor.dim, device=extractor.device)
    with _named(extractor, images):
        return torch.cat([extractor(batch) for batch in images.split(batch_size)]).clone()  # no inference tensors


@contextmanager
def _named(extractor: FeatureExtractor, images: Tensor) -> Iterator[None]:
    """An exception of a network becomes one sentence with its name."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, ValueError):
        raise
    except Exception as error:
        what = f"{type(error).__name__} for images {tuple(images.shape)}"
        raise ValueError(f"the network {extractor.name} raised {what}: {first_line(error)}") from error


def _device_of(images: object) -> torch.device:
    return images.device if isinstance(images, Tensor) else torch.device("cpu")
