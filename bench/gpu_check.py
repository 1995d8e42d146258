"""The truth about a GPU in a few minutes: values, times against their bounds, waits, memory, tests, a training.

    python -m bench.gpu_check --seconds 355 --out bench/results
    python -m bench.gpu_check --small --out /tmp/check      a dry run of what needs no GPU

Steps are ordered by what they tell.  A step starts only if time is left, and what it measured is written at once, so a
machine that is taken away leaves everything before.  A step that fails is a row with its error, and the next one runs.
Results go to <device>-check.csv and <device>-check.md.

    environment   device, versions
    build         the extension with its CUDA kernels, where it is missing
    trial         every kernel on its small case against its reference (fastfid/triton_kernels/trial.py)
    values        changes of the benchmark's problem against float64, in units of the candidates' spread
    score         seconds and memory of calls, waits for the device in a call
    parts         each kernel of a score by events, next to its bound of bench.roofline
    kernels       FASTFID_TEST_GPU=1 pytest tests/test_gpu.py, without attention, training and ranks
    prepare       a new reference: its eigendecomposition, projection and plan
    metrics       moments, FD, KID, MMD and neighbours, on the device and on the host
    attention     every back end on SiT-XL's heads
    training      a smoke training, eager and compiled
    memcheck      compute-sanitizer over the kernels' tests

It needs no network; what builds the extension (a C++ compiler, nvcc, CMake, pybind11) must be there if it is missing.
"""

from __future__ import annotations

import csv
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch
import tyro

from bench.measuring import DEVICE
from fastfid.runtime.atomic_files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
COLUMNS = ("step", "what", "value", "unit", "bound", "note")

# Seconds kept at the end for writing, and the least that a step is given.
RESERVE, LEAST = 2.0, 1.0


class Row(NamedTuple):
    """One measured value; `bound` is the least it could be, computed, or None."""

    step: str
    what: str
    value: float | str
    unit: str = ""
    bound: float | None = None
    note: str = ""


@dataclass
class Check:
    """The steps' rows and the time that is left."""

    out: Path
    seconds: float
    small: bool
    begun: float = field(default_factory=time.perf_counter)
    rows: list[Row] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds until this check must end."""
        return self.seconds - RESERVE - (time.perf_counter() - self.begun)

    def run(self, name: str, step: Callable[[Check], Iterator[Row]]) -> None:
        """The rows of a step, kept as they come; its error is a row of its own."""
        if self.left < LEAST:
            self.keep(Row(name, "left out", "no time left", note=f"of {self.seconds:g} s"))
            return
        started = time.perf_counter()
        try:
            for row in step(self):
                self.keep(row)
                if self.left < 0:
                    self.keep(Row(name, "stopped", "no time left"))
                    return
        except Exception as error:  # whatever a first run on a device shows is a result
            self.keep(Row(name, "error", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))
        self.keep(Row(name, "step", round(time.perf_counter() - started, 2), "s"))

    def keep(self, row: Row) -> None:
        """Add a row, print it and write all rows."""
        self.rows.append(row)
        bound = "" if row.bound is None else f"   bound {row.bound:.3g}"
        print(f"{row.step:12} {row.what:45} {_shown(row.value)} {row.unit}{bound}  {row.note}", flush=True)
        write(self.rows, self.out)


# --- steps --------------------------------------------------------------------------------------------------------


def environment(check: Check) -> Iterator[Row]:
    """What the numbers belong to."""
    yield Row("environment", "device", device_name())
    yield Row("environment", "python", platform.python_version())
    for package in ("torch", "triton", "numpy", "flash-attn", "flash-attn-4", "cupy-cuda13x"):
        try:
            yield Row("environment", package, version(package))
        except PackageNotFoundError:
            yield Row("environment", package, "not installed")
    if DEVICE.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        yield Row("environment", "capability", f"{properties.major}.{properties.minor}")
        yield Row("environment", "memory", round(properties.total_memory / 1e9, 1), "GB")


def build(check: Check) -> Iterator[Row]:
    """Build the extension for this device where it lacks the CUDA kernels; later steps import it."""
    if has_cuda_kernels():
        yield Row("build", "extension with CUDA kernels", "there already")
    elif DEVICE.type != "cuda":
        yield Row("build", "left out", "no CUDA device")
    else:
        major, minor = torch.cuda.get_device_capability()
        more = {"FASTFID_CUDA": "ON", "CMAKE_ARGS": f"-DCMAKE_CUDA_ARCHITECTURES={major}{minor}-real"}
        said = run([sys.executable, "setup.py", "build_ext", "--inplace"], check.left / 2, more)
        found = "built" if has_cuda_kernels() else f"failed: {' '.join(said.split())[-300:]}"
        yield Row("build", "extension with CUDA kernels", found)


def has_cuda_kernels() -> bool:
    """Whether a new process finds the extension with its CUDA kernels."""
    return "yes" in run([sys.executable, "-c", "from fastfid import _C; print('yes' if _C.has_cuda else 'no')"], 60)


def tests(check: Check) -> Iterator[Row]:
    """The kernels' tests."""
    yield from pytest_rows(check, "kernels", "not attention and not training and not ranks")


def attention(check: Check) -> Iterator[Row]:
    """Every attention on SiT-XL's shape."""
    if DEVICE.type == "cuda":
        command = [sys.executable, "-m", "bench.bench_sit", "--cases", "attention-xl", "--rounds", "5"]
        done = run(command, check.left)
        for line in (line for line in done.splitlines() if line.startswith("|")):
            yield Row("attention", "table", line.strip("| "))
    yield from pytest_rows(check, "attention", "attention")


