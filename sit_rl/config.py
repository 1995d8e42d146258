"""One dataclass holds every choice of a run; it makes the command line, is printed, saved, and read back on resume."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from sit_rl.files.atomic import write_text
from sit_rl.models.averages import gamma_of
from sit_rl.sampling.sampler_config import SamplerConfig, noisy_steps

Estimator = Literal["advantage_matching", "sde_policy_gradient", "rejection", "pretraining"]
# Fields that say where and how to run; results depend on none beyond rounding. A resume may change them.
MACHINE_FIELDS = (
    "out", "resume", "threads", "rollout_batch", "parallel", "micro_batch", "activation_checkpointing", "compile",
    "keep_checkpoints", "save_every", "grace", "dead_after", "stop_fd", "stop_drift", "stop_kl", "wandb", "dry_run",
    "reward_device", "gpus",
)  # fmt: skip
# What each estimator learns best with on the embedded default. A policy gradient makes a pass for every noisy sampler
# step: four minibatches of the paper's kept quarter, so that the clip acts. Rejection takes its own samples for data,
# which by itself makes the model worse; the best 5% outweigh that here (README, "Estimators").
MATCHING_DEFAULTS = {"keep": "all", "updates": 4, "minibatch": 400, "lr": 1e-4}
ESTIMATOR_DEFAULTS = {
    "advantage_matching": MATCHING_DEFAULTS,
    "pretraining": MATCHING_DEFAULTS,
    "rejection": {"keep": 0.05, "updates": 4, "minibatch": 400, "lr": 5e-5},
    "sde_policy_gradient": {"keep": 0.25, "updates": 4, "minibatch": 100, "lr": 1e-4},
}


@dataclass(frozen=True)
class Config:
    """Everything a run depends on. Counts of images are global: they do not change with the number of ranks."""

    preset: str = "fashion"
    out: Path | None = None
    """run folder; default runs/<preset>-<estimator>-<seed>"""
    resume: bool = True
    """continue from the run folder's checkpoint where there is one; --no-resume starts afresh"""
    seed: int = 0
    steps: int = 24
    """training steps: each rolls out, scores, selects and updates once"""

    # The reward (arXiv 2607.02291): m new images take the place of m of the N reference images.
    reference: Literal["rolling", "refresh"] = "rolling"
    """rolling: a step's images replace the oldest of the reference; refresh: all renewed every --refresh-every steps"""
    reference_size: int = 5_000
    """N, images"""
    replace: int = 50
    """m, images of one candidate subset"""
    candidates: int = 32
    """B, subsets a step; B·m images are rolled out"""
    refresh_every: int = 10
    """steps between regenerations (reference = refresh)"""
    credit: Literal["subset", "image", "influence"] = "image"
    """reward of a subset, exact change of each single image, or its first-order influence"""
    normalise: Literal["batch", "class"] = "class"
    """advantages are standardised over the batch (the paper) or within each class"""
    advantage_clip: float = 3.0
    """bound on |advantage|, standard deviations"""
    fade: bool = True
    """scale advantages by the spread of rewards relative to the first step's; --no-fade as in the paper"""
    keep: float | Literal["all"] | None = None
    """fraction of samples, best reward first, that trains; default: the estimator's"""

    # The update
    estimator: Estimator = "advantage_matching"
    updates: int | None = None
    """optimiser steps a training step; default: the estimator's"""
    minibatch: int | None = None
    """images an optimiser step; default: the estimator's"""
    lr: float | None = None
    """AdamW; default: the estimator's"""
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    warmup: int = 2
    """training steps over which the rate rises from 0"""
    anchor: float = 0.5
    """advantage_matching: weight that holds the velocity near the base model's"""
    negative: float = 1.0
    """advantage_matching: weight of negative advantages"""
    clip_range: float = 1e-4
    """sde_policy_gradient: clip of the ratio at 4·32·32 dimensions, rescaled by √(4096/dimension)"""
    grad_clip: float = 1.0
    """largest norm of the gradient"""
    ema: float = 0.9
    """decay per optimiser step of the averaged weights that are evaluated"""
    ema_extra: tuple[float, ...] = ()
    """decays of further averages, kept in the checkpoints"""
    ema_power: tuple[float, ...] = ()
    """relative widths σ_rel of power-function averages, such as 0.05 0.1: see sit_rl/ema.py"""
    ema_snapshot_every: int = 0
    """steps between snapshots of the power-function averages, from which any other is made after the run; 0: none"""
    lora: int = 0
    """rank of LoRA terms that are trained in place of the weights (pip install 'fastfid[lora]'); 0: the weights"""

    # Samplers
    rollout: SamplerConfig = field(default_factory=lambda: SamplerConfig("ode", "adams", 10, power=1.5))
    """advantage_matching and rejection"""
    rollout_sde: SamplerConfig = field(default_factory=lambda: SamplerConfig("sde", "euler", 20))
    """sde_policy_gradient: sde euler, or for a DiT discrete ddpm, or ddim with eta above 0"""
    rollout_batch: int = 200
    """images sampled at once; fixes the grouping of samples, and so their last bits, whatever the number of ranks"""
    evaluate_ode: SamplerConfig = field(default_factory=lambda: SamplerConfig("ode", "adams", 12, power=1.5))
    """the noiseless sampler of every evaluation; for a DiT discrete ddim with eta 0"""
    evaluate_sde: SamplerConfig = field(default_factory=lambda: SamplerConfig("sde", "adams", 40, power=1.5))
    """the noisy one; for a DiT discrete ddpm, or ddim with eta above 0"""
    evaluate_images: int = 5_000
    """images of the evaluations before and after"""
    evaluate_every: int = 8
    """steps between evaluations on the way; 0: none"""
    evaluate_every_images: int = 500
    """images of the evaluations on the way: the first of the same noise and labels"""

    # What to train and measure with; the embedded default needs none of these paths.
    checkpoint: Path | None = None
    """SiT or DiT weights: .safetensors, or an official .pt (bare state dict or {model, ema, ...})"""
    architecture: Literal["auto", "sit", "dit"] = "auto"
    """what the weights are of; auto: what the file says of itself, else DiT for a name DiT-…, else SiT"""
    vae: Path | None = None
    """folder of a diffusers AutoencoderKL, for models of latents"""
    real: Path | None = None
    """the reward's real images or statistics (.npz with mu, sigma)"""
    heldout: Path | None = None
    """the judge's real images or statistics; default: embedded, or for other models --real, as in the paper"""
    embedded_images: int = 0
    """how many of the embedded real images to use of each split, evenly spaced; 0: all"""
    reward_features: str = "fashion-a"
    """feature network of the reward: any that `fastfid eval --network` takes"""
    judge_features: str = "fashion-b"
    """a second network, which only judges; none: no second one"""
    weights: tuple[str, ...] = ()
    """weights file of the feature network, such as Inception's, or NAME=PATH for several"""
    reward_device: Literal["auto", "cpu"] = "auto"
    """where the swap engine lives; auto: with the features; cpu: in host memory, prepared beside rollout and update"""
    attention: Literal["auto", "flash", "sdpa", "math"] = "auto"

    # How to run it
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: matrix products of the generator in bfloat16 and a GPU's convolutions of the autoencoder in TF32; weights,
    log-probabilities, losses, features and the reward stay float32, which float32 means for everything"""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """several ranks: whole copies (ddp), sharded (fsdp); auto: fsdp above 300M parameters"""
    micro_batch: int = 0
    """images of a minibatch that a rank passes at once; 0: all of its share"""
    activation_checkpointing: bool = False
    """keep the blocks' inputs alone and recompute the rest in the backward pass"""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of the blocks; auto: on a GPU"""
    threads: int = 0
    """CPU threads of a rank; 0: the cores divided among the ranks"""
    keep_checkpoints: int = 2
    """steps whose checkpoints stay on disk, the newest ones"""
    save_every: int = 1
    """steps between checkpoints"""
    grace: float = 20.0
    """seconds that a step under way may still take after SIGTERM or SIGUSR1; torchrun kills after 30"""
    dead_after: float = 45.0
    """seconds without a sign of life from a rank after which the others end with an error"""
    stop_fd: float = 5.0
    """stop when the reference FD exceeds this multiple of the first step's; 0: never"""
    stop_drift: float = 1.0
    """stop when the mean squared departure from the base velocity exceeds this; 0: never"""
    stop_kl: float = 100.0
    """stop when a path's KL from the policy that made it exceeds this, nats; 0: never"""
    wandb: str | None = None
    """Weights & Biases project to log to as well (pip install 'fastfid[wandb]')"""
    dry_run: bool = False
    """print the plan (images, memory, flops, hours on GPUs) and stop; needs no weights"""
    gpus: tuple[str, ...] = ("1xH100", "8xH100", "8xA100")
    """what --dry-run plans for: COUNTxNAME of A100, H100, H200, B200, L40S, or COUNTxNAME=PEAK in dense TFLOP/s"""

    @property
    def images_per_step(self) -> int:
        """B·m."""
        return self.candidates * self.replace

    @property
    def run_folder(self) -> Path:
        """Where the outputs go."""
        return self.out or Path("runs") / f"{self.preset}-{self.estimator}-{self.seed}"

    @property
    def kept_fraction(self) -> float:
        """Fraction of a step's samples that trains."""
        return 1.0 if self.keep == "all" else float(self.keep)

    def to_dict(self) -> dict:
        """Plain values, paths as strings."""
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}

    def save(self, path: Path) -> None:
        """Write as YAML, whole or not at all."""
        write_text(path, yaml.safe_dump(self.to_dict(), sort_keys=False))


