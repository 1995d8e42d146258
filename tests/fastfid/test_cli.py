"""`fastfid A B`: its number, its provenance, and one sentence with exit status 2 for bad input."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

import fastfid
import fastfid.__main__ as command
from fastfid import FeatureExtractor, FeatureMoments, feature_extractor
from fastfid.evaluation import sides
from fastfid.features import extraction
from tests.support.image_sets import BATCHING, expected_distance, pixels, run

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("network", ["fashion-a", "fashion-b"])
def test_two_sets_of_images(sets, capsys, monkeypatch, network):
    monkeypatch.setattr(extraction, "PROGRESS_DELAY", 0.0)
    status, out, err = run(capsys, sets / "a", sets / "b.npz", "--network", network, "--batch-size", 64)
    assert status == 0
    *provenance, last = out.splitlines()
    name, value = last.split(":  ")
    assert name == f"FD ({network})"
    assert float(value) == pytest.approx(expected_distance(network), abs=BATCHING)
    assert provenance[0].startswith(f"network {network}, d = ")
    assert "preprocessing: mean over channels" in provenance[1]
    assert provenance[2:] == [f"150 images: {sets / 'a'}", f"140 images: {sets / 'b.npz'}"]
    assert "150/150" in err and "image/s" in err  # the progress bar, with its estimate


def test_json(sets, capsys):
    _, out, _ = run(capsys, sets / "a.zip", sets / "b.npz", "--json")
    report = json.loads(out)
    assert report["schema"] == "fastfid.distance/1"
    assert report["metric"] == "FD (fashion-a)" and report["network"] == "fashion-a" and report["dim"] == 128
    assert report["value"] == pytest.approx(expected_distance("fashion-a"), abs=BATCHING)
    assert report["value"] == report["mean_term"] + report["trace_term"] - report["root_term"]
    assert report["a"] == {"source": str(sets / "a.zip"), "count": 150} and report["b"]["count"] == 140
    assert report["weights_sha256"] == feature_extractor("fashion-a").weights_sha256


def test_saved_statistics_stand_for_their_images(sets, capsys):
    assert run(capsys, "--save-stats", sets / "b.npz", sets / "stats.npz", "--network", "fashion-b")[0] == 0
    saved = FeatureMoments.load(sets / "stats.npz")
    assert saved.count == 140 and saved.provenance["extractor"] == "fashion-b"
    status, out, _ = run(capsys, sets / "a", sets / "stats.npz")  # the network is the one recorded
    assert status == 0 and out.splitlines()[-1].startswith("FD (fashion-b):  ")
    assert float(out.split()[-1]) == pytest.approx(expected_distance("fashion-b"), abs=BATCHING)
    status, out, err = run(capsys, sets / "stats.npz", sets / "stats.npz")
    # FD(x, x): 96 features of which some hardly vary; an unresolved eigenvalue leaves 1.5e-8 of the largest root
    assert status == 0 and abs(float(out.split()[-1])) < 1e-5 and "image/s" not in err


def test_statistics_of_pytorch_fid(tmp_path, capsys):
    for name, mean in (("a", 0.0), ("b", 2.0)):
        np.savez(tmp_path / f"{name}.npz", mu=np.full(3, mean), sigma=np.eye(3))
    _, out, _ = run(capsys, tmp_path / "a.npz", tmp_path / "b.npz", "--network", "inception")
    *provenance, last = out.splitlines()
    assert last == "FID:  12.0"
    assert provenance[2] == f"unknown number of images: {tmp_path / 'a.npz'}"
    assert "FD (unknown network):  12.0" in run(capsys, tmp_path / "a.npz", tmp_path / "b.npz")[1]


def test_inception_is_called_fid(sets, capsys, monkeypatch):
    """With a stand-in of the same name: the weights are not here, the sentence is."""

    def stand_in(name, input_name, weights, device, spatial):
        module = nn.Sequential(nn.AvgPool2d(14), nn.Flatten())
        return FeatureExtractor.from_module(module, 4, name=name, preprocessing="none")

    monkeypatch.setattr(sides, "build_extractor", stand_in)
    _, out, _ = run(capsys, sets / "a", sets / "b.npz", "--network", "inception")
    assert out.splitlines()[-1].startswith("FID:  ")


def test_few_images_are_noted(sets, capsys):
    np.savez(sets / "few.npz", images=pixels(20, 1))
    status, _, err = run(capsys, sets / "few.npz", sets / "b.npz")
    assert status == 0
    assert "20 images for d = 128 features: the distance is biased upwards, use more" in err


def test_bad_input_is_one_sentence_and_status_2(sets, capsys):
    np.savez(sets / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    np.savez(sets / "one.npz", images=pixels(1, 0))
    FeatureMoments(9, torch.zeros(128), torch.eye(128), {"extractor": "fashion-b"}).save(sets / "b-stats.npz")
    (sets / "broken.npz").write_text("nothing")
    (sets / "empty").mkdir()
    (sets / "a" / "zzz.png").write_bytes(b"damaged")
    for arguments, message in [
        ((sets / "nowhere", sets / "b.npz"), "nowhere does not exist"),
        ((sets / "b.npz", sets / "empty"), "empty holds no images"),
        ((sets / "broken.npz", sets / "b.npz"), "broken.npz cannot be read by NumPy"),
        ((sets / "a", sets / "b.npz"), "zzz.png in"),
        ((sets / "other.npz", sets / "b.npz"), "d = 3 and d = 128 cannot be compared"),
        (
            (sets / "b-stats.npz", sets / "b.npz", "--network", "fashion-a"),
            "b-stats.npz is fashion-b, that of the network fashion-a",
        ),
        ((sets / "one.npz", sets / "b.npz"), "one.npz holds 1 usable image;"),
        ((sets / "b.npz", sets / "b.npz", "--batch-size", 0), "the batch size is 0"),
        ((sets / "b.npz", sets / "b.npz", "--weights", sets / "none"), "python -m sit_rl.pretrain features"),
        ((sets / "b.npz", sets / "b.npz", "--device", "nonsense"), "device nonsense cannot be used"),
        (("--save-stats", sets / "b.npz", sets / "no" / "x.npz"), "does not exist; create it first"),
        (("--save-stats", sets / "other.npz", sets / "x.npz"), "holds statistics already"),
    ]:
        status, out, err = run(capsys, *arguments)
        last = err.splitlines()[-1]
        assert status == 2 and out == "", arguments
        assert last.startswith("fastfid: ") and message in last


def test_as_a_program(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "fastfid", str(tmp_path / "x"), str(tmp_path / "y")], capture_output=True, text=True
    )
    assert run.returncode == 2 and run.stdout == ""
    assert (
        run.stderr == f"fastfid: {tmp_path / 'x'} does not exist; pass a folder, .zip, .tar, .npz or .npy of images\n"
    )


def test_ctrl_c_says_how_to_go_on(sets, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fastfid, "evaluate", interrupted)
    status, out, err = run(capsys, "eval", sets / "a", sets / "b.npz")
    assert status == 130 and out == "" and "the same command goes on from the features it cached" in err


def test_sigint_leaves_a_usable_cache_and_one_line(tmp_path):
    np.savez(tmp_path / "a.npz", pixels(6000, 1))
    np.savez(tmp_path / "b.npz", pixels(300, 2))
    arguments = ["eval", str(tmp_path / "a.npz"), str(tmp_path / "b.npz"), "--metrics", "fd", "--batch-size", "4"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastfid", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cache").rglob("*.npz")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "Traceback" not in err
    assert err.splitlines()[-1] == "fastfid: interrupted; the same command goes on from the features it cached"
    kept = list((tmp_path / "cache").rglob("*.npz"))
    assert 1 <= len(kept) < 24 and len(kept) == sum(path.is_file() for path in (tmp_path / "cache").rglob("*"))
    written = {path: path.stat().st_mtime_ns for path in kept}
    assert command.main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == written  # found again, not made again
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 24 + 2


def test_peers_files_in_the_short_form(sets, capsys):
    """`fastfid A B` reads what `eval` reads."""
    torch.save({"mu": np.zeros(3, np.float32), "sigma": np.eye(3)}, sets / "cache.pt")
    np.savez(sets / "peer.npz", mu=np.full(3, 2.0), sigma=np.eye(3))
    _, out, _ = run(capsys, sets / "cache.pt", sets / "peer.npz", "--network", "inception")
    assert out.splitlines()[-1] == "FID:  12.0"
