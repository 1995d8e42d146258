"""Files of samples: their formats, what is made again, what is refused, disk space."""

import json
import os
import shutil
import subprocess
import zipfile
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image

from fastfid import open_images
from sit_rl.files.lock import held
from sit_rl.generation import sample_files
from sit_rl.models.loading import save_model
from sit_rl.models.sit import SiT
from tests.support.tiny_samples import COLOUR, pixels, randomised, run, stopped_by


def test_npz_is_adms_layout_of_the_same_images(colour, whole, tmp_path):
    run(colour, tmp_path / "s.npz", "--grid", tmp_path / "grid.png")
    with np.load(tmp_path / "s.npz") as file:
        assert file.files == ["arr_0", "arr_1"] and file["arr_0"].dtype == np.uint8 and file["arr_1"].dtype == np.int64
        np.testing.assert_array_equal(file["arr_0"], whole)
        np.testing.assert_array_equal(file["arr_1"], np.arange(23) % 5)
    seen = torch.cat(list(open_images(tmp_path / "s.npz").batches(10)))
    np.testing.assert_array_equal(seen.permute(0, 2, 3, 1).numpy(), whole)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (3 * 8, 10 * 8, 3)
    np.testing.assert_array_equal(grid[8:16, 16:24], whole[12])  # second row, third column
    assert sorted(p.name for p in tmp_path.iterdir()) == ["grid.png", "s.npz", "s.npz.json"]


def test_missing_and_broken_files_are_made_again_and_others_kept(colour, whole, tmp_path):
    out = tmp_path / "a"
    run(colour, out)
    paths = sorted(out.glob("*.png"))
    paths[2].unlink()
    paths[9].write_bytes(paths[9].read_bytes()[:-5])  # cut short
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(paths[13])  # complete, of another size
    (out / ".000002.png.abcd1234").write_bytes(b"half")  # what a kill leaves
    before = {p: p.stat().st_mtime_ns for p in paths if p not in (paths[2], paths[9], paths[13])}
    run(colour, out)
    np.testing.assert_array_equal(pixels(out), whole)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert not list(out.glob(".0*"))
    record = json.loads((out / "sampling.json").read_text())
    assert record["complete"] and len(record["runs"]) == 2
    run(colour, out)
    assert json.loads((out / "sampling.json").read_text()) == record  # nothing was left to do


def test_a_finished_npz_that_was_cut_is_made_again(colour, tmp_path):
    """By a copy that ended early, say: the zip file's directory, at its end, is missing."""
    path = tmp_path / "s.npz"
    run(colour, path)
    whole = path.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 0):
        path.write_bytes(whole[:size])
        run(colour, path)
        assert path.read_bytes() == whole and not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize("name", ["a", "s.npz"])
def test_full_disk_half_way_then_resumed(colour, whole, tmp_path, name, monkeypatch, capsys):
    real, calls = sample_files.write_atomically, []

    def fails_at_tenth(path, write):
        calls.append(path)
        if len(calls) == (10 if name == "a" else 4):
            raise OSError(28, "No space left on device")
        real(path, write)

    monkeypatch.setattr(sample_files, "write_atomically", fails_at_tenth)
    with pytest.raises(SystemExit, match="2"):
        run(colour, tmp_path / name)
    assert "No space left" in capsys.readouterr().err
    monkeypatch.undo()
    made = [*tmp_path.glob("a/*.png"), *tmp_path.glob("s.npz.parts/*")]
    assert made
    run(colour, tmp_path / name)
    got = pixels(tmp_path / "a") if name == "a" else np.load(tmp_path / name)["arr_0"]
    np.testing.assert_array_equal(got, whole)


def test_foreign_files_are_left_alone(colour, tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "holiday.png").write_bytes(b"mine")
    assert "holiday.png is in the way" in stopped_by(capsys, colour, tmp_path / "a")
    shutil.move(tmp_path / "a" / "holiday.png", tmp_path / "a" / "000001.png")  # named as ours, without our record
    assert "000001.png is in the way" in stopped_by(capsys, colour, tmp_path / "a")
    (tmp_path / "s.npz").write_bytes(b"mine")
    assert "s.npz is in the way" in stopped_by(capsys, colour, tmp_path / "s.npz")
    (tmp_path / "file").write_bytes(b"mine")
    assert "file is in the way" in stopped_by(capsys, colour, tmp_path / "file")
    assert (tmp_path / "a" / "000001.png").read_bytes() == (tmp_path / "s.npz").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--seed", "1"], "another seed: 0, not 1"),
        (["--labels", "random"], "another labels: balanced, not random"),
        (["--images", "3"], "another number: 4, not 3"),
        (["--steps", "4"], "another sampler steps: 3, not 4"),
        (["--guidance", "2"], "another sampler guidance: 1.0, not 2.0"),
        (["--sampler", "sde-euler"], "another sampler kind: ode, not sde"),
        (["--batch", "5"], "another batch: 4, not 5"),
        (["--precision", "bf16"], "another precision: float32, not bf16"),
    ],
)
def test_two_recipes_are_not_mixed(colour, tmp_path, capsys, flags, told):
    run(colour, tmp_path / "a", images=4)
    kept = pixels(tmp_path / "a")
    assert told in stopped_by(capsys, colour, tmp_path / "a", *flags, images=4)
    np.testing.assert_array_equal(pixels(tmp_path / "a"), kept)


