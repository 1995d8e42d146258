"""What a run loads before any work: feature networks by name and file, statistics of that network alone."""

import io
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import fastfid
from fastfid import FeatureMoments, feature_extractor
from fastfid.runtime.hashes import file_sha256
from sit_rl import train
from sit_rl.components.build import build_components
from sit_rl.components.checks import check_classes
from sit_rl.components.image_sets import FASHION_SIT
from sit_rl.components.networks import load_networks
from sit_rl.components.real_side import extract_real, validate_real
from sit_rl.models.loading import save_model
from sit_rl.models.sit import SiT, SiTConfig
from sit_rl.presets import PRESETS
from sit_rl.runs.forecast import judged_against
from sit_rl.runs.summary import count_in_words
from sit_rl.training.held_out import floor
from tests.support.random_inception import inception, random_weights  # noqa: F401, fixtures

CPU = torch.device("cpu")


def test_inception_from_a_file(random_weights):  # noqa: F811
    """--weights as `fastfid eval` takes it: a file in torch-fidelity's own format, of random numbers."""
    path = str(random_weights[0])
    config = PRESETS["sit-xl-imagenet256"][1].changed(weights=(path,))
    nets = load_networks(config.files, (), CPU)
    assert (nets.reward.name, nets.reward.dim, nets.judges, nets.more) == ("inception", 2048, (), ())
    assert nets.reward.weights_sha256 == file_sha256(path)
    named = config.changed(weights=(f"inception={path}",), judge_features=("fashion-b",))
    nets = load_networks(named.files, ("inception", "fashion-a"), CPU)
    assert [n.name for n in (nets.reward, *nets.more, *nets.judges)] == ["inception", "fashion-a", "fashion-b"]


@pytest.fixture
def train_error(capsys, tmp_path, monkeypatch):
    """The error that a smoke run with these flags ends with, before anything is sampled."""

    def run(*flags):
        monkeypatch.setattr(train, "evaluate_both", None)
        monkeypatch.setattr(train, "describe_run", None)
        with pytest.raises(SystemExit, match="2"):
            train.main(["--preset", "smoke", "--threads", "1", "--out", str(tmp_path / "run"), *map(str, flags)])
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ")
        return error

    return run


def test_a_network_that_is_not_there_is_one_sentence(train_error, random_weights, monkeypatch):  # noqa: F811
    path = random_weights[0]
    assert "--weights no.pth does not exist" in train_error("--weights", "fashion-a=no.pth")
    assert f"write NAME={path}" in train_error("--weights", path)
    assert "--weights names inception, which is not" in train_error("--weights", f"inception={path}")
    assert "unknown feature network 'fid'" in train_error("--reward-features", "fid")
    monkeypatch.setattr(
        fastfid.features.inception,
        "load_inception",
        lambda *_: (_ for _ in ()).throw(ImportError("pip install it")),
    )
    assert "pip install it" in train_error("--reward-features", "inception", "--judge-features", "none")


def test_statistics_of_another_network_are_refused(train_error, tmp_path):
    def saved(name, dim, **provenance):
        FeatureMoments(300, torch.zeros(dim), torch.eye(dim), provenance).save(tmp_path / name)
        return "--real", tmp_path / name, "--heldout", tmp_path / name, "--judge-features", "none"

    assert "has d = 2048 features" in train_error(*saved("wide.npz", 2048))
    assert "weights sha256 of" in train_error(*saved("other.npz", 128, extractor="fashion-a", weights_sha256="0" * 64))
    judged = saved("two.npz", 128)[:4]
    assert "the network fashion-b has d = 96" in train_error(*judged)
    own = saved("own.npz", 128, **feature_extractor("fashion-a").identity.provenance())
    side = extract_real(own[1], feature_extractor("fashion-a"), "real", progress=False)
    assert side.moments.count == 300 and side.features is None


MU, SIGMA = np.zeros(128), np.eye(128)
STATISTICS = {
    "big-endian.npz": lambda path: np.savez(path, mu=MU.astype(">f8"), sigma=SIGMA.astype(">f4")),
    "long.npz": lambda path: np.savez(path, mu=MU.astype(np.longdouble), sigma=SIGMA.astype(np.longdouble)),
    "half.npz": lambda path: np.savez(path, mu=MU.astype("f2"), sigma=SIGMA.astype("f2")),
    "capital.NPZ": lambda path: path.write_bytes(written(mu=MU, sigma=SIGMA)),
    "torch.pt": lambda path: torch.save({"mu": torch.from_numpy(MU), "sigma": torch.from_numpy(SIGMA)}, path),
    "edm2.pkl": lambda path: path.write_bytes(
        pickle.dumps({"fashion-a": {"mu": MU, "sigma": SIGMA}, "x": {"mu": MU, "sigma": 2 * SIGMA}})
    ),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_the_trainer_reads_the_statistics_that_fastfid_reads(tmp_path, name):
    STATISTICS[name](tmp_path / name)
    net = feature_extractor("fashion-a")
    validate_real(tmp_path / name, [net])
    side = extract_real(tmp_path / name, net, "real", progress=False)
    assert torch.equal(side.moments.cov, torch.eye(128, dtype=torch.float64)) and side.features is None


def test_files_beside_the_real_images_are_told(tmp_path, capsys):
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / name)
    (tmp_path / "c.svg").write_text("<svg/>")
    validate_real(tmp_path, [])
    assert f"note: passed over 1 in {tmp_path}" in capsys.readouterr().out