def training(check: Check) -> Iterator[Row]:
    """Smoke trainings: eager, compiled, bfloat16 with a policy gradient."""
    yield from pytest_rows(check, "training", "smoke_training")


def memcheck(check: Check) -> Iterator[Row]:
    """Invalid addresses of the kernels."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if DEVICE.type != "cuda" or tool is None:
        yield Row("memcheck", "left out", "no CUDA device" if tool else "compute-sanitizer is not installed")
        return
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable]
    yield from pytest_rows(check, "memcheck", "kernel and not engine", command)


STEPS: dict[str, Callable[[Check], Iterator[Row]]] = {
    "environment": environment,
    "build": build,
    **{name: (lambda check, n=name: rows_of(n, check)) for name in ("trial", "values", "score", "parts")},
    "kernels": tests,
    **{name: (lambda check, n=name: rows_of(n, check)) for name in ("prepare", "metrics")},
    "attention": attention,
    "training": training,
    "memcheck": memcheck,
}


def rows_of(name: str, check: Check) -> Iterator[Row]:
    """The rows of a measurement of bench/gpu_parts.py."""
    from bench import gpu_parts  # here, as it imports the extension, which an earlier step may have built

    for values in getattr(gpu_parts, name)(gpu_parts.Sizes.of(check.small)):
        yield Row(name, *values)


# --- other processes ----------------------------------------------------------------------------------------------


def pytest_rows(check: Check, name: str, which: str, python: list[str] | None = None) -> Iterator[Row]:
    """Counts of a run of tests/test_gpu.py in a process that ends in time, and each failure."""
    command = [*(python or [sys.executable]), "-m", "pytest", "tests/test_gpu.py", "-q", "-n0", "-rf", "-k", which]
    said = run([*command, "-p", "no:cacheprovider"], check.left)
    counts = re.findall(r"(\d+) (passed|failed|skipped|error)", said)
    if not counts:
        yield Row(name, "tests", said.strip().splitlines()[-1][:200] if said.strip() else "no output")
    for count, kind in counts:
        yield Row(name, kind, int(count), "tests")
    for line in re.findall(r"^(?:FAILED|ERROR) .*", said, re.M):
        yield Row(name, "failure", line[:300])


def run(command: list[str], seconds: float, more: dict[str, str] | None = None) -> str:
    """What a command printed; it is ended after so many seconds, and what it had printed is kept.

    more  variables of its environment
    """
    environment = {**os.environ, "FASTFID_TEST_GPU": "1", "PYTHONDONTWRITEBYTECODE": "1", **(more or {})}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=max(LEAST, seconds)
        )
    except subprocess.TimeoutExpired as late:
        kept = late.stdout or b""
        return f"{kept.decode() if isinstance(kept, bytes) else kept}\nended after {seconds:.0f} s"
    return done.stdout + done.stderr


# --- files --------------------------------------------------------------------------------------------------------


def device_name() -> str:
    """The GPU's name, or the processor's kind."""
    return torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"cpu {platform.machine()}"


def write(rows: list[Row], out: Path) -> None:
    """Both files, whole or not at all."""
    prefix = re.sub(r"[^a-z0-9]+", "-", device_name().lower()).strip("-")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / f"{prefix}-check.csv", lambda file: file.write(as_csv(rows).encode()))
    write_atomically(out / f"{prefix}-check.md", lambda file: file.write(as_markdown(rows).encode()))


def as_csv(rows: list[Row]) -> str:
    """The rows with unrounded numbers."""
    from io import StringIO

    text = StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([["" if value is None else value for value in row] for row in rows])
    return text.getvalue()


def as_markdown(rows: list[Row]) -> str:
    """One table a step; × bound is the measured value divided by the computed one."""
    lines = [f"# {device_name()}", "", "Measured by `python -m bench.gpu_check`; bounds are computed (bench.roofline)."]
    for step in dict.fromkeys(row.step for row in rows):
        lines += ["", f"## {step}", "", "| | value | unit | bound | × bound | |", "|---|---:|---|---:|---:|---|"]
        for row in (row for row in rows if row.step == step):
            times = f"{row.value / row.bound:.1f}" if row.bound and isinstance(row.value, int | float) else ""
            bound = "" if row.bound is None else f"{row.bound:.3g}"
            what, value, note = (str(text).replace("|", "\\|") for text in (row.what, _shown(row.value), row.note))
            lines.append(f"| {what} | {value} | {row.unit} | {bound} | {times} | {note} |")
    return "\n".join(lines) + "\n"


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def main(seconds: float = 355.0, out: Path = RESULTS, small: bool = False, steps: str = ",".join(STEPS)) -> None:
    """Check a GPU, as this file's docstring says.

    seconds  after which everything has ended
    out      folder of the results
    small    tiny sizes, for a dry run
    steps    names of the steps, separated by commas; all by default
    """
    asked = steps.split(",")
    if unknown := set(asked) - STEPS.keys():
        raise SystemExit(f"--steps has {', '.join(sorted(unknown))}; the steps are {', '.join(STEPS)}")
    if DEVICE.type != "cuda" and not small:
        raise SystemExit("no CUDA device is in sight; --small makes a dry run on this processor")
    check = Check(out, seconds, small)
    for name in (name for name in STEPS if name in asked):
        check.run(name, STEPS[name])
    print(f"{time.perf_counter() - check.begun:.0f} s; results in {out}")


if __name__ == "__main__":
    tyro.cli(main)
