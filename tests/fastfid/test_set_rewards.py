"""Every set reward against its distance recomputed from scratch with NumPy, and the laws that all of them obey."""

import math

import numpy as np
import pytest
import torch

from fastfid import (
    CallableReward,
    DensityRatioReward,
    FeatureMoments,
    FrechetReward,
    KernelReward,
    SlicedWassersteinReward,
    swap_credit,
)
from fastfid.rewards import kernel, sliced_wasserstein
from fastfid.rewards.credit import change_each
from fastfid.rewards.protocol import DifferentiableSet
from tests.support import oracles

N, REAL, D = 30, 24, 5
SIZES = [(1, 1), (5, 5), (3, 8), (8, 3), (2, 0), (1, 0), (0, 1), (0, 4), (N, 12)]


def rows_of(kind, n, seed):
    """float64 [n, D] of one kind of features."""
    x = np.random.default_rng(seed).standard_normal((n, D)) * np.arange(1, D + 1) ** -0.5 + 0.1 * (seed == 1)
    if kind == "offset":  # mean of 1e3 standard deviations
        x = x + 1e3
    if kind == "duplicates":
        x[1::2] = x[: len(x) // 2]
    if kind == "tied":  # few values, so projections tie with real ones, kept and added ones
        x = np.round(x)
    return x


def mmd_of_samples(real, generated, k):
    """Unbiased squared discrepancy by double loops."""
    total = 0.0
    for x, y, same in ((real, real, True), (generated, generated, True), (real, generated, False)):
        pairs = [k(a, b) for i, a in enumerate(x) for j, b in enumerate(y) if not (same and i == j)]
        total += math.fsum(pairs) / len(pairs) * (1 if same else -2)
    return total


def sliced_of_samples(real, generated, directions):
    """d × mean over directions of W₂² of two samples whose sizes may differ: both repeated to one size and sorted."""
    size = math.lcm(len(real), len(generated))
    a, b = (np.sort(np.repeat(x @ directions, size // len(x), axis=0), axis=0) for x in (real, generated))
    return D * np.square(a - b).mean()


def make(name, real):
    """The reward and its distance (real, generated) → float from scratch."""
    tensor = torch.from_numpy(real)
    if name == "fd":
        reward = FrechetReward(FeatureMoments.from_features(tensor), dtype=torch.float64)
        return reward, oracles.distance_of_samples
    if name == "kid":
        return KernelReward(tensor), lambda x, y: mmd_of_samples(x, y, lambda a, b: (a @ b / D + 1) ** 3)
    if name == "polynomial":
        reward = KernelReward(tensor, degree=2, gamma=0.3, coef=0.5)
        return reward, lambda x, y: mmd_of_samples(x, y, lambda a, b: (0.3 * a @ b + 0.5) ** 2)
    if name == "linear":
        reward = KernelReward(tensor, degree=1, gamma=1.0, coef=0.0)
        return reward, lambda x, y: mmd_of_samples(x, y, lambda a, b: a @ b)
    if name == "mmd":
        reward = KernelReward(tensor, "gaussian", bandwidth=1.5)
        return reward, lambda x, y: mmd_of_samples(x, y, lambda a, b: np.exp(-np.square(a - b).sum() / 4.5))
    reward = SlicedWassersteinReward(tensor, directions=13, seed=3)
    return reward, lambda x, y: sliced_of_samples(x, y, reward.directions.numpy())


NAMES = ["fd", "kid", "polynomial", "linear", "mmd", "sliced_wasserstein"]
every_reward = pytest.mark.parametrize("name", NAMES)


def limit_of(name, kind):
    """What a change may be off: an offset of 1e3 makes kernel values of 1e6 to 1e18 (x·y/d + 1)³."""
    if name == "fd":  # tol = 1e-10 of the largest root
        return 1e-8
    if kind != "offset" or name in ("mmd", "sliced_wasserstein"):
        return 1e-11
    return {"kid": 1e18 * 1e-14, "polynomial": 1e13 * 1e-14, "linear": 1e7 * 1e-14}[name]


def candidates(kind, sizes, batch=3):
    (m_r, m_a), rng = sizes, np.random.default_rng(5)
    removed = np.stack([rng.permutation(N)[:m_r] for _ in range(batch)]).astype(np.int64)
    return removed, 1.2 * rows_of(kind, batch * m_a, 7).reshape(batch, m_a, D)


@every_reward
@pytest.mark.parametrize("kind", ["plain", "offset", "duplicates", "tied"])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "-".join(map(str, sizes)))
def test_change_is_that_of_the_distance_recomputed(name, kind, sizes):
    real, rows = rows_of(kind, REAL, 1), rows_of(kind, N, 2)
    reward, distance = make(name, real)
    removed, added = candidates(kind, sizes)
    prepared = reward.prepare(rows)
    before = distance(real, rows)
    # a shift of a singular spectrum costs the engine 3e-8 of a direction that is lost: 12 rows stay of 30 here
    limit = max(limit_of(name, kind), 1e-7 * (name == "fd" and sizes == (N, 12)))
    assert prepared.distance == pytest.approx(before, abs=limit)
    expected = [distance(real, oracles.swapped(rows, r, a)) - before for r, a in zip(removed, added, strict=True)]
    np.testing.assert_allclose(prepared.change(removed, added), expected, rtol=1e-9, atol=limit)


@every_reward
def test_leave_one_out_and_credit_are_those_recomputed(name):
    real, rows = rows_of("plain", REAL, 1), rows_of("plain", N, 2)
    reward, distance = make(name, real)
    prepared, before = reward.prepare(rows), distance(real, rows)
    left_out = np.array([distance(real, np.delete(rows, i, 0)) - before for i in range(N)])
    np.testing.assert_allclose(prepared.leave_one_out(), left_out, rtol=1e-9, atol=1e-10)
    removed, added = candidates("plain", (4, 4))
    swapped = [
        distance(real, oracles.swapped(rows, [row], new[None])) - before
        for row, new in zip(removed.ravel(), added.reshape(-1, D), strict=True)
    ]
    np.testing.assert_allclose(change_each(prepared, removed, added).ravel(), swapped, rtol=1e-9, atol=1e-10)
    credit = swap_credit(prepared, removed, added)
    assert credit.shape == removed.shape
    np.testing.assert_allclose(credit.ravel(), left_out[removed.ravel()] - swapped, rtol=1e-9, atol=1e-10)


@every_reward
@pytest.mark.parametrize("kind", ["plain", "offset"])
def test_gradient_equals_finite_differences(name, kind):
    real, rows = rows_of(kind, REAL, 1), rows_of(kind, N, 2)
    reward, _ = make(name, real)
    prepared = reward.prepare(rows)
    assert isinstance(prepared, DifferentiableSet)
    gradient, step = prepared.gradient(), 1e-4
    for i, j in ((0, 0), (7, 3), (N - 1, D - 1)):
        ends = []
        for sign in (1, -1):
            moved = rows[[i]].copy()
            moved[0, j] += sign * step
            ends.append(prepared.change([[i]], moved[None]).item())
        slope = (ends[0] - ends[1]) / (2 * step)
        # differences are computed with the error of `limit_of`, and curvature adds some step²
        assert gradient[i, j].item() == pytest.approx(slope, rel=1e-5, abs=1e-6 + limit_of(name, kind) / step)


@every_reward
def test_rows_swapped_for_themselves_change_nothing(name):
    real, rows = rows_of("plain", REAL, 1), rows_of("plain", N, 2)
    prepared = make(name, real)[0].prepare(rows)
    for m in (1, 6):
        removed = np.random.default_rng(0).permutation(N)[: 4 * m].reshape(4, m)
        assert prepared.change(removed, rows[removed]).abs().max() < 1e-12


@every_reward
def test_float32_rows_are_computed_as_their_float64_copies(name):
    real, rows = (torch.from_numpy(rows_of("plain", n, n)).float() for n in (REAL, N))
    removed, added = candidates("plain", (4, 4))
    added = torch.from_numpy(added).float()
    found = make(name, real.numpy())[0].prepare(rows).change(removed, added)
    expected = make(name, real.double().numpy())[0].prepare(rows.double()).change(removed, added.double())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kernel_name", ["polynomial", "gaussian"])
def test_kernel_values_in_float32_keep_the_order_of_changes(kernel_name):
    real, rows = 1 + rows_of("plain", 400, 1), 1 + rows_of("plain", 300, 2)
    removed = np.random.default_rng(0).permutation(300)[:60].reshape(12, 5)
    added = 1 + rows_of("plain", 60, 3).reshape(12, 5, D)
    found = []
    for dtype in (torch.float64, torch.float32):
        prepared = KernelReward(real, kernel_name, bandwidth=1.0, dtype=dtype).prepare(rows)
        found.append([prepared.change(removed, added), swap_credit(prepared, removed, added), prepared.leave_one_out()])
    for exact, fast in zip(*found, strict=True):
        assert fast.dtype == torch.float64 and not torch.equal(fast, exact)
        # a float32 value errs by 6e-8 of itself, a mean of 300 by less; changes spread by 1e-2 of the values
        assert (fast - exact).abs().max() < 1e-4 * exact.std()


def test_small_blocks_change_nothing(monkeypatch):
    real, rows = rows_of("plain", REAL, 1), rows_of("plain", N, 2)
    removed, added = candidates("plain", (5, 3), batch=7)

    def everything(name):
        prepared = make(name, real)[0].prepare(rows)
        return [
            torch.tensor(prepared.distance), prepared.change(removed, added), prepared.leave_one_out(),
            swap_credit(prepared, removed[:, :3], added), prepared.gradient(),
        ]  # fmt: skip

    whole = [everything(name) for name in ("kid", "mmd", "sliced_wasserstein")]
    monkeypatch.setattr(kernel, "CHUNK", 200)
    monkeypatch.setattr(kernel, "SLOPE_ROWS", 7)
    monkeypatch.setattr(sliced_wasserstein, "CHUNK", 3 * N)
    for name, expected in zip(("kid", "mmd", "sliced_wasserstein"), whole, strict=True):
        for found, value in zip(everything(name), expected, strict=True):
            torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-13)


@every_reward
def test_the_set_is_a_value(name):
    real, rows = rows_of("plain", REAL, 1), torch.from_numpy(rows_of("plain", N, 2))
    prepared = make(name, real)[0].prepare(rows)
    removed, added = candidates("plain", (2, 2))
    before = prepared.change(removed, added)
    rows.zero_()
    assert torch.equal(prepared.change(removed, added), before)


# --- sliced Wasserstein ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("directions", [D, 4 * D])
def test_a_shift_costs_its_square(directions):
    real, shift = rows_of("plain", REAL, 1), np.array([0.3, -1.0, 2.0, 0.0, 0.7])
    reward = SlicedWassersteinReward(real, directions=directions)
    assert reward.prepare(real + shift).distance == pytest.approx(shift @ shift, rel=1e-12)
    assert reward.prepare(real).distance == pytest.approx(0, abs=1e-13)


def test_directions_are_orthogonal_in_blocks_and_follow_the_seed():
    first = sliced_wasserstein.orthogonal_directions(7, 3, seed=1)
    for block in (first[:, :3], first[:, 3:6]):
        torch.testing.assert_close(block.T @ block, torch.eye(3, dtype=torch.float64))
    assert first.shape == (3, 7)
    assert torch.equal(first, sliced_wasserstein.orthogonal_directions(7, 3, seed=1))
    assert not torch.equal(first, sliced_wasserstein.orthogonal_directions(7, 3, seed=2))


# --- bandwidth ---------------------------------------------------------------------------------------------------


def test_the_median_bandwidth_is_that_of_the_real_rows():
    real = rows_of("plain", REAL, 1)
    distances = torch.pdist(torch.from_numpy(real))
    assert KernelReward(real, "gaussian").bandwidth == pytest.approx(distances.median().item(), rel=1e-12)


# --- refusals ----------------------------------------------------------------------------------------------------

FEATURES = {
    "kid": KernelReward,
    "mmd": lambda real: KernelReward(real, "gaussian"),
    "sliced_wasserstein": SlicedWassersteinReward,
    "density_ratio": DensityRatioReward,
}


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize(
    ("real", "message"),
    [
        (np.zeros(4), r"real must be the features \[n, d\].*\(4,\)"),
        (np.zeros((1, 4)), "real needs at least 2 rows"),
        (np.zeros((5, 0)), "real must be the features"),
        (np.array([[1.0, np.nan], [0.0, 1.0]]), "real has NaN or inf in 1 rows, first \\[0\\]"),
        (np.ones((5, 2), int), "real must be floating point"),
        ("features.pt", "real cannot be read as a tensor"),
    ],
)
def test_real_features_that_cannot_be_used(name, real, message):
    with pytest.raises(ValueError, match=message):
        FEATURES[name](real)


@pytest.mark.parametrize("name", ["fd", *FEATURES])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((6, 3)), f"must be \\[n, {D}\\]"),
        (np.zeros((1, D)), "at least 2 rows"),
        (np.full((6, D), np.inf), "NaN or inf in 6 rows"),
    ],
)
def test_sets_that_cannot_be_used(name, rows, message):
    real = rows_of("plain", REAL, 1)
    reward = make("fd", real)[0] if name == "fd" else FEATURES[name](real)
    with pytest.raises(ValueError, match=message):
        reward.prepare(rows)


