"""The groups of a run's configuration: reward, update, rollout, evaluation, files, run.

Each field is an `option`: its default, what it means, its lower bound, and whether a resumed run may change it.
`Config` (config.py) holds one of each group.  A function takes the group that it uses.
"""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from sit_rl.models.averages import gamma_of
from sit_rl.reward_names import KINDS, components_of
from sit_rl.sampling.sampler_config import SamplerConfig, noisy_steps

Estimator = Literal["advantage_matching", "sde_policy_gradient", "rejection", "pretraining"]
Value = TypeVar("Value")


def option(
    default: Any,
    meaning: str = "",
    *,
    flag: str | None = None,
    least: float | None = None,
    above: float | None = None,
    machine: bool = False,
) -> Any:
    """A field of a group.

    meaning  help text of the flag
    flag     name on the command line and in files, without dashes; the field's name unless given
    least    smallest allowed value; `above` is the largest value that is not allowed
    machine  the field says where and how to run: results depend on it within rounding, and a resume may change it
    """
    metadata = {"meaning": meaning, "flag": flag, "least": least, "above": above, "machine": machine}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def flag_of(f: Field[Any]) -> str:
    """Name of a field on the command line and in files, without dashes."""
    return f.metadata["flag"] or f.name


def dashed(flag: str) -> str:
    """The flag as it is typed: --reference-size."""
    return "--" + flag.replace("_", "-")


def given(value: Value | None) -> Value:
    """The value of a field whose default depends on the estimator; ValueError before `resolve` has filled it in."""
    if value is None:
        raise ValueError("a value of the config is still the estimator's default; call resolve first")
    return value


def check_bounds(group: Any) -> None:
    """ValueError for a number of a group that is not finite or is below its bound."""
    for f in fields(group):
        value = getattr(group, f.name)
        if value is None or "flag" not in f.metadata:
            continue
        name = dashed(flag_of(f))
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}; it must be a finite number")
        least, above = f.metadata["least"], f.metadata["above"]
        if least == 0 and value < 0:
            raise ValueError(f"{name} is {value}; it must not be negative")
        if least is not None and value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
        if above is not None and not value > above:
            raise ValueError(f"{name} is {value}; it must be positive")


@dataclass(frozen=True)
class RewardOptions:
    """The reward (arXiv 2607.02291): m new images take the place of m of the N images of the reference set."""

    components: tuple[str, ...] = option(
        (),
        f"components of the reward: any of {', '.join(KINDS)}, with :NETWORK for another network than "
        "--reward-features, python:FILE:NAME for a function of images and labels, and =WEIGHT; default: fd",
        flag="reward",
    )
    reference: Literal["rolling", "refresh", "fresh"] = option(
        "rolling",
        "rolling: a step's images replace the oldest of the reference set; refresh: all are renewed every "
        "--refresh-every steps; fresh: none, a step's images are the set and each is left out of it",
    )
    reference_size: int = option(5_000, "N, images", least=1)
    replace: int = option(50, "m, images of one candidate subset", least=1)
    candidates: int = option(32, "B, subsets a step; B·m images are rolled out", least=1)
    refresh_every: int = option(10, "steps between regenerations (reference = refresh)", least=1)
    credit: Literal["subset", "image", "influence"] = option(
        "image", "reward of a subset, exact change of each single image, or its first-order influence"
    )
    normalise: Literal["batch", "class"] = option(
        "class", "standardise advantages over the batch (the paper) or within each class"
    )
    advantage_clip: float = option(3.0, "bound on |advantage|, standard deviations", above=0)
    fade: bool = option(
        True, "scale advantages by the spread of rewards relative to the first step's; --no-fade as in the paper"
    )
    keep: float | Literal["all"] | None = option(
        None, "fraction of samples, best reward first, that trains; default: the estimator's"
    )
    device: Literal["auto", "cpu"] = option(
        "auto",
        "where the swap engine runs; auto: with the features; cpu: in host memory, prepared beside rollout and update",
        flag="reward_device",
        machine=True,
    )

    @property
    def images_per_step(self) -> int:
        """B·m."""
        return self.candidates * self.replace

    @property
    def set_size(self) -> int:
        """Images of the set whose distance is measured."""
        return self.images_per_step if self.reference == "fresh" else self.reference_size

    @property
    def kept_fraction(self) -> float:
        """Fraction of a step's samples that trains."""
        return 1.0 if self.keep in ("all", None) else float(self.keep)

    def check(self) -> None:
        """ValueError if the numbers contradict each other."""
        check_bounds(self)
        others = [word for word in self.components if components_of((word,), "")[0].kind != "fd"]
        if self.credit == "influence" and others:
            raise ValueError(f"--credit influence is known for fd only, not for --reward {others[0]}; choose image")
        if self.reference == "fresh":
            if self.candidates < 2 or self.images_per_step - self.replace < 2:
                raise ValueError(
                    f"--reference fresh leaves subsets out of a step's images; --candidates {self.candidates} × "
                    f"--replace {self.replace} leave fewer than 2 of them: raise --candidates"
                )
        elif self.replace > self.reference_size - 2:
            raise ValueError(
                f"--replace {self.replace} leaves fewer than 2 of the --reference-size {self.reference_size} images; "
                "lower it"
            )
        if self.reference == "rolling" and self.images_per_step > self.reference_size:
            raise ValueError(
                f"--candidates {self.candidates} × --replace {self.replace} = {self.images_per_step} images a step "
                f"exceed the rolling reference of {self.reference_size}; lower one, raise --reference-size, or use "
                "--reference refresh"
            )
        if not 0 < self.kept_fraction <= 1:
            raise ValueError(f"--keep is {self.keep}; it must be 'all' or a fraction in (0, 1]")


