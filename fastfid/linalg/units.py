"""Units of features in which products of covariances stay within float64's range, 2⁻¹⁰²² to 2¹⁰²³.

Features of scale 1e±100 have covariances of scale 1e±200, and products of two covariances leave the range.  So features
are rescaled to about 1, and distances are scaled back by the square of the unit.  Units are powers of two, which change
no digit.  The unit is 1 whenever nothing would be lost, so such results stay the same to the bit.
"""

from __future__ import annotations

import math

from torch import Tensor

SAFE_EXPONENT = 480  # eigensolvers and norms square a product's entries: 2⁹⁶⁰, with room for sums over d


def unit_of(*covs: Tensor) -> float:
    """The power of two t for which t²Σ of each, or of two the geometric mean, is about 1; 1.0 where that is no need."""
    return unit_of_variances(*(cov.diagonal(dim1=-2, dim2=-1) for cov in covs))


def unit_of_variances(*variances: Tensor) -> float:
    """`unit_of` covariances with these diagonals."""
    total = sum(map(_exponent, variances))
    return 1.0 if abs(total) <= SAFE_EXPONENT else 2.0 ** -round(total / (2 * len(variances)))


def unit_of_number(largest: float, safe_exponent: int = SAFE_EXPONENT) -> float:
    """The power of two that brings a number to about 1; 1.0 where its exponent is at most `safe_exponent`."""
    exponent = math.frexp(largest)[1]
    return 1.0 if abs(exponent) <= safe_exponent else 2.0**-exponent


def in_unit(cov: Tensor, unit: float) -> Tensor:
    """t²Σ, or Σ itself in the unit 1."""
    return cov if unit == 1 else cov * unit * unit


def _exponent(variances: Tensor) -> int:
    """Binary exponent of the largest variance; 0 where all are 0."""
    return math.frexp(variances.detach().abs().max().item())[1] if variances.numel() else 0
