"""The swap engine against sets recomputed from scratch, and the laws its distances obey."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfid import FeatureMoments, RealFactor, SwapEngine, feature_extractor, swap_change_ref
from fastfid.swap import chunks
from fastfid.swap.log_determinants import swap_trace_change, swap_trace_change_ref
from tests.support import oracles

ASSETS = Path(__file__).parents[2] / "sit_rl" / "assets"
BACKENDS = ["cpp", "torch"]
EXACT = {"dtype": torch.float64, "tol": 1e-10}


def moments(samples):
    """(mean, cov) of samples [n, d] in float64."""
    samples = np.asarray(samples, np.float64)
    return torch.from_numpy(samples.mean(0)), torch.from_numpy(np.atleast_2d(np.cov(samples.T)))


def make(name="plain", N=120, d=12, m_r=5, m_a=5, batch=4, seed=0):
    """Samples of one kind: real [4d+9, d], reference [N, d], removed [B, m_r], added [B, m_a, d]."""
    rng = np.random.default_rng(seed)
    spread = np.arange(1, d + 1) ** -0.5
    if name == "graded":  # variances from 1 to 1e-14
        spread = np.geomspace(1, 1e-7, d)
    real = rng.standard_normal((4 * d + 9, d)) * spread
    reference = rng.standard_normal((N, d)) * spread * 1.2 + 0.1 * spread
    added = rng.standard_normal((batch, m_a, d)) * spread * 0.9 - 0.2 * spread
    removed = np.stack([rng.permutation(N)[:m_r] for _ in range(batch)]).astype(np.int64)
    if name == "duplicates":
        reference[N // 2 :] = reference[: N - N // 2]
        added[:, ::2] = reference[0]
    if name == "constant in reference":
        reference[:, :3] = 0.7
    if name == "constant everywhere":
        real[:, :3] = reference[:, :3] = added[:, :, :3] = 0.7
    if name == "few real":  # rank-deficient real covariance
        real = real[: d // 2]
    if name == "offset":  # mean of 1e4 standard deviations
        real, reference, added = real + 1e4, reference + 1e4, added + 1e4
    if name == "outlier":
        added[0] *= 100
    return real, reference, removed, added


CASES = {
    "plain": {},
    "one image": {"m_r": 1, "m_a": 1},
    "half of the set": {"m_r": 60, "m_a": 60},
    "half, fewer than d stay": {"N": 20, "m_r": 10, "m_a": 10},
    "more added": {"m_r": 3, "m_a": 8},
    "more removed": {"m_r": 8, "m_a": 3},
    "only removed": {"m_a": 0},
    "only added": {"m_r": 0},
    "all removed": {"N": 40, "m_r": 40, "m_a": 30},
    "N < d": {"N": 9, "m_r": 2, "m_a": 2},
    "N < d, unequal": {"N": 9, "m_r": 2, "m_a": 4},
    "one feature": {"d": 1},
    "duplicates": {"name": "duplicates"},
    "constant in reference": {"name": "constant in reference"},
    "constant everywhere": {"name": "constant everywhere"},
    "few real": {"name": "few real"},
    "offset": {"name": "offset"},
    "outlier": {"name": "outlier"},
    "graded": {"name": "graded"},
}


def allowance(engine, m_r, m_a):
    """What a change of distance may be off in float64, from the bounds of swap/nodes.py and linalg/quadrature.py.

    Each of the k rank-one terms moves interlacing eigenvalues: the shift costs at most √s and the rule at most tol·√hi,
    both times 2√c.  Moments and eigenvalues are rounded at 1e-16 of the largest, and a root of such an error is 1e-8 of
    the largest root; only directions that small suffer, and a change moves k of them.
    """
    report = engine.report()
    final = engine.count - m_r + m_a
    root_c = math.sqrt((engine.count - 1) / (final - 1))
    rule = engine.options.tol * math.sqrt(report["node_range"][1]) if report["nodes"] else 0.0
    rounding = 1e-8 * math.sqrt(report["lambda_max"]) if report["lambda_min"] < 1e-8 * report["lambda_max"] else 0.0
    bound = 2 * root_c * (m_r + m_a) * (math.sqrt(report["shift"]) + rule + rounding)
    return bound + 1e-12 * (engine.distance + engine.prepared.trace + engine.real.trace)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_change_matches_the_oracle(case, backend):
    real, reference, removed, added = make(**CASES[case])
    engine = SwapEngine(moments(real), reference, backend=backend, **EXACT)
    change = engine.change(removed, added).numpy()
    expected = oracles.changes(real, reference, removed, added)
    np.testing.assert_allclose(change, expected, rtol=1e-9, atol=allowance(engine, removed.shape[1], added.shape[1]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "case", ["plain", "half of the set", "more added", "N < d", "few real", "duplicates", "offset"]
)
def test_default_precision_resolves_candidates(case, backend):
    """With float32 and the default tolerance the error is at most 1e-4 of the candidates' standard deviation."""
    real, reference, removed, added = make(batch=12, **CASES[case])
    engine = SwapEngine(moments(real), reference, backend=backend)
    expected = oracles.changes(real, reference, removed, added)
    assert abs(engine.change(removed, added).numpy() - expected).max() <= 1e-4 * expected.std()


