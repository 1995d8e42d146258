"""Values of the kernel newton_schulz.

tests/fastfid/test_triton_values.py runs this file under Triton's interpreter, in a process of its own.
"""

import functools
import math

import pytest
import torch
import triton
import triton.language as tl

from tests.support import triton_interpreter
from tests.support.triton_values import EPS, assert_as_good_as_torch, far_apart, normal

triton_interpreter.install()

from fastfid.linalg import iterative_roots  # noqa: E402
from fastfid.triton_kernels import newton_schulz  # noqa: E402


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