@pytest.mark.parametrize("name", ["fd", *FEATURES])
@pytest.mark.parametrize(
    ("removed", "added", "message"),
    [
        ([[0, 0]], np.zeros((1, 2, D)), "repeats row 0"),
        ([[0, N]], np.zeros((1, 2, D)), rf"must lie in \[0, {N}\), got {N}"),
        ([[0.5]], np.zeros((1, 1, D)), "integer row indices"),
        ([[0]], np.zeros((1, 1, D + 1)), str(D + 1)),
        ([[0]], np.zeros((2, 1, D)), r"removed must be \[B, m_r\]"),
        ([list(range(N))], np.zeros((1, 1, D)), "a set of 1 rows"),
        ([[0]], np.full((1, 1, D), np.nan), "added has NaN or inf"),
    ],
)
def test_candidates_that_mean_nothing(name, removed, added, message):
    real = rows_of("plain", REAL, 1)
    reward = make("fd", real)[0] if name == "fd" else FEATURES[name](real)
    prepared = reward.prepare(rows_of("plain", N, 2))
    with pytest.raises(ValueError, match=message):
        prepared.change(removed, added)


@pytest.mark.parametrize("name", ["fd", *FEATURES])
def test_no_candidates_have_no_changes(name):
    real = rows_of("plain", REAL, 1)
    reward = make("fd", real)[0] if name == "fd" else FEATURES[name](real)
    prepared = reward.prepare(rows_of("plain", N, 2))
    for m in (1, 3):
        found = prepared.change(torch.zeros(0, m, dtype=torch.int64), torch.zeros(0, m, D))
        assert found.shape == (0,) and found.dtype == torch.float64


