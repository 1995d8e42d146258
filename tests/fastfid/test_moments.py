"""Moments against NumPy, under every way of cutting the rows into batches, ranks and files."""

import json
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st

import fastfid.backend
import fastfid.distances.scatter
from fastfid import FeatureMoments
from fastfid.distances.window import FeatureWindow

# Two float64 summation orders of N ≤ 10⁴ terms differ by at most about N·ε = 2e-12 of their absolute sum, and by √N·ε
# in practice; 1e-12 of the features' scale is left for both mean and covariance.
TOLERANCE = 1e-12


def rows(n, d, seed=0, offset=0.0, dtype=torch.float64):
    return (torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + offset).to(dtype)


def assert_same(moments, expected, scale=1.0):
    assert moments.count == expected.count
    torch.testing.assert_close(moments.mean, expected.mean, rtol=TOLERANCE, atol=TOLERANCE * scale)
    torch.testing.assert_close(moments.cov, expected.cov, rtol=0, atol=TOLERANCE * scale)


def numpy_moments(x):
    x = x.double().numpy()
    return FeatureMoments(len(x), torch.from_numpy(x.mean(axis=0)), torch.from_numpy(np.cov(x, rowvar=False, ddof=1)))


@pytest.mark.parametrize("shape", [(2, 3), (100, 5), (1271, 41), (30, 64)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equal_to_numpy(shape, dtype):
    x = rows(*shape, dtype=dtype)
    assert_same(FeatureMoments.from_features(x), numpy_moments(x), scale=10)


def test_numpy_arrays_are_features_too():
    x = rows(20, 3)
    assert_same(FeatureMoments.from_features(x.numpy()), numpy_moments(x))


def test_a_mean_of_1e4_standard_deviations_costs_no_digits(monkeypatch):
    monkeypatch.setattr(fastfid.distances.scatter, "BLOCK_ROWS", 100)
    shifted = rows(1000, 8, offset=1e4)
    centred = numpy_moments(shifted - 1e4)  # exact: both operands share the exponent range
    whole = FeatureMoments.from_features(shifted)
    streamed = FeatureMoments.empty(8)
    for batch in shifted.split(33):
        streamed.update(batch)
    for moments in (whole, streamed):
        # A mean near 1e4 is known to ε·1e4 = 2e-12 and enters the scatter squared; Σxxᵀ − nμμᵀ would lose 1e8·ε = 2e-8.
        torch.testing.assert_close(moments.cov, centred.cov, rtol=0, atol=1e-11)
        torch.testing.assert_close(moments.mean - 1e4, centred.mean, rtol=0, atol=1e-11)


@given(cuts=st.lists(st.integers(0, 60), max_size=6), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_updates_and_merges_equal_the_whole(cuts, seed):
    x = rows(60, 4, seed)
    edges = [0, *sorted(cuts), 60]
    parts = [x[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True)]  # empty and single-row parts included
    streamed, merged = FeatureMoments.empty(4), FeatureMoments.empty(4)
    for part in parts:
        assert streamed.update(part) is streamed
        merged = FeatureMoments.empty(4).update(part).merge(merged)
    assert_same(streamed, FeatureMoments.from_features(x), scale=10)
    assert_same(merged, FeatureMoments.from_features(x), scale=10)


@pytest.fixture(params=["built", "not built"])
def extension(request, monkeypatch):
    """With the compiled kernels, where there are any, and without."""
    if request.param == "not built":
        monkeypatch.setattr(fastfid.backend, "_C", None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_batches_change_no_bit(monkeypatch, extension, dtype):
    monkeypatch.setattr(fastfid.distances.scatter, "BLOCK_ROWS", 16)
    x = rows(100, 6, offset=3.0, dtype=dtype)
    whole = FeatureMoments.from_features(x)
    for size in (1, 7, 16, 40):
        streamed = FeatureMoments.empty(6)
        for batch in x.split(size):
            streamed.update(batch)
        assert torch.equal(streamed.mean, whole.mean) and torch.equal(streamed.cov, whole.cov)


def test_batches_of_several_types_keep_all_digits(monkeypatch, extension):
    monkeypatch.setattr(fastfid.distances.scatter, "BLOCK_ROWS", 16)
    types = [torch.float32, torch.float64, torch.bfloat16, torch.float32]
    parts = [rows(9, 5, seed, offset=3.0, dtype=types[seed % 4]) for seed in range(12)]
    moments = FeatureMoments.empty(5)
    for part in parts:
        moments.update(part)
    x = torch.cat([part.double() for part in parts])
    assert torch.equal(moments.cov, FeatureMoments.from_features(x).cov)
    assert_same(moments, numpy_moments(x), scale=10)


def test_rows_and_covariances_that_are_not_contiguous(extension):
    x, before = rows(41, 2500), rows(30, 41)
    given = FeatureMoments(30, before.mean(0), before.T.cov().T)  # stored by columns
    expected = numpy_moments(torch.cat([before, x.T]))
    assert_same(given.update(x.T), expected, scale=10)
    assert_same(FeatureMoments.from_features(rows(2500, 82)[:, ::2]), numpy_moments(rows(2500, 82)[:, ::2]), scale=10)


def test_triangles_of_any_width(monkeypatch, extension):
    x = rows(50, 41)
    monkeypatch.setattr(fastfid.distances.scatter, "COLUMNS", 7)
    moments = FeatureMoments.from_features(x)
    assert torch.equal(moments.cov, moments.cov.T)
    assert_same(moments, numpy_moments(x), scale=10)


def test_tensors_that_were_read_stay_as_they_were():
    x = rows(40, 3)
    given = FeatureMoments.from_features(x[:20])
    mean, cov = given.mean, given.cov
    before = mean.clone(), cov.clone()
    shared = FeatureMoments(20, mean, cov).update(x[20:])
    given.update(x[20:]).cov  # noqa: B018  reading brings the rows in
    assert torch.equal(mean, before[0]) and torch.equal(cov, before[1])
    assert torch.equal(shared.cov, given.cov) and shared.count == 40
    copy = given.copy()
    given.update(x)
    assert copy.count == 40 and given.count == 80 and not torch.equal(copy.cov, given.cov)


def test_updates_inside_and_outside_of_inference_mode(extension):
    x = rows(40, 3)
    with torch.inference_mode():
        moments = FeatureMoments.empty(3).update(x[:10] * 1)
        moments.cov  # noqa: B018
    moments.update(x[10:20])
    with torch.inference_mode():
        moments.update(x[20:30] * 1)
    assert_same(moments.update(x[30:]), FeatureMoments.from_features(x), scale=10)
    assert_same(pickle.loads(pickle.dumps(moments)), moments)


# --- leaving rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("block", [8, 2048])
def test_evicted_rows_leave_no_trace(monkeypatch, extension, block, offset):
    monkeypatch.setattr(fastfid.distances.scatter, "BLOCK_ROWS", block)
    x = rows(90, 5, offset=offset)
    moments = FeatureMoments.from_features(x)
    for part in (x[:30], x[30:37], x[37:37]):
        assert moments.evict(part) is moments
    expected = numpy_moments(x[37:])
    assert moments.count == 53
    # as above a mean near 1e4 is known to 2e-12 and enters the scatter once more
    torch.testing.assert_close(moments.mean, expected.mean, rtol=1e-14, atol=1e-12)
    torch.testing.assert_close(moments.cov, expected.cov, rtol=0, atol=1e-11 if offset else 1e-13)
    assert moments.evict(x[38:]).count == 1 and torch.equal(moments.cov, torch.zeros(5, 5, dtype=torch.float64))
    assert moments.evict(x[37:38]).count == 0 and not moments.mean.any()
    assert_same(moments.update(x), FeatureMoments.from_features(x))


@given(sizes=st.lists(st.integers(0, 25), max_size=12), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_a_window_holds_the_newest_rows(sizes, seed):
    window, seen = FeatureWindow(11, 3, dtype=torch.float64), torch.zeros(0, 3, dtype=torch.float64)
    for i, size in enumerate(sizes):
        batch = rows(size, 3, seed + 1000 * i)
        assert window.add(batch) is window
        seen = torch.cat([seen, batch])[-11:]
        assert torch.equal(window.rows, seen) and len(window) == window.moments.count == len(seen)
        if len(seen) > 1:
            assert_same(window.moments, FeatureMoments.from_features(seen), scale=10)


def test_a_window_starts_afresh_after_every_turnover():
    window = FeatureWindow(50, 4)  # float32: rows are rounded as they come, so those that leave are those that came
    live = window.moments
    for i in range(21):
        window.add(rows(10, 4, i, offset=100.0))
        assert window.drift() < 1e-11  # offset 100 leaves 1e-14 of the means, squared 1e4 times the covariance
    assert window.moments is live and live.count == 50
    assert window._evictions == 10  # 160 left: three turnovers
    restored = FeatureWindow(50, 4)
    restored.load_state_dict(window.state_dict())
    assert torch.equal(restored.rows, window.rows) and restored.drift() == 0.0
    assert_same(restored.add(rows(3, 4)).moments, window.add(rows(3, 4)).moments, scale=10)


def test_state_comes_back():
    x = rows(30, 3)
    moments = FeatureMoments.from_features(x, {"extractor": "net-1"})
    restored = FeatureMoments.empty(3)
    restored.load_state_dict(moments.state_dict())
    assert restored.count == 30 and restored.provenance == {"extractor": "net-1"}
    assert torch.equal(restored.update(x).cov, moments.update(x).cov)


def test_blocks_equal_the_whole(monkeypatch):
    x = rows(50, 6)
    whole = FeatureMoments.from_features(x)
    monkeypatch.setattr(fastfid.distances.scatter, "BLOCK_ROWS", 7)
    monkeypatch.setattr(fastfid.distances.scatter, "GRADIENT_BLOCK_ROWS", 7)
    assert_same(FeatureMoments.from_features(x), whole)
    with_gradient = FeatureMoments.from_features(x.clone().requires_grad_())
    assert with_gradient.cov.requires_grad
    assert_same(FeatureMoments(50, with_gradient.mean.detach(), with_gradient.cov.detach()), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_that_overflow_are_no_error(dtype):
    largest = torch.finfo(dtype).max
    x = rows(100, 3).clamp(-1, 1).to(dtype) * (largest / 10 if dtype == torch.float32 else 1e150)
    x[:, 0] = x[:, 0].abs()  # a column whose sum passes float32's largest number
    assert_same(FeatureMoments.from_features(x), numpy_moments(x), scale=float(x.abs().max()) ** 2)


def test_the_covariance_is_exactly_symmetric_and_strided_rows_are_welcome():
    x = rows(301, 14)[:, ::2]
    moments = FeatureMoments.from_features(x)
    assert torch.equal(moments.cov, moments.cov.T) and moments.cov.is_contiguous()
    assert_same(moments, numpy_moments(x.contiguous()))


def _reduce_on_rank(rank, shards, rendezvous, results):
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=len(shards))
    dimension = shards[0].shape[1]
    uneven = FeatureMoments.empty(dimension).update(shards[rank]).all_reduce()
    one_empty = FeatureMoments.empty(dimension).update(shards[0] if rank == 0 else shards[0][:0]).all_reduce()
    none = FeatureMoments.empty(dimension).all_reduce()
    results[rank] = [(m.count, m.mean.numpy(), m.cov.numpy()) for m in (uneven, one_empty, none)]
    dist.destroy_process_group()


def test_all_reduce_of_two_processes_equals_the_whole(tmp_path):
    x = rows(101, 5, offset=1e4)
    shards = [x[:30], x[30:]]
    with multiprocessing.Manager() as manager:
        results = manager.dict()
        multiprocessing.spawn(_reduce_on_rank, (shards, tmp_path / "rendezvous", results), nprocs=2)
        first, second = results[0], results[1]
    for (count, mean, cov), (count_2, mean_2, cov_2) in zip(first, second, strict=True):
        assert count == count_2 and np.array_equal(mean, mean_2) and np.array_equal(cov, cov_2)  # the same on each rank
    # The 1e4 offset leaves ε·1e4 of each mean, as above.
    for (count, mean, cov), expected in zip(first, (x, shards[0]), strict=False):
        expected = FeatureMoments.from_features(expected)
        assert count == expected.count
        np.testing.assert_allclose(mean, expected.mean, rtol=1e-15, atol=1e-11)
        np.testing.assert_allclose(cov, expected.cov, rtol=0, atol=1e-11)
    assert first[2][0] == 0


def test_all_reduce_alone_is_a_copy():
    moments = FeatureMoments.from_features(rows(9, 3), {"extractor": "x"})
    copy = moments.all_reduce()
    assert_same(copy, moments)
    assert copy.cov is not moments.cov and copy.provenance == moments.provenance


# --- files -------------------------------------------------------------------------------------------------------


def test_saved_statistics_come_back_bit_for_bit(tmp_path):
    moments = FeatureMoments.from_features(rows(9, 3), {"extractor": "fashion-a", "weights_sha256": "12ab"})
    moments.save(tmp_path / "s.npz")
    loaded = FeatureMoments.load(tmp_path / "s.npz")
    assert loaded.count == 9
    assert torch.equal(loaded.mean, moments.mean) and torch.equal(loaded.cov, moments.cov)
    assert loaded.provenance["extractor"] == "fashion-a" and loaded.provenance["version"].startswith("fastfid ")


def test_pytorch_fid_can_read_ours(tmp_path):
    moments = FeatureMoments.from_features(rows(9, 3))
    moments.save(tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz") as file:  # what its loader does: no pickle, two arrays by name
        assert np.array_equal(file["mu"][:], moments.mean) and np.array_equal(file["sigma"][:], moments.cov)
        assert json.loads(str(file["provenance"]))["version"]


@pytest.mark.parametrize("mean_type", [np.float64, np.float32])  # torch-fidelity keeps the mean in float32
def test_we_can_read_mu_and_sigma_alone(tmp_path, mean_type):
    np.savez(tmp_path / "s.npz", mu=np.ones(3, mean_type), sigma=np.eye(3))
    loaded = FeatureMoments.load(tmp_path / "s.npz")
    assert loaded.count is None and loaded.provenance == {}
    assert loaded.mean.dtype == loaded.cov.dtype == torch.float64
    loaded.save(tmp_path / "again.npz")
    assert FeatureMoments.load(tmp_path / "again.npz").count is None


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    moments = FeatureMoments.from_features(rows(9, 3))
    moments.save(tmp_path / "s.npz")
    before = (tmp_path / "s.npz").read_bytes()

    def break_half_way(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", break_half_way)
    with pytest.raises(OSError, match="disk full"):
        moments.save(tmp_path / "s.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]
    assert (tmp_path / "s.npz").read_bytes() == before


def with_gradient(dim=3):
    return FeatureMoments.from_features(rows(4, dim).requires_grad_())


def made_by(extractor):
    return FeatureMoments.empty(1, {"extractor": extractor})


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FeatureMoments.from_features(torch.zeros(1, 3)), "at least 2 rows, got 1"),
        (lambda: FeatureMoments.from_features(torch.zeros(4, 3, 2)), r"must be \[n, d\], got shape \(4, 3, 2\)"),
        (lambda: FeatureMoments.from_features(torch.zeros(4, 3, dtype=torch.uint8)), "floating point, got torch.uint8"),
        (lambda: FeatureMoments.from_features(torch.tensor([[0.0], [torch.nan], [torch.inf]])), r"row 1 .*\(2 such"),
        (lambda: FeatureMoments.empty(3).update(torch.zeros(4, 2)), "d = 3, the batch has d = 2"),
        (lambda: FeatureMoments.empty(3).merge(FeatureMoments.empty(2)), "d = 3 and d = 2"),
        (lambda: FeatureMoments.empty(3).evict(torch.zeros(4, 3)), "4 rows cannot be evicted from moments of 0"),
        (lambda: with_gradient().evict(torch.zeros(1, 3)), "carry a gradient"),
        (lambda: FeatureMoments.empty(3).load_state_dict(with_gradient(2).state_dict()), "d = 3, the state has d = 2"),
        (lambda: FeatureWindow(0, 3), "size is 0"),
        (lambda: FeatureMoments(5, torch.zeros(3), torch.zeros(2, 2)), r"got \(3,\) and \(2, 2\)"),
        (lambda: FeatureMoments(5, torch.zeros(0), torch.zeros(0, 0)), "moments of d = 0 features were given"),
        (lambda: FeatureMoments.empty(0), "moments of d = 0 features were given"),
        (lambda: FeatureMoments(-5, torch.zeros(1), torch.eye(1)), "count of these statistics is -5; pass the number"),
        (lambda: setattr(FeatureMoments.empty(1), "count", -1), "count of these statistics is -1; pass the number"),
        (
            lambda: FeatureMoments(None, torch.zeros(1), torch.eye(1)).update(torch.zeros(2, 1)),
            "count of these statistics",
        ),
        (lambda: made_by("net-1").merge(made_by("net-2")), "extractor differs: net-1 against net-2"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_files_are_named(tmp_path):
    np.savez(tmp_path / "features.npz", feats=np.zeros(3))
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("not a zip")
    with pytest.raises(FileNotFoundError, match=r"no statistics file at .*missing\.npz"):
        FeatureMoments.load(tmp_path / "missing.npz")
    for name, message in [("features", "no mu and no sigma .only feats"), ("text", "cannot be read by NumPy")]:
        with pytest.raises(ValueError, match=rf"{name}\.npz.*{message}"):
            FeatureMoments.load(tmp_path / f"{name}.npz")
    with pytest.raises(ValueError, match="is a single array"):
        FeatureMoments.load(tmp_path / "single.npy")
