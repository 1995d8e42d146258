"""Templates of HTML pages escape what they show and miss nothing silently."""

import jinja2
import pytest

from fastfid.runtime.templates import template


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


def test_both_reports_have_their_templates():
    assert template("fastfid.evaluation", "report.html.jinja") and template("sit_rl.runs", "report.html.jinja")
