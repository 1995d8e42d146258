"""The embedded assets: image subsets, feature networks and the base generator of Fashion-MNIST."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fastfid.features.fashion import load_fashion_net
from fastfid.features.names import FASHION_NETS
from sit_rl.components.image_sets import (
    FASHION_SIT,
    NUM_CLASSES,
    ImageSet,
    balanced_subset,
    load_embedded,
    load_official,
)
from sit_rl.files.atomic import writing
from sit_rl.files.paths import reading, require_paths
from sit_rl.files.tensor_files import write_safetensors
from sit_rl.models.averages import EMA
from sit_rl.models.loading import save_model
from sit_rl.models.pixels import to_float, to_uint8
from sit_rl.models.sit import SiT
from sit_rl.pretraining.feature_networks import Schedule, train_network
from sit_rl.pretraining.flow import FlowData, FlowSettings, fit, heldout_judge, optimizer_of
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


def train_fashion_nets(source: Path | None, out: Path, networks: tuple[str, ...], schedule: Schedule) -> None:
    """Write NAME.safetensors of each network, with what it achieves on held-out images."""
    unknown = [name for name in networks if name not in FASHION_NETS]
    if unknown:
        raise ValueError(f"--networks {unknown[0]} is not embedded; choose of {', '.join(FASHION_NETS)}")
    make_folder(out)
    train, heldout = load_split(source, "train"), load_embedded("heldout")
    for name in networks:
        net, about = train_network(name, train, heldout, schedule)
        tensors = {key: value.contiguous() for key, value in net.state_dict().items()}
        write_safetensors(out / f"{name}.safetensors", tensors, about)
        key, value = next(iter(about.items()))
        print(f"{name}: {key.replace('_', ' ')} {float(value):.2%}")


def train_fashion_base(
    source: Path | None, out: Path, settings: FlowSettings, curve_every: int, curve_images: int
) -> None:
    """Write base.safetensors (EMA weights) and base_curve.csv (iteration, loss, held-out FD of the EMA)."""
    make_folder(out)
    train, started = load_split(source, "train"), time.perf_counter()
    heldout_fd = heldout_distance(curve_images, settings.seed)
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


def heldout_distance(images: int, seed: int) -> Callable[[SiT], float]:
    """A function: model → FD (fashion-a) of `images` samples (fixed noise, balanced labels) from held-out images."""
    net = load_fashion_net("fashion-a")

    def features(part: torch.Tensor) -> torch.Tensor:
        return net.features(to_float(part))

    heldout = load_embedded("heldout").images
    judge = heldout_judge(features, heldout, FASHION_SIT.image_shape, NUM_CLASSES, to_uint8, images, seed)
    return lambda model: judge(model)[0]


def load_split(source: Path | None, split: str) -> ImageSet:
    """A split of the official files in `source`, or of the embedded images."""
    if source is None:
        return load_embedded(split)
    require_paths([("--source", source)])
    with reading("--source", source):
        return load_official(source, split)


def make_folder(out: Path) -> None:
    """Make the folder --out; OSError that names it if this fails."""
    with writing("--out", out):
        out.mkdir(parents=True, exist_ok=True)
