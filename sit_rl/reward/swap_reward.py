"""The subset-replace reward.

A reference set of N generated images represents the generator. Replace m of them by new images of the same classes:
the distance of the changed set measures what the new images do to the distribution (arXiv 2607.02291, eq. 4, with the
Fréchet distance). The set rewards of fastfid compute it exactly, for all subsets at once, and for every single image.

Signs: a `change` below 0 is an improvement; a reward is minus a distance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch

from fastfid import FrechetReward, PreparedSet, swap_credit
from fastfid.rewards.frechet import FrechetSet
from sit_rl.components.build import Components
from sit_rl.config import Config
from sit_rl.models.conditions import Conditions
from sit_rl.options.reward import RewardOptions
from sit_rl.ranks.background import BackgroundWorker
from sit_rl.reward.components import Component, RewardSide, reward_side
from sit_rl.reward.rolling_reference import ReferenceSet
from sit_rl.reward.solver_trial import SolverTrial
from sit_rl.sampling.random_streams import Stream, generator


@dataclass
class Credits:
    """The credits of one component, float64 [B·m], from which its advantages are made; higher is better.

    rounding  how far the credits of equal images may differ
    """

    component: Component
    distance: float
    image: torch.Tensor
    rounding: float = 0.0


@dataclass
class Scores:
    """Rewards of a step's candidates, float64.

    subset   [B], minus the first component's distance of the reference set after the swap
    credits  of each component
    """

    subset: torch.Tensor
    credits: tuple[Credits, ...]

    @property
    def image(self) -> torch.Tensor:
        """The first component's credits [B·m]."""
        return self.credits[0].image


