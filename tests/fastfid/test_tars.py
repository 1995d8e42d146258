"""WebDataset tars: images and classes by name, and what is refused in one sentence."""

import io
import re
import tarfile

import pytest
import torch

from fastfid import open_images
from tests.support.pictures import all_images, channels_first, encoded, error_of, picture


def tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


FILES = {"./b.png": encoded(picture(1)), "./a.seg.png": encoded(picture(0)), "a.cls": b"7", "b.cls": b"cat\n"}


def test_images_come_in_the_order_of_their_names_with_their_classes(tmp_path):
    source = open_images(tar(tmp_path / "x.tar", FILES | {"b.json": b"{}"}))
    assert torch.equal(all_images(source), channels_first([picture(0), picture(1)]))
    assert source.labels(0, 2) == ["7", "cat"] and [source.image_name(i) for i in (0, 1)] == ["a.seg.png", "b.png"]
    assert "passed over 1" in source.notes[0]


def test_without_class_members_folders_are_classes(tmp_path):
    files = {f"{kind}/{i}.png": encoded(picture(i)) for i, kind in enumerate(("cat", "dog"))}
    assert open_images(tar(tmp_path / "x.tar", files)).labels(0, 2) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"../a.png": encoded(picture(0))}, "leaves the archive"),
        ({"a.png": encoded(picture(0)), "b.png": encoded(picture(1)), "a.cls": b"1"}, "none for b.png and 0 others"),
        ({"a.txt": b"no image"}, "holds no images"),
        ({"a.png": b"damaged"}, "a.png in .* cannot be read as an 8-bit image"),
        ({"a.png": encoded(picture(0)), "a.cls": b"x" * 2_000}, "holds a.cls of 2000 bytes, which is no class"),
    ],
)
def test_other_tars_are_refused(tmp_path, files, told):
    assert re.search(told, error_of(tar(tmp_path / "x.tar", files)))


@pytest.fixture
def shards(tmp_path):
    """Three shards of a set, in whose tars the same names come again."""
    (tmp_path / "set").mkdir()
    for i in range(3):
        tar(tmp_path / f"set/s-{i:02d}.tar", {"a.png": encoded(picture(i)), "a.cls": b"%d" % i, "b.json": b"{}"})
    return tmp_path / "set"


@pytest.mark.parametrize("name", ["", "s-{00..02}.tar", "s-{00,01,02}.tar"])
def test_shards_are_one_set(shards, name):
    source = open_images(shards / name)
    assert torch.equal(all_images(source), channels_first([picture(i) for i in range(3)]))
    assert source.labels(0, 3) == ["0", "1", "2"] and source.image_name(2) == "s-02.tar/a.png"
    assert "passed over 3" in source.notes[0]


def test_names_of_shards_are_no_classes_and_the_folders_in_them_are(tmp_path):
    for i in range(2):
        tar(tmp_path / f"{i}.tar", {"x.png": encoded(picture(i))})
        (tmp_path / f"{i}").mkdir()
        tar(tmp_path / f"{i}/0.tar", {f"{kind}/{i}.png": encoded(picture(i)) for kind in ("cat", "dog")})
    assert open_images(tmp_path / "{0..1}.tar").labels(0, 2) is None
    source = open_images(tmp_path / "{0,1}/0.tar")
    assert source.labels(0, 4) == ["cat", "dog"] * 2 and source.image_name(0) == "0:0.tar/cat/0.png"


def test_shards_that_cannot_be_used_are_refused(shards, tmp_path):
    assert "stands for " in error_of(shards / "s-{00..03}.tar") and "s-03.tar" in error_of(shards / "s-{00..03}.tar")
    assert "counts down in {2..0}" in error_of(shards / "s-0{2..0}.tar")
    assert "more than 100,000 files" in error_of(shards / "s-{0..999999}.tar")
    assert "more than 100,000 files" in error_of(shards / "s-{0..999}{0..999}.tar")
    assert "which is no .tar" in error_of(shards / "s-{00..02}.zip")
    (shards / "s-01.tar").write_bytes(b"no tar")
    assert "s-01.tar is not a readable tar" in error_of(shards)
    tar(shards / "s-01.tar", {"a.png": encoded(picture(0))})
    assert "none for s-01.tar/a.png and 0 others" in error_of(shards)


