"""The public names of fastfid; imported when the first of them is used.

The metric classes are imported when the first of these is used, because torchmetrics takes seconds to load.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastfid.distances.cmmd import cmmd
from fastfid.distances.frechet import frechet_distance, frechet_terms
from fastfid.distances.kid_mmd import kid, mmd
from fastfid.distances.moments import FeatureMoments
from fastfid.distances.precision_recall import prdc, precision_recall
from fastfid.distances.real_side import PreparedMoments, RealFactor, prepare
from fastfid.distances.sliced_wasserstein import sliced_wasserstein
from fastfid.distances.window import FeatureWindow
from fastfid.evaluation.difference import diff
from fastfid.evaluation.evaluate import evaluate
from fastfid.evaluation.results import DifferenceResult, EvaluationResult
from fastfid.features.differentiable import differentiable_features
from fastfid.features.extractor import FeatureExtractor
from fastfid.features.registry import feature_extractor
from fastfid.features.torchscript import torchscript_extractor
from fastfid.images.open import open_images
from fastfid.linalg.iterative_roots import trace_sqrt_product
from fastfid.rewards.credit import swap_credit
from fastfid.rewards.density_ratio import DensityRatioReward
from fastfid.rewards.distribution_reward import DistributionReward
from fastfid.rewards.frechet import FrechetReward
from fastfid.rewards.kernel import KernelReward
from fastfid.rewards.per_image import CallableReward
from fastfid.rewards.protocol import DifferentiableSet, PreparedSet, SetReward
from fastfid.rewards.sliced_wasserstein import SlicedWassersteinReward
from fastfid.statistics.statistics import Statistics, read_statistics
from fastfid.swap.cross_checks import swap_change_ref
from fastfid.swap.engine import SwapEngine

if TYPE_CHECKING:
    from fastfid.metrics.inception_score import InceptionScore
    from fastfid.metrics.memorization import MemorizationInformedFrechetInceptionDistance
    from fastfid.metrics.metrics import (
        FrechetDistance,
        FrechetInceptionDistance,
        KernelInceptionDistance,
        PrecisionRecall,
        SlicedWasserstein,
    )

METRIC_CLASSES = {  # name: its module in fastfid.metrics
    **dict.fromkeys(
        (
            "FrechetDistance",
            "FrechetInceptionDistance",
            "KernelInceptionDistance",
            "PrecisionRecall",
            "SlicedWasserstein",
        ),
        "metrics",
    ),
    "InceptionScore": "inception_score",
    "MemorizationInformedFrechetInceptionDistance": "memorization",
}

__all__ = [
    "CallableReward",
    "DensityRatioReward",
    "DifferenceResult",
    "DifferentiableSet",
    "DistributionReward",
    "EvaluationResult",
    "FeatureExtractor",
    "FeatureMoments",
    "FeatureWindow",
    "FrechetDistance",
    "FrechetInceptionDistance",
    "FrechetReward",
    "InceptionScore",
    "KernelInceptionDistance",
    "KernelReward",
    "MemorizationInformedFrechetInceptionDistance",
    "PrecisionRecall",
    "PreparedMoments",
    "PreparedSet",
    "RealFactor",
    "SetReward",
    "SlicedWasserstein",
    "SlicedWassersteinReward",
    "Statistics",
    "SwapEngine",
    "cmmd",
    "diff",
    "differentiable_features",
    "evaluate",
    "feature_extractor",
    "frechet_distance",
    "frechet_terms",
    "kid",
    "mmd",
    "open_images",
    "prdc",
    "precision_recall",
    "prepare",
    "read_statistics",
    "sliced_wasserstein",
    "swap_change_ref",
    "swap_credit",
    "torchscript_extractor",
    "trace_sqrt_product",
]


def __getattr__(name: str) -> Any:
    """A metric class, imported on first use (PEP 562)."""
    if name in METRIC_CLASSES:
        return getattr(import_module(f"fastfid.metrics.{METRIC_CLASSES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
