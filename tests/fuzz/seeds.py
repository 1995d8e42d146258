"""Good files of every kind, which mutations begin with, beside the hostile ones of the corpus.

A kind is an ending, such as .npz, or the name of a file that one reader alone takes, such as card.json.
"""

import gzip
import hashlib
import io
import json
import pickle
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from fastfid.features.small_networks import SmallNet, SmallNetConfig
from sit_rl.config import Config
from sit_rl.models.sit import SiT, SiTConfig

CORPUS = Path(__file__).parent / "corpus"
ROOT = Path(__file__).parents[2]
RESULTS, STUDIES = ROOT / "bench" / "results" / "fashion", ROOT / "docs" / "studies"
PILLOW = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF", ".ppm": "PPM"}
SUM = "0" * 64  # in the place of a SHA-256


def ending_of(kind):
    """The ending of a kind's files."""
    return kind if kind.startswith(".") else f".{kind.rpartition('.')[2]}"


def kind_of(name, kinds):
    """The kind of a file of the corpus: the first word of its name with its ending, or its ending alone."""
    named = f"{name.partition('-')[0]}{Path(name).suffix}"
    return named if named in kinds else Path(name).suffix


@cache
def seeds(kind):
    """Small whole files of a kind, and the hostile ones of the corpus that have its ending."""
    return [*whole(kind), *(path.read_bytes() for path in sorted(CORPUS.glob(f"*{ending_of(kind)}")))]


def whole(kind):
    """Whole files of a kind."""
    values = objects(kind)
    if kind.endswith(".json"):
        return [json.dumps(value, indent=2).encode() for value in values]
    if kind.endswith(".jsonl"):
        return [b"".join(json.dumps(line).encode() + b"\n" for line in lines) for lines in values]
    if kind.endswith(".yaml"):
        return [*(json.dumps(value).encode() for value in values), *_yaml(kind)]
    if kind == ".pt":
        return [torch_file(value, zipped) for value in values for zipped in (True, False)]
    if kind == ".npz":
        return [npz(bool(i % 2), **arrays) for i, arrays in enumerate(values)]
    if kind.endswith(".npy"):
        return [npy(array) for array in values]
    if kind == ".pkl":
        return [pickle.dumps(held, protocol=protocol) for protocol in (0, 2, 4, 5) for held in values]
    if kind in PILLOW:
        return [encoded(PILLOW[kind]), encoded(PILLOW[kind], 1)]
    return BYTES_OF[kind]()


# --- values, which files of several forms hold ---------------------------------------------------------------------


@cache
def objects(kind):
    """What the whole files of a kind hold, where it is made of values."""
    return VALUES_OF[kind]() if kind in VALUES_OF else []


def _npz():
    mu, sigma, x, pixels = _arrays()
    return [
        {
            "mu": mu,
            "sigma": sigma,
            "count": np.int64(9),
            "provenance": np.array(json.dumps({"extractor": "fashion-a"})),
        },
        {"mu": mu.astype(">f4"), "sigma": sigma, "features": x, "mu_s": mu, "sigma_s": sigma},
        {"features": x},
        {"reps": x, "model": np.array("dinov2")},
        {"arr_0": pixels, "arr_1": np.arange(4)},
        {"images": pixels / 255, "labels": np.array(list("abca"))},
        {"features": np.zeros((4, 6), np.float32), "image_shape": np.array([3, 8, 8])},
    ]


def _npy():
    _, _, x, pixels = _arrays()
    return [x, np.asfortranarray(x.astype(">f8")), pixels, np.array(["a", "b"])]


def _arrays():
    rng = np.random.default_rng(0)
    mu, sigma, x = rng.normal(size=3), np.eye(3), rng.normal(size=(5, 3)).astype(np.float32)
    return mu, sigma, x, rng.integers(0, 256, (4, 5, 6, 3), np.uint8)


def _pkl():
    mu, sigma, *_ = _arrays()
    one = {"num_images": np.int64(9), "fid": {"mu": mu, "sigma": sigma}}
    return [one, {**one, "fd_dinov2": {"mu": mu, "sigma": sigma}}]


def _pt():
    mu, sigma, x, pixels = (torch.from_numpy(array) for array in _arrays())
    state = {
        "networks": {"flat": {}}, "real": {"flat": SUM}, "units": {"flat": 0.5}, "rows": {"flat": torch.zeros(4, 6)},
        "keys": torch.arange(4), "ages": torch.arange(4), "texts": ["a cat"],
    }  # fmt: skip
    given = {"images": pixels, "labels": ["a", "b", "a", "b"]}
    return [x, {"mu": mu, "sigma": sigma}, {"ema": tiny_state()}, state, given, {"images": list(pixels / 255.0)}]


def tiny_state():
    """State of a SiT of some hundred weights."""
    return SiT(TINY).state_dict()


TINY = SiTConfig(image_size=8, patch_size=4, channels=3, width=8, depth=1, heads=2, num_classes=2)


def _summaries():
    return [json.loads((RESULTS / "advantage_matching-0.json").read_text())]


