"""From a folder of images to a model, a run, samples and an evaluation; and what is refused before any work."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fastfid import feature_extractor
from fastfid.statistics.statistics import read_statistics
from sit_rl import evaluate, pretrain, sample, train
from sit_rl.components.own_images import as_in_card
from sit_rl.files.lock import held
from sit_rl.models.card import read_card
from sit_rl.models.loading import load_model, save_model
from sit_rl.models.sit import SiT, SiTConfig
from sit_rl.pretraining import networks, options, own
from sit_rl.runs import forecast
from tests.support.own_pictures import class_folders, drawing
from tests.support.pictures import encoded, write

ROOT = Path(__file__).parents[2]
COUNT = 300
TINY = (
    "--threads 1 --iterations 6 --batch 8 --width 32 --depth 1 --curve-every 3 --curve-images 40 "
    "--heldout-fraction 0.25"
)
RUN = (
    "--preset smoke --threads 1 --steps 2 --reference-size 60 --replace 5 --candidates 4 --minibatch 10 "
    "--rollout-batch 20 --evaluate-images 40 --evaluate-every 0"
)


@pytest.fixture(scope="module")
def quick():
    """Networks see a few hundred images, and nobody measures speed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "LEAST_SEEN", 600)
        patch.setattr(networks, "PASSES", 1)
        patch.setattr(options, "SAVES", 2)
        patch.setattr(forecast, "measure_rate", lambda *_: 1000.0)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("images") / "own", COUNT)


@pytest.fixture(scope="module")
def model(images, quick):
    """A model's folder."""
    return made(images, images.parent / "my-model")


def made(images, out, *more):
    pretrain.main(["base", "--images", str(images), "--out", str(out), *TINY.split(), *map(str, more)])
    return out


def test_the_folder_has_weights_card_networks_statistics_and_grids(model, images):
    card = read_card(model)
    assert card.image_shape == card.sample_shape == (3, 16, 16) and card.classes == ("disc", "square")
    assert card.train.count + card.heldout.count == COUNT and len(card.split.heldout) == card.heldout.count
    assert load_model(model).config.num_classes == 2
    again = as_in_card(card, images)
    assert (len(again.train), len(again.heldout)) == (card.train.count, card.heldout.count)
    for role in ("reward", "judge"):
        network = feature_extractor(f"small:{model / card.networks[role]}")
        statistics = read_statistics(model / f"statistics-{role}.npz", network.name)
        assert statistics.count == card.train.count and statistics.identity.weights_sha256 == network.weights_sha256
    curve = np.genfromtxt(model / "curve.csv", delimiter=",", names=True)
    assert curve["iteration"].tolist() == [3, 6] and (curve["heldout_fd"] > 0).all()
    assert Image.open(model / "samples" / "iteration-0000006.png").size == (10 * 16, 4 * 16)


