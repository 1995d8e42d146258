"""The log density ratio of real and generated features as a set reward: a linear discriminator, class by class.

The discriminator of class y has the logit ℓ(x) = u_y·f + b_y, f = (x − μ_r)/s with s² the mean variance of the real
features.  It is refitted for every set, by minimising

    Σ_real r_j log(1 + exp(−ℓ(y_j))) + 1/N Σ_set log(1 + exp(ℓ(x_i))) + penalty.

The real images of a class weigh, together, as much as the set's images of that class do, so ℓ estimates
log p(x|y)/q(x|y), real over generated, and the classes' sizes do not enter.  The penalty with strength λ is

    "l2"  λ/2 (|w|² + Σ_y |v_y|² + c_y²),  u_y = w + v_y,  b_y = b + c_y: one discriminator, and what the classes add
    "r1"  λ/2 Σ_y π_y |u_y|²: the mean squared gradient of the logit over the real images (Mescheder et al. 2018), π_y
          the share of class y; each class has its own discriminator

The distance D = Σ_real r_j ℓ(y_j) − 1/N Σ_set ℓ(x_i) estimates KL(p|q) + KL(q|p).  Changes are those of D under this
discriminator.

Both objectives are convex.  The variables are scaled by the root of the Hessian's diagonal at zero, in the eigenbasis
of the real covariance, where a trust region method with Hessian products (Nocedal & Wright, chapter 7) needs few
products.

Legend: as in rewards/protocol.py; K classes; θ [K + 1, d + 1] the rows (w, b) and (v_y, c_y).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from fastfid.rewards.checks import checked_labels, checked_real, checked_set
from fastfid.rewards.per_image import ScoredSet
from fastfid.swap.checks import check_finite

# Norm of the gradient in scaled variables at which the trust region ends: there a step lowers the loss, about 1, by
# 1e-10.  At 1e-8 the change would be rounding.  Plain Newton steps, which need no loss, go on from there.
NEAR, CONVERGED = 1e-5, 1e-10
FARTHEST = 1e8  # standard deviations; at 1e10 the fit does not converge, at 1e100 it does not end (measured)
STEPS = 200  # of the trust region; d = 128 and strengths of 0.1 to 1e-4 need 7 to 10
NEWTON_STEPS = 5  # each about squares the norm


class DensityRatioReward:
    """Log density ratio by a class-conditional linear discriminator on real features [n, d].

    labels    int64 [n], or None for one discriminator of all classes
    penalty   "l2"  or "r1"
    strength  0.1   λ, with features of unit mean variance
    """

    def __init__(
        self,
        real: object,
        labels: object = None,
        *,
        penalty: Literal["l2", "r1"] = "l2",
        strength: float = 0.1,
        name: str = "density_ratio",
    ):
        if penalty not in ("l2", "r1"):
            raise ValueError(f"unknown penalty {penalty!r}; choose l2 or r1")
        if not isinstance(strength, int | float) or not 0 < strength < float("inf"):
            raise ValueError(f"strength is {strength}; without a positive penalty a separable set has no discriminator")
        self.name, self.penalty, self.strength = name, penalty, strength
        self.real = checked_real(real)
        self.labels = None if labels is None else checked_labels(labels, len(self.real)).to(self.real.device)
        rows = self.real.to(torch.float64)
        self.centre, cov = rows.mean(0), torch.atleast_2d(torch.cov(rows.T))
        scale = cov.trace() / len(cov)
        if not torch.isfinite(scale):
            raise ValueError("squares of the real features leave float64; divide both sides' features by a number")
        if not scale > 0:
            raise ValueError(f"the {len(rows)} real rows are all the same; pass features that differ")
        self.variances, basis = torch.linalg.eigh(cov / scale)
        self.basis = basis / scale.sqrt()
        self._real_features = self.features(self.real)

    def features(self, rows: Tensor) -> Tensor:
        """f in the eigenbasis of the real covariance, and a 1: float64 [n, d + 1] of rows [n, d]."""
        rotated = (rows.to(torch.float64) - self.centre) @ self.basis
        if rotated.numel() and not rotated.abs().max() <= FARTHEST:
            raise ValueError(
                f"features of {self.name} are beyond {FARTHEST:.0e} standard deviations of the real ones; are both of "
                "one network?"
            )
        return torch.cat([rotated, rotated.new_ones(len(rows), 1)], dim=1)

    def prepare(self, rows: object, labels: object = None) -> DensityRatioSet:
        """The set of features [N, d], N ≥ 2, and a discriminator fitted to it; labels [N] if the real ones have any."""
        rows = checked_set(rows, self.real)
        if (labels is None) != (self.labels is None):
            raise ValueError(
                f"{self.name} has {'no ' if self.labels is None else ''}labels of the real images, so it needs "
                f"{'none' if self.labels is None else 'some'} of the set; pass labels for both or for neither"
            )
        if labels is None or self.labels is None:
            of_set, of_real = (torch.zeros(len(x), dtype=torch.int64, device=rows.device) for x in (rows, self.real))
        else:
            of_set, of_real = checked_labels(labels, len(rows)).to(rows.device), self.labels
        classes = of_set.unique()
        self._require_real(classes, of_real)
        known = torch.isin(of_real, classes)
        data = _data(self.features(rows), of_set, self._real_features[known], of_real[known], classes)
        weights, norm = _fit(data, self.variances, self.penalty, self.strength)
        if not norm <= CONVERGED:
            raise ValueError(
                f"the discriminator of {self.name} did not converge: its gradient is {norm:.1e}, not {CONVERGED:.0e}; "
                f"raise strength, now {self.strength:g}"
            )
        return DensityRatioSet(self, rows, of_set, Discriminator(classes, weights), data)

    def _require_real(self, classes: Tensor, of_real: Tensor) -> None:
        missing = classes[~torch.isin(classes, of_real)].tolist()
        if missing:
            raise ValueError(
                f"labels: {self.name} has no real images of {len(missing)} classes of the set, first {missing[:5]}; "
                "pass real images of every class"
            )


@dataclass(frozen=True, eq=False)
class Discriminator:
    """The fitted discriminators.

    classes  int64 [K], ascending
    weights  (u_y, b_y) float64 [K, d + 1] in the reward's features
    """

    classes: Tensor
    weights: Tensor

    def places(self, labels: Tensor) -> Tensor:
        """Row of `weights` of each label int64 [n]; ValueError for a class that it was not fitted for."""
        places = torch.searchsorted(self.classes, labels).clamp(max=len(self.classes) - 1)
        wrong = labels[self.classes[places] != labels]
        if len(wrong):
            raise ValueError(f"labels has class {wrong[0].item()}, of which the set has no image; fit it with some")
        return places


class DensityRatioSet(ScoredSet):
    """A set and the discriminator fitted to it; the scores are its logits."""

    def __init__(
        self, reward: DensityRatioReward, rows: Tensor, labels: Tensor, discriminator: Discriminator, data: _Data
    ):
        self.discriminator, self._reward = discriminator, reward
        real = (data.logits(discriminator.weights) * data.weights)[data.sides > 0].sum().item()
        super().__init__(self.logits(rows, labels), self._checked_logits, labels, tuple(rows.shape[1:]), real)

    def logits(self, rows: Tensor, labels: Tensor) -> Tensor:
        """ℓ float64 [n] of features [n, d] with labels int64 [n]."""
        weights = self.discriminator.weights[self.discriminator.places(labels)]
        return (self._reward.features(rows) * weights).sum(1)

    def _checked_logits(self, rows: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None, "a set of this reward has labels"
        check_finite(rows, "added")
        return self.logits(rows, labels)

    def gradient(self) -> Tensor:
        """∂ distance/∂ features [N, d] float64: −u_y/(sN), the discriminator held."""
        assert self.labels is not None, "a set of this reward has labels"
        weights = self.discriminator.weights[self.discriminator.places(self.labels), :-1]
        gradient: Tensor = weights @ self._reward.basis.T / -self.count
        return gradient


# --- the fit -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Data:
    """Rows of both sides, sorted by class.

    rows     float64 [m, d + 1]
    sides    +1 for a real row, −1 for one of the set [m]
    weights  of the terms of the loss [m]; each side has 1 in all
    counts   rows of each class, K numbers
    shares   π_y [K]
    """

    rows: Tensor
    sides: Tensor
    weights: Tensor
    counts: list[int]
    shares: Tensor

    def logits(self, weights: Tensor) -> Tensor:
        """ℓ [m] of (u_y, b_y) [K, d + 1]."""
        return torch.cat([rows @ w for rows, w in zip(self.rows.split(self.counts), weights, strict=True)])

    def weighted_rows(self, slopes: Tensor) -> Tensor:
        """Σ_i slope_i·f_i over the rows of each class, [K, d + 1]."""
        parts = zip(self.rows.split(self.counts), slopes.split(self.counts), strict=True)
        return torch.stack([rows.T @ slope for rows, slope in parts])


def _data(generated: Tensor, of_set: Tensor, real: Tensor, of_real: Tensor, classes: Tensor) -> _Data:
    """Both sides with the weights of the loss: 1/N for a row of the set, π_y/n_y for a real one."""
    places_set, places_real = (torch.searchsorted(classes, labels) for labels in (of_set, of_real))
    shares = torch.bincount(places_set, minlength=len(classes)).to(torch.float64) / len(of_set)
    counts_real = torch.bincount(places_real, minlength=len(classes))
    weights = torch.cat([torch.full_like(generated[:, 0], 1 / len(of_set)), (shares / counts_real)[places_real]])
    sides = torch.cat([torch.full_like(generated[:, 0], -1.0), torch.ones_like(real[:, 0])])
    places, order = torch.cat([places_set, places_real]).sort(stable=True)
    counts = torch.bincount(places).tolist()
    return _Data(torch.cat([generated, real])[order], sides[order], weights[order], counts, shares)


def _fit(data: _Data, variances: Tensor, penalty: str, strength: float) -> tuple[Tensor, float]:
    """(u_y, b_y) [K, d + 1] that minimise the loss, and the norm of the gradient there."""
    from scipy.optimize import minimize  # takes a third of a second to load

    penalties, free = _penalties(data, len(variances), penalty, strength)
    # Hessian at 0: σ' = 1/4 times the second moments of both sides, taken as those of the real one
    moments = torch.cat([variances.clamp(min=0), variances.new_ones(1)]) / 2
    diagonal = torch.cat([moments[None], data.shares[:, None] * moments]) + penalties
    scales = free * diagonal.rsqrt()
    objective = _Objective(data, penalties, scales)
    found = minimize(
        objective.value_and_gradient,
        np.zeros(scales.numel()),
        jac=True,
        hessp=objective.hessian_product,
        method="trust-ncg",
        options={"gtol": NEAR, "maxiter": STEPS},
    )
    phi, norm = _newton(objective, found.x)
    theta = objective.theta(phi)
    return theta[:1] + theta[1:], norm


def _newton(objective: _Objective, phi: np.ndarray) -> tuple[np.ndarray, float]:
    """φ after Newton steps from near the minimum, and the norm of the gradient there."""
    from scipy.sparse.linalg import LinearOperator, cg

    for _ in range(NEWTON_STEPS):
        _, gradient = objective.value_and_gradient(phi)
        if np.linalg.norm(gradient) <= CONVERGED:
            break
        hessian = LinearOperator((phi.size, phi.size), matvec=partial(objective.hessian_product, phi))
        phi = phi - cg(hessian, gradient, rtol=NEAR)[0]
    return phi, float(np.linalg.norm(objective.value_and_gradient(phi)[1]))


def _penalties(data: _Data, dim: int, penalty: str, strength: float) -> tuple[Tensor, Tensor]:
    """λ of each entry of θ, and 1 for those that are free, 0 for those held at 0: [K + 1, d + 1] each."""
    classes = len(data.counts)
    penalties = data.rows.new_full((classes + 1, dim + 1), strength)
    penalties[0, -1] = 0
    free = torch.ones_like(penalties)
    if penalty == "r1":
        penalties[1:] = strength * data.shares[:, None]
        penalties[1:, -1] = 0
        free[0] = 0
    elif classes == 1:
        free[1:] = 0
    return penalties, free


class _Objective:
    """The loss in scaled variables φ = θ/scales, flat NumPy arrays as SciPy's solvers take."""

    def __init__(self, data: _Data, penalties: Tensor, scales: Tensor):
        self.data, self.penalties, self.scales = data, penalties, scales
        self._at, self._curvature = None, torch.empty(0)

    def theta(self, phi: np.ndarray) -> Tensor:
        """θ [K + 1, d + 1] of φ."""
        return torch.from_numpy(phi).to(self.scales.device).view_as(self.scales) * self.scales

    def _logits(self, theta: Tensor) -> Tensor:
        return self.data.logits(theta[0] + theta[1:])

    def _gradient(self, slopes: Tensor, theta: Tensor) -> np.ndarray:
        """Gradient in φ of terms with slopes [m] in the logits, and of the penalty at θ."""
        of_class = self.data.weighted_rows(slopes)
        of_theta = torch.cat([of_class.sum(0, keepdim=True), of_class]) + self.penalties * theta
        return (of_theta * self.scales).flatten().cpu().numpy()  # type: ignore[no-any-return]

    def value_and_gradient(self, phi: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss and its gradient."""
        theta = self.theta(phi)
        margins = self.data.sides * self._logits(theta)
        value = self.data.weights @ softplus(-margins) + (self.penalties * theta.square()).sum() / 2
        slopes = -self.data.weights * self.data.sides * torch.sigmoid(-margins)
        return value.item(), self._gradient(slopes, theta)

    def hessian_product(self, phi: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """The Hessian at φ times a direction."""
        if self._at is None or not np.array_equal(self._at, phi):
            logits = self._logits(self.theta(phi))
            self._at, self._curvature = phi.copy(), self.data.weights * torch.sigmoid(logits) * torch.sigmoid(-logits)
        theta = self.theta(direction)
        return self._gradient(self._curvature * self._logits(theta), theta)
