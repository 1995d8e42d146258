"""Image formats that Pillow reads: file name endings, decoding, and depths that Pillow would reduce silently.

Every format that Pillow decodes by itself is read.  Grey images keep one channel, all others become RGB.  Only the
first frame of an image is read.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

import numpy as np
from PIL import Image, ImageFile

# Formats that Pillow knows but does not decode by itself: it runs Ghostscript for EPS, needs a handler for the next
# four, and only recognises the last.
NOT_DECODED = frozenset({"EPS", "BUFR", "GRIB", "HDF5", "WMF", "MPEG"})
KINDS_NAMED = 5  # kinds of skipped files that a note names, most frequent first

GREY_MODES = frozenset({"1", "L", "LA"})  # Pillow modes read as one channel, alpha dropped
DEEP_MODES = ("I", "F")  # beginnings of the modes with more than 8 bits a channel
# Raw modes with ";16" hold 16 bits a channel, which Pillow reduces silently.  Exceptions, with 16 bits a pixel:
FIVE_SIX_FIVE = re.compile(r"\b(RGB|BGR);16\b")

CODESTREAM = b"\xff\x4f\xff\x51"  # of JPEG 2000: its start and its SIZ segment, whose numbers of bits follow below
SIZ_COUNT, SIZ_BITS = 36, 3  # offset of the components' number behind these markers, and the bytes of each component
AV1_CONFIGURATION, HIGH_BIT_DEPTH = b"av1C", 0x40  # of AVIF: the box, and the flag of 10 or 12 bits in its third byte


# --- names -------------------------------------------------------------------------------------------------------


def decoded_formats() -> list[str]:
    """Pillow's names of the formats it decodes, in the order it tries them; those of plugins loaded later, too."""
    Image.init()
    return [form for form in Image.ID if form not in NOT_DECODED]


def image_endings() -> frozenset[str]:
    """Endings of names, in lower case, of all formats that are decoded."""
    formats = {*decoded_formats(), "MPO"}  # JPEG's decoder opens that
    return frozenset(ending for ending, form in Image.registered_extensions().items() if form in formats)


def split_by_name(paths: Iterable[str]) -> tuple[list[str], Counter[str]]:
    """The paths whose endings are those of images, and the number of other files of each kind.

    Hidden files are not images: macOS writes ._x.png beside x.png, Jupyter copies files into .ipynb_checkpoints.
    """
    endings, images, others = image_endings(), [], Counter[str]()
    for text in paths:
        path = PurePosixPath(text)
        ending = path.suffix.lower()
        if any(part.startswith(".") for part in path.parts):
            others["hidden"] += 1
        elif ending in endings:
            images.append(text)
        else:
            others[ending or "without an ending"] += 1
    return images, others


def passed_over(name: str, others: Counter[str]) -> str:
    """A sentence on the files of a folder or archive that are not images, "" if there are none."""
    if not others:
        return ""
    kinds = [f"{count} {kind}" for kind, count in others.most_common(KINDS_NAMED)]
    rest = others.total() - sum(count for _, count in others.most_common(KINDS_NAMED))
    kinds += [f"{rest} of other kinds"] if rest else []
    return (
        f"passed over {others.total()} in {name}: {', '.join(kinds)}; images have names that end in .png, .jpg or "
        "another ending of a format that Pillow decodes"
    )


# Beginnings of files that may hold several frames; of PNG and AVIF only those that say so near their beginning.
WITH_FRAMES = (b"GIF8", b"II*\0", b"MM\0*", b"RIFF", b"II+\0", b"MM\0+")
FRAMES_SAID = {b"\x89PNG": b"acTL", b"\0\0\0": b"avis"}
HEADER_BYTES = 4096  # in which they say it: before the pixels, behind a name and perhaps a colour profile


def holds_frames(encoded: bytes) -> bool:
    """Whether an image has several frames or pages; False if it cannot be opened."""
    said = next((word for start, word in FRAMES_SAID.items() if encoded.startswith(start)), None)
    if said is None and not encoded.startswith(WITH_FRAMES):
        return False
    if said is not None and encoded.find(said, 0, HEADER_BYTES) < 0:
        return False
    try:
        with Image.open(io.BytesIO(encoded), formats=decoded_formats()) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # decoding says what is wrong with it
        return False


# --- content -----------------------------------------------------------------------------------------------------


def decoded_by_pillow(encoded: bytes, max_pixels: int) -> np.ndarray:
    """Pixels of an image of any format, uint8 [H, W] or [H, W, 3]; raises what Pillow raises."""
    with Image.open(io.BytesIO(encoded), formats=decoded_formats()) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise ValueError(
                f"it claims {width}x{height} pixels, more than {max_pixels:,} for its {len(encoded):,} bytes"
            )
        if not _is_covered(image):
            raise ValueError(f"its data do not cover its {width}x{height} pixels")
        if _is_deep(image, encoded):
            raise ValueError(f"it has more than 8 bits a channel, mode {image.mode}; convert it to 8 bits")
        mode = "L" if image.mode in GREY_MODES else "RGB"
        return np.asarray(image if image.mode == mode else image.convert(mode))


def _is_covered(image: ImageFile.ImageFile) -> bool:
    """Whether the tiles of an opened image reach its right and lower edge; Pillow leaves black what no tile covers.

    A frame of GIF may be smaller than its image, which has a background.
    """
    if image.format == "GIF" or not image.tile:
        return True
    boxes = [tile[1] or (0, 0, *image.size) for tile in image.tile]
    return max(box[2] for box in boxes) >= image.size[0] and max(box[3] for box in boxes) >= image.size[1]


def _is_deep(image: ImageFile.ImageFile, encoded: bytes) -> bool:
    """Whether an opened image, not decoded yet, has more than 8 bits a channel."""
    if image.mode.startswith(DEEP_MODES):
        return True
    if image.format == "JPEG2000":
        return _jpeg2000_bits(encoded) > 8
    if image.format == "AVIF":
        box = encoded.find(AV1_CONFIGURATION)
        return box >= 0 and bool(encoded[box + 6 : box + 7] and encoded[box + 6] & HIGH_BIT_DEPTH)
    return any(_is_deep_tile(tile[0], tile[3]) for tile in image.tile)


def _is_deep_tile(codec: str, arguments: object) -> bool:
    """Whether Pillow's decoder `codec` with these arguments takes more than 8 bits a channel."""
    if codec.startswith("ppm"):
        return isinstance(arguments, tuple) and arguments[-1] > 255  # the largest value of a channel
    return codec == "SGI16" or "BC6" in str(arguments) or ";16" in FIVE_SIX_FIVE.sub("", str(arguments))


def _jpeg2000_bits(encoded: bytes) -> int:
    """Most bits of a component of a JPEG 2000 image; 0 where its header is not found, which Pillow refuses."""
    count = encoded.find(CODESTREAM) + len(CODESTREAM) + SIZ_COUNT
    components = int.from_bytes(encoded[count : count + 2], "big")
    bits = encoded[count + 2 : count + 2 + SIZ_BITS * components : SIZ_BITS]
    return max(((byte & 0x7F) + 1 for byte in bits), default=0)
