"""The report is one self-contained file in which everything from outside is escaped."""

import pytest

from fastfid.evaluation.evaluate import evaluate
from fastfid.evaluation.html_report import report_html, write_report
from tests.support.small_network import features, pixels, small, write_images

pytestmark = pytest.mark.usefixtures("own_cache")


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
