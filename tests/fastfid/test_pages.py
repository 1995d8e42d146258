"""Templates of HTML pages escape what they show and miss nothing silently; charts show what they are given."""

import math
import re

import jinja2
import pytest

from fastfid.pages.charts import HOVERED, ROWS, SHAPES, Axis, Line, chart, histogram, number
from fastfid.pages.templates import template


@pytest.fixture
def page(tmp_path, monkeypatch):
    (tmp_path / "pages" / "templates").mkdir(parents=True)
    (tmp_path / "pages" / "__init__.py").touch()
    (tmp_path / "pages" / "templates" / "page.html.jinja").write_text("<p title='{{ name }}'>{{ name }}</p>\n")
    monkeypatch.syspath_prepend(tmp_path)
    return template("pages", "page.html.jinja")


def test_values_are_escaped(page):
    shown = "&lt;script&gt;&#39;&amp;"
    assert page.render(name="<script>'&") == f"<p title='{shown}'>{shown}</p>\n"


def test_a_missing_value_is_an_error(page):
    with pytest.raises(jinja2.UndefinedError, match="name"):
        page.render()


def test_all_reports_have_their_templates():
    for package, name in (("fastfid.evaluation", "report"), ("sit_rl.runs", "report"), ("sit_rl.study", "study")):
        assert template(package, f"{name}.html.jinja")


def test_a_chart_draws_every_point_where_it_is():
    drawn = chart("t", [Line("a", [(0, 1.0), (1, math.nan), (2, 3.0)]), Line("b", [(1, 2.0)], "dots")], "x", "y")
    assert [tick for _, tick in drawn.y_ticks] == ["0", "1", "2", "3"]  # from 0, round
    first, second = drawn.lines
    assert first["path"].count("M") == 2  # the gap
    assert second["path"] == "" and len(second["marks"]) == 1
    assert [point["text"] for point in first["hover"]] == ["a: 1 at 0", "a: 3 at 2"]
    assert drawn.rows == [["0", "1", ""], ["1", "", "2"], ["2", "3", ""]] and drawn.more == ""
    heights = {text: y for y, text in drawn.y_ticks}
    assert first["hover"][1]["y"] == heights["3"] < second["hover"][0]["y"] < first["hover"][0]["y"] == heights["1"]
    assert second["marks"] == [f"M{second['hover'][0]['x']} {heights['2']}{SHAPES['circle']}"]


def test_a_legend_shows_a_line_as_it_is_drawn():
    points = [(0, 1.0), (1, 2.0)]
    lines = [Line("a", points, mark="square"), Line("b", points, "dashed", 6, "diamond"), Line("c", points, "dots")]
    drawn = chart("t", lines, "x", "y")
    page = (
        template("fastfid.pages", "page.html.jinja")
        .environment.from_string("{% import 'parts.html.jinja' as parts %}{{ parts.chart(drawn) }}")
        .render(drawn=drawn)
    )
    legend = page.partition('<div class="legend">')[2].partition("</div>")[0]
    keys = legend.split("<svg ")[1:]
    assert [('class="curve"' in key, "curve dashed" in key) for key in keys] == [
        (True, False), (False, True), (False, False),
    ]  # fmt: skip
    assert all(SHAPES[shape] in key for shape, key in zip(("square", "diamond", "circle"), keys, strict=True))
    assert "key s6" in keys[1]


def test_a_chart_without_numbers_is_none():
    assert chart("t", [], "x", "y") is None and chart("t", [Line("a", [(0, math.inf)])], "x", "y") is None
    assert histogram("t", {"a": [], "b": [math.nan]}, "x", "y") is None


def test_a_long_line_is_thinned_where_it_is_read_and_not_where_it_is_drawn():
    drawn = chart("t", [Line("a", [(i, i**2) for i in range(1000)])], "x", "y")
    assert drawn.lines[0]["path"].count("L") == 999
    assert len(drawn.lines[0]["hover"]) <= HOVERED and len(drawn.rows) <= ROWS and "of 1,000" in drawn.more


@pytest.mark.parametrize("values", [[0.0], [-3.0, -3.0], [1e-9, 2e-9], [1e9, -1e9], [0.1, 0.7, 0.3]])
def test_an_axis_holds_its_values_and_has_numbers(values):
    axis = Axis.over(values, 0, 100, rounded=True)
    assert all(0 <= axis.place(value) <= 100 for value in values)
    assert 2 <= len(axis.ticks()) <= 12 and len({text for _, text in axis.ticks()}) == len(axis.ticks())


def test_a_histogram_counts_every_value():
    drawn = histogram("t", {"a": [0.0, 0.1, 0.9, 1.0] * 5, "b": [0.5] * 3}, "x", "y")
    counts = [sum(float(row[column]) for row in drawn.rows) for column in (1, 2)]
    assert counts == [20, 3]
    outline = re.findall(r"[ML]([\d.-]+) ", drawn.lines[0]["path"])
    assert drawn.box["left"] <= float(outline[0]) < float(outline[-1]) <= drawn.box["right"]  # whole bars


def test_numbers_are_short():
    assert [number(v) for v in (0.0, 12345.6, 0.74404, -3.1e-5, math.nan)] == ["0", "12,346", "0.744", "-3.1e-05", "–"]
