"""What is chosen from the images, and the networks that are trained on them."""

import math
from dataclasses import replace

import pytest
import torch

from fastfid import feature_extractor
from fastfid.features.small_networks import SmallNet, SmallNetConfig, load_small_net
from fastfid.features.weight_files import read_state
from sit_rl.components.image_sets import ImageSet
from sit_rl.files.tensor_files import write_safetensors
from sit_rl.pretraining import networks
from sit_rl.pretraining.plan import Choices, choose_size, duration, flow_settings, model_config, patch_of

GIVEN = Choices(patch=0, width=0, depth=0, iterations=None, lr=None, batch=64, ema=None, seed=0)


@pytest.mark.parametrize(
    ("sides", "size"),
    [
        ([(32, 32)] * 3, 32),
        ([(28, 28)], 28),
        ([(48, 48)], 48),
        ([(31, 31)], 32),  # no patch divides 31
        ([(200, 300), (500, 100), (80, 90)], 64),
        ([(40, 60), (60, 40), (500, 500)], 32),
        ([(256, 256)], 64),
        ([(20, 20)], 20),
    ],
)
def test_size_follows_from_the_images(sides, size):
    assert choose_size(sides)[0] == size


@pytest.mark.parametrize(
    ("shape", "patch", "width"),
    [((1, 28, 28), 7, 128), ((3, 32, 32), 4, 128), ((3, 64, 64), 8, 256), ((4, 32, 32), 4, 128), ((1, 8, 8), 2, 128)],
)
def test_a_token_is_wide_enough_for_the_values_of_its_patch(shape, patch, width):
    config = model_config(shape, 10, GIVEN)
    assert (config.patch_size, config.width, config.depth) == (patch, width, 4)
    assert config.width >= 1.25 * shape[0] * patch**2 and config.image_size % patch == 0


def test_numbers_that_do_not_fit_are_refused():
    assert patch_of(31) == 0
    with pytest.raises(ValueError, match="no patch divides samples of 31×31.*--patch or --size, such as 32"):
        model_config((3, 31, 31), 2, GIVEN)
    with pytest.raises(ValueError, match="--patch 5 does not divide samples of 32×32"):
        model_config((3, 32, 32), 2, Choices(5, 0, 0, None, None, 64, 0.999, 0))
    with pytest.raises(ValueError, match="--width is 100; it must be a multiple of 32"):
        model_config((3, 32, 32), 2, Choices(0, 100, 0, None, None, 64, 0.999, 0))


def test_iterations_and_rate_follow_from_number_and_width():
    few, many, wide = (flow_settings(n, width, GIVEN) for n, width in ((300, 128), (10_000, 128), (10_000, 256)))
    assert few.iterations == round(300_000 / 64) and many.iterations == round(1_500_000 / 64)
    assert (many.lr, wide.lr) == (2e-3, 1e-3)
    short = flow_settings(300, 128, replace(GIVEN, iterations=1_000, ema=None))
    assert (many.ema, short.ema) == (0.999, 0.99) and flow_settings(300, 128, replace(GIVEN, ema=0.9)).ema == 0.9
    assert duration(45) == "45 s" and duration(600) == "10 minutes" and duration(7200) == "2.0 hours"


# --- networks --------------------------------------------------------------------------------------------------------


def test_nt_xent_is_the_equation():
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 7)
    z = torch.nn.functional.normalize(torch.cat([a, b]), dim=1).double()
    expected = 0.0
    for i in range(10):
        copy = (i + 5) % 10
        others = sum(math.exp(float(z[i] @ z[j]) / networks.TEMPERATURE) for j in range(10) if j != i)
        expected -= math.log(math.exp(float(z[i] @ z[copy]) / networks.TEMPERATURE) / others) / 10
    assert float(networks.nt_xent(a, b)) == pytest.approx(expected, rel=1e-5)


def test_reward_and_judge_differ_and_fit_the_images():
    images = ImageSet(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4) % 3, 3)
    reward, judge = (networks.config_of(role, images, 300) for role in networks.ROLES)
    assert (reward.channels, reward.side, reward.outputs) == (3, 32, 3) and len(reward.widths) == 3
    assert reward.dim == 64 and judge.dim == 48 and reward.kernel != judge.kernel
    assert reward.activation != judge.activation and not set(reward.widths) & set(judge.widths)


def test_an_imagenet_network_judges_only_where_it_is_installed_and_the_images_are_enough(monkeypatch):
    assert networks.choose_networks(5_000).names["judge"] == "efficientnet-lite0"
    assert networks.choose_networks(300).names["judge"] == "judge.safetensors"
    monkeypatch.setattr(networks, "IMAGENET_PACKAGES", ("no_such_package",))
    chosen = networks.choose_networks(5_000)
    assert chosen.names["judge"] == "judge.safetensors" and "fastfid[efficientnet]" in chosen.reason


def test_a_small_network_comes_back_from_its_file(tmp_path):
    torch.manual_seed(0)
    config = SmallNetConfig(channels=3, side=16, widths=(8, 8), dim=5, outputs=2)
    net = SmallNet(config).eval()
    tensors = {key: value.contiguous() for key, value in net.state_dict().items()}
    write_safetensors(tmp_path / "a.safetensors", tensors, config.to_metadata())
    found = feature_extractor(f"small:{tmp_path / 'a.safetensors'}")
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        expected = net.features(images.float() / 127.5 - 1)
    assert torch.equal(found(images), expected) and found.dim == 5
    swapped = found(images.flip(1))
    assert not torch.allclose(swapped, expected, atol=1e-3)  # it sees colour
    assert found(images[:, :1]).shape == (4, 5) and found(torch.nn.functional.pad(images, (2, 2, 2, 2))).shape == (4, 5)
    assert found.name == "small:a" and "16x16" in found.preprocessing


def test_a_damaged_small_network_is_refused(tmp_path):
    """Another bit of its weights would give other features without a word."""
    config = SmallNetConfig(channels=1, side=8, widths=(4, 4), dim=3, outputs=2)
    path = tmp_path / "a.safetensors"
    tensors = {key: value.contiguous() for key, value in SmallNet(config).state_dict().items()}
    write_safetensors(path, tensors, config.to_metadata())
    good = path.read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    for i in range(start, len(good), 41):
        path.write_bytes(good[:i] + bytes([good[i] ^ 1 << i % 8]) + good[i + 1 :])
        for read in (load_small_net, read_state):
            with pytest.raises(ValueError, match="a.safetensors is damaged, or another program has changed it"):
                read(path)
    path.write_bytes(good)
    assert set(read_state(path)) == set(tensors) == set(load_small_net(path).state_dict())


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({}, "do not say fastfid.small/1"),
        ({"dim": "9999999"}, "its dim is 9999999"),
        ({"activation": "exec"}, "its activation is 'exec'"),
        ({"widths": "8 9"}, "size mismatch|mismatch"),
    ],
)
def test_other_files_are_no_small_networks(tmp_path, metadata, told):
    config = SmallNetConfig(channels=3, side=16, widths=(8, 8), dim=5, outputs=2)
    tensors = {key: value.contiguous() for key, value in SmallNet(config).state_dict().items()}
    whole = config.to_metadata() | metadata if metadata else {}
    write_safetensors(tmp_path / "a.safetensors", tensors, whole)
    with pytest.raises(ValueError, match=f"a.safetensors is not a small network .*({told}).*pass another file"):
        feature_extractor(f"small:{tmp_path / 'a.safetensors'}")
    with pytest.raises(FileNotFoundError, match="b.safetensors does not exist; train small networks"):
        feature_extractor(f"small:{tmp_path / 'b.safetensors'}")
