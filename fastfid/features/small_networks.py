"""Small convolutional networks that were trained on a user's own images, each in one safetensors file.

The file's metadata hold the shape of the network and of its input, so `small:PATH` names a complete feature network.
`python -m sit_rl.pretrain features --images` trains them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfid.features.extractor import FeatureExtractor, usable_device
from fastfid.features.preparation import HALF_RANGE
from fastfid.runtime.errors import one_line
from fastfid.runtime.hashes import file_sha256
from fastfid.runtime.input_files import reading
from fastfid.runtime.tensor_files import read_tensors

SMALL = "small:"  # prefix of a name whose rest is a file
FORMAT = "fastfid.small/1"  # in the metadata; the number grows when a key changes its meaning
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}
LARGEST = {"channels": 3, "side": 1024, "dim": 4096, "outputs": 100_000, "kernel": 11}  # what a file may ask for


@dataclass(frozen=True)
class SmallNetConfig:
    """Shape of a SmallNet.

    channels    of its input, 1 or 3
    side        of its input, pixels
    widths      channels of its stages, each of which halves the resolution
    dim         d, features
    outputs     logits of the head, which serves training only
    kernel      side of the convolutions, odd
    activation  a name of ACTIVATIONS
    """

    channels: int
    side: int
    widths: tuple[int, ...]
    dim: int
    outputs: int
    kernel: int = 3
    activation: str = "relu"

    def to_metadata(self) -> dict[str, str]:
        """Plain text for a file's metadata."""
        values = asdict(self) | {"widths": " ".join(map(str, self.widths))}
        return {"format": FORMAT} | {name: str(value) for name, value in values.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> SmallNetConfig:
        """The shape that a file's metadata state; ValueError if they state none, or one out of bounds."""
        if metadata.get("format") != FORMAT:
            raise ValueError(f"its metadata do not say {FORMAT}")
        missing = [each.name for each in fields(cls) if each.name not in metadata]
        if missing:
            raise ValueError(f"its metadata have no {missing[0]}")
        numbers = {name: int(metadata[name]) for name in LARGEST}
        widths = tuple(int(word) for word in metadata["widths"].split())
        for name, value in (*numbers.items(), *(("dim", width) for width in widths)):
            if not 1 <= value <= LARGEST[name]:
                raise ValueError(f"its {name} is {value}")
        if not 1 <= len(widths) <= 8 or metadata["activation"] not in ACTIVATIONS:
            raise ValueError(f"its widths are {metadata['widths']!r}, its activation is {metadata['activation']!r}")
        return cls(widths=widths, activation=metadata["activation"], **numbers)


class SmallNet(nn.Module):
    """Stages of strided convolution, batch normalisation and activation; a mean over positions; one layer; a head."""

    def __init__(self, config: SmallNetConfig):
        super().__init__()
        self.config = config
        widths, act = (config.channels, *config.widths), ACTIVATIONS[config.activation]
        stages = [
            nn.Sequential(
                nn.Conv2d(before, after, config.kernel, stride=2, padding=config.kernel // 2, bias=False),
                nn.BatchNorm2d(after),
                act(),
            )
            for before, after in zip(widths[:-1], widths[1:], strict=True)
        ]
        self.stages = nn.Sequential(*stages)
        self.embed = nn.Sequential(nn.Linear(widths[-1], config.dim), act())
        self.head = nn.Linear(config.dim, config.outputs)
        # Convolutions on a CPU are faster in channels-last (see FashionNet).
        self.to(memory_format=torch.channels_last)

    def features(self, x: Tensor) -> Tensor:
        """Activations before the head, float32 [n, dim], of images x, float32 [n, channels, side, side] in [−1, 1]."""
        embedded: Tensor = self.embed(self.stages(x).mean(dim=(2, 3)))
        return embedded

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of the head, float32 [n, outputs]; input as for `features`."""
        out: Tensor = self.head(self.features(x))
        return out


def load_small_net(path: str | Path) -> SmallNet:
    """A trained SmallNet in evaluation mode, frozen; FileNotFoundError or ValueError for any other file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; train small networks by `python -m sit_rl.pretrain features --images FOLDER`"
        )
    with reading(path, "train it again", "as a small network"):
        state, metadata = read_tensors(path)
        try:
            net = SmallNet(SmallNetConfig.from_metadata(metadata))
            net.load_state_dict(state)
        except Exception as unfit:  # torch may raise anything for a wrong state
            reason = one_line(unfit)
            raise ValueError(
                f"{path} is not a small network of sit_rl.pretrain features ({reason}); pass another file"
            ) from None
    return net.eval().requires_grad_(False)


def prepare_small(images: Tensor, channels: int, side: int) -> Tensor:
    """uint8 [n, 1 or 3, H, W] → float32 [n, channels, side, side] in [−1, 1].

    Three channels become grey by their mean, grey becomes three equal channels; another size is resized by antialiased
    bilinear interpolation.
    """
    x = images.to(torch.float32)
    if x.shape[1] != channels:
        x = x.mean(dim=1, keepdim=True) if channels == 1 else x.expand(-1, channels, -1, -1)
    if x.shape[2:] != (side, side):
        x = F.interpolate(x, (side, side), mode="bilinear", align_corners=False, antialias=True)
    return x / HALF_RANGE - 1


def named_small(name: str, device: str | torch.device) -> FeatureExtractor:
    """The extractor that "small:PATH" names."""
    path, device = Path(name.removeprefix(SMALL)), usable_device(device)
    net = load_small_net(path).to(device)
    config = net.config
    colours = "mean over channels" if config.channels == 1 else "grey as three equal channels"
    return FeatureExtractor(
        net.features,
        partial(prepare_small, channels=config.channels, side=config.side),
        name=f"{SMALL}{path.stem}",
        dim=config.dim,
        preprocessing=f"{colours}, antialiased bilinear to {config.side}x{config.side}, x / 127.5 - 1",
        weights_sha256=file_sha256(path),
        device=device,
    )
