"""The Fréchet distance against closed forms, SciPy's matrix root, torch-fidelity, and the laws it obeys."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

import fastfid.distances.frechet
from fastfid import FeatureMoments, frechet_distance, frechet_terms
from fastfid.distances.real_side import prepare
from fastfid.linalg import factors

# Where both covariances have rank d and condition κ, the roots of M's eigenvalues carry an error of ε·κ·√λ_max at most;
# with κ ≤ 1e3 that is 2e-13 of the trace, and 1e-11 leaves room for SciPy's own error.
FULL_RANK = 1e-11
# A product of singular matrices has eigenvalues known to ε·λ_max, whose roots are √ε = 1.5e-8 of √λ_max each: what
# SciPy and torch-fidelity return for N ≤ d.  Ours drops them and is held to FULL_RANK by an oracle without roots.
SINGULAR = 1e-5


def features(n, d, seed=0, offset=0.0, decay=1.0):
    """Rows with standard deviations from 1 down to 10^-decay."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return noise * torch.logspace(0, -decay, d, dtype=torch.float64) + offset


def moments(*args, **kwargs):
    return FeatureMoments.from_features(features(*args, **kwargs))


def distance_of(x, y):
    return frechet_distance(FeatureMoments.from_features(x), FeatureMoments.from_features(y))


def scipy_distance(a, b):
    root = scipy.linalg.sqrtm(a.cov.numpy() @ b.cov.numpy())
    difference = (a.mean - b.mean).numpy()
    return difference @ difference + np.trace(a.cov.numpy()) + np.trace(b.cov.numpy()) - 2 * np.trace(root).real


def distance_from_rows(x, y):
    """FD by tr √(Σ_x Σ_y) = ‖X_c Y_cᵀ‖_* / √((n−1)(m−1)): singular values of rows, no covariance, no root."""
    x_c, y_c = (z.numpy() - z.numpy().mean(axis=0) for z in (x, y))
    x_c, y_c = x_c / np.sqrt(len(x) - 1), y_c / np.sqrt(len(y) - 1)
    nuclear = np.linalg.svd(x_c @ y_c.T, compute_uv=False).sum()
    return ((x - y.mean(0)).mean(0).square().sum().item()) + (x_c**2).sum() + (y_c**2).sum() - 2 * nuclear


# --- other implementations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m", "d", "offset"), [(200, 300, 5, 0), (500, 400, 64, 0), (500, 600, 41, 1e4)])
def test_equal_to_scipy_and_torch_fidelity(n, m, d, offset):
    a, b = moments(n, d, seed=1, offset=offset), moments(m, d, seed=2, offset=offset + 0.3)
    expected = scipy_distance(a, b)
    fidelity = fid_statistics_to_metric(
        *({"mu": side.mean.numpy(), "sigma": side.cov.numpy()} for side in (a, b)), verbose=False
    )[KEY_METRIC_FID]
    assert frechet_distance(a, b) == pytest.approx(expected, rel=FULL_RANK, abs=FULL_RANK)
    assert frechet_distance(a, b) == pytest.approx(fidelity, rel=FULL_RANK, abs=FULL_RANK)
    assert frechet_distance(a, b) == pytest.approx(
        distance_from_rows(features(n, d, 1, offset), features(m, d, 2, offset + 0.3)), rel=FULL_RANK, abs=FULL_RANK
    )


@pytest.mark.filterwarnings("ignore:Matrix is singular")  # SciPy's, of its own route
@pytest.mark.parametrize(("n", "m", "d"), [(2, 2, 3), (2, 50, 6), (30, 20, 64), (40, 500, 64), (500, 40, 64)])
def test_rank_deficient_sets_equal_the_singular_values_of_their_rows(n, m, d):
    x, y = features(n, d, seed=3), features(m, d, seed=4, offset=0.1)
    a, b = FeatureMoments.from_features(x), FeatureMoments.from_features(y)
    terms = frechet_terms(a, b)
    assert terms.total == pytest.approx(distance_from_rows(x, y), rel=FULL_RANK)
    assert terms.total == pytest.approx(scipy_distance(a, b), abs=SINGULAR)
    assert terms.rank == min(n, m, d + 1) - 1
    without_counts = frechet_distance((a.mean, a.cov), (b.mean, b.cov))  # null directions found from the spectrum alone
    assert without_counts == pytest.approx(terms.total, rel=1e-9)


