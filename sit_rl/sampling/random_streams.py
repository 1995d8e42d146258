"""Random numbers that belong to a sample, not to a process: the same images on one rank or on many.

Every draw is a Philox-4x64 stream (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") addressed by
(seed, sample index, stream, step): the first two are its key, the last two its counter's high words, so streams never
overlap, nothing needs saving for a resume, and the number of ranks or the batch size changes no draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What a draw is for; each value is a separate stream of the same (seed, index, step)."""

    INITIAL = 0  # the noise a sample starts from
    SDE = 1  # the noise of the sampler's stochastic steps
    LABEL = 2  # class labels
    SUBSET = 3  # which rows of the reference a candidate replaces
    MATCHING = 4  # times and noise of the flow-matching surrogate
    SHUFFLE = 5  # order of the update's minibatches
    PRETRAIN = 6  # everything random in pretraining
    EVALUATE = 7  # the noise evaluations start from
    EVALUATE_SDE = 8  # and that of their stochastic steps
    REFERENCE = 9  # the noise a reference set starts from
    REFERENCE_SDE = 10  # and that of its stochastic steps


# Fixed step number of the noise that evaluations and `sit_rl.sample` start from, apart from any training step's.
EVALUATION_STEP = 0


def generator(seed: int, stream: Stream, step: int, index: int = 0) -> np.random.Generator:
    """A NumPy generator addressed by (seed, stream, step, index), all non-negative."""
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, int(stream), step]))


def generators(seed: int, stream: Stream, step: int, indices: Iterable[int]) -> Iterator[np.random.Generator]:
    """The `generator` of each index in turn, one object that is addressed anew: use it before asking for the next.

    A new one takes 40 µs, most of them for entropy from the system that a given key does not need; this one 9.
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
    """Standard normal float32 [len(indices), *shape], row i drawn from the stream of sample `indices[i]` alone."""
    rows = [g.standard_normal(shape, dtype=np.float32) for g in generators(seed, stream, step, indices)]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty((0, *shape))


def balanced_labels(count: int, num_classes: int) -> torch.Tensor:
    """Class of sample i is i mod num_classes: int64 [count], every class as often as every other (± 1)."""
    return torch.arange(count) % num_classes
