"""Traces of square roots of products of covariances, tr √(Σ_a Σ_b), for many pairs at a time.

With any R of RᵀR = Σ_a the product has the eigenvalues of the symmetric M = R Σ_b Rᵀ, none of them negative, so

    tr √(Σ_a Σ_b) = tr √M.

"eigh"           the eigenvalues of M in float64: exact, and the reference for the other two.
"newton_schulz"  matrix products only.  With Y₀ = M/s, Z₀ = I, T = Z Y (Higham, Functions of Matrices, 2008, eq. 6.35):
                 W = p(T),   Y ← Y W,   Z ← W Z,   p(t) = (3 − t)/2;    Y → √(M/s), Z → its inverse.
                 In the eigenbasis, u = √t follows u ← u·p(u²) towards 1 from u₀ = √(λ/s).  A small eigenvalue grows by
                 3/2 a step, so about log(1/u₀)/log(3/2) + 4 steps are needed.
"polar_express"  the same with p(t) = a + b t + c t².  In each step x·p(x²) is the odd polynomial of degree 5 nearest to
                 1 on the interval that the step before left (Amsel, Persson, Musco and Gower, "The Polar Express",
                 arXiv 2505.16932; its coefficients are computed here by Remez exchange).  A small eigenvalue grows by
                 up to 8 a step, which takes 4 products instead of 3.

The scale s is the Frobenius norm of M, an upper bound of its largest eigenvalue, and a close one for the falling
spectra of image features.  Rounding in the products is of size ε·‖Z‖·‖Y‖, and Z approaches an inverse: the smaller the
eigenvalues that have been brought to 1, the less stable is the coupled iteration.

On a CUDA device the iterations in float32 and tf32 use the fused products of fastfid/triton_kernels/newton_schulz.py
(backend "triton"), which compute the same steps from I − Z Y.  A float32 product there is three products of tf32
halves, with an error of 2⁻²².  Everything else is torch's.

Correction.  Let a coarse arithmetic have reached Y ≈ √M and Z ≈ Y⁻¹.  Then tr √M = tr Y + ½ tr(Z (M − Y²)) to second
order in their errors.  One product in float32 removes nearly all of the rounding of tf32 and bfloat16.

Which to take?  "polar_express" with the default correction.  bench/newton_schulz_error.py measures the error of FD
changes of 50-swaps (d = 256 and 512, N = 1,000 and 2,500, variances 1/i and 1/i²) in units of the candidates' standard
deviation; an error below 5% is good enough for a reward.  The worst of four settings, when the error on the base set is
subtracted:

    float32   good either way: polar_express from 8 steps on (7 corrected), error 4e-4 (9e-5); newton_schulz from 22
    tf32      corrected: good from 7 steps on (newton_schulz 20), error 8e-4;       uncorrected NOT GOOD, above 100%
    bfloat16  corrected: just good from 7 steps on (newton_schulz 22), error 3%;    uncorrected NOT GOOD, above 400%

Without that subtraction convergence must be complete: 13 steps, or 30 of Newton–Schulz.  The subtraction removes what
all candidates share, mostly roots that have not converged.  It cannot remove rounding, which differs between
candidates. Expect larger errors where d is larger relative to N, or where the spectrum falls faster.  The
log-determinants of `SwapEngine` need none of this.

Legend: d features, r rank of Σ_a, B pairs; matrices [.., d, d] or [.., r, r].
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastfid import backend as backends
from fastfid import triton_kernels
from fastfid.linalg.factors import factor_by_eigh
from fastfid.linalg.symmetric import NOISE, is_asymmetric, refuse_indefinite, symmetric
from fastfid.linalg.units import in_unit, unit_of
from fastfid.runtime.devices import as_tensor, float32_products

METHODS = ("eigh", "newton_schulz", "polar_express")
BACKENDS = ("auto", "torch", "triton")
# Explicit mantissa bits of a product's operands; sums are in float32 for the last three.
PRECISIONS = {"float64": 52, "float32": 23, "tf32": 10, "bfloat16": 7}

DEFAULT_WORKSPACE = 256 << 20  # bytes
# float32 matrices alive per pair: 4 for M and its factors in float64; Y, Z, T, T², W, two rounded operands, a result.
MATRICES_PER_PAIR = 12

# Smallest root eigenvalue expected, relative to the largest; smaller ones converge later.  Recommended by arXiv
# 2505.16932, section 4.
LOWER = 1e-3
# Polynomials are fitted down to this part of their interval's upper end at least: below, the upper end would be mapped
# close to 0, where bfloat16 loses it.  From listing 1 there.
CUSHION = 0.02407327424182761
# Room for rounding above a polynomial's interval, where it leaves 1 steeply.  From the appendix there.
MARGIN = 1.01
# The polynomial of a narrower interval is flat near 1 and needs no such room (chosen: its error outside is below 1).
MARGIN_WIDTH = 2.0
# Below this half-width h the limit of the minimax polynomial replaces it.  Its error 2.5h³(1 + h) is four times the
# least, but Remez's equations lose more than that to rounding as h → 0.
NARROW = 0.02


@dataclass(frozen=True)
class TraceSqrtTerms:
    """tr √(Σ_a Σ_b) of B pairs and how it was found; each field [B], or 0-d if both covariances were [d, d].

    trace     float64
    clipped   int64: negative eigenvalues that "eigh" took for 0; 0 for the iterations
    residual  float64: ‖I − Z Y‖_F/√r before the last step, the part of the spectrum not yet at 1; 0 for "eigh"
    """

    trace: Tensor
    clipped: Tensor
    residual: Tensor


def trace_sqrt_product(
    cov_a: Tensor,
    cov_b: Tensor,
    method: str = "eigh",
    *,
    precision: str = "float32",
    iterations: int = 20,
    lower: float = LOWER,
    correct: bool = True,
    workspace: int = DEFAULT_WORKSPACE,
    backend: str = "auto",
) -> Tensor:
    """tr √(Σ_a Σ_b), float64 [B], of covariances [d, d] or [B, d, d] on one device; 0-d if both are [d, d].

    method      "eigh" (float64, exact) | "newton_schulz" | "polar_express": this module's docstring compares them
    precision   "float32"; or "float64", "tf32", "bfloat16": operands of the iteration's products, emulated bit by bit
                if the device lacks them.  M itself is computed in float64, and sums are in float32 or better
    iterations  20, steps of an iterative method
    lower       1e-3, smallest root eigenvalue, relative to the largest, that "polar_express" is tuned for
    correct     True: remove the rounding of the iteration to first order, by one more product in float32
    workspace   256 MiB, bytes of temporary memory; more pairs are handled in chunks of at least one
    backend     "auto" | "torch" | "triton", products of an iteration; auto takes triton on CUDA devices where it can

    A covariance [d, d] is shared by all pairs and factored once; [B, d, d] on both sides takes B factorisations.  There
    is no gradient (`frechet_distance` has one).  ValueError for shapes that do not match, values that are not finite,
    covariances that are not symmetric or clearly indefinite, and unknown options.
    """
    terms = trace_sqrt_terms(
        cov_a,
        cov_b,
        method,
        precision=precision,
        iterations=iterations,
        lower=lower,
        correct=correct,
        workspace=workspace,
        backend=backend,
    )
    return terms.trace


@torch.no_grad()
def trace_sqrt_terms(
    cov_a: Tensor,
    cov_b: Tensor,
    method: str = "eigh",
    *,
    precision: str = "float32",
    iterations: int = 20,
    lower: float = LOWER,
    correct: bool = True,
    workspace: int = DEFAULT_WORKSPACE,
    backend: str = "auto",
) -> TraceSqrtTerms:
    """`trace_sqrt_product` with the eigenvalues it clipped and the residual of its iteration."""
    _check_options(method, precision, iterations, lower, workspace, backend)
    cov_a, cov_b = as_tensor(cov_a, "cov_a"), as_tensor(cov_b, "cov_b")
    a, b = _checked_covariances(cov_a, "cov_a"), _checked_covariances(cov_b, "cov_b")
    batch = _check_fit(a, b)
    if len(b) == 1 < len(a):  # tr √(Σ_a Σ_b) is symmetric: factor the shared side
        a, b = b, a
    backend = backends.choose_products(backend, a.device, method, precision).name
    root_of = root_function(method, precision, iterations, lower, correct, backend)
    size = max(1, workspace // (MATRICES_PER_PAIR * 4 * a.shape[-1] ** 2)) if len(a) == 1 else 1
    parts = []
    for start in range(0, batch, size):
        if start == 0 or len(a) > 1:
            factor = factor_by_eigh(symmetric(a[start].double()), NOISE).root
        covs = b[start : start + size].double()
        unit = unit_of(a[start if len(a) > 1 else 0].double(), covs)
        root = factor if unit == 1 else factor * unit
        trace, clipped, residual = root_of(symmetric(root @ in_unit(covs, unit) @ root.T))
        parts.append((trace / unit / unit, clipped, residual))
    fields = [torch.cat(field) for field in zip(*parts, strict=True)] if parts else _nothing(a.device)
    if cov_a.ndim == cov_b.ndim == 2:
        fields = [field[0] for field in fields]
    return TraceSqrtTerms(*fields)


Roots = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # M [c, r, r] ↦ trace, clipped, residual, each [c]
Polynomial = tuple[float, float, float]  # (a, b, c) of x ↦ a x + b x³ + c x⁵


def root_function(
    method: str,
    precision: str = "float32",
    iterations: int = 20,
    lower: float = LOWER,
    correct: bool = True,
    backend: str = "torch",
) -> Roots:
    """The function that a method computes tr √M with, of symmetric M [c, r, r]; results as in `TraceSqrtTerms`."""
    if method == "eigh":
        return _roots_by_eigenvalues
    polynomials = newton_schulz(iterations) if method == "newton_schulz" else polar_express(iterations, lower)

    def by_iteration(under_root: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        matrix, root_scale = normalised(under_root, precision)
        ((y, z, residual),) = deque(iterates(matrix, polynomials, precision, backend), maxlen=1)  # the last step's
        trace = corrected_trace(matrix, y, z) if correct else trace_of(y)
        return trace * root_scale, torch.zeros_like(trace, dtype=torch.int64), residual

    return by_iteration


def _roots_by_eigenvalues(under_root: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    spectra = torch.linalg.eigvalsh(under_root)
    for spectrum in spectra:
        refuse_indefinite(spectrum)
    largest = spectra.amax(dim=-1, keepdim=True) if spectra.shape[-1] else spectra.sum(dim=-1, keepdim=True)
    roots = torch.where(spectra > NOISE * largest, spectra, 0).sqrt()
    trace = roots.sum(dim=-1)
    return trace, (spectra < 0).sum(dim=-1), torch.zeros_like(trace)


# --- the iteration -----------------------------------------------------------------------------------------------


def normalised(under_root: Tensor, precision: str = "float32") -> tuple[Tensor, Tensor]:
    """M/s of M [c, r, r] in float32 (float64 for that precision) and √s [c] float64, s = ‖M‖_F, or 1 for zeros."""
    scale = torch.linalg.matrix_norm(under_root)
    scale = torch.where(scale > 0, scale, 1)
    dtype = torch.float64 if precision == "float64" else torch.float32
    return (under_root / scale[:, None, None]).to(dtype), scale.sqrt()


def iterates(
    matrix: Tensor, polynomials: list[Polynomial], precision: str = "float32", backend: str = "torch"
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Y, Z [c, r, r] and the residual before the step [c], after each of the polynomials; matrix from `normalised`."""
    if backend == "triton":
        kernel = triton_kernels.load("newton_schulz")
        yield from kernel.iterates(matrix, polynomials, backends.FUSED_PRODUCTS[precision])
        return
    y, z = matrix, None
    with _arithmetic(precision, matrix.device) as product:
        for a, b, c in polynomials:
            t = y if z is None else product(z, y)
            residual = torch.linalg.matrix_norm(_plus_identity(-t, 1.0)).double() / math.sqrt(max(1, t.shape[-1]))
            w = _plus_identity(b * t + c * product(t, t) if c else b * t, a)
            y, z = symmetric(product(y, w)), w if z is None else symmetric(product(w, z))
            yield y, z, residual


