"""Metrics for training loops beside torchmetrics', on identical features, and over two processes."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn

import fastfid.features.inception
from fastfid import FeatureExtractor, FeatureMoments, frechet_distance, kid, precision_recall
from fastfid.features.extractor import evaluation_mode
from fastfid.metrics.inception_layer import InceptionLayer
from fastfid.metrics.inception_score import InceptionScore
from fastfid.metrics.memorization import MemorizationInformedFrechetInceptionDistance as MiFID
from fastfid.metrics.metrics import (
    FrechetDistance,
    FrechetInceptionDistance,
    KernelInceptionDistance,
    Metric,
    PrecisionRecall,
    SlicedWasserstein,
)
from tests.support.given_features import D, Given, filled, rows

# --- the numbers -------------------------------------------------------------------------------------------------


def test_fid_equals_torchmetrics():
    theirs = pytest.importorskip("torchmetrics.image.fid").FrechetInceptionDistance(feature=Given())
    real, fake = rows(90, 1), rows(70, 2, 0.3)
    ours = filled(FrechetInceptionDistance(feature=Given()), real, fake).compute()
    # their Σxxᵀ − nμμᵀ and eigenvalues of a general product lose about d·ε of the traces, 12 here
    assert ours.dtype == torch.float64 and ours.item() == pytest.approx(
        filled(theirs, real, fake).compute().item(), rel=0, abs=1e-12
    )


def test_kid_equals_torchmetrics():
    real, fake = rows(60, 1), rows(60, 2, 0.3)
    # the one subset of all rows is the same from any generator; kernel values are below 100 and average to 1e-14
    options = dict(subsets=3, subset_size=60, degree=2, gamma=0.3, coef=0.5)
    theirs = pytest.importorskip("torchmetrics.image.kid").KernelInceptionDistance(feature=Given(), **options)
    ours = filled(KernelInceptionDistance(Given(), **options), real, fake).compute()
    expected = filled(theirs, real, fake).compute()
    for value, value_expected in zip(ours, expected, strict=True):
        assert value.item() == pytest.approx(value_expected.item(), rel=0, abs=1e-13)


def test_metrics_are_the_functions():
    real, fake = rows(40, 1), rows(30, 2, 0.3)
    # rows in batches of 17 and at once reach the moments in the same order, so bit for bit
    moments = [FeatureMoments.from_features(x) for x in (real, fake)]
    assert filled(FrechetDistance(), real, fake).compute().item() == frechet_distance(*moments)
    estimate = kid(real, fake, 5, 20, seed=3)
    found = filled(KernelInceptionDistance(None, subsets=5, subset_size=20, seed=3), real, fake).compute()
    assert [value.item() for value in found] == [estimate.mean, estimate.std]
    for distances in ("exact", "adm"):
        found = filled(PrecisionRecall(None, nearest_k=2, distances=distances), real, fake).compute()
        assert {k: v.item() for k, v in found.items()} == precision_recall(real, fake, 2, distances)


@pytest.fixture
def random_inception(tmp_path, monkeypatch):
    """Path of random Inception weights that pass for the right ones."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    monkeypatch.setattr(fastfid.features.inception, "checked_sha256", lambda *_: "0" * 64)
    return str(tmp_path / "weights.pth")


@pytest.mark.parametrize("antialias", [True, False])
def test_inception_layers_are_those_of_torchmetrics(random_inception, antialias):
    fid = pytest.importorskip("torchmetrics.image.fid")
    images = torch.rand(2, 3, 40, 30, generator=torch.Generator().manual_seed(1))
    for layer in (64, 2048) if antialias else (192, 768):
        theirs = fid.FrechetInceptionDistance(
            layer, normalize=True, feature_extractor_weights_path=random_inception, antialias=antialias
        )
        ours = FrechetInceptionDistance(
            layer, normalize=True, feature_extractor_weights_path=random_inception, antialias=antialias
        )
        as_bytes = (images * 255).byte()
        assert torch.equal(ours.extractor(as_bytes), theirs.inception(as_bytes))
        ours.update(images, real=True)
        assert ours.real.count == 2 and ours.real.dim == layer
        assert torch.equal(ours.real.mean, ours.extractor(as_bytes).double().mean(dim=0))
    if antialias:
        assert InceptionLayer("logits_unbiased", random_inception)(as_bytes).shape == (2, 1008)
        grey = InceptionLayer(64, random_inception)(as_bytes[:, :1])
        assert torch.equal(grey, InceptionLayer(64, random_inception)(as_bytes[:, :1].expand(-1, 3, -1, -1)))


