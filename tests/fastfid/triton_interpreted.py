"""Values of the Triton kernels under Triton's interpreter; tests/test_triton_values.py runs this file in its own
process.

Tolerances: float32 torch does the same sums on the same numbers, and its error against the float64 reference is
computed beside every comparison.  A kernel may lose twice as much, since its order of summation differs and its
errors are other random numbers of the same size, plus a floor of a few ε, for cases so small that torch happens to lose
nothing.
"""

import functools
import math
import mmap
from unittest import mock

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from tests.support import triton_interpreter
from tests.support.pretend_cuda import pretended

triton_interpreter.install()

from fastfid import FeatureMoments, SwapEngine, backend, frechet_distance  # noqa: E402
from fastfid.linalg import iterative_roots  # noqa: E402
from fastfid.triton_kernels import interpreted, moments, newton_schulz, rank_update, swap_logdet  # noqa: E402

EPS = 2.0**-24  # rounding of float32
SLACK = 1e-3


def assert_as_good_as_torch(actual, expected, torch_float32, floor):
    """|actual − expected| ≤ 2 |torch_float32 − expected| + floor, each the largest over the tensor."""
    assert actual.shape == expected.shape
    error, allowed = ((x.double() - expected).abs().max().item() for x in (actual, torch_float32))
    assert error <= 2 * allowed + floor, f"error {error:.2e}, float32 torch {allowed:.2e}, floor {floor:.2e}"


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def far_apart(count, gap, shape, dtype):
    """[count, *shape] whose entries along the first axis lie `gap` elements apart; only touched pages take memory."""
    itemsize = torch.finfo(dtype).bits // 8
    size = ((count - 1) * gap + int(np.prod(shape))) * itemsize
    reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Linux; named in Python since 3.13
    buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | reserve)
    flat = torch.frombuffer(buffer, dtype=dtype)
    inner = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    return flat.as_strided((count, *shape), (gap, *inner))


def test_this_process_interprets():
    assert interpreted()


# ------------------------------------------------------------------------------------------------------ the interpreter


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


# ---------------------------------------------------------------------------------------------------------- swap_logdet


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


# -------------------------------------------------------------------------------------------------------------- moments


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


# ---------------------------------------------------------------------------------------------------------- rank_update


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


# -------------------------------------------------------------------------------------------------------- newton_schulz