def trace_of(matrix: Tensor) -> Tensor:
    """The trace of each matrix [c, r, r], summed in float64: [c]."""
    return matrix.diagonal(dim1=-2, dim2=-1).sum(dim=-1, dtype=torch.float64)


def corrected_trace(matrix: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """tr √matrix to second order in the error of Y ≈ √matrix, Z ≈ Y⁻¹, by one product in matrix's own precision: [c].

    With E = matrix − Y², tr √(Y² + E) = tr Y + ½ tr(Y⁻¹ E) + O(E²).
    """
    with _arithmetic("float32", matrix.device) as product:
        gap = matrix - product(y, y)
    return trace_of(y) + 0.5 * (z * gap).sum(dim=(-2, -1), dtype=torch.float64)


def _plus_identity(matrix: Tensor, factor: float) -> Tensor:
    matrix.diagonal(dim1=-2, dim2=-1).add_(factor)
    return matrix


# --- arithmetic --------------------------------------------------------------------------------------------------


@contextmanager
def _arithmetic(precision: str, device: torch.device) -> Iterator[Callable[[Tensor, Tensor], Tensor]]:
    """A batched product x, y ↦ x @ y whose operands have the precision's mantissa and whose sums are float32.

    A CUDA device multiplies in tf32 and bfloat16 itself.  Elsewhere operands are rounded and multiplied in float32,
    which holds their products exactly.  torch's settings of tf32 and autocast are replaced meanwhile, then restored.
    """
    native = device.type == "cuda"
    products = float32_products("high" if native and precision == "tf32" else "highest")
    with torch.autocast(device.type, enabled=False), products:
        if precision in ("float64", "float32") or (native and precision == "tf32"):
            yield torch.matmul
        elif native:
            yield lambda x, y: torch.bmm(x.bfloat16(), y.bfloat16(), out_dtype=torch.float32)
        else:
            bits = PRECISIONS[precision]
            yield lambda x, y: round_mantissa(x, bits) @ round_mantissa(y, bits)


def round_mantissa(x: Tensor, bits: int) -> Tensor:
    """Float32 x rounded to `bits` explicit mantissa bits, to nearest and ties to even: 10 for tf32, 7 for bfloat16."""
    dropped = 23 - bits
    pattern = x.contiguous().view(torch.int32)
    last_kept = (pattern >> dropped) & 1
    return ((pattern + ((1 << (dropped - 1)) - 1) + last_kept) & -(1 << dropped)).view(torch.float32)


# --- polynomials: x ↦ a x + b x³ + c x⁵ towards 1 -------------------------------------------------------------------


def newton_schulz(iterations: int) -> list[Polynomial]:
    """Coefficients (a, b, c) of each Newton–Schulz step, (3/2, −1/2, 0)."""
    return [(1.5, -0.5, 0.0)] * iterations


def polar_express(iterations: int, lower: float = LOWER) -> list[Polynomial]:
    """Coefficients (a, b, c) of each step that bring [lower, 1] near to 1 (arXiv 2505.16932, theorem 3.1, listing 1).

    Each step is fitted to the interval that the step before left, not below CUSHION, and rescaled so that the images of
    that interval's ends are equally far from 1.  n steps are the first n of any longer list.
    """
    low, high, steps = lower, 1.0, []
    for _ in range(iterations):
        a, b, c = _nearest_to_one(max(low, CUSHION * high), high)[0]
        evenly = 2 / (a * low + b * low**3 + c * low**5 + a * high + b * high**3 + c * high**5)
        a, b, c = a * evenly, b * evenly, c * evenly
        margin = MARGIN if high > MARGIN_WIDTH * low else 1.0
        steps.append((a / margin, b / margin**3, c / margin**5))
        low = a * low + b * low**3 + c * low**5
        high = 2 - low
    return steps


def _nearest_to_one(low: float, high: float) -> tuple[Polynomial, float]:
    """(a, b, c) minimising max |1 − (a x + b x³ + c x⁵)| over [low, high], and that maximum, by Remez exchange.

    The error alternates at low < q < r < high: 1 − p = e, −e, e, −e.  Solve for (a, b, c, e), then move q and r to the
    extrema of p, the roots of a + 3b x² + 5c x⁴.
    """
    centre, half_width = (low + high) / 2, (high - low) / (low + high)
    if half_width < NARROW:
        return (15 / 8 / centre, -10 / 8 / centre**3, 3 / 8 / centre**5), 2.5 * half_width**3 * (1 + half_width)
    q, r = low + (high - low) / 4, low + 3 * (high - low) / 4
    for _ in range(50):  # quadratic convergence: fewer than 10 are needed
        x = np.array([low, q, r, high])
        a, b, c, error = np.linalg.solve(np.stack([x, x**3, x**5, [1, -1, 1, -1]], axis=1), np.ones(4))
        spread = math.sqrt(9 * b * b - 20 * a * c)
        moved = math.sqrt((-3 * b - spread) / (10 * c)), math.sqrt((-3 * b + spread) / (10 * c))
        settled = max(abs(moved[0] - q), abs(moved[1] - r)) < 1e-12
        q, r = moved
        if settled:
            break
    return (float(a), float(b), float(c)), float(error)


# --- checks ------------------------------------------------------------------------------------------------------


def _check_options(method: str, precision: str, iterations: int, lower: float, workspace: int, backend: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}; 20 suit float32")
    if not 0 < lower < 1:
        raise ValueError(f"lower must lie strictly between 0 and 1, got {lower}; {LOWER} is the default")
    if workspace < 1:
        raise ValueError(f"workspace must be a positive number of bytes, got {workspace}; the default is 256 MiB")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}; auto takes what there is")


