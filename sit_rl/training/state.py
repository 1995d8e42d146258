"""Everything that changes during a run; saved to a checkpoint and loaded from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sit_rl.components.build import Components
from sit_rl.config import Config, may_change, places, plain
from sit_rl.estimators.merging import load_policy
from sit_rl.learner import checkpoint, guards
from sit_rl.learner.learner import Learner
from sit_rl.models.averages import PowerEMA
from sit_rl.models.conditions import Conditions
from sit_rl.models.finite_weights import require_finite_start
from sit_rl.models.generator_model import GeneratorModel
from sit_rl.models.open_model import save_weights
from sit_rl.options.option import dashed
from sit_rl.ranks.messages import say
from sit_rl.ranks.process_group import is_main
from sit_rl.reward.components import RewardSide
from sit_rl.reward.rolling_reference import ReferenceSet
from sit_rl.reward.solver_trial import SolverTrial
from sit_rl.reward.step_control import StepControl, not_comparable
from sit_rl.reward.swap_reward import SwapReward, reward_device, reward_side_of
from sit_rl.runs.log import Clock
from sit_rl.training.learning_rate import learning_rate

# The plain values of a checkpoint, and their types.
VALUE_KINDS = {
    "step": int, "images_generated": int, "seconds": dict, "evaluations": dict, "first_credit_std": dict,
    "first_reference_fd": float | None, "reference": dict | None, "config": dict,
}  # fmt: skip


def read_values(path: Path) -> dict[str, Any]:
    """The plain values of a run's checkpoint `path`; ValueError if one is missing or of another kind."""
    values = checkpoint.load_values(path)
    for name, kind in VALUE_KINDS.items():
        if name not in values:
            raise ValueError(
                f"checkpoint {path} has no {name!r}: it was not written by this version; {checkpoint.remedy(path)}"
            )
        if not isinstance(values[name], kind):
            raise ValueError(
                f"checkpoint {path} has {name} {values[name]!r}, which is not of its type; {checkpoint.remedy(path)}"
            )
    return values


def require_own(path: Path, values: dict[str, Any], config: Config) -> None:
    """ValueError for a checkpoint of another run, or of another step than its folder's name says.

    A copy from elsewhere is whole, so that its hashes are right.  Fields that an earlier version did not have, and
    those that a resume may change, are not compared.
    """
    if checkpoint.step_of(path) != values["step"]:
        raise ValueError(f"checkpoint {path} is of step {values['step']}, not its name's; {checkpoint.remedy(path)}")
    saved = values["config"]
    fixed = (name for name in places() if name in saved and name != "steps" and not may_change(name))
    other = next((name for name in fixed if saved[name] != plain(config[name])), None)
    if other is not None:
        raise ValueError(
            f"checkpoint {path} is of a run with another {dashed(other)}, {saved[other]}, not {plain(config[other])}; "
            f"{checkpoint.remedy(path)}"
        )


