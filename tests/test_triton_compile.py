"""What compilers make of the GPU kernels, against bench/results/compiler_facts.csv, without a GPU.

The quick part of the table is compiled again, in a process of its own, for sm_80, sm_90 and sm_100: the whole of it
takes minutes (`python -m fastfid.triton_kernels.compile_facts --check`).
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the GPU kernels need triton: pip install triton")

from fastfid.triton_kernels import compile_facts, roofline  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def kept():
    return compile_facts.read_table()


def test_nothing_is_worse_than_the_kept_facts():
    # no spill, within every limit, tensor cores used; with the same compiler no more registers or shared memory
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "fastfid.triton_kernels.compile_facts", "--quick", "--check"]
    child = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 0, f"{child.stdout}\n{child.stderr}"
    compiled = {tuple(line.split(",")[:2]) for line in child.stdout.splitlines()[1:]}
    assert compiled >= {(case.kernel, case.config) for case, _ in compile_facts.quick_cases()}


def test_kept_facts_hold_every_case_and_no_problem(kept):
    for case in compile_facts.cases():
        for capability in compile_facts.CAPABILITIES:
            row = kept[case.kernel, case.config, capability]
            assert compile_facts.problems(row, None) == []
            assert row["source"] == compile_facts.fingerprint(case), "written for other kernels: compile_facts --write"
    for config in ("k=256 fp32", "k=128 fp64"):
        for capability in compile_facts.CAPABILITIES:
            assert compile_facts.problems(kept["ldl_logdet", config, capability], None) == []


@pytest.mark.parametrize("capability, instruction", [(80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA")])
def test_kept_facts_use_the_tensor_cores_of_each_device(kept, capability, instruction):
    expected = [("swap_logdet", "K=128 fp32 tf32x3"), ("moments", "bf16 tf32x3"), ("rank_update", "fp32 tf32x3")]
    expected += [("newton_schulz", f"update {precision}") for precision in ("tf32x3", "tf32", "bf16")]
    for kernel, config in expected:
        assert kept[kernel, config, capability][instruction] > 0


def test_every_way_of_getting_worse_is_noticed(kept):
    good = kept["swap_logdet", "K=128 fp32 tf32x3", 90]
    assert compile_facts.problems(good, good) == []
    worse = {
        "stack_bytes": (8, "spills 8 bytes"),
        "shared_bytes": (good["shared_bytes"] + 1, "shared_bytes rose"),
        "registers": (good["registers"] + 8, "registers rose"),
        "HGMMA": (0, "no tensor-core instruction"),
    }
    for column, (value, message) in worse.items():
        assert any(message in problem for problem in compile_facts.problems(good | {column: value}, good))
    other = good | {"compiler": "triton 0.0"}  # another compiler allocates differently: limits only
    assert compile_facts.problems(good | {"registers": good["registers"] + 8}, other) == []
    assert compile_facts.problems(good | {"shared_bytes": good["shared_limit"] + 1}, other)


def test_roofline_counts():
    found = {phase.name: phase for phase in roofline.phases(16)}
    assert found["projection"].flops == 3 * 2 * 6400 * 2048**2
    assert found["gram"].flops == 3 * 2 * 128 * 16 * 128**2 * 2048
    assert found["moments"].flops == 3 * 2 * 528 * 64**2 * 5000
    rows = roofline.table()
    assert len(rows) == 3 * 2 * 5 and all(row["status"] == "computed, not measured" for row in rows)
    # A100, projection: 161 Gflop on 156 Tflop/s
    assert float(rows[0]["milliseconds"]) == pytest.approx(161.06e9 / 156e12 * 1e3, rel=1e-3)
    with open(roofline.TABLE, newline="") as file:
        assert list(csv.DictReader(file)) == [{c: str(row[c]) for c in roofline.COLUMNS} for row in rows]
