"""One pass: scores equal those of the peers on the same features, intervals hold, and what is missing is told."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastfid import FeatureExtractor, FeatureMoments, frechet_distance, kid, mmd, open_images
from fastfid.distances.leave_one_out import LeaveOneOut
from fastfid.evaluation.classes_and_outliers import nearest_rows
from fastfid.evaluation.difference import diff
from fastfid.evaluation.evaluate import compare, evaluate, statistics_of
from fastfid.evaluation.html_report import report_html, write_report
from fastfid.evaluation.inception_score import _mean_and_deviation, _parts, inception_score
from fastfid.evaluation.results import SCHEMA
from fastfid.features.extractor import MultiExtractor
from fastfid.features.registry import build_extractor, preprocessing_of
from fastfid.protocols import METRICS, PROTOCOLS
from fastfid.statistics.statistics import Statistics

D = 8  # features of the small network


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTFID_CACHE", str(tmp_path / "cache"))


def features(n, seed, shift=0.0, d=D):
    """float32 [n, d], correlated normal rows; the mixing is the same for every seed."""
    mixing = np.random.default_rng(99).normal(size=(d, d)) / np.sqrt(d)
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)) @ mixing + shift).float()


def pixels(n, seed, side=12):
    """uint8 [n, side, side]: smooth blobs whose place and brightness vary, and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    centres, bright = rng.uniform(2, side - 2, (n, 2)), rng.uniform(80, 200 + 5 * seed, n)
    square = (y - centres[:, :1, None]) ** 2 + (x - centres[:, 1:, None]) ** 2
    return (bright[:, None, None] * np.exp(-square / 8) + rng.uniform(0, 20, (n, side, side))).astype(np.uint8)


def write_images(folder, images):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:04}.png")
    return folder


class Small(nn.Module):
    """A random convolution, pooled: features [n, D]."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Conv2d(1, D, 5, stride=2)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return torch.relu(self.layer(x)).mean(dim=(2, 3))


def small(name="small"):
    module = Small()
    return FeatureExtractor.from_module(module, D, name=name), module


# --- scores ------------------------------------------------------------------------------------------------------


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


def test_inception_score_is_torch_fidelitys():
    metric = pytest.importorskip("torch_fidelity.metric_isc").isc_features_to_metric
    logits = 3 * features(237, 5, d=11)
    found = metric(logits, splits=10, shuffle=True, rng_seed=2020)
    expected = (found["inception_score_mean"], found["inception_score_std"])
    assert inception_score(logits) == pytest.approx(expected, rel=1e-12)
    ordered = metric(logits, splits=3, shuffle=False)["inception_score_mean"]
    assert inception_score(logits, 3, None)[0] == pytest.approx(ordered, rel=1e-12)
    assert inception_score(torch.zeros(20, 4)) == pytest.approx((1.0, 0.0))
    parts = [metric(part, splits=1, shuffle=False)["inception_score_mean"] for part in logits.split(100)]
    ours = _mean_and_deviation(_parts(logits, [0, 100, 200, 237], None))[0]
    assert ours == pytest.approx(np.mean(parts), rel=1e-12)
    sure = 1000 * torch.eye(4).repeat(5, 1)
    assert inception_score(sure, 1)[0] == pytest.approx(4.0)
    with pytest.raises(ValueError, match="splits is 30 for 20 rows"):
        inception_score(torch.zeros(20, 4), 30)


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


# --- uncertainty -------------------------------------------------------------------------------------------------


def test_leave_one_out_and_jackknife_against_brute_force():
    fake, real = features(30, 1, 0.3).double(), features(40, 2).double()
    whole = frechet_distance(FeatureMoments.from_features(fake), FeatureMoments.from_features(real))

    def without(x, other, i):
        kept = torch.cat([x[:i], x[i + 1 :]])
        return frechet_distance(FeatureMoments.from_features(kept), FeatureMoments.from_features(other)) - whole

    changes = {}
    for name, x, other in (("fake", fake, real), ("real", real, fake)):
        changes[name] = torch.tensor([without(x, other, i) for i in range(len(x))], dtype=torch.float64)
        moments = [FeatureMoments.from_features(rows) for rows in (x.float(), other)]
        ours = LeaveOneOut(*moments).without_first(x.float())
        torch.testing.assert_close(ours, changes[name], rtol=1e-3, atol=2e-5)  # float32 rows
    expected = sum(  # the textbook's formula, from the leave-one-out distances themselves
        (len(c) - 1) / len(c) * ((whole + c) - (whole + c).mean()).square().sum() for c in changes.values()
    )
    score = evaluate(fake.float(), real.float(), metrics=["fd"])["fd"]
    assert score.standard_error == pytest.approx(expected.sqrt().item(), rel=1e-3)
    low, high = score.interval
    assert high - score.value == pytest.approx(1.959964 * score.standard_error) == score.value - low
    assert score.method.startswith("jackknife over samples and reference;")
    assert score.details["jackknife_bias_samples"] == pytest.approx(29 * changes["fake"].mean().item(), rel=1e-2)
    assert score.details["jackknife_bias_reference"] == pytest.approx(39 * changes["real"].mean().item(), rel=1e-2)


def test_standard_error_is_the_spread_of_repeated_draws():
    """60 independent draws of both sides: their spread against the mean of the jackknife's errors, within 25%."""
    scores = [evaluate(features(300, 1000 + i, 0.3), features(300, 5000 + i), metrics=["fd"])["fd"] for i in range(60)]
    spread = np.std([score.value for score in scores], ddof=1)
    assert np.mean([score.standard_error for score in scores]) == pytest.approx(spread, rel=0.25)  # of 60: ± 9%


