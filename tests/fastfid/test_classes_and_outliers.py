"""Images that hurt and help most, and nearest real images."""

import pytest
import torch

from fastfid.evaluation.classes_and_outliers import nearest_rows
from fastfid.evaluation.evaluate import evaluate
from tests.support.small_network import D, features

pytestmark = pytest.mark.usefixtures("own_cache")


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
