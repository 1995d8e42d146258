"""A Python function as a reward: its changes, and what it must not return."""

import sys

import numpy as np
import pytest
import torch

from fastfid import CallableReward, swap_credit
from fastfid.rewards.per_image import ScoreReward

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (20, 3, 4, 4)).astype(np.uint8))
LABELS = torch.arange(20) % 5


def brightness(images, labels):
    return images.float().mean((1, 2, 3)) + labels


def test_changes_are_those_of_the_mean_reward():
    prepared = CallableReward(brightness, "brightness").prepare(IMAGES, LABELS)
    scores = brightness(IMAGES, LABELS).double().numpy()
    assert prepared.distance == pytest.approx(-scores.mean(), rel=1e-12)
    removed, added = torch.tensor([[0, 3], [7, 1]]), 255 - IMAGES[:4].reshape(2, 2, 3, 4, 4)
    new = brightness(added.flatten(0, 1), LABELS[removed].flatten()).double().numpy().reshape(2, 2)
    expected = [
        scores.mean() - np.concatenate([np.delete(scores, r), s]).mean() for r, s in zip(removed, new, strict=True)
    ]
    np.testing.assert_allclose(prepared.change(removed, added), expected, rtol=1e-9)
    # an image is worth its reward beside the mean of the others
    left_out = np.array([scores.mean() - np.delete(scores, i).mean() for i in range(20)])
    np.testing.assert_allclose(prepared.leave_one_out(), left_out, rtol=1e-9, atol=1e-14)
    credit = swap_credit(prepared, removed, added)
    swapped = (scores[removed] - new) / 20
    np.testing.assert_allclose(credit, left_out[removed] - swapped, rtol=1e-9, atol=1e-14)
    # the credit is the reward up to a factor and a term of the old image
    assert np.corrcoef((credit - torch.from_numpy(left_out[removed] - scores[removed] / 20)).flatten(), new.flatten())[
        0, 1
    ] == pytest.approx(1)


def test_it_works_without_labels_on_any_rows():
    prepared = CallableReward(lambda rows, labels: rows[:, 0], "first").prepare(torch.arange(8.0).view(4, 2))
    assert prepared.change([[0]], [[[6.0, 0.0]]]).item() == pytest.approx(-6 / 4)
    assert prepared.change(torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0, 1, 2)).shape == (0,)


def test_lists_arrays_and_integers_are_rewards():
    for function in (
        lambda x, y: list(range(len(x))),
        lambda x, y: np.arange(len(x)),
        lambda x, y: torch.arange(len(x)),
    ):
        prepared = CallableReward(function, "rank").prepare(IMAGES)
        assert prepared.scores.dtype == torch.float64 and prepared.scores.tolist() == list(range(20))


def test_floats_of_a_list_keep_their_digits_and_may_have_been_float32():
    """tolist() tells no type, so equal images are recognised as those of float32 are."""
    exact = [1 / 3 + i / 7 for i in range(20)]
    prepared = CallableReward(lambda x, y: exact[: len(x)], "exact").prepare(IMAGES)
    assert prepared.scores.tolist() == exact
    single = CallableReward(lambda x, y: torch.tensor(exact).tolist(), "single").prepare(IMAGES)
    assert prepared.rounding == pytest.approx(single.rounding) and single.rounding > 1e-8
    with pytest.raises(ValueError, match="gives all 20 images the same reward"):
        CallableReward(lambda x, y: [1 / 3, *[1 / 3 * (1 + 1e-7)] * 19], "equal").prepare(IMAGES)


