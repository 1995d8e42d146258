"""Images a second from disk, beside pytorch-fid's loader and torchvision's decoders: a folder of 64×64 RGB PNG.

The images are Fashion-MNIST enlarged and given some noise, so that they compress as photographs do (7.8 kB each).
Everybody's files are in the page cache after the warm-up, and everybody ends with the same pixels in memory: uint8
batches here and from torchvision, float batches from pytorch-fid, whose conversion is part of its loader.

fastfid                 folder → uint8 batches, hashed for the cache, decoded by threads with imagecodecs or Pillow
pytorch-fid             ImagePathDataset and DataLoader as its command makes them, 0, 1, 2 … workers
torchvision             read_file and decode_image in a loop, in a pool of threads, and in a DataLoader
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastfid import open_images, plain_png

torchvision = pytest.importorskip("torchvision")
fid_score = pytest.importorskip("pytorch_fid.fid_score")

COUNT = 2000
BATCH = 50  # pytorch-fid's default
CORES = len(os.sched_getaffinity(0))
GROUP = f"{COUNT} PNG of 64x64"
ASSET = Path(__file__).parents[1] / "sit_rl" / "assets" / "fashion_mnist_train.npz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("png"), np.random.default_rng(0)
    for i, image in enumerate(np.load(ASSET)["images"][:COUNT, 0]):
        large = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
        noisy = large[:, :, None] + rng.integers(-6, 7, (64, 64, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i:05}.png")
    return folder


def measure(benchmark, call):
    benchmark.group = GROUP
    assert benchmark.pedantic(call, rounds=5, warmup_rounds=1) == COUNT
    if benchmark.stats:
        benchmark.extra_info["images_per_second"] = COUNT / benchmark.stats.stats.median


def read(folder, workers=None):
    return sum(len(batch) for batch in open_images(folder, workers=workers).batches(256))


def test_fastfid(benchmark, folder):
    benchmark.extra_info["decoder"] = plain_png.decoder()[0]
    measure(benchmark, lambda: read(folder))


def test_fastfid_one_thread(benchmark, folder):
    benchmark.extra_info["decoder"] = plain_png.decoder()[0]
    measure(benchmark, lambda: read(folder, workers=1))


def test_fastfid_pillow(benchmark, folder, monkeypatch):
    monkeypatch.setattr(plain_png, "decoder", lambda: ("Pillow", None))
    measure(benchmark, lambda: read(folder))


@pytest.mark.parametrize("workers", sorted({0, 1, CORES}))
def test_pytorch_fid(benchmark, folder, workers):
    files = sorted(folder.iterdir())

    def call():
        dataset = fid_score.ImagePathDataset(files, transforms=torchvision.transforms.ToTensor())
        loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=workers)
        return sum(len(batch) for batch in loader)

    measure(benchmark, call)


def decoded(path):
    return torchvision.io.decode_image(torchvision.io.read_file(path), torchvision.io.ImageReadMode.RGB)


def test_torchvision(benchmark, folder):
    files = sorted(map(str, folder.iterdir()))
    measure(benchmark, lambda: len([decoded(file) for file in files]))


def test_torchvision_in_threads(benchmark, folder):
    files = sorted(map(str, folder.iterdir()))
    chunks = [files[i : i + 16] for i in range(0, COUNT, 16)]

    def call():
        with ThreadPoolExecutor(CORES) as pool:
            return sum(len(torch.stack(batch)) for batch in pool.map(lambda chunk: [decoded(f) for f in chunk], chunks))

    measure(benchmark, call)


class Decoding(torch.utils.data.Dataset):
    def __init__(self, files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return decoded(self.files[index])


@pytest.mark.parametrize("workers", sorted({1, CORES}))
def test_torchvision_in_a_loader(benchmark, folder, workers):
    files = sorted(map(str, folder.iterdir()))

    def call():
        return sum(len(x) for x in torch.utils.data.DataLoader(Decoding(files), BATCH, num_workers=workers))

    measure(benchmark, call)
