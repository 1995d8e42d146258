"""Draws belong to samples: no batch, rank or order changes them, and no two streams share one."""

import numpy as np
import torch

from sit_rl.sampling.random_streams import Stream, balanced_labels, generator, generators, sample_normal


def test_a_sample_has_the_same_noise_in_any_batch():
    whole = sample_normal(3, Stream.INITIAL, 5, range(10), (2, 4))
    parts = [sample_normal(3, Stream.INITIAL, 5, rows, (2, 4)) for rows in (range(0, 3), range(3, 10))]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole[[7, 2]], sample_normal(3, Stream.INITIAL, 5, [7, 2], (2, 4)))


def test_a_generator_addressed_anew_is_a_new_one():
    """Also after draws that leave half a word behind."""
    for index, drawn in zip([5, 0, 9], generators(3, Stream.SDE, 7, [5, 0, 9]), strict=True):
        fresh = generator(3, Stream.SDE, 7, index)
        for g in (drawn, fresh):
            g.integers(10, dtype=np.uint32)
        assert np.array_equal(drawn.standard_normal(7, np.float32), fresh.standard_normal(7, np.float32))


def test_streams_steps_seeds_and_samples_differ():
    first = sample_normal(0, Stream.INITIAL, 0, [0], (8,))
    others = [
        sample_normal(1, Stream.INITIAL, 0, [0], (8,)),
        sample_normal(0, Stream.SDE, 0, [0], (8,)),
        sample_normal(0, Stream.INITIAL, 1, [0], (8,)),
        sample_normal(0, Stream.INITIAL, 0, [1], (8,)),
    ]
    draws = torch.cat([first, *others])
    assert len({float(v) for v in draws.flatten()}) == draws.numel()


def test_long_draws_do_not_run_into_the_next_step():
    """A stream's counter is 2^128 blocks away from its neighbours."""
    long = generator(0, Stream.SDE, 0).standard_normal(100_000)
    after = generator(0, Stream.SDE, 1).standard_normal(10)
    assert not set(after) & set(long)


def test_noise_is_standard_normal():
    x = sample_normal(0, Stream.SDE, 0, range(200), (1000,))
    # 200,000 draws: standard errors 0.0022 and 0.0016
    assert abs(float(x.mean())) < 0.01 and abs(float(x.std()) - 1) < 0.007
    assert x.dtype == torch.float32


def test_empty_and_balanced():
    assert sample_normal(0, Stream.SDE, 0, [], (2, 3)).shape == (0, 2, 3)
    assert torch.bincount(balanced_labels(1000, 10)).tolist() == [100] * 10
