"""Generate images: a folder of PNG files, or an .npz for ADM's evaluator.

    python -m sit_rl.sample --images 100                            the embedded model, in seconds on a CPU
    python -m sit_rl.sample --checkpoint SiT-XL-2-256x256.pt --vae sd-vae-ft-ema/ --out samples.npz --images 50000 \\
        --sampler sit-sde --steps 250
    torchrun --nproc-per-node 8 -m sit_rl.sample …                  the same images, divided among GPUs
    python -m sit_rl.sample --checkpoint runs/NAME …                a run's averaged weights

Image i has the noise of (seed, i), whatever the number of ranks, and is the image i of an evaluation with that seed.
The same command goes on where an interrupted one stopped. --sampler is a name or KIND-METHOD, with fields of
SamplerConfig after commas: ode, sde (steps of second order, converged in few on the embedded model), sit-ode, sit-sde,
dit-ddpm (the official samplers' defaults), sde-euler,steps=100,diffusion=constant.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
import tyro
from PIL import Image
from tqdm import tqdm

from fastfid import __version__
from fastfid.runtime.atomic_files import write_atomically
from fastfid.runtime.distributed import OtherRankFailed, from_main
from fastfid.runtime.hashes import file_sha256
from sit_rl.components.image_sets import ASSETS, tile
from sit_rl.config import PRESETS, Config, load_config
from sit_rl.files.paths import reading, require_extra, require_paths
from sit_rl.generation.sample_files import SampleFiles, open_files
from sit_rl.learner import checkpoint
from sit_rl.learner.learner import prepare
from sit_rl.models import attention
from sit_rl.models.autoencoder import load_decoder
from sit_rl.models.finite_weights import require_finite_start
from sit_rl.models.loading import load_model
from sit_rl.models.lora import add_lora, merge_lora
from sit_rl.models.pixels import to_uint8
from sit_rl.models.sit import SiT
from sit_rl.ranks.cpu_batches import map_in_two_stages
from sit_rl.ranks.process_group import barrier, is_main, process_group, rank, world_size
from sit_rl.rollout import noise_source
from sit_rl.runs.log import GRID_COLUMNS, say
from sit_rl.sampling.guidance import bind
from sit_rl.sampling.random_streams import EVALUATION_STEP, Stream, balanced_labels, generator, sample_normal
from sit_rl.sampling.sampler_config import METHODS, OFFICIAL, SamplerConfig, noise_draws
from sit_rl.sampling.solvers import sample

T = TypeVar("T")

SCHEMA = "sit_rl.samples/1"  # of the record; the number grows when a key changes its meaning
EMBEDDED = ASSETS / "base.safetensors"
# The embedded model's preset and the official checkpoint's: their samplers and batches are these commands' defaults.
SMALL, LARGE = PRESETS["fashion"][1], PRESETS["sit-xl-imagenet256"][1]
SMALL_SHAPE = (1, 28, 28)
SAMPLERS = {"ode": SMALL.evaluate_ode, "sde": SMALL.evaluate_sde} | OFFICIAL
# Parts of the record that say how and where a run went, not what the images are: another run may differ in them.
RUN_KEYS = ("schema", "complete", "runs")


@dataclass(frozen=True)
class Recipe:
    """Everything an image depends on but its number and the sampler."""

    checkpoint: Path | None = None
    """weights (.safetensors, .pt) or a run folder, of which the averaged weights; default: the embedded model"""
    architecture: Literal["auto", "sit", "dit"] = "auto"
    """what the weights are of; auto: what the file says of itself, else DiT for a name DiT-…, else SiT"""
    vae: Path | None = None
    """folder of a diffusers AutoencoderKL, for models of latents"""
    images: int = 100
    labels: str = "balanced"
    """balanced (class i mod classes), random, or the number of one class"""
    seed: int = 0
    batch: int | None = None
    """images sampled at once; default 200 for 1×28×28, 50 else; it decides last bits, and digits within dopri5's
    tolerance, as images sampled together share its steps"""
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    """tf32: products on a GPU; bf16: the network's products, and the autoencoder in tf32 (the solver stays float32)"""
    attention: Literal["auto", "flash", "sdpa", "math"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of the blocks; auto: on a GPU"""


@dataclass(frozen=True)
class SampleConfig(Recipe):
    """A recipe, its sampler, and where its images go."""

    sampler: str | None = None
    """see above; default: ode for 1×28×28 images, else sit-sde, dit-ddpm for a DiT"""
    steps: int | None = None
    """of the sampler; default: the sampler's"""
    guidance: float | None = None
    """classifier-free guidance scale; default: the sampler's, 1 for none"""
    out: Path = Path("runs/samples")
    """a folder for PNG files, or FILE.npz"""
    grid: Path | None = None
    """also a PNG of the first images, ten in a row"""
    threads: int = 0
    """CPU threads of a rank; 0: the cores divided among the ranks"""


@dataclass(frozen=True)
class Generator:
    """A loaded model with all it takes to make images of it.

    decode       samples float32 [n, C, H, W] → images uint8 [n, c, h, w]
    image_shape  (c, h, w)
    about        what the record says of the weights
    attention    the back end, and why not a faster one
    """

    model: SiT
    decode: Callable[[torch.Tensor], torch.Tensor]
    image_shape: tuple[int, int, int]
    device: torch.device
    precision: str
    about: dict
    attention: str

    @property
    def num_classes(self) -> int:
        """Classes the model knows."""
        return self.model.config.num_classes


def main(argv: list[str] | None = None) -> None:
    """Parse, run, and turn an expected failure into one sentence and exit code 2."""
    command_line(lambda: tyro.cli(SampleConfig, args=argv, description=__doc__), run)


def command_line(parse: Callable[[], T], run: Callable[[T, torch.device], None]) -> None:
    """Run a command in its process group; expected failures end in one sentence and status 2, Ctrl-C in 130."""
    try:
        config = parse()
        with process_group(config.threads) as device:
            run(config, device)
    except OtherRankFailed:
        raise SystemExit(2) from None
    except torch.OutOfMemoryError as error:
        reason = " ".join(str(error).split())[:160]
        print(f"error: out of GPU memory: lower --batch, with another --out ({reason})", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except (ValueError, ImportError, FloatingPointError, OSError) as error:
        on_every_rank = isinstance(error, (ValueError, ImportError, FileNotFoundError))
        if os.environ.get("LOCAL_RANK", "0") == "0" or not on_every_rank:  # else once a machine
            print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the images already written", file=sys.stderr, flush=True)
        raise SystemExit(130) from None


def run(config: SampleConfig, device: torch.device) -> None:
    """Check everything, then sample what is missing, and finish the output."""
    check(config)
    if config.sampler is not None:
        parse_sampler(config.sampler, config.steps, config.guidance)  # its errors before the model is read
    if config.grid is not None:
        check_grid(config.grid)
    made = load_generator(config, device)
    sampler = parse_sampler(config.sampler or default_samplers(made.model)[0], config.steps, config.guidance)
    files = make_samples(made, config, sampler, config.out)
    if config.grid is not None and is_main():
        write_grid(config.grid, files)
        say(f"grid        {config.grid}")


def make_samples(made: Generator, config: Recipe, sampler: SamplerConfig, out: Path) -> SampleFiles:
    """Write the recipe's images to `out`, on all ranks together, keeping those already there; returns the files."""
    labels = choose_labels(config, made.num_classes)
    check_sampler(made.model, sampler)
    files = open_files(out, config.images, made.image_shape)
    batch = batch_of(config, made.model)
    batches = [range(i, min(i + batch, config.images)) for i in range(0, config.images, batch)]
    record = recipe_record(made, config, sampler)
    missing = from_main(lambda: plan_missing(made, files, record, batches))
    started = time.perf_counter()
    count = sample_missing(made, labels, sampler, config.seed, files, missing)
    barrier()
    if is_main():
        finish(made, files, batches, labels, bool(missing), time.perf_counter() - started)
        say(f"images      {files.path}: {config.images}, {count_text(count, missing)}")
    barrier()
    return files


# --- before any work ---------------------------------------------------------------------------------------------


def check(config: Recipe, further: Iterable[tuple[str, Path | str | None]] = ()) -> None:
    """ValueError for numbers that cannot be, FileNotFoundError for the paths that are not there, all at once."""
    for name in ("images", "batch"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise ValueError(f"--{name} is {getattr(config, name)}; it must be at least 1")
    if config.seed < 0:
        raise ValueError(f"--seed is {config.seed}; it must not be negative")
    require_paths([("--checkpoint", config.checkpoint), ("--vae", config.vae), *further])
    if config.vae is not None:
        require_extra("--vae")


def check_grid(path: Path) -> None:
    """ValueError for a picture that could not be written once the images are there."""
    if path.suffix.lower() != ".png" or path.is_dir():
        raise ValueError(f"--grid {path} is not the name of a .png file; choose one")
    if not path.resolve().parent.is_dir():
        raise ValueError(f"the folder of --grid {path} does not exist; create it first")


def default_samplers(model: SiT) -> tuple[str, ...]:
    """Names of the samplers that a model is judged by, the usual one first."""
    if model.predicts == "noise":
        return ("dit-ddpm",)
    return ("ode", "sde") if is_small(model) else ("sit-sde", "sit-ode")


def is_small(model: SiT) -> bool:
    """Whether the model makes the embedded images' kind: their defaults apply."""
    return model.config.image_shape == SMALL_SHAPE


def parse_sampler(text: str, steps: int | None = None, guidance: float | None = None) -> SamplerConfig:
    """NAME or KIND-METHOD, then field=value after commas → SamplerConfig; `steps` and `guidance` override its own.

    ValueError, naming what there is, for an unknown name or field.
    """
    name, *changes = text.split(",")
    kind, _, method = name.partition("-")
    if name not in SAMPLERS and kind not in METHODS:
        raise ValueError(f"--sampler {name!r} does not exist; choose {', '.join(SAMPLERS)}, or KIND-METHOD: sde-euler")
    known = {f.name: type(f.default) for f in fields(SamplerConfig)}
    values = {}
    for change in changes:
        field, equals, value = change.partition("=")
        if field not in known or not equals:
            raise ValueError(f"--sampler has {change!r}; write field=value with one of {', '.join(known)}")
        values[field] = _converted(field, value, known[field])
    values |= {k: v for k, v in (("steps", steps), ("guidance", guidance)) if v is not None}
    try:
        return replace(SAMPLERS.get(name) or SamplerConfig(kind, method), **values)
    except ValueError as error:
        raise ValueError(f"--sampler {text}: {error}") from None


def _converted(field: str, value: str, kind: type) -> str | int | float:
    """Text as a field's type; ValueError naming the field."""
    try:
        return kind(value)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise ValueError(f"--sampler has {field}={value}, which is not {expected}") from None


def check_sampler(model: SiT, sampler: SamplerConfig) -> None:
    """ValueError where the sampler is not one for what the model predicts, or guides channels that it lacks."""
    if sampler.needs != model.predicts:
        other = "sit" if model.predicts == "noise" else "dit"
        raise ValueError(
            f"--sampler {sampler} is for a model that predicts {sampler.needs}; this one predicts {model.predicts}: "
            f"choose {default_samplers(model)[0]}, or --architecture {other} if the weights are of a {other}"
        )
    bind(model, torch.zeros(0, dtype=torch.int64), sampler)


def batch_of(config: Recipe, model: SiT) -> int:
    """Images sampled at once."""
    return config.batch or (SMALL if is_small(model) else LARGE).rollout_batch


def choose_labels(config: Recipe, classes: int) -> torch.Tensor:
    """int64 [images]; a random label belongs to (seed, i), as the noise does. ValueError for a class out of range."""
    if config.labels == "balanced":
        return balanced_labels(config.images, classes)
    if config.labels == "random":
        draw = (generator(config.seed, Stream.LABEL, EVALUATION_STEP, i) for i in range(config.images))
        return torch.tensor([int(g.integers(classes)) for g in draw])
    if not re.fullmatch(r"-?\d+", config.labels):
        raise ValueError(f"--labels is {config.labels!r}; choose balanced, random, or the number of a class")
    if not 0 <= int(config.labels) < classes:
        raise ValueError(
            f"--labels {config.labels} is out of range: the model's classes are numbered 0 to {classes - 1}"
        )
    return torch.full((config.images,), int(config.labels))


def load_generator(config: Recipe, device: torch.device) -> Generator:
    """Load weights and autoencoder, and decode one blank sample: what does not fit is told before hours of work."""
    with reading("--checkpoint", config.checkpoint or EMBEDDED):
        model, about, vae = _load_weights(config)
    model = model.to(device).eval().requires_grad_(False)
    _check_finite(model, config.checkpoint or EMBEDDED)
    case = attention.case(config.attention, model, config.precision, device)
    model.set_attention(attention.choose(*case))
    as_trained = replace(SMALL, precision="bf16" if config.precision == "bf16" else "float32", compile=config.compile)
    prepare(model, as_trained, device)
    fast = config.precision != "float32"
    if device.type == "cuda":  # torch's default is TF32 in the autoencoder's convolutions alone
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = fast
    decode = to_uint8 if vae is None else load_decoder(vae, device, tf32=fast)
    about["vae"] = None if vae is None else {"folder": vae.resolve().name, "sha256": content_hash(vae)}
    blank = torch.zeros((1, *model.config.image_shape), device=device)
    try:
        shape = tuple(decode(blank).shape[1:])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"--vae {vae} does not decode the model's samples of {_by(blank.shape[1:])} ({reason}); pass the "
            "autoencoder that it was trained with, or none for a model of pixels"
        ) from None
    if vae is not None and shape[0] not in (1, 3):
        raise ValueError(f"--vae {vae} decodes to images of {shape[0]} channels, not 1 or 3; pass another autoencoder")
    return Generator(model, decode, shape, device, config.precision, about, attention.explain(*case))


def _check_finite(model: SiT, path: Path) -> None:
    """ValueError, on every rank alike, naming the first weight that is NaN or infinite."""
    try:
        require_finite_start(model.named_parameters(), f"--checkpoint {path}")
    except FloatingPointError as error:
        raise ValueError(str(error)) from None


def _by(shape: Iterable[int]) -> str:
    return " × ".join(map(str, shape))


def _load_weights(config: Recipe) -> tuple[SiT, dict, Path | None]:
    """Model, what the record says of it, and the autoencoder's folder, which a run may know."""
    path = config.checkpoint or EMBEDDED
    if not path.is_dir():
        model = load_model(path, architecture=config.architecture)
        return model, {"checkpoint": path.name, "sha256": content_hash(path)}, config.vae
    if not (path / "config.yaml").is_file():
        raise FileNotFoundError(f"--checkpoint {path} is no run's folder: it holds no config.yaml; pass a file instead")
    trained = load_config(path / "config.yaml")
    if config.vae is None:
        _require_trained(path, "vae", trained.vae, "pass --vae, or work where the run was started")
    model, weights = _averaged_weights(path, trained)
    about = {"checkpoint": path.resolve().name, "weights": weights, "sha256": tensor_hash(model.state_dict())}
    return model, about, config.vae or trained.vae


def _require_trained(run_folder: Path, name: str, path: Path | None, remedy: str) -> None:
    """FileNotFoundError where what a run was trained with is not at the path, perhaps relative, that it was given."""
    if path is not None and not path.exists():
        raise FileNotFoundError(f"--checkpoint {run_folder} was trained with --{name} {path}, not here now; {remedy}")


def _averaged_weights(run_folder: Path, trained: Config) -> tuple[SiT, str]:
    """A run's averaged weights, LoRA terms added in, and which they are: the last ones, or those of its checkpoint."""
    if (run_folder / "ema.safetensors").is_file():
        return load_model(run_folder / "ema.safetensors"), f"EMA of the finished run, {trained.steps} steps"
    saved = checkpoint.latest(run_folder / "checkpoints")
    if saved is None:
        raise FileNotFoundError(f"--checkpoint {run_folder} holds no weights yet; wait for the run's first checkpoint")
    _require_trained(run_folder, "checkpoint", trained.checkpoint, "work where the unfinished run was started")
    model = load_model(trained.checkpoint or EMBEDDED, architecture=trained.architecture)
    if trained.lora:
        add_lora(model, trained.lora, trained.seed)
    model.load_state_dict(checkpoint.load_part(saved, "ema"))
    return merge_lora(model), f"EMA at step {checkpoint.load_values(saved)['step']}"


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the names and hashes of a folder's files, hexadecimal."""
    if path.is_file():
        return file_sha256(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    listing = "".join(f"{p.relative_to(path).as_posix()} {file_sha256(p)}\n" for p in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def tensor_hash(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 of names and values of a state dict, whatever the file it came from."""
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode() + state[name].detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def recipe_record(made: Generator, config: Recipe, sampler: SamplerConfig) -> dict:
    """What the images are, as plain values, as JSON gives them back."""
    record = {
        "schema": SCHEMA,
        "model": made.about,
        "sampler": asdict(sampler) | {"evaluations": sampler.evaluations(), "name": str(sampler)},
        "images": config.images,
        "image_shape": list(made.image_shape),
        "labels": config.labels,
        "classes": made.num_classes,
        "seed": config.seed,
        "noise": "Philox of (seed, image, stream, step 0), sit_rl/sampling/random_streams.py",
        "batch": batch_of(config, made.model),
        "precision": config.precision,
        "complete": False,
        "runs": [],
    }
    return json.loads(json.dumps(record))


def plan_missing(made: Generator, files: SampleFiles, record: dict, batches: list[range]) -> list[range]:
    """Check the output and its record, and return the batches that are missing; nothing has been sampled yet."""
    earlier = check_output(files, record)
    if earlier is not None:
        record = record | {"runs": earlier.get("runs", [])}
    try:
        files.path.parent.mkdir(parents=True, exist_ok=True)
        missing = [rows for rows in batches if not files.has(rows)]
        files.check_space(sum(map(len, missing)))
        files.open()
    except OSError as error:
        if error.strerror is None:
            raise
        raise OSError(f"--out {files.path} cannot be written ({error.strerror}); choose another place") from None
    if missing or earlier is None:
        files.write_record(record)
    describe(made, record, files, missing)
    return missing


def check_output(files: SampleFiles, record: dict) -> dict | None:
    """The record of the images already there, None without; ValueError for another recipe or for foreign files."""
    earlier = files.read_record()
    if earlier is not None:
        check_same_recipe(earlier, record, files)
    foreign = files.foreign()
    if foreign is not None:
        raise ValueError(f"{foreign} is in the way and was not written by this command; choose another --out")
    return earlier


def check_same_recipe(earlier: dict, now: dict, files: SampleFiles) -> None:
    """ValueError naming the first thing in which the images already there differ from those asked for."""
    for key, asked in now.items():
        there, what = earlier.get(key), {"images": "number", "model": ""}.get(key, key)
        if key in RUN_KEYS or there == asked:
            continue
        while isinstance(there, dict) and isinstance(asked, dict):
            key, there, asked = next((k, there.get(k), v) for k, v in asked.items() if there.get(k) != v)
            what = f"{what} {key}".strip()
        there, asked = (x["folder"] if isinstance(x, dict) else x for x in (there, asked))  # an autoencoder, or None
        raise ValueError(f"{files.path} holds images of another {what}: {there}, not {asked}; choose another --out")


def describe(made: Generator, record: dict, files: SampleFiles, missing: list[range]) -> None:
    """Print the plan."""
    todo, done = sum(map(len, missing)), files.count - sum(map(len, missing))
    about = "about " if record["sampler"]["method"] == "dopri5" else ""  # which stops where its tolerance is met
    lines = {
        "output": f"{files.path}, {files.count} images of {_by(files.shape)}",
        "model": f"{record['model']['checkpoint']}, SHA-256 {record['model']['sha256'][:12]}…",
        "sampler": f"{record['sampler']['name']}, {about}{record['sampler']['evaluations']} evaluations an image",
        "labels": f"{record['labels']} of {record['classes']} classes, seed {record['seed']}",
        "precision": record["precision"],
        "attention": made.attention,
        "to do": f"{todo} images" + (f"; {done} are there" if done else ""),
    }
    say("\n".join(f"{name:11} {text}" for name, text in lines.items()))


# --- the work ----------------------------------------------------------------------------------------------------


def sample_missing(
    made: Generator, labels: torch.Tensor, sampler: SamplerConfig, seed: int, files: SampleFiles, missing: list[range]
) -> int:
    """Sample and write this rank's share of the missing batches; returns its number of images."""
    mine = missing[rank() :: world_size()]
    name = "sample" if world_size() == 1 else f"sample, rank 0 of {world_size()}"
    total = sum(map(len, mine))

    def draw(rows: range) -> tuple[range, torch.Tensor]:
        return rows, sample_batch(made, labels[rows.start : rows.stop], sampler, seed, rows)

    def keep(drawn: tuple[range, torch.Tensor]) -> int:
        rows, x = drawn
        files.write(rows, made.decode(x).cpu())
        return len(rows)

    with (
        one_thread_a_batch(made.device, len(mine)),
        tqdm(total=total, desc=name, unit="image", disable=not is_main() or not total) as bar,
    ):
        for count in map_in_two_stages(draw, keep, mine, made.device):
            bar.update(count)
    return total


@contextmanager
def one_thread_a_batch(device: torch.device, batches: int) -> Iterator[None]:
    """On a CPU no batch gets two threads, whose sums have other last bits: images do not depend on the cores."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(max(1, min(threads, batches)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def sample_batch(made: Generator, labels: torch.Tensor, sampler: SamplerConfig, seed: int, rows: range) -> torch.Tensor:
    """Samples float32 [n, C, H, W], not yet decoded, of global numbers `rows` and classes `labels` [n]."""
    noise = sample_normal(seed, Stream.EVALUATE, EVALUATION_STEP, rows, made.model.config.image_shape).to(made.device)
    step_noise = None
    if noise_draws(sampler):
        step_noise = noise_source(seed, Stream.EVALUATE_SDE, EVALUATION_STEP, rows, sampler, noise)
    x = sample(bind(made.model, labels.to(made.device), sampler), noise, sampler, step_noise)
    finite = torch.isfinite(x).flatten(1).all(1)
    if not finite.all():
        first = rows[int(torch.nonzero(~finite)[0])]
        raise FloatingPointError(
            f"image {first} of seed {seed} is not finite: the weights have diverged or {made.precision} is too coarse; "
            "try --precision float32, or more --steps"
        )
    return x


# --- after it ----------------------------------------------------------------------------------------------------


def finish(
    made: Generator, files: SampleFiles, batches: list[range], labels: torch.Tensor, sampled: bool, seconds: float
) -> None:
    """Join and complete the record, once every rank is done; OSError if a rank's images cannot be seen from here."""
    lost = next((rows for rows in batches if not files.has(rows)), None)
    if lost is not None:
        raise OSError(
            f"image {lost.start} was written but is not in {files.path}; --out must be a disk all ranks share"
        )
    files.finish(labels)
    record = files.read_record()
    if sampled:
        record["runs"].append(run_facts(made, seconds))
    if sampled or not record["complete"]:
        files.write_record(record | {"complete": True})


def run_facts(made: Generator, seconds: float) -> dict:
    """Where and how this process ran."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    versions = {"fastfid": __version__, "torch": torch.__version__, "numpy": np.__version__}
    return {
        "device": device,
        "attention": made.attention,
        "ranks": world_size(),
        "seconds": round(seconds, 2),
        "versions": versions | {"python": platform.python_version()},
    }


def write_grid(path: Path, files: SampleFiles) -> None:
    """A PNG of the first images, GRID_COLUMNS in a row."""
    picture = tile(files.first(min(GRID_COLUMNS**2, files.count)).transpose(0, 3, 1, 2), GRID_COLUMNS)
    write_atomically(path, lambda file: Image.fromarray(picture).save(file, "PNG"))


def count_text(count: int, missing: list[range]) -> str:
    """What this command added, for the last line."""
    if not missing:
        return "all of them there already"
    return f"{sum(map(len, missing))} made now" + (f", {count} by this rank" if world_size() > 1 else "")


if __name__ == "__main__":
    main()
