"""How near generated features are to single real ones: the divisor of MiFID (Bai et al. 2021).

Legend: real [n, d], generated [m, d].
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastfid.distances.cmmd import unit_rows
from fastfid.distances.rows import checked_pair

BLOCK_ROWS = 1024  # real rows of a block of cosines: 80 MB beside 10,000 generated rows


def nearest_cosine_distance(real: Tensor, generated: Tensor) -> float:
    """Mean over the real rows of 1 − max |cos| with a generated row.

    Rows whose sum is 0 are left out, as torchmetrics does.  ValueError where a side has only such rows.
    """
    real, generated = (_rows_with_a_sum(rows) for rows in checked_pair(real, generated))
    nearest = [1 - (block @ generated.T).abs().amax(dim=1) for block in real.split(BLOCK_ROWS)]
    return torch.cat(nearest).mean().item()


def _rows_with_a_sum(features: Tensor) -> Tensor:
    rows = features.double()
    rows = rows[rows.sum(dim=1) != 0]
    if not len(rows):
        raise ValueError("all features of a side are 0; check the network")
    return unit_rows(rows)
