"""CMMD (Jayasumana et al. 2024): 1000 · MMD² of CLIP embeddings of length 1, Gaussian kernel with bandwidth 10, biased.

Legend: x real [n, d], y generated [m, d].
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastfid.distances.kid_mmd import MaximumMeanDiscrepancy, mmd
from fastfid.distances.rows import checked_pair

BANDWIDTH = 10.0  # σ in units of the embeddings' length, 1; the authors' constant
SCALE = 1000.0  # so that usual values have digits before the point; the authors' constant


def cmmd(real: Tensor, generated: Tensor) -> MaximumMeanDiscrepancy:
    """CMMD of CLIP features real [n, d] and generated [m, d], which need not have length 1; float() gives the value.

    ValueError for a row of zeros, which has no direction.
    """
    x, y = (unit_rows(rows) for rows in checked_pair(real, generated))
    return mmd(x, y, "gaussian", BANDWIDTH, "biased", SCALE)


def unit_rows(features: Tensor) -> Tensor:
    """The rows [n, d] in float64 with Euclidean length 1; ValueError for a row of zeros."""
    rows = features.double()
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if (lengths == 0).any():
        raise ValueError(f"row {int((lengths == 0).nonzero()[0, 0])} of the features is all zeros; check the network")
    unit: Tensor = rows / lengths
    return unit