@pytest.mark.parametrize("n", [2, 10, 64, 65, 300])
def test_identical_sets_of_every_rank_have_distance_zero(n):
    # Under the root stand the squared eigenvalues.  With κ = 4 (decay 0.3) their roots keep all digits.
    a = moments(5 * n, n, decay=0.3)
    assert abs(frechet_distance(a, a)) < FULL_RANK
    # At N ≈ d = 64 and decay 3, κ(M) passes 1/ε: an eigenvalue below ε·λ_max has a root known to 1.5e-8, a few do.
    b = moments(n, 64, decay=3)
    assert abs(frechet_distance(b, b)) < 1e-7


def test_constant_features_leave_the_other_trace():
    constant = FeatureMoments.from_features(torch.full((7, 5), 3.0))
    other = moments(50, 5)
    expected = (other.mean - 3).square().sum().item() + torch.trace(other.cov).item()
    terms = frechet_terms(constant, other)
    assert terms.total == pytest.approx(expected, rel=1e-14)
    assert terms.root_term == 0 and terms.rank == 0
    assert frechet_distance(other, constant) == pytest.approx(expected, rel=1e-14)
    assert frechet_distance(constant, constant) == 0


# --- routes and prepared sides -----------------------------------------------------------------------------------


def by_eigh(monkeypatch, *sides):
    with monkeypatch.context() as patch:
        patch.setattr(factors, "cholesky_root", lambda cov: None)
        return frechet_terms(*sides)


def moments_of(x):
    return FeatureMoments.from_features(x)


def prepare_by_eigh(monkeypatch, side):
    with monkeypatch.context() as patch:
        patch.setattr(factors, "cholesky_root", lambda cov: None)
        return prepare(side)


@pytest.mark.parametrize("d", [1, 5, 41, 255, 256, 257, 300])  # about the width of the column blocks
@pytest.mark.parametrize("decay", [0.5, 1.5])
def test_cholesky_and_eigh_agree(monkeypatch, d, decay):
    x, y = features(4 * d + 2, d, 1, decay=decay), features(5 * d + 2, d, 2, offset=0.3, decay=decay)
    a, b = FeatureMoments.from_features(x), FeatureMoments.from_features(y)
    fast, slow = frechet_terms(a, b), by_eigh(monkeypatch, a, b)
    assert fast.route == "cholesky" and slow.route == "eigh" and fast.rank == slow.rank == d
    # κ(M) is 1e7 at most, so the smallest roots carry 1e7·ε/2 = 1e-9 of themselves and, being small, 1e-12 of the sum.
    assert fast.root_term == pytest.approx(slow.root_term, rel=FULL_RANK)
    assert fast.total == pytest.approx(distance_from_rows(x, y), abs=FULL_RANK * fast.trace_term)


@pytest.mark.parametrize("decay", [3, 5, 6, 7, 8])
def test_ill_conditioned_sides(monkeypatch, decay):
    """Condition numbers from 1e6 to 1e16: either route, the same digits."""
    x, y = features(400, 64, 1, decay=decay), features(500, 64, 2, decay=decay)
    a, b = FeatureMoments.from_features(x), FeatureMoments.from_features(y)
    terms = frechet_terms(a, b)
    # Each of the 64 roots may be lost to noise: √(8ε) = 4e-8 of the largest.
    assert terms.total == pytest.approx(distance_from_rows(x, y), abs=2 * 64 * 4.3e-8)
    assert terms.route == ("eigh" if decay > 6 else "cholesky")
    assert terms.root_term == pytest.approx(by_eigh(monkeypatch, a, b).root_term, abs=2 * 64 * 4.3e-8)


def test_singular_sides_take_eigh_even_where_cholesky_would_not_fail():
    x = features(300, 40, 1)
    x[:, 7] = x[:, 3]  # a duplicate feature: the last pivot is a rounding error of either sign
    for scale in (1.0, 1e-3, 1e3):
        side = FeatureMoments.from_features(scale * x)
        terms = frechet_terms((side.mean, side.cov), moments(300, 40, 2))
        assert terms.route == "eigh" and terms.rank == 39


