"""Networks by package.module:NAME and FILE.py:NAME: what may be named, their identity, and who can use them."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastfid import feature_extractor
from fastfid.__main__ import main
from fastfid.features.own_network import try_network
from fastfid.runtime.imported_objects import ObjectName, object_name

MINE = """
from dataclasses import dataclass
import torch
from torch import nn
from fastfid import FeatureExtractor

class Net(nn.Module):
    name, side, value_range, preprocessing = "mine", 8, "0..1", "8 pixels"
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 5)
    def forward(self, x):
        return self.layer(x.mean(1).flatten(1))

class Prepared(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout()
    def prepare(self, images):
        return images.float().mean((2, 3))
    def forward(self, x):
        return self.drop(x)[:, :1].repeat(1, 2)

def halves(images):
    assert images.dtype == torch.uint8
    return images.float().flatten(1)[:, :4]

def by_channel(images):
    return images.float().mean((2, 3))

def stated(images):
    return images.float().mean((2, 3)) * torch.ones(7)
stated.dim, stated.name = 7, "seven"

def build():
    return Net()

def extractor():
    return FeatureExtractor.from_module(Net(), 5, side=8, name="wrapped")

net = Net()
number = 3
dropping, normalising = nn.Sequential(nn.Flatten(), nn.Dropout()), nn.BatchNorm1d(3)  # in training mode, unseen

def noisy(images):
    return dropping(images.float() + 1)[:, :9]

def of_the_batch(images):
    return normalising(images.float().expand(-1, 3, -1, -1).mean((2, 3)))

@dataclass
class Both:
    inner: "Both | None" = None
    class Inside(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))[:, :1] * torch.ones(3)

class Needs(nn.Module):
    def __init__(self, width):
        super().__init__()

class OnlyLarge(nn.Module):
    def forward(self, x):
        return x[:, :, 300, 300]