@pytest.mark.parametrize("case", CASES)
def test_methods_and_references_agree(case):
    real, reference, removed, added = make(**CASES[case])
    engine = SwapEngine(moments(real), reference, **EXACT)
    change = engine.change(removed, added)
    limit = allowance(engine, removed.shape[1], added.shape[1])
    by_spectrum = SwapEngine(moments(real), reference, method="eigh", **EXACT)
    # roots of rounding errors, 1e-16 of λ_max, enter both full spectra for every direction
    roots = 2 * reference.shape[1] * 1.5e-8 * math.sqrt(engine.report()["lambda_max"])
    torch.testing.assert_close(by_spectrum.change(removed, added), change, rtol=1e-9, atol=limit + roots)
    torch.testing.assert_close(swap_change_ref(engine, removed, added), change, rtol=1e-9, atol=limit + roots)


@pytest.mark.parametrize("method", ["newton_schulz", "polar_express"])
def test_products_alone_come_close(method):
    real, reference, removed, added = make("graded", N=400, d=24, batch=8)
    engine = SwapEngine(moments(real), reference, **EXACT)
    expected = engine.change(removed, added)
    # Measured against the spread (bench/results/newton_schulz_error.csv): float32 1e-3 once it has converged.
    for dtype, limit in ((torch.float32, 0.01), (torch.float64, 1e-4)):
        change = SwapEngine(moments(real), reference, method=method, dtype=dtype).change(removed, added)
        assert abs(change - expected).max() <= limit * expected.std()


# Features as networks give them, (spectrum's power, d, N, candidates): pooled Inception features, nonnegative and
# skewed; DINOv2's normalised tokens, nearly flat; fashion-a's own, of the embedded images; a spectrum down to 1e-14.
FAMILIES = {
    "inception": (0.5, 256, 700, 16),
    "dinov2": (0.15, 1024, 2600, 6),
    "fashion-a": (None, 128, 2500, 8),
    "ill": (None, 64, 400, 16),
}


def family_of(family):
    """real, reference, removed [B, 20] and added [B, 20, d]."""
    power, d, N, batch = FAMILIES[family]
    rng = np.random.default_rng(7)
    if family == "fashion-a":
        images = torch.from_numpy(np.load(ASSETS / "fashion_mnist_train.npz")["images"][: 3 * N].reshape(-1, 1, 28, 28))
        network = feature_extractor("fashion-a")
        rows = torch.cat([network(part) for part in images.split(500)]).double().numpy()
        real, reference, added = rows[:N], rows[N : 2 * N], rows[2 * N :][: batch * 20].reshape(batch, 20, d)
    else:
        scale = np.geomspace(1, 1e-7, d) if power is None else np.arange(1.0, d + 1) ** -power
        turn = np.linalg.qr(rng.standard_normal((d, d)))[0]

        def draw(*shape):
            x = (rng.standard_normal((*shape, d)) * scale) @ turn
            return np.maximum(x + 0.3, 0) if family == "inception" else x

        real, reference, added = draw(2 * N), 1.1 * draw(N), 1.1 * draw(batch, 20)
    return real, reference, np.stack([rng.permutation(N)[:20] for _ in range(batch)]), added


@pytest.mark.parametrize("family", FAMILIES)
def test_errors_against_the_spread_of_candidates(family):
    real, reference, removed, added = family_of(family)
    expected = oracles.changes(real, reference, removed, added)
    for options, limit in (({}, 1e-4), ({"dtype": torch.float64}, 1e-7)):
        change = SwapEngine(moments(real), reference, **options).change(removed, added).numpy()
        assert abs(change - expected).max() <= limit * expected.std(), options


