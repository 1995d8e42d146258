"""Precision, recall, density and coverage against prdc, torch-fidelity and exact integer arithmetic."""

import contextlib
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prdc import compute_prdc
from torch_fidelity.metric_prc import prc_features_to_metric

from fastfid import prdc, precision_recall
from fastfid.distances import adm_neighbours, kth_neighbour, pair_tiles
from fastfid.distances import precision_recall as precision_recall_module
from fastfid.distances.precision_recall import RealBalls

# Every score is a count over n, m or k·m, so two implementations that agree on each pair agree to the last bits of one
# division; prdc's mean of booleans and its product with 1/k round differently.
COUNTS = dict(rel=1e-14, abs=0)


def features(n, d, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) + shift


def prdc_reference(real, generated, k):
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its counts
        return compute_prdc(real.numpy(), generated.numpy(), k)


def fidelity_precision_recall(real, generated, k):
    scores = prc_features_to_metric(generated, real, prc_neighborhood=k, verbose=False)
    return {name: scores[name] for name in ("precision", "recall")}


def scores_of_integers(real, generated, k, closer):
    """All four scores from int64 distances: no rounding anywhere, ties and all."""

    def squared(a, b):
        return ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)

    real, generated = real.numpy().astype(np.int64), generated.numpy().astype(np.int64)
    radii_real = np.sort(squared(real, real), axis=1)[:, k]
    radii_generated = np.sort(squared(generated, generated), axis=1)[:, k]
    between = squared(real, generated)
    in_real, in_generated = closer(between, radii_real[:, None]), closer(between, radii_generated[None, :])
    return {
        "precision": in_real.any(axis=0).mean(),
        "recall": in_generated.any(axis=1).mean(),
        "density": in_real.sum() / (k * len(generated)),
        "coverage": in_real.any(axis=1).mean(),
    }


@pytest.mark.parametrize(
    ("n", "m", "d", "k"), [(200, 200, 8, 5), (41, 127, 3, 1), (127, 41, 64, 7), (7, 7, 2, 5), (1271, 600, 41, 5)]
)
def test_equal_to_prdc_and_torch_fidelity(n, m, d, k):
    real, generated = features(n, d, 1), features(m, d, 2, shift=0.2)
    assert prdc(real, generated, k) == pytest.approx(prdc_reference(real, generated, k), **COUNTS)
    # torch-fidelity averages float32 flags: counts up to 1271 of them are good to 1e-7
    expected = fidelity_precision_recall(real, generated, k)
    assert precision_recall(real, generated, k) == pytest.approx(expected, rel=1e-6)


def test_defaults_are_those_of_the_papers():
    real, generated = features(100, 4, 1), features(100, 4, 2)
    assert prdc(real, generated) == prdc(real, generated, nearest_k=5)
    assert precision_recall(real, generated) == precision_recall(real, generated, nearest_k=3)


