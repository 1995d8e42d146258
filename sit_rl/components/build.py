"""What a run stands on: the generator, the feature networks, the reward's real moments and the judge's real images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from fastfid import FeatureExtractor, FeatureMoments, feature_extractor
from fastfid.evaluation.sides import identity
from fastfid.images.open import open_images
from fastfid.statistics.statistics import Statistics, mismatch
from sit_rl.components.image_sets import ASSETS, ImageSet, load_embedded
from sit_rl.config import Config
from sit_rl.files.paths import EXTRAS, listed, reading, require_extra, require_paths
from sit_rl.learner.learner import prepare
from sit_rl.models import attention
from sit_rl.models.autoencoder import load_decoder
from sit_rl.models.loading import load_model
from sit_rl.models.pixels import to_uint8
from sit_rl.models.sit import SiT
from sit_rl.ranks.cpu_batches import map_batches
from sit_rl.ranks.preemption import stop_if_told

# Paths that a preset without embedded assets cannot do without.
NEEDED_PATHS_ARE = {
    "checkpoint": "--checkpoint (the weights)",
    "vae": "--vae (a diffusers autoencoder's folder)",
    "real": "--real (real images or statistics)",
}
NEEDED_PATHS = dict.fromkeys(("sit-xl-imagenet256", "dit-xl-imagenet256"), tuple(NEEDED_PATHS_ARE))
FEATURE_BATCH = 250  # images; large enough for the CPU's convolutions, small enough for their workspace


@dataclass(frozen=True)
class RealSide:
    """Real images seen through one network: their moments, and their features [n, d] where images were given."""

    moments: FeatureMoments
    features: torch.Tensor | None


@dataclass(frozen=True)
class Setting:
    """Everything that a run reads and never changes."""

    model: SiT  # the base generator, SiT or DiT, on the device
    decode: Callable[[torch.Tensor], torch.Tensor]  # samples float32 [n, C, H, W] → images uint8 [n, c, h, w]
    reward_net: FeatureExtractor
    judge_net: FeatureExtractor | None  # a second network, which no reward sees
    real: RealSide  # through reward_net: the reward's
    real_b: RealSide | None  # through judge_net: for the floor alone
    heldout: RealSide  # through reward_net: the judge's; `real` itself where no others were given
    heldout_b: RealSide | None  # through judge_net
    real_images: ImageSet | None  # with labels, for the control that goes on pretraining
    device: torch.device

    @property
    def num_classes(self) -> int:
        """Classes the generator knows."""
        return self.model.config.num_classes

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape of one sample, before decoding."""
        return self.model.config.image_shape


def build_setting(config: Config, device: torch.device, progress: bool = True) -> Setting:
    """Load and check everything a run needs; errors come here, before any work."""
    with reading("--checkpoint", config.checkpoint or ASSETS):
        model = load_model(config.checkpoint or ASSETS / "base.safetensors", architecture=config.architecture)
    check_predictions(config, model)
    model = model.to(device).requires_grad_(False)
    model.set_attention(attention.choose(*attention.case(config.attention, model, config.precision, device)))
    prepare(model, config, device)
    check_classes(config, model)
    fast = config.precision != "float32"
    decode = to_uint8 if config.vae is None else load_decoder(config.vae, device, tf32=fast)
    reward_net, judge_net = load_networks(config, device)
    train = embedded("train", config.embedded_images) if config.real is None else None
    for split, path in (("real", config.real), ("heldout", config.heldout)):
        if path is not None:
            with reading(f"--{split}", path):
                look(path, [net for net in (reward_net, judge_net) if net])
    sides = {}
    for split, path in (("real", config.real), ("heldout", config.heldout)):
        if split == "heldout" and path is None and not like_embedded(model):
            sides |= {"heldout": sides["real"], "heldout_b": sides["real_b"]}
            continue
        name = "train" if split == "real" else "heldout"
        source = embedded(name, config.embedded_images).images if path is None else path
        for key, net in ((split, reward_net), (f"{split}_b", judge_net)):
            with reading(f"--{split}", path or ASSETS):
                sides[key] = None if net is None else see(source, net, f"{split} images → {net.name}", progress)
    return Setting(model, decode, reward_net, judge_net, real_images=train, device=device, **sides)


