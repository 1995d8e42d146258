"""The summary of a run that never was, small and with everything."""

import json
import math

METRICS = dict(fd=2.0, kid=0.1, mmd=0.01, fd_b=3.0, precision=0.8, recall=0.4, density=0.7, coverage=0.6)
SECONDS = dict(rollout=5.0, reward=1.0, update=3.0, refresh=1.0, evaluate=4.0, save=0.1, total=15.0)


def summary():
    """A summary as version 0.2.0 wrote it."""
    return {
        "config": {
            "steps": 10,
            "evaluate_images": 500,
            "evaluate_every_images": 100,
            "note": "<script>alert(1)</script>",
        },
        "before": {"ode": METRICS, "sde": METRICS},
        "after": {"ode": {k: v / 2 for k, v in METRICS.items()}, "sde": METRICS | {"fd_b": None}},
        "floor": {"fd": 0.03, "fd_b": None},
        "seconds": SECONDS,
        "images_generated": 1000,
        "protocol": {
            "networks": {"fd": {"name": "net <a>"}},
            "generated_images": 500,
            "heldout_images": 600,
            "samplers": {"ode": "ODE heun, 8 steps", "sde": "SDE heun, 16 steps"},
        },
    }


def networks(factor, rewarded="net-a"):
    """Results of three networks, of which one was rewarded; FD and sliced W₂ are multiplied by the factor."""
    measured = dict(fd=2.0 * factor, fdr=0.5 * factor, precision=0.8, recall=0.4, density=0.7, coverage=0.6)
    return {
        name: {"rewarded": name == rewarded, **measured, "sliced_w2": 0.1 * factor}
        for name in ("net-a", "net-b", "net-<c>")
    }


def details(factor):
    """What lies behind the numbers of one evaluation."""
    classes = [
        {
            "class": i,
            "images": 50,
            "real": 60,
            "precision": 0.9,
            "recall": 0.5 + 0.04 * i,
            "density": 1.0,
            "coverage": 0.8,
        }
        for i in range(10)
    ]
    curve = [[n, factor * (1.8 + 100 / n)] for n in (62, 125, 250)]
    return {
        "fd_interval": [1.9 * factor, 2.1 * factor],
        "fd_by_images": curve,
        "classes": classes,
        "networks": networks(factor),
    }


def summary_with_everything():
    """A summary of this version with all that a report can show."""
    found = summary()
    for when, factor in (("before", 1.0), ("after", 0.5)):
        found[when] = {sampler: found[when][sampler] | details(factor) for sampler in ("ode", "sde")}
    found["config"] |= {
        "preset": "fashion",
        "estimator": "advantage_matching",
        "lr": 0.1,
        "steps": 40,
        "lr_schedule": "cosine",
    }
    found["extensions"] = [
        {"step": 20, "from_steps": 20, "to_steps": 40, "lr_before": 1e-7, "lr_after": 5e-5, "after": {"ode": METRICS}}
    ]
    origin = dict(version="fastfid 0", commit="abc", command="torchrun sit_rl/train.py --note '<b>'", device="cpu")
    return found | {"schema": "sit_rl.summary/1", "status": "finished", "step": 40, **origin}


def metrics_lines(steps):
    """metrics.jsonl of as many steps, with an evaluation at every eighth."""
    lines = []
    for step in range(steps):
        fall = math.exp(-step / 10)
        line = {"step": step, "reference_fd": 0.5 + 1.5 * fall, "loss": fall, "drift": 0.01 * step, "kl": 0.1,
                "gradient_norm": 1 + fall, "lr": 1e-4 * fall, "image_reward_std": 1e-3 * fall,
                "subset_rewards": [-0.5 - 1.5 * fall + 0.001 * i for i in range(-5, 6)]}  # fmt: skip
        if step % 8 == 7:
            line["evaluation"] = {
                name: METRICS | {"fd": 1 + fall, "recall": 0.5 - 0.1 * fall} for name in ("ode", "sde")
            }
        lines.append(json.dumps(line) + "\n")
    return "".join(lines)