def test_a_run_samples_and_an_evaluation_follow(model, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train.main([*RUN.split(), "--checkpoint", str(model), "--images", str(images), "--out", "run"])
    summary = json.loads(Path("run/summary.json").read_text())
    card = read_card(model)
    assert summary["protocol"]["heldout_images"] == card.heldout.count
    assert summary["protocol"]["reward_real_images"] == card.train.count
    assert summary["protocol"]["networks"]["fd_b"]["name"] == "small:judge"
    assert all(summary[when][sampler]["fd"] > 0 for when in ("before", "after") for sampler in ("ode", "sde"))
    assert summary["floor"]["fd"] > 0 and Path("run/report.html").is_file()
    sample.main(["--checkpoint", str(model), "--images", "4", "--steps", "3", "--out", "samples"])
    assert {Image.open(path).size for path in Path("samples").rglob("*.png")} == {(16, 16)}
    evaluate.main(
        ["--checkpoint", "run", "--own-images", str(images), "--images", "60", "--samplers", "ode", "--steps", "3"]
    )
    rows = json.loads(Path("runs/evaluation/evaluation.json").read_text())["rows"]
    scores = {name: {s["network"] for s in row["scores"]} for name, row in rows.items()}
    assert len(rows) == 2 and all(found == {"small:reward", "small:judge"} for found in scores.values())
    assert all(row["rewarded"] == ["small:reward"] for row in rows.values())
    (made,) = (row for name, row in rows.items() if name != "real images")
    assert {"fdr", "sliced_wasserstein"} <= {s["metric"] for s in made["scores"]}


def test_own_defaults_are_the_cards_and_flags_win(model):
    config = train.parse(["--checkpoint", str(model)])
    assert config.files.reward_features == f"small:{model}/reward.safetensors" and config.preset == "own"
    assert config.run_folder == Path("runs/my-model-advantage_matching-0")
    other = train.parse(["--checkpoint", str(model), "--judge-features", "none", "--preset", "smoke"])
    assert other.files.judge_features == ("none",) and other.preset == "smoke"


def test_a_killed_pretraining_goes_on_to_the_same_weights(model, images, monkeypatch, capsys):
    out = images.parent / "killed"
    judge = own.Run.point

    def dies(self, loss):
        judge(self, loss)
        if self.state.done == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(own.Run, "point", dies)
    with pytest.raises(SystemExit):
        made(images, out)
    monkeypatch.undo()
    made(images, out)
    assert "resuming" in capsys.readouterr().out
    expected, found = (load_file(folder / "model.safetensors") for folder in (model, out))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    lines = [(folder / "curve.csv").read_text().splitlines() for folder in (model, out)]
    without_seconds = [[line.rpartition(",")[0] for line in each] for each in lines]
    assert without_seconds[0] == without_seconds[1]
    made(images, out)
    assert "is finished; delete it, or choose another --out" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        made(images, out, "--lr", "1e-3")
    assert "holds a pretraining of another optimisation" in capsys.readouterr().err


def test_images_without_labels_train_one_class(quick, tmp_path, capsys):
    write(tmp_path / "flat", {f"{seed}.png": encoded(drawing(seed)) for seed in range(COUNT)})
    out = made(tmp_path / "flat", tmp_path / "out")
    told = capsys.readouterr().out
    assert "none; trained without labels" in told and "by NT-Xent" in told and "in an altered copy" in told
    assert read_card(out).classes == ("images",) and load_model(out).config.num_classes == 1


def test_networks_alone(quick, images, tmp_path, capsys):
    file = tmp_path / "networks.yaml"
    file.write_text(f"images: {images}\nout: other\nheldout_fraction: 0.25\n")
    pretrain.main(["features", "--config", str(file), "--out", str(tmp_path / "nets")])
    told = capsys.readouterr().out
    assert "in 2 classes" in told and f"--reward-features small:{tmp_path}/nets/reward.safetensors" in told
    assert feature_extractor(f"small:{tmp_path}/nets/judge.safetensors").dim == 24


@pytest.mark.parametrize("name", ["base", "features"])
def test_two_pretrainings_in_one_folder_are_one(quick, images, tmp_path, capsys, name):
    """The second one changes nothing, and names the first."""
    out = tmp_path / "new"
    out.mkdir()
    with held(out / "run.lock", "--out", out), pytest.raises(SystemExit) as ended:
        pretrain.main([name, "--images", str(images), "--out", str(out), *(TINY.split() if name == "base" else ())])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and f"--out {out} is in use by process {os.getpid()} on " in told
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("content", ["[" * 100_000, "[]"])
def test_a_damaged_plan_is_one_sentence(quick, images, tmp_path, capsys, content):
    (tmp_path / "pretrain.json").write_text(content)
    with pytest.raises(SystemExit):
        made(images, tmp_path)
    assert "pretrain.json is damaged; delete " in capsys.readouterr().err


def test_latents_of_an_autoencoder_take_the_same_flags(quick, images, tmp_path, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=[8, 8], norm_num_groups=4, latent_channels=4, layers_per_block=1, **blocks
    )
    vae.save_pretrained(tmp_path / "vae")
    out = made(images, tmp_path / "latent", "--vae", tmp_path / "vae")
    card = read_card(out)
    assert card.sample_shape == (4, 8, 8) and card.image_shape == (3, 16, 16)
    monkeypatch.chdir(tmp_path)
    train.main([*RUN.split(), "--checkpoint", "latent", "--images", str(images), "--out", "run"])
    assert json.loads(Path("run/summary.json").read_text())["after"]["ode"]["fd"] > 0
    sample.main(["--checkpoint", "latent", "--images", "2", "--steps", "2", "--out", "x.npz"])
    assert np.load("x.npz")["arr_0"].shape == (2, 16, 16, 3)


@pytest.mark.slow
def test_two_ranks_make_the_model_of_one(images, model, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["sit_rl.pretrain", "base", "--images", str(images), "--out", str(tmp_path / "two"), *TINY.split()]
    subprocess.run(command, check=True, cwd=ROOT, timeout=400, capture_output=True)
    one, two = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "two"))
    for name, value in one.items():  # as of the embedded base: sums in another order turn the sign of tiny gradients
        assert torch.isclose(value, two[name], rtol=1e-3, atol=1e-5).float().mean() > 0.98, name


# --- refusals --------------------------------------------------------------------------------------------------------

DEEP = encoded(np.zeros((16, 16), np.uint16)[..., None])
DOORS = {
    "nothing": ({}, "", "holds no images"),
    "one image": ({"a.png": encoded(drawing(0))}, "", "holds 1 image; a generator needs at least 280"),
    "too few": ({f"{i}.png": encoded(drawing(i)) for i in range(9)}, "", "holds 9 images; a generator needs at least"),
    "16 bits": ({"zz.png": DEEP}, "own", "zz.png in .* cannot be read as an 8-bit image .*16|more than 8 bits"),
    "damaged": ({"zz.png": b"no image"}, "own", "zz.png in .* cannot be read as an 8-bit image"),
    "copies": ({f"{i}.png": encoded(drawing(0)) for i in range(300)}, "", "300 images in 1 group of near-duplicates"),
}


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """A function from words of a command to its one sentence; nothing may be written."""
    monkeypatch.chdir(tmp_path)

    def run(command, *words):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as stopped:
            command.main([str(word) for word in words])
        told = capsys.readouterr().err.strip()
        assert stopped.value.code == 2 and re.fullmatch("error: .*", told), told
        assert sorted(tmp_path.rglob("*")) == before
        return told

    return run


