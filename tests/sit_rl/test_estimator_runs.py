"""Trainings with adjoint matching, merging and step control: resumed bit for bit, and two ranks are one."""

import pytest
import torch

from sit_rl.learner import checkpoint
from sit_rl.models.loading import save_model
from sit_rl.models.sit import SiT
from tests.support.tiny_runs import TINY, completed, final, lines

SHORT = ("--steps", 3, "--evaluate-every", 0)


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """Three checkpoints of one shape."""
    folder = tmp_path_factory.mktemp("members")
    for i in range(3):
        torch.manual_seed(i)
        model = SiT(TINY)
        for p in model.final_layer.parameters():
            torch.nn.init.normal_(p, std=0.1)
        save_model(model, folder / f"{i}.safetensors")
    return [folder / f"{i}.safetensors" for i in range(3)]


@pytest.fixture
def flags(members):
    """Flags of each kind of training. KID compares steps of 20 images, which are too few for FD."""
    sampler = ("--rollout-adjoint.steps", 4, "--rollout.steps", 4)
    control = ("--step-control", "--reference", "fresh", "--lr", 0.01)
    return {
        "adjoint_matching": (*SHORT, *sampler, *control, "--estimator", "adjoint_matching", "--reward", "kid"),
        "merging": (*SHORT, "--estimator", "merging", "--merge", *members),
    }


# one kind by default, because each needs three trainings
@pytest.mark.parametrize("name", ["adjoint_matching", pytest.param("merging", marks=pytest.mark.slow)])
def test_killed_it_ends_bit_for_bit_the_same(forked, command, flags, tmp_path, name):
    """Adjoint matching with step control, whose images of the last step are in the checkpoint; and merging."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    completed(forked, command(whole, *flags[name]))
    forked.run({"argv": command(killed, *flags[name]), "when": str(killed / "checkpoints" / "step-000002")})
    assert not (killed / "summary.json").exists() and checkpoint.latest(killed / "checkpoints") is not None
    completed(forked, command(killed, *flags[name]))
    (a, values_a), (b, values_b) = final(whole), final(killed)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert values_a["pace"] == values_b["pace"] and values_a["evaluations"] == values_b["evaluations"]
    assert lines(whole) == lines(killed)
    if name == "adjoint_matching":
        assert "control.rows" in a and lines(whole)[2]["step_control"].keys() >= {"pace", "predicted", "realised"}
    else:
        assert sum(lines(whole)[2]["coefficients"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adjoint_matching", "merging"])
def test_two_ranks_are_one(forked, command, flags, tmp_path, name):
    """The first step's images and rewards to the last bit; weights up to the rounding of sums, which steps magnify."""
    one, two = tmp_path / "one", tmp_path / "two"
    completed(forked, command(one, *flags[name]))
    results = forked.ranks(2, command(two, *flags[name]))
    assert [r["code"] for r in results] == [0, 0], results[0]["out"] + results[1]["out"]
    assert lines(one)[0]["subset_rewards"] == lines(two)[0]["subset_rewards"]
    expected = final(one)[0]
    for key, value in final(two)[0].items():
        if key.startswith("ema."):
            torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-4)


def test_what_cannot_be_followed_or_merged_is_one_sentence(forked, command, members, tmp_path):
    score = tmp_path / "score.py"
    score.write_text("def f(images, labels):\n    return images.float().mean((1, 2, 3))\n")
    adjoint = ("--estimator", "adjoint_matching")
    cases = {
        (*adjoint, "--reward", "fd", f"python:{score}:f"): "has none; leave it out, or choose another estimator",
        (*adjoint, "--credit", "subset"): "--estimator adjoint_matching moves single images; --credit is subset",
        (*adjoint, "--reference", "refresh"): "--reference is refresh, choose rolling or fresh",
        ("--estimator", "merging", "--merge", members[0], "nowhere.pt"): "--merge nowhere.pt does not exist",
    }
    results = forked.run(*({"argv": command(tmp_path / "run", *flags)} for flags in cases))
    for result, message in zip(results, cases.values(), strict=True):
        assert result["code"] == 2 and message in result["out"], result["out"]
        assert len([line for line in result["out"].splitlines() if "error" in line]) == 1
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
