"""Folders, zips, npz files and arrays give the same batches, and every unfit image is named."""

import io
import os
import struct
import tracemalloc
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
import torch
from PIL import Image

from fastfid import open_images
from fastfid.images import folders_and_zips


def picture(seed, height=6, width=5, channels=3):
    """uint8 [H, W, C], noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(pixels, form="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, form, **options)
    return buffer.getvalue()


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def pack(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def all_images(source, size=2, **options):
    return torch.cat(list(open_images(source, **options).batches(size)))


def channels_first(pictures):
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


# --- what can be read --------------------------------------------------------------------------------------------

FILES = {"b.png": encoded(picture(1)), "a/z.PNG": encoded(picture(0)), "c.txt": b"no image", "._b.png": b"no image"}
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
        told = f"the numbered folders 00000 to 00001 of {source} are not taken for classes; class_folders=True"
        assert parts.notes == [f"{told} (--class-folders) takes them"]
        asked = open_images(source, class_folders=True)
        assert asked.labels(0, 5) == ["00000"] * 4 + ["00001"] and asked.notes == []
    for name in ("0007", "n01440764", "00000_cat"):  # 10,000 classes have four digits
        classes = open_images(write(tmp_path / name, {f"{name}/x.png": images[0], "0001/x.png": images[1]}))
        assert classes.labels(0, 2) == sorted(["0001", name]) and classes.notes == []


# --- errors ------------------------------------------------------------------------------------------------------


def error_of(source, **options):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        all_images(source, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_missing_and_empty_sources(tmp_path):
    assert "nowhere does not exist; pass a folder" in error_of(tmp_path / "nowhere")
    assert "holds no images; expected files ending in .bmp" in error_of(write(tmp_path / "f", {"c.txt": b""}))
    assert "holds no images" in error_of(pack(tmp_path / "f.zip", {"c.txt": b""}))
    assert "the array holds no images" in error_of(torch.zeros(0, 3, 4, 4, dtype=torch.uint8))
    (tmp_path / "x.png").write_bytes(encoded(picture(0)))
    assert "x.png is not a folder" in error_of(tmp_path / "x.png")


def test_damaged_images_are_named(tmp_path):
    good = encoded(picture(0, 64, 64))
    for name, content in {"short.png": good[: len(good) // 2], "empty.png": b"", "text.jpg": b"hello"}.items():
        folder = write(tmp_path / name, {"a.png": good, name: content})
        assert f"{name} in {folder} cannot be read as an 8-bit image" in error_of(folder)
        assert " at 0x" not in error_of(folder)  # the same words every time
        assert f"{name} in " in error_of(pack(tmp_path / f"{name}.zip", {name: content}))


def raw_png(side, depth, rows):
    """An RGB PNG that claims `side` and `depth` bits a channel and holds `rows`: what Pillow would not write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*pair) for pair in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def png_16_bit_rgb():
    return raw_png(2, 16, b"".join(b"\0" + bytes(range(12)) for _ in range(2)))


def test_images_of_16_bits_are_refused_alike(tmp_path):
    """Pillow would cut colours down silently, and grey ones would be clipped."""
    grey = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(grey, "PNG")
    assert "more than 8 bits a channel, mode I;16" in error_of(write(tmp_path / "g", {"a.png": grey.getvalue()}))
    assert Image.open(io.BytesIO(png_16_bit_rgb())).mode == "RGB"
    told = error_of(write(tmp_path / "c", {"a.png": png_16_bit_rgb()}))
    assert "more than 8 bits a channel, mode RGB; convert it to 8 bits" in told
    floats = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(floats, "TIFF")
    assert "mode F" in error_of(write(tmp_path / "f", {"a.tif": floats.getvalue()}))


def test_palettes_alpha_and_grey(tmp_path):
    """Palettes become their colours, alpha is dropped as everywhere else, bits and grey stay one channel."""
    colours = Image.fromarray(picture(0)).quantize(16)
    grey = Image.fromarray(picture(1, channels=1)[..., 0])
    for mode, image in {
        "P": colours,
        "P with alpha": colours,
        "RGBA": Image.fromarray(picture(0, channels=4)),
        "LA": Image.merge("LA", [grey, grey]),
        "1": grey.convert("1"),
        "L": grey,
    }.items():
        buffer = io.BytesIO()
        image.save(buffer, "PNG", **({"transparency": 3} if mode == "P with alpha" else {}))
        expected = np.asarray(image.convert("L" if mode in ("LA", "1", "L") else "RGB"))
        images = all_images(write(tmp_path / mode, {"x.png": buffer.getvalue()}))
        assert np.array_equal(images[0].permute(1, 2, 0), expected.reshape(6, 5, -1)), mode


