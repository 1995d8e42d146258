"""A pair of sides in one network, and what several of its metrics share, computed once.

Legend: N, m samples; M, n real images; d feature dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from fastfid.distances.frechet import FrechetTerms, frechet_terms
from fastfid.distances.kernel_sums import gaussian_kernel, polynomial_kernel
from fastfid.distances.kid_mmd import KidEstimate, MaximumMeanDiscrepancy, kid, kid_and_mmd, mmd
from fastfid.distances.leave_one_out import LeaveOneOut
from fastfid.distances.moments import FeatureMoments
from fastfid.distances.precision_recall import BallCounts, ball_counts, prdc, precision_recall
from fastfid.distances.real_side import PreparedMoments, prepare
from fastfid.distances.rows import mean_row
from fastfid.evaluation.intervals import ShareSpread, mmd_variance, mmd_variance_of_sums, share_spread
from fastfid.evaluation.settings import Settings
from fastfid.evaluation.sides import SideInNetwork
from fastfid.protocols import DEFAULT_METRICS, Protocol

# Moments and features are of the same images if their means agree to this part of the features' size.  Moments kept in
# float32 differ by 1e-7; those of other images or of another preparation by 1/√N and more.
SAME_MEAN = 1e-5

KidAndVariance = tuple[KidEstimate, float | None]
MmdAndVariance = tuple[MaximumMeanDiscrepancy, float | None]


class Pair:
    """Samples and real images in one network, and what more than one metric needs of them.

    metrics  those that will be computed: what they share is computed together
    """

    def __init__(
        self,
        samples: SideInNetwork,
        real: SideInNetwork,
        protocol: Protocol,
        settings: Settings,
        metrics: Sequence[str] = DEFAULT_METRICS,
    ) -> None:
        self.samples, self.real, self.protocol, self.settings = samples, real, protocol, settings
        self.metrics = metrics
        self.network = samples.network

    # --- options

    @property
    def nearest_k(self) -> int:
        """Neighbour whose distance is a point's radius: the one asked for, else the protocol's."""
        given = self.settings.nearest_k
        return self.protocol.nearest_k if given is None else given

    @property
    def kid_subset_size(self) -> int:
        """Rows of a KID subset: the requested number, else the protocol's, which may limit it to the rows of a side."""
        asked = self.settings.kid_subset_size
        size = self.protocol.kid_subset_size if asked is None else asked
        return min(size, self.fewest_rows) if asked is None and self.protocol.kid_caps else size

    # --- features

    def missing_features(self) -> str | None:
        """Why metrics of both sides' features cannot be computed; None if they can."""
        for side in (self.samples, self.real):
            if side.features is None:
                return f"{side.name} holds statistics only; pass its images, or features saved with --keep-features"
        return None

    @property
    def features(self) -> tuple[Tensor, Tensor]:
        """Features of the real images [M, d] and of the samples [N, d]; ValueError where a side has none."""
        real, generated = self.real.features, self.samples.features
        if real is None or generated is None:
            raise ValueError(self.missing_features())
        return real, generated

    @property
    def fewest_rows(self) -> int:
        """Number of rows of the smaller side; ValueError where a side has no features."""
        return min(map(len, self.features))

    # --- Fréchet distance

    @cached_property
    def prepared(self) -> PreparedMoments:
        """The real images' moments, factored."""
        return prepare(self.real.moments)

    @cached_property
    def distance(self) -> Distance:
        """The Fréchet distance of the moments, and its changes without each sample and each real image."""
        mine, theirs = self.samples, self.real
        rows = rows_behind(mine.moments, mine.features), rows_behind(theirs.moments, theirs.features)
        return distance_of(mine.moments, self.prepared, *rows)

    @property
    def terms(self) -> FrechetTerms:
        """The Fréchet distance of the moments."""
        return self.distance.terms

    @property
    def sample_changes(self) -> Tensor | None:
        """Change of FD when each sample is left out, float64 [N]; None without features of these moments."""
        return self.distance.sample_changes

    @property
    def real_changes(self) -> Tensor | None:
        """Change of FD when each real image is left out, float64 [M]; None without features of these moments."""
        return self.distance.real_changes

    # --- KID and MMD²

    @cached_property
    def kid_and_mmd(self) -> tuple[KidAndVariance, MmdAndVariance] | None:
        """Both estimates and their variances from the same products; None if only one is wanted or can be computed."""
        size = self.kid_subset_size
        if not {"kid", "mmd"} <= set(self.metrics) or size > self.fewest_rows:
            return None
        try:
            of_kid, of_mmd, kid_sums, mmd_sums = kid_and_mmd(
                *self.features, self.protocol.kid_subsets, size, self.settings.seed
            )
        except ValueError:  # no median distance
            return None
        return (of_kid, mmd_variance_of_sums(kid_sums)), (of_mmd, mmd_variance_of_sums(mmd_sums))

    @cached_property
    def kid(self) -> KidAndVariance:
        """KID and its jackknife variance."""
        if self.kid_and_mmd:
            return self.kid_and_mmd[0]
        (real, generated), seed = self.features, self.settings.seed
        found = kid(real, generated, self.protocol.kid_subsets, self.kid_subset_size, seed=seed)
        kernel = polynomial_kernel(found.degree, found.gamma, found.coef)
        return found, mmd_variance(generated, real, kernel, seed)

    @cached_property
    def mmd(self) -> MmdAndVariance:
        """MMD² and its jackknife variance; ValueError where there is no median distance."""
        if self.kid_and_mmd:
            return self.kid_and_mmd[1]
        real, generated = self.features
        found = mmd(real, generated)
        assert found.bandwidth is not None  # the Gaussian kernel's
        return found, mmd_variance(generated, real, gaussian_kernel(found.bandwidth), self.settings.seed)

    # --- neighbours

    @cached_property
    def balls(self) -> BallCounts:
        """Counts of rows strictly inside a ball, for precision, recall, density and coverage."""
        return ball_counts(*self.features, self.nearest_k)

    @cached_property
    def share_spread(self) -> ShareSpread | None:
        """Spread of precision, recall and coverage over random parts; None of too few images."""
        return share_spread(*self.features, self.nearest_k, self.settings.seed)

    @cached_property
    def protocol_scores(self) -> dict[str, float]:
        """Precision and recall as the protocol counts and measures them."""
        return self.precision_recall(*self.features)

    def precision_recall(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        """Precision and recall of features real [n, d] and generated [m, d] as the protocol counts and measures."""
        if not self.protocol.inclusive:
            return prdc(real, generated, self.nearest_k)
        return precision_recall(real, generated, self.nearest_k, self.protocol.distances)


# --- a distance without each row ---------------------------------------------------------------------------------


class Distance(NamedTuple):
    """A Fréchet distance and its leave-one-out changes, float64 [N] and [M]; None for a side without its rows."""

    terms: FrechetTerms
    sample_changes: Tensor | None = None
    real_changes: Tensor | None = None


def distance_of(
    a: FeatureMoments, b: FeatureMoments | PreparedMoments, rows_a: Tensor | None, rows_b: Tensor | None
) -> Distance:
    """The Fréchet distance, and its leave-one-out changes for each side whose rows are given."""
    if rows_a is None and rows_b is None:
        return Distance(frechet_terms(a, b))
    both = LeaveOneOut(a, b)
    return Distance(
        both.terms,
        None if rows_a is None else both.without_first(rows_a),
        None if rows_b is None else both.without_second(rows_b),
    )


def rows_behind(moments: FeatureMoments, features: Tensor | None) -> Tensor | None:
    """The features [n, d] if the moments are theirs and n ≥ 3, else None.

    Moments and features differ in ADM's files.  Below three rows, leaving one out leaves no covariance.
    """
    if features is None or len(features) < 3 or moments.count != len(features):
        return None
    distance = torch.linalg.vector_norm(mean_row(features) - moments.mean)
    return features if distance <= SAME_MEAN * moments.cov.trace().sqrt() + SAME_MEAN * moments.mean.norm() else None
