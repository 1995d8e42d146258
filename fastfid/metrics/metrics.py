"""Metrics for training loops: update(images, real), compute(), reset(), with torchmetrics' names and arguments.

    fid = FrechetInceptionDistance(feature=2048, normalize=True)
    fid.update(real_images, real=True)
    fid.update(generated_images, real=False)
    fid.compute()

`FrechetInceptionDistance` and `KernelInceptionDistance` take torchmetrics' arguments in its order and give its numbers;
`FrechetDistance` and `PrecisionRecall` are the same for any network or for features.  What differs from torchmetrics:
numbers are computed and returned in float64, KID's subsets come from a seed of their own (torch-fidelity's), calling a
metric only updates it, and no state enters the checkpoint of a module that holds a metric (`state_dict` gives it).
They are no subclasses of torchmetrics.Metric; where only such are taken, as in a MetricCollection, give it
`metric.as_torchmetrics()`.

Across ranks of torch.distributed every rank updates with its own images; `compute` brings all together and returns the
same number on each, so every rank must call it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfid.distances.frechet import frechet_distance
from fastfid.distances.kid_mmd import kid
from fastfid.distances.moments import FeatureMoments, reducing_device
from fastfid.distances.precision_recall import precision_recall
from fastfid.distances.rows import checked_features
from fastfid.features.extractor import FeatureExtractor
from fastfid.features.registry import feature_extractor
from fastfid.runtime.devices import as_tensor, full_float32

# Where Inception's features of each width are taken: the stage of features.registry.INCEPTION_STAGES that ends there.
INCEPTION_LAYERS = {64: "MaxPool_1", 192: "MaxPool_2", 768: "Mixed_6e", 2048: "AvgPool", "logits_unbiased": "AvgPool"}

Feature = int | str | nn.Module | FeatureExtractor | None


class Metric(ABC):
    """What the metrics share: two sides, real and generated, filled by `update` and compared by `compute`.

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
    device               "cpu"  of a network made here
    """

    _side: Callable[[], _Moments | _Rows]

    def __init__(
        self,
        feature: Feature,
        *,
        reset_real_features: bool = True,
        normalize: bool = False,
        weights_path: str | None = None,
        antialias: bool = True,
        sync_on_compute: bool = True,
        process_group=None,
        device: str | torch.device = "cpu",
    ):
        self._feature, self._weights, self._antialias = feature, weights_path, antialias
        self.extractor = _extractor(feature, weights_path, antialias, device)
        self.reset_real_features, self.normalize = reset_real_features, normalize
        self.sync_on_compute, self.process_group = sync_on_compute, process_group
        self._real, self._fake = self._side(), self._side()
        self._own = None  # this rank's sides while `sync` has put those of all ranks in their place

    @torch.no_grad()
    def update(self, imgs: Tensor, real: bool) -> None:
        """Add images (or features [n, d]) to the real or the generated side.

        ValueError for images of another type or range than `normalize` says, or features that are not finite.
        """
        self._refuse_synced()
        if self.normalize and isinstance(self.extractor, FeatureExtractor | InceptionLayer):
            imgs = _as_bytes(imgs)
        features = self.extractor(imgs) if self.extractor is not None else as_tensor(imgs)
        if features.dim() == 1:  # torchmetrics takes a single row so
            features = features[None]
        (self._real if real else self._fake).update(features)

    __call__ = forward = update

    def reset(self) -> None:
        """Forget the generated side, and the real one unless `reset_real_features` is False."""
        self.unsync()
        self._fake = self._side()
        if self.reset_real_features:
            self._real = self._side()

    def compute(self):
        """The metric of all rows so far, of all ranks; RuntimeError if a side has fewer than it needs."""
        alone = self._own is not None or not (self.sync_on_compute and _distributed())
        if not alone:
            self.sync()
        try:
            return self._compute()
        finally:
            if not alone:
                self.unsync()

    def sync(self) -> None:
        """Put all ranks' rows in place of this rank's, until `unsync` or `reset`; every rank must call it."""
        self._refuse_synced()
        if _distributed():
            self._own = self._real, self._fake
            self._real, self._fake = (side.of_all_ranks(self.process_group) for side in self._own)

    def unsync(self) -> None:
        """Take up this rank's own rows again."""
        if self._own is not None:
            (self._real, self._fake), self._own = self._own, None

    def state_dict(self) -> dict:
        """Both sides of this rank, for torch.save."""
        real, fake = self._own or (self._real, self._fake)
        return {"real": real.state_dict(), "fake": fake.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Take up the sides that `state_dict` described."""
        self._own, self._real, self._fake = None, self._side(), self._side()
        self._real.load_state_dict(state["real"])
        self._fake.load_state_dict(state["fake"])

    def to(self, device: str | torch.device) -> Metric:
        """Move the network and the state, and return self; ValueError for a FeatureExtractor, which has its device."""
        if isinstance(self._feature, FeatureExtractor):
            raise ValueError(f"{self._feature} stays on {self._feature.device}; make it on {device} instead")
        if isinstance(self.extractor, nn.Module):
            self.extractor.to(device)
        else:
            self.extractor = _extractor(self._feature, self._weights, self._antialias, device)
        for side in (self._real, self._fake):
            side.to(device)
        return self

    def as_torchmetrics(self):
        """This metric as a torchmetrics.Metric, for a MetricCollection; ImportError without torchmetrics."""
        try:
            from fastfid.metrics.torchmetrics_adapter import TorchMetric
        except ImportError as missing:
            raise ImportError(f"torchmetrics cannot be imported ({missing}); pip install torchmetrics") from None
        return TorchMetric(self)

    @abstractmethod
    def _compute(self):
        """The number, of sides that hold all ranks' images where `compute` brought them together."""

    def _refuse_synced(self) -> None:
        if self._own is not None:
            raise RuntimeError("the metric holds the rows of all ranks; call unsync() before it is updated again")

    def _require(self, rows: int) -> None:
        for name, side in (("real", self._real), ("generated", self._fake)):
            if side.count < rows:
                raise RuntimeError(
                    f"the {name} side has {side.count} images, the metric needs at least {rows}; update it first"
                )


class FrechetDistance(Metric):
    """Fréchet distance of any features; arguments as `Metric`'s.  `compute` returns it as a 0-d float64 tensor."""

    def __init__(self, feature: Feature = None, **options):
        self._side = _Moments
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
        **options,
    ):
        super().__init__(
            feature,
            reset_real_features=reset_real_features,
            normalize=normalize,
            weights_path=feature_extractor_weights_path,
            antialias=antialias,
            **options,
        )