def test_named_extractors():
    images = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    named, given = (
        FrechetDistance("fashion-a"),
        FrechetDistance(fastfid.features.registry.feature_extractor("fashion-a")),
    )
    for metric in (named, given):
        metric(images, real=True)
    assert torch.equal(named.real.cov, given.real.cov) and named.real.dim == 128
    assert named.to("cpu") is named
    with pytest.raises(ValueError, match="stays on cpu; make it on meta instead"):
        given.to("meta")


# --- the network -------------------------------------------------------------------------------------------------

MODULE_METRICS = {
    "fid": lambda network: FrechetInceptionDistance(feature=network),
    "fd": FrechetDistance,
    "kid": lambda network: KernelInceptionDistance(network, subsets=3, subset_size=20),
    "pr": PrecisionRecall,
    "sliced": lambda network: SlicedWasserstein(network, 30),
    "mifid": MiFID,
    "is": lambda network: InceptionScore(network, splits=2),
    "extractor": lambda network: FrechetDistance(FeatureExtractor.from_module(network, D)),
}


def network_of_the_caller():
    """A network whose features depend on the batch while it trains, one part of it frozen by its owner."""
    torch.manual_seed(0)
    frozen = nn.BatchNorm1d(D).eval()
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, D), nn.BatchNorm1d(D), frozen, nn.Dropout(0.5)).train()
    frozen.eval()
    return network


@pytest.mark.parametrize("name", MODULE_METRICS)
def test_networks_compute_in_evaluation_mode(name):
    """Neither the batch size nor training mode changes a metric; modes and statistics of the network stay."""
    network = network_of_the_caller()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    generator = torch.Generator().manual_seed(3)
    real, fake = (torch.randint(0, 256, (n, 3, 2, 2), dtype=torch.uint8, generator=generator) for n in (60, 40))
    if name != "extractor":
        real, fake = real / 255, fake / 255
    found = []
    for size in (60, 7):
        metric = MODULE_METRICS[name](network)
        metric.train()  # as a module that holds it does
        network.train()  # as its owner does, who trains it
        network[3].eval()
        modes = [part.training for part in network.modules()]
        for images, is_real in ((real, True), (fake, False)):
            for batch in images.split(size):
                if not (is_real and name == "is"):  # which has no real side
                    metric.update(batch, real=is_real)
        assert modes == [part.training for part in network.modules()]
        values = metric.compute()
        values = values.values() if isinstance(values, dict) else values if isinstance(values, tuple) else [values]
        found.append(torch.stack(list(values)))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)  # float32 products of other shapes round differently
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert found[0].isfinite().all()
    if name != "extractor":
        assert torch.equal(found[0][0], expected_of(name, network, real, fake))


def expected_of(name, network, real, fake):
    """The metric's first number of features of the network in evaluation mode."""
    modes = {part: part.training for part in network.modules()}
    with torch.no_grad():
        x, y = network.eval()(real), network(fake)
    for part, mode in modes.items():
        part.training = mode
    metric = MODULE_METRICS[name](None)
    if name != "is":
        metric.update(x, real=True)
    metric.update(y, real=False)
    value = metric.compute()
    return next(iter(value.values())) if isinstance(value, dict) else value[0] if isinstance(value, tuple) else value


def test_every_metric_is_tried_with_a_module():
    kinds = {type(MODULE_METRICS[name](None)) for name in MODULE_METRICS if name != "extractor"}
    below = [*Metric.__subclasses__()]
    for kind in below:
        below += kind.__subclasses__()
    assert kinds == {kind for kind in below if kind.__module__.startswith("fastfid.")}


