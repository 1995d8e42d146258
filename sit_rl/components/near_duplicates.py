"""Near-duplicates: pairs of images that are almost the same picture, and the groups that they form.

Every image is reduced to a thumbnail of 8×8 means. Two images are near-duplicates if the root mean square difference of
their thumbnails is below 8% of the spread between images. The spread is the root of the mean variance of a
thumbnail's values over all images, so the rule is the same for pale and for contrasty sets.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

# Side of a thumbnail. Compression and a shift by a pixel change 8×8 means little; another picture changes them much.
THUMBNAIL = 8
# Largest difference as a fraction of the spread. Two unrelated images differ by 1.4 of it (√2) on average.
NEAR = 0.08
ROWS_AT_ONCE = 2_048  # 2,048 × 100,000 distances are 0.8 GB


def thumbnails(images: torch.Tensor) -> torch.Tensor:
    """float32 [n, C·64] of images uint8 [n, C, H, W]: means over 8×8 cells."""
    parts = [F.adaptive_avg_pool2d(part.float(), THUMBNAIL).flatten(1) for part in images.split(1_000)]
    return torch.cat(parts)


def largest_difference(thumbs: torch.Tensor) -> float:
    """The root mean square difference of thumbnails [n, d] below which two images are near-duplicates."""
    return NEAR * float(thumbs.var(dim=0, unbiased=False).mean().sqrt())


def near_pairs(a: torch.Tensor, b: torch.Tensor, within: float) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of a [n, d] and of b [m, d] whose root mean square difference is at most `within`, some at a time."""
    centre = b.mean(dim=0)  # products of centred values lose fewer digits
    a, b = a - centre, b - centre
    squares = b.square().sum(dim=1)
    for start in range(0, len(a), ROWS_AT_ONCE):
        part = a[start : start + ROWS_AT_ONCE]
        distance = part.square().sum(dim=1)[:, None] + squares - 2 * part @ b.T
        rows, columns = torch.nonzero(distance <= within**2 * a.shape[1], as_tuple=True)
        yield rows + start, columns


def groups(images: torch.Tensor) -> npt.NDArray[np.int64]:
    """Group number [n] of each image uint8 [n, C, H, W]: chains of near-duplicates are one group."""
    thumbs = thumbnails(images)
    found = list(near_pairs(thumbs, thumbs, largest_difference(thumbs)))
    rows, columns = (torch.cat(part).numpy() for part in zip(*found, strict=True))
    graph = coo_matrix((np.ones(len(rows), bool), (rows, columns)), shape=(len(images), len(images)))
    numbers: npt.NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return numbers


def near_any(images: torch.Tensor, others: torch.Tensor) -> npt.NDArray[np.bool_]:
    """Whether each image [n] has a near-duplicate among the others; the spread is that of both together."""
    a, b = thumbnails(images), thumbnails(others)
    near = np.zeros(len(images), bool)
    for rows, _ in near_pairs(a, b, largest_difference(torch.cat([a, b]))):
        near[rows.numpy()] = True
    return near
