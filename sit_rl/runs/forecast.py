"""What a run is about to do and how long it will take: predicted from this machine's speed, or counted for GPUs."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from sit_rl.components.build import Setting, check_predictions
from sit_rl.components.image_sets import FASHION_SIT
from sit_rl.config import Config
from sit_rl.files.paths import reading, require_paths
from sit_rl.learner.learner import SHARD_ABOVE, prepare
from sit_rl.models import attention
from sit_rl.models.autoencoder import SLICE
from sit_rl.models.loading import load_model
from sit_rl.models.sit import SiT, SiTConfig
from sit_rl.ranks.cpu_batches import map_batches
from sit_rl.ranks.process_group import world_size
from sit_rl.report import known
from sit_rl.runs.log import Clock
from sit_rl.sampling.sampler_config import trained_steps

# Evaluations that an image of a minibatch costs: forward 1, backward 2, and the anchor's forward for matching.
UPDATE_EVALUATIONS = {"advantage_matching": 4, "rejection": 3, "pretraining": 3}
# Feature networks, rounding to uint8 and random numbers beside a sample's velocity evaluations, in evaluations of the
# default model: measured at 0.4 ms an image for both embedded networks against 0.45 ms an evaluation.
OVERHEAD_EVALUATIONS = 1
# The generator of a preset whose weights need not be there for a dry run.
PRESET_MODELS = {
    "sit-xl-imagenet256": ("SiT", SiTConfig.named("SiT-XL/2")),
    "dit-xl-imagenet256": ("DiT", SiTConfig.named("DiT-XL/2")),
}
# Dense peak of one GPU, FLOP/s, by precision (NVIDIA's data sheets of the A100 SXM, H100 SXM, H200, B200 and L40S, the
# last of which the paper used; float32 without TF32, torch's default).
PEAKS = {
    "A100": {"bf16": 312e12, "float32": 19.5e12},
    "H100": {"bf16": 989e12, "float32": 67e12},
    "H200": {"bf16": 989e12, "float32": 67e12},
    "B200": {"bf16": 2250e12, "float32": 75e12},
    "L40S": {"bf16": 362e12, "float32": 91.6e12},
}
# Share of the peak that a transformer of this size reaches: an assumption, between the 0.3 and 0.5 that published
# trainings report. Printed with every number that rests on it.
UTILISATION = 0.4
# FLOPs of an image outside the generator, counted like the generator's: diffusers' AutoencoderKL decoder from 32×32
# latents, and the FID Inception network at 299×299.
DECODER_FLOPS, INCEPTION_FLOPS = 6.22e11, 1.14e10
# Bytes of an image's decoding from 32×32 latents, the most that live at once: counted on tensors without memory, three
# float32 maps of 256 channels × 256×256 pixels, in the last block (0.17 GB was measured on a CPU, which frees sooner).
DECODING_BYTES = 2.02e8
LATENT_CHANNELS = 4  # of samples that an autoencoder decodes; others are pixels
# Weights beside the generator's, float32: sd-vae-ft-ema's 83.7M parameters and Inception's 23.9M.
AUTOENCODER_BYTES, INCEPTION_BYTES = 4 * 83.7e6, 4 * 23.9e6
PLANNED_GPU = re.compile(r"(\d+)x([^=]+)(?:=([\d.]+))?")  # COUNTxNAME, and its peak in TFLOP/s where it is given


def describe_plan(config: Config, setting: Setting) -> str:
    """A few aligned lines: where outputs go, the model, the reward, the samplers, the predicted minutes."""
    counts = evaluations(config)
    rate = measure_rate(config, setting) * world_size()
    minutes = {phase: count / rate / 60 for phase, count in counts.items()}
    size = sum(p.numel() for p in setting.model.parameters()) / 1e6
    parts = ", ".join(f"{phase} {m:.1f}" for phase, m in minutes.items() if m)
    keep = "all samples" if config.kept_fraction == 1 else f"best {config.kept_fraction:.0%} of samples"
    c, shape = config, setting.sample_shape
    reward = f"−FD ({setting.reward_net.name}) of {c.reference_size} images with {c.replace} replaced"
    lines = {
        "outputs": c.run_folder,
        "generator": f"{type(setting.model).__name__}, {size:.2f}M parameters, samples {shape}, "
        f"on {setting.device} × {world_size()}",
        "attention": attention.explain(*attention.case(c.attention, setting.model, c.precision, setting.device)),
        "reward": f"{reward}, against {known(setting.real.moments.count, 'real')}; {c.reference} reference",
        "step": f"{c.candidates} × {c.replace} images, credit per {c.credit}; {keep} train; {c.estimator}",
        "judge": judged_against(setting, c.evaluate_images),
        "samplers": f"{c.evaluate_ode}; {c.evaluate_sde}",
        "predicted": f"about {sum(minutes.values()):.1f} minutes ({parts})",
    }
    return _aligned(lines)


def judged_against(setting: Setting, images: int) -> str:
    """What the evaluations compare, and a warning where it is what the reward has seen."""
    if setting.heldout is setting.real:
        return f"{images} images against the reward's own real side, as in the paper; pass --heldout to judge on others"
    return f"{images} images against {known(setting.heldout.moments.count, 'held-out')}"


def evaluations(config: Config) -> dict[str, float]:
    """Velocity evaluations of each phase of the whole run, the evaluations before and after included."""
    total = {"evaluate": 2 * config.evaluate_images * evaluation_cost(config), "refresh": 0.0, "rollout": 0.0}
    for step in range(config.steps):
        for phase, count in step_evaluations(config, step).items():
            total[phase] = total.get(phase, 0.0) + count
    return total


def step_evaluations(config: Config, step: int) -> dict[str, float]:
    """Velocity evaluations of each phase of one training step."""
    c = config
    sde = c.estimator == "sde_policy_gradient"
    sampler = c.rollout_sde if sde else c.rollout
    per_sample = sampler.evaluations() + OVERHEAD_EVALUATIONS
    kept = min(c.minibatch, c.kept_fraction * c.images_per_step)
    passes = 3 * len(trained_steps(sampler)) if sde else UPDATE_EVALUATIONS[c.estimator]
    if c.activation_checkpointing:  # the trained forward pass once more
        passes += len(trained_steps(sampler)) if sde else 1
    update = c.updates * kept * passes
    judged = quick_evaluations(c, step + 2) - quick_evaluations(c, step + 1)
    out = {"evaluate": judged * c.evaluate_every_images * evaluation_cost(c)}
    if c.estimator == "pretraining":
        return out | {"update": update + c.images_per_step * per_sample}
    renewed = step == 0 or (c.reference == "refresh" and step % c.refresh_every == 0)
    return out | {
        "refresh": c.reference_size * per_sample if renewed else 0.0,
        "rollout": c.images_per_step * per_sample,
        "update": update,
    }


def quick_evaluations(config: Config, before: int | None = None) -> int:
    """Evaluations on the way of the whole run, or those after fewer than `before` steps; the last step has none."""
    last = (config.steps if before is None else min(before, config.steps)) - 1
    return max(0, last) // config.evaluate_every if config.evaluate_every else 0


def evaluation_cost(config: Config) -> float:
    """Velocity evaluations of one image under both samplers."""
    return config.evaluate_ode.evaluations() + config.evaluate_sde.evaluations() + 2 * OVERHEAD_EVALUATIONS


class Forecast:
    """Seconds of the next training step, from what each phase has taken for an evaluation so far in this run.

    A phase that has not run yet counts at the speed of the evaluation before the training; the reward and the save,
    which cost the same every step, at their mean.
    """

    def __init__(self, config: Config, clock: Clock):
        self.config, self.clock = config, clock

    def step(self, step: int) -> float | None:
        """Predicted seconds of step `step`, the next one; None where nothing has been measured."""
        done = {"evaluate": 2 * self.config.evaluate_images * evaluation_cost(self.config)}
        for earlier in range(step):
            for phase, count in step_evaluations(self.config, earlier).items():
                done[phase] = done.get(phase, 0.0) + count
        seconds = self.clock.seconds
        if not seconds["evaluate"]:
            return None
        speed = {phase: seconds[phase] / count for phase, count in done.items() if count}
        fixed = sum(seconds[phase] / step for phase in ("reward", "save")) if step else 0.0
        ahead = step_evaluations(self.config, step)
        return fixed + sum(count * speed.get(phase, speed["evaluate"]) for phase, count in ahead.items())


def measure_rate(
    config: Config, setting: Setting, seconds: float = 1.0, patience: int = 5, most: float = 10.0
) -> float:
    """Velocity evaluations per second of one rank on the rollouts' batches: the fastest round, once it stays so.

    The fastest, because the first rounds start threads and touch new memory (five times slower than later ones was seen
    in a fresh virtual machine) and another process may take a core for a moment: at least a second, until no round has
    improved by 2% for `patience` of them, at most ten seconds.
    """
    x = torch.randn(config.rollout_batch, *setting.sample_shape, device=setting.device)
    t = torch.full((len(x),), 0.5, device=setting.device)
    y = torch.zeros(len(x), dtype=torch.long, device=setting.device)
    at_once = torch.get_num_threads() if setting.device.type == "cpu" else 1
    fastest, since, begun = float("inf"), 0, time.perf_counter()
    while since < patience or time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        for _ in map_batches(lambda _: setting.model(x, t, y), range(2 * at_once), setting.device):
            pass
        if setting.device.type == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - started
        since = 0 if took < 0.98 * fastest else since + 1
        fastest = min(fastest, took)
        if time.perf_counter() - begun > most:
            break
    return 2 * at_once * len(x) / fastest


def dry_run(config: Config) -> str:
    """The plan without running or loading anything but a checkpoint's shape: images, memory, FLOPs, hours on GPUs.

    FLOPs are counted operator by operator on tensors without memory; hours are computed from them and a GPU's peak.
    """
    gpus = [planned_gpu(text, config.precision) for text in config.gpus]
    kind, shape = planned_model(config)
    flops = count_flops(shape)
    outside = DECODER_FLOPS + INCEPTION_FLOPS if shape.channels == LATENT_CHANNELS else 0.0
    whole = total_flops(config, flops, outside)
    parameters = count_parameters(shape)
    c, sampler = config, config.rollout_sde if config.estimator == "sde_policy_gradient" else config.rollout
    lines = {
        "plan": f"{c.steps} steps of {c.estimator}; nothing is run, no weights are read",
        "generator": f"{kind} {shape.name}, {parameters / 1e6:.1f}M parameters, {flops / 1e9:.3g} GFLOP an evaluation",
        "step": f"{c.images_per_step} images rolled out ({sampler}), {c.updates} updates of {c.minibatch}",
        "reference": f"{c.reference_size} images, {c.reference}",
        "evaluation": f"2 × {c.evaluate_images} images before and after: {c.evaluate_ode}; {c.evaluate_sde}",
        "compute": ", ".join(f"{phase} {count:.2e}" for phase, count in whole.items() if count) + " FLOP (counted)",
    }
    if "dopri5" in (sampler.method, c.evaluate_ode.method):
        lines["compute"] += "; dopri5 taken at 50 evaluations an image, which its tolerance decides"
    for ranks in dict.fromkeys(count for count, _, _ in gpus):
        memory = memory_per_rank(config, shape, ranks)
        text = ", ".join(f"{name} {_bytes(size)}" for name, size in memory.items() if size >= 2**20)
        lines[f"{ranks} GPU{'s' if ranks > 1 else ''}"] = (
            f"{_bytes(sum(memory.values()))} a rank (computed): {text or 'less than 1 MiB each'}"
        )
    for count, name, peak in gpus:
        hours = sum(whole.values()) / (peak * UTILISATION * count) / 3600
        lines[f"{count} × {name}"] = (
            f"{_duration(hours)} (computed: {c.precision} at {UTILISATION:.0%} of {peak / 1e12:g} TFLOP/s, unmeasured)"
        )
    return _aligned(lines)


def planned_gpu(text: str, precision: str) -> tuple[int, str, float]:
    """One word of --gpus: count, name, and dense peak in FLOP/s; ValueError naming the known ones."""
    found = PLANNED_GPU.fullmatch(text)
    if found is None or int(found[1]) < 1 or (found[3] and not 0 < _number(found[3])):
        raise ValueError(f"--gpus {text!r} is not COUNTxNAME, such as 8xH100, nor COUNTxNAME=PEAK in dense TFLOP/s")
    count, name, peak = int(found[1]), found[2], found[3]
    if peak is None and name not in PEAKS:
        raise ValueError(
            f"--gpus {text}: the peak of {name!r} is not known here; choose {', '.join(PEAKS)}, or write its dense "
            f"{precision} TFLOP/s: {text}=PEAK"
        )
    return count, name, PEAKS[name][precision] if peak is None else _number(peak) * 1e12


def _number(text: str) -> float:
    """Digits and points as a number, 0 where they are none."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def planned_model(config: Config) -> tuple[str, SiTConfig]:
    """Kind and shape of the generator: the checkpoint's where it is there, else the preset's that says its shape."""
    there = config.checkpoint is not None and config.checkpoint.is_file()
    if not there and config.preset in PRESET_MODELS:
        return PRESET_MODELS[config.preset]
    if config.checkpoint is None:
        return "SiT", FASHION_SIT
    require_paths([("--checkpoint", config.checkpoint)])
    with reading("--checkpoint", config.checkpoint):
        model = load_model(config.checkpoint, architecture=config.architecture)
    check_predictions(config, model)
    return type(model).__name__, model.config


