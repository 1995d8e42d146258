"""A reward of images with a state: its scores are exact changes, its state comes back, its gradient is that of FD."""

import numpy as np
import pytest
import torch
from torch import nn

from fastfid import DistributionReward, FeatureExtractor, FeatureMoments, KernelReward, frechet_distance
from fastfid.rewards.reference_rows import ReferenceRows
from tests.support.small_network import pixels

pytestmark = pytest.mark.usefixtures("own_cache")
D = 3


class Corners(nn.Module):
    """float64 features [n, 3]: smooth functions of the pixels, in float64."""

    def __init__(self, seed=0):
        super().__init__()
        weights = np.random.default_rng(seed).normal(size=(D, 1, 12, 12)) / 40
        self.weights = nn.Parameter(torch.from_numpy(weights))

    def forward(self, x):
        return torch.tanh(nn.functional.conv2d(x, self.weights).flatten(1))


def network(seed=0, name="corners"):
    return FeatureExtractor.from_module(Corners(seed), D, lambda x: x.double() / 255, name=name)


def images(n, seed):
    return torch.from_numpy(pixels(n, seed))[:, None]


REAL, SET, NEW = images(90, 1), images(60, 2), images(8, 3)


def exact(net=None):
    """A reward on the small network, in float64."""
    return DistributionReward(REAL, net or network(), size=len(SET), dtype=torch.float64)


def fd(net, pictures):
    real, other = (FeatureMoments.from_features(net(x)) for x in (REAL, pictures))
    return float(frechet_distance(real, other))


