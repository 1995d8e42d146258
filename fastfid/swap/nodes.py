"""Quadrature nodes of equation 3 and what is derived from them once."""

import numpy as np
import torch

from fastfid import backend as backends
from fastfid.linalg.weight_plan import weight_plan


class Nodes:
    """A spectrum λ [r] with quadrature nodes τ [Q] and weights ω [Q], float64, and what is derived from them once.

    tol    relative error allowed to each 1/(λ + τ²) of the extension's weight plan; float32 adds some 1e-7 of its own
    """

    def __init__(self, spectrum: torch.Tensor, tau: torch.Tensor, omega: torch.Tensor, tol: float):
        self.spectrum, self.tau, self.omega, self.tol = spectrum, tau, omega, tol
        self._plans: dict = {}
        self._weights: dict = {}

    def plan(self, dtype: np.dtype):
        """`weight_plan` in NumPy's `dtype` for the extension's slices."""
        if dtype not in self._plans:
            most = backends.extension()
            self._plans[dtype] = weight_plan(
                self.spectrum.numpy(), self.tau.numpy(), self.tol, most.SLICE, most.SPAN, dtype
            )
        return self._plans[dtype]

    def weights(self, dtype: torch.dtype) -> torch.Tensor:
        """1/(λ_p + τ_q²) [Q, r] in `dtype`."""
        if dtype not in self._weights:
            self._weights[dtype] = (self.spectrum + self.tau[:, None].square()).reciprocal().to(dtype)
        return self._weights[dtype]
