"""Every format that Pillow decodes is read, other files are counted, and no depth is cut down without a word."""

import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from fastfid import evaluate, open_images, read_statistics
from fastfid.__main__ import main
from fastfid.images import formats
from tests.support.pictures import encoded, error_of, pack, picture, write

# Formats that Pillow both writes and decodes, by one of their endings.
WRITTEN = ("apng", "avif", "bmp", "dds", "dib", "gif", "ico", "jp2", "jfif", "mpo", "pcx", "pgm", "png", "ppm", "qoi",
           "sgi", "tga", "tif", "webp")  # fmt: skip


def form_of(ending):
    Image.init()
    return Image.registered_extensions().get(f".{ending}")  # None in a Pillow that does not know it


@pytest.mark.parametrize("ending", WRITTEN)
def test_every_format_that_pillow_decodes_is_read(tmp_path, ending):
    if form_of(ending) not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {ending}")
    pixels = picture(0, 8, 8) if ending != "pgm" else picture(0, 8, 8, channels=1)
    content = encoded(pixels, form_of(ending))
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("L" if ending == "pgm" else "RGB")).reshape(8, 8, -1)
    for name in (f"x.{ending}", f"x.{ending.upper()}"):
        for source in (write(tmp_path / name, {name: content}), pack(tmp_path / f"{name}.zip", {name: content})):
            images = open_images(source)
            assert len(images) == 1 and images.notes == []
            assert np.array_equal(images.image(0).permute(1, 2, 0), expected)


def test_every_ending_of_a_decoded_format_is_an_image():
    """Also endings of plugins that are registered later, as those of HEIF are."""
    Image.init()
    endings = formats.image_endings()
    for ending, form in Image.registered_extensions().items():
        known = form in Image.OPEN or form == "MPO"
        assert (ending in endings) == (known and form not in formats.NOT_DECODED), ending
    Image.register_open("LATER", lambda *_: None)
    Image.register_extension("LATER", ".later")
    try:
        assert ".later" in formats.image_endings()
    finally:
        Image.ID.remove("LATER")
        del Image.OPEN["LATER"], Image.EXTENSION[".later"]


def test_images_of_other_formats_change_no_distance(tmp_path):
    """20 PNG and 20 PPM are the 40 images that 40 PNG are."""
    pictures = [picture(i, 28, 28, channels=1) for i in range(40)]
    mixed = {
        f"{i:02}.{'pgm' if i % 2 else 'png'}": encoded(p, "PPM" if i % 2 else "PNG") for i, p in enumerate(pictures)
    }
    write(tmp_path / "mixed", mixed)
    write(tmp_path / "png", {f"{i:02}.png": encoded(p) for i, p in enumerate(pictures)})
    result = evaluate(tmp_path / "mixed", tmp_path / "png", metrics=["fd"], features="fashion-a", cache=False)
    assert result.provenance["samples"]["count"] == 40
    # features are equal, and FD of a set to itself is rounding beside its traces
    assert result["fd"].value == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("ending", ["gif", "tif", "webp", "apng", "png", "avif"])
def test_images_with_several_frames_are_said(tmp_path, ending, monkeypatch):
    """Also where their features come from the cache."""
    monkeypatch.setenv("FASTFID_CACHE", str(tmp_path / "cache"))
    if form_of(ending) not in Image.SAVE_ALL:
        pytest.skip(f"this Pillow writes no frames of {ending}")
    frames = [Image.fromarray(picture(i, 8, 8)) for i in range(3)]
    for i in range(12):
        still = io.BytesIO()
        frames[i % 3].save(still, form_of(ending))
        write(tmp_path / "f", {f"{i:02}.{ending}": still.getvalue()})
    still = open_images(tmp_path / "f")
    first = list(still.batches(5))[0][0]
    assert still.notes == []
    moving = io.BytesIO()
    frames[0].save(moving, form_of(ending), save_all=True, append_images=frames[1:])
    write(tmp_path / "f", {f"00.{ending}": moving.getvalue(), f"07.{ending}": moving.getvalue()})
    told = f"of 2 images with several frames in {tmp_path / 'f'} the first frame is read: 00.{ending}"
    source = open_images(tmp_path / "f")
    for _ in range(2):
        assert torch.equal(next(source.batches(5))[0], first) or ending in ("gif", "webp", "avif")  # lossy otherwise
        assert list(source.batches(5)) and source.notes == [told]
        assert told in evaluate(source, source, metrics=["fd"], features="fashion-a").warnings


# --- what is passed over -----------------------------------------------------------------------------------------