def test_skipped_images_are_counted_and_named(tmp_path):
    good = encoded(picture(0, 64, 64))
    bad = {"b.png": good[:500], "d.jpg": b"", "e.webp": b"RIFF\0\0\0\0WEBPnothing", "g.png": png_16_bit_rgb()}
    files = {"a.png": good, "c.png": good, "f.png": good} | bad
    for source in (write(tmp_path / "f", files), pack(tmp_path / "f.zip", files)):
        images = open_images(source, skip_corrupt=True)
        assert torch.cat(list(images.batches(2))).shape == (3, 3, 64, 64)
        assert [told.split(" in ")[0] for told in images.skipped] == sorted(bad)
    nothing = open_images(write(tmp_path / "n", {"a.png": b""}), skip_corrupt=True)
    assert [len(batch) for batch in nothing.batches(2)] == [0] and len(nothing.skipped) == 1


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_an_image_cut_anywhere_is_named(tmp_path, form):
    """Pillow is lenient with some ends; whatever it lets pass must be the whole image."""
    content = encoded(picture(0, 24, 24), form)
    whole = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    for length in range(0, len(content), max(1, len(content) // 40)):
        folder = write(tmp_path / str(length), {"x.png": content[:length]})
        try:
            images = all_images(folder)
        except ValueError as told:
            assert "x.png in" in str(told) and "\n" not in str(told)
        else:
            assert np.array_equal(images[0].permute(1, 2, 0), whole)


def test_zip_bombs_are_refused(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", encoded(picture(0)))
        archive.writestr("b.png", bytes(64 << 20))  # 64 MiB of zeros in 65 kB
    tracemalloc.start()
    told = error_of(tmp_path / "x.zip")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "b.png in" in told and "bytes claim to inflate to 67108864, as a zip bomb does" in told
    assert peak < 8 << 20
    monkeypatch.setattr(folders_and_zips, "MAX_FILE_BYTES", 1000)
    content = bytes(np.random.default_rng(0).integers(0, 256, 2000, dtype=np.uint8))
    assert "claim to inflate to 2000" in error_of(pack(tmp_path / "y.zip", {"a.png": content}))
    assert "it holds 2000 bytes, more than 1000" in error_of(write(tmp_path / "y", {"a.png": content}))


def test_a_zip_that_understates_its_members_inflates_no_more(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(64 << 20))
    content = (tmp_path / "x.zip").read_bytes().replace(struct.pack("<I", 64 << 20), struct.pack("<I", 5000))
    (tmp_path / "x.zip").write_bytes(content)
    tracemalloc.start()
    assert "a.png in" in error_of(tmp_path / "x.zip")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_plain_image_in_a_zip_is_no_bomb(tmp_path):
    plain = np.zeros((500, 500, 3), np.uint8)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.bmp", encoded(plain, "BMP"))  # 750 kB in less than 1 kB
    assert not all_images(tmp_path / "x.zip").any()


def test_images_that_claim_too_many_pixels_are_refused(tmp_path, monkeypatch):
    told = error_of(write(tmp_path / "huge", {"x.png": raw_png(100_000, 8, bytes(100))}))
    assert "x.png in" in told and "decompression bomb" in told  # Pillow's own error, beyond twice its limit
    monkeypatch.setattr(folders_and_zips, "MAX_PIXELS", 2000)
    large = write(tmp_path / "large", {"x.png": encoded(picture(0, 50, 50))})
    assert "it claims 50x50 pixels, more than 2000" in error_of(large)


def test_arrays_that_want_to_run_code_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", arr_0=np.array([{"a": 1}], dtype=object))
    for name in ("x.npy", "x.npz"):
        assert f"{name} cannot be read by NumPy (" in error_of(tmp_path / name)


def test_arrays_that_claim_more_than_there_is_memory(tmp_path):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 32, 32, 3)}
    )
    pack(tmp_path / "x.npz", {"arr_0.npy": buffer.getvalue()})
    assert "x.npz cannot be read by NumPy" in error_of(tmp_path / "x.npz")


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_change_nothing(tmp_path, workers):
    folder = write(tmp_path, {f"{i:02}.png": encoded(picture(i)) for i in range(50)})
    expected = channels_first([picture(i) for i in range(50)])
    assert torch.equal(all_images(folder, 20, workers=workers), expected)


