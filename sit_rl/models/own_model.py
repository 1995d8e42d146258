"""A user's generator: a module with a velocity or a noise, a sample shape, conditions (docs/guides/own-model.md).

    --model package.module:build    or    --model FILE.py:build

`build()` returns the generator; with --prompts it is called as build(prompts).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from fastfid.runtime.errors import first_line
from sit_rl.files.importing import load_object
from sit_rl.files.prompts import Prompts
from sit_rl.models.conditions import Conditions
from sit_rl.models.generator_model import Decoder, GeneratorModel

# Random numbers that a builder draws are the same in every process: ranks and a resumed run start from equal weights.
BUILD_SEED = 0
# Samples of the trial: two, so that a model that mixes up batch and channels is noticed.
TRIAL = 2


@runtime_checkable
class FlowModel(Protocol):
    """A generator that predicts a velocity; an nn.Module in eval mode, whose outputs have no randomness.

    sample_shape    (C, H, W)
    conditions      their number, or a list of their names
    null_condition  optional: the number of the empty condition, for guidance; usually the number of conditions
    lora_targets    optional: names of the linear layers that --lora adapts; default all
    blocks          optional: modules that are compiled, recomputed and sharded one by one
    decode          optional: a method from samples float32 [n, C, H, W] to images uint8 [n, 1 or 3, h, w]; default:
                    --vae, else samples are pixels in [−1, 1]
    """

    sample_shape: tuple[int, int, int]
    conditions: int | Sequence[str]

    def velocity(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Data − noise, float32 [n, C, H, W], at x [n, C, H, W], t [n] in [0, 1] (1 is data), condition int64 [n]."""


