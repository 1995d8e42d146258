"""Feature networks of a user's own, by name: package.module:NAME or FILE.py:NAME.

The name leads to one of these:

    a function of images        uint8 [n, c, h, w] → features [n, d]
    an nn.Module, or its class  fed by its method `prepare`, else by `preparation(side, value_range)`
    a FeatureExtractor          used as it is
    a function of no arguments  returns one of them

A function or a module may have these attributes, all of them optional:

    name           printed beside every distance; the name by which it was found unless given
    dim            width d of the features; found by a trial on two images unless given
    side           pixels to resize to, antialiased; no resizing unless given
    value_range    a name of VALUE_RANGES; "-1..1" for a module, none for a function
    prepare        function of uint8 images that does everything before the module
    preprocessing  sentence on the preparation, for reports

The hash in records covers the weights and the file that defines the network.  So features of changed code are not
taken from the cache; code that this file imports is not covered.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastfid.features.extractor import FeatureExtractor, usable_device, warn_of_batch_statistics
from fastfid.features.preparation import preparation
from fastfid.features.weight_files import read_state, unfit_weights
from fastfid.runtime.errors import first_line
from fastfid.runtime.hashes import sha256, state_sha256
from fastfid.runtime.imported_objects import ObjectName, load_object, source_sha256

# Sides of the trial images that find d where no side is stated: small sets' own, then what networks of photographs
# expect.  A network that pools takes any of them.
TRIAL_SIDES = (32, 28, 64, 224, 256, 299)
# Part of the largest feature by which a feature may change with the batch: half-precision networks round by 1e-3.
SAME = 0.01
SEED = 0  # of a class without trained weights, so that every process makes the same network


def own_network(
    where: ObjectName, weights: str | Path | None = None, device: str | torch.device = "cpu"
) -> FeatureExtractor:
    """The extractor of a network that a user named.

    weights  file whose tensors are loaded into the module, by name

    ValueError, in one sentence, if it cannot be imported or made, or fails on two images.
    """
    device, name = usable_device(device), where.short
    found = _made(load_object(where, "network"), name)
    if isinstance(found, FeatureExtractor):
        if weights is not None:
            raise ValueError(f"the network {name} is a finished extractor; load {weights} where it is made")
        return _on_device(found, device, name)
    if not callable(found):
        raise ValueError(
            f"the network {name} is of type {type(found).__name__}; name a module, its class or a function"
        )
    if isinstance(found, nn.Module):
        _load(found, weights, name)
        warn_of_batch_statistics(found)
        found = found.to(device).eval()
    elif weights is not None:
        raise ValueError(f"the network {name} is a function and takes no weights file; load {weights} inside it")
    return _extractor(found, name, device)


def try_network(extractor: FeatureExtractor, images: Tensor) -> None:
    """ValueError, in one sentence, if features of two or more different images [n, c, h, w] are useless."""
    features = extractor(images)
    if not torch.isfinite(features).all():
        raise ValueError(
            f"the network {extractor.name} returned NaN or infinity for images {tuple(images.shape)}; check its weights"
        )
    different = not torch.equal(images, images[:1].expand_as(images))
    if different and torch.equal(features, features[:1].expand_as(features)):
        raise ValueError(
            f"the network {extractor.name} returned the same features for {len(images)} different images "
            f"{tuple(images.shape)}: no distance can come of them; look at its forward pass"
        )
    if depends_on_batch(features, extractor(images[:1])):
        raise ValueError(
            f"the network {extractor.name} returned other features for an image alone than beside others: put the "
            "modules that it calls into evaluation mode, .eval(), before it is used"
        )


def depends_on_batch(together: Tensor, alone: Tensor) -> bool:
    """Whether features [n, d] of images differ from those of the first one alone [1, d] by more than rounding does.

    Dropout and the batch statistics of a module in training mode make them differ; it may be hidden in a function.
    """
    return bool((together[:1] - alone).abs().max() > SAME * together.abs().max())


class OwnNetwork(nn.Module):
    """A user's network behind its preparation: what it raises, or returns in another shape, is one sentence."""

    def __init__(self, network: Callable[[Tensor], object], prepare: Callable[[Tensor], Tensor], name: str):
        super().__init__()
        self.network, self.prepare, self.name = network, prepare, name
        self.tried: tuple[int, tuple[int, ...]] | None = None  # d of a trial, and its images' shape

    def forward(self, images: Tensor) -> Tensor:
        """Features [n, d] of images [n, c, h, w]; ValueError for anything else."""
        try:
            features = self.network(self.prepare(images))
        except (MemoryError, torch.OutOfMemoryError):
            raise  # the caller says which option to lower
        except Exception as error:
            what = f"{type(error).__name__} for images {tuple(images.shape)}"
            raise ValueError(f"the network {self.name} raised {what}: {first_line(error)}") from error
        if not isinstance(features, Tensor):
            raise ValueError(f"the network {self.name} returned {type(features).__name__}; return a tensor [n, d]")
        if features.ndim != 2 or len(features) != len(images):
            raise ValueError(
                f"the network {self.name} returned shape {tuple(features.shape)} for {len(images)} images; return "
                f"features ({len(images)}, d): pool its maps, or flatten them"
            )
        if self.tried is not None and features.shape[1] != self.tried[0]:
            d, here, (dim, there) = features.shape[1], tuple(images.shape[1:]), self.tried
            raise ValueError(
                f"the network {self.name} returned {d} features for images {here} and {dim} for images {there}; make "
                f"them as many for all images, or give it the attribute dim = {d}"
            )
        return features


