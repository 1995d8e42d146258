"""Paths and packages that a command lacks: told at once, before any work, in one sentence that names the flag."""

import os
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sit_rl import compare, ema, pretrain, report, sample, train
from sit_rl import evaluate as evaluate_command
from sit_rl.components import build
from sit_rl.files.paths import reading, require_paths
from sit_rl.models import convert
from sit_rl.models.loading import load_model
from sit_rl.models.sit import SiT, SiTConfig
from sit_rl.presets import PRESETS
from sit_rl.runs.log import start_wandb

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "fashion"
MODULES = {
    "train": train, "sample": sample, "evaluate": evaluate_command, "compare": compare, "report": report, "ema": ema,
    "convert": convert, "pretrain": pretrain,
}  # fmt: skip


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """A function from a command line to its one sentence of refusal, in an empty folder that it must not write to."""
    monkeypatch.chdir(tmp_path)

    def run(line):
        name, *words = line.split()
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr("sys.argv", [name, *words])
        with pytest.raises(SystemExit) as stopped:
            MODULES[name].main()
        told = stopped.value.code if isinstance(stopped.value.code, str) else capsys.readouterr().err.strip()
        assert told.startswith("error: ") and "\n" not in told and "Traceback" not in told
        assert sorted(tmp_path.rglob("*")) == before
        return told

    return run


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        ("train --checkpoint a.pt --vae b --real c --heldout d --weights e.pt", "checkpoint vae real heldout weights"),
        ("train --weights fashion-a=a.pt fashion-b=b.pt", "weights weights"),
        ("train --preset smoke --dry-run --checkpoint a.pt", "checkpoint"),
        ("sample --checkpoint a.pt --vae b", "checkpoint vae"),
        ("evaluate --checkpoint a.pt --vae b --reference c --weights d.pt", "checkpoint vae real weights"),
        ("evaluate --samples a.npz b.npz --reference c", "samples samples real"),
        ("pretrain base --source a", "source"),
    ],
)
def test_every_missing_path_is_told_at_once(refused, line, flags):
    told = refused(line)
    assert told.endswith(f"do{'' if ' ' in flags else 'es'} not exist; correct the path")
    for flag in set(flags.split()):
        assert told.count(f"--{flag} ") == flags.split().count(flag), told


def test_flags_not_given_and_files_not_there_are_one_sentence(refused):
    told = refused("train --preset sit-xl-imagenet256 --checkpoint a.pt --heldout d")
    assert told.startswith(
        "error: preset sit-xl-imagenet256 needs --vae (a diffusers autoencoder's folder) and --real ("
    )
    assert told.endswith("; --checkpoint a.pt and --heldout d do not exist; correct the path")


@pytest.mark.parametrize("line", ["compare a b", "report a", "ema a --sigma-rel 0.1 --out x.safetensors"])
def test_a_run_that_is_not_there(refused, line):
    assert "run a " in refused(line) and ("run b" in refused(line)) == ("b" in line.split())


def test_pretraining_on_images_without_labels_is_refused_before_they_are_read(refused, monkeypatch):
    monkeypatch.setattr(train, "build_components", None)  # a call would be another error
    told = refused("train --preset smoke --estimator pretraining --real .")
    assert told.startswith("error: --estimator pretraining fits real images with labels, which --real . does not give")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--evaluate-every -1", "--evaluate-every is -1; it must not be negative"),
        ("--evaluate-every-images 1", "--evaluate-every-images is 1; a covariance needs at least 2"),
        ("--ema 1", "--ema is 1.0; it must be in [0, 1)"),
        ("--ema-extra 0.5 -0.1", "--ema-extra is -0.1; it must be in [0, 1)"),
        ("--ema-power 0.1 0.5", "--ema-power 0.5: sigma_rel is 0.5; it must be in [0.001, 0.2887]"),
    ],
)
def test_numbers_that_would_fail_on_the_way_are_refused_at_once(refused, flags, told):
    assert told in refused(f"train --preset smoke {flags}")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(FileNotFoundError, match="--real .* may not be read by this user; change the permissions"):
        require_paths([("--real", tmp_path), ("--vae", None)])


def test_a_refused_command_keeps_the_run_that_it_would_replace(refused, tmp_path):
    """--no-resume empties the folder: not before everything is there."""
    (tmp_path / "run" / "checkpoints" / "step-000001").mkdir(parents=True)
    assert "--real none does not exist" in refused("train --preset smoke --no-resume --out run --real none")


