"""Jinja2 templates of HTML pages: files in the folder templates/ of a package, over those that all pages share.

A page extends page.html.jinja and uses the macros of parts.html.jinja; style.css is its design, light and dark, from a
phone's width on.  A page needs no other file and no script.
"""

from __future__ import annotations

from functools import cache

import jinja2

SHARED = "fastfid.pages"


@cache
def template(package: str, name: str) -> jinja2.Template:
    """The template `name` of a package such as "fastfid.evaluation"; it escapes every value that it shows.

    A variable that the template uses and its caller does not give raises jinja2.UndefinedError.
    """
    pages = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package), jinja2.PackageLoader(SHARED)]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return pages.get_template(name)
