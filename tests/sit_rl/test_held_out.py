"""Evaluations under several samplers: one stream of batches on a CPU, each at once on a GPU, and the same numbers."""

import pytest
import torch

from fastfid import FeatureMoments, feature_extractor, kid, mmd
from sit_rl import train
from sit_rl.components import networks
from sit_rl.components.build import build_components
from sit_rl.components.image_sets import load_embedded
from sit_rl.training import held_out
from sit_rl.training.held_out import evaluate_by_each, evaluate_model
from tests.support.pretend_cuda import pretended
from tests.support.tiny_runs import tiny_command


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """With few real images, as moments: those of the example take seconds."""
    folder = tmp_path_factory.mktemp("held_out")
    net, paths = feature_extractor("fashion-a"), [folder / "real.npz", folder / "heldout.npz"]
    for path, split in zip(paths, ("train", "heldout"), strict=True):
        FeatureMoments.from_features(net(load_embedded(split).images[:200])).save(path)
    files = ("--real", paths[0], "--heldout", paths[1])
    return train.parse(tiny_command(folder)(folder / "run", "--compile", "off", *files))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def samplers(config):
    return {"ode": config.evaluation.ode, "sde": config.evaluation.sde}


def test_one_stream_has_the_bits_of_one_sampler_after_the_other(config, threads):
    """Of 23 images in batches of 5: the last batch is a small one, and two threads take turns."""
    components = build_components(config, torch.device("cpu"), progress=False)
    options = {"seed": 1, "batch": 5, "grid": 7, "first": 12, "detailed": True}
    found = dict(evaluate_by_each(components, components.model, samplers(config), 23, **options))
    assert list(found) == ["ode", "sde"]
    for name, sampler in samplers(config).items():
        alone = evaluate_model(components, components.model, sampler, 23, **options)
        assert found[name].metrics == alone.metrics and found[name].details == alone.details
        assert torch.equal(found[name].images, alone.images) and len(alone.images) == 7
    assert found["ode"].metrics["fd"] != found["sde"].metrics["fd"]


def test_on_a_gpu_a_result_comes_before_the_next_sampler_begins(config, monkeypatch):
    """A run saves it: an evaluation of a large model takes hours."""
    begun, inner = [], held_out.generate

    def watched(components, model, labels, chosen, **options):
        begun.append([sampler.kind for sampler in chosen])
        return inner(components, model, labels, chosen, **options)

    monkeypatch.setattr(held_out, "generate", watched)
    with pretended() as cuda:
        components = build_components(config, cuda, progress=False)
        results = evaluate_by_each(components, components.model, samplers(config), 10, seed=0, batch=5)
        name, _ = next(results)
        assert name == "ode" and begun == [["ode"]]
        assert next(results)[0] == "sde" and begun == [["ode"], ["sde"]]


def test_networks_read_each_batch_from_the_device_that_got_it_once(monkeypatch):
    nets, sent = [feature_extractor(name) for name in ("fashion-a", "fashion-d")], []
    images = load_embedded("heldout").images[:7]
    expected = [torch.cat([net(part) for part in images.split(3)]) for net in nets]
    monkeypatch.setattr(networks, "to_device", lambda x, device: sent.append(len(x)) or x.to(device))
    found = networks.features_by_each(nets, images, 3)
    assert sent == [3, 3, 1] and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [x.shape for x in networks.features_by_each(nets, images[:0], 3)] == [(0, net.dim) for net in nets]


@pytest.mark.parametrize("count", [40, 700])
def test_kernel_distances_have_the_bits_of_each_alone(monkeypatch, count):
    """Of few images, which share their products, and of so many that KID takes each subset apart."""
    monkeypatch.setattr(held_out, "KID_SUBSET_SIZE", 30)
    together, inner = [], held_out.kid_and_mmd
    monkeypatch.setattr(held_out, "kid_and_mmd", lambda *given: together.append(1) or inner(*given))
    rng = torch.Generator().manual_seed(0)
    real, made = torch.randn(300, 7, generator=rng), torch.randn(count, 7, generator=rng) + 0.3
    size, options = 30, {"kernel": "gaussian", "bandwidth": "median"}
    expected = float(kid(real, made, subsets=100, subset_size=size)), float(mmd(real, made, **options))
    assert held_out.kernel_distances(real, made) == expected
    assert bool(together) == (count == 40)