def _card():
    record, shape = {"count": 9, "sha256": SUM}, [3, 8, 8]
    split = {"by": "0.2", "heldout_source": None, "heldout": ["a/0.png"], "left_out": [], "near_duplicates": "none"}
    card = {
        "schema": "sit_rl.model/1", "image_shape": shape, "sample_shape": shape, "classes": ["a", "b"],
        "labelled": True, "crop": "pad", "vae": None, "vae_sha256": None, "images": "images",
        "networks": {"reward": "reward.safetensors", "judge": "judge.safetensors"}, "train": record,
        "heldout": record, "split": split, "training": {"seed": 0},
    }  # fmt: skip
    return [card, {**card, "vae": "/vae", "vae_sha256": SUM, "sample_shape": [4, 8, 8]}]


def _evaluation():
    networks = {name: {"rewarded": name == "a", "fd": 1.5, "recall": 0.5, "coverage": 0.9} for name in "ab"}
    metrics, config = {"fd": 1.5, "fd_b": 0.5, "networks": networks}, Config().to_dict()
    return [{"ode": metrics, "sde": metrics, "config": config}, {"ode": {"fd": 1.5}, "sde": None, "config": config}]


def _pipelines():
    return [{"_class_name": "SanaPipeline", "vae": ["diffusers", "AutoencoderDC"]}]


def _transformers():
    own = {"patch_size": 1, "in_channels": 4, "sample_size": 8, "num_layers": 2, "attention_head_dim": 4}
    return [{**own, "caption_channels": 8, "num_attention_heads": 2, "encoder_block_out_channels": [8, 8]}]


VALUES_OF = {
    ".npz": _npz,
    ".npy": _npy,
    "labels.npy": lambda: [np.arange(2), np.array(["a", "b"]), np.array([1.0, 2.0])],
    "before_ode.npy": lambda: [np.zeros((3, 1, 4, 4), np.uint8)],
    ".pkl": _pkl,
    ".pt": _pt,
    "summary.json": _summaries,
    "card.json": _card,
    "state.json": lambda: [{"step": 3, "config": {}, "seconds": {"total": 1.5}}],
    "sampling.json": lambda: [{"model": {"sha256": SUM}, "images": 3, "image_shape": [3, 8, 8], "runs": []}],
    "evaluation.json": _evaluation,
    "classes.json": lambda: [["cat", "dog"], {"0": "cat", "1": "dog"}],
    "model.index.json": lambda: [{"weight_map": dict.fromkeys(tiny_state(), "part.safetensors")}],
    "model_index.json": _pipelines,
    "config.json": _transformers,
    "metrics.jsonl": lambda: [[{"step": 0, "loss": 1.5}, {"step": 1, "phases": {"a": 2}}]],
    "prompts.jsonl": lambda: [[{"prompt": "a cat"}, {"prompt": "a dog"}], [{"prompt": "a cat", "group": 1}]],
    "config.yaml": lambda: [json.loads(json.dumps(Config().to_dict())), {"seed": 1, "ema_power": [0.1, 0.2]}],
    "study.yaml": lambda: [
        {"seeds": [0, 1], "rows": {"fresh": {"reference": "fresh"}}, "grid": {"lr": [1e-4, 2e-4]}, "match": ["images"]},
        {"evaluate": {"a": {"evaluate_sde": {"steps": 8}}}, "guidance": {"of": ["base"], "scales": [1.1]}},
    ],
}


def _yaml(kind):
    if kind == "study.yaml":
        return [path.read_bytes() for path in sorted(STUDIES.glob("*.yaml"))]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        Config().save(file)
        return [file.read_bytes()]


# --- bytes ---------------------------------------------------------------------------------------------------------


def _tensors():
    return [save(tiny_state(), {"heads": "2", "architecture": "sit"}), save({"a.b": torch.zeros(2, 2)}), _small()]


def _small():
    config = SmallNetConfig(side=8, channels=3, widths=(4,), dim=6, outputs=2, kernel=3, activation="relu")
    state = {name: value.contiguous() for name, value in SmallNet(config).state_dict().items()}
    return save(state, config.to_metadata())


def _zips():
    return [
        zipped({"a/x.png": encoded("PNG"), "b/y.jpg": encoded("JPEG")}),
        zipped({"x.bmp": encoded("BMP")}, True),
    ]


def _tars():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in {"a.png": encoded("PNG"), "a.cls": b"1", "b.png": encoded("PNG"), "b.cls": b"2"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("a.copy.png")
        link.type, link.linkname = tarfile.LNKTYPE, "a.png"
        archive.addfile(link)
    return [file.getvalue()]


BYTES_OF = {
    ".safetensors": _tensors,
    ".zip": _zips,
    ".tar": _tars,
    ".gz": lambda: [gzip.compress(bytes(16) + bytes(range(200)), mtime=0)],
    "sums.txt": lambda: [f"{hashlib.sha256(b'{}').hexdigest()}  state.json\n".encode(), f"{SUM}  a.pt\n".encode()],
    "classes.txt": lambda: [b"cat\ndog\n"],
}


def npz(compressed=False, **arrays):
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def torch_file(content, zipped=True):
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def encoded(form, channels=3):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(file, form)
    return file.getvalue()


def zipped(members, deflate=False):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, archive.compression)
    return file.getvalue()
