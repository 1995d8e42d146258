"""Extractors: shapes, preprocessing, provenance, and the sentence that each missing piece gives."""

import hashlib
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3

import fastfid.features.fashion
import fastfid.features.inception
from fastfid import FeatureExtractor, feature_extractor
from fastfid.features.fashion import FashionNet, build_fashion_net, load_fashion_net, prepare_fashion_images
from fastfid.features.names import FASHION_NETS
from fastfid.runtime.hashes import state_sha256


def images(n, channels=1, size=28, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), generator=generator, dtype=torch.uint8)


@pytest.fixture(params=list(FASHION_NETS))
def name(request):
    return request.param


@pytest.fixture
def weights(name, tmp_path):
    """A file of untrained weights: what is tested here does not depend on training."""
    torch.manual_seed(0)
    path = tmp_path / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in build_fashion_net(name).state_dict().items()}, path)
    return path


# --- Fashion networks --------------------------------------------------------------------------------------------


def test_network_shapes(name):
    net = build_fashion_net(name, num_classes=7).eval()
    x = torch.rand(3, 1, 28, 28) * 2 - 1
    features = net.features(x)
    assert features.shape == (3, FASHION_NETS[name].feature_dim)
    if FASHION_NETS[name].teacher is None:
        assert net(x).shape == (3, 7) and torch.equal(net(x), net.head(features))
    else:
        assert torch.equal(net(x), features)
    assert FashionNet().features(x).shape == (3, 128)


def test_the_embedded_networks_load_and_are_frozen(name):
    net = load_fashion_net(name)
    assert not net.training and not any(parameter.requires_grad for parameter in net.parameters())
    extractor = feature_extractor(name)
    path = fastfid.features.fashion.ASSETS / f"{name}.safetensors"
    assert extractor.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    features = extractor(images(4))
    assert features.shape == (4, extractor.dim) and features.dtype == torch.float32 and not features.requires_grad
    assert name in repr(extractor)


def test_features_are_the_penultimate_activations_of_prepared_images(name, weights):
    extractor, net = feature_extractor(name, weights), load_fashion_net(name, weights)
    x = images(5)
    assert torch.equal(extractor(x), net.features(x.float() / 127.5 - 1))


def test_batches_and_order_do_not_matter(name, weights):
    extractor, x = feature_extractor(name, weights), images(9)
    whole = extractor(x)
    single = torch.cat([extractor(image[None]) for image in x])
    # Convolutions of another batch size may sum in another order: float32 ε = 1.2e-7, some thousand terms a feature.
    torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(extractor(x.flip(0)), whole.flip(0), rtol=1e-4, atol=1e-5)
    assert extractor(x[:0]).shape == (0, extractor.dim)


def test_grey_in_three_channels_is_grey():
    grey = images(3)
    torch.testing.assert_close(
        prepare_fashion_images(grey.expand(-1, 3, -1, -1)), prepare_fashion_images(grey), rtol=0, atol=1e-6
    )
    prepared = prepare_fashion_images(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 28, 28))
    assert prepared[0].eq(-1).all() and prepared[1].eq(1).all()


def test_other_sizes_are_resized_with_antialiasing():
    big = images(2, size=56)
    expected = F.interpolate(big.float(), (28, 28), mode="bilinear", antialias=True) / 127.5 - 1
    assert torch.equal(prepare_fashion_images(big), expected)
    flat = torch.full((1, 1, 13, 40), 51, dtype=torch.uint8)
    torch.testing.assert_close(prepare_fashion_images(flat), torch.full((1, 1, 28, 28), 51 / 127.5 - 1))


# --- other networks ----------------------------------------------------------------------------------------------


