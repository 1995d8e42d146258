"""Training of the embedded feature networks.

Each network has a shape (fastfid/features/names.py), a seed, and changes of its training images of its own, so that
what one of them overlooks another may see.  Five are classifiers.  fashion-f learns the largest principal components of
EfficientNet-Lite0's features: with it, a reward sees some of what an ImageNet network sees at a hundredth of the cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from fastfid import FeatureExtractor, feature_extractor
from fastfid.features.fashion import FashionNet, build_fashion_net
from fastfid.features.names import FASHION_NETS
from sit_rl.components.image_sets import ImageSet
from sit_rl.models.pixels import to_float
from sit_rl.pretraining.flow import batches
from sit_rl.ranks.cpu_batches import map_batches

Change = Callable[[torch.Tensor, np.random.Generator], torch.Tensor]  # of images float32 [n, 1, 28, 28] in [−1, 1]
BLACK = -1.0
SHIFT = 2  # pixels; the garments of Fashion-MNIST nearly fill their images
ERASED = 8  # side of an erased square, pixels
NOISE = 0.1  # standard deviation, of a range of 2

TEACHER_BATCH = 125  # images
TEACHER_EVERY = 5  # the teacher sees each fifth held-out image, enough for a percentage: it takes 24 ms an image


def mirrored(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Each image mirrored or not."""
    flipped = torch.from_numpy(rng.random(len(x)) < 0.5)
    return torch.where(flipped[:, None, None, None], x.flip(-1), x)


def shifted(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Each image mirrored or not, and moved by at most SHIFT pixels."""
    wide = F.pad(mirrored(x, rng), (SHIFT,) * 4, value=BLACK)
    down, right = torch.from_numpy(rng.integers(0, 2 * SHIFT + 1, (2, len(x))))
    rows, columns = torch.arange(x.shape[2]) + down[:, None], torch.arange(x.shape[3]) + right[:, None]
    return wide[torch.arange(len(x))[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def erased(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Each image without a square of ERASED pixels a side."""
    top, left = torch.from_numpy(rng.integers(0, x.shape[-1] - ERASED + 1, (2, len(x))))
    place = torch.arange(x.shape[-1])
    rows = (place >= top[:, None]) & (place < top[:, None] + ERASED)
    columns = (place >= left[:, None]) & (place < left[:, None] + ERASED)
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], BLACK)


def noisy(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Each image mirrored or not, with Gaussian noise."""
    noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
    return mirrored(x, rng) + NOISE * noise


@dataclass(frozen=True)
class Training:
    """How a network is trained: its seed, the change of its images, and label smoothing."""

    seed: int
    change: Change
    smoothing: float = 0.0


TRAININGS = {
    "fashion-a": Training(0, mirrored),
    "fashion-b": Training(1, mirrored),
    "fashion-c": Training(2, shifted, smoothing=0.1),
    "fashion-d": Training(3, erased),
    "fashion-e": Training(4, noisy),
    # The teacher's features of a mirrored image are nearly those of the image itself: it was trained on mirrored ones.
    "fashion-f": Training(5, mirrored),
}


@dataclass(frozen=True)
class Schedule:
    """Passes over the images, images of a batch, and the peak of the one-cycle learning rate."""

    passes: int
    batch: int
    lr: float


def train_network(
    name: str, train: ImageSet, heldout: ImageSet, schedule: Schedule
) -> tuple[FashionNet, dict[str, str]]:
    """The trained network and what its file says of it; ImportError without the packages of fashion-f's teacher."""
    training = TRAININGS[name]
    torch.manual_seed(training.seed)
    net = build_fashion_net(name)
    about = {"train_images": str(len(train)), "passes": str(schedule.passes), "seed": str(training.seed)}
    teacher_name = FASHION_NETS[name].teacher
    if teacher_name is None:
        fit(net, train, train.labels, _cross_entropy(training.smoothing), training, schedule, name)
        return net, {"heldout_accuracy": f"{_accuracy(net, heldout):.4f}"} | about
    teacher = feature_extractor(teacher_name)
    targets = Targets.of(_features(teacher, train), FASHION_NETS[name].feature_dim)
    fit(net, train, targets.train, F.mse_loss, training, schedule, name)
    some = ImageSet(heldout.images[::TEACHER_EVERY], heldout.labels[::TEACHER_EVERY])
    part = targets.explained(_features(teacher, some), _outputs(net, some))
    return net, {"heldout_variance_explained": f"{part:.4f}", "teacher": teacher_name} | about


def fit(
    net: nn.Module,
    data: ImageSet,
    targets: torch.Tensor,
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    training: Training,
    schedule: Schedule,
    name: str,
) -> None:
    """AdamW with a one-cycle learning rate on changed images; `targets` [n] or [n, d] belong to the images."""
    steps = schedule.passes * (len(data) // schedule.batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=schedule.lr, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, schedule.lr, steps)
    net.train()
    shuffled = batches(len(data), schedule.batch, steps, training.seed)
    for rows, rng in tqdm(shuffled, total=steps, desc=f"train {name}"):
        x = training.change(to_float(data.images[rows]), rng)
        loss = loss_of(net(x), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    net.eval()


@dataclass(frozen=True)
class Targets:
    """Principal components of a teacher's features, in units of the standard deviation of all features together.

    mean   float64 [D]
    basis  float64 [D, d], orthogonal columns divided by that unit
    train  float32 [n, d], of the training images
    """

    mean: torch.Tensor
    basis: torch.Tensor
    train: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor, dim: int) -> Targets:
        """The `dim` largest components of features [n, D]."""
        x = features.double()
        mean = x.mean(0)
        values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / (len(x) - 1))
        basis = vectors[:, -dim:].flip(1) / values.mean().sqrt()
        return cls(mean, basis, ((x - mean) @ basis).float())

    def explained(self, features: torch.Tensor, predicted: torch.Tensor) -> float:
        """Part of the variance of the components of features [n, D] that `predicted` [n, d] explains."""
        wanted = (features.double() - self.mean) @ self.basis
        return 1 - ((wanted - predicted).square().sum() / (wanted - wanted.mean(0)).square().sum()).item()


def _cross_entropy(smoothing: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=smoothing)


def _features(teacher: FeatureExtractor, data: ImageSet) -> torch.Tensor:
    parts = data.images.split(TEACHER_BATCH)
    made = map_batches(teacher, parts, teacher.device)
    return torch.cat(list(tqdm(made, total=len(parts), desc=f"features of {teacher.name}")))


@torch.no_grad()
def _outputs(net: nn.Module, data: ImageSet) -> torch.Tensor:
    return torch.cat([net(part) for part in data.as_float().split(500)])


def _accuracy(net: nn.Module, data: ImageSet) -> float:
    return (_outputs(net, data).argmax(1) == data.labels).float().mean().item()
