"""The ranks of a torchrun: which images each reads, which one computes, and how an error of one stops all.

Images are divided by global index into whole shards, contiguous for each rank.  So every network sees the same batches
as in one process, and the gathered features are the same to the last bit.  Rank 0 computes the metrics and sends the
result to all.  Ranks exchange their errors before they continue: every rank stops with one sentence, and none hangs.
With one process, these functions do nothing.

Features are gathered on the host by gloo, whatever backend the caller's process group has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fastfid.runtime.errors import OtherRankFailed
from fastfid.runtime.mapped_arrays import room

# Without cached features, a rank may work for hours while another waits.  A rank that dies closes its connections,
# which ends the wait at once.
TIMEOUT = timedelta(days=1)

Result = TypeVar("Result")

_ALONE = ContextVar("alone", default=False)


@contextmanager
def process_group() -> Iterator[None]:
    """Join the ranks that torchrun describes, if any, for as long as the block lasts."""
    joins = int(os.environ.get("WORLD_SIZE", 1)) > 1 and dist.is_available() and not dist.is_initialized()
    if joins:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        if joins:
            dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Within this block the process ignores the other ranks, because not all of them call what is inside."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def rank() -> int:
    """Rank of this process, 0 … world − 1."""
    return dist.get_rank() if world_size() > 1 else 0


def world_size() -> int:
    """Number of processes that work together."""
    grouped = dist.is_available() and dist.is_initialized() and not _ALONE.get()
    return dist.get_world_size() if grouped else 1


def is_main() -> bool:
    """Whether this process computes the metrics, prints and writes."""
    return rank() == 0


def local_device(device: str) -> str:
    """ "cuda" as the GPU of this rank on its machine; anything else as it is."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


def owned(count: int, chunk: int) -> tuple[int, int]:
    """First and last + 1 of the `count` images that this rank reads: whole chunks, divided evenly."""
    chunks = -(-count // chunk)
    first, last = ((rank() + i) * chunks // world_size() for i in (0, 1))
    return min(count, first * chunk), min(count, last * chunk)


@contextmanager
def agreement() -> Iterator[None]:
    """All ranks leave this block, or none: the error of the lowest failing rank stops every one."""
    if world_size() == 1:
        yield
        return
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    first = next((told for told in gather_objects(error and f"{error}") if told is not None), None)
    if first is None:
        return
    if not is_main():
        raise OtherRankFailed(first) from error
    raise error if error is not None and f"{error}" == first else ValueError(first)


def from_main(compute: Callable[[], Result]) -> Result:
    """The result of compute() on rank 0, on every rank; an error is raised on every rank too."""
    if world_size() == 1:
        return compute()
    outcome: list[Any] = [None]
    with agreement():
        if is_main():
            outcome = [compute()]
    dist.broadcast_object_list(outcome, src=0, group=host_group())
    result: Result = outcome[0]
    return result


def gather_objects(item: Any) -> list[Any]:
    """The items of all ranks in order, on every rank; they are pickled."""
    if world_size() == 1:
        return [item]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, item, group=host_group())
    return found


def gather_rows(x: Tensor) -> Tensor | None:
    """Rows x float32 [n_r, d] of all ranks, in order, on rank 0; None on the others."""
    if world_size() == 1:
        return x
    counts = gather_objects(len(x))
    if not is_main():
        if len(x):
            dist.send(x.contiguous(), dst=0, group=host_group())
        return None
    rows = torch.from_numpy(room((sum(counts), *x.shape[1:]), np.float32))
    rows[: counts[0]], filled = x, counts[0]
    for source, count in enumerate(counts[1:], start=1):
        if count:
            dist.recv(rows[filled : filled + count], src=source, group=host_group())
        filled += count
    return rows


def host_group() -> dist.ProcessGroup:
    """A gloo group of all ranks: the caller's own, or one beside it."""
    world = dist.group.WORLD
    if world is None:
        raise RuntimeError("there is no process group; call this within process_group()")
    return world if "cpu:gloo" in dist.get_backend_config() else _gloo_beside(world)


@cache
def _gloo_beside(world: dist.ProcessGroup) -> Any:
    """Made once for each process group `world`, by all ranks together."""
    return dist.new_group(backend="gloo", timeout=TIMEOUT)
