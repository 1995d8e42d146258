"""Statistics files written by the peers' own code, read by ours, and ours read by theirs; pickles that try tricks."""

import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastfid import frechet_distance
from fastfid.statistics.peer_files import holds_statistics
from fastfid.statistics.statistics import Statistics, read_statistics

D = 6  # features of the stand-in networks


class Projection(nn.Module):
    """uint8-valued images [n, 3, 8, 8] of any float scale → [n, D]: a fixed random projection."""

    num_features = D

    def __init__(self, scale: float = 1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(3 * 8 * 8, D, generator=generator) * scale

    def forward(self, x):
        return x.float().flatten(1) @ self.weight


@pytest.fixture
def folders(tmp_path):
    """Two folders of twelve PNG files and their pixels, uint8 [12, 3, 8, 8]."""
    rng, found = np.random.default_rng(0), []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pixels = rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
        for i, picture in enumerate(pixels):
            Image.fromarray(picture).save(tmp_path / name / f"{i:02d}.png")
        found.append((tmp_path / name, torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    return found


def assert_moments(statistics, features, tolerance=1e-12):
    """Mean and covariance of features [n, D] by NumPy in float64; float32 means of the peers need 1e-6."""
    x = np.asarray(features, dtype=np.float64)
    cov = np.cov(x, rowvar=False)
    np.testing.assert_allclose(statistics.moments.mean, x.mean(axis=0), rtol=0, atol=tolerance * np.abs(x).max())
    np.testing.assert_allclose(statistics.moments.cov, cov, rtol=0, atol=tolerance * np.abs(cov).max())
    assert statistics.moments.mean.dtype == statistics.moments.cov.dtype == torch.float64


# --- pytorch-fid -------------------------------------------------------------------------------------------------


@pytest.fixture
def pytorch_fid(monkeypatch):
    """Its command's module around a small network that takes its floats of 0…1."""
    module = pytest.importorskip("pytorch_fid.fid_score")

    class Network(Projection):
        BLOCK_INDEX_BY_DIM = {D: 0}

        def __init__(self, blocks):
            super().__init__()

        def forward(self, x):
            return [super().forward(x * 255)[:, :, None, None]]

    monkeypatch.setattr(module, "InceptionV3", Network)
    return module


def test_pytorch_fids_save_stats(pytorch_fid, folders, tmp_path):
    (path, pixels), out = folders[0], tmp_path / "stats.npz"
    pytorch_fid.save_fid_stats([str(path), str(out)], 5, "cpu", D, num_workers=0)
    read = read_statistics(out)
    assert_moments(read, Projection()(pixels), tolerance=1e-5)  # x/255·255 in float32 before 192 products
    assert holds_statistics(out) and read.count is None and read.form.startswith("mu, sigma (pytorch-fid")


def test_pytorch_fid_prints_our_distance_from_our_files(pytorch_fid, folders, tmp_path):
    """Its calculate_fid_given_paths on two files that fastfid wrote, features and all."""
    sides = [Statistics.from_features(Projection()(pixels), {"extractor": "x"}) for _, pixels in folders]
    paths = [str(tmp_path / f"{i}.npz") for i in range(2)]
    for side, path in zip(sides, paths, strict=True):
        side.save(path)
    theirs = pytorch_fid.calculate_fid_given_paths(paths, 5, "cpu", D, num_workers=0)
    assert frechet_distance(sides[0].moments, sides[1].moments) == pytest.approx(theirs, rel=1e-9)


# --- clean-fid ---------------------------------------------------------------------------------------------------


def test_clean_fids_custom_statistics(folders, tmp_path, monkeypatch):
    """Both files of its make_custom_stats: mu, sigma for FID, feats for KID."""
    cleanfid = pytest.importorskip("cleanfid")
    fid = pytest.importorskip("cleanfid.fid")
    monkeypatch.setattr(cleanfid, "__file__", str(tmp_path / "__init__.py"))  # it writes beside its own code
    network = Projection()
    monkeypatch.setattr(fid, "build_feature_extractor", lambda *_, **__: lambda x: network(x[:, :, ::38, ::38] * 1.0))
    fid.make_custom_stats("ours", str(folders[0][0]), num_workers=0, device=torch.device("cpu"), verbose=False)
    moments, features = sorted((tmp_path / "stats").glob("*.npz"), key=lambda path: "_kid" in path.name)
    expected = fid.get_folder_features(
        str(folders[0][0]), lambda x: network(x[:, :, ::38, ::38] * 1.0), num_workers=0, device=torch.device("cpu"),
        verbose=False,
    )  # fmt: skip
    read = read_statistics(features)
    assert read.form == "clean-fid" and read.count == 12 and torch.equal(read.features, torch.from_numpy(expected))
    assert_moments(read, expected)
    assert_moments(read_statistics(moments), expected, tolerance=1e-6)  # its mean is taken in float32


# --- torch-fidelity ----------------------------------------------------------------------------------------------


def test_torch_fidelitys_own_cache(folders, tmp_path):
    """Every file its cache keeps of two folders; our distance of its files is the one it prints."""
    torch_fidelity = pytest.importorskip("torch_fidelity")
    base = pytest.importorskip("torch_fidelity.feature_extractor_base").FeatureExtractorBase
    registry = pytest.importorskip("torch_fidelity.registry")

    class Extractor(base):
        def __init__(self, name, features_list, **_):
            super().__init__(name, features_list)
            self.network = Projection()

        def forward(self, x):
            return (self.network(x),)

        @staticmethod
        def get_provided_features_list():
            return ("pool",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "pool"

        @staticmethod
        def can_be_compiled():
            return False

    registry.FEATURE_EXTRACTORS_REGISTRY["tests-projection"] = Extractor
    try:
        printed = torch_fidelity.calculate_metrics(
            input1=str(folders[0][0]), input2=str(folders[1][0]), feature_extractor="tests-projection", fid=True,
            cuda=False, save_cpu_ram=True, verbose=False, cache_root=str(tmp_path / "cache"),
            input1_cache_name="a", input2_cache_name="b",
        )["frechet_inception_distance"]  # fmt: skip
    finally:
        del registry.FEATURE_EXTRACTORS_REGISTRY["tests-projection"]
    files = {kind: [next((tmp_path / "cache").glob(f"{x}-*{kind}*")) for x in "ab"] for kind in ("stat", "features")}
    for (_, pixels), path in zip(folders, files["features"], strict=True):
        read = read_statistics(path)
        assert read.form == "torch-fidelity features" and torch.equal(read.features, Projection()(pixels))
    statistics = [read_statistics(path) for path in files["stat"]]
    for (_, pixels), read in zip(folders, statistics, strict=True):
        assert_moments(read, Projection()(pixels), tolerance=1e-6)  # its mean is taken in float32
        assert read.form == "torch-fidelity statistics"
    # Its difference of means is taken in float32: ε = 1.2e-7 of means some ten times as large.
    assert frechet_distance(*(read.moments for read in statistics)) == pytest.approx(printed, rel=1e-5)


# --- formats whose writers are in no package, as their sources write them ---------------------------------------------


def test_dgm_evals_representations(tmp_path):
    """np.savez with its options beside the features: a pickled dict, which is not opened."""
    features = np.random.default_rng(0).normal(size=(9, D)).astype(np.float32)
    hparams = np.array({"nsample": 9, "device": "cuda"}, dtype=object)
    np.savez(tmp_path / "r.npz", model=np.array("dinov2"), reps=features, hparams=hparams)
    read = read_statistics(tmp_path / "r.npz")
    assert_moments(read, features)
    assert read.provenance["extractor"] == "dinov2" and read.form == "dgm-eval"


def test_fd_losss_further_moments_are_left_aside(tmp_path):
    x = np.random.default_rng(0).normal(size=(9, D))
    mu, sigma = x.mean(axis=0), np.cov(x, rowvar=False)
    np.savez(tmp_path / "s.npz", mu=mu, sigma=sigma, avg_mu=mu + 1, avg_sigma=2 * sigma)
    assert_moments(read_statistics(tmp_path / "s.npz"), x)


# --- pickles that try tricks -------------------------------------------------------------------------------------


class Call:
    """Pickled, this is a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (Call(exec, "raise SystemExit"), "exec"),
        (Call(__import__, "antigravity"), "__import__"),
        (Call(getattr, "x", "join"), "getattr"),
        (Call(np.load, "x.npy"), "numpy"),
        (Call(np.fromfile, "/etc/passwd"), "numpy"),
        (Call(open, "/etc/passwd"), "open"),
        (torch.nn.Linear(1, 1), ""),
    ],
    ids=["exec", "import", "getattr", "np.load", "np.fromfile", "open", "module"],
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_calls_in_an_edm2_pickle_are_refused(tmp_path, content, words, protocol):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"fid": {"mu": content, "sigma": np.eye(2)}}, protocol=protocol))
    before = set(sys.modules)
    with pytest.raises(ValueError, match="which is refused because it could run code") as raised:
        read_statistics(path)
    assert words in str(raised.value) and "antigravity" not in set(sys.modules) - before


class Stated:
    """Pickled, this is an array, or a type, with a state of our own making."""

    def __init__(self, function, arguments, state):
        self.call = function, arguments, state

    def __reduce__(self):
        return self.call


def array_with(kind, raw, shape=(1,)):
    reconstruct = np._core.multiarray._reconstruct if hasattr(np, "_core") else np.core.multiarray._reconstruct
    return Stated(reconstruct, (np.ndarray, (0,), b"b"), (1, shape, kind, False, raw))


# A type whose fields are objects while its flags deny it: NumPy's own dtype takes this state.
HIDDEN_OBJECTS = Stated(np.dtype, ("V8",), (3, "|", None, ("x",), {"x": (np.dtype("O"), 0)}, 8, 1, 0))
FIELDS = Stated(np.dtype, ("f8",), (3, "<", None, ("x",), {"x": (np.dtype("f8"), 0)}, 8, 1, 0))


@pytest.mark.parametrize("suffix", [".pkl", ".pt"])
@pytest.mark.parametrize(
    "trick",
    [
        Call(np.ndarray, (1,), np.dtype("O"), b"12345678"),  # eight bytes taken for the address of an object
        Call(np.ndarray, (10**6,), np.dtype("f8"), b"12345678"),
        array_with(np.dtype("O"), b"12345678"),
        array_with(HIDDEN_OBJECTS, b"12345678"),
        array_with(FIELDS, b"12345678"),
        array_with(np.dtype("f8"), b"12345678", shape=(10**6,)),  # more than its bytes hold
        np.array([1.0, "x"], dtype=object),
    ],
    ids=["ndarray of objects", "ndarray", "objects", "hidden objects", "fields", "shape", "list of objects"],
)
def test_arrays_that_are_more_than_their_numbers_are_not_built(tmp_path, trick, suffix):
    path, content = tmp_path / f"x{suffix}", {"mu": trick, "sigma": np.eye(2)}
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps({"fid": content}))
    else:
        torch.save(content, path)
    words = "cannot be read by (pickle|torch)|refused because it could run code"
    with pytest.raises(ValueError, match=words) as raised:
        read_statistics(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["<f8", ">f8", "<f4", "<f2", "<i8"])
def test_arrays_of_numbers_are_numpys_own(tmp_path, protocol, kind):
    """Every order, byte order and width that a peer may write, and a scalar."""
    rng = np.random.default_rng(0)
    mu, sigma = (rng.normal(size=shape).astype(kind) for shape in ((4,), (4, 4)))
    for i, layout in enumerate((sigma, np.asfortranarray(sigma), sigma[::-1, ::-1])):
        path = tmp_path / f"{i}.pkl"
        content = {"num_images": np.int64(7), "fid": {"mu": mu, "sigma": layout}}
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        read = read_statistics(path)
        np.testing.assert_array_equal(read.moments.mean, mu.astype(float))
        np.testing.assert_array_equal(read.moments.cov, layout.astype(float))
        assert read.count == 7


def test_an_array_larger_than_memory_is_one_sentence(tmp_path):
    """A header that claims 8 EB, in an npy and in an npz."""
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 1000000000), }".ljust(117) + "\n"
    npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    (tmp_path / "x.npy").write_bytes(npy + b"\0" * 64)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("mu.npy", npy)
        archive.writestr("sigma.npy", npy)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(ValueError, match="cannot be read by NumPy") as raised:
            read_statistics(tmp_path / name)
        assert "\n" not in str(raised.value)
