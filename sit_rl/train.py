"""Fine-tune an image generator with distribution-wise rewards.

    torchrun sit_rl/train.py                                  the embedded default, on a CPU, in minutes
    torchrun sit_rl/train.py --estimator rejection --seed 1   any field of the config is a flag; --help-all lists them
    torchrun sit_rl/train.py --config run.yaml --seed 1       and a field of a file; flags win
    torchrun sit_rl/train.py --checkpoint my-model --images FOLDER     a model of your own images (sit_rl.pretrain base)
    torchrun sit_rl/train.py --preset sit-xl-imagenet256 --checkpoint … --vae … --real … --heldout …
    torchrun sit_rl/train.py --preset dit-xl-imagenet256 --checkpoint DiT-XL-2-256x256.pt …    by DDPM steps
    torchrun sit_rl/train.py --model diffusers:FOLDER --prompts prompts.jsonl --real …    a text-to-image pipeline
    torchrun sit_rl/train.py --model my_model.py:build --real …    a model of your own

The same command resumes a run that was stopped.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from fastfid.cli.command_line import CommandError
from fastfid.runtime.errors import one_line
from sit_rl.command_line import all_of_help, brief_help, help_if_asked, run_command, value_of
from sit_rl.components.build import Components, build_components
from sit_rl.components.checks import check_inputs
from sit_rl.config import Config, parse_config, places, resolve
from sit_rl.config_files import texts_in, with_file
from sit_rl.estimators import build_estimator
from sit_rl.files.atomic import write_json
from sit_rl.files.paths import require_extra
from sit_rl.learner import checkpoint
from sit_rl.learner.guards import out_of_memory
from sit_rl.models.card import is_model_folder, network_name, read_card
from sit_rl.models.generator_model import GeneratorModel
from sit_rl.models.open_model import save_weights
from sit_rl.models.pipeline_families import pipeline_folder
from sit_rl.presets import PRESETS, for_pipeline
from sit_rl.ranks.messages import say
from sit_rl.ranks.preemption import Preempted, watch
from sit_rl.ranks.process_group import LOST_CONTACT, barrier, is_main, process_group
from sit_rl.reward.own_reward import try_rewards
from sit_rl.runs.figure_files import save_samples
from sit_rl.runs.forecast import describe_run
from sit_rl.runs.gpu_plan import dry_run
from sit_rl.runs.html_report import write_run_report
from sit_rl.runs.log import Clock, RunLog, read_metrics, start_wandb
from sit_rl.runs.network_figure import gap_in_words, network_table
from sit_rl.runs.planned_model import planned_family
from sit_rl.runs.results import extension_in_words
from sit_rl.runs.resume import checkpoint_to_resume
from sit_rl.runs.run_folder import locked_folder, prepare_folder
from sit_rl.runs.summary import PROGRESS, SUMMARY, metrics_in_line, summary_table
from sit_rl.training.held_out import METRICS, evaluate_by_each
from sit_rl.training.live import Live
from sit_rl.training.loop import train
from sit_rl.training.state import State, exported, read_values, require_own, start

# Images shown in the report: ten of each of ten classes, in columns by class.
GRID = 100
# Flags of --help; --help-all lists all.
MAIN_FLAGS = (
    "steps", "seed", "out", "resume", "estimator", "reward", "reference", "reference_size", "replace", "candidates",
    "lr", "checkpoint", "images", "model", "vae", "real", "heldout", "reward_features", "judge_features",
    "evaluate_images", "evaluate_every", "precision", "dry_run",
)  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and train.  A preempted run returns; SystemExit as in `sit_rl.command_line`."""

    def work() -> None:
        config = parse(sys.argv[1:] if argv is None else argv)
        if config.run.dry_run:
            say(dry_run(config))
        else:
            run_in_group(config)

    run_command(work, interrupted="interrupted; the same command goes on from the last checkpoint")


def run_in_group(config: Config) -> None:
    """`run` inside a process group.  CommandError where a GPU's memory is full or another rank has died."""
    clock = Clock()
    try:
        with process_group(config.run.threads, config.run.dead_after) as device, watch(config.run.grace):
            run(config, device, clock)
    except torch.OutOfMemoryError as error:
        raise CommandError(out_of_memory(config, clock.running, error)) from None
    except RuntimeError as error:
        if "WORLD_SIZE" not in os.environ or not LOST_CONTACT.search(str(error)):
            raise
        reason = one_line(error)
        raise CommandError(
            f"lost contact with another rank ({reason}): it has died, its own message may say why; run the same "
            "command again, it resumes"
        ) from None