def rare(active, removed, amplitude=1.0, dead=False):
    """Skewed features, one of them nonzero in `active` rows only of which `removed` leave; another may be dead."""
    rng, d, N, m = np.random.default_rng(active), 20, 1000, 40
    real, reference, added = (np.abs(rng.standard_normal((n, d))) for n in (2000, N, 3 * m))
    reference[:, 3] = 0
    reference[:active, 3] = amplitude * np.abs(rng.standard_normal(active))
    real[:, 3] *= amplitude * (rng.random(2000) < 0.05)
    added[:, 3] = 0
    if dead:
        reference[:, 7] = added[:, 7] = 0
    rows = [np.r_[np.arange(removed), active + rng.permutation(N - active)[: m - removed]] for _ in range(3)]
    return real, reference, np.stack(rows), added.reshape(3, m, d)


RARE = [(1, 1, 1.0), (5, 5, 0.1), (5, 4, 1.0), (40, 40, 1.0), (39, 38, 0.1)]


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("active, removed, amplitude", RARE)
def test_a_removal_that_takes_a_rare_feature(active, removed, amplitude, backend, dead):
    real, reference, out, added = rare(active, removed, amplitude, dead)
    expected = oracles.changes(real, reference, out, added)
    each = oracles.changes(real, reference, out[:, :1], added[:, :1])
    for dtype, limit in ((torch.float32, 1e-4), (torch.float64, 2e-6)):
        # of the change: a lost direction is known to 3e-8 of its root, by the last pivot's rounding to 20 times that
        engine = SwapEngine(moments(real), reference, backend=backend, dtype=dtype)
        rows = torch.from_numpy(added).requires_grad_()
        change = engine.change(out, rows)
        np.testing.assert_allclose(change.detach(), expected, rtol=0, atol=limit * abs(expected).max())
        if removed == active and not dead:
            assert engine.report()["recomputed"] == 3
        change.sum().backward()
        assert rows.grad.isfinite().all()
        single = engine.change_each(out[:, 0], added[:, 0])
        np.testing.assert_allclose(single, each, rtol=0, atol=limit * abs(each).max())


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_where_a_rare_feature_is_lost(backend):
    # one candidate of three loses it; the others' gradients are those of a batch without it
    real, reference, out, added = rare(5, 5)
    out[1:] += 5 * (out[1:] < 5)
    out[1:, :5] = np.arange(900, 905)
    engine = SwapEngine(moments(real), reference, backend=backend, **EXACT)
    rows = torch.from_numpy(added).requires_grad_()
    engine.change(out, rows).sum().backward()
    assert engine.report()["recomputed"] == 1
    others = torch.from_numpy(added[1:]).requires_grad_()
    engine.change(out[1:], others).sum().backward()
    torch.testing.assert_close(rows.grad[1:], others.grad, rtol=1e-12, atol=1e-14)
    step = 1e-5
    for place in (
        (0, 0, 0),
        (0, 7, 5),
    ):  # the lost feature itself has no derivative: adding any of it gains at an infinite rate
        moved = [added.copy(), added.copy()]
        moved[0][place] -= step
        moved[1][place] += step
        low, high = (oracles.changes(real, reference, out[:1], x[:1])[0] for x in moved)
        assert rows.grad[place].item() == pytest.approx((high - low) / (2 * step), rel=1e-4, abs=1e-8)