# Fields that count something there must be one of.
COUNTS = (
    "steps", "reference_size", "replace", "candidates", "refresh_every", "updates", "minibatch", "rollout_batch",
    "keep_checkpoints", "save_every",
)  # fmt: skip
# Fields of which 0 means none.
NOT_NEGATIVE = (
    "micro_batch", "lora", "ema_snapshot_every", "evaluate_every", "warmup", "grace", "stop_fd", "stop_drift",
    "stop_kl",
)  # fmt: skip


def check(c: Config) -> None:
    """Raise ValueError for a config whose numbers contradict each other."""
    for name in COUNTS:
        if getattr(c, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(c, name)}; it must be at least 1")
    for f in fields(c):
        value = getattr(c, f.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"--{f.name.replace('_', '-')} is {value}; it must be a finite number")
    for name in NOT_NEGATIVE:
        if getattr(c, name) < 0:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(c, name)}; it must not be negative")
    for name in ("lr", "grad_clip", "advantage_clip", "clip_range", "dead_after"):
        if not getattr(c, name) > 0:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(c, name)}; it must be positive")
    for name, decay in (("ema", c.ema), *(("ema-extra", decay) for decay in c.ema_extra)):
        if not 0 <= decay < 1:
            raise ValueError(f"--{name} is {decay}; it must be in [0, 1)")
    for sigma in c.ema_power:
        try:
            gamma_of(sigma)
        except ValueError as error:
            raise ValueError(f"--ema-power {sigma}: {error}") from None
    if c.ema_snapshot_every and not c.ema_power:
        raise ValueError("--ema-snapshot-every needs --ema-power: the widths to take snapshots of, such as 0.05 0.1")
    if c.seed < 0:
        raise ValueError(f"--seed is {c.seed}; it must not be negative")
    if c.replace > c.reference_size - 2:
        raise ValueError(
            f"--replace {c.replace} leaves fewer than 2 of the --reference-size {c.reference_size} images; lower it"
        )
    if c.reference == "rolling" and c.images_per_step > c.reference_size:
        raise ValueError(
            f"--candidates {c.candidates} × --replace {c.replace} = {c.images_per_step} images a step exceed the "
            f"rolling reference of {c.reference_size}; lower one, raise --reference-size, or use --reference refresh"
        )
    if not 0 < c.kept_fraction <= 1:
        raise ValueError(f"--keep is {c.keep}; it must be 'all' or a fraction in (0, 1]")
    if not c.rollout_sde.has_density:
        raise ValueError(
            f"--rollout-sde is {c.rollout_sde}, whose steps have not the density a policy gradient needs; choose kind "
            "sde with method euler, or for a DiT kind discrete, 3 steps or more, method ddpm, or ddim with eta above 0"
        )
    if noisy_steps(c.evaluate_ode) or not noisy_steps(c.evaluate_sde):
        raise ValueError(
            f"--evaluate-ode is {c.evaluate_ode} and --evaluate-sde {c.evaluate_sde}; the first must draw no noise "
            "(kind ode, or ddim with eta 0) and the second must (kind sde, ddpm, or ddim with eta above 0): both "
            "columns of the table are reported"
        )
    if c.embedded_images and c.embedded_images < 200:
        raise ValueError(
            f"--embedded-images is {c.embedded_images}; at least 200 are needed for 128 features, or 0 for all"
        )
    for name in ("evaluate_images", *(["evaluate_every_images"] if c.evaluate_every else [])):
        if getattr(c, name) < 2:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(c, name)}; a covariance needs at least 2")


