"""The fast PNG route gives Pillow's pixels or leaves the file to Pillow, whatever the file holds."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fastfid import open_images, plain_png
from fastfid.image_files import MAX_PIXELS
from fastfid.plain_png import decode_plain_png

needs_imagecodecs = pytest.mark.skipif(plain_png.decoder()[1] is None, reason="imagecodecs is not installed")


def noise(height, width, channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(colour, stream, height=7, width=9, before=b"", after=b"", split=1 << 20, bits=8):
    """A PNG of any content, right or wrong, whose checksums are right; `split` bytes of `stream` an IDAT."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    parts = [stream[i : i + split] for i in range(0, len(stream), split)]
    image = b"".join(chunk(b"IDAT", part) for part in parts)
    return plain_png.SIGNATURE + header + before + image + after + plain_png.END


def rows(colour, filters=(0, 1, 2, 3, 4), seed=0):
    """Rows of a PNG of 7×9, each with a filter byte."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    body = noise(7, 9 * channels, 1, seed)[..., 0]
    return b"".join(bytes([filters[i % len(filters)]]) + row.tobytes() for i, row in enumerate(body))


def by_pillow(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("L" if image.mode == "L" else "RGB"))


def saved(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


@needs_imagecodecs
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 17), (200, 300)])
def test_plain_images_have_pillows_pixels(mode, size):
    pixels = noise(*size, len(mode))
    content = saved(Image.fromarray(pixels[..., 0] if mode == "L" else pixels))
    found = decode_plain_png(content, MAX_PIXELS)
    assert found.dtype == np.uint8 and np.array_equal(found, by_pillow(content))


@needs_imagecodecs
@pytest.mark.parametrize("colour", [0, 2, 6])
def test_every_filter_split_and_metadata(colour):
    stream = zlib.compress(rows(colour))
    gamma, chromaticities = chunk(b"gAMA", struct.pack(">I", 45455)), chunk(b"cHRM", struct.pack(">8I", *range(1, 9)))
    more = chunk(b"sRGB", b"\0") + chunk(b"pHYs", struct.pack(">IIB", 9, 9, 1)) + chunk(b"tIME", bytes(7))
    for content in (png(colour, stream, split=3), png(colour, stream, before=gamma + chromaticities + more)):
        assert np.array_equal(decode_plain_png(content, MAX_PIXELS), by_pillow(content))


@needs_imagecodecs
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
        "JPEG": (lambda buffer: (rgb.save(buffer, "JPEG"), buffer.getvalue())[1])(io.BytesIO()),
    }
    interlaced = bytearray(png(2, stream))
    interlaced[28] = 1
    interlaced[29:33] = struct.pack(">I", zlib.crc32(interlaced[12:29]))
    others["interlaced"] = bytes(interlaced)
    for name, content in others.items():
        assert decode_plain_png(content, MAX_PIXELS) is None, name


@needs_imagecodecs
def test_more_pixels_than_allowed_are_not_decoded():
    assert decode_plain_png(saved(Image.fromarray(noise(7, 9, 3))), 62) is None
    assert decode_plain_png(png(2, b"", height=1 << 30, width=1 << 30), MAX_PIXELS) is None


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


@needs_imagecodecs
def test_damaged_images_are_read_or_refused_as_by_pillow_alone(tmp_path, monkeypatch):
    rng, fast = np.random.default_rng(0), 0
    for _ in range(600):
        content = damaged(rng)
        (tmp_path / "x.png").write_bytes(content)
        fast += decode_plain_png(content, MAX_PIXELS) is not None
        found = outcome(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(plain_png, "decoder", lambda: ("Pillow", None))
            expected = outcome(tmp_path)
        assert type(found) is type(expected) and np.array_equal(found, expected)
    assert fast > 120  # or nothing was tested


def test_without_imagecodecs_pillow_decodes(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_png, "decoder", lambda: ("Pillow", None))
    pixels = noise(6, 5, 3)
    (tmp_path / "x.png").write_bytes(saved(Image.fromarray(pixels)))
    assert decode_plain_png((tmp_path / "x.png").read_bytes(), MAX_PIXELS) is None
    assert np.array_equal(outcome(tmp_path)[0].transpose(1, 2, 0), pixels)