class MeanOfChannels(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.gain * x.mean(dim=(2, 3))


def test_any_module_can_be_wrapped():
    extractor = FeatureExtractor.from_module(MeanOfChannels(), 3)
    x = images(4, 3, 9)
    torch.testing.assert_close(extractor(x), 2 * (x.float() / 127.5 - 1).mean(dim=(2, 3)))
    assert (extractor.name, extractor.dim) == ("MeanOfChannels", 3)
    assert "no resizing" in extractor.preprocessing and extractor.weights_sha256 == state_sha256(MeanOfChannels())
    own = FeatureExtractor.from_module(MeanOfChannels(), 3, lambda u8: u8.float(), name="raw", preprocessing="none")
    torch.testing.assert_close(own(x), 2 * x.float().mean(dim=(2, 3)))
    assert (own.name, own.preprocessing) == ("raw", "none")


def test_the_state_hash_sees_every_change():
    module, other = MeanOfChannels(), MeanOfChannels()
    assert state_sha256(module) == state_sha256(other)
    other.gain.data += 1e-6
    assert state_sha256(module) != state_sha256(other)


@pytest.fixture
def random_inception(tmp_path, monkeypatch):
    """File of random weights for torch-fidelity's Inception, accepted by hash, and the network itself."""
    network_class = feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(network_class, "load_state_dict", lambda *_: None)
        network = network_class("random", ["2048"])
    path = tmp_path / "inception.pth"
    torch.save(network.state_dict(), path)
    monkeypatch.setattr(
        fastfid.features.inception, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    )
    return path, network


def test_inception_is_torch_fidelitys(random_inception):
    path, network = random_inception
    extractor = feature_extractor("inception", path)
    assert (extractor.name, extractor.dim) == ("inception", 2048)
    grey = images(2, 1, 32)
    with torch.inference_mode():
        expected = network(grey.expand(-1, 3, -1, -1).contiguous())[0]
    assert torch.equal(extractor(grey), expected) and expected.shape == (2, 2048)


def test_inception_is_found_in_the_download_cache(random_inception, tmp_path, monkeypatch):
    path, _ = random_inception
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def fetch(url, target, hash_prefix):
        assert url.endswith(".pth") and hash_prefix == fastfid.features.inception.INCEPTION_SHA256
        path.rename(target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    assert feature_extractor("inception").weights_sha256.startswith(fastfid.features.inception.INCEPTION_SHA256)
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)  # the second time nothing is fetched
    assert feature_extractor("inception").dim == 2048


# --- errors ------------------------------------------------------------------------------------------------------


def test_missing_weights_name_the_command(name, tmp_path, monkeypatch):
    monkeypatch.setattr(fastfid.features.fashion, "ASSETS", tmp_path)
    with pytest.raises(FileNotFoundError, match=f"`python -m sit_rl.pretrain features --networks {name}`"):
        load_fashion_net(name)


def test_wrong_weights_are_refused(tmp_path, weights, name):
    (tmp_path / "text").write_text("hello")
    for path in (tmp_path / "text", weights):
        other = name if path.name == "text" else next(key for key in FASHION_NETS if key != name)
        with pytest.raises(ValueError, match=f"does not hold the weights of {other} .*; pass the right file"):
            load_fashion_net(other, path)


def test_inception_errors(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no weights file at"):
        feature_extractor("inception", tmp_path / "missing.pth")
    (tmp_path / "wrong.pth").write_text("not the weights")
    with pytest.raises(ValueError, match="has SHA-256 .*, not 6726825d…: download the weights again"):
        feature_extractor("inception", tmp_path / "wrong.pth")

    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(FileNotFoundError, match="could not be downloaded .no route to host.; fetch https"):
        feature_extractor("inception")
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ImportError, match=r"pip install 'fastfid\[inception\]'"):
        feature_extractor("inception")


class Maps(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: feature_extractor("vgg"), "unknown feature network 'vgg'; choose one of fashion-a, fashion-b, fash"),
        (lambda: load_fashion_net("fashion-z"), "unknown fashion network 'fashion-z'"),
        (lambda: feature_extractor("fashion-a", device="nonsense"), "the device nonsense cannot be used here"),
        (lambda: FeatureExtractor.from_module(Maps(), 3)(images(2)), r"Maps returned shape \(2, 1, 28, 28\) for 2"),
        (lambda: FeatureExtractor.from_module(Maps(), 3)(images(2).float()), "takes uint8 tensors, got torch.float32"),
        (lambda: FeatureExtractor.from_module(Maps(), 3)([1]), "takes uint8 tensors, got list"),
        (lambda: FeatureExtractor.from_module(Maps(), 3)(images(2, 4)), r"got shape \(2, 4, 28, 28\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- gradients in the pixels -----------------------------------------------------------------------------------------


def test_features_of_float_pixels_are_the_same_and_have_a_gradient():
    """The derivative along a random direction, against a difference of one level: of order 1e-3 of it by curvature."""
    net = feature_extractor("fashion-a")
    pixels = images(3).float().requires_grad_()
    features = net.with_gradient(pixels)
    torch.testing.assert_close(features.detach(), net(images(3)), rtol=1e-5, atol=1e-5)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(features, pixels, weights)
    along = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ends = [(net.with_gradient(pixels + step * along) * weights).sum() for step in (0.05, -0.05)]
    torch.testing.assert_close((gradient * along).sum(), (ends[0] - ends[1]) / 0.1, rtol=0.02, atol=1e-3)


def test_a_preparation_without_a_gradient_is_named():
    for prepare in (lambda x: x.detach() / 255, lambda x: torch.from_numpy(x.numpy()) / 255):
        net = FeatureExtractor.from_module(nn.Flatten(), 4, prepare, name="plain", preprocessing="by NumPy")
        with pytest.raises(ValueError, match="plain passes no gradient on to its images; its input is: by NumPy"):
            net.with_gradient(torch.zeros(1, 1, 2, 2, requires_grad=True))
