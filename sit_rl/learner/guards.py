"""Checks that stop a run that has ceased to learn; each error says what happened and what to change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fastfid.runtime.errors import one_line
from sit_rl.config import MACHINE_FIELDS, Config
from sit_rl.models.finite_weights import first_not_finite
from sit_rl.models.generator_model import GeneratorModel
from sit_rl.options.run import RunOptions

# Largest useful norm of a gradient: above it, products of two entries overflow float32.
GRADIENT_LIMIT = 1e18
# Copies of one input in the determinism check: 10% label dropout stays unnoticed with probability 0.9^(2·64) = 1e-6.
COPIES = 64
# Allowed relative difference of two answers: kernels of a GPU that are not deterministic round differently.
SAME = 1e-3
# A resume with another learning rate is refused, so a lower rate needs a new run.
LOWER_RATE = "start again with a lower --lr and another --out"
# Flag to lower if a GPU's memory is full, by phase.
MEMORY_REMEDIES = {
    "refresh": "--rollout-batch",
    "rollout": "--rollout-batch",
    "evaluate": "--rollout-batch",
    "reward": "--candidates",
    "update": "--micro-batch",
}


def require_finite(name: str, x: torch.Tensor, step: int | None = None) -> None:
    """FloatingPointError if `x` [n, ...] has NaN or infinite values; it names the tensor, the step, the first row."""
    if not x.is_floating_point() or torch.isfinite(x).all():
        return
    bad = (~torch.isfinite(x)).flatten(1).any(dim=1) if x.ndim > 1 else ~torch.isfinite(x)
    where = "" if step is None else f" of step {step}"
    raise FloatingPointError(
        f"{name}{where} have NaN or infinite values in {int(bad.sum())} of {len(x)} rows, the first is row "
        f"{int(torch.nonzero(bad)[0])}: the generator has diverged; {LOWER_RATE}"
    )


def require_finite_gradient(norm: float, parameters: Iterable[tuple[str, nn.Parameter]], where: str, lr: float) -> None:
    """FloatingPointError, before the weights change, if the gradient's norm is NaN or above GRADIENT_LIMIT."""
    if norm < GRADIENT_LIMIT:
        return
    bad = [name for name, p in parameters if p.grad is not None and not torch.isfinite(p.grad.sum()).item()]
    raise FloatingPointError(
        f"the gradient's norm is {norm}{f', first in {bad[0]}' if bad else ''}, in {where}; the weights are as before "
        f"it: {LOWER_RATE} (now {lr:g})"
    )


def require_finite_weights(parameters: Iterable[tuple[str, nn.Parameter]], step: int, lr: float) -> None:
    """FloatingPointError if an update has made a weight NaN or infinite; it names the first one."""
    name = first_not_finite(parameters)
    if name is not None:
        raise FloatingPointError(
            f"weight {name} is NaN or infinite after the updates of step {step}: {LOWER_RATE} (now {lr:g})"
        )


@torch.no_grad()
def require_deterministic(model: GeneratorModel, device: torch.device) -> None:
    """ValueError if the model gives NaN, or two outputs for one input: dropout of labels or activations is on."""
    shape = model.sample_shape
    x, t = torch.zeros((COPIES, *shape), device=device), torch.full((COPIES,), 0.5, device=device)
    y = torch.zeros(COPIES, dtype=torch.long, device=device)
    first, second = model(x, t, y), model(x, t, y)
    if not torch.isfinite(first).all():
        raise ValueError("the model gives NaN or infinity for samples of zeros at half of its time; check its weights")
    if not float((first - second).abs().max()) <= SAME * float(first.abs().max()):
        raise ValueError(
            "the model gives different velocities for the same input: dropout, of labels or another, is on and would "
            "corrupt the log-probabilities; put the model in eval mode or set its dropout to 0"
        )


def require_sane(run: RunOptions, lr: float | None, record: dict[str, Any], first_fd: float | None) -> None:
    """FloatingPointError if a step's record exceeds a limit: --stop-fd, --stop-drift or --stop-kl."""
    limits = {
        "reference_fd": (run.stop_fd * (first_fd or 0.0), "--stop-fd", "times the first step's reference FD"),
        "drift": (run.stop_drift, "--stop-drift", "mean squared departure from the base velocity"),
        "kl": (run.stop_kl, "--stop-kl", "nats from the policy that made the samples"),
    }
    for name, (limit, flag, what) in limits.items():
        value = record.get(name)
        if value is not None and limit > 0 and not value <= limit:
            raise FloatingPointError(
                f"{name} is {value:.4g} in step {record['step']}, above its limit {limit:.4g} ({flag} "
                f"{getattr(run, flag[2:].replace('-', '_')):g}: {what}): the run is running away; {LOWER_RATE} "
                f"(now {lr:g}), or raise {flag} and run the same command, it resumes from the last checkpoint"
            )


def out_of_memory(config: Config, phase: str | None, error: BaseException) -> str:
    """One sentence for a full GPU: the phase, the flag to lower, and its present value."""
    flag = MEMORY_REMEDIES.get(phase or "", "--rollout-batch")
    name = flag[2:].replace("-", "_")
    now = config[name] or f"0: a rank's whole share of {config.update.minibatch} images"
    then = "it resumes" if name in MACHINE_FIELDS else "with another --out"
    reason = one_line(error)
    return (
        f"out of GPU memory in phase {phase or 'setup'}: lower {flag} (now {now}) and run the same command, {then} "
        f"({reason})"
    )
