"""Sampling from the command line: images follow the equations, also after interruptions and on several ranks."""

import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from sit_rl.components.image_sets import tile
from sit_rl.generation.recipe import choose_labels, parse_sampler
from sit_rl.models.conditions import Conditions
from sit_rl.models.dit import DiT
from sit_rl.models.loading import save_model
from sit_rl.models.sit import SiT
from sit_rl.presets import PRESETS
from sit_rl.sample import SampleConfig
from sit_rl.sampling.random_streams import Stream, generator
from sit_rl.sampling.sampler_config import OFFICIAL, SamplerConfig
from tests.support.tiny_samples import COLOUR, pixels, randomised, run


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


def test_tile_fills_the_last_row_with_white():
    images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1) * np.ones((3, 1, 2, 2), np.uint8)
    expected = np.repeat(np.repeat(np.array([[0, 1], [2, 255]], np.uint8), 2, axis=0), 2, axis=1)
    np.testing.assert_array_equal(tile(images, 2), expected)


CLASSES = Conditions.numbered(5)


@pytest.mark.parametrize("labels", ["balanced", "random", "3"])
def test_labels(labels):
    many, few = (choose_labels(SampleConfig(images=n, labels=labels, seed=1), CLASSES) for n in (500, 100))
    assert torch.equal(many[:100], few)  # a label belongs to its image
    counts = torch.bincount(many, minlength=5)
    if labels == "balanced":
        assert counts.tolist() == [100] * 5
    elif labels == "random":  # binomial: mean 100, deviation 9; five deviations either way
        others = choose_labels(SampleConfig(images=500), CLASSES)
        assert (counts - 100).abs().max() < 45 and not torch.equal(many, others)
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


# Children come from a server that has imported everything once and runs no threads, which a fork would lose.
SERVER = multiprocessing.get_context("forkserver")


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