class KernelInceptionDistance(Metric):
    """torchmetrics' class of this name, argument for argument; further ones as `Metric`'s.

    subsets, subset_size, degree, gamma, coef, seed  as `fastfid.kid`'s

    `compute` returns mean and standard deviation over subsets, 0-d float64 tensors; ValueError if a side has fewer
    than `subset_size` images.
    """

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
        **options,
    ):
        self._side = _Rows
        super().__init__(feature, reset_real_features=reset_real_features, normalize=normalize, **options)
        self.kernel = dict(degree=degree, gamma=gamma, coef=coef)
        self.sampling = dict(subsets=subsets, subset_size=subset_size, seed=seed)

    def _compute(self) -> tuple[Tensor, Tensor]:
        self._require(2)
        estimate = kid(self._real.rows(), self._fake.rows(), **self.sampling, **self.kernel)
        return tuple(torch.tensor(value, dtype=torch.float64) for value in (estimate.mean, estimate.std))


class PrecisionRecall(Metric):
    """Improved precision and recall as `fastfid.precision_recall`; further arguments as `Metric`'s.

    `compute` returns {"precision": …, "recall": …}, 0-d float64 tensors.
    """

    def __init__(self, feature: Feature = 2048, nearest_k: int = 3, distances: str = "exact", **options):
        self._side = _Rows
        super().__init__(feature, **options)
        self.nearest_k, self.distances = nearest_k, distances

    def _compute(self) -> dict[str, Tensor]:
        self._require(self.nearest_k + 1)
        scores = precision_recall(self._real.rows(), self._fake.rows(), self.nearest_k, self.distances)
        return {name: torch.tensor(score, dtype=torch.float64) for name, score in scores.items()}


# --- one side ----------------------------------------------------------------------------------------------------


class _Moments:
    """A side that is known by its moments; their dimension is that of the first features."""

    def __init__(self):
        self._moments: FeatureMoments | None = None

    @property
    def count(self) -> int:
        return 0 if self._moments is None else self._moments.count

    @property
    def moments(self) -> FeatureMoments:
        if self._moments is None:
            raise RuntimeError("the moments of a side without images are not known; update it first")
        return self._moments

    def update(self, features: Tensor) -> None:
        features = checked_features(features)
        if self._moments is None:
            self._moments = FeatureMoments.empty(features.shape[1], device=features.device)
        self._moments.update(features)

    def of_all_ranks(self, group) -> _Moments:
        """The side of all ranks together; one without images learns d from the others."""
        own = None if self._moments is None else (self._moments.dim, self._moments.mean.device.type)
        told = [item for item in _gathered(own, group) if item is not None]
        if len({dim for dim, _ in told}) > 1:
            raise ValueError(f"the ranks' features differ in dimension: {told}; use one extractor on all")
        together = _Moments()
        if told:
            dim, device = told[0]
            together._moments = (self._moments or FeatureMoments.empty(dim, device=device)).all_reduce(group)
        return together

    def to(self, device: str | torch.device) -> None:
        if self._moments is not None:
            self._moments = self._moments.to(device)

    def state_dict(self) -> dict:
        return {} if self._moments is None else self._moments.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self._moments = FeatureMoments(**state) if state else None


