"""What the trainer trains: a network whose output moves samples from noise to data, under a condition.

SiT and DiT are such models, and so are a user's network (`own_model.py`) and a pipeline's transformer
(`pipeline_model.py`).  Code outside this room uses nothing else of them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sit_rl.models.conditions import Conditions

# samples float32 [n, C, H, W] → images uint8 [n, c, h, w]
Decoder = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Sampling:
    """How the makers of a model sample from it.

    steps     of an Euler sampler
    guidance  scale of classifier-free guidance, 1 for none
    shift     of the grid of times: see `sit_rl.sampling.sampler_config`
    """

    steps: int
    guidance: float
    shift: float


def classifier_free(conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598)."""
    return unconditional + scale * (conditional - unconditional)


class GeneratorModel(nn.Module):
    """Predicts a velocity, or noise, at samples x [n, C, H, W], times t [n] and conditions int64 [n].

    Time runs from 0 (noise) to 1 (data) and a velocity is data − noise.  A model of noise has DDPM's timesteps
    999 … 0 as times, and two outputs (`dit.py`).
    """

    predicts = "velocity"
    frozen: frozenset[str] = frozenset()  # names of parameters that no training changes
    own_sampling: Sampling | None = None  # how its makers sample from it, if they say so

    @property
    @abstractmethod
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a sample, before decoding."""

    @property
    @abstractmethod
    def conditions(self) -> Conditions:
        """What it can be asked for."""

    @property
    @abstractmethod
    def null_condition(self) -> int | None:
        """The number of the empty condition, from which guidance starts; None if the model has none."""

    @abstractmethod
    def units(self) -> Sequence[nn.Module]:
        """Blocks that can be compiled, recomputed and sharded one by one."""

    @abstractmethod
    def lora_targets(self) -> list[str]:
        """Names of the linear layers that LoRA adapts by default."""

    @abstractmethod
    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Velocity [n, C, H, W], or noise and the place of its variance [n, 2C, H, W]."""

    @property
    def decoder(self) -> Decoder | None:
        """What makes images of samples, if the model brings it along."""
        return None

    def guide(self, conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
        """The guided output of two outputs of equal shape."""
        return classifier_free(conditional, unconditional, scale)

    def describe(self) -> str:
        """Name of the architecture, for people."""
        return type(self).__name__
