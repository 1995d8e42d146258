"""The whole method on one screen: roll out → score → select → update → log → save, with a reference kept fresh."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from tqdm import tqdm

from sit_rl import checkpoint
from sit_rl.advantage import advantages, select
from sit_rl.config import Config
from sit_rl.distributed import barrier, gather_owned, is_main
from sit_rl.ema import EMA
from sit_rl.estimators import build_estimator
from sit_rl.estimators.base import Estimator, update
from sit_rl.evaluate import evaluate_model
from sit_rl.models.sit import SiT
from sit_rl.noise import Stream, balanced_labels
from sit_rl.pretrain import warmup_cosine
from sit_rl.reward import ReferenceSet, Scores, SwapReward
from sit_rl.rollout import generate
from sit_rl.runlog import Clock, RunLog
from sit_rl.setting import Setting


@dataclass
class State:
    """All that changes during a run; saved whole, so that a resumed run goes on bit for bit.

    Random draws are addressed by (seed, step, sample) and need no saving.
    """

    step: int
    model: SiT
    ema: EMA
    optimizer: torch.optim.Optimizer
    reward: SwapReward | None
    images_generated: int
    clock: Clock
    before: dict | None = None  # step-0 evaluation, once made
    first_reward_std: float | None = None  # of the first step's images

    def save(self, config: Config) -> None:
        """Write a checkpoint (main rank)."""
        if is_main():
            checkpoint.save(config.run_folder / "checkpoints", self.step, self.to_dict(), config.keep_checkpoints)
        barrier()

    def to_dict(self) -> dict:
        """Tensors and plain values."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "reference": None if self.reward is None else self.reward.reference.state_dict(),
            "images_generated": self.images_generated,
            "seconds": self.clock.state_dict(),
            "before": self.before,
            "first_reward_std": self.first_reward_std,
        }


def start(config: Config, setting: Setting, saved: dict | None, clock: Clock) -> State:
    """A fresh state, or the one a checkpoint holds."""
    model = copy.deepcopy(setting.model).requires_grad_(True)
    model.pos_embed.requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0, fused=True)
    state = State(0, model, EMA(model, config.ema), optimizer, None, 0, clock)
    if saved is not None:
        model.load_state_dict(saved["model"])
        state.ema.module.load_state_dict(saved["ema"])
        optimizer.load_state_dict(saved["optimizer"])
        for name in ("step", "images_generated", "before", "first_reward_std"):
            setattr(state, name, saved[name])
        if saved["reference"] is not None:
            state.reward = SwapReward(config, setting.real.moments, ReferenceSet(**saved["reference"]))
    return state


def train(config: Config, setting: Setting, state: State, log: RunLog) -> None:
    """Run the remaining steps of `state`, in place."""
    estimator = build_estimator(config, setting)
    with tqdm(total=config.steps, initial=state.step, desc="train", unit="step", disable=not is_main()) as bar:
        while state.step < config.steps:
            record = train_step(config, setting, state, estimator)
            if config.evaluate_every and state.step % config.evaluate_every == 0 and state.step < config.steps:
                with state.clock.phase("evaluate"):
                    record["evaluation"] = quick_evaluation(config, setting, state.ema.module)
            log.step(record | {"seconds": state.clock.lap()})
            with state.clock.phase("save"):
                state.save(config)
            bar.update()
            bar.set_postfix({k: f"{record[k]:.3f}" for k in ("reference_fd", "loss") if record.get(k) is not None})


def train_step(config: Config, setting: Setting, state: State, estimator: Estimator) -> dict:
    """One step of the method; returns its line of metrics.jsonl."""
    step, clock, record = state.step, state.clock, {"step": state.step}
    set_learning_rate(config, state)
    rollout, advantage, kept = None, torch.ones(0), torch.arange(0)
    if estimator.rolls_out:
        with clock.phase("refresh"):
            if state.reward is None or (config.reference == "refresh" and step % config.refresh_every == 0):
                refresh(config, setting, state, estimator)
        removed = state.reward.propose(step)
        labels = state.reward.reference.labels[removed.flatten()]
        with clock.phase("rollout"):
            rollout = generate(
                setting, state.model, labels, estimator.sampler,
                seed=config.seed, step=step, batch=config.rollout_batch,
                keep_path=estimator.keeps_path, label="roll out",
            )  # fmt: skip
            state.images_generated += len(labels)
        with clock.phase("reward"):
            features = gather_owned(rollout.features, len(labels), config.rollout_batch)
            require_finite(features, step)
            features = features.view(*removed.shape, -1)
            scores = state.reward.score(removed, features)
            advantage = advantages(scores.image, labels, config.normalise, config.advantage_clip)
            advantage = advantage * fade(config, state, float(scores.image.std()))
            kept = select(advantage, config.kept_fraction)
        record |= describe(state.reward.distance, scores, advantage, kept)
    with clock.phase("update"):
        record |= update(estimator, state.model, state.optimizer, state.ema, rollout, advantage, kept, step)
    if estimator.rolls_out and config.reference == "rolling":
        with clock.phase("reward"):
            state.reward.roll(removed, features)
    state.step += 1
    return record | {"lr": state.optimizer.param_groups[0]["lr"], "images_generated": state.images_generated}


