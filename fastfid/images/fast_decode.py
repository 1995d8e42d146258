"""Plain PNG and JPEG by imagecodecs, if it is installed; small ones in half to two thirds of Pillow's time.

The pixels are the same as Pillow's: only files that both must decode alike are read here.  Pillow reads all others,
and files that these decoders refuse; it also says what is wrong with a damaged file.

PNG, by libspng    8 bits a channel, grey or RGB or RGB with alpha, not interlaced, no chunks but those of METADATA
                   before the image data and none after it.  Palettes, 16 bits and animations are Pillow's.
JPEG, by           baseline, 8 bits a channel, grey or three components of 4:4:4, 4:2:2 or 4:2:0, no segments but those
libjpeg-turbo      that `_is_plain_segment` knows, one scan, and in it no marker but restarts until the end of the file:
                   of a file whose data stop early imagecodecs returns the missing part in grey, Pillow an error.
                   Progressive, CMYK, Exif (which Pillow parses) and fill bytes are Pillow's.

Both ways decode JPEG by libjpeg-turbo with its accurate integer DCT and smooth upsampling of colour; other builds of
Pillow, whose pixels may differ, keep all JPEG to themselves.  torchvision's decoders are slower on small images and
deprecated since 0.29, where damaged PNG may end the process.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"  # a chunk of nothing and its checksum
HEADER = struct.Struct(">IIBBBBB")  # width, height, bits, colour type, compression, filter, interlace
CHUNK = struct.Struct(">I4s")  # bytes of content, type
IMAGE_START = len(PNG_START) + CHUNK.size + HEADER.size + 4  # behind the header and its checksum
CHANNELS = {0: 1, 2: 3, 6: 4}  # of the colour types grey, RGB, RGB with alpha; imagecodecs leaves grey with alpha out
# Chunks before the image data that change no pixel, and their bytes: those of gamma, chromaticities, rendering intent,
# pixel size, time.
METADATA = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"tIME": 7}

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
SEGMENT = struct.Struct(">BBH")  # 0xFF, marker, bytes of content and of their own count
FRAME = struct.Struct(">BHHB")  # bits, height, width, components; 3 bytes for each component follow
SCAN = b"\xff\xda"
BASELINE, HUFFMAN, QUANTISATION, RESTARTS, COMMENT = 0xC0, 0xC4, 0xDB, 0xDD, 0xFE  # markers
LONGEST_HEADER = 1 << 16  # bytes: a few hundred, or some thousand with a colour profile
# Application segments that change no pixel, or the same way in every libjpeg, and the least bytes Pillow reads of them.
APPLICATION = {0xE0: (b"JFIF\0", 12), 0xE2: (b"ICC_PROFILE\0", 14), 0xEE: (b"Adobe", 12)}
# Sampling factors of each component: those whose upsampling is as old as libjpeg-turbo; 4:4:0 changed in 2.1.
SAMPLINGS = {1: (b"\x11",), 3: (b"\x11\x11\x11", b"\x21\x11\x11", b"\x22\x11\x11")}
STOP = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # in a scan, a marker other than restarts; 0xFF00 is the byte 0xFF

NOT_PLAIN = 0, 0, 0


@cache
def decoder(kind: str) -> tuple[str, Callable[[bytes], np.ndarray] | None]:
    """The decoder of plain "PNG" or "JPEG" by name and version, and imagecodecs' function or None for Pillow."""
    from PIL import __version__, features

    constants: Any
    try:
        if kind == "PNG":
            from imagecodecs import SPNG as constants
            from imagecodecs import spng_decode as decode
            from imagecodecs import spng_version as version
        else:
            from imagecodecs import JPEG8 as constants
            from imagecodecs import jpeg8_decode as decode
            from imagecodecs import jpeg8_version as version
        if constants.available and (kind == "PNG" or ("turbo" in version() and features.check("libjpeg_turbo"))):
            return version(), decode
    except ImportError:  # not installed, or an old one without it
        pass
    return f"Pillow {__version__}", None


def decode_plain(encoded: bytes, max_pixels: int) -> np.ndarray | None:
    """Pixels of a plain PNG less its alpha, or JPEG, uint8 [H, W] or [H, W, 3]; None for what is left to Pillow."""
    if encoded.startswith(PNG_START) and encoded.endswith(PNG_END):
        decode, plain_shape = decoder("PNG")[1], _plain_png_shape
    elif encoded.startswith(JPEG_START) and encoded.endswith(JPEG_END):
        decode, plain_shape = decoder("JPEG")[1], _plain_jpeg_shape
    else:
        return None
    if decode is None:
        return None
    width, height, channels = plain_shape(encoded)
    if not 0 < width * height <= max_pixels:
        return None
    try:
        pixels = decode(encoded)
    except Exception:  # Pillow reads it again and says what is wrong
        return None
    if pixels.dtype != np.uint8 or pixels.size != height * width * channels:  # transparency of one colour, say
        return None
    return pixels.reshape(height, width) if channels == 1 else pixels[..., :3]


