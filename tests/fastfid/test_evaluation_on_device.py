"""Metrics where the features are: on a pretended device all of them equal the host's, and too many features stay."""

import numpy as np
import pytest
import torch

import fastfid
from fastfid.evaluation import placement
from fastfid.runtime import devices
from tests.support.pretend_cuda import pretended

METRICS = (
    *("fd", "fd_infinity", "kid", "mmd", "sliced_wasserstein"),
    *("precision", "recall", "density", "coverage", "outliers"),
)
RNG = np.random.default_rng(0)
SAMPLES, REFERENCE = (RNG.standard_normal((n, 6)).astype(np.float32) * s for n, s in ((150, 1.1), (130, 1.0)))
OPTIONS = {"kid_subset_size": 50, "metrics": METRICS, "nearest_k": 3, "split": SAMPLES[::-1].copy()}


@pytest.fixture(scope="module")
def on_host():
    return fastfid.evaluate(SAMPLES, REFERENCE, **OPTIONS)


def same(found, expected):
    assert [score.metric for score in found.scores] == [score.metric for score in expected.scores]
    for mine, theirs in zip(found.scores, expected.scores, strict=True):
        assert mine.value == pytest.approx(theirs.value, rel=1e-9, abs=1e-12), mine.metric
        if theirs.interval is not None:
            assert mine.interval == pytest.approx(theirs.interval, rel=1e-6, abs=1e-9), mine.metric
    assert found.outliers[0]["hurt"][0]["index"] == expected.outliers[0]["hurt"][0]["index"]
    assert [x["index"] for x in found.neighbours] == [x["index"] for x in expected.neighbours]


def test_auto_takes_a_gpu_and_gives_the_hosts_numbers(on_host, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 1 << 30))
    moved = []
    on_device = placement.on_device
    monkeypatch.setattr(
        placement, "on_device", lambda side, device: moved.append(device.type) or on_device(side, device)
    )
    with pretended():
        found = fastfid.evaluate(SAMPLES, REFERENCE, **OPTIONS)
        difference = fastfid.diff(SAMPLES, REFERENCE[::-1].copy(), REFERENCE)
    assert moved == ["cuda"] * 6
    same(found, on_host)
    expected = fastfid.diff(SAMPLES, REFERENCE[::-1].copy(), REFERENCE, device="cpu")
    assert difference.interval == pytest.approx(expected.interval, rel=1e-6, abs=1e-9)


def test_features_that_do_not_fit_stay_on_the_host_and_say_so(on_host, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10_000, 1 << 30))
    with pretended():
        found = fastfid.evaluate(SAMPLES, REFERENCE, device="cuda", **OPTIONS)
    same(found, on_host)
    assert any(w.startswith("the metrics were computed in host memory: features take") for w in found.warnings)


def test_auto_is_the_cpu_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.chosen_device("auto") == "cpu" and devices.chosen_device("cuda:1") == "cuda:1"


def test_a_device_that_is_not_there_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="the device cuda cannot be used here"):
        fastfid.evaluate(SAMPLES, REFERENCE, metrics=["fd"], device="cuda")
