"""Every image and every source that cannot be used is named in one sentence."""

import io
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from fastfid import open_images
from fastfid.images import folders_and_zips
from tests.support.pictures import FILES, all_images, channels_first, encoded, error_of, pack, picture, write


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


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_packed_by_another_method_is_refused(tmp_path, method):
    """Python inflates such a member at once, whatever size the zip claims."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        archive.writestr("a.png", encoded(picture(0)))
    assert "packed by another method than deflate" in error_of(tmp_path / "x.zip")


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
    assert "it claims 50x50 pixels, more than 2,000 for its " in error_of(large)


def test_few_bytes_hold_few_pixels(tmp_path):
    """What a file of a kilobyte may claim is bounded; a plain PNG of the same size is deflated and passes."""
    small = io.BytesIO()
    Image.new("1", (5000, 4000)).save(small, "TIFF", compression="group4")
    told = error_of(write(tmp_path / "small", {"x.tif": small.getvalue()}))
    assert "it claims 5000x4000 pixels, more than 1" in told and f"for its {len(small.getvalue()):,} bytes" in told
    assert all_images(write(tmp_path / "plain", {"x.png": encoded(np.zeros((4100, 4100), np.uint8))})).shape[2] == 4100


def test_pixels_that_no_data_cover_are_refused(tmp_path):
    """Pillow would leave them black."""
    buffer = io.BytesIO()
    Image.fromarray(picture(0, 40, 30)).save(buffer, "TIFF")
    whole = buffer.getvalue()
    rows_per_strip = struct.pack("<HHI", 278, 4, 1)  # tag, type, count; the value follows
    assert whole.count(rows_per_strip + struct.pack("<I", 40)) == 1
    cut = whole.replace(rows_per_strip + struct.pack("<I", 40), rows_per_strip + struct.pack("<I", 20))
    assert "its data do not cover its 30x40 pixels" in error_of(write(tmp_path / "cut", {"x.tif": cut}))
    assert all_images(write(tmp_path / "whole", {"x.tif": whole})).shape[2:] == (40, 30)


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
