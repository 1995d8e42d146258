"""A pair of sides in one network, and what several of its metrics need, computed once.

Legend: N, m samples; M, n reference images; d feature dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from fastfid.distances.frechet import FrechetTerms, PreparedMoments, Side, frechet_terms, prepare
from fastfid.distances.kernel_sums import Kernel, gaussian_kernel, polynomial_kernel
from fastfid.distances.kid_mmd import KidEstimate, MaximumMeanDiscrepancy, kid, kid_and_mmd, mmd
from fastfid.distances.leave_one_out import LeaveOneOut
from fastfid.distances.moments import FeatureMoments
from fastfid.distances.precision_recall import BallCounts, ball_counts, prdc, precision_recall
from fastfid.distances.rows import mean_row
from fastfid.evaluation.intervals import ShareSpread, mmd_variance, mmd_variance_of_sums, share_spread
from fastfid.evaluation.settings import Settings
from fastfid.evaluation.sides import SideInNetwork
from fastfid.protocols import METRICS, Protocol
from fastfid.statistics.statistics import without_provenance

# Moments and features are of the same images if their means agree to this part of the features' size: moments kept in
# float32 differ by 1e-7, other images or another preparation by 1/√N and more.
SAME_MEAN = 1e-5


class Pair:
    """Samples and reference in one network, and what more than one metric needs of them."""

    def __init__(
        self,
        samples: SideInNetwork,
        reference: SideInNetwork,
        protocol: Protocol,
        settings: Settings,
        metrics: Sequence[str] = METRICS,
    ):
        self.samples, self.reference, self.protocol, self.settings = samples, reference, protocol, settings
        self.metrics = metrics  # that will be asked for: what they share is made once
        self.network = samples.network

    @property
    def nearest_k(self) -> int:
        """Neighbour whose distance is a point's radius."""
        given = self.settings.nearest_k
        return self.protocol.nearest_k if given is None else given

    @property
    def kid_subset_size(self) -> int:
        """Rows of a KID subset: asked for, or the protocol's, capped where it caps."""
        asked, available = self.settings.kid_subset_size, min(len(self.samples.features), len(self.reference.features))
        size = self.protocol.kid_subset_size if asked is None else asked
        return min(size, available) if asked is None and self.protocol.kid_caps else size

    def missing_features(self) -> str | None:
        """Why metrics of both sides' features cannot be computed, None if they can."""
        for side in (self.samples, self.reference):
            if side.features is None:
                return f"{side.name} holds statistics only; pass its images, or features saved with --keep-features"
        return None

    @cached_property
    def prepared(self) -> PreparedMoments:
        """The reference's moments, factored."""
        return prepare(without_provenance(self.reference.moments))

    @cached_property
    def distance(self) -> Distance:
        """The Fréchet distance of the moments, and its changes without each sample and each reference image."""
        mine, theirs = self.samples, self.reference
        sides = without_provenance(mine.moments), self.prepared
        return distance_of(
            *sides, rows_behind(mine.moments, mine.features), rows_behind(theirs.moments, theirs.features)
        )

    @property
    def terms(self) -> FrechetTerms:
        """The Fréchet distance of the moments."""
        return self.distance.terms

    @property
    def sample_changes(self) -> Tensor | None:
        """Change of FD when each sample is left out, float64 [N]; None without features of these moments."""
        return self.distance.sample_changes

    @property
    def reference_changes(self) -> Tensor | None:
        """Change of FD when each reference image is left out, float64 [M]; None without features of these moments."""
        return self.distance.reference_changes

    @cached_property
    def kid_and_mmd(self) -> tuple | None:
        """Both estimates and their variances from the same products; None where either cannot be had."""
        real, generated = self.reference.features, self.samples.features
        options = self.protocol.kid_subsets, self.kid_subset_size, self.settings.seed
        if not {"kid", "mmd"} <= set(self.metrics) or options[1] > min(len(real), len(generated)):
            return None
        try:
            found = kid_and_mmd(real, generated, *options)
        except ValueError:  # no median distance
            return None
        return tuple((score, mmd_variance_of_sums(sums)) for score, sums in zip(found[:2], found[2:], strict=True))

    @cached_property
    def kid(self) -> tuple[KidEstimate, float | None]:
        """KID and its jackknife variance."""
        if self.kid_and_mmd:
            return self.kid_and_mmd[0]
        real, generated, seed = self.reference.features, self.samples.features, self.settings.seed
        found = kid(real, generated, self.protocol.kid_subsets, self.kid_subset_size, seed=seed)
        return found, mmd_variance(generated, real, _kernel_of_kid(found), seed)

    @cached_property
    def mmd(self) -> tuple[MaximumMeanDiscrepancy, float | None]:
        """MMD² and its jackknife variance; ValueError where there is no median distance."""
        if self.kid_and_mmd:
            return self.kid_and_mmd[1]
        real, generated = self.reference.features, self.samples.features
        found = mmd(real, generated)
        return found, mmd_variance(generated, real, gaussian_kernel(found.bandwidth), self.settings.seed)

    @cached_property
    def balls(self) -> BallCounts:
        """Behind precision, recall, density and coverage, strictly inside a ball."""
        return ball_counts(self.reference.features, self.samples.features, self.nearest_k)

    @cached_property
    def share_spread(self) -> ShareSpread | None:
        """Behind the intervals of precision, recall and coverage; None of too few images."""
        return share_spread(self.reference.features, self.samples.features, self.nearest_k, self.settings.seed)

    @cached_property
    def protocol_scores(self) -> dict[str, float]:
        """Precision and recall as the protocol counts and measures them."""
        return self.precision_recall(self.reference.features, self.samples.features)

    def precision_recall(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        """Precision and recall of features real [n, d] and generated [m, d] as the protocol counts and measures."""
        if not self.protocol.inclusive:
            return prdc(real, generated, self.nearest_k)
        return precision_recall(real, generated, self.nearest_k, self.protocol.distances)


def _kernel_of_kid(found: KidEstimate) -> Kernel:
    return polynomial_kernel(found.degree, found.gamma, found.coef)


class Distance(NamedTuple):
    """A Fréchet distance and its leave-one-out changes, float64 [N] and [M], None for a side without its rows."""

    terms: FrechetTerms
    sample_changes: Tensor | None = None
    reference_changes: Tensor | None = None

    @property
    def changes(self) -> tuple[Tensor | None, Tensor | None]:
        """Of the samples and of the reference."""
        return self.sample_changes, self.reference_changes


def distance_of(a: Side, b: Side, rows_a: Tensor | None, rows_b: Tensor | None) -> Distance:
    """The Fréchet distance, and its leave-one-out changes of each side whose rows are given."""
    if rows_a is None and rows_b is None:
        return Distance(frechet_terms(a, b))
    both = LeaveOneOut(a, b)
    return Distance(
        both.terms,
        None if rows_a is None else both.without_first(rows_a),
        None if rows_b is None else both.without_second(rows_b),
    )


def rows_behind(moments: FeatureMoments, features: Tensor | None) -> Tensor | None:
    """The features if the moments are theirs, at least 3 rows; None where they are of others, as in ADM's references.

    One of three rows may be left out: two stay for a covariance.
    """
    if features is None or len(features) < 3 or moments.count != len(features):
        return None
    distance = torch.linalg.vector_norm(mean_row(features) - moments.mean)
    return features if distance <= SAME_MEAN * moments.cov.trace().sqrt() + SAME_MEAN * moments.mean.norm() else None