def test_scores_from_elsewhere_are_a_reward():
    scores = brightness(IMAGES, LABELS)
    expected = CallableReward(brightness, "brightness").prepare(IMAGES, LABELS)
    prepared = ScoreReward("brightness").prepare(scores[:, None])
    assert prepared.distance == expected.distance
    assert torch.equal(prepared.leave_one_out(), expected.leave_one_out())
    new = torch.tensor([[[3.5], [200.0]]])
    assert prepared.change([[0, 1]], new).item() == pytest.approx(-(203.5 - scores[:2].sum().item()) / 20)
    with pytest.raises(ValueError, match="reward brightness gives all 20 images the same reward 2"):
        ScoreReward("brightness").prepare(torch.full((20, 1), 2.0))


def with_nan(images, labels):
    rewards = images.float().mean((1, 2, 3))
    rewards[3] = float("nan")
    return rewards


def leaving(images, labels):
    sys.exit(3)


def raising(images, labels):
    raise KeyError("weights of the model")


def writing(images, labels):
    images.mul_(2)
    return torch.arange(len(images))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x, y: x.float().mean((2, 3)),
            r"^reward mine returned shape \(20, 3\) for 20 images; return one number",
        ),
        (lambda x, y: torch.arange(len(x))[:, None], r"^reward mine returned shape \(20, 1\)"),
        (lambda x, y: torch.tensor(1.0), r"^reward mine returned shape \(\) for 20 images"),
        (lambda x, y: None, "^reward mine returned NoneType"),
        (lambda x, y: {"reward": 1}, "^reward mine returned dict"),
        (lambda x, y: torch.ones(20, dtype=torch.complex64), "^reward mine returned torch.complex64"),
        (with_nan, "^reward mine returned NaN or infinity for 1 of 20 images, first image 3"),
        (lambda x, y: torch.full((20,), 1e30) ** 2, "^reward mine returned NaN or infinity for 20 of 20 images"),
        (lambda x, y: torch.ones(20), "^reward mine gives all 20 images the same reward 1"),
        (lambda x, y: 0.1 * (1 + 1e-7 * torch.arange(20) / 19), "^reward mine gives all 20 images the same reward 0.1"),
        (lambda x, y: [3] * len(x), "^reward mine gives all 20 images the same reward 3"),
        (lambda x, y: torch.zeros(20), "^reward mine gives all 20 images the same reward 0"),
        (leaving, r"^reward mine raised SystemExit for images \(20, 3, 4, 4\): 3$"),
        (raising, r"^reward mine raised KeyError for images \(20, 3, 4, 4\): it has no 'weights of the model'$"),
        (lambda x: x, r"^reward mine raised TypeError"),
        (writing, "^reward mine wrote into its images"),
    ],
)
def test_functions_that_are_no_reward(function, message):
    with pytest.raises(ValueError, match=message) as error:
        CallableReward(function, "mine").prepare(IMAGES.clone(), LABELS)
    assert len(str(error.value).splitlines()) == 1


def test_a_function_that_breaks_later_is_named_too():
    calls = []

    def once(images, labels):
        calls.append(len(images))
        return torch.arange(len(images)) if len(calls) == 1 else torch.full((len(images),), torch.nan)

    prepared = CallableReward(once, "mine").prepare(IMAGES, LABELS)
    with pytest.raises(ValueError, match="reward mine returned NaN or infinity for 1 of 1 images"):
        prepared.change([[0]], IMAGES[None, :1])


def test_full_memory_is_not_hidden():
    def full(images, labels):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        CallableReward(full, "mine").prepare(IMAGES)


def test_an_interruption_is_not_hidden():
    def interrupted(images, labels):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CallableReward(interrupted, "mine").prepare(IMAGES)


def test_images_of_another_shape():
    prepared = CallableReward(brightness, "brightness").prepare(IMAGES, LABELS)
    with pytest.raises(ValueError, match=r"added must be \[B, m_a, 3, 4, 4\], got \(1, 1, 3, 8, 8\)"):
        prepared.change([[0]], torch.zeros(1, 1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"at least 2 images \[N, ...\], got shape \(1, 3, 4, 4\)"):
        CallableReward(brightness, "brightness").prepare(IMAGES[:1])
