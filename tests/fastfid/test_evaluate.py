"""One pass: scores equal those of the peers on the same features, and what statistics can and cannot give."""

import pickle

import numpy as np
import pytest
import torch

from fastfid import FeatureExtractor, FeatureMoments, frechet_distance, kid, mmd, open_images
from fastfid.evaluation.difference import diff
from fastfid.evaluation.evaluate import compare, evaluate, statistics_of
from fastfid.evaluation.results import SCHEMA
from fastfid.features.extractor import MultiExtractor
from fastfid.features.registry import build_extractor, preprocessing_of
from fastfid.protocols import METRICS, PROTOCOLS
from tests.support.small_network import D, features, pixels, small, write_images

pytestmark = pytest.mark.usefixtures("own_cache")

# --- scores ----------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_metrics_and_the_peers():
    real, fake = features(400, 1), features(300, 2, shift=0.2)
    result = evaluate(fake, real, kid_subset_size=100)
    assert result["fd"].value == pytest.approx(
        frechet_distance(FeatureMoments.from_features(fake), FeatureMoments.from_features(real)), rel=1e-12
    )
    assert result["kid"].value == kid(real, fake, subset_size=100).mean
    assert result["mmd"].value == mmd(real, fake).value
    compute_prdc = pytest.importorskip("prdc").compute_prdc
    for name, value in compute_prdc(real.numpy(), fake.numpy(), 5).items():
        assert result[name].value == pytest.approx(value, abs=1e-12)


def test_torch_fidelity_protocol_equals_torch_fidelity():
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = features(330, 1), features(310, 2, shift=0.2)
    metrics = ["fd", "kid", "precision", "recall"]
    result = evaluate(fake, real, protocol="torch-fidelity", metrics=metrics, kid_subset_size=200)
    a, b = (metric_fid.fid_features_to_statistics(x.double()) for x in (fake, real))
    expected = metric_fid.fid_statistics_to_metric(a, b, False)["frechet_inception_distance"]
    assert result["fd"].value == pytest.approx(expected, rel=1e-9)
    found = kid_features_to_metric(fake.double(), real.double(), kid_subset_size=200, verbose=False)
    assert result["kid"].value == pytest.approx(found["kernel_inception_distance_mean"], rel=1e-6)
    assert result["kid"].details["std_over_subsets"] == pytest.approx(found["kernel_inception_distance_std"], rel=1e-6)
    found = prc_features_to_metric(fake, real, verbose=False)
    assert (result["precision"].value, result["recall"].value) == pytest.approx((found["precision"], found["recall"]))


def test_images_are_read_once_and_each_network_runs_once(tmp_path):
    (first, module_a), (second, module_b) = small("first"), small("second")
    module_b.layer.weight.data *= 2
    second = FeatureExtractor.from_module(module_b, D, name="second")
    fake, real = write_images(tmp_path / "fake", pixels(60, 1)), write_images(tmp_path / "real", pixels(70, 2))
    source = open_images(fake)
    reads = []
    read, source.read = source.read, lambda member: reads.append(member) or read(member)
    result = evaluate(source, real, features=[first, second], metrics=METRICS)
    assert sorted(reads) == sorted(source.members) and module_a.calls == module_b.calls == 2  # once a side
    assert {score.network for score in result.scores} == {"first", "second"}
    assert result["fd", "second"].value != result["fd", "first"].value == result["fd"].value
    again = evaluate(fake, real, features=[first, second], metrics=METRICS)
    assert module_a.calls == 2 and again.scores == result.scores  # from the cache, the same to the last bit
    assert evaluate(fake, real, features=first, cache=False)["fd"].value == result["fd"].value and module_a.calls == 4


def test_protocols_change_what_is_computed():
    fake, real = features(60, 1), features(70, 2)
    assert [s.metric for s in evaluate(fake, real, protocol="pytorch-fid").scores] == ["fd"]
    adm = evaluate(fake, real, protocol="adm")
    assert adm["precision"].details == {"nearest_k": 3, "inclusive": True, "distances": "adm", "parts": 4}
    assert adm["fd"].label == "FID"
    own = {"nearest_k": 5, "inclusive": False, "distances": "exact", "parts": 2}
    assert evaluate(fake, real)["precision"].details == own
    assert evaluate(fake, real, nearest_k=2)["coverage"].details["nearest_k"] == 2
    shrunk = evaluate(fake, real, metrics=["kid"])
    assert shrunk["kid"].details["subset_size"] == 60
    assert "KID subsets shrank from 1000 to the 60 images there are" in shrunk.warnings
    strict = evaluate(fake, real, protocol="torch-fidelity", metrics=["kid"])
    assert "subsets of 1000 rows from 60 images; pass kid_subset_size=60" in strict.left_out[0].reason


# --- what statistics can and cannot give -----------------------------------------------------------------------------


