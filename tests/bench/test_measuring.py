"""The numbers next to the benchmarks' times: shares of the peak, counts, memory, and rivals that are missing."""

from types import SimpleNamespace

import pytest
import torch

from bench import measuring


class Benchmark(SimpleNamespace):
    """pytest-benchmark's fixture after its rounds, as far as `record` looks at it; `median` None if disabled."""

    def __init__(self, median):
        stats = None if median is None else SimpleNamespace(stats=SimpleNamespace(median=median))
        super().__init__(extra_info={}, stats=stats)


@pytest.fixture
def peaks(monkeypatch):
    """1 GFLOP/s in float64 and 4 in float32."""
    monkeypatch.setattr(measuring, "peak", {torch.float64: 1e9, torch.float32: 4e9}.get)


def test_share_of_peak_is_the_time_at_peak(peaks):
    """2 GFLOP of float64 take 2 s at their peak and 4 of float32 take 1 s: 3 of 6 seconds, whatever the candidates."""
    benchmark = Benchmark(median=6.0)
    measuring.record(benchmark, {torch.float64: 2e9, torch.float32: 4e9}, 12e9, candidates=3, error=0.5, unit="std")
    found = benchmark.extra_info
    assert (found["flops"], found["bytes"], found["gflops"]) == (6e9, 12e9, 1.0)
    assert found["share_of_peak"] == pytest.approx(0.5, rel=1e-15)
    assert found["peak"] == "dgemm and sgemm" and found["peak_gflops"] == {"dgemm": 1.0, "sgemm": 4.0}
    assert (found["seconds_per_candidate"], found["error"], found["error_unit"]) == (2.0, 0.5, "std")


def test_record_without_times_or_counts(peaks):
    """--benchmark-disable leaves counts and no rates; what is not counted is left out."""
    disabled, uncounted = Benchmark(median=None), Benchmark(median=2.0)
    measuring.record(disabled, {torch.float32: 1e9}, 8)
    assert disabled.extra_info.keys() == {"threads", "candidates", "flops", "bytes"}
    measuring.record(uncounted)
    assert uncounted.extra_info.keys() == {"threads", "candidates", "seconds_per_candidate"}


def test_peak_is_a_speed():
    """Of the order of a processor's: a product left out, or a time of something else, would be far outside."""
    assert 1e8 < measuring.peak(torch.float32) < 1e15


def test_peak_bytes_sees_what_a_call_takes():
    """64 MB of ones, counted with what the allocator adds; None where the system does not tell.

    Also where the process holds free memory that it could take them from: 100,000 kB in pieces too small to be mapped,
    below a piece that is still in use.
    """
    pieces = [bytes(100_000) for _ in range(1000)]
    kept = bytes(100_000)
    del pieces
    found = measuring.peak_bytes(lambda: torch.ones(16_000_000))
    assert found is None or 60e6 < found < 160e6
    del kept


def test_a_missing_rival_is_skipped_by_its_name():
    assert not measuring.installed("no_such_tool.part") and measuring.installed("torch.nn")
    with pytest.raises(pytest.skip.Exception, match="no_such_tool is not installed"):
        measuring.rival("no_such_tool")
