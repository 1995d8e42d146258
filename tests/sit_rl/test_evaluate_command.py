"""`python -m sit_rl.evaluate`: its numbers are those of the training loop's evaluation and of fastfid."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastfid
from fastfid import FeatureMoments, frechet_distance
from sit_rl import evaluate as evaluate_command
from sit_rl.components.build import build_components
from sit_rl.components.image_sets import load_embedded
from sit_rl.config import resolve
from sit_rl.evaluate import EvaluateConfig, main, real_images, with_defaults
from sit_rl.files.weights import weights_of
from sit_rl.models.loading import save_model
from sit_rl.models.sit import SiT, SiTConfig
from sit_rl.presets import PRESETS
from sit_rl.runs.evaluation_table import table
from sit_rl.sampling.sampler_config import SamplerConfig
from sit_rl.training.held_out import evaluate_model

IMAGES = 260  # more than fashion-a's 128 features, in two batches


def evaluate(*arguments):
    """The command on one thread, and what it kept."""
    main([*map(str, arguments), "--threads", "1"])
    out = arguments[arguments.index("--out") + 1]
    return json.loads((out / "evaluation.json").read_text())


def value(row, metric, network):
    return next(s["value"] for s in row["scores"] if (s["metric"], s["network"]) == (metric, network))


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Features are kept for this module alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTFID_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def two_rows(tmp_path_factory):
    """The embedded model under two samplers against 600 held-out images in a file, FD through both networks."""
    folder = tmp_path_factory.mktemp("evaluation")
    heldout = load_embedded("heldout").images[:600]
    np.savez(folder / "heldout.npz", arr_0=heldout.permute(0, 2, 3, 1).numpy())
    arguments = ("--images", IMAGES, "--samplers", "ode,steps=3", "sde-euler,steps=3", "--metrics", "fd")
    arguments += ("--network", "fashion-a", "fashion-b", "--real", folder / "heldout.npz", "--out", folder / "out")
    return evaluate(*arguments)["rows"], folder, arguments


def test_numbers_are_the_training_loops(two_rows):
    """Same noise, labels and batches: the images are the same bits. The distances differ by the order in which float64
    sums are taken, 1e-15 of the moments, of which the root's smallest eigenvalues keep the square root."""
    rows, folder, _ = two_rows
    path = folder / "heldout.npz"
    config = PRESETS["fashion"][1].changed(real=path, heldout=path)
    components = build_components(config, torch.device("cpu"), progress=False)
    samplers = SamplerConfig("ode", "adams", 3, power=1.5), SamplerConfig("sde", "euler", 3)
    for (name, row), sampler in zip(rows.items(), samplers, strict=True):
        assert name == str(sampler)
        theirs = evaluate_model(
            components, components.model, sampler, IMAGES, seed=config.seed, batch=config.rollout.batch, grid=IMAGES
        )
        file = next(folder.glob(f"out/embedded-{sampler.kind}*-{IMAGES}-seed0.npz"))
        np.testing.assert_array_equal(np.load(file)["arr_0"][..., 0], theirs.images[:, 0].numpy())
        assert value(row, "fd", "fashion-a") == pytest.approx(theirs.metrics["fd"], rel=1e-6)
        assert value(row, "fd", "fashion-b") == pytest.approx(theirs.metrics["fd_b"], rel=1e-6)
        assert row["sampling"]["sampler"]["steps"] == 3 and row["sampling"]["complete"]


def test_second_call_samples_nothing(two_rows, capsys):
    rows, folder, arguments = two_rows
    before = {p: p.stat().st_mtime_ns for p in folder.glob("out/*.npz")}
    again = evaluate(*arguments)["rows"]
    printed = capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in before} == before and len(before) == 2
    assert "all of them there already" in printed and "\n  fashion-b  " in printed
    assert [value(row, "fd", "fashion-a") for row in again.values()] == [
        value(row, "fd", "fashion-a") for row in rows.values()
    ]


