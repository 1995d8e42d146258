"""A model as the field that samplers follow: labels bound, classifier-free guidance applied.

    out = out_null + g·(out_label − out_null)      (Ho & Salimans 2022, arXiv 2207.12598)

Both terms come from one pass over a doubled batch. The official SiT and DiT samplers guide the first three of the
latent's four channels and leave the rest as the label alone gives it, and so do the samplers here that bear their
names. Other samplers guide all channels unless asked otherwise. A variance that the model predicts is never guided.
Guidance may be limited to an interval of time (Kynkäänniemi et al. 2024, arXiv 2404.07724); elsewhere the label's pass
is the only one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch

from sit_rl.models.generator_model import GeneratorModel
from sit_rl.sampling.ode_and_sde_steps import VelocityField
from sit_rl.sampling.sampler_config import PUBLISHED_GUIDANCE_CHANNELS, SamplerConfig

# (x [n, C, H, W], t [n], conditions int64 [n]) → velocity, or a DiT's two outputs
Model = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def bind(model: Model, labels: torch.Tensor, sampler: SamplerConfig | None = None) -> VelocityField:
    """The function (x [n, C, H, W], t) → model output for conditions int64 [n], guided as `sampler` says.

    The model may be inside a wrapper that keeps it as `module`, such as DDP. ValueError where the sampler is not one
    for what the model predicts, guides more channels than there are, or guides a model without a null condition.
    """
    core = cast(GeneratorModel, getattr(model, "module", model))
    if sampler is not None and sampler.needs != core.predicts:
        raise ValueError(
            f"sampler kind is {sampler.kind!r}, for a model that predicts {sampler.needs}; this one predicts "
            f"{core.predicts}: choose " + ("'discrete'" if core.predicts == "noise" else "'ode' or 'sde'")
        )

    most = max(core.sample_shape[0], PUBLISHED_GUIDANCE_CHANNELS)
    if sampler is not None and sampler.guidance_channels > most:
        raise ValueError(
            f"guidance_channels is {sampler.guidance_channels}, and the model's samples have {core.sample_shape[0]}; "
            "lower it, or 0 for all"
        )

    if sampler is not None and sampler.guidance != 1 and core.null_condition is None:
        raise ValueError(
            f"guidance is {sampler.guidance:g}, and the model has no null class, which it needs; choose guidance 1"
        )

    def conditional(x: torch.Tensor, t: float) -> torch.Tensor:
        out: torch.Tensor = model(x, torch.full((len(x),), t, device=x.device), labels)
        return out

    if sampler is None or sampler.guidance == 1:
        return conditional
    assert core.null_condition is not None  # checked above
    null = torch.full_like(labels, core.null_condition)
    channels = sampler.guidance_channels or core.sample_shape[0]

    def guided(x: torch.Tensor, t: float) -> torch.Tensor:
        if not sampler.guides(t):
            return conditional(x, t)
        times = torch.full((2 * len(x),), t, device=x.device)
        labelled, unlabelled = model(torch.cat([x, x]), times, torch.cat([labels, null])).chunk(2)
        head, base = labelled[:, :channels], unlabelled[:, :channels]
        return torch.cat([core.guide(head, base, sampler.guidance), labelled[:, channels:]], dim=1)

    return guided
