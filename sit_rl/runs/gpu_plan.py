"""What a run needs on GPUs, computed without running it: images, FLOPs, memory, hours."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from sit_rl.components.checks import check_predictions
from sit_rl.components.image_sets import FASHION_SIT
from sit_rl.config import Config
from sit_rl.files.paths import reading, require_extra, require_paths
from sit_rl.learner.learner import SHARD_ABOVE, prepare
from sit_rl.models.loading import load_model
from sit_rl.models.lora import lora_size
from sit_rl.models.pipeline_families import pipeline_folder
from sit_rl.models.sit import SiTConfig
from sit_rl.options.option import filled_in
from sit_rl.runs.forecast import OVERHEAD_EVALUATIONS, aligned, evaluations, quick_evaluations
from sit_rl.runs.planned_model import PipelineShape, Shape, decoding, meta_inputs, meta_model, planned_family

# Generators of presets, whose weights a dry run does not need.
PRESET_MODELS: dict[str, tuple[str, Shape]] = {
    "sit-xl-imagenet256": ("SiT", SiTConfig.named("SiT-XL/2")),
    "dit-xl-imagenet256": ("DiT", SiTConfig.named("DiT-XL/2")),
}
# Dense peak of one GPU in FLOP/s, by precision (NVIDIA's data sheets of the A100 SXM, H100 SXM, H200, B200 and L40S;
# float32 without TF32, torch's default). The paper used the L40S.
PEAKS = {
    "A100": {"bf16": 312e12, "float32": 19.5e12},
    "H100": {"bf16": 989e12, "float32": 67e12},
    "H200": {"bf16": 989e12, "float32": 67e12},
    "B200": {"bf16": 2250e12, "float32": 75e12},
    "L40S": {"bf16": 362e12, "float32": 91.6e12},
}
# Assumed share of the peak, between the 0.3 and 0.5 that published trainings of such transformers report. It is printed
# with every number that depends on it.
UTILISATION = 0.4
PLANNED_GPU = re.compile(r"(\d+)x([^=]+)(?:=([\d.]+))?")  # COUNTxNAME, or COUNTxNAME=PEAK in TFLOP/s


def dry_run(config: Config) -> str:
    """Images, memory, FLOPs and hours on GPUs, as aligned text. Only the shape of a checkpoint is read.

    FLOPs are counted operator by operator on meta tensors. Hours follow from them and the peak of a GPU.
    """
    gpus = [planned_gpu(text, config.run.precision) for text in config.run.gpus]
    kind, shape = planned_model(config)
    flops = count_flops(shape)
    whole = total_flops(config, flops, decoding(shape).flops)
    parameters = count_parameters(shape)
    c, sampler = config, config[config.rollout_flag]
    lines = {
        "plan": f"{c.steps} steps of {c.update.estimator}; nothing is run, no weights are read",
        "generator": f"{kind} {shape.name}, {parameters / 1e6:.1f}M parameters, {flops / 1e9:.3g} GFLOP an evaluation",
        "step": f"{c.reward.images_per_step} images rolled out ({sampler}), "
        f"{c.update.updates} updates of {c.update.minibatch}",
        "reference": f"{c.reward.set_size} images, {c.reward.reference}",
        "evaluation": f"2 × {c.evaluation.images} images before and after: {c.evaluation.ode}; {c.evaluation.sde}",
        "compute": ", ".join(f"{phase} {count:.2e}" for phase, count in whole.items() if count) + " FLOP (counted)",
    }
    if "dopri5" in (sampler.method, c.evaluation.ode.method):
        lines["compute"] += "; dopri5 taken at 50 evaluations an image, which its tolerance decides"
    if config.update.lora:
        trained = trained_parameters(config, shape)
        lines["training"] = f"LoRA of rank {config.update.lora}, {trained / 1e6:.1f}M parameters; the others are frozen"
    if isinstance(shape, PipelineShape):
        lines["prompts"] = "encoded once and kept on disk, which is not in these numbers"
    for ranks in dict.fromkeys(count for count, _, _ in gpus):
        memory = memory_per_rank(config, shape, ranks)
        text = ", ".join(f"{name} {_bytes(size)}" for name, size in memory.items() if size >= 2**20)
        lines[f"{ranks} GPU{'s' if ranks > 1 else ''}"] = (
            f"{_bytes(sum(memory.values()))} a rank (computed): {text or 'less than 1 MiB each'}"
        )
    for count, name, peak in gpus:
        hours = sum(whole.values()) / (peak * UTILISATION * count) / 3600
        lines[f"{count} × {name}"] = (
            f"{_duration(hours)} (computed: {c.run.precision} at {UTILISATION:.0%} of {peak / 1e12:g} TFLOP/s, "
            "unmeasured)"
        )
    return aligned(lines)


def planned_gpu(text: str, precision: str) -> tuple[int, str, float]:
    """One word of --gpus as count, name, and dense peak in FLOP/s; ValueError that names the known GPUs."""
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
    """Digits and points as a number, 0 if they are none."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def planned_model(config: Config) -> tuple[str, Shape]:
    """Kind and shape of the generator: of --model, from the checkpoint if it exists, else from the preset."""
    if config.generator.model is not None:
        return planned_own_model(config, config.generator.model)
    there = config.files.checkpoint is not None and config.files.checkpoint.is_file()
    if not there and config.preset in PRESET_MODELS:
        return PRESET_MODELS[config.preset]
    if config.files.checkpoint is None:
        return "SiT", FASHION_SIT
    require_paths([("--checkpoint", config.files.checkpoint)])
    with reading("--checkpoint", config.files.checkpoint):
        model = load_model(config.files.checkpoint, architecture=config.files.architecture)
    check_predictions(config, model)
    return type(model).__name__, model.config