def test_threads_change_no_bit():
    real, reference, removed, added = make(d=40, N=300, m_r=9, m_a=8, batch=7)
    engine, before = SwapEngine(moments(real), reference, **EXACT), torch.get_num_threads()
    scores = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            scores.append(engine.score(removed, added))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(scores[0], scores[3])  # repeatable for a fixed count
    # the projection is torch's, whose order of summation may follow the threads
    for score in scores[1:3]:
        torch.testing.assert_close(score, scores[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_fused_gradient_equals_autograd(dtype, limit):
    real, reference, removed, added = make(d=30, N=200, m_r=6, m_a=7, batch=3)
    gradients = []
    for backend in ("cpp", "torch"):
        rows = torch.from_numpy(added).to(dtype).requires_grad_()
        engine = SwapEngine(moments(real), reference, dtype=dtype, backend=backend)
        (engine.change(removed, rows) * torch.tensor([1.0, -2.0, 0.5])).sum().backward()
        gradients.append(rows.grad.double())
    # two routes in the same dtype: each loses the condition of J + G times its rounding
    assert abs(gradients[0] - gradients[1]).max() <= limit * abs(gradients[1]).max()


def test_trace_change_matches_its_reference():
    rng = torch.Generator().manual_seed(0)
    spectrum = torch.logspace(-3, 0, 20, dtype=torch.float64)
    w_r, w_a = (0.05 * torch.randn(3, m, 20, generator=rng, dtype=torch.float64) * spectrum.sqrt() for m in (4, 5))
    tau, omega = torch.logspace(-2, 1, 7, dtype=torch.float64), torch.linspace(0.1, 1, 7, dtype=torch.float64)
    expected = swap_trace_change_ref(w_r, w_a, spectrum, tau, omega)
    for backend in BACKENDS:
        torch.testing.assert_close(
            swap_trace_change(w_r, w_a, spectrum, tau, omega, backend), expected, rtol=1e-12, atol=1e-14
        )


@pytest.mark.parametrize(
    "sizes",
    [{"d": 5, "N": 30}, {"d": 5, "N": 4}, {"d": 8, "N": 40, "name": "graded"}, {"d": 6, "name": "offset"}, {"d": 12}],
    ids=str,
)
def test_distance_in_many_digits(sizes):
    real, reference, removed, added = make(**{"m_r": 2, "m_a": 3, "batch": 1} | sizes)
    engine = SwapEngine(moments(real), reference, **EXACT)
    exact = oracles.distance_in_many_digits(real, reference)
    assert engine.distance == pytest.approx(exact, rel=1e-11)  # an offset of 1e4 costs the means a digit
    assert oracles.distance_of_samples(real, reference) == pytest.approx(exact, rel=1e-11)
    change = oracles.changes(real, reference, removed, added, oracles.distance_in_many_digits)
    np.testing.assert_allclose(engine.change(removed, added), change, atol=allowance(engine, 2, 3))


def test_distance_by_the_original_definition():
    real, reference, _, _ = make()
    engine = SwapEngine(moments(real), reference)
    (mean_r, cov_r), (mean_g, cov_g) = moments(real), moments(reference)
    expected = oracles.distance_of_moments(mean_r.numpy(), cov_r.numpy(), mean_g.numpy(), cov_g.numpy())
    assert engine.distance == pytest.approx(expected, rel=1e-10)  # a Schur root of a product loses some digits


@pytest.mark.parametrize("case", ["plain", "N < d", "constant in reference"])
def test_single_images_and_leave_one_out(case):
    real, reference, _, added = make(**{**CASES[case], "batch": 3, "m_a": 2})
    removed = np.arange(6).reshape(3, 2)
    engine = SwapEngine(moments(real), reference, **EXACT)
    each = engine.change_each(removed, added).numpy()
    expected = oracles.changes(real, reference, removed.reshape(-1, 1), added.reshape(6, 1, -1)).reshape(3, 2)
    np.testing.assert_allclose(each, expected, rtol=1e-9, atol=allowance(engine, 1, 1))
    left_out = engine.leave_one_out().numpy()
    nothing = np.empty((len(reference), 0, reference.shape[1]))
    expected = oracles.changes(real, reference, np.arange(len(reference))[:, None], nothing)
    np.testing.assert_allclose(left_out, expected, rtol=1e-9, atol=allowance(engine, 1, 0))


def test_influence_is_the_derivative_of_the_distance():
    """Mixing a share ε of a point at x into the reference changes FD by ε(I(x) − E[I]), E over the covariance used."""
    real, reference, _, added = make()
    engine = SwapEngine(moments(real), reference, **EXACT)
    (mean_r, cov_r), (mean, cov) = ([t.numpy() for t in moments(s)] for s in (real, reference))
    influence = engine.influence(added[0]).numpy()
    step = 1e-5
    for x, value in zip(added[0], influence, strict=True):
        y = x - mean
        mixed = [
            oracles.distance_of_moments(mean_r, cov_r, mean + e * y, cov + e * (np.outer(y, y) - cov))
            for e in (-step, step)
        ]
        roots = np.linalg.eigvals(cov_r @ cov).real.clip(0) ** 0.5
        expected = (mixed[1] - mixed[0]) / (2 * step) + np.trace(cov) - roots.sum()
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)  # central differences: step² and 1e-14/step


def test_influence_predicts_small_changes_of_large_sets():
    real, reference, _, added = make(N=4000, d=6, m_a=50, batch=1)
    engine = SwapEngine(moments(real), reference, **EXACT)
    rows = np.arange(50)
    predicted = (engine.influence(added[0]) - engine.influence(reference[rows])).numpy() / 4000
    exact = engine.change_each(rows, added[0]).numpy()
    # second order: one more factor of leverage, some d·|y|²/N of it
    np.testing.assert_allclose(predicted, exact, atol=0.05 * abs(exact).max())


# ---------------------------------------------------------------------------------------------------------------- laws

shapes = st.tuples(st.integers(8, 40), st.integers(1, 10), st.integers(0, 5), st.integers(0, 5), st.integers(0, 10**6))
law = settings(max_examples=20, deadline=None)


def engine_of(shape, **changed):
    N, d, m_r, m_a, seed = shape
    real, reference, removed, added = make(N=N, d=d, m_r=m_r, m_a=m_a, batch=3, seed=seed)
    return SwapEngine(moments(real), reference, **{**EXACT, **changed}), real, reference, removed, added


@given(shapes)
@law
def test_rows_swapped_for_themselves_change_nothing(shape):
    engine, _, reference, removed, _ = engine_of(shape)
    change = engine.change(removed, reference[removed])
    scale = engine.distance + engine.real.trace + engine.prepared.trace
    assert abs(change).max() <= 1e-12 * scale
    # asked for by name, the unpivoted kernel meets the same unless the removal alone empties a direction
    if shape[0] - 1 - shape[2] >= engine.real.rank:
        by_name = SwapEngine(engine.real, reference, backend="cpp", **EXACT).change(removed, reference[removed])
        assert abs(by_name).max() <= 1e-12 * scale


@given(shapes)
@law
def test_order_is_irrelevant(shape):
    engine, _, _, removed, added = engine_of(shape)
    change = engine.change(removed, added)
    limit = {"rtol": 1e-9, "atol": allowance(engine, removed.shape[1], added.shape[1])}
    torch.testing.assert_close(engine.change(removed[:, ::-1].copy(), added[:, ::-1].copy()), change, **limit)
    torch.testing.assert_close(engine.change(removed[::-1].copy(), added[::-1].copy()).flip(0), change, **limit)


@given(shapes)
@law
def test_a_swap_and_its_reverse_cancel(shape):
    N, d, m, _, seed = shape
    engine, _, reference, removed, added = engine_of((N, d, m, m, seed))
    change = engine.change(removed[:1], added[:1])
    limit = 2 * allowance(engine, m, m)
    before = engine.distance
    engine.replace(removed[0], added[0])
    assert engine.distance - before == pytest.approx(change.item(), abs=limit)
    back = engine.change(removed[:1], reference[removed[:1]])
    assert (change + back).item() == pytest.approx(0, abs=limit + allowance(engine, m, m))


@given(shapes, st.floats(0.01, 100))
@law
def test_scaling_features_scales_the_distance_by_its_square(shape, scale):
    engine, real, reference, removed, added = engine_of(shape)
    scaled = SwapEngine(moments(scale * real), scale * reference, **EXACT)
    change = engine.change(removed, added)
    limit = 2 * allowance(engine, removed.shape[1], added.shape[1])
    torch.testing.assert_close(scaled.change(removed, scale * added) / scale**2, change, rtol=1e-9, atol=limit)
    assert scaled.distance / scale**2 == pytest.approx(engine.distance, rel=1e-9)


@given(shapes)
@law
def test_rotation_leaves_the_distance(shape):
    engine, real, reference, removed, added = engine_of(shape)
    turn = np.linalg.qr(np.random.default_rng(shape[-1]).standard_normal((shape[1],) * 2))[0]
    turned = SwapEngine(moments(real @ turn), reference @ turn, **EXACT)
    change = engine.change(removed, added)
    limit = 2 * allowance(engine, removed.shape[1], added.shape[1])
    torch.testing.assert_close(turned.change(removed, added @ turn), change, rtol=1e-9, atol=limit)


@given(shapes)
@law
def test_a_set_is_at_no_distance_from_itself(shape):
    _, _, reference, _, _ = engine_of(shape)
    engine = SwapEngine(moments(reference), reference)
    # a singular set's covariance has directions of rounding, 1e-16 of the largest, whose roots are 1e-8 of the largest
    singular = len(reference) <= reference.shape[1]
    assert abs(engine.distance) <= (1e-7 if singular else 1e-12) * engine.real.trace


@given(shapes, st.integers(0, 5))
@law
def test_committing_two_swaps_is_committing_their_union(shape, first):
    N, d, m, _, seed = shape
    _, real, reference, removed, added = engine_of((N, d, m, m, seed))
    removed, added, first = removed[0], added[0], min(first, m)
    one_by_one = SwapEngine(moments(real), reference)
    one_by_one.replace(removed[:first], added[:first]).replace(removed[first:], added[first:])
    at_once = SwapEngine(moments(real), reference).replace(removed, added)
    torch.testing.assert_close(one_by_one.reference, at_once.reference, rtol=0, atol=0)
    assert one_by_one.distance == at_once.distance
    expected = oracles.distance_of_samples(real, oracles.swapped(reference, removed, added))
    assert at_once.distance == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("m_r, m_a", [(5, 2), (2, 5), (0, 3), (3, 0)])
def test_replace_grows_and_shrinks_the_set(m_r, m_a):
    real, reference, removed, added = make(m_r=m_r, m_a=m_a, batch=1)
    engine = SwapEngine(moments(real), reference)
    assert engine.replace(removed[0], added[0]) is engine
    assert engine.count == len(reference) - m_r + m_a
    expected = oracles.distance_of_samples(real, oracles.swapped(reference, removed[0], added[0]))
    assert engine.distance == pytest.approx(expected, rel=1e-11)


@given(st.integers(0, 4), st.integers(1, 4), st.integers(0, 10**6))
@settings(max_examples=12, deadline=None)
def test_gradient_equals_finite_differences(m_r, m_a, seed):
    real, reference, removed, added = make(N=30, d=4, m_r=m_r, m_a=m_a, batch=2, seed=seed)
    engine = SwapEngine(moments(real), reference, **EXACT)
    added = torch.from_numpy(added).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: engine.change(torch.from_numpy(removed), a), (added,), atol=1e-7)


