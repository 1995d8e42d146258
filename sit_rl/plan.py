"""What a run is about to do and how long it will take, from the speed of this machine measured for a second."""

from __future__ import annotations

import time

import torch

from sit_rl.config import Config
from sit_rl.distributed import world_size
from sit_rl.parallel import map_batches
from sit_rl.setting import Setting

# Evaluations that an image of a minibatch costs: forward 1, backward 2, and the anchor's forward for matching.
UPDATE_EVALUATIONS = {"advantage_matching": 4, "rejection": 3, "pretraining": 3}
# Feature networks, rounding to uint8 and random numbers beside a sample's velocity evaluations, in evaluations of the
# default model: measured at 0.4 ms an image for both embedded networks against 0.45 ms an evaluation.
OVERHEAD_EVALUATIONS = 1


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
        "generator": f"SiT, {size:.2f}M parameters, samples {shape}, on {setting.device} × {world_size()}",
        "reward": f"{reward}, against {setting.real.moments.count} real; {c.reference} reference",
        "step": f"{c.candidates} × {c.replace} images, credit per {c.credit}; {keep} train; {c.estimator}",
        "judge": f"{c.evaluate_images} images against {setting.heldout.moments.count} held-out",
        "samplers": f"{c.evaluate_ode}; {c.evaluate_sde}",
        "predicted": f"about {sum(minutes.values()):.1f} minutes ({parts})",
    }
    return "\n".join(f"{name:10} {text}" for name, text in lines.items())


def evaluations(config: Config) -> dict[str, float]:
    """Velocity evaluations of each phase of the whole run."""
    sde = config.estimator == "sde_policy_gradient"
    sampler = config.rollout_sde if sde else config.rollout
    per_sample = sampler.evaluations() + OVERHEAD_EVALUATIONS
    kept = min(config.minibatch, config.kept_fraction * config.images_per_step)
    points = 1 + (config.steps - 1) // config.evaluate_every if config.evaluate_every else 0
    judged = 2 * config.evaluate_images + (points - 1) * config.evaluate_every_images
    rolls_out = config.estimator != "pretraining"
    refreshes = 1 if config.reference == "rolling" else -(-config.steps // config.refresh_every)
    rollout = config.steps * config.images_per_step * per_sample
    update = (
        config.steps
        * config.updates
        * kept
        * (3 * (sampler.steps - 1) if sde else UPDATE_EVALUATIONS[config.estimator])
    )
    return {
        "evaluate": judged
        * (config.evaluate_ode.evaluations() + config.evaluate_sde.evaluations() + 2 * OVERHEAD_EVALUATIONS),
        "refresh": rolls_out * refreshes * config.reference_size * per_sample,
        "rollout": rolls_out * rollout,
        "update": update if rolls_out else update + rollout,
    }


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
