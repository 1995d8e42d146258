"""Exact Fréchet distances of many sample swaps at once.

Real moments (μ_r, Σ_r); a reference set X of N samples with moments (μ_g, Σ_g).  A candidate removes some rows of X and
adds new ones; the distance of the changed set follows without ever forming its covariance.

Once per reference.  With any R of RᵀR = Σ_r, one eigendecomposition  R Σ_g Rᵀ = U Λ Uᵀ  gives P = Uᵀ R and the distance

    FD = |μ_r − μ_g|² + tr Σ_r + tr Σ_g − 2 tr √Λ.                                                             (1)

Per candidate.  Let y = x − μ_g, m_r rows removed, m_a added, n' = N − m_r + m_a, ȳ_r and ȳ_a their means.  Removing
first, N₁ = N − m_r rows stay, with mean −(m_r/N₁) ȳ_r, and the scatter of the changed set is exactly

    (n'−1) Σ' = (N−1) Σ_g − Σ_r z_r z_rᵀ + Σ_a z_a z_aᵀ,
    z_r = y_r + (√(N/N₁) − 1) ȳ_r,      z_a = y_a + (√(N₁/n') − 1) ȳ_a + √(N₁/n') (m_r/N₁) ȳ_r,                (2)

since each sum splits into scatter about its own mean plus one rank-one term, which (2) spreads evenly over the rows.
With c = (N−1)/(n'−1) and the rows w = P z/√(N−1) of W_r, W_a, the matrix R Σ' Rᵀ has the eigenvalues of
c(Λ − W_rᵀW_r + W_aᵀW_a), and

    Δ = tr √(Λ − W_rᵀW_r + W_aᵀW_a) − tr √Λ = (1/π) ∫₀^∞ log |det(J + G(τ))| dτ,                                (3)
    G(τ) = W (Λ + τ²)⁻¹ Wᵀ,   W = [W_r; W_a],   J = diag(−1 … −1, +1 … +1),

a k×k determinant, k = m_r + m_a (fastfid/quadrature.py has the nodes).  J + G is quasi-definite: its leading block is
−(I − G_rr), negative definite because what stays after the removal is still a covariance, and the Schur complement of
that block is I + G_aa plus a positive term.  LDLᵀ therefore exists without pivoting: m_r negative pivots, then m_a
positive.  It is accurate while I − G_rr is not nearly singular, that is while the rows that stay span what Λ spans.

The change itself is summed, never the difference of two distances, with δ = (m_a ȳ_a − m_r ȳ_r)/n':

    FD' − FD = |δ|² − 2(μ_r−μ_g)·δ + (tr Σ' − tr Σ_g) − 2(√c Δ + (√c − 1) tr √Λ).                              (4)

Singular spectra.  If a direction of R Σ_g Rᵀ is lost (N ≤ d, constant features), or could be lost by the removal, Λ is
shifted by s = max(tol², 1e-15)·λ_max on both sides of (3).  √(x+s) − √x is monotone with values in (0, √s] and
eigenvalues interlace under each rank-one term, so Δ moves by no more than max(m_r, m_a)·√s and a change of distance by
no more than 2√c·max(m_r, m_a)·√s; directions emptied and refilled cancel.  `SwapEngine.report` tells the last shift.

Legend: N reference samples, d features, r rank of Σ_r, B candidates, k = m_r + m_a, Q nodes; rows [.., d] or [.., r].
"""

import math
import time
from contextlib import contextmanager

import torch

from fastfid import backend as backends
from fastfid.quadrature import node_count, sqrt_nodes

METHODS = ("logdet", "eigh")

# Λ counts as singular below this share of λ_max: a symmetric eigensolver's absolute error, some 1e-16·λ_max, would then
# exceed 1e-5 of the eigenvalue.  Such references get a singular value decomposition and float64 throughout.
SINGULAR = 1e-11

# Smallest shift: w·w/(s + τ²) of a new row, relative to λ_max, keeps a digit in float64 (ε = 2e-16).
MIN_SHIFT = 1e-15

# A removed row's leverage w(Λ+τ²)⁻¹wᵀ is below 1 in exact arithmetic.  Chosen: rounding a float32 sum of 2048 products
# can add 2048·6e-8 = 1.2e-4, and a row foreign to the reference that stays within 1e-3 of it cannot be told from one.
LEVERAGE_SLACK = 1e-3

# Covariances may differ from their transpose by float32 accumulation error, not by more.
SYMMETRY = 1e-6

DEFAULT_WORKSPACE = 256 << 20  # bytes

# In host memory a chunk takes no more than this, whatever the workspace: larger temporaries get fresh pages each time.
# Measured at d = 2048 over 4 to 256 MiB on two busy Zen 3 cores: 16 and 32 MiB were fastest, 256 MiB slower by 14% for
# 50-swaps and by 50% for single images.
HOST_CHUNK = 32 << 20  # bytes


