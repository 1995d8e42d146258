"""Fewer Gram matrices than nodes: the weights 1/(λ + τ²) as combinations of a few functions.

Every determinant of swap/log_determinants.py needs the weights 1/(λ + τ_q²) at r eigenvalues λ and Q nodes.
Neighbouring eigenvalues are similar, so inside a slice of them these Q functions of λ are combinations of a few
functions.  With a relative error ε about log(1/ε)·log(16 λ_last/λ_first)/π² suffice, from the decay of the singular
values of the Cauchy kernel (Beckermann & Townsend, SIAM J. Matrix Anal. Appl. 38 (2017), theorem 2.1): 4 or 5 for a
ratio of 2 and ε = 1e-6. One Gram matrix for each function replaces one for each node.  A group of slices needs a few
functions more than each of its slices, and still far fewer than Q, so the plan has two levels:

    1/(λ_p + τ_q²) ≈ Σ_m coefficients[m, q] Σ_n mixes[n, m]·functions[n, p].                                     (6)

The Gram matrices of the slices are combined to those of their group, and these to those of the nodes.

Legend: Q nodes τ, r eigenvalues λ, S slices, G groups; n counts the functions of a slice, m those of its group.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# Most eigenvalues of a slice and of a group, as csrc/cpu/problem.h has them: a slice of a candidate's rows stays in a
# core's cache.  A device takes the same plan.
SLICE, SPAN = 256, 512

# A slice is not halved below this: in a shorter one the kernel's loop would be mostly its beginning and end.
SHORTEST_SLICE = 32

# Cost of a group's function on each slice beside the multiply-adds of combining it, in multiply-adds.  Measured: at
# d = 2048 anything from 1 to 5 differs by less than the noise.
LOAD_AND_STORE = 2


class WeightPlan(NamedTuple):
    """Equation 6 as arrays, in the order that csrc/bindings.cpp reads.

    bounds        [S + 1] int64, first eigenvalue of each slice, r at the end
    terms         [S] int64, functions of each slice
    functions     slice after slice, [terms, length] each, flat
    group_ends    [G] int64, one past the last slice of each group
    group_terms   [G] int64, functions of each group
    mixes         slice after slice, [terms, group_terms] each, flat
    coefficients  [Σ group_terms, Q]
    """

    bounds: npt.NDArray[np.int64]
    terms: npt.NDArray[np.int64]
    functions: npt.NDArray[Any]  # float32 or float64, as mixes and coefficients
    group_ends: npt.NDArray[np.int64]
    group_terms: npt.NDArray[np.int64]
    mixes: npt.NDArray[Any]
    coefficients: npt.NDArray[Any]


class _Accuracy(NamedTuple):
    """Relative error `tol` allowed to each weight, and the rounding unit `eps` of the dtype that stores the plan."""

    tol: float
    eps: float

    def holds(self, factors: list[Array], weights: Array, share: float = 1.0) -> bool:
        """Whether the product of the factors errs by at most share·tol of each weight, and its rounding by tol."""
        allowed = self.tol * weights
        if (np.abs(reduce(np.matmul, factors) - weights) > share * allowed).any():
            return False
        return not (self.eps * reduce(np.matmul, map(np.abs, factors)) > allowed).any()

    def least_terms(self, values: Array, weights: Array) -> int:
        """Lower bound on the terms needed: with fewer, the mean square error alone, a tail of values², is too large."""
        tails = np.sqrt(np.cumsum(values[::-1] ** 2)[::-1] / weights.size)  # tails[n]: without the first n
        return max(1, int((tails > self.tol * weights.max()).sum()))


class _Slice(NamedTuple):
    """A slice of p eigenvalues: the group's m functions on it are mix [m, n] @ functions [n, p]."""

    mix: Array
    functions: Array


class _Group(NamedTuple):
    """Coefficients [m, Q] of a group's functions, its slices, and its cost for a candidate in multiply-adds."""

    coefficients: Array
    slices: list[_Slice]
    cost: int


