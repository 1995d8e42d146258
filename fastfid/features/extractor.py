"""Images → features: extractors, each carrying its name, its preprocessing and the hash of its weights.

A distance means nothing without the network that produced the features.  So an extractor carries its `name`, its
`dim`, a sentence on its `preprocessing` and `weights_sha256`, and statistics and reports store them.  A distance in the
features of `fashion-a` is written "FD (fashion-a)", never "FID".

Legend: n images, C channels, H×W pixels, d feature dimension.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastfid.features.preparation import preparation
from fastfid.identity import Identity
from fastfid.runtime.devices import full_float32
from fastfid.runtime.hashes import state_sha256


class FeatureExtractor:
    """Maps uint8 images [n, C, H, W] to float32 features [n, d], and records how.

    network         callable, prepared images → features [n, d]
    prepare         callable, uint8 [n, 1 or 3, H, W] → whatever `network` takes
    name            str, printed beside every distance
    dim             int, d
    preprocessing   str, one line for reports
    weights_sha256  str, hexadecimal hash of the weights
    device          where the images are sent; the features come back on the same device

    The network computes in evaluation mode, in float32 even within a caller's autocast, and without TF32.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Any],
        prepare: Callable[[Tensor], Tensor],
        *,
        name: str,
        dim: int,
        preprocessing: str,
        weights_sha256: str,
        device: str | torch.device = "cpu",
    ):
        self.network, self.prepare = network, prepare
        self.name, self.dim = name, dim
        self.preprocessing, self.weights_sha256 = preprocessing, weights_sha256
        self.device = torch.device(device)

    @property
    def identity(self) -> Identity:
        """What statistics record of this network."""
        return Identity(self.name, self.weights_sha256, self.preprocessing)

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        dim: int,
        prepare: Callable[[Tensor], Tensor] | None = None,
        *,
        side: int | None = None,
        value_range: str = "-1..1",
        name: str | None = None,
        preprocessing: str | None = None,
        device: str | torch.device = "cpu",
    ) -> FeatureExtractor:
        """Wrap any module that returns [n, dim], fed by your `prepare` or by `preparation(side, value_range)`.

        module         moved to `device` and set to evaluation mode; the hash is taken over its state
        prepare        None      function of uint8 [n, 1 or 3, H, W] that does everything before the module
        side           None      pixels, antialiased bilinear; None leaves the images as large as they are
        value_range    "-1..1"   a name of VALUE_RANGES
        name           None      printed beside every distance; the class's name unless given
        preprocessing  None      the sentence for reports; give it with `prepare`

        ValueError for a bad side or range, or for one beside `prepare`, which would have no effect.
        """
        if prepare is not None and (side is not None or value_range != "-1..1"):
            raise ValueError("side and value_range describe the preparation that prepare replaces; pass one of them")
        device = usable_device(device)
        warn_of_batch_statistics(module)
        plain, sentence = preparation(side, value_range)
        return cls(
            module.to(device).eval(),
            prepare or plain,
            name=name or type(module).__name__,
            dim=dim,
            preprocessing=preprocessing or ("custom" if prepare else sentence),
            weights_sha256=state_sha256(module),
            device=device,
        )

    @torch.inference_mode()
    def __call__(self, images: Tensor | list[Tensor]) -> Tensor:
        """Features, float32 [n, d], of images, uint8 [n, 1 or 3, H, W]; ValueError for another type or shape.

        A list of images [1 or 3, H, W] of several shapes is prepared image by image.
        """
        _check_images(images)
        if len(images) == 0:
            return torch.empty(0, self.dim, device=self.device)
        with evaluation_mode(self.network, self.prepare), full_float32(self.device):
            features: Tensor = self.network(self._prepared(images))
        if not isinstance(features, Tensor):
            raise ValueError(
                f"{self.name} returned a {type(features).__name__}; it must return a tensor ({len(images)}, {self.dim})"
            )
        if features.shape != (len(images), self.dim):
            raise ValueError(
                f"{self.name} returned shape {tuple(features.shape)} for {len(images)} images; "
                f"it must return ({len(images)}, {self.dim}): pool its maps and pass the right dim"
            )
        return features.to(torch.float32)

    def with_gradient(self, pixels: Tensor) -> Tensor:
        """Features float32 [n, d] of float pixels [n, C, H, W] in 0…255, with their gradient in the pixels.

        ValueError if the preparation or the network passes no gradient on, such as one that resizes with PIL.
        """
        refused = ""
        try:
            with evaluation_mode(self.network, self.prepare), full_float32(self.device):
                found = self.network(self.prepare(pixels))
        except RuntimeError as error:  # a preparation that leaves torch
            refused = str(error).splitlines()[0]
        else:
            features: Tensor = found["features"] if isinstance(found, dict) else found
            if features.requires_grad or not pixels.requires_grad:
                return features.to(torch.float32)
        told = f" ({refused})" if refused else ""
        raise ValueError(f"{self.name} passes no gradient on to its images; its input is: {self.preprocessing}{told}")

    def _prepared(self, images: Tensor | list[Tensor]) -> Tensor:
        """What the network takes; ValueError where images of several shapes are still so after their preparation."""
        if isinstance(images, Tensor):
            return self.prepare(images.to(self.device))
        prepared = [self.prepare(image[None].to(self.device)) for image in images]
        if len({each.shape for each in prepared}) > 1:
            raise ValueError(
                f"{self.name} takes images of one size ({self.preprocessing}), and these have several; resize them, or "
                "give the network a side"
            )
        return torch.cat(prepared)

    def __repr__(self) -> str:
        return f"FeatureExtractor({self.name!r}, dim={self.dim}, weights_sha256={self.weights_sha256[:12]}…)"


