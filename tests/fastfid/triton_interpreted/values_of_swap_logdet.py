"""The interpreter itself, and values of the kernel swap_logdet.

tests/fastfid/test_triton_values.py runs this file under Triton's interpreter, in a process of its own.
"""

import pytest
import torch
import triton
import triton.language as tl

from tests.support import triton_interpreter
from tests.support.triton_values import EPS, SLACK, assert_as_good_as_torch, far_apart, normal

triton_interpreter.install()

from fastfid.triton_kernels import interpreted, swap_logdet  # noqa: E402


def test_this_process_interprets():
    assert interpreted()


@triton.jit
def round_and_multiply_kernel(a, b, rounded, product, PRECISION: tl.constexpr):
    i = tl.arange(0, 16)
    at = i[:, None] * 16 + i[None, :]
    x, y = tl.load(a + at), tl.load(b + at)
    tl.store(rounded + at, x.to(tl.bfloat16))
    if PRECISION == "bf16":
        x, y = x.to(tl.bfloat16), y.to(tl.bfloat16)
        tl.store(product + at, tl.dot(x, y))
    else:
        tl.store(product + at, tl.dot(x, y, input_precision=PRECISION))


@pytest.mark.parametrize("precision, least, most", [("bf16", 1e-4, 1e-1), ("tf32", 1e-5, 5e-3), ("tf32x3", 0, 4e-6)])
def test_interpreter_rounds_as_tensor_cores(precision, least, most):
    # operands are rounded by up to 2⁻⁹ (bf16), 2⁻¹² (tf32) of their value; the largest of 256 sums of 16 products of
    # order one is off by about 4·4 times that
    a, b = normal(16, 16, seed=1, dtype=torch.float32), normal(16, 16, seed=2, dtype=torch.float32)
    rounded, product = torch.empty(16, 16, dtype=torch.bfloat16), torch.empty(16, 16)
    round_and_multiply_kernel[(1,)](a, b, rounded, product, precision)
    assert torch.equal(rounded, a.to(torch.bfloat16))
    error = (product.double() - a.double() @ b.double()).abs().max().item()
    assert least <= error <= most
    if precision == "bf16":
        exact = a.bfloat16().double() @ b.bfloat16().double()
        torch.testing.assert_close(product.double(), exact, rtol=0, atol=16 * 16 * EPS)


def swap_problem(m_r, m_a, r, batch=2, nodes=2, seed=0):
    """Rows of a consistent change, float32: removed rows are some of a larger set of which the spectrum holds all."""
    spectrum = torch.logspace(0, -4, r, dtype=torch.float64)
    total = m_r + 2 * r + 2
    # orthonormal columns times √λ: the removed rows' Gram matrix stays below Λ
    scores = torch.linalg.qr(normal(batch, total, r, seed=seed)).Q * spectrum.sqrt()
    w_a = normal(batch, m_a, r, seed=seed + 1) * (spectrum / total).sqrt()
    return scores[:, :m_r].float(), w_a.float(), spectrum, torch.logspace(-4, 0, nodes, dtype=torch.float64)


def logdets_in_float32(w_r, w_a, spectrum, tau_squares):
    """What plain torch gives in float32: Gram matrix, J added, LU."""
    w = torch.cat([w_r, w_a], 1)[:, None]
    signs = torch.cat([-torch.ones(w_r.shape[1]), torch.ones(w_a.shape[1])])
    scaled = w * (spectrum + tau_squares[:, None]).rsqrt().float()[:, None]
    return torch.linalg.slogdet(scaled @ scaled.mT + signs.diag()).logabsdet


def check_swap(w_r, w_a, spectrum, tau_squares, precision="tf32x3"):
    logdets, wrong = swap_logdet.swap_logdet(w_r, w_a, spectrum, tau_squares, SLACK, precision)
    expected, none = swap_logdet.swap_logdet_ref(w_r, w_a, spectrum, tau_squares, SLACK)
    assert logdets.dtype == wrong.dtype == torch.float64
    assert not wrong.any() and not none.any()
    # floor: a pivot's rounding, one ε each, for k pivots, and half as much again for tf32x3's products
    k = w_r.shape[1] + w_a.shape[1]
    assert_as_good_as_torch(logdets, expected, logdets_in_float32(w_r, w_a, spectrum, tau_squares), 1.5 * k * EPS)


@pytest.mark.parametrize("m_r, m_a, r", [(1, 0, 5), (0, 1, 41), (1, 1, 1), (7, 9, 41), (15, 17, 70), (16, 30, 33)])
def test_logdets(m_r, m_a, r):
    check_swap(*swap_problem(m_r, m_a, r, nodes=2 if m_r < 10 else 1), "tf32x3")