@dataclass
class State:
    """Everything that changes during a run; saved whole, so that a resumed run has the same bits as an unbroken one.

    Random draws are addressed by (seed, step, sample) and need no saving; the learning rate follows from the step.
    """

    config: Config
    learner: Learner
    writer: checkpoint.Writer
    clock: Clock
    conditions: Conditions
    side: RewardSide | None = None  # of the reward; None for an estimator without one
    step: int = 0
    reward: SwapReward | None = None
    images_generated: int = 0
    evaluations: dict[str, Any] = field(default_factory=dict)  # {"before" or "after": {"ode" or "sde": metrics}}
    first_credit_std: dict[str, float] = field(default_factory=dict)  # of the first step's credits, by component
    first_reference_fd: float | None = None
    control: StepControl | None = None  # None: off
    extensions: list[dict[str, Any]] = field(default_factory=list)  # of `extend`

    def save(self) -> None:
        """Begin to write a checkpoint; every rank calls it."""
        self.writer.save(self.step, self.tensors(), self.values())

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of a checkpoint, by name."""
        out = self.learner.tensors()
        if self.reward is not None:
            reference = self.reward.reference
            out |= {"reference.features": reference.features, "reference.labels": reference.labels}
        if self.control is not None and self.control.rows is not None and self.control.labels is not None:
            out |= {"control.rows": self.control.rows, "control.labels": self.control.labels}
        return out

    def size(self) -> int:
        """Bytes of a later checkpoint, which has two moments for every trained weight as well."""
        weights = sum(t.numel() * t.element_size() for t in self.learner.tensors().values())
        trained = sum(p.numel() * p.element_size() for p in self.learner.parameters)
        return weights + 2 * trained

    def values(self) -> dict[str, Any]:
        """The plain values of a checkpoint."""
        return {
            "step": self.step,
            "images_generated": self.images_generated,
            "seconds": self.clock.state_dict(),
            "evaluations": self.evaluations,
            "first_credit_std": self.first_credit_std,
            "first_reference_fd": self.first_reference_fd,
            "reference": None if self.reward is None else {"oldest": self.reward.reference.oldest},
            "pace": 1.0 if self.control is None else self.control.pace,
            "config": self.config.to_dict(),
            "conditions": self.conditions.identity,
            "extensions": self.extensions,
            "eigensolver": None if self.reward is None or self.reward.trial is None else self.reward.trial.state(),
        }

    def extend(self, earlier: dict[str, Any]) -> None:
        """Record that the run goes on to more steps than the checkpoint's config `earlier`; it is evaluated anew."""
        before, now = earlier.get("steps"), self.config.steps
        if not isinstance(before, int) or before >= now:
            return
        self.extensions.append(
            {
                "step": self.step,
                "from_steps": before,
                "to_steps": now,
                "lr_before": learning_rate(self.config.update, max(self.step - 1, 0), before),
                "lr_after": learning_rate(self.config.update, self.step, now),
                "after": self.evaluations.pop("after", {}),
            }
        )

    def reward_of(self, reference: ReferenceSet, trial: SolverTrial | None = None) -> SwapReward:
        """The reward with its first reference set."""
        assert self.side is not None, "an estimator that has a reward was started with its side"
        return SwapReward(self.config.reward, self.config.seed, self.side, reference, self.conditions, trial, say)

    def load(self, path: Path, values: dict[str, Any], components: Components) -> None:
        """Load the tensors of checkpoint `path` and its plain values, which `read_values` has read."""
        if values.get("conditions", self.conditions.identity) != self.conditions.identity:  # version 0.2.0 has none
            raise ValueError(
                f"checkpoint {path} was made with other classes or prompts; restore them, or choose another --out"
            )
        for name in ("step", "images_generated", "evaluations", "first_credit_std", "first_reference_fd"):
            setattr(self, name, values[name])
        self.extensions = list(values.get("extensions", []))  # checkpoints of version 0.2.0 have none
        self.extend(values["config"])
        kinds = checkpoint.names(path)
        self.learner.expect_optimizer_state(kinds)
        images = {
            name: torch.empty(shape, dtype=dtype)
            for name, (shape, dtype) in kinds.items()
            if name.startswith(("reference.", "control."))
        }
        checkpoint.load_tensors(path, self.learner.tensors() | images)
        if values["reference"] is not None:
            features = images["reference.features"].to(components.device)
            whole = ReferenceSet(features, images["reference.labels"], **values["reference"])
            self.reward = self.reward_of(whole, SolverTrial(values.get("eigensolver")))  # earlier versions have none
        if self.control is not None:
            self.control.pace = values.get("pace", 1.0)
            if "control.rows" in images:
                device = reward_device(self.config.reward, components.device)
                self.control.rows = images["control.rows"].to(device)
                self.control.labels = images["control.labels"]


def start(
    config: Config, components: Components, path: Path | None, values: dict[str, Any] | None, clock: Clock
) -> State:
    """A fresh state, or the one that checkpoint `path` holds."""
    writer = checkpoint.Writer(config.run_folder / "checkpoints", config.run.keep_checkpoints)
    side = None if config.update.estimator == "pretraining" else reward_side_of(config, components)
    policy = load_policy(config, components) if config.update.estimator == "merging" else None
    learner = Learner(components.model, config, policy)
    state = State(config, learner, writer, clock, components.conditions, side)
    if config.update.step_control and side is not None:
        state.control = step_control(config, side)
    if path is not None and values is not None:
        state.load(path, values, components)
    start_of = f"--checkpoint {config.files.checkpoint}" if config.files.checkpoint else config.generator.model
    source = path or start_of or "the embedded model"
    require_finite_start(state.learner.sampler().named_parameters(), str(source))
    guards.require_deterministic(state.learner.sampler(), components.device)
    return state


def step_control(config: Config, side: RewardSide) -> StepControl | None:
    """The control of the learning rate; None, with a note, where two steps cannot be compared."""
    reason = not_comparable(side, config.reward.images_per_step)
    if config.update.estimator == "merging":
        reason = "merging draws other models in every step, so that two steps differ by them"
    if reason is None:
        return StepControl()
    say(f"note: no step control: {reason}")
    return None


def save_snapshots(config: Config, state: State) -> None:
    """Every `ema_snapshot_every` steps, write the power-function averages as safetensors, for sit_rl.ema."""
    if not config.update.ema_snapshot_every or state.step % config.update.ema_snapshot_every:
        return
    folder = config.run_folder / "ema"
    folder.mkdir(exist_ok=True)
    updates = state.learner.updates
    for i, average in enumerate(state.learner.averages):
        if isinstance(average, PowerEMA):
            model = state.learner.averaged(i)
            if is_main():
                path = folder / f"step-{state.step:06d}-power-{average.sigma_rel:g}.safetensors"
                save_weights(model, path, sigma_rel=f"{average.sigma_rel:g}", updates=str(updates))


def exported(state: State) -> GeneratorModel:
    """The averaged weights as a plain model; every rank calls it."""
    return state.learner.averaged()