"""
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 1, 12, 12)).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "nets_of_mine.py").write_text(MINE)
    return folder


@pytest.mark.parametrize(
    ("name", "dim", "called"),
    [
        ("Net", 5, "mine"),
        ("net", 5, "mine"),
        ("build", 5, "mine"),
        ("Prepared", 2, "nets_of_mine.py:Prepared"),
        ("halves", 4, "nets_of_mine.py:halves"),
        ("stated", 7, "seven"),
        ("extractor", 5, "wrapped"),
        ("Both.Inside", 3, "nets_of_mine.py:Both.Inside"),
    ],
)
def test_modules_classes_functions_and_factories(folder, name, dim, called):
    own = feature_extractor(f"{folder}/nets_of_mine.py:{name}")
    assert (own.dim, own.name) == (dim, called) and len(own.weights_sha256) == 64
    features = own(IMAGES)
    assert features.shape == (6, dim) and torch.equal(features, own(IMAGES))
    try_network(own, IMAGES)


def test_a_module_is_found_in_the_working_directory(folder, monkeypatch):
    monkeypatch.chdir(folder)
    own, other = (feature_extractor(f"{place}:Prepared") for place in ("nets_of_mine", f"{folder}/nets_of_mine.py"))
    assert torch.equal(own(IMAGES), other(IMAGES)) and own.weights_sha256 == other.weights_sha256


def test_the_identity_covers_weights_code_and_preparation(folder, tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(MINE)
    first, again = feature_extractor(f"{path}:Net"), feature_extractor(f"{path}:Net")
    assert first.identity == again.identity and first.preprocessing == "8 pixels"  # seeded: the same random weights
    assert torch.equal(first(IMAGES), again(IMAGES))
    path.write_text(MINE.replace("x.mean(1)", "x.amax(1)"))
    changed = feature_extractor(f"{path}:Net")
    assert changed.weights_sha256 != first.weights_sha256
    state = {"layer.weight": torch.eye(5, 64), "layer.bias": torch.arange(5.0)}
    save_file(state, tmp_path / "w.safetensors")
    loaded = feature_extractor(f"{path}:Net", tmp_path / "w.safetensors")
    assert loaded(0 * IMAGES).tolist() == [[0, 1, 2, 3, 4]] * 6 and loaded.weights_sha256 != changed.weights_sha256
    with pytest.raises(ValueError, match="w.safetensors does not hold these nets.py:Prepared weights"):
        feature_extractor(f"{path}:Prepared", tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="nets.py:halves is a function and takes no weights file"):
        feature_extractor(f"{path}:halves", tmp_path / "w.safetensors")
    save_file(state | {"layer.weight": torch.zeros(5, 64)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="mine returned the same features for 2 different images"):
        feature_extractor(f"{path}:Net", tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", "nets_of_mine.py:number is of type int; name a module, its class or a function"),
        ("Needs", "nets_of_mine.py:Needs could not be made (TypeError"),
        ("OnlyLarge", "raised IndexError for images (2, 3, 32, 32)"),
        ("OnlyLarge", "it may state the side and the dim of its features as attributes"),
        ("Nett", "has no network Nett; did you mean Net?"),
        ("noisy", "noisy returned other features for an image alone than beside others: put the modules"),
    ],
)
def test_what_is_no_network(folder, name, message):
    with pytest.raises(ValueError) as error:
        feature_extractor(f"{folder}/nets_of_mine.py:{name}")
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


def test_other_widths_for_other_images_are_told_with_the_remedy(folder):
    network = feature_extractor(f"{folder}/nets_of_mine.py:by_channel")
    grey = torch.zeros(2, 1, 9, 9, dtype=torch.uint8)
    assert network(grey.expand(-1, 3, -1, -1)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"1 features for images \(1, 9, 9\) and 3 for images .*attribute dim = 1"):
        network(grey)


def test_a_function_whose_batch_norm_trains_is_refused(folder):
    """On one image it raises; with track_running_stats it would compute from the batch."""
    with pytest.raises(
        ValueError, match="of_the_batch raised ValueError for images .1, 3, 32, 32.: Expected more than 1"
    ):
        feature_extractor(f"{folder}/nets_of_mine.py:of_the_batch")


@pytest.mark.parametrize("kind", ["pipe", "device", "nothing"])
def test_a_file_that_is_no_source_is_refused_before_it_is_read(tmp_path, kind):
    path = tmp_path / "net.py"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    told = {
        "pipe": "is a pipe, not a file",
        "device": "is a device, not a file",
        "nothing": "cannot be read .No such file",
    }[kind]
    with pytest.raises((ValueError, OSError), match=f"{path} {told}"):
        feature_extractor(f"{path}:net")


def test_names_of_objects():
    assert object_name("a.b:C.d") == ObjectName("a.b", "C.d") and object_name("x/y z.py:f").file.name == "y z.py"
    for text in ("fashion-a", "a.b", "a:", ":b", "a b:c", "a:b-c", "torchscript:net.pt?side=3"):
        assert object_name(text) is None, text


def test_the_command_measures_with_an_own_network(folder, own_cache, sets, capsys):
    name = f"{folder}/nets_of_mine.py:Net"
    arguments = [str(sets / "a"), str(sets / "b.npz"), "--network", f"{name},fashion-a", "--metrics", "fd", "--json"]
    assert main(["eval", *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    assert "mine" in json.dumps(report) and feature_extractor(name).weights_sha256 in json.dumps(report)
    assert main(["stats", str(sets / "a"), str(sets / "s.npz"), "--network", name]) == 0
    assert main([str(sets / "s.npz"), str(sets / "b.npz"), "--network", f"{folder}/nets_of_mine.py:Prepared"]) == 2
    assert "has d = 5 features" in capsys.readouterr().err
    assert main(["eval", *arguments[:2], "--network", f"{folder}/nets_of_mine.py:OnlyLarge"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastfid: the network nets_of_mine.py:OnlyLarge raised IndexError")