def refresh(config: Config, setting: Setting, state: State, estimator: Estimator) -> None:
    """Regenerate the whole reference set with the current model and the rollouts' own sampler."""
    labels = balanced_labels(config.reference_size, setting.num_classes)
    made = generate(
        setting, state.model, labels, estimator.sampler, seed=config.seed, step=state.step, batch=config.rollout_batch,
        initial=Stream.REFERENCE, noisy=Stream.REFERENCE_SDE, label="reference set",
    )  # fmt: skip
    features = gather_owned(made.features, config.reference_size, config.rollout_batch)
    state.images_generated += config.reference_size
    state.reward = SwapReward(config, setting.real.moments, ReferenceSet(features, labels))


def set_learning_rate(config: Config, state: State) -> None:
    """Linear warm-up over `warmup` steps, then constant, or half a cosine down to zero at the end."""
    if config.lr_schedule == "cosine":
        factor = warmup_cosine((state.step + 1) / (config.steps + 1), config.warmup / config.steps)
    else:
        factor = min(1.0, (state.step + 1) / max(1, config.warmup))
    for group in state.optimizer.param_groups:
        group["lr"] = config.lr * factor


def fade(config: Config, state: State, reward_std: float) -> float:
    """Factor of the advantages: the spread of this step's rewards relative to the first step's, at most 1.

    Rewards differ less as the distribution is met: at FD 0 no image could improve it. Standardising every step on its
    own hides that and pushes with the same force across the optimum, which the reference shows some steps late.
    """
    state.first_reward_std = state.first_reward_std or reward_std
    return min(1.0, reward_std / state.first_reward_std) if config.fade else 1.0


def describe(reference_fd: float, scores: Scores, advantage: torch.Tensor, kept: torch.Tensor) -> dict:
    """The reward's part of a step's record."""
    change = -scores.subset - reference_fd
    return {
        "reference_fd": reference_fd,
        "subset_reward_mean": float(scores.subset.mean()),
        "subset_reward_std": float(scores.subset.std()),
        "subset_change_best": float(change.min()),
        "subset_change_mean": float(change.mean()),
        "image_reward_mean": float(scores.image.mean()),
        "image_reward_std": float(scores.image.std()),
        "subset_rewards": [round(v, 6) for v in scores.subset.tolist()],
        "advantage_max": float(advantage.max()),
        "advantage_min": float(advantage.min()),
        "kept_fraction": len(kept) / len(advantage),
        "kept_advantage_mean": float(advantage[kept].mean()),
    }


def quick_evaluation(config: Config, setting: Setting, model: SiT) -> dict:
    """Both samplers on fewer images, for the curve; distances of few images are biased upwards, all points alike."""
    samplers = {"ode": config.evaluate_ode, "sde": config.evaluate_sde}
    return {
        name: evaluate_model(
            config, setting, model, sampler, config.evaluate_every_images, label=f"evaluate {name}"
        ).metrics
        for name, sampler in samplers.items()
    }


def require_finite(features: torch.Tensor, step: int) -> None:
    """Stop before the reward if the generator has produced something that has no features."""
    bad = (~torch.isfinite(features)).any(dim=1)
    if bad.any():
        first = int(torch.nonzero(bad)[0])
        raise FloatingPointError(
            f"{int(bad.sum())} of {len(features)} images of step {step} have NaN or infinite features, "
            f"the first is image {first}: "
            "the generator has diverged; lower --lr and resume from an earlier checkpoint"
        )