def parse(argv: list[str]) -> Config:
    """Command line → config: --preset chooses the defaults, --config changes some, every other flag changes one.

    A pipeline of --model has the preset `prompts` unless another one is named, and its own samplers.
    """
    file = value_of(argv, "--config")
    path = None if file is None else Path(file)
    in_file = {} if path is None else texts_in(path)
    model = value_of(argv, "--model", "--generator.model") or in_file.get("model")
    checkpoint = value_of(argv, "--checkpoint", "--files.checkpoint") or in_file.get("checkpoint")
    folder = pipeline_folder(model)
    given = value_of(argv, "--preset") or in_file.get("preset")
    name = given or ("prompts" if folder else "fashion")
    if name not in PRESETS:
        known = "; ".join(f"{key}: {text}" for key, (text, _) in PRESETS.items())
        raise ValueError(f"--preset {name!r} does not exist; choose one of {known}")
    default = PRESETS[name][1]
    if folder is not None:
        default = pipeline_defaults(default, folder, value_of(argv, "--image-size", "--generator.image-size"))
    help_if_asked(argv, lambda: _brief_help(default))
    if model is None and checkpoint and is_model_folder(Path(checkpoint)):
        name = given or "own"
        default = own_defaults(Path(checkpoint), name)
    base = default if path is None else with_file(default, path).changed(preset=name)
    config = resolve(only_network(parse_config(all_of_help(argv), base, __doc__), default))
    config.check()
    return config


def own_defaults(model: Path, preset: str) -> Config:
    """The defaults for a model of a user's images: its networks and its autoencoder; errors as in `read_card`."""
    card = read_card(model)
    reward, judge = (network_name(model, card, role) for role in ("reward", "judge"))
    vae = None if card.vae is None else Path(card.vae)
    return PRESETS[preset][1].changed(vae=vae, reward_features=reward, judge_features=(judge,))


def pipeline_defaults(default: Config, folder: Path, image_size: str | None) -> Config:
    """The defaults of a preset with the samplers of the pipeline in `folder`, and the preset's name."""
    require_extra("--model diffusers")
    family = planned_family(folder)
    size = int(image_size) if image_size is not None and image_size.isdigit() else None
    return for_pipeline(default, family.sampling(family.latent_shape(size)))


def only_network(config: Config, preset: Config) -> Config:
    """The config without the preset's reward if --reward-features names another network, which is then the only one."""
    other = config.files.reward_features != preset.files.reward_features
    return config.changed(reward=()) if other and config.reward.components == preset.reward.components else config


def _brief_help(default: Config) -> str:
    """The text of --help: the presets, and the flags that matter."""
    rows = [(name, "" if default[name] is None else default[name], _meaning(name)) for name in MAIN_FLAGS]
    width = max(map(len, PRESETS))
    presets = "\n".join(f"  {name:<{width}}  {text}" for name, (text, _) in PRESETS.items())
    return brief_help(
        "sit-rl train", __doc__ or "", rows, len(places()), f"--preset NAME sets the defaults:\n{presets}"
    )


def _meaning(name: str) -> str:
    """The help text of a flag, or its choices where it has none."""
    place = places()[name]
    return place.field.metadata["meaning"] or ", ".join(map(str, get_args(place.hint)))


def run(config: Config, device: torch.device, clock: Clock) -> None:
    """Evaluate, train, evaluate, report, as the only run in the run folder."""
    check_inputs(config)
    with suppress(Preempted), locked_folder(config.run_folder):
        run_alone(config, device, clock)