class RealFactor:
    """The real side, factored once for any number of engines: mean [d], trace, R [r, d] with RᵀR = Σ_r, float64.

    `real` is anything with `.mean` and `.cov` (such as `FeatureMoments`) or a pair (mean [d], cov [d, d]); one eigh.
    ValueError for wrong shapes, NaN, a count below 2, an asymmetric or indefinite covariance.
    """

    def __init__(self, real, device=None):
        count, mean, cov = _moments_of(real)
        if count is not None and count < 2:
            raise ValueError(f"real.count must be at least 2 for a covariance, got {count}; use more real samples")
        mean, cov = _as_tensor(mean, "real mean"), _as_tensor(cov, "real covariance")
        if mean.device != cov.device:
            raise ValueError(f"real mean is on {mean.device}, its covariance on {cov.device}; move both to one device")
        device = cov.device if device is None else device
        self.mean = mean.detach().to(device, torch.float64)
        cov = cov.detach().to(device, torch.float64)
        _check_moments(self.mean, cov)
        self.trace = cov.diagonal().sum().item()
        self.root, self.clipped = _symmetric_root(cov)

    @classmethod
    def of(cls, real, device=None) -> "RealFactor":
        """`real` itself if it is factored already, else its factor."""
        return real if isinstance(real, cls) else cls(real, device)

    @property
    def dim(self) -> int:
        """Feature dimension d."""
        return self.mean.numel()

    @property
    def rank(self) -> int:
        """Rank r of the real covariance."""
        return self.root.shape[0]


