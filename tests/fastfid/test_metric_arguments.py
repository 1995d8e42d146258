"""Metrics refuse arguments that no features suit, and input that they cannot take."""

import re

import pytest
import torch

from fastfid import kid, mmd, prdc, precision_recall
from fastfid.metrics.inception_score import InceptionScore
from fastfid.metrics.memorization import MemorizationInformedFrechetInceptionDistance as MiFID
from fastfid.metrics.metrics import (
    FrechetDistance,
    FrechetInceptionDistance,
    KernelInceptionDistance,
    PrecisionRecall,
    SlicedWasserstein,
)
from tests.support.given_features import filled, rows


def test_bad_input_is_named():
    byte = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    cases = [
        (
            lambda: FrechetInceptionDistance(100),
            ValueError,
            "feature is 100; Inception's layers are 64, 192, 768, 2048",
        ),
        (lambda: FrechetDistance(3.5), TypeError, "feature is a float"),
        (lambda: FrechetDistance().update(rows(3, 0)[None], real=True), ValueError, r"must be \[n, d\]"),
        (lambda: FrechetDistance().update(rows(3, 0) * torch.nan, real=True), ValueError, "row 0 holds NaN"),
        (lambda: FrechetDistance("fashion-a", normalize=True).update(byte, real=True), ValueError, "normalize=False"),
        (lambda: FrechetDistance("fashion-a", normalize=True).update(byte + 2.0, real=True), ValueError, "got 2 to 2"),
        (lambda: FrechetDistance("fashion-a").update(byte + 0.5, real=True), ValueError, "uint8"),
        (lambda: filled(PrecisionRecall(None), rows(9, 0), rows(3, 1)).compute(), RuntimeError, "at least 4"),
        (lambda: filled(KernelInceptionDistance(None), rows(9, 0), rows(9, 1)).compute(), ValueError, "subset_size"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()


KID_UNFIT = [
    *({"degree": degree} for degree in (-1, 0, 2.5, "3", True, None)),
    *({"gamma": gamma} for gamma in (-1.0, 0.0, float("nan"), float("inf"), "1", True)),
    *({"coef": coef} for coef in (-1.0, float("nan"), float("inf"), "1", None)),
    *({"subsets": subsets} for subsets in (0, -1, 1.5, True, None)),
    *({"subset_size": size} for size in (1, 0, -5, 20.0, None)),
    *({"seed": seed} for seed in (-1, 2**32, 1.5, None)),
]
METRIC_UNFIT = [
    *((KernelInceptionDistance, unfit) for unfit in KID_UNFIT),
    *((PrecisionRecall, {"nearest_k": k}) for k in (0, -1, 2.5, "3", True, None)),
    *((InceptionScore, {"splits": splits}) for splits in (0, -1, 2.5, True, None)),
    *((InceptionScore, {"seed": seed}) for seed in (-1, 2**32, 1.5, True)),
    *((SlicedWasserstein, {"directions": count}) for count in (0, -1, 2.5, True, None)),
    *((SlicedWasserstein, {"seed": seed}) for seed in (-1, 1.5, None)),
    *((MiFID, {"cosine_distance_eps": part}) for part in (0.0, -0.1, 1.5, float("nan"), "1", None)),
    *((PrecisionRecall, {"distances": name}) for name in ("half", None)),
    *(
        (kind, {flag: value})
        for kind in (FrechetDistance, PrecisionRecall)
        for flag in ("normalize", "reset_real_features", "antialias", "sync_on_compute")
        for value in ("no", 0, None)
    ),
]


@pytest.mark.parametrize(("kind", "unfit"), METRIC_UNFIT)
def test_unfit_arguments_are_refused_at_construction(kind, unfit):
    ((name, value),) = unfit.items()
    with pytest.raises(ValueError, match=rf"{name} (is )?{re.escape(repr(value))}; \w+") as refused:
        kind(feature=None, **unfit)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("unfit", KID_UNFIT)
def test_unfit_arguments_of_kid_and_mmd_are_refused(unfit):
    ((name, value),) = unfit.items()
    with pytest.raises(ValueError, match=rf"{name} is {re.escape(repr(value))}; "):
        kid(rows(30, 1), rows(30, 2), **{"subset_size": 20, **unfit})
    if name in ("degree", "gamma", "coef"):
        with pytest.raises(ValueError, match=rf"{name} is {re.escape(repr(value))}; "):
            mmd(rows(30, 1), rows(30, 2), kernel="polynomial", **unfit)


@pytest.mark.parametrize("unfit", [{"bandwidth": float("inf")}, {"bandwidth": float("nan")}, {"scale": float("nan")}])
def test_unfit_arguments_of_mmd_are_refused(unfit):
    ((name, value),) = unfit.items()
    with pytest.raises(ValueError, match=f"{name} is {value}; "):
        mmd(rows(30, 1), rows(30, 2), **unfit)


@pytest.mark.parametrize("value", [2.5, "3", True])
def test_unfit_neighbours_are_refused(value):
    for score in (prdc, precision_recall):
        with pytest.raises(ValueError, match=f"nearest_k is {value!r}; it counts neighbours from 1"):
            score(rows(30, 1), rows(30, 2), value)