def test_statistics_only_reference_gives_what_it_can(tmp_path):
    real, fake = features(90, 1), features(80, 2)
    mu, sigma = real.double().mean(0), torch.cov(real.double().T)
    np.savez(tmp_path / "peer.npz", mu=mu.numpy(), sigma=sigma.numpy())
    result = evaluate(fake, tmp_path / "peer.npz")
    full = evaluate(fake, real)
    assert result["fd"].value == pytest.approx(full["fd"].value, rel=1e-12)
    assert "jackknife over samples, real images taken as fixed" in result["fd"].method
    assert result["fd"].standard_error < full["fd"].standard_error
    left = {entry.metric: entry.reason for entry in result.left_out}
    assert set(left) == {"sfid", "is", "kid", "mmd", "sliced_wasserstein", "precision", "recall", "density", "coverage"}
    assert "peer.npz holds statistics only; pass its images" in left["recall"]
    with pytest.raises(KeyError, match="recall was left out: .*peer.npz holds statistics only"):
        result["recall"]
    assert result.outliers[0]["hurt"] and result.neighbours == []
    both = evaluate(tmp_path / "peer.npz", tmp_path / "peer.npz")
    assert both["fd"].interval is None and abs(both["fd"].value) < 1e-9
    assert {entry.metric for entry in both.left_out} == set(METRICS) - {"fd", "cmmd"}
    with pytest.raises(KeyError, match="vendi was not asked for; computed: fd"):
        both["vendi"]


def test_a_side_that_does_not_tell_its_network_is_named(tmp_path):
    """Told once in `evaluate`, `diff` and `compare`, and of neither side where both are silent or both tell."""
    extractor, _ = small()
    moments = FeatureMoments.from_features(features(90, 1, extractor.dim))
    np.savez(tmp_path / "peer.npz", mu=moments.mean.numpy(), sigma=moments.cov.numpy())
    told = f"{tmp_path / 'peer.npz'} does not tell which network its features are of; they are taken for those of"
    images, options = pixels(20, 1), dict(features=extractor, cache=False)
    found = evaluate(images, tmp_path / "peer.npz", metrics=["fd"], **options).warnings
    assert [warning for warning in found if "does not tell" in warning] == [f"{told} {extractor.name}"]
    found = diff(images, pixels(20, 2), tmp_path / "peer.npz", **options).warnings
    assert found == [f"{told} {extractor.name}"]
    assert f"{told} {extractor.name}" in compare(images, tmp_path / "peer.npz", **options)[3]
    for sides in ((images, pixels(20, 2)), (tmp_path / "peer.npz", tmp_path / "peer.npz")):
        assert not any("does not tell" in w for w in evaluate(*sides, metrics=["fd"], **options).warnings)


def test_saved_statistics_stand_for_their_images(tmp_path):
    extractor, _ = small()
    fake, real = write_images(tmp_path / "fake", pixels(60, 1)), write_images(tmp_path / "real", pixels(70, 2))
    expected = evaluate(fake, real, features=extractor)
    for keep in (False, True):
        statistics = statistics_of(real, features=extractor, keep_features=keep)
        statistics.save(tmp_path / "real.npz")
        result = evaluate(fake, tmp_path / "real.npz", features=extractor)
        assert result["fd"].value == pytest.approx(expected["fd"].value, rel=1e-9)
        assert (result["fd"].standard_error == expected["fd"].standard_error) is keep
        assert {left.metric for left in result.left_out} == {"sfid", "is"} | (
            set() if keep else {"kid", "mmd", "sliced_wasserstein", "precision", "recall", "density", "coverage"}
        )
    known = statistics.provenance
    assert known["source"] == str(real) and known["protocol"] == "fastfid" and known["dtype"] == "float32"
    assert known["source_sha256"] == expected.provenance["real"]["source_sha256"]
    with pytest.raises(ValueError, match="real.npz holds statistics already; pass images"):
        statistics_of(tmp_path / "real.npz", features=extractor)


