"""First-order influence of a row on the Fréchet distance: one projection and no node.

    I(x) = −2(μ_r−μ_g)·y + |y|² − Σ_i (P y)_i²/√λ_i,      y = x − μ_g.

Replacing x_i by x changes the distance by about (I(x) − I(x_i))/N.  A lost direction has no derivative: there the root
of the shift of swap/nodes.py stands for √λ_i.
"""

import math

import torch
from torch import Tensor

from fastfid.swap.candidate_rows import Candidates, RowBuffers, centred_by_cpp, centred_by_torch, project
from fastfid.swap.nodes import SHIFT
from fastfid.swap.options import EngineOptions
from fastfid.swap.prepared_reference import PreparedReference

ROWS_IN_CACHE = 64  # float64 rows squared and then summed before the next ones: 1 MiB at d = 2048


def curvature(prepared: PreparedReference) -> Tensor:
    """Weights [r] float64 of the squares of a projected row in I(x): (N − 1)·scale/√λ."""
    shift = 0.0 if prepared.resolved else SHIFT
    return (prepared.count - 1) * math.sqrt(prepared.scale) * (prepared.spectrum + shift).rsqrt()


def influence_of(
    features: Tensor, prepared: PreparedReference, options: EngineOptions, buffers: RowBuffers, chunk_bytes: int
) -> Tensor:
    """I(x) [n] float64 of features [n, d], in chunks of at most `chunk_bytes` of temporary memory."""
    weights = curvature(prepared)
    nothing = torch.empty((1, 0), dtype=torch.int64, device=features.device)
    parts = [features.new_zeros(0, dtype=torch.float64)]
    step = max(1, chunk_bytes // (8 * (prepared.dim + prepared.rank)))
    for start in range(0, len(features), step):
        rows = features[start : start + step, None]
        added = Candidates(nothing.expand(len(rows), 0), rows, range(start, start + len(rows)))
        if options.cpp:
            centred = centred_by_cpp(added, prepared, buffers.take("centred", rows.shape, torch.float64))
        else:
            centred = centred_by_torch(added, prepared, torch.float64)
        projected = project(centred.added, prepared, buffers)[:, 0]
        squares = torch.cat([block.square_() @ weights for block in projected.split(ROWS_IN_CACHE)])
        parts.append(centred.sums.norm_change - 2 * centred.sums.sum_gap - squares)
    return torch.cat(parts)