def _checked_covariances(cov: Tensor, name: str) -> Tensor:
    """`cov` as [1 or B, d, d]."""
    if cov.ndim not in (2, 3) or cov.shape[-1] != cov.shape[-2] or cov.shape[-1] == 0:
        raise ValueError(f"{name} must be [d, d] or [B, d, d], got shape {tuple(cov.shape)}; stack covariances first")
    if not cov.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {cov.dtype}; convert it with .double()")
    cov = cov.reshape(-1, *cov.shape[-2:])
    for i, matrix in enumerate(cov):
        if not torch.isfinite(matrix).all():
            raise ValueError(f"{name} holds NaN or infinity in matrix {i}; check the features it came from")
        if is_asymmetric(matrix):
            raise ValueError(f"{name} is not symmetric in matrix {i}; pass Σ as FeatureMoments makes it")
    return cov


def _check_fit(a: Tensor, b: Tensor) -> int:
    """Number of pairs B of a [1 or B, d, d] and b [1 or B, d, d]."""
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"cov_a has d = {a.shape[-1]}, cov_b d = {b.shape[-1]}; use one extractor for both")
    if a.device != b.device:
        raise ValueError(f"cov_a is on {a.device}, cov_b on {b.device}; move both to one device")
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        raise ValueError(f"cov_a holds {len(a)} covariances, cov_b {len(b)}; pass equally many, or a single one")
    return len(b) if len(a) == 1 else len(a)


def _nothing(device: torch.device) -> list[Tensor]:
    empty = torch.zeros(0, dtype=torch.float64, device=device)
    return [empty, empty.long(), empty]
