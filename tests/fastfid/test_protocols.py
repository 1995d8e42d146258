"""Protocols feed the networks exactly as the peers do: their own code, where it installs, is the oracle."""

import contextlib
import inspect
import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fastfid.features.inception
from fastfid import evaluate
from fastfid.features.extractor import MultiExtractor, outputs_of
from fastfid.features.inception import InceptionOutputs
from fastfid.features.inception_resizing import INCEPTION_INPUTS
from fastfid.features.preparation import IMAGENET_MEAN, IMAGENET_STD, pil_bicubic_float
from fastfid.features.registry import build_extractor, feature_extractor
from fastfid.features.vision_transformers import DINOV2_INPUTS, load_dinov2, resampled_positions
from fastfid.protocols import PROTOCOLS, protocol_named
from fastfid.runtime.hashes import file_sha256
from tests.support.random_inception import inception, random_weights  # noqa: F401, fixtures


def images(n=2, side=33, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=generator)


# --- the table ---------------------------------------------------------------------------------------------------


def test_names_and_inputs_exist():
    assert set(PROTOCOLS) == {
        "fastfid", "adm", "pytorch-fid", "clean", "torch-fidelity", "edm2", "dgm-dinov2", "torchmetrics", "cmmd",
    }  # fmt: skip
    for name, protocol in PROTOCOLS.items():
        assert protocol_named(name) is protocol and protocol.name == name
        assert protocol.inception in INCEPTION_INPUTS and protocol.dinov2 in DINOV2_INPUTS
        assert protocol.input_of("inception") == protocol.inception
        assert protocol.input_of("dinov2-b") == protocol.dinov2 and protocol.input_of("fashion-a") is None
    assert protocol_named(None).network == "fashion-a"
    with pytest.raises(ValueError, match="unknown protocol 'cleanfid'; choose one of fastfid, adm"):
        protocol_named("cleanfid")


# --- Inception ---------------------------------------------------------------------------------------------------


def test_tf1_is_torch_fidelity_bit_for_bit(inception, monkeypatch):  # noqa: F811
    """Built from the file, as a user does."""
    path, network = inception
    monkeypatch.setattr(fastfid.features.inception, "INCEPTION_SHA256", file_sha256(path)[:8])
    ours = build_extractor("inception", "tf1", path, spatial=True)
    found = ours.outputs(images())
    with torch.inference_mode():
        features, logits = network(images())
    assert torch.equal(found["features"], features) and torch.equal(found["logits"], logits)
    assert torch.equal(ours(images()), features) and features.std() > 0
    assert found["spatial"].shape == (2, 2023)
    plain = feature_extractor("inception", path)  # the same identity, so that saved statistics compare
    assert (plain.preprocessing, plain.weights_sha256) == (ours.preprocessing, ours.weights_sha256)


def test_spatial_features_are_the_first_branch_of_mixed_6(random_weights):  # noqa: F811
    path, network = random_weights
    seen = []
    hook = network.Mixed_6d.branch1x1.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.inference_mode():
        network(images())
    hook.remove()
    expected = seen[0][:, :7].permute(0, 2, 3, 1)  # TensorFlow keeps channels last
    found = build_extractor("inception", "tf1", path, spatial=True).outputs(images())["spatial"]
    assert torch.equal(found, expected.reshape(2, -1))
    assert "spatial" not in build_extractor("inception", "tf1", path).outputs(images())


def test_inputs_differ_and_say_so(random_weights):  # noqa: F811
    path, _ = random_weights
    made = {name: build_extractor("inception", name, path) for name in INCEPTION_INPUTS}
    assert len({extractor.preprocessing for extractor in made.values()}) == len(made)
    found = [extractor(images(1)) for extractor in made.values()]
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_bilinear_is_pytorch_fid():
    """As its InceptionV3.forward: interpolate on [0, 1], then 2x − 1."""
    x = images().float() / 255
    expected = 2 * nn.functional.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False) - 1
    assert torch.equal(INCEPTION_INPUTS["bilinear"][0](images()), expected)


@pytest.fixture
def pngs(tmp_path):
    """A folder of four PNG files, two of them grey, and our reading of them."""
    for i, picture in enumerate(images(4, 40)):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).convert("L" if i % 2 else "RGB").save(tmp_path / f"{i}.png")
    pixels = [torch.from_numpy(np.array(Image.open(f).convert("RGB"))) for f in sorted(tmp_path.glob("*.png"))]
    return tmp_path, torch.stack(pixels).permute(0, 3, 1, 2)


