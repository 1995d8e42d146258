"""Traces of √(Σ_a Σ_b): routes against rows and many digits, arithmetic bit by bit, polynomials by their optimality."""

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch

from fastfid.linalg import factors, iterative_roots, symmetric
from fastfid.linalg.iterative_roots import polar_express, round_mantissa, trace_sqrt_product, trace_sqrt_terms
from tests.support import oracles

# Eigenvalues of M are known to some ε·λ_max, the smallest root to ε·κ(M)/2 of itself: with κ ≤ 1e4 here, 2e-12.
EXACT = 1e-11


def features(n, d, seed=0, decay=1.0):
    """Rows with standard deviations from 1 down to 10^-decay, in a random basis."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return (noise * torch.logspace(0, -decay, d, dtype=torch.float64)) @ basis.T


def covariances(batch, d, seed=0, n=None):
    return torch.stack([torch.cov(features(n or 4 * d, d, seed + i).T).reshape(d, d) for i in range(batch)])


def trace_from_rows(x, y):
    """‖A Bᵀ‖_* of the two triangles: no eigenvalue of a product, no root of a rounding error."""
    return scipy.linalg.svdvals(oracles.triangle(x.numpy()) @ oracles.triangle(y.numpy()).T).sum()


# --- the exact route ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m", "d"), [(200, 300, 1), (200, 300, 41), (300, 300, 64)])
def test_eigh_equals_the_singular_values_of_the_rows(n, m, d):
    x, y = features(n, d, 1), features(m, d, 2)
    trace = trace_sqrt_product(torch.cov(x.T).reshape(d, d), torch.cov(y.T).reshape(d, d))
    assert trace.shape == () and trace.dtype == torch.float64
    assert trace.item() == pytest.approx(trace_from_rows(x, y), rel=EXACT)


def test_eigh_equals_many_digits():
    a, b = covariances(2, 5, seed=3)
    with mpmath.workdps(40):
        product = mpmath.matrix(a.tolist()) * mpmath.matrix(b.tolist())
        expected = float(sum(mpmath.sqrt(mpmath.re(value)) for value in mpmath.eig(product, left=False, right=False)))
    assert trace_sqrt_product(a, b).item() == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize(("n", "m"), [(10, 200), (200, 10), (10, 12)])
def test_singular_covariances(n, m):
    x, y = features(n, 32, 1), features(m, 32, 2)
    terms = trace_sqrt_terms(torch.cov(x.T), torch.cov(y.T))
    # An eigenvalue lost in noise has a root below √(8ε·λ_max) = 4e-8 of the largest; up to 22 are, of a trace above 1.
    assert terms.trace.item() == pytest.approx(trace_from_rows(x, y), rel=1e-6)
    assert terms.residual.item() == 0


def test_clipped_eigenvalues_are_counted():
    slightly_indefinite = torch.diag(torch.tensor([1.0, 1.0, -1e-9], dtype=torch.float64))
    terms = trace_sqrt_terms(torch.eye(3, dtype=torch.float64), slightly_indefinite)
    assert terms.clipped.item() == 1 and terms.trace.item() == pytest.approx(2)


# --- the iterations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["newton_schulz", "polar_express"])
def test_iterations_converge_to_eigh(method):
    a, b = covariances(2, 41, seed=5)
    exact = trace_sqrt_product(a, b).item()
    # The coupled iteration multiplies the rounding of its products by ‖Z‖ = √κ(M) ≤ 100 and by the number of steps.
    trace = trace_sqrt_product(a, b, method, precision="float64", iterations=30)
    assert trace.item() == pytest.approx(exact, rel=30 * 100 * symmetric.EPS)
    single = trace_sqrt_terms(a, b, method, iterations=20)
    assert single.trace.item() == pytest.approx(exact, rel=20 * 100 * 6e-8)
    assert single.residual.item() < 20 * 100 * 6e-8
    early = trace_sqrt_terms(a, b, method, iterations=3, correct=False)
    assert early.residual.item() > 0.1 and early.trace.item() < exact  # roots approach from below


def test_tuned_polynomials_need_fewer_steps():
    a, b = covariances(2, 41, seed=5)
    exact = trace_sqrt_product(a, b)
    errors = {m: abs(trace_sqrt_product(a, b, m, iterations=7) - exact) for m in ("newton_schulz", "polar_express")}
    assert errors["polar_express"] < 0.1 * errors["newton_schulz"]


# The tuned polynomials' first step multiplies the rounding of T by up to c = 18.
@pytest.mark.parametrize(("method", "magnified"), [("newton_schulz", 1), ("polar_express", 18)])
@pytest.mark.parametrize(("precision", "unit"), [("tf32", 2**-11), ("bfloat16", 2**-8)])
def test_coarse_operands_cost_digits_and_the_correction_gives_them_back(method, magnified, precision, unit):
    covariance = torch.eye(16, dtype=torch.float64) + 0.1 * covariances(1, 16)[0]  # κ(M) < 2: nothing is magnified
    exact = trace_sqrt_product(covariance, covariance).item()
    options = {"precision": precision, "iterations": 12}
    plain = abs(trace_sqrt_product(covariance, covariance, method, correct=False, **options).item() - exact)
    corrected = abs(trace_sqrt_product(covariance, covariance, method, **options).item() - exact)
    unit *= 4 * magnified  # Y and W are each rounded once before the last product, and Y's own error stays
    assert 0 < plain < unit * exact
    assert corrected < min(plain, (unit**2 + 20 * 6e-8) * exact)  # second order in it, and float32's own


def test_the_correction_is_exact_to_first_order():
    a, b = covariances(2, 20, seed=5)
    factor = factors.factor_by_eigh(a, symmetric.NOISE).root
    under_root = factor @ b @ factor.T
    values, vectors = torch.linalg.eigh(under_root)
    y, z = (vectors * values**0.5) @ vectors.T, (vectors * values**-0.5) @ vectors.T
    exact, errors = values.sqrt().sum(), {}
    direction = symmetric.symmetric(
        torch.randn(20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    for size in (1e-4, 1e-5):
        off = y + size * values.min().sqrt() * direction
        errors[size] = (iterative_roots.corrected_trace(under_root[None], off[None], z[None]) - exact).abs().item()
    assert errors[1e-4] > 1e-13 and errors[1e-5] == pytest.approx(errors[1e-4] / 100, rel=0.1)


@pytest.mark.parametrize("method", iterative_roots.METHODS)
def test_zero_covariance(method):
    zero, one = torch.zeros(3, 3), torch.eye(3)
    assert trace_sqrt_product(zero, one, method).item() == 0
    assert trace_sqrt_product(one, zero, method).item() == 0


# --- batches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", iterative_roots.METHODS)
@pytest.mark.parametrize("workspace", [1, 256 << 20])
def test_batches_equal_single_pairs(method, workspace):
    shared, many, others = covariances(1, 7, 0)[0], covariances(5, 7, 10), covariances(5, 7, 20)
    single = torch.stack([trace_sqrt_product(shared, cov, method) for cov in many])
    pairwise = torch.stack([trace_sqrt_product(x, y, method) for x, y in zip(many, others, strict=True)])
    # float32 iterations differ between batched and single products in the order of their sums: 7 terms, 20 steps.
    tolerance = {"rtol": EXACT if method == "eigh" else 1e-4, "atol": 0}
    for a in (shared, shared[None]):
        torch.testing.assert_close(trace_sqrt_product(a, many, method, workspace=workspace), single, **tolerance)
        torch.testing.assert_close(trace_sqrt_product(many, a, method, workspace=workspace), single, **tolerance)
    torch.testing.assert_close(trace_sqrt_product(many, others, method, workspace=workspace), pairwise, **tolerance)


@pytest.mark.parametrize("method", iterative_roots.METHODS)
def test_an_empty_batch_gives_an_empty_result(method):
    assert trace_sqrt_product(torch.eye(3), torch.zeros(0, 3, 3), method).shape == (0,)
    assert trace_sqrt_product(torch.zeros(0, 3, 3), torch.eye(3), method).shape == (0,)


# --- arithmetic --------------------------------------------------------------------------------------------------


def test_rounding_to_7_and_10_bits_is_that_of_bfloat16_and_float16():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11])
    x = torch.cat([x, ties, -ties, torch.tensor([0.0, -0.0, 1.0, -1.0, torch.inf])])
    assert torch.equal(round_mantissa(x, 7), x.bfloat16().float())
    normal = x[x.abs() > 1e-3]  # below 6e-5 float16 is subnormal and has fewer bits
    assert torch.equal(round_mantissa(normal, 10), normal.half().float())


def test_torchs_own_tf32_setting_is_restored():
    torch.set_float32_matmul_precision("high")
    try:
        trace_sqrt_product(torch.eye(3), torch.eye(3), "newton_schulz")
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


# --- polynomials -------------------------------------------------------------------------------------------------


def test_polynomials_are_the_published_ones(monkeypatch):
    """The list of arXiv 2505.16932 for the bound 1e-3, which leaves the margin to be divided out afterwards."""
    published = [
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
        (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
        (1.875, -1.25, 0.375),
    ]
    monkeypatch.setattr(iterative_roots, "MARGIN", 1.0)
    steps = polar_express(8, 1e-3)
    np.testing.assert_allclose(steps[:6], published[:6], rtol=1e-12)
    np.testing.assert_allclose(steps[6:], published[6:], rtol=2e-6)  # here the limit replaces a narrow interval's fit


@pytest.mark.parametrize("low", [1e-6, 1e-3, 0.1, 0.5, 0.9, 0.97, 0.999])
def test_polynomials_stay_within_their_stated_error(low):
    (a, b, c), error = iterative_roots._nearest_to_one(low, 1.0)
    x = np.linspace(low, 1, 100_001)
    distance = np.abs(1 - (a * x + b * x**3 + c * x**5)).max()
    assert distance <= error * (1 + 1e-6) + 1e-15
    if (1 - low) / (1 + low) >= iterative_roots.NARROW:  # minimax: the error alternates, so nothing smaller is possible
        assert distance == pytest.approx(error, rel=1e-6)


def test_composed_polynomials_bring_their_interval_to_one():
    x = np.geomspace(1e-3, 1, 10_001)
    for a, b, c in polar_express(9):
        x = a * x + b * x**3 + c * x**5
    assert np.abs(x - 1).max() < 1e-12
    assert polar_express(12)[:9] == polar_express(9)


# --- errors ------------------------------------------------------------------------------------------------------

one = torch.eye(2)


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        (torch.zeros(2, 3), one, {}, r"cov_a must be \[d, d\] .* got shape \(2, 3\)"),
        (one, torch.zeros(1, 1, 2, 2), {}, r"cov_b must be .* got shape \(1, 1, 2, 2\)"),
        (one.long(), one, {}, "cov_a must be floating point, got torch.int64"),
        (one, torch.stack([one, one * torch.nan]), {}, "cov_b holds NaN or infinity in matrix 1"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), one, {}, "cov_a is not symmetric in matrix 0"),
        (one, torch.eye(3), {}, "cov_a has d = 2, cov_b d = 3"),
        (one.expand(2, 2, 2), one.expand(3, 2, 2), {}, "cov_a holds 2 covariances, cov_b 3"),
        (torch.diag(torch.tensor([1.0, -0.5])), one, {}, "eigenvalue -0.5 beside 1"),
        (one, torch.diag(torch.tensor([1.0, -0.5])), {}, "eigenvalue -0.5 beside 1"),
        (one, one, {"method": "schur"}, "method must be one of eigh, newton_schulz, polar_express, got 'schur'"),
        (one, one, {"precision": "fp8"}, "precision must be one of .* got 'fp8'"),
        (one, one, {"iterations": 0}, "iterations must be at least 1, got 0"),
        (one, one, {"lower": 1.0}, "lower must lie strictly between 0 and 1, got 1.0"),
        (one, one, {"workspace": 0}, "workspace must be a positive number of bytes, got 0"),
    ],
)
def test_bad_input_is_named(a, b, options, message):
    with pytest.raises(ValueError, match=message):
        trace_sqrt_product(a, b, **options)
