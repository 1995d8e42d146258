"""The whole method on one screen: renew the reference set → roll out → score → select → update → log → save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from tqdm import tqdm

from sit_rl.components.build import Components
from sit_rl.config import Config
from sit_rl.estimators.base import Estimator, update
from sit_rl.learner import guards
from sit_rl.options.reward import RewardOptions
from sit_rl.ranks.collectives import broadcast_from_main, gather_owned
from sit_rl.ranks.messages import say
from sit_rl.ranks.preemption import Preempted, told_to_stop
from sit_rl.ranks.process_group import is_main
from sit_rl.reward.advantages import select
from sit_rl.reward.components import RewardSide
from sit_rl.reward.fresh_reward import FreshReward
from sit_rl.reward.mix import Mix, Part, mix
from sit_rl.reward.rolling_reference import ReferenceSet
from sit_rl.reward.slopes import advantage_slopes
from sit_rl.reward.swap_reward import Credits, Scores, SwapReward, reward_device
from sit_rl.rollout import Rollout, generate
from sit_rl.runs.figure_files import save_samples
from sit_rl.runs.forecast import Forecast
from sit_rl.runs.log import GRID_COLUMNS, RunLog
from sit_rl.runs.summary import kind_of, metrics_in_line
from sit_rl.sampling.random_streams import Stream
from sit_rl.training.held_out import evaluate_by_each
from sit_rl.training.learning_rate import set_learning_rate
from sit_rl.training.live import Live
from sit_rl.training.state import State, save_snapshots


def train(
    config: Config,
    components: Components,
    state: State,
    estimator: Estimator,
    log: RunLog,
    live: Live | None = None,
) -> None:
    """Run the remaining steps of `state`, in place; Preempted after a save where the run was told to stop.

    live  writes the report of the run under way; None for no report
    """
    forecast = Forecast(config, state.clock)
    with tqdm(total=config.steps, initial=state.step, desc="train", unit="step", disable=not is_main()) as bar:
        while state.step < config.steps:
            predicted = forecast.step(state.step)
            if predicted is not None:
                bar.set_description(f"train (this step: {predicted:.1f} s predicted)")
            record = train_step(config, components, state, estimator)
            if config.evaluation.every and state.step % config.evaluation.every == 0 and state.step < config.steps:
                with state.clock.phase("evaluate"):
                    record["evaluation"] = quick_evaluation(config, components, state, log)
            log.step(record | timing(state.clock.lap(), predicted))
            guards.require_sane(config.run, config.update.lr, record, state.first_reference_fd)
            stop = told_to_stop()
            with state.clock.phase("save"):
                if stop or state.step % config.run.save_every == 0 or state.step == config.steps:
                    state.save()
                save_snapshots(config, state)
                if live is not None:
                    live.step(evaluated="evaluation" in record)
            if stop:
                raise Preempted
            bar.update()
            bar.set_postfix({k: f"{record[k]:.3f}" for k in ("reference_fd", "loss") if record.get(k) is not None})


def train_step(config: Config, components: Components, state: State, estimator: Estimator) -> dict[str, Any]:
    """One step of the method; returns its line of metrics.jsonl."""
    step, clock = state.step, state.clock
    record: dict[str, Any] = {"step": step}
    rollout, advantage, kept = None, torch.ones(0), torch.arange(0)
    if estimator.rolls_out:
        with clock.phase("refresh"):
            reward = refreshed(config, components, state, estimator)
        removed = reward.propose(step)
        labels = reward.labels_of(removed, step)
        with clock.phase("rollout"):
            (rollout,) = generate(
                components, state.learner.sampler(), labels, [estimator.sampler(step)],
                seed=config.seed, step=step, batch=config.rollout.batch,
                keep_path=estimator.keeps_path, label="roll out",
                pieces=estimator.pieces(state.learner, step),
            )  # fmt: skip
            state.images_generated += len(labels)
        with clock.phase("reward"):
            features = gathered_rows(config, reward.side, rollout, len(labels))
            guards.require_finite("samples", rollout.samples, step)
            guards.require_finite("features", features, step)
            features = features.view(*removed.shape, -1)
            scores = reward.score(removed, features)
            parts = faded(config.reward, state, scores)
            mixed = mix(
                parts, components.conditions.groups[labels], config.reward.normalise, config.reward.advantage_clip
            )
            advantage = broadcast_from_main(mixed.advantage)
            kept = select(advantage, config.reward.kept_fraction)
            advantage = estimator.credit(state.learner, advantage, broadcast_from_main(scores.subset), step)
        state.first_reference_fd = state.first_reference_fd or reward.reference_fd
        record |= describe(reward.reference_fd, scores, advantage, kept)
        if len(parts) > 1 or reward.reference_fd is None:
            record |= describe_mix(scores, parts, mixed)
        if isinstance(reward, SwapReward) and config.reward.reference == "rolling":
            with clock.phase("reward"):
                reward.roll(removed, features, labels)
        if estimator.follows_gradient:
            with clock.phase("reward"):
                slopes = own_slopes(
                    config.reward, reward, parts, removed, components.conditions.groups[labels], rollout,
                    features.shape[-1],
                )  # fmt: skip
            with clock.phase("update"):
                record |= estimator.prepare(rollout, reward.side, slopes)
        record |= controlled(config, state, parts, features.flatten(0, 1), labels)
    pace = 1.0 if state.control is None else state.control.pace
    set_learning_rate(config.update, state.learner.optimizer, step, config.steps, pace)
    with clock.phase("update"):
        record |= update(estimator, state.learner, rollout, advantage, kept, step)
        record |= estimator.report(state.learner)
    state.step += 1
    rate = state.learner.optimizer.param_groups[0]["lr"]
    return record | {"lr": rate, "images_generated": state.images_generated}


def refreshed(config: Config, components: Components, state: State, estimator: Estimator) -> SwapReward | FreshReward:
    """The reward with a reference set that is recent enough: the same, or one that the current model generates now.

    Ranks share the work. The sampler is that of the rollouts. With --reference fresh there is none to generate.
    """
    assert state.side is not None, "only an estimator that rolls out has a reward"
    if config.reward.reference == "fresh":
        return FreshReward(config.reward, config.seed, state.side, state.step, components.conditions)
    due = config.reward.reference == "refresh" and state.step % config.reward.refresh_every == 0
    if state.reward is not None and not due:
        return state.reward
    labels = components.conditions.balanced(config.reward.reference_size)
    (made,) = generate(
        components, state.learner.sampler(), labels, [estimator.sampler(state.step)],
        seed=config.seed, step=state.step, batch=config.rollout.batch,
        initial=Stream.REFERENCE, noisy=Stream.REFERENCE_SDE, label="reference set",
    )  # fmt: skip
    guards.require_finite("reference samples", made.samples, state.step)
    features = gathered_rows(config, state.side, made, config.reward.reference_size)
    guards.require_finite("reference features", features, state.step)
    state.images_generated += config.reward.reference_size
    reference = ReferenceSet(features, labels)
    if state.reward is None:
        state.reward = state.reward_of(reference)
    else:
        state.reward.renew(reference)
    return state.reward


def gathered_rows(config: Config, side: RewardSide, made: Rollout, count: int) -> torch.Tensor:
    """What the reward reads of all ranks' images, float32 [count, d], on every rank."""
    rows = side.rows(made.features, made.images, made.labels.cpu(), config.rollout.batch)
    return gather_owned(rows, count, config.rollout.batch)


