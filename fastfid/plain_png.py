"""Plain PNG by libspng, where imagecodecs is installed: two thirds of Pillow's time, the same pixels.

Only files that libspng and Pillow cannot read differently: 8 bits a channel, grey or RGB or RGB with alpha, not
interlaced, no chunks but those of METADATA before the image data and none after it.  Palettes, 16 bits, animations and
whatever libspng refuses are left to Pillow, which also says what is wrong with a damaged file.

libspng returns an error where torchvision's decoder, 0.29, may end the process, and is the faster of the two on small
images.  JPEG stays with Pillow: imagecodecs gives the same pixels in half the time, but also grey for the missing part
of a file whose data stop before its end marker.
"""

from __future__ import annotations

import struct
import zlib
from functools import cache

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = b"\0\0\0\0IEND\xaeB`\x82"  # a chunk of nothing and its checksum
HEADER = struct.Struct(">IIBBBBB")  # width, height, bits, colour type, compression, filter, interlace
CHUNK = struct.Struct(">I4s")  # bytes of content, type
IMAGE_START = len(SIGNATURE) + CHUNK.size + HEADER.size + 4  # behind the header and its checksum
CHANNELS = {0: 1, 2: 3, 6: 4}  # of the colour types grey, RGB, RGB with alpha; imagecodecs leaves grey with alpha out
# Chunks before the image data that change no pixel, and their bytes: those of gamma, chromaticities, rendering intent,
# pixel size, time.
METADATA = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"tIME": 7}


@cache
def decoder() -> tuple[str, object]:
    """What decodes plain PNG, by name and version, and imagecodecs' function, None for Pillow."""
    try:
        from imagecodecs import SPNG, spng_decode, spng_version
    except ImportError:  # not installed, or an old one without it
        SPNG = None
    if SPNG is not None and SPNG.available:
        return spng_version(), spng_decode
    from PIL import __version__

    return f"Pillow {__version__}", None


def decode_plain_png(encoded: bytes, max_pixels: int) -> np.ndarray | None:
    """Pixels of a plain PNG less its alpha, uint8 [H, W] or [H, W, 3]; None for what is left to Pillow."""
    decode = decoder()[1]
    if decode is None or not encoded.startswith(SIGNATURE) or not encoded.endswith(END):
        return None
    width, height, channels = _plain_shape(encoded)
    if not 0 < width * height <= max_pixels:
        return None
    try:
        pixels = decode(encoded)
    except Exception:  # Pillow finds words for it
        return None
    if pixels.dtype != np.uint8 or pixels.size != height * width * channels:  # transparency of one colour, say
        return None
    return pixels.reshape(height, width) if channels == 1 else pixels[..., :3]


def _plain_shape(encoded: bytes) -> tuple[int, int, int]:
    """Width, height and channels, alpha included, of a plain PNG; zeros for any other."""
    nothing = 0, 0, 0
    if len(encoded) < IMAGE_START or CHUNK.unpack_from(encoded, len(SIGNATURE)) != (HEADER.size, b"IHDR"):
        return nothing
    width, height, bits, colour, compression, filtering, interlace = HEADER.unpack_from(encoded, 16)
    if bits != 8 or colour not in CHANNELS or compression or filtering or interlace:
        return nothing
    position, image = IMAGE_START, False
    while position < len(encoded) - len(END):
        size, kind = CHUNK.unpack_from(encoded, position)
        start, position = position, position + CHUNK.size + size + 4
        if kind == b"IDAT":
            image = True
        elif image or METADATA.get(kind) != size or not _checksum_holds(encoded[start:position]):
            return nothing
    return (width, height, CHANNELS[colour]) if image and position == len(encoded) - len(END) else nothing


def _checksum_holds(chunk: bytes) -> bool:
    return zlib.crc32(chunk[4:-4]).to_bytes(4, "big") == chunk[-4:]