def test_features_that_never_vary_are_left_out_of_the_factor(monkeypatch):
    """Dead channels, on one side or both, neither cost Cholesky's route nor change a digit or the gradient."""
    x, y = features(60, 9, 1), features(70, 9, 2, offset=0.3)
    x[:, [0, 4]] = y[:, 4] = 0.0
    sides = moments_of(x), moments_of(y)
    for a, b in (sides, sides[::-1]):
        terms, expected = frechet_terms(prepare(a), b), by_eigh(monkeypatch, prepare_by_eigh(monkeypatch, a), b)
        assert terms.route == "cholesky" and expected.route == "eigh" and terms.rank == expected.rank
        assert terms.total == pytest.approx(distance_from_rows(x, y), abs=FULL_RANK * terms.trace_term)
        assert terms.root_term == pytest.approx(expected.root_term, rel=FULL_RANK)
    covs = [side.cov.clone().requires_grad_() for side in sides]
    pairs = [(side.mean, cov) for side, cov in zip(sides, covs, strict=True)]
    found = torch.autograd.grad(frechet_distance(*pairs), covs)
    monkeypatch.setattr(factors, "cholesky_root", lambda cov: None)
    for ours, known in zip(found, torch.autograd.grad(frechet_distance(*pairs), covs), strict=True):
        torch.testing.assert_close(ours, known, rtol=1e-8, atol=1e-10)
    broken = sides[0].cov.clone()
    broken[0, 1] = broken[1, 0] = 1.0  # a covariance with a feature of no variance: not positive
    with pytest.raises(ValueError, match="positive semidefinite"):
        frechet_terms((sides[0].mean, broken), sides[1])


@pytest.mark.parametrize(("n", "m", "route"), [(300, 400, "cholesky"), (30, 400, "eigh"), (300, 30, "eigh")])
def test_a_prepared_side_changes_nothing(n, m, route):
    a, b = moments(n, 41, 1), moments(m, 41, 2, offset=0.3)
    expected = frechet_terms(a, b)
    assert expected.route == route
    for sides in ((prepare(a), b), (prepare(a), prepare(b)), (a, prepare(b)), (b, prepare(a))):
        terms = frechet_terms(*sides)
        assert terms.route == route and terms.rank == expected.rank
        assert terms.total == pytest.approx(expected.total, rel=FULL_RANK)
    assert abs(frechet_distance(prepare(a), prepare(a))) < 1e-9 * expected.trace_term


def test_a_prepared_side_is_not_factored_again(monkeypatch):
    reference, other = prepare(moments(300, 20, 1)), moments(400, 20, 2)
    monkeypatch.setattr(fastfid.distances.frechet, "factor_covariance", None)  # calling it would fail
    for sides in ((reference, other), (other, reference)):
        assert frechet_terms(*sides).route == "cholesky"


def test_gradient_against_a_prepared_side():
    reference, x = moments(30, 4, 1), features(20, 4, 2, offset=0.3).requires_grad_()
    (expected,) = torch.autograd.grad(frechet_distance(reference, FeatureMoments.from_features(x)), x)
    (found,) = torch.autograd.grad(frechet_distance(FeatureMoments.from_features(x), prepare(reference)), x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_both_routes_have_the_same_gradient(monkeypatch):
    x, y = features(40, 6, 1).requires_grad_(), features(50, 6, 2, offset=0.3).requires_grad_()
    expected = torch.autograd.grad(distance_of(x, y), (x, y))
    monkeypatch.setattr(factors, "cholesky_root", lambda cov: None)
    for found, known in zip(torch.autograd.grad(distance_of(x, y), (x, y)), expected, strict=True):
        torch.testing.assert_close(found, known, rtol=1e-9, atol=1e-12)


# --- closed forms and laws ---------------------------------------------------------------------------------------


def test_commuting_gaussians():
    """Diagonal covariances: Σ (μ_i − ν_i)² + (σ_i − τ_i)²."""
    mean_a, mean_b = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 0.0])
    std_a, std_b = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 2.0, 0.5])
    terms = frechet_terms((mean_a, torch.diag(std_a**2)), (mean_b, torch.diag(std_b**2)))
    assert terms.mean_term == 5
    assert terms.trace_term == pytest.approx(5 + 13.25)
    assert terms.root_term == pytest.approx(2 * (3 + 4))
    assert terms.total == pytest.approx(5 + 4 + 0.25)
    assert isinstance(terms.total, float) and terms.clipped == 0


seeds = st.integers(0, 1000)


@given(seed=seeds, scale=st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=20)
def test_symmetry_scaling_and_rotation(seed, scale):
    x, y = features(60, 8, seed), features(50, 8, seed + 1, offset=0.2)
    rotation = torch.linalg.qr(features(8, 8, seed + 2, decay=0))[0]
    distance = distance_of(x, y)
    assert distance_of(y, x) == pytest.approx(distance, rel=FULL_RANK)
    assert distance_of(scale * x, scale * y) == pytest.approx(scale**2 * distance, rel=FULL_RANK)
    assert distance_of(x @ rotation, y @ rotation) == pytest.approx(distance, rel=FULL_RANK)
    assert distance_of(x + 5, y + 5) == pytest.approx(distance, rel=FULL_RANK)
    assert distance_of(x, y + 5) > 0


