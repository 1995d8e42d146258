"""Batches in two stages: in order, side by side, and with their errors."""

import threading
import time

import pytest
import torch

from sit_rl.ranks.cpu_batches import map_in_two_stages, overlap


class Inline:
    """What a stream is on a machine without one."""

    def mark(self):
        return None

    def work(self, call):
        second, made, _ = call
        return second(made)


def test_two_stages_keep_the_order_and_take_no_gradients():
    first = lambda i: torch.ones(2, requires_grad=True) * i  # noqa: E731
    results = [map_in_two_stages(first, lambda x: x + 1, range(5), torch.device("cpu"))]
    results.append(overlap(first, lambda x: x + 1, range(5), Inline()))
    for result in results:
        values = list(result)
        assert [float(v[0]) for v in values] == [1, 2, 3, 4, 5] and not any(v.requires_grad for v in values)


def test_second_stage_works_while_the_first_goes_on():
    """The first stage of batch i + 1 only ends once the second of batch i has begun: in turn they would never end."""
    begun = [threading.Event() for _ in range(4)]

    def first(i):
        assert i == 0 or begun[i - 1].wait(10)
        return i

    def second(i):
        begun[i].set()
        time.sleep(0.01)
        return i

    assert list(overlap(first, second, range(4), Inline())) == [0, 1, 2, 3]


@pytest.mark.parametrize("stage", [0, 1])
def test_an_error_of_either_stage_ends_the_iteration(stage):
    def fail(i):
        if i == 2:
            raise FloatingPointError("batch 2")
        return i

    stages = [lambda i: i, lambda i: i]
    stages[stage] = fail
    seen = []
    with pytest.raises(FloatingPointError, match="batch 2"):
        for value in overlap(*stages, range(5), Inline()):
            seen.append(value)
    assert seen == ([0] if stage == 0 else [0, 1])
