"""The swap engine against sets recomputed from scratch, and what it accepts and reports."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from fastfid import FeatureMoments, RealFactor, SwapEngine, feature_extractor
from tests.support import oracles
from tests.support.foreign_arrays import Foreign
from tests.support.swap_sets import BACKENDS, CASES, EXACT, allowance, make, moments

ASSETS = Path(__file__).parents[2] / "sit_rl" / "assets"


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


# Features as networks give them, (spectrum's power, d, N, candidates): pooled Inception features, nonnegative and
# skewed; DINOv2's normalised tokens, nearly flat; fashion-a's own, of the embedded images; a spectrum down to 1e-14.
FAMILIES = {
    "inception": (0.5, 256, 700, 8),
    "dinov2": (0.15, 384, 1000, 6),
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


@pytest.mark.parametrize("m_r, m_a", [(5, 2), (2, 5), (0, 3), (3, 0)])
def test_replace_grows_and_shrinks_the_set(m_r, m_a):
    real, reference, removed, added = make(m_r=m_r, m_a=m_a, batch=1)
    engine = SwapEngine(moments(real), reference)
    assert engine.replace(removed[0], added[0]) is engine
    assert engine.count == len(reference) - m_r + m_a
    expected = oracles.distance_of_samples(real, oracles.swapped(reference, removed[0], added[0]))
    assert engine.distance == pytest.approx(expected, rel=1e-11)


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
    real, reference, removed, added = make()
    engine = SwapEngine(moments(real), Foreign(torch.from_numpy(reference)))
    expected = SwapEngine(moments(real), reference).change(removed, added)
    change = engine.change(Foreign(torch.from_numpy(removed)), Foreign(torch.from_numpy(added)))
    torch.testing.assert_close(change, expected, rtol=0, atol=0)


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


def test_rows_whose_squares_overflow_float32():
    real, reference, removed, added = make(batch=3)
    added = added.astype(np.float32)
    added[1] *= np.float32(1e30)
    change = SwapEngine(moments(real), reference).change(removed, added)
    exact = oracles.changes(real, reference, removed[1:2], added[1:2])
    assert change[1].item() == pytest.approx(exact[0], rel=1e-6)
    assert change.isfinite().all()


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
