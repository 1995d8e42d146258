"""Checkpoints against damage: of every file, by a byte, a cut, zeros, a swap and a deletion."""

import resource
import shutil
import subprocess

import pytest
import torch

from sit_rl.learner import checkpoint
from sit_rl.runs.run_folder import remove_run


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of steps 1 and 2 in a folder."""
    writer = checkpoint.Writer(tmp_path, 2)
    for step in (1, 2):
        tensors = {"x": torch.arange(6.0) + step, "y": torch.full((2, 3), step)}
        writer.save(step, tensors, {"step": step, "seconds": {"total": 0.5 * step}})
        writer.wait()
    return tmp_path


def load(path):
    """Tensors and values of a checkpoint of these tests."""
    tensors = {"x": torch.empty(6), "y": torch.empty((2, 3), dtype=torch.int64)}
    checkpoint.load_tensors(path, tensors)
    return tensors["x"].tolist(), tensors["y"].tolist(), checkpoint.load_values(path)


def refusal(path):
    """The sentence that refuses a checkpoint; None if it loads as step 2 was saved."""
    try:
        loaded = load(path)
    except ValueError as error:
        return str(error)
    assert loaded == ([2, 3, 4, 5, 6, 7], [[2, 2, 2]] * 2, {"step": 2, "seconds": {"total": 1.0}})
    return None


def test_its_sums_are_those_of_sha256sum(saved):
    newest = checkpoint.latest(saved)
    assert refusal(newest) is None
    names = {path.name for path in newest.iterdir()}
    assert "state.json" in names and any(name.endswith(".safetensors") for name in names)
    checked = subprocess.run(["sha256sum", "--strict", "--check", "SHA256SUMS"], cwd=newest, capture_output=True)
    assert checked.returncode == 0 and len(checked.stdout.splitlines()) == len(names) - 1


def test_every_byte_of_every_file_matters(saved):
    """A bit of each byte flipped: refused with the names of both checkpoints, or loaded as saved."""
    newest = checkpoint.latest(saved)
    for path in newest.iterdir():
        good, refused = path.read_bytes(), 0
        for i in range(len(good)):
            path.write_bytes(good[:i] + bytes([good[i] ^ 1 << i % 8]) + good[i + 1 :])
            sentence = refusal(newest)
            if sentence is not None:
                refused += 1
                assert sentence.startswith(f"checkpoint {newest} cannot be read (") and "\n" not in sentence
                assert sentence.endswith("delete it to resume from the one before, step-000001")
        assert refused >= len(good) - 1, path  # the line's end after the last sum says nothing
        path.write_bytes(good)


@pytest.mark.parametrize("kind", ["truncated", "empty", "zeros", "swapped", "deleted", "text"])
def test_other_damage_of_every_file_is_refused(saved, kind):
    older, newest = checkpoint.checkpoints(saved)
    for path in newest.iterdir():
        good = path.read_bytes()
        half = good[: len(good) // 2]
        bad = {"truncated": half, "empty": b"", "zeros": half.ljust(len(good), b"\0"), "text": "é\n".encode("latin-1")}
        if kind == "deleted":
            path.unlink()
        elif kind == "swapped":
            shutil.copy(older / path.name, path)
        else:
            path.write_bytes(bad[kind])
        sentence = refusal(newest)
        assert sentence is not None and "delete it to resume from the one before, step-000001" in sentence, path
        path.write_bytes(good)
    assert refusal(newest) is None


def test_a_foreign_tensor_file_is_refused_and_other_files_are_not(saved):
    older, newest = checkpoint.checkpoints(saved)
    (newest / ".DS_Store").write_bytes(b"?")
    assert refusal(newest) is None
    shutil.copy(next(older.glob("*.safetensors")), newest / "copy.safetensors")
    assert "copy.safetensors is not listed in SHA256SUMS" in refusal(newest)


@pytest.mark.parametrize("text", ["[]", "7", "null", "[" * 100_000, ""])
def test_values_that_are_no_table_are_refused(saved, text):
    newest = checkpoint.latest(saved)
    (newest / "state.json").write_text(text)
    with pytest.raises(ValueError, match="cannot be read .*; delete it to resume from the one before, step-000001$"):
        checkpoint.load_values(newest)


def test_a_write_that_the_system_refuses_keeps_what_was_there(saved):
    """A file may have no more bytes, as on a full disk, in the midst of a shard."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = checkpoint.Writer(saved, 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OSError, match=r"could not save .*step-000003 \(.*too large.*make room and run the same"):
            writer.save(3, {"x": torch.zeros(1 << 16)}, {"step": 3})
            writer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in checkpoint.checkpoints(saved)] == ["step-000001", "step-000002"]
    assert refusal(checkpoint.latest(saved)) is None
    checkpoint.clean(saved)
    assert not list(saved.glob(".*"))


def test_without_one_before_the_sentence_says_so(saved):
    older, newest = checkpoint.checkpoints(saved)
    (older / "state.json").unlink()
    with pytest.raises(ValueError, match="state.json is missing.; delete it to resume from the start"):
        load(older)
    with pytest.raises(ValueError, match="no part 'ema'"):
        checkpoint.load_part(newest, "ema")


def test_only_what_a_save_has_left_is_cleaned(saved):
    """Hidden folders of others stay, such as a copy that somebody keeps or a version control's."""
    own = [".step-000003.tmp", ".step-000003-1.tmp", ".step-000001.old", ".step-1234567-12.old"]
    others = [".git", ".backup", ".step-000003", ".step-000003.tmp2", ".step-3.tmp", ".Trash-0", ".step-000003.bak"]
    for name in own + others:
        (saved / name).mkdir()
        (saved / name / "file").write_text("content")
    (saved / ".hidden").write_text("a file")
    checkpoint.clean(saved)
    assert {path.name for path in saved.glob(".*")} == {*others, ".hidden"}
    assert all((saved / name / "file").is_file() for name in others)


def test_a_fresh_run_removes_a_runs_files_alone(saved, tmp_path_factory):
    place = tmp_path_factory.mktemp("run")
    shutil.move(saved, place / "checkpoints")
    own = ["checkpoints/step-000009.pt", "tensorboard/events.out.tfevents.1.host.2.0", "figures/before_ode.npy"]
    own += ["figures/curve.png", "ema/step-000001-power-0.1.safetensors", "metrics.jsonl", "ema.safetensors"]
    others = ["checkpoints/.backup/a", "checkpoints/best/a", "tensorboard/notes", "figures/mine.png", "notes.txt"]
    for name in own + others:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("content")
    remove_run(place)
    assert sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()) == sorted(others)
    assert not (place / "ema").exists()
