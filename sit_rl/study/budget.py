"""Steps that give two configurations the same number of images, or of velocity evaluations.

Images are those of rollouts and reference sets.  Compute is counted in velocity evaluations of rollouts, reference sets
and updates, as `sit_rl.runs.forecast` counts them.  The evaluations before, during and after training belong to the
study and not to the method, so they do not count.
"""

from __future__ import annotations

from bisect import bisect_left

from sit_rl.config import Config
from sit_rl.runs.forecast import step_evaluations

# A row that needs more steps than this for its budget learns almost nothing in each: the study file has a mistake.
MOST_STEPS = 100_000
COUNTS = ("images", "compute")  # what two rows can have the same of: see the module


def spent(config: Config, what: str) -> float:
    """Images or velocity evaluations of the whole training of a config; ValueError for more than MOST_STEPS steps."""
    if config.steps > MOST_STEPS:
        raise ValueError(f"steps is {config.steps:,}; a study's runs have at most {MOST_STEPS:,}")
    return _Costs(config, what).of(config.steps)


def matched_steps(config: Config, what: str, budget: float) -> int:
    """The number of steps whose images or evaluations are nearest to `budget`; at least 1.

    ValueError if one step costs more than 1.5 times the budget, or the budget is never reached.
    """
    costs = _Costs(config, what)
    steps = 1 + bisect_left(range(1, MOST_STEPS + 1), budget, key=costs.of)
    if steps > MOST_STEPS:
        raise ValueError(f"{MOST_STEPS:,} steps do not spend {budget:,.0f} {_unit(what)}; lower the budget")
    count = costs.of(steps)
    if steps == 1 and count > 1.5 * budget:
        raise ValueError(f"its first step takes {count:,.0f} of {budget:,.0f} {_unit(what)}; raise the budget")
    return steps if steps == 1 or count - budget <= budget - costs.of(steps - 1) else steps - 1


class _Costs:
    """What training has cost after any number of steps: the same for each, and more where the set is generated anew."""

    def __init__(self, config: Config, what: str):
        phases = step_evaluations(config.changed(steps=MOST_STEPS + 1), 0)
        self.reward, renewal = config.reward, phases.get("refresh", 0.0)
        if what == "images":
            self.step: float = self.reward.images_per_step
            self.renewal: float = self.reward.reference_size if renewal else 0
        else:
            self.step = sum(count for phase, count in phases.items() if phase not in ("evaluate", "refresh"))
            self.renewal = renewal

    def of(self, steps: int) -> float:
        """Images or velocity evaluations of the first `steps` ≥ 1 steps."""
        refreshing = self.reward.reference == "refresh"
        renewals = -(-steps // self.reward.refresh_every) if refreshing else 1  # rolling: in the first step only
        return steps * self.step + renewals * self.renewal


def _unit(what: str) -> str:
    return "images" if what == "images" else "velocity evaluations"
