"""Good files of every kind, and what is done to them: bytes, words of formats, parts of archives that stay whole."""

import gzip
import io
import json
import pickle
import re
import struct
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from sit_rl.config import Config
from sit_rl.models.sit import SiT, SiTConfig

CORPUS = Path(__file__).parent / "corpus"
RUN = Path(__file__).parents[2] / "bench" / "results" / "fashion" / "advantage_matching-0.json"
LONGEST = 1 << 20  # bytes of an input
PILLOW = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF", ".ppm": "PPM"}

# Numbers at the edges of what formats and machines count in.
NUMBERS = [
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63,
    2**64 - 1,
]
SIZES = {1: "B", 2: "H", 4: "I", 8: "Q"}
WORDS = {
    ".npy": [
        "'|S0'", "'<U0'", "'|O'", "'<f8'", "'>f4'", "'<f2'", "'<g'", "'<c16'", "'|b1'", "'|V8'", "'<M8[s]'", "'|u1'",
        "('<f8', (1000000000,))", "[('a', '<f8')]", "()", "(-1,)", "(0,)", "(2, 40000)", "(4294967296, 4294967296)",
        "True", "False", "None", "1e400", "(((((", "'", "\\x00", "{", "}", "'shape'", "'descr'", "fortran_order",
    ],
    ".json": [
        "{}", "[]", "null", "true", "1e400", "-1", "NaN", "Infinity", '"x"', "{", "}", "[" * 2000, '{"a":' * 2000,
        "9" * 5000, '"\\ud800"', '"\\u001b[2J"', ":", ",", '"ode"', '"fd"', "0.5",
    ],
    ".yaml": [
        "{", "}", "[" * 500, "&a ", "*a", "!!python/object:os.system ", "? ", ": ", "- ", "null", ".inf", ".nan",
        "0x10",
        "1:1:1", "9" * 400, "2001-01-01", "'", '"\\e"', "<<: ", "|\n", "---\n", "...\n",
        "%YAML 9.9\n", "\t", "~",
    ],
    ".pkl": [
        "N", "}", "]", ")", "(", "t", "0", "2", "R", "b", "s", "u", "a", "e", ".", "\x85", "\x86", "\x87", "\x94",
        "\x8f",
        "r\xff\xff\xff\x0f", "q\x00", "h\x00", "j\x00\x00\x00\x10", "\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
        "\x96\xff\xff\xff\xff\x0f\x00\x00\x00", "\x95\xff\xff\xff\xff\xff\x00\x00\x00", "cos\nsystem\n",
        "I9\n", "F1e400\n",
        "cnumpy\ndtype\n", "ccollections\nOrderedDict\n",
        "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", "B\xff\xff\xff\x7f",
    ],
}  # fmt: skip
WORDS[".jsonl"] = WORDS[".json"]
WORDS[".safetensors"] = [
    *WORDS[".json"],
    '"F8_E4M3"',
    '"I64"',
    '"BOOL"',
    "data_offsets",
    "__metadata__",
    '{"heads":"0"}',
]


# --- good files --------------------------------------------------------------------------------------------------


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


@cache
def seeds(ending):
    """Small whole files of a kind, and the hostile ones of the corpus."""
    return [*whole(ending), *(path.read_bytes() for path in sorted(CORPUS.glob(f"*{ending}")))]


def whole(ending):
    rng = np.random.default_rng(0)
    mu, sigma, x = rng.normal(size=3), np.eye(3), rng.normal(size=(5, 3)).astype(np.float32)
    pixels = rng.integers(0, 256, (4, 5, 6, 3), np.uint8)
    if ending == ".npz":
        return [
            npz(mu=mu, sigma=sigma, count=9, provenance=np.array(json.dumps({"extractor": "fashion-a"}))),
            npz(True, mu=mu.astype(">f4"), sigma=sigma, features=x, mu_s=mu, sigma_s=sigma),
            npz(features=x), npz(True, reps=x, model=np.array("dinov2")), npz(arr_0=pixels, arr_1=np.arange(4)),
            npz(True, images=pixels / 255, labels=np.array(list("abca"))),
            npz(features=np.zeros((4, 6), np.float32), image_shape=np.array([3, 8, 8])),
        ]  # fmt: skip
    if ending == ".npy":
        return [npy(x), npy(np.asfortranarray(x.astype(">f8"))), npy(pixels), npy(np.array(["a", "b"]))]
    if ending == ".pkl":
        content = {
            "num_images": np.int64(9),
            "fid": {"mu": mu, "sigma": sigma},
            "fd_dinov2": {"mu": mu, "sigma": sigma},
        }
        one = {"num_images": np.int64(9), "fid": content["fid"]}
        return [pickle.dumps(held, protocol=protocol) for protocol in (0, 2, 4, 5) for held in (one, content)]
    shape = SiTConfig(image_size=8, patch_size=4, channels=3, width=8, depth=1, heads=2, num_classes=2)
    state = SiT(shape).state_dict()
    if ending == ".pt":
        features = torch.from_numpy(x)
        contents = [features, {"mu": torch.from_numpy(mu), "sigma": torch.from_numpy(sigma)}, {"ema": state}]
        return [torch_file(content, zipped) for content in contents for zipped in (True, False)]
    if ending == ".safetensors":
        return [save(state, {"heads": "2", "architecture": "sit"}), save({"a": torch.zeros(2, 2)})]
    if ending == ".zip":
        return [
            zipped({"a/x.png": encoded("PNG"), "b/y.jpg": encoded("JPEG")}),
            zipped({"x.bmp": encoded("BMP")}, True),
        ]
    if ending in PILLOW:
        return [encoded(PILLOW[ending]), encoded(PILLOW[ending], 1)]
    if ending == ".yaml":
        return [_config(), b"seed: 1\nema_power: [0.1, 0.2]\n"]
    if ending == ".json":
        return [RUN.read_bytes(), json.dumps({"step": 3, "config": {}, "seconds": {"total": 1.5}}).encode()]
    if ending == ".jsonl":
        return [b'{"step": 0, "loss": 1.5}\n{"step": 1, "phases": {"a": 2}}\n']
    return [gzip.compress(bytes(16) + bytes(range(200)), mtime=0)]


