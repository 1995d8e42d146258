"""A user's own images: read from any source, made square and of one size, split into training and held-out ones.

What was done is written into the model's card (sit_rl/models/card.py), and `as_in_card` does it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from fastfid.images.folders_and_zips import MAX_PIXELS, decoders
from fastfid.images.open import open_images
from fastfid.images.source import ImageSource, counted
from fastfid.runtime.errors import shown
from fastfid.runtime.hashes import sha256
from sit_rl.components.image_sets import ImageSet
from sit_rl.components.near_duplicates import groups, near_any
from sit_rl.files.paths import reading
from sit_rl.models.card import ModelCard, SetRecord, Split
from sit_rl.ranks.messages import say
from sit_rl.sampling.random_streams import Stream, generator

WHITE = 255
# Fewest images of a model: below it neither a network nor a covariance can be estimated.
FEWEST = 280
MEAN_OF_A_CLASS = 2  # images: one to train on, and one that may be held out
FEWEST_HELDOUT = 40  # a covariance of the smallest networks' 32 features needs more images than features
# Largest share of held-out images that may have a near-duplicate in training before the two sets count as the same.
MOST_SHARED = 0.5
LOOKED_AT = 64  # images whose sizes decide the default of --size


@dataclass(frozen=True)
class Source:
    """An opened source of images with their names and classes."""

    flag: str
    path: Path
    images: ImageSource
    names: tuple[str, ...]
    labels: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class OwnImages:
    """Training and held-out images with the record of the split; both have the classes of `classes`."""

    train: ImageSet
    heldout: ImageSet
    classes: tuple[str, ...]
    labelled: bool
    split: Split


def open_source(flag: str, path: Path, class_folders: bool = False) -> Source:
    """Open images by the flag that names them; ValueError or OSError, which names the flag, if none can be read."""
    with reading(flag, path):
        images = open_images(path, class_folders=class_folders)
        labels = images.labels(0, len(images))
        names = tuple(images.image_name(i) for i in range(len(images)))
        return Source(flag, path, images, names, None if labels is None else tuple(labels))


def check_classes(source: Source) -> None:
    """ValueError where labels are no classes, such as one number of its own for each image."""
    classes = len(set(source.labels or ()))
    if classes > len(source) / MEAN_OF_A_CLASS:
        raise ValueError(
            f"{source.flag} {source.path} has {counted(len(source), 'image')} in {classes} classes, such as "
            f"{shown(str((source.labels or ('',))[0]))!r}; a class needs at least {MEAN_OF_A_CLASS} images on average: "
            "give labels that name classes, or none"
        )


def sides_of(source: Source) -> list[tuple[int, int]]:
    """(height, width) of some images, evenly spaced."""
    rows = np.unique(np.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).round().astype(int))
    with reading(source.flag, source.path):
        return [tuple(source.images.image(int(row)).shape[1:]) for row in rows]  # type: ignore[misc]  # two numbers


def prepare(source: Source, size: int, crop: str, channels: int | None = None) -> torch.Tensor:
    """All images as uint8 [n, channels, size, size].

    channels  1 or 3; None: 1 if every image is grey, else 3

    Sizes are changed by antialiased bilinear interpolation. What is not read is said. ValueError that names an
    unreadable image.
    """
    with reading(source.flag, source.path), ThreadPoolExecutor(decoders()) as pool:
        parts = list(pool.map(lambda i: _one_square(source, i, size, crop), range(len(source))))
    for note in source.images.notes:
        say(f"note: {note}")
    if channels is None:
        channels = 1 if all(_is_grey(part) for part in parts) else 3
    return torch.stack([_with_channels(part, channels) for part in parts])


def _one_square(source: Source, row: int, size: int, crop: str) -> torch.Tensor:
    """Image number `row` as [C, size, size]; ValueError for one that is so narrow that its square is out of bounds."""
    image = source.images.image(row)
    height, width = image.shape[1:]
    if crop == "pad" and max(height, width) ** 2 > MAX_PIXELS:
        raise ValueError(
            f"{source.path}: {source.names[row]} is {width}x{height} pixels, and with margins its square would have "
            f"more than {MAX_PIXELS:,}; remove it, or choose another --crop"
        )
    return _square(image, size, crop)


def _square(image: torch.Tensor, size: int, crop: str) -> torch.Tensor:
    """One image uint8 [C, H, W] as [C, size, size]."""
    height, width = image.shape[1:]
    if crop == "centre":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[:, top : top + side, left : left + side]
    elif crop == "pad":
        side = max(height, width)
        left, top = (side - width) // 2, (side - height) // 2
        image = F.pad(image, (left, side - width - left, top, side - height - top), value=WHITE)
    if image.shape[1:] == (size, size):
        return image
    resized = F.interpolate(image[None].float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def _is_grey(image: torch.Tensor) -> bool:
    return len(image) == 1 or (torch.equal(image[0], image[1]) and torch.equal(image[0], image[2]))


def _with_channels(image: torch.Tensor, channels: int) -> torch.Tensor:
    """An image [1 or 3, H, W] with so many channels; one channel of a colour image is the mean of all three."""
    if len(image) == channels:
        return image
    if channels == 3:
        return image.expand(3, -1, -1)
    return image.float().mean(dim=0, keepdim=True).round().to(torch.uint8)


# --- labels ------------------------------------------------------------------------------------------------------


def class_order(labels: Sequence[str] | None) -> tuple[str, ...]:
    """The classes in the order of their numbers: by number where all names are numbers, else by name."""
    if labels is None:
        return ("images",)
    names = set(labels)
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def numbers_of(source: Source, classes: tuple[str, ...], labelled: bool) -> torch.Tensor:
    """int64 [n]: the class of each image; ValueError if the images lack labels, or have one that is not a class."""
    if not labelled:
        return torch.zeros(len(source), dtype=torch.int64)
    if source.labels is None:
        raise ValueError(
            f"{source.flag} {source.path} has no labels, and the model was trained on {len(classes)} classes "
            f"({shown(', '.join(classes))}); put the images into folders with these names"
        )
    number = {name: i for i, name in enumerate(classes)}
    other = next((i for i, name in enumerate(source.labels) if name not in number), None)
    if other is not None:
        raise ValueError(
            f"{source.flag} {source.path}: {source.names[other]} is of the class {shown(repr(source.labels[other]))}, "
            f"which is none of the {len(classes)} training classes ({shown(', '.join(classes))}); move or remove it"
        )
    return torch.tensor([number[name] for name in source.labels])


# --- the split ---------------------------------------------------------------------------------------------------


def split_by_fraction(source: Source, pixels: torch.Tensor, fraction: float, seed: int, labelled: bool) -> OwnImages:
    """Hold out about `fraction` of the images, drawn by groups of near-duplicates, so that no group is divided."""
    classes = class_order(source.labels if labelled else None)
    labels = numbers_of(source, classes, labelled)
    group = groups(pixels)
    order = generator(seed, Stream.PRETRAIN, 3).permutation(len(pixels))
    wanted = round(fraction * len(pixels))
    held = _hold_out(order, group, labels.numpy(), wanted)
    plain = np.zeros(len(pixels), bool)  # the same draw without groups
    plain[order[:wanted]] = True
    sizes = np.bincount(group)
    several = int((sizes > 1).sum())
    told = "no near-duplicates"
    if several:
        told = (
            f"{counted(int(sizes[sizes > 1].sum()), 'image')} in {counted(several, 'group')} of near-duplicates, the "
            f"largest of {sizes.max()}; a group is on one side, so "
            f"{counted(int((plain != held)[sizes[group] > 1].sum()), 'image')} changed sides"
        )
    names = tuple(name for name, out in zip(source.names, held, strict=True) if out)
    split = Split(f"{fraction:g} of the images by seed {seed}", None, names, (), told)
    own = _parts(pixels, labels, held, ~held, classes, labelled, split)
    _check_counts(source, own)
    return own


def _hold_out(order: np.ndarray, group: np.ndarray, labels: np.ndarray, wanted: int) -> np.ndarray:
    """Which images [n] are held out: whole groups in the order of a permutation, as far as they fit.

    A group is passed over if it exceeds the number wanted, or if a class would keep no training image.
    """
    members: dict[int, list[int]] = {}
    for row, number in enumerate(group.tolist()):
        members.setdefault(number, []).append(row)
    left = np.bincount(labels)
    held, seen = np.zeros(len(group), bool), set()
    for number in group[order].tolist():
        if number in seen:
            continue
        seen.add(number)
        rows = members[number]
        takes = np.bincount(labels[rows], minlength=len(left))
        if held.sum() + len(rows) <= wanted and not ((left - takes <= 0) & (takes > 0)).any():
            held[rows] = True
            left = left - takes
    return held


def split_by_source(
    source: Source, pixels: torch.Tensor, other: Source, others: torch.Tensor, labelled: bool
) -> OwnImages:
    """Hold out the images of another source; near-duplicates of them are left out of the training."""
    classes = class_order(source.labels if labelled else None)
    labels, of_others = numbers_of(source, classes, labelled), numbers_of(other, classes, labelled)
    shared = float(near_any(others, pixels).mean())
    if shared > MOST_SHARED:
        raise ValueError(
            f"{other.flag} {other.path}: {shared:.0%} of its images are in {source.flag} {source.path} too, or nearly "
            "the same as one there; hold out images that are not trained on"
        )
    near = near_any(pixels, others)
    told = f"left out of the training, as near-duplicates of held-out images: {counted(int(near.sum()), 'image')}"
    left_out = tuple(name for name, out in zip(source.names, near, strict=True) if out)
    split = Split(f"the images of {other.path}", str(other.path.resolve()), (), left_out, told)
    keep = torch.from_numpy(~near)
    train = ImageSet(pixels[keep], labels[keep], len(classes))
    own = OwnImages(train, ImageSet(others, of_others, len(classes)), classes, labelled, split)
    _check_counts(source, own)
    return own


def _parts(
    pixels: torch.Tensor,
    labels: torch.Tensor,
    held: np.ndarray,
    kept: np.ndarray,
    classes: tuple[str, ...],
    labelled: bool,
    split: Split,
) -> OwnImages:
    train, heldout = (
        ImageSet(pixels[torch.from_numpy(rows)], labels[torch.from_numpy(rows)], len(classes)) for rows in (kept, held)
    )
    return OwnImages(train, heldout, classes, labelled, split)


def _check_counts(source: Source, own: OwnImages) -> None:
    """ValueError if either side is too small, or a class has no training image."""
    if len(own.train) < FEWEST // 2:
        raise ValueError(
            f"{source.flag} {source.path} leaves {len(own.train)} images to train on ({own.split.near_duplicates}); "
            f"give at least {FEWEST} different ones"
        )
    if len(own.heldout) < FEWEST_HELDOUT:
        raise ValueError(
            f"{len(own.heldout)} images are held out ({own.split.by}; {own.split.near_duplicates}), and a judge needs "
            f"{FEWEST_HELDOUT}; raise --heldout-fraction, or give more by --heldout"
        )
    empty = np.flatnonzero(np.bincount(own.train.labels.numpy(), minlength=len(own.classes)) == 0)
    if len(empty):
        raise ValueError(
            f"{source.flag} {source.path}: the class {own.classes[empty[0]]!r} has no image left to train on "
            f"({own.split.near_duplicates}); give more images of it"
        )


# --- the record --------------------------------------------------------------------------------------------------


def record_of(images: ImageSet) -> SetRecord:
    """Number and SHA-256 of prepared images with their labels."""
    return SetRecord(len(images), sha256([f"{tuple(images.images.shape)}", images.images, images.labels]))


def as_in_card(card: ModelCard, images: Path, heldout: Path | None = None) -> OwnImages:
    """The training and held-out images of a model, prepared and split as its card says.

    heldout  other held-out images in place of those of the card

    ValueError or OSError, before any work, for images that are not those of the card.
    """
    source = open_source("--images", images, class_folders=True)
    source = source if card.labelled else _without_labels(source)
    place = {name: row for row, name in enumerate(source.names)}
    missing = [name for name in (*card.split.heldout, *card.split.left_out) if name not in place]
    if missing:
        raise ValueError(_other_images(images, f"it lacks {missing[0]}, which the model's card names"))
    held, kept = np.zeros(len(source), bool), np.ones(len(source), bool)
    held[[place[name] for name in card.split.heldout]] = True
    kept[[place[name] for name in (*card.split.heldout, *card.split.left_out)]] = False
    if kept.sum() != card.train.count:
        raise ValueError(
            _other_images(images, f"it has {kept.sum()} training images, the model was trained on {card.train.count}")
        )
    pixels = prepare(source, card.size, card.crop, card.image_shape[0])
    labels = numbers_of(source, card.classes, card.labelled)
    own = _parts(pixels, labels, held, kept, card.classes, card.labelled, card.split)
    if record_of(own.train) != card.train:
        raise ValueError(_other_images(images, "its pixels or labels differ from those of the model's card"))
    other = heldout or (None if card.split.heldout_source is None else Path(card.split.heldout_source))
    if other is None:
        return own
    return OwnImages(own.train, _held_out(card, other, given=heldout is not None), own.classes, own.labelled, own.split)


def _held_out(card: ModelCard, path: Path, given: bool) -> ImageSet:
    """Held-out images of a source of their own, prepared as the card says."""
    source = open_source("--heldout", path, class_folders=True)
    pixels = prepare(source, card.size, card.crop, card.image_shape[0])
    labels = numbers_of(source, card.classes, card.labelled and (source.labels is not None or not given))
    images = ImageSet(pixels, labels, len(card.classes))
    if not given and record_of(images) != card.heldout:
        raise ValueError(
            f"--heldout {path}: its images are not those that the model's card names; restore them, or pass others by "
            "--heldout"
        )
    return images


def _without_labels(source: Source) -> Source:
    return Source(source.flag, source.path, source.images, source.names, None)


def _other_images(path: Path, reason: str) -> str:
    return (
        f"--images {path} is not what the model was trained on: {reason}; pass the same images, or others by --real "
        "and --heldout"
    )
