"""Pictures inside a page: PNG in base64."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

CELL = 64  # pixels of a picture in a grid: ten in a row fill a column of the page


def png(pixels: npt.NDArray[Any], side: int | None = None) -> str:
    """uint8 [H, W] or [H, W, 3] → base64 of a PNG, made smaller where it exceeds `side` pixels a side."""
    picture = Image.fromarray(pixels)
    if side is not None:
        picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return as_base64(buffer.getvalue())


def as_base64(content: bytes) -> str:
    """Bytes as the text of a data URI."""
    return base64.b64encode(content).decode()


def grid(pictures: Sequence[npt.NDArray[Any]], columns: int) -> str:
    """Pictures uint8 [H, W] or [H, W, 3] of any sizes, each in a cell of CELL pixels → base64 of one PNG."""
    cells = [Image.fromarray(pixels) for pixels in pictures]
    columns = min(columns, len(cells))
    mode = "L" if all(cell.mode == "L" for cell in cells) else "RGB"
    whole = Image.new(mode, (columns * CELL, -(-len(cells) // columns) * CELL), "white")
    for i, cell in enumerate(cells):
        scale = CELL / max(cell.size)
        width, height = (max(1, round(side * scale)) for side in cell.size)
        small = cell.resize((width, height), Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
        whole.paste(small.convert(mode), (i % columns * CELL, i // columns * CELL))
    return png(np.asarray(whole))
