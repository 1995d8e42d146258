"""Fine-tune a SiT with distribution-wise rewards.

    torchrun sit_rl/train.py                                  the embedded default, on a CPU, in minutes
    torchrun sit_rl/train.py --estimator rejection --seed 1   any field of the config is a flag; --help lists them
    torchrun sit_rl/train.py --preset sit-xl-imagenet256 --checkpoint … --vae … --real … --heldout …

The same command resumes a run that was stopped.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
import tyro

from sit_rl import checkpoint
from sit_rl.config import PRESETS, Config, check, differences, load_config, resolve
from sit_rl.distributed import barrier, is_main, process_group, world_size
from sit_rl.evaluate import METRICS, evaluate_model, floor
from sit_rl.plan import describe_plan
from sit_rl.report import save_samples, summary_table, write_json, write_report
from sit_rl.runlog import Clock, RunLog, say
from sit_rl.setting import Setting, build_setting
from sit_rl.training_loop import State, start, train

# Images shown in the report: ten of each of ten classes, in columns by class.
GRID = 100


def main(argv: list[str] | None = None) -> None:
    """Parse, run, and turn an expected failure into one sentence and exit code 2."""
    try:
        config = parse(sys.argv[1:] if argv is None else argv)
        with process_group(config.threads) as device:
            run(config, device)
    except (ValueError, FileNotFoundError, ModuleNotFoundError, FloatingPointError, OSError) as error:
        if is_main():
            print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


def parse(argv: list[str]) -> Config:
    """Command line → config: --preset chooses the defaults, every other flag changes one of them."""
    name = "fashion"
    for i, word in enumerate(argv):
        if word.startswith("--preset"):
            name = word.partition("=")[2] or (argv[i + 1] if i + 1 < len(argv) else "")
    if name not in PRESETS:
        known = "; ".join(f"{key}: {text}" for key, (text, _) in PRESETS.items())
        raise ValueError(f"--preset {name!r} does not exist; choose one of {known}")
    config = resolve(tyro.cli(Config, args=argv, default=PRESETS[name][1], description=__doc__))
    check(config)
    return config


def run(config: Config, device: torch.device) -> None:
    """Evaluate, train, evaluate, report."""
    saved = open_run(config)
    clock = Clock(saved and saved["seconds"])
    with clock.phase("setup"):
        setting = build_setting(config, device, progress=is_main())
        state = start(config, setting, saved, clock)
    if state.before is None:
        say(describe_plan(config, setting))
    else:
        say(f"resuming {config.run_folder} at step {state.step} of {config.steps}")
    if state.before is None:
        state.before = evaluate_both(config, setting, state, "before")
        state.save(config)
    log = RunLog(config.run_folder, first_step=state.step)
    train(config, setting, state, log)
    after = evaluate_both(config, setting, state, "after")
    log.close()
    if is_main():
        finish(config, setting, state, after)
    barrier()


def open_run(config: Config) -> dict | None:
    """Make or reopen the run folder; returns the checkpoint to go on from. Errors come before any work."""
    folder = config.run_folder
    saved = checkpoint.load_latest(folder / "checkpoints") if config.resume else None
    if saved is not None:
        changed = differences(load_config(folder / "config.yaml"), config)
        if changed:
            raise ValueError(
                f"{folder} holds a run with another --{changed[0].replace('_', '-')}; choose another --out, "
                "or --no-resume to start it afresh"
            )
    barrier()
    if is_main() and saved is None:
        prepare_folder(config)
    barrier()
    return saved


def prepare_folder(config: Config) -> None:
    """An empty run folder with its config.yaml; OSError naming --out where it cannot be written."""
    folder = config.run_folder
    try:
        for stale in ("checkpoints", "tensorboard", "figures"):
            shutil.rmtree(folder / stale, ignore_errors=True)
        for stale in ("metrics.jsonl", "summary.json", "report.html"):
            (folder / stale).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        config.save(folder / "config.yaml")
    except OSError as error:
        raise OSError(f"--out {folder} cannot be written ({error.strerror}); choose another folder") from None


def evaluate_both(config: Config, setting: Setting, state: State, when: str) -> dict:
    """Full evaluation under both samplers; its first images go to the run folder for the report."""
    out = {}
    with state.clock.phase("evaluate"):
        for name, sampler in (("ode", config.evaluate_ode), ("sde", config.evaluate_sde)):
            done = evaluate_model(
                config, setting, state.ema.module, sampler, config.evaluate_images, GRID, f"evaluate {name} {when}"
            )
            out[name] = done.metrics
            if is_main():
                save_samples(config.run_folder, f"{when}_{name}", done.images)
            say(
                f"{when:6} {sampler!s:30} "
                + "  ".join(f"{k} {v:.4f}" for k, v in done.metrics.items() if v is not None)
            )
    return out


def finish(config: Config, setting: Setting, state: State, after: dict) -> None:
    """summary.json, report.html, and the table on the terminal."""
    folder = config.run_folder
    summary = {
        "config": config.to_dict(),
        "before": state.before,
        "after": after,
        "floor": floor(setting),
        "seconds": {k: round(v, 2) for k, v in state.clock.state_dict().items()},
        "images_generated": state.images_generated,
        "ranks": world_size(),
        "protocol": protocol(config, setting),
    }
    write_json(folder / "summary.json", summary)
    report = write_report(folder)
    print("\n" + summary_table(summary) + f"\n\nreport      {report}\ncheckpoints {folder / 'checkpoints'}", flush=True)


def protocol(config: Config, setting: Setting) -> dict:
    """Everything a reader needs to know what the numbers are."""
    nets = {"fd": setting.reward_net, "fd_b": setting.judge_net}
    return {
        "metrics": list(METRICS),
        "networks": {
            k: {"name": n.name, "preprocessing": n.preprocessing, "weights_sha256": n.weights_sha256}
            for k, n in nets.items()
            if n
        },
        "generated_images": config.evaluate_images,
        "heldout_images": setting.heldout.moments.count,
        "reward_real_images": setting.real.moments.count,
        "samplers": {"ode": str(config.evaluate_ode), "sde": str(config.evaluate_sde)},
        "weights": f"EMA, decay {config.ema} per optimiser step",
    }


if __name__ == "__main__":
    sys.path[0] = str(
        Path(__file__).resolve().parent.parent
    )  # torchrun puts sit_rl/ itself here, whose names are not top-level
    main()
