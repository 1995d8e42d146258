"""Statistics keep their provenance, every peer's file is read, and what is damaged, foreign or hostile is refused."""

import json
import os
import pickle

import numpy as np
import pytest
import torch

from fastfid import FeatureMoments, __version__, frechet_distance
from fastfid.__main__ import main
from fastfid.features.registry import preprocessing_of
from fastfid.protocols import PROTOCOLS
from fastfid.statistics.peer_files import holds_statistics
from fastfid.statistics.statistics import Statistics, read_statistics

D = 6  # features; files of peers are small here, their layout is what counts
PROVENANCE = {"extractor": "fashion-a", "weights_sha256": "ab" * 32, "preprocessing": "none", "protocol": "fastfid"}


def rows(n=40, d=D, seed=0):
    """float64 [n, d], correlated."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def moments(x):
    """NumPy's own mean and covariance, as every peer computes them."""
    return x.mean(axis=0), np.cov(x, rowvar=False)


MU, SIGMA = moments(rows())
# What ADM's and EDM2's form tells of Inception statistics.
TF1 = {
    "extractor": "inception",
    "preprocessing": "grey repeated to RGB, TensorFlow-1 bilinear to 299x299, (x - 128) / 128",
}


def error_of(path, **options):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read_statistics(path, **options)
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    return message


def equal(statistics, mu=MU, sigma=SIGMA, tolerance=1e-12):
    assert statistics.moments.mean.dtype == statistics.moments.cov.dtype == torch.float64
    np.testing.assert_allclose(statistics.moments.mean, mu, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(statistics.moments.cov, sigma, rtol=tolerance, atol=tolerance)


# --- one reader and one writer -----------------------------------------------------------------------------------


def test_moments_and_statistics_write_the_same_file(tmp_path):
    moments = FeatureMoments.from_features(torch.from_numpy(rows()), PROVENANCE)
    moments.save(tmp_path / "moments.npz")
    Statistics(moments).save(tmp_path / "statistics.npz")
    with np.load(tmp_path / "moments.npz") as one, np.load(tmp_path / "statistics.npz") as other:
        assert one.files == other.files == ["mu", "sigma", "count", "provenance"]
        assert all(np.array_equal(one[name], other[name]) for name in one.files)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn])
def test_narrow_floats_are_saved_exactly(tmp_path, dtype):
    """bfloat16 and float8, which NumPy does not have, become float32, and moments are those of the values."""
    features = torch.from_numpy(rows()).to(dtype)
    statistics = Statistics.from_features(features)
    equal(statistics, *moments(features.double().numpy()))
    statistics.save(tmp_path / "x.npz")
    read = read_statistics(tmp_path / "x.npz")
    assert torch.equal(read.features.double(), features.double())
    assert read.provenance["dtype"] == statistics.provenance["dtype"]
    if dtype.itemsize == 2:
        torch.save(features, tmp_path / "x.pt")
        assert main(["convert", str(tmp_path / "x.pt"), str(tmp_path / "y.npz")]) == 0
        assert torch.equal(read_statistics(tmp_path / "y.npz").features.double(), features.double())
        torch.save({"mu": features[0], "sigma": torch.eye(features.shape[1]).to(dtype)}, tmp_path / "mu.pt")
        assert torch.equal(read_statistics(tmp_path / "mu.pt").moments.mean, features[0].double())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_moments_and_statistics_read_the_same(tmp_path, save, dtype):
    path = tmp_path / "x.npz"
    save(path, mu=MU.astype(dtype), sigma=SIGMA.astype(dtype), count=7, provenance=np.array(json.dumps(PROVENANCE)))
    loaded, read = FeatureMoments.load(path), read_statistics(path).moments
    assert loaded.count == read.count == 7 and loaded.provenance == read.provenance == PROVENANCE
    assert torch.equal(loaded.mean, read.mean) and torch.equal(loaded.cov, read.cov)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": MU}, "no sigma"),
        ({"mu": MU * np.nan, "sigma": SIGMA}, "NaN or infinity in mu or sigma"),
        ({"mu": MU[:3], "sigma": SIGMA}, r"mu \(3,\) and sigma \(6, 6\)"),
        ({"mu": MU.astype(str), "sigma": SIGMA}, "not of real numbers"),
        ({"mu": MU, "sigma": SIGMA, "provenance": np.array("{")}, "is no JSON"),
    ],
)
def test_moments_and_statistics_refuse_the_same(tmp_path, arrays, message):
    path = tmp_path / "x.npz"
    np.savez(path, **arrays)
    for read in (FeatureMoments.load, read_statistics):
        with pytest.raises(ValueError, match=rf"x\.npz.*{message}"):
            read(path)


