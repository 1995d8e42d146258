"""The interpreter itself, and values of the kernels of one call of the engine.

tests/fastfid/test_triton_values.py runs this file under Triton's interpreter, in a process of its own.
"""

import math

import pytest
import torch
import triton
import triton.language as tl

from tests.support import triton_interpreter
from tests.support.triton_values import EPS, SLACK, assert_as_good_as_torch, far_apart, normal

triton_interpreter.install()

from fastfid.triton_kernels import centre_sums, interpreted, ldl_logdet, plan_grams, project  # noqa: E402


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


# --- Gram matrices of a plan's functions ------------------------------------------------------------------------------


def planned(k, r, batch=2, seed=0):
    """Rows [batch, k, r], and functions of both signs on slices of all lengths, two or one on each."""
    bounds = sorted({0, r // 3, r // 2 + 1, r})
    first, stop = ([b for b in ends for _ in (0, 1)][:-1] for ends in (bounds[:-1], bounds[1:]))
    offset = [sum(b - a for a, b in zip(first[:f], stop[:f], strict=True)) for f in range(len(first))]
    functions = normal(offset[-1] + stop[-1] - first[-1], seed=seed + 1, dtype=torch.float32)
    places = [
        torch.tensor(x, dtype=kind) for x, kind in ((first, torch.int32), (stop, torch.int32), (offset, torch.int64))
    ]
    return normal(batch, k, r, seed=seed, dtype=torch.float32), functions, *places


@pytest.mark.parametrize("k, r", [(1, 5), (7, 41), (17, 33), (40, 50), (100, 37), (128, 20)])
def test_grams_of_a_plan(k, r):
    problem = planned(k, r, batch=1 if k > 50 else 2)
    found, expected = plan_grams.plan_grams(*problem), plan_grams.plan_grams_ref(*problem)
    plain = torch.stack([(problem[0][:, :, a:b] * problem[1][o : o + b - a]) @ problem[0][:, :, a:b].mT
                         for a, b, o in zip(*(x.tolist() for x in problem[2:]), strict=True)], 1)  # fmt: skip
    w, functions, *places = problem
    sums = plan_grams.plan_grams_ref(w.abs(), functions.abs(), *places)
    # a tf32x3 product errs by up to 2⁻²² of its size, four times as much as a float32 one
    assert_as_good_as_torch(found, expected, plain, 4 * EPS * sums.max().item())


def test_grams_of_rows_far_apart():
    """Candidates and rows past 2³¹ elements."""
    w, *plan = planned(3, 20)
    distant = far_apart(2, 2**31 + 48, (3, 20), torch.float32)
    distant.copy_(w)
    torch.testing.assert_close(plan_grams.plan_grams(distant, *plan), plan_grams.plan_grams(w, *plan), rtol=0, atol=0)
    rows = far_apart(3, 2**30 + 16, (20,), torch.float32)
    rows.copy_(w[0])
    torch.testing.assert_close(
        plan_grams.plan_grams(rows[None], *plan), plan_grams.plan_grams(w[:1], *plan), rtol=0, atol=0
    )
    assert plan_grams.plan_grams(w[:0], *plan).shape == (0, 5, 3, 3)


# --- factors ----------------------------------------------------------------------------------------------------------


def gram_matrices(m_r, m_a, batch=2, nodes=2, seed=0):
    """Gram matrices of consistent changes: removed rows are some of a larger set of which the spectrum holds all."""
    r, k = max(m_r, 5) + 20, m_r + m_a
    spectrum, total = torch.logspace(0, -4, r, dtype=torch.float64), m_r + 2 * r + 2
    w_r = (torch.linalg.qr(normal(batch, total, r, seed=seed)).Q * spectrum.sqrt())[:, :m_r]
    w_a = normal(batch, m_a, r, seed=seed + 1) * (spectrum / total).sqrt()
    squares = torch.logspace(-4, 0, nodes, dtype=torch.float64)
    scaled = torch.cat([w_r, w_a], 1)[:, None] * (spectrum + squares[:, None]).rsqrt()[:, None]
    assert scaled.shape == (batch, nodes, k, r)
    return (scaled @ scaled.mT).float()


def check_factors(grams, m_r):
    (logdets, remaining), expected = (
        ldl_logdet.ldl_logdet(grams, m_r, SLACK),
        ldl_logdet.ldl_logdet_ref(grams, m_r, SLACK),
    )
    signs = torch.where(torch.arange(grams.shape[-1]) < m_r, -1.0, 1.0)
    assert_as_good_as_torch(
        logdets, expected.logdets, torch.linalg.slogdet(grams + signs.diag()).logabsdet, 1.5 * len(signs) * EPS
    )
    # inverse iteration stays above the eigenvalue, by some percent where the next one is close
    assert (remaining >= expected.remaining - 1e-4).all() and (remaining <= 1.2 * expected.remaining + 1e-6).all()


@pytest.mark.parametrize("m_r, m_a", [(1, 0), (0, 1), (1, 1), (7, 9), (15, 17), (30, 20)])
def test_factors(m_r, m_a):
    check_factors(gram_matrices(m_r, m_a, nodes=2 if m_r < 10 else 1), m_r)


@pytest.mark.parametrize("m_r, m_a", [(50, 50), (0, 128)])
def test_factors_of_the_widest_tile(m_r, m_a):
    check_factors(gram_matrices(m_r, m_a, batch=1, nodes=1), m_r)


def test_what_remains_of_a_nearly_lost_direction():
    """Eigenvalues of I − G_rr of 1e-3 and less keep two digits, which is what a rare candidate is recognised by."""
    basis = torch.linalg.qr(normal(6, 6, seed=3)).Q
    for least in (0.3, 1e-2, 1e-3):
        grams = (basis * torch.tensor([1 - least, 0.6, 0.4, 0.3, 0.2, 0.1])) @ basis.T
        found = ldl_logdet.ldl_logdet(grams[None, None].float(), 6, SLACK)
        assert least * 0.98 <= found.remaining.item() <= least * 1.05


def test_small_changes_keep_their_digits():
    # 1 + g rounds to 1 in float32: the log-determinant is the trace of J·G to first order, g² = 1e-18 is next
    grams = 1e-8 * gram_matrices(3, 4)
    found, expected = ldl_logdet.ldl_logdet(grams, 3).logdets, ldl_logdet.ldl_logdet_ref(grams, 3).logdets
    assert expected.abs().max() < 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-15)


@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero):RuntimeWarning")  # then anything goes
def test_a_wrong_pivot_gives_nan():
    grams = gram_matrices(4, 4, batch=3)
    grams[1] *= 2500  # leverages far above one: no rows of this reference
    grams[2, 1, 2, 3] = grams[2, 1, 3, 2] = math.nan
    logdets, remaining = ldl_logdet.ldl_logdet(grams, 4)
    assert logdets[1].isnan().all() and logdets[2].isnan().tolist() == [False, True] and logdets[0].isfinite().all()
    assert remaining[[0, 2]].isfinite().all()
    for leverage, wrong in ((1 + SLACK / 2, False), (1 + 2 * SLACK, True)):
        found, left = ldl_logdet.ldl_logdet(torch.full((1, 1, 1, 1), leverage), 1, SLACK)
        assert found.isnan().item() is wrong and not left.item() > 1e-5


