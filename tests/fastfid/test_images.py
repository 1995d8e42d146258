"""Folders, zips, npz files and arrays give the same batches."""

import io
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
import torch
from PIL import Image

from fastfid import open_images
from tests.support.pictures import FILES, all_images, channels_first, encoded, error_of, pack, picture, write

EXPECTED = channels_first([picture(0), picture(1)])  # a/z.PNG sorts before b.png


def test_folder_and_zip_agree(tmp_path):
    folder, archive = write(tmp_path / "f", FILES), pack(tmp_path / "f.zip", FILES)
    for source in (folder, str(folder), archive, pack(tmp_path / "r.ZIP", dict(reversed(FILES.items())))):
        assert len(open_images(source)) == 2
        assert torch.equal(all_images(source), EXPECTED)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f", "f.zip", "r.ZIP"]  # nothing was unpacked


def test_nothing_hidden_is_an_image(tmp_path):
    """Copies that a notebook or a file manager keeps beside the images are not images of the set."""
    hidden = {f"{folder}/a/b.png": encoded(picture(2)) for folder in (".ipynb_checkpoints", "a/.thumbnails")}
    for source in (write(tmp_path / "f", FILES | hidden), pack(tmp_path / "f.zip", FILES | hidden)):
        assert torch.equal(all_images(source), EXPECTED)
    inside = write(tmp_path / ".cache" / "f", FILES)  # a folder that was asked for by its name is searched
    assert torch.equal(all_images(inside), EXPECTED)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_among_the_images_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(write(tmp_path, FILES) / "c.png")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(all_images, tmp_path)
        waited = not wait([reading], timeout=20).done
        if waited:
            os.close(os.open(tmp_path / "c.png", os.O_RDWR))  # somebody to write ends the wait
    assert not waited
    with pytest.raises(ValueError, match="c.png in .* cannot be read as an 8-bit image"):
        reading.result()


def test_a_zip_with_two_members_of_one_name_is_refused(tmp_path):
    archive = pack(tmp_path / "f.zip", FILES)
    with zipfile.ZipFile(archive, "a") as again, pytest.warns(UserWarning, match="Duplicate name"):
        again.writestr("b.png", encoded(picture(2)))
    with pytest.raises(ValueError, match="holds b.png more than once, and only the last could be read; pack it again"):
        open_images(archive)


def test_linked_folders_are_searched(tmp_path):
    write(tmp_path / "f", FILES)
    (tmp_path / "links").mkdir()
    for name in ("one", "two"):
        (tmp_path / "links" / name).symlink_to(tmp_path / "f")
    assert torch.equal(all_images(tmp_path / "links"), torch.cat([EXPECTED, EXPECTED]))
    told = [note for note in open_images(tmp_path / "links").notes if "by links" in note]
    assert told == [f"2 folders in {tmp_path / 'links'} count several times by links: {tmp_path / 'f'} 2 times"]
    (tmp_path / "f" / "above").symlink_to(tmp_path)
    with pytest.raises(OSError, match="above is a link to a folder that holds it; remove the link"):
        open_images(tmp_path / "f")


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_links_in_a_circle_are_refused(tmp_path, length):
    """a/next → b, b/next → … → a: each is no folder that holds the link by its own path."""
    for i in range(length):
        write(tmp_path / str(i), {"x.png": encoded(picture(0))})
        (tmp_path / str(i) / "next").symlink_to(tmp_path / str((i + 1) % length))
    for start in (tmp_path, tmp_path / "0"):
        with pytest.raises(OSError, match="next is a link to a folder that holds it; remove the link"):
            open_images(start)


def test_links_within_linked_folders_end_in_time(tmp_path):
    """Two links in each of 40 folders to the next: 2⁴⁰ ways to the last."""
    write(tmp_path / "40", {"x.png": encoded(picture(0))})
    for i in range(40):
        (tmp_path / str(i)).mkdir()
        for name in ("a", "b"):
            (tmp_path / str(i) / name).symlink_to(tmp_path / str(i + 1))
    with pytest.raises(OSError, match="more than 100 ways lead to .* by links in .*0; remove the links"):
        open_images(tmp_path / "0")
    assert len(open_images(tmp_path / "35")) == 2**5


def test_links_that_lead_nowhere_are_files(tmp_path):
    write(tmp_path, FILES)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert torch.equal(all_images(tmp_path), EXPECTED)
    (tmp_path / "x.png").symlink_to(tmp_path / "nowhere.png")
    assert "x.png in" in error_of(tmp_path)


def test_folders_that_cannot_be_listed_are_no_empty_ones(tmp_path, monkeypatch):
    write(tmp_path, FILES | {"closed/c.png": b""})
    listed = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="closed"):
        open_images(tmp_path)


@pytest.mark.parametrize("extension", [".png", ".jpg", ".jpeg", ".JPEG", ".webp", ".bmp", ".tif"])
def test_every_format(tmp_path, extension):
    form = Image.registered_extensions()[extension.lower()]
    content = encoded(picture(3), form)
    images = all_images(write(tmp_path, {f"x{extension}": content}))
    assert torch.equal(images, channels_first([np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))]))