@dataclass(frozen=True)
class UpdateOptions:
    """How scored samples change the model."""

    estimator: Estimator = option("advantage_matching")
    updates: int | None = option(None, "optimiser steps a training step; default: the estimator's", least=1)
    minibatch: int | None = option(None, "images an optimiser step; default: the estimator's", least=1)
    lr: float | None = option(None, "learning rate of AdamW; default: the estimator's", above=0)
    lr_schedule: Literal["constant", "cosine"] = option("cosine")
    warmup: int = option(2, "training steps over which the rate rises from 0", least=0)
    anchor: float = option(0.5, "advantage_matching: weight that holds the velocity near the base model's")
    negative: float = option(1.0, "advantage_matching: weight of negative advantages")
    clip_range: float = option(
        1e-4,
        "sde_policy_gradient: clip of the ratio at 4·32·32 dimensions, rescaled by √(4096/dimension)",
        above=0,
    )
    grad_clip: float = option(1.0, "largest norm of the gradient", above=0)
    ema: float = option(0.9, "decay per optimiser step of the averaged weights that are evaluated")
    ema_extra: tuple[float, ...] = option((), "decays of further averages, kept in the checkpoints")
    ema_power: tuple[float, ...] = option(
        (), "relative widths σ_rel of power-function averages, such as 0.05 0.1: see sit_rl/ema.py"
    )
    ema_snapshot_every: int = option(
        0,
        "steps between snapshots of the power-function averages, from which any other is made after the run; "
        "0 means none",
        least=0,
    )
    lora: int = option(
        0,
        "rank of LoRA terms that are trained in place of the weights (pip install 'fastfid[lora]'); 0: the weights",
        least=0,
    )

    def check(self) -> None:
        """ValueError for a number that no update can use."""
        check_bounds(self)
        for name, decay in (("ema", self.ema), *(("ema-extra", decay) for decay in self.ema_extra)):
            if not 0 <= decay < 1:
                raise ValueError(f"--{name} is {decay}; it must be in [0, 1)")
        for sigma in self.ema_power:
            try:
                gamma_of(sigma)
            except ValueError as error:
                raise ValueError(f"--ema-power {sigma}: {error}") from None
        if self.ema_snapshot_every and not self.ema_power:
            raise ValueError(
                "--ema-snapshot-every needs --ema-power: the widths to take snapshots of, such as 0.05 0.1"
            )


@dataclass(frozen=True)
class RolloutOptions:
    """How a step's samples are made."""

    sampler: SamplerConfig = option(
        lambda: SamplerConfig("ode", "adams", 10, power=1.5), "advantage_matching and rejection", flag="rollout"
    )
    sde_sampler: SamplerConfig = option(
        lambda: SamplerConfig("sde", "euler", 20),
        "sde_policy_gradient: sde euler, or for a DiT discrete ddpm, or ddim with eta above 0",
        flag="rollout_sde",
    )
    batch: int = option(
        200,
        "images sampled at once; fixes the grouping of samples, and so their last bits, whatever the number of ranks",
        flag="rollout_batch",
        least=1,
        machine=True,
    )

    def check(self) -> None:
        """ValueError if a policy gradient cannot use its sampler."""
        check_bounds(self)
        if not self.sde_sampler.has_density:
            raise ValueError(
                f"--rollout-sde is {self.sde_sampler}, whose steps do not have the density that a policy gradient "
                "needs; choose kind sde with method euler, or for a DiT kind discrete, 3 steps or more, method ddpm, "
                "or ddim with eta above 0"
            )


@dataclass(frozen=True)
class EvaluationOptions:
    """How the model is judged, before, during and after the training."""

    ode: SamplerConfig = option(
        lambda: SamplerConfig("ode", "adams", 12, power=1.5),
        "the noiseless sampler of every evaluation; for a DiT discrete ddim with eta 0",
        flag="evaluate_ode",
    )
    sde: SamplerConfig = option(
        lambda: SamplerConfig("sde", "adams", 40, power=1.5),
        "the noisy one; for a DiT discrete ddpm, or ddim with eta above 0",
        flag="evaluate_sde",
    )
    images: int = option(5_000, "images of the evaluations before and after", flag="evaluate_images")
    every: int = option(8, "steps between evaluations on the way; 0 means none", flag="evaluate_every", least=0)
    every_images: int = option(
        500,
        "images of the evaluations on the way: the first of the same noise and labels",
        flag="evaluate_every_images",
    )

    def check(self) -> None:
        """ValueError if a sampler has the wrong kind, or the images are too few for a covariance."""
        check_bounds(self)
        if noisy_steps(self.ode) or not noisy_steps(self.sde):
            raise ValueError(
                f"--evaluate-ode is {self.ode} and --evaluate-sde {self.sde}; the first must draw no noise "
                "(kind ode, or ddim with eta 0) and the second must (kind sde, ddpm, or ddim with eta above 0): both "
                "columns of the table are reported"
            )
        counts = {"evaluate-images": self.images}
        if self.every:
            counts["evaluate-every-images"] = self.every_images
        for name, count in counts.items():
            if count < 2:
                raise ValueError(f"--{name} is {count}; a covariance needs at least 2")


