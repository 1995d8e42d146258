"""What stops a run, with an explanation: every way of going on without learning that users of such trainers report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from sit_rl.config import MACHINE_FIELDS, Config
from sit_rl.config_groups import RunOptions
from sit_rl.models.finite_weights import first_not_finite
from sit_rl.models.sit import SiT

# Norm of a gradient above which it is useless whatever the clipping: float32 products of it overflow.
GRADIENT_LIMIT = 1e18
# Copies of one input that the determinism check evaluates: dropout of 10% of labels misses all with 0.9^(2·64) = 1e-6.
COPIES = 64
# Relative difference of two answers that rounding may make where a GPU's kernels are not deterministic.
SAME = 1e-3
# A run goes on with its own rate alone: resumed with another it would be neither of two runs, and is refused.
LOWER_RATE = "start again with a lower --lr and another --out"
# What to lower when a GPU's memory is full, by the phase it happened in.
MEMORY_REMEDIES = {
    "refresh": "--rollout-batch",
    "rollout": "--rollout-batch",
    "evaluate": "--rollout-batch",
    "reward": "--candidates",
    "update": "--micro-batch",
}


def require_finite(name: str, x: torch.Tensor, step: int | None = None) -> None:
    """FloatingPointError naming tensor, step if given, and first row where `x` [n, ...] holds NaN or infinity."""
    if not x.is_floating_point() or torch.isfinite(x).all():
        return
    bad = (~torch.isfinite(x)).flatten(1).any(dim=1) if x.ndim > 1 else ~torch.isfinite(x)
    where = "" if step is None else f" of step {step}"
    raise FloatingPointError(
        f"{name}{where} have NaN or infinite values in {int(bad.sum())} of {len(x)} rows, the first is row "
        f"{int(torch.nonzero(bad)[0])}: the generator has diverged; {LOWER_RATE}"
    )


def require_finite_gradient(norm: float, parameters: Iterable[tuple[str, nn.Parameter]], where: str, lr: float) -> None:
    """FloatingPointError, before the weights change, where the gradient's norm is not a number of use."""
    if norm < GRADIENT_LIMIT:
        return
    bad = [name for name, p in parameters if p.grad is not None and not torch.isfinite(p.grad.sum()).item()]
    raise FloatingPointError(
        f"the gradient's norm is {norm}{f', first in {bad[0]}' if bad else ''}, in {where}; the weights are as before "
        f"it: {LOWER_RATE} (now {lr:g})"
    )


def require_finite_weights(parameters: Iterable[tuple[str, nn.Parameter]], step: int, lr: float) -> None:
    """FloatingPointError naming the first weight that an update has made NaN or infinite."""
    name = first_not_finite(parameters)
    if name is not None:
        raise FloatingPointError(
            f"weight {name} is NaN or infinite after the updates of step {step}: {LOWER_RATE} (now {lr:g})"
        )


@torch.no_grad()
def require_deterministic(model: SiT, device: torch.device) -> None:
    """ValueError if the model answers the same question differently: dropout, of labels or other, is on."""
    shape = model.config.image_shape
    x, t = torch.zeros((COPIES, *shape), device=device), torch.full((COPIES,), 0.5, device=device)
    y = torch.zeros(COPIES, dtype=torch.long, device=device)
    first, second = model(x, t, y), model(x, t, y)
    if not float((first - second).abs().max()) <= SAME * float(first.abs().max()):
        raise ValueError(
            "the model gives different velocities for the same input: dropout, of labels or another, is on and would "
            "corrupt the log-probabilities; put the model in eval mode or set its dropout to 0"
        )


def require_sane(run: RunOptions, lr: float | None, record: dict[str, Any], first_fd: float | None) -> None:
    """FloatingPointError where a step's record shows a run that is running away, under --stop-fd, -drift, -kl."""
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
    reason = " ".join(str(error).split())[:160]
    return (
        f"out of GPU memory in phase {phase or 'setup'}: lower {flag} (now {now}) and run the same command, {then} "
        f"({reason})"
    )
