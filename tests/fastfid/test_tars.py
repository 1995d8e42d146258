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


def test_damaged_and_compressed_tars_are_refused(tmp_path):
    path = tar(tmp_path / "x.tar", {"a.png": encoded(picture(0, 200, 200))})
    path.write_bytes(path.read_bytes()[:50_000])
    assert "x.tar is not a readable tar (unexpected end of data)" in error_of(path)
    assert "is not a readable tar" in error_of(tar(tmp_path / "y.tar", FILES, "w:gz"))
    (tmp_path / "z.tar").write_bytes(b"no tar at all")
    assert "is not a readable tar" in error_of(tmp_path / "z.tar")