def test_pytorch_fid_itself_from_its_files_on(inception, random_weights, pngs, monkeypatch):  # noqa: F811
    """Its loader, its own Inception with the same weights, its activations: bit for bit."""
    peer = pytest.importorskip("pytorch_fid.inception")
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    monkeypatch.setattr(peer, "load_state_dict_from_url", lambda *_, **__: inception[1].state_dict())
    files = sorted(pngs[0].glob("*.png"))
    expected = fid_score.get_activations(files, peer.InceptionV3([3]), batch_size=4, num_workers=0)
    found = build_extractor("inception", "bilinear", inception[0])(pngs[1])
    np.testing.assert_array_equal(found.numpy(), expected)


class Layers(nn.Module):
    """In place of the layers of NVIDIA's TorchScript Inception, which has no other weights: the same network's."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        for stage in fastfid.features.inception.INCEPTION_STAGES:
            x = getattr(self.network, stage)(x)
        return x


def test_clean_fid_itself_from_its_files_on(random_weights, pngs):  # noqa: F811
    """Its folder reader, its resizing, its wrapper of Inception: bit for bit."""
    peer = pytest.importorskip("cleanfid.fid")
    wrapper = pytest.importorskip("cleanfid.inception_torchscript").InceptionV3W
    model = wrapper.__new__(wrapper)
    nn.Module.__init__(model)
    model.layers, model.resize_inside = Layers(random_weights[1]), False
    device = torch.device("cpu")
    expected = peer.get_folder_features(str(pngs[0]), model, num_workers=0, batch_size=4, device=device, verbose=False)
    found = build_extractor("inception", "clean", random_weights[0])(pngs[1])
    np.testing.assert_array_equal(found.numpy(), expected)


def test_clean_is_pil_per_channel():
    """Channel by channel in float, clipped, not rounded; an independent loop."""
    x = images(1, 17)
    found = pil_bicubic_float(x, 299)
    for c in range(3):
        plane = Image.fromarray(x[0, c].numpy().astype(np.float32))
        expected = np.asarray(plane.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255)
        np.testing.assert_array_equal(found[0, c].numpy(), expected)
    assert (found % 1 != 0).any() and found.min() == 0 and found.max() == 255  # not rounded; clipped at both ends
    assert torch.equal(INCEPTION_INPUTS["clean"][0](x), (found - 128) / 128)


def test_clean_is_clean_fid_itself():
    resize = pytest.importorskip("cleanfid.resize")
    x = images(1, 40)
    expected = resize.build_resizer("clean")(x[0].permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(pil_bicubic_float(x, 299)[0].permute(1, 2, 0).numpy(), expected)


@pytest.fixture
def torchmetrics_network(inception):  # noqa: F811
    """Built before `random_weights` puts a stand-in where this finds its base class."""
    peer = pytest.importorskip("torchmetrics.image.fid")
    return peer.NoTrainInceptionV3("inception", ["2048"], str(inception[0]))


def test_antialiased_is_torchmetrics_itself(torchmetrics_network, random_weights):  # noqa: F811
    path, network = random_weights[0], torchmetrics_network
    with torch.inference_mode():
        expected = network(images(2, 400))
    assert torch.equal(build_extractor("inception", "antialiased", path)(images(2, 400)), expected)


def test_inception_score_logits_have_no_bias(random_weights):  # noqa: F811
    _, network = random_weights
    assert network.fc.bias.abs().max() > 0
    outputs = InceptionOutputs(network)(torch.zeros(1, 3, 299, 299))
    assert torch.equal(outputs["logits"], outputs["features"] @ network.fc.weight.T)


# --- defaults of the metrics -------------------------------------------------------------------------------------


def default(function, name):
    """What a peer's own signature says."""
    return inspect.signature(function).parameters[name].default


def test_metric_defaults_are_the_peers():
    fidelity = pytest.importorskip("torch_fidelity.defaults").DEFAULTS
    ours = PROTOCOLS["torch-fidelity"]
    assert (ours.kid_subsets, ours.kid_subset_size) == (fidelity["kid_subsets"], fidelity["kid_subset_size"])
    assert (ours.kid_seed, ours.nearest_k) == (fidelity["rng_seed"], fidelity["prc_neighborhood"])
    assert (ours.is_splits, ours.is_shuffle) == (fidelity["isc_splits"], fidelity["samples_shuffle"])
    assert not ours.kid_caps and ours.inclusive
    kid = pytest.importorskip("torchmetrics.image.kid").KernelInceptionDistance
    score = pytest.importorskip("torchmetrics.image.inception").InceptionScore
    ours = PROTOCOLS["torchmetrics"]
    assert (ours.kid_subsets, ours.kid_subset_size) == (default(kid, "subsets"), default(kid, "subset_size"))
    assert ours.is_splits == default(score, "splits") and not ours.kid_caps
    clean = pytest.importorskip("cleanfid.fid").kernel_distance
    ours = PROTOCOLS["clean"]
    assert (ours.kid_subsets, ours.kid_subset_size) == (
        default(clean, "num_subsets"),
        default(clean, "max_subset_size"),
    )
    assert ours.kid_caps