def weight_plan(
    spectrum: Array, tau: Array, tol: float, longest: int, longest_group: int, dtype: npt.DTypeLike = np.float32
) -> WeightPlan:
    """Equation 6 for eigenvalues λ [r] and nodes τ [Q].

    tol                     relative error of every weight; 0 stores the weights themselves
    longest, longest_group  most eigenvalues of a slice and of a group
    dtype                   float32 or float64, of the plan
    """
    groups: list[_Group] = []
    step, accuracy = longest_group if tol else longest, _Accuracy(tol, float(np.finfo(dtype).eps))
    for start in range(0, len(spectrum), step):
        weights = 1 / (spectrum[start : start + step] + tau[:, None] ** 2)
        groups += _cheapest_groups(weights, accuracy, longest) if tol else [_exact_group(weights)]
    slices = [part for group in groups for part in group.slices]

    def flat(arrays: Iterable[Array]) -> npt.NDArray[Any]:
        return np.concatenate([np.zeros(0), *(array.ravel() for array in arrays)]).astype(dtype)

    return WeightPlan(
        np.cumsum([0, *(part.functions.shape[1] for part in slices)], dtype=np.int64),
        np.array([len(part.functions) for part in slices], np.int64),
        flat(part.functions for part in slices),
        np.cumsum([len(group.slices) for group in groups], dtype=np.int64),
        np.array([len(group.coefficients) for group in groups], np.int64),
        flat(part.mix.T for part in slices),
        flat(group.coefficients for group in groups).reshape(-1, len(tau)),
    )


def _exact_group(weights: Array) -> _Group:
    """A group of the weights [Q, p] themselves."""
    return _Group(np.eye(len(weights)), [_Slice(np.eye(len(weights)), weights)], 0)


def _cheapest_groups(weights: Array, accuracy: _Accuracy, longest: int, whole: _Group | None = None) -> list[_Group]:
    """Groups for weights [Q, p], halved as long as two halves cost less; `whole`: the one group, if known."""
    whole = whole or _group(weights, accuracy, longest)
    half = weights.shape[1] // 2
    if half < SHORTEST_SLICE:
        return [whole]
    parts = weights[:, :half], weights[:, half:]
    halves = [_group(part, accuracy, longest) for part in parts]
    if sum(group.cost for group in halves) >= whole.cost:
        return [whole]
    return [
        group
        for part, made in zip(parts, halves, strict=True)
        for group in _cheapest_groups(part, accuracy, longest, made)
    ]


def _group(weights: Array, accuracy: _Accuracy, longest: int) -> _Group:
    """One group for weights [Q, p] with its cheapest slices.

    Its functions are singular vectors of the weights, whose rows and columns are scaled to entries of order one.  They
    use half of the tolerance; the functions of the slices use the rest.
    """
    nodes, places = weights.shape
    row = np.exp(np.log(weights).mean(1, keepdims=True))
    column = (weights / row).mean(0)
    scaled = weights / row / column
    u, values, vt = np.linalg.svd(scaled, full_matrices=False)
    for m in range(accuracy.least_terms(values, scaled), min(nodes, places)):
        if accuracy.holds([u[:, :m] * values[:m], vt[:m]], scaled, share=0.5):
            u, functions = u[:, :m], values[:m, None] * vt[:m]
            break
    else:  # the weights themselves, without error
        u, functions = np.eye(nodes), scaled
    slices: list[_Slice] = []
    cost = nodes * (u.shape[1] + LOAD_AND_STORE)
    for start in range(0, places, longest):
        part = slice(start, min(start + longest, places))
        found, more = _cheapest_slices(u, functions[:, part], scaled[:, part], column[part], accuracy)
        slices, cost = slices + found, cost + more
    return _Group((row * u).T, slices, cost)


def _cheapest_slices(
    u: Array, functions: Array, scaled: Array, column: Array, accuracy: _Accuracy
) -> tuple[list[_Slice], int]:
    """Slices of the functions [m, p] of a group, halved as long as that costs less, and their cost.

    The scaled weights [Q, p] are u [Q, m] @ functions; `column` [p] scales them back.  n functions of a slice cost n·p
    products and, for each of the m, n additions and LOAD_AND_STORE.
    """
    best = _slice(u, functions, scaled, column, accuracy)
    cost = len(best.functions) * len(column) + len(functions) * (len(best.functions) + LOAD_AND_STORE)
    half = len(column) // 2
    if half < SHORTEST_SLICE:
        return [best], cost
    first = _cheapest_slices(u, functions[:, :half], scaled[:, :half], column[:half], accuracy)
    if first[1] < cost:
        second = _cheapest_slices(u, functions[:, half:], scaled[:, half:], column[half:], accuracy)
        if first[1] + second[1] < cost:
            return first[0] + second[0], first[1] + second[1]
    return [best], cost


def _slice(u: Array, functions: Array, scaled: Array, column: Array, accuracy: _Accuracy) -> _Slice:
    """One slice with the fewest functions that keep every scaled weight to a relative error of tol."""
    left, values, right = np.linalg.svd(functions, full_matrices=False)
    for n in range(accuracy.least_terms(values, scaled), len(values)):
        mix = left[:, :n] * values[:n]
        if accuracy.holds([u, mix, right[:n]], scaled):
            return _Slice(mix, right[:n] * column)
    if len(functions) <= len(column):
        return _Slice(np.eye(len(functions)), functions * column)
    return _Slice(functions * column, np.eye(len(column)))