def test_modes_come_back_after_an_error_and_to_owners_of_methods():
    network = network_of_the_caller()
    modes = [part.training for part in network.modules()]
    with pytest.raises(RuntimeError), evaluation_mode(network.forward, lambda x: x, None):
        assert not any(part.training for part in network.modules())
        raise RuntimeError
    assert modes == [part.training for part in network.modules()]
    with pytest.raises(RuntimeError, match="shape"):
        FrechetDistance(network).update(torch.zeros(3, 5), real=True)
    assert modes == [part.training for part in network.modules()]


@pytest.mark.parametrize("make", [FrechetDistance, lambda network: FeatureExtractor.from_module(network, D)])
def test_a_network_that_computes_from_the_batch_in_any_mode_is_said(make):
    with pytest.warns(UserWarning, match="^1 keeps no running statistics, so that features depend on the batch"):
        make(nn.Sequential(nn.Linear(12, D), nn.BatchNorm1d(D, track_running_stats=False)))


def test_the_network_is_a_part_of_the_metric():
    network = network_of_the_caller()
    holder = nn.ModuleDict({"fid": FrechetInceptionDistance(feature=network)})
    fid = holder["fid"]
    assert fid.extractor is network and network in list(holder.modules())
    assert set(holder.state_dict()) == {f"fid.extractor.{name}" for name in network.state_dict()}
    fid.update(torch.rand(5, 3, 2, 2), real=True)
    assert holder.state_dict().keys() == {f"fid.extractor.{name}" for name in network.state_dict()}  # no rows
    other = nn.ModuleDict({"fid": FrechetInceptionDistance(feature=network_of_the_caller())})
    other.load_state_dict(holder.state_dict())
    assert set(fid.state_dict()) == {"real", "fake"}
    holder.to("meta")
    assert fid.real.mean.device.type == "meta" and network[1].weight.device.type == "meta"
    holder.double()  # changes the type of the network, and no device
    assert fid.real.mean.device.type == "meta" and network[1].weight.dtype == torch.float64


def test_a_network_stays_where_its_caller_has_it():
    network = nn.Linear(4, 3, device="meta")
    assert FrechetDistance(network).extractor.weight.device.type == "meta"
    assert FrechetDistance(nn.Linear(4, 3), device="meta").extractor.weight.device.type == "meta"


