"""Images per second from disk, next to pytorch-fid's loader and torchvision's decoders: folders of RGB PNG and JPEG.

The images are enlarged Fashion-MNIST images with some noise, so that they compress like photographs: PNG of 64×64 (7.8
kB each), JPEG of 64×64 (1.7 kB) and of 256×256 (9.7 kB), quality 90, 4:2:0.  After the warm-up all files are in the
page cache.  All readers end with the same pixels in memory: fastfid and torchvision with uint8 batches, pytorch-fid
with float batches, because its loader includes this conversion.  `python bench/bench_images.py` prints the table of
bench/results.  There the readers take turns, so a slow minute of the machine affects all of them.

fastfid                 folder → uint8 batches, hashed for the cache, decoded in threads by imagecodecs or Pillow
pytorch-fid             ImagePathDataset and DataLoader as in its command, with 0, 1, 2 … workers
torchvision             read_file and decode_image in a loop, in a pool of threads, and in a DataLoader

A tool that is not installed is skipped.
"""

import os
import statistics
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.measuring import installed, rival
from fastfid import open_images
from fastfid.images import fast_decode

warnings.filterwarnings("ignore", ".*decoding.*deprecated.*")  # of torchvision, once per process
BATCH = 50  # pytorch-fid's default
CORES = len(os.sched_getaffinity(0))
ROUNDS = 5  # of the table; pytest runs three
ASSET = Path(__file__).parents[1] / "sit_rl" / "assets" / "fashion_mnist_train.npz"
SETS = {"png 64": (2000, 64), "jpeg 64": (2000, 64), "jpeg 256": (600, 256)}  # images, pixels on a side


def write(folder, name):
    """The files of one set: their paths, sorted."""
    (count, side), kind, rng = SETS[name], name.split()[0], np.random.default_rng(0)
    options = {"quality": 90, "subsampling": "4:2:0"} if kind == "jpeg" else {}
    for i, image in enumerate(np.load(ASSET)["images"][:count, 0]):
        large = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)).astype(int)
        noisy = large[:, :, None] + rng.integers(-6, 7, (side, side, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i:05}.{kind}", **options)
    return sorted(map(str, folder.iterdir()))


def fastfid(files, workers=None):
    return sum(len(batch) for batch in open_images(Path(files[0]).parent, workers=workers).batches(256))


def fastfid_by_pillow(files):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_decode, "decoder", lambda kind: ("Pillow", None))
        return fastfid(files)


def pytorch_fid(files, workers):
    to_tensor = rival("torchvision").transforms.ToTensor()
    dataset = rival("pytorch_fid.fid_score").ImagePathDataset(files, transforms=to_tensor)
    return sum(len(batch) for batch in torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=workers))


def decoded(path):
    io = rival("torchvision").io
    return io.decode_image(io.read_file(path), io.ImageReadMode.RGB)


def torchvision_loop(files):
    return len([decoded(file) for file in files])


def torchvision_threads(files):
    chunks = [files[i : i + 16] for i in range(0, len(files), 16)]
    with ThreadPoolExecutor(CORES) as pool:
        return sum(len(torch.stack(batch)) for batch in pool.map(lambda chunk: [decoded(f) for f in chunk], chunks))


class Decoding(torch.utils.data.Dataset):
    def __init__(self, files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return decoded(self.files[index])


def torchvision_loader(files, workers):
    return sum(len(x) for x in torch.utils.data.DataLoader(Decoding(files), BATCH, num_workers=workers))


# name: reader; a name begins with its tool
READERS = {
    f"fastfid, {CORES} threads": fastfid,
    "fastfid, 1 thread": lambda files: fastfid(files, workers=1),
    f"fastfid without imagecodecs, {CORES} threads": fastfid_by_pillow,
    f"torchvision `decode_image` in {CORES} threads": torchvision_threads,
    "torchvision in a loop": torchvision_loop,
    f"torchvision in a DataLoader, {CORES} workers": lambda files: torchvision_loader(files, CORES),
    "pytorch-fid's loader, 0 workers": lambda files: pytorch_fid(files, 0),
    f"pytorch-fid's loader, {CORES} workers": lambda files: pytorch_fid(files, CORES),
}


@pytest.fixture(scope="module", params=list(SETS))
def files(request, tmp_path_factory):
    return write(tmp_path_factory.mktemp("images"), request.param)


@pytest.mark.parametrize("reader", list(READERS))
def test_read(benchmark, files, reader):
    kind = Path(files[0]).suffix
    with Image.open(files[0]) as image:
        benchmark.group = f"{len(files)} files, {kind}, {image.height} pixels"
    benchmark.extra_info["decoder"] = fast_decode.decoder(kind[1:].upper())[0]
    assert benchmark.pedantic(lambda: READERS[reader](files), rounds=3, warmup_rounds=1) == len(files)
    if benchmark.stats:
        benchmark.extra_info["images_per_second"] = len(files) / benchmark.stats.stats.median


def runs_here(reader):
    """Whether the packages of a reader are installed."""
    needed = {"torchvision": ["torchvision"], "pytorch-fid": ["pytorch_fid", "torchvision"]}
    tool = next((tool for tool in needed if reader.startswith(tool)), None)
    return all(map(installed, needed.get(tool, [])))


def rates(files):
    """Images per second of each installed reader: medians of ROUNDS turns after a warm-up."""
    seconds = {name: [] for name in READERS if runs_here(name)}
    for turn in range(ROUNDS + 1):
        for name, times in seconds.items():
            start = time.perf_counter()
            assert READERS[name](files) == len(files)
            if turn:
                times.append(time.perf_counter() - start)
    return {name: len(files) / statistics.median(times) for name, times in seconds.items()}


def main():
    found = {}
    for name in SETS:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = rates(write(Path(folder), name))
    print("| images/s |", " | ".join(found), "|")
    print("|---|", "---:|" * len(found), sep="")
    for reader in READERS:
        if runs_here(reader):
            print("|", reader, "|", " | ".join(f"{found[name][reader]:,.0f}" for name in found), "|")
    print("not installed:", ", ".join(reader for reader in READERS if not runs_here(reader)) or "none")


if __name__ == "__main__":
    main()
