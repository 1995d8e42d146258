"""The embedded feature networks: what they know, how they are trained, and that they differ."""

import hashlib
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fastfid import feature_extractor
from fastfid.features.fashion import ASSETS, load_fashion_net
from fastfid.features.names import FASHION_NETS
from fastfid.features.registry import build_extractor
from sit_rl.components.image_sets import ImageSet, load_embedded
from sit_rl.components.networks import EMBEDDED_JUDGES
from sit_rl.presets import PRESETS
from sit_rl.pretrain import Features, main
from sit_rl.pretraining import feature_networks
from sit_rl.pretraining.feature_networks import (
    TRAININGS,
    Schedule,
    Targets,
    erased,
    mirrored,
    noisy,
    shifted,
    train_network,
)
from sit_rl.reward_names import networks_of

ROOT = Path(__file__).parents[2]
MOST_BYTES = 6_000_000  # of all networks together


# --- the committed files ------------------------------------------------------------------------------------------


def test_every_asset_is_listed_with_its_hash():
    listed = (ROOT / "docs" / "assets.md").read_text()
    for path in [*ASSETS.glob("*.safetensors"), *(ROOT / "sit_rl" / "assets").glob("*.[sn]*")]:
        assert hashlib.sha256(path.read_bytes()).hexdigest() in listed, path.name


def test_the_networks_are_small_and_all_different():
    paths = [ASSETS / f"{name}.safetensors" for name in FASHION_NETS]
    assert sum(path.stat().st_size for path in paths) <= MOST_BYTES
    assert TRAININGS.keys() == FASHION_NETS.keys() and len({t.seed for t in TRAININGS.values()}) == len(TRAININGS)
    for (_, a), (_, b) in itertools.combinations(FASHION_NETS.items(), 2):
        assert a.channels != b.channels and a.feature_dim != b.feature_dim or a.teacher != b.teacher
    rewarded = networks_of(PRESETS["fashion"][1].reward_components)
    assert not set(EMBEDDED_JUDGES) & set(rewarded) and set(EMBEDDED_JUDGES) | set(rewarded) <= set(FASHION_NETS)
    assert any(shape.teacher for shape in FASHION_NETS.values())  # one is no classifier


@pytest.mark.parametrize("name", [name for name, shape in FASHION_NETS.items() if shape.teacher is None])
def test_classifiers_know_the_heldout_classes(name):
    heldout, net = load_embedded("heldout"), load_fashion_net(name)
    with torch.no_grad():
        predicted = torch.cat([net(part).argmax(1) for part in heldout.as_float()[::10].split(250)])
    assert float((predicted == heldout.labels[::10]).float().mean()) > 0.8
    assert build_extractor(name).outputs(heldout.images[:2])["logits"].shape == (2, 10)


def test_the_distilled_network_has_no_classes():
    (name,) = [name for name, shape in FASHION_NETS.items() if shape.teacher is not None]
    images = load_embedded("heldout").images[:3]
    assert feature_extractor(name)(images).shape == (3, 128)
    assert not hasattr(build_extractor(name), "outputs") or "logits" not in build_extractor(name).outputs(images)
    with safe_open(ASSETS / f"{name}.safetensors", "pt") as file:
        assert float(file.metadata()["heldout_variance_explained"]) > 0.5
        assert file.metadata()["teacher"] == FASHION_NETS[name].teacher


# --- changes of the training images ----------------------------------------------------------------------------------


def pictures(n=40):
    return torch.randn(n, 1, 28, 28, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


def test_changes_of_images():
    x, rng = pictures(), lambda: np.random.default_rng(0)
    found = mirrored(x, rng())
    same = (found == x).flatten(1).all(1)
    assert 0 < same.sum() < len(x) and torch.equal(found[~same], x[~same].flip(-1))
    found = erased(x, rng())
    assert ((found == -1) & (x != -1)).flatten(1).sum(1).max() <= 64 and torch.equal(found[found != -1], x[found != -1])
    assert ((found == -1).flatten(1).sum(1) >= 64).all()
    found = noisy(x, rng())
    errors = torch.minimum(*((found - y).flatten(1).std(1) for y in (x, x.flip(-1))))
    assert 0.08 < errors.min() and errors.max() < 0.12


def test_shifts_are_of_a_few_pixels():
    x = torch.full((50, 1, 28, 28), -1.0)
    x[:, :, 14, 14] = 1
    found = shifted(x, np.random.default_rng(0))
    _, _, rows, columns = (found == 1).nonzero(as_tuple=True)
    assert len(rows) == 50 and rows.min() == 12 and rows.max() == 16 and 11 <= columns.min() and columns.max() <= 16


# --- training -------------------------------------------------------------------------------------------------------


def some(count, every):
    data = load_embedded("train")
    return ImageSet(data.images[::every][:count], data.labels[::every][:count])


class Teacher:
    """Eight linear features of the image's halves, in place of an ImageNet network."""

    name, dim, device = "teacher", 200, torch.device("cpu")

    def __call__(self, images):
        small = torch.nn.functional.avg_pool2d(images.float() / 255, 7).flatten(1)
        mixing = torch.randn(16, 200, generator=torch.Generator().manual_seed(0))
        return small @ mixing


def test_a_network_is_distilled_from_its_teacher(monkeypatch):
    monkeypatch.setattr(feature_networks, "feature_extractor", lambda name: Teacher())
    monkeypatch.setattr(feature_networks, "TEACHER_EVERY", 1)
    net, about = train_network("fashion-f", some(300, 7), some(100, 11), Schedule(6, 50, 2e-3))
    assert float(about["heldout_variance_explained"]) > 0.5 and about["teacher"] == "efficientnet-lite0"
    again, _ = train_network("fashion-f", some(300, 7), some(100, 11), Schedule(6, 50, 2e-3))
    for key, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_targets_are_principal_components():
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 3, 1, 1, 0.1, 0.1])
    targets = Targets.of(x, 2)
    unit = torch.cov(x.T.double()).diagonal().mean().sqrt()
    values = torch.linalg.eigvalsh(torch.cov(x.T.double())).flip(0)[:2]
    torch.testing.assert_close(targets.train.double().var(0), values / unit**2, rtol=1e-5, atol=0)
    assert targets.explained(x, targets.train) == pytest.approx(1)
    assert targets.explained(x, torch.zeros(200, 2)) == pytest.approx(0, abs=1e-6)


def test_the_command_trains_what_it_is_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sit_rl.pretraining.embedded.load_embedded", lambda split: some(100, 9))
    Features(out=tmp_path, networks=("fashion-c", "fashion-d", "fashion-e"), passes=1, batch=50).run()
    assert len(list(tmp_path.iterdir())) == 3 and "fashion-e: heldout accuracy" in capsys.readouterr().out
    tensors = load_file(tmp_path / "fashion-e.safetensors")
    assert all(torch.isfinite(value).all() for value in tensors.values())
    monkeypatch.setattr("sys.argv", ["pretrain", "features", "--networks", "fashion-z", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert re.search("--networks fashion-z is not embedded; choose of fashion-a", capsys.readouterr().err)
