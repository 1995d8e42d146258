"""Every code block of the pages runs, or says why it does not."""

import pytest

from tests.support.documents import PAGES, ROOT, blocks_of, example_files, run_page, shell_commands

RUNNABLE = [page for page in PAGES if any(block.language for block in blocks_of(page.read_text()))]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder with the files that pages take as given."""
    monkeypatch.setenv("FASTFID_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    example_files(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run_or_say_why_not(page, folder, capsys):
    names = run_page(page.read_text(), folder)
    if page.name == "README.md" and page.parent == ROOT:
        assert names["change"].shape == (3,) and names["each"].shape == (3, 4)
        assert float(capsys.readouterr().out.splitlines()[-1]) > 0 and (folder / "report.html").is_file()


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ("```bash\ntorchrun sit_rl/train.py\n```", "no command that tests run; say why"),
        ("```bash\nfastfid A NOWHERE\n```", "ended with status 2"),
        ("```python\nassert False, 'it ran'\n```", "it ran"),
        ("```julia\n1\n```", "a language that no test knows"),
    ],
)
def test_a_block_that_does_not_run_is_noticed(block, complaint, folder):
    with pytest.raises(AssertionError, match=complaint):
        run_page(block, folder)


def test_blocks_are_found_with_their_reasons():
    text = "x\n<!-- not run: long -->\n```bash\na \\\n  b  # c\nd && e\n```\n- y\n  ```python\n  1\n  ```\n"
    first, second = blocks_of(text)
    assert (first.reason, first.line) == ("long", 3) and list(shell_commands(first.code)) == [["a", "b"], ["d"], ["e"]]
    assert (second.language, second.code, second.reason) == ("python", "1\n", None)
    with_module = "<!-- run with {} only -->\n```python\n1\n```"
    assert [blocks_of(with_module.format(name))[0].reason for name in ("Torch", "Nowhere")] == [None, "without Nowhere"]
    assert {block.reason for block in blocks_of(f"<!-- blocks of this page are not run: far -->\n{text}")} == {
        "long",
        "far",
    }


def test_python_that_is_not_run_is_still_python(folder):
    with pytest.raises(SyntaxError):
        run_page("<!-- not run: slow -->\n```python\n1 +\n```", folder)
