"""Small colour pictures of two classes, as a user may have them: in folders, archives and arrays."""

import io
import tarfile

import numpy as np

from tests.support.pictures import encoded, pack, write

CLASSES = ("disc", "square")


def drawing(seed, side=16, kind=None):
    """uint8 [side, side, 3]: a disc or a square of its own colour, place and size on a background of its own."""
    rng = np.random.default_rng(seed)
    kind = CLASSES[seed % 2] if kind is None else kind
    ground, ink = rng.integers(0, 256, (2, 3))
    y, x = np.mgrid[:side, :side] / side
    cy, cx = rng.uniform(0.3, 0.7, 2)
    radius = rng.uniform(0.15, 0.4)
    distance = np.hypot(y - cy, x - cx) if kind == "disc" else np.maximum(abs(y - cy), abs(x - cx))
    return np.where((distance < radius)[..., None], ink, ground).astype(np.uint8)


def files_of(count, first=0, side=16):
    """{CLASS/NUMBER.png: bytes} of `count` drawings."""
    seeds = range(first, first + count)
    return {f"{CLASSES[seed % 2]}/{seed:04}.png": encoded(drawing(seed, side)) for seed in seeds}


def class_folders(folder, count, first=0, side=16):
    """The folder with a folder of drawings for each class."""
    return write(folder, files_of(count, first, side))


def as_zip(path, count):
    return pack(path, files_of(count))


def as_webdataset(path, count):
    """A tar with NUMBER.png and NUMBER.cls for each drawing."""
    with tarfile.open(path, "w") as archive:
        for name, content in files_of(count).items():
            kind, number = name.removesuffix(".png").split("/")
            for ending, data in (("png", content), ("cls", kind.encode())):
                info = tarfile.TarInfo(f"{kind}-{number}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def as_npz(path, count):
    seeds = sorted(range(count), key=lambda seed: (CLASSES[seed % 2], seed))  # the order of the folders
    images = np.stack([drawing(seed) for seed in seeds])
    np.savez(path, images=images, labels=np.array([CLASSES[seed % 2] for seed in seeds]))
    return path
