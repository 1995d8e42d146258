"""The embedded assets: image subsets, feature networks and the base generator of Fashion-MNIST."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from fastfid.features.fashion import build_fashion_net, load_fashion_net
from fastfid.features.names import FASHION_NETS
from sit_rl.components.image_sets import (
    FASHION_SIT,
    NUM_CLASSES,
    ImageSet,
    balanced_subset,
    load_embedded,
    load_official,
)
from sit_rl.files.paths import reading, require_paths
from sit_rl.files.tensor_files import write_safetensors
from sit_rl.models.averages import EMA
from sit_rl.models.loading import save_model
from sit_rl.models.pixels import to_float, to_uint8
from sit_rl.models.sit import SiT
from sit_rl.pretraining.flow import FlowData, FlowSettings, batches, fit, heldout_judge, optimizer_of
from sit_rl.ranks.process_group import is_main

CURVE_HEADER = "iteration,loss,heldout_fd_fashion_a,seconds\n"


def write_subsets(source: Path, out: Path, train: int, heldout: int) -> None:
    """Write fashion_mnist_{train,heldout}.npz, balanced subsets of the official files in `source`."""
    make_folder(out)
    for split, count in (("train", train), ("heldout", heldout)):
        subset = balanced_subset(load_split(source, split), count)
        path = out / f"fashion_mnist_{split}.npz"
        np.savez_compressed(path, images=subset.images.numpy(), labels=subset.labels.numpy().astype(np.uint8))
        print(f"{path}: {count} images, {path.stat().st_size / 1e6:.2f} MB")


def train_fashion_nets(source: Path | None, out: Path, passes: int, batch: int, lr: float) -> None:
    """Write fashion-a.safetensors and fashion-b.safetensors, with their held-out accuracy."""
    make_folder(out)
    train, heldout = load_split(source, "train"), load_embedded("heldout")
    for seed, name in enumerate(FASHION_NETS):
        torch.manual_seed(seed)
        net = build_fashion_net(name)
        _fit_classifier(net, train, passes, batch, lr, seed, name)
        accuracy = (_classify(net, heldout.as_float()) == heldout.labels).float().mean().item()
        metadata = {
            "heldout_accuracy": f"{accuracy:.4f}",
            "train_images": str(len(train)),
            "passes": str(passes),
            "seed": str(seed),
        }
        tensors = {key: value.contiguous() for key, value in net.state_dict().items()}
        write_safetensors(out / f"{name}.safetensors", tensors, metadata)
        print(f"{name}: held-out accuracy {accuracy:.2%}")


def _fit_classifier(net: nn.Module, data: ImageSet, passes: int, batch: int, lr: float, seed: int, name: str) -> None:
    """Cross-entropy, AdamW, one-cycle learning rate, images mirrored at random."""
    steps = passes * (len(data) // batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    net.train()
    for rows, rng in tqdm(batches(len(data), batch, steps, seed), total=steps, desc=f"train {name}"):
        x = to_float(data.images[rows])
        mirrored = torch.from_numpy(rng.random(len(rows)) < 0.5)
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
        loss = F.cross_entropy(net(x), data.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()


def train_fashion_base(
    source: Path | None, out: Path, settings: FlowSettings, curve_every: int, curve_images: int
) -> None:
    """Write base.safetensors (EMA weights) and base_curve.csv (iteration, loss, held-out FD of the EMA)."""
    make_folder(out)
    train, started = load_split(source, "train"), time.perf_counter()
    heldout_fd = heldout_distance("fashion-a", curve_images, settings.seed)
    torch.manual_seed(settings.seed)
    model = SiT(FASHION_SIT)
    average, optimizer = EMA(model, settings.ema), optimizer_of(model, settings)
    curve = out / "base_curve.csv"
    if is_main():
        curve.write_text(CURVE_HEADER, encoding="utf-8")
    losses = []
    for i, loss in fit(model, average, optimizer, FlowData(train.images, train.labels), settings):
        losses.append(loss)
        if i % curve_every == 0 or i == settings.iterations:
            fd, mean = heldout_fd(average.module), np.mean(losses[-curve_every:])
            if is_main():
                with open(curve, "a", encoding="utf-8") as file:
                    file.write(f"{i},{mean:.5f},{fd:.4f},{time.perf_counter() - started:.0f}\n")
                notes = {"iteration": str(i), "seed": str(settings.seed)}
                save_model(average.module, out / "base.safetensors", **notes)


def heldout_distance(extractor: str, images: int, seed: int) -> Callable[[SiT], float]:
    """A function: model → FD between `images` of its samples (fixed noise, balanced labels) and held-out images."""
    net = load_fashion_net(extractor)

    def features(part: torch.Tensor) -> torch.Tensor:
        return net.features(to_float(part))

    heldout = load_embedded("heldout").images
    judge = heldout_judge(features, heldout, FASHION_SIT.image_shape, NUM_CLASSES, to_uint8, images, seed)
    return lambda model: judge(model)[0]


@torch.no_grad()
def _classify(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([net(part).argmax(1) for part in x.split(500)])


def load_split(source: Path | None, split: str) -> ImageSet:
    """A split of the official files in `source`, or of the embedded images."""
    if source is None:
        return load_embedded(split)
    require_paths([("--source", source)])
    with reading("--source", source):
        return load_official(source, split)


def make_folder(out: Path) -> None:
    """Make the folder --out; OSError that names it if this fails."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--out {out} cannot be written ({error.strerror}); choose another folder") from None
