"""The network of a comparison that names none, and warnings of one that does not see what the images show."""

import json

import numpy as np
import pytest

from fastfid.evaluation import network_choice
from fastfid.evaluation.network_choice import network_for, unfit_network
from fastfid.features.extraction import MIXED
from fastfid.images.open import open_images
from tests.support.image_sets import run

pytestmark = pytest.mark.usefixtures("own_cache")


def noise(n, seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


@pytest.fixture
def nothing_installed(monkeypatch):
    """As if no ImageNet network were there."""
    monkeypatch.setattr(network_choice, "downloaded_inception", lambda: None)
    monkeypatch.setattr(network_choice, "find_spec", lambda name: None)


@pytest.fixture
def colour(tmp_path):
    """Two files of 20 × 20 colour images."""
    for name, seed in (("a", 1), ("b", 2)):
        np.save(tmp_path / f"{name}.npy", noise(12, seed, 20, 20, 3))
    return tmp_path


@pytest.mark.parametrize(
    ("shape", "chosen"),
    [((28, 28), "default"), ((32, 32), "default"), ((33, 20), "best"), ((3, 28, 28), "best"), ((64, 64), "best")],
)
def test_small_grey_images_get_the_embedded_network_and_others_the_best_installed(monkeypatch, shape, chosen):
    monkeypatch.setattr(network_choice, "best_installed", lambda: "best")
    images, small = (open_images(noise(2, 0, *size)) for size in (shape, (28, 28)))
    assert network_for([images], "default") == chosen
    assert network_for([small, images], "default") == chosen  # one side that needs more is enough
    stream = open_images(iter([noise(2, 0, 3, 50, 50)]))
    assert network_for([stream], "default") == "default"  # passes by once; the warning comes with its images


def test_what_is_installed_decides(monkeypatch, tmp_path, nothing_installed):
    assert network_choice.best_installed() is None
    monkeypatch.setattr(network_choice, "find_spec", lambda name: "found")
    assert network_choice.best_installed() == "efficientnet-lite0"
    monkeypatch.setattr(network_choice, "downloaded_inception", lambda: tmp_path)
    assert network_choice.best_installed() == "inception"


def test_the_bare_command_judges_colour_with_an_installed_network(colour, capsys):
    status, out, err = run(capsys, colour / "a.npy", colour / "b.npy")
    assert status == 0 and out.splitlines()[-1].startswith("FD (efficientnet-lite0):  ")
    assert "colour and detail" not in err
    status, out, err = run(capsys, colour / "a.npy", colour / "b.npy", "--network", "fashion-a")
    assert status == 0 and out.splitlines()[-1].startswith("FD (fashion-a):  ")
    assert "fashion-a sees 28×28 grey pixels" in err and "images of 3 × 20 × 20" in err
    assert "--network efficientnet-lite0" in err


def test_without_one_it_warns_and_names_the_install_command(colour, capsys, nothing_installed):
    status, out, _ = run(capsys, colour / "a.npy", colour / "b.npy", "--json")
    found = json.loads(out)
    assert status == 0 and found["network"] == "fashion-a"
    assert len([w for w in found["warnings"] if "pip install 'fastfid[efficientnet]'" in w]) == 2  # one a side
    status, _, err = run(capsys, "stats", colour / "a.npy", colour / "a.npz")
    assert status == 0 and "colour and detail are not judged" in err


def test_what_is_seen_is_no_reason_to_warn():
    assert unfit_network("fashion-a", (1, 28, 28), "x") == unfit_network("fashion-b", None, "x") == []
    assert unfit_network("inception", (3, 256, 256), "x") == []
    (warning,) = unfit_network("fashion-b", MIXED, "x")
    assert "x holds images of several sizes" in warning