def test_adm_reference_uses_its_moments_and_its_images(tmp_path):
    def prepare(images):
        return images.float() / 255

    def network(x):
        return {"features": x.flatten(1)[:, :D], "spatial": x.flatten(1)[:, D : D + 4], "logits": x.flatten(1)[:, :5]}

    def extractor_of(protocol):
        prepared = preprocessing_of("inception", PROTOCOLS[protocol])
        return MultiExtractor(network, prepare, name="inception", dim=D, preprocessing=prepared, weights_sha256="w")

    extractor = extractor_of("adm")
    training = torch.from_numpy(pixels(500, 3)).float().flatten(1) / 255
    mu, sigma = training[:, :D].double().mean(0), torch.cov(training[:, :D].double().T)
    mu_s, sigma_s = training[:, D : D + 4].double().mean(0), torch.cov(training[:, D : D + 4].double().T)
    arrays = {"mu": mu, "sigma": sigma, "mu_s": mu_s, "sigma_s": sigma_s, "arr_0": pixels(50, 3)}
    np.savez(tmp_path / "adm.npz", **{name: np.asarray(value) for name, value in arrays.items()})
    fake = pixels(60, 1)
    result = evaluate(fake, tmp_path / "adm.npz", features=extractor, protocol="adm")
    rows = torch.from_numpy(fake).float().flatten(1) / 255
    assert result["fd"].value == pytest.approx(
        frechet_distance(FeatureMoments.from_features(rows[:, :D]), (mu, sigma)), rel=1e-9
    )
    expected = frechet_distance(FeatureMoments.from_features(rows[:, D : D + 4]), (mu_s, sigma_s))
    assert result["sfid"].value == pytest.approx(expected, rel=1e-9)
    assert result["is"].label == "Inception Score" and 0 <= result["recall"].value <= 1
    assert "real images taken as fixed" in result["fd"].method  # its 50 images are not what mu is of
    assert any("FD and sFID use the mu and sigma in" in warning for warning in result.warnings)
    assert not any("does not tell" in warning for warning in result.warnings)
    other = {"features": extractor_of("clean"), "protocol": "clean", "cache": False}
    with pytest.raises(ValueError, match="of .*adm.npz is .*TensorFlow-1 bilinear.*inception is .*PIL bicubic"):
        compare(fake, tmp_path / "adm.npz", **other)  # clean-fid resizes otherwise than ADM's evaluator
    assert "regardless of a mismatch" in compare(fake, tmp_path / "adm.npz", force=True, **other)[3][0]
    with pytest.raises(ValueError, match="the mu and sigma in .*adm.npz are not of its 50 images"):
        diff(tmp_path / "adm.npz", fake, pixels(40, 5), features=extractor, cache=False)


def test_sfid_of_images_has_the_interval_of_its_own_features():
    def network(x):
        return {"features": x.flatten(1)[:, :D], "spatial": x.flatten(1)[:, D : D + 5]}

    extractor = MultiExtractor(
        network, lambda x: x.float() / 255, name="s", dim=D, preprocessing="p", weights_sha256="w"
    )
    sides = pixels(60, 1), pixels(50, 3)
    spatial = [torch.from_numpy(x).float().flatten(1)[:, D : D + 5] / 255 for x in sides]
    found = evaluate(*sides, features=extractor, metrics=["sfid"])["sfid"]
    expected = evaluate(*spatial, metrics=["fd"])["fd"]
    assert (found.value, found.standard_error) == pytest.approx((expected.value, expected.standard_error), rel=1e-9)
    assert found.method == expected.method and found.interval == pytest.approx(expected.interval)


def test_edm2_pickle_serves_the_network_asked_for(tmp_path):
    real = features(90, 1).double()
    entry = {"mu": real.mean(0).numpy(), "sigma": torch.cov(real.T).numpy()}
    wide = {"mu": np.zeros(3), "sigma": np.eye(3)}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"num_images": 90, "fid": entry, "fd_dinov2": wide}))
    fake = features(80, 2)
    result = evaluate(fake, tmp_path / "x.pkl", features="inception")
    assert result["fd"].label == "FID" and result.provenance["real"]["count"] == 90
    assert result["fd"].value == pytest.approx(evaluate(fake, real)["fd"].value, rel=1e-9)
    with pytest.raises(ValueError, match="holds statistics of inception, dinov2; say which with network="):
        evaluate(fake, tmp_path / "x.pkl")


# --- the embedded network --------------------------------------------------------------------------------------------


def test_embedded_network_end_to_end(tmp_path):
    fake = write_images(tmp_path / "fake", pixels(140, 1, side=28))
    result = evaluate(fake, pixels(150, 2, side=28))
    assert result["is"].label == "Classifier score (fashion-a)" and result["is"].value >= 1
    extractor = build_extractor("fashion-a")
    rows = extractor(torch.cat(list(open_images(fake).batches(140))))
    other = extractor(torch.from_numpy(pixels(150, 2, side=28))[:, None])
    expected = frechet_distance(FeatureMoments.from_features(rows), FeatureMoments.from_features(other))
    assert result["fd"].value == pytest.approx(expected, rel=1e-4)  # float32 features of other batches
    assert result.provenance["networks"][0]["weights_sha256"] == extractor.weights_sha256
    assert SCHEMA in result.to_json()


def test_batch_size_and_workers_change_nothing(tmp_path):
    """The shards are the same; a network's kernels may round otherwise for a handful of images than for many.

    Measured: features of batches of 1 to 7 are within 2e-6 of those of 256 (their size is 10), of 16 and more equal.
    """
    fake, real = write_images(tmp_path / "fake", pixels(140, 1, side=28)), pixels(150, 2, side=28)
    metrics = ["fd", "is", "kid", "mmd", "precision", "density"]
    options = {"metrics": metrics, "kid_subset_size": 70, "cache": False}
    expected = evaluate(fake, real, **options)
    for workers in (1, 3):
        assert evaluate(fake, real, workers=workers, **options).scores == expected.scores
    for size in (1, 7, 50, 1000):
        found = evaluate(fake, real, batch_size=size, **options)
        for score, other in zip(found.scores, expected.scores, strict=True):
            assert score.value == pytest.approx(other.value, rel=1e-5), (size, score.metric)