def _made(found: Any, name: str) -> Any:
    """The object itself, or what a class or a function without arguments makes."""
    if isinstance(found, FeatureExtractor | nn.Module) or not callable(found) or _takes_images(found):
        return found
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return found()
    except Exception as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"the network {name} could not be made ({what}); it must need no arguments") from error


def _takes_images(found: Callable[..., object]) -> bool:
    """Whether this is a function that has to be given something."""
    if inspect.isclass(found):
        return False
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):  # some built-ins have no signature
        return True
    return any(each.default is each.empty and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
               for each in parameters)  # fmt: skip


def _on_device(extractor: FeatureExtractor, device: torch.device, name: str) -> FeatureExtractor:
    """A user's extractor on a device; what its network does wrong is one sentence, too."""
    if type(extractor) is FeatureExtractor:  # a MultiExtractor's network returns a dict
        extractor = FeatureExtractor(
            OwnNetwork(extractor.network, extractor.prepare, extractor.name).eval(),
            _as_they_are,
            name=extractor.name,
            dim=extractor.dim,
            preprocessing=extractor.preprocessing,
            weights_sha256=extractor.weights_sha256,
            device=extractor.device,
        )
    if extractor.device != device:
        if not isinstance(extractor.network, nn.Module):
            raise ValueError(f"the network {name} is on {extractor.device} and is wanted on {device}; make it there")
        extractor.network.to(device)
        extractor.device = device
    return extractor


def _load(module: nn.Module, weights: str | Path | None, name: str) -> None:
    if weights is None:
        return
    state = read_state(weights)
    try:
        module.load_state_dict(state)
    except Exception as unfit:  # torch may raise anything for a wrong file
        raise unfit_weights(weights, name, unfit) from None


def _extractor(found: Callable[[Tensor], object], name: str, device: torch.device) -> FeatureExtractor:
    name = _text(found, "name") or name
    prepare, sentence = _preparation(found, name)
    network = OwnNetwork(found, prepare, name)
    weights = state_sha256(found) if isinstance(found, nn.Module) else ""
    extractor = FeatureExtractor(
        network.eval(),
        _as_they_are,
        name=name,
        dim=1,
        preprocessing=_text(found, "preprocessing") or sentence,
        weights_sha256=sha256([weights, source_sha256(found)]),
        device=device,
    )
    dim, side = getattr(found, "dim", None), getattr(found, "side", None)
    if dim is None:
        network.tried = _trial(extractor, side)
    extractor.dim = network.tried[0] if network.tried else _checked_dim(dim, name)
    return extractor


def _preparation(found: Callable[..., object], name: str) -> tuple[Callable[[Tensor], Tensor], str]:
    """What is done to uint8 images before the network, and a sentence on it."""
    own, side, value_range = (getattr(found, part, None) for part in ("prepare", "side", "value_range"))
    if callable(own):
        if side is not None or value_range is not None:
            raise ValueError(f"the network {name} has prepare, which replaces side and value_range; give one of them")
        return own, f"prepare of {name}"
    if value_range is None and side is None and not isinstance(found, nn.Module):
        return _as_they_are, f"by {name} itself"
    try:
        return preparation(side, value_range or "-1..1")
    except ValueError as error:
        raise ValueError(f"the network {name}: {error}") from None


def _as_they_are(images: Tensor) -> Tensor:
    return images


def _text(found: object, attribute: str) -> str | None:
    value = getattr(found, attribute, None)
    return value if isinstance(value, str) and value else None


def _checked_dim(dim: object, name: str) -> int:
    if not isinstance(dim, int) or dim < 1:
        raise ValueError(f"the network {name} has dim {dim!r}; give the number of its features, or leave it out")
    return dim


def _trial(extractor: FeatureExtractor, side: int | None) -> tuple[int, tuple[int, ...]]:
    """Width d and an image's shape, by a trial on two of noise, in colour, then in grey; ValueError if none works."""
    first: ValueError | None = None
    random = torch.Generator().manual_seed(SEED)
    for pixels in TRIAL_SIDES if side is None else (side,):
        for channels in (3, 1):
            images = torch.randint(0, 256, (2, channels, pixels, pixels), dtype=torch.uint8, generator=random)
            try:
                with torch.inference_mode():
                    extractor.dim = extractor.network(images.to(extractor.device)).shape[1]
                break
            except ValueError as error:
                first = first or error
        else:
            continue
        try_network(extractor, images)
        return extractor.dim, tuple(images.shape[1:])
    raise ValueError(f"{first}; it may state the side and the dim of its features as attributes")
