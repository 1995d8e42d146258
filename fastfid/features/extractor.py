"""Images → features: extractors, each carrying its name, its preprocessing and the hash of its weights.

A distance is only meaningful together with the network that produced the features, so an extractor is never a bare
callable: it knows its `name`, its `dim`, a sentence of `preprocessing` and `weights_sha256`, and these travel into
saved statistics and reports.  A distance in the features of `fashion-a` is written "FD (fashion-a)", never "FID".

Legend: n images, C channels, H×W pixels, d feature dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfid.features.names import FASHION_NETS
from fastfid.runtime.devices import full_float32
from fastfid.runtime.hashes import file_sha256, state_sha256

ASSETS = Path(__file__).parents[1] / "assets"
FASHION_SIZE = 28  # side of a Fashion-MNIST image, pixels
HALF_RANGE = 127.5  # uint8 x → x / 127.5 − 1 maps 0…255 onto −1…1

# Mean and deviation of RGB on [0, 1]: ImageNet's, as torchvision and DINOv2 use them, and those of CLIP's training set.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# The TensorFlow Inception of 2015-12-05 ported to PyTorch; its file name carries this beginning of its SHA-256.
INCEPTION_SHA256 = "6726825d"
INCEPTION_DIM = 2048  # width of its last pooling layer

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


# --- the embedded networks ---------------------------------------------------------------------------------------


class FashionNet(nn.Module):
    """Small classifier of 28×28 grey images whose penultimate activations [n, feature_dim] serve as features.

    Three stages of convolution, batch normalisation and activation, each halving the resolution (28 → 14 → 7 → 3 or 4),
    then a global average and one linear layer with activation (the features); `head` exists for training only.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (32, 64, 128),
        feature_dim: int = 128,
        num_classes: int = 10,
        kernel_size: int = 3,
        activation: str = "relu",
        downsample: str = "stride",
    ):
        super().__init__()
        widths = (1, *channels)
        self.stages = nn.Sequential(
            *(
                _stage(c_in, c_out, kernel_size, activation, downsample)
                for c_in, c_out in zip(widths[:-1], widths[1:], strict=True)
            )
        )
        self.embed = nn.Sequential(nn.Linear(channels[-1], feature_dim), ACTIVATIONS[activation]())
        self.head = nn.Linear(feature_dim, num_classes)
        # Channels-last is what the CPU convolutions prefer: 1.4–1.5× the images per second of the default layout.
        self.to(memory_format=torch.channels_last)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate activations, float32 [n, feature_dim], of images x, float32 [n, 1, 28, 28] in [−1, 1]."""
        return self.embed(self.stages(x).mean(dim=(2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        """Class logits, float32 [n, num_classes], of images x, float32 [n, 1, 28, 28] in [−1, 1]."""
        return self.head(self.features(x))


def _stage(c_in: int, c_out: int, kernel_size: int, activation: str, downsample: str) -> nn.Sequential:
    """One convolution stage that halves the resolution."""
    stride = 2 if downsample == "stride" else 1
    convolution = nn.Conv2d(c_in, c_out, kernel_size, stride, padding=kernel_size // 2, bias=False)
    # The mean comes straight after the convolution, where it commutes with the affine part of the normalisation
    # and leaves it and the activation a quarter of the pixels.
    pool = [nn.AvgPool2d(2)] if downsample == "avgpool" else []
    return nn.Sequential(convolution, *pool, nn.BatchNorm2d(c_out), ACTIVATIONS[activation]())


def build_fashion_net(name: str, num_classes: int = 10) -> FashionNet:
    """Untrained FashionNet of the shape that `FASHION_NETS[name]` describes; ValueError for an unknown name."""
    if name not in FASHION_NETS:
        raise ValueError(f"unknown fashion network {name!r}; choose one of {', '.join(FASHION_NETS)}")
    return FashionNet(num_classes=num_classes, **asdict(FASHION_NETS[name]))


def load_fashion_net(name: str, path: str | Path | None = None) -> FashionNet:
    """Trained FashionNet `name` in evaluation mode, frozen; weights from `path` or the embedded asset.

    ValueError for an unknown name; FileNotFoundError, naming the command that trains them, for missing weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    net, weights = build_fashion_net(name), _fashion_weights(name, path)
    try:
        net.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as unfit:
        reason = str(unfit).splitlines()[0]
        raise ValueError(f"{weights} does not hold the weights of {name} ({reason}); pass the right file") from None
    return net.eval().requires_grad_(False)


def _fashion_weights(name: str, path: str | Path | None) -> Path:
    weights = Path(path) if path is not None else ASSETS / f"{name}.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(
            f"the weights of {name} are missing ({weights}); train them with `python -m sit_rl.pretrain features`"
        )
    return weights


