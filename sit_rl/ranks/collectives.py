"""The collective operations of a run. On a single rank each of them returns its argument.

Work is divided by global sample index, in whole chunks: chunk i belongs to rank i·world // chunks. So the samples,
their batches and their order do not depend on the number of ranks.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from sit_rl.ranks.process_group import rank, world_size


def any_rank(here: bool) -> bool:
    """Whether `here` is true on any rank. All ranks call it."""
    return sum_scalars({"any": float(here)})["any"] > 0


def owned_samples(count: int, chunk: int, of_rank: int | None = None) -> range:
    """Global indices of the samples, out of `count`, that a rank (default: this one) makes, in whole chunks."""
    chunks, r = -(-count // chunk), rank() if of_rank is None else of_rank
    first, last = (-(-(r + i) * chunks // world_size()) for i in (0, 1))
    return range(min(count, first * chunk), min(count, last * chunk))


def gather_owned(x: torch.Tensor, count: int, chunk: int, first: int | None = None) -> torch.Tensor:
    """Concatenate the rows [n_rank, ...] of all ranks into [count, ...] in global order, on every rank.

    first  gather only the first so many rows
    """
    stop = count if first is None else min(first, count)
    if world_size() == 1:
        return x[:stop]
    sizes = [
        max(0, min(stop, rows.stop) - rows.start)
        for rows in (owned_samples(count, chunk, r) for r in range(world_size()))
    ]
    parts = [x.new_empty((size, *x.shape[1:])) for size in sizes]
    # Ranks own different numbers of rows, and not every back end gathers unequal parts: broadcast each part.
    for r, part in enumerate(parts):
        if r == rank():
            part.copy_(x[: sizes[r]])
        if sizes[r]:
            dist.broadcast(part, src=r)
    return torch.cat(parts)


def broadcast_from_main(x: torch.Tensor) -> torch.Tensor:
    """The main rank's `x` on every rank. Values that decide how often ranks meet must agree to the last bit."""
    if world_size() > 1:
        x = x.clone()
        dist.broadcast(x, src=0)
    return x


def sum_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Replace every gradient by its sum over the ranks, in one all-reduce."""
    if world_size() == 1:
        return
    gradients = []
    for p in parameters:
        if p.grad is None:  # this rank owned none of the minibatch
            p.grad = torch.zeros_like(p)
        gradients.append(p.grad)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([p.numel() for p in parameters]), strict=True):
        gradient.copy_(part.view_as(gradient))


def sum_scalars(values: dict[str, float]) -> dict[str, float]:
    """Sum each value over the ranks in float64. All ranks pass the same keys."""
    if world_size() == 1:
        return values
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    total = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return dict(zip(values, total.tolist(), strict=True))