def _plain_png_shape(encoded: bytes) -> tuple[int, int, int]:
    """Width, height and channels, alpha included, of a plain PNG; NOT_PLAIN for any other."""
    if len(encoded) < IMAGE_START or CHUNK.unpack_from(encoded, len(PNG_START)) != (HEADER.size, b"IHDR"):
        return NOT_PLAIN
    width, height, bits, colour, compression, filtering, interlace = HEADER.unpack_from(encoded, 16)
    if bits != 8 or colour not in CHANNELS or compression or filtering or interlace:
        return NOT_PLAIN
    position, image = IMAGE_START, False
    while position < len(encoded) - len(PNG_END):
        size, kind = CHUNK.unpack_from(encoded, position)
        start, position = position, position + CHUNK.size + size + 4
        if kind == b"IDAT":
            image = True
        elif image or METADATA.get(kind) != size or not _checksum_holds(encoded[start:position]):
            return NOT_PLAIN
    return (width, height, CHANNELS[colour]) if image and position == len(encoded) - len(PNG_END) else NOT_PLAIN


def _checksum_holds(chunk: bytes) -> bool:
    return zlib.crc32(chunk[4:-4]).to_bytes(4, "big") == chunk[-4:]


def _plain_jpeg_shape(encoded: bytes) -> tuple[int, int, int]:
    """Width, height and components of a plain JPEG; NOT_PLAIN for any other."""
    scan = encoded.find(SCAN)  # where a header holds these bytes, its walk ends within a segment: not plain
    if not 0 < scan <= LONGEST_HEADER:
        return NOT_PLAIN
    shape = _header_shape(encoded[:scan])
    start = scan + 8 + 2 * shape[2]  # of its data, behind the marker, two counts and three more bytes
    return shape if _is_plain_scan(encoded[scan + 2 : start], shape[2]) and _lasts_to_end(encoded, start) else NOT_PLAIN


@lru_cache(maxsize=64)  # images of one set often have the same tables and size
def _header_shape(header: bytes) -> tuple[int, int, int]:
    """Width, height and components of the plain segments before a scan; NOT_PLAIN for any other."""
    position, shape = len(JPEG_START), NOT_PLAIN
    while position + SEGMENT.size <= len(header):
        escape, marker, size = SEGMENT.unpack_from(header, position)
        content, position = header[position + SEGMENT.size : position + 2 + size], position + 2 + size
        if escape != 0xFF or size < 2:
            return NOT_PLAIN
        if marker == BASELINE and shape == NOT_PLAIN:
            shape = _frame_shape(content)
            if shape == NOT_PLAIN:
                return NOT_PLAIN
        elif not _is_plain_segment(marker, content):
            return NOT_PLAIN
    return shape if position == len(header) else NOT_PLAIN


def _is_plain_segment(marker: int, content: bytes) -> bool:
    """Whether Pillow, which reads some segments itself, and every libjpeg take this one alike."""
    if marker in APPLICATION:
        beginning, least = APPLICATION[marker]
        return content.startswith(beginning) and len(content) >= least
    if marker == QUANTISATION:  # tables of a number below 4 and 64 values of 8 bits
        return len(content) % 65 == 0 and all(number < 4 for number in content[::65])
    return marker in (COMMENT, HUFFMAN) or (marker == RESTARTS and len(content) == 2)


def _frame_shape(content: bytes) -> tuple[int, int, int]:
    """Width, height and components of a plain frame, whose components are called 1 or 1, 2, 3."""
    if len(content) < FRAME.size:
        return NOT_PLAIN
    bits, height, width, components = FRAME.unpack_from(content)
    named = content[6::3] == bytes(range(1, components + 1)) and len(content) == FRAME.size + 3 * components
    plain = bits == 8 and named and content[7::3] in SAMPLINGS.get(components, ())
    return (width, height, components) if plain else NOT_PLAIN


def _is_plain_scan(segment: bytes, components: int) -> bool:
    """Whether it names all components in their order, and of each all frequencies and bits."""
    names = bytes(range(1, components + 1))
    counts = bytes([0, 2 * components + 6, components])
    return components > 0 and segment[:3] == counts and segment[3:-3:2] == names and segment[-3:] == b"\x00\x3f\x00"


def _lasts_to_end(encoded: bytes, start: int) -> bool:
    """Whether the first marker but restarts from `start` on is the last one, which ends the image and the file."""
    stop = STOP.search(encoded, start)
    return stop is not None and stop.start() == len(encoded) - len(JPEG_END)
