"""The documentation as a site: its links, its equations, its reference, and that nothing of it asks the network."""

import ast
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import yaml

import fastfid
from docs.building import docstrings, equations, pages, reference
from docs.screenshots import NoBrowser, browser
from sit_rl import cli
from tests.support.documents import BLOCK, DOCS, PAGES, ROOT

# --- links -----------------------------------------------------------------------------------------------------------


class Page:
    """What mkdocs hands to the hooks, as far as they look at it."""

    def __init__(self, uri):
        self.file = type("File", (), {"src_uri": uri})()


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("training.md", "[x](results.md#a)", "[x](results.md#a)"),
        ("training.md", "[x](../README.md)", "[x](repository/README.md)"),
        ("guides/x.md", "[x](../../sit_rl/slurm/README.md#y)", "[x](../repository/sit_rl/slurm/README.md#y)"),
        ("repository/README.md", "[x](docs/faq.md)", "[x](../faq.md)"),
        ("repository/README.md", "![x](bench/results/fashion/samples.png)", "![x](bench/results/fashion/samples.png)"),
        ("training.md", "[x](https://a.b/c) [y](#z) [w](../sit_rl/slurm)",
         "[x](https://a.b/c) [y](#z) [w](repository/sit_rl/slurm/README.md)"),
        ("training.md", "```\n[x](../README.md)\n```", "```\n[x](../README.md)\n```"),
    ],
)  # fmt: skip
def test_links_lead_from_the_repository_to_the_site(page, link, expected):
    assert pages.on_page_markdown(link, Page(page)) == expected


def test_every_guide_has_its_place_and_the_known_ones_come_in_reading_order():
    order = pages.guides()
    known = [name for name in order if name in pages.READING_ORDER]
    assert known == sorted(known, key=pages.READING_ORDER.index) and order[: len(known)] == known
    assert set(order) == {path.stem for path in (ROOT / "docs/guides").glob("*.md")}


# --- equations -------------------------------------------------------------------------------------------------------


def test_every_equation_of_the_pages_becomes_mathml():
    count = 0
    for page in DOCS:
        text = BLOCK.sub(lambda found: found[0] if found["language"] == "math" else "", page.read_text())
        for block, quoted, inline in re.findall(r"```math\n(.*?)```|\$`([^`]+)`\$|\$([^$`\n]+)\$", text, re.DOTALL):
            made = equations.mathml(block or quoted or inline, "block" if block else "inline")
            assert made.startswith("<math"), page
            count += 1
    assert count > 300


def test_equations_are_replaced_and_unknown_commands_refused():
    content = r'<span class="arithmatex">\(a &lt; b\)</span><div class="arithmatex">\[\nx^2\n\]</div>'.replace(
        r"\n", "\n"
    )
    made = equations.on_page_content(content)
    assert made.count("<math") == 2 and 'display="block"' in made and "arithmatex" not in made and "&#x0003C;" in made
    assert equations.on_page_markdown("$`x_1`$") == "$x_1$"
    with pytest.raises(ValueError, match=r"uses \\nosuchcommand"):
        equations.mathml(r"\nosuchcommand{x}", "inline")


# --- reference -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made():
    """The pages of the reference, with the help of every command."""
    return reference.pages()


def test_the_reference_has_every_public_name_of_fastfid():
    found = [path for paths in reference.public_names().values() for path in paths]
    assert len(set(found)) == len(found) and {path.split(".")[-1] for path in found} >= set(fastfid.__all__)
    for path in found:
        assert reference._first_sentence(path), f"{path} has no docstring"
    assert set(reference.public_names()) <= set(reference.FASTFID_ROOMS), "give the room a title"


