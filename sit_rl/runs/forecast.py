"""What a run will do, and how long it will take on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from sit_rl.components.build import Components
from sit_rl.config import Config
from sit_rl.files.paths import listed
from sit_rl.models import attention
from sit_rl.models.generator_model import GeneratorModel
from sit_rl.models.sit import SiT
from sit_rl.options.option import filled_in
from sit_rl.ranks.cpu_batches import map_batches
from sit_rl.ranks.process_group import world_size
from sit_rl.reward_names import PYTHON, ComponentName
from sit_rl.runs.log import Clock
from sit_rl.runs.summary import count_in_words
from sit_rl.sampling.sampler_config import trained_steps

# Velocity evaluations per image of a minibatch: forward 1, backward 2, and 1 for the anchor of matching.
UPDATE_EVALUATIONS = {"advantage_matching": 4, "rejection": 3, "pretraining": 3, "merging": 0}
# A step of a path in the backward pass of its adjoint: forward 1, gradient in the state 2.
ADJOINT_EVALUATIONS = 3
# Cost per image of feature networks, rounding to uint8 and random numbers, in velocity evaluations of the default
# model: 0.4 ms were measured with two embedded networks, and 0.45 ms for an evaluation. The default has six by now.
OVERHEAD_EVALUATIONS = 1


def describe_run(config: Config, components: Components) -> str:
    """Aligned lines: output folder, model, reward, samplers, predicted minutes."""
    counts = evaluations(config)
    rate = measure_rate(config, components) * world_size()
    minutes = {phase: count / rate / 60 for phase, count in counts.items()}
    size = sum(p.numel() for p in components.model.parameters()) / 1e6
    parts = ", ".join(f"{phase} {m:.1f}" for phase, m in minutes.items() if m)
    keep = "all samples" if config.reward.kept_fraction == 1 else f"best {config.reward.kept_fraction:.0%} of samples"
    c, shape = config, components.sample_shape
    rewarded = " + ".join(_weighted(each) for each in c.reward_components)
    change = "each left out" if c.reward.reference == "fresh" else f"with {c.reward.replace} replaced"
    reward = f"{rewarded} of {c.reward.set_size} images {change}"
    real = count_in_words(components.real.moments.count, "real")
    images = f"{c.reward.candidates} × {c.reward.replace} images"
    lines = {
        "outputs": c.run_folder,
        "generator": f"{components.model.describe()}, {size:.2f}M parameters, samples {shape}, "
        f"on {components.device} × {world_size()}",
        "attention": explain_attention(c, components.model, components.device),
        "reward": f"{reward}, against {real}; {c.reward.reference} reference",
        "step": f"{images}, credit per {c.reward.credit}; {keep} train; {c.update.estimator}",
        "judge": judged_against(components, c.evaluation.images) + _never_seen(components),
        "samplers": f"{c.evaluation.ode}; {c.evaluation.sde}",
        "predicted": f"about {sum(minutes.values()):.1f} minutes ({parts})",
    }
    return aligned(lines)


def explain_attention(config: Config, model: GeneratorModel, device: torch.device) -> str:
    """The attention back end of a run, and why; only SiT and DiT let the trainer choose."""
    if not isinstance(model, SiT):
        return "the model's own"
    return attention.explain(*attention.attention_arguments(config.run.attention, model, config.run.precision, device))


def _weighted(component: ComponentName) -> str:
    """A component of the reward with its weight, for people: minus its distance."""
    name = f"−FD ({component.source})" if component.kind == "fd" else f"−{component}"
    name = str(component) if component.kind == PYTHON else name
    return name if component.weight == 1 else f"{component.weight:g} {name}"


def _never_seen(components: Components) -> str:
    """The networks that only judge, for people."""
    names = [each.net.name for each in components.networks if not each.rewarded]
    return f"; also by {listed(names)}, which the reward never sees" if names else ""


def judged_against(components: Components, images: int) -> str:
    """What the evaluations compare with, and a warning if the reward has seen the same images."""
    if components.heldout is components.real:
        return f"{images} images against the reward's own real side, as in the paper; pass --heldout to judge on others"
    return f"{images} images against {count_in_words(components.heldout.moments.count, 'held-out')}"


def evaluations(config: Config) -> dict[str, float]:
    """Velocity evaluations of each phase of a whole run, including the evaluations before and after training."""
    total = {"evaluate": 2 * config.evaluation.images * evaluation_cost(config), "refresh": 0.0, "rollout": 0.0}
    for step in range(config.steps):
        for phase, count in step_evaluations(config, step).items():
            total[phase] = total.get(phase, 0.0) + count
    return total


def step_evaluations(config: Config, step: int) -> dict[str, float]:
    """Velocity evaluations of each phase of one training step."""
    c = config
    per_sample = config[c.rollout_flag].evaluations() + OVERHEAD_EVALUATIONS
    update = update_evaluations(c)
    judged = quick_evaluations(c, step + 2) - quick_evaluations(c, step + 1)
    out = {"evaluate": judged * c.evaluation.every_images * evaluation_cost(c)}
    if c.update.estimator == "pretraining":
        return out | {"update": update + c.reward.images_per_step * per_sample}
    every = {"rolling": c.steps, "refresh": c.reward.refresh_every, "fresh": 0}[c.reward.reference]
    renewed = every > 0 and step % every == 0
    return out | {
        "refresh": c.reward.reference_size * per_sample if renewed else 0.0,
        "rollout": c.reward.images_per_step * per_sample,
        "update": update,
    }


def update_evaluations(config: Config) -> float:
    """Velocity evaluations of the updates of one training step."""
    c, before = config, 0.0
    kept = min(filled_in(c.update.minibatch), c.reward.kept_fraction * c.reward.images_per_step)
    forward, passes = 1, UPDATE_EVALUATIONS.get(c.update.estimator)
    if c.update.estimator in ("sde_policy_gradient", "adjoint_matching"):
        forward = len(trained_steps(config[c.rollout_flag]))
    if c.update.estimator == "adjoint_matching":
        before = c.reward.images_per_step * config[c.rollout_flag].evaluations() * ADJOINT_EVALUATIONS
        forward = min(forward, c.update.adjoint_steps)
    passes = 3 * forward if passes is None else passes
    if c.run.activation_checkpointing and passes:  # the forward pass is computed twice
        passes += forward
    return before + filled_in(c.update.updates) * kept * passes


def quick_evaluations(config: Config, before: int | None = None) -> int:
    """Number of short evaluations during a run, or in its first `before` steps; none comes after the last step."""
    last = (config.steps if before is None else min(before, config.steps)) - 1
    return max(0, last) // config.evaluation.every if config.evaluation.every else 0


def evaluation_cost(config: Config) -> float:
    """Velocity evaluations of one image under both samplers."""
    return config.evaluation.ode.evaluations() + config.evaluation.sde.evaluations() + 2 * OVERHEAD_EVALUATIONS


class Forecast:
    """Predicts the seconds of the next training step from the time that each phase took per velocity evaluation.

    For a phase that has not run yet, the speed of the evaluation before training is used. Reward and save cost the same
    in every step; their mean is used.
    """

    def __init__(self, config: Config, clock: Clock):
        self.config, self.clock = config, clock

    def step(self, step: int) -> float | None:
        """Predicted seconds of step `step`, the next one; None if nothing has been measured."""
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
    """Velocity evaluations per second of one rank on batches of the rollout: the fastest of several rounds.

    The fastest, because the first rounds start threads and touch new memory (five times slower in a fresh virtual
    machine), and because another process may take a core for a moment. Rounds go on for at least `seconds`, until
    `patience` rounds in a row were not faster by 2%, and for at most `most` seconds.
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


def aligned(lines: Mapping[str, object]) -> str:
    """One line per entry, with the texts in one column."""
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}} {text}" for name, text in lines.items())
