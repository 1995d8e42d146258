"""The report is one self-contained file in which everything from outside is escaped."""

import re

import pytest
import torch

from fastfid.evaluation.classes_and_outliers import OF_CLASS
from fastfid.evaluation.evaluate import evaluate
from fastfid.evaluation.html_report import AXIS, _whisker, report_html, write_report
from fastfid.evaluation.results import Score
from tests.support.small_network import features, pixels, small, write_images

pytestmark = pytest.mark.usefixtures("own_cache")


def class_entry(name, precision, recall):
    return {
        "network": "<b>net</b>", "class": name, "samples": 20, "real": 30, "nearest_k": 5, "inclusive": False,
        "precision": precision, "precision_interval": (precision - 0.1, precision + 0.1), "recall": recall,
        "recall_interval": (recall - 0.1, recall + 0.1), "density": 1.0, "coverage": 0.5,
    }  # fmt: skip


def visible(page):
    """The text of a page without its style and its JSON."""
    return re.sub(r"<style>.*?</style>|<pre>.*?</pre>|<[^>]*>", " ", page, flags=re.DOTALL)


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
    assert page.count('<img alt="Samples and real images') == 2  # drawn by chance
    assert f"<b>{result['fd'].value:.5g}</b>" in page and f"{result['fd'].interval[0]:.4g} to" in page
    assert page.count('<svg class="whisker"') == len(result.scores)  # an interval beside each
    assert "<i>cat" not in page and page.index("dog</span>") < page.index(
        "&lt;i&gt;cat</span>"
    )  # the worst class first
    assert "<b>0.800</b><br><small>0.700 to 0.900</small>" in page
    assert (
        'name="viewport"' in page and "prefers-color-scheme: dark" in page and "reference" not in visible(page).lower()
    )
    assert all(f"{left.metric} (" in page for left in result.left_out)
    (hostile / entries["hurt"][0]["name"]).unlink()  # gone since: told, not fatal
    assert "cannot be shown" in report_html(result)
    without = report_html(evaluate(features(40, 1), features(40, 2)))
    assert "<img" not in without and "row " in without


def test_the_worst_samples_of_each_class(tmp_path):
    images, labels = pixels(60, 1), torch.arange(60) % 3
    result = evaluate(
        (torch.from_numpy(images), labels), pixels(70, 2), features=small()[0], metrics=["fd", "outliers"]
    )
    found = result.outliers[0]
    assert {entry["class"] for entry in found["classes"]} == {"0", "1", "2"}
    for entry in found["classes"]:
        changes = [each["change_if_left_out"] for each in entry["hurt"]]
        assert changes == sorted(changes) and 0 < len(changes) <= OF_CLASS and changes[-1] < 0
        assert all(labels[each["index"]] == int(entry["class"]) for each in entry["hurt"])
    assert found["classes"][0]["hurt"][0] == found["hurt"][0]  # the worst of all is the worst of its class
    page = report_html(result)
    assert "Worst samples of each class" in page and "by how much the distance falls without it" in page
    assert f">{abs(found['hurt'][0]['change_if_left_out']):.3g}</b>" in page


@pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 2.0, 9.0])
def test_whiskers_differ_and_do_not_saturate(share):
    def drawn(part):
        return _whisker(Score("fd", "FD", "net", -2.0, interval=(-2.0 - 2 * part, -2.0 + 2 * part)))

    this, wider = drawn(share), drawn(1.1 * share)
    assert 0 <= wider["low"] < this["low"] < AXIS / 2 < this["high"] < wider["high"] <= AXIS
    assert this["low"] + this["high"] == pytest.approx(AXIS)


def test_fd_against_the_number_of_samples():
    result = evaluate(features(900, 1), features(500, 2), metrics=["fd", "fd_infinity"])
    page = report_html(result)
    assert "against the number of samples" in page and page.count('class="mark"') == 15 + 1  # and the legend's