def test_inception_stays_float32_in_a_module_of_half_precision(random_inception):
    holder = nn.ModuleDict({"fid": FrechetInceptionDistance(64, feature_extractor_weights_path=random_inception)})
    images = torch.randint(0, 256, (2, 3, 40, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = holder["fid"].extractor(images)
    assert torch.equal(holder.bfloat16()["fid"].extractor(images), before)


# --- life of a metric --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [FrechetDistance, lambda **k: PrecisionRecall(None, **k)])
def test_reset_and_state(make):
    real, fake = rows(40, 1), rows(30, 2)
    metric = filled(make(), real, fake)
    value = metric.compute()
    copy = make()
    copy.load_state_dict(metric.state_dict())
    assert copy.compute() == value
    copy.reset()
    with pytest.raises(RuntimeError, match="the real side has 0 images, the metric needs at least"):
        copy.compute()
    kept = filled(make(reset_real_features=False), real, rows(9, 5))
    kept.reset()
    kept.update(fake, real=False)
    assert kept.compute() == value
    empty = make()
    empty.load_state_dict(make().state_dict())
    assert empty.state_dict() == {"real": {}, "fake": {}}


def test_a_single_row_counts_as_one_image():
    metric = FrechetDistance()
    metric.update(rows(1, 0)[0], real=True)
    assert metric.real.count == 1
    with pytest.raises(RuntimeError, match="the real side has 1 images, the metric needs at least 2"):
        metric.compute()


# --- ranks -------------------------------------------------------------------------------------------------------

KID = dict(subsets=4, subset_size=20)


def all_metrics():
    return {
        "fid": FrechetDistance(),
        "kid": KernelInceptionDistance(None, **KID),
        "pr": PrecisionRecall(None),
        "uneven": FrechetDistance(),
    }


def values_of(metrics):
    found = {name: metric.compute() for name, metric in metrics.items()}
    found["kid"], found["pr"] = torch.stack(found["kid"]), torch.stack(tuple(found["pr"].values()))
    return {name: value.numpy() for name, value in found.items()}


def _compute_on_rank(rank, shards, rendezvous, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=len(shards))
    metrics = all_metrics()
    for name, metric in metrics.items():
        for real in (True, False):
            if name != "uneven" or rank == 0:  # rank 1 never updates this one and does not know d
                metric.update(shards[rank][real], real=real)
    first = values_of(metrics)
    second = values_of(metrics)  # computing changed nothing
    metrics["fid"].sync()
    synced = metrics["fid"].real.count
    metrics["fid"].unsync()
    own = FrechetDistance(sync_on_compute=False)
    own.update(shards[rank][True], real=True)
    own.update(shards[rank][False], real=False)
    results[rank] = first, second, synced, metrics["fid"].real.count, own.compute().item()
    dist.destroy_process_group()


def test_two_processes_give_the_one_process_number(tmp_path):
    real, fake = rows(90, 1), rows(71, 2, 0.3)
    shards = [(fake[:30], real[:50]), (fake[30:], real[50:])]  # [rank][real]
    whole = all_metrics()
    for name, metric in whole.items():
        filled(metric, *((real[:50], fake[:30]) if name == "uneven" else (real, fake)))
    expected = values_of(whole)
    with multiprocessing.Manager() as manager:
        results = manager.dict()
        multiprocessing.spawn(_compute_on_rank, (shards, tmp_path / "rendezvous", results), nprocs=2)
        results = [results[rank] for rank in range(2)]
    for rank, (first, second, synced, count, own) in enumerate(results):
        for name, value in first.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-10)  # what the issue asks of ranks
            assert np.array_equal(value, second[name]) and np.array_equal(value, results[0][0][name])
        assert synced == 90 and count == len(shards[rank][True])
        alone = [FeatureMoments.from_features(shards[rank][side]) for side in (True, False)]
        assert own == pytest.approx(frechet_distance(*alone), rel=1e-12)


# --- beside torchmetrics' own ------------------------------------------------------------------------------------


def test_metrics_join_a_collection_of_torchmetrics():
    """A collection's update, compute, reset, copies and pickles keep the metrics' own numbers."""
    torchmetrics = pytest.importorskip("torchmetrics")
    theirs = (
        pytest.importorskip("torchmetrics.image.fid").FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64)
    )
    ours = {"fid": FrechetInceptionDistance(feature=Given()), "prc": PrecisionRecall(feature=Given())}
    collection = torchmetrics.MetricCollection({"theirs": theirs, **ours})
    real, fake = rows(60, 1), rows(50, 2, 0.3)
    filled(collection, real, fake)
    found = pickle.loads(pickle.dumps(collection)).to("cpu").compute()
    assert found == collection.clone(prefix="").compute() == collection.compute()
    assert found["fid"].item() == filled(FrechetDistance(), real, fake).compute().item()
    assert found["fid"].item() == pytest.approx(found["theirs"].item(), rel=1e-6)  # theirs sums in float64, too
    assert found["precision"] == precision_recall(real, fake)["precision"]
    filled(copy.deepcopy(collection), fake, fake)  # goes its own way
    assert collection.compute() == found
    collection.reset()
    filled(collection, fake, fake)
    assert collection.compute()["fid"].item() == pytest.approx(0, abs=1e-9) != found["fid"].item()


def test_without_torchmetrics_the_metrics_are_plain_modules():
    """The same numbers in a process that cannot import torchmetrics."""
    script = """
import pickle, sys
sys.modules["torchmetrics"] = None
import torch
from fastfid import FrechetDistance
from tests.support.given_features import filled, rows
metric = filled(FrechetDistance(), rows(60, 1), rows(50, 2, 0.3))
metric = pickle.loads(pickle.dumps(torch.nn.ModuleDict({"fd": metric}).to("cpu")))["fd"]
print(metric.compute().item())
metric.reset()
try:
    metric.as_torchmetrics()
except ImportError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    value, error = found.splitlines()
    assert float(value) == filled(FrechetDistance(), rows(60, 1), rows(50, 2, 0.3)).compute().item()
    assert error.endswith("pip install torchmetrics")


def test_other_names_do_not_import_torchmetrics():
    script = "import sys; from fastfid import SwapEngine, evaluate; print('torchmetrics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False\n"
