"""MemorizationInformedFrechetInceptionDistance and InceptionScore give torchmetrics' numbers."""

import numpy as np
import pytest
import torch
from torchmetrics.image import inception as peer_inception
from torchmetrics.image import mifid as peer_mifid

from fastfid import InceptionScore, MemorizationInformedFrechetInceptionDistance
from tests.support.given_features import D, Given, filled, rows


@pytest.mark.parametrize("eps", [0.1, 1.0])
@pytest.mark.parametrize("copies", [0, 60])
def test_mifid_is_torchmetrics(eps, copies):
    real, fake = rows(80, 1), rows(90, 2, 0.5)
    fake[:copies] = real[:copies]
    real[70], fake[70] = 0, 0  # rows without a direction
    peer = peer_mifid.MemorizationInformedFrechetInceptionDistance(Given(), cosine_distance_eps=eps)
    expected = filled(peer, real, fake).compute()
    ours = filled(MemorizationInformedFrechetInceptionDistance(Given(), cosine_distance_eps=eps), real, fake).compute()
    assert ours.dtype == torch.float64 and float(ours) == pytest.approx(float(expected), rel=1e-6)


def test_mifid_of_a_set_against_itself_is_0_and_its_arguments_are_checked():
    real = rows(50, 1)
    metric = filled(MemorizationInformedFrechetInceptionDistance(None), real, real)
    assert float(metric.compute()) == 0
    metric.reset()
    with pytest.raises(RuntimeError, match="the real side has 0 images"):
        metric.compute()
    for eps in (0.0, 1.5, 1):
        with pytest.raises(ValueError, match="cosine_distance_eps"):
            MemorizationInformedFrechetInceptionDistance(None, cosine_distance_eps=eps)
    with pytest.raises(ValueError, match="all features of a side are 0"):
        filled(MemorizationInformedFrechetInceptionDistance(None), real, torch.zeros(9, D)).compute()


@pytest.mark.parametrize(("count", "splits"), [(60, 1), (60, 10), (63, 10), (64, 5)])
def test_inception_score_is_torchmetrics(monkeypatch, count, splits):
    """With our permutation in place of its own, which torch's global generator draws."""
    logits = 3 * rows(count, 4)
    order = torch.from_numpy(np.random.RandomState(2020).permutation(count))
    peer = peer_inception.InceptionScore(Given(), splits=splits)
    peer.update(logits)
    monkeypatch.setattr(peer_inception.torch, "randperm", lambda n: order)
    expected = peer.compute()
    metric = InceptionScore(Given(), splits=splits)
    for part in logits.split(17):
        metric.update(part)
    found = metric.compute()
    assert [float(x) for x in found] == pytest.approx([float(x) for x in expected], rel=1e-9, nan_ok=True)
    assert [float(x) for x in metric.as_torchmetrics().compute()] == pytest.approx(
        [float(x) for x in found], nan_ok=True
    )


def test_inception_score_has_no_real_side_and_needs_an_image_a_part():
    metric = InceptionScore(None, splits=4)
    with pytest.raises(ValueError, match="no real side"):
        metric.update(rows(5, 1), real=True)
    metric.update(rows(3, 1))
    with pytest.raises(RuntimeError, match="3 images cannot be split into 4 parts"):
        metric.compute()
    with pytest.raises(ValueError, match="splits is 0"):
        InceptionScore(None, splits=0)
