"""Real images with labels, embedded in the package or read from Fashion-MNIST's official files.

The embedded subset of Fashion-MNIST (MIT, © 2017 Zalando SE, see NOTICE) has two disjoint parts: `train`, the reward's
real images, from the official training split; `heldout`, the judge's, from the official test split.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fastfid.runtime.even_steps import evenly_spaced
from fastfid.runtime.input_files import check_growth, most_content, reading
from sit_rl.models.pixels import to_float
from sit_rl.models.sit import SiTConfig

ASSETS = Path(__file__).parents[1] / "assets"
NUM_CLASSES = 10
OFFICIAL_NAMES = {"train": "train", "heldout": "t10k"}
# idx files (LeCun et al., MNIST's format): a 16-byte header before images, 8 bytes before labels.
IMAGE_HEADER, LABEL_HEADER = 16, 8
# SiT of 1.3M parameters for 28×28 grey images: patch 7 makes 16 tokens of 49 pixels.
FASHION_SIT = SiTConfig(
    image_size=28, patch_size=7, channels=1, width=128, depth=4, heads=4, num_classes=NUM_CLASSES, learn_sigma=False
)


@dataclass(frozen=True)
class ImageSet:
    """uint8 images [N, C, H, W] and int64 labels [N], which are below `classes`."""

    images: torch.Tensor
    labels: torch.Tensor
    classes: int = NUM_CLASSES

    def __post_init__(self) -> None:
        """ValueError unless there is one valid label for each image."""
        if len(self.labels) != len(self.images):
            raise ValueError(f"{len(self.labels)} labels do not belong to {len(self.images)} images; give one for each")
        check_labels(self.labels, self.classes, "the images' classes")

    def __len__(self) -> int:
        return len(self.images)

    def as_float(self) -> torch.Tensor:
        """float32 in [−1, 1]."""
        return to_float(self.images)


def check_labels(labels: torch.Tensor, classes: int, whose: str) -> None:
    """ValueError naming the first label outside 0 … classes − 1."""
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise ValueError(
            f"label {int(wrong[0])} is out of range: {whose} are numbered 0 to {classes - 1}; correct the labels"
        )


def tile(images: npt.NDArray[np.uint8], columns: int) -> npt.NDArray[np.uint8]:
    """uint8 [n, C, H, W] → one picture [rows·H, columns·W(, 3)]; the last row is filled up with white."""
    n, channels, height, width = images.shape
    columns = min(columns, n)
    blank = np.full((-n % columns, channels, height, width), 255, images.dtype)
    tiled = np.concatenate([images, blank]).reshape(-1, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    picture: npt.NDArray[np.uint8] = tiled.reshape(-1, columns * width, channels)
    return picture[..., 0] if channels == 1 else picture


def load_embedded(split: str) -> ImageSet:
    """The committed balanced subset, `train` or `heldout`."""
    path = ASSETS / f"fashion_mnist_{split}.npz"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.name} is missing from sit_rl/assets; make it with `python -m sit_rl.pretrain images --source DIR`"
        )
    with np.load(path) as arrays:
        return ImageSet(torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]).long())


def load_official(folder: Path, split: str) -> ImageSet:
    """All images of an official split from `folder`, which holds the four *-ubyte.gz files of Fashion-MNIST."""
    stem = folder / OFFICIAL_NAMES[split]
    pixels = _read_idx(Path(f"{stem}-images-idx3-ubyte.gz"), IMAGE_HEADER)
    labels = _read_idx(Path(f"{stem}-labels-idx1-ubyte.gz"), LABEL_HEADER)
    if len(pixels) != len(labels) * 28 * 28:
        raise ValueError(
            f"{stem}-*: {len(pixels)} pixels do not make {len(labels)} images of 28×28; download the files again"
        )
    return ImageSet(torch.from_numpy(pixels.reshape(-1, 1, 28, 28).copy()), torch.from_numpy(labels.astype(np.int64)))


def _read_idx(path: Path, header: int) -> npt.NDArray[np.uint8]:
    """The bytes after the header of a gzipped idx file."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; point --source at a folder with Fashion-MNIST's four .gz files"
        )
    with reading(path, "download it again", "as gzip"), gzip.open(path) as file:
        content = file.read(most_content(path) + 1)
        check_growth(path, len(content))
        return np.frombuffer(content, np.uint8, offset=header)


def balanced_subset(data: ImageSet, count: int) -> ImageSet:
    """The first count/10 images of every class, in their order in the split."""
    if count % NUM_CLASSES:
        raise ValueError(f"count is {count}; a balanced subset needs a multiple of {NUM_CLASSES}")
    rows = torch.cat([torch.nonzero(data.labels == c).flatten()[: count // NUM_CLASSES] for c in range(NUM_CLASSES)])
    if len(rows) < count:
        raise ValueError(f"the split has too few images for a balanced subset of {count}; lower it")
    rows = rows.sort().values
    return ImageSet(data.images[rows], data.labels[rows])


def embedded(split: str, count: int) -> ImageSet:
    """`count` evenly spaced images of an embedded split; 0 means all."""
    whole = load_embedded(split)
    if not count or count >= len(whole.images):
        return whole
    rows = evenly_spaced(len(whole.images), count)
    return ImageSet(whole.images[rows], whole.labels[rows])
