"""What a run is about to do and how long it will take: predicted from this machine's speed, or counted for GPUs."""

from __future__ import annotations

import time

import torch

from sit_rl.components.build import Components
from sit_rl.config import Config
from sit_rl.models import attention
from sit_rl.ranks.cpu_batches import map_batches
from sit_rl.ranks.process_group import world_size
from sit_rl.runs.log import Clock
from sit_rl.runs.summary import known
from sit_rl.sampling.sampler_config import trained_steps

# Evaluations that an image of a minibatch costs: forward 1, backward 2, and the anchor's forward for matching.
UPDATE_EVALUATIONS = {"advantage_matching": 4, "rejection": 3, "pretraining": 3}
# Feature networks, rounding to uint8 and random numbers beside a sample's velocity evaluations, in evaluations of the
# default model: measured at 0.4 ms an image for both embedded networks against 0.45 ms an evaluation.
OVERHEAD_EVALUATIONS = 1


def describe_plan(config: Config, components: Components) -> str:
    """A few aligned lines: where outputs go, the model, the reward, the samplers, the predicted minutes."""
    counts = evaluations(config)
    rate = measure_rate(config, components) * world_size()
    minutes = {phase: count / rate / 60 for phase, count in counts.items()}
    size = sum(p.numel() for p in components.model.parameters()) / 1e6
    parts = ", ".join(f"{phase} {m:.1f}" for phase, m in minutes.items() if m)
    keep = "all samples" if config.reward.kept_fraction == 1 else f"best {config.reward.kept_fraction:.0%} of samples"
    c, shape = config, components.sample_shape
    reward = f"−FD ({components.reward_net.name}) of {c.reward.reference_size} images with {c.reward.replace} replaced"
    arguments = attention.attention_arguments(c.run.attention, components.model, c.run.precision, components.device)
    images = f"{c.reward.candidates} × {c.reward.replace} images"
    lines = {
        "outputs": c.run_folder,
        "generator": f"{type(components.model).__name__}, {size:.2f}M parameters, samples {shape}, "
        f"on {components.device} × {world_size()}",
        "attention": attention.explain(*arguments),
        "reward": f"{reward}, against {known(components.real.moments.count, 'real')}; {c.reward.reference} reference",
        "step": f"{images}, credit per {c.reward.credit}; {keep} train; {c.update.estimator}",
        "judge": judged_against(components, c.evaluation.images),
        "samplers": f"{c.evaluation.ode}; {c.evaluation.sde}",
        "predicted": f"about {sum(minutes.values()):.1f} minutes ({parts})",
    }
    return aligned(lines)


def judged_against(components: Components, images: int) -> str:
    """What the evaluations compare, and a warning where it is what the reward has seen."""
    if components.heldout is components.real:
        return f"{images} images against the reward's own real side, as in the paper; pass --heldout to judge on others"
    return f"{images} images against {known(components.heldout.moments.count, 'held-out')}"


def evaluations(config: Config) -> dict[str, float]:
    """Velocity evaluations of each phase of the whole run, the evaluations before and after included."""
    total = {"evaluate": 2 * config.evaluation.images * evaluation_cost(config), "refresh": 0.0, "rollout": 0.0}
    for step in range(config.steps):
        for phase, count in step_evaluations(config, step).items():
            total[phase] = total.get(phase, 0.0) + count
    return total


def step_evaluations(config: Config, step: int) -> dict[str, float]:
    """Velocity evaluations of each phase of one training step."""
    c = config
    sde = c.update.estimator == "sde_policy_gradient"
    sampler = c.rollout.sde_sampler if sde else c.rollout.sampler
    per_sample = sampler.evaluations() + OVERHEAD_EVALUATIONS
    kept = min(c.update.minibatch, c.reward.kept_fraction * c.reward.images_per_step)
    passes = 3 * len(trained_steps(sampler)) if sde else UPDATE_EVALUATIONS[c.update.estimator]
    if c.run.activation_checkpointing:  # the trained forward pass once more
        passes += len(trained_steps(sampler)) if sde else 1
    update = c.update.updates * kept * passes
    judged = quick_evaluations(c, step + 2) - quick_evaluations(c, step + 1)
    out = {"evaluate": judged * c.evaluation.every_images * evaluation_cost(c)}
    if c.update.estimator == "pretraining":
        return out | {"update": update + c.reward.images_per_step * per_sample}
    renewed = step == 0 or (c.reward.reference == "refresh" and step % c.reward.refresh_every == 0)
    return out | {
        "refresh": c.reward.reference_size * per_sample if renewed else 0.0,
        "rollout": c.reward.images_per_step * per_sample,
        "update": update,
    }


def quick_evaluations(config: Config, before: int | None = None) -> int:
    """Evaluations on the way of the whole run, or those after fewer than `before` steps; the last step has none."""
    last = (config.steps if before is None else min(before, config.steps)) - 1
    return max(0, last) // config.evaluation.every if config.evaluation.every else 0


def evaluation_cost(config: Config) -> float:
    """Velocity evaluations of one image under both samplers."""
    return config.evaluation.ode.evaluations() + config.evaluation.sde.evaluations() + 2 * OVERHEAD_EVALUATIONS


class Forecast:
    """Seconds of the next training step, from what each phase has taken for an evaluation so far in this run.

    A phase that has not run yet counts at the speed of the evaluation before the training; the reward and the save,
    which cost the same every step, at their mean.
    """

    def __init__(self, config: Config, clock: Clock):
        self.config, self.clock = config, clock

    def step(self, step: int) -> float | None:
        """Predicted seconds of step `step`, the next one; None where nothing has been measured."""
        done = {"evaluate": 2 * self.config.evaluation.images * evaluation_cost(self.config)}
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
    config: Config, components: Components, seconds: float = 1.0, patience: int = 5, most: float = 10.0
) -> float:
    """Velocity evaluations per second of one rank on the rollouts' batches: the fastest round, once it stays so.

    The fastest, because the first rounds start threads and touch new memory (five times slower than later ones was seen
    in a fresh virtual machine) and another process may take a core for a moment: at least a second, until no round has
    improved by 2% for `patience` of them, at most ten seconds.
    """
    x = torch.randn(config.rollout.batch, *components.sample_shape, device=components.device)
    t = torch.full((len(x),), 0.5, device=components.device)
    y = torch.zeros(len(x), dtype=torch.long, device=components.device)
    at_once = torch.get_num_threads() if components.device.type == "cpu" else 1
    fastest, since, begun = float("inf"), 0, time.perf_counter()
    while since < patience or time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        for _ in map_batches(lambda _: components.model(x, t, y), range(2 * at_once), components.device):
            pass
        if components.device.type == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - started
        since = 0 if took < 0.98 * fastest else since + 1
        fastest = min(fastest, took)
        if time.perf_counter() - begun > most:
            break
    return 2 * at_once * len(x) / fastest


def aligned(lines: dict[str, object]) -> str:
    """One line an entry, the texts in one column."""
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}} {text}" for name, text in lines.items())
