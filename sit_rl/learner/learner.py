"""The generator that is being trained, its optimiser and averages, on torch's own distributed engine.

    one rank         the module itself
    ddp              every rank has a whole copy; gradients are summed during the last backward pass
    fsdp             every rank has a shard of weights, gradients, moments and averages (fully_shard, "FSDP2";
                     sit_rl/learner/sharding.py).
                     Sampling uses a whole copy, filled before each use: sampling then needs no collective, and ranks
                     may sample different numbers of batches and evaluations (dopri5)

Weights and optimiser are float32. bf16 is autocast: matrix products are in bfloat16 and the velocity is returned as
float32, so solver states, log-probabilities and losses are float32; statistics are accumulated in float64.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint as recompute

from sit_rl.config import Config
from sit_rl.learner.sharding import fill_whole, full, shard
from sit_rl.models.averages import EMA, PowerEMA, copy_sharing
from sit_rl.models.generator_model import GeneratorModel
from sit_rl.models.lora import add_lora, lora_size
from sit_rl.models.merging import MergePolicy
from sit_rl.models.precision import bfloat16_forward
from sit_rl.models.sit import compile_blocks
from sit_rl.options.option import filled_in
from sit_rl.options.run import RunOptions
from sit_rl.ranks.process_group import world_size

# Parameters above which `auto` shards: weights, gradients, two moments and one average are 20 bytes a parameter, 6 GB
# here. S and B stay whole (33M, 131M), L and XL are sharded (458M, 675M).
SHARD_ABOVE = 300_000_000
# Compiled versions of a block that torch may keep, 8 by default; beyond it torch runs the block uncompiled. All blocks
# share them. They differ by gradients or none, frozen or trained weights, and 0, 1 or more samples: 12 cases.
COMPILED_CASES = 32
ADAM_SECOND = 0.999  # β₂ of AdamW, torch's default


class Learner:
    """Model, optimiser and averages of a run, and the operations that an update needs.

    module    holds the trained parameters; its state dict is that of the generator.  With LoRA it holds the frozen ones
              in common with the base model and the averages, unless they are sharded
    averages  the first is the one that is evaluated
    """

    def __init__(self, base: GeneratorModel, config: Config, policy: MergePolicy | None = None):
        """Start with a copy of `base`; or train `policy`, whose merged model is the generator, and not `base`."""
        self.config, device = config, next(base.parameters()).device
        if policy is not None:
            self.parallel = choose_parallel(config.run.parallel, sum(p.numel() for p in policy.parameters()))
            self._start(policy, device, [])
            return
        whole = sum(p.numel() for p in base.parameters())
        trained = lora_size(base, config.update.lora) if config.update.lora else whole
        self.parallel = choose_parallel(config.run.parallel, trained)
        if self.parallel == "fsdp" and len({p.dtype for p in base.parameters()} | {torch.float32}) > 1:
            raise ValueError(
                "--parallel fsdp shards weights of one type, and the frozen ones below LoRA are bfloat16; choose "
                "--parallel ddp, or --precision float32"
            )
        module = trainable_copy(base, config, share=self.parallel != "fsdp")
        if not any(p.requires_grad for p in module.parameters()):
            raise ValueError("every parameter of the model is frozen (requires_grad_(False)); leave free what to train")
        frozen = [p for p in module.parameters() if not p.requires_grad] if config.update.lora else []
        self._start(module, device, frozen if self.parallel != "fsdp" else [])

    def _start(self, module: GeneratorModel | MergePolicy, device: torch.device, shared: list[nn.Parameter]) -> None:
        """Averages, optimiser and engine of `module`, whose averages share the parameters `shared`."""
        config = self.config
        averages = [EMA(module, decay, shared) for decay in (config.update.ema, *config.update.ema_extra)]
        averages += [PowerEMA(module, sigma, shared) for sigma in config.update.ema_power]
        self.module, self.averages = module, averages
        self._whole: GeneratorModel | None = None
        if self.parallel == "fsdp" and isinstance(module, GeneratorModel):
            self._whole = copy.deepcopy(module).requires_grad_(False)
        for part in (module, *(average.module for average in averages), *filter(None, [self._whole])):
            if isinstance(part, GeneratorModel):  # the members of a policy are prepared
                prepare(part, config.run, device)
        if self.parallel == "fsdp":
            for part in (module, *(average.module for average in averages)):
                assert isinstance(part, GeneratorModel), "the config refuses to shard a policy"
                shard(part, device, config.run.precision)
        self._copies = DistributedDataParallel(module, gradient_as_bucket_view=True) if self.parallel == "ddp" else None
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.updates = 0
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=filled_in(config.update.lr),
            betas=(filled_in(config.update.momentum), ADAM_SECOND),
            weight_decay=0.0,
            fused=True,
        )

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The module's output with gradients, for a loss: the velocity [n, C, H, W], or a policy's log-probability."""
        model = self.module if self._copies is None else self._copies
        output: torch.Tensor = model(*inputs)
        return output

    def sampler(self) -> GeneratorModel:
        """The current weights as a plain module, for sampling; every rank calls it."""
        return self._plain(self.module)

    def averaged(self, which: int = 0) -> GeneratorModel:
        """An average's weights as a plain module; every rank calls it."""
        return self._plain(self.averages[which].module)

    def _plain(self, module: GeneratorModel | MergePolicy) -> GeneratorModel:
        if isinstance(module, MergePolicy):
            return module.model()
        if self._whole is None:
            return module
        fill_whole(list(self._whole.parameters()), list(module.parameters()))
        return self._whole

    @contextmanager
    def backward(self, last: bool) -> Iterator[None]:
        """Context of a forward and backward pass; the `last` one of an update sums the gradients over ranks."""
        with ExitStack() as stack:
            if self._copies is not None and not last:
                stack.enter_context(self._copies.no_sync())
            if isinstance(self.module, FSDPModule):
                self.module.set_requires_gradient_sync(last)
            yield

    @property
    def gradient_scale(self) -> int:
        """Factor of a loss: both engines divide the sum of gradients by the number of ranks."""
        return world_size() if self.parallel != "none" else 1

    def clip(self) -> float:
        """Scale the gradient down to norm `grad_clip`; returns its norm before, over all ranks' shards."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.update.grad_clip)
        return float(full(norm))

    def step(self, updates: int) -> None:
        """One optimiser step, the run's number `updates` (from 1), and the averages after it."""
        self.optimizer.step()
        self.updates = updates
        for average in self.averages:
            if isinstance(average, PowerEMA):
                average.update_after(self.module, updates)
            else:
                average.update(self.module)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that a checkpoint keeps, by name, sharded or not; loading fills them in place.

        With LoRA they are its terms alone: the weights below are those of the base model.
        """
        kept = {name for name, p in self.module.named_parameters() if p.requires_grad or not self.config.update.lora}
        modules = {"model": self.module}
        modules |= {part: each.module for part, each in zip(self._average_names(), self.averages, strict=True)}
        out: dict[str, torch.Tensor] = {}
        for part, module in modules.items():
            out |= {f"{part}.{name}": p.detach() for name, p in module.named_parameters() if name in kept}
        for name, p in self.module.named_parameters():
            for key, value in self.optimizer.state.get(p, {}).items():
                out[f"optimizer.{name}.{key}"] = value
        return out

    def expect_optimizer_state(self, names: Collection[str]) -> None:
        """Give each parameter that has a state among the `names` of a checkpoint an empty one of AdamW, to load into.

        A parameter that no loss depends on, as an own model may have, has none.
        """
        for name, p in self.module.named_parameters():
            if not p.requires_grad or f"optimizer.{name}.exp_avg" not in names:
                continue
            zeros = {key: torch.zeros_like(p, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[p] = {"step": torch.zeros((), dtype=torch.float32, device=p.device), **zeros}

    def _average_names(self) -> list[str]:
        """Names of the averages in a checkpoint: `ema` is the evaluated one, the others name their width."""
        update = self.config.update
        more = [f"ema-{decay:g}" for decay in update.ema_extra] + [f"ema-power-{s:g}" for s in update.ema_power]
        return ["ema", *more]


def trainable_copy(base: GeneratorModel, config: Config, share: bool) -> GeneratorModel:
    """A copy of `base` with the parameters that the run trains, all or LoRA's.

    share  hold the weights below LoRA in common with `base`
    """
    if config.update.lora:
        module = copy_sharing(base, base.parameters() if share else ())
        add_lora(module, config.update.lora, config.seed)
        return module
    module = copy.deepcopy(base)
    for name, p in module.named_parameters():
        p.requires_grad_(name not in base.frozen)
    return module


def choose_parallel(asked: str, parameters: int) -> str:
    """`none` on one rank; else `asked`, where `auto` means fsdp above SHARD_ABOVE trained parameters."""
    if world_size() == 1:
        return "none"
    return ("fsdp" if parameters > SHARD_ABOVE else "ddp") if asked == "auto" else asked


def prepare(model: GeneratorModel, run: RunOptions, device: torch.device) -> GeneratorModel:
    """Give `model` the run's precision, recomputation and compilation, in place; deep copies keep the first two."""
    for block in model.units():
        if run.activation_checkpointing:
            block.forward = types.MethodType(_recomputed, block)
    if run.compile == "on" or (run.compile == "auto" and device.type == "cuda"):
        # `auto` does not compile on a CPU: 24 steps of the default run do not repay the 45 s (docs/performance.md).
        torch._dynamo.config.recompile_limit = max(COMPILED_CASES, torch._dynamo.config.recompile_limit)
        compile_blocks(model, device)
    if run.precision == "bf16":
        model.forward = types.MethodType(bfloat16_forward, model)  # type: ignore[method-assign]
    return model


def _recomputed(self: nn.Module, *inputs: Any, **named: Any) -> torch.Tensor:
    """A block's forward that keeps only its inputs, and computes the rest again in the backward pass."""
    forward: Callable[..., torch.Tensor] = type(self).forward
    if not torch.is_grad_enabled():
        return forward(self, *inputs, **named)
    out: torch.Tensor = recompute(forward, self, *inputs, use_reentrant=False, **named)
    return out