def test_batches_cover_all_images_in_order(tmp_path):
    pictures = [picture(i, channels=1) for i in range(7)]
    folder = write(tmp_path, {f"{i}.png": encoded(p) for i, p in enumerate(pictures)})
    batches = list(open_images(folder).batches(3))
    assert [tuple(batch.shape) for batch in batches] == [(3, 1, 6, 5), (3, 1, 6, 5), (1, 1, 6, 5)]
    assert all(batch.dtype == torch.uint8 for batch in batches)
    assert torch.equal(torch.cat(batches), channels_first(pictures))


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK"])
def test_colour_modes_become_rgb(tmp_path, mode):
    image = Image.fromarray(picture(0)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    images = all_images(write(tmp_path, {"x.tif": buffer.getvalue()}))
    assert torch.equal(images, channels_first([np.asarray(image.convert("RGB"))]))


def test_a_stored_npz_is_mapped_and_its_checksum_kept(tmp_path):
    """Memory does not grow with the file: ADM's 50,000 samples at 256 pixels are 9.8 GB."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), np.uint8)
    np.savez(tmp_path / "stored.npz", labels=np.arange(40), arr_0=pixels)
    np.savez(tmp_path / "columns.npz", arr_0=np.asfortranarray(pixels))
    np.savez_compressed(tmp_path / "small.npz", arr_0=pixels)
    for name, mapped in (("stored", True), ("columns", True), ("small", False)):
        source = open_images(tmp_path / f"{name}.npz")
        assert isinstance(source.array, np.memmap) == mapped
        assert torch.equal(torch.cat(list(source.batches(7))), torch.from_numpy(pixels).movedim(3, 1))
    damaged = bytearray((tmp_path / "stored.npz").read_bytes())
    damaged[damaged.index(pixels.tobytes()) + 1000] ^= 1
    (tmp_path / "damaged.npz").write_bytes(damaged)
    assert "damaged.npz cannot be read by NumPy (Bad CRC-32" in error_of(tmp_path / "damaged.npz")


def test_arrays_of_every_layout(tmp_path):
    pixels = np.stack([picture(0), picture(1), picture(2)])
    np.savez(tmp_path / "adm.npz", arr_0=pixels, labels=np.zeros(3))
    np.savez_compressed(tmp_path / "ours.npz", images=pixels.transpose(0, 3, 1, 2))
    np.save(tmp_path / "x.npy", pixels)
    first = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    for source in (pixels, first, tmp_path / "adm.npz", tmp_path / "ours.npz", tmp_path / "x.npy"):
        assert len(open_images(source)) == 3
        assert torch.equal(all_images(source), first)
    assert torch.equal(all_images(pixels[..., 0]), first[:, :1])  # [n, H, W]
    assert open_images(open_images(pixels)).name == "the array"


@pytest.mark.parametrize("value_range", [(0, 1), (-1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floats_of_a_stated_range_round_to_the_nearest_level(value_range, dtype):
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    lo, hi = value_range
    floats = levels.to(dtype) / 255 * (hi - lo) + lo
    assert torch.equal(all_images(floats, value_range=value_range), levels)
    assert torch.equal(all_images(floats + 1e-4, value_range=value_range), levels)  # a hair outside is still white


def test_numbered_folders_are_classes_on_request_only(tmp_path):
    images = [encoded(picture(i)) for i in range(4)]
    buckets = {f"00000/img{i:08}.png": x for i, x in enumerate(images)} | {"00001/img00001000.png": images[0]}
    for source in (write(tmp_path / "b", buckets), pack(tmp_path / "b.zip", buckets)):
        parts = open_images(source)
        assert parts.labels(0, 5) is None
        told = f"the folders 00000 to 00001 of {source} are not taken for classes; class_folders=True"
        assert parts.notes == [f"{told} (--class-folders) takes them"]
        asked = open_images(source, class_folders=True)
        assert asked.labels(0, 5) == ["00000"] * 4 + ["00001"] and asked.notes == []
    for names in (
        ("00", "a7"), ("0f3", "b10"), ("train", "Test"), ("chunk_1", "chunk_12"), ("rank0", "rank1"),
        ("00af", "1b2c"), ("d41d8cd98f00b204", "e3b0c44298fc1c14"),
    ):  # fmt: skip
        folder = write(tmp_path / names[0] / "set", {f"{part}/x.png": images[0] for part in names})
        assert open_images(folder).labels(0, 2) is None
        assert open_images(folder, class_folders=True).labels(0, 2) == sorted(names)
    for name in ("0007", "n01440764", "00000_cat", "part", "cafe", "ff0"):  # 10,000 classes have four digits
        classes = open_images(write(tmp_path / name, {f"{name}/x.png": images[0], "0001/x.png": images[1]}))
        assert classes.labels(0, 2) == sorted(["0001", name]) and classes.notes == []