@pytest.mark.parametrize(
    ("make_reward", "message"),
    [
        (lambda real: KernelReward(real, "cubic"), "unknown kernel 'cubic'"),
        (lambda real: KernelReward(real, degree=0), "degree is 0"),
        (lambda real: KernelReward(real, degree=2.5), "degree is 2.5"),
        (lambda real: KernelReward(real, gamma=-1.0), "gamma is -1.0"),
        (lambda real: KernelReward(real, gamma=float("nan")), "gamma is nan"),
        (lambda real: KernelReward(real, coef=-0.5), "coef is -0.5"),
        (lambda real: KernelReward(1e120 * real), "kernel values of kid overflow torch.float64"),
        (lambda real: KernelReward(1e20 * real, dtype=torch.float32), "kernel values of kid overflow torch.float32"),
        (lambda real: KernelReward(real, "gaussian", bandwidth=float("inf")), "bandwidth is inf"),
        (lambda real: KernelReward(real, dtype=torch.bfloat16), "dtype must be .* got torch.bfloat16"),
        (lambda real: KernelReward(real, "gaussian", bandwidth=0), "bandwidth is 0"),
        (lambda real: KernelReward(np.ones((9, 2)), "gaussian"), "median distance is 0"),
        (lambda real: SlicedWassersteinReward(real, directions=0), "directions is 0"),
        (lambda real: DensityRatioReward(real, penalty="l1"), "unknown penalty 'l1'"),
        (lambda real: DensityRatioReward(real, strength=0), "strength is 0"),
        (lambda real: DensityRatioReward(np.ones((9, 2))), "real rows are all the same"),
        (lambda real: CallableReward("aesthetic", "aesthetic"), "reward aesthetic is of type str"),
    ],
)
def test_options_that_mean_nothing(make_reward, message):
    with pytest.raises(ValueError, match=message):
        make_reward(rows_of("plain", REAL, 1))


def test_two_images_cannot_lose_one_of_their_only_pair():
    prepared = KernelReward(rows_of("plain", REAL, 1)).prepare(rows_of("plain", 2, 2))
    with pytest.raises(ValueError, match="the set has 2 images"):
        prepared.leave_one_out()


def test_single_swaps_have_one_new_row_each():
    prepared = KernelReward(rows_of("plain", REAL, 1)).prepare(rows_of("plain", N, 2))
    with pytest.raises(ValueError, match=r"one row for each of removed \(2, 3\), got shape \(2, 4, 5\)"):
        swap_credit(prepared, np.arange(6).reshape(2, 3), np.zeros((2, 4, D)))
