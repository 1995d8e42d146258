"""Details of an evaluation: an interval of FD, FD against the number of images, and the classes."""

from __future__ import annotations

from typing import Any

import torch

from fastfid import FeatureMoments, frechet_distance, prdc
from fastfid.distances.leave_one_out import LeaveOneOut
from fastfid.evaluation.intervals import jackknife_error, normal_interval
from sit_rl.components.real_side import RealSide

FRACTIONS = (8, 4, 2)  # FD is also measured on the first N/8, N/4 and N/2 images: its bias falls as 1/N


def details(real: RealSide, features: torch.Tensor, labels: torch.Tensor, nearest_k: int) -> dict[str, Any]:
    """Plain values by name, of generated features [n, d] with classes int64 [n] against a real side.

    fd_interval   [low, high] at 95% by the jackknife over the generated images, the real ones taken as fixed; 3 images
                  or more
    fd_by_images  [[n, FD of the first n]], of more images than features
    classes       [{class, images, real, precision, recall, density, coverage}] of the classes with enough images, where
                  the real side has classes
    """
    found: dict[str, Any] = {"fd_by_images": _by_images(real, features)}
    found["classes"] = _classes(real, features, labels, nearest_k)
    if len(features) > 2:
        rows = features.to(real.moments.mean.device)
        pair = LeaveOneOut(FeatureMoments.from_features(rows), real.moments)
        error = jackknife_error([pair.without_first(rows)])
        found["fd_interval"] = list(normal_interval(float(pair.terms.total), error))
    return found


def _by_images(real: RealSide, features: torch.Tensor) -> list[list[float]]:
    """[n, FD of the first n images] of each fraction that has a full covariance."""
    counts = [len(features) // part for part in FRACTIONS if len(features) // part > features.shape[1]]
    return [[n, float(frechet_distance(real.moments, FeatureMoments.from_features(features[:n])))] for n in counts]


def _classes(real: RealSide, features: torch.Tensor, labels: torch.Tensor, nearest_k: int) -> list[dict[str, Any]]:
    """Precision, recall, density and coverage within each class that both sides have with more than k images."""
    if real.features is None or real.labels is None:
        return []
    found: list[dict[str, Any]] = []
    labels = labels.to(features.device)
    for label in torch.unique(labels).tolist():
        mine, theirs = features[labels == label], real.features[(real.labels == label).to(real.features.device)]
        if min(len(mine), len(theirs)) > nearest_k:
            values = prdc(theirs, mine, nearest_k=nearest_k)
            found.append({"class": label, "images": len(mine), "real": len(theirs)} | values)
    return found
