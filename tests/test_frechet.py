"""The Fréchet distance against closed forms, SciPy's matrix root, torch-fidelity, and the laws it obeys."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

from fastfid import FeatureMoments, frechet_distance, frechet_terms

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
        (
            FeatureMoments(9, torch.zeros(2), torch.eye(2), {"weights_sha256": "aa"}),
            FeatureMoments(9, torch.zeros(2), torch.eye(2), {"weights_sha256": "bb"}),
            "weights_sha256 differs: aa against bb",
        ),
    ],
)
def test_bad_input_is_named(a, b, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)
