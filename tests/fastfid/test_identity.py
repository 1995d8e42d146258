"""Features of different networks are told apart, and both sides are named."""

import pytest
import torch

from fastfid import FeatureMoments, feature_extractor
from fastfid.identity import Identity, NetworkFeatures, check_comparable, mismatch
from fastfid.statistics.statistics import Statistics

PROVENANCE = {"extractor": "fashion-a", "weights_sha256": "ab" * 32, "preprocessing": "none", "protocol": "fastfid"}


def statistics(name, provenance=None, d=6):
    rows = torch.randn(40, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Statistics.from_features(rows, provenance, name=name)


def test_provenance_and_identity_are_each_others():
    identity = Identity.of(PROVENANCE)
    assert identity == Identity("fashion-a", "ab" * 32, "none")
    assert identity.provenance() == {key: value for key, value in PROVENANCE.items() if key != "protocol"}
    assert Identity.of({}) == Identity() and Identity().provenance() == {}


def test_what_is_unknown_differs_from_nothing():
    known = Identity.of(PROVENANCE)
    assert known.difference(known) is None and known.difference(Identity()) is None
    assert Identity("fashion-a").difference(known) is None
    assert known.difference(Identity("fashion-b", "cd" * 32)) == ("extractor", "fashion-a", "fashion-b")


def test_every_holder_of_features_tells_the_same_identity():
    net = feature_extractor("fashion-a")
    provenance = net.identity.provenance()
    moments = FeatureMoments.from_features(torch.randn(300, net.dim), provenance)
    assert net.identity == moments.identity == Statistics(moments).identity == Identity.of(provenance)


def test_mismatch_names_both_sides():
    a = statistics("real.npz", PROVENANCE)
    for key, value in [("extractor", "fashion-b"), ("weights_sha256", "cd" * 32), ("preprocessing", "PIL bicubic")]:
        b = statistics("fake.npz", {**PROVENANCE, key: value})
        with pytest.raises(ValueError, match=f"of real.npz is {PROVENANCE[key]}, that of fake.npz is {value}"):
            check_comparable(a, b)
        (warning,) = check_comparable(a, b, force=True)
        assert "real.npz" in warning and "fake.npz" in warning and "regardless" in warning
    unknown = statistics("peer.npz")
    assert mismatch(a, unknown) is None and check_comparable(a, unknown) == []
    with pytest.raises(ValueError, match="real.npz has d = 6 features, narrow.npz has d = 4"):
        check_comparable(a, statistics("narrow.npz", d=4), force=True)  # no force makes a distance of these


def test_statistics_are_compared_with_a_network_before_it_runs():
    network = NetworkFeatures("the network fashion-a", 6, Identity.of(PROVENANCE))
    assert check_comparable(statistics("real.npz", PROVENANCE), network) == []
    with pytest.raises(ValueError, match="that of the network fashion-a is fashion-a"):
        check_comparable(statistics("real.npz", {"extractor": "inception"}), network)