def planned_own_model(config: Config, model: str) -> tuple[str, Shape]:
    """Kind and shape of a pipeline, by its JSON files alone; ValueError for a builder, whose shape only it knows."""
    folder = pipeline_folder(model)
    if folder is None:
        raise ValueError(f"--dry-run plans SiT, DiT and pipelines, and --model {model} is none of them; leave it out")
    require_extra("--model diffusers")
    family = planned_family(folder)
    return family.transformer, PipelineShape(family, family.latent_shape(config.generator.image_size))


@cache
def count_flops(shape: Shape, backward: bool = False) -> float:
    """FLOPs of the velocity of one image, a multiplication and an addition counted as two; on request with backward."""
    model = meta_model(shape).requires_grad_(backward)
    with FlopCounterMode(display=False) as counter:
        v = model(*meta_inputs(shape))
        if backward:
            v.sum().backward()
    return float(counter.get_total_flops())


def total_flops(config: Config, flops: float, outside: float) -> dict[str, float]:
    """FLOPs of each phase of a whole run. `outside` is counted per generated image: decoder and feature network."""
    counts = evaluations(config)
    images = {
        "evaluate": 4 * config.evaluation.images + 2 * config.evaluation.every_images * quick_evaluations(config),
        "refresh": counts["refresh"] and config.reward.reference_size * -(-config.steps // config.reward.refresh_every),
        "rollout": counts["rollout"] and config.steps * config.reward.images_per_step,
    }
    return {
        phase: (count - OVERHEAD_EVALUATIONS * images.get(phase, 0)) * flops + outside * images.get(phase, 0)
        for phase, count in counts.items()
    }


def memory_per_rank(config: Config, shape: Shape, ranks: int) -> dict[str, float]:
    """Bytes on one of `ranks` GPUs by their use, without workspaces of libraries and fragmentation."""
    trained = trained_parameters(config, shape)
    adapted = config.update.lora > 0
    half = adapted and config.run.precision == "bf16" and isinstance(shape, PipelineShape)
    weights = (2.0 if half else 4.0) * count_parameters(shape)
    large = trained > SHARD_ABOVE
    sharded = ranks > 1 and (config.run.parallel == "fsdp" or (config.run.parallel == "auto" and large))
    averages = 1 + len(config.update.ema_extra) + len(config.update.ema_power)
    share = -(-filled_in(config.update.minibatch) // ranks)
    images = -(-config.reward.images_per_step // ranks)
    steps = config[config.rollout_flag].steps
    path = {"sde_policy_gradient": steps + 1, "adjoint_matching": 2 * steps + 1}.get(config.update.estimator, 1)
    beside = decoding(shape, config.rollout.batch)
    # Copies in bfloat16 that autocast keeps for the backward pass; with recomputation only those of one block.
    cast = weights / 2 if config.run.precision == "bf16" and not (half or config.run.activation_checkpointing) else 0.0
    passed = activation_bytes(config, shape) * min(config.run.micro_batch or share, share)
    # What is trained, and without shards the frozen weights below LoRA are the base model's.
    copies = 4.0 * trained * (4 + averages) + (weights * (1 + averages) if adapted and sharded else 0.0)
    # Rollouts decode and updates do not, so the larger one counts. Inception's maps of a batch are smaller.
    return {
        "weights, gradients, moments, averages": copies / (ranks if sharded else 1),
        "base model": weights,
        "copy for sampling": weights if sharded else 0.0,
        "weights in bf16": cast,
        "autoencoder and Inception": beside.weights,
        "activations of an update or of decoding": max(passed, beside.working),
        "samples and paths": 4.0 * math.prod(shape.image_shape) * images * path,
    }


@cache
def count_parameters(shape: Shape) -> int:
    """Number of parameters of the generator."""
    return sum(p.numel() for p in meta_model(shape).parameters())


def trained_parameters(config: Config, shape: Shape) -> int:
    """Number of parameters that a run trains: all, or LoRA's."""
    return lora_size(meta_model(shape), config.update.lora) if config.update.lora else count_parameters(shape)


@cache
def activation_bytes(config: Config, shape: Shape) -> float:
    """Bytes that the forward pass of one image keeps for its backward pass, counted on meta tensors."""
    dtype = torch.bfloat16 if config.run.precision == "bf16" else torch.float32
    model = prepare(
        meta_model(shape).to(dtype), replace(config.run, compile="off", precision="float32"), torch.device("meta")
    )
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return x

    x, t, y = meta_inputs(shape)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model(x.to(dtype), t, y)
    return float(sum(storage.nbytes() for storage in kept.values()))


def _bytes(size: float) -> str:
    """A size in GiB, or in MiB below 1 GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _duration(hours: float) -> str:
    """Hours, or seconds below 0.01 hours, with three digits."""
    return f"{hours:.3g} hours" if hours >= 0.01 else f"{3600 * hours:.3g} seconds"
