"""Make the embedded assets: image subsets, feature networks and the base generator, in this order.

    python -m sit_rl.pretrain images --source DIR      DIR holds Fashion-MNIST's four *-ubyte.gz files
    python -m sit_rl.pretrain features [--source DIR]  fashion-a (reward) and fashion-b (judge)
    python -m sit_rl.pretrain base [--source DIR]      SiT by flow matching, and the curve of its held-out FD

The last one also runs on several processes: torchrun --nproc-per-node 2 -m sit_rl.pretrain base --source DIR.
Without --source, the last two train on the 10,000 embedded images. The committed files were made with all 60,000.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import nn
from tqdm import tqdm

from fastfid import FeatureMoments
from fastfid.cli.command_line import parse
from fastfid.features.fashion import ASSETS as FEATURE_ASSETS
from fastfid.features.fashion import FashionNet, build_fashion_net, load_fashion_net
from fastfid.features.names import FASHION_NETS
from sit_rl.command_line import run_command
from sit_rl.components.image_sets import (
    ASSETS,
    FASHION_SIT,
    NUM_CLASSES,
    ImageSet,
    balanced_subset,
    load_embedded,
    load_official,
)
from sit_rl.components.real_side import RealSide
from sit_rl.files.paths import reading, require_paths
from sit_rl.files.tensor_files import write_safetensors
from sit_rl.models.averages import EMA
from sit_rl.models.loading import save_model
from sit_rl.models.pixels import to_float, to_uint8
from sit_rl.models.sit import SiT
from sit_rl.ranks.collectives import gather_owned, owned_samples, sum_gradients
from sit_rl.ranks.process_group import is_main, process_group, rank, world_size
from sit_rl.sampling.guidance import bind
from sit_rl.sampling.interpolant import interpolate, target_velocity
from sit_rl.sampling.random_streams import Stream, balanced_labels, generator, sample_normal
from sit_rl.sampling.sampler_config import SamplerConfig
from sit_rl.sampling.solvers import sample
from sit_rl.training import held_out
from sit_rl.training.learning_rate import warmup_cosine

# Label dropout as published for SiT. It trains the null class, which classifier-free guidance needs.
LABEL_DROPOUT = 0.1
# Sampler of the curve, with so many steps that its error is far below the differences in the curve.
CURVE_SAMPLER = SamplerConfig("ode", "heun", 10)
CURVE_BATCH = 125  # images sampled at once


@dataclass
class Images:
    """Take balanced subsets of the official files."""

    source: Path  # folder with the four official .gz files
    out: Path = ASSETS
    train: int = 10_000  # images, from the official training split
    heldout: int = 5_000  # images, from the official test split

    def run(self) -> None:
        """Write fashion_mnist_{train,heldout}.npz."""
        make_folder(self.out)
        for split, count in (("train", self.train), ("heldout", self.heldout)):
            subset = balanced_subset(_load(self.source, split), count)
            path = self.out / f"fashion_mnist_{split}.npz"
            np.savez_compressed(path, images=subset.images.numpy(), labels=subset.labels.numpy().astype(np.uint8))
            print(f"{path}: {count} images, {path.stat().st_size / 1e6:.2f} MB")


@dataclass
class Features:
    """Train the two feature networks as classifiers."""

    source: Path | None = None  # folder with the official files; default: the embedded subset
    out: Path = FEATURE_ASSETS
    passes: int = 6  # over the training images
    batch: int = 128
    lr: float = 2e-3  # peak of a one-cycle schedule

    def run(self) -> None:
        """Write fashion-a.safetensors and fashion-b.safetensors, with their held-out accuracy."""
        make_folder(self.out)
        train, heldout = _load(self.source, "train"), load_embedded("heldout")
        for seed, name in enumerate(FASHION_NETS):
            torch.manual_seed(seed)
            net = build_fashion_net(name)
            self.fit(net, train, seed, name)
            accuracy = (_classify(net, heldout.as_float()) == heldout.labels).float().mean().item()
            metadata = {
                "heldout_accuracy": f"{accuracy:.4f}",
                "train_images": str(len(train)),
                "passes": str(self.passes),
                "seed": str(seed),
            }
            tensors = {key: value.contiguous() for key, value in net.state_dict().items()}
            write_safetensors(self.out / f"{name}.safetensors", tensors, metadata)
            print(f"{name}: held-out accuracy {accuracy:.2%}")

    def fit(self, net: nn.Module, data: ImageSet, seed: int, name: str) -> None:
        """Cross-entropy, AdamW, one-cycle learning rate, images mirrored at random."""
        steps = self.passes * (len(data) // self.batch)
        optimizer = torch.optim.AdamW(net.parameters(), lr=self.lr, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, steps)
        net.train()
        for rows, rng in tqdm(_batches(len(data), self.batch, steps, seed), total=steps, desc=f"train {name}"):
            x = to_float(data.images[rows])
            mirrored = torch.from_numpy(rng.random(len(rows)) < 0.5)
            x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
            loss = F.cross_entropy(net(x), data.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        net.eval()


@dataclass
class Base:
    """Pretrain the base generator by flow matching."""

    source: Path | None = None  # folder with the official files; default: the embedded subset
    out: Path = ASSETS
    iterations: int = 24_000
    batch: int = 64  # after 192,000 images, FD was 8.4 with 64 and 14.1 with 128
    lr: float = 2e-3  # peak; linear warm-up over the first 2%, then cosine to zero
    ema: float = 0.999  # decay per iteration
    seed: int = 0
    curve_every: int = 2_400  # iterations between points of the held-out FD curve
    curve_images: int = 2_500

    def run(self) -> None:
        """Write base.safetensors (EMA weights) and base_curve.csv (iteration, loss, held-out FD of the EMA)."""
        if self.batch % world_size():
            raise ValueError(f"--batch {self.batch} does not divide among {world_size()} processes; use a multiple")
        make_folder(self.out)
        train, started = _load(self.source, "train"), time.perf_counter()
        heldout_fd = heldout_distance("fashion-a", self.curve_images, self.seed)
        torch.manual_seed(self.seed)
        model = SiT(FASHION_SIT)
        average = EMA(model, self.ema)
        curve = self.out / "base_curve.csv"
        if is_main():
            curve.write_text("iteration,loss,heldout_fd_fashion_a,seconds\n", encoding="utf-8")
        losses = []
        for i, loss in self.fit(model, average, train):
            losses.append(loss)
            if i % self.curve_every == 0 or i == self.iterations:
                fd, mean = heldout_fd(average.module), np.mean(losses[-self.curve_every :])
                if is_main():
                    with open(curve, "a", encoding="utf-8") as file:
                        file.write(f"{i},{mean:.5f},{fd:.4f},{time.perf_counter() - started:.0f}\n")
                    self.save(average.module, i)

    def fit(self, model: SiT, average: EMA[SiT], train: ImageSet) -> Iterator[tuple[int, float]]:
        """Train; yields (iteration from 1, loss of this rank's share). The ranks share every batch."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=0.0, fused=True)
        batches = _batches(len(train), self.batch, self.iterations, self.seed)
        bar = tqdm(batches, total=self.iterations, desc="pretrain base", disable=not is_main())
        for i, (rows, rng) in enumerate(bar, start=1):
            for group in optimizer.param_groups:
                group["lr"] = self.lr * warmup_cosine(i / self.iterations)
            loss = flow_matching_loss(model, train, rows, rng)
            optimizer.zero_grad()
            (loss / world_size()).backward()
            sum_gradients(parameters)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            average.update(model, decay=min(self.ema, i / (i + 10)))  # short memory at first
            yield i, loss.item()

    def save(self, model: SiT, iteration: int) -> None:
        """Write base.safetensors, with shape and origin in its metadata."""
        save_model(model, self.out / "base.safetensors", iteration=str(iteration), seed=str(self.seed))


def flow_matching_loss(model: SiT, data: ImageSet, rows: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Mean of |v(x_t, t, y) − (x₁ − ε)|² over this rank's share of a batch.

    t is logit-normal(0, 1) (Esser et al. 2024), and 10% of the labels are null. Both are drawn for the whole batch.
    """
    x1, n, mine = to_float(data.images[rows]), len(rows), slice(rank(), None, world_size())
    noise = torch.from_numpy(rng.standard_normal(x1.shape, dtype=np.float32))
    t = torch.sigmoid(torch.from_numpy(rng.standard_normal(n, dtype=np.float32)))
    dropped = torch.from_numpy(rng.random(n) < LABEL_DROPOUT)
    y = torch.where(dropped, model.config.num_classes, data.labels[rows])
    x1, noise, t, y = x1[mine], noise[mine], t[mine], y[mine]
    error: torch.Tensor = model(interpolate(x1, noise, t), t, y) - target_velocity(x1, noise)
    return error.square().mean()


def heldout_distance(extractor: str, images: int, seed: int) -> Callable[[SiT], float]:
    """A function: model → FD between `images` of its samples (fixed noise, balanced labels) and held-out images."""
    net = load_fashion_net(extractor)
    real = RealSide(FeatureMoments.from_features(_features(net, load_embedded("heldout").images)), None)
    labels, shape = balanced_labels(images, NUM_CLASSES), FASHION_SIT.image_shape
    mine = owned_samples(images, CURVE_BATCH)
    noise, labels = sample_normal(seed, Stream.PRETRAIN, 1, mine, shape), labels[mine.start : mine.stop]

    @torch.no_grad()
    def distance(model: SiT) -> float:
        parts = [
            to_uint8(sample(bind(model, y), z, CURVE_SAMPLER))
            for z, y in zip(noise.split(CURVE_BATCH), labels.split(CURVE_BATCH), strict=True)
        ]
        features = gather_owned(_features(net, torch.cat(parts)), images, CURVE_BATCH)
        return held_out.distance(real, features)

    return distance


@torch.no_grad()
def _features(net: FashionNet, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([net.features(to_float(part)) for part in images.split(500)])


@torch.no_grad()
def _classify(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([net(part).argmax(1) for part in x.split(500)])


def _load(source: Path | None, split: str) -> ImageSet:
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


def _batches(count: int, batch: int, steps: int, seed: int) -> Iterator[tuple[torch.Tensor, np.random.Generator]]:
    """`steps` batches of row numbers, shuffled again in every pass, each with its own random generator."""
    per_pass = count // batch
    for i in range(steps):
        if i % per_pass == 0:
            order = generator(seed, Stream.PRETRAIN, 0, i // per_pass).permutation(count)
        start = i % per_pass * batch
        yield torch.from_numpy(order[start : start + batch]), generator(seed, Stream.PRETRAIN, 2, i)


Command = (
    Annotated[Images, tyro.conf.subcommand("images")]
    | Annotated[Features, tyro.conf.subcommand("features")]
    | Annotated[Base, tyro.conf.subcommand("base")]
)


def main(argv: list[str] | None = None) -> None:
    """Parse and run one of images, features, base. An expected error is one sentence."""

    def work() -> None:
        command: Images | Features | Base = parse(Command, argv, description=__doc__)  # type: ignore[arg-type]  # a union
        with process_group():
            command.run()

    run_command(work)


if __name__ == "__main__":
    main()