SAMPLES, REFERENCE = (np.random.default_rng(i).normal(i / 4, 1 + i / 8, (300, 24)).astype(np.float32) for i in (0, 1))
# The peers take means or kernels in float32: ε = 1.2e-7 of terms some ten times their difference.
FLOAT32 = 1e-5


def scores(protocol, **settings):
    """fastfid's numbers of the same features under a protocol, by metric."""
    result = evaluate(torch.from_numpy(SAMPLES), torch.from_numpy(REFERENCE), protocol=protocol, **settings)
    return {score.metric: score.value for score in result.scores}


def test_pytorch_fid_prints_the_same_number():
    distance = pytest.importorskip("pytorch_fid.fid_score").calculate_frechet_distance
    sides = [(x.mean(axis=0), np.cov(x, rowvar=False)) for x in (SAMPLES.astype(float), REFERENCE.astype(float))]
    assert scores("pytorch-fid")["fd"] == pytest.approx(distance(*sides[0], *sides[1]), rel=1e-9)


def test_clean_fid_prints_the_same_numbers():
    """Fewer than 1,000 images: its subsets are the whole sets, so that drawing them without a seed changes nothing."""
    peer = pytest.importorskip("cleanfid.fid")
    found = scores("clean")
    assert found["fd"] == pytest.approx(peer.fid_from_feats(SAMPLES, REFERENCE), rel=FLOAT32)
    assert found["kid"] == pytest.approx(peer.kernel_distance(SAMPLES, REFERENCE, num_subsets=2), rel=FLOAT32)


class Given(nn.Module):
    """The features themselves, as torchmetrics' custom network."""

    num_features = 24

    def forward(self, x):
        return x


def test_torchmetrics_prints_the_same_numbers():
    """Subsets of all rows, so that its unseeded permutations change nothing."""
    fid = pytest.importorskip("torchmetrics.image.fid").FrechetInceptionDistance(feature=Given())
    kid = pytest.importorskip("torchmetrics.image.kid").KernelInceptionDistance(feature=Given(), subset_size=300)
    for metric in (fid, kid):
        metric.update(torch.from_numpy(REFERENCE), real=True)
        metric.update(torch.from_numpy(SAMPLES), real=False)
    found = scores("torchmetrics", kid_subset_size=300)
    assert found["fd"] == pytest.approx(fid.compute().item(), rel=FLOAT32)
    assert found["kid"] == pytest.approx(kid.compute()[0].item(), rel=FLOAT32)
    assert "kid" not in scores("torchmetrics")  # it raises where a subset of 1,000 cannot be drawn


def test_prdc_prints_the_same_numbers():
    compute_prdc = pytest.importorskip("prdc").compute_prdc
    with contextlib.redirect_stdout(io.StringIO()):
        expected = compute_prdc(REFERENCE, SAMPLES, nearest_k=5)
    found = scores("dgm-dinov2")
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-12)  # counts, divided in two ways


# --- fashion networks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fashion-a", "fashion-b"])
def test_fashion_has_logits_and_the_same_identity(name):
    grey = images(5, 28, 1)
    ours, plain = build_extractor(name), feature_extractor(name)
    found = ours.outputs(grey)
    assert torch.equal(found["features"], plain(grey)) and found["logits"].shape == (5, 10)
    assert isinstance(ours, MultiExtractor) and ours.weights_sha256 == plain.weights_sha256
    assert outputs_of(plain, grey).keys() == {"features"}


# --- DINOv2 ------------------------------------------------------------------------------------------------------


def test_dinov2_inputs():
    x = images(1, 50)
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    pil = Image.fromarray(x[0].permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)
    expected = (torch.from_numpy(np.asarray(pil).copy()).permute(2, 0, 1).float() / 255 - mean) / std
    torch.testing.assert_close(DINOV2_INPUTS["pil"][0](x)[0], expected, rtol=0, atol=0)
    in_float = nn.functional.interpolate(x.float(), (224, 224), mode="bicubic", antialias=True)[0]
    torch.testing.assert_close(DINOV2_INPUTS["torch"][0](x)[0], (in_float / 255 - mean) / std, rtol=0, atol=0)
    assert (in_float % 1 != 0).any() and (in_float < 0).any()  # neither rounded nor clipped


