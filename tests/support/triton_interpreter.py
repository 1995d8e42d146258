"""Triton's interpreter made to round as tensor cores do: bfloat16 operands and casts, tf32 operands.

The interpreter keeps bfloat16 as uint16 and multiplies those integers, cuts float32 to bfloat16 instead of rounding,
and takes tf32 for float32.  `install` replaces its dot product and its cast, for tests only.
"""

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def bfloat16_bits(values):
    """Float32 rounded to bfloat16, nearest and ties to even, as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    last_kept = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + last_kept) >> np.uint64(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def from_bfloat16_bits(bits):
    """The float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def tf32(values):
    """Float32 rounded to the ten explicit bits of tf32, nearest and ties away from zero (cvt.rna.tf32.f32)."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def product(a, b, precision, dtype):
    """a @ b summed in `dtype`, with the operands that the tensor cores see at this input precision."""
    if precision == "TF32":
        a, b = tf32(a), tf32(b)
    if precision != "TF32x3":
        return np.matmul(a, b, dtype=dtype)
    high_a, high_b = tf32(a), tf32(b)
    low_a, low_b = tf32(a - high_a), tf32(b - high_b)
    small = np.matmul(low_a, high_b, dtype=dtype) + np.matmul(high_a, low_b, dtype=dtype)
    return small + np.matmul(high_a, high_b, dtype=dtype)


def install():
    """Replace the interpreter's dot product and cast."""
    original_cast = InterpreterBuilder.cast_impl

    def create_dot(self, a, b, total, input_precision, max_num_imprecise_acc):
        operands = [from_bfloat16_bits(x.data) if x.dtype.scalar == tl.bfloat16 else x.data for x in (a, b)]
        # only float32 operands have an input precision
        precision = str(input_precision).rsplit(".", 1)[-1] if a.dtype.scalar == tl.float32 else "IEEE"
        return TensorHandle(product(*operands, precision, total.data.dtype) + total.data, total.dtype.scalar)

    def cast_impl(self, source, to):
        if source.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
            return TensorHandle(bfloat16_bits(source.data), tl.bfloat16)
        return original_cast(self, source, to)

    InterpreterBuilder.create_dot = create_dot
    InterpreterBuilder.cast_impl = cast_impl
