"""Make the missing images of a recipe. The ranks share the work."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fastfid.runtime.distributed import from_main
from sit_rl.files.atomic import folder
from sit_rl.files.lock import held
from sit_rl.generation.generator import Generator, shape_text
from sit_rl.generation.recipe import Recipe, batch_of, check_sampler, choose_labels
from sit_rl.generation.record import check_output, recipe_record, run_facts
from sit_rl.generation.sample_files import SampleFiles, open_files
from sit_rl.ranks.cpu_batches import map_in_two_stages
from sit_rl.ranks.messages import say
from sit_rl.ranks.process_group import barrier, is_main, rank, world_size
from sit_rl.ranks.transfer import to_device
from sit_rl.rollout import noise_source
from sit_rl.sampling.guidance import bind
from sit_rl.sampling.ode_and_sde_steps import sample
from sit_rl.sampling.random_streams import EVALUATION_STEP, Stream, sample_normal
from sit_rl.sampling.sampler_config import SamplerConfig, noise_draws


def make_samples(made: Generator, config: Recipe, sampler: SamplerConfig, out: Path) -> SampleFiles:
    """Write the images of a recipe to `out` and return the files; images already there are kept. All ranks call it."""
    labels = choose_labels(config, made.conditions)
    check_sampler(made.model, sampler)
    files = open_files(out, config.images, made.image_shape)
    batch = batch_of(config, made.model)
    batches = [range(i, min(i + batch, config.images)) for i in range(0, config.images, batch)]
    record = recipe_record(made, config, sampler)
    with only_command(out):
        missing = from_main(lambda: missing_batches(made, files, record, batches))
        started = time.perf_counter()
        count = sample_missing(made, labels, sampler, config.seed, files, missing)
        barrier()
        if is_main():
            finish(made, files, batches, labels, bool(missing), time.perf_counter() - started)
            say(f"images      {files.path}: {config.images}, {count_text(count, missing)}")
        barrier()
    return files


@contextmanager
def only_command(out: Path) -> Iterator[None]:
    """Inside the block no other command writes samples to `out`; the main rank holds a lock beside it for all ranks.

    ValueError if another command holds it. Where nothing can be written beside `out`, there is no lock.
    """
    with ExitStack() as stack:

        def take() -> str | None:
            if out.parent.exists() and not os.access(out.parent, os.W_OK):
                return None  # finished samples can be read, and others have their own error
            stack.enter_context(folder(out.parent))
            return stack.enter_context(held(out.with_name(out.name + ".lock"), "--out", out))

        note = from_main(take)
        if note:
            say(f"note: {note}")
        yield


def missing_batches(made: Generator, files: SampleFiles, record: dict[str, Any], batches: list[range]) -> list[range]:
    """Check the output and its record before any sampling, and return the batches that are missing."""
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


def describe(made: Generator, record: dict[str, Any], files: SampleFiles, missing: list[range]) -> None:
    """Print the plan."""
    todo, done = sum(map(len, missing)), files.count - sum(map(len, missing))
    about = "about " if record["sampler"]["method"] == "dopri5" else ""  # its tolerance decides
    lines = {
        "output": f"{files.path}, {files.count} images of {shape_text(files.shape)}",
        "model": f"{record['model']['checkpoint']}, SHA-256 {record['model']['sha256'][:12]}…",
        "sampler": f"{record['sampler']['name']}, {about}{record['sampler']['evaluations']} evaluations an image",
        "labels": f"{record['labels']} of {record['classes']} classes, seed {record['seed']}",
        "precision": record["precision"],
        "attention": made.attention,
        "to do": f"{todo} images" + (f"; {done} are there" if done else ""),
    }
    say("\n".join(f"{name:11} {text}" for name, text in lines.items()))


def sample_missing(
    made: Generator, labels: torch.Tensor, sampler: SamplerConfig, seed: int, files: SampleFiles, missing: list[range]
) -> int:
    """Sample and write this rank's share of the missing batches, and return the number of its images."""
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
    """One thread per batch on a CPU. Two threads would add in another order, so last bits would depend on the cores."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(max(1, min(threads, batches)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def sample_batch(made: Generator, labels: torch.Tensor, sampler: SamplerConfig, seed: int, rows: range) -> torch.Tensor:
    """Undecoded samples float32 [n, C, H, W] with the global numbers `rows` and the classes `labels` int64 [n]."""
    drawn = sample_normal(seed, Stream.EVALUATE, EVALUATION_STEP, rows, made.model.sample_shape)
    noise = to_device(drawn, made.device)
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


def finish(
    made: Generator, files: SampleFiles, batches: list[range], labels: torch.Tensor, sampled: bool, seconds: float
) -> None:
    """Finish files and record after all ranks are done; OSError if this rank cannot see the images of another rank."""
    lost = next((rows for rows in batches if not files.has(rows)), None)
    if lost is not None:
        raise OSError(
            f"image {lost.start} was written but is not in {files.path}; --out must be a disk all ranks share"
        )
    files.finish(labels)
    record = files.read_record() or {}
    if sampled:
        record["runs"].append(run_facts(made, seconds))
    if sampled or not record["complete"]:
        files.write_record(record | {"complete": True})


def count_text(count: int, missing: list[range]) -> str:
    """What this command added, for its last line."""
    if not missing:
        return "all of them there already"
    return f"{sum(map(len, missing))} made now" + (f", {count} by this rank" if world_size() > 1 else "")
