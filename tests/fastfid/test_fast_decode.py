"""The fast route of PNG and JPEG gives Pillow's pixels or leaves the file to Pillow, whatever the file holds."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fastfid import open_images
from fastfid.images import fast_decode
from fastfid.images.fast_decode import decode_plain
from fastfid.images.folders_and_zips import MAX_PIXELS

needs_png = pytest.mark.skipif(fast_decode.decoder("PNG")[1] is None, reason="imagecodecs is not installed")
needs_jpeg = pytest.mark.skipif(
    fast_decode.decoder("JPEG")[1] is None, reason="imagecodecs is not installed, or Pillow has no libjpeg-turbo"
)


def noise(height, width, channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(colour, stream, height=7, width=9, before=b"", after=b"", split=1 << 20, bits=8):
    """A PNG of any content, right or wrong, whose checksums are right; `split` bytes of `stream` an IDAT."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    parts = [stream[i : i + split] for i in range(0, len(stream), split)]
    image = b"".join(chunk(b"IDAT", part) for part in parts)
    return fast_decode.PNG_START + header + before + image + after + fast_decode.PNG_END


def rows(colour, filters=(0, 1, 2, 3, 4), seed=0):
    """Rows of a PNG of 7×9, each with a filter byte."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    body = noise(7, 9 * channels, 1, seed)[..., 0]
    return b"".join(bytes([filters[i % len(filters)]]) + row.tobytes() for i, row in enumerate(body))


def by_pillow(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("L" if image.mode == "L" else "RGB"))


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@needs_png
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 17), (200, 300)])
def test_plain_images_have_pillows_pixels(mode, size):
    pixels = noise(*size, len(mode))
    content = saved(Image.fromarray(pixels[..., 0] if mode == "L" else pixels))
    found = decode_plain(content, MAX_PIXELS)
    assert found.dtype == np.uint8 and np.array_equal(found, by_pillow(content))


@needs_png
@pytest.mark.parametrize("colour", [0, 2, 6])
def test_every_filter_split_and_metadata(colour):
    stream = zlib.compress(rows(colour))
    gamma, chromaticities = chunk(b"gAMA", struct.pack(">I", 45455)), chunk(b"cHRM", struct.pack(">8I", *range(1, 9)))
    more = chunk(b"sRGB", b"\0") + chunk(b"pHYs", struct.pack(">IIB", 9, 9, 1)) + chunk(b"tIME", bytes(7))
    for content in (png(colour, stream, split=3), png(colour, stream, before=gamma + chromaticities + more)):
        assert np.array_equal(decode_plain(content, MAX_PIXELS), by_pillow(content))


@needs_png
def test_other_images_are_left_to_pillow():
    grey, rgb = Image.fromarray(noise(7, 9, 1)[..., 0]), Image.fromarray(noise(7, 9, 3))
    stream = zlib.compress(rows(2))
    others = {
        "palette": saved(rgb.quantize(16)),
        "bits": saved(grey.convert("1")),
        "grey with alpha": saved(Image.merge("LA", [grey, grey])),
        "16 bits": saved(Image.fromarray(noise(7, 9, 1)[..., 0].astype(np.uint16))),
        "16-bit RGB": png(2, zlib.compress(bytes(7 * (1 + 9 * 6))), bits=16),
        "one transparent colour": saved(rgb, transparency=(1, 2, 3)),
        "text": png(2, stream, before=chunk(b"tEXt", b"a\0b")),
        "text behind": png(2, stream, after=chunk(b"tEXt", b"a\0b")),
        "animation": saved(rgb, save_all=True, append_images=[Image.fromarray(noise(7, 9, 3, 1))]),
        "metadata of another size": png(2, stream, before=chunk(b"gAMA", bytes(3))),
        "BMP": saved(rgb, "BMP"),
    }
    interlaced = bytearray(png(2, stream))
    interlaced[28] = 1
    interlaced[29:33] = struct.pack(">I", zlib.crc32(interlaced[12:29]))
    others["interlaced"] = bytes(interlaced)
    for name, content in others.items():
        assert decode_plain(content, MAX_PIXELS) is None, name


@needs_png
def test_more_pixels_than_allowed_are_not_decoded():
    for kind in ("PNG", "JPEG"):
        assert decode_plain(saved(Image.fromarray(noise(7, 9, 3)), kind), 62) is None
    assert decode_plain(png(2, b"", height=1 << 30, width=1 << 30), MAX_PIXELS) is None


def damaged(rng):
    """A PNG with something wrong in its rows, their compression, its chunks or any byte, or nothing."""
    colour = int(rng.choice([0, 2, 6]))
    plain = rows(colour, seed=int(rng.integers(1 << 30)))
    place, value = int(rng.integers(len(plain))), bytes([int(rng.integers(256))])
    plain = {0: plain[:place], 1: plain + value, 2: value + plain[1:]}.get(int(rng.integers(6)), plain)
    stream = bytearray(zlib.compress(plain, int(rng.choice([0, 6]))))
    kind, place = int(rng.integers(6)), int(rng.integers(len(stream)))
    if kind == 0:
        stream[place] = value[0]
    elif kind == 1:
        del stream[place:]
    elif kind == 2:
        stream += value
    elif kind == 3:
        stream[-1 - place % 4] ^= 1 + value[0] // 2  # the checksum of what was compressed
    content = bytearray(png(colour, bytes(stream), split=int(rng.choice([5, 1 << 20]))))
    if kind == 4:
        content[int(rng.integers(len(content)))] = value[0]
    return bytes(content)


def outcome(folder):
    try:
        return next(open_images(folder, workers=1).batches(1)).numpy()
    except ValueError as told:
        return str(told)


def agrees_with_pillow(folder, content, patch):
    """Whether the file was read fast; fails where Pillow alone reads other pixels or refuses what was read."""
    (folder / "x.png").write_bytes(content)  # no format is told from the name
    found = outcome(folder)
    with patch.context() as without:
        without.setattr(fast_decode, "decoder", lambda kind: ("Pillow", None))
        expected = outcome(folder)
    assert type(found) is type(expected) and np.array_equal(found, expected)
    return decode_plain(content, MAX_PIXELS) is not None


@needs_png
def test_damaged_png_are_read_or_refused_as_by_pillow_alone(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    fast = sum(agrees_with_pillow(tmp_path, damaged(rng), monkeypatch) for _ in range(600))
    assert fast > 120  # or nothing was tested


def jpeg(mode="RGB", size=(33, 17), seed=0, smooth=False, **options):
    """A JPEG of noise, which fills every frequency, or of a gradient, whose scan is short."""
    pixels = noise(*size, 3, seed)
    if smooth:
        pixels = np.add.outer(np.arange(size[0]) * 3, np.arange(size[1]) * 2)[..., None] * np.array([1, 2, 3]) % 256
    return saved(Image.fromarray(pixels.astype(np.uint8)).convert(mode), "JPEG", **options)


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def after_start(content, *segments):
    return content[:2] + b"".join(segments) + content[2:]


def adobe(transform):
    return segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))


def changed(content, marker, offset, value):
    """`content` with one byte at `offset` behind the first `marker` changed."""
    place = content.index(bytes([0xFF, marker])) + 2 + offset
    return content[:place] + bytes([value]) + content[place + 1 :]


@needs_jpeg
@pytest.mark.parametrize("sampling", [None, "4:4:4", "4:2:2", "4:2:0"], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 17), (200, 301)])
def test_plain_jpeg_have_pillows_pixels(sampling, size):
    mode, options = ("RGB", {"subsampling": sampling}) if sampling else ("L", {})
    for quality in (10, 50, 75, 90, 100):
        for more in ({}, {"restart_marker_blocks": 3}, {"optimize": True, "smooth": True}):
            content = jpeg(mode, size, quality, quality=quality, **options, **more)
            found = decode_plain(content, MAX_PIXELS)
            assert found.dtype == np.uint8 and np.array_equal(found, by_pillow(content))


@needs_jpeg
def test_metadata_and_colour_transforms_are_pillows():
    ycbcr = jpeg()
    assert ycbcr[2:4] == b"\xff\xe0"
    bare = ycbcr[:2] + ycbcr[20:]  # less its JFIF segment of 18 bytes, which would say YCbCr
    as_rgb = after_start(bare, adobe(0))
    others = after_start(bare, adobe(1)), after_start(ycbcr, adobe(0)), jpeg(comment=b"x", icc_profile=bytes(99))
    for content in (bare, as_rgb, *others):
        assert np.array_equal(decode_plain(content, MAX_PIXELS), by_pillow(content))
    assert not np.array_equal(by_pillow(as_rgb), by_pillow(bare))  # or the transform was never looked at


@needs_jpeg
def test_other_jpeg_are_left_to_pillow():
    plain, rgb = jpeg(), Image.fromarray(noise(33, 17, 3))
    scan = plain.index(b"\xff\xda") + 14
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by a quarter, which nobody applies
    others = {
        "progressive": jpeg(progressive=True),
        "CMYK": jpeg("CMYK"),
        "Exif": jpeg(exif=exif),
        "several pictures": saved(rgb, "MPO", save_all=True, append_images=[rgb]),
        "another application's": after_start(plain, segment(0xED, b"Photoshop 3.0\0" + b"8BIM")),
        "JFIF cut short": after_start(plain, segment(0xE0, b"JFIF\0")),
        "extended sequential": plain.replace(b"\xff\xc0", b"\xff\xc1"),
        "12 bits": changed(plain, 0xC0, 2, 12),
        "4:4:0": changed(jpeg(subsampling="4:2:2"), 0xC0, 9, 0x12),
        "names RGB": changed(plain, 0xC0, 8, ord("R")),
        "16-bit quantisation": changed(plain, 0xDB, 2, 0x10),
        "spectral selection": changed(plain, 0xDA, 9, 1),
        "one component's scan": plain[: scan - 12] + segment(0xDA, b"\1\1\0\0\x3f\0") + plain[scan:],
        "fill bytes": after_start(plain, b"\xff"),
        "a second image": plain + plain,
        "bytes behind the end": plain + b"\0",
        "no end": plain[:-2],
        "cut short": plain[:-50],
        "a marker in the scan": plain[: scan + 40] + b"\xff\xda" + plain[scan + 40 :],
        "fill bytes in the scan": plain[: scan + 40] + b"\xff\xff\0" + plain[scan + 40 :],
        "nothing": b"\xff\xd8\xff\xd9",
    }
    assert decode_plain(plain, MAX_PIXELS) is not None
    for name, content in others.items():
        assert decode_plain(content, MAX_PIXELS) is None, name


def damaged_jpeg(rng):
    """A JPEG with up to three things wrong in its segments or scan, mostly ended as a whole one."""
    chance = lambda one_in: rng.integers(one_in) == 0  # noqa: E731
    sampling = [None, "4:4:4", "4:2:2", "4:2:0"][rng.integers(4)]
    options = {"quality": int(rng.integers(10, 101)), "restart_marker_blocks": int(rng.integers(5)) * chance(3)}
    if sampling:
        options["subsampling"] = sampling
    size = tuple(int(x) for x in rng.integers(1, 60, 2))
    content = jpeg("RGB" if sampling else "L", size, int(rng.integers(1 << 30)), chance(2), **options)
    if chance(5):
        content = after_start(content[:2] + content[20:], adobe(int(rng.integers(4))))
    content = bytearray(content)
    for _ in range(rng.integers(4)):
        scan = max(content.find(b"\xff\xda"), 2)
        place, value = int(rng.integers(scan, max(len(content) - 2, scan + 1))), int(rng.integers(256))
        kind = rng.integers(8)
        if kind < 2 and len(content) > place:
            content[place] = value
        elif kind == 2:
            del content[place : place + 1 + value // 8]
        elif kind == 3:
            content[place:place] = rng.bytes(1 + value // 16).replace(b"\xff", b"\xfe")
        elif kind == 4:
            content[place:place] = bytes([0xFF, 0xD0 + value % 8])
        elif kind == 5:
            content[int(rng.integers(2, scan + 1))] = value
        elif kind == 6:
            frame = content.find(b"\xff\xc0")
            content[max(frame, 0) + 4 + int(rng.integers(13))] = int(rng.choice([0, 1, 2, 3, 8, 0x11, 0x21, 0x22]))
        elif kind == 7:
            del content[place:]
    if not chance(4) and not content.endswith(b"\xff\xd9"):
        content += b"\xff\xd9"
    return bytes(content)


@needs_jpeg
@pytest.mark.filterwarnings("ignore::Warning")  # Pillow's of strange sizes and tables
def test_damaged_jpeg_are_read_or_refused_as_by_pillow_alone(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    fast = sum(agrees_with_pillow(tmp_path, damaged_jpeg(rng), monkeypatch) for _ in range(1000))
    assert fast > 300  # or nothing was tested


def test_without_imagecodecs_pillow_decodes(tmp_path, monkeypatch):
    monkeypatch.setattr(fast_decode, "decoder", lambda kind: ("Pillow", None))
    pixels = noise(6, 5, 3)
    (tmp_path / "x.png").write_bytes(saved(Image.fromarray(pixels)))
    assert decode_plain((tmp_path / "x.png").read_bytes(), MAX_PIXELS) is None
    assert np.array_equal(outcome(tmp_path)[0].transpose(1, 2, 0), pixels)
