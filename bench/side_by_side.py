"""One number computed twice: by each tool's own code for two folders of PNG, and by fastfid with its protocol.

    python -m bench.side_by_side [--images 512] [--inception-images 64] [--work build/side_by_side]

Samples are held-out Fashion-MNIST images after a 3×3 blur.  The reference consists of training images.  Pillow enlarges
both to 64, 128 and 299 pixels, and every tool reads the same PNG files.  Networks: Inception with random weights of a
stated seed, normalised layer by layer, in each tool's own class (no package contains the published weights); and
EfficientNet-Lite0 with its ImageNet weights, as each tool's custom network.  The tools run unchanged, except that their
weights come from here and are not downloaded.  ADM's evaluator needs TensorFlow, so bench/peers.py restates its
formulas.

Some tools draw KID's subsets from a generator without a seed.  For these, the subset is the whole set, so the draw
changes nothing.  torch-fidelity uses a seed; its subsets are halves.  The work folder keeps features, so a second run
computes only the distances.  Both numbers of images are those at 64 pixels; 128 pixels use half as many, 299 pixels a
quarter.  Inception runs on 30 times the images, because every tool, and fastfid for each tool, starts from the files.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
import torch_fidelity
from tqdm import tqdm

import fastfid.features.inception
import fastfid.runtime.hashes
from bench.peer_inputs import EFFICIENTNET, EFFICIENTNET_SIDE, INCEPTION, SEED, Case, random_inception, write_images
from bench.peers import (
    BATCH,
    FidelityEfficientNet,
    of_adm,
    of_clean_fid,
    of_prdc,
    of_pytorch_fid,
    of_torch_fidelity,
    of_torchmetrics,
)
from fastfid.evaluation.evaluate import evaluate
from fastfid.protocols import PROTOCOLS

RESULTS = Path(__file__).parent / "results"
SIDES = {64: 1, 128: 2, 299: 4}  # pixels: divisor of the number of images
FEWEST = 16 * max(SIDES.values())  # leaves 16 images per side everywhere: IS takes 10 parts, prdc 5 neighbours
PEERS = ("pytorch-fid", "clean-fid", "torch-fidelity", "torchmetrics", "prdc")
TOOLS = ("torch", "numpy", "scipy", "fastfid")


@dataclass(frozen=True)
class Comparison:
    """A peer, the protocol that reproduces it, and a note for the page."""

    peer: str
    compute: Callable[[Case], dict[str, float]]
    protocol: str
    note: str = ""
    networks: tuple[str, ...] = (INCEPTION, EFFICIENTNET)
    sides: tuple[int, ...] = tuple(SIDES)


COMPARISONS = (
    Comparison("pytorch-fid", of_pytorch_fid, "pytorch-fid"),
    Comparison("clean-fid", of_clean_fid, "clean", "KID of all rows (it draws unseeded)"),
    Comparison("torch-fidelity", of_torch_fidelity, "torch-fidelity", "KID of seeded halves; IS of 10 seeded parts"),
    Comparison("torchmetrics", of_torchmetrics, "torchmetrics", "KID of all rows, IS of one part (it draws unseeded)"),
    Comparison("prdc", of_prdc, "dgm-dinov2", "on pytorch-fid's features; `--metrics precision,…`"),
    Comparison("ADM, restated", of_adm, "adm", "precision and recall of float16 squares", (INCEPTION,), (64,)),
)  # fmt: skip
KEYS = {"FID": "fd", "sFID": "sfid", "IS": "is", "KID": "kid"}  # name in the table: name in fastfid, if they differ


def ours(case: Case, comparison: Comparison, metrics: list[str]) -> dict[str, float]:
    """fastfid with the peer's protocol on the same folders."""
    protocol, subset = PROTOCOLS[comparison.protocol], case.images
    if comparison.peer == "torch-fidelity":
        subset = case.images // 2
    if comparison.peer == "torchmetrics":
        protocol = replace(protocol, is_splits=1, is_shuffle=False)
    inception = case.network == INCEPTION
    result = evaluate(
        *case.folders,
        metrics=[KEYS.get(metric, metric) for metric in metrics],
        features="inception" if inception else "efficientnet-lite0",
        protocol=protocol,
        weights=case.weights if inception else None,
        kid_subset_size=subset,
        batch_size=BATCH,
        cache=case.work / "fastfid-cache",
    )
    return {metric: result[KEYS.get(metric, metric)].value for metric in metrics}


