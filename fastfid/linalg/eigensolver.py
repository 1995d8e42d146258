"""Where the large decomposition of a reference set is computed: on the device of its matrix, or in host memory.

A device's solver works beside the host, but takes the device from other work.  The host's takes its cores, and the
matrices travel: at d = 2048 in float64, 34 MB there and as many back.  In host memory both are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

EIGENSOLVERS = ("device", "host")


def eigh(matrix: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """Eigenvalues [d], ascending, and eigenvectors [d, d] of a symmetric matrix [d, d], on its device.

    where  one of EIGENSOLVERS
    """
    values, vectors = torch.linalg.eigh(_placed(matrix, where))
    return values.to(matrix.device), vectors.to(matrix.device)


def right_singular(matrix: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """Singular values [min(n, d)], descending, and all right vectors Vᵀ [d, d] of a matrix [n, d], on its device."""
    _, values, vectors = torch.linalg.svd(_placed(matrix, where), full_matrices=True)
    return values.to(matrix.device), vectors.to(matrix.device)


def _placed(matrix: Tensor, where: str) -> Tensor:
    return matrix.cpu() if where == "host" else matrix
