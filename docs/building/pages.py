"""Hooks of the site: its navigation, and the pages outside docs/ that its pages link to.

A page of docs/ may link to any file of the repository, as ../bench/results/side_by_side.md.  Such a file becomes a page
or a picture of the site, below repository/, and so does whatever it links to in turn.  The links of every page are
written anew, so that one text serves the repository and the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = "repository/"  # folder of the site for files that are not below docs/

LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)#\s]+)((?:#[^)\s]*)?\))")  # ](path#anchor), not ](https:…) or ](#anchor)
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)

# Guides in the order in which a newcomer reads them; others follow by name.
READING_ORDER = ("own-images", "own-model", "prompts", "own-network", "own-reward", "other-trainers", "many-gpus")


def on_config(config: Any) -> Any:
    """Put the guides into the navigation, and pages that it does not name into its last section."""
    sections = {title: pages for section in config["nav"] for title, pages in section.items()}
    sections["Guides"] += [f"guides/{name}.md" for name in guides()]
    named = {page for pages in sections.values() for page in pages}
    docs = Path(config["docs_dir"])
    sections["Project"] += [page.name for page in sorted(docs.glob("*.md")) if page.name not in named]
    return config


def guides() -> list[str]:
    """Names of the guides that exist, in reading order."""
    names = [path.stem for path in (ROOT / "docs/guides").glob("*.md")]
    return sorted(names, key=lambda name: (READING_ORDER.index(name) if name in READING_ORDER else 99, name))


def on_files(files: Files, config: Any) -> Files:
    """Add every file outside docs/ that a page links to, directly or through others."""
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    waiting += [page.removeprefix(OUTSIDE) for page in _outside_of_nav(config["nav"])]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        if not path.startswith("docs/"):
            files.append(File.generated(config, site_uri(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            text = FENCE.sub("", (ROOT / path).read_text(encoding="utf-8"))
            found = (repository_path(path, target) for _, target, _ in LINK.findall(text))
            waiting += [target for target in found if target and not target.startswith("docs/")]
    return files


def _outside_of_nav(nav: list[dict[str, list[Any]]]) -> list[str]:
    pages = [page for section in nav for entries in section.values() for page in entries]
    return [page for page in pages if isinstance(page, str) and page.startswith(OUTSIDE)]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with its links to files of the repository as links of the site."""
    uri = page.file.src_uri
    path = uri.removeprefix(OUTSIDE) if uri.startswith(OUTSIDE) else f"docs/{uri}"

    def rewritten(link: re.Match[str]) -> str:
        target = repository_path(path, link[2])
        return link[0] if target is None else f"{link[1]}{relative(site_uri(target), uri)}{link[3]}"

    parts = FENCE.split(markdown)  # fenced blocks have odd numbers
    return "".join(part if i % 2 else LINK.sub(rewritten, part) for i, part in enumerate(parts))


def repository_path(page: str, target: str) -> str | None:
    """Path below the root of what the page links to; the README of a folder; None where there is no such file."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
    if (ROOT / path / "README.md").is_file():
        path = f"{path}/README.md"
    return path if (ROOT / path).is_file() else None


def site_uri(path: str) -> str:
    """Where the site has a file of the repository."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{OUTSIDE}{path}"


def relative(uri: str, page: str) -> str:
    """The link from a page of the site to another of its files."""
    return posixpath.relpath(uri, posixpath.dirname(page) or ".")
