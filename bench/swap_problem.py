"""The problem of the swap benchmarks: real moments, a reference set, candidates, and what they cost.

Legend: N reference samples, d features, B candidates, m rows replaced in each, k = 2m, Q nodes.
"""

from functools import cached_property

import numpy as np
import pytest
import torch

from bench.measuring import DEVICE, finished
from fastfid import RealFactor, SwapEngine

M = 50
N = 5000
SIZES = {  # d: candidates per provider; slow providers score fewer
    128: {"engine": 128, "eigvalsh": 32, "eigvals": 4, "sqrtm": 4},
    2048: {"engine": 128, "eigvalsh": 2, "eigvals": 1, "sqrtm": 1},
}
F32, F64 = torch.float32, torch.float64
SINGLE, DOUBLE = 4, 8  # bytes
CHECKED = 16  # candidates whose error is measured; float64 scores them in 0.3 s at d = 2048
SPREAD = "std of the scores"
_prepared: dict = {}

by_size = pytest.mark.parametrize("d", SIZES)


class Problem:
    """Real moments, reference [N, d], removed [B, m], added [B, m, d], an engine, and a float64 engine as its judge."""

    def __init__(self, d, count, candidates):
        rng = torch.Generator().manual_seed(d)
        spread = torch.arange(1, d + 1) ** -0.5  # variances fall as 1/i, like those of pooled network features

        def draw(*shape):
            return torch.randn(*shape, d, generator=rng) * spread

        samples = draw(10_000).double().to(DEVICE)
        self.d, self.mean, self.cov = d, samples.mean(0), torch.cov(samples.T)
        self.real = RealFactor((self.mean, self.cov))
        self.reference = (1.1 * draw(count) + 0.02).to(DEVICE)
        removed = [torch.randperm(count, generator=rng)[:M] for _ in range(candidates)]
        self.removed, self.added = torch.stack(removed).to(DEVICE), 1.1 * draw(candidates, M).to(DEVICE)
        self.engine = SwapEngine(self.real, self.reference)
        self.scores = self.engine.score(self.removed, self.added)

    @cached_property
    def judge(self):
        return SwapEngine(self.real, self.reference.double(), dtype=F64)

    @cached_property
    def exact(self):
        return self.judge.score(self.removed[:CHECKED], self.added[:CHECKED].double())

    def error(self, distances):
        """Largest error of the first distances in units of SPREAD; None for one candidate, which has no spread."""
        if len(self.scores) < 2:
            return None
        found = torch.as_tensor(distances[:CHECKED]).to(self.exact)
        return (found - self.exact[: len(found)]).abs().max() / self.scores.std()


def problem(d, count=N, candidates=None):
    key = (d, count, candidates or SIZES[d]["engine"])
    if key not in _prepared:
        _prepared[key] = Problem(*key)
    return _prepared[key]


def score_group(d):
    return f"score {SIZES[d]['engine']} swaps of {M}, d={d}, N={N}"


def measure(benchmark, call, rounds=5):
    """The result of `call` after a few timed rounds. Before several rounds, one is not timed."""
    return benchmark.pedantic(finished(call), rounds=rounds, warmup_rounds=1 if rounds > 1 else 0)


def largest_difference(found, exact, unit):
    """Largest error of `found` as a multiple of `unit`."""
    return (found.to(exact) - exact).abs().max() / unit


def check(distances, p):
    """Checks that rivals and engine agree. 1e-6 covers float32 rows and eigenvalues of a non-symmetric product."""
    np.testing.assert_allclose(torch.as_tensor(distances).cpu(), p.scores[: len(distances)].cpu(), rtol=1e-6)


# --- flops and bytes -------------------------------------------------------------------------------------------------


def last_nodes(engine):
    """The nodes of the engine's last call."""
    return engine.last_report.nodes


def weighted_positions(engine):
    """Number of weights in the sum of a product of two rows: functions times length of every slice of the plan.

    torch's route in host memory has no plan, and the number is Q d.
    """
    nodes = last_nodes(engine)
    if not engine.options.cpp and DEVICE.type == "cpu":
        return len(nodes.tau) * engine.real.dim
    plan = nodes.plan(np.dtype(np.float32))
    return int((plan.terms * np.diff(plan.bounds)).sum())


def score_flops(engine):
    """Per candidate: projection 2 m d², Gram matrices k² per position (2 k² without the extension), LDLᵀ Q k³/3."""
    d, k, halves = engine.real.dim, 2 * M, 1 if engine.options.cpp else 2
    return 2 * M * d**2 + halves * k**2 * weighted_positions(engine) + len(last_nodes(engine).tau) * k**3 / 3


def singles_flops(engine):
    """Per image, without its projection: three products of two rows 3 d, and a multiply-add of each per position."""
    return 3 * engine.real.dim + 6 * weighted_positions(engine)


def score_bytes(d, candidates):
    """Added and removed rows, projections of the removed ones, and the basis."""
    return SINGLE * (3 * candidates * M * d + d**2)


def product_bytes(n, d, item):
    """[n, d]×[d, d]."""
    return item * (2 * n * d + d**2)
