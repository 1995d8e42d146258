"""Runs on a mix of rewards: what they log, resume, ranks, and every component that cannot be used."""

import json

import numpy as np
import pytest
import torch

from fastfid import FeatureMoments, feature_extractor, kid
from sit_rl.components.build import build_components
from sit_rl.presets import PRESETS
from sit_rl.reward.components import reward_side
from sit_rl.train import main
from tests.support.tiny_runs import STEPS, completed, final, lines

SCORE = """
def brightness(images, labels):
    return images.float().mean((1, 2, 3)) + labels

def with_nan(images, labels):
    return brightness(images, labels).log() - float("inf")

def constant(images, labels):
    return labels * 0 + 3

def too_many(images, labels):
    return images.flatten(1).float()

def raising(images, labels):
    raise RuntimeError("no such model")

number = 3
"""
COMPONENTS = ("fd", "kid:fashion-b=0.5", "mmd", "sliced_wasserstein:fashion-b", "density_ratio")


@pytest.fixture(scope="module")
def score_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("functions") / "score.py"
    path.write_text(SCORE)
    return path


@pytest.fixture(scope="module")
def mixed(command, score_file):
    """The tiny run on six components, as a function of its folder and more flags."""
    return lambda out, *more: command(out, "--reward", *COMPONENTS, f"python:{score_file}:brightness=0.2", *more)


