"""Sampling from the command line: the images are those of the equations, whatever interrupts or divides the work."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastfid import open_images
from sit_rl import sample
from sit_rl.components.image_sets import tile
from sit_rl.config import resolve
from sit_rl.generation import sample_files
from sit_rl.generation.recipe import choose_labels, parse_sampler
from sit_rl.learner import checkpoint
from sit_rl.models.dit import DiT
from sit_rl.models.loading import save_model
from sit_rl.models.sit import SiT, SiTConfig
from sit_rl.presets import PRESETS
from sit_rl.sample import SampleConfig, main
from sit_rl.sampling.random_streams import Stream, generator
from sit_rl.sampling.sampler_config import OFFICIAL, SamplerConfig

ROOT = Path(__file__).parents[2]
COLOUR = SiTConfig(image_size=8, patch_size=4, channels=3, width=32, depth=1, heads=2, num_classes=5)


def randomised(model, seed=0, std=0.2):
    """All weights N(0, std²): the published initialisation predicts zero everywhere."""
    torch.manual_seed(seed)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    return model.eval()


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    """A checkpoint that makes 3×8×8 images in 5 classes."""
    path = tmp_path_factory.mktemp("models") / "colour.safetensors"
    save_model(randomised(SiT(COLOUR)), path)
    return path


def run(path, out, *flags, images=23):
    """The command on 23 images in batches of 4, three ODE steps: six batches, the last one short."""
    arguments = ["--checkpoint", path, "--out", out, "--images", images, "--batch", 4, "--sampler", "ode-euler"]
    main([str(a) for a in (*arguments, "--steps", 3, "--threads", 1, *flags)])


def pixels(folder):
    return np.stack([np.asarray(Image.open(p)) for p in sorted(Path(folder).glob("*.png"))])


@pytest.fixture(scope="module")
def whole(colour, tmp_path_factory):
    """Images [23, 8, 8, 3] of one undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "images"
    run(colour, out)
    return pixels(out)


# --- what the images are -----------------------------------------------------------------------------------------


@torch.no_grad()
def test_images_are_the_euler_steps_of_their_own_noise(whole):
    """Restated: x₀ from (seed, i), x += v(x, k/3, i mod 5)/3, then uint8(clamp(127.5x + 128)); the batches are ours."""
    model = randomised(SiT(COLOUR))
    for rows in (range(0, 4), range(20, 23)):
        x = torch.stack([
            torch.from_numpy(generator(0, Stream.EVALUATE, 0, i).standard_normal((3, 8, 8), dtype=np.float32))
            for i in rows
        ])  # fmt: skip
        for k in range(3):
            x = x + model(x, torch.full((len(rows),), k / 3), torch.tensor([i % 5 for i in rows])) / 3
        expected = (127.5 * x + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        # Float32 rounding of t and h may move a value across the edge of a level, no further.
        assert np.abs(whole[list(rows)].astype(int) - expected).max() <= 1
        assert (whole[list(rows)] == expected).mean() > 0.99
    assert len(np.unique(whole)) > 50


def test_record_says_how(colour, tmp_path):
    run(colour, tmp_path / "a", "--seed", 3, "--guidance", 1.5)
    record = json.loads((tmp_path / "a" / "sampling.json").read_text())
    digest = subprocess.run(["sha256sum", colour], capture_output=True, text=True, check=True).stdout.split()[0]
    assert record["model"]["sha256"] == digest and record["complete"] and record["seed"] == 3
    assert record["sampler"]["guidance"] == 1.5 and record["sampler"]["evaluations"] == 6
    assert record["images"] == 23 and record["image_shape"] == [3, 8, 8]
    assert record["runs"][0]["versions"]["torch"] == torch.__version__
    np.testing.assert_array_equal(np.load(tmp_path / "a" / "labels.npy"), np.arange(23) % 5)


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


def test_tile_fills_the_last_row_with_white():
    images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1) * np.ones((3, 1, 2, 2), np.uint8)
    expected = np.repeat(np.repeat(np.array([[0, 1], [2, 255]], np.uint8), 2, axis=0), 2, axis=1)
    np.testing.assert_array_equal(tile(images, 2), expected)


@pytest.mark.parametrize("labels", ["balanced", "random", "3"])
def test_labels(labels):
    many, few = (choose_labels(SampleConfig(images=n, labels=labels, seed=1), 5) for n in (500, 100))
    assert torch.equal(many[:100], few)  # a label belongs to its image
    counts = torch.bincount(many, minlength=5)
    if labels == "balanced":
        assert counts.tolist() == [100] * 5
    elif labels == "random":  # binomial: mean 100, deviation 9; five deviations either way
        assert (counts - 100).abs().max() < 45 and not torch.equal(many, choose_labels(SampleConfig(images=500), 5))
    else:
        assert counts.tolist() == [0, 0, 0, 500, 0]


