"""Everything that `import fastfid` offers by name; imported when the first of these names is used."""

from fastfid.evaluation import diff, evaluate
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