def load_networks(config: Config, device: torch.device) -> tuple[FeatureExtractor, FeatureExtractor | None]:
    """The reward's feature network and the judge's, with the files of --weights."""
    names = [config.reward_features, *([] if config.judge_features == "none" else [config.judge_features])]
    weights = weights_of(config.weights)
    if isinstance(weights, str) and len(set(names)) > 1:
        raise ValueError(f"--weights {weights} is one file for {' and '.join(names)}; write NAME={weights}")
    files = dict.fromkeys(names, weights) if isinstance(weights, str) else weights or {}
    unused = [name for name in files if name not in names]
    if unused:
        raise ValueError(f"--weights names {unused[0]}, which is not a network of this run: {', '.join(names)}")
    nets = [load_network(name, files.get(name), device) for name in names]
    return nets[0], nets[1] if len(nets) > 1 else None


def load_network(name: str, weights: str | None, device: torch.device) -> FeatureExtractor:
    """A feature network, from a file of --weights where one was given."""
    with reading("--weights", weights) if weights else nullcontext():
        return feature_extractor(name, weights, device)


def weights_of(words: tuple[str, ...]) -> str | dict[str, str] | None:
    """--weights as fastfid takes it: one path, or {network: path}."""
    pairs = [text.partition("=") for text in words]
    if len(pairs) == 1 and not pairs[0][1]:
        return words[0]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError(f"--weights is {' '.join(words)}; write NAME=PATH for each of several networks")
    return {name: path for name, _, path in pairs} or None