def test_a_folder_of_images_passes_over_its_tars(shards):
    (shards / "own.png").write_bytes(encoded(picture(5)))
    source = open_images(shards)
    assert len(source) == 1 and "passed over 3 in" in source.notes[0]


def test_what_lies_beside_shards_is_counted(shards):
    """Also shards that are not read: compressed ones, and those of a folder within."""
    tar(shards / "s-03.tar.gz", {"a.png": encoded(picture(0))}, "w:gz")
    (shards / "more").mkdir()
    tar(shards / "more/s-04.tar", {"a.png": encoded(picture(0))})
    (shards / "s-05.zip").write_bytes(b"")
    source = open_images(shards)
    assert len(source) == 3 and source.notes[1].startswith(f"passed over 3 in {shards}: ")
    assert all(f"1 {kind}" in source.notes[1] for kind in (".gz", ".tar", ".zip"))


def test_damaged_and_compressed_tars_are_refused(tmp_path):
    path = tar(tmp_path / "x.tar", {"a.png": encoded(picture(0, 200, 200))})
    path.write_bytes(path.read_bytes()[:50_000])
    assert "x.tar is not a readable tar (unexpected end of data)" in error_of(path)
    assert "is not a readable tar" in error_of(tar(tmp_path / "y.tar", FILES, "w:gz"))
    (tmp_path / "z.tar").write_bytes(b"no tar at all")
    assert "is not a readable tar" in error_of(tmp_path / "z.tar")


# --- links, and ends that are none -------------------------------------------------------------------------------


def linked(path, links, names=("a.png", "b.png")):
    """A tar of two images and of links (name → (kind, target))."""
    with tarfile.open(path, "w") as archive:
        for i, name in enumerate(names):
            content = encoded(picture(i))
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, (kind, target) in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return path


@pytest.mark.parametrize(
    ("kind", "target"),
    [(tarfile.LNKTYPE, "a.png"), (tarfile.SYMTYPE, "a.png"), (tarfile.SYMTYPE, "./d.png"), (tarfile.LNKTYPE, "d.png")],
)
def test_a_link_is_read_as_the_image_that_it_leads_to(tmp_path, kind, target):
    """tar stores the second name of a file as a link; a link may lead to another one."""
    source = open_images(linked(tmp_path / "x.tar", {"c.png": (kind, target), "d.png": (tarfile.LNKTYPE, "a.png")}))
    assert torch.equal(all_images(source), channels_first([picture(i) for i in (0, 1, 0, 0)])) and not source.notes


def test_links_to_nothing_are_counted(tmp_path):
    links = {"c.png": (tarfile.SYMTYPE, "/etc/passwd"), "d.png": (tarfile.SYMTYPE, "e.png")}
    links |= {"e.png": (tarfile.SYMTYPE, "d.png"), "f.png": (tarfile.FIFOTYPE, "")}
    source = open_images(linked(tmp_path / "x.tar", links))
    assert len(source) == 2 and "passed over 4" in source.notes[0]
    assert "3 a link to nothing here, 1 no file" in source.notes[0]


def test_the_same_member_with_and_without_a_dot_is_twice_the_same(tmp_path):
    assert "holds a.png more than once" in error_of(linked(tmp_path / "x.tar", {}, ("a.png", "./a.png")))


@pytest.mark.parametrize("damage", ["behind a member", "within a header", "a header", "joined"])
def test_a_tar_whose_members_do_not_end_at_its_end_is_refused(tmp_path, damage):
    """tarfile takes all of them for a whole tar of one image."""
    whole = linked(tmp_path / "x.tar", {}).read_bytes()
    second = whole.index(b"b.png")
    changed = {
        "behind a member": whole[:second],
        "within a header": whole[: second + 100],
        "a header": whole[:second] + b"!" * 9 + whole[second + 9 :],
        "joined": whole + whole,
    }[damage]
    (tmp_path / "x.tar").write_bytes(changed)
    told = error_of(tmp_path / "x.tar")
    assert ("another archive begins" if damage == "joined" else f"cut or damaged at byte {second:,}") in told