def rows_of(case: Case, comparison: Comparison, kept: dict) -> list[dict]:
    """One row per metric: the peer's number, ours, and their relative difference."""
    version_of = "restated" if comparison.peer not in PEERS else version(comparison.peer)
    key = f"{case.network}/{case.side}/{case.images}/{comparison.peer} {version_of}/{torch.__version__}"
    if key not in kept:
        kept[key] = comparison.compute(case)
    theirs = kept[key]
    mine = ours(case, comparison, list(theirs))
    return [
        {
            "network": case.network, "side": case.side, "images": case.images, "metric": metric,
            "peer": comparison.peer, "protocol": comparison.protocol, "theirs": value, "ours": mine[metric],
            "relative_difference": abs(mine[metric] - value) / abs(value) if value else abs(mine[metric]),
        }
        for metric, value in theirs.items()
    ]  # fmt: skip


def table(rows: list[dict], device: str, digest: str, left: list[tuple[Case, Comparison]]) -> str:
    """The Markdown page. `left` are the comparisons that an interrupted run did not make."""
    packages = ", ".join(f"{name} {version(name)}" for name in (*PEERS, *TOOLS))
    lines = [
        "# The same number twice",
        "",
        "`python -m bench.side_by_side` on " + device + ": each tool's own code and fastfid with its `--protocol`, on "
        "the same two folders of PNG. Samples: held-out Fashion-MNIST images after a 3×3 blur; reference: training "
        "images; both enlarged. The first lines of the script say how each tool runs.",
        "",
        f"- {packages}",
        f"- Inception: random weights, seed {SEED}, SHA-256 {digest[:12]}…",
        f"- EfficientNet-Lite0: ImageNet weights of its pip package, images at {EFFICIENTNET_SIDE} px",
        *(f"- {c.peer}: {c.note}" for c in COMPARISONS if c.note),
        *(f"- not run yet: {c.peer}, {case.network}, {case.side} px" for case, c in left),
        "",
    ]
    for network in (INCEPTION, EFFICIENTNET):
        for side in SIDES:
            chosen = [row for row in rows if (row["network"], row["side"]) == (network, side)]
            if not chosen:
                continue
            lines += [f"## {network}, {side} px, {chosen[0]['images']} images a side", ""]
            lines += ["| metric | peer | its number | `fastfid eval --protocol` | ours | relative difference |"]
            lines += ["| --- | --- | ---: | --- | ---: | ---: |"]
            lines += [
                f"| {r['metric']} | {r['peer']} | {r['theirs']:.9g} | {r['protocol']} | {r['ours']:.9g} "
                f"| {r['relative_difference']:.1e} |"
                for r in chosen
            ]
            lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Writes bench/results/side_by_side.md and .csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="images per side for EfficientNet, at 64 pixels")
    parser.add_argument("--inception-images", type=int, default=64, help="images per side for Inception, at 64 pixels")
    parser.add_argument("--work", type=Path, default=Path("build/side_by_side"), help="folder of images and features")
    parser.add_argument("--device", default="2 cores of a 2.5 GHz Xeon", help="name of the machine")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of side_by_side.md and .csv")
    arguments = parser.parse_args()
    if min(arguments.images, arguments.inception_images) < FEWEST:
        parser.error(f"fewer than {FEWEST} images leave too few at 299 px; pass {FEWEST} or more")
    warnings.filterwarnings("ignore")  # of the peers
    arguments.work.mkdir(parents=True, exist_ok=True)
    weights = arguments.work / "inception.pth"
    if not weights.exists():
        torch.save(random_inception(), weights)
    digest = fastfid.runtime.hashes.file_sha256(weights)
    fastfid.features.inception.INCEPTION_SHA256 = digest[:8]  # in place of the published weights' hash
    torch_fidelity.registry.register_feature_extractor("efficientnet-lite0", FidelityEfficientNet)
    counts = {EFFICIENTNET: arguments.images, INCEPTION: arguments.inception_images}
    cases = [Case(net, side, n // SIDES[side], arguments.work) for net, n in counts.items() for side in (64, 299, 128)]
    steps = [(case, c) for case in cases for c in COMPARISONS if case.network in c.networks and case.side in c.sides]
    numbers, rows = arguments.work / "numbers.json", []
    kept = json.loads(numbers.read_text()) if numbers.exists() else {}
    for done, (case, comparison) in enumerate(bar := tqdm(steps, unit="comparison"), start=1):
        bar.set_description(f"{comparison.peer}, {case.network.split(',')[0]}, {case.side} px")
        write_images(case)
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            rows += rows_of(case, comparison, kept)
        numbers.write_text(json.dumps(kept, indent=1))
        bar.write(f"{comparison.peer}, {case.network}, {case.side} px: {time.perf_counter() - started:.0f} s")
        write_results(arguments.out, rows, table(rows, arguments.device, digest, steps[done:]))


def write_results(folder: Path, rows: list[dict], page: str) -> None:
    """side_by_side.md and side_by_side.csv, of the comparisons so far."""
    (folder / "side_by_side.md").write_text(page)
    with open(folder / "side_by_side.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
