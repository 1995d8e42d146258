"""Shards of a model on several ranks: how they are cut, and how a whole copy is filled from them.

Blocks are units of their own.  In bf16 the weights of a block travel and compute in bfloat16 if all of them belong to
layers whose weights autocast rounds to bfloat16 anyway, as SiT's do; gradients are summed in float32.  Everything else
(embeddings, norms with weights, the last layer) stays float32.
"""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from sit_rl.models.generator_model import GeneratorModel
from sit_rl.ranks.process_group import world_size

# Most bytes that one collective of `fill_whole` brings. SiT-XL's 2.7 GB of weights come in 11, not in one for each of
# its 400 tensors; larger pieces would need as much memory again.
BUCKET_BYTES = 256 << 20

# Layers whose weights and biases autocast rounds to bfloat16 before it multiplies.
ROUNDED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def shard(model: GeneratorModel, device: torch.device, precision: str) -> None:
    """Shard every block as a unit of its own, then the rest; `precision` as `--precision` takes it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # A velocity is a view, a slice of the last layer's channels. The warning is about writing into views: we do not.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
    mesh = init_device_mesh(device.type, (world_size(),))
    # activations between blocks stay as autocast leaves them
    half = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in model.units():
        rounded = precision == "bf16" and _only_rounded_weights(block)
        fully_shard(block, mesh=mesh, mp_policy=half if rounded else MixedPrecisionPolicy())
    fully_shard(model, mesh=mesh)


def _only_rounded_weights(block: nn.Module) -> bool:
    """Whether autocast rounds every weight of the block to bfloat16."""
    return all(
        isinstance(layer, ROUNDED)
        for layer in block.modules()
        if next(layer.parameters(recurse=False), None) is not None
    )


def full(x: torch.Tensor) -> torch.Tensor:
    """A tensor whole: the shards of all ranks where it is sharded."""
    return x.full_tensor() if isinstance(x, DTensor) else x


@torch.no_grad()
def fill_whole(whole: list[torch.Tensor], parts: list[torch.Tensor]) -> None:
    """Copy `parts`, sharded by rows or not, into the whole tensors, with one collective for each BUCKET_BYTES."""
    bucket: list[tuple[torch.Tensor, DTensor]] = []
    held = 0
    for to, part in zip(whole, parts, strict=True):
        if not isinstance(part, DTensor):
            to.copy_(part)
            continue
        bucket.append((to, part))
        held += to.numel() * to.element_size()
        if held >= BUCKET_BYTES:
            _fill(bucket)
            bucket, held = [], 0
    if bucket:
        _fill(bucket)


def _fill(bucket: list[tuple[torch.Tensor, DTensor]]) -> None:
    """Gather these tensors, which share a dtype and a group, in one collective.

    Every rank sends ⌈rows/ranks⌉ rows of each, the last ranks' filled up, as all parts of a collective are equal.
    """
    group = bucket[0][1].device_mesh.get_group()
    ranks = dist.get_world_size(group)
    rows = [-(-len(to) // ranks) for to, _ in bucket]
    sizes = [count * to[0].numel() for count, (to, _) in zip(rows, bucket, strict=True)]
    mine = bucket[0][0].new_zeros(sum(sizes))
    for room, (_, part) in zip(mine.split(sizes), bucket, strict=True):
        local = part.to_local().flatten()
        room[: local.numel()] = local
    everyone = mine.new_empty(ranks * mine.numel())
    dist.all_gather_into_tensor(everyone, mine, group=group)
    for found, (to, _) in zip(everyone.view(ranks, -1).split(sizes, dim=1), bucket, strict=True):
        to.copy_(found.reshape(-1)[: to.numel()].view_as(to))