def test_other_weights_of_the_same_name_are_noticed(colour, tmp_path, capsys):
    copy = tmp_path / "m.safetensors"
    shutil.copy(colour, copy)
    run(copy, tmp_path / "a", images=4)
    save_model(randomised(SiT(COLOUR), seed=5), copy)
    assert "another sha256" in stopped_by(capsys, copy, tmp_path / "a", images=4)


@pytest.mark.parametrize("name", ["a", "s.npz"])
def test_full_disk_is_noticed_before_work(colour, tmp_path, capsys, monkeypatch, name):
    usage = namedtuple("usage", "total used free")(1, 1, 0)
    monkeypatch.setattr(sample_files.shutil, "disk_usage", lambda path: usage)
    error = stopped_by(capsys, colour, tmp_path / name)
    assert "are free; make room" in error and not list(tmp_path.glob("a/*")) and not list(tmp_path.glob("*.parts"))


def test_space_needed_bounds_what_is_written(colour, tmp_path):
    run(colour, tmp_path / "a")
    run(colour, tmp_path / "s.npz")
    for path, written in (
        (tmp_path / "a", sum(p.stat().st_size for p in tmp_path.glob("a/*.png"))),
        (tmp_path / "s.npz", (tmp_path / "s.npz").stat().st_size),
    ):
        assert written <= sample_files.open_files(path, 23, (3, 8, 8)).bytes_needed(23) + sample_files.DISK_MARGIN


@pytest.mark.parametrize("name", ["a", "s.npz"])
def test_a_second_command_is_refused_and_a_killed_one_is_not_in_the_way(colour, whole, tmp_path, capsys, name):
    """A second command would delete the temporary files of the first."""
    out = tmp_path / "new" / name
    lock = out.with_name(f"{name}.lock")
    lock.parent.mkdir()
    with held(lock, "--out", out):
        assert f"--out {out} is in use by process {os.getpid()} on " in stopped_by(capsys, colour, out)
    assert not list(lock.parent.iterdir())
    lock.write_text('{"process": 7, "host": "h", "start": "s"}')  # without a lock: its process was killed
    run(colour, out)
    assert f"{name}.lock was left by process 7 on h since s" in capsys.readouterr().out and not lock.exists()
    np.testing.assert_array_equal(np.load(out)["arr_0"] if out.suffix else pixels(out), whole)


def test_a_refused_command_leaves_no_folder(colour, tmp_path, capsys):
    assert "out of range" in stopped_by(capsys, colour, tmp_path / "new" / "a", "--labels", 99)
    assert not (tmp_path / "new").exists()


def test_damaged_record_is_told(colour, tmp_path, capsys):
    run(colour, tmp_path / "a", images=4)
    (tmp_path / "a" / "sampling.json").write_text("{")
    assert "sampling.json cannot be read" in stopped_by(capsys, colour, tmp_path / "a", images=4)


def test_images_of_a_finished_npz_are_stored_uncompressed(colour, tmp_path):
    """A reader may map arr_0 in place; compression would cost minutes at 50,000 images and save a third."""
    run(colour, tmp_path / "s.npz")
    with zipfile.ZipFile(tmp_path / "s.npz") as archive:
        assert {m.compress_type for m in archive.infolist()} == {zipfile.ZIP_STORED}


def test_record_says_how(colour, tmp_path):
    run(colour, tmp_path / "a", "--seed", 3, "--guidance", 1.5)
    record = json.loads((tmp_path / "a" / "sampling.json").read_text())
    digest = subprocess.run(["sha256sum", colour], capture_output=True, text=True, check=True).stdout.split()[0]
    assert record["model"]["sha256"] == digest and record["complete"] and record["seed"] == 3
    assert record["sampler"]["guidance"] == 1.5 and record["sampler"]["evaluations"] == 6
    assert record["images"] == 23 and record["image_shape"] == [3, 8, 8]
    assert record["runs"][0]["versions"]["torch"] == torch.__version__
    np.testing.assert_array_equal(np.load(tmp_path / "a" / "labels.npy"), np.arange(23) % 5)
