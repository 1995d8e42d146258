"""The evaluations of a run's phases, and the predicted time of a step against the clock's numbers."""

import pytest

from sit_rl.config import resolve
from sit_rl.presets import PRESETS
from sit_rl.runs.forecast import Forecast, evaluation_cost, evaluations, step_evaluations
from sit_rl.runs.log import Clock


def test_phases_of_the_steps_add_up_to_the_run():
    config = resolve(PRESETS["sit-xl-imagenet256"][1].changed(steps=30, evaluate_every=8))
    total = evaluations(config)
    assert total["refresh"] == 3 * 5000 * 51  # steps 0, 10 and 20; 50 evaluations and the networks
    assert total["evaluate"] == (2 * 50_000 + 3 * 5_000) * evaluation_cost(config)
    assert total["update"] == 30 * 4 * 100 * 3 * 49


def test_a_step_is_predicted_from_measured_parts():
    config = resolve(PRESETS["fashion"][1].changed(evaluate_every=0))
    clock = Clock()
    assert Forecast(config, clock).step(0) is None
    clock.seconds |= {"evaluate": 2 * config.evaluation.images * evaluation_cost(config) * 1e-3}
    ahead = step_evaluations(config, 0)
    assert Forecast(config, clock).step(0) == pytest.approx(1e-3 * sum(ahead.values()))
    # four steps done: each phase at its own speed, reward and save at their mean
    steps = [step_evaluations(config, i) for i in range(4)]
    speeds = {"refresh": 1e-3, "rollout": 2e-3, "update": 3e-3}
    clock.seconds |= {phase: speed * sum(s[phase] for s in steps) for phase, speed in speeds.items()}
    clock.seconds |= {"reward": 8.0, "save": 4.0}
    ahead = step_evaluations(config, 4)
    expected = 2e-3 * ahead["rollout"] + 3e-3 * ahead["update"] + 12.0 / 4
    assert ahead["refresh"] == 0 and Forecast(config, clock).step(4) == pytest.approx(expected)
