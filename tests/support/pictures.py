"""Small images as files, in folders and zips."""

import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from fastfid import open_images


def picture(seed, height=6, width=5, channels=3):
    """uint8 [H, W, C], noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(pixels, form="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, form, **options)
    return buffer.getvalue()


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def pack(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def all_images(source, size=2, **options):
    return torch.cat(list(open_images(source, **options).batches(size)))


def channels_first(pictures):
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def error_of(source, **options):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        all_images(source, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


FILES = {"b.png": encoded(picture(1)), "a/z.PNG": encoded(picture(0)), "c.txt": b"no image", "._b.png": b"no image"}