@contextmanager
def evaluation_mode(*networks: object) -> Iterator[None]:
    """Within this block these modules, or the owners of these methods, are in evaluation mode.

    Every part gets its own mode back.  The flags are set without `train`, which some modules take as an order to change
    their weights.  What is no module is left as it is.
    """
    owners = [getattr(network, "__self__", network) for network in networks]
    parts = [part for owner in owners if isinstance(owner, nn.Module) for part in owner.modules() if part.training]
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part in parts:
            part.training = True


def warn_of_batch_statistics(network: nn.Module) -> None:
    """Warn of a BatchNorm that keeps no running statistics: it computes from the batch in evaluation mode, too."""
    for name, part in network.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is None:
            warnings.warn(
                f"{name or type(network).__name__} keeps no running statistics, so that features depend on the batch "
                "they are computed in; make it with track_running_stats=True",
                stacklevel=3,
            )


def usable_device(device: str | torch.device) -> torch.device:
    """The device with its index; ValueError if this machine cannot use it."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as unusable:  # AssertionError: torch built without that backend
        reason = str(unusable).splitlines()[0]
        raise ValueError(
            f"the device {device} cannot be used here ({reason}); pass device='cpu' (--device cpu)"
        ) from None


def _check_images(images: Tensor | list[Tensor]) -> None:
    """ValueError for images of another type or shape; of a list, each image is [C, H, W]."""
    if isinstance(images, list) and all(isinstance(image, Tensor) for image in images):
        for image in images:
            _check_images(image[None])
        return
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"an extractor takes uint8 tensors, got {kind}; fastfid.images.open.open_images converts")
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"an extractor takes images [n, 1 or 3, H, W], got shape {tuple(images.shape)}; pass a batch")


class MultiExtractor(FeatureExtractor):
    """A FeatureExtractor that also gives logits or spatial features from the same pass, see `outputs`.

    network takes prepared images and returns a dict with "features" [n, d] and optionally "logits" [n, C] and
    "spatial" [n, s]; everything else is as in FeatureExtractor.
    """

    def outputs(self, images: Tensor | list[Tensor]) -> dict[str, Tensor]:
        """All the network gives for images, as `__call__` takes them: float32 tensors on the CPU, by name."""
        return {name: value.to(torch.float32).cpu() for name, value in self._found(images).items()}

    def __call__(self, images: Tensor | list[Tensor]) -> Tensor:
        """Features, float32 [n, d], of images as FeatureExtractor takes them."""
        if len(images) == 0:
            return torch.empty(0, self.dim, device=self.device)
        return self._found(images)["features"].to(torch.float32)

    @torch.inference_mode()
    def _found(self, images: Tensor | list[Tensor]) -> dict[str, Tensor]:
        _check_images(images)
        with evaluation_mode(self.network, self.prepare), full_float32(self.device):
            found: dict[str, Tensor] = self.network(self._prepared(images))
        if found["features"].shape != (len(images), self.dim):
            raise ValueError(
                f"{self.name} returned features {tuple(found['features'].shape)} for {len(images)} images; they must "
                f"be ({len(images)}, {self.dim})"
            )
        return found


def outputs_of(extractor: FeatureExtractor, images: Tensor | list[Tensor]) -> dict[str, Tensor]:
    """{"features": [n, d], …} of any extractor for uint8 images [n, C, H, W] or a list of them, float32 on the CPU."""
    if isinstance(extractor, MultiExtractor):
        return extractor.outputs(images)
    return {"features": extractor(images).cpu()}