BESIDE = {
    "labels.txt": b"",
    "a/more.TXT": b"",
    "dataset.json": b"{}",
    "page.eps": b"%!PS",
    "LICENSE": b"",
    "._0.png": b"",
}
TOLD = "2 .txt, 1 .json, 1 .eps, 1 without an ending, 1 hidden"


def images_with_others(folder):
    pictures = {f"{i}.png": encoded(picture(i, 28, 28, channels=1)) for i in range(12)}
    return write(folder, pictures | BESIDE), pack(folder.with_suffix(".zip"), pictures | BESIDE)


def test_files_that_are_no_images_are_counted(tmp_path):
    for source in images_with_others(tmp_path / "f"):
        (note,) = open_images(source).notes
        told = note.split(": ", 1)[1].split("; ")[0]
        assert sorted(told.split(", ")) == sorted(TOLD.split(", ")) and note.startswith(f"passed over 6 in {source}: ")
    kinds = {f"x.{i}": b"" for i in range(9)}
    (note,) = open_images(write(tmp_path / "k", {"x.png": encoded(picture(0)), **kinds})).notes
    assert note.startswith("passed over 9 in ") and "4 of other kinds;" in note
    write(tmp_path / "h", {"x.png": encoded(picture(0)), ".ipynb_checkpoints/x.png": b""})
    assert "passed over 1 in" in open_images(tmp_path / "h").notes[0]
    assert "holds no images" in (told := error_of(write(tmp_path / "n", BESIDE))) and "2 .txt" in told


def test_every_command_says_what_it_passed_over(tmp_path, capsys):
    folder, archive = images_with_others(tmp_path / "f")
    result = evaluate(folder, archive, metrics=["fd"], features="fashion-a", cache=False)
    told = [warning for warning in result.warnings if warning.startswith("passed over 6 in ")]
    assert len(told) == 2 and result.table().count("warning: passed over 6 in ") == 2
    options = ["--network", "fashion-a", "--no-cache"]
    assert main([str(folder), str(archive), *options]) == 0
    assert capsys.readouterr().err.count("fastfid: note: passed over 6 in ") == 2
    assert main(["stats", str(folder), str(tmp_path / "s.npz"), *options]) == 0
    assert "fastfid: note: passed over 6 in " in capsys.readouterr().err
    assert "passed over 6 in " in read_statistics(tmp_path / "s.npz").provenance["notes"]
    assert main(["info", str(folder), "--json"]) == 0
    assert "passed over 6 in " in json.loads(capsys.readouterr().out)["notes"]


def test_commands_take_numbered_folders_for_classes_on_request(tmp_path, capsys):
    for name in ("f", "g"):
        write(tmp_path / name, {f"0000{i % 2}/{i:02}.png": encoded(picture(i, 28, 28, channels=1)) for i in range(12)})
    words = ["eval", str(tmp_path / "f"), str(tmp_path / "g"), "--network", "fashion-a", "--no-cache", "--json"]
    words += ["--metrics", "precision", "--nearest-k", "2"]
    assert main(words) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["classes"] == [] and sum("are not taken for classes" in told for told in plain["warnings"]) == 2
    assert main([*words, "--class-folders"]) == 0
    asked = json.loads(capsys.readouterr().out)
    assert [entry["class"] for entry in asked["classes"]] == ["00000", "00001"]
    assert not any("classes" in told for told in asked["warnings"])


ORDERS = ("more, arr_1", "arr_1, more")  # NumPy's versions write named arrays first or last


def test_other_arrays_of_images_are_said(tmp_path):
    """np.savez(path, first, second) makes arr_0 and arr_1, of which one is read."""
    first, second = (np.stack([picture(i, 8, 8) for i in range(n)]) for n in (4, 3))
    np.savez(tmp_path / "x.npz", first, second, np.zeros(4), labels=np.arange(4), more=first)
    images = open_images(tmp_path / "x.npz")
    told = [f"passed over 2 arrays of images in {tmp_path / 'x.npz'}: {names}; one is read" for names in ORDERS]
    assert len(images) == 4 and images.notes[0] in told
    np.savez(tmp_path / "y.npz", first, np.arange(4), mu=np.zeros(5), sigma=np.eye(5))
    assert list(open_images(tmp_path / "y.npz").notes) == []


# --- depths ------------------------------------------------------------------------------------------------------