def test_sampler_names_and_fields():
    assert parse_sampler("sit-sde") == OFFICIAL["sit-sde"]
    assert parse_sampler("sit-sde", steps=50, guidance=4.0).steps == 50
    assert parse_sampler("ode") == PRESETS["fashion"][1].evaluation.ode
    expected = SamplerConfig("sde", "euler", 7, diffusion="constant", diffusion_norm=0.5)
    assert parse_sampler("sde-euler,diffusion=constant,diffusion_norm=0.5", steps=7) == expected


def test_sde_draws_its_steps_noise_by_image(colour, tmp_path):
    """The first four images of two commands are the same; another seed's are not."""
    for name, images, seed in (("a", 4, 0), ("b", 8, 0), ("c", 4, 1)):
        run(colour, tmp_path / name, "--sampler", "sde-euler", "--seed", seed, images=images)
    a, b, c = (pixels(tmp_path / name) for name in "abc")
    np.testing.assert_array_equal(a, b[:4])
    assert (a != c).mean() > 0.5


def test_bfloat16_is_near_float32(colour, whole, tmp_path):
    """Products in bfloat16 err by 2⁻⁹ each; pixels of unit spread (127 levels) move by a few levels on average."""
    run(colour, tmp_path / "a", "--precision", "bf16")
    change = np.abs(pixels(tmp_path / "a").astype(int) - whole)
    assert 0 < change.mean() < 4


def test_dit_is_sampled_by_its_own_chain(tmp_path):
    save_model(randomised(DiT(COLOUR), std=0.05), tmp_path / "dit.safetensors")
    run(tmp_path / "dit.safetensors", tmp_path / "a", "--sampler", "dit-ddpm", images=4)
    record = json.loads((tmp_path / "a" / "sampling.json").read_text())
    assert record["sampler"]["method"] == "ddpm" and record["sampler"]["steps"] == 3
    assert pixels(tmp_path / "a").std() > 10


def test_latents_go_through_the_autoencoder(tmp_path, capsys):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = diffusers.AutoencoderKL(block_out_channels=[8, 8], norm_num_groups=4, latent_channels=4, **blocks).eval()
    vae.save_pretrained(tmp_path / "vae")
    config = SiTConfig(image_size=4, patch_size=2, channels=4, width=16, depth=1, heads=2, num_classes=5)
    save_model(randomised(SiT(config)), tmp_path / "m.safetensors")
    run(tmp_path / "m.safetensors", tmp_path / "s.npz", "--vae", tmp_path / "vae", images=3)
    record = json.loads((tmp_path / "s.npz.json").read_text())
    assert "flash needs an NVIDIA GPU" in record["runs"][0]["attention"]
    assert record["image_shape"] == [3, 8, 8] and len(record["model"]["vae"]["sha256"]) == 64
    made = sample.load_generator(
        SampleConfig(checkpoint=tmp_path / "m.safetensors", vae=tmp_path / "vae"), torch.device("cpu")
    )
    z = torch.randn(2, 4, 4, 4)
    with torch.no_grad():
        expected = (127.5 * vae.decode(z / 0.18215).sample + 128).clamp(0, 255).to(torch.uint8)
    assert (made.decode(z).int() - expected.int()).abs().max() <= 1
    for name, changes, told in (
        ("wide", {"latent_channels": 8}, r"does not decode the model's samples of 4 × 4 × 4 .*; pass the autoencoder"),
        ("grey", {"in_channels": 2, "out_channels": 2}, "decodes to images of 2 channels, not 1 or 3"),
        ("vae", {"latent_channels": 4}, "holds images of another vae sha256"),  # other weights in the same folder
        ("other", {"latent_channels": 4}, "holds images of another vae folder: vae, not other; choose another --out"),
    ):
        diffusers.AutoencoderKL(block_out_channels=[8, 8], norm_num_groups=4, **blocks, **changes).save_pretrained(
            tmp_path / name
        )
        error = stopped_by(capsys, tmp_path / "m.safetensors", tmp_path / "s.npz", "--vae", tmp_path / name, images=3)
        assert re.search(told, error), error


@pytest.fixture
def run_folder(tmp_path):
    """A run that began from other weights than the fixture's model."""
    save_model(randomised(SiT(COLOUR), seed=1), tmp_path / "base.safetensors")
    folder = tmp_path / "run"
    folder.mkdir()

    def make(tensors=None, **fields):
        resolve(PRESETS["smoke"][1]).changed(checkpoint=tmp_path / "base.safetensors", **fields).save(
            folder / "config.yaml"
        )
        if tensors is not None:
            writer = checkpoint.Writer(folder / "checkpoints", keep=1)
            writer.save(7, {f"ema.{name}": value.detach() for name, value in tensors.items()}, {"step": 7})
            writer.wait()
        return folder

    return make


