"""What a run reads: the generator, the feature networks, the reward's real moments and the judge's real images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from fastfid import FeatureExtractor
from sit_rl.components.checks import check_classes, check_predictions, like_embedded
from sit_rl.components.image_sets import ASSETS, ImageSet, embedded
from sit_rl.components.networks import NetworkSides, load_networks
from sit_rl.components.own_images import as_in_card
from sit_rl.components.real_side import RealSide, check_shape, extract_real, validate_real
from sit_rl.components.try_own_parts import TryReward, try_own
from sit_rl.config import Config
from sit_rl.files.paths import reading
from sit_rl.learner.learner import prepare
from sit_rl.models import attention
from sit_rl.models.autoencoder import Decoder as LatentDecoder
from sit_rl.models.autoencoder import load_decoder
from sit_rl.models.card import ModelCard, check_card, is_model_folder, read_card
from sit_rl.models.conditions import Conditions
from sit_rl.models.generator_model import Decoder, GeneratorModel
from sit_rl.models.open_model import ModelRequest, open_model
from sit_rl.models.pixels import to_pixels, to_uint8
from sit_rl.models.sit import SiT
from sit_rl.reward_names import networks_of


@dataclass(frozen=True, eq=False)
class Components:
    """Everything that a run reads and never changes."""

    model: GeneratorModel  # the base generator on the device, frozen
    decode: Decoder  # samples float32 [n, C, H, W] → images uint8 [n, c, h, w]
    networks: tuple[NetworkSides, ...]  # those of the reward, its first one first, then those that only judge
    real_images: ImageSet | None  # with labels, for the estimator `pretraining`
    device: torch.device
    # samples → float pixels in 0…255 with a gradient, which `decode` rounds
    pixels: Callable[[torch.Tensor], torch.Tensor] = to_pixels

    @cached_property
    def conditions(self) -> Conditions:
        """The generator's classes or prompts."""
        return self.model.conditions

    @property
    def reward_net(self) -> FeatureExtractor:
        """The reward's first network."""
        return self.networks[0].net

    @property
    def real(self) -> RealSide:
        """The reward's real images through its first network."""
        return self.networks[0].real

    @property
    def heldout(self) -> RealSide:
        """The judge's real images through the reward's first network; `real` itself if no others were given."""
        return self.networks[0].heldout

    @property
    def more_nets(self) -> tuple[FeatureExtractor, ...]:
        """The reward's further networks."""
        return tuple(each.net for each in self.networks[1:] if each.rewarded)

    @property
    def more_real(self) -> tuple[RealSide, ...]:
        """The reward's real images through its further networks."""
        return tuple(each.real for each in self.networks[1:] if each.rewarded)

    @property
    def judge(self) -> NetworkSides | None:
        """The first of the networks that the reward never uses."""
        return next((each for each in self.networks if not each.rewarded), None)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape of one sample, before decoding."""
        return self.model.sample_shape


def build_components(
    config: Config, device: torch.device, progress: bool = True, try_reward: TryReward | None = None
) -> Components:
    """Load and check everything that a run needs; ValueError or OSError for bad input, before any work.

    try_reward  called with two images of the generator and their labels, before the real images are read
    """
    model = open_model(model_request(config), device)
    check_predictions(config, model)
    model = model.to(device).requires_grad_(False)
    if isinstance(model, SiT):
        arguments = attention.attention_arguments(config.run.attention, model, config.run.precision, device)
        model.set_attention(attention.choose(*arguments))
    prepare(model, config.run, device)
    card = _checked_card(config, model)
    check_classes(config, model)
    fast = config.run.precision != "float32"
    decode = model_decoder(model, config.files.vae, device, tf32=fast)
    if config.update.estimator == "adjoint_matching" and model.decoder is not None:
        raise ValueError(
            f"--estimator adjoint_matching needs the gradient of the decoder, and {model.describe()} decodes its "
            "samples itself; choose another estimator"
        )
    pixels = decode.pixels if isinstance(decode, LatentDecoder) else to_pixels
    nets = load_networks(config.files, networks_of(config.reward_components), device)
    try_own(config, [nets.reward, *nets.more, *nets.judges], model, decode, try_reward)
    sets = _labelled_sets(config, model, card)
    for flag, file in (("--real", config.files.real), ("--heldout", config.files.heldout)):
        if file is not None and config.files.images is None:
            with reading(flag, file):
                validate_real(file, [nets.reward, *nets.more, *nets.judges])
                check_shape(file, decode, model, device)

    def side(split: str, net: FeatureExtractor) -> RealSide:
        file = config.files.real if split == "real" else config.files.heldout
        label = f"{split} images → {net.name}"
        with reading(f"--{split}", file or ASSETS):
            if split in sets:
                return replace(extract_real(sets[split].images, net, label, progress), labels=sets[split].labels)
            assert file is not None, "without --real and --heldout both sets are the embedded ones"
            return extract_real(file, net, label, progress)

    def sides(net: FeatureExtractor, rewarded: bool) -> NetworkSides:
        real = side("real", net)
        others = config.files.heldout is not None or "heldout" in sets
        return NetworkSides(net, rewarded, real, side("heldout", net) if others else real)

    rewarded = [sides(net, True) for net in (nets.reward, *nets.more)]
    judges = [sides(net, False) for net in nets.judges]
    return Components(model, decode, (*rewarded, *judges), sets.get("real"), device, pixels)


def model_request(config: Config) -> ModelRequest:
    """The generator that a run starts from: the embedded one unless the config names another."""
    given, checkpoint = config.generator, config.files.checkpoint
    embedded_base = ASSETS / "base.safetensors" if given.model is None else None
    return ModelRequest(
        given.model, checkpoint or embedded_base, config.files.architecture, given.prompts, given.negative_prompt,
        given.image_size, half=config.run.precision == "bf16" and config.update.lora > 0,
    )  # fmt: skip


def model_decoder(model: GeneratorModel, vae: Path | None, device: torch.device, tf32: bool) -> Decoder:
    """What makes images of samples: the model's own decoder, or --vae, or pixels as they are."""
    if model.decoder is not None:
        if vae is not None:
            raise ValueError(f"--vae {vae} is not needed: {model.describe()} decodes its samples itself; leave it out")
        return model.decoder
    if vae is not None:
        return load_decoder(vae, device, tf32=tf32)
    channels = model.sample_shape[0]
    if channels not in (1, 3):
        raise ValueError(
            f"{model.describe()} makes samples of {channels} channels, and images have 1 or 3: a model of latents "
            "needs --vae, or a method decode of its own (docs/guides/own-model.md)"
        )
    return to_uint8


def _checked_card(config: Config, model: GeneratorModel) -> ModelCard | None:
    """The card of the model, if it has one; ValueError if weights or autoencoder are others than the card says."""
    folder = config.files.checkpoint
    if folder is None or config.generator.model is not None or not is_model_folder(folder):
        return None
    card = read_card(folder)
    assert isinstance(model, SiT), "a model's folder holds a SiT"
    check_card(card, model, folder, config.files.vae)
    return card


def _labelled_sets(config: Config, model: GeneratorModel, card: ModelCard | None) -> dict[str, ImageSet]:
    """The real images with labels, "real" and "heldout": a user's own, or the embedded ones where no files are given.

    A model of other images than the embedded ones has none of them.
    """
    if card is not None and config.files.images is not None:
        own = as_in_card(card, config.files.images, config.files.heldout)
        return {"real": own.train, "heldout": own.heldout}
    files = {"real": config.files.real, "heldout": config.files.heldout}
    splits = {"real": "train", "heldout": "heldout"} if like_embedded(model) else {}
    count = config.files.embedded_images
    return {side: embedded(split, count) for side, split in splits.items() if files[side] is None}
