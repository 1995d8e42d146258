"""The few collective operations a run needs; all of them are the identity on a single rank.

Work is divided by global sample index: chunk i of a list belongs to rank i·world // chunks, so the samples, their
grouping into batches and their order are the same whatever the number of ranks.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

# A rank that dies leaves the others waiting in a collective; they give up after this long.
TIMEOUT = timedelta(minutes=10)


def initialise(threads: int = 0) -> torch.device:
    """Join the process group that torchrun describes, if any; returns this rank's device and sets its CPU threads."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    local, local_world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", world))
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local)
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // local_world))
    torch.set_flush_denormal(True)  # gradients far below float32's range would otherwise slow a CPU ten times
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
    return torch.device("cuda", local) if cuda else torch.device("cpu")


@contextmanager
def process_group(threads: int = 0):
    """Yield this rank's device; at the end leave the process group and undo `initialise`'s other settings."""
    threads_before = torch.get_num_threads()
    try:
        yield initialise(threads)
    finally:
        torch.set_num_threads(threads_before)
        torch.set_flush_denormal(False)
        if dist.is_initialized():
            dist.destroy_process_group()


def rank() -> int:
    """Number of this process, 0 … world − 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process prints and writes."""
    return rank() == 0


def barrier() -> None:
    """Wait for every rank."""
    if world_size() > 1:
        dist.barrier()


def owned(count: int, chunk: int, of_rank: int | None = None) -> range:
    """Global indices of the samples that a rank (default: this one) makes out of `count` cut into chunks."""
    chunks, r = -(-count // chunk), rank() if of_rank is None else of_rank
    first, last = (-(-(r + i) * chunks // world_size()) for i in (0, 1))
    return range(min(count, first * chunk), min(count, last * chunk))


def gather_owned(x: torch.Tensor, count: int, chunk: int) -> torch.Tensor:
    """Concatenate every rank's rows [len(owned), ...] into [count, ...] in global order, on every rank."""
    if world_size() == 1:
        return x
    parts = [x.new_empty((len(owned(count, chunk, r)), *x.shape[1:])) for r in range(world_size())]
    # Ranks own different numbers of rows, which all_gather does not allow on every back end: broadcast each part.
    for r, part in enumerate(parts):
        if r == rank():
            part.copy_(x)
        dist.broadcast(part, src=r)
    return torch.cat(parts)


def sum_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Replace every gradient by its sum over the ranks, in one collective."""
    if world_size() == 1:
        return
    for p in parameters:
        if p.grad is None:  # this rank owned none of the minibatch
            p.grad = torch.zeros_like(p)
    flat = torch.cat([p.grad.flatten() for p in parameters])
    dist.all_reduce(flat)
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad.copy_(part.view_as(p))


def sum_scalars(values: dict[str, float]) -> dict[str, float]:
    """Sum each value over the ranks, in float64; every rank passes the same keys."""
    if world_size() == 1:
        return values
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    total = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return dict(zip(values, total.tolist(), strict=True))