def weights_files(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """The files of --weights, each with its flag."""
    weights = weights_of(words)
    files = {"": weights} if isinstance(weights, str) else weights or {}
    return [("--weights", path) for path in files.values()]


def embedded(split: str, count: int) -> ImageSet:
    """`count` evenly spaced images of an embedded split, all for 0."""
    whole = load_embedded(split)
    if not count or count >= len(whole.images):
        return whole
    rows = torch.linspace(0, len(whole.images) - 1, count).round().long()
    return ImageSet(whole.images[rows], whole.labels[rows])


def check_inputs(config: Config) -> None:
    """One sentence, before anything is read or written, for all paths and the first package that a run lacks."""
    missing = [name for name in NEEDED_PATHS.get(config.preset, ()) if getattr(config, name) is None]
    needed = listed([NEEDED_PATHS_ARE[name] for name in missing]) if missing else None
    require_paths(given_paths(config), needed and f"preset {config.preset} needs {needed}")
    for flag in EXTRAS:
        if getattr(config, flag[2:]) not in (None, 0):
            require_extra(flag)
    if config.estimator == "pretraining" and config.real is not None:
        raise ValueError(
            f"--estimator pretraining fits real images with labels, which --real {config.real} does not give; it runs "
            "on the embedded default only"
        )


def given_paths(config: Config) -> list[tuple[str, Path | str | None]]:
    """Flag and path, None where it was not given, of all that a run reads."""
    paths = [(f"--{name}", getattr(config, name)) for name in ("checkpoint", "vae", "real", "heldout")]
    return paths + weights_files(config.weights)


def check_predictions(config: Config, model: SiT) -> None:
    """ValueError where the estimator or a sampler of the run is not one for what the model predicts."""
    kind, policy_gradient = type(model).__name__, config.estimator == "sde_policy_gradient"
    if model.predicts != "velocity" and not policy_gradient:
        raise ValueError(
            f"--estimator {config.estimator} fits velocities, and the checkpoint is a {kind}, which predicts "
            f"{model.predicts}; choose --estimator sde_policy_gradient"
        )
    for name in ("rollout_sde" if policy_gradient else "rollout", "evaluate_ode", "evaluate_sde"):
        flag, sampler = f"--{name.replace('_', '-')}", getattr(config, name)
        if sampler.needs != model.predicts:
            preset = "dit-xl-imagenet256" if model.predicts == "noise" else "sit-xl-imagenet256 or fashion"
            raise ValueError(
                f"{flag} is {sampler}, for a model that predicts {sampler.needs}, and the checkpoint is a {kind}, "
                f"which predicts {model.predicts}; choose --preset {preset}, {flag}.kind, or another --architecture"
            )


def check_classes(config: Config, model: SiT) -> None:
    """ValueError where the sets are too small for the model's classes, or the embedded images are not the model's."""
    classes = model.config.num_classes
    if min(config.reference_size, config.evaluate_images) < classes:
        raise ValueError(
            f"--reference-size {config.reference_size} and --evaluate-images {config.evaluate_images} must each hold "
            f"an image of each of the model's {classes} classes"
        )
    if config.normalise == "class" and config.estimator != "pretraining" and config.images_per_step < 2 * classes:
        raise ValueError(
            f"--normalise class compares images of one class, of which the {config.images_per_step} images of a step "
            f"have fewer than 2 on average, among {classes}: a lone one teaches nothing; choose --normalise batch, or "
            "raise --candidates"
        )
    if config.real is None and not like_embedded(model):
        raise ValueError(
            f"the checkpoint makes samples of shape {model.config.image_shape} in {classes} classes, the embedded "
            "images are 1×28×28 in 10; pass --real and --heldout"
        )


def like_embedded(model: SiT) -> bool:
    """Whether the embedded images are of the model's shape and number of classes."""
    return model.config.image_shape == (1, 28, 28) and model.config.num_classes == 10


def see(source: torch.Tensor | Path, net: FeatureExtractor, label: str, progress: bool) -> RealSide:
    """Moments and features of images (tensor, folder, zip, npz), or the moments of a statistics file.

    Every rank calls it; Preempted between two batches where the run was told to stop.
    """
    moments = saved_moments(source)
    if moments is not None:
        check_statistics(Statistics(moments, str(source)), net)
        return RealSide(moments.to(net.device), None)
    images = open_images(source)
    parts = []
    with tqdm(total=len(images), desc=label, unit="image", disable=not progress, leave=False) as bar:
        for several in _groups(images.batches(FEATURE_BATCH), torch.get_num_threads()):
            for part in map_batches(net, several, net.device):
                parts.append(part)
                bar.update(len(part))
            stop_if_told()
    features = torch.cat(parts)
    return RealSide(FeatureMoments.from_features(features), features)


def look(source: Path, nets: list[FeatureExtractor]) -> None:
    """ValueError or OSError, before hours of features, where real images or statistics cannot be what they should."""
    moments = saved_moments(source)
    if moments is None:
        next(iter(open_images(source).batches(1)))
        return
    for net in nets:
        check_statistics(Statistics(moments, str(source)), net)


def saved_moments(source: torch.Tensor | Path) -> FeatureMoments | None:
    """The moments of a statistics file, None for images."""
    if not isinstance(source, Path) or source.suffix != ".npz":
        return None
    try:
        return FeatureMoments.load(source)
    except ValueError:
        return None  # an npz of images, not of statistics


def check_statistics(statistics: Statistics, net: FeatureExtractor) -> None:
    """ValueError where saved statistics are not of the network's features: of another d, weights or resizing."""
    blank = FeatureMoments(None, torch.zeros(net.dim), torch.zeros(net.dim, net.dim), identity(net))
    network, found = Statistics(blank, f"the network {net.name}"), None
    if statistics.dim != net.dim:
        found = f"{statistics.name} has d = {statistics.dim} features, {network.name} has d = {net.dim}"
    found = found or mismatch(statistics, network)
    if found:
        raise ValueError(
            f"{found}; pass images, statistics by `fastfid stats --network {net.name}`, or other --reward-features "
            "and --judge-features (none: no second network)"
        )


def _groups(items: Iterable[torch.Tensor], size: int) -> Iterator[list[torch.Tensor]]:
    """Consecutive items, `size` at a time: what is read ahead while earlier ones are worked on stays bounded."""
    items = iter(items)
    while group := list(itertools.islice(items, size)):
        yield group