def test_nothing_to_factor():
    grams = gram_matrices(2, 2)
    assert ldl_logdet.ldl_logdet(grams[:0], 2).logdets.shape == (0, 2)
    assert not ldl_logdet.ldl_logdet(grams[:, :, :0, :0], 0).logdets.any()
    assert ldl_logdet.ldl_logdet(grams[:, :, 2:, 2:], 0).remaining.tolist() == [1, 1]


# --- sums and projection of rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("m_r, m_a, d", [(3, 4, 5), (0, 2, 130), (17, 0, 33), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_sums_of_rows(m_r, m_a, d, dtype):
    added, reference = normal(2, m_a, d, seed=1).to(dtype), (normal(30, d, seed=2) + 3).to(dtype)
    removed = torch.stack([torch.randperm(30)[:m_r] for _ in range(2)])
    rows = added, reference, removed, normal(d, seed=3), normal(d, seed=4)
    for found, expected in zip(centre_sums.centre_sums(*rows), centre_sums.centre_sums_ref(*rows), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_sums_show_what_is_not_finite():
    rows = [normal(3, 2, 5), normal(9, 5), torch.tensor([[0], [1], [2]]), normal(5), normal(5)]
    rows[0][1, 1, 4] = math.inf
    assert centre_sums.centre_sums(*rows).norm_added.isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize("n, d, r", [(1, 1, 1), (5, 41, 33), (130, 17, 70)])
@pytest.mark.parametrize("dtype", project.DTYPES)
def test_projection(n, d, r, dtype):
    """Rows 1e4 deviations from zero: centred in two float32 parts, they keep float32's digits of the difference."""
    mean = 1e4 + normal(d, seed=1) if dtype == torch.float32 else normal(d, seed=1)
    x, matrix = (mean + normal(n, d, seed=2)).to(dtype), normal(d, r, seed=3, dtype=torch.float32)
    found, expected = project.project(x, mean, matrix), project.project_ref(x, mean, matrix)
    assert_as_good_as_torch(found, expected, (x.double() - mean).float() @ matrix, 64 * EPS)
    turned = project.project(x.T.contiguous().T, mean, matrix.T.contiguous().T)
    torch.testing.assert_close(turned, found, rtol=0, atol=0)
    assert project.project(x[:0], mean, matrix).shape == (0, r)