def test_run_folder_gives_its_averaged_weights(run_folder, whole, tmp_path):
    folder = run_folder(dict(randomised(SiT(COLOUR)).named_parameters()))
    run(folder, tmp_path / "a")
    np.testing.assert_array_equal(pixels(tmp_path / "a"), whole)
    assert json.loads((tmp_path / "a" / "sampling.json").read_text())["model"]["weights"] == "EMA at step 7"


def test_finished_run_gives_its_last_average(run_folder, colour, whole, tmp_path):
    shutil.copy(colour, run_folder() / "ema.safetensors")
    run(tmp_path / "run", tmp_path / "a")
    np.testing.assert_array_equal(pixels(tmp_path / "a"), whole)


def test_run_of_lora_terms_is_merged(run_folder, tmp_path):
    """The adapted model restated: y = W x + B A x beside every linear layer of the blocks."""
    pytest.importorskip("peft")
    from sit_rl.models.lora import add_lora

    adapted = randomised(SiT(COLOUR), seed=1)
    add_lora(adapted, 2, 0)
    torch.manual_seed(2)
    for name, p in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, std=0.3)
    folder = run_folder(dict(adapted.named_parameters()), lora=2)
    made = sample.load_generator(SampleConfig(checkpoint=folder), torch.device("cpu"))
    x, t, y = torch.randn(3, 3, 8, 8), torch.rand(3), torch.arange(3)
    with torch.no_grad():
        # Merged and separate products differ by float32 rounding of sums of 32 terms: 1e-6 of the outputs' scale.
        torch.testing.assert_close(made.model(x, t, y), adapted(x, t, y), rtol=1e-4, atol=1e-5)
        assert (adapted(x, t, y) - randomised(SiT(COLOUR), seed=1)(x, t, y)).abs().max() > 1e-2


def test_a_run_seen_from_another_place_names_what_it_cannot_find(run_folder, tmp_path, capsys):
    """A run keeps the paths that it was given, relative ones as they are."""
    weights = dict(SiT(COLOUR).named_parameters())
    told = stopped_by(capsys, run_folder(weights, vae=Path("elsewhere")), tmp_path / "a")
    assert "was trained with --vae elsewhere, which does not exist now; pass --vae" in told
    (tmp_path / "base.safetensors").unlink()
    told = stopped_by(capsys, run_folder(), tmp_path / "a")
    assert f"was trained with --checkpoint {tmp_path}/base.safetensors, which does not exist now; work where" in told


def test_run_without_a_checkpoint(run_folder, tmp_path, capsys):
    assert "holds no weights yet" in stopped_by(capsys, run_folder(), tmp_path / "a")


# --- interruptions and ranks -------------------------------------------------------------------------------------


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


# Children come from a server that has imported everything once and runs no threads, which a fork would lose.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["sit_rl.sample"])


def child(env, log, arguments, keywords):
    """What a child does: the command, with stderr in a file."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 2)
    os.environ.update({k: str(v) for k, v in env.items()})
    run(*arguments, **keywords)


def started(env, log, *arguments, **keywords):
    """The command in a process of its own."""
    process = SERVER.Process(target=child, args=(env, log, arguments, keywords))
    process.start()
    return process


def exit_code(process):
    process.join(100)
    return process.exitcode


def test_killed_run_goes_on(colour, tmp_path):
    """SIGKILL as soon as there are images; the same command gives what an undisturbed one does."""
    process = started({}, tmp_path / "log", colour, tmp_path / "a", "--steps", 40, images=80)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("a/*.png"))) < 20:
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.005)
    process.kill()
    assert exit_code(process) == -signal.SIGKILL
    there = {p: p.stat().st_mtime_ns for p in tmp_path.glob("a/[0-9]*.png")}
    assert 20 <= len(there) < 80
    for name in ("a", "b"):
        run(colour, tmp_path / name, "--steps", 40, images=80)
    assert all(p.stat().st_mtime_ns == t for p, t in there.items())
    np.testing.assert_array_equal(pixels(tmp_path / "a"), pixels(tmp_path / "b"))


def ranks(world, log, *arguments):
    """The command on `world` ranks that talk through gloo: their exit codes, and what they wrote to stderr."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [started(where | {"RANK": r, "LOCAL_RANK": r}, f"{log}-{r}", *arguments) for r in range(world)]
    return list(map(exit_code, processes)), "".join(Path(f"{log}-{r}").read_text() for r in range(world))


