"""Mismatches and mistakes of the sides are told in one sentence, most before an image is read."""

import json

import pytest
import torch
from torch import nn

from fastfid import FeatureMoments
from fastfid.evaluation.difference import diff
from fastfid.evaluation.evaluate import evaluate
from fastfid.statistics.statistics import Statistics
from tests.support.small_network import features, pixels, small, write_images

pytestmark = pytest.mark.usefixtures("own_cache")


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
        "the samples and the set of real images hold the same images: unbiased KID and MMD² fall below 0, and no "
        "interval is "
        "that of two independent draws"
    ]
    assert not any("same images" in w for w in evaluate(features(50, 1), features(50, 2)).warnings)


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
    assert two.left_out[0].metric == "outliers" and "real images, samples taken as fixed" in two["fd"].method
