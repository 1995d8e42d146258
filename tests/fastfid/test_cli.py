"""The command line: its number, its provenance, and one sentence with exit status 2 for every bad input."""

import json
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fastfid
import fastfid.__main__ as command
from fastfid import FeatureExtractor, FeatureMoments, feature_extractor, frechet_distance
from fastfid.cli import info
from fastfid.evaluation import sides
from fastfid.features import extraction
from fastfid.statistics.statistics import read_statistics


def pixels(n, seed):
    """uint8 [n, 28, 28], noise whose brightness depends on the seed."""
    return (np.random.default_rng(seed).random((n, 28, 28)) * (200 + 10 * seed)).astype(np.uint8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTFID_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def sets(tmp_path):
    """The same images as folder and zip (a), and others as npz (b)."""
    (tmp_path / "a").mkdir()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i, image in enumerate(pixels(150, 1)):
            path = tmp_path / "a" / f"{i:03}.png"
            Image.fromarray(image).save(path)
            archive.write(path, path.name)
    np.savez(tmp_path / "b.npz", arr_0=pixels(140, 2))
    return tmp_path


def run(capsys, *arguments):
    status = command.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def expected_distance(network):
    extractor = feature_extractor(network)
    a, b = (
        FeatureMoments.from_features(extractor(torch.from_numpy(pixels(n, seed))[:, None]))
        for n, seed in ((150, 1), (140, 2))
    )
    return frechet_distance(a, b)


# Features of other batch sizes differ in float32 rounding; the distance of these sets is near 10, its terms near 100.
BATCHING = 1e-4


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


# --- errors ------------------------------------------------------------------------------------------------------


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
    assert run.stderr == f"fastfid: {tmp_path / 'x'} does not exist; pass a folder, .zip, .npz or .npy of images\n"


# --- eval, diff, stats, convert, info ----------------------------------------------------------------------------


def test_eval_prints_a_table(sets, capsys):
    status, out, err = run(capsys, "eval", sets / "a", sets / "b.npz")
    assert status == 0 and err == ""  # over before a bar is worth showing
    lines = out.splitlines()
    assert lines[0].startswith("network fashion-a, d = 128, weights ec47faaa5168, preprocessing: mean over channels")
    assert lines[1:3] == [f"samples: 150 images, {sets / 'a'}", f"reference: 140 images, {sets / 'b.npz'}"]
    label, value, interval = (part.strip() for part in re.split(r"\s{2,}", lines[4]))
    assert label == "FD (fashion-a)" and float(value) == pytest.approx(expected_distance("fashion-a"), rel=1e-4)
    assert re.match(r"95% [\d.]+ to [\d.]+ \(jackknife over samples and reference;", interval)
    assert any(line.startswith("Recall") for line in lines) and any(line.startswith("left out: sfid") for line in lines)
    assert "warning: KID subsets shrank from 1000 to the 140 images there are" in lines


def test_eval_json_html_and_options(sets, capsys):
    arguments = ("--metrics", "fd,kid,recall", "--kid-subset-size", 50, "--nearest-k", 3, "--network", "fashion-b")
    status, out, _ = run(
        capsys, "eval", sets / "a.zip", sets / "b.npz", *arguments, "--json", "--html", sets / "report.html"
    )
    report = json.loads(out)
    assert status == 0 and report["schema"] == "fastfid.evaluation/1"
    assert [score["metric"] for score in report["scores"]] == ["fd", "kid", "recall"]
    assert report["scores"][0]["value"] == pytest.approx(expected_distance("fashion-b"), rel=1e-4)
    assert report["scores"][1]["details"]["subset_size"] == 50 and report["scores"][2]["details"]["nearest_k"] == 3
    assert "FD (fashion-b)" in (sets / "report.html").read_text()
    both = json.loads(run(capsys, "eval", sets / "a", sets / "b.npz", "--network", "fashion-a,fashion-b", "--json")[1])
    assert [network["name"] for network in both["networks"]] == ["fashion-a", "fashion-b"]
    _, table, _ = run(capsys, "eval", sets / "a", sets / "b.npz", "--network", "fashion-a,fashion-b", *arguments[:2])
    for network in ("fashion-a", "fashion-b"):  # no score without its network
        assert all(f"\n{label} ({network})  " in table for label in ("FD", "KID", "Recall"))


def test_the_cache_and_doing_without(sets, capsys):
    run(capsys, "eval", sets / "a", sets / "b.npz", "--metrics", "fd", "--no-cache")
    assert not (sets / "cache").exists()
    first = run(capsys, "eval", sets / "a", sets / "b.npz", "--metrics", "fd")[1]
    assert len(list((sets / "cache").rglob("*.npz"))) == 2
    assert (
        run(capsys, "eval", sets / "a.zip", sets / "b.npz", "--metrics", "fd")[1].splitlines()[4]
        == first.splitlines()[4]
    )
    assert len(list((sets / "cache").rglob("*.npz"))) == 2  # the zip holds the same images


def test_ctrl_c_says_how_to_go_on(sets, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fastfid, "evaluate", interrupted)
    status, out, err = run(capsys, "eval", sets / "a", sets / "b.npz")
    assert status == 130 and out == "" and "the same command goes on from the features it cached" in err


def test_scores_are_printed_before_the_report_is_written(sets, capsys, monkeypatch):
    """A disk that fills up meanwhile costs the report alone, and the file is named."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastfid.runtime.atomic_files.os.replace", full)
    report = sets / "report.html"
    options = ("--metrics", "fd", "--no-cache", "--html", report)
    status, out, err = run(capsys, "eval", sets / "a", sets / "b.npz", *options)
    assert status == 2 and "FD (fashion-a)" in out
    assert err == f"fastfid: {report} could not be written (No space left on device)\n"
    assert not report.exists() and not list(sets.glob(".report*"))


@pytest.mark.parametrize("arguments", ["--help", "eval --help", "--version", "eval a b --no-such-option", "stats a"])
def test_help_and_wrong_arguments_do_not_wait_for_torch(arguments):
    run = f"try:\n    main({arguments.split()})\nexcept SystemExit:\n    print('torch' in sys.modules)"
    command = [sys.executable, "-c", f"import sys\nfrom fastfid.__main__ import main\n{run}"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.stdout.splitlines()[-1] == "False", found.stderr


def test_the_interface_is_there_when_it_is_used():
    """Names, modules, and nothing else; whoever imports a module first finds the function of a like name."""
    told = "import fastfid.evaluation.evaluate, fastfid; from fastfid import *; assert fastfid.evaluate is evaluate; "
    told += "assert {'SwapEngine', 'kid'} <= set(dir(fastfid)) and fastfid.protocols.PROTOCOLS; "
    told += "print([name for name in fastfid.__all__ if not callable(globals()[name])], hasattr(fastfid, 'nothing'))"
    found = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, timeout=60)
    assert found.stdout == "[] False\n", found.stderr


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


def test_info_tells_what_the_installation_can_do(capsys, monkeypatch):
    found = json.loads(run(capsys, "info", "--json")[1])
    assert {"fashion-a", "inception", "torchscript:PATH"} <= set(found["networks"])
    assert {"adm", "pytorch-fid"} <= set(found["protocols"]) and found["threads"]["decoding"] >= 1
    monkeypatch.setitem(info.EXTRAS, "clip", ("the CLIP networks", ("no_such_module",)))
    text = run(capsys, "info")[1]
    assert "the CLIP networks: pip install 'fastfid[clip]'" in text
    installed = info.facts()["extras"]["inception"]["installed"]
    assert ("the Inception network: installed" in text) == installed
    assert info.facts()["extras"]["clip"]["installed"] is False


def test_every_extra_that_info_names_is_one():
    declared = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert all(f"\n{name} = [" in declared for name in info.EXTRAS)


def test_eval_of_nothing_computable_says_so_with_its_status(sets, capsys):
    assert run(capsys, "stats", sets / "a", sets / "real.npz")[0] == 0
    status, out, err = run(capsys, "eval", sets / "b.npz", sets / "real.npz", "--metrics", "kid")
    assert status == 2 and "left out: kid" in out and err.endswith("with its reason, is printed above\n")
    assert run(capsys, "eval", sets / "b.npz", sets / "real.npz", "--metrics", "fd,kid")[0] == 0


def test_stats_info_and_eval_against_them(sets, capsys):
    status, out, _ = run(capsys, "stats", sets / "b.npz", sets / "real.npz", "--network", "fashion-b")
    assert status == 0 and out.startswith(f"{sets / 'real.npz'}: 140 images, network fashion-b, weights ab405303c4fa")
    report = json.loads(run(capsys, "info", sets / "real.npz", "--json")[1])
    assert (report["count"], report["dim"], report["extractor"]) == (140, 96, "fashion-b")
    assert report["holds"] == "statistics, fastfid" and report["features"] is False and report["protocol"] == "fastfid"
    text = run(capsys, "info", sets / "real.npz")[1]
    assert "count" in text and "weights_sha256" in text and "ab405303c4fa" in text
    assert "28 × 28" in run(capsys, "info", sets / "a")[1]
    out = run(capsys, "eval", sets / "a", sets / "real.npz")[1]  # the network is the one recorded
    assert "FD (fashion-b)" in out and "left out: kid, mmd, precision, recall, density, coverage (fashion-b)" in out
    assert "holds statistics only; pass its images, or features saved with --keep-features" in out
    run(capsys, "stats", sets / "b.npz", sets / "real.npz", "--keep-features")
    assert "Recall" in run(capsys, "eval", sets / "a", sets / "real.npz")[1]


def test_convert_reads_peers_and_writes_ours(sets, capsys):
    np.savez(sets / "peer.npz", mu=np.zeros(3, np.float32), sigma=np.eye(3))
    arguments = ("convert", sets / "peer.npz", sets / "ours.npz", "--network", "inception", "--count", 50)
    assert run(capsys, *arguments)[1] == f"{sets / 'ours.npz'}: 50 images, network inception, weights unknown\n"
    ours = read_statistics(sets / "ours.npz")
    assert ours.count == 50 and ours.provenance["source"] == "peer.npz (mu, sigma (pytorch-fid, clean-fid, EDM))"
    np.savez(sets / "other.npz", mu=np.full(3, 2.0), sigma=np.eye(3))
    assert run(capsys, sets / "ours.npz", sets / "other.npz")[1].splitlines()[-1] == "FID:  12.0"
    again = ("convert", sets / "ours.npz", sets / "again.npz")
    assert "says its network is inception, not dinov2" in run(capsys, *again, "--network", "dinov2")[2]
    assert "says it is of 50 images" in run(capsys, *again, "--count", 60)[2]


def test_diff(sets, capsys):
    np.savez(sets / "bright.npz", arr_0=pixels(130, 6))
    status, out, _ = run(capsys, "diff", sets / "a", sets / "bright.npz", sets / "b.npz")
    assert status == 0 and out.splitlines()[-1] == "A is nearer to the reference"
    report = json.loads(run(capsys, "diff", sets / "bright.npz", sets / "a", sets / "b.npz", "--json")[1])
    assert report["better"] == "B" and report["interval"][0] > 0
    assert report["a"] - report["b"] == pytest.approx(report["difference"])


def test_mismatches_and_force(sets, capsys):
    run(capsys, "stats", sets / "b.npz", sets / "real.npz", "--network", "fashion-b")
    status, out, err = run(capsys, "eval", sets / "a", sets / "real.npz", "--network", "fashion-a", "--force")
    assert status == 2 and "real.npz has d = 96 features, the network fashion-a has d = 128" in err and out == ""
    statistics = read_statistics(sets / "real.npz")
    statistics.provenance["preprocessing"] = "PIL bicubic"
    statistics.save(sets / "real.npz")
    status, out, err = run(capsys, "eval", sets / "a", sets / "real.npz", "--metrics", "fd")
    assert status == 2 and out == ""
    assert f"the preprocessing of {sets / 'real.npz'} is PIL bicubic, that of the network fashion-b is mean over" in err
    status, out, _ = run(capsys, "eval", sets / "a", sets / "real.npz", "--metrics", "fd", "--force")
    assert status == 0 and "warning: compared regardless of a mismatch: the preprocessing of" in out

    # the short form keeps it, too, beside pytorch-fid's line
    status, out, err = run(capsys, sets / "a", sets / "real.npz", "--force", "--json")
    assert status == 0 and "fastfid: note: compared regardless of a mismatch: the preprocessing of" in err
    assert any("compared regardless of a mismatch" in warning for warning in json.loads(out)["warnings"])


def test_the_short_form_and_stats_tell_what_they_skip(sets, capsys):
    (sets / "a" / "zzz.png").write_bytes(b"damaged")
    skipped = "left out of .*a: 1 unreadable image, the first: zzz.png in"
    _, out, err = run(capsys, sets / "a", sets / "b.npz", "--skip-corrupt", "--json")
    assert re.search(f"fastfid: note: {skipped}", err)
    assert any(re.search(skipped, warning) for warning in json.loads(out)["warnings"])
    _, _, err = run(capsys, "stats", sets / "a", sets / "a.npz", "--skip-corrupt")
    assert "fastfid: note: left out: 1 unreadable image, the first: zzz.png in" in err
    assert read_statistics(sets / "a.npz").provenance["skipped"] == "1"


def test_bad_input_to_commands_is_one_sentence_and_status_2(sets, capsys):
    (sets / "evil.pkl").write_bytes(b"cos\nsystem\n(Vtrue\ntR.")
    (sets / "a" / "zzz.png").write_bytes(b"damaged")
    for arguments, message in [
        (("eval", sets / "nowhere", sets / "b.npz"), "nowhere does not exist"),
        (("eval", sets / "a", sets / "b.npz"), "zzz.png in"),
        (("eval", sets / "b.npz", sets / "evil.pkl"), "asks for os.system, which is refused because it could run code"),
        (("info", sets / "evil.pkl"), "refused because it could run code"),
        (("eval", sets / "b.npz", sets / "b.npz", "--metrics", "vendi"), "unknown metric 'vendi'"),
        (("eval", sets / "b.npz", sets / "b.npz", "--network", "vgg"), "unknown feature network 'vgg'"),
        (
            ("eval", sets / "b.npz", sets / "b.npz", "--weights", f"fashion-a={sets / 'none'}"),
            f"missing ({sets / 'none'})",
        ),
        (("eval", sets / "b.npz", sets / "b.npz", "--html", sets / "no" / "x.html"), "does not exist; create it first"),
        (("stats", sets / "b.npz", sets / "x.pkl"), "does not end in .npz"),
        (("stats", sets / "b.npz", sets / "x.npz", "--spatial"), "fashion-a has no spatial features; use inception"),
        (("eval", "", sets / "b.npz"), "images are given as an empty path"),
        (("convert", sets / "nowhere.npz", sets / "x.npz"), "no statistics file at"),
        (("diff", sets / "b.npz", sets / "a", sets / "b.npz"), "zzz.png in"),
    ]:
        status, out, err = run(capsys, *arguments)
        assert status == 2 and out == "" and len(err.splitlines()) == 1, arguments
        assert err.startswith("fastfid: ") and message in err
    status, out, _ = run(capsys, "eval", sets / "a", sets / "b.npz", "--skip-corrupt", "--metrics", "fd")
    assert status == 0 and "samples: 150 images" in out and "a: 1 unreadable image, the first" in out


def test_where_nothing_can_be_written_is_told_before_any_work(sets, capsys, monkeypatch):
    monkeypatch.setattr("fastfid.evaluation.sides.extract", lambda *_: pytest.fail("an image was read"))
    np.savez(sets / "peer.npz", mu=np.zeros(3), sigma=np.eye(3))
    (sets / "x.npz").mkdir()
    images = sets / "a", sets / "b.npz"
    for arguments, message in [
        (("eval", *images, "--html", sets), f"{sets} is a folder; name a file in it"),
        (("stats", sets / "a", sets / "x.npz"), "x.npz is a folder; name a file in it"),
        (("convert", sets / "peer.npz", sets / "x.npz"), "x.npz is a folder; name a file in it"),
        (("stats", sets / "a", sets / "no" / "y.npz"), "does not exist; create it first"),
    ]:
        status, out, err = run(capsys, *arguments)
        assert (status, out, len(err.splitlines())) == (2, "", 1) and message in err
    monkeypatch.setattr("os.access", lambda path, mode: False)  # as on a disk that is read only
    status, _, err = run(capsys, "eval", *images, "--html", sets / "x.html")
    assert (status, err) == (2, f"fastfid: no file can be written into {sets}, the folder of {sets / 'x.html'}; "
                                "write it elsewhere\n")  # fmt: skip
    with pytest.raises(SystemExit):
        run(capsys, "eval", *images, "--json", sets / "x.json")
    assert "x.json; --json prints: write `--json > FILE`" in capsys.readouterr().err


def test_a_range_below_zero_is_no_option(sets, capsys):
    floats = pixels(60, 0).astype(np.float32) / 127.5 - 1
    np.save(sets / "floats.npy", floats)
    np.save(sets / "bytes.npy", pixels(60, 0))
    values = [
        json.loads(run(capsys, sets / name, sets / "b.npz", *options, "--json")[1])["value"]
        for name, options in (("bytes.npy", ()), ("floats.npy", ("--value-range", "-1,1")))
    ]
    assert values[0] == values[1]
    with pytest.raises(SystemExit):
        run(capsys, sets / "floats.npy", sets / "b.npz", "--value-range", "1")
    assert "argument --value-range: '1' is no LOW,HIGH such as 0,1 or -1,1" in capsys.readouterr().err


def test_peers_files_in_the_short_form(sets, capsys):
    """`fastfid A B` reads what `eval` reads."""
    torch.save({"mu": np.zeros(3, np.float32), "sigma": np.eye(3)}, sets / "cache.pt")
    np.savez(sets / "peer.npz", mu=np.full(3, 2.0), sigma=np.eye(3))
    _, out, _ = run(capsys, sets / "cache.pt", sets / "peer.npz", "--network", "inception")
    assert out.splitlines()[-1] == "FID:  12.0"
