"""fastfid: exact Fréchet distances of many sample swaps at once, and the distribution metrics around them."""

from fastfid.evaluate import diff, evaluate
from fastfid.extractors import torchscript_extractor
from fastfid.features import FeatureExtractor, feature_extractor
from fastfid.frechet import PreparedMoments, frechet_distance, frechet_terms, prepare
from fastfid.images import open_images
from fastfid.kernel_distance import kid, mmd
from fastfid.metrics import FrechetDistance, FrechetInceptionDistance, KernelInceptionDistance, PrecisionRecall
from fastfid.moments import FeatureMoments, FeatureWindow
from fastfid.neighbours import prdc, precision_recall
from fastfid.results import DifferenceResult, EvaluationResult
from fastfid.sqrtm import trace_sqrt_product
from fastfid.statistics import Statistics, read_statistics
from fastfid.swap import RealFactor, SwapEngine, swap_change_ref

__version__ = "0.1.0"

__all__ = [
    "DifferenceResult",
    "EvaluationResult",
    "FeatureExtractor",
    "FeatureMoments",
    "FeatureWindow",
    "FrechetDistance",
    "FrechetInceptionDistance",
    "KernelInceptionDistance",
    "PrecisionRecall",
    "PreparedMoments",
    "RealFactor",
    "Statistics",
    "SwapEngine",
    "diff",
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
    "swap_change_ref",
    "torchscript_extractor",
    "trace_sqrt_product",
]