class _Rows:
    """A side whose feature rows are kept."""

    def __init__(self):
        self._parts: list[Tensor] = []

    @property
    def count(self) -> int:
        return sum(len(part) for part in self._parts)

    def rows(self) -> Tensor:
        """All rows in the order they came, [n, d]."""
        return torch.cat(self._parts)

    def update(self, features: Tensor) -> None:
        self._parts.append(checked_features(features).detach())

    def of_all_ranks(self, group) -> _Rows:
        """The rows of all ranks, in the order of ranks."""
        own = self.rows() if self._parts else None
        shapes = _gathered(None if own is None else (*own.shape, own.dtype, own.device.type), group)
        known = [shape for shape in shapes if shape is not None]
        together = _Rows()
        if not known:
            return together
        if len({shape[1:3] for shape in known}) > 1:
            raise ValueError(f"the ranks' features differ in dimension or type: {shapes}; use one extractor on all")
        _, dim, dtype, kind = known[0]
        home = torch.device(kind) if own is None else own.device
        device = reducing_device(home, group)
        most = max(shape[0] for shape in known)
        padded = torch.zeros(most, dim, dtype=dtype, device=device)  # collectives want one shape of all ranks
        if own is not None:
            padded[: len(own)] = own
        gathered = [torch.empty_like(padded) for _ in shapes]
        torch.distributed.all_gather(gathered, padded, group=group)
        parts = [part[: shape[0]] for part, shape in zip(gathered, shapes, strict=True) if shape is not None]
        together._parts = [part.to(home) for part in parts]
        return together

    def to(self, device: str | torch.device) -> None:
        self._parts = [part.to(device) for part in self._parts]

    def state_dict(self) -> dict:
        return {"rows": self.rows()} if self._parts else {}

    def load_state_dict(self, state: dict) -> None:
        self._parts = [state["rows"]] if state else []


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _gathered(value: object, group) -> list:
    """Every rank's `value`, in the order of ranks."""
    values = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(values, value, group=group)
    return values


# --- features ----------------------------------------------------------------------------------------------------


def _extractor(feature: Feature, weights_path: str | None, antialias: bool, device: str | torch.device):
    """What makes features of images, or None where `update` is given features."""
    if feature is None or isinstance(feature, FeatureExtractor):
        return feature
    if isinstance(feature, nn.Module):
        return feature.to(device)
    if feature in INCEPTION_LAYERS:
        return InceptionLayer(feature, weights_path, antialias, device)
    if isinstance(feature, str):
        return feature_extractor(feature, weights=weights_path, device=device)
    if isinstance(feature, int):
        raise ValueError(f"feature is {feature}; Inception's layers are {', '.join(map(str, INCEPTION_LAYERS))}")
    raise TypeError(f"feature is a {type(feature).__name__}; pass an Inception layer, a name, a module or None")


class InceptionLayer(nn.Module):
    """Features [n, d] of uint8 images [n, 1 or 3, H, W] from a layer of torch-fidelity's Inception.

    layer      64, 192, 768, 2048 (pooled over positions) or "logits_unbiased" (d = 1008)
    weights    None   file of its weights; torch-fidelity's download otherwise
    antialias  True   resized by antialiased bilinear interpolation as torchmetrics ≥ 1.8; False: as TensorFlow 1
    """

    def __init__(
        self,
        layer: int | str,
        weights: str | None = None,
        antialias: bool = True,
        device: str | torch.device = "cpu",
    ):
        super().__init__()
        from fastfid.features.inception import INCEPTION_INPUTS, load_inception

        self.layer = layer
        self.network, _ = load_inception(weights, device)
        self.resize, self.preprocessing = INCEPTION_INPUTS["antialiased" if antialias else "tf1"]

    def forward(self, images: Tensor) -> Tensor:
        """Features float32 [n, d] of images uint8 [n, 1 or 3, H, W]; ValueError for another type or shape."""
        from fastfid.features.inception import INCEPTION_STAGES

        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"Inception takes uint8 images [n, 1 or 3, H, W], got {images.dtype} {tuple(images.shape)}; "
                "pass normalize=True for floats on [0, 1]"
            )
        device = next(self.network.parameters()).device
        with full_float32(device):
            x = self.resize(images.to(device).expand(-1, 3, -1, -1).contiguous())
            for stage in INCEPTION_STAGES:
                x = getattr(self.network, stage)(x)
                if stage == INCEPTION_LAYERS[self.layer]:
                    break
            x = F.adaptive_avg_pool2d(x, (1, 1)).flatten(1)
            return x.mm(self.network.fc.weight.T) if self.layer == "logits_unbiased" else x


def _as_bytes(images: Tensor) -> Tensor:
    """uint8 of float images on [0, 1], rounded down as torchmetrics does; ValueError outside."""
    if not images.is_floating_point():
        raise ValueError(f"normalize=True expects float images on [0, 1], got {images.dtype}; pass normalize=False")
    low, high = (end.item() for end in torch.aminmax(images)) if images.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 1):
        raise ValueError(f"normalize=True expects floats on [0, 1], got {low:g} to {high:g}; rescale the images")
    return (images * 255).byte()
