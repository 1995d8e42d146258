"""What a run reads: the generator, the feature networks, the reward's real moments and the judge's real images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastfid import FeatureExtractor
from sit_rl.components.checks import check_classes, check_predictions, like_embedded
from sit_rl.components.image_sets import ASSETS, ImageSet, embedded
from sit_rl.components.networks import load_networks
from sit_rl.components.real_side import RealSide, extract_real, validate_real
from sit_rl.components.trial import TryReward, try_own
from sit_rl.config import Config
from sit_rl.files.paths import reading
from sit_rl.learner.learner import prepare
from sit_rl.models import attention
from sit_rl.models.autoencoder import load_decoder
from sit_rl.models.loading import load_model
from sit_rl.models.pixels import to_pixels, to_uint8
from sit_rl.models.sit import SiT
from sit_rl.reward_names import networks_of


@dataclass(frozen=True)
class Components:
    """Everything that a run reads and never changes."""

    model: SiT  # the base generator, SiT or DiT, on the device
    decode: Callable[[torch.Tensor], torch.Tensor]  # samples float32 [n, C, H, W] → images uint8 [n, c, h, w]
    reward_net: FeatureExtractor  # the reward's first network
    judge_net: FeatureExtractor | None  # a second network, which the reward never uses
    real: RealSide  # the reward's real images through reward_net
    real_b: RealSide | None  # the same images through judge_net, only for the floor
    heldout: RealSide  # the judge's real images through reward_net; `real` itself if no others were given
    heldout_b: RealSide | None  # the judge's real images through judge_net
    real_images: ImageSet | None  # with labels, for the estimator `pretraining`
    device: torch.device
    more_nets: tuple[FeatureExtractor, ...] = ()  # the reward's further networks
    more_real: tuple[RealSide, ...] = ()  # the reward's real images through more_nets
    # samples → float pixels in 0…255 with a gradient, which `decode` rounds
    pixels: Callable[[torch.Tensor], torch.Tensor] = to_pixels

    @property
    def num_classes(self) -> int:
        """Number of the generator's classes."""
        return self.model.config.num_classes

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape of one sample, before decoding."""
        return self.model.config.image_shape


def build_components(
    config: Config, device: torch.device, progress: bool = True, try_reward: TryReward | None = None
) -> Components:
    """Load and check everything that a run needs; ValueError or OSError for bad input, before any work.

    try_reward  called with two images of the generator and their labels, before the real images are read
    """
    with reading("--checkpoint", config.files.checkpoint or ASSETS):
        path = config.files.checkpoint or ASSETS / "base.safetensors"
        model = load_model(path, architecture=config.files.architecture)
    check_predictions(config, model)
    model = model.to(device).requires_grad_(False)
    arguments = attention.attention_arguments(config.run.attention, model, config.run.precision, device)
    model.set_attention(attention.choose(*arguments))
    prepare(model, config.run, device)
    check_classes(config, model)
    fast = config.run.precision != "float32"
    decode: Callable[[torch.Tensor], torch.Tensor] = to_uint8
    pixels: Callable[[torch.Tensor], torch.Tensor] = to_pixels
    if config.files.vae is not None:
        decoder = load_decoder(config.files.vae, device, tf32=fast)
        decode, pixels = decoder, decoder.pixels
    nets = load_networks(config.files, networks_of(config.reward_components), device)
    reward_net, judge_net = nets.reward, nets.judge
    try_own(config, [net for net in (reward_net, judge_net, *nets.more) if net], model, decode, try_reward)
    train = embedded("train", config.files.embedded_images) if config.files.real is None else None
    for flag, file in (("--real", config.files.real), ("--heldout", config.files.heldout)):
        if file is not None:
            with reading(flag, file):
                more = nets.more if flag == "--real" else ()
                validate_real(file, [net for net in (reward_net, judge_net, *more) if net])

    def side(split: str, net: FeatureExtractor) -> RealSide:
        file = config.files.real if split == "real" else config.files.heldout
        source = file or embedded("train" if split == "real" else "heldout", config.files.embedded_images).images
        with reading(f"--{split}", file or ASSETS):
            return extract_real(source, net, f"{split} images → {net.name}", progress)

    real, more_real = side("real", reward_net), tuple(side("real", net) for net in nets.more)
    real_b = None if judge_net is None else side("real", judge_net)
    heldout, heldout_b = real, real_b
    if config.files.heldout is not None or like_embedded(model):
        heldout = side("heldout", reward_net)
        heldout_b = None if judge_net is None else side("heldout", judge_net)
    return Components(
        model,
        decode,
        reward_net,
        judge_net,
        real,
        real_b,
        heldout,
        heldout_b,
        train,
        device,
        nets.more,
        more_real,
        pixels,
    )
