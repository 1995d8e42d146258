"""The embedded default: what the committed assets are, and that the commands which make them work."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastfid import feature_extractor
from sit_rl.components.image_sets import (
    ASSETS,
    FASHION_SIT,
    ImageSet,
    balanced_subset,
    load_embedded,
    load_official,
)
from sit_rl.models.loading import load_model
from sit_rl.models.pixels import to_float, to_uint8
from sit_rl.pretrain import Base, Features, Images, main
from sit_rl.training.learning_rate import warmup_cosine

FASTFID_ASSETS = Path(__file__).parents[2] / "fastfid" / "assets"


def test_embedded_sets_are_balanced_and_disjoint():
    train, heldout = load_embedded("train"), load_embedded("heldout")
    assert torch.bincount(train.labels).tolist() == [1000] * 10
    assert torch.bincount(heldout.labels).tolist() == [500] * 10
    assert train.images.shape == (10_000, 1, 28, 28) and heldout.images.dtype == torch.uint8
    pixels = {row.numpy().tobytes() for row in train.images}
    assert not any(row.numpy().tobytes() in pixels for row in heldout.images)


def test_assets_are_small():
    files = [p for folder in (ASSETS, FASTFID_ASSETS) for p in folder.iterdir() if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 25e6


def test_base_model_is_the_declared_one():
    assert load_model(ASSETS / "base.safetensors").config == FASHION_SIT


def test_curve_was_committed_and_has_stopped_falling():
    rows = np.genfromtxt(ASSETS / "base_curve.csv", delimiter=",", names=True)
    fd = rows["heldout_fd_fashion_a"]
    assert fd[-1] <= 1.02 * fd.min() and fd[-1] > 0.95 * fd[-2]


@pytest.mark.parametrize("name, least", [("fashion-a", 0.88), ("fashion-b", 0.88)])
def test_feature_networks_know_the_heldout_classes(name, least):
    from fastfid.features.fashion import load_fashion_net

    heldout, net = load_embedded("heldout"), load_fashion_net(name)
    with torch.no_grad():
        predicted = torch.cat([net(part).argmax(1) for part in heldout.as_float()[::5].split(250)])
    assert float((predicted == heldout.labels[::5]).float().mean()) > least
    assert feature_extractor(name).dim == net.features(heldout.as_float()[:2]).shape[1]


def write_official(folder, count):
    """Official-format files of random images with every class equally often."""
    rng = np.random.default_rng(0)
    for name in ("train", "t10k"):
        pixels = rng.integers(0, 256, count * 784, dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pixels.tobytes()))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels.tobytes()))


def test_the_three_commands_run(tmp_path, capsys):
    write_official(tmp_path, 100)
    Images(tmp_path, out=tmp_path, train=40, heldout=20).run()
    with np.load(tmp_path / "fashion_mnist_train.npz") as arrays:
        assert arrays["images"].shape == (40, 1, 28, 28)
        assert np.array_equal(arrays["images"], load_official(tmp_path, "train").images[:40].numpy())
    Features(tmp_path, out=tmp_path / "nets", passes=1, batch=50).run()
    assert {p.name for p in (tmp_path / "nets").iterdir()} == {"fashion-a.safetensors", "fashion-b.safetensors"}
    Base(tmp_path, out=tmp_path, iterations=4, batch=10, curve_every=2, curve_images=30).run()
    assert load_model(tmp_path / "base.safetensors").config == FASHION_SIT
    assert len((tmp_path / "base_curve.csv").read_text().splitlines()) == 3


def test_two_processes_train_the_base_that_one_does(forked, tmp_path):
    write_official(tmp_path, 100)
    ranks = {}
    for count in (1, 2):
        flags = f"base --source {tmp_path} --out {tmp_path / str(count)} --iterations 3 --batch 10 --threads 1".split()
        flags += ["--curve-every", "3", "--curve-images", "30"]
        results = forked.ranks(count, flags, module="sit_rl.pretrain")
        assert [result["code"] for result in results] == [0] * count, results[0]["out"]
        ranks[count] = load_file(tmp_path / str(count) / "base.safetensors")
    for name, value in ranks[1].items():
        # Adam's first steps are ± a learning rate (2e-3 at most) however small the gradient: sums in another order may
        # turn the sign of one that is nearly zero, so a few entries differ by that and nearly all by rounding.
        close = torch.isclose(value, ranks[2][name], rtol=1e-3, atol=1e-5).float().mean()
        assert close > 0.99, (name, float(close))


def test_bad_sources_are_named(tmp_path, monkeypatch, capsys):
    with pytest.raises(FileNotFoundError, match="four .gz files"):
        load_official(tmp_path, "train")
    write_official(tmp_path, 30)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16 + 784)))
    with pytest.raises(ValueError, match="download the files again"):
        load_official(tmp_path, "train")
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(b"not gzip at all")
    with pytest.raises(ValueError, match="cannot be read as gzip"):
        load_official(tmp_path, "heldout")
    data = ImageSet(torch.zeros(20, 1, 2, 2, dtype=torch.uint8), torch.arange(20) % 10)
    with pytest.raises(ValueError, match="multiple of 10"):
        balanced_subset(data, 15)
    with pytest.raises(ValueError, match="too few"):
        balanced_subset(data, 30)
    with pytest.raises(ValueError, match="label 10 is out of range: the images' classes are numbered 0 to 9"):
        ImageSet(data.images, data.labels + 1)
    with pytest.raises(ValueError, match="19 labels do not belong to 20 images"):
        ImageSet(data.images, data.labels[1:])
    monkeypatch.setattr("sys.argv", ["pretrain", "images", "--source", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert re.fullmatch("error: .*does not exist.*\n", capsys.readouterr().err)


def test_rounding_to_uint8_and_back_is_the_identity():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(levels)), levels)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_schedule_rises_then_falls_to_zero():
    assert warmup_cosine(0.01) == 0.5 and warmup_cosine(0.02) == 1.0 and abs(warmup_cosine(1.0)) < 1e-12
