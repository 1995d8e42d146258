"""A Lightning callback that measures a generator during its training.

Lightning is needed to import this module: pip install 'fastfid[lightning]'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastfid.distances.frechet import frechet_distance
from fastfid.distances.moments import FeatureMoments
from fastfid.distances.precision_recall import prdc
from fastfid.evaluation.real_statistics import real_statistics
from fastfid.features.extractor import FeatureExtractor, evaluation_mode
from fastfid.features.registry import feature_extractor
from fastfid.images.arrays import to_uint8
from fastfid.runtime import distributed
from fastfid.runtime.devices import as_tensor

try:
    from lightning.pytorch.callbacks import Callback
except ImportError:
    try:
        from pytorch_lightning.callbacks import Callback  # type: ignore[assignment]  # the same class by its older name
    except ImportError:
        raise ImportError("GeneratorMetrics needs Lightning: pip install 'fastfid[lightning]'") from None


class GeneratorMetrics(Callback):
    """Logs FD, FDr, precision and recall of generated images at the end of epochs.

    generate        (module, n) → n images, uint8 or float, [n, c, h, w] or [n, h, w, c]; called on every rank for its
                    share, in evaluation mode and without gradients
    real            images or statistics (as in `real_statistics`); precision and recall need images or features
    network         "inception"  a name or a FeatureExtractor
    other_real      None   a second set of real images: FDr is FD over the FD of this set; 1 is as good as real ones
    images          5000   generated for a measurement
    batch_size      250    images of one call of `generate`
    every_n_epochs  1      epochs between measurements
    nearest_k       5      neighbours of precision and recall
    value_range     (0, 1) of float images; they are clipped to it
    weights         None   weights file of a network given by name

    The logged names are fd/NETWORK, fdr/NETWORK, precision/NETWORK and recall/NETWORK.
    """

    def __init__(
        self,
        generate: Callable[[Any, int], Any],
        real: Any,
        network: str | FeatureExtractor = "inception",
        *,
        other_real: Any = None,
        images: int = 5_000,
        batch_size: int = 250,
        every_n_epochs: int = 1,
        nearest_k: int = 5,
        value_range: tuple[float, float] = (0.0, 1.0),
        weights: Any = None,
    ):
        super().__init__()
        for name, value, least in (
            ("images", images, 2), ("batch_size", batch_size, 1), ("every_n_epochs", every_n_epochs, 1),
            ("nearest_k", nearest_k, 1),
        ):  # fmt: skip
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        self.generate, self.count, self.batch_size, self.every = generate, images, batch_size, every_n_epochs
        self.nearest_k, self.value_range = nearest_k, value_range
        self.net = feature_extractor(network, weights) if isinstance(network, str) else network
        self.real = real_statistics(real, self.net, value_range, keep=True)
        self.scale: float | None = None
        if other_real is not None:
            other = real_statistics(other_real, self.net, value_range, keep=False)
            self.scale = float(frechet_distance(self.real.moments, other.moments))
            if not self.scale > 0:
                raise ValueError("other_real has distance 0 from real, so it gives FDr no unit; pass other real images")

    def measure(self, module: Any) -> dict[str, float]:
        """The metrics by name, on every rank; all ranks call it."""
        features = distributed.gather_rows(self._features(module))

        def metrics() -> dict[str, float]:
            assert features is not None, "computed on rank 0 only"
            fd = float(frechet_distance(self.real.moments, FeatureMoments.from_features(features)))
            found = {"fd": fd} | ({} if self.scale is None else {"fdr": fd / self.scale})
            if self.real.features is not None:
                both = prdc(self.real.features, features, nearest_k=self.nearest_k)
                found |= {name: float(both[name]) for name in ("precision", "recall")}
            return {f"{name}/{self.net.name}": value for name, value in found.items()}

        return distributed.from_main(metrics)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure and log after every `every_n_epochs` epochs."""
        if (trainer.current_epoch + 1) % self.every == 0:
            pl_module.log_dict(self.measure(pl_module))

    def _features(self, module: Any) -> Tensor:
        """Features float32 [n, d] in host memory of this rank's share of the images."""
        first, last = distributed.owned(self.count, self.batch_size)
        sizes = [min(self.batch_size, last - start) for start in range(first, last, self.batch_size)]
        with evaluation_mode(module), torch.no_grad():
            parts = [self.net(self._uint8(self.generate(module, size), size)).cpu() for size in sizes]
        return torch.cat([torch.empty(0, self.net.dim), *parts])

    def _uint8(self, images: Any, size: int) -> Tensor:
        x = as_tensor(images, "what generate returned").detach()
        if len(x) != size:
            raise ValueError(f"generate returned {len(x)} images and was asked for {size}; return as many")
        x = x.clamp(*self.value_range) if x.is_floating_point() else x
        return to_uint8("what generate returned", x, self.value_range)
