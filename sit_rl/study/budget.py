"""Steps that give two configurations the same number of images, or of velocity evaluations.

Images are those of rollouts and reference sets.  Compute is counted in velocity evaluations of rollouts, reference sets
and updates, as `sit_rl.runs.forecast` counts them.  The evaluations before, during and after training belong to the
study and not to the method, so they do not count.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from sit_rl.config import Config
from sit_rl.runs.forecast import step_evaluations

# A row that needs more steps than this for its budget learns almost nothing in each: the study file has a mistake.
MOST_STEPS = 100_000


def images_of_steps(config: Config) -> Iterator[int]:
    """Images that the run has generated after step 1, 2, …"""
    total = 0
    for phases in _phases(config):
        total += config.reward.images_per_step + (config.reward.reference_size if phases.get("refresh") else 0)
        yield total


def compute_of_steps(config: Config) -> Iterator[float]:
    """Velocity evaluations that the run has spent on training after step 1, 2, …"""
    total = 0.0
    for phases in _phases(config):
        total += sum(count for phase, count in phases.items() if phase != "evaluate")
        yield total


COUNTS: dict[str, Callable[[Config], Iterator[float]]] = {"images": images_of_steps, "compute": compute_of_steps}


def spent(config: Config, what: str) -> float:
    """Images or velocity evaluations of the whole training of a config; ValueError for more than MOST_STEPS steps."""
    if config.steps > MOST_STEPS:
        raise ValueError(f"steps is {config.steps:,}; a study's runs have at most {MOST_STEPS:,}")
    return next(itertools.islice(COUNTS[what](config), config.steps - 1, None))


def matched_steps(config: Config, what: str, budget: float) -> int:
    """The number of steps whose images or evaluations are nearest to `budget`; at least 1.

    ValueError if one step costs more than 1.5 times the budget, or the budget is never reached.
    """
    before = 0.0
    for steps, count in enumerate(itertools.islice(COUNTS[what](config), MOST_STEPS), 1):
        if count >= budget:
            if steps == 1 and count > 1.5 * budget:
                raise ValueError(f"its first step takes {count:,.0f} of {budget:,.0f} {_unit(what)}; raise the budget")
            return steps if steps == 1 or count - budget <= budget - before else steps - 1
        before = count
    raise ValueError(f"{MOST_STEPS:,} steps do not spend {budget:,.0f} {_unit(what)}; lower the budget")


def _unit(what: str) -> str:
    return "images" if what == "images" else "velocity evaluations"


def _phases(config: Config) -> Iterator[dict[str, float]]:
    endless = config.changed(steps=MOST_STEPS + 1)  # a rolling reference set is made in step 0 only
    return (step_evaluations(endless, step) for step in itertools.count())