# --- our own file ------------------------------------------------------------------------------------------------


def test_everything_survives_saving(tmp_path):
    spatial = torch.from_numpy(rows(40, 4, 1))
    ours = Statistics.from_features(torch.from_numpy(rows()).float(), PROVENANCE, spatial=spatial)
    ours.save(tmp_path / "x.npz")
    read = Statistics.load(tmp_path / "x.npz")
    assert torch.equal(read.moments.mean, ours.moments.mean) and torch.equal(read.moments.cov, ours.moments.cov)
    assert torch.equal(read.features, ours.features) and torch.equal(read.spatial.cov, ours.spatial.cov)
    assert read.count == 40 and read.form == "fastfid" and read.dim == D
    assert read.provenance == {**PROVENANCE, "dtype": "float32", "version": f"fastfid {__version__}"}
    assert os.stat(tmp_path / "x.npz").st_mode & 0o044  # others can read it
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_pytorch_fid_and_feature_moments_read_our_file(tmp_path):
    Statistics.from_features(torch.from_numpy(rows()), PROVENANCE).save(tmp_path / "x.npz", keep_features=False)
    with np.load(tmp_path / "x.npz") as file:  # as pytorch-fid does: no pickle in it
        mu, sigma = file["mu"][:], file["sigma"][:]
        assert "features" not in file.files and json.loads(str(file["provenance"]))["extractor"] == "fashion-a"
    np.testing.assert_allclose(mu, MU, rtol=1e-12)
    np.testing.assert_allclose(sigma, SIGMA, rtol=1e-12, atol=1e-12)
    plain = FeatureMoments.load(tmp_path / "x.npz")
    assert plain.count == 40 and plain.provenance["preprocessing"] == "none"


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    ours = Statistics.from_features(torch.from_numpy(rows()))
    ours.save(tmp_path / "x.npz")
    before = (tmp_path / "x.npz").read_bytes()

    def broken(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", broken)
    with pytest.raises(OSError, match="disk full"):
        ours.save(tmp_path / "x.npz")
    assert (tmp_path / "x.npz").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="does not end in .npz"):
        ours.save(tmp_path / "x.pkl")


# --- peers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("types", [("f8", "f8"), ("f4", "f8"), ("f4", "f4"), (">f8", ">f4"), ("f2", "f8")])
def test_mu_sigma_of_any_float_type(tmp_path, types):
    """pytorch-fid, clean-fid and EDM write f8, torch-fidelity's users a mixture."""
    np.savez(tmp_path / "x.npz", mu=MU.astype(types[0]), sigma=SIGMA.astype(types[1]))
    read = read_statistics(tmp_path / "x.npz")
    equal(read, tolerance=5e-3 if "f2" in types else 1e-6)
    assert read.count is None and read.provenance == {} and not read.images


