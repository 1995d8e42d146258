"""Random numbers that belong to a sample and not to a process: one rank and many make the same images.

Every draw is a Philox-4x64 stream (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") addressed by
(seed, sample index, stream, step). The first two are its key, the last two the high words of its counter. So streams
never overlap, a resume needs no saved state, and neither the number of ranks nor the batch size changes a draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """Purpose of a draw. Each value is a stream of its own for the same (seed, index, step)."""

    INITIAL = 0  # the noise a sample starts from
    SDE = 1  # the noise of the sampler's stochastic steps
    LABEL = 2  # class labels
    SUBSET = 3  # which rows of the reference a candidate replaces
    MATCHING = 4  # times and noise of the flow-matching surrogate
    SHUFFLE = 5  # order of the update's minibatches
    PRETRAIN = 6  # everything random in pretraining
    EVALUATE = 7  # the noise evaluations start from
    EVALUATE_SDE = 8  # the noise of their stochastic steps
    REFERENCE = 9  # the noise a reference set starts from
    REFERENCE_SDE = 10  # the noise of its stochastic steps
    MERGE = 11  # coefficients of merged models


# Fixed step number of the noise of evaluations and `sit_rl.sample`.
EVALUATION_STEP = 0


def generator(seed: int, stream: Stream, step: int, index: int = 0) -> np.random.Generator:
    """A NumPy generator addressed by (seed, stream, step, index), all non-negative."""
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, int(stream), step]))


def generators(seed: int, stream: Stream, step: int, indices: Iterable[int]) -> Iterator[np.random.Generator]:
    """The `generator` of each index in turn. It is one object with a new address: use it before taking the next.

    A new object takes 40 µs, most of it for system entropy that a given key does not need; a new address takes 9 µs.
    """
    drawn = generator(seed, stream, step)
    state = drawn.bit_generator.state
    for index in indices:
        state["state"]["key"][1] = index
        drawn.bit_generator.state = state
        yield drawn


def sample_normal(
    seed: int, stream: Stream, step: int, indices: range | list[int], shape: tuple[int, ...]
) -> torch.Tensor:
    """Standard normal float32 [len(indices), *shape]. Row i depends only on the stream of sample `indices[i]`."""
    rows = [g.standard_normal(shape, dtype=np.float32) for g in generators(seed, stream, step, indices)]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty((0, *shape))


def balanced_labels(count: int, num_classes: int) -> torch.Tensor:
    """int64 [count]: the class of sample i is i mod num_classes, so all classes are equally frequent (± 1)."""
    return torch.arange(count) % num_classes