def test_outliers_and_neighbours_are_found():
    real = features(200, 1)
    fake = torch.cat([features(100, 2), 40 * torch.ones(1, D), real[7:8]])
    result = evaluate(fake, real, metrics=["fd", "outliers"])
    (found,) = result.outliers
    worst = found["hurt"][0]
    assert worst["index"] == 100 and worst["name"] == "row 100" and worst["change_if_left_out"] < 0
    kept = evaluate(torch.cat([fake[:100], fake[101:]]), real, metrics=["fd"])
    assert kept["fd"].value - result["fd"].value == pytest.approx(worst["change_if_left_out"], rel=1e-4)
    assert all(entry["change_if_left_out"] > 0 for entry in found["help"])
    copied = next(entry for entry in result.neighbours if entry["index"] == 101)  # the last one is among the spaced
    assert copied["nearest"][0]["index"] == 7 and copied["nearest"][0]["distance"] == 0


def test_nearest_rows_are_exact():
    queries, rows = features(5, 1), features(1300, 2)  # three blocks
    distances, indices = nearest_rows(queries, rows, 4)
    full = (queries.double()[:, None] - rows.double()).square().sum(-1).sqrt()
    assert torch.equal(indices, full.argsort(dim=1)[:, :4])
    torch.testing.assert_close(distances, full.sort(dim=1).values[:, :4])
    assert nearest_rows(queries, rows[:2], 4)[0].shape == (5, 2)


def test_fd_infinity_removes_the_bias_of_finite_n():
    """Two sets of one distribution: FD_N falls like 1/N, its limit is 0."""
    fake, real = features(2000, 1), features(40000, 2)
    result = evaluate(fake, real, metrics=["fd", "fd_infinity"])
    infinity = result["fd_infinity"]
    assert abs(infinity.value) < 0.3 * result["fd"].value and infinity.details["slope"] > 0
    assert infinity.details["sizes"][0] == 200 and infinity.details["sizes"][-1] == 2000
    assert infinity.details["distances"][-1] == pytest.approx(result["fd"].value, rel=1e-9)
    few = evaluate(features(20, 1), real, metrics=["fd_infinity"]).left_out[0]
    assert few.reason == "20 samples are too few for subsets of 16 and more; d = 8 needs at least 32"


