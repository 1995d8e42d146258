"""Reward components of a user's own: a Python function of images, or a set reward.

A name leads to one of these:

    a function NAME(images, labels)   images uint8 [n, c, h, w] and labels int64 [n] → scores [n], higher is better
    a set reward                      an object with `prepare` (fastfid.rewards.SetReward)
    a class of set rewards            made without arguments, or with the real images if it takes one
    a function without arguments      returns one of these

What a set reward reads of an image is what its method `features(images)` returns, [n, d].  Without that method it reads
the images themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch

from fastfid import CallableReward, SetReward, open_images
from fastfid.features.own_network import depends_on_batch
from fastfid.images.source import ImageSource
from fastfid.rewards.checked_reward import CheckedReward, CheckedSet
from fastfid.rewards.per_image import ScoreReward
from fastfid.runtime.devices import as_tensor
from fastfid.runtime.errors import first_line
from fastfid.runtime.imported_objects import load_object, source_sha256
from fastfid.statistics.peer_files import holds_statistics
from sit_rl.components.image_sets import embedded
from sit_rl.config import Config
from sit_rl.options.files import FileOptions
from sit_rl.reward_names import PYTHON, ComponentName

# Bytes of the reference set's rows for a reward that reads whole images: more would not fit beside a training.
MOST_BYTES = 4 << 30


class Reader(Protocol):
    """What a component of a user's own reads of images, `width` numbers each."""

    @property
    def width(self) -> int:
        """How many."""

    def rows(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[n, width] of images uint8 [n, c, h, w] and labels int64 [n] in host memory."""


@dataclass(frozen=True)
class OwnReward:
    """A component of a user's own: what it reads of an image, and the reward of these rows.

    source  SHA-256 of the file that defines it
    """

    reader: Reader
    reward: SetReward
    source: str


def load_reward(component: ComponentName, config: Config, images: torch.Tensor) -> OwnReward:
    """The component that a user named; `images` uint8 [2, c, h, w] of the generator show what it will read.

    ValueError, in one sentence, if it cannot be imported or made, or fails on these images.
    """
    found = load_object(component.own, "function")
    source = source_sha256(found)
    if inspect.isfunction(found) and not inspect.signature(found).parameters:
        found = _called(found, component.own.short)
    if hasattr(found, "prepare"):
        return OwnReward(*_of_set_reward(found, component, config, images), source)
    if not callable(found) or inspect.isclass(found):
        raise ValueError(
            f"{component.own.place} has no function {component.own.name}: it is "
            f"{'a class without prepare' if inspect.isclass(found) else f'of type {type(found).__name__}'}; name "
            "a function or a set reward"
        )
    return OwnReward(_Scores(CallableReward(found, str(component))), ScoreReward(str(component)), source)


def try_rewards(config: Config, images: torch.Tensor, labels: torch.Tensor) -> None:
    """ValueError, in one sentence, if a component of a user's own fails on two images [2, c, h, w] and labels [2]."""
    for component in config.reward_components:
        if component.kind == PYTHON:
            own = load_flagged_reward(component, config, images)
            rows = own.reader.rows(images, labels)
            if isinstance(own.reader, _Features) and depends_on_batch(rows, own.reader.rows(images[:1], labels[:1])):
                raise ValueError(
                    f"--reward {component}: features gives an image other numbers alone than beside others; put the "
                    "modules that it calls into evaluation mode, .eval()"
                )
            if not isinstance(own.reader, _Scores):  # two images may well have the same score
                _ = own.reward.prepare(rows, labels).distance


def load_flagged_reward(component: ComponentName, config: Config, images: torch.Tensor) -> OwnReward:
    """`load_reward`, with the flag in its errors."""
    try:
        return load_reward(component, config, images)
    except ValueError as error:
        raise ValueError(f"--reward {component}: {error}") from error


# --- what is read of images ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scores:
    function: CallableReward
    width: int = 1

    def rows(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.function.scores(images, labels)[:, None]


@dataclass(frozen=True)
class _Features:
    """Rows by a set reward's own `features`."""

    owner: Any
    name: str
    width: int

    @torch.no_grad()
    def rows(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return features_of(self.owner, self.name, images, self.width)


@dataclass(frozen=True)
class _Pixels:
    width: int

    def rows(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).float()


def features_of(owner: Any, name: str, images: torch.Tensor, width: int | None = None) -> torch.Tensor:
    """What a set reward's `features` returns for images [n, c, h, w], checked: finite, [n, width]."""
    try:
        found = as_tensor(owner.features(images), "the result").detach()
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        what = f"{type(error).__name__} in features of images {tuple(images.shape)}"
        raise ValueError(f"reward {name} raised {what}: {first_line(error)}") from error
    if found.ndim != 2 or len(found) != len(images) or found.shape[1] != (width or found.shape[1]):
        raise ValueError(
            f"reward {name}: features returned shape {tuple(found.shape)} for {len(images)} images; return "
            f"({len(images)}, {width or 'd'})"
        )
    if not torch.isfinite(found).all():
        raise ValueError(
            f"reward {name}: features returned NaN or infinity for images {tuple(images.shape)}; correct it"
        )
    return found.float()


# --- set rewards -----------------------------------------------------------------------------------------------------


class _OfImages:
    """A set reward of images [N, c, h, w] as one of their pixels, float32 [N, c·h·w]."""

    def __init__(self, reward: CheckedReward, shape: tuple[int, ...]):
        self.reward, self.shape, self.name = reward, shape, reward.name

    def images(self, rows: torch.Tensor) -> torch.Tensor:
        """uint8 [..., c, h, w] of rows [..., c·h·w]."""
        images: torch.Tensor = rows.to(torch.uint8).unflatten(-1, self.shape)
        return images

    def prepare(self, rows: Any, labels: object = None) -> _SetOfImages:
        return _SetOfImages(self, self.reward.prepare(self.images(rows), labels))


class _SetOfImages:
    def __init__(self, of: _OfImages, prepared: CheckedSet):
        self.of, self.prepared = of, prepared

    @property
    def count(self) -> int:
        return self.prepared.count

    @property
    def distance(self) -> float:
        return self.prepared.distance

    def change(self, removed: object, added: Any, labels: object = None) -> torch.Tensor:
        return self.prepared.change(removed, self.of.images(added), labels)

    def leave_one_out(self) -> torch.Tensor:
        return self.prepared.leave_one_out()


def _of_set_reward(
    found: Any, component: ComponentName, config: Config, images: torch.Tensor
) -> tuple[Reader, SetReward]:
    """What a set reward reads of images, and the set reward of these rows."""
    name = str(component)
    if inspect.isclass(found):
        found = _made(found, config.files)  # type: ignore[arg-type]  # every class is hashable
    if hasattr(found, "features"):
        width = features_of(found, name, images).shape[1]
        return _Features(found, name, width), CheckedReward(found, name)
    width = images[0].numel()
    needed = config.reward.set_size * width * 4
    if needed > MOST_BYTES:
        raise ValueError(
            f"it reads whole images {tuple(images.shape[1:])}, and {config.reward.set_size} of them take "
            f"{needed / (1 << 30):.1f} GiB; give it a method features(images) -> [n, d]"
        )
    return _Pixels(width), _OfImages(CheckedReward(found, name), tuple(images.shape[1:]))


@cache
def _made(kind: type, files: FileOptions) -> Any:
    """A set reward of a class, which may take the real images; made once, because it may read all of them."""
    try:
        wanted = bool(inspect.signature(kind).parameters)
    except (TypeError, ValueError):
        wanted = False
    return _called(kind, kind.__name__, *((real_images(files),) if wanted else ()))


def _called(make: Callable[..., Any], name: str, *arguments: object) -> Any:
    try:
        return make(*arguments)
    except Exception as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{name} could not be made ({what}); it takes the real images, or nothing") from error


def real_images(files: FileOptions) -> ImageSource:
    """The reward's real images, not yet read; ValueError where --real holds statistics."""
    real = files.real
    if real is not None and holds_statistics(real):
        raise ValueError(f"it takes the real images, and --real {real} holds statistics; pass images")
    return open_images(embedded("train", files.embedded_images).images if real is None else real)