def own_slopes(
    options: RewardOptions,
    reward: SwapReward | FreshReward,
    parts: Sequence[Part],
    rows: torch.Tensor,
    labels: torch.Tensor,
    rollout: Rollout,
    width: int,
) -> torch.Tensor:
    """∂A/∂row float32 [n, width] of this rank's images, which are `rows` [B, m] of the reward's present set."""
    slopes = advantage_slopes(
        reward.side.components, reward.prepared, parts, rows.flatten(), labels, options.normalise, width
    )
    mine = slice(rollout.indices.start, rollout.indices.stop)
    return broadcast_from_main(slopes.to(rollout.samples.device))[mine]


def controlled(
    config: Config, state: State, parts: Sequence[Part], rows: torch.Tensor, labels: torch.Tensor
) -> dict[str, Any]:
    """Set the pace from the effect of the last step; returns its part of the record. Says so where the pace falls.

    rows  float32 [n, d] of the step's images, labels int64 [n]
    """
    control, side = state.control, state.side
    if control is None or side is None:
        return {}
    before = control.pace
    with state.clock.phase("reward"):
        rows = rows.to(reward_device(config.reward, rows.device))
        agreement = control.after_step(side, parts, rows, labels)
        control.pace = float(broadcast_from_main(torch.tensor(control.pace, dtype=torch.float64, device=rows.device)))
    if agreement is None:
        return {}
    if control.pace < before:
        say(
            f"step {state.step - 1} changed {side.components[0].name} of its images by {agreement.change:+.4g} where "
            f"{agreement.promised:+.4g} was predicted: the learning rate is now {control.pace:g} of the schedule's"
        )
    return {"step_control": {"pace": control.pace, **asdict(agreement)}}