def test_the_second_rows_recipe_is_looked_at_before_the_first_is_sampled(two_rows, tmp_path, monkeypatch, capsys):
    _, folder, arguments = two_rows
    monkeypatch.setattr(evaluate_command, "make_samples", sampled)
    for path in folder.glob("out/embedded-sde*"):  # the second row's alone
        shutil.copy(path, tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([*map(str, arguments[:-1]), str(tmp_path), "--threads", "1", "--labels", "random"])
    error = capsys.readouterr().err
    assert "embedded-sde" in error and "images of another labels: balanced, not random" in error


def test_samplers_that_read_alike_are_rows_of_their_own(tmp_path):
    texts = "sde-euler,steps=2", "sde-euler,steps=2,last_step=tweedie", "ode-heun,steps=2"
    flags = ("--images", 20, "--metrics", "fd", "--network", "fashion-a", "--samplers", *texts)
    rows = evaluate(*flags, "--out", tmp_path / "out")["rows"]
    assert list(rows) == [*(f"SDE euler, 2 steps ({text})" for text in texts[:2]), "ODE heun, 2 steps", "real images"]
    last = [row["sampling"]["sampler"]["last_step"] for row in list(rows.values())[:2]]
    assert last == ["mean", "tweedie"]


def test_real_images_are_nearest_by_default(tmp_path):
    """Against the whole embedded held-out set; the row of real images is computed again from the two splits."""
    flags = ("--images", 200, "--samplers", "ode,steps=3", "--metrics", "fd", "--network", "fashion-b")
    rows = evaluate(*flags, "--out", tmp_path / "out")["rows"]
    found = {name: value(row, "fd", "fashion-b") for name, row in rows.items()}
    assert list(found) == ["ODE adams, 3 steps", "real images"] and min(found, key=found.get) == "real images"
    net = fastfid.feature_extractor("fashion-b")
    with torch.no_grad():
        sides = [
            torch.cat([net(batch) for batch in images.split(250)])
            for images in (real_images(200)[0], load_embedded("heldout").images)
        ]
    expected = float(frechet_distance(*map(FeatureMoments.from_features, sides)))
    assert found["real images"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("trained", [True, False])
def test_by_default_every_network_of_the_run_measures(tmp_path, trained):
    """Of a run those that it rewarded and its judges; of the embedded model those of the default run."""
    judges, mix = ("fashion-c", "fashion-e"), ("fd:fashion-b", "kid:fashion-a=0.5")
    changes = {"reward": mix, "reward_features": "fashion-b", "judge_features": judges}
    config = PRESETS["fashion"][1].changed(**changes, out=tmp_path) if trained else PRESETS["fashion"][1]
    resolve(config).save(tmp_path / "config.yaml")
    task = with_defaults(EvaluateConfig(checkpoint=tmp_path if trained else None, real=evaluate_command.EMBEDDED), None)
    rewarded = ("fashion-b", "fashion-a") if trained else ("fashion-a", "fashion-c", "fashion-d", "fashion-f")
    never = judges if trained else ("fashion-b", "fashion-e")
    assert task.networks == (*rewarded, *never) and task.rewarded == set(rewarded)
    assert {"fd", "sliced_wasserstein"} <= set(task.metrics)
    assert len(evaluate_command.other_real_images(task)[0]) == evaluate_command.EMBEDDED_IMAGES  # for FDr


def test_what_trained_a_file_of_weights_is_unknown(tmp_path):
    config = EvaluateConfig(checkpoint=tmp_path / "x.safetensors", real=evaluate_command.EMBEDDED)
    assert with_defaults(config, None).rewarded is None
    samples = EvaluateConfig(samples=(tmp_path,), real=evaluate_command.EMBEDDED)
    assert with_defaults(samples, None).rewarded is None


def statistics_file(path, mu, count=50_000):
    """What ADM publishes of a model or reference, without its images: mean and covariance, full and spatial."""
    d = len(mu)
    np.savez(path, mu=mu, sigma=np.eye(d), mu_s=np.zeros(7), sigma_s=np.eye(7), count=count)
    return path


def test_sample_files_of_other_programs_under_adms_protocol(tmp_path, capsys):
    """Equal covariances: FID is the squared distance of the means, here 3² and 1²."""
    shift = np.zeros(2048)
    reference = statistics_file(tmp_path / "VIRTUAL_imagenet256_labeled.npz", shift)
    files = []
    for name, distance in (("admnet.npz", 3.0), ("sit.npz", 1.0)):
        moved = shift.copy()
        moved[5] = distance
        files.append(statistics_file(tmp_path / name, moved))
    found = evaluate("--samples", *files, "--reference", reference, "--protocol", "adm", "--out", tmp_path / "out")
    rows = found["rows"]
    assert list(rows) == ["admnet.npz", "sit.npz"]
    for name, expected in (("admnet.npz", 9.0), ("sit.npz", 1.0)):
        score = next(s for s in rows[name]["scores"] if s["metric"] == "fd")
        assert score["value"] == pytest.approx(expected, abs=1e-8) and score["label"] == "FID"
        assert {x["metric"] for x in rows[name]["left_out"]} >= {"is", "precision", "recall"}
        assert rows[name]["protocol"]["name"] == "adm"
    text = capsys.readouterr().out
    assert "FID" in text and "9.0000" in text and "sit.npz: is (inception) left out" in text


def test_images_of_an_npz_give_fastfids_own_numbers(tmp_path):
    images = load_embedded("train").images
    for name, part in (("a.npz", images[:200]), ("b.npz", images[200:420])):
        np.savez(tmp_path / name, arr_0=part.permute(0, 2, 3, 1).numpy())
    paths = tmp_path / "a.npz", tmp_path / "b.npz"
    metrics = ("fd", "kid", "mmd", "precision", "density")
    found = evaluate(
        "--samples", paths[0], "--reference", paths[1], "--network", "fashion-b", "--metrics", *metrics,
        "--out", tmp_path / "out",
    )  # fmt: skip
    direct = fastfid.evaluate(*paths, metrics=metrics, features="fashion-b", cache=False)
    for metric in metrics:
        assert value(found["rows"]["a.npz"], metric, "fashion-b") == pytest.approx(direct[metric].value, rel=1e-12)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--samples", "no.npz", "--reference", "embedded"], "--samples no.npz does not exist"),
        (["--real", "no.npz"], "--real no.npz does not exist"),
        (["--samples", "x.npz"], "--real is missing: pass real images"),
        (["--checkpoint", "colour.safetensors"], "--real is missing: pass real images"),
        (["--samples", "x.npz", "--checkpoint", "colour.safetensors"], "pass one of them"),
        (["--samplers", "ode", "heun"], "--sampler 'heun' does not exist"),
        (["--protocol", "fidd"], "unknown protocol 'fidd'"),
        (["--weights", "a.pt", "inception=b.pt"], "write NAME=PATH"),
        (["--images", "0"], "--images is 0"),
        (["--metrics", "fdd"], "unknown metric 'fdd'"),
        (["--samplers", "ode", "dit-ddpm"], "--sampler DDPM, 250 steps is for a model that predicts noise"),
        (["--labels", "10"], "--labels 10 is out of range"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", arr_0=np.zeros((3, 28, 28, 1), np.uint8))
    save_model(
        SiT(SiTConfig(image_size=8, patch_size=4, channels=3, width=32, depth=1, heads=2, num_classes=5)),
        tmp_path / "colour.safetensors",
    )
    with pytest.raises(SystemExit, match="2"):
        main([*flags, "--threads", "1"])
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["colour.safetensors", "x.npz"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--network", "fashion-a", "--weights", "no.safetensors"], "no.safetensors"),
        (["--network", "no.pt"], "unknown feature network 'no.pt'"),
        (["--network", "fashion-a", "fashion-b", "--weights", "wide.npz"], "one weights file for 2 networks"),
        (["--reference", "wide.npz", "--network", "fashion-a"], "has d = 128"),
        (["--reference", "other.npz", "--network", "fashion-a"], "extractor of other.npz is fashion-b"),
        (["--reference", "cut.npz"], "cut.npz"),
        (["--reference", "broken", "--network", "fashion-a"], "2.png"),
    ],
)
def test_networks_and_reference_are_read_before_sampling(tmp_path, monkeypatch, capsys, flags, message):
    """A missing network, statistics of another and an unreadable real image end the command in its first seconds."""
    monkeypatch.chdir(tmp_path)
    statistics_file("wide.npz", np.zeros(2048))
    FeatureMoments(100, torch.zeros(128), torch.eye(128), {"extractor": "fashion-b"}).save("other.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "wide.npz").read_bytes()[:1000])
    (tmp_path / "broken").mkdir()
    for number in range(2):
        Image.fromarray(load_embedded("heldout").images[number, 0].numpy()).save(f"broken/{number}.png")
    (tmp_path / "broken/2.png").write_bytes(b"no image")
    monkeypatch.setattr(evaluate_command, "make_samples", sampled)
    with pytest.raises(SystemExit, match="2"):
        main([*flags, "--threads", "1", "--images", "20"])
    error = capsys.readouterr().err
    assert message in error and error.splitlines()[-1].startswith("error: "), error
    assert not Path("runs").exists()  # of --out's default runs/evaluation


def test_a_failure_leaves_what_was_done_and_no_empty_folder(tmp_path, monkeypatch, capsys):
    """A second file that cannot be read: the first row is kept; alone, nothing is, and a folder of another's stays."""
    monkeypatch.chdir(tmp_path)
    np.savez("good.npz", arr_0=load_embedded("heldout").images[:20].permute(0, 2, 3, 1).numpy())
    (tmp_path / "bad.npz").write_bytes(b"PK no archive")
    there = tmp_path / "there"
    there.mkdir()
    options = ["--reference", "good.npz", "--network", "fashion-a", "--metrics", "fd", "--threads", "1", "--force"]
    for samples, out in ((["bad.npz"], "a/b"), (["bad.npz"], "there"), (["good.npz", "bad.npz"], "half")):
        with pytest.raises(SystemExit, match="2"):
            main(["--samples", *samples, "--out", out, *options])
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert not Path("a").exists() and there.is_dir() and not any(there.iterdir())
    assert list(json.loads(Path("half/evaluation.json").read_text())["rows"]) == ["good.npz"]


def sampled(*_):
    """In place of sampling."""
    raise AssertionError("sampling began")


def test_sampling_begins_where_nothing_is_amiss(tmp_path, monkeypatch):
    """So that the test above cannot pass because its stand-in is never reached."""
    monkeypatch.setattr(evaluate_command, "make_samples", sampled)
    with pytest.raises(AssertionError, match="sampling began"):
        main(["--threads", "1", "--images", "20", "--network", "fashion-a", "--out", str(tmp_path / "out")])


def test_weights_of_one_and_of_several_networks():
    assert weights_of(()) is None
    assert weights_of(("a.pt",)) == "a.pt"
    assert weights_of(("inception=a.pt", "dinov2=b.pt")) == {"inception": "a.pt", "dinov2": "b.pt"}


def test_table_shows_half_of_the_interval_and_what_is_missing():
    score = {"metric": "fd", "network": "inception", "label": "FID", "value": 8.3, "interval": [8.1, 8.5]}
    kid = {"metric": "kid", "network": "inception", "label": "KID", "value": 0.0043, "interval": None}
    empty = {"left_out": [], "warnings": []}
    lines = table({"a": {"scores": [score], **empty}, "b": {"scores": [kid], **empty}}).splitlines()
    assert lines[0].split() == ["a", "b"]
    assert lines[1].split() == ["FID", "8.3000", "±", "0.2000", "–"]
    assert lines[2].split() == ["KID", "–", "0.0043"]


def test_of_several_networks_the_table_has_a_line_each_and_says_which_were_rewarded():
    def scores(network, fd, fdr, recall):
        found = [("fd", f"FD ({network})", fd, [fd - 0.1, fd + 0.1]), ("recall", f"Recall ({network})", recall, None)]
        found += [("fdr", f"FDr ({network})", fdr, [0, 9])] if fdr else []
        return [dict(metric=m, network=network, label=text, value=v, interval=i) for m, text, v, i in found]

    row = {"scores": scores("a", 1.0, 2.0, 0.5) + scores("b", 3.0, 4.0, 0.25), "left_out": [], "warnings": ["w"]}
    real = {"scores": scores("a", 0.5, None, 0.75), "left_out": [], "warnings": []}
    lines = table({"ODE": row | {"rewarded": ["a"]}, "real": real | {"rewarded": None}}).splitlines()
    assert [line.split() for line in lines] == [
        ["ODE", "FD", "FDr", "Recall"],
        ["a", "rewarded", "1.0000", "±", "0.1000", "2.0000", "0.5000"],
        ["b", "never", "seen", "3.0000", "±", "0.1000", "4.0000", "0.2500"],
        ["real", "FD", "FDr", "Recall"],
        ["a", "0.5000", "±", "0.1000", "–", "0.7500"],
        ["ODE:", "warning:", "w"],
    ]