def deep_images():
    """Colours of more than 8 bits in each format that has them, which Pillow would cut down to 8 silently."""
    jpeg2000 = bytearray(encoded(picture(0, 8, 8), "JPEG2000", irreversible=False))
    bits = jpeg2000.index(formats.CODESTREAM) + len(formats.CODESTREAM) + formats.SIZ_COUNT + 2
    assert jpeg2000[bits] == 7  # 8 bits
    jpeg2000[bits] = 11
    return {
        "binary.ppm": b"P6 2 1 65535\n" + bytes(range(12)),
        "plain.ppm": b"P3 1 1 1023\n1 2 1000\n",
        "x.pgm": b"P5 2 1 65535\n" + bytes(4),
        "x.sgi": encoded(picture(0, 8, 8), "SGI", bpc=2),
        "x.jp2": bytes(jpeg2000),
    }


@pytest.mark.parametrize("name", deep_images())
def test_depths_beyond_8_bits_are_refused(tmp_path, name):
    told = error_of(write(tmp_path, {name: deep_images()[name]}))
    assert f"{name} in" in told and "more than 8 bits a channel" in told


def test_avif_of_10_bits_is_refused(tmp_path):
    encode = pytest.importorskip("imagecodecs").avif_encode
    told = error_of(write(tmp_path, {"x.avif": encode(4 * picture(0, 8, 8).astype(np.uint16), bitspersample=10)}))
    assert "x.avif in" in told and "more than 8 bits a channel" in told


def bitmap_565(pixels):
    """A BMP of uint16 [H, W even], 5 bits red, 6 green, 5 blue."""
    height, width = pixels.shape
    rows = pixels[::-1].astype("<u2").tobytes()
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 16, 3, len(rows), 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    start = 14 + len(header) + len(masks)
    return struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start) + header + masks + rows


def test_bitmaps_of_5_6_5_bits_are_read(tmp_path):
    pixels = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    images = open_images(write(tmp_path, {"x.bmp": bitmap_565(pixels)})).image(0)
    levels = [pixels >> 11, (pixels >> 5) & 63, pixels & 31]
    expected = np.stack([level * 255 // most for level, most in zip(levels, (31, 63, 31), strict=True)])
    assert torch.equal(images, torch.from_numpy(expected.astype(np.uint8)))


# --- decoders ----------------------------------------------------------------------------------------------------


def png_with_empty_profile(place):
    """A PNG with an empty iCCP chunk, at which Pillow raises IndexError: as it opens the image, or as it decodes it."""
    chunk = struct.pack(">I", 0) + b"iCCP" + struct.pack(">I", zlib.crc32(b"iCCP"))
    content = encoded(picture(0, 8, 8))
    at = {"before the pixels": 33, "behind them": len(content) - 12}[place]  # the header's end, the last chunk
    return content[:at] + chunk + content[at:]


@pytest.mark.parametrize("place", ["before the pixels", "behind them"])
def test_a_png_with_an_empty_profile_is_skipped(tmp_path, place):
    files = {"a.png": encoded(picture(0, 8, 8)), "b.png": png_with_empty_profile(place)}
    for source in (write(tmp_path / "f", files), pack(tmp_path / "f.zip", files)):
        assert "b.png in" in error_of(source)
        images = open_images(source, skip_corrupt=True)
        assert len(torch.cat(list(images.batches(2)))) == 1 and "b.png in" in images.skipped[0]


DECODER_ERRORS = (
    IndexError(), KeyError("x"), MemoryError(), RecursionError("deep"), struct.error("s\nt"), AssertionError(),
    zipfile.LargeZipFile("x"), OverflowError("x"),
)  # fmt: skip


@pytest.mark.parametrize("error", DECODER_ERRORS)
def test_whatever_a_decoder_raises_is_a_corrupt_image(tmp_path, monkeypatch, error):
    def raising(*_, **__):
        raise error

    monkeypatch.setattr(Image, "open", raising)
    folder = write(tmp_path, {"x.gif": b"GIF89a"})
    told = error_of(folder)
    assert "x.gif in" in told and "()" not in told
    images = open_images(folder, skip_corrupt=True)
    assert [len(batch) for batch in images.batches(1)] == [0] and images.skipped == [told]


@pytest.mark.parametrize(
    "error", [NotImplementedError("x"), struct.error("x"), RuntimeError(), UnicodeDecodeError("u", b"", 0, 1, "x")]
)
def test_whatever_reading_an_archive_raises_is_one_sentence(tmp_path, monkeypatch, error):
    def raising(*_):
        raise error

    archive = pack(tmp_path / "x.zip", {"a.png": encoded(picture(0))})
    monkeypatch.setattr(zipfile, "ZipFile", raising)
    assert "x.zip is not a readable zip (" in error_of(archive)
