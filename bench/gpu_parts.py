"""What bench/gpu_check.py measures in its own process: generators of (what, value, unit, bound, note).

Times are medians of alternating rounds by the device's events.  Before each call a buffer larger than the second-level
cache is written, as a trainer's step would have.  On a processor (a dry run) the host's clock takes the events' place.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from bench import roofline
from bench.measuring import DEVICE, device_seconds, host_seconds, peak_bytes
from bench.swap_problem import M, Problem
from fastfid import FeatureMoments, SwapEngine, frechet_distance, kid, mmd, prdc, triton_kernels
from fastfid.swap import by_plan, device_calls
from fastfid.swap.candidate_rows import Candidates, rows_of
from fastfid.swap.cross_checks import swap_change_ref
from fastfid.swap.routes import route_of
from fastfid.triton_kernels import trial as kernel_trial

ROUNDS = 7
FLUSH = 256 << 20  # bytes: more than twice the second-level cache of a B200, 126 MB

Values = tuple[Any, ...]  # what, value, unit, bound, note, as far as they are known


class Sizes(NamedTuple):
    """Features d, reference N, candidates B, and rows of a set for metrics."""

    dim: int
    count: int
    candidates: int
    rows: int

    @classmethod
    def of(cls, small: bool) -> Sizes:
        """The benchmark's sizes, or tiny ones."""
        return cls(24, 200, 4, 120) if small else cls(roofline.D, roofline.N, roofline.B, 5000)


@lru_cache
def problem(sizes: Sizes) -> Problem:
    """The benchmark's problem of these sizes, made at its first use."""
    return Problem(sizes.dim, sizes.count, sizes.candidates)


# --- times --------------------------------------------------------------------------------------------------------