@pytest.fixture(scope="module")
def whole(forked, mixed, tmp_path_factory):
    """The uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    result = completed(forked, mixed(folder))
    return folder, result["out"]


def test_every_step_says_what_each_component_adds(whole, score_file):
    folder, out = whole
    score = f"python:{score_file}:brightness"
    names = ["fd:fashion-a", "kid:fashion-b", "mmd:fashion-a", "sliced_wasserstein:fashion-b"]
    names += ["density_ratio:fashion-a", score]
    records = lines(folder)
    assert len(records) == STEPS
    for record in records:
        components = record["components"]
        assert list(components) == names
        assert sum(each["share"] for each in components.values()) == pytest.approx(1)
        assert all(0 < each["fade"] <= 1 and each["credit_std"] > 0 for each in components.values())
        assert record["reference_fd"] == components["fd:fashion-a"]["distance"]
        assert {(a, b) for a, others in record["correlations"].items() for b in others} == {
            (a, b) for i, a in enumerate(names) for b in names[i + 1 :]
        }
    assert [records[0]["components"][name]["weight"] for name in names] == [1, 0.5, 1, 1, 1, 0.2]
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["protocol"]["reward"]) == names
    assert set(summary["protocol"]["reward_networks"]) == {"fashion-a", "fashion-b"}
    assert "−FD (fashion-a) + 0.5 −kid:fashion-b" in out
    page = (folder / "report.html").read_text()
    assert all(name in page for name in names)


def test_killed_it_ends_bit_for_bit_the_same(forked, mixed, whole, tmp_path):
    folder = tmp_path / "killed"
    third = str(folder / "checkpoints" / "step-000003")
    (result,) = forked.run({"argv": mixed(folder), "when": third, "signal": "KILL"})
    assert result["code"] == -9
    result = completed(forked, mixed(folder))
    (a, values_a), (b, values_b) = final(folder), final(whole[0])
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert lines(folder) == lines(whole[0])
    assert values_a["first_credit_std"] == values_b["first_credit_std"] and len(values_a["first_credit_std"]) == 6


def test_two_ranks_have_the_rewards_of_one(forked, mixed, whole, tmp_path):
    for result in forked.ranks(2, mixed(tmp_path / "run")):
        assert result["code"] == 0, result["out"]
    first, second = lines(tmp_path / "run"), lines(whole[0])
    for key in ("components", "correlations", "subset_rewards"):
        assert first[0][key] == second[0][key]
    for a, b in zip(first, second, strict=True):  # later steps follow weights that agree to the rounding of a sum
        np.testing.assert_allclose(a["gradient_norm"], b["gradient_norm"], rtol=1e-2)


@pytest.mark.parametrize("reward", ["kid", "mmd", "sliced_wasserstein", "density_ratio"])
def test_one_component_alone(command, tmp_path, capsys, reward):
    main(command(tmp_path / "run", "--steps", 2, "--reward", reward, "--evaluate-every", 0))
    records = lines(tmp_path / "run")
    for record in records:
        (component,) = record["components"].values()
        assert record["reference_fd"] is None and component["share"] == pytest.approx(1)
    assert (tmp_path / "run" / "report.html").is_file()


def test_subset_credit_of_a_mix(command, tmp_path, capsys):
    flags = ("--steps", 2, "--reward", "fd", "kid", "sliced_wasserstein", "density_ratio", "--credit", "subset")
    main(command(tmp_path / "run", *flags, "--normalise", "batch", "--evaluate-every", 0))
    for record in lines(tmp_path / "run"):
        assert len(record["components"]) == 4 and all(c["credit_std"] > 0 for c in record["components"].values())


def test_a_component_reads_its_own_columns(score_file):
    words = ("kid:fashion-b", "fd", f"python:{score_file}:brightness")
    config = PRESETS["smoke"][1].changed(reward=words)
    components = build_components(config.changed(judge_features=("none",)), torch.device("cpu"), progress=False)
    side = reward_side(config, components, torch.device("cpu"))
    images = torch.randint(0, 256, (23, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(23) % 10
    a, b = (feature_extractor(name)(images) for name in ("fashion-a", "fashion-b"))
    rows = side.rows(a, images, labels, batch=5)
    of = {component.name: rows[:, component.columns] for component in side.components}
    torch.testing.assert_close(of["kid:fashion-b"], b)
    assert torch.equal(of["fd:fashion-a"], a)
    torch.testing.assert_close(of[str(words[2])][:, 0], images.float().mean((1, 2, 3)) + labels)
    assert side.rows(a[:0], images[:0], labels[:0], batch=5).shape == (0, rows.shape[1])
    # the distance is that of the metric over all rows
    real = components.more_real[0].features
    size = len(real)
    prepared = side.components[0].reward.prepare(of["kid:fashion-b"].repeat(100, 1)[:size])
    expected = kid(real, of["kid:fashion-b"].repeat(100, 1)[:size], subsets=1, subset_size=size).mean
    assert prepared.distance == pytest.approx(expected, rel=1e-6)  # the kernels of a reward are float32


# --- what is refused -------------------------------------------------------------------------------------------------


def error_of(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code in (1, 2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--reward", "fid"), "--reward fid: unknown component 'fid'"),
        (("--reward", "fd=0"), "--reward fd=0: the weight '0' is no positive number"),
        (("--reward", "fd", "fd:nothing"), "unknown feature network 'nothing'"),
        (("--reward", "fd:fashion-b"), "--reward does not use --reward-features fashion-a"),
        (
            ("--reward", "fd", "kid:fashion-b", "--judge-features", "fashion-b"),
            "--judge-features fashion-b is a network of --reward; a judge must not be rewarded",
        ),
        (
            ("--reward", "fd", "kid", "--credit", "influence"),
            "--credit influence is known for fd only, not for --reward",
        ),
        (("--reward", "python:/nowhere/score.py:f"), "--reward /nowhere/score.py does not exist"),
    ],
)
def test_components_that_cannot_be_had(command, tmp_path, capsys, flags, message):
    assert message in error_of(command(tmp_path / "run", *flags), capsys)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "has no function missing"),
        ("number", "has no function number"),
        ("with_nan", "with_nan returned NaN or infinity"),
        ("too_many", "too_many returned shape (2, 784) for 2 images"),
        ("raising", "raising raised RuntimeError for images (2, 1, 28, 28): no such model"),
        ("constant", "constant gives all 60 images the same reward 3"),
    ],
)
def test_functions_that_are_no_reward_are_named(command, score_file, tmp_path, capsys, name, message):
    flags = ("--reward", "fd", f"python:{score_file}:{name}", "--evaluate-every", 0)
    error = error_of(command(tmp_path / "run", *flags), capsys)
    assert message in error and f"python:{score_file}:{name}" in error


def test_a_function_that_breaks_in_the_middle_loses_nothing(command, tmp_path, capsys):
    """Mended, the same command goes on from the last step."""
    path = tmp_path / "late.py"
    broken = "calls = []\ndef late(images, labels):\n    calls.append(1)\n    {}return images.float().mean((1, 2, 3))\n"
    path.write_text(broken.format("assert len(calls) < 22, 'out of order'\n    "))
    argv = command(tmp_path / "run", "--reward", "fd", f"python:{path}:late", "--evaluate-every", 0)
    error = error_of(
        argv, capsys
    )  # a trial, 60 images of the reference set and 20 a step, 5 at a time: in the third step
    assert f"reward python:{path}:late raised AssertionError" in error and "out of order" in error
    assert len(lines(tmp_path / "run")) == 2
    path.write_text(broken.format(""))
    main(argv)
    assert len(lines(tmp_path / "run")) == STEPS


def test_a_file_that_cannot_be_imported_is_named(command, tmp_path, capsys):
    path = tmp_path / "broken.py"
    path.write_text("import nothing_of_this_name\n")
    error = error_of(command(tmp_path / "run", "--reward", "fd", f"python:{path}:f"), capsys)
    assert f"{path} raised ModuleNotFoundError: No module named 'nothing_of_this_name' while it was imported" in error


@pytest.mark.parametrize("kind", ["kid", "mmd", "sliced_wasserstein", "density_ratio"])
def test_statistics_are_enough_for_fd_only(command, tmp_path, capsys, kind):
    FeatureMoments(300, torch.zeros(128), torch.eye(128)).save(tmp_path / "real.npz")
    flags = ("--real", tmp_path / "real.npz", "--heldout", tmp_path / "real.npz", "--reward", "fd", kind)
    error = error_of(command(tmp_path / "run", *flags), capsys)
    assert f"--reward {kind}:fashion-a needs the features of real images, and --real holds statistics" in error