def test_the_reference_has_what_the_readme_names(made):
    """Names imported by its Python, methods called there, modules and commands."""
    text = (ROOT / "README.md").read_text()
    everything = "\n".join(made.values())
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    paths = [path for paths in reference.public_names().values() for path in paths]
    files = {ROOT / f"{path.rsplit('.', 1)[0].replace('.', '/')}.py" for path in paths}
    files = {file for file in files if file.is_file()}  # not the folder of a whole module
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]  # importing them takes seconds
    methods = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    for node in (node for block in blocks for node in ast.walk(ast.parse(block))):
        if isinstance(node, ast.ImportFrom):
            assert all(f'heading: "fastfid.{name.name}"' in everything for name in node.names), ast.dump(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr in methods
    for module in set(re.findall(r"-m (sit_rl[\w.]+)", text)):
        assert f"::: {module}\n" in everything, module
    for words in set(re.findall(r"^fastfid(?: (eval|diff|stats|convert|info))?", text, re.MULTILINE)):
        assert f"## `{' '.join(['fastfid', *([words] if words else [])])}`" in made["reference/commands.md"]
    commands = made["reference/commands.md"]
    for name in (*cli.commands(), "pretrain base", "train --help-all"):
        assert f"## `sit-rl {name}`" in commands, name
    assert "--reference {rolling,refresh,fresh}" in commands.partition("train --help-all`")[2]


def test_the_reference_has_what_the_blocks_of_the_pages_import(made):
    everything = "\n".join(made.values())
    blocks = [block for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]
    nodes = [node for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom)]
    named = {
        f"{node.module}.{name.name}"
        for node in nodes
        for name in node.names
        if node.module.partition(".")[0] == "fastfid"
    }
    assert {"fastfid.SwapEngine", "fastfid.evaluation.lightning_callback.GeneratorMetrics"} <= named
    for name in named:
        places = (name, f"fastfid.{name.rpartition('.')[2]}")  # some names of a room are fastfid's, too
        assert any(f'heading: "{place}"' in everything for place in places), name


def test_the_reference_has_every_module_that_a_page_names(made):
    everything = "\n".join(made.values())
    named = {path for page in PAGES for path in re.findall(r"`(sit_rl/[\w/]+\.py)(?:::\w+)?`", page.read_text())}
    assert len(named) > 10
    for path in {path for path in named if (ROOT / path).is_file() and not path.endswith("__init__.py")}:
        assert f"::: {path.removesuffix('.py').replace('/', '.')}\n" in everything, path


def test_aligned_paragraphs_of_docstrings_become_tables():
    table = "feature  2048   a layer,\n                or a module\nreal     False  |x|"
    docstring = f"One sentence [n, d] [d].\n\n{table}\n\n    code [a] [b]"
    made = docstrings.with_tables(docstring)
    assert "| `feature` | 2048 | a layer, or a module |\n| `real` | False | \\|x\\| |" in made
    assert made.startswith("One sentence [n, d] \\[d].") and made.endswith("    code [a] [b]")
    assert docstrings.with_tables("words  of a\nsentence") == "words  of a\nsentence"
    two = docstrings.with_tables("mean   float64 [d]\ncount  number of rows")
    assert two.startswith("| name | meaning |\n|---|---|\n| `mean` | float64 [d] |")


# --- the whole site --------------------------------------------------------------------------------------------------


class Loaded(HTMLParser):
    """Addresses of what a page loads by itself."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "audio"):
            self.found.append(values.get("src") or "")
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload", "preconnect", "dns-prefetch"):
            self.found.append(values.get("href") or "")


def test_what_a_page_loads_is_seen():
    reader = Loaded()
    reader.feed(
        '<script src="https://x/y.js"></script><link rel="stylesheet" href="//z/a.css"><a href="https://b">b</a>'
    )
    assert reader.found == ["https://x/y.js", "//z/a.css"]


def test_the_theme_is_told_to_load_nothing_from_elsewhere():
    text = re.sub(r"!!python\S+( \{.*\})?", "null", (ROOT / "mkdocs.yml").read_text())
    settings = yaml.safe_load(text)
    assert settings["theme"]["font"] is False and "repo_url" not in settings and "analytics" not in settings["extra"]
    assert not any("mermaid" in page.read_text() for page in DOCS)  # the theme would fetch its script


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_search_works_from_a_folder(site):
    """In a browser without network and without a server."""
    try:
        with browser() as chromium:
            context = chromium.new_context(offline=True)
            tab = context.new_page()
            tab.goto((site / "guides/own-images.html").as_uri())
            tab.locator(".md-search__input").click()
            tab.locator(".md-search__input").press_sequentially("duplicates")  # the theme listens to keys
            first = tab.locator(".md-search-result__link").first
            first.wait_for(timeout=20_000)
            assert any(
                "own-images" in link.get_attribute("href") for link in tab.locator(".md-search-result__link").all()
            )
            first.click()
            tab.wait_for_url("file://**")
            context.close()
    except NoBrowser as missing:
        pytest.skip(str(missing))


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_nothing_of_the_network(site):
    built = list(site.rglob("*.html"))
    assert len(built) > len(DOCS)
    for page in built:
        reader = Loaded()
        reader.feed(page.read_text())
        assert not [url for url in reader.found if re.match(r"(https?:)?//", url)], page
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert not re.findall(r"url\(['\"]?(?:https?:)?//[^)]+\)", styles)
    for paths in reference.public_names().values():
        for path in paths:
            page = (site / f"reference/fastfid/{path.split('.')[1]}.html").read_text()
            assert f'id="{path}"' in page, path
    assert "<math" in (site / "mathematics.html").read_text()
