"""KID and MMD beside each other compute their products once, and give the same bits as apart."""

import pytest
import torch

from fastfid import KernelReward, swap_credit
from fastfid.distances import kernel_sums
from tests.support.small_network import features

REAL, ROWS = features(300, 1), features(40, 2, 0.2)
REMOVED, ADDED = torch.arange(12).view(4, 3), features(12, 3).view(4, 3, -1)


def rewards(shared, dtype=torch.float32):
    kid = KernelReward(REAL, dtype=dtype)
    return kid, KernelReward(REAL.clone(), "gaussian", dtype=dtype, beside=kid if shared else None)


def answers(prepared):
    return [
        torch.tensor([prepared.distance], dtype=torch.float64),
        prepared.change(REMOVED, ADDED),
        swap_credit(prepared, REMOVED, ADDED),
        prepared.leave_one_out(),
        prepared.gradient(),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_bits_for_half_of_the_products(monkeypatch, dtype):
    passes = []
    whole = kernel_sums._sums_of
    monkeypatch.setattr(kernel_sums, "_sums_of", lambda *arguments: passes.append(1) or whole(*arguments))
    found, counted = {}, {}
    for shared in (True, False):
        pair = rewards(shared, dtype)
        passes.clear()
        # in the trainer's order: all are prepared, then all are asked, and the rows are slices of one matrix
        matrix = torch.cat([ROWS, torch.zeros(len(ROWS), 2)], dim=1)
        prepared = [reward.prepare(matrix[:, : ROWS.shape[1]]) for reward in pair]
        found[shared] = [answers(one) for one in prepared]
        counted[shared] = len(passes)
    for together, apart in zip(found[True], found[False], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))
    assert 0 < counted[True] <= counted[False] / 2


def test_a_set_or_rows_that_changed_are_computed_again():
    kid, mmd = rewards(shared=True)
    rows, new = ROWS.clone(), ADDED.clone()
    kid.prepare(rows).change(REMOVED, new)
    rows[3] += 1
    new[0] -= 1
    expected = rewards(shared=False)[1].prepare(rows)
    prepared = mmd.prepare(rows)
    assert prepared.distance == expected.distance
    assert torch.equal(prepared.change(REMOVED, new), expected.change(REMOVED, new))
    with torch.inference_mode():  # such tensors do not count what is written into them
        fresh = rows + 1
        a = kid.prepare(fresh).distance
        fresh -= 1
        assert kid.prepare(fresh).distance != a


def test_real_rows_swapped_in_are_paired_with_themselves():
    kid, mmd = rewards(shared=True)
    alone = rewards(shared=False)
    for reward, expected in zip((kid, mmd), alone, strict=True):
        swap = torch.arange(5)[None], reward.real[None, :5]
        assert torch.equal(reward.prepare(ROWS).change(*swap), expected.prepare(ROWS).change(*swap))
    every = torch.zeros(1, 0, dtype=torch.int64), kid.real[None]
    for reward, expected in zip((kid, mmd), alone, strict=True):
        assert torch.equal(reward.prepare(ROWS).change(*every), expected.prepare(ROWS).change(*every))


def test_rewards_of_other_rows_do_not_stand_beside_each_other():
    for other in (KernelReward(REAL[:50], dtype=torch.float32), KernelReward(REAL)):
        with pytest.raises(ValueError, match="mmd cannot share products with kid: beside must have the same real rows"):
            KernelReward(REAL, "gaussian", dtype=torch.float32, beside=other)
