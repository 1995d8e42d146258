"""How values of Triton kernels are compared, and matrices that lie far apart in memory.

Tolerances: float32 torch does the same sums on the same numbers, and its error against the float64 reference is
computed beside every comparison.  A kernel may lose twice as much, because its order of summation differs and its
errors are other random numbers of the same size.  A floor of a few ε is added for cases so small that torch happens to
lose nothing.
"""

import mmap

import numpy as np
import torch

EPS = 2.0**-24  # rounding of float32
SLACK = 1e-3


def assert_as_good_as_torch(actual, expected, torch_float32, floor):
    """|actual − expected| ≤ 2 |torch_float32 − expected| + floor, each the largest over the tensor."""
    assert actual.shape == expected.shape
    error, allowed = ((x.double() - expected).abs().max().item() for x in (actual, torch_float32))
    assert error <= 2 * allowed + floor, f"error {error:.2e}, float32 torch {allowed:.2e}, floor {floor:.2e}"


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def far_apart(count, gap, shape, dtype):
    """[count, *shape] whose entries along the first axis lie `gap` elements apart; only touched pages take memory."""
    itemsize = torch.finfo(dtype).bits // 8
    size = ((count - 1) * gap + int(np.prod(shape))) * itemsize
    reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Linux; named in Python since 3.13
    buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | reserve)
    flat = torch.frombuffer(buffer, dtype=dtype)
    inner = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    return flat.as_strided((count, *shape), (gap, *inner))