def medians(calls: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each call, in alternating rounds with a cold cache; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    flush = torch.empty(FLUSH if DEVICE.type == "cuda" else 1, dtype=torch.uint8, device=DEVICE)
    for turn in range(rounds + 1):
        for name, call in calls.items():
            flush.zero_()
            spent = (device_seconds if DEVICE.type == "cuda" else host_seconds)(call)
            if turn:
                seconds[name].append(spent)
    return {name: statistics.median(values) for name, values in seconds.items()}


def bounds() -> dict[str, float]:
    """Least seconds of each phase on this device by bench.roofline, empty for a device that it does not know."""
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else ""
    for device in roofline.DEVICES:
        if device.name.split()[0] in name:
            found = {phase.name: roofline.bound(device, phase)[0] for phase in roofline.phases()}
            return found | {"score": roofline.score_bound(device)}
    return {}


# --- steps --------------------------------------------------------------------------------------------------------


def trial(sizes: Sizes) -> Iterator[Values]:
    """Each kernel's error in units of what is allowed."""
    if DEVICE.type != "cuda":
        yield "left out", "no CUDA device"
        return
    for name in triton_kernels.KERNELS:
        yield f"{name}: error / allowed", kernel_trial.error_of(name, DEVICE), "", 1.0


def values(sizes: Sizes) -> Iterator[Values]:
    """Errors against float64 and against the eigenvalues of the changed sets, and whether bits repeat."""
    p, few = problem(sizes), slice(4)
    found = p.engine.change(p.removed, p.added)
    judge = SwapEngine(p.real, p.reference.double(), dtype=torch.float64, backend="torch")
    exact = judge.change(p.removed[few], p.added[few].double())
    spread = found.std()
    report = p.engine.report()
    yield "backend", report["backend"], "", None, report["backend_why"]
    yield "nodes", report["nodes"]
    yield "error / spread (promise 1e-4)", float((found[few] - exact).abs().max() / spread), "", 1e-4
    brute = swap_change_ref(judge, p.removed[:2], p.added[:2].double())
    yield "float64 against eigenvalues / spread", float((exact[:2] - brute).abs().max() / spread)
    yield "same bits twice", str(torch.equal(found, p.engine.change(p.removed, p.added)))


def score(sizes: Sizes) -> Iterator[Values]:
    """Seconds, memory and waits of whole calls."""
    p, least = problem(sizes), bounds()
    small_added = p.added[: max(1, sizes.candidates // 4)]
    small_removed = p.removed[: len(small_added)]

    def gradient() -> None:
        p.engine.score(small_removed, small_added.clone().requires_grad_()).sum().backward()

    calls = {
        "score": lambda: p.engine.score(p.removed, p.added),
        "change_each": lambda: p.engine.change_each(p.removed, p.added),
        "leave_one_out": p.engine.leave_one_out,
        f"gradient of {len(small_added)}": gradient,
    }
    for name, seconds in medians(calls).items():
        yield name, 1e3 * seconds, "ms", 1e3 * least[name] if name in least else None
        if name == "score":
            per = 1e6 / sizes.candidates
            yield "score, a candidate", per * seconds, "µs", per * least["score"] if least else None
    memory = peak_bytes(calls["score"])
    yield "memory of a score", "unknown" if memory is None else memory / 1e6, "MB"
    yield "waits of a score", waits(calls["score"]), "", 1.0


def waits(call: Callable[[], object]) -> float | str:
    """How often the host waits for the device in a call."""
    if DEVICE.type != "cuda":
        return "no CUDA device"
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in seen)


def parts(sizes: Sizes) -> Iterator[Values]:
    """The steps of one call alone, as swap/device_calls.py takes them."""
    p, least = problem(sizes), bounds()
    p.engine.score(p.removed, p.added)
    prepared, nodes = p.engine.prepared, p.engine.last_report.nodes
    assert nodes is not None, "the score above made them"
    candidates = Candidates.of(p.removed, p.added)
    route = route_of(p.engine.options, prepared, *candidates.sizes, False)
    by_triton, plan = route.backend == "triton", nodes.on_device(route.dtype)
    _, projected, _ = device_calls._centred_and_projected(candidates, route, prepared)
    rows = rows_of(candidates, projected, prepared)
    w = torch.cat(rows.spread_out(), 1)
    grams = by_plan.node_grams(w, plan, by_triton)
    yield "plan: functions", len(plan), "", None, f"{len(nodes)} nodes, {len(plan.slices)} slices"
    calls: dict[str, Callable[[], object]] = {
        "rows": lambda: torch.cat(rows.spread_out(), 1),
        "gram and mix": lambda: by_plan.node_grams(w, plan, by_triton),
        "factors by Cholesky in float64": lambda: by_plan.factors(grams.double(), M),
        "projection by torch in float32": lambda: p.added @ prepared.projections[torch.float32],
    }
    if by_triton:
        kernels = {name: triton_kernels.load(name) for name in triton_kernels.KERNELS}
        flat, projection = p.added.flatten(0, 1), prepared.projections[torch.float32]
        given = p.added, prepared.rows, p.removed, prepared.mean, prepared.gap
        calls |= {
            "centre": lambda: kernels["centre_sums"].centre_sums(*given),
            "projection": lambda: kernels["project"].project(flat, prepared.mean, projection),
            "gram": lambda: kernels["plan_grams"].plan_grams(w, plan.functions, plan.first, plan.stop, plan.offset),
            "factor": lambda: kernels["ldl_logdet"].ldl_logdet(grams, M),
        }
    for name, seconds in medians(calls).items():
        yield name, 1e3 * seconds, "ms", 1e3 * least[name] if name in least else None


def prepare(sizes: Sizes) -> Iterator[Values]:
    """A new reference set, and where its time goes."""
    p = problem(sizes)
    cov = torch.cov(p.reference.double().T)
    host = cov.cpu()
    calls: dict[str, Callable[[], object]] = {
        "prepare": lambda: SwapEngine(p.real, p.reference),
        "prepare and first score": lambda: SwapEngine(p.real, p.reference).score(p.removed, p.added),
        "prepare, eigh on the host": lambda: SwapEngine(p.real, p.reference, eigensolver="host"),
        "prepare with its weight plans": lambda: SwapEngine(p.real, p.reference).ready_for(M, 1),
        "eigh in float64": lambda: torch.linalg.eigh(cov),
    }
    for name, seconds in medians(calls, rounds=2).items():
        yield name, 1e3 * seconds, "ms"
    yield "eigh in float64 on the host", 1e3 * host_seconds(lambda: torch.linalg.eigh(host)), "ms"


def metrics(sizes: Sizes) -> Iterator[Values]:
    """Metrics of features on the device, and how far they are from the host's."""
    rng = torch.Generator().manual_seed(1)
    host = [torch.randn(sizes.rows, sizes.dim, generator=rng) * scale for scale in (1.0, 1.1)]
    here = [x.to(DEVICE) for x in host]
    subset = min(1000, sizes.rows // 2)

    def fd(sides: list[torch.Tensor]) -> float:
        return float(frechet_distance(*(FeatureMoments.from_features(x) for x in sides)))

    functions: dict[str, Callable[[list[torch.Tensor]], float]] = {
        "fd": fd,
        "kid": lambda sides: kid(*sides, subsets=10, subset_size=subset).mean,
        "mmd": lambda sides: mmd(*sides).value,
        "recall": lambda sides: prdc(*sides)["recall"],
    }
    for name, function in functions.items():
        seconds = medians({name: lambda f=function: f(here)}, rounds=2)[name]
        expected = function(host)
        yield name, 1e3 * seconds, "ms", None, f"differs from the host by {abs(function(here) - expected):.1e}"