@cache
def count_flops(shape: SiTConfig, backward: bool = False) -> float:
    """FLOPs of one image's velocity, multiply and add counted as two; with its backward pass where asked."""
    model = _meta_model(shape).requires_grad_(backward)
    with FlopCounterMode(display=False) as counter:
        v = model(*_meta_inputs(shape, 1))
        if backward:
            v.sum().backward()
    return float(counter.get_total_flops())


def total_flops(config: Config, flops: float, outside: float) -> dict[str, float]:
    """FLOPs of each phase of the whole run; `outside` for each generated image: decoder and feature network."""
    counts = evaluations(config)
    images = {
        "evaluate": 4 * config.evaluate_images + 2 * config.evaluate_every_images * quick_evaluations(config),
        "refresh": counts["refresh"] and config.reference_size * -(-config.steps // config.refresh_every),
        "rollout": counts["rollout"] and config.steps * config.images_per_step,
    }
    return {
        phase: (count - OVERHEAD_EVALUATIONS * images.get(phase, 0)) * flops + outside * images.get(phase, 0)
        for phase, count in counts.items()
    }


def memory_per_rank(config: Config, shape: SiTConfig, ranks: int) -> dict[str, float]:
    """Bytes on one of `ranks` GPUs by what holds them; without the libraries' own workspaces and fragmentation."""
    weights = 4.0 * count_parameters(shape)
    sharded = ranks > 1 and (config.parallel == "fsdp" or (config.parallel == "auto" and weights / 4 > SHARD_ABOVE))
    averages = 1 + len(config.ema_extra) + len(config.ema_power)
    share = -(-config.minibatch // ranks)
    images = -(-config.images_per_step // ranks)
    path = config.rollout_sde.steps + 1 if config.estimator == "sde_policy_gradient" else 1
    values = shape.channels * shape.image_size**2
    latent = shape.channels == LATENT_CHANNELS
    # What autocast makes for the backward pass; recomputation makes a block's at a time.
    cast = weights / 2 if config.precision == "bf16" and not config.activation_checkpointing else 0.0
    passed = activation_bytes(config, shape) * min(config.micro_batch or share, share)
    # Rollouts decode and updates do not, so the larger counts; Inception's maps of a batch are smaller than either.
    decoded = min(SLICE, config.rollout_batch) * DECODING_BYTES * (shape.image_size / 32) ** 2 if latent else 0.0
    return {
        "weights, gradients, moments, averages": weights * (4 + averages) / (ranks if sharded else 1),
        "base model": weights,
        "copy for sampling": weights if sharded else 0.0,
        "weights in bf16": cast,
        "autoencoder and Inception": AUTOENCODER_BYTES + INCEPTION_BYTES if latent else 0.0,
        "activations of an update or of decoding": max(passed, decoded),
        "samples and paths": 4.0 * values * images * path,
    }


@cache
def count_parameters(shape: SiTConfig) -> int:
    """Numbers in the generator's weights."""
    return sum(p.numel() for p in _meta_model(shape).parameters())


@cache
def activation_bytes(config: Config, shape: SiTConfig) -> float:
    """Bytes that one image's forward pass keeps for its backward pass, counted on tensors without memory."""
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    model = prepare(
        _meta_model(shape).to(dtype), replace(config, compile="off", precision="float32"), torch.device("meta")
    )
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return x

    x, t, y = _meta_inputs(shape, 1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model(x.to(dtype), t, y)
    return float(sum(storage.nbytes() for storage in kept.values()))


def _meta_model(shape: SiTConfig) -> SiT:
    with torch.device("meta"):
        return SiT(shape).to("meta")  # the position table comes from NumPy


def _meta_inputs(shape: SiTConfig, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with torch.device("meta"):
        return torch.empty(n, *shape.image_shape), torch.empty(n), torch.empty(n, dtype=torch.long)


def _bytes(size: float) -> str:
    """GiB of a large size, MiB of a small one."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _duration(hours: float) -> str:
    """Hours, or seconds of less than a hundredth of one, with three digits."""
    return f"{hours:.3g} hours" if hours >= 0.01 else f"{3600 * hours:.3g} seconds"


def _aligned(lines: dict[str, object]) -> str:
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}} {text}" for name, text in lines.items())
