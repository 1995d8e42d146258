"""Values of the kernels moments and rank_update.

tests/fastfid/test_triton_values.py runs this file under Triton's interpreter, in a process of its own.
"""

import pytest
import torch

from tests.support import triton_interpreter
from tests.support.triton_values import EPS, assert_as_good_as_torch, far_apart, normal

triton_interpreter.install()

from fastfid.triton_kernels import moments, rank_update  # noqa: E402


def check_moments(x, centre, precision="tf32x3"):
    sums, scatter = moments.centred_moments(x, centre, precision)
    expected_sums, expected = moments.centred_moments_ref(x, centre)
    y = (x.double() - centre).float()
    size = expected.diagonal().sqrt()
    relative = [s / (size[:, None] * size).clamp(min=1e-300) for s in (scatter, expected, (y.T @ y).double())]
    # floor: the 16-product step of a tensor core and tf32x3's 2⁻²²
    assert_as_good_as_torch(*relative, floor=16 * EPS)
    assert_as_good_as_torch(sums, expected_sums, y.sum(0), floor=16 * EPS * y.abs().sum(0).max().item())
    assert torch.equal(scatter, scatter.T)


@pytest.mark.parametrize("dtype", moments.DTYPES)
@pytest.mark.parametrize("n, d", [(1, 1), (37, 5), (130, 70)])
def test_moments(n, d, dtype):
    x = normal(n, d, seed=n) * torch.logspace(0, -3, d, dtype=torch.float64) + 0.5
    check_moments(x.to(dtype), x.mean(0) + 0.1)


@pytest.mark.parametrize("precision", moments.PRECISIONS)
def test_moments_of_rows_in_several_parts(precision, monkeypatch):
    monkeypatch.setattr(moments, "CHUNK", 32)
    for full in (592, 2):  # a chunk a program, and several
        monkeypatch.setattr(moments, "FULL", full)
        x = normal(4 * 32 + 9, 7, seed=3, dtype=torch.float32)
        check_moments(x, torch.zeros(7, dtype=torch.float64), precision)


def test_moments_under_a_large_offset():
    # 10⁴ standard deviations: float32 itself resolves 2⁻¹¹ of a deviation, and all of that is kept
    x = (normal(60, 9, seed=4) + 1e4).float()
    check_moments(x, x.double().mean(0))


def test_moments_of_columns_with_strides():
    x = normal(40, 66, seed=5, dtype=torch.float32)
    check_moments(x[:, ::2], torch.zeros(33, dtype=torch.float64))
    check_moments(x.T, torch.zeros(40, dtype=torch.float64))
    check_moments(x[:1].expand(20, 66), torch.zeros(66, dtype=torch.float64))


def test_moments_beyond_two_to_the_31_elements():
    x = far_apart(5, 2**31 // 4 + 8, (6,), torch.float16)
    x.copy_(normal(5, 6, seed=6))
    check_moments(x, torch.zeros(6, dtype=torch.float64))


def test_moments_of_no_rows():
    sums, scatter = moments.centred_moments(torch.empty(0, 4), torch.zeros(4, dtype=torch.float64))
    assert sums.shape == (4,) and scatter.shape == (4, 4) and not sums.any() and not scatter.any()


@pytest.mark.parametrize("parts", [(50,), (1, 49), (0, 20, 30)])
def test_stream_of_moments(parts):
    x = normal(50, 6, seed=7, dtype=torch.float32) + 100
    state = (0, torch.zeros(6, dtype=torch.float64), torch.zeros(6, 6, dtype=torch.float64))
    for rows in x.split(parts):
        state = moments.update_moments(*state, rows)
    assert state[0] == 50
    # deviations of order one about a centre taken from the rows: the float32 part of 50 products
    torch.testing.assert_close(state[1], x.double().mean(0), rtol=0, atol=50 * EPS)
    torch.testing.assert_close(state[2], torch.cov(x.double().T), rtol=0, atol=50 * EPS)


def check_rank_update(matrix, w_r, w_a, scale, precision="tf32x3", dtype=torch.float32, floor=4 * EPS):
    out = rank_update.rank_update(matrix, w_r, w_a, scale, input_precision=precision, dtype=dtype)
    expected = rank_update.rank_update_ref(matrix, w_r, w_a, scale)
    factor = torch.as_tensor(scale, dtype=torch.float32).reshape(-1, 1, 1)
    plain = (factor * (matrix - w_r.mT @ w_r + w_a.mT @ w_a)).to(dtype)
    assert out.dtype == dtype and torch.equal(out, out.mT)
    assert_as_good_as_torch(out, expected, plain, floor * expected.abs().max().item())


@pytest.mark.parametrize("precision", rank_update.PRECISIONS)
@pytest.mark.parametrize("n, m_r, m_a", [(1, 1, 1), (41, 0, 3), (70, 33, 5)])
def test_rank_update(n, m_r, m_a, precision):
    matrix = torch.logspace(0, -6, n).diag() + 0.1
    w_r, w_a = normal(2, m_r, n, seed=1, dtype=torch.float32), normal(2, m_a, n, seed=2, dtype=torch.float32)
    check_rank_update(matrix, w_r, w_a, torch.tensor([1.5, 0.25], dtype=torch.float64), precision)


def test_rank_update_in_bfloat16_with_strides():
    matrix = normal(36, 36, seed=3, dtype=torch.float32)
    matrix = (matrix + matrix.T).T
    w_r = normal(36, 4, 3, seed=4, dtype=torch.float32).permute(2, 1, 0)
    w_a = normal(3, 10, 72, seed=5, dtype=torch.float32)[:, ::2, ::2]
    check_rank_update(matrix, w_r, w_a, 0.99)
    check_rank_update(matrix, w_r, w_a, 0.99, dtype=torch.bfloat16, floor=2.0**-9)


def test_rank_update_beyond_two_to_the_31_elements():
    w_a = far_apart(2, 2**31 + 16, (3, 8), torch.float32)
    w_a.copy_(normal(2, 3, 8, seed=6))
    check_rank_update(torch.eye(8), w_a[:, :0], w_a, 1.0)


def test_rank_update_of_no_candidates():
    assert rank_update.rank_update(torch.eye(4), torch.empty(0, 2, 4), torch.empty(0, 2, 4)).shape == (0, 4, 4)
    assert rank_update.rank_update(torch.eye(0), torch.empty(2, 2, 0), torch.empty(2, 2, 0)).shape == (2, 0, 0)
