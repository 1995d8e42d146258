"""Jinja2 templates of HTML pages: files in the folder templates/ of a package."""

import jinja2


def template(package: str, name: str) -> jinja2.Template:
    """The template `name` of a package such as "fastfid.evaluation"; it escapes every value that it shows.

    A variable that the template uses and its caller does not give raises jinja2.UndefinedError.
    """
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return pages.get_template(name)