def test_fd_infinity_measures_the_subsets_it_draws():
    """Large subsets take the others' rows out of the whole: equal up to rounding, far below 1e-9."""
    fake, real = features(400, 1), features(500, 2)
    details = evaluate(fake, real, metrics=["fd_infinity"])["fd_infinity"].details
    rng, reference = np.random.RandomState(2020), FeatureMoments.from_features(real)
    for size, distance in zip(details["sizes"], details["distances"], strict=True):
        chosen = fake[torch.from_numpy(rng.choice(400, size, replace=False))]
        assert distance == pytest.approx(frechet_distance(FeatureMoments.from_features(chosen), reference), rel=1e-9)


# --- what statistics can and cannot give -------------------------------------------------------------------------


def test_statistics_only_reference_gives_what_it_can(tmp_path):
    real, fake = features(90, 1), features(80, 2)
    mu, sigma = real.double().mean(0), torch.cov(real.double().T)
    np.savez(tmp_path / "peer.npz", mu=mu.numpy(), sigma=sigma.numpy())
    result = evaluate(fake, tmp_path / "peer.npz")
    full = evaluate(fake, real)
    assert result["fd"].value == pytest.approx(full["fd"].value, rel=1e-12)
    assert "jackknife over samples, reference taken as fixed" in result["fd"].method
    assert result["fd"].standard_error < full["fd"].standard_error
    left = {entry.metric: entry.reason for entry in result.left_out}
    assert set(left) == {"sfid", "is", "kid", "mmd", "precision", "recall", "density", "coverage"}
    assert "peer.npz holds statistics only; pass its images" in left["recall"]
    with pytest.raises(KeyError, match="recall was left out: .*peer.npz holds statistics only"):
        result["recall"]
    assert result.outliers[0]["hurt"] and result.neighbours == []
    both = evaluate(tmp_path / "peer.npz", tmp_path / "peer.npz")
    assert both["fd"].interval is None and abs(both["fd"].value) < 1e-9
    assert {entry.metric for entry in both.left_out} == set(METRICS) - {"fd"}
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
            set() if keep else {"kid", "mmd", "precision", "recall", "density", "coverage"}
        )
    known = statistics.provenance
    assert known["source"] == str(real) and known["protocol"] == "fastfid" and known["dtype"] == "float32"
    assert known["source_sha256"] == expected.provenance["reference"]["source_sha256"]
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
    assert "reference taken as fixed" in result["fd"].method  # its 50 images are not what mu is of
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
    assert result["fd"].label == "FID" and result.provenance["reference"]["count"] == 90
    assert result["fd"].value == pytest.approx(evaluate(fake, real)["fd"].value, rel=1e-9)
    with pytest.raises(ValueError, match="holds statistics of inception, dinov2; say which with network="):
        evaluate(fake, tmp_path / "x.pkl")


# --- mismatches and mistakes -------------------------------------------------------------------------------------


def test_provenance_mismatch_is_an_error_before_images_are_read_and_a_warning_when_forced():
    extractor, module = small()
    foreign = Statistics.from_features(features(90, 1), {"extractor": "small", "weights_sha256": "0" * 64}, name="old")
    images = pixels(60, 1)
    with pytest.raises(ValueError, match=r"of old is 000.*, that of the network small is .*force=True \(--force\)"):
        evaluate(images, foreign, features=extractor)
    assert module.calls == 0
    result = evaluate(images, foreign, features=extractor, force=True)
    assert any("compared regardless of a mismatch: the weights sha256 of" in warning for warning in result.warnings)
    assert any("mismatch" in warning for warning in json.loads(result.to_json())["warnings"])
    narrow = Statistics.from_features(features(90, 1, d=3), name="narrow")
    with pytest.raises(ValueError, match="narrow has d = 3 features, the network small has d = 8"):
        evaluate(images, narrow, features=extractor, force=True)
    named = Statistics.from_features(features(90, 1), {"extractor": "fashion-a"}, name="theirs")
    with pytest.raises(ValueError, match="theirs holds features of fashion-a, not of inception"):
        evaluate(named, named, features="inception")