@pytest.mark.parametrize(
    ("flags", "package", "extra"),
    [("--wandb x", "wandb", "wandb"), ("--lora 2", "peft", "lora"), ("--vae .", "diffusers", "latent")],
)
def test_a_missing_package_is_told_before_any_work(refused, monkeypatch, flags, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(train, "build_components", None)  # a call would be another error
    told = refused(f"train --preset smoke {flags}")
    assert told == f"error: {flags.split()[0]} needs {package}: pip install 'fastfid[{extra}]'"


def test_wandb_that_cannot_begin_says_what_to_do(tmp_path, monkeypatch, refused):
    """Before the networks are loaded: its run is begun first."""

    def init(**_):
        raise RuntimeError("api_key not configured")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with pytest.raises(OSError, match=r"--wandb project could not begin a run \(api_key not configured\); run `wandb"):
        start_wandb(PRESETS["smoke"][1].changed(out=tmp_path, wandb="project"))
    monkeypatch.setattr(train, "build_components", None)  # a call would be another error
    assert "--wandb x could not begin a run" in refused("train --preset smoke --wandb x --out a/run --threads 1")


def run_folder(place: Path) -> Path:
    """A folder as a finished run leaves it, small."""
    (place / "checkpoints" / "step-000002").mkdir(parents=True)
    (place / "checkpoints" / "step-000002" / "state.json").write_text("{}")
    for name in ("summary.json", "ema.safetensors"):
        (place / name).write_text(name)
    PRESETS["smoke"][1].save(place / "config.yaml")
    return place


def content(place: Path) -> dict[str, bytes]:
    """Every file in a folder."""
    return {str(path): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize("flags", ["", "--no-resume "])
@pytest.mark.parametrize("what", ["--real cut.npz", "--checkpoint cut.pt", "--weights cut.safetensors"])
def test_a_refused_command_leaves_no_folder_and_keeps_the_run_that_was_there(weights, refused, flags, what):
    """A file that is there and broken, which only reading it tells."""
    cut(weights / "whole.pt", 0.5), cut(weights / "whole.safetensors", 0.5)
    (weights / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    if what.startswith("--weights"):
        what += " --judge-features none"
    if flags:
        before = content(run_folder(weights / "new" / "run"))
    assert what.split()[0] in refused(f"train --preset smoke --threads 1 {flags}--out new/run {what}")
    assert not flags or content(weights / "new" / "run") == before


def test_a_fresh_run_removes_nothing_but_a_run(tmp_path, refused):
    """--out at a project's folder with checkpoints or figures of its own would delete them."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "SiT-XL-2-256x256.pt").write_text("weights")
    (tmp_path / "config.yaml").write_text("title: mine\n")
    for flags in ("", "--no-resume "):
        told = refused(f"train --preset smoke --threads 1 {flags}--out .")
        assert told == "error: checkpoints is in the way and . is no run's folder; choose another --out"
    place = run_folder(tmp_path / "run")
    told = refused(f"train --preset smoke --threads 1 --no-resume --out run --checkpoint {place}/ema.safetensors")
    assert "is part of the run that a fresh one in run would replace; copy it elsewhere" in told
    shutil.rmtree(place / "checkpoints")
    told = refused("train --preset smoke --threads 1 --out run")
    assert told.startswith("error: run holds a finished run without its checkpoints; choose another --out, or --no-res")


# --- files that are there and broken -------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path):
    """Random weights of the official layout: one file of each format."""
    model = SiT(SiTConfig(image_size=4, patch_size=2, channels=4, width=16, depth=1, heads=2, num_classes=10))
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    torch.save(model.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(model.state_dict(), tmp_path / "whole.safetensors")
    return tmp_path


def cut(path: Path, share: float) -> tuple[Path, int]:
    """A copy of the first `share` of a file, and its bytes."""
    content = path.read_bytes()
    target = path.with_name("cut" + path.suffix)
    target.write_bytes(content[: int(share * len(content))])
    return target, int(share * len(content))


@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
def test_a_cut_file_is_called_incomplete_with_its_size(weights, share):
    for name in ("whole.pt", "old.pt", "whole.safetensors"):
        path, size = cut(weights / name, share)
        with pytest.raises(ValueError, match="download or copy it again") as caught:
            load_model(path)
        told = str(caught.value)
        assert "incomplete" in told and f"{size:,} " in told and "PytorchStreamReader" not in told, (name, told)
        if name == "whole.safetensors" and share > 0.001:
            assert f"{size:,} of {(weights / name).stat().st_size:,} bytes" in told


def test_other_contents_are_called_what_they_are(weights):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
    for content, told in (
        (b"", "it is empty"),
        (b"\n<html>404</html>", "it is a web page of 17 bytes"),
        (pointer, f"it is a Git LFS pointer of {len(pointer)} bytes, for which `git lfs pull` fetches the file"),
    ):
        for suffix in (".pt", ".safetensors"):
            path = weights / f"other{suffix}"
            path.write_bytes(content)
            with pytest.raises(ValueError, match=told):
                load_model(path)
    with pytest.raises(FileNotFoundError, match="is a folder; pass the path"):
        load_model(weights)


def test_whole_files_still_load(weights):
    states = [load_model(weights / name).state_dict() for name in ("whole.pt", "old.pt", "whole.safetensors")]
    assert all(torch.equal(states[0][key], other[key]) for other in states[1:] for key in states[0])


def test_broken_files_name_their_flag(weights, refused):
    cut(weights / "whole.pt", 0.5), cut(weights / "whole.safetensors", 0.5)
    (weights / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    (weights / "empty").mkdir()
    (weights / "run" / "ema").mkdir(parents=True)
    (weights / "run" / "ema" / "a.safetensors").write_bytes((weights / "cut.safetensors").read_bytes())
    for line, told in {
        "sample --checkpoint cut.pt --threads 1": "--checkpoint cut.pt is not a complete checkpoint (it is incomplete",
        "train --preset sit-xl-imagenet256 --dry-run --checkpoint cut.pt": "--checkpoint cut.pt is not a complete",
        "evaluate --network fashion-a --weights cut.safetensors --out empty": "--weights cut.safetensors",
        "convert cut.pt x.safetensors": "source cut.pt is not a complete checkpoint",
        "convert whole.pt ./whole.pt": "target whole.pt is the source",
        "evaluate --samples cut.npz --reference embedded --out empty --threads 1": "--samples cut.npz cannot be read",
        "evaluate --images 20 --reference empty --out empty --threads 1": "--real empty holds no images",
        "ema run --sigma-rel 0.1 --out x.safetensors": "a.safetensors cannot be read as safetensors (it is incomplete",
        "report cut.pt": "run cut.pt is a file; pass the folder",
    }.items():
        assert told in refused(line), line


def test_places_that_cannot_be_written_name_their_flag(tmp_path, refused):
    (tmp_path / "file").write_text("")
    for line in ("train --preset smoke --threads 1 --out file/run", "evaluate --images 20 --threads 1 --out file/run"):
        told = refused(line)
        assert told == "error: --out file/run cannot be written (Not a directory); choose another place"
    place = run_folder(tmp_path / "run")
    (place / "summary.json").write_bytes((RESULTS / "advantage_matching-0.json").read_bytes())
    (place / "figures").write_text("in the way")
    assert refused("report run") == "error: run run cannot be written (File exists); choose another place"


def test_an_autoencoder_that_was_cut_names_file_and_size(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    from sit_rl.models.autoencoder import load_decoder

    diffusers.AutoencoderKL(norm_num_groups=8, block_out_channels=(8,)).save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=rf"--vae .*model.safetensors: it is incomplete: {size - 100:,} of {size:,} bytes"
    ):
        load_decoder(tmp_path, torch.device("cpu"))
    file.unlink()
    with pytest.raises(ValueError, match="--vae .* is not a complete AutoencoderKL .* download its config.json and"):
        load_decoder(tmp_path, torch.device("cpu"))


def test_the_judges_images_are_looked_at_before_features_of_the_rewards(tmp_path, monkeypatch, capsys):
    """Features of a million images come between."""
    np.savez(tmp_path / "bad.npz", a=np.zeros(3))
    monkeypatch.setattr(build, "extract_real", None)  # a call would be another error
    with pytest.raises(SystemExit, match="2"):
        train.main(
            [
                "--preset",
                "smoke",
                "--threads",
                "1",
                "--out",
                str(tmp_path / "run"),
                "--heldout",
                str(tmp_path / "bad.npz"),
            ]
        )
    assert "error: --heldout" in capsys.readouterr().err


def test_failures_keep_their_kind_and_are_named_once():
    with pytest.raises(OSError, match="^--real dir: full$") as caught, reading("--real", "dir"):
        raise OSError("full")
    assert type(caught.value) is OSError
    with pytest.raises(ValueError, match="^--real dir is odd$"), reading("--real", "dir"), reading("--real", "dir"):
        raise ValueError("dir is odd")
    with pytest.raises(ValueError, match="^other$"), reading("--real", "dir", alone=False):
        raise ValueError("other")
