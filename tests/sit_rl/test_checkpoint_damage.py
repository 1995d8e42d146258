"""Checkpoints of whole trainings against damage of each file: refused in one sentence, or taken bit for bit.

Three trainings cover what a checkpoint may hold: a mix of rewards with step control and several averages, adjoint
matching, and merging.
"""

import os
import shutil

import pytest
import torch

from sit_rl.learner import checkpoint
from sit_rl.models.loading import save_model
from sit_rl.models.sit import SiT
from sit_rl.runs.resume import checkpoint_to_resume
from sit_rl.train import parse
from sit_rl.training.state import read_values, require_own
from tests.support.tiny_runs import TINY, completed, final

SHORT = ("--steps", 2, "--evaluate-every", 0)
CONTROL = ("--step-control", "--reference", "fresh")
AVERAGES = ("--ema-extra", 0.9, "--ema-power", 0.1, "--ema-snapshot-every", 1)
ADJOINT = ("--estimator", "adjoint_matching", "--rollout-adjoint.steps", 4, "--rollout.steps", 4)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags of each training."""
    folder = tmp_path_factory.mktemp("members")
    for i in range(2):
        torch.manual_seed(i)
        save_model(SiT(TINY), folder / f"{i}.safetensors")
    merge = ("--estimator", "merging", "--merge", *sorted(folder.iterdir()))
    return {
        "mix": (*SHORT, *CONTROL, *AVERAGES, "--reward", "kid", "mmd=0.5", "sliced_wasserstein"),
        "adjoint_matching": (*SHORT, *CONTROL, *ADJOINT, "--reward", "kid"),
        "merging": (*SHORT, *merge),
    }


@pytest.fixture(scope="module", params=["mix", "adjoint_matching", "merging"])
def trained(request, forked, command, flags, tmp_path_factory):
    """A finished run and its config."""
    run = tmp_path_factory.mktemp(request.param) / "run"
    argv = command(run, *flags[request.param])
    completed(forked, argv)
    return run, parse(list(map(str, argv)))


@pytest.fixture(scope="module")
def other(forked, command, flags, tmp_path_factory):
    """A checkpoint of the same step of another run."""
    run = tmp_path_factory.mktemp("other") / "run"
    completed(forked, command(run, *flags["mix"], "--seed", 1))
    return checkpoint.latest(run / "checkpoints")


def refusal(config):
    """The sentence with which a run refuses its checkpoint; None where it goes on from it."""
    try:
        path = checkpoint_to_resume(config)
        require_own(path, read_values(path), config)
    except ValueError as error:
        return str(error)
    return None


def kept(run):
    """The newest checkpoint's tensors, as bytes by name."""
    return {name: value.numpy().tobytes() for name, value in final(run)[0].items()}


def flipped(good, place):
    return good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]


DAMAGE = {
    "first byte": lambda good: flipped(good, 0),
    "a byte within": lambda good: flipped(good, len(good) // 2),
    "a late byte": lambda good: flipped(good, len(good) - 2),
    "cut": lambda good: good[: len(good) // 2],
    "longer": lambda good: good + good[-9:],
    "empty": lambda good: b"",
    "zeros": lambda good: good[: len(good) // 2].ljust(len(good), b"\0"),
    "text": lambda good: b"\xe9\n",
}


def test_what_the_checkpoints_hold(trained):
    """The parts that only these trainings have."""
    parts = {name.split(".")[0] for name in kept(trained[0])}
    if trained[1].files.merge:
        assert parts == {"model", "ema", "optimizer", "reference"}
    else:
        assert {"control", "model", "ema", "optimizer"} <= parts
    assert ("ema-power-0" in parts) == bool(trained[1].update.ema_power)
    assert refusal(trained[1]) is None


def test_every_damage_of_every_file_is_refused(trained, other):
    run, config = trained
    older, newest = checkpoint.checkpoints(run / "checkpoints")
    before, tried = kept(run), 0
    for path in sorted(newest.iterdir()):
        good = path.read_bytes()
        foreign = [(older / path.name).read_bytes(), (other / path.name).read_bytes()]
        for bad in [*(change(good) for change in DAMAGE.values()), *foreign, None]:
            path.unlink()
            if bad is not None:
                path.write_bytes(bad)
            told = refusal(config)
            assert told is not None and str(newest) in told and "\n" not in told, (path.name, bad and bad[:40])
            assert "delete it to resume from the one before, step-000001" in told
            path.write_bytes(good)
            tried += 1
        for put in (os.mkdir, os.mkfifo, lambda place: os.symlink("/dev/zero", place)):
            path.unlink()
            put(path)
            assert str(newest) in refusal(config)
            path.rmdir() if put is os.mkdir else path.unlink()
            path.write_bytes(good)
            tried += 1
    assert tried == 14 * len(list(newest.iterdir())) >= 14 * 3
    assert refusal(config) is None and kept(run) == before


def test_a_whole_checkpoint_from_elsewhere_is_refused(trained, other):
    """Its hashes are right: another run's, one of another step, and one more of the same step."""
    run, config = trained
    older, newest = checkpoint.checkpoints(run / "checkpoints")
    aside = newest.rename(run / "aside")
    for source, reason in ((other, "is of a run with another --"), (older, "is of step 1, not its name's")):
        shutil.copytree(source, newest)
        told = refusal(config)
        assert told is not None and reason in told and f"checkpoint {newest}" in told
        shutil.rmtree(newest)
    aside.rename(newest)
    assert refusal(config) is None


def test_files_of_others_in_a_checkpoint(trained, other):
    """What torch would read is refused, other files are ignored."""
    run, config = trained
    newest, before = checkpoint.latest(run / "checkpoints"), kept(run)
    for name in (".DS_Store", "notes.txt", "state.json~", "Thumbs.db"):
        (newest / name).write_bytes(b"\0 anything")
        assert refusal(config) is None and kept(run) == before
        (newest / name).unlink()
    copied = shutil.copy(next(other.glob("*.safetensors")), newest / "more.safetensors")
    assert "more.safetensors is not listed in SHA256SUMS" in refusal(config)
    os.unlink(copied)