def prepare_fashion_images(images: Tensor) -> Tensor:
    """uint8 [n, 1 or 3, H, W] → float32 [n, 1, 28, 28] in [−1, 1].

    Three channels are averaged to grey; another size is resized by antialiased bilinear interpolation (pixel centres
    at half-integers, no rounding back to uint8).
    """
    x = images.to(torch.float32)
    if x.shape[1] == 3:
        x = x.mean(dim=1, keepdim=True)
    if x.shape[2:] != (FASHION_SIZE, FASHION_SIZE):
        size = (FASHION_SIZE, FASHION_SIZE)
        x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
    return x / HALF_RANGE - 1


# --- what a network is fed ---------------------------------------------------------------------------------------


def standardised(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(x − mean)/std by channel, for x [n, 1 or 3, H, W] on [0, 1]; a grey image gets three channels."""
    mean, std = (x.new_tensor(v)[:, None, None] for v in (mean, std))
    return (x - mean) / std


VALUE_RANGES = {  # name: (what happens to floats of 0…255, the words for it)
    "-1..1": (lambda x: x / HALF_RANGE - 1, "x / 127.5 - 1"),
    "0..1": (lambda x: x / 255, "x / 255"),
    "0..255": (lambda x: x, "values 0 to 255"),
    "imagenet": (lambda x: standardised(x / 255, IMAGENET_MEAN, IMAGENET_STD), "x / 255, ImageNet mean and std"),
    "clip": (lambda x: standardised(x / 255, CLIP_MEAN, CLIP_STD), "x / 255, CLIP mean and std"),
}


def preparation(
    side: int | None = None, value_range: str = "-1..1", rgb: bool = False
) -> tuple[Callable[[Tensor], Tensor], str]:
    """Function uint8 [n, 1 or 3, H, W] → float32 [n, C, side, side], and the sentence that says what it does.

    side         None      pixels, antialiased bilinear; None leaves the images as large as they are
    value_range  "-1..1"   a name of VALUE_RANGES
    rgb          False     repeat a grey channel three times

    ValueError for a side that is no positive integer or an unknown range.
    """
    if side is not None and (not isinstance(side, int) or side < 1):
        raise ValueError(f"side is {side!r}; pass the pixels a side the network expects, or None for no resizing")
    if value_range not in VALUE_RANGES:
        raise ValueError(f"unknown value range {value_range!r}; choose one of {', '.join(VALUE_RANGES)}")
    scale, words = VALUE_RANGES[value_range]
    resized = f"antialiased bilinear to {side}x{side}" if side else "no resizing"

    def prepare(images: Tensor) -> Tensor:
        x = (_to_rgb(images) if rgb else images).to(torch.float32)
        if side is not None and x.shape[-2:] != (side, side):
            x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
        return scale(x)

    return prepare, f"{'grey repeated to RGB, ' if rgb else ''}{resized}, {words}"


# --- extractors --------------------------------------------------------------------------------------------------


class FeatureExtractor:
    """Maps uint8 images [n, C, H, W] to float32 features [n, d], and says how: name, dim, preprocessing, weights hash.

    network         callable, prepared images → features [n, d]
    prepare         callable, uint8 [n, 1 or 3, H, W] → whatever `network` takes
    name            str, printed beside every distance
    dim             int, d
    preprocessing   str, one line for reports
    weights_sha256  str, hexadecimal hash of the weights
    device          where the images are sent; the features come back on the same device

    The network computes in float32 even within a caller's autocast, and without TF32.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        prepare: Callable[[Tensor], Tensor],
        *,
        name: str,
        dim: int,
        preprocessing: str,
        weights_sha256: str,
        device: str | torch.device = "cpu",
    ):
        self.network, self.prepare = network, prepare
        self.name, self.dim = name, dim
        self.preprocessing, self.weights_sha256 = preprocessing, weights_sha256
        self.device = torch.device(device)

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        dim: int,
        prepare: Callable[[Tensor], Tensor] | None = None,
        *,
        side: int | None = None,
        value_range: str = "-1..1",
        name: str | None = None,
        preprocessing: str | None = None,
        device: str | torch.device = "cpu",
    ) -> FeatureExtractor:
        """Wrap any module that returns [n, dim], fed by your `prepare` or by `preparation(side, value_range)`.

        module         moved to `device` and set to evaluation mode; the hash is taken over its state
        prepare        None      function of uint8 [n, 1 or 3, H, W] that does everything before the module
        side           None      pixels, antialiased bilinear; None leaves the images as large as they are
        value_range    "-1..1"   a name of VALUE_RANGES
        name           None      printed beside every distance; the class's name unless given
        preprocessing  None      the sentence for reports; give it with `prepare`

        ValueError for a bad side or range, or for one beside `prepare`, which would have no effect.
        """
        if prepare is not None and (side is not None or value_range != "-1..1"):
            raise ValueError("side and value_range describe the preparation that prepare replaces; pass one of them")
        device = _usable_device(device)
        plain, sentence = preparation(side, value_range)
        return cls(
            module.to(device).eval(),
            prepare or plain,
            name=name or type(module).__name__,
            dim=dim,
            preprocessing=preprocessing or ("custom" if prepare else sentence),
            weights_sha256=state_sha256(module),
            device=device,
        )

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Features, float32 [n, d], of images, uint8 [n, 1 or 3, H, W]; ValueError for another type or shape."""
        _check_images(images)
        if len(images) == 0:
            return torch.empty(0, self.dim, device=self.device)
        with full_float32(self.device):
            features = self.network(self.prepare(images.to(self.device)))
        if features.shape != (len(images), self.dim):
            raise ValueError(
                f"{self.name} returned shape {tuple(features.shape)} for {len(images)} images; "
                f"it must return ({len(images)}, {self.dim}): pool its maps and pass the right dim"
            )
        return features.to(torch.float32)

    def __repr__(self) -> str:
        return f"FeatureExtractor({self.name!r}, dim={self.dim}, weights_sha256={self.weights_sha256[:12]}…)"


def feature_extractor(
    name: str, weights: str | Path | None = None, device: str | torch.device = "cpu"
) -> FeatureExtractor:
    """Extractor called `name`, of fastfid.features.names.NETWORK_NAMES, its weights from the file `weights` if given.

    ValueError for an unknown name, an unusable device or a file of the wrong hash, FileNotFoundError for missing
    weights, ImportError naming the extra to install where a package is missing.
    """
    device = _usable_device(device)
    if name in FASHION_NETS:
        return _fashion_extractor(name, weights, device)
    from fastfid.features.registry import build_extractor  # which builds on this file

    return build_extractor(name, weights=weights, device=device)


def _usable_device(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as unusable:  # AssertionError: torch built without that backend
        reason = str(unusable).splitlines()[0]
        raise ValueError(
            f"the device {device} cannot be used here ({reason}); pass device='cpu' (--device cpu)"
        ) from None


def _fashion_extractor(name: str, weights: str | Path | None, device: str | torch.device) -> FeatureExtractor:
    net = load_fashion_net(name, weights).to(device)
    return FeatureExtractor(
        net.features,
        prepare_fashion_images,
        name=name,
        dim=FASHION_NETS[name].feature_dim,
        preprocessing="mean over channels, antialiased bilinear to 28x28, x / 127.5 - 1",
        weights_sha256=file_sha256(_fashion_weights(name, weights)),
        device=device,
    )


def load_inception(weights: str | Path | None, device: str | torch.device) -> tuple[nn.Module, str]:
    """torch-fidelity's Inception on `device`, from `weights` or its own download, and the SHA-256 of its weights.

    ImportError naming the extra without torch-fidelity, FileNotFoundError for missing weights, ValueError for others.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    except ImportError as missing:
        raise ImportError(
            "the inception network comes from torch-fidelity: pip install 'fastfid[inception]'"
        ) from missing
    if weights is None:
        weights = _download(URL_INCEPTION_V3)
    digest = _checked_sha256(weights, INCEPTION_SHA256)  # before the file is opened: it is a pickle
    layer = str(INCEPTION_DIM)
    network = FeatureExtractorInceptionV3("inception", [layer], feature_extractor_weights_path=str(weights))
    return network.to(device), digest


def _download(url: str) -> Path:
    """Local copy of `url` in torch's hub cache, fetched once."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not cached.is_file():
        cached.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(cached), hash_prefix=INCEPTION_SHA256)
        except OSError as failed:
            raise FileNotFoundError(
                f"the inception weights could not be downloaded ({failed}); fetch {url} elsewhere and "
                "pass its path as weights (--weights)"
            ) from failed
    return cached


def _checked_sha256(path: str | Path, expected: str) -> str:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights file at {path}; pass the path of the downloaded weights")
    digest = file_sha256(path)
    if not digest.startswith(expected):
        raise ValueError(f"{path} has SHA-256 {digest[:8]}…, not {expected}…: download the weights again")
    return digest


def _to_rgb(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1).contiguous()


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"an extractor takes uint8 tensors, got {kind}; fastfid.images.open.open_images converts")
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"an extractor takes images [n, 1 or 3, H, W], got shape {tuple(images.shape)}")


# --- hashes ------------------------------------------------------------------------------------------------------