@pytest.mark.parametrize("images", [False, True])
def test_adm(tmp_path, images):
    arrays = dict(zip(("mu", "sigma", "mu_s", "sigma_s"), (*moments(rows()), *moments(rows(d=4))), strict=True))
    if images:
        arrays["arr_0"] = np.zeros((3, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "x.npz", **arrays)
    read = read_statistics(tmp_path / "x.npz")
    equal(read)
    assert read.form == "ADM" and read.provenance == TF1 and read.images is images
    assert read.spatial.dim == 4 and holds_statistics(tmp_path / "x.npz")


@pytest.mark.parametrize("protocol", range(6))
def test_edm2(tmp_path, protocol):
    other = moments(rows(d=4))
    content = {
        "num_images": np.int64(40) if protocol > 2 else 40,
        "fid": {"mu": MU, "sigma": SIGMA},
        "fd_dinov2": {"mu": other[0].astype(np.float32), "sigma": np.asfortranarray(other[1])},
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_statistics(tmp_path / "x.pkl", "inception")
    equal(read)
    assert read.count == 40 and read.provenance == TF1 and read.form == "EDM2 (fid)"
    equal(read_statistics(tmp_path / "x.pkl", "dinov2"), *other, tolerance=1e-6)
    assert "holds statistics of inception, dinov2; say which with network=" in error_of(tmp_path / "x.pkl")
    assert "none of the network clip" in error_of(tmp_path / "x.pkl", network="clip")
    (tmp_path / "one.pkl").write_bytes(pickle.dumps({"fd_dinov2": content["fd_dinov2"]}, protocol=protocol))
    told = read_statistics(tmp_path / "one.pkl").provenance
    assert told == {"extractor": "dinov2", "preprocessing": preprocessing_of("dinov2", PROTOCOLS["edm2"])}
    assert told["preprocessing"] != preprocessing_of("dinov2", PROTOCOLS["dgm-dinov2"])


def test_edm2_written_by_numpy_1(tmp_path):
    """NumPy 1 says numpy.core where NumPy 2 says numpy._core; both are read under either."""
    content = pickle.dumps({"num_images": 40, "fid": {"mu": MU, "sigma": SIGMA}}, protocol=2)
    by_numpy_1 = content.replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core" in by_numpy_1
    for written in (by_numpy_1, by_numpy_1.replace(b"numpy.core", b"numpy._core")):
        (tmp_path / "x.pkl").write_bytes(written)
        equal(read_statistics(tmp_path / "x.pkl"))


@pytest.mark.parametrize("name", ["feats", "reps", "features", "arr"])
def test_features_in_an_npz(tmp_path, name):
    more = {"model": np.array("dinov2"), "hparams": np.array({"seed": 1}, dtype=object)} if name == "reps" else {}
    np.savez(tmp_path / "x.npz", **{name: rows()}, **more)
    read = read_statistics(tmp_path / "x.npz")
    equal(read)
    np.testing.assert_array_equal(read.features, rows())
    assert read.count == 40 and holds_statistics(tmp_path / "x.npz")
    assert read.provenance.get("extractor") == ("dinov2" if name == "reps" else None)
    assert read.form == {"feats": "clean-fid", "reps": "dgm-eval", "features": "fastfid", "arr": "features"}[name]


def test_features_in_an_npy(tmp_path):
    np.save(tmp_path / "x.npy", rows().astype(np.float16))
    read = read_statistics(tmp_path / "x.npy")
    equal(read, *moments(rows().astype(np.float16).astype(np.float64)))
    assert read.provenance["dtype"] == "float16"


def test_torch_fidelity_caches(tmp_path):
    """Written by torch-fidelity's own functions: mu in float32, sigma in float64."""
    metric = pytest.importorskip("torch_fidelity.metric_fid")
    features = torch.from_numpy(rows()).float()
    statistics = metric.fid_features_to_statistics(features)
    torch.save(statistics, tmp_path / "stat.pt")
    torch.save(features, tmp_path / "features.pt")
    torch.save({"2048": features}, tmp_path / "dict.pt")
    read = read_statistics(tmp_path / "stat.pt")
    equal(read, statistics["mu"], statistics["sigma"], tolerance=1e-7)
    assert read.form == "torch-fidelity statistics"
    for name in ("features.pt", "dict.pt"):
        assert torch.equal(read_statistics(tmp_path / name).features, features)
    other = metric.fid_features_to_statistics(torch.from_numpy(rows(seed=3)).float())
    expected = metric.fid_statistics_to_metric(statistics, other, False)["frechet_inception_distance"]
    torch.save(other, tmp_path / "other.pt")
    ours = frechet_distance(read.moments, read_statistics(tmp_path / "other.pt").moments)
    assert ours == pytest.approx(expected, rel=1e-6)  # it subtracts its means in float32, 6e-8 of each


# --- pickles that want to run code -------------------------------------------------------------------------------


class Hostile:
    """Pickled, this is a call of os.system."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["x.pkl", "x.pt"])
def test_a_pickle_that_runs_code_is_refused(tmp_path, name):
    content = {"num_images": 1, "fid": {"mu": Hostile(tmp_path / "ran"), "sigma": SIGMA}}
    if name == "x.pkl":
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / name)
    assert "is refused because it could run code" in error_of(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "call", [b"cbuiltins\neval\n(V1\ntR.", b"cnumpy\nload\n(Vx\ntR.", b"c_codecs\nencode\n(Vx\nVzip\ntR."]
)
def test_other_names_in_a_pickle_are_refused(tmp_path, call):
    (tmp_path / "x.pkl").write_bytes(call)
    assert "which is refused because it could run code" in error_of(tmp_path / "x.pkl")


def test_npz_with_pickled_objects_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", mu=np.array([Hostile(tmp_path / "ran")], dtype=object), sigma=SIGMA)
    assert "cannot be read by NumPy (mu: Object arrays cannot be loaded" in error_of(tmp_path / "x.npz")
    assert not (tmp_path / "ran").exists()


# --- damage and mistakes -----------------------------------------------------------------------------------------


def test_damaged_files_are_named(tmp_path):
    for name, words in [
        ("x.npz", "cannot be read by NumPy"),
        ("x.npy", "cannot be read by NumPy"),
        ("x.pkl", "cannot be read by pickle"),
        ("x.pt", "cannot be read by torch"),
    ]:
        (tmp_path / name).write_bytes(b"hello")
        assert words in error_of(tmp_path / name)
    good = pickle.dumps({"fid": {"mu": MU, "sigma": SIGMA}})
    (tmp_path / "short.pkl").write_bytes(good[: len(good) // 2])
    assert "cannot be read by pickle" in error_of(tmp_path / "short.pkl")
    np.savez(tmp_path / "cut.npz", mu=MU, sigma=SIGMA)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:-30])
    assert "cannot be read by NumPy" in error_of(tmp_path / "cut.npz")
    assert "no statistics file" in error_of(tmp_path / "nowhere.npz")
    (tmp_path / "x.txt").write_text("")
    assert "is no .npz, .npy, .pkl or .pt file" in error_of(tmp_path / "x.txt")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mu": MU}, r"has no sigma \(only mu\)"),
        ({"x": MU, "y": MU}, "has no mu and no sigma"),
        ({"mu": MU, "sigma": SIGMA[:, :3]}, r"has mu \(6,\) and sigma \(6, 3\); they must be \[d\] and \[d, d\]"),
        ({"mu": MU * np.nan, "sigma": SIGMA}, "holds NaN or infinity in mu or sigma"),
        ({"mu": MU.astype(complex), "sigma": SIGMA}, "complex128, not of real numbers"),
        ({"feats": np.full((3, 2), np.inf)}, "holds NaN or infinity in row 0"),
        ({"feats": np.zeros((1, 2))}, "holds 1 feature rows of d = 2; two rows are needed"),
        ({"feats": np.zeros((2, 3, 4))}, r"holds an array \(2, 3, 4\) of float64; features are \[n, d\]"),
        ({"mu": MU, "sigma": SIGMA, "provenance": np.array("{")}, "is no JSON"),
        ({"mu": MU, "sigma": SIGMA, "provenance": np.array("[1]")}, "is a list; it must be a JSON object"),
    ],
)
def test_npz_that_lacks_something(tmp_path, arrays, words):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        read_statistics(tmp_path / "x.npz")


def test_pickles_and_torch_files_of_other_things(tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps([1]))
    assert "holds a list; EDM2 statistics are a dict" in error_of(tmp_path / "x.pkl")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"num_images": 5}))
    assert "has no entry with mu and sigma (only num_images)" in error_of(tmp_path / "x.pkl")
    torch.save({"a": 1, "b": 2}, tmp_path / "x.pt")
    assert "holds a, b; a torch-fidelity cache is" in error_of(tmp_path / "x.pt")


def test_images_are_not_taken_for_statistics(tmp_path):
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((3, 8, 8), np.uint8))
    np.save(tmp_path / "images.npy", np.zeros((3, 8, 8), np.uint8))
    (tmp_path / "broken.npz").write_bytes(b"PK")
    for name in ("images.npz", "images.npy", "broken.npz", "nowhere.npz", "."):
        assert not holds_statistics(tmp_path / name)