# --- gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", ["both", "first", "second"])
def test_gradient_with_respect_to_features(sides):
    x, y = features(20, 4, 1), features(30, 4, 2, offset=0.3)
    x.requires_grad_(sides != "second")
    y.requires_grad_(sides != "first")
    assert distance_of(x, y).shape == ()
    assert torch.autograd.gradcheck(distance_of, (x, y))


def test_gradient_with_respect_to_mean_and_covariance():
    a, b = moments(20, 4, 1), moments(30, 4, 2)
    inputs = [part.clone().requires_grad_() for part in (a.mean, a.cov, b.mean, b.cov)]

    def distance(mean_a, cov_a, mean_b, cov_b):
        return frechet_distance((mean_a, (cov_a + cov_a.T) / 2), (mean_b, (cov_b + cov_b.T) / 2))

    assert torch.autograd.gradcheck(distance, inputs)


def test_gradient_of_equal_eigenvalues_is_finite():
    """∂/∂s of d(1 − s)² is −2d(1 − s), though all eigenvalues coincide."""
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    mean, identity = torch.zeros(6, dtype=torch.float64), torch.eye(6, dtype=torch.float64)
    frechet_distance((mean, identity), (mean, scale**2 * identity)).backward()
    assert scale.grad.item() == pytest.approx(-2 * 6 * 0.5, rel=1e-12)


def test_a_step_along_the_gradient_of_few_features_helps():
    x, y = features(300, 16, 1), features(10, 16, 2, offset=0.3).requires_grad_()  # N ≤ d: singular but one-sided
    before = distance_of(x, y)
    (gradient,) = torch.autograd.grad(before, y)
    step = 1e-4
    after = distance_of(x, y.detach() - step * gradient)
    # First order: the decrease is step·|gradient|², to the order of the step.
    assert before.item() - after == pytest.approx(step * gradient.square().sum().item(), rel=0.01)


# --- reports and errors ------------------------------------------------------------------------------------------


def test_clipped_eigenvalues_are_reported():
    slightly_indefinite = torch.diag(torch.tensor([1.0, 1.0, -1e-9], dtype=torch.float64))
    identity = (torch.zeros(3), torch.eye(3))
    terms = frechet_terms(identity, (torch.zeros(3), slightly_indefinite))
    assert terms.clipped == 1
    assert terms.most_negative == pytest.approx(-1e-9)
    assert frechet_terms(identity, identity).clipped == 0 and frechet_terms(identity, identity).most_negative == 0


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ((torch.zeros(2), torch.eye(2)), (torch.zeros(3), torch.eye(3)), "d = 2 and d = 3"),
        ((torch.zeros(2), torch.eye(2)), (torch.zeros(2), torch.diag(torch.tensor([1.0, -0.5]))), "positive semidef"),
        ((torch.zeros(2), torch.diag(torch.tensor([1.0, -0.5]))), (torch.zeros(2), torch.eye(2)), "eigenvalue -0.5"),
        ((torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])), (torch.zeros(2), torch.eye(2)), "first .* symm"),
        ((torch.zeros(2), torch.eye(2)), (torch.tensor([0.0, torch.nan]), torch.eye(2)), "second .* NaN"),
        (FeatureMoments.empty(2), (torch.zeros(2), torch.eye(2)), "first moments hold 0 rows"),
        (torch.zeros(9, 2), torch.zeros(9, 2), r"first moments are of type Tensor; pass FeatureMoments\.from_features"),
        (
            FeatureMoments(9, torch.zeros(2), torch.eye(2), {"weights_sha256": "aa"}),
            FeatureMoments(9, torch.zeros(2), torch.eye(2), {"weights_sha256": "bb"}),
            "weights_sha256 differs: aa against bb",
        ),
        (prepare((torch.zeros(2), torch.eye(2))), (torch.zeros(3), torch.eye(3)), "d = 2 and d = 3"),
    ],
)
def test_bad_input_is_named(a, b, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)


@pytest.mark.parametrize(
    ("side", "message"),
    [
        ((torch.zeros(2), torch.eye(2, requires_grad=True)), "prepared moments require a gradient"),
        ((torch.zeros(2), torch.eye(2) * torch.nan), "prepared moments hold NaN"),
        ((torch.zeros(2), torch.diag(torch.tensor([1.0, -0.5]))), "eigenvalue -0.5"),
    ],
)
def test_bad_prepared_sides_are_named(side, message):
    with pytest.raises(ValueError, match=message):
        prepare(side)