@dataclass(frozen=True)
class FileOptions:
    """What to train and measure with; the embedded default needs none of these paths."""

    checkpoint: Path | None = option(
        None, "SiT or DiT weights: .safetensors, or an official .pt (bare state dict or {model, ema, ...})"
    )
    architecture: Literal["auto", "sit", "dit"] = option(
        "auto", "what the weights are of; auto: what the file says of itself, else DiT for a name DiT-…, else SiT"
    )
    vae: Path | None = option(None, "folder of a diffusers AutoencoderKL, for models of latents")
    real: Path | None = option(None, "the reward's real images or statistics (.npz with mu, sigma)")
    heldout: Path | None = option(
        None,
        "the judge's real images or statistics; default: embedded, or for other models --real, as in the paper",
    )
    embedded_images: int = option(
        0, "how many of the embedded real images to use of each split, evenly spaced; 0 means all"
    )
    reward_features: str = option("fashion-a", "feature network of the reward: any that `fastfid eval --network` takes")
    judge_features: str = option("fashion-b", "a second network, which only judges; none: no second network")
    weights: tuple[str, ...] = option(
        (), "weights file of the feature network, such as Inception's, or NAME=PATH for several"
    )

    def check(self) -> None:
        """ValueError if there are too few embedded images."""
        if self.embedded_images and self.embedded_images < 200:
            raise ValueError(
                f"--embedded-images is {self.embedded_images}; at least 200 are needed for 128 features, or 0 for all"
            )


@dataclass(frozen=True)
class RunOptions:
    """How to run it: processes, memory, saving, and when to stop."""

    attention: Literal["auto", "flash", "sdpa", "math"] = option("auto")
    precision: Literal["float32", "bf16"] = option(
        "float32",
        "bf16: matrix products of the generator in bfloat16 and a GPU's convolutions of the autoencoder in TF32; "
        "weights, log-probabilities, losses, features and the reward stay float32, which float32 means for everything",
    )
    parallel: Literal["auto", "ddp", "fsdp"] = option(
        "auto", "several ranks: whole copies (ddp), sharded (fsdp); auto: fsdp above 300M parameters", machine=True
    )
    micro_batch: int = option(
        0, "images of a minibatch that a rank passes at once; 0 means all of its share", least=0, machine=True
    )
    activation_checkpointing: bool = option(
        False, "keep only the blocks' inputs and recompute the rest in the backward pass", machine=True
    )
    compile: Literal["auto", "on", "off"] = option("auto", "torch.compile of the blocks; auto: on a GPU", machine=True)
    threads: int = option(0, "CPU threads of a rank; 0: the cores divided among the ranks", machine=True)
    keep_checkpoints: int = option(2, "steps whose checkpoints stay on disk, the newest ones", least=1, machine=True)
    save_every: int = option(1, "steps between checkpoints", least=1, machine=True)
    grace: float = option(
        20.0,
        "seconds that a step under way may still take after SIGTERM or SIGUSR1; torchrun kills after 30",
        least=0,
        machine=True,
    )
    dead_after: float = option(
        45.0,
        "seconds without a sign of life from a rank after which the others end with an error",
        above=0,
        machine=True,
    )
    stop_fd: float = option(
        5.0, "stop when the reference FD exceeds this multiple of the first step's; 0: never", least=0, machine=True
    )
    stop_drift: float = option(
        1.0,
        "stop when the mean squared departure from the base velocity exceeds this; 0: never",
        least=0,
        machine=True,
    )
    stop_kl: float = option(
        100.0,
        "stop when a path's KL from the policy that made it exceeds this, nats; 0: never",
        least=0,
        machine=True,
    )
    wandb: str | None = option(
        None, "Weights & Biases project to log to as well (pip install 'fastfid[wandb]')", machine=True
    )
    dry_run: bool = option(
        False, "print the plan (images, memory, flops, hours on GPUs) and stop; needs no weights", machine=True
    )
    gpus: tuple[str, ...] = option(
        ("1xH100", "8xH100", "8xA100"),
        "what --dry-run plans for: COUNTxNAME of A100, H100, H200, B200, L40S, or COUNTxNAME=PEAK in dense TFLOP/s",
        machine=True,
    )

    def check(self) -> None:
        """ValueError for a number out of bounds."""
        check_bounds(self)