def run_alone(config: Config, device: torch.device, clock: Clock) -> None:
    """`run` inside its locked folder; Preempted, after a message, where it was told to stop."""
    path = checkpoint_to_resume(config)
    values = None if path is None else read_values(path)
    if path is not None and values is not None:
        require_own(path, values, config)
    clock.continue_from(values and values["seconds"])
    try:
        with clock.phase("setup"):
            remote = start_wandb(config) if config.run.wandb and is_main() else None
            components = build_components(config, device, is_main(), partial(try_rewards, config))
            estimator, state = build_estimator(config, components), start(config, components, path, values, clock)
            if path is None:  # room for one checkpoint more, which is being written; replaced ones free theirs
                replaced = checkpoint.bytes_of(config.run_folder / "checkpoints")
                checkpoint.require_space(config.run_folder, (config.run.keep_checkpoints + 1) * state.size() - replaced)
            prepare_folder(config, fresh=path is None)
            log = RunLog(config.run_folder, first_step=values["step"] if values else 0, remote=remote)
    except Preempted:
        say(f"stopped on request before the first step; {config.run_folder} is unchanged")
        raise
    if path is None:
        say(describe_run(config, components))
    else:
        say(f"resuming {config.run_folder} at step {state.step} of {config.steps}")
        announce_extension(config, state, values)
    live = Live(config, components, state)
    try:
        evaluate_both(config, components, state, "before", live)
        train(config, components, state, estimator, log, live)
        evaluate_both(config, components, state, "after", live)
        log.close()
    except Preempted:
        state.writer.wait()
        live.write("stopped on request; the same command resumes it")
        say(f"stopped on request; {config.run_folder} is saved, the same command resumes")
        raise
    except (Exception, KeyboardInterrupt) as error:
        live.write(f"{one_line(error) or 'interrupted'}; the same command resumes it")
        raise
    finally:
        state.writer.wait()
    model = exported(state)
    if is_main():
        finish(config, state, model, live)
    barrier()


def announce_extension(config: Config, state: State, values: dict[str, Any] | None) -> None:
    """Say that a resumed run goes on to more steps, and take away the results of the fewer steps."""
    if values is not None and len(state.extensions) > len(values.get("extensions", [])):
        say(extension_in_words(state.extensions[-1], config.update.lr_schedule))
        if is_main():
            (config.run_folder / SUMMARY).unlink(missing_ok=True)
            for stale in (config.run_folder / "figures").glob("after_*.npy"):
                stale.unlink()


def evaluate_both(config: Config, components: Components, state: State, when: str, live: Live) -> None:
    """Evaluate under each sampler that has no result yet; save the result, and the first images in the run folder."""
    done = state.evaluations.setdefault(when, {})
    samplers = {"ode": config.evaluation.ode, "sde": config.evaluation.sde}
    missing = {name: sampler for name, sampler in samplers.items() if name not in done}
    results = evaluate_by_each(
        components, state.learner.averaged(), missing, config.evaluation.images,
        seed=config.seed, batch=config.rollout.batch, grid=GRID, first=config.evaluation.every_images,
        label=f"evaluate {{}} {when}", detailed=True,
    )  # fmt: skip
    for name, sampler in missing.items():
        with state.clock.phase("evaluate"):
            _, result = next(results)
            done[name] = result.metrics | result.details
            if is_main():
                save_samples(config.run_folder, f"{when}_{name}", result.images)
        say(f"{when:6} {sampler!s:30} {metrics_in_line(result.metrics, METRICS)}")
        with state.clock.phase("save"):
            state.save()
            live.write()


def finish(config: Config, state: State, model: GeneratorModel, live: Live) -> None:
    """ema.safetensors, summary.json, report.html, and the table on the terminal."""
    folder = config.run_folder
    save_weights(model, folder / "ema.safetensors", step=str(state.step), ema=f"{config.update.ema:g}")
    summary = live.summary("finished")
    write_json(folder / SUMMARY, summary)
    (folder / PROGRESS).unlink(missing_ok=True)
    for outdated in (folder / "figures").glob("now_*.npy"):
        outdated.unlink()
    report, records = write_run_report(folder), read_metrics(folder)
    parts = [summary_table(summary), network_table(summary), gap_in_words(summary, records)]
    say("\n" + "\n\n".join(part for part in parts if part))
    say(
        f"\nreport      {report}\ncheckpoints {folder / 'checkpoints'}\n"
        f"weights     {folder / 'ema.safetensors'} (averaged)"
    )


if __name__ == "__main__":
    # torchrun sit_rl/train.py puts sit_rl/ here, whose modules are imported as sit_rl.…
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    main()
