"""Metrics for training loops: update(images, real), compute(), reset(), with torchmetrics' names and arguments.

    fid = FrechetInceptionDistance(feature=2048, normalize=True)
    fid.update(real_images, real=True)
    fid.update(generated_images, real=False)
    fid.compute()

`FrechetInceptionDistance` and `KernelInceptionDistance` take torchmetrics' arguments in its order and give its numbers,
as do `MemorizationInformedFrechetInceptionDistance` and `InceptionScore` in files of their own.
`FrechetDistance`, `PrecisionRecall` and `SlicedWasserstein` do the same for any network, or for features.  They differ
from torchmetrics:

    numbers       computed and returned in float64
    KID's subsets drawn from a seed of their own, as in torch-fidelity
    a call        only updates the metric
    checkpoints   a module that holds a metric saves its network and none of its rows; `state_dict` returns the rows
    ranks         the metric brings the rows of all ranks together itself: `dist_sync_fn` is not used

As in torchmetrics, a metric is a module and its network is a part of it, so that both follow a module that holds them
to its device.  The network computes in evaluation mode whatever mode it is in: features do not depend on the batch, and
no statistics of a BatchNorm move.

Where torchmetrics is installed, they are subclasses of torchmetrics.Metric: a MetricCollection, a tracker and
Lightning's `log` take them.  Without it they are plain modules with the same methods.

With torch.distributed every rank updates with its own images.  `compute` collects the images of all ranks and returns
the same number on each, so every rank must call it.  `update` sees images and not where they are from: those that a
DistributedSampler gives a second time count twice, unless the caller leaves them out; `fastfid.evaluate` does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from fastfid.distances.arguments import (
    check_choice,
    check_flag,
    check_kid,
    check_neighbour,
    check_torch_seed,
    check_whole,
)
from fastfid.distances.frechet import frechet_distance
from fastfid.distances.kid_mmd import kid
from fastfid.distances.moments import FeatureMoments
from fastfid.distances.precision_recall import DISTANCES, precision_recall
from fastfid.distances.sliced_wasserstein import DIRECTIONS, sliced_wasserstein
from fastfid.features.extractor import FeatureExtractor, evaluation_mode, warn_of_batch_statistics
from fastfid.features.registry import feature_extractor
from fastfid.metrics.base import IS_TORCHMETRICS, MetricBase
from fastfid.metrics.inception_layer import INCEPTION_LAYERS, InceptionLayer
from fastfid.metrics.sides import MomentsSide, RowsSide, distributed
from fastfid.runtime.devices import as_tensor

Feature = int | str | nn.Module | FeatureExtractor | None
Side = TypeVar("Side", MomentsSide, RowsSide)


class Metric(MetricBase, ABC, Generic[Side]):
    """Two sides, real and generated: `update` fills them, `compute` compares them.

    feature              what makes features [n, d] of the images:
                         64, 192, 768, 2048 or "logits_unbiased", a layer of torch-fidelity's Inception; another name of
                         `fastfid.feature_extractor`; a FeatureExtractor; a module, called on the images as they are; or
                         None where `update` is given features
    reset_real_features  True   `reset` forgets the real side too
    normalize            False  images are floats on [0, 1], not uint8; a module gets either as it is
    weights_path         None   file of Inception's weights; torch-fidelity's download otherwise
    antialias            True   Inception's images are resized as by torchmetrics ≥ 1.8; False: as by TensorFlow 1
    sync_on_compute      True   `compute` covers all ranks where torch.distributed is initialised
    process_group        None   which ranks those are
    device               None   of the network; None: "cpu" for one made here, a module stays where it is
    """

    _side: type[Side]  # what each side keeps
    full_state_update = True  # one side alone has no distance, so a call cannot compute that of its batch

    def __init__(
        self,
        feature: Feature,
        *,
        reset_real_features: bool = True,
        normalize: bool = False,
        weights_path: str | None = None,
        antialias: bool = True,
        sync_on_compute: bool = True,
        process_group: ProcessGroup | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(sync_on_compute=False, compute_with_cache=False)  # `compute` synchronises by itself
        flags = {"reset_real_features": reset_real_features, "normalize": normalize, "antialias": antialias}
        for name, value in {**flags, "sync_on_compute": sync_on_compute}.items():
            check_flag(name, value)
        self.extractor = _extractor(feature, weights_path, antialias, device)
        self.has_fixed_device = isinstance(feature, FeatureExtractor)  # which stays on the device it was made on
        self._made = feature if isinstance(feature, str) else None, weights_path, antialias  # of a name: made again
        self.reset_real_features, self.normalize = reset_real_features, normalize
        self.sync_on_compute, self.process_group = sync_on_compute, process_group
        self._real: Side = self._side()
        self._fake: Side = self._side()
        self._own: tuple[Side, Side] | None = None  # this rank's sides while those of all ranks are in their place

    @torch.no_grad()
    def update(self, imgs: Tensor, real: bool) -> None:
        """Add images (or features [n, d]) to the real or the generated side.

        ValueError for images of another type or range than `normalize` says, or features that are not finite.
        """
        self._refuse_synced()
        if self.normalize and isinstance(self.extractor, FeatureExtractor | InceptionLayer):
            imgs = _as_bytes(imgs)
        with evaluation_mode(self.extractor):
            features = self.extractor(imgs) if self.extractor is not None else as_tensor(imgs)
        if features.dim() == 1:  # a single row, as torchmetrics accepts it
            features = features[None]
        (self._real if real else self._fake).update(features)

    def forward(self, imgs: Tensor, real: bool) -> None:
        """The same as `update`."""
        self.update(imgs, real)

    def reset(self) -> None:
        """Forget the generated side, and the real one unless `reset_real_features` is False."""
        super().reset()
        self.unsync()
        self._fake = self._side()
        if self.reset_real_features:
            self._real = self._side()

    def compute(self) -> Any:
        """The metric of all rows so far, of all ranks; RuntimeError if a side has fewer than it needs."""
        alone = self._own is not None or not (self.sync_on_compute and distributed())
        if not alone:
            self.sync()
        try:
            return self._compute()
        finally:
            if not alone:
                self.unsync()

    def sync(self, *_: Any, should_sync: bool = True, **__: Any) -> None:
        """Put all ranks' rows in place of this rank's, until `unsync` or `reset`; every rank must call it.

        Other arguments of torchmetrics' `sync` change nothing.
        """
        if not should_sync:
            return
        self._refuse_synced()
        if distributed():
            self._own = self._real, self._fake
            self._real, self._fake = (side.of_all_ranks(self.process_group) for side in self._own)

    def unsync(self, should_unsync: bool = True) -> None:
        """Put this rank's own rows back."""
        if should_unsync and self._own is not None:
            (self._real, self._fake), self._own = self._own, None

    def state_dict(
        self, *, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """Both sides of this rank, for torch.save.

        A module that holds the metric passes its `destination`, which gets the weights of the network alone.
        """
        if destination is not None:
            weights: dict[str, Any] = super().state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)
            return weights
        real, fake = self._own or (self._real, self._fake)
        return {"real": real.state_dict(), "fake": fake.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the sides that `state_dict` returned."""
        self._own, self._real, self._fake = None, self._side(), self._side()
        self._real.load_state_dict(state["real"])
        self._fake.load_state_dict(state["fake"])
        self._update_count = int(bool(state["real"] or state["fake"]))  # torchmetrics warns of a `compute` at 0

    def to(self, device: str | torch.device) -> Metric[Side]:
        """Move the network and the rows, and return self; ValueError for a FeatureExtractor."""
        if self.has_fixed_device and isinstance(self.extractor, FeatureExtractor):
            raise ValueError(f"{self.extractor} stays on {self.extractor.device}; make it on {device} instead")
        return self._apply(lambda x: x.to(device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Metric[Side]:
        """Follow the module that holds it to another device; a FeatureExtractor stays where it was made."""
        super()._apply(fn, *(() if IS_TORCHMETRICS else (recurse,)))
        if self.has_fixed_device:
            return self
        if isinstance(self.extractor, FeatureExtractor):
            device = _moved_by(fn, self.extractor.device)
            if device != self.extractor.device:
                self.extractor = _extractor(*self._made, device)
        for side in (self._real, self._fake, *(self._own or ())):
            if side.device is not None:
                side.to(_moved_by(fn, side.device))
        return self

    def as_torchmetrics(self) -> Any:
        """This metric, which is a torchmetrics.Metric; ImportError without torchmetrics."""
        if not IS_TORCHMETRICS:
            raise ImportError("torchmetrics cannot be imported; pip install torchmetrics")
        return self

    @abstractmethod
    def _compute(self) -> Any:
        """The metric of both sides as they are, which `compute` may have filled with the rows of all ranks."""

    def _refuse_synced(self) -> None:
        if self._own is not None:
            raise RuntimeError("the metric holds the rows of all ranks; call unsync() before it is updated again")

    def _require(self, rows: int) -> None:
        for name, side in (("real", self._real), ("generated", self._fake)):
            if side.count < rows:
                raise RuntimeError(
                    f"the {name} side has {side.count} images, the metric needs at least {rows}; update it first"
                )


class FrechetDistance(Metric[MomentsSide]):
    """Fréchet distance of any features; arguments as `Metric`'s.  `compute` returns it as a 0-d float64 tensor."""

    _side = MomentsSide

    def __init__(self, feature: Feature = None, **options: Any) -> None:
        super().__init__(feature, **options)

    @property
    def real(self) -> FeatureMoments:
        """Moments of the real side so far, of this rank unless synced."""
        return self._real.moments

    @property
    def fake(self) -> FeatureMoments:
        """Moments of the generated side so far, of this rank unless synced."""
        return self._fake.moments

    def _compute(self) -> Tensor:
        self._require(2)
        return torch.tensor(frechet_distance(self.real, self.fake), dtype=torch.float64)


class FrechetInceptionDistance(FrechetDistance):
    """torchmetrics' class of this name, argument for argument; further ones as `Metric`'s.

    feature                         2048   an Inception layer, a module that returns [n, d], or what `Metric` takes
    input_img_size                         accepted for compatibility: d is that of the first features
    feature_extractor_weights_path  None   file of Inception's weights
    """

    def __init__(
        self,
        feature: Feature = 2048,
        reset_real_features: bool = True,
        normalize: bool = False,
        input_img_size: tuple[int, int, int] = (3, 299, 299),
        feature_extractor_weights_path: str | None = None,
        antialias: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(
            feature,
            reset_real_features=reset_real_features,
            normalize=normalize,
            weights_path=feature_extractor_weights_path,
            antialias=antialias,
            **options,
        )


class KernelInceptionDistance(Metric[RowsSide]):
    """torchmetrics' class of this name, argument for argument; further ones as `Metric`'s.

    subsets, subset_size, degree, gamma, coef, seed  as `fastfid.kid`'s

    `compute` returns mean and standard deviation over subsets, 0-d float64 tensors; ValueError if a side has fewer
    than `subset_size` images.
    """

    _side = RowsSide

    def __init__(
        self,
        feature: Feature = 2048,
        subsets: int = 100,
        subset_size: int = 1000,
        degree: int = 3,
        gamma: float | None = None,
        coef: float = 1.0,
        reset_real_features: bool = True,
        normalize: bool = False,
        *,
        seed: int = 2020,
        **options: Any,
    ) -> None:
        check_kid(subsets, subset_size, degree, gamma, coef, seed)
        super().__init__(feature, reset_real_features=reset_real_features, normalize=normalize, **options)
        self.kernel: dict[str, Any] = dict(degree=degree, gamma=gamma, coef=coef)
        self.sampling: dict[str, Any] = dict(subsets=subsets, subset_size=subset_size, seed=seed)

    def _compute(self) -> tuple[Tensor, Tensor]:
        self._require(2)
        estimate = kid(self._real.rows(), self._fake.rows(), **self.sampling, **self.kernel)
        return torch.tensor(estimate.mean, dtype=torch.float64), torch.tensor(estimate.std, dtype=torch.float64)


class PrecisionRecall(Metric[RowsSide]):
    """Improved precision and recall as `fastfid.precision_recall`; further arguments as `Metric`'s.

    `compute` returns {"precision": …, "recall": …}, 0-d float64 tensors.
    """

    _side = RowsSide

    def __init__(self, feature: Feature = 2048, nearest_k: int = 3, distances: str = "exact", **options: Any) -> None:
        check_neighbour(nearest_k)
        check_choice("distances", distances, DISTANCES)
        super().__init__(feature, **options)
        self.nearest_k, self.distances = nearest_k, distances

    def _compute(self) -> dict[str, Tensor]:
        self._require(self.nearest_k + 1)
        scores = precision_recall(self._real.rows(), self._fake.rows(), self.nearest_k, self.distances)
        return {name: torch.tensor(score, dtype=torch.float64) for name, score in scores.items()}


class SlicedWasserstein(Metric[RowsSide]):
    """Sliced Wasserstein distance as `fastfid.sliced_wasserstein`; further arguments as `Metric`'s.

    `compute` returns it as a 0-d float64 tensor.
    """

    _side = RowsSide

    def __init__(self, feature: Feature = None, directions: int = DIRECTIONS, *, seed: int = 0, **options: Any) -> None:
        check_whole("directions", directions, 1, "a mean over directions needs at least 1")
        check_torch_seed(seed)
        super().__init__(feature, **options)
        self.directions, self.seed = directions, seed

    def _compute(self) -> Tensor:
        self._require(1)
        found = sliced_wasserstein(self._real.rows(), self._fake.rows(), self.directions, self.seed)
        return torch.tensor(found, dtype=torch.float64)


# --- features ----------------------------------------------------------------------------------------------------


def _extractor(
    feature: Feature, weights_path: str | None, antialias: bool, device: str | torch.device | None
) -> Callable[[Tensor], Tensor] | None:
    """What makes features of images, or None where `update` is given features."""
    if feature is None or isinstance(feature, FeatureExtractor):
        return feature
    if isinstance(feature, nn.Module):
        warn_of_batch_statistics(feature)
        return feature if device is None else feature.to(device)
    device = device or "cpu"
    if feature in INCEPTION_LAYERS:
        return InceptionLayer(feature, weights_path, antialias, device)
    if isinstance(feature, str):
        return feature_extractor(feature, weights=weights_path, device=device)
    if isinstance(feature, int):
        raise ValueError(f"feature is {feature}; Inception's layers are {', '.join(map(str, INCEPTION_LAYERS))}")
    raise TypeError(f"feature is a {type(feature).__name__}; pass an Inception layer, a name, a module or None")


def _moved_by(fn: Callable[[Tensor], Tensor], device: torch.device) -> torch.device:
    """The device on which `fn`, a function that nn.Module applies to tensors, puts tensors of `device`."""
    return fn(torch.empty(0, device=device)).device


def _as_bytes(images: Tensor) -> Tensor:
    """uint8 of float images on [0, 1], rounded down as torchmetrics does; ValueError outside."""
    if not images.is_floating_point():
        raise ValueError(f"normalize=True expects float images on [0, 1], got {images.dtype}; pass normalize=False")
    low, high = (end.item() for end in torch.aminmax(images)) if images.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 1):
        raise ValueError(f"normalize=True expects floats on [0, 1], got {low:g} to {high:g}; rescale the images")
    return (images * 255).byte()