SIT_XL = Config(
    preset="sit-xl-imagenet256", steps=450, estimator="sde_policy_gradient", credit="subset", normalise="batch",
    reference="refresh", candidates=32, keep=0.25, fade=False, updates=4, minibatch=100,
    lr=1e-5, lr_schedule="constant", warmup=0, rollout_batch=50,
    rollout=SamplerConfig("ode", "heun", 25), rollout_sde=SamplerConfig("sde", "euler", 50),
    evaluate_ode=SamplerConfig("ode", "dopri5", 250), evaluate_sde=SamplerConfig("sde", "euler", 250),
    evaluate_images=50_000, evaluate_every=50, evaluate_every_images=5_000, ema=0.99,
    reward_features="inception", judge_features="none", precision="bf16", micro_batch=16,
)  # fmt: skip
# The same with DiT's own chain: the paper's 50 steps train, the published DDPM of 250 and DDIM of as many evaluate.
DIT_XL = replace(
    SIT_XL, preset="dit-xl-imagenet256", architecture="dit",
    rollout=SamplerConfig("discrete", "ddim", 50), rollout_sde=SamplerConfig("discrete", "ddpm", 50),
    evaluate_ode=SamplerConfig("discrete", "ddim", 250), evaluate_sde=SamplerConfig("discrete", "ddpm", 250),
)  # fmt: skip
PRESETS = {
    "fashion": ("Fashion-MNIST with the embedded model, on a CPU (default)", Config()),
    "smoke": (
        "seconds-long run of every part, for tests: numbers mean nothing",
        Config(
            preset="smoke", steps=2, reference_size=200, replace=10, candidates=4, updates=2, minibatch=20,
            rollout_batch=20, embedded_images=1_000,
            rollout=SamplerConfig("ode", "adams", 3), rollout_sde=SamplerConfig("sde", "euler", 3),
            evaluate_ode=SamplerConfig("ode", "adams", 3), evaluate_sde=SamplerConfig("sde", "adams", 3),
            evaluate_images=200, evaluate_every=1, evaluate_every_images=100,
        ),
    ),
    "sit-xl-imagenet256": ("the paper's settings; needs --checkpoint, --vae and --real", SIT_XL),
    "dit-xl-imagenet256": ("the same for DiT-XL/2, by DDPM and DDIM", DIT_XL),
}  # fmt: skip


