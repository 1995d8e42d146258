"""Hook of the site: equations as MathML, which every browser draws without a script.

Pages write equations as GitHub takes them: $x$, $`x`$ and blocks ```math.  Arithmatex finds them, latex2mathml turns
them into MathML while the site is built.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

QUOTED = re.compile(r"\$`([^`\n]+)`\$")
INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAYED = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """$`x`$ as $x$."""
    return QUOTED.sub(r"$\1$", markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Every equation of a page as MathML."""
    content = INLINE.sub(lambda found: f'<span class="inline-equation">{mathml(found[1], "inline")}</span>', content)
    return DISPLAYED.sub(lambda found: f'<div class="equation">{mathml(found[1], "block")}</div>', content)


def mathml(escaped: str, display: str) -> str:
    """MathML of LaTeX that is escaped for HTML; ValueError where a command is left as text."""
    latex = html.unescape(escaped).strip()
    made = convert(latex, display=display)
    if left := re.search(r">\\[a-zA-Z]+<", made):
        raise ValueError(
            f"the equation {latex!r} uses {left[0][1:-1]}, which latex2mathml does not know; write it otherwise"
        )
    return made
