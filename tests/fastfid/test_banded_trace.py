"""tr √M by a band and log-determinants: the band's eigenvalues, the trace in closed form, and where it declines."""

import numpy as np
import pytest
import torch

import fastfid.backend
import fastfid.distances.frechet
from fastfid import FeatureMoments, frechet_terms, prepare
from fastfid.linalg import banded_trace
from fastfid.linalg.symmetric import NOISE

EPS = 2.2e-16
LARGE = banded_trace.SMALLEST  # d of the smallest matrix that takes this way by itself


def with_eigenvalues(values, seed=0):
    """A symmetric matrix in a random basis, exactly symmetric."""
    basis = torch.linalg.qr(
        torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(seed)).double()
    )[0]
    matrix = (basis * torch.as_tensor(values, dtype=torch.float64)) @ basis.T
    return (matrix + matrix.T) / 2


def upper_only(matrix):
    """Its upper triangle, with NaN below, which must not be read."""
    return torch.where(torch.ones_like(matrix).triu().bool(), matrix, torch.nan)


def root_of(matrix, width=banded_trace.WIDTH):
    return banded_trace.trace_of_root(banded_trace.reduce_to_band(upper_only(matrix), width), NOISE)


@pytest.mark.parametrize(
    ("d", "width"), [(1, 4), (2, 1), (3, 2), (9, 1), (64, 64), (65, 64), (130, 64), (255, 7), (257, 32), (530, 64)]
)
def test_band_has_the_eigenvalues_of_the_matrix(d, width):
    """About the width of panels and of stripes; every eigenvalue errs by a few ε·λ_max (measured: 6 at most)."""
    values = np.geomspace(1e-6, 1, d)
    band = banded_trace.reduce_to_band(upper_only(with_eigenvalues(values)), width)
    upper = band.dense.triu()
    rows, columns = np.indices((d, d))
    assert not upper[torch.from_numpy(columns - rows > width)].any()
    found = np.linalg.eigvalsh((upper + upper.triu(1).T).numpy())
    np.testing.assert_allclose(found, values, rtol=0, atol=40 * EPS)
    for offset in range(min(d, width + 1)):
        np.testing.assert_array_equal(band.diagonals[offset:, width - offset], upper.diagonal(offset).numpy())
        assert not band.diagonals[:offset, width - offset].any()


@pytest.mark.parametrize("d", [1, 2, 40, 200, 700])
@pytest.mark.parametrize("condition", [1.0, 1e4, 1e12])
def test_trace_of_known_eigenvalues(d, condition):
    """Eigenvalues that err by p ε λ_max move the sum of roots by Σ p ε/(2√λ) at most; p = 40 as above."""
    values = np.geomspace(1 / condition, 1, d)
    for scale in (1e-120, 1.0, 1e120):
        expected = np.sqrt(scale * values).sum()
        rounding = 40 * EPS * (0.5 / np.sqrt(values)).sum() * np.sqrt(scale)
        assert root_of(with_eigenvalues(scale * values)) == pytest.approx(expected, rel=1e-13, abs=rounding)


def test_nothing_to_reflect():
    """A diagonal matrix, the identity among them, whose panels are of zeros."""
    values = np.linspace(1, 3, 150)
    assert root_of(torch.diag(torch.from_numpy(values))) == pytest.approx(np.sqrt(values).sum(), rel=1e-14)
    assert root_of(torch.eye(150, dtype=torch.float64)) == pytest.approx(150, rel=1e-14)


@pytest.mark.parametrize("smallest", [0.0, 1e-16, -1e-16, -0.1])
def test_singular_and_indefinite_matrices_are_left_to_eigenvalues(smallest):
    values = np.geomspace(1e-3, 1, 90)
    values[40] = smallest
    assert root_of(with_eigenvalues(values)) is None
    assert root_of(torch.zeros(90, 90, dtype=torch.float64)) is None
    assert root_of(torch.full((90, 90), 1e200, dtype=torch.float64)) is None


# --- within the Fréchet distance ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sides():
    def draw(count, seed):
        rows = torch.randn(count, LARGE, generator=torch.Generator().manual_seed(seed)).double()
        return FeatureMoments.from_features(rows * torch.arange(1, LARGE + 1) ** -0.5 + 0.1 * seed)

    return draw(2000, 1), draw(2500, 2)


def by_eigenvalues(monkeypatch, *sides):
    with monkeypatch.context() as patch:
        patch.setattr(banded_trace, "SMALLEST", LARGE + 1)
        return frechet_terms(*sides)


def test_the_distance_is_that_of_the_eigenvalues(monkeypatch, sides):
    """κ(M) is 1e6 here: the smallest root carries 1e6·p ε/2 = 1e-9 of itself and 1e-12 of the sum."""
    found, expected = frechet_terms(*sides), by_eigenvalues(monkeypatch, *sides)
    assert (found.root_by, expected.root_by) == ("log-determinants", "eigenvalues")
    assert found.root_term == pytest.approx(expected.root_term, rel=1e-12)
    assert (found.route, found.rank, found.clipped, found.most_negative) == ("cholesky", LARGE, 0, 0.0)
    assert frechet_terms(prepare(sides[0]), sides[1]).total == pytest.approx(expected.total, rel=1e-11)


def test_a_side_without_some_direction_falls_back_and_says_so(monkeypatch, sides):
    a, b = sides
    values, vectors = torch.linalg.eigh(b.cov)
    values[::5] = 0
    flat = (b.mean, (vectors * values) @ vectors.T)
    found, expected = frechet_terms(a, flat), by_eigenvalues(monkeypatch, a, flat)
    assert found.route == "cholesky" and found.root_by == "eigenvalues" and found.clipped > 0
    # A fifth of the roots are noise, √(8ε) = 4e-8 of the largest at most each.
    assert found.root_term == pytest.approx(expected.root_term, abs=2 * LARGE / 5 * 4.3e-8 * expected.root_term)


def test_without_the_extension_eigenvalues_do(monkeypatch, sides):
    expected = frechet_terms(*sides)
    monkeypatch.setattr(fastfid.backend, "_C", None)
    found = frechet_terms(*sides)
    assert found.root_by == "eigenvalues" and found.root_term == pytest.approx(expected.root_term, rel=1e-12)


def test_gradients_take_eigenvectors(sides):
    a, b = sides
    cov = b.cov.clone().requires_grad_()
    terms = frechet_terms(a, (b.mean, cov))
    assert terms.root_by == "eigenvalues"
    terms.total.backward()
    assert torch.isfinite(cov.grad).all() and fastfid.distances.frechet.frechet_distance(a, b) == pytest.approx(
        terms.total.item()
    )