def test_mistakes_are_one_sentence(tmp_path):
    extractor, _ = small()
    for call, message in [
        (lambda: evaluate(features(9, 1), features(9, 2), metrics=["fid"]), "unknown metric 'fid'; choose of fd, sfid"),
        (lambda: evaluate(features(9, 1), features(9, 2), metrics=[]), "unknown metric"),
        (lambda: evaluate(features(9, 1), features(9, 2), features=[]), "features is empty; name a network"),
        (lambda: evaluate(features(9, 1), features(9, 2), protocol="x"), "unknown protocol 'x'"),
        (lambda: evaluate(pixels(1, 1), pixels(9, 2), features=extractor), "the samples holds 1 usable image;"),
        (lambda: evaluate(pixels(9, 1), pixels(9, 2), features=extractor, batch_size=0), "the batch size is 0"),
        (lambda: evaluate(torch.rand(4, 3, 8, 8), pixels(9, 2)), "does not tell its range; pass value_range"),
        (lambda: evaluate(tmp_path / "nowhere", pixels(9, 2)), "nowhere does not exist"),
        (lambda: evaluate(pixels(9, 1), pixels(9, 2), features=nn.Flatten()), "features is a bare Flatten; say its"),
        (lambda: evaluate(features(9, 1), features(9, 2), metrics=["recall"], nearest_k=0), "nearest_k is 0; it"),
        (lambda: evaluate(features(9, 1), features(9, 2), metrics=["kid"], kid_subset_size=0), "subset_size is 0"),
        (lambda: evaluate(tmp_path / "nowhere", pixels(9, 2), nearest_k=-1), "nearest_k is -1; it counts"),
        (lambda: evaluate(tmp_path / "nowhere", pixels(9, 2), kid_subset_size=1), "kid_subset_size is 1; an unbiased"),
        (lambda: evaluate(tmp_path / "nowhere", pixels(9, 2), batch_size=2.5), "the batch size is 2.5; it must"),
        (lambda: evaluate(tmp_path / "nowhere", pixels(9, 2), seed=-1), "seed is -1; NumPy's"),
        (lambda: evaluate(torch.zeros(8, 9, 3, dtype=torch.uint8), pixels(9, 2)), "one colour image or 8 grey ones"),
        (lambda: diff(features(2, 1), features(9, 2), features(9, 3)), "^A holds 2 images; an interval needs 3"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_an_unknown_setting_is_named():
    with pytest.raises(TypeError, match="unknown argument nearest; the settings are weights, device"):
        evaluate(features(9, 1), features(9, 2), nearest=3)


def test_statistics_without_features_are_refused_before_images_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("fastfid.evaluation.sides.extract", lambda *_: pytest.fail("an image was read"))
    extractor, _ = small()
    moments = FeatureMoments.from_features(features(50, 1))
    torch.save({"mu": moments.mean, "sigma": moments.cov}, tmp_path / "moments.pt")
    for source in (moments, tmp_path / "moments.pt"):
        for sides in ((source, pixels(9, 1)), (pixels(9, 1), source)):
            with pytest.raises(ValueError, match="holds statistics only, and an interval needs its images"):
                diff(*sides, pixels(9, 2), features=extractor)


def test_the_same_images_on_both_sides_are_told():
    told = [w for w in evaluate(features(50, 1), features(50, 1)).warnings if "hold the same images" in w]
    assert told == [
        "the samples and the reference hold the same images: unbiased KID and MMD² fall below 0, and no interval is "
        "that of two independent draws"
    ]
    assert not any("same images" in w for w in evaluate(features(50, 1), features(50, 2)).warnings)


def test_one_reason_is_one_line_of_the_table():
    fixed = FeatureMoments.from_features(features(50, 2))
    table = evaluate(features(50, 1), fixed).table()
    assert "left out: kid, mmd, precision, recall, density, coverage (unknown network): the reference holds" in table
    assert table.count("left out:") == 3  # sfid, is and these


def test_weights_of_several_networks(tmp_path):
    images, both = pixels(9, 1, side=28), ["fashion-a", "fashion-b"]
    with pytest.raises(ValueError, match=r"one weights file for 2 networks; pass weights={network: path}"):
        evaluate(images, images, features=both, weights="x.safetensors")
    with pytest.raises(FileNotFoundError, match="the weights of fashion-b are missing .*none.safetensors"):
        evaluate(images, images, features=both, weights={"fashion-b": tmp_path / "none.safetensors"})


def test_repairs_are_told(tmp_path):
    extractor, _ = small()
    folder = write_images(tmp_path / "fake", pixels(30, 1))
    (folder / "0005.png").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="0005.png in"):
        evaluate(folder, pixels(40, 2), features=extractor)
    result = evaluate(folder, pixels(40, 2), features=extractor, skip_corrupt=True)
    assert any(": 1 unreadable image, the first: 0005" in w and "0005.png in" in w for w in result.warnings)
    assert result.provenance["samples"]["count"] == 29 and len(result.provenance["samples"]["skipped"]) == 1
    few = evaluate(pixels(6, 1), pixels(40, 2), features=extractor, metrics=["fd", "outliers"])
    assert "the samples: 6 images for d = 8 features: the distance is biased upwards, use more" in few.warnings
    two = evaluate(features(2, 1), features(40, 2), metrics=["fd", "outliers"])  # leaving one out leaves no covariance
    assert two.left_out[0].metric == "outliers" and "reference, samples taken as fixed" in two["fd"].method


# --- output ------------------------------------------------------------------------------------------------------


def test_json_schema(tmp_path):
    extractor, _ = small()
    result = evaluate(write_images(tmp_path / "fake", pixels(60, 1)), pixels(70, 2), features=extractor)
    report = json.loads(result.to_json())
    assert report["schema"] == "fastfid.evaluation/1"
    assert set(report) == {
        "schema", "samples", "reference", "networks", "protocol", "settings", "seconds", "version",
        "scores", "classes", "left_out", "warnings", "outliers", "neighbours",
    }  # fmt: skip
    assert set(report["samples"]) == {"name", "count", "images", "source_sha256", "skipped"}
    assert set(report["networks"][0]) == {"name", "dim", "preprocessing", "weights_sha256"}
    keys = {"metric", "label", "network", "value", "standard_error", "interval", "method", "details"}
    assert all(set(score) == keys for score in report["scores"])
    assert set(report["left_out"][0]) == {"metric", "network", "reason"}
    assert set(report["outliers"][0]) == {"network", "hurt", "help"}
    assert set(report["outliers"][0]["hurt"][0]) == {"index", "name", "change_if_left_out"}
    assert set(report["neighbours"][0]["nearest"][0]) == {"index", "name", "distance"}
    result.scores[0].details["bad"] = float("nan")
    assert json.loads(result.to_json())["scores"][0]["details"]["bad"] is None  # strict JSON has no NaN
    table = result.table()
    assert "FD (small)" in table and "95% " in table and "left out: sfid (small):" in table
    assert "samples: 60 images" in table


def class_entry(name, precision, recall):
    return {
        "network": "<b>net</b>", "class": name, "samples": 20, "reference": 30, "nearest_k": 5, "inclusive": False,
        "precision": precision, "precision_interval": (precision - 0.1, precision + 0.1), "recall": recall,
        "recall_interval": (recall - 0.1, recall + 0.1), "density": 1.0, "coverage": 0.5,
    }  # fmt: skip


def test_html_report(tmp_path):
    extractor, _ = small("<b>net</b>")
    hostile = tmp_path / "<script>alert(1)<"
    write_images(hostile, pixels(60, 1))
    (hostile / "0000.png").rename(hostile / "'onload='x.png")
    result = evaluate(hostile, write_images(tmp_path / "real", pixels(70, 2)), features=extractor)
    result.classes = [class_entry("<i>cat", 0.9, 0.2), class_entry("dog", 0.8, 0.1)]
    page = write_report(result, tmp_path / "report.html").read_text()
    assert page == report_html(result)
    assert "<script" not in page and "<b>net" not in page and "'onload=" not in page
    assert "&lt;script&gt;alert(1)&lt;" in page and "&lt;b&gt;net" in page
    assert "http" not in page.replace("https://arxiv", "")  # nothing is fetched
    entries = result.outliers[0]
    pictures = len(entries["hurt"]) + len(entries["help"]) + sum(1 + len(n["nearest"]) for n in result.neighbours)
    assert page.count("<img alt='' src='data:image/png;base64,") == pictures > 40
    assert f"<b>{result['fd'].value:.5g}</b>" in page and f"{result['fd'].interval[0]:.4g} to" in page
    assert page.count("<svg") == len(result.scores)  # an interval beside each
    assert "<i>cat" not in page and page.index("dog</td>") < page.index("&lt;i&gt;cat</td>")  # the worst class first
    assert "<b>0.800</b> <small>0.700 to 0.900</small>" in page
    assert all(f"{left.metric} (" in page for left in result.left_out)
    (hostile / entries["hurt"][0]["name"]).unlink()  # gone since: told, not fatal
    assert "cannot be shown" in report_html(result)
    without = report_html(evaluate(features(40, 1), features(40, 2)))
    assert "<img" not in without and "row " in without


# --- diff --------------------------------------------------------------------------------------------------------


def test_diff_tells_the_better_one():
    real = features(300, 1)
    near, far = features(250, 2, 0.02), features(260, 3, 0.5)
    result = diff(near, far, real)
    assert result.better == "A" and result.interval[1] < 0 and diff(far, near, real).better == "B"
    a, b = (evaluate(x, real, metrics=["fd"])["fd"] for x in (near, far))
    assert (result.a, result.b) == pytest.approx((a.value, b.value), rel=1e-12)
    assert result.difference == pytest.approx(a.value - b.value) and "is nearer to the reference" in result.table()
    same = diff(features(250, 4), features(250, 5), real)
    assert same.better is None and same.interval[0] < 0 < same.interval[1]
    assert "no difference can be told" in same.table()
    report = json.loads(result.to_json())
    assert report["schema"] == "fastfid.difference/1" and set(report["provenance"]) >= {"A", "B", "reference"}


def test_diff_interval_pairs_what_the_sides_share():
    """Against 40 independent draws of all three sides: the spread of the difference, within a third."""
    results = [
        diff(features(200, 100 + i, 0.3), features(200, 300 + i, 0.3), features(200, 500 + i)) for i in range(40)
    ]
    spread = np.std([r.difference for r in results], ddof=1)
    assert np.mean([r.standard_error for r in results]) == pytest.approx(spread, rel=0.33)  # of 40: ± 11%
    fake, real = features(200, 1, 0.3), features(200, 2)
    assert diff(fake, fake, real, same_noise=True).standard_error == pytest.approx(0, abs=1e-12)
    assert diff(fake, fake, real).standard_error > 0.01
    fixed = diff(fake, features(200, 3), FeatureMoments.from_features(real))
    assert "reference taken as fixed" in fixed.method


def test_diff_mistakes():
    fake, real = features(20, 1), features(30, 2)
    with pytest.raises(ValueError, match="same_noise pairs images, but A has 20 and B 30; pass equal numbers"):
        diff(fake, real, real, same_noise=True)
    with pytest.raises(ValueError, match="^A holds statistics only, and an interval needs its images"):
        diff(FeatureMoments.from_features(fake), fake, real)
    with pytest.raises(ValueError, match="diff compares in one network, 2 were given"):
        diff(pixels(9, 1), pixels(9, 2), pixels(9, 3), features=[small("x")[0], small("y")[0]])


# --- the embedded network ----------------------------------------------------------------------------------------


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
