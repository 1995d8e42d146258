"""States and inputs of a `DistributionReward` that come from elsewhere: one sentence, or taken as they are."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from fastfid import DistributionReward, FeatureExtractor
from fastfid.rewards.adapters import flow_grpo_reward, trl_reward
from tests.support.small_reward import fresh, pixels
from tests.support.small_reward import reward as made

PIXELS = pixels(3, 1)

CHANGES = {
    "networks": [None, 5, [], {}, {"flat": 3}],
    "real": [None, "x", {"flat": "other"}, {"flat": None, 3: 4}],
    "units": [None, {}, {"flat": "x"}, {"flat": 0.0}, {"flat": -1.0}, {"flat": float("nan")}, {"other": 1.0}],
    "rows": [
        None, [], {}, {"flat": torch.zeros(8, 5)}, {"flat": torch.zeros(7, 6)}, {"flat": torch.full((8, 6), torch.nan)},
        {"flat": torch.zeros(8, 6, dtype=torch.float64)}, {"flat": [[0.0] * 6] * 8},
        {"flat": torch.zeros(8, 6), "x": torch.zeros(8, 6)},
    ],
    "keys": [None, [0] * 8, torch.zeros(8), torch.zeros(8, 1, dtype=torch.int64), torch.zeros(9, dtype=torch.int64)],
    "ages": [None, torch.zeros(8, dtype=torch.int64), torch.arange(7), torch.arange(8.0)],
    "texts": [None, "ab", [3], ["a", "a"], {"a": 1}],
}  # fmt: skip


def test_its_own_state_is_taken():
    state = copy.deepcopy(made().state_dict())
    other = fresh()
    other.load_state_dict(state)
    assert torch.equal(other(PIXELS, roll=False), made()(PIXELS, roll=False))


@pytest.mark.parametrize("name", CHANGES)
def test_a_state_of_another_content_is_refused_and_nothing_is_taken(name):
    good = made().state_dict()
    for value in [*CHANGES[name], "left out"]:
        state = (
            {key: each for key, each in good.items() if key != name} if value == "left out" else good | {name: value}
        )
        other = fresh()
        with pytest.raises(ValueError, match="^the state ") as refused:
            other.load_state_dict(state)
        assert "\n" not in str(refused.value) and other.count == 0 and other.parts[0].unit is None
    for nothing in (None, 5, [1], "x"):
        with pytest.raises(ValueError, match="the state is not one of DistributionReward.state_dict"):
            fresh().load_state_dict(nothing)


# --- labels and images of other trainers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        [np.int64(0), np.int64(1), np.int64(0)],
        [torch.tensor(0), torch.tensor(1), torch.tensor(0)],
        np.array([0, 1, 0], ">i2"),
        np.array([0, 1, 0], np.uint64),
        (0, 1, 0),
    ],
    ids=["numpy", "torch", "big-endian", "unsigned", "tuple"],
)
def test_whole_numbers_of_any_type_are_classes(labels):
    expected = made()(PIXELS, [0, 1, 0], roll=False)
    assert torch.equal(made()(PIXELS, labels, roll=False), expected)


@pytest.mark.parametrize(
    "labels",
    [[2**63] * 3, np.full(3, 2**63, np.uint64), [None] * 3, [[1]] * 3, [b"a"] * 3, {1, 2, 3}, [True] * 3, [1.0] * 3],
)
def test_other_labels_are_one_sentence(labels):
    with pytest.raises(ValueError, match="^labels must be "):
        made()(PIXELS, labels)


@pytest.mark.parametrize(
    ("images", "told"),
    [
        ([PIXELS[0], PIXELS[0] / 255], "images are torch.float32 on cpu and torch.uint8 on cpu; pass all of one kind"),
        ([Image.new("RGBA", (6, 5))] * 2, "an image has mode RGBA"),
        ([None, None], "an image cannot be read as a tensor"),
        ([], "there are no images"),
    ],
)
def test_lists_of_images_that_do_not_fit(images, told):
    with pytest.raises(ValueError, match=told):
        trl_reward(made())(None, images)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda r: r.change(PIXELS / 127.5 - 1), "images run from -.* to .* and value_range is .0.0, 1.0."),
        (lambda r: r.change(PIXELS.float().to_sparse()), "images is a sparse_coo tensor"),
        (lambda r: r.change(PIXELS.float().to("meta")), "images is a tensor of shape .* on the device meta"),
        (lambda r: r.change([1]), "images must be a float tensor .n, c, h, w., got a list"),
        (lambda r: r(torch.zeros(3, 3, 0, 0, dtype=torch.uint8)), "raised|NaN or infinity"),
        (lambda r: flow_grpo_reward(r)(PIXELS / 255, None), "prompts are a NoneType; pass a list, or make it with"),
        (lambda r: flow_grpo_reward(r)(PIXELS / 255, "abc"), "prompts are a str; pass a list"),
    ],
)  # fmt: skip
def test_images_and_prompts_that_do_not_fit(call, told):
    with pytest.raises(ValueError, match=told) as refused:
        call(made())
    assert "\n" not in str(refused.value)


def test_what_a_network_or_a_reward_raises_names_it():
    def broken(images):
        return images.float().flatten(1) @ torch.zeros(7, 6)

    network = FeatureExtractor.from_module(Broken(), 6, prepare=broken, name="broken")
    features = torch.rand(9, 6)
    with pytest.raises(
        ValueError, match="the network broken raised RuntimeError for images .3, 3, 5, 6.: mat1 and mat2"
    ):
        DistributionReward(features, network, size=8).refresh(PIXELS)
    with pytest.raises(
        ValueError, match="make raised ZeroDivisionError for the real features .9, 6.: division by zero"
    ):
        DistributionReward(features, network, size=8, make=lambda real: 1 / 0)
    with pytest.raises(ValueError, match="tolerance is no option of SwapEngine; choose from tol, dtype"):
        DistributionReward(features, network, size=8, tolerance=1)


class Broken(torch.nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize(
    "options",
    [
        {"size": 2.5}, {"size": "8"}, {"size": True}, {"batch_size": 0}, {"batch_size": -1}, {"make": 5},
        {"shared": "yes"}, {"value_range": (0.0, float("nan"))}, {"value_range": None}, {"value_range": ("a", "b")},
    ],
    ids=str,
)  # fmt: skip
def test_options_of_another_kind_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"^{name} is "):
        DistributionReward(torch.rand(9, 6), made().parts[0].extractor, **{"size": 8, **options})