def _config():
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        Config().save(file)
        return file.read_bytes()


# --- mutations ---------------------------------------------------------------------------------------------------


def mutated(ending, rng):
    """An input of a kind: a seed, changed once or several times by `rng` (random.Random)."""
    content = rng.choice(seeds(ending))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        content = _changed(content, ending, rng)[:LONGEST]
    return content


def _changed(content, ending, rng):
    if content[:4] == b"PK\x03\x04" and rng.random() < 0.6:
        return _archive_changed(content, ending, rng)
    if ending == ".gz" and content[:2] == b"\x1f\x8b" and rng.random() < 0.5:
        return _gzip_changed(content, rng)
    if ending == ".safetensors" and rng.random() < 0.6:
        return _header_changed(content, rng)
    if ending in WORDS and rng.random() < 0.5:
        return _word(content, WORDS[ending], rng)
    return rng.choice(BYTES)(content, ending, rng)


def _archive_changed(content, ending, rng):
    """One member changed, or its name, or all packed in another way; sizes and checksums are right again."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            bounded = [info for info in archive.infolist()[:50] if info.compress_type in (0, zipfile.ZIP_DEFLATED)]
            members = {info.filename: archive.read(info) for info in bounded}
    except Exception:  # an archive that an earlier mutation has damaged
        return rng.choice(BYTES)(content, ending, rng)
    if not members:
        return content + b"x"
    name = rng.choice(list(members))
    inner = ".npy" if name.endswith(".npy") else ".pkl" if name.endswith(".pkl") else "." + name.rpartition(".")[2]
    change = rng.random()
    if change < 0.7:
        members[name] = _changed(members[name], inner, rng)
    elif change < 0.8:
        members[rng.choice(["mu.npy", "features.npy", "arr_0.npy", "../x.png", "x", "a\nb.npy", "\x1b[2J.npy"])] = (
            members.pop(name)
        )
    elif change < 0.9:
        del members[name]
    else:
        members[name] = bytes(rng.choice((0, 10, LONGEST)))
    return zipped(members, rng.random() < 0.5)


def zipped(members, deflate=False):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, archive.compression)
    return file.getvalue()


def _gzip_changed(content, rng):
    try:
        with gzip.open(io.BytesIO(content)) as file:
            held = file.read(LONGEST)
        return gzip.compress(rng.choice(BYTES)(held, ".gz", rng)[:LONGEST], mtime=0)
    except Exception:
        return content[:-1]


def _header_changed(content, rng):
    """The JSON header of a safetensors file, with the right length before it."""
    length = int.from_bytes(content[:8], "little")
    header = _word(content[8 : 8 + length], WORDS[".safetensors"], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def _word(content, words, rng):
    """A word of the format in the place of a word or a number, or between two."""
    word = rng.choice(words).encode("latin-1", "replace")
    places = [
        match.span() for match in re.finditer(rb"[A-Za-z_0-9.+-]+|\([^()]*\)|'[^']*'|\"[^\"]*\"", content[:20_000])
    ]
    start, stop = rng.choice(places) if places and rng.random() < 0.7 else 2 * (rng.randrange(len(content) + 1),)
    return content[:start] + word + content[stop:]


def _flip(content, ending, rng):
    at = rng.randrange(max(1, len(content)))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :] if content else b"\0"


def _cut(content, ending, rng):
    return content[: rng.randrange(len(content) + 1)]


def _number(content, ending, rng):
    size = rng.choice(list(SIZES))
    number = struct.pack(rng.choice("<>") + SIZES[size], rng.choice(NUMBERS) & (1 << 8 * size) - 1)
    at = rng.randrange(max(1, len(content)))
    return content[:at] + number + content[at + size :]


def _doubled(content, ending, rng):
    start, stop = sorted(rng.randrange(len(content) + 1) for _ in "ab")
    return content[:stop] + content[start:stop] * rng.choice((1, 1, 50)) + content[stop:]


def _removed(content, ending, rng):
    start, stop = sorted(rng.randrange(len(content) + 1) for _ in "ab")
    return content[:start] + content[stop:]


def _spliced(content, ending, rng):
    other = rng.choice(seeds(ending)) if ending in (*WORDS, *PILLOW, ".npz", ".pt", ".zip") else content
    return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other) + 1) :]


def _random(content, ending, rng):
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.choice((1, 4, 64))) + content[at:]


BYTES = (_flip, _flip, _cut, _number, _number, _doubled, _removed, _spliced, _random)
