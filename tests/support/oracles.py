"""Every number recomputed from scratch with NumPy, SciPy and mpmath; shares no code with the package.

tr √(Σ_a Σ_b) is the nuclear norm of A_c B_cᵀ/√((n_a−1)(n_b−1)) for centred samples A_c, B_c, since the singular values
of that matrix are the roots wanted.  Through the triangles of two QR factorisations they are accurate to some 1e-16 of
the largest, however small: no eigenvalue of a product, and no square root of a rounding error, is involved.
"""

import mpmath
import numpy as np
import scipy.linalg


def triangle(samples):
    """R with RᵀR the ddof-1 covariance of samples [n, d]."""
    centred = np.asarray(samples, np.float64) - np.mean(samples, axis=0, dtype=np.float64)
    return scipy.linalg.qr(centred, mode="r")[0][: min(centred.shape)] / np.sqrt(len(centred) - 1)


def distance_of_samples(real, generated):
    """Fréchet distance of two sample sets [n, d]."""
    a, b = triangle(real), triangle(generated)
    offset = np.mean(real, axis=0, dtype=np.float64) - np.mean(generated, axis=0, dtype=np.float64)
    return offset @ offset + (a * a).sum() + (b * b).sum() - 2 * scipy.linalg.svdvals(a @ b.T).sum()


def distance_of_moments(mean_a, cov_a, mean_b, cov_b):
    """The distance by SciPy's Schur square root, the form of the original definition; for regular covariances."""
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    return np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(root).real


def distance_in_many_digits(real, generated, digits=40):
    """`distance_of_samples` in `digits` decimal digits, as a float; d of a few."""
    with mpmath.workdps(digits):
        (mean_a, cov_a), (mean_b, cov_b) = _precise_moments(real), _precise_moments(generated)
        values, vectors = mpmath.eigsy(cov_a)
        dim = cov_a.rows
        root = mpmath.diag([mpmath.sqrt(max(v, 0)) for v in values]) * vectors.T
        product = root * cov_b * root.T
        spectrum = mpmath.eigsy((product + product.T) / 2, eigvals_only=True)
        trace = sum(mpmath.sqrt(max(v, 0)) for v in spectrum)
        offset = sum((mean_a[i] - mean_b[i]) ** 2 for i in range(dim))
        return float(offset + sum(cov_a[i, i] + cov_b[i, i] for i in range(dim)) - 2 * trace)


def _precise_moments(samples):
    rows = mpmath.matrix(np.asarray(samples, np.float64).tolist())
    n, dim = rows.rows, rows.cols
    mean = [sum(rows[i, j] for i in range(n)) / n for j in range(dim)]
    centred = mpmath.matrix(n, dim)
    for i in range(n):
        for j in range(dim):
            centred[i, j] = rows[i, j] - mean[j]
    return mean, centred.T * centred / (n - 1)


def swapped(reference, removed, added):
    """The changed sample set: rows `removed` [m_r] taken out of `reference` [N, d], `added` [m_a, d] put in."""
    return np.vstack([np.delete(np.asarray(reference, np.float64), removed, axis=0), np.asarray(added, np.float64)])


def changes(real, reference, removed, added, distance=distance_of_samples):
    """Change of the distance for candidates removed [B, m_r], added [B, m_a, d]: [B]."""
    before = distance(real, reference)
    return np.array([distance(real, swapped(reference, r, a)) - before for r, a in zip(removed, added, strict=True)])


def log_determinants(rows, removed, spectrum, tau_squares):
    """log|det(J + W (Λ + τ²)⁻¹ Wᵀ)| for rows W [B, k, r], the first `removed` of them with sign −1: [B, Q]."""
    rows = np.asarray(rows, np.float64)
    signs = np.where(np.arange(rows.shape[1]) < removed, -1.0, 1.0)
    gram = np.einsum("bkr,qr,blr->bqkl", rows, 1 / (spectrum + np.asarray(tau_squares)[:, None]), rows, optimize=True)
    return np.linalg.slogdet(np.diag(signs) + gram)[1]
