"""The numbers of other tools' own code for bench/side_by_side.py: each function returns {metric: number}."""

from __future__ import annotations

import contextlib
import io
from functools import partial
from pathlib import Path

import numpy as np
import pytorch_fid.inception
import torch
import torch_fidelity
from cleanfid import fid as cleanfid
from cleanfid.inception_torchscript import InceptionV3W
from PIL import Image
from prdc import compute_prdc
from pytorch_fid import fid_score
from torch import nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

import fastfid.features.inception
from bench.peer_inputs import EFFICIENTNET, Case, EfficientNetFeatures, patched

BATCH = 64  # a different batch can change the last bits of a convolution, so all tools use this one


def of_pytorch_fid(case: Case) -> dict[str, float]:
    """pytorch-fid: its loader, its network and its distance."""

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
    """prdc takes features. These come from pytorch-fid's code."""
    fake, real = (case.kept("pytorch-fid", f, dict)["features"] for f in case.folders)
    with contextlib.redirect_stdout(io.StringIO()):
        return {key: float(value) for key, value in compute_prdc(real, fake, nearest_k=5).items()}


def of_clean_fid(case: Case) -> dict[str, float]:
    """clean-fid: its folder reader, resizing, wrapper of Inception, and both distances."""

    class Layers(nn.Module):  # replaces the layers of NVIDIA's TorchScript file, which cannot take other weights
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
    """torch-fidelity: one call of its calculate_metrics, which caches features itself."""
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
    """EfficientNet-Lite0 for torch-fidelity, registered as in its documentation."""

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
    """torchmetrics: its antialiasing Inception and its three metric classes, which receive features, not images."""

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
    score = InceptionScore(feature=Given(), splits=1)  # one part, because its permutation has no seed
    score.update(torch.from_numpy(found[0]["logits"]))
    return {"FID": fid.compute().item(), "KID": kid.compute()[0].item(), "IS": score.compute()[0].item()}


def of_adm(case: Case) -> dict[str, float]:
    """ADM's formulas, restated: Fréchet distances by SciPy's root, precision and recall from half-precision squares."""

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
    logits = torch.from_numpy(fake["logits"]).double()  # ADM's parts have 5,000 images, so these are one part
    p, log_p = logits.softmax(1), logits.log_softmax(1)
    found["IS"] = (p * (log_p - p.mean(0, keepdim=True).log())).sum(1).mean().exp().item()
    x, y = (torch.from_numpy(side["pool"]) for side in (real, fake))
    between = half_squares(x, y)
    radii_x, radii_y = (half_squares(z, z).sort(dim=1).values[:, 3] for z in (x, y))
    found["precision"] = (between <= radii_x[:, None]).any(dim=0).double().mean().item()
    found["recall"] = (between <= radii_y[None, :]).any(dim=1).double().mean().item()
    return found


def half_squares(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """|u|² − 2u·v + |v|² of rows in float16. Each term is rounded too; sums are in float32, as on tensor cores."""
    u, v = u.half().float(), v.half().float()
    norms = [(x.half() * x.half()).float().sum(dim=1).half() for x in (u, v)]
    found = (norms[0][:, None] - 2 * (u @ v.T).half() + norms[1]).clamp_min(0)
    assert torch.isfinite(found).all()  # otherwise ADM would compute again in float32
    return found.float()
