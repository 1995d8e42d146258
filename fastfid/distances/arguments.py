"""Checks of numbers that a metric is made with: each ValueError names the argument, its value and what it must be."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

MOST_SEED = 2**32 - 1  # of NumPy's RandomState


def check_whole(name: str, value: Any, least: int, reason: str, most: int | None = None) -> None:
    """ValueError unless `value` is a whole number from `least` to `most`; `reason` ends the sentence."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not least <= int(value) <= (math.inf if most is None else most):
        raise ValueError(f"{name} is {value!r}; {reason}")


def check_kid(subsets: int, subset_size: int, degree: int, gamma: float | None, coef: float, seed: int) -> None:
    """ValueError for an argument of `kid` that no features suit."""
    check_whole("subsets", subsets, 1, "an average needs at least 1 subset")
    check_whole("subset_size", subset_size, 2, "an unbiased estimate needs at least 2 rows")
    check_seed(seed)
    check_polynomial(degree, gamma, coef)


def check_seed(seed: int) -> None:
    """ValueError unless NumPy's generators take `seed`."""
    check_whole("seed", seed, 0, f"NumPy's generators take whole numbers from 0 to {MOST_SEED}", MOST_SEED)


def check_torch_seed(seed: int) -> None:
    """ValueError unless torch's generators take `seed`."""
    check_whole("seed", seed, 0, "torch's generators take whole numbers from 0 to 2^63 − 1", 2**63 - 1)


def check_polynomial(degree: int, gamma: float | None, coef: float) -> None:
    """ValueError unless (γ x·y + coef)^degree is a kernel: positive semidefinite, and not constant."""
    check_whole("degree", degree, 1, "a polynomial kernel takes whole numbers from 1")
    if gamma is not None and not (_is_finite(gamma) and gamma > 0):
        raise ValueError(f"gamma is {gamma!r}; it scales x·y by a finite number above 0, None stands for 1/d")
    if not (_is_finite(coef) and coef >= 0):
        raise ValueError(f"coef is {coef!r}; a polynomial kernel adds a finite number from 0")


def check_neighbour(nearest_k: int) -> None:
    """ValueError unless `nearest_k` may count neighbours."""
    check_whole("nearest_k", nearest_k, 1, "it counts neighbours from 1")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")


def check_flag(name: str, value: object) -> None:
    """ValueError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; pass True or False")


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
