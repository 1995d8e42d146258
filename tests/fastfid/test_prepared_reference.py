"""The distance of the reference set itself, in many digits and by the original definition."""

import io

import numpy as np
import pytest
import torch

from fastfid import RealFactor, SwapEngine
from tests.support import oracles
from tests.support.swap_sets import EXACT, allowance, make, moments


@pytest.mark.parametrize(
    "sizes",
    [{"d": 5, "N": 30}, {"d": 5, "N": 4}, {"d": 8, "N": 40, "name": "graded"}, {"d": 6, "name": "offset"}, {"d": 12}],
    ids=str,
)
def test_distance_in_many_digits(sizes):
    real, reference, removed, added = make(**{"m_r": 2, "m_a": 3, "batch": 1} | sizes)
    engine = SwapEngine(moments(real), reference, **EXACT)
    exact = oracles.distance_in_many_digits(real, reference)
    assert engine.distance == pytest.approx(exact, rel=1e-11)  # an offset of 1e4 costs the means a digit
    assert oracles.distance_of_samples(real, reference) == pytest.approx(exact, rel=1e-11)
    change = oracles.changes(real, reference, removed, added, oracles.distance_in_many_digits)
    np.testing.assert_allclose(engine.change(removed, added), change, atol=allowance(engine, 2, 3))


def test_distance_by_the_original_definition():
    real, reference, _, _ = make()
    engine = SwapEngine(moments(real), reference)
    (mean_r, cov_r), (mean_g, cov_g) = moments(real), moments(reference)
    expected = oracles.distance_of_moments(mean_r.numpy(), cov_r.numpy(), mean_g.numpy(), cov_g.numpy())
    assert engine.distance == pytest.approx(expected, rel=1e-10)  # a Schur root of a product loses some digits


def test_the_real_factor_is_kept_on_disk(tmp_path, monkeypatch):
    real, reference, removed, added = make(d=12, N=60, m_r=3, m_a=3, batch=2)
    path = tmp_path / "real.factor.npz"
    first = RealFactor.kept(moments(real), path)
    expected = SwapEngine(first, reference).score(removed, added)
    path_of_others = path.read_bytes()

    def no_eigh(*_):
        raise AssertionError("the factor was made again")

    with monkeypatch.context() as patched:
        patched.setattr("fastfid.distances.real_side.factor_by_eigh", no_eigh)
        again = RealFactor.kept(moments(real), path)
        assert torch.equal(SwapEngine(again, reference).score(removed, added), expected)
    other = RealFactor.kept(moments(real * 2), path)  # of other moments: replaced
    assert other.trace == pytest.approx(4 * first.trace) and path.read_bytes() != path_of_others
    exchanged = tmp_path / "exchanged.npz"
    with np.load(path) as held:  # the root of other moments, with the hash of the right file
        np.savez(exchanged, **dict(held.items()) | {"sha256": np.load(io.BytesIO(path_of_others))["sha256"]})
    digest = str(np.load(io.BytesIO(path_of_others))["sha256"])
    for damaged in (
        b"damaged", exchanged.read_bytes(), path_of_others[:-40], written(sha256=digest),
        written(sha256=digest, root="x", clipped=0), written(sha256=digest, root=np.zeros(12), clipped=0),
        written(sha256=digest, root=np.full((12, 12), np.nan), clipped=0), written(sha256=["a", "b"]),
    ):  # fmt: skip
        path.write_bytes(damaged)
        assert torch.equal(RealFactor.kept(moments(real), path).root, first.root)


def written(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()