def test_a_score_is_what_the_distance_gains():
    net, reward = network(), exact()
    reward.refresh(SET)
    assert reward.count == len(SET) and reward.distances == {"corners": pytest.approx(fd(net, SET), rel=1e-6)}
    scores = reward(NEW)
    expected = []
    for i, image in enumerate(NEW):  # image i replaces the i-th oldest
        without = torch.cat([SET[:i], SET[i + 1 :]])
        swapped = SET.clone()
        swapped[i] = image
        expected.append(fd(net, without) - fd(net, swapped))
    np.testing.assert_allclose(reward.credits["corners"], expected, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(scores, np.array(expected) / np.std(expected, ddof=1), rtol=1e-4, atol=1e-5)
    # the images have joined the set, and the unit stays that of the first call
    assert reward.distances["corners"] == pytest.approx(fd(net, torch.cat([NEW, SET[8:]])), rel=1e-6)
    again = reward(NEW, roll=False)
    unit = reward.credits["corners"] / again
    np.testing.assert_allclose(unit, np.std(expected, ddof=1), rtol=1e-4)
    assert torch.equal(reward(NEW, roll=False), again)


def test_before_it_is_full_a_score_is_the_change_by_leaving_the_image_out():
    net, reward = network(), exact()
    with pytest.raises(ValueError, match="the reference set has 2 images with these; pass at least 3"):
        reward(SET[:2])
    reward(SET[:5])
    reward(NEW)
    everything = torch.cat([SET[:5], NEW])
    expected = [fd(net, torch.cat([everything[:i], everything[i + 1 :]])) - fd(net, everything) for i in range(5, 13)]
    np.testing.assert_allclose(reward.credits["corners"], expected, rtol=1e-4, atol=1e-9)
    assert reward.count == 13
    reward.roll(SET)  # more than there is room for: the newest stay
    assert reward.count == len(SET) and reward.distances["corners"] == pytest.approx(fd(net, SET), rel=1e-6)


def test_floats_and_layouts_are_the_same_images():
    reward = exact()
    reward.refresh(SET)
    expected = reward(NEW, roll=False)
    for same in (NEW.float() / 255, NEW.numpy(), NEW.permute(0, 2, 3, 1).numpy(), NEW.double() / 255):
        assert torch.equal(reward(same, roll=False), expected)
    other = DistributionReward(REAL, network(), size=60, value_range=(-1, 1), dtype=torch.float64)
    other.refresh([SET[:30].float() / 127.5 - 1, SET[30:].float() / 127.5 - 1])  # batches
    assert torch.equal(other(NEW.float() / 127.5 - 1), expected)
    with pytest.raises(ValueError, match=r"images run from -1 to .* and value_range is \(0.0, 1.0\)"):
        reward(NEW.float() / 127.5 - 1)


def test_several_networks_weigh_alike():
    nets = {network(0, "a"): 1.0, network(5, "b"): 3.0}
    reward = DistributionReward(REAL, nets, size=len(SET), dtype=torch.float64)
    reward.refresh(SET)
    scores = reward(NEW)
    a, b = (reward.credits[name] / reward.credits[name].std() for name in "ab")
    np.testing.assert_allclose(scores, (a + 3 * b) / 4, rtol=1e-6)
    alone = exact(network(5, "b"))
    alone.refresh(SET)
    alone(NEW)
    np.testing.assert_allclose(alone.credits["b"], reward.credits["b"], rtol=1e-3)


def test_any_set_reward_can_take_the_place_of_fd():
    reward = DistributionReward(REAL, network(), size=len(SET), make=KernelReward)
    reward.refresh(SET)
    net = network()
    expected = KernelReward(net(REAL)).prepare(net(SET)).distance
    assert reward.distances["corners"] == pytest.approx(expected)
    assert reward(NEW).std() == pytest.approx(1)
    with pytest.raises(ValueError, match="change has a gradient for the Fréchet distance only, not for kid"):
        reward.change(NEW.float() / 255)


def test_its_state_comes_back(tmp_path):
    reward = exact()
    reward.refresh(SET, [f"prompt {i % 4}" for i in range(60)])
    reward(NEW, ["prompt 1"] * 8)
    torch.save(reward.state_dict(), tmp_path / "state.pt")
    other = exact()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    labels = ["prompt 3", "prompt 0", "new"] + ["prompt 2"] * 5
    assert torch.equal(other(NEW, labels), reward(NEW, labels)) and other.distances == reward.distances
    with pytest.raises(ValueError, match="the state is of other networks: corners has"):
        exact(network(seed=7)).load_state_dict(reward.state_dict())
    with pytest.raises(ValueError, match="the state is of other real images: corners has"):
        DistributionReward(REAL[:50], network(), size=60).load_state_dict(reward.state_dict())
    with pytest.raises(ValueError, match="the state has 60 images and size is 50; raise size"):
        DistributionReward(REAL, network(), size=50).load_state_dict(reward.state_dict())


def test_a_new_image_replaces_the_oldest_of_its_key():
    rows = ReferenceRows.empty([1], torch.device("cpu"))
    rows = rows.appended([torch.arange(6.0)[:, None]], torch.tensor([0, 1, 0, 1, 2, 0]), most=6)
    assert rows.oldest(torch.tensor([1, 1, 0])).tolist() == [1, 3, 0]
    assert rows.oldest(torch.tensor([1, 1, 1, 9, 2])).tolist() == [1, 3, 0, 2, 4]  # then the oldest of all
    after = rows.replaced(torch.tensor([1, 0]), [torch.tensor([[10.0], [11.0]])], torch.tensor([1, 0]))
    assert after.features[0].flatten().tolist() == [11, 10, 2, 3, 4, 5] and rows.features[0][0] == 0
    assert after.oldest(torch.tensor([1, 0, 0])).tolist() == [3, 2, 5]


# --- the gradient ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [True, False])
def test_the_change_of_fd_is_differentiable_in_the_pixels(together):
    reward = exact()
    reward.refresh(SET)
    x = (NEW[:3].double() / 255).requires_grad_()
    change = reward.change(x, together=together)
    assert change.shape == (() if together else (3,))
    change.sum().backward()
    direction = torch.from_numpy(np.random.default_rng(0).normal(size=tuple(x.shape)))
    with torch.no_grad():
        step = 1e-5
        ends = [reward.change(x + sign * step * direction, together=together).sum() for sign in (1, -1)]
    numerical = float(ends[0] - ends[1]) / (2 * step)
    assert float((x.grad * direction).sum()) == pytest.approx(numerical, rel=1e-5)
    assert all(p.grad is None and p.requires_grad for p in reward.parts[0].extractor.network.parameters())


def test_the_change_is_that_of_the_distance():
    net, reward = network(), exact()
    reward.refresh(SET)
    change = reward.change(NEW.double() / 255)
    assert float(change) == pytest.approx(fd(net, torch.cat([NEW, SET[8:]])) - fd(net, SET), rel=1e-5)


def test_a_preparation_that_rounds_has_no_gradient():
    net = FeatureExtractor.from_module(Corners(), D, lambda x: x.to(torch.uint8).double() / 255, name="rounds")
    reward = DistributionReward(REAL, net, size=60)
    reward.refresh(SET)
    with pytest.raises(ValueError, match="rounds passes no gradient on to the images"):
        reward.change((NEW.float() / 255).requires_grad_())
    with pytest.raises(ValueError, match=r"images must be a float tensor \[n, c, h, w\], got torch.uint8"):
        reward.change(NEW)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DistributionReward(REAL, network(), size=2), "size is 2; the reference set needs at least 3"),
        (lambda: DistributionReward(REAL, []), "networks is empty"),
        (lambda: DistributionReward(REAL, [network(), network()]), "two networks are called corners"),
        (lambda: DistributionReward(REAL, {network(): 0}), "the weight of network .* is 0; it must be a pos"),
        (lambda: DistributionReward(REAL, [Corners()]), "network is a Corners; pass a name"),
        (lambda: DistributionReward(REAL, Corners()), "networks is a Corners; pass names or FeatureExtractors"),
        (lambda: DistributionReward({"b": REAL}, network()), "real has nothing for the network corners, only for b"),
        (lambda: DistributionReward(REAL, network(), value_range=(1, 0)), r"value_range is \(1, 0\)"),
        (lambda: DistributionReward(torch.zeros(9, 4), network()), "real has d = 4"),
        (
            lambda: DistributionReward(FeatureMoments(9, torch.zeros(3), torch.eye(3)), network(), make=KernelReward),
            "make needs the features of real images, and real holds moments only",
        ),
        (lambda: DistributionReward(REAL, network(), make=lambda x: 3), "make returned a int; return a set reward"),
        (lambda: DistributionReward(REAL, network(), make=KernelReward, tol=1), "tol are options of the Fréchet"),
        (lambda: exact()(NEW[:0]), "there are no images"),
        (lambda: exact()(images(61, 4)), "61 images exceed the reference set of 60"),
        (lambda: exact()(NEW, [1, 2]), "labels must be one for each of the 8 images, got 2 of them"),
        (lambda: exact()(NEW, [0.5] * 8), "labels must be class indices from 0, or texts, got 0.5"),
        (lambda: exact().change(NEW.float()), "8 images cannot replace others in a reference set of 0"),
        (lambda: exact()(NEW[:1].repeat(8, 1, 1, 1)), "the first 8 images have the same credit by corners"),
    ],
)  # fmt: skip
def test_what_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert len(str(error.value).splitlines()) == 1