def faded(options: RewardOptions, state: State, scores: Scores) -> list[Part]:
    """Each component's part of the mix, with its own fade."""
    return [
        Part(each.component.name, each.image, each.component.weight, fade(options, state, each), each.rounding)
        for each in scores.credits
    ]


def fade(options: RewardOptions, state: State, credits: Credits) -> float:
    """Factor of a component's advantages: the spread of this step's credits relative to the first step's, at most 1.

    Rewards differ less as the distribution approaches the real one: at FD 0 no image could improve it. Advantages that
    are standardised step by step hide this, and push with the same force beyond the optimum.
    """
    spread = float(credits.image.std())
    first = state.first_credit_std.setdefault(credits.component.name, spread)
    return min(1.0, spread / first) if options.fade and first else 1.0


def describe(reference_fd: float | None, scores: Scores, advantage: torch.Tensor, kept: torch.Tensor) -> dict[str, Any]:
    """The reward's part of a step's record: values of the first component, and the advantages of the mix."""
    change = -scores.subset - scores.credits[0].distance
    return {
        "reference_fd": reference_fd,
        "subset_reward_mean": float(scores.subset.mean()),
        "subset_reward_std": float(scores.subset.std()) if len(scores.subset) > 1 else None,
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


def describe_mix(scores: Scores, parts: Sequence[Part], mixed: Mix) -> dict[str, Any]:
    """Distance, spread and share of each component of a mix, and the correlations between components."""
    of_component = {
        part.name: {
            "distance": each.distance,
            "credit_mean": float(part.credit.mean()),
            "credit_std": float(part.credit.std()),
            "weight": part.weight,
            "fade": part.fade,
            "share": mixed.shares[part.name],
        }
        for each, part in zip(scores.credits, parts, strict=True)
    }
    return {"components": of_component, "correlations": mixed.correlations}


def timing(seconds: dict[str, float], predicted: float | None) -> dict[str, Any]:
    """The clock's part of a step's record: seconds of each phase, their shares, and what had been predicted."""
    total = seconds["total"]
    share = {phase: round(s / total, 4) for phase, s in seconds.items() if phase != "total" and s}
    return {"seconds": seconds, "share": share, "predicted_seconds": predicted}


def quick_evaluation(
    config: Config, components: Components, state: State, log: RunLog
) -> dict[str, dict[str, float | None]]:
    """Both samplers on fewer images, for the curve; distances of few images are too large, at all points alike."""
    samplers, out, told = {"ode": config.evaluation.ode, "sde": config.evaluation.sde}, {}, []
    for name, done in evaluate_by_each(
        components, state.learner.averaged(), samplers, config.evaluation.every_images,
        seed=config.seed, batch=config.rollout.batch, grid=GRID_COLUMNS**2, label="evaluate {}",
    ):  # fmt: skip
        log.images(f"samples/{name}", done.images, state.step)
        if is_main():
            save_samples(config.run_folder, f"now_{name}", done.images)
        out[name] = done.metrics
        told.append(f"{kind_of(samplers[name])} {metrics_in_line(done.metrics, ('fd', 'fd_b', 'recall'))}")
    say(f"step {state.step} of {config.steps}, {config.evaluation.every_images} images: {'; '.join(told)}")
    return out