@given(seed=st.integers(0, 10_000), levels=st.integers(1, 4), d=st.integers(1, 5), k=st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_ties_are_exact(seed, levels, d, k):
    """Few integer levels: most points coincide or tie, and `<` and `<=` give different scores."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.randint(0, levels, (30, d), generator=generator).float()
    generated = torch.randint(0, levels, (17, d), generator=generator).float()
    strict, loose = (scores_of_integers(real, generated, k, closer) for closer in (np.less, np.less_equal))
    assert prdc(real, generated, k) == pytest.approx(strict, **COUNTS)
    loose = {name: loose[name] for name in ("precision", "recall")}
    assert precision_recall(real, generated, k) == pytest.approx(loose, **COUNTS)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_a_set_against_itself(offset):
    """Rows lie inside balls by the very distances that made the radii, so the density is exact."""
    x = features(100, 16, shift=offset)
    # |x_i − x_j| < r_k(x_i) for j = i and the k − 1 nearest: k rows a ball, so the density is 1.
    for generated in (x, x.flip(0)):
        assert prdc(x, generated) == {"precision": 1.0, "recall": 1.0, "density": 1.0, "coverage": 1.0}
        assert precision_recall(x, generated) == {"precision": 1.0, "recall": 1.0}


def test_collapsed_and_constant_generators():
    real = features(50, 8)
    collapsed = real[:1].expand(40, -1)  # all on one real point: that ball holds all, its neighbours' perhaps
    scores = prdc(real, collapsed)
    assert scores["precision"] == 1.0 and scores["recall"] == 0.0 and scores["density"] >= 1 / 5
    assert precision_recall(real, collapsed)["recall"] == 1 / 50  # `<=` with radius 0 reaches the point itself
    constant = torch.ones(20, 3)
    assert prdc(constant, constant) == {"precision": 0.0, "recall": 0.0, "density": 0.0, "coverage": 0.0}
    assert precision_recall(constant, constant) == {"precision": 1.0, "recall": 1.0}


def test_far_sets_share_nothing():
    assert set(prdc(features(30, 4), features(30, 4, 1, shift=100)).values()) == {0.0}


def test_blocks_change_nothing(monkeypatch):
    real, generated = features(100, 5, 1), features(61, 5, 2)
    whole = prdc(real, generated), precision_recall(real, real.flip(0))
    monkeypatch.setattr(kth_neighbour, "BLOCK_ROWS", 7)
    monkeypatch.setattr(kth_neighbour, "TILE", 11)
    monkeypatch.setattr(pair_tiles, "TILE", 11)
    monkeypatch.setattr(pair_tiles, "PAIR_ELEMENTS", 16)
    assert (prdc(real, generated), precision_recall(real, real.flip(0))) == whole


@pytest.mark.parametrize("blurry", [False, True])
def test_every_route_counts_the_same(monkeypatch, blurry):
    """Open tiles made again in float64, and radii from whole rows: forced here, taken by near-ties otherwise."""
    real, generated = features(300, 64, 1), features(250, 64, 2)
    if blurry:  # near the mean, |x − y|² ≈ d < 2d ≈ r²: every generated row lies in every real ball
        generated *= 0.01
    exact = prdc_reference(real, generated, 5)
    assert (exact["density"] == 60) == blurry  # 300 balls hold a row, of 5 expected
    monkeypatch.setattr(kth_neighbour, "TILE", 100)
    monkeypatch.setattr(pair_tiles, "TILE", 100)
    assert prdc(real, generated) == pytest.approx(exact, **COUNTS)
    monkeypatch.setattr(precision_recall_module, "OPEN_PART", -1)
    monkeypatch.setattr(kth_neighbour, "MIN_CANDIDATES", 0)
    monkeypatch.setattr(kth_neighbour, "CANDIDATES", 0)
    points = pair_tiles.Points(real, real.mean(dim=0), 1.0)
    assert kth_neighbour._neighbour_candidates(points, 5) is None
    assert prdc(real, generated) == pytest.approx(exact, **COUNTS)


@given(seed=st.integers(0, 10_000), k=st.integers(1, 4))
@settings(deadline=None, max_examples=20)
def test_what_float32_cannot_tell_apart(seed, k):
    """Integers near 2²⁵ in steps of 1: squared distances of 2⁵⁰ that differ by 2²⁶, exact in int64 and in float64."""
    generator = torch.Generator().manual_seed(seed)
    far = 2**25 * torch.randint(0, 2, (40, 2), generator=generator)
    points = (far + torch.randint(0, 4, (40, 2), generator=generator)).double()
    real, generated = points[:23], points[23:]
    expected = scores_of_integers(real, generated, k, np.less)
    assert prdc(real, generated, k) == pytest.approx(expected, **COUNTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", ["normal", "offset", "spread", "same"])
def test_bounds_enclose_the_distances(dtype, make):
    """Both bounds of a tile beside sums in float64, which err by 1e-13 of what they bound to 1e-4 (float32)."""
    x, y = features(60, 300, 1), features(50, 300, 2)
    if make == "offset":
        x, y = x + 30, y + 30  # about a centre that is not theirs
    elif make == "spread":
        x, y = x * torch.logspace(-6, 6, 60, dtype=torch.float64)[:, None], y * 1e-3
    elif make == "same":
        y = x[:50].clone()
    scale = pair_tiles.common_scale(x, y)
    centre = torch.zeros(300, dtype=torch.float64)
    left, right = (pair_tiles.Points(side, centre, scale, dtype) for side in (x, y))
    (tile,) = pair_tiles.tiles(left, right)
    i, j, low = tile.pairs_within(torch.full((1, 1), torch.inf, dtype=dtype))
    exact = pair_tiles.exact_squared(left, i, right, j)
    rounding = 1e-13 * (left.norms[i] + right.norms[j])
    assert len(i) == 60 * 50
    assert (low.double() <= exact + rounding).all() and (exact <= tile.upper(i, j, low) + rounding).all()


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_neither_overflow_nor_underflow(factor):
    real, generated = features(80, 6, 1).float(), features(70, 6, 2).float()
    assert prdc(real * factor, generated * factor) == prdc(real, generated)  # their squares leave float32's range


def test_reduced_products_are_kept_out():
    real, generated = features(80, 6, 1).float(), features(70, 6, 2).float()
    expected = prdc(real, generated)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            assert prdc(real, generated) == expected
    finally:
        torch.set_float32_matmul_precision(before)


# --- ADM ---------------------------------------------------------------------------------------------------------


def adm_reference(real, generated, k):
    """ADM's evaluator in NumPy's own float16, at once: its blocks matter only where float16 overflows."""

    def squared(a, b):
        def formula(a, b, dtype):
            a, b = a.astype(dtype), b.astype(dtype)
            with np.errstate(all="ignore"):
                norms_a, norms_b = ((side * side).astype(np.float64).sum(axis=1).astype(dtype) for side in (a, b))
                products = (a.astype(np.float64) @ b.astype(np.float64).T).astype(dtype)
                return np.maximum(norms_a[:, None] - dtype(2) * products + norms_b[None, :], dtype(0))

        half = formula(a, b, np.float16)
        return half.astype(np.float32) if np.isfinite(half).all() else formula(a, b, np.float32)

    radii_real, radii_generated = (np.partition(squared(side, side), k, axis=1)[:, k] for side in (real, generated))
    between = squared(real, generated)
    return {
        "precision": (between <= radii_real[:, None]).any(axis=0).mean(),
        "recall": (between <= radii_generated[None, :]).any(axis=1).mean(),
    }


def test_adm_distances(monkeypatch):
    """Features from 2 to 6 in eighths, times 9/8 on one side: sums of products are exact in float32, in any order.

    With d = 100, |x|² is 1,700 and 2x·y twice that, of which float16 keeps 1 and 2, beside squared distances of 270.
    """
    monkeypatch.setattr(adm_neighbours, "BLOCK_ROWS", 64)
    generator = torch.Generator().manual_seed(0)
    real, generated = (torch.randint(16, 49, (n, 100), generator=generator).float() / 8 for n in (300, 187))
    generated *= 9 / 8
    adm = precision_recall(real, generated, distances="adm")
    assert adm == pytest.approx(adm_reference(real.numpy(), generated.numpy(), 3), **COUNTS)
    assert adm != precision_recall(real, generated)
    overflowing = precision_recall(real * 8, generated * 8, distances="adm")  # |x|² of 110,000 beyond 65,504
    assert overflowing == pytest.approx(adm_reference(8 * real.numpy(), 8 * generated.numpy(), 3), **COUNTS)
    assert overflowing == precision_recall(real, generated)


def test_adm_falls_back_by_batches(monkeypatch):
    """One row that overflows float16 changes only the batches it is in."""
    monkeypatch.setattr(adm_neighbours, "ADM_BATCH", 10)
    x = features(30, 5, 1)
    x[25] *= 1e3
    in_half = {}
    for rows, columns, squared in adm_neighbours._adm_squared_distances(x, x):
        assert torch.isfinite(squared).all()
        in_half[rows.start, columns.start] = torch.equal(squared, squared.half().float())
    assert in_half == {(i, j): i < 20 and j < 20 for i in (0, 10, 20) for j in (0, 10, 20)}


def test_numpy_and_float32_are_accepted():
    real, generated = features(60, 5, 1).float(), features(60, 5, 2).float()
    assert prdc(real.numpy(), generated.numpy()) == prdc(real, generated) == prdc(real.double(), generated.double())


OK = torch.zeros(9, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prdc(OK, OK[:5]), "5 generated rows have no neighbour number 5; pass nearest_k=4 or less"),
        (lambda: precision_recall(OK[:2], OK), "2 real rows have no neighbour number 3"),
        (lambda: prdc(OK, OK, nearest_k=0), "nearest_k is 0"),
        (lambda: precision_recall(OK, OK, distances="half"), "unknown distances 'half'; choose one of exact, adm"),
        (lambda: prdc(OK, OK[:, :2]), "real has d = 3, generated has d = 2"),
        (lambda: prdc(OK[0], OK), r"real features must be \[n, d\].*\(3,\)"),
        (lambda: prdc(OK, torch.full((9, 3), torch.inf)), "generated feature row 0 holds NaN or infinity"),
        (lambda: prdc(OK, OK.to("meta")), "generated is a tensor of shape .* on the device meta"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_real_balls_are_kept_for_many_generated_sets():
    """The same numbers to the last bit, for generated sets of any scale."""
    rng = np.random.default_rng(5)
    real = torch.from_numpy(rng.normal(size=(300, 6))).float()
    balls = RealBalls(real, 3)
    for scale in (1.0, 1e-3, 700.0):
        generated = scale * torch.from_numpy(rng.normal(size=(200, 6))).float()
        assert balls.prdc(generated) == prdc(real, generated, 3)
    assert balls.prdc(real) == prdc(real, real, 3)
    with pytest.raises(ValueError, match="3 real rows have no neighbour number 3"):
        RealBalls(real[:3], 3)
    with pytest.raises(ValueError, match="use one extractor for both"):
        balls.prdc(real[:, :5])