class SwapReward:
    """Holds the reference set and scores candidates by each component of the reward.

    The components are on the features' device, or with --reward-device cpu in host memory. With this flag or on a GPU
    a thread prepares them (for FD, an eigendecomposition) beside other work, on a GPU in a stream of its own: during
    the update if the reference set rolls, during the rollout if it was refreshed. Scores cannot overlap with other
    work: they need the last feature, and the first advantage needs them.

    trial  chooses the eigensolver on a GPU under --eigensolver auto; a new one unless given
    say    is told the choice
    """

    def __init__(
        self,
        options: RewardOptions,
        seed: int,
        side: RewardSide,
        reference: ReferenceSet,
        conditions: Conditions,
        trial: SolverTrial | None = None,
        say: Callable[[str], None] = print,
    ):
        self.options, self.seed, self.side, self.conditions = options, seed, side, conditions
        self.device = reward_device(options, reference.features.device)
        beside = options.device == "cpu" or self.device.type == "cuda"
        self._beside = BackgroundWorker("reward", self.device) if beside else None
        self.trial = (trial or SolverTrial()) if self._has_a_choice() else None
        self._say = say
        self.renew(reference)

    def renew(self, reference: ReferenceSet) -> None:
        """Take a new reference set and begin to prepare each component for it."""
        self.reference = replace(reference, features=reference.features.to(self.device))
        components = solved(self.side.components, self._eigensolver())
        work = partial(prepared_sets, components, self.reference.features, self.reference.labels)
        self._prepared: list[PreparedSet] | Future[list[PreparedSet]]
        if self._beside is None:
            self._prepared = work()
        else:
            self._prepared = self._beside.submit(lambda: ready_for_scores(work(), self.options))

    @property
    def prepared(self) -> list[PreparedSet]:
        """The present reference set under each component; waits until it is ready."""
        if isinstance(self._prepared, Future):
            self._prepared = self._prepared.result()
            if self.trial is not None:
                self.trial.end()
        return self._prepared

    def _has_a_choice(self) -> bool:
        """Whether a device's solver and the host's differ, and neither was asked for."""
        of_frechet = any(isinstance(each.reward, FrechetReward) for each in self.side.components)
        return self.device.type == "cuda" and of_frechet and self.options.eigensolver == "auto"

    def _eigensolver(self) -> str:
        """Where the next reference set is decomposed; says a choice when it is made."""
        if self.trial is None:
            return "host" if self.options.eigensolver == "host" else "device"
        told = self.trial.decide()
        if told is not None:
            self._say(told)
        return self.trial.begin()

    @property
    def distance(self) -> float:
        """The first component's distance of the reference set from the reward's real images."""
        return self.prepared[0].distance

    @property
    def reference_fd(self) -> float | None:
        """FD of the reference set under the first component that is a Fréchet distance; None without one."""
        return reference_fd(self.prepared)

    def labels_of(self, rows: torch.Tensor, step: int) -> torch.Tensor:
        """Conditions int64 [B·m] of the images that replace `rows` [B, m]: of the groups of the rows.

        A row of classes, each of which is a group of its own, keeps its class.
        """
        return self.conditions.renewed(self.reference.labels[rows.flatten()], step * self.options.images_per_step)

    def propose(self, step: int) -> torch.Tensor:
        """Rows int64 [B, m] that this step's candidates replace.

        refresh  each candidate replaces a random subset of the reference set (the paper)
        rolling  the B·m oldest rows, shuffled: `roll` later carries out exactly the swaps that were scored, and the
                 number of images of each class stays the same
        """
        c, rng = self.options, generator(self.seed, Stream.SUBSET, step)
        if c.reference == "rolling":
            return self.reference.oldest_rows(c.images_per_step, rng).view(c.candidates, c.replace)
        return torch.stack(
            [torch.from_numpy(rng.choice(c.reference_size, c.replace, replace=False)) for _ in range(c.candidates)]
        )

    def score(self, removed: torch.Tensor, features: torch.Tensor) -> Scores:
        """Rewards of candidates: removed int64 [B, m], features [B, m, d] of the images that replace them.

        subset     minus the distance of the set after the swap
        image      minus the exact change by swapping an image in alone, plus the change by only removing the old one
        influence  first-order change of FD by adding an image

        Results are on the device of the reward.
        """
        removed, features = removed.to(self.device), features.to(self.device)

        def subset(component: Component, prepared: PreparedSet) -> torch.Tensor:
            return -(prepared.distance + prepared.change(removed, features[..., component.columns]))

        def image(component: Component, prepared: PreparedSet) -> torch.Tensor:
            new = features[..., component.columns]
            if self.options.credit == "image":
                return swap_credit(prepared, removed, new)
            return influence_credit(prepared, new.flatten(0, 1)).view(removed.shape)

        return scores_of(self.side.components, self.prepared, self.options, subset, image)

    def roll(self, removed: torch.Tensor, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Carry out every swap of a rolling step: features [B, m, d] of conditions [B·m] replace the rows [B, m]."""
        self.renew(self.reference.rolled(removed, features, labels))


def reward_side_of(config: Config, components: Components) -> RewardSide:
    """The components of the run's reward, on the device of --reward-device."""
    return reward_side(config, components, reward_device(config.reward, components.device))


def reward_device(options: RewardOptions, features: torch.device) -> torch.device:
    """The device on which the reward is computed; `features` is that of the features."""
    return torch.device("cpu") if options.device == "cpu" else features


# (component, its prepared set) → rewards
Scorer = Callable[[Component, PreparedSet], torch.Tensor]


def scores_of(
    components: Sequence[Component],
    prepared: Sequence[PreparedSet],
    options: RewardOptions,
    subset: Scorer,
    image: Scorer,
) -> Scores:
    """Rewards of subsets and images under the credit rule.

    subset  rewards of the subsets [B], which --credit subset gives to each of their images
    image   credits of the images [B, m] under the other rules

    Without --credit subset, only the first component scores subsets, for the log.
    """
    first, credits = None, []
    for component, one in zip(components, prepared, strict=True):
        with named(component):
            of_subset = subset(component, one) if first is None or options.credit == "subset" else first
            first = of_subset if first is None else first
            if options.credit == "subset":
                of_image = of_subset[:, None].expand(-1, options.replace)
            else:
                of_image = image(component, one)
            credits.append(Credits(component, one.distance, of_image.flatten(), getattr(one, "rounding", 0.0)))
    assert first is not None, "a reward has at least one component"
    return Scores(first, tuple(credits))


def influence_credit(prepared: PreparedSet, features: torch.Tensor) -> torch.Tensor:
    """First-order credit [n] of images with features [n, d] in a set, by FD."""
    assert isinstance(prepared, FrechetSet), "the config allows influence for fd only"
    return -prepared.engine.influence(features) / prepared.count


def reference_fd(prepared: Sequence[PreparedSet]) -> float | None:
    """Distance of the first prepared set that is a Fréchet distance; None without one."""
    return next((each.distance for each in prepared if isinstance(each, FrechetSet)), None)


def prepared_sets(components: Sequence[Component], rows: torch.Tensor, labels: torch.Tensor) -> list[PreparedSet]:
    """The set of `rows` [N, d] under each component; ValueError with the component's name where it cannot be used."""
    prepared = []
    for component in components:
        with named(component):
            prepared.append(component.reward.prepare(rows[:, component.columns], labels.to(rows.device)))
    return prepared


def ready_for_scores(prepared: list[PreparedSet], options: RewardOptions) -> list[PreparedSet]:
    """The sets, with all that their first scores would make: of subsets, and of single images."""
    for each in prepared:
        if isinstance(each, FrechetSet):
            each.engine.ready_for(options.replace, *((1,) if options.credit == "image" else ()))
    return prepared


def solved(components: Sequence[Component], eigensolver: str) -> list[Component]:
    """The components, with this eigensolver in each Fréchet distance."""
    return [
        replace(each, reward=each.reward.with_options(eigensolver=eigensolver))
        if isinstance(each.reward, FrechetReward)
        else each
        for each in components
    ]


@contextmanager
def named(component: Component) -> Iterator[None]:
    """A ValueError inside this block gets the component's name."""
    try:
        yield
    except ValueError as error:
        known = str(error).startswith(f"reward {component.name} ")  # of a user's own code
        raise ValueError(f"{error}" if known else f"reward component {component.name}: {error}") from error