class SwapEngine:
    """Fréchet distances of a reference set under many swaps, exact to `tol` (equations 1 to 4 of this module).

    real                `FeatureMoments`, a pair (mean [d], cov [d, d]), or a `RealFactor` made once for many engines
    reference_features  [N, d] any float dtype, N ≥ 2; torch, NumPy or DLPack; copied
    tol                 1e-6, quadrature error relative to the largest root eigenvalue
    dtype               torch.float32 or torch.float64: projected rows and Gram matrices; statistics are always float64
    backend             "auto" | "cpp" | "torch"; auto takes cpp in host memory and torch elsewhere or for gradients
    method              "logdet", or "eigh": the full spectrum of every candidate in float64, slow, as a cross-check
    workspace           256 MiB, bytes of temporary memory; more candidates are handled in chunks

    A reference that has lost a direction the real set has (N ≤ d, constant features) is computed in float64 with the
    shift s of this module's docstring, bound 2√c·max(m_r, m_a)·√s; `.report()` tells.  Results are float64.  Gradients
    flow to `added` if it requires them.  Methods raise ValueError naming the argument, what it was, and the remedy.
    """

    def __init__(
        self,
        real,
        reference_features,
        *,
        tol: float = 1e-6,
        dtype: torch.dtype = torch.float32,
        backend: str = "auto",
        method: str = "logdet",
        workspace: int = DEFAULT_WORKSPACE,
    ):
        _check_options(tol, dtype, method, workspace)
        reference = _as_tensor(reference_features, "reference_features").detach()
        self.tol, self.dtype, self.method, self.workspace = tol, dtype, method, workspace
        self.requested_backend = backend
        self.real = RealFactor.of(real, reference.device)
        if self.real.mean.device != reference.device:
            raise ValueError(
                f"real is on {self.real.mean.device}, reference_features on {reference.device}; move both to one device"
            )
        self._choice = backends.choose(backend, reference.device)
        self._seconds: dict[str, float] = {}
        self._last = {"nodes": 0, "lo": math.nan, "hi": math.nan, "shift": 0.0}
        self._node_cache: dict = {}
        _check_rows(reference, "reference_features", self.real.dim)
        self._prepare(reference.clone())

    # ---------------------------------------------------------------------------------------------- public interface

    @property
    def distance(self) -> float:
        """Fréchet distance of the reference set from the real moments (equation 1)."""
        return self._distance

    @property
    def count(self) -> int:
        """Number N of reference samples."""
        return self._reference.shape[0]

    @property
    def reference(self) -> torch.Tensor:
        """The reference features [N, d] in the dtype they came in; read-only by convention, see `replace`."""
        return self._reference

    def score(self, removed, added) -> torch.Tensor:
        """Fréchet distance of each candidate [B] float64; arguments as in `change`."""
        return self._distance + self.change(removed, added)

    def change(self, removed, added) -> torch.Tensor:
        """Change of the Fréchet distance for each candidate [B] float64; negative is closer to the real set (eq. 4).

        removed  [B, m_r] int64 rows of the reference, no repeats inside a candidate
        added    [B, m_a, d] any float dtype; m_a may differ from m_r
        """
        removed, added = self._check_swap(removed, added)
        needs_grad = added.requires_grad and torch.is_grad_enabled()
        step = self._candidates_per_chunk(removed.shape[1], added.shape[1])
        with torch.set_grad_enabled(needs_grad), _exact_matmul(added.device):
            parts = [
                self._change_chunk(removed[i : i + step], added[i : i + step], needs_grad, first=i)
                for i in range(0, removed.shape[0], step)
            ]
            return torch.cat(parts) if parts else added.new_zeros(0, dtype=torch.float64)

    def change_each(self, removed, added) -> torch.Tensor:
        """Exact change of every single-image swap on its own: removed [...] int64, added [..., d] → [...] float64.

        At k = 2 the determinant is (1 + g_aa)(1 − g_rr) + g_ar², and each g is a product of rows times the node
        weights: one [n, r]×[r, Q] multiplication a product, next to nothing beside the projection.
        """
        removed, added = self._as_removed(removed), _as_tensor(added, "added")
        if added.shape[:-1] != removed.shape or added.ndim < 1:
            raise ValueError(
                f"added must have shape [..., d] for removed [...], got {tuple(added.shape)} for {tuple(removed.shape)}"
            )
        flat = self.change(removed.reshape(-1, 1), added.reshape(removed.numel(), 1, added.shape[-1]))
        return flat.reshape(removed.shape)

    def leave_one_out(self) -> torch.Tensor:
        """Exact change of the distance when one reference row is left out, for each of them: [N] float64."""
        every = torch.arange(self.count, device=self._reference.device)[:, None]
        return self.change(every, self._reference.new_zeros((self.count, 0, self.real.dim)))

    @torch.no_grad()
    def influence(self, features) -> torch.Tensor:
        """First-order influence I(x) [n] float64 of features [n, d].

        I(x) = −2(μ_r−μ_g)·y + |y|² − Σ_i (P y)_i²/√λ_i; replacing x_i by x changes FD by about (I(x) − I(x_i))/N.
        A lost direction has no derivative: there √s stands for √λ_i.
        """
        features = _as_tensor(features, "features")
        _check_rows(features, "features", self.real.dim, at_least=0)
        self._check_device(features, "features")
        shift = 0.0 if self._resolved else self._floor
        curvature = (self.count - 1) * math.sqrt(self._scale) * (self._spectrum + shift).rsqrt()
        step = max(1, self.workspace // (16 * (self.real.dim + self.real.rank + 1)))
        parts = [features.new_zeros(0, dtype=torch.float64)]
        with _exact_matmul(features.device):
            for rows in features.split(step):
                y = self._centre(rows, torch.float64, False)
                projected = y @ self._projection(torch.float64)
                parts.append(y.square().sum(-1) - 2 * y @ self._gap - projected.square() @ curvature)
        return torch.cat(parts)

    @torch.no_grad()
    def replace(self, removed, added) -> "SwapEngine":
        """Commit one swap, removed [m_r] and added [m_a, d], renew the eigenbasis, and return the engine.

        Added rows take the places of the removed ones in order; surplus rows are appended, surplus places closed up.
        """
        removed, added = self._as_removed(removed), _as_tensor(added, "added")
        if removed.ndim != 1 or added.ndim != 2:
            raise ValueError(
                "replace takes one swap, removed [m_r] and added [m_a, d], "
                f"got {tuple(removed.shape)} and {tuple(added.shape)}; commit candidates one after the other"
            )
        removed, added = self._check_swap(removed[None], added[None])
        removed, added = removed[0], added[0].to(self._reference.dtype)
        _check_rows(added, "added", self.real.dim, at_least=0)
        both = min(len(removed), len(added))
        rows = self._reference.clone()
        rows[removed[:both]] = added[:both]
        kept = torch.ones(self.count, dtype=torch.bool, device=rows.device)
        kept[removed[both:]] = False
        self._prepare(torch.cat([rows[kept], added[both:]]))
        return self

    def report(self) -> dict:
        """What was computed and how: sizes, spectrum, repairs, last nodes and shift, backend, seconds a phase."""
        return {
            "count": self.count,
            "dim": self.real.dim,
            "real_rank": self.real.rank,
            "lambda_min": self._lambda_min * self._scale,
            "lambda_max": self._lambda_max * self._scale,
            "real_eigenvalues_clipped": self.real.clipped,
            "reference_eigenvalues_clipped": self._clipped,
            "nodes": self._last["nodes"],
            "node_range": (self._last["lo"] * self._scale, self._last["hi"] * self._scale),
            "shift": self._last["shift"] * self._scale,
            "dtype": str(self._prepared_dtype).removeprefix("torch."),
            "method": self.method,
            "backend": self._choice.name,
            "backend_why": self._choice.why,
            "workspace": self.workspace,
            "seconds": dict(self._seconds),
        }

    # ------------------------------------------------------------------------------------------------------- prepare

    @torch.no_grad()
    def _prepare(self, reference: torch.Tensor) -> None:
        """Eigenbasis, projected rows and distance of the reference (equation 1)."""
        with self._phase("prepare"), _exact_matmul(reference.device):
            self._reference = reference
            self._mean = reference.mean(0, dtype=torch.float64)
            self._mean_high = self._mean.to(torch.float32)
            self._mean_low = (self._mean - self._mean_high).to(torch.float32)
            centred = reference.to(torch.float64) - self._mean
            self._trace = centred.square().sum().item() / (self.count - 1)
            self._gap = self.real.mean - self._mean
            spectrum, basis = self._eigenbasis(centred)
            self._scale = spectrum.max().item() if spectrum.numel() and spectrum.max() > 0 else 1.0
            self._spectrum = (spectrum / self._scale).contiguous()  # λ/λ_max: float32 sees numbers of order one
            self._lambda_min = self._spectrum.min().item() if spectrum.numel() else 0.0
            self._lambda_max = self._spectrum.max().item() if spectrum.numel() else 0.0
            self._floor = max(self.tol**2, MIN_SHIFT)
            self._resolved = self._lambda_min > max(SINGULAR, self._floor)
            self._prepared_dtype = self.dtype if self._lambda_min >= SINGULAR else torch.float64
            self._root_trace = math.sqrt(self._scale) * self._spectrum.sqrt().sum().item()
            weights = basis.T @ self.real.root / math.sqrt((self.count - 1) * self._scale)
            self._weights = {torch.float64: weights.T.contiguous()}  # [d, r]: w = y @ weights
            self._weights.setdefault(self.dtype, self._weights[torch.float64].to(self.dtype))
            self._projected = self._project_reference(centred)
            self._distance = self._gap.square().sum().item() + self.real.trace + self._trace - 2 * self._root_trace

    def _eigenbasis(self, centred: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """λ [r] ≥ 0 and U [r, r] of R Σ_g Rᵀ from centred rows [N, d] float64."""
        root, count = self.real.root, self.count
        self._clipped = 0
        if count - 1 >= root.shape[0]:
            half = root @ (centred.T @ centred) / (count - 1)
            spectrum, basis = torch.linalg.eigh(half @ root.T)
            if spectrum.numel() == 0 or spectrum[0] > SINGULAR * spectrum[-1]:
                return spectrum, basis
        return self._singular_basis(centred @ root.T / math.sqrt(count - 1))

    def _singular_basis(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same from Z = X Rᵀ/√(N−1) [N, r] by singular values, whose small ones keep their digits (Z = V √Λ Uᵀ)."""
        triangle = torch.linalg.qr(rows, mode="r").R
        _, values, basis_t = torch.linalg.svd(triangle, full_matrices=True)
        largest = values.max() if values.numel() else values.new_zeros(())
        noise = max(rows.shape) * torch.finfo(torch.float64).eps * largest
        spectrum = rows.new_zeros(rows.shape[1])
        spectrum[: values.numel()] = torch.where(values > noise, values, 0.0).square()
        self._clipped = int((spectrum == 0).sum())
        return spectrum, basis_t.T

    def _project_reference(self, centred: torch.Tensor) -> torch.Tensor:
        """Projected reference rows [N, r], exactly zero along directions the reference has lost."""
        dtype = self._prepared_dtype
        projected = centred.to(dtype) @ self._projection(dtype)
        return projected.mul_((self._spectrum > 0).to(dtype)) if self._clipped else projected

    def _projection(self, dtype: torch.dtype) -> torch.Tensor:
        return self._weights[dtype]

    # -------------------------------------------------------------------------------------------------------- change

    def _change_chunk(self, removed, added, needs_grad: bool, first: int) -> torch.Tensor:
        """Equation 4 for candidates that fit the workspace: removed [b, m_r], added [b, m_a, d] → [b] float64."""
        dtype = self._working_dtype(removed.shape[1])
        with self._phase("project"):
            y_r = self._centre(self._reference[removed], dtype, False)
            y_a = self._centre(added, dtype, needs_grad)
            square_r, square_a = _square_norms(y_r), _square_norms(y_a)
            _check_finite_added(square_a, first)
            w_r = self._removed_rows(removed, y_r, dtype)
            w_a = y_a @ self._projection(dtype)
            remaining = self.count - removed.shape[1]
            final = remaining + added.shape[1]
            delta = (_sum_rows(y_a) - _sum_rows(y_r)) / final
            w_r, w_a = _scatter_rows(w_r, w_a, self.count, in_place=not needs_grad)
        with self._phase("logdet"):
            trace_change = self._trace_change(w_r, w_a, needs_grad, first)
        shrink = math.sqrt((self.count - 1) / (final - 1))  # √c
        delta_square = delta.square().sum(-1)
        size_change = self.count - final
        traces = (size_change * self._trace + square_a.sum(-1) - square_r.sum(-1) - final * delta_square) / (final - 1)
        roots = shrink * trace_change + (shrink - 1) * self._root_trace
        return delta_square - 2 * delta @ self._gap + traces - 2 * roots

    def _working_dtype(self, removed: int) -> torch.dtype:
        """Float64 where the removal may cost the covariance a direction, else the engine's dtype."""
        return self._prepared_dtype if self.count - 1 - removed >= self.real.rank else torch.float64

    def _removed_rows(self, removed, y_r, dtype) -> torch.Tensor:
        """P y/√(N−1) of the removed rows [b, m_r, r]: looked up, or projected anew when more digits are wanted."""
        if dtype == self._projected.dtype:
            return self._projected[removed]
        return y_r @ self._projection(dtype)

    def _trace_change(self, w_r, w_a, needs_grad: bool, first: int) -> torch.Tensor:
        """Δ of equation 3 [b] float64 for rows w_r [b, m_r, r], w_a [b, m_a, r]."""
        if self.method == "eigh":
            return math.sqrt(self._scale) * _trace_change_eigh(w_r, w_a, self._spectrum)
        energy = w_a.detach().square().sum((1, 2), dtype=torch.float64).max().item() if w_a.numel() else 0.0
        if self.real.rank == 0 or self._lambda_max + energy == 0:
            return w_a.sum((1, 2), dtype=torch.float64) * 0  # nothing to change, and a gradient of zero
        shift, tau, omega = self._nodes(energy, w_r.shape[1])
        spectrum = self._spectrum + shift
        rank = w_r.shape[1] + w_a.shape[1]
        if w_r.shape[1] <= 1 and w_a.shape[1] <= 1:
            return math.sqrt(self._scale) * swap_trace_single(w_r, w_a, spectrum, tau, omega, first)
        exhausting = self.count - 1 - w_r.shape[1] < self.real.rank
        self._choice = backends.choose(self.requested_backend, w_a.device, rank, needs_grad, exhausting)
        compute = _swap_trace_cpp if self._choice.name == "cpp" else _swap_trace_torch
        return math.sqrt(self._scale) * compute(w_r, w_a, spectrum, tau, omega, first=first)

    def _nodes(self, energy: float, removed: int):
        """Shift and nodes for changed spectra of at most λ_max + energy, all in units of λ_max.

        The upper end is rounded up to 2·4^j so that one typical size of change keeps one set of nodes.  The lower end
        is a choice, not a bound: λ_min by the square of the share of rows that stay, halved; below, convergence slows.
        """
        hi = 2.0 if self._lambda_max else 4.0 ** math.ceil(math.log(energy, 4))
        while hi < self._lambda_max + energy:
            hi *= 4
        floor = self._floor * hi
        lo = self._lambda_min * ((self.count - removed) / self.count) ** 2 / 2
        if self._resolved and self.count - 1 - removed >= self.real.rank and lo > floor:
            shift = 0.0
        else:
            shift = lo = floor
        nodes = node_count(self.tol, lo, hi)
        self._last = {"nodes": nodes, "lo": lo, "hi": hi, "shift": shift}
        key = (nodes, lo, hi)
        if key not in self._node_cache:
            self._node_cache = {key: tuple(torch.from_numpy(v).to(self._mean.device) for v in sqrt_nodes(*key))}
        return (shift, *self._node_cache[key])

    # ------------------------------------------------------------------------------------------------------- helpers

    def _centre(self, rows: torch.Tensor, dtype: torch.dtype, needs_grad: bool) -> torch.Tensor:
        """y = x − μ_g to the last digits of `dtype`, so that a large common offset costs none.

        Float32 rows subtract μ_g in two float32 parts: x − μ_high cancels the offset, and what μ_high lacks is small.
        """
        if needs_grad:
            return (rows.to(torch.float64) - self._mean).to(dtype)
        if rows.dtype == dtype == torch.float32:
            return (rows - self._mean_high).sub_(self._mean_low)
        return torch.sub(rows, self._mean, out=torch.empty(rows.shape, dtype=dtype, device=rows.device))

    def _candidates_per_chunk(self, removed: int, added: int) -> int:
        """Candidates whose centred rows, projections and two such temporaries fit the workspace; at least one."""
        itemsize = torch.finfo(self._working_dtype(removed)).bits // 8
        per_candidate = itemsize * (removed + added) * (2 * self.real.dim + 3 * self.real.rank)
        if self.method == "eigh":
            per_candidate += 8 * 3 * self.real.rank**2
        host = self._reference.device.type == "cpu"
        return max(1, (min(self.workspace, HOST_CHUNK) if host else self.workspace) // max(1, per_candidate))

    def _as_removed(self, removed) -> torch.Tensor:
        removed = _as_tensor(removed, "removed")
        if removed.is_floating_point() or removed.is_complex() or removed.dtype == torch.bool:
            if removed.numel():
                raise ValueError(f"removed must hold integer row indices, got dtype {removed.dtype}; pass int64")
        return removed.to(torch.int64)

    def _check_device(self, tensor: torch.Tensor, name: str) -> None:
        if tensor.device != self._reference.device:
            raise ValueError(
                f"{name} is on {tensor.device} and the reference on {self._reference.device}; move {name} there first"
            )

    def _check_swap(self, removed, added) -> tuple[torch.Tensor, torch.Tensor]:
        """Tensors removed [B, m_r] int64 and added [B, m_a, d]; ValueError where equation 4 has no meaning."""
        removed, added = self._as_removed(removed), _as_tensor(added, "added")
        self._check_device(removed, "removed")
        self._check_device(added, "added")
        dim, count = self.real.dim, self.count
        if removed.ndim != 2 or added.ndim != 3 or removed.shape[0] != added.shape[0]:
            raise ValueError(
                f"removed must be [B, m_r] and added [B, m_a, d], got {tuple(removed.shape)} and {tuple(added.shape)}; "
                "add a leading axis of 1 for a single candidate"
            )
        if added.shape[2] != dim:
            raise ValueError(f"added has {added.shape[2]} features a row, the real moments {dim}; use one extractor")
        if not added.is_floating_point():
            raise ValueError(f"added must be floating point, got {added.dtype}; convert the features first")
        _check_indices(removed, count)
        final = count - removed.shape[1] + added.shape[1]
        if final < 2:
            raise ValueError(
                f"removed [B, {removed.shape[1]}] and added leave a set of {final} rows; a covariance needs at least 2"
            )
        return removed, added

    @contextmanager
    def _phase(self, name: str):
        """Adds host seconds to this phase of the report."""
        start = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start


# ------------------------------------------------------------------------------------------ rows and log-determinants


def _scatter_rows(w_r, w_a, count: int, in_place: bool):
    """Projected rows y → z of equation 2: w_r [b, m_r, r] and w_a [b, m_a, r], `count` = N."""
    removed, added = w_r.shape[1], w_a.shape[1]
    remaining, final = count - removed, count - removed + added
    add = torch.Tensor.add_ if in_place else torch.Tensor.add
    mean_r = w_r.mean(1, keepdim=True) if removed else None
    if added:
        keep = math.sqrt(remaining / final)
        offset = (keep - 1) * w_a.mean(1, keepdim=True)
        if removed and remaining:
            offset = offset + keep * (removed / remaining) * mean_r
        w_a = add(w_a, offset)
    if removed and remaining:  # with every row removed ȳ_r is zero and z_r = y_r
        w_r = add(w_r, (math.sqrt(count / remaining) - 1) * mean_r)
    return w_r, w_a


def swap_trace_change(w_r, w_a, spectrum, tau, omega, backend: str = "auto") -> torch.Tensor:
    """Δ of equation 3 [b] float64 by log-determinants.

    w_r [b, m_r, r], w_a [b, m_a, r] float32 or float64; spectrum λ [r], nodes τ [Q], weights ω [Q] float64.
    """
    needs_grad = (w_r.requires_grad or w_a.requires_grad) and torch.is_grad_enabled()
    choice = backends.choose(backend, w_a.device, w_r.shape[1] + w_a.shape[1], needs_grad)
    return (_swap_trace_cpp if choice.name == "cpp" else _swap_trace_torch)(w_r, w_a, spectrum, tau, omega)


def swap_trace_change_ref(w_r, w_a, spectrum, tau, omega, backend: str = "auto") -> torch.Tensor:
    """Δ of equation 3 as it is written, float64, LU with pivoting: the reference of `swap_trace_change`."""
    w = torch.cat([w_r, w_a], 1).to(torch.float64)
    signs = torch.cat([-w.new_ones(w_r.shape[1]), w.new_ones(w_a.shape[1])])
    total = w.new_zeros(w.shape[0])
    for node, weight in zip(tau, omega, strict=True):
        gram = (w / (spectrum + node**2)) @ w.mT
        total = total + weight * torch.linalg.slogdet(signs.diag() + gram).logabsdet
    return total / math.pi


def _swap_trace_torch(w_r, w_a, spectrum, tau, omega, first: int = 0) -> torch.Tensor:
    """Batched torch: Gram matrices in the rows' dtype, determinants in float64, one node at a time."""
    removed = w_r.shape[1]
    w = torch.cat([w_r, w_a], 1)
    signs = torch.ones(w.shape[1], dtype=torch.float64, device=w.device)
    signs[:removed] = -1
    total = torch.zeros(w.shape[0], dtype=torch.float64, device=w.device)
    for node, weight in zip(tau.tolist(), omega.tolist(), strict=True):
        scaled = w * (spectrum + node**2).rsqrt().to(w.dtype)
        gram = (scaled @ scaled.mT).to(torch.float64)  # G = (W D^½)(W D^½)ᵀ
        if removed:
            _check_leverage(gram.detach().diagonal(dim1=1, dim2=2)[:, :removed].amax(1), first)
        total = total + weight * torch.linalg.slogdet(gram + signs.diag()).logabsdet
    return total / math.pi


def _swap_trace_cpp(w_r, w_a, spectrum, tau, omega, first: int = 0) -> torch.Tensor:
    """The fused kernel of csrc/cpu/swap_logdet.h: Gram, LDLᵀ and log-determinant without writing G."""
    w_r, w_a = w_r.contiguous(), w_a.contiguous()
    logdets, bad, pivot = backends.extension().swap_logdet(
        w_r.numpy(), w_a.numpy(), spectrum.numpy(), tau.square().numpy(), LEVERAGE_SLACK, torch.get_num_threads()
    )
    if bad >= 0:
        _raise_inconsistent(first + bad, f"pivot {pivot:+.3e} has the wrong sign")
    return torch.from_numpy(logdets) @ omega / math.pi


def swap_trace_single(w_r, w_a, spectrum, tau, omega, first: int = 0) -> torch.Tensor:
    """Δ of equation 3 for at most one row each way, w_r [b, 0 or 1, r], w_a [b, 0 or 1, r] → [b] float64.

    det(J + G) = −[(1 + g_aa)(1 − g_rr) + g_ar²]; the bracket minus one is summed and passed to log1p.
    """
    weights = (spectrum[:, None] + tau.square()).reciprocal().to(w_a.dtype)  # [r, Q]
    batch = w_a.shape[0]
    w_r, w_a = (w[:, 0] if w.shape[1] else None for w in (w_r, w_a))
    change = weights.new_zeros((batch, len(tau)), dtype=torch.float64)
    if w_a is not None:
        g_aa = (w_a.square() @ weights).to(torch.float64)
        change = g_aa
    if w_r is not None:
        g_rr = (w_r.square() @ weights).to(torch.float64)
        _check_leverage(g_rr.amax(1), first)
        change = change - g_rr
    if w_r is not None and w_a is not None:
        change = change - g_aa * g_rr + ((w_r * w_a) @ weights).to(torch.float64).square()
    # rounding may carry a leverage to 1 or past it; half an ε of what is left keeps the logarithm finite
    least = torch.finfo(torch.float64).eps / 2 - 1
    return torch.log1p(change.clamp(min=least)) @ omega / math.pi


def _trace_change_eigh(w_r, w_a, spectrum) -> torch.Tensor:
    """Δ of equation 3 from the whole spectrum of Λ − W_rᵀW_r + W_aᵀW_a in float64."""
    w_r, w_a = w_r.to(torch.float64), w_a.to(torch.float64)
    changed = spectrum.diag() + w_a.mT @ w_a - w_r.mT @ w_r
    return torch.linalg.eigvalsh(changed).clamp(min=0).sqrt().sum(-1) - spectrum.sqrt().sum()


def swap_change_ref(engine: SwapEngine, removed, added) -> torch.Tensor:
    """`engine.change(removed, added)` from scratch: each changed set, its float64 covariance, its whole spectrum."""
    changes = []
    for rows_out, rows_in in zip(*engine._check_swap(removed, added), strict=True):
        kept = torch.ones(engine.count, dtype=torch.bool)
        kept[rows_out.cpu()] = False
        rows = torch.cat([engine.reference[kept.to(rows_out.device)].to(torch.float64), rows_in.to(torch.float64)])
        changes.append(_distance_ref(engine.real, rows) - _distance_ref(engine.real, engine.reference))
    return torch.stack(changes) if changes else engine.real.mean.new_zeros(0)


def _distance_ref(real: RealFactor, rows: torch.Tensor) -> torch.Tensor:
    """Equation 1 from the rows [n, d], float64."""
    rows = rows.to(torch.float64)
    cov = torch.atleast_2d(torch.cov(rows.T))
    roots = torch.linalg.eigvalsh(real.root @ cov @ real.root.T).clamp(min=0).sqrt().sum()
    return (real.mean - rows.mean(0)).square().sum() + real.trace + cov.diagonal().sum() - 2 * roots


# ---------------------------------------------------------------------------------------------------------- small parts


def _moments_of(real):
    """(count or None, mean, cov) of a moments object or a pair."""
    if hasattr(real, "mean") and hasattr(real, "cov"):
        return getattr(real, "count", None), real.mean, real.cov
    if isinstance(real, (tuple, list)) and len(real) == 2:
        return None, *real
    raise ValueError(
        f"real must be FeatureMoments, a pair (mean, cov) or a RealFactor, got {type(real).__name__}; "
        "use FeatureMoments.from_features for raw features"
    )


def _as_tensor(value, name: str) -> torch.Tensor:
    """The value as a tensor without a copy where its maker allows one (NumPy, DLPack)."""
    try:
        if isinstance(value, torch.Tensor) or not hasattr(value, "__dlpack__") or hasattr(value, "__array__"):
            return torch.as_tensor(value)
        return torch.from_dlpack(value)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise ValueError(f"{name} cannot be read as a tensor ({error}); pass a tensor or a numeric array") from error


def _symmetric_root(cov: torch.Tensor) -> tuple[torch.Tensor, int]:
    """R [r, d] with RᵀR = cov, null directions dropped, and the number of negative eigenvalues dropped with them."""
    values, vectors = torch.linalg.eigh(cov)
    largest = values[-1].item()
    noise = len(values) * torch.finfo(torch.float64).eps * max(largest, 0.0)
    # a covariance accumulated in float32 shows eigenvalues of about −1e-7·largest; more is not a covariance
    if values[0].item() < -1e-3 * abs(largest):
        raise ValueError(
            f"real covariance has an eigenvalue of {values[0].item():.3e} beside a largest of {largest:.3e}; "
            "a covariance has none below zero: recompute it in float64"
        )
    kept = values > noise
    return (vectors[:, kept] * values[kept].sqrt()).T.contiguous(), int((values < 0).sum())


def _sum_rows(y: torch.Tensor) -> torch.Tensor:
    """Σ y over the rows of a candidate in float64: [b, m, d] → [b, d]."""
    return y[:, 0].to(torch.float64) if y.shape[1] == 1 else y.sum(1, dtype=torch.float64)


def _square_norms(y: torch.Tensor) -> torch.Tensor:
    """|y|² of every row, accumulated in float64: [b, m, d] → [b, m]."""
    return torch.linalg.vector_norm(y, dim=-1, dtype=torch.float64).square()


@contextmanager
def _exact_matmul(device: torch.device):
    """Full float32 products, whatever the caller's autocast or TF32 settings."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


# --------------------------------------------------------------------------------------------------------------- checks


def _check_options(tol, dtype, method, workspace) -> None:
    if not 0 < tol < 1:
        raise ValueError(f"tol must lie strictly between 0 and 1, got {tol}; 1e-6 is the default")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}; less cannot resolve a swap")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if workspace < 1:
        raise ValueError(f"workspace must be a positive number of bytes, got {workspace}; 256 MiB is the default")


def _check_moments(mean: torch.Tensor, cov: torch.Tensor) -> None:
    if mean.ndim != 1 or mean.numel() == 0 or cov.shape != (mean.numel(), mean.numel()):
        raise ValueError(
            f"real must have mean [d] and covariance [d, d], got {tuple(mean.shape)} and {tuple(cov.shape)}; "
            "pass (mean, cov) in this order"
        )
    if not (torch.isfinite(mean).all() and torch.isfinite(cov).all()):
        raise ValueError("real moments contain NaN or inf; look for bad rows in the real features")
    asymmetry = (cov - cov.T).abs().max().item()
    if asymmetry > SYMMETRY * cov.abs().max().item():
        raise ValueError(
            f"real covariance is not symmetric: it is {asymmetry:.3e} off its transpose; pass (C + C.T)/2 if meant"
        )


def _check_rows(rows: torch.Tensor, name: str, dim: int, at_least: int = 2) -> None:
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise ValueError(f"{name} must be [n, {dim}] as the real moments, got {tuple(rows.shape)}; use one extractor")
    if not rows.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {rows.dtype}; convert the features first")
    if rows.shape[0] < at_least:
        raise ValueError(f"{name} needs at least {at_least} rows for a covariance, got {rows.shape[0]}")
    bad = (~torch.isfinite(rows).all(1)).nonzero().flatten()
    if len(bad):
        raise ValueError(f"{name} has NaN or inf in {len(bad)} rows, first {bad[:5].tolist()}; remove those samples")


def _check_indices(removed: torch.Tensor, count: int) -> None:
    if removed.numel() == 0:
        return
    low, high = (v.item() for v in removed.aminmax())
    if low < 0 or high >= count:
        wrong = low if low < 0 else high
        raise ValueError(f"removed must lie in [0, {count}), got {wrong}; count rows from 0, negative ones do not wrap")
    ordered = removed.sort(-1).values
    repeated = (ordered[:, 1:] == ordered[:, :-1]).nonzero()
    if len(repeated):
        candidate, place = repeated[0].tolist()
        raise ValueError(
            f"removed repeats row {ordered[candidate, place].item()} in candidate {candidate}; name each row once"
        )


def _check_finite_added(square_norms: torch.Tensor, first: int) -> None:
    bad = (~torch.isfinite(square_norms.detach())).nonzero()
    if len(bad):
        places = [(first + candidate, row) for candidate, row in bad[:5].tolist()]
        raise ValueError(f"added has NaN or inf in {len(bad)} rows, first (candidate, row) {places}; drop them")


def _check_leverage(leverage: torch.Tensor, first: int) -> None:
    """Raises unless every removed row weighs at most 1 + slack; leverage [b]."""
    worst = leverage.argmax().item()
    if not leverage[worst] <= 1 + LEVERAGE_SLACK:
        _raise_inconsistent(first + worst, f"a removed row has leverage {leverage[worst].item():.6f} > 1")


def _raise_inconsistent(candidate: int, what: str) -> None:
    raise ValueError(
        f"removed: in candidate {candidate} {what}, so its rows are not part of the reference as prepared; "
        "was the reference changed in place? Build a new SwapEngine, or use replace"
    )