@pytest.mark.parametrize("door", DOORS)
def test_images_that_cannot_train_are_refused(refused, tmp_path, door):
    files, also, told = DOORS[door]
    folder = write(tmp_path / "x", files) if files else tmp_path / "x"
    folder.mkdir(exist_ok=True)
    if also:
        write(folder, {f"{i}.png": encoded(drawing(i)) for i in range(COUNT)})
    assert re.search(told, refused(pretrain, "base", "--images", "x", "--out", "y")), told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "--out is missing"),
        ("--out y --size 4", "--size is 4; it must be between 8 and 1024"),
        ("--out y --heldout-fraction 1.5", "--heldout-fraction is 1.5"),
        ("--out y --heldout-fraction 0.01", "images are held out .* and a judge needs 40"),
        ("--out y --batch 1", "--batch 1 does not divide"),
        ("--out y --iterations 0", "--iterations is 0"),
        ("--out y --lr -1", "--lr is -1.0; it must be a positive number"),
        ("--out y --ema 1", r"--ema is 1.0; it must be in \[0, 1\)"),
        ("--out y --size 31", "no patch divides samples of 31×31"),
        ("--out y --source z", "--source z is of Fashion-MNIST and --images are your own"),
        ("--out y --heldout {images}", "100% of its images are in --images .* too"),
        ("--out y --heldout none", "--heldout none does not exist"),
    ],
)
def test_flags_that_do_not_fit_the_images_are_refused(refused, images, words, told):
    assert re.search(told, refused(pretrain, "base", "--images", images, *words.format(images=images).split()))


def test_labels_that_are_no_classes_are_refused(refused, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=pixels, labels=np.linspace(0, 1, 300))
    told = refused(pretrain, "base", "--images", "x.npz", "--out", "y")
    assert "--images x.npz has 300 images in 300 classes, such as '0'; a class needs at least 2 images" in told


def test_wrong_shapes_and_labels_are_refused(refused, tmp_path, images):
    np.savez(tmp_path / "x.npz", images=np.zeros((300, 16, 16, 5), np.uint8))
    assert "has shape (300, 16, 16, 5)" in refused(pretrain, "base", "--images", "x.npz", "--out", "y")
    other = write(
        tmp_path / "h", {f"{kind}/{i}.png": encoded(drawing(i + 900)) for kind in ("disc", "star") for i in range(30)}
    )
    told = refused(pretrain, "base", "--images", images, "--heldout", other, "--out", "y")
    assert "is of the class 'star', which is none of the 2 training classes (disc, square)" in told


def test_a_run_refuses_what_is_not_the_models(refused, model, images, tmp_path):
    assert "needs a model that was trained on them" in refused(train, "--images", images)
    assert "pass those that it was trained on by --images" in refused(train, "--checkpoint", model)
    both = refused(train, "--checkpoint", model, "--images", images, "--real", images)
    assert "both give the reward's real images" in both
    fewer = class_folders(tmp_path / "fewer", COUNT - 2)
    told = refused(train, *RUN.split(), "--checkpoint", model, "--images", fewer)
    assert "is not what the model was trained on" in told
    changed = class_folders(tmp_path / "changed", COUNT)
    first = next(
        path for path in sorted(changed.rglob("*.png")) if path.name not in str(read_card(model).split.heldout)
    )
    first.write_bytes(encoded(drawing(5_000)))
    told = refused(train, *RUN.split(), "--checkpoint", model, "--images", changed)
    assert "its pixels or labels differ from those of the model's card" in told
    larger = write(tmp_path / "larger", {f"{i}.png": encoded(drawing(i, 20)) for i in range(3)})
    told = refused(train, *RUN.split(), "--checkpoint", model, "--real", larger)
    assert "holds images of 3×20×20, and the generator makes images of 3×16×16" in told


def test_weights_of_another_shape_than_the_card_says_are_refused(refused, model, tmp_path, images):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "card.json").write_text((model / "card.json").read_text())
    for name in ("reward", "judge"):
        (folder / f"{name}.safetensors").write_bytes((model / f"{name}.safetensors").read_bytes())
    save_model(SiT(SiTConfig(16, 4, 3, 32, 1, 1, num_classes=5)), folder / "model.safetensors")
    told = refused(train, *RUN.split(), "--checkpoint", folder, "--images", images)
    assert "in 5 classes, its card says (3, 16, 16) in 2" in told
    assert "its card says" in refused(sample, "--checkpoint", folder, "--images", "2")
    (folder / "card.json").write_text("{}")
    assert "card.json is not a card of this version" in refused(sample, "--checkpoint", folder, "--images", "2")