@runtime_checkable
class NoiseModel(Protocol):
    """A generator that predicts the noise of DDPM's chain of 1000 steps; otherwise as `FlowModel`."""

    sample_shape: tuple[int, int, int]
    conditions: int | Sequence[str]

    def noise(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Noise [n, C, H, W], or [n, 2C, H, W] with the place of its variance, at timesteps t [n] of 999 … 0."""


class OwnModel(GeneratorModel):
    """A user's generator as the trainer knows it."""

    def __init__(self, own: nn.Module, name: str, prompts: Prompts | None = None):
        super().__init__()
        self.own, self.name = own, name
        self.predicts = "velocity" if isinstance(own, FlowModel) else "noise"
        self.frozen = frozenset(f"own.{key}" for key, p in own.named_parameters() if not p.requires_grad)
        self._conditions = _conditions(own, prompts)

    @property
    def sample_shape(self) -> tuple[int, int, int]:  # noqa: D102
        channels, height, width = (int(size) for size in self._attribute("sample_shape"))
        return channels, height, width

    @property
    def conditions(self) -> Conditions:  # noqa: D102
        return self._conditions

    @property
    def null_condition(self) -> int | None:  # noqa: D102
        null: int | None = getattr(self.own, "null_condition", None)
        return null

    @property
    def decoder(self) -> Decoder | None:  # noqa: D102
        decode: Decoder | None = getattr(self.own, "decode", None)
        return decode

    def units(self) -> list[nn.Module]:  # noqa: D102
        return list(getattr(self.own, "blocks", ()))

    def lora_targets(self) -> list[str]:  # noqa: D102
        linear = [name for name, module in self.own.named_modules() if isinstance(module, nn.Linear)]
        return [f"own.{name}" for name in getattr(self.own, "lora_targets", linear)]

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """What the generator predicts.  A rank without samples passes one, so that its gradients exist and are zero."""
        if not len(x):
            return self.forward(x.new_zeros(1, *x.shape[1:]), t.new_zeros(1), condition.new_zeros(1))[:0]
        if self.predicts == "velocity":
            velocity: torch.Tensor = self._attribute("velocity")(x, t, condition)
            return velocity
        noise: torch.Tensor = self._attribute("noise")(x, t, condition)
        if noise.shape[1] == 2 * x.shape[1]:
            return noise
        return torch.cat([noise, torch.full_like(noise, -1.0)], dim=1)  # −1 is the lower bound of the variance

    def _attribute(self, name: str) -> Any:
        return getattr(self.own, name)

    def describe(self) -> str:
        """The class that the user wrote."""
        return f"{type(self.own).__name__} of {self.name}"


def build_own_model(text: str, prompts: Prompts | None = None) -> OwnModel:
    """The generator of --model `text`, tried on two samples; ValueError, in one sentence, if it is none."""
    builder = load_object("--model", text)
    if not callable(builder):
        raise ValueError(f"--model {text} is a {type(builder).__name__}; name a function that returns the generator")
    own = _built(text, builder, prompts)
    _check_attributes(text, own)
    model = OwnModel(own, text, prompts).eval()
    _check_conditions(text, model, prompts)
    _check_outputs(text, model)
    return model


def _built(text: str, builder: Callable[..., Any], prompts: Prompts | None) -> nn.Module:
    """What the builder returns; its random numbers are those of BUILD_SEED."""
    arguments = () if prompts is None else (list(prompts.texts),)
    try:
        inspect.signature(builder).bind(*arguments)
    except ValueError:
        pass  # a function written in C may have no signature
    except TypeError:
        wanted = "without arguments" if prompts is None else "with the list of prompts of --prompts"
        raise ValueError(f"--model {text} cannot be called {wanted}; change its arguments") from None
    with _raising(text, "it was called"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(BUILD_SEED)
        own = builder(*arguments)
    if not isinstance(own, nn.Module):
        raise ValueError(f"--model {text} returned a {type(own).__name__}, not a torch.nn.Module; return one")
    return own


def _check_attributes(text: str, own: nn.Module) -> None:
    """ValueError for a module that lacks a part of the protocol, or has one of another kind."""
    kind = type(own).__name__
    if not any(callable(getattr(own, name, None)) for name in ("velocity", "noise")):
        raise ValueError(
            f"--model {text} returned a {kind} without velocity(x, t, condition) or noise(x, t, condition)"
        )
    for name in ("sample_shape", "conditions"):
        if not hasattr(own, name):
            raise ValueError(f"--model {text} returned a {kind} without {name}; see docs/guides/own-model.md")
    shape: Any = own.sample_shape
    sizes = tuple(shape) if isinstance(shape, (tuple, list, torch.Size)) else ()
    if len(sizes) != 3 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"--model {text} has sample_shape {shape!r}; it must be three positive numbers (C, H, W)")
    conditions: Any = own.conditions
    of_names = isinstance(conditions, (tuple, list)) and all(isinstance(name, str) for name in conditions)
    if not (of_names and len(conditions)) and not (type(conditions) is int and conditions > 0):
        raise ValueError(
            f"--model {text} has conditions {conditions!r}; it must be a positive number, or a list of names"
        )
    twice = [name for name in conditions if conditions.count(name) > 1] if of_names else []
    if twice:
        raise ValueError(f"--model {text} names the condition {twice[0]!r} twice; give each its own name")
    if not isinstance(getattr(own, "null_condition", None), (int, type(None))):
        raise ValueError(f"--model {text} has null_condition {own.null_condition!r}; it must be a number, or None")


def _conditions(own: Any, prompts: Prompts | None) -> Conditions:
    """The prompts where there are any, else the generator's own list."""
    if prompts is not None:
        return Conditions(prompts.texts, prompts.groups)
    return Conditions.numbered(own.conditions) if isinstance(own.conditions, int) else Conditions(own.conditions)


def _check_conditions(text: str, model: OwnModel, prompts: Prompts | None) -> None:
    """ValueError if the generator has another number of conditions than there are prompts."""
    own: Any = model.own.conditions
    count = own if isinstance(own, int) else len(own)
    if prompts is not None and count != len(prompts.texts):
        raise ValueError(
            f"--model {text} has {count} conditions and --prompts {prompts.path} has {len(prompts.texts)}; build it "
            "with a condition for each prompt"
        )


def _check_outputs(text: str, model: OwnModel) -> None:
    """ValueError unless the generator and its decoder give tensors of the right shape and type, with a gradient."""
    channels, height, width = shape = model.sample_shape
    x, t = torch.zeros(TRIAL, *shape), torch.linspace(0, 1, TRIAL) * (1 if model.predicts == "velocity" else 999)
    condition = torch.arange(TRIAL) % len(model.conditions)
    called = f"{model.predicts} was called on x {list(x.shape)}, t {list(t.shape)} and condition"
    with _raising(text, f"{called} {[TRIAL]}"):
        out: Any = getattr(model.own, model.predicts)(x.requires_grad_(), t, condition)
    if model.null_condition is not None:
        with _raising(text, f"{called} {model.null_condition}, its null_condition"), torch.no_grad():
            getattr(model.own, model.predicts)(x, t, torch.full_like(condition, model.null_condition))
    wanted = [[TRIAL, channels, height, width]]
    if model.predicts == "noise":
        wanted.append([TRIAL, 2 * channels, height, width])
    found = list(out.shape) if isinstance(out, torch.Tensor) else f"a {type(out).__name__}"
    if found not in wanted:
        raise ValueError(
            f"--model {text}: {model.predicts} gives {found} for its sample_shape {shape}; it must give "
            f"{' or '.join(map(str, wanted))}"
        )
    if out.dtype not in (torch.float32, torch.bfloat16, torch.float16):  # a sampler's steps would turn into it
        raise ValueError(f"--model {text}: {model.predicts} gives {out.dtype} for torch.float32; return x.dtype")
    if not out.requires_grad:
        raise ValueError(
            f"--model {text}: {model.predicts} gives no gradient; call it without torch.no_grad and without .detach()"
        )
    if model.decoder is None:
        return
    with _raising(text, f"decode was called on samples {list(x.shape)}"), torch.no_grad():
        images: Any = model.decoder(x)
    fits = isinstance(images, torch.Tensor) and images.dtype == torch.uint8 and images.ndim == 4
    if not fits or len(images) != TRIAL or images.shape[1] not in (1, 3):
        told = f"{images.dtype} {list(images.shape)}" if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(f"--model {text}: decode gives {told}; it must give torch.uint8 [{TRIAL}, 1 or 3, h, w]")


@contextmanager
def _raising(text: str, when: str) -> Iterator[None]:
    """An exception of the user's code as one sentence, with the traceback behind it."""
    try:
        yield
    except Exception as error:
        what = f"{type(error).__name__} ({first_line(error)})"
        raise ValueError(f"--model {text} raised {what} when {when}; correct it") from error
