"""Feature networks from TorchScript files."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl

import torch
from torch import Tensor

from fastfid.features.extractor import FeatureExtractor, usable_device
from fastfid.features.preparation import preparation
from fastfid.runtime.errors import first_line, shown
from fastfid.runtime.hashes import file_sha256
from fastfid.runtime.input_files import file_bytes

TORCHSCRIPT = "torchscript:"  # prefix of a name whose rest is a file; the file's code may run

PROBE_SIDE = 224  # pixels of the black image that finds d if no side is stated


def torchscript_extractor(
    path: str | Path,
    *,
    side: int | None = None,
    value_range: str = "-1..1",
    name: str | None = None,
    device: str | torch.device = "cpu",
) -> FeatureExtractor:
    """Extractor of a TorchScript file whose forward maps float32 [n, 3, H, W] to [n, d].

    A TorchScript file can run code when it is loaded: open only files you trust.

    side         None      pixels, antialiased bilinear; None leaves the images as large as they are
    value_range  "-1..1"   the range that the network expects, a name in fastfid.features.preparation.VALUE_RANGES
    name         None      printed beside every distance; "torchscript:FILE" unless given

    FileNotFoundError for a missing file; ValueError for one that is no TorchScript, fails, or returns another shape.
    """
    path, device = Path(path), usable_device(device)
    prepare, sentence = preparation(side, value_range, rgb=True)
    if not path.exists():
        raise FileNotFoundError(f"no TorchScript file at {path}; pass the path of a module saved by torch.jit.save")
    file_bytes(path)
    network = load_torchscript(path, device)
    return FeatureExtractor(
        network,
        prepare,
        name=name or f"{TORCHSCRIPT}{path.name}",
        dim=_probed_dim(path, network, prepare, side or PROBE_SIDE, device),
        preprocessing=sentence,
        weights_sha256=file_sha256(path),
        device=device,
    )


def named_torchscript(name: str, device: str | torch.device) -> FeatureExtractor:
    """The extractor that "torchscript:PATH?side=S&range=R" names; both options may be left out."""
    path, _, query = name.removeprefix(TORCHSCRIPT).partition("?")
    try:
        options = dict(parse_qsl(query, strict_parsing=True)) if query else {}
        side = int(options.pop("side")) if "side" in options else None
        value_range = options.pop("range", "-1..1")
    except ValueError:
        options = {"": query}
    if options:
        raise ValueError(f"{name!r} has other options than ?side=PIXELS&range=NAME; leave {query!r} out")
    return torchscript_extractor(path, side=side, value_range=value_range, device=device)


def load_torchscript(path: str | Path, device: str | torch.device) -> torch.jit.ScriptModule:
    """A TorchScript module in evaluation mode; ValueError for a file that is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer versions of torch deprecate TorchScript
            warnings.simplefilter("ignore", DeprecationWarning)
            module: torch.jit.ScriptModule = torch.jit.load(str(path), map_location=device)
            return module.eval()
    except Exception as unfit:  # damaged files raise nearly anything
        raise ValueError(f"{path} is no TorchScript file ({first_line(unfit)}); save it by torch.jit.save") from None


@torch.inference_mode()
def _probed_dim(
    path: Path,
    network: Callable[[Tensor], object],
    prepare: Callable[[Tensor], Tensor],
    side: int,
    device: torch.device,
) -> int:
    """Feature dimension d of a network, from one black image."""
    black = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device)
    try:
        found = network(prepare(black))
    except Exception as failed:  # its code may raise anything
        reason = shown((str(failed).strip().splitlines() or [type(failed).__name__])[-1])
        raise ValueError(
            f"{path} fails on images [n, 3, {side}, {side}] ({reason}); state the side it expects, ?side=PIXELS"
        ) from None
    if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != 1:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{path} returns {shape} for one image; a feature network returns [n, d]")
    return found.shape[1]
