"""The compiled kernels against NumPy."""

import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fastfid import _C
from fastfid.linalg.weight_plan import weight_plan
from tests.support import oracles
from tests.support.kernel_problems import EPS, problem, tolerance

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
SLACK = 1e-3

SHAPES = [(1, 0), (0, 1), (1, 1), (2, 3), (5, 1), (6, 0), (7, 9), (15, 17), (33, 31), (50, 50)]
SHAPES += [(0, 101), (101, 0), (120, 136)]


ISAS = _C.instruction_sets()


def arguments(rows_r, rows_a, spectrum, tau_squares, tol=0.0, shifts=(0.0, 0.0, 0.0)):
    """What the extension takes for rows given directly; tol = 0 keeps every node's weights as they are."""
    plan = weight_plan(spectrum, np.sqrt(tau_squares), tol, _C.SLICE, _C.SPAN, rows_a.dtype)
    places = np.arange(rows_r.shape[0] * rows_r.shape[1]).reshape(rows_r.shape[:2])
    return np.ascontiguousarray(rows_r.reshape(-1, rows_r.shape[2])), places, rows_a, shifts, plan


def logdets_of(*rows, threads=1, isa="", **plan):
    return _C.swap_logdet(*arguments(*rows, **plan), SLACK, threads, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("removed, added", SHAPES)
@pytest.mark.parametrize("rank", [1, 41, 300])
def test_logdets_match_numpy(removed, added, rank, dtype, isa):
    rows = problem(removed, added, rank, dtype)
    logdets, _, bad, _ = logdets_of(*rows, isa=isa)
    expected = oracles.log_determinants(np.concatenate(rows[:2], 1), removed, *rows[2:])
    assert bad == -1
    np.testing.assert_allclose(logdets, expected, rtol=0, atol=tolerance(*rows[:2], dtype))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_widest_change(dtype, isa):
    rows = problem(256, 256, 257, dtype, batch=1, nodes=1)
    logdets, _, bad, _ = logdets_of(*rows, isa=isa)
    expected = oracles.log_determinants(np.concatenate(rows[:2], 1), 256, *rows[2:])
    assert bad == -1
    np.testing.assert_allclose(logdets, expected, rtol=0, atol=tolerance(*rows[:2], dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tol", [0.0, 1e-6])
def test_logdets_of_many_spans(tol, dtype):
    *rows, spectrum, tau_squares = problem(7, 9, 1300, dtype, batch=2, nodes=17)
    order = np.argsort(spectrum)  # neighbours differ little: groups of several slices, a last span of several groups
    rows, spectrum = [np.ascontiguousarray(r[:, :, order]) for r in rows], spectrum[order]
    arrays = arguments(*rows, spectrum, tau_squares, tol=tol)
    assert len(arrays[4].group_ends) > 2 and arrays[4].group_terms.max() > 6
    w = np.concatenate(rows, 1)
    expected = oracles.log_determinants(w, 7, spectrum, tau_squares)
    gross = np.einsum("bkr,qr->bq", w.astype(float) ** 2, 1 / (spectrum + tau_squares[:, None]))
    for isa in ISAS:
        logdets, _, bad, _ = _C.swap_logdet(*arrays, SLACK, 1, isa)
        assert bad == -1
        assert (abs(logdets - expected) <= tolerance(*rows, dtype) + 2 * tol * gross).all(), isa


def test_a_compressed_plan_costs_its_tolerance():
    # weights off by ε move log|det| by at most ε·Σ|g|/(1 − leverage); leverages here stay below a half
    rows = problem(6, 9, 600, np.float64, nodes=12)
    exact, compressed = logdets_of(*rows)[0], logdets_of(*rows, tol=1e-6)[0]
    weights = 1 / (rows[2] + rows[3][:, None])
    gross = np.einsum("bkr,qr->bq", np.concatenate(rows[:2], 1) ** 2, weights)
    assert 0 < abs(compressed - exact).max() and (abs(compressed - exact) <= 2 * 1e-6 * gross).all()


def test_shifts_are_those_of_the_means():
    rows_r, rows_a, spectrum, tau_squares = problem(5, 7, 40, np.float64)
    alpha, beta, gamma = 0.05, -0.04, 0.03
    mean_r, mean_a = rows_r.mean(1, keepdims=True), rows_a.mean(1, keepdims=True)
    moved = rows_r + alpha * mean_r, rows_a + beta * mean_a + gamma * mean_r
    expected = logdets_of(*moved, spectrum, tau_squares)[0]
    logdets = logdets_of(rows_r, rows_a, spectrum, tau_squares, shifts=(alpha, beta, gamma))[0]
    np.testing.assert_allclose(logdets, expected, rtol=1e-12, atol=1e-13)


def test_small_changes_keep_their_digits_in_float32():
    # rows so small that 1 + g rounds to 1: the log-determinant is the trace of J·G to first order, error g² = 1e-18
    rows_r, rows_a, spectrum, tau_squares = problem(3, 4, 50, np.float32)
    rows_r, rows_a = rows_r * np.float32(1e-4), rows_a * np.float32(1e-4)
    logdets = logdets_of(rows_r, rows_a, spectrum, tau_squares)[0]
    expected = oracles.log_determinants(np.concatenate([rows_r, rows_a], 1), 3, spectrum, tau_squares)
    assert abs(expected).max() < 1e-6
    np.testing.assert_allclose(logdets, expected, rtol=1e-4, atol=1e-14)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_thread_count_never_changes_a_bit(batch, dtype):
    rows = problem(11, 13, 77, dtype, batch=batch, nodes=5)
    one = logdets_of(*rows)[0]
    for threads in (2, 3, 16):
        np.testing.assert_array_equal(logdets_of(*rows, threads=threads)[0], one)


def test_first_wrong_pivot_is_reported():
    rows = problem(4, 4, 30, np.float64, batch=5)
    rows[0][3] *= 50  # leverage far above one: these rows cannot be part of the reference
    logdets, _, bad, pivot = logdets_of(*rows)
    assert bad == 3 and pivot > SLACK
    assert np.isnan(logdets[3]).any() and np.isfinite(logdets[[0, 1, 2, 4]]).all()
    omega = np.ones(3)
    assert _C.swap_gradient(*arguments(*rows), omega, SLACK, 1)[3] == 3


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "removed, added, rank", [(1, 1, 1), (3, 2, 7), (4, 9, 40), (17, 5, 40), (50, 50, 90), (130, 20, 130)]
)
def test_shared_removals_change_no_bit(removed, added, rank, dtype, isa):
    # one run of three candidates, one alone, a run of two: what neighbours share is made once, by the same operations
    reference, places, added_rows, _, plan = arguments(*problem(removed, added, rank, dtype, batch=6, nodes=18))
    places, shifts, omega = places[[0, 0, 0, 3, 4, 4]], (0.05, -0.04, 0.03), np.linspace(-1, 1, 18)
    together = _C.swap_gradient(reference, places, added_rows, shifts, plan, omega, SLACK, 2, isa)
    assert together[3] == -1
    alone = _C.swap_logdet(reference, places, added_rows, shifts, plan, SLACK, 2, isa)
    np.testing.assert_array_equal(together[0], alone[0])
    np.testing.assert_array_equal(together[1], alone[1])
    for c in range(6):
        alone = _C.swap_gradient(
            reference, places[c : c + 1], added_rows[c : c + 1], shifts, plan, omega, SLACK, 1, isa
        )
        for part in range(3):
            np.testing.assert_array_equal(together[part][c], alone[part][0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("removed", [0, 1, 2, 7, 50])
def test_what_a_removal_leaves(removed, dtype, isa):
    rows = problem(removed, 3, 60, dtype, batch=4, nodes=9)
    w, weights = rows[0].astype(np.float64), 1 / (rows[2] + rows[3][0])
    exact = 1 - np.array([np.linalg.eigvalsh((x * weights) @ x.T)[-1:].sum() for x in w])
    remaining = logdets_of(*rows, isa=isa)[1]
    # inverse iteration errs upwards, the more the closer the next eigenvalues, here as close as random rows' are
    assert (remaining >= exact * (1 - 10 * EPS[dtype] * 60)).all() and (remaining <= 2 * exact).all()
    if removed > 1:  # a direction that only these rows have stands apart, and is seen exactly
        place = np.arange(removed) % 4
        rows[0][:, :, 0] = 0.995 * np.sqrt(rows[2][0] + rows[3][0]) * place / np.linalg.norm(place)
        rows[0][:, :, 1:] *= 0.01
        w = rows[0].astype(np.float64)
        exact = 1 - np.array([np.linalg.eigvalsh((x * weights) @ x.T)[-1] for x in w])
        assert (0 < exact).all() and (exact < 0.02).all()
        np.testing.assert_allclose(logdets_of(*rows, isa=isa)[1], exact, rtol=1e-4, atol=60 * EPS[dtype])


def test_shared_removals_that_do_not_fit_at_once_change_no_bit():
    # a pair's part takes 160 rows and 18 nodes 2 MB in float64: more than 16 MB together
    reference, places, added_rows, _, plan = arguments(*problem(160, 1, 170, np.float64, batch=24, nodes=18))
    places = np.repeat(places[::2], 2, axis=0)
    shifts = (0.05, -0.04, 0.03)
    together = _C.swap_logdet(reference, places, added_rows, shifts, plan, SLACK, 2)
    for c in (0, 1, 13, 14, 23):
        alone = _C.swap_logdet(reference, places[c : c + 1], added_rows[c : c + 1], shifts, plan, SLACK, 1)
        np.testing.assert_array_equal(together[0][c], alone[0][0])


def test_a_wrong_shared_removal_is_reported():
    rows = problem(9, 4, 30, np.float64, batch=5)
    rows[0][3] *= 50
    reference, places, *others = arguments(*rows)
    logdets, _, bad, pivot = _C.swap_logdet(reference, places[[0, 1, 3, 3, 4]], *others, SLACK, 1)
    assert bad == 2 and pivot > SLACK
    assert np.isnan(logdets[[2, 3]]).any(1).all() and np.isfinite(logdets[[0, 1, 4]]).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("removed, added, rank", [(0, 1, 1), (1, 2, 7), (6, 7, 300), (50, 50, 300), (3, 120, 41)])
def test_gradient_matches_the_closed_form(removed, added, rank, dtype, isa):
    rows = problem(removed, added, rank, dtype, nodes=4)
    omega = np.array([0.3, -1.0, 2.0, 0.5])
    logdets, _, gradient, bad, _ = _C.swap_gradient(*arguments(*rows), omega, SLACK, 2, isa)
    np.testing.assert_array_equal(logdets, logdets_of(*rows, isa=isa)[0])
    z = np.concatenate(rows[:2], 1).astype(np.float64)
    signs = np.diag(np.where(np.arange(removed + added) < removed, -1.0, 1.0))
    expected = np.zeros_like(z)
    for weight, tau_square in zip(omega, rows[3], strict=True):
        scaled = z / (rows[2] + tau_square)
        expected += 2 * weight * np.linalg.solve(signs + scaled @ z.swapaxes(1, 2), scaled)
    assert bad == -1
    # a solve loses the condition of J + G, below 100 here, times k roundings
    size = np.abs(expected).max()
    np.testing.assert_allclose(gradient, expected[:, removed:], rtol=0, atol=100 * EPS[dtype] * z.shape[1] * size)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("removed, added, rank", [(1, 1, 1), (1, 1, 300), (0, 1, 41), (1, 0, 77)])
def test_singles_match_numpy(removed, added, rank, dtype, isa):
    rows_r, rows_a, spectrum, tau_squares = problem(removed, added, rank, dtype, batch=20, nodes=7)
    reference, places, added_rows, _, plan = arguments(rows_r, rows_a, spectrum, tau_squares)
    sums = _C.swap_singles(reference, places, added_rows, plan, 3, isa)
    weights = 1 / (spectrum + tau_squares[:, None])
    for x, (a, b) in enumerate(((rows_r, rows_r), (rows_r, rows_a), (rows_a, rows_a))):
        if a.shape[1] and b.shape[1]:
            product = a[:, 0].astype(np.float64) * b[:, 0]
            # up to 128 sums in a lane, rounded at random: about √128 = 11 of them, and a few for the products
            error = 16 * EPS[dtype] * (abs(product) @ weights.T)
            assert (abs(sums[:, x] - product @ weights.T) <= error).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("centred_as", [np.float32, np.float64])
@pytest.mark.parametrize("added_as", [np.float32, np.float64])
@pytest.mark.parametrize("dim", [1, 7, 40])
def test_centred_rows_and_their_sums(dim, added_as, centred_as, isa):
    rng = np.random.default_rng(dim)
    reference, whole = (
        rng.standard_normal((9, dim)).astype(np.float32),
        rng.standard_normal((4, 6, dim)).astype(added_as),
    )
    mean, gap = rng.standard_normal(dim), rng.standard_normal(dim)
    places, added = np.array([[0, 8], [3, 1], [5, 5], [2, 7]]), whole[:, ::2]  # every other row: strides
    centred = np.empty((4, 3, dim), centred_as)
    norms, sums, totals = _C.centre_rows(reference, places, added, mean, gap, centred, True, 2, isa)
    y_a, y_r = added - mean, reference[places] - mean
    total = y_a.sum(1) - y_r.sum(1)
    np.testing.assert_array_equal(centred, y_a.astype(centred_as))
    np.testing.assert_allclose(norms, (y_a**2).sum(2), rtol=1e-13)
    np.testing.assert_allclose(totals, total, rtol=1e-12, atol=1e-13)
    norm_change = (y_a**2).sum((1, 2)) - (y_r**2).sum((1, 2))
    expected = np.stack([(total**2).sum(1), total @ gap, norm_change], 1)
    np.testing.assert_allclose(sums, expected, rtol=1e-11, atol=1e-11)


# Rows of less than a stretch of the kernel, one, one more and several; columns of less than a tile and several blocks.
SCATTERS = [(1, 1), (1, 513), (2, 2), (7, 7), (85, 17), (86, 100), (87, 7), (300, 513)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("alpha, beta", [(0.3, 0.7), (-0.2, 1.1), (1.5, 0.0)])
def test_scatter_matches_numpy_on_any_number_of_threads(alpha, beta, dtype, isa):
    for n, d in SCATTERS:
        rng = np.random.default_rng(n + d)
        x = rng.standard_normal((n, d + 3)).astype(dtype)[:, 1 : d + 1]  # rows that lie apart
        given, extra = rng.standard_normal((d, d)), rng.standard_normal(d)
        sums = [_C.column_sums(x, threads, isa) for threads in (1, 3)]
        np.testing.assert_array_equal(*sums)
        np.testing.assert_allclose(sums[0], x.astype(np.float64).sum(0), rtol=0, atol=EPS[np.float64] * n**2)

        found = [given.copy() for _ in range(3)]
        for cov, threads in zip(found, (1, 2, 5), strict=True):
            _C.add_scatter(cov, x, sums[0] / n, extra, alpha, beta, threads, isa)
            np.testing.assert_array_equal(cov, found[0])
        rows = np.vstack([x - sums[0] / n, extra])
        expected = beta * given + alpha * rows.T @ rows
        size = abs(beta * given) + abs(alpha) * abs(rows).T @ abs(rows)
        # √(n + 1) roundings of either order, ε/2 each and three times over, and those of scaling and centring
        error = (3 * np.sqrt(n + 1) + 5) * EPS[np.float64] * size
        upper = np.triu(np.ones((d, d), bool))
        assert (abs(found[0] - expected) <= error)[upper].all()
        np.testing.assert_array_equal(found[0][~upper], given[~upper])


@pytest.mark.parametrize("isa", ISAS)
def test_scatter_about_a_mean_of_1e4_standard_deviations(isa):
    x = np.random.default_rng(0).standard_normal((200, 41)) + 1e4
    cov = np.full((41, 41), np.nan)  # where beta is 0 it is not read
    _C.add_scatter(cov, x, _C.column_sums(x, 1, isa) / 200, np.zeros(41), 1 / 199, 0.0, 2, isa)
    upper = np.triu_indices(41)
    # a mean near 1e4 is known to some 1e4·ε = 2e-12 and enters the scatter squared; Σxxᵀ − nμμᵀ would lose 1e8·ε = 2e-8
    np.testing.assert_allclose(cov[upper], np.cov(x - 1e4, rowvar=False)[upper], rtol=0, atol=1e-12)


def test_scatter_bindings_name_what_is_wrong():
    cov, x, mean = np.zeros((3, 3)), np.ones((5, 3)), np.ones(3)
    with pytest.raises(ValueError, match=r"cov must be \[d, d\].*\[3, 3\], \[5, 2\], \[3\] and \[3\]"):
        _C.add_scatter(cov, x[:, :2], mean, mean, 1, 1, 1)
    with pytest.raises(ValueError, match="cov must be contiguous"):
        _C.add_scatter(np.zeros((3, 6))[:, ::2], x, mean, mean, 1, 1, 1)
    with pytest.raises(ValueError, match="rows must be float32 or float64"):
        _C.add_scatter(cov, x.astype(np.float16), mean, mean, 1, 1, 1)
    with pytest.raises(ValueError, match=r"rows must be \[n, d\], each contiguous"):
        _C.column_sums(np.ones((5, 6))[:, ::2], 1)
    with pytest.raises(ValueError, match=r"rows must be \[n, d\], each contiguous, got \[3\]"):
        _C.column_sums(mean, 1)
    with pytest.raises(ValueError, match="threads must be at least 1"):
        _C.add_scatter(cov, x, mean, mean, 1, 1, 0)


def test_no_candidates_no_nodes_no_rows():
    rows_r, rows_a, spectrum, tau_squares = problem(2, 2, 5, np.float32)
    assert logdets_of(rows_r[:0], rows_a[:0], spectrum, tau_squares, threads=4)[0].shape == (0, 3)
    np.testing.assert_array_equal(logdets_of(rows_r[:, :0], rows_a[:, :0].copy(), spectrum, tau_squares)[0], 0)


def test_bindings_name_what_is_wrong():
    reference, places, added, shifts, plan = arguments(*problem(2, 2, 5, np.float32))
    with pytest.raises(ValueError, match=r"reference must be \[N, r\].*\[4, 4\]"):
        _C.swap_logdet(reference[:, :4].copy(), places, added, shifts, plan, SLACK, 1)
    with pytest.raises(ValueError, match="index holds 4, outside the 4 reference rows"):
        _C.swap_logdet(reference, places + 1, added, shifts, plan, SLACK, 1)
    with pytest.raises(ValueError, match="plan bounds must run from 0 to the rank"):
        _C.swap_logdet(reference, places, added, shifts, (plan[0] + 1, *plan[1:]), SLACK, 1)
    with pytest.raises(ValueError, match="plan functions, mixes and coefficients"):
        _C.swap_logdet(reference, places, added, shifts, (*plan[:2], plan[2][1:].copy(), *plan[3:]), SLACK, 1)
    with pytest.raises(ValueError, match="plan groups must end with the last slice"):
        _C.swap_logdet(reference, places, added, shifts, (*plan[:3], plan[3] + 1, *plan[4:]), SLACK, 1)
    with pytest.raises(ValueError, match="threads must be at least 1"):
        _C.swap_logdet(reference, places, added, shifts, plan, SLACK, 0)
    with pytest.raises(ValueError, match="of the expected dtype"):
        _C.swap_logdet(reference, places, added.astype(np.float16), shifts, plan, SLACK, 1)
    with pytest.raises(ValueError, match="the instruction set sse9 is not available"):
        _C.swap_logdet(reference, places, added, shifts, plan, SLACK, 1, "sse9")
    with pytest.raises(ValueError, match="one row at most each way"):
        _C.swap_singles(reference, places, added, plan, 1)


@pytest.mark.skipif(shutil.which("g++") is None, reason="the sanitizers are g++'s")
def test_sanitizers_find_nothing(tmp_path):
    # -O0: compiling takes the time here, and the sanitizers see every access either way
    source = ROOT / "csrc" / "cpu"
    flags = ["g++", "-std=c++17", "-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    machines = {"baseline": [], "wide": []}
    if platform.machine() == "x86_64":
        flags.append("-DFASTFID_HAVE_X86_VARIANTS")
        machines |= {"avx2": ["-march=x86-64-v3"], "avx512": ["-march=x86-64-v4"]}
    compilers = [
        subprocess.Popen([*flags, *machine, "-c", str(source / f"isa_{isa}.cpp"), "-o", str(tmp_path / f"{isa}.o")])
        for isa, machine in machines.items()
    ]
    assert all([compiler.wait() == 0 for compiler in compilers])
    objects = [str(tmp_path / f"{isa}.o") for isa in machines]
    sources = [str(source / f"{name}.cpp") for name in ("band", "dispatch", "moments", "swap", "threads")] + [
        str(SUPPORT / "sanitized.cpp")
    ]
    program = tmp_path / "sanitized"
    subprocess.run([*flags, *sources, *objects, "-o", str(program), "-ldl", "-lpthread"], check=True)
    found = subprocess.run([str(program)], capture_output=True, text=True)
    assert found.returncode == 0 and found.stdout.startswith("finite"), found.stderr[:2000]


# ------------------------------------------------------------------------------------------------------ band matrices

BANDS = [(1, 0), (1, 3), (2, 1), (5, 1), (7, 2), (30, 3), (33, 4), (40, 5), (65, 64), (100, 7), (131, 128)]


def band_matrix(dim, width):
    """A positive definite matrix [dim, dim] and its diagonals [dim, width + 1]; NaN stands where none is."""
    rows, columns = np.indices((dim, dim))
    matrix = np.random.default_rng(dim).standard_normal((dim, dim))
    matrix = np.where(abs(rows - columns) <= width, matrix + matrix.T, 0) + 4 * (width + 1) * np.eye(dim)
    diagonals = np.full((dim, width + 1), np.nan)
    for offset in range(min(dim, width + 1)):
        diagonals[offset:, width - offset] = np.diagonal(matrix, -offset)
    return matrix, diagonals


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("dim", "width"), BANDS)
def test_band_logdets(isa, dim, width):
    matrix, diagonals = band_matrix(dim, width)
    shifts, origin = np.array([0, 1e-3, 1, 30, 1e5, 1e12, 2e12, 3e12, 4e12]), 0.7
    found = _C.band_logdets(diagonals, shifts, origin, 1, isa)
    eigenvalues = np.linalg.eigvalsh(matrix)
    expected = [np.log1p((eigenvalues - origin) / (origin + shift)).sum() for shift in shifts]
    np.testing.assert_allclose(found, expected, rtol=20 * EPS[np.float64])  # measured: 4ε at most
    assert (found == _C.band_logdets(diagonals, shifts, origin, 3, isa)).all()
    below = -eigenvalues[0] * np.array([0.999, 1.001, 3.0])  # positive definite, and no longer
    signs = np.isfinite(_C.band_logdets(diagonals, below, 1e3, 2, isa))
    assert signs.tolist() == [True, False, False]
    assert len(_C.band_logdets(diagonals, shifts[:0], origin, 2, isa)) == 0


def test_band_arguments_are_checked():
    _, diagonals = band_matrix(5, 2)
    for band in (diagonals.astype(np.float32), diagonals[:, ::2], diagonals[0]):
        with pytest.raises(ValueError, match="band must be contiguous"):
            _C.band_logdets(band, np.ones(3), 1.0, 1)
    with pytest.raises(ValueError, match="threads must be at least 1"):
        _C.band_logdets(diagonals, np.ones(3), 1.0, 0)
