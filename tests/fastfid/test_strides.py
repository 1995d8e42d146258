"""Every public array argument, in every order and with every stride that NumPy and torch know, gives one number."""

import numpy as np
import pytest
import torch

import fastfid
from fastfid import (
    DensityRatioReward,
    FeatureMoments,
    FeatureWindow,
    FrechetDistance,
    FrechetReward,
    KernelReward,
    RealFactor,
    SlicedWassersteinReward,
    Statistics,
    SwapEngine,
    frechet_distance,
    kid,
    mmd,
    prdc,
    precision_recall,
    prepare,
    sliced_wasserstein,
    swap_change_ref,
    trace_sqrt_product,
)

ROWS, D = 40, 24
rng = np.random.default_rng(0)
X, Y = rng.normal(size=(ROWS, D)), rng.normal(size=(ROWS, D)) + 0.2
FEW = X[: D // 2]  # of which the covariance is singular
REMOVED, ADDED = np.array([[0, 1], [2, 3], [4, 9]]), rng.normal(size=(3, 2, D))


def mean_of(x):
    return x.mean(axis=0)


def cov_of(x):
    return np.cov(x.T)


def unaligned(x):
    """The same values as a field of records, whose strides are no multiple of an item's size."""
    records = np.zeros(x.shape, [("flag", "u1"), ("value", x.dtype)])
    records["value"] = x
    return records["value"]


LAYOUTS = {
    "column-major": np.asfortranarray,
    "column-major tensor": lambda x: torch.tensor(np.asfortranarray(x)),
    "transposed tensor": lambda x: torch.tensor(x.T.copy()).permute(*reversed(range(x.ndim))),
    "every second row": lambda x: np.repeat(x, 2, axis=0)[::2],
    "every second value": lambda x: torch.tensor(np.repeat(x, 2, axis=-1))[..., ::2],
    "rows backwards": lambda x: x[::-1].copy()[::-1],
    "values backwards": lambda x: x[..., ::-1].copy()[..., ::-1],
    "unaligned": unaligned,
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "long double": lambda x: x.astype(np.longdouble) if x.dtype.kind == "f" else x,
    "without masked values": np.ma.masked_invalid,
    "lists": lambda x: x.tolist(),
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "negated when read": lambda x: torch.complex(torch.zeros(x.shape).double(), -torch.tensor(x).double()).conj().imag,
}


def engine(real, reference, backend="auto"):
    return SwapEngine(real, reference, backend=backend, dtype=torch.float64)


def updated(x):
    moments = FeatureMoments.empty(D)
    moments.update(x[: ROWS // 2])
    moments.update(x[ROWS // 2 :])
    return moments.cov


def metric_of(x):
    metric = FrechetDistance()
    metric.update(x, real=True)
    metric.update(Y, real=False)
    return metric.compute()


def replaced(removed, added):
    return engine((mean_of(Y), cov_of(Y)), X).replace(removed, added).distance


Y_MOMENTS = mean_of(Y), cov_of(Y)
# Public function of one array, and the array.
ARGUMENTS = {
    "frechet_distance, mean": (lambda m: frechet_distance((m, cov_of(X)), Y_MOMENTS), mean_of(X)),
    "frechet_distance, cov": (lambda c: frechet_distance((mean_of(X), c), Y_MOMENTS), cov_of(X)),
    "frechet_distance, singular": (lambda c: frechet_distance((mean_of(X), c), Y_MOMENTS), cov_of(FEW)),
    "prepare": (lambda c: frechet_distance(prepare((mean_of(X), c)), Y_MOMENTS), cov_of(FEW)),
    "RealFactor": (lambda c: RealFactor((mean_of(X), c)).trace, cov_of(FEW)),
    "FeatureMoments": (lambda c: FeatureMoments(ROWS, mean_of(X), c).cov, cov_of(X)),
    "from_features": (lambda x: FeatureMoments.from_features(x).cov, X),
    "update": (updated, X),
    "FeatureWindow": (lambda x: FeatureWindow(30, D).add(x).moments.cov, X),
    "Statistics": (lambda x: Statistics.from_features(x).moments.cov, X),
    "kid, real": (lambda x: kid(x, Y, 3, 20).mean, X),
    "kid, generated": (lambda y: kid(X, y, 3, 20).mean, Y),
    "mmd": (lambda x: mmd(x, Y).value, X),
    "prdc": (lambda x: list(prdc(x, Y).values()), X),
    "precision_recall": (lambda x: list(precision_recall(x, Y).values()), X),
    "precision_recall, adm": (lambda y: list(precision_recall(X, y, distances="adm").values()), Y),
    "trace_sqrt_product": (lambda c: trace_sqrt_product(c, torch.tensor(cov_of(Y))), cov_of(X)),
    "trace_sqrt_product, iterated": (
        lambda c: trace_sqrt_product(c, torch.tensor(cov_of(Y)), "newton_schulz", precision="float64"), cov_of(X)),
    "metric": (metric_of, X),
    "engine, real mean": (lambda m: engine((m, cov_of(Y)), X).score(REMOVED, ADDED), mean_of(Y)),
    "engine, real cov": (lambda c: engine((mean_of(Y), c), X).score(REMOVED, ADDED), cov_of(Y)),
    "engine, reference": (lambda x: engine(Y_MOMENTS, x).score(REMOVED, ADDED), X),
    "engine, torch": (lambda x: engine(Y_MOMENTS, x, "torch").score(REMOVED, ADDED), X),
    "engine, few": (lambda x: engine(Y_MOMENTS, x).score(REMOVED, ADDED), FEW),
    "engine, removed": (lambda i: engine(Y_MOMENTS, X).score(i, ADDED), REMOVED),
    "engine, added": (lambda a: engine(Y_MOMENTS, X).score(REMOVED, a), ADDED),
    "engine, change_each": (lambda a: engine(Y_MOMENTS, X).change_each(REMOVED, a), ADDED),
    "engine, influence": (lambda x: engine(Y_MOMENTS, X).influence(x), Y),
    "engine, leave_one_out": (lambda x: engine(Y_MOMENTS, x).leave_one_out(), X),
    "engine, replaced rows": (lambda i: replaced(i, ADDED[0]), REMOVED[0]),
    "engine, replacing rows": (lambda a: replaced(REMOVED[0], a), ADDED[0]),
    "sliced_wasserstein": (lambda x: sliced_wasserstein(x, Y, 48), X),
    "KernelReward, real": (lambda x: KernelReward(x).prepare(Y).leave_one_out(), X),
    "KernelReward, rows": (lambda y: KernelReward(X, "gaussian").prepare(y).leave_one_out(), Y),
    "KernelReward, added": (lambda a: KernelReward(X).prepare(Y).change(REMOVED, a), ADDED),
    "SlicedWassersteinReward": (lambda y: SlicedWassersteinReward(X, directions=48).prepare(y).leave_one_out(), Y),
    "DensityRatioReward": (lambda y: DensityRatioReward(X).prepare(y).distance, Y),
    "FrechetReward": (lambda y: FrechetReward(Y_MOMENTS, dtype=torch.float64).prepare(y).leave_one_out(), X),
    "swap_change_ref": (lambda a: swap_change_ref(engine(Y_MOMENTS, X), REMOVED, a), ADDED),
}  # fmt: skip


def values_of(given, dtype):
    """A copy of the values in rows."""
    return given.clone() if isinstance(given, torch.Tensor) else torch.tensor(np.array(given, dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_any_strides(name, layout):
    function, array = ARGUMENTS[name]
    if array.dtype.kind == "i" and layout == "negated when read":
        pytest.skip("row numbers are no floats")
    given = LAYOUTS[layout](array)
    before = values_of(given, array.dtype)
    expected = torch.as_tensor(function(torch.tensor(array)), dtype=torch.float64)
    found = torch.as_tensor(function(given), dtype=torch.float64)
    # sums over other strides are in another order: some ε of float64 times the dimension
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    assert torch.equal(values_of(given, array.dtype), before)  # nobody writes to what the caller gave


@pytest.mark.parametrize("layout", [*LAYOUTS][:6])
def test_images_of_any_strides(layout):
    images = np.random.default_rng(1).integers(0, 256, (6, 1, 28, 28), np.uint8)
    given = LAYOUTS[layout](images)
    extract = fastfid.feature_extractor("fashion-a")
    expected = extract(torch.tensor(images))
    (batch,) = fastfid.open_images(given).batches(6)
    assert torch.equal(extract(batch), expected)
    if isinstance(given, torch.Tensor):
        torch.testing.assert_close(extract(given), expected)


NOT_NUMBERS = {
    "objects": np.array([[None]], object), "texts": np.array([["a"]]), "nothing": None, "a table": {}, "a name": "x.pt",
    "complex": np.ones((9, D), complex), "on meta": torch.ones(9, D, device="meta"), "sparse": torch.eye(D).to_sparse(),
    "masked": np.ma.masked_equal(np.arange(9.0 * D).reshape(9, D), 3),
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_NUMBERS)
def test_what_is_no_array_of_real_numbers_is_one_sentence(kind):
    functions = [
        FeatureMoments.from_features, FeatureWindow(30, D).add, Statistics.from_features, lambda x: kid(x, Y, 3, 20),
        lambda x: mmd(Y, x), lambda x: prdc(x, Y), lambda x: precision_recall(Y, x), lambda x: engine(Y_MOMENTS, x),
        lambda x: sliced_wasserstein(x, Y), lambda x: KernelReward(Y).prepare(x), lambda x: DensityRatioReward(x),
        lambda x: frechet_distance((x, cov_of(X)), Y_MOMENTS),
    ]  # fmt: skip
    for function in functions:
        with pytest.raises(ValueError) as refused:
            function(NOT_NUMBERS[kind])
        assert "\n" not in str(refused.value)
