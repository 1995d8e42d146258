"""The methods that the swap engine replaces: a rank update of the moments, and other tools' own code."""

import torch

from bench.measuring import rival
from bench.swap_problem import N


def by_rank_update(p):
    """A function from i to the distance of candidate i, float64: updated moments, then eigenvalues of R Σ' Rᵀ."""
    base = p.reference.double()
    mean = base.mean(0)
    scatter = (base - mean).T @ (base - mean)

    def distance(i):
        y_r, y_a = base[p.removed[i]] - mean, p.added[i].double() - mean
        delta = (y_a.sum(0) - y_r.sum(0)) / N
        cov = (scatter + y_a.T @ y_a - y_r.T @ y_r - N * torch.outer(delta, delta)) / (N - 1)
        roots = torch.linalg.eigvalsh(p.real.root @ cov @ p.real.root.T).clamp(min=0).sqrt().sum()
        return (p.mean - mean - delta).square().sum() + p.real.trace + cov.diagonal().sum() - 2 * roots

    return distance


def by_tool(p, distance):
    """A function from i to the distance of candidate i: moments of the changed set, then a tool's own distance."""
    real = p.mean.cpu(), p.cov.cpu()

    def of_candidate(i):
        rows = p.reference.double().cpu()
        rows[p.removed[i].cpu()] = p.added[i].double().cpu()
        return float(distance(rows.mean(0), torch.cov(rows.T), *real))

    return of_candidate


def torch_fidelity_distance(*moments):
    mean, cov, real_mean, real_cov = (x.numpy() for x in moments)
    sides = {"mu": mean, "sigma": cov}, {"mu": real_mean, "sigma": real_cov}
    found = rival("torch_fidelity.metric_fid").fid_statistics_to_metric(*sides, verbose=False)
    return found["frechet_inception_distance"]


def torchmetrics_distance(*moments):
    return rival("torchmetrics.image.fid")._compute_fid(*moments)


def pytorch_fid_distance(*moments):
    return rival("pytorch_fid.fid_score").calculate_frechet_distance(*(x.numpy() for x in moments))
