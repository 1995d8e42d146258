"""Ways to update the generator with scored samples: one file for each subclass of `Estimator`."""

from __future__ import annotations

from sit_rl.components.build import Components
from sit_rl.config import Config
from sit_rl.estimators.adjoint_matching import AdjointMatching
from sit_rl.estimators.advantage_matching import AdvantageMatching
from sit_rl.estimators.base import Estimator
from sit_rl.estimators.merging import Merging
from sit_rl.estimators.pretraining import Pretraining
from sit_rl.estimators.rejection import Rejection
from sit_rl.estimators.sde_policy_gradient import SDEPolicyGradient

ESTIMATORS: dict[str, type[Estimator]] = {
    "advantage_matching": AdvantageMatching,
    "sde_policy_gradient": SDEPolicyGradient,
    "rejection": Rejection,
    "pretraining": Pretraining,
    "adjoint_matching": AdjointMatching,
    "merging": Merging,
}


def build_estimator(config: Config, components: Components) -> Estimator:
    """The estimator that `config.update.estimator` names."""
    return ESTIMATORS[config.update.estimator](config, components)
