"""Fewer Gram matrices than nodes: the weights 1/(λ + τ²) as combinations of a few functions.

Every determinant needs 1/(λ + τ_q²) at each of r eigenvalues λ and Q nodes.  Sorted eigenvalues that are
neighbours differ little, so within a slice of them these Q functions of λ are, to a relative error ε, combinations of a
few: about log(1/ε)·log(16 λ_last/λ_first)/π², from the decay of the singular values of the Cauchy kernel (Beckermann &
Townsend, SIAM J. Matrix Anal. Appl. 38 (2017), theorem 2.1), which is 4 or 5 for a ratio of 2 and ε = 1e-6.  A Gram
matrix for each of these functions replaces one for each node.  A group of slices needs a few functions more than each
of them, and still far fewer than Q: the Gram matrices of its slices are first combined to the group's, and only those
to the nodes'.

Legend: Q nodes τ, r eigenvalues λ, S slices.
"""

from functools import reduce
from typing import NamedTuple

import numpy as np

# A slice of a weight plan is not halved below this: half a register tile's inner loop would be its beginning and end.
SHORTEST_SLICE = 32

# What a group's function costs on each slice beside the multiply-adds of combining it, in multiply-adds.  Measured: at
# d = 2048 anything from 1 to 5 differs by less than the noise.
LOAD_AND_STORE = 2


class WeightPlan(NamedTuple):
    """1/(λ_p + τ_q²) ≈ Σ_m coefficients[m, q] Σ_n mixes[n, m]·function_n[p], n over the functions of p's slice, m over
    those of the group of slices it belongs to; S slices in G groups.

    bounds        [S + 1] int64, first eigenvalue of each slice, r at the end
    terms         [S] int64, functions of each slice
    functions     slice after slice, [terms, length] each, flat
    group_ends    [G] int64, one past the last slice of each group
    group_terms   [G] int64, functions of each group
    mixes         slice after slice, [terms, group_terms] each, flat
    coefficients  [Σ group_terms, Q]
    """

    bounds: np.ndarray
    terms: np.ndarray
    functions: np.ndarray
    group_ends: np.ndarray
    group_terms: np.ndarray
    mixes: np.ndarray
    coefficients: np.ndarray


class _Accuracy(NamedTuple):
    """Relative error `tol` that weights are allowed, and the unit of rounding `eps` of the numbers they are kept in."""

    tol: float
    eps: float

    def holds(self, factors: list[np.ndarray], weights: np.ndarray, share: float = 1.0) -> bool:
        """Whether the factors' product is within share·tol of the weights, and rounding its terms within tol."""
        allowed = self.tol * weights
        if (np.abs(reduce(np.matmul, factors) - weights) > share * allowed).any():
            return False
        return not (self.eps * reduce(np.matmul, map(np.abs, factors)) > allowed).any()

    def least_terms(self, values: np.ndarray, weights: np.ndarray) -> int:
        """A number of singular values below which the error cannot hold: its mean square, their tail, is too large."""
        tails = np.sqrt(np.cumsum(values[::-1] ** 2)[::-1] / weights.size)  # tails[n]: without the first n
        return max(1, int((tails > self.tol * weights.max()).sum()))


class _Slice(NamedTuple):
    """mix [m, n] and functions [n, p]: the group's m functions on the slice are mix @ functions."""

    mix: np.ndarray
    functions: np.ndarray


class _Group(NamedTuple):
    """coefficients [m, Q] of a group's functions, its slices, and what a candidate costs with them."""

    coefficients: np.ndarray
    slices: list[_Slice]
    cost: int


def weight_plan(
    spectrum: np.ndarray, tau: np.ndarray, tol: float, longest: int, longest_group: int, dtype=np.float32
) -> WeightPlan:
    """Plan for eigenvalues λ [r] and nodes τ [Q], every weight to a relative error of `tol`, or without error if 0.

    longest, longest_group  most eigenvalues of a slice and of a group
    """
    groups: list[_Group] = []
    step, accuracy = longest_group if tol else longest, _Accuracy(tol, np.finfo(dtype).eps)
    for start in range(0, len(spectrum), step):
        weights = 1 / (spectrum[start : start + step] + tau[:, None] ** 2)
        groups += _cheapest_groups(weights, accuracy, longest) if tol else [_exact_group(weights)]
    slices = [part for group in groups for part in group.slices]

    def flat(arrays) -> np.ndarray:
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


def _exact_group(weights: np.ndarray) -> _Group:
    """The weights [Q, p] themselves."""
    return _Group(np.eye(len(weights)), [_Slice(np.eye(len(weights)), weights)], 0)


def _cheapest_groups(weights: np.ndarray, accuracy: _Accuracy, longest: int, whole=None) -> list[_Group]:
    """Groups for weights [Q, p], halved as long as the two halves are cheaper; `whole` if it is made already."""
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


def _group(weights: np.ndarray, accuracy: _Accuracy, longest: int) -> _Group:
    """One group for weights [Q, p] and its cheapest slices.

    The singular value decomposition of the weights, scaled by rows and columns so that it sees entries of order one;
    half the tolerance goes to the group's functions, the rest to those of its slices.
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
    slices, cost = [], nodes * (u.shape[1] + LOAD_AND_STORE)
    for start in range(0, places, longest):
        part = slice(start, min(start + longest, places))
        found, more = _cheapest_slices(u, functions[:, part], scaled[:, part], column[part], accuracy)
        slices, cost = slices + found, cost + more
    return _Group((row * u).T, slices, cost)


def _cheapest_slices(u, functions, scaled, column, accuracy: _Accuracy) -> tuple[list[_Slice], int]:
    """Slices, halved as long as that is cheaper, and their cost, for functions [m, p] with scaled ≈ u @ functions.

    The cost of n functions is n·p products and, for each of the group's m, n additions and LOAD_AND_STORE.
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


def _slice(u, functions, scaled, column, accuracy: _Accuracy) -> _Slice:
    """The fewest functions of one slice that keep every scaled weight to a relative error of tol."""
    left, values, right = np.linalg.svd(functions, full_matrices=False)
    for n in range(accuracy.least_terms(values, scaled), len(values)):
        mix = left[:, :n] * values[:n]
        if accuracy.holds([u, mix, right[:n]], scaled):
            return _Slice(mix, right[:n] * column)
    if len(functions) <= len(column):
        return _Slice(np.eye(len(functions)), functions * column)
    return _Slice(functions * column, np.eye(len(column)))