@pytest.mark.parametrize("m_r, m_a, r", [(2, 3, 41), (20, 13, 35)])
def test_logdets_in_float32_units(m_r, m_a, r):
    check_swap(*swap_problem(m_r, m_a, r, batch=1), "ieee")


@pytest.mark.parametrize("m_r, m_a", [(50, 50), (0, 128)])
def test_logdets_of_the_widest_tile(m_r, m_a):
    check_swap(*swap_problem(m_r, m_a, 70, batch=1, nodes=1))


def test_logdets_of_rows_with_strides():
    w_r, w_a, spectrum, tau_squares = swap_problem(5, 6, 37, batch=3)
    w_r = torch.stack([w_r, w_r + 1], -1)[..., 0]  # every second float
    w_a = w_a.transpose(0, 2).contiguous().transpose(0, 2)
    assert not w_r.is_contiguous() and not w_a.is_contiguous()
    check_swap(w_r, w_a, spectrum[::1], tau_squares)


def test_logdets_beyond_two_to_the_31_elements():
    w_r, w_a, spectrum, tau_squares = swap_problem(3, 4, 20)
    distant = far_apart(2, 2**31 + 48, (3, 20), torch.float32)
    distant.copy_(w_r)
    check_swap(distant, w_a, spectrum, tau_squares)
    distant = far_apart(4, 2**31 // 3 + 16, (20,), torch.float32)  # rows this far apart
    distant.copy_(w_a[0])
    check_swap(w_r[:1], distant[None], spectrum, tau_squares)


def test_small_changes_keep_their_digits():
    # 1 + g rounds to 1 in float32: the log-determinant is the trace of J·G to first order, g² = 1e-18 is next
    w_r, w_a, spectrum, tau_squares = swap_problem(3, 4, 50)
    problem = (w_r * 1e-4, w_a * 1e-4, spectrum, tau_squares)
    logdets, expected = swap_logdet.swap_logdet(*problem)[0], swap_logdet.swap_logdet_ref(*problem)[0]
    assert expected.abs().max() < 1e-6
    torch.testing.assert_close(logdets, expected, rtol=1e-5, atol=1e-15)


@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")  # after the wrong pivot anything goes
def test_wrong_pivot_is_returned():
    w_r, w_a, spectrum, tau_squares = swap_problem(4, 4, 30, batch=3)
    w_r[1] *= 50  # leverages far above one: no rows of this reference
    logdets, wrong = swap_logdet.swap_logdet(w_r, w_a, spectrum, tau_squares)
    _, expected = swap_logdet.swap_logdet_ref(w_r, w_a, spectrum, tau_squares)
    assert logdets[1].isnan().all() and logdets[[0, 2]].isfinite().all()
    assert (wrong[1] > SLACK).all() and not wrong[[0, 2]].any()
    torch.testing.assert_close(wrong, expected, rtol=1e-5, atol=0)


def test_leverage_within_the_slack_is_no_error():
    spectrum, tau_squares = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for leverage, wrong in ((1 + SLACK / 2, False), (1 + 2 * SLACK, True)):
        w_r = torch.full((1, 1, 1), leverage**0.5)
        logdets, _ = swap_logdet.swap_logdet(w_r, w_r[:, :0], spectrum, tau_squares, SLACK)
        assert logdets.isnan().item() is wrong


def test_nan_rows_give_nan():
    w_r, w_a, spectrum, tau_squares = swap_problem(2, 3, 9)
    w_a[0, 1, 4] = torch.nan
    logdets, wrong = swap_logdet.swap_logdet(w_r, w_a, spectrum, tau_squares)
    assert logdets[0].isnan().all() and wrong[0].isnan().all() and logdets[1].isfinite().all()


def test_nothing_to_swap():
    w_r, w_a, spectrum, tau_squares = swap_problem(2, 2, 5)
    assert swap_logdet.swap_logdet(w_r[:0], w_a[:0], spectrum, tau_squares)[0].shape == (0, 2)
    assert swap_logdet.swap_logdet(w_r, w_a, spectrum, tau_squares[:0])[0].shape == (2, 0)
    assert not swap_logdet.swap_logdet(w_r[:, :0], w_a[:, :0], spectrum, tau_squares)[0].any()


def test_wide_changes_fall_back():
    problem = swap_problem(70, 71, 90, batch=3, nodes=1)
    check_swap(*problem)
    problem[0][2] *= 50
    logdets, wrong = swap_logdet.swap_logdet(*problem)
    expected, expected_wrong = swap_logdet.swap_logdet_ref(*problem)
    assert logdets[2].isnan().all() and logdets[:2].isfinite().all()
    torch.testing.assert_close(wrong, expected_wrong, rtol=1e-4, atol=0)
