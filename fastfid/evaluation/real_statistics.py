"""The real side of a comparison in one network: images, or statistics or features that were computed before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastfid.distances.moments import FeatureMoments
from fastfid.evaluation.evaluate import statistics_of
from fastfid.features.extractor import FeatureExtractor
from fastfid.identity import NetworkFeatures, check_comparable
from fastfid.runtime.devices import as_tensor
from fastfid.statistics.peer_files import holds_statistics
from fastfid.statistics.statistics import Statistics, read_statistics


def real_statistics(
    source: Any, extractor: FeatureExtractor, value_range: tuple[float, float], keep: bool
) -> Statistics:
    """Statistics of `source`, float64 moments, in one network.

    source       images (as in `open_images`), statistics or features [n, d], or a file of one of them
    value_range  of float images
    keep         whether to keep the features of images, too; no effect on statistics, which have them or not

    All ranks call it.  ValueError for statistics of another network.
    """
    given = _given_statistics(source, extractor)
    if given is None:
        floats = isinstance(source, Tensor | np.ndarray) and not str(source.dtype).endswith("uint8")
        return statistics_of(
            source,
            features=extractor,
            keep_features=keep,
            value_range=value_range if floats else None,
            device=str(extractor.device),
        )
    check_comparable(NetworkFeatures(f"the network {extractor.name}", extractor.dim, extractor.identity), given)
    return given


def _given_statistics(source: Any, extractor: FeatureExtractor) -> Statistics | None:
    """The statistics that a source is already; None for images."""
    if isinstance(source, Statistics):
        return source
    if isinstance(source, FeatureMoments):
        return Statistics(source, "real")
    if isinstance(source, Tensor | np.ndarray) and source.ndim == 2:
        return Statistics.from_features(as_tensor(source), name="real")
    if isinstance(source, str | Path) and holds_statistics(Path(source)):
        statistics = read_statistics(source, extractor.name)
        return None if statistics.images else statistics
    return None