def resolve(config: Config) -> Config:
    """The same config with its run folder and its estimator's defaults filled in."""
    defaults = ESTIMATOR_DEFAULTS[config.estimator]
    missing = {name: value for name, value in defaults.items() if getattr(config, name) is None}
    return replace(config, out=config.run_folder, **missing)


def load_config(path: Path) -> Config:
    """Read a saved config; ValueError for one that is not there, or naming a field of another name or kind."""
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); restore it, or choose another --out") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path} is not YAML ({reason}); restore it, or choose another --out") from None
    try:
        config = _from_dict(Config, values)
        check(resolve(config))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}; restore it, or choose another --out") from None
    return config


def _from_dict(kind: type, values: Any) -> Any:
    """The dataclass `kind` from plain values, each checked against its field's type; missing ones are the default."""
    if not isinstance(values, dict):
        raise ValueError(f"{type(values).__name__} in place of a table of fields")
    hints = get_type_hints(kind)
    unknown = sorted(str(name) for name in set(values) - set(hints))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}: it was not written by this version")
    return kind(**{name: _convert(name, value, hints[name]) for name, value in values.items()})


def _convert(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint`, ValueError naming the field where it is not one."""
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for choice in choices:
        if get_origin(choice) is Literal and value in get_args(choice):
            return value
        if choice is Path and isinstance(value, str):
            return Path(value)
        if get_origin(choice) is tuple and isinstance(value, (list, tuple)):
            return tuple(_convert(name, item, get_args(choice)[0]) for item in value)
        if choice is SamplerConfig and isinstance(value, dict):
            return _from_dict(SamplerConfig, value)
        if choice is float and type(value) in (int, float):
            return float(value)
        if isinstance(choice, type) and type(value) is choice:
            return value
    raise ValueError(f"{name} is {value!r}, which is not of its type {getattr(hint, '__name__', hint)}")


def differences(saved: Config, asked: Config) -> list[str]:
    """Names of the fields that decide the result and differ between two configs."""
    return [
        f.name
        for f in fields(Config)
        if f.name not in MACHINE_FIELDS and getattr(saved, f.name) != getattr(asked, f.name)
    ]
