"""Command line: the Fréchet distance of two sets of images or saved statistics.

python -m fastfid real/ generated.zip                              FD (fashion-a):  3.1415
python -m fastfid real.npz generated/ --network inception          FID:  3.1415
python -m fastfid --save-stats real/ real.npz                      statistics for later runs
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from fastfid import __version__
from fastfid.features import EXTRACTOR_NAMES, FeatureExtractor, feature_extractor
from fastfid.frechet import FrechetTerms, frechet_terms
from fastfid.images import ARRAY_NAMES, ImageSource, open_images
from fastfid.moments import FeatureMoments, check_same_features

DEFAULT_NETWORK = "fashion-a"  # embedded: works without a download
BATCH_SIZE = 250  # images a step; 250 × 3 × 299² float32 of Inception input are 268 MB


def main(argv: list[str] | None = None) -> int:
    """Run the command line; exit status 0, or 2 with one sentence on stderr for bad input."""
    arguments = _parser().parse_args(argv)
    try:
        (_save_statistics if arguments.save_stats else _compare)(arguments)
    except (ValueError, OSError, ImportError) as error:
        print(f"fastfid: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastfid", description="Fréchet distance of two sets of images.")
    parser.add_argument("a", metavar="A", help="folder, .zip, .npz or .npy of images, or .npz of statistics mu, sigma")
    parser.add_argument("b", metavar="B", help="the other set; with --save-stats the file to write")
    parser.add_argument("--network", choices=EXTRACTOR_NAMES, help=f"feature network (default {DEFAULT_NETWORK})")
    parser.add_argument("--weights", help="weights file of the network (default: embedded or downloaded)")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help=f"images a step (default {BATCH_SIZE})")
    parser.add_argument("--device", default="cpu", help="where the network runs, e.g. cuda (default cpu)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--save-stats", action="store_true", help="write the statistics of A to B (.npz) and stop")
    parser.add_argument("--version", action="version", version=f"fastfid {__version__}")
    return parser


# --- the two commands --------------------------------------------------------------------------------------------


def _compare(arguments: argparse.Namespace) -> None:
    sides = [_open(arguments.a), _open(arguments.b)]  # both are opened before any is worked through
    extractor = _extractor(arguments, sides)
    _check_against_saved(sides, extractor)
    a, b = (_moments(side, extractor, arguments.batch_size) for side in sides)
    report = _report(arguments, a, b, frechet_terms(a, b))
    for name, moments in ((arguments.a, a), (arguments.b, b)):
        if moments.count is not None and moments.count <= moments.dim:
            note = f"{moments.count} images for d = {moments.dim} features: the distance is biased upwards, use more"
            print(f"fastfid: note: {name}: {note}", file=sys.stderr)
    print(json.dumps(report) if arguments.json else _text(report))


def _save_statistics(arguments: argparse.Namespace) -> None:
    if not Path(arguments.b).resolve().parent.is_dir():
        raise ValueError(f"the folder of {arguments.b} does not exist; create it first")
    images = _open(arguments.a)
    if isinstance(images, FeatureMoments):
        raise ValueError(f"{arguments.a} holds statistics already; give images to --save-stats")
    _moments(images, _extractor(arguments, [images]), arguments.batch_size).save(arguments.b)


# --- their steps -------------------------------------------------------------------------------------------------


def _open(source: str) -> FeatureMoments | ImageSource:
    """Statistics if `source` is an npz with mu and sigma and without images, else images."""
    path = Path(source)
    if path.suffix.lower() == ".npz" and path.is_file() and _holds_statistics(path):
        return FeatureMoments.load(path)
    return open_images(path)


def _holds_statistics(path: Path) -> bool:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {"mu", "sigma"} <= set(arrays.files) and not set(ARRAY_NAMES) & set(arrays.files)
    except Exception:  # unreadable in whatever way: open_images says so in its own words
        return False


def _extractor(arguments: argparse.Namespace, sides: list) -> FeatureExtractor | None:
    """The network asked for, else the one that statistics on the other side were made with; None if no images."""
    if all(isinstance(side, FeatureMoments) for side in sides):
        return None
    recorded = [side.provenance.get("extractor") for side in sides if isinstance(side, FeatureMoments)]
    name = arguments.network or next((name for name in recorded if name in EXTRACTOR_NAMES), DEFAULT_NETWORK)
    return feature_extractor(name, arguments.weights, arguments.device)


def _check_against_saved(sides: list, extractor: FeatureExtractor | None) -> None:
    """ValueError, before any image is read, if saved statistics come from another network than `extractor`."""
    for side in sides:
        if extractor is not None and isinstance(side, FeatureMoments):
            check_same_features(side, FeatureMoments.empty(extractor.dim, _provenance(extractor)))


def _moments(side: FeatureMoments | ImageSource, extractor: FeatureExtractor | None, size: int) -> FeatureMoments:
    """Saved statistics as they are; images through the extractor with a progress bar."""
    if isinstance(side, FeatureMoments):
        return side
    from tqdm import tqdm

    moments = FeatureMoments.empty(extractor.dim, _provenance(extractor))
    with tqdm(total=len(side), unit="image", desc=Path(side.name).name, file=sys.stderr) as progress:
        for images in side.batches(size):
            moments.update(extractor(images).cpu())
            progress.update(len(images))
    return moments


def _provenance(extractor: FeatureExtractor) -> dict[str, str]:
    return {
        "extractor": extractor.name,
        "weights_sha256": extractor.weights_sha256,
        "preprocessing": extractor.preprocessing,
    }


def _report(arguments: argparse.Namespace, a: FeatureMoments, b: FeatureMoments, terms: FrechetTerms) -> dict:
    """Everything the command found, by the names of its JSON output."""
    provenance = a.provenance if a.provenance.get("extractor") else b.provenance
    network = provenance.get("extractor") or arguments.network or "unknown network"
    return {
        "metric": "FID" if network == "inception" else f"FD ({network})",
        "value": terms.total,
        "mean_term": terms.mean_term,
        "trace_term": terms.trace_term,
        "root_term": terms.root_term,
        "clipped_eigenvalues": terms.clipped,
        "network": network,
        "dim": a.dim,
        "preprocessing": provenance.get("preprocessing"),
        "weights_sha256": provenance.get("weights_sha256"),
        "a": {"source": arguments.a, "count": a.count},
        "b": {"source": arguments.b, "count": b.count},
        "version": f"fastfid {__version__}",
    }


def _text(report: dict) -> str:
    """Provenance lines, then the distance in pytorch-fid's form."""
    weights = (report["weights_sha256"] or "unknown")[:12]
    lines = [f"network {report['network']}, d = {report['dim']}, weights {weights}"]
    lines.append(f"preprocessing: {report['preprocessing'] or 'unknown'}")
    lines += [f"{report[side]['count'] or 'unknown number of'} images: {report[side]['source']}" for side in "ab"]
    return "\n".join([*lines, f"{report['metric']}:  {report['value']}"])


if __name__ == "__main__":
    sys.exit(main())