def test_workers_are_at_least_one(tmp_path):
    assert "workers is 0; at least 1 thread has to decode" in error_of(write(tmp_path, FILES), workers=0)


def test_mixed_sizes_and_channels_are_named(tmp_path):
    sizes = write(tmp_path / "s", {"a.png": encoded(picture(0)), "b.png": encoded(picture(0, 7, 9))})
    assert "b.png in" in error_of(sizes)
    assert "is 9x7 pixels, a.png is 5x6; resize all images to one size" in error_of(sizes)
    assert "is 9x7 pixels" in error_of(sizes, size=1)  # also across batches
    channels = write(tmp_path / "c", {"a.png": encoded(picture(0)), "b.png": encoded(picture(0, channels=1))})
    assert "b.png in" in error_of(channels)
    assert "has 1 channels, a.png has 3; convert all images to RGB or all to grey" in error_of(channels)


@pytest.mark.parametrize("member", ["../x.png", "/x.png", "a/../../x.png", "..\\x.png"])
def test_zips_that_escape_are_refused(tmp_path, member):
    archive = pack(tmp_path / "evil.zip", {member: encoded(picture(0))})
    assert "which leaves the archive" in error_of(archive)


def test_damaged_archives_are_named(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"PK no zip")
    assert "x.zip is not a readable zip" in error_of(tmp_path / "x.zip")
    for name in ("x.npz", "x.npy"):
        (tmp_path / name).write_bytes(b"no array")
        assert f"{name} cannot be read by NumPy" in error_of(tmp_path / name)
    np.savez(tmp_path / "y.npz", feats=np.zeros(3))
    assert "has neither arr_0 nor images (only feats); save the images as arr_0" in error_of(tmp_path / "y.npz")
    pixels = encoded(picture(0, 64, 64))
    archive = bytearray(pack(tmp_path / "z.zip", {"a.png": pixels}).read_bytes())
    archive[len(pixels) // 2] ^= 255  # one wrong byte: the checksum tells
    (tmp_path / "z.zip").write_bytes(archive)
    assert "a.png in" in error_of(tmp_path / "z.zip")


def test_arrays_that_are_no_images():
    assert "has shape (4, 5); images are" in error_of(np.zeros((4, 5), np.uint8))
    assert "has shape (4, 5, 6, 7)" in error_of(np.zeros((4, 5, 6, 7), np.uint8))
    assert "is int64; images are uint8" in error_of(torch.zeros(2, 3, 4, 4, dtype=torch.int64))
    assert "the batch size is 0" in error_of(np.zeros((4, 5, 6), np.uint8), size=0)
    sparse = torch.zeros(2, 4, 4, dtype=torch.uint8).to_sparse()
    assert "is a sparse_coo tensor of shape (2, 4, 4); pass it as .to_dense()" in error_of(sparse)


def test_arrays_of_the_other_byte_order(tmp_path):
    floats = np.random.default_rng(0).random((4, 5, 6), np.float32)
    expected = all_images(floats, value_range=(0, 1))
    np.save(tmp_path / "x.npy", floats.astype(">f4"))
    for source in (floats.astype(">f4"), tmp_path / "x.npy", [floats.astype(">f4")]):
        assert torch.equal(all_images(source, value_range=(0, 1)), expected)
    np.save(tmp_path / "deep.npy", np.zeros((3, 4, 5), ">u2"))
    message = error_of(tmp_path / "deep.npy")
    assert message == f"{tmp_path / 'deep.npy'} is uint16; images are uint8, or float with a value_range"


def test_float_ranges_are_never_guessed():
    unit = torch.rand(2, 3, 4, 4)
    assert "is float32 and does not tell its range; pass value_range=(0, 1) or (-1, 1)" in error_of(unit)
    for unfit in (1, (1, 0), (0, 1, 2), ("0", "1")):
        assert f"value_range is {unfit!r}; pass two numbers (low, high)" in error_of(unit, value_range=unfit)
    assert "outside value_range=(0, 1)" in error_of(2 * unit - 1, value_range=(0, 1))
    assert "outside value_range=(-1, 1)" in error_of(255 * unit.numpy(), value_range=(-1, 1))
    assert "values from nan to nan in images 0 to 1" in error_of(unit * torch.nan, value_range=(0, 1))
