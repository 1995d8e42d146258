"""Fixtures: an Inception of random weights, as torch-fidelity saves it."""

import pytest
import torch
from torch import nn

import fastfid.features.inception
from fastfid.runtime.hashes import file_sha256


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """Weights of a random Inception as torch-fidelity saves them, and its module."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    layers = ["2048", "logits_unbiased"]
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
    patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    network = module.FeatureExtractorInceptionV3("inception", layers)
    patch.undo()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):  # so that activations neither vanish nor overflow in random weights
            layer.weight.data.fill_(1.5)
    torch.save(network.state_dict(), path)
    return path, network


@pytest.fixture
def random_weights(inception, monkeypatch):
    """The same, accepted by hash, and not built anew every time: that takes seconds."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setattr(fastfid.features.inception, "INCEPTION_SHA256", file_sha256(inception[0])[:8])
    monkeypatch.setattr(module, "FeatureExtractorInceptionV3", lambda *_, **__: inception[1])
    return inception