# -------------------------------------------------------------------------------------------------- inputs and settings


def test_every_form_of_the_real_side():
    real, reference, removed, added = make()
    pair = moments(real)
    expected = SwapEngine(pair, reference).score(removed, added)
    factor = RealFactor(pair)
    assert RealFactor.of(factor) is factor
    forms = [factor, FeatureMoments(len(real), *pair), tuple(t.numpy() for t in pair)]
    for form in forms:
        torch.testing.assert_close(SwapEngine(form, reference).score(removed, added), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_any_float_dtype_comes_in(dtype):
    real, reference, removed, added = make()
    reference, added = torch.from_numpy(reference).to(dtype), torch.from_numpy(added).to(dtype)
    engine = SwapEngine(moments(real), reference, **EXACT)
    expected = oracles.changes(real, reference.double().numpy(), removed, added.double().numpy())
    np.testing.assert_allclose(engine.change(removed, added), expected, rtol=1e-9, atol=allowance(engine, 5, 5))


def test_other_libraries_come_in_by_dlpack():
    class Foreign:
        def __init__(self, tensor):
            self.tensor = tensor

        def __dlpack__(self, **options):
            return self.tensor.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.tensor.__dlpack_device__()

    real, reference, removed, added = make()
    engine = SwapEngine(moments(real), Foreign(torch.from_numpy(reference)))
    expected = SwapEngine(moments(real), reference).change(removed, added)
    change = engine.change(Foreign(torch.from_numpy(removed)), Foreign(torch.from_numpy(added)))
    torch.testing.assert_close(change, expected, rtol=0, atol=0)


def test_chunks_and_threads_leave_the_result():
    real, reference, removed, added = make(batch=9)
    whole = SwapEngine(moments(real), reference, **EXACT).change(removed, added)
    chunked = SwapEngine(moments(real), reference, workspace=1, **EXACT).change(removed, added)
    torch.testing.assert_close(chunked, whole, rtol=1e-9, atol=1e-12)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        twice = SwapEngine(moments(real), reference, **EXACT).change(removed, added)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(twice, whole, rtol=1e-12, atol=1e-14)


def test_autocast_and_reduced_matmul_precision_are_kept_out():
    real, reference, removed, added = make()
    engine = SwapEngine(moments(real), reference)
    expected = engine.change(removed, added)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            change = engine.change(removed, added)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(change, expected, rtol=0, atol=0)


def test_the_reference_is_copied():
    real, reference, removed, added = make()
    features = torch.from_numpy(reference.copy())
    engine = SwapEngine(moments(real), features)
    expected = engine.change(removed, added)
    features.zero_()
    torch.testing.assert_close(engine.change(removed, added), expected, rtol=0, atol=0)


def test_empty_batches_have_empty_results():
    real, reference, _, _ = make()
    engine = SwapEngine(moments(real), reference)
    assert engine.score(np.empty((0, 5), np.int64), np.empty((0, 5, 12))).shape == (0,)
    assert engine.change_each(np.empty((0,), np.int64), np.empty((0, 12))).shape == (0,)
    assert engine.influence(np.empty((0, 12))).shape == (0,)
    torch.testing.assert_close(  # nothing removed, nothing added: no change
        engine.change(np.empty((2, 0), np.int64), np.empty((2, 0, 12))), torch.zeros(2, dtype=torch.float64)
    )


def test_report_tells_backend_nodes_and_repairs():
    real, reference, removed, added = make()
    engine = SwapEngine(moments(real), reference)
    assert engine.report()["nodes"] == 0  # nothing integrated yet
    engine.score(removed, added)
    report = engine.report()
    assert report["backend"] == "cpp" and "host memory" in report["backend_why"] and report["dtype"] == "float32"
    assert report["shift"] == 0 and report["nodes"] >= 4 and report["reference_eigenvalues_clipped"] == 0
    assert set(report["seconds"]) == {"prepare", "project", "logdet", "plan"}
    assert 0 < report["quadrature_bound"] <= 1e-6 * report["node_range"][1] ** 0.5
    real, reference, removed, added = make("constant in reference")
    engine = SwapEngine(moments(real), reference)
    engine.score(removed, added)
    report = engine.report()
    assert report["reference_eigenvalues_clipped"] == 3 and report["shift"] > 0 and report["dtype"] == "float64"


# -------------------------------------------------------------------------------------------------------------- errors


def bad_inputs():
    real, reference, removed, added = make()
    repeated, outside, negative = removed.copy(), removed.copy(), removed.copy()
    repeated[2, 1] = repeated[2, 0]
    outside[0, 0], negative[0, 0] = 120, -1
    with_nan = added.copy()
    with_nan[3, 1, 4] = np.nan
    return {
        r"added has 11 features a row, the real moments 12": (removed, added[..., :11]),
        r"removed must lie in \[0, 120\), got 120": (outside, added),
        r"removed must lie in \[0, 120\), got -1": (negative, added),
        r"removed repeats row \d+ in candidate 2": (repeated, added),
        r"added has NaN or inf, or squares that overflow, in 1 rows, first \(candidate, row\) \[\(3, 1\)\]": (
            removed,
            with_nan,
        ),
        r"removed must be \[B, m_r\] and added \[B, m_a, d\]": (removed[0], added[0]),
        r"got \(3, 5\) and \(4, 5, 12\)": (removed[:3], added),
        r"removed must hold integer row indices, got dtype torch.float64": (removed.astype(float), added),
        r"added must be floating point, got torch.int64": (removed, added.astype(np.int64)),
        r"removed is on meta": (torch.empty((4, 5), dtype=torch.int64, device="meta"), added),
        r"added is on meta": (removed, torch.empty((4, 5, 12), device="meta")),
        r"added cannot be read as a tensor": (removed, "features"),
    }


@pytest.mark.parametrize("message", bad_inputs())
def test_bad_swaps_are_named(message):
    real, reference, _, _ = make()
    with pytest.raises(ValueError, match=message):
        SwapEngine(moments(real), reference).change(*bad_inputs()[message])


def test_too_small_a_set_is_named():
    real, reference, _, _ = make(N=20)
    with pytest.raises(ValueError, match="leave a set of 1 rows"):
        SwapEngine(moments(real), reference).change(np.arange(19)[None], np.empty((1, 0, 12)))


def test_bad_references_are_named():
    real, reference, _, _ = make()
    wrong = reference.copy()
    wrong[7, 3], wrong[9, 0] = np.inf, np.nan
    for features, message in [
        (wrong, r"reference_features has NaN or inf in 2 rows, first \[7, 9\]"),
        (reference[:, :5], r"reference_features must be \[n, 12\]"),
        (reference[:1], "at least 2 rows"),
        (reference.astype(np.int64), "must be floating point"),
    ]:
        with pytest.raises(ValueError, match=message):
            SwapEngine(moments(real), features)


def test_bad_real_moments_are_named():
    real, reference, _, _ = make()
    mean, cov = moments(real)
    skew = cov.clone()
    skew[0, 1] += 1
    for side, message in [
        ((mean, skew), "not symmetric"),
        ((mean, -cov), "positive semidefinite"),
        ((mean[:5], cov), r"mean \[d\] and covariance \[d, d\]"),
        ((mean * math.nan, cov), "NaN or infinity"),
        (FeatureMoments(1, mean, cov * 0), "real moments hold 1 rows"),
        (reference, "of type ndarray; pass FeatureMoments"),
    ]:
        with pytest.raises(ValueError, match=message):
            SwapEngine(side, reference)


@pytest.mark.parametrize(
    "option, message",
    [
        ({"tol": 0}, "tol must lie strictly between 0 and 1"),
        ({"dtype": torch.bfloat16}, "dtype must be torch.float32 or torch.float64"),
        ({"backend": "fpga"}, "backend must be one of auto, cpp, triton, torch"),
        ({"method": "guess"}, "method must be one of logdet, eigh"),
        ({"workspace": 0}, "workspace must be a positive number"),
    ],
)
def test_bad_options_are_named(option, message):
    real, reference, _, _ = make()
    with pytest.raises(ValueError, match=message):
        SwapEngine(moments(real), reference, **option)


def test_cpp_says_why_it_cannot():
    real, reference, removed, added = make(N=1200, d=4, m_r=513, m_a=0, batch=1)
    engine = SwapEngine(moments(real), reference, backend="cpp")
    with pytest.raises(
        ValueError, match="backend='cpp' cannot be used: rank 513 of the change exceeds the kernel's 512"
    ):
        engine.change(removed, added)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_are_not_part_of_the_reference_are_noticed(backend):
    real, reference, removed, added = make()
    engine = SwapEngine(moments(real), reference, backend=backend, dtype=torch.float64)
    engine.prepared.projected[int(removed[2, 0])] *= 50  # as if that row had been another one when the basis was made
    with pytest.raises(ValueError, match=r"in candidate \d+ .* not part of the reference"):
        engine.change(removed, added)


def test_the_real_factor_is_kept_on_disk(tmp_path, monkeypatch):
    real, reference, removed, added = make(d=12, N=60, m_r=3, m_a=3, batch=2)
    path = tmp_path / "real.factor.npz"
    first = RealFactor.kept(moments(real), path)
    expected = SwapEngine(first, reference).score(removed, added)
    path_of_others = path.read_bytes()

    def no_eigh(*_):
        raise AssertionError("the factor was made again")

    with monkeypatch.context() as patched:
        patched.setattr("fastfid.distances.real_side.factor_by_eigh", no_eigh)
        again = RealFactor.kept(moments(real), path)
        assert torch.equal(SwapEngine(again, reference).score(removed, added), expected)
    other = RealFactor.kept(moments(real * 2), path)  # of other moments: replaced
    assert other.trace == pytest.approx(4 * first.trace) and path.read_bytes() != path_of_others
    path.write_bytes(b"damaged")
    assert torch.equal(RealFactor.kept(moments(real), path).root, first.root)


def test_rows_whose_squares_overflow_float32():
    real, reference, removed, added = make(batch=3)
    added = added.astype(np.float32)
    added[1] *= np.float32(1e30)
    change = SwapEngine(moments(real), reference).change(removed, added)
    exact = oracles.changes(real, reference, removed[1:2], added[1:2])
    assert change[1].item() == pytest.approx(exact[0], rel=1e-6)
    assert change.isfinite().all()


def test_method_eigh_counts_what_it_clips():
    real, reference, removed, added = make(**CASES["N < d"])
    engine = SwapEngine(moments(real), reference, method="eigh", **EXACT)
    engine.change(removed, added)
    report = engine.report()
    assert report["changed_eigenvalues_clipped"] > 0 and report["recomputed"] == 0


def test_memory_is_bounded_by_the_workspace(monkeypatch):
    rng = np.random.default_rng(0)
    real, reference = rng.standard_normal((400, 16)), rng.standard_normal((60_000, 16)).astype(np.float32)
    engine = SwapEngine(moments(real), reference, workspace=1 << 20)
    sizes = []
    change_once = chunks._change_once

    def counted(candidates, *rest):
        sizes.append(len(candidates))
        return change_once(candidates, *rest)

    monkeypatch.setattr(chunks, "_change_once", counted)
    assert engine.leave_one_out().shape == (60_000,)
    # indices, sums, products and log-determinants of a row alone: 0.3 kB measured at d = 2048, 3 kB allowed
    assert sum(sizes) == 60_000 and max(sizes) * 3 << 10 <= 1 << 20


def test_calls_from_several_threads_take_turns():
    real, reference, removed, added = make(d=64, N=600, m_r=10, m_a=10, batch=32)
    engine = SwapEngine(moments(real), reference)
    expected = [engine.change(removed, added), engine.change(removed[::-1].copy(), added)]

    def calls(which):
        order = removed if which == 0 else removed[::-1].copy()
        return [engine.change(order, added) for _ in range(20)]

    with ThreadPoolExecutor(2) as pool:
        for which, found in enumerate(pool.map(calls, range(2))):
            assert all(torch.equal(change, expected[which]) for change in found)
