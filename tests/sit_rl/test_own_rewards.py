"""A user's own rewards and networks in a run: modules, files, set rewards, and every one that cannot be used."""

import hashlib
import json

import numpy as np
import pytest
import torch

from fastfid import feature_extractor
from sit_rl.train import main
from tests.support.tiny_runs import lines

MINE = """
import torch
from torch import nn
from fastfid import FeatureMoments, FrechetReward

def contrast(images, labels):
    return images.float().std((1, 2, 3))

def halves(images):
    return images.float().unflatten(3, (2, -1)).mean((1, 2, 4))

def with_nan(images):
    return halves(images).log() - float("inf")

def blind(images):
    return torch.ones(len(images), 3)

def flat(images):
    return images.float().mean((1, 2, 3))

def raising(images):
    raise KeyError("layer")

class Pairs:
    # FD of whole images to the real ones, on two features of its own
    def __init__(self, real):
        self.reward = FrechetReward(FeatureMoments.from_features(torch.cat([halves(x) for x in real.batches(64)])))

    def prepare(self, rows, labels=None):
        assert rows.dtype == torch.uint8 and rows.ndim == 4
        return Prepared(self.reward.prepare(halves(rows)))

class Prepared:
    def __init__(self, inner):
        self.inner, self.distance = inner, inner.distance
    def change(self, removed, added, labels=None):
        return self.inner.change(removed, halves(added.flatten(0, 1)).unflatten(0, added.shape[:2]))
    def leave_one_out(self):
        return self.inner.leave_one_out()

def make():
    return Unprepared()

class NoPrepare:
    pass

class WrongShape(Pairs):
    def prepare(self, rows, labels=None):
        prepared = super().prepare(rows, labels)
        prepared.change = lambda removed, added, labels=None: torch.zeros(3)
        return prepared

class NotMade:
    def __init__(self, real, more):
        pass
    prepare = None

class Unprepared:
    def prepare(self, rows, labels=None):
        return 3

dropout = torch.nn.Dropout()  # in training mode, unseen

class Noisy(Pairs):
    def features(self, images):
        return dropout(images.float().flatten(1)[:, :50] + 1)

class BadFeatures(Pairs):
    def features(self, images):
        return images
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    path = tmp_path_factory.mktemp("mine") / "mine.py"
    path.write_text(MINE)
    return path


def test_a_run_on_own_parts_alone(command, mine, tmp_path, monkeypatch, capsys):
    """A function of a module, a set reward of images, one with features, and FD on an own network, in one run."""
    monkeypatch.syspath_prepend(str(mine.parent))
    network, score, pairs = "examples/rewards/textures.py:Textures", "mine:contrast", f"{mine}:Pairs"
    balance = "python:examples/rewards/class_balance.py:ClassBalance"
    rewards = (f"fd:{network}", f"{score}=0.5", pairs, f"{balance}=2")
    flags = ("--steps", 2, "--reward-features", network, "--reward", *rewards, "--evaluate-every", 0)
    main(command(tmp_path / "run", *flags))
    names = [f"fd:{network}", f"python:{score}", f"python:{pairs}", balance]
    for record in lines(tmp_path / "run"):
        assert list(record["components"]) == names
        assert all(each["credit_std"] > 0 and np.isfinite(each["distance"]) for each in record["components"].values())
    protocol = json.loads((tmp_path / "run" / "summary.json").read_text())["protocol"]
    net = feature_extractor(network)
    assert protocol["networks"]["fd"] == {
        "name": "textures.py:Textures", "preprocessing": net.preprocessing, "weights_sha256": net.weights_sha256,
        "rewarded": True,
    }  # fmt: skip
    assert protocol["reward_networks"] == {"textures.py:Textures": net.weights_sha256}
    sha = hashlib.sha256(mine.read_bytes()).hexdigest()
    assert protocol["reward_sources"][f"python:{score}"] == protocol["reward_sources"][f"python:{pairs}"] == sha


def refused(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("no_such_module:score", "there is no module no_such_module: Python looked in the installed packages and in"),
        ("json:no_such_name", "json has no function no_such_name"),
        ("json.decoder:JSONDecode", "json.decoder has no function JSONDecode; did you mean JSONDecoder?"),
        ("FILE:contrst", "has no function contrst; did you mean contrast?"),
        ("FILE:raising", "raised TypeError for images (2, 1, 28, 28)"),
        ("FILE:NoPrepare", "has no function NoPrepare: it is a class without prepare"),
        ("FILE:NotMade", "NotMade could not be made (TypeError"),
        ("FILE:Unprepared", "prepare returned a int without distance"),
        ("FILE:make", "prepare returned a int without distance"),
        ("FILE:BadFeatures", "features returned shape (2, 1, 28, 28) for 2 images; return (2, d)"),
        ("FILE:Noisy", "features gives an image other numbers alone than beside others; put the modules"),
        ("FILE:WrongShape", "change returned shape (3,); return one number a candidate"),
        ("fid:inception", "there is no module fid"),
        ("fid", "unknown component 'fid'; choose fd, kid"),
    ],
)
def test_rewards_that_cannot_be_used(command, mine, tmp_path, capsys, word, message):
    word = word.replace("FILE", str(mine))
    error = refused(command(tmp_path / "run", "--reward", "fd", word, "--evaluate-every", 0), capsys)
    assert message in error and word in error
    log = tmp_path / "run" / "metrics.jsonl"
    assert not log.exists() or not log.read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("with_nan", "mine.py:with_nan returned NaN or infinity"),
        ("blind", "mine.py:blind returned the same features for 2 different images"),
        ("flat", "mine.py:flat returned shape (2,) for 2 images; return features (2, d)"),
        ("raising", "mine.py:raising raised KeyError for images (2, 3, 32, 32): it has no 'layer'"),
        ("missing", "has no network missing"),
        ("contrast", "mine.py:contrast raised TypeError"),
    ],
)
def test_networks_that_cannot_be_used(command, mine, tmp_path, capsys, name, message):
    flags = ("--reward-features", f"{mine}:{name}", "--evaluate-every", 0)
    assert message in refused(command(tmp_path / "run", *flags), capsys)
    assert not (tmp_path / "run").exists()


def test_a_missing_file_of_a_network_is_named(command, tmp_path, capsys):
    error = refused(command(tmp_path / "run", "--reward", "fd", "kid:/nowhere/net.py:Net"), capsys)
    assert "--reward /nowhere/net.py does not exist" in error
    error = refused(command(tmp_path / "run", "--judge-features", "/nowhere/net.py:Net"), capsys)
    assert "--judge-features /nowhere/net.py does not exist" in error


def test_a_reward_of_whole_images_must_fit(command, mine, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sit_rl.reward.own_reward.MOST_BYTES", 1000)
    error = refused(command(tmp_path / "run", "--reward", "fd", f"{mine}:Pairs"), capsys)
    assert "it reads whole images (1, 28, 28), and 60 of them take 0.0 GiB; give it a method features" in error


def test_a_reward_of_real_images_needs_images(command, mine, tmp_path, capsys):
    from fastfid import FeatureMoments

    FeatureMoments(300, torch.zeros(128), torch.eye(128)).save(tmp_path / "real.npz")
    flags = ("--real", tmp_path / "real.npz", "--heldout", tmp_path / "real.npz", "--reward", "fd", f"{mine}:Pairs")
    assert "it takes the real images, and --real" in refused(command(tmp_path / "run", *flags), capsys)
