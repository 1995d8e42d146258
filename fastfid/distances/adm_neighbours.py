"""Precision and recall with the float16 distances of ADM's evaluator."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastfid.distances.rows import blocks, share

BLOCK_ROWS = 512  # rows of a batch handled at a time: 20 MB of float32 beside 10,000 columns


ADM_BATCH = 10_000  # rows and columns whose float16 distances ADM's evaluator checks together for overflow


def adm_precision_recall(real: Tensor, generated: Tensor, k: int) -> dict[str, float]:
    """Precision and recall as ADM's evaluator (openai/guided-diffusion, evaluations/evaluator.py) counts them."""
    radii_x, radii_y = _adm_radii(real, k), _adm_radii(generated, k)
    in_real_ball = torch.zeros(len(generated), dtype=torch.bool, device=real.device)
    in_generated_ball = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows, columns, squared in _adm_squared_distances(real, generated):
        in_real_ball[columns] |= (squared <= radii_x[rows, None]).any(dim=0)
        in_generated_ball[rows] |= (squared <= radii_y[None, columns]).any(dim=1)
    return {"precision": share(in_real_ball), "recall": share(in_generated_ball)}


def _adm_radii(x: Tensor, k: int) -> Tensor:
    """The (k + 1)-th smallest squared distance of each row, float32 [n]; the row's own 0 counts as the first."""
    smallest = torch.full((len(x), k + 1), torch.inf, device=x.device)
    for rows, _, squared in _adm_squared_distances(x, x):
        together = torch.cat([smallest[rows], squared], dim=1)
        smallest[rows] = together.topk(k + 1, dim=1, largest=False).values
    return smallest[:, k]


def _adm_squared_distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, float32 block) of max(|x|² − 2x·y + |y|², 0), features and every result rounded to float16.

    If a batch of ADM_BATCH² holds a value that is not finite, the whole batch is computed in float32, as ADM does.
    Sums are accumulated in float32 and rounded once, as cuBLAS does for float16.  TensorFlow's norms may differ by one
    unit in the last place, depending on its machine.
    """
    for rows in blocks(len(x), ADM_BATCH):
        for columns in blocks(len(y), ADM_BATCH):
            squared = _expanded_squared(x[rows].to(torch.float16), y[columns].to(torch.float16))
            if not torch.isfinite(squared).all():
                squared = _expanded_squared(x[rows].to(torch.float32), y[columns].to(torch.float32))
            for part in blocks(len(squared), BLOCK_ROWS):
                yield slice(rows.start + part.start, rows.start + part.stop), columns, squared[part].float()


def _expanded_squared(x: Tensor, y: Tensor) -> Tensor:
    """max(|x|² − 2x·y + |y|², 0) [n, m] in the dtype given, a block of rows at a time."""
    norms_x, norms_y = (side.square().float().sum(dim=1).to(side.dtype) for side in (x, y))
    squared = torch.empty(len(x), len(y), dtype=x.dtype, device=x.device)
    for rows in blocks(len(x), BLOCK_ROWS):
        products = (x[rows].float() @ y.float().T).to(x.dtype)
        squared[rows] = (norms_x[rows, None] - 2 * products + norms_y).clamp_(min=0)
    return squared