def test_features_in_a_file_give_their_moments(tmp_path):
    features = np.random.default_rng(0).normal(size=(300, 128)).astype(np.float32)
    np.save(tmp_path / "x.npy", features)
    side = extract_real(tmp_path / "x.npy", feature_extractor("fashion-a"), "real", progress=False)
    assert side.moments.count == 300 and side.features is None
    assert torch.equal(side.moments.cov, FeatureMoments.from_features(torch.from_numpy(features)).cov)


def flipped(path):
    np.savez(path, mu=MU, sigma=SIGMA)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)


DAMAGED = {
    "flipped.npz": flipped,
    "cut.npz": lambda path: path.write_bytes(written(mu=MU, sigma=SIGMA)[:5000]),
    "text.npz": lambda path: path.write_text("mu sigma"),
    "words.npz": lambda path: np.savez(path, mu=MU.astype(str), sigma=SIGMA),
    "counts.npz": lambda path: np.savez(path, mu=MU, sigma=SIGMA, count=[1, 2]),
    "negative.npz": lambda path: np.savez(path, mu=MU, sigma=SIGMA, count=-5),
    "nothing.npz": lambda path: np.savez(path, mu=MU[:0], sigma=SIGMA[:0, :0]),
    "objects.npz": lambda path: np.savez(path, mu=np.array([{}] * 128), sigma=SIGMA),
    "pipe.npz": os.mkfifo,
    "text.pt": lambda path: path.write_text("mu sigma"),
    "empty.pkl": lambda path: path.write_bytes(b""),
    "header.npy": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x02\x00(\n"),
}


def written(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("flag", ["--real", "--heldout"])
def test_damaged_statistics_are_one_sentence_with_the_flag_and_the_file(train_error, tmp_path, flag, name):
    DAMAGED[name](tmp_path / name)
    assert train_error(flag, tmp_path / name).startswith(f"error: {flag} {tmp_path / name} ")


def test_classes_of_one_image_a_step_are_refused(train_error):
    """Their advantages within a class are all 0: the run would learn nothing and not say so."""
    told = train_error("--candidates", "1")
    assert "--normalise class" in told and "a step's 10 images have fewer than 2 of each of the 10 classes" in told
    config = PRESETS["smoke"][1].changed(candidates=1)
    for other in (config.changed(normalise="batch"), config.changed(candidates=2)):
        check_classes(other, SiT(FASHION_SIT))


def test_a_count_that_nobody_told_is_not_printed_as_a_number():
    assert count_in_words(None, "held-out") == "held-out statistics of an unknown count"
    assert count_in_words(7, "real") == "7 real"


def test_without_other_images_the_rewards_own_judge_and_it_is_said(tmp_path):
    """The paper's way, of a model that the embedded images are not for; no floor is made of one side alone."""
    shape = SiTConfig(image_size=8, patch_size=4, channels=3, width=32, depth=1, heads=2, num_classes=5)
    save_model(SiT(shape), tmp_path / "colour.safetensors")
    FeatureMoments(300, torch.zeros(128), torch.eye(128)).save(tmp_path / "real.npz")
    config = PRESETS["smoke"][1].changed(checkpoint=tmp_path / "colour.safetensors", judge_features=("none",))
    config = config.changed(real=tmp_path / "real.npz")
    components = build_components(config, CPU, progress=False)
    assert components.heldout is components.real and floor(components) == {"fd": None, "fd_b": None}
    assert "the reward's own real side" in judged_against(components, 7)
    other = build_components(config.changed(heldout=tmp_path / "real.npz"), CPU, progress=False)
    assert other.heldout is not other.real and judged_against(other, 7) == "7 images against 300 held-out"
    assert floor(other)["fd"] < 1e-6  # the same moments twice


@pytest.mark.parametrize(("precision", "tf32"), [("float32", False), ("bf16", True)])
def test_the_autoencoder_has_the_runs_precision(monkeypatch, tmp_path, precision, tf32):
    asked = {}

    def load(folder, device, **options):
        asked.update(options)
        raise ValueError("asked")

    monkeypatch.setattr("sit_rl.components.build.load_decoder", load)
    with pytest.raises(ValueError, match="asked"):
        build_components(PRESETS["smoke"][1].changed(vae=tmp_path, precision=precision), torch.device("cpu"))
    assert asked == {"tf32": tf32}
