"""The emoji example, without npm: what is drawn, and that no variant of a held-out emoji is trained on."""

import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "examples" / "emoji" / "fetch.py"


@pytest.fixture(scope="module")
def fetch():
    spec = importlib.util.spec_from_file_location("emoji_fetch", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["emoji_fetch"] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["emoji_fetch"]


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("artist", "artist"),
        ("artist-medium-light-skin-tone", "artist"),
        ("artist-medium-light", "artist"),
        ("kiss-woman-man-dark-skin-tone-light-skin-tone", "kiss-woman-man"),
        ("backhand-index-pointing-up-dark", "backhand-index-pointing-up"),
    ],
)
def test_all_skin_tones_of_both_sets_are_one_emoji(fetch, name, base):
    assert fetch.base_of(fetch.PEOPLE, name) == base
    assert fetch.base_of("Symbols", "dark-button") == "dark-button"


def test_the_side_of_an_emoji_follows_from_its_name(fetch):
    held = [fetch.is_held_out(f"emoji-{i}") for i in range(2_000)]
    assert 0.12 < sum(held) / len(held) < 0.18 and held == [fetch.is_held_out(f"emoji-{i}") for i in range(2_000)]


def test_drawings_are_those_of_a_group_that_are_shown(fetch):
    icons = {"width": 32, "height": 32, "icons": {"a": {"body": "<path/>"}, "b": {"body": "", "hidden": True}}}
    files = {"icons": icons, "metadata": {"categories": {"Symbols": ["a", "b", "alias"]}}}
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, value in files.items():
            data = json.dumps(value).encode()
            info = tarfile.TarInfo(f"package/{name}.json")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    ((group, name, svg),) = fetch.drawings(content.getvalue())
    assert (group, name) == ("Symbols", "a") and 'viewBox="0 0 32 32"' in svg and "<path/>" in svg


def test_what_is_missing_is_one_sentence(fetch, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="exists; delete it, or name another folder"):
        fetch.main([str(tmp_path)])
    monkeypatch.setattr(fetch.shutil, "which", lambda _: None)
    with pytest.raises(SystemExit, match="npm is not installed"):
        fetch.fetched(fetch.PACKAGES[0], tmp_path)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(SystemExit, match="pip install resvg-py"):
        fetch.main([str(tmp_path / "new")])
