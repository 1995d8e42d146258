"""Everything a run depends on: the groups of options, as flags of the command line and as a file.

A flag has one flat name (--lr) and an alias that names its group (--update.lr).  Files use the flat names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, asdict, dataclass, field, fields, make_dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro
import yaml

from fastfid.cli.command_line import parse
from sit_rl.files.atomic import write_text
from sit_rl.options.evaluation import EvaluationOptions
from sit_rl.options.files import FileOptions
from sit_rl.options.model import ModelOptions
from sit_rl.options.option import check_bounds, dashed, flag_of, option
from sit_rl.options.reward import RewardOptions
from sit_rl.options.rollout import RolloutOptions
from sit_rl.options.run import RunOptions
from sit_rl.options.update import UpdateOptions
from sit_rl.reward_names import PYTHON, ComponentName, components_of, networks_of
from sit_rl.sampling.sampler_config import SamplerConfig

# What each estimator learns best with on the embedded default.  A policy gradient makes a pass for every noisy sampler
# step: four minibatches of the paper's kept quarter, so that the clip acts.  Rejection takes its own samples for data,
# which by itself makes the model worse; the best 5% outweigh that here (docs/results.md).
MATCHING_DEFAULTS = {"keep": "all", "updates": 4, "minibatch": 400, "lr": 1e-4}
ESTIMATOR_DEFAULTS: dict[str, dict[str, Any]] = {
    "advantage_matching": MATCHING_DEFAULTS,
    "pretraining": MATCHING_DEFAULTS,
    "rejection": {"keep": 0.05, "updates": 4, "minibatch": 400, "lr": 5e-5},
    "sde_policy_gradient": {"keep": 0.25, "updates": 4, "minibatch": 100, "lr": 1e-4},
    "adjoint_matching": MATCHING_DEFAULTS,
    "merging": {"keep": "all", "updates": 4, "minibatch": 400, "lr": 3e-3},
}
# The flag of the sampler whose images train, for estimators that do not use --rollout.
ROLLOUT_FLAGS = {"sde_policy_gradient": "rollout_sde", "adjoint_matching": "rollout_adjoint"}

# Of every estimator: torch's own momentum of AdamW.
COMMON_DEFAULTS: dict[str, Any] = {"momentum": 0.9, "anchor": 0.5}
# When a step overshoots, leave-one-out credits change sign in the next one. With a momentum of 0.9 AdamW still goes on
# in the old direction, and FD swings. With less momentum it falls steadily, and a weaker anchor is enough
# (docs/training.md).
FRESH_DEFAULTS: dict[str, dict[str, Any]] = {"advantage_matching": {"momentum": 0.5, "anchor": 0.2}}

CONFIG = "config"  # the flag of a file with fields, which is no field itself
CONFIG_HELP = tyro.conf.arg(
    help="YAML file with any of these fields by their flat names (a saved config.yaml, too); flags win over it"
)


@dataclass(frozen=True)
class Config:
    """Everything a run depends on.  Counts of images are global: they do not change with the number of ranks."""

    preset: str = option("fashion")
    out: Path | None = option(None, "run folder; default runs/<preset>-<estimator>-<seed>", machine=True)
    resume: bool = option(
        True,
        "continue from the run folder's checkpoint where there is one; --no-resume starts afresh",
        machine=True,
    )
    seed: int = option(0, "of the noise of training and of evaluation", least=0)
    steps: int = option(24, "training steps: each rolls out, scores, selects and updates once", least=1)
    reward: RewardOptions = field(default_factory=RewardOptions)
    update: UpdateOptions = field(default_factory=UpdateOptions)
    rollout: RolloutOptions = field(default_factory=RolloutOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    files: FileOptions = field(default_factory=FileOptions)
    generator: ModelOptions = field(default_factory=ModelOptions)
    run: RunOptions = field(default_factory=RunOptions)

    @classmethod
    def of(cls, **values: Any) -> Config:
        """A config from values by flat name; the others are the defaults."""
        return cls().changed(**values)

    def changed(self, **values: Any) -> Config:
        """A copy with other values, by flat name; TypeError for an unknown name."""
        unknown = sorted(values.keys() - places().keys())
        if unknown:
            raise TypeError(f"{unknown[0]!r} is no field of a config")
        own: dict[str, Any] = {}
        grouped: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            place = places()[name]
            (own if place.group is None else grouped.setdefault(place.group, {}))[place.field.name] = value
        groups = {group: replace(getattr(self, group), **inside) for group, inside in grouped.items()}
        return replace(self, **own, **groups)

    def __getitem__(self, name: str) -> Any:
        """The value of a flat name."""
        place = places()[name]
        return getattr(self if place.group is None else getattr(self, place.group), place.field.name)

    @property
    def run_folder(self) -> Path:
        """Where the outputs go: --out, or a name in runs/ that begins with the preset, or with a model of one's own."""
        model = self.files.checkpoint
        name = model.resolve().name if self.preset == "own" and model is not None else self.preset
        return self.out or Path("runs") / f"{name}-{self.update.estimator}-{self.seed}"

    def check(self) -> None:
        """ValueError if the numbers contradict each other."""
        check_bounds(self)
        for group in (self.reward, self.update, self.rollout, self.evaluation, self.files, self.generator, self.run):
            group.check()
        self._check_networks()
        self._check_estimator()
        if self.generator.prompts is not None and self.files.real is None:
            raise ValueError(
                f"--prompts {self.generator.prompts} come without images; pass --real (real images or statistics that "
                "the reward compares with)"
            )

    @property
    def reward_components(self) -> tuple[ComponentName, ...]:
        """The components of the reward."""
        return components_of(self.reward.components, self.files.reward_features)

    @property
    def rollout_flag(self) -> str:
        """Name of the sampler of training images, which the estimator decides."""
        return ROLLOUT_FLAGS.get(self.update.estimator, "rollout")

    def _check_estimator(self) -> None:
        """ValueError for a reward or a credit that the estimator cannot use."""
        estimator, reward = self.update.estimator, self.reward
        if estimator == "merging":
            self._check_merging()
        elif self.files.merge:
            raise ValueError(f"--merge has an effect with --estimator merging only, not with {estimator}; leave it out")
        if estimator != "adjoint_matching":
            return
        without = [str(each) for each in self.reward_components if each.kind == PYTHON]
        if without:
            raise ValueError(
                f"--estimator {estimator} follows the gradient of the reward, and --reward {without[0]} has none; "
                "leave it out, or choose another estimator"
            )
        if reward.credit != "image":
            raise ValueError(f"--estimator {estimator} moves single images; --credit is {reward.credit}, choose image")
        if reward.reference == "refresh":
            raise ValueError(
                f"--estimator {estimator} needs a set that holds the step's own images; --reference is refresh, choose "
                "rolling or fresh"
            )

    def _check_merging(self) -> None:
        """ValueError for too few checkpoints or subsets, and for options that merging ignores."""
        if self.generator.model is not None:
            raise ValueError(
                f"--estimator merging merges SiT or DiT checkpoints; --model is {self.generator.model}, leave it out"
            )
        if len(self.files.merge) < 2:
            raise ValueError(
                f"--estimator merging needs --merge with two checkpoints or more, and has {len(self.files.merge)}"
            )
        if self.reward.candidates < 2:
            raise ValueError("--estimator merging compares subsets; --candidates is 1, raise it")
        for flag, value in (("--lora", self.update.lora), ("--parallel fsdp", self.run.parallel == "fsdp")):
            if value:
                raise ValueError(f"--estimator merging trains coefficients only, so {flag} has no effect; leave it out")
        fixed = self.reward.reference == "refresh" and self.reward.refresh_every >= self.steps
        if self.update.merge_search == "grid" and not fixed:
            raise ValueError(
                "--merge-search grid compares subsets of different steps, so the reference set must stay; choose "
                f"--reference refresh --refresh-every {self.steps}"
            )

    def _check_networks(self) -> None:
        """ValueError for a first network that is not rewarded, and for a judge that is."""
        networks, first = networks_of(self.reward_components), self.files.reward_features
        if networks and first not in networks:
            raise ValueError(
                f"--reward does not use --reward-features {first}, which the evaluations report; pass "
                f"--reward-features {networks[0]}"
            )
        rewarded = [name for name in self.files.judge_features if name in networks]
        if rewarded:
            raise ValueError(
                f"--judge-features {rewarded[0]} is a network of --reward; a judge must not be rewarded: "
                "choose another one, or none"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values by flat name, paths as strings."""
        return {name: plain(self[name]) for name in places()}

    def save(self, path: Path) -> None:
        """Write as YAML by flat name, with a comment above each group; the file is written whole or not at all."""
        blocks = []
        for group, names in groupby(places(), key=lambda name: places()[name].group):
            heading = "" if group is None else f"\n# {group}\n"
            blocks.append(heading + yaml.safe_dump({name: plain(self[name]) for name in names}, sort_keys=False))
        write_text(path, "".join(blocks))


@dataclass(frozen=True)
class Place:
    """Where the value of a flat name is: the group (None: the config itself), the field, and its type."""

    group: str | None
    field: Field[Any]
    hint: Any


@cache
def places() -> dict[str, Place]:
    """Every flat name, in the order of the groups."""
    return dict(_places(Config, None))


def _places(kind: type, group: str | None) -> Iterator[tuple[str, Place]]:
    hints = get_type_hints(kind)
    for f in fields(kind):
        if "flag" in f.metadata:
            yield flag_of(f), Place(group, f, hints[f.name])
        else:
            yield from _places(hints[f.name], f.name)


def may_change(name: str) -> bool:
    """Whether a resumed run may have another value of the flat name than the run had."""
    return bool(places()[name].field.metadata["machine"])


MACHINE_FIELDS = tuple(name for name in places() if may_change(name))


def resolve(config: Config) -> Config:
    """The same config with its run folder and its estimator's defaults filled in."""
    defaults = COMMON_DEFAULTS | ESTIMATOR_DEFAULTS[config.update.estimator]
    if config.reward.reference == "fresh":
        defaults = defaults | FRESH_DEFAULTS.get(config.update.estimator, {})
    missing = {name: value for name, value in defaults.items() if config[name] is None}
    return config.changed(out=config.run_folder, **missing)


# --- the command line --------------------------------------------------------------------------------------------


def parse_config(argv: list[str], default: Config, description: str | None) -> Config:
    """The config of a command line, whose defaults are those of `default`; every flat name is a flag."""
    flags = [_flag(name, place, default[name]) for name, place in places().items()]
    form = make_dataclass("Config", [(CONFIG, Annotated[Path | None, CONFIG_HELP], field(default=None)), *flags])
    parsed: Any = parse(form, argv, description=description)
    return default.changed(**{name: getattr(parsed, name) for name in places()})


def _flag(name: str, place: Place, default: Any) -> tuple[str, Any, Any]:
    """Name, type and default of one flag, with its help and the alias that names its group."""
    nested = isinstance(default, SamplerConfig)  # whose own fields are the flags
    alias = None if nested or place.group is None else (dashed(f"{place.group}.{place.field.name}"),)
    about = tyro.conf.arg(help=place.field.metadata["meaning"] or None, aliases=alias)
    return name, Annotated[place.hint, about], field(default=default)


def differences(saved: Config, asked: Config) -> list[str]:
    """Flat names of the fields that differ between two configs and on which results depend."""
    return [name for name in places() if not may_change(name) and saved[name] != asked[name]]


def plain(value: Any) -> Any:
    """A value as plain types for YAML and JSON."""
    if isinstance(value, SamplerConfig):
        return {name: plain(part) for name, part in asdict(value).items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
