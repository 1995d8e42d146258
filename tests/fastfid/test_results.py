"""JSON and text of a result."""

import json

import pytest

from fastfid import FeatureMoments
from fastfid.evaluation.difference import diff
from fastfid.evaluation.evaluate import evaluate
from fastfid.evaluation.html_report import BETTER
from fastfid.evaluation.scores import METRIC_SCORES
from fastfid.protocols import METRICS
from tests.support.small_network import features, pixels, small, write_images

pytestmark = pytest.mark.usefixtures("own_cache")


def test_json_schema(tmp_path):
    extractor, _ = small()
    result = evaluate(write_images(tmp_path / "fake", pixels(60, 1)), pixels(70, 2), features=extractor)
    report = json.loads(result.to_json())
    assert report["schema"] == "fastfid.evaluation/2"
    assert set(report) == {
        "schema", "samples", "real", "networks", "protocol", "settings", "seconds", "version",
        "commit", "command", "date", "torch", "device",
        "scores", "classes", "left_out", "warnings", "outliers", "neighbours",
    }  # fmt: skip
    assert set(report["samples"]) == {"name", "count", "images", "source_sha256", "skipped"}
    assert set(report["networks"][0]) == {"name", "dim", "preprocessing", "weights_sha256"}
    keys = {"metric", "label", "network", "value", "standard_error", "interval", "method", "details"}
    assert all(set(score) == keys for score in report["scores"])
    assert set(report["left_out"][0]) == {"metric", "network", "reason"}
    assert set(report["outliers"][0]) == {"network", "hurt", "help", "classes"}
    assert set(report["outliers"][0]["hurt"][0]) == {"index", "name", "change_if_left_out"}
    assert set(report["neighbours"][0]["nearest"][0]) == {"index", "name", "distance"}
    result.scores[0].details["bad"] = float("nan")
    assert json.loads(result.to_json())["scores"][0]["details"]["bad"] is None  # strict JSON has no NaN
    table = result.table()
    assert "FD (small)" in table and "95% " in table and "left out: sfid (small):" in table
    assert "samples: 60 images" in table


def test_one_reason_is_one_line_of_the_table():
    fixed = FeatureMoments.from_features(features(50, 2))
    table = evaluate(features(50, 1), fixed).table()
    metrics = "kid, mmd, sliced_wasserstein, precision, recall, density, coverage"
    assert f"left out: {metrics} (unknown network): the set of real images holds" in table
    assert table.count("left out:") == 3  # sfid, is and these


def test_names_neither_break_lines_nor_command_the_terminal(tmp_path):
    folder = write_images(tmp_path / "set\x1b[2J\nFID  0.1", pixels(60, 1))
    options = {"features": small()[0], "cache": False}
    for result in (
        evaluate(folder, pixels(70, 2), metrics=["fd"], **options),
        diff(folder, folder, pixels(70, 2), **options),
    ):
        lines = result.table().splitlines()
        assert all(line.isprintable() for line in lines)
        assert sum("set\\x1b[2J\\nFID  0.1" in line for line in lines) >= 1
        assert not any(line.startswith("FID  0.1") for line in lines)


def test_every_row_names_its_network_and_says_what_is_better():
    table = evaluate(features(60, 1), features(60, 2)).table()
    lines = {line.split(" (")[0]: line for line in table.splitlines()}
    assert "KID (unknown network) ↓" in table and "Precision (unknown network) ↑" in table
    assert all("↑" in lines[name] for name in ("Recall", "Density", "Coverage")) and "↓" in lines["MMD²"]


def test_the_only_subset_of_kid_has_no_spread():
    result = evaluate(features(60, 1), features(60, 2), metrics=["kid"])["kid"]
    assert result.method.startswith("all 60 rows, the only subset, kernel") and "std" not in result.method
    assert result.details["std_over_subsets"] is None and result.interval is not None
    several = evaluate(features(60, 1), features(61, 2), metrics=["kid"])["kid"]
    assert several.method.startswith("mean of 100 subsets of 60, std ") and several.details["std_over_subsets"] > 1e-6


def test_every_metric_has_its_score_and_its_words():
    assert set(METRIC_SCORES) == set(METRICS)
    assert set(BETTER) == set(METRICS) - {"outliers"} | {"fdr"}  # the first are no score, the other one needs a split