def test_dinov2_pil_is_torchvision():
    """dgm-eval's transform: Resize((224, 224), BICUBIC), ToTensor, Normalize."""
    transforms = pytest.importorskip("torchvision.transforms")
    x = images(1, 300)
    chain = transforms.Compose([
        transforms.Resize((224, 224), transforms.InterpolationMode.BICUBIC),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ])  # fmt: skip
    expected = chain(Image.fromarray(x[0].permute(1, 2, 0).numpy()))
    assert torch.equal(DINOV2_INPUTS["pil"][0](x)[0], expected)


def cubic_row(at, size):
    """Weights [size] of cubic convolution (a = −0.75, edges repeated) at coordinate `at`, from Keys' formula."""
    weights, base = np.zeros(size), int(np.floor(at))
    for k in range(base - 1, base + 3):
        t, a = abs(at - k), -0.75
        w = (a + 2) * t**3 - (a + 3) * t**2 + 1 if t <= 1 else a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
        weights[min(max(k, 0), size - 1)] += w
    return weights


def test_positions_are_resampled_by_dinov2s_rule():
    """Cubic convolution at the rule's coordinates (i + ½)·37/16.1 − ½, not at those of 16 in 37."""
    grid = np.random.default_rng(0).normal(size=(37, 37, 3))
    positions = torch.cat([torch.full((1, 1, 3), 9.0), torch.from_numpy(grid).float().reshape(1, -1, 3)], dim=1)
    found = resampled_positions(positions, 256)
    assert torch.equal(found[0, 0], torch.full((3,), 9.0)) and found.shape == (1, 257, 3)
    rows = np.stack([cubic_row((i + 0.5) * 37 / 16.1 - 0.5, 37) for i in range(16)])
    expected = np.einsum("ai,bj,ijc->abc", rows, rows, grid)
    np.testing.assert_allclose(found[0, 1:].reshape(16, 16, 3).numpy(), expected, atol=2e-5)  # coordinates in float32
    same = torch.rand(1, 257, 3)
    assert resampled_positions(same, 256) is same


def test_dinov2_is_timms_network_bit_for_bit(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, img_size=224).eval()
    torch.save(model.state_dict() | {"mask_token": torch.zeros(1, 384)}, tmp_path / "w.pth")
    ours = build_extractor("dinov2-s", "pil", tmp_path / "w.pth")
    with torch.inference_mode():
        expected = model(DINOV2_INPUTS["pil"][0](images(2, 64)))
    assert torch.equal(ours(images(2, 64)), expected) and ours.dim == 384
    assert ours.name == "dinov2-s" and ours.weights_sha256 == file_sha256(tmp_path / "w.pth")
    large = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, img_size=518)
    load_dinov2(model, _saved(large, tmp_path / "large.pth"))  # the published side: positions are resampled
    assert torch.equal(model.pos_embed, resampled_positions(large.pos_embed.data, 256))
    with pytest.raises(ValueError, match="does not hold these DINOv2 weights"):
        load_dinov2(model, _saved(nn.Linear(2, 2), tmp_path / "wrong.pth"))


def _saved(module, path):
    torch.save(module.state_dict(), path)
    return path


# --- errors ------------------------------------------------------------------------------------------------------


def test_missing_packages_name_the_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"dinov2 is built by timm: pip install 'fastfid\[dinov2\]'"):
        build_extractor("dinov2", "pil", tmp_path / "w.pth")
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ImportError, match=r"pip install 'fastfid\[inception\]'"):
        build_extractor("inception")


def test_bad_names_and_files(monkeypatch, tmp_path):
    for call, message in [
        (lambda: build_extractor("vgg"), "unknown feature network 'vgg'; choose one of fashion-a"),
        (lambda: build_extractor("inception", "nearest"), "unknown input 'nearest' of inception; choose one of tf1"),
        (lambda: build_extractor("dinov2", "nearest"), "unknown input 'nearest' of dinov2; choose one of pil"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    monkeypatch.setitem(sys.modules, "timm", type(sys)("timm"))
    with pytest.raises(FileNotFoundError, match="dinov2 needs its weights from a file"):
        build_extractor("dinov2")
    with pytest.raises(FileNotFoundError, match="no weights file at"):
        load_dinov2(nn.Linear(2, 2), tmp_path / "none.pth")
    (tmp_path / "bad.safetensors").write_bytes(b"hello")
    with pytest.raises(ValueError, match="cannot be read by torch"):
        load_dinov2(nn.Linear(2, 2), tmp_path / "bad.safetensors")