@pytest.mark.parametrize(("world", "name"), [(2, "s.npz"), (4, "a")])
def test_ranks_make_the_same_images(colour, whole, tmp_path, world, name):
    out = tmp_path / name
    codes, errors = ranks(world, tmp_path / "log", colour, out)
    assert codes == [0] * world, errors
    np.testing.assert_array_equal(pixels(out) if name == "a" else np.load(out)["arr_0"], whole)
    record = tmp_path / ("a/sampling.json" if name == "a" else "s.npz.json")
    assert json.loads(record.read_text())["runs"][0]["ranks"] == world


def test_another_number_of_ranks_goes_on(colour, whole, tmp_path):
    """Begun by one rank, some lost, finished by two."""
    run(colour, tmp_path / "a")
    for i in (0, 5, 6, 17, 22):
        (tmp_path / "a" / f"{i:06d}.png").unlink()
    assert ranks(2, tmp_path / "log", colour, tmp_path / "a")[0] == [0, 0]
    np.testing.assert_array_equal(pixels(tmp_path / "a"), whole)


def test_all_ranks_stop_when_the_main_one_refuses(colour, tmp_path):
    (tmp_path / "s.npz").write_bytes(b"mine")
    codes, errors = ranks(2, tmp_path / "log", colour, tmp_path / "s.npz")
    assert codes == [2, 2] and errors.count("is in the way") == 1


# --- refused before any work -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images", "0"], "--images is 0"),
        (["--batch", "0"], "--batch is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--labels", "5"], "--labels 5 is out of range: the model's classes are numbered 0 to 4"),
        (["--labels", "-1"], "--labels -1 is out of range"),
        (["--labels", "cats"], "--labels is 'cats'; choose balanced"),
        (["--sampler", "heun"], "--sampler 'heun' does not exist; choose ode"),
        (["--sampler", "sit-odd"], "--sampler 'sit-odd' does not exist; choose ode"),
        (["--sampler", "ode-magic"], "--sampler ode-magic: ode method is 'magic'"),
        (["--sampler", "ode,guidance=2,guidance_channels=4"], "guidance_channels is 4, and the model's samples have 3"),
        (["--sampler", "ode,stepz=3"], "'stepz=3'; write field=value with one of kind"),
        (["--sampler", "ode,steps=many"], "steps=many, which is not a whole number"),
        (["--sampler", "dit-ddpm"], "this one predicts velocity: choose sit-sde, or --architecture dit"),
        (["--vae", "nowhere"], "nowhere"),
        (["--grid", "nowhere/grid.png"], "the folder of --grid nowhere/grid.png does not exist"),
        (["--grid", "grid.jpg"], "--grid grid.jpg is not the name of a .png file"),
        (["--out", "x.zip"], "--out x.zip is neither a folder nor a .npz"),
        (["--checkpoint", "nowhere.pt"], "nowhere.pt does not exist"),
        (["--checkpoint", "."], "is not a run folder"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(colour, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run(colour, "out", *flags)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def stopped_by(capsys, *arguments, **keywords):
    with pytest.raises(SystemExit, match="2"):
        run(*arguments, **keywords)
    return capsys.readouterr().err


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


def test_latents_without_autoencoder(tmp_path, capsys):
    config = SiTConfig(image_size=4, patch_size=2, channels=4, width=16, depth=1, heads=2, num_classes=5)
    save_model(SiT(config), tmp_path / "m.safetensors")
    assert "needs --vae" in stopped_by(capsys, tmp_path / "m.safetensors", tmp_path / "a")


def test_diverged_weights_stop_with_the_image(tmp_path, capsys):
    model = randomised(SiT(COLOUR))
    bias = model.final_layer.linear.bias
    for value, told in (
        (3e38, "image 0 of seed 0 is not finite"),  # finite itself, and not when it is added to
        (float("nan"), "weight final_layer.linear.bias of --checkpoint"),  # seen before any work
    ):
        torch.nn.init.constant_(bias, value)
        save_model(model, tmp_path / "m.safetensors")
        assert told in stopped_by(capsys, tmp_path / "m.safetensors", tmp_path / f"a{value}")
    assert not (tmp_path / "anan").exists()


def test_damaged_record_is_told(colour, tmp_path, capsys):
    run(colour, tmp_path / "a", images=4)
    (tmp_path / "a" / "sampling.json").write_text("{")
    assert "sampling.json cannot be read" in stopped_by(capsys, colour, tmp_path / "a", images=4)


def test_images_of_a_finished_npz_are_stored_uncompressed(colour, tmp_path):
    """A reader may map arr_0 in place; compression would cost minutes at 50,000 images and save a third."""
    run(colour, tmp_path / "s.npz")
    with zipfile.ZipFile(tmp_path / "s.npz") as archive:
        assert {m.compress_type for m in archive.infolist()} == {zipfile.ZIP_STORED}
