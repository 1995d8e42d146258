"""Evaluations under several samplers: one stream of batches on a CPU, each at once on a GPU, and the same numbers."""

import pytest
import torch

from fastfid import FeatureMoments, feature_extractor
from sit_rl import train
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
    begun, inner = [], held_out.generate_by_each

    def watched(components, model, labels, chosen, **options):
        begun.append([sampler.kind for sampler in chosen])
        return inner(components, model, labels, chosen, **options)

    monkeypatch.setattr(held_out, "generate_by_each", watched)
    with pretended() as cuda:
        components = build_components(config, cuda, progress=False)
        results = evaluate_by_each(components, components.model, samplers(config), 10, seed=0, batch=5)
        name, _ = next(results)
        assert name == "ode" and begun == [["ode"]]
        assert next(results)[0] == "sde" and begun == [["ode"], ["sde"]]