@triton.jit
def lower_tile_kernel(numbers, rows, columns, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i, j = newton_schulz.lower_tile(tl.load(numbers + at))
    tl.store(rows + at, i)
    tl.store(columns + at, j)


def test_triangle_is_counted_row_by_row():
    # every tile of 1,400 rows of tiles, and both ends of rows up to the last whose number fits
    starts = torch.arange(1400, 46300, 100, dtype=torch.int64)
    starts = starts * (starts + 1) // 2
    numbers = torch.cat([torch.arange(1400 * 1401 // 2), starts - 1, starts, starts + 1])
    block = 1 << 17
    padded = torch.nn.functional.pad(numbers, (0, -len(numbers) % block)).to(torch.int32)
    rows, columns = torch.empty_like(padded), torch.empty_like(padded)
    lower_tile_kernel[(len(padded) // block,)](padded, rows, columns, block)
    rows, columns = rows.long()[: len(numbers)], columns.long()[: len(numbers)]
    assert torch.equal(rows * (rows + 1) // 2 + columns, numbers)
    assert (columns >= 0).all() and (columns <= rows).all()


def commuting(n, batch=1):
    """Two symmetric [batch, n, n] with the same eigenvectors, float32."""
    basis = torch.linalg.qr(normal(batch, n, n, seed=n)).Q
    values = torch.linspace(0.2, 1, n, dtype=torch.float64)
    return tuple(((basis * v) @ basis.mT).float() for v in (values, values.flip(0)))


@pytest.mark.parametrize("precision", ["ieee", "tf32x3"])
@pytest.mark.parametrize("n", [1, 70])
def test_fused_product(n, precision):
    p, q = commuting(n)
    for x, alpha, gamma in ((None, 1.0, -1.0), (p, 0.0, 0.5)):
        expected = newton_schulz.fused_product_ref(p, q, x, alpha=alpha, gamma=gamma)
        plain = gamma * (p @ q) + alpha * torch.eye(n) + (0 if x is None else x)
        for symmetric in (True, False):
            arguments = dict(alpha=alpha, gamma=gamma, symmetric=symmetric, precision=precision)
            out = newton_schulz.fused_product(p, q.mT, x, **arguments)
            assert not symmetric or torch.equal(out, out.mT)
            # 4 ε: P Q of matrices rounded to float32 is not quite symmetric, and one half of it stands for both
            assert_as_good_as_torch(out, expected, plain, floor=4 * EPS)


def test_product_that_is_not_symmetric():
    p, q = normal(2, 2, 70, 70, seed=9, dtype=torch.float32)
    out = newton_schulz.fused_product(p, q, p, alpha=2.0, beta=-1.0, gamma=0.5, symmetric=False, precision="ieee")
    expected = newton_schulz.fused_product_ref(p, q, p, alpha=2.0, beta=-1.0, gamma=0.5)
    assert_as_good_as_torch(out, expected, 0.5 * (p @ q) - p + 2 * torch.eye(70), floor=4 * EPS)


@pytest.mark.parametrize("precision, bits", [("tf32", 11), ("bf16", 8)])
def test_fused_product_of_short_operands(precision, bits):
    dtype = newton_schulz.PRECISIONS[precision][0]
    p, q = (matrix.to(dtype) for matrix in commuting(50))
    out = newton_schulz.fused_product(p, q, p, gamma=0.5, precision=precision)
    error = (out.double() - newton_schulz.fused_product_ref(p, q, p, gamma=0.5)).abs().max().item()
    # the largest entries are of order one; operands or the result keep `bits` bits
    assert 2.0 ** -(bits + 10) < error < 2.0**-bits


def test_fused_product_with_strides_and_far_apart():
    p, q = commuting(40, batch=2)
    far = far_apart(2, 2**31 + 16, (40, 40), torch.float32)
    far.copy_(q)
    wide = torch.zeros(2, 80, 80)[:, ::2, ::2]
    wide.copy_(p)
    out = newton_schulz.fused_product(wide, far, wide, gamma=0.5, precision="ieee")
    assert torch.equal(out, newton_schulz.fused_product(p, q, p, gamma=0.5, precision="ieee"))


POLYNOMIALS = {"newton_schulz": iterative_roots.newton_schulz(11), "polar_express": iterative_roots.polar_express(7)}


def matrices_and_traces(n=40, least=1e-2):
    """Matrices [2, n, n] float64 of norm one, eigenvalues down to `least` of the largest, and traces of their roots."""
    basis = torch.linalg.qr(normal(2, n, n, seed=8)).Q
    values = torch.logspace(0, math.log10(least), n).double().expand(2, n)
    values = values / torch.linalg.vector_norm(values, dim=1, keepdim=True)
    return (basis * values[:, None]) @ basis.mT, values.sqrt().sum(-1)


def last(iterates):
    return [step for step in iterates][-1]


@functools.cache
def relative_traces(method, precision):
    """Trace by the kernel over that of the float64 iteration, [1]."""
    matrix, polynomials = matrices_and_traces()[0][:1], POLYNOMIALS[method]
    y, z, _ = last(newton_schulz.iterates(matrix.to(newton_schulz.PRECISIONS[precision][0]), polynomials, precision))
    assert torch.equal(y, y.mT) and torch.equal(z, z.mT)
    return iterative_roots.trace_of(y) / iterative_roots.trace_of(
        last(newton_schulz.iterates_ref(matrix, polynomials))[0]
    )


@pytest.mark.parametrize("method", POLYNOMIALS)
def test_reference_iteration_converges(method):
    matrices, expected = matrices_and_traces()
    traces, inverses, residual = last(
        newton_schulz.iterates_ref(matrices, POLYNOMIALS[method] + [(1.5, -0.5, 0.0)] * 4)
    )
    torch.testing.assert_close(iterative_roots.trace_of(traces), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(traces @ inverses, torch.eye(40).double().expand(2, 40, 40), rtol=0, atol=1e-9)
    assert (residual < 1e-7).all()


@pytest.mark.parametrize("method", POLYNOMIALS)
def test_reference_iterates_are_those_of_torchs_route(method):
    matrices, polynomials = matrices_and_traces()[0], POLYNOMIALS[method]
    ours = newton_schulz.iterates_ref(matrices, polynomials)
    for step, torchs in zip(ours, iterative_roots.iterates(matrices, polynomials, "float64"), strict=True):
        for one, other in zip(step, torchs, strict=True):
            # float64 rounding times ‖Y‖‖Z‖ of at most 10²
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("precision", ["ieee", "tf32x3"])
@pytest.mark.parametrize("method", POLYNOMIALS)
def test_iterates(method, precision):
    matrix, polynomials = matrices_and_traces()[0][:1], POLYNOMIALS[method]
    torchs = iterative_roots.trace_of(last(iterative_roots.iterates(matrix.float(), polynomials, "float32"))[0])
    exact = iterative_roots.trace_of(last(newton_schulz.iterates_ref(matrix, polynomials))[0])
    # floor: every step rounds n diagonal entries of order one of a trace of order n, by one ε each
    floor = len(polynomials) * EPS
    assert_as_good_as_torch(relative_traces(method, precision), torch.ones(1).double(), torchs / exact, floor)


def test_short_formats_lose_what_they_lack():
    error = {p: (relative_traces("newton_schulz", p) - 1).abs().max().item() for p in newton_schulz.PRECISIONS}
    # 2⁻¹² and 2⁻⁹ an entry, mostly averaged out in the trace
    assert 10 * error["ieee"] < error["tf32"] < 2.0**-10
    assert 10 * error["ieee"] < error["bf16"] < 2.0**-6


def test_steps_after_convergence_are_harmless():
    # a symmetrised residual would have diverged: see the derivation in newton_schulz.py
    matrices, expected = matrices_and_traces(least=1e-3)
    y, z, residual = last(newton_schulz.iterates(matrices[:1].float(), iterative_roots.newton_schulz(20), "ieee"))
    torch.testing.assert_close(iterative_roots.trace_of(y), expected[:1], rtol=1e-6, atol=0)
    assert residual < 1e-4


def test_iterates_of_zero_and_of_no_matrix():
    y, z, residual = last(newton_schulz.iterates(torch.zeros(2, 5, 5), iterative_roots.newton_schulz(3)))
    assert not y.any() and torch.equal(residual, torch.ones(2).double())
    assert last(newton_schulz.iterates(torch.zeros(0, 5, 5), iterative_roots.polar_express(3)))[0].shape == (0, 5, 5)


# ------------------------------------------------------------------------------------------------ who calls the kernels


def counted(monkeypatch, module, name):
    """The calls of a launcher from now on, as a list that grows."""
    calls, launcher = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **options: calls.append(name) or launcher(*args, **options))
    return calls


@pytest.mark.parametrize("method", ["newton_schulz", "polar_express"])
@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-6), ("tf32", 1e-4)])
def test_trace_sqrt_product_goes_by_the_kernel(method, precision, tolerance, monkeypatch):
    # κ(M) < 4: what is left after the correction is float32's rounding, or that of tf32 squared
    products = counted(monkeypatch, newton_schulz, "fused_product")
    one = torch.eye(20, dtype=torch.float64) + 0.1 * torch.cov(normal(20, 80, seed=3))
    many = torch.stack([one, torch.eye(20).double()])
    exact = iterative_roots.trace_sqrt_product(one, many)
    terms = iterative_roots.trace_sqrt_terms(one, many, method, precision=precision, iterations=8, backend="triton")
    per_step = 3 if method == "newton_schulz" else 4  # less E and Z of the first step, where Z is the identity
    assert len(products) == 8 * per_step - 2
    torch.testing.assert_close(terms.trace, exact, rtol=tolerance, atol=0)
    assert (terms.residual < 1e-2).all()


@pytest.mark.parametrize("method", ["newton_schulz", "polar_express"])
def test_the_engine_takes_roots_by_the_kernels(method, monkeypatch):
    monkeypatch.setattr(
        "fastfid.swap.whole_matrices.PRODUCT_STEPS", {"newton_schulz": 8, "polar_express": 5}
    )  # it is slow
    updates = counted(monkeypatch, rank_update, "rank_update")
    products = counted(monkeypatch, newton_schulz, "fused_product")
    real, reference, added = normal(60, 7), normal(50, 7, seed=1), normal(3, 4, 7, seed=2)
    removed = torch.tensor([[0, 7, 9], [1, 2, 3], [8, 30, 49]])
    changes = {}
    for name in ("triton", "torch"):
        engine = SwapEngine(FeatureMoments.from_features(real), reference, backend=name, method=method)
        changes[name] = engine.change(removed, added)
        assert engine.report()["backend"] == name
        assert engine.report()["backend_why"] == "asked for"
        assert bool(updates) and bool(products)
    assert len(updates) == 1
    # the same steps in float32 from matrices of order one, traces of 7 roots
    torch.testing.assert_close(changes["triton"], changes["torch"], rtol=0, atol=7 * 20 * EPS)


@pytest.mark.parametrize("method", ["logdet", "newton_schulz", "polar_express"])
def test_auto_takes_the_kernels_on_a_cuda_device(method, monkeypatch):
    """The device is pretended (tests/pretend_cuda.py), its kernels are interpreted."""
    monkeypatch.setattr("fastfid.swap.whole_matrices.PRODUCT_STEPS", {"newton_schulz": 8, "polar_express": 5})
    obstacle = backend.triton_obstacle  # which the pretended device replaces
    launched = [counted(monkeypatch, swap_logdet, "swap_logdet"), counted(monkeypatch, newton_schulz, "fused_product")]
    real, reference, added = normal(60, 7), normal(50, 7, seed=1), normal(2, 3, 7, seed=2)
    removed = torch.tensor([[0, 7, 9], [1, 2, 3]])
    options = {"method": method, "tol": 1e-3}
    plain = SwapEngine(FeatureMoments.from_features(real), reference, backend="torch", **options).change(removed, added)
    with pretended() as cuda, mock.patch.object(backend, "triton_obstacle", obstacle):
        engine = SwapEngine(FeatureMoments.from_features(real.to(cuda)), reference.to(cuda), **options)
        change = engine.change(removed.to(cuda), added.to(cuda))
        report = engine.report()
        assert change.device == cuda
        change = change.cpu()
    assert (report["backend"], report["backend_why"]) == ("triton", "data on cuda:0")
    assert [bool(calls) for calls in launched] == [method == "logdet", method != "logdet"]
    # float32 rows and products of order one, 7 roots
    torch.testing.assert_close(change, plain, rtol=0, atol=7 * 20 * EPS)


@pytest.mark.parametrize("dtype", moments.DTYPES)
def test_feature_moments_go_by_the_kernel(dtype, monkeypatch):
    calls = counted(monkeypatch, moments, "centred_moments")
    x, others = (normal(n, 9, seed=n).to(dtype) * 3 + 20 for n in (130, 77))
    whole = FeatureMoments.from_features(torch.cat([x, others]), {"extractor": "e"})
    fused = FeatureMoments.from_features(x, {"extractor": "e"}, kernel="triton")
    kept = fused.cov
    mixed = fused.copy().update(others[:30]).update(others[30:], kernel="triton")  # and rows that wait in the buffer
    fused.update(others, kernel="triton").update(others[:0], kernel="triton")
    assert calls and torch.equal(kept, FeatureMoments.from_features(x, kernel="triton").cov)
    size = whole.cov.diagonal().sqrt()
    for made in (fused, mixed):
        assert made.count == whole.count == 207 and made.provenance == whole.provenance
        # entries of order one a product, 207 of random sign in float32, over 206
        assert ((made.cov - whole.cov).abs() <= 16 * EPS * size[:, None] * size).all()
        torch.testing.assert_close(made.mean, whole.mean, rtol=0, atol=16 * EPS * size.max().item())
    assert frechet_distance(fused, whole) < 1e-6
    assert torch.equal(fused.cov, fused.cov.T)
    fused.update(x)  # the buffer takes over
    assert fused.count == 337 and torch.equal(kept, FeatureMoments.from_features(x, kernel="triton").cov)


def test_feature_moments_by_the_kernel_refuse_what_it_lacks():
    x = normal(5, 3)
    with pytest.raises(ValueError, match="x must be float32, float16 or bfloat16, got torch.float64; kernel='torch'"):
        FeatureMoments.from_features(x, kernel="triton")
    with pytest.raises(ValueError, match="kernel='triton' carries no gradient; detach"):
        FeatureMoments.from_features(x.float().requires_grad_(), kernel="triton")
    with pytest.raises(ValueError, match="kernel must be 'torch' or 'triton', got 'cuda'"):
        FeatureMoments.empty(3).update(x, kernel="cuda")


def test_wide_changes_say_who_factors_them():
    real, reference = normal(400, 5), normal(300, 5, seed=1)
    engine = SwapEngine(FeatureMoments.from_features(real), reference, backend="triton", tol=1e-3)
    engine.change(torch.arange(70)[None], normal(1, 70, 5, seed=2))
    why = engine.report()["backend_why"]
    assert "140 rows exceed a program's 128" in why and "torch's Cholesky, as data lives on cpu" in why


@pytest.mark.parametrize("m_r, m_a", [(3, 4), (0, 2), (5, 0)])
def test_the_engine_scores_the_same_through_the_kernel(m_r, m_a):
    rng = np.random.default_rng(m_r)
    real, reference, added = (rng.standard_normal(shape) for shape in ((60, 7), (50, 7), (2, m_a, 7)))
    removed = np.stack([rng.permutation(50)[:m_r] for _ in range(2)])
    moments_of_real = real.mean(0), np.cov(real.T)
    changes = {}
    for name in ("triton", "torch"):
        engine = SwapEngine(moments_of_real, reference, backend=name, tol=1e-3)  # few nodes: the interpreter is slow
        changes[name] = engine.change(removed, added)
        assert engine.report()["backend"] == name
    # both sum the same float32 rows; a change of about 0.1 is made of terms of order one
    torch.testing.assert_close(changes["triton"], changes["torch"], rtol=0, atol=20 * EPS)
