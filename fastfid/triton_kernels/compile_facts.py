"""What compilers make of the GPU kernels, with no GPU: registers, spills, shared memory, tensor-core instructions.

    python -m fastfid.triton_kernels.compile_facts             prints the table
    python -m fastfid.triton_kernels.compile_facts --check     also fails if bench/results/compiler_facts.csv is better
    python -m fastfid.triton_kernels.compile_facts --write     writes that file
    python -m fastfid.triton_kernels.compile_facts --quick     a few rows of it, every kernel once; may go with --check

Triton kernels are compiled ahead of time for A100 (sm_80), H100 (sm_90) and B200 (sm_100) with the configurations that
their launchers use, and their machine code is read by the tools in triton's own wheel; the CUDA kernel is compiled by
nvcc where there is one.  No GPU or driver is needed, and nothing here is a time.  A stack above 0 bytes means that
registers spilled.  Tensor-core instructions are counted in the machine code, not executions: HMMA (sm_80, and tf32 on
all), HGMMA (sm_90), UTCHMMA (sm_100), DMMA (float64).

The column `source` is a hash of the kernel's source and configuration: a table older than its kernels is known by it.

Legend: a case is one kernel with one configuration; a fact is one row of the table, a case on one capability.
"""

import argparse
import csv
import hashlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastfid.triton_kernels import interpreted, moments, newton_schulz, rank_update, swap_logdet

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "bench" / "results" / "compiler_facts.csv"
CUDA_SOURCE = ROOT / "csrc" / "cuda" / "ldl_logdet.cu"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

CAPABILITIES = (80, 90, 100)

# Most shared memory a block may ask for, bytes: CUDA C++ Programming Guide, table "Technical specifications per compute
# capability": 163 kB on 8.0, 227 kB on 9.0 and 10.0.
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}

TENSOR_INSTRUCTIONS = ("HMMA", "HGMMA", "UTCHMMA", "DMMA")
COLUMNS = ("kernel", "config", "capability", "warps", "registers", "stack_bytes", "shared_bytes", "shared_limit")
COLUMNS += (*TENSOR_INSTRUCTIONS, "compiler", "source")


class Case(NamedTuple):
    """A Triton kernel as its launcher would call it: argument types by name, constants, warps and stages."""

    kernel: str
    config: str
    function: object
    pointers: dict
    constants: dict
    floats: tuple
    warps: int
    stages: int


# --------------------------------------------------------------------------------------------------------------- cases


def _swap_logdet(order: int, precision: str) -> Case:
    block, warps, stages = swap_logdet.CONFIGS[order, precision]
    pointers = {"w_r": "*fp32", "w_a": "*fp32", "roots": "*fp32", "logdets": "*fp64", "wrong": "*fp64"}
    constants = {"stride_rp": 1, "stride_ap": 1, "K": order, "BLOCK": block, "PRECISION": precision}
    function = swap_logdet.swap_logdet_kernel
    return Case("swap_logdet", f"K={order} fp32 {precision}", function, pointers, constants, ("slack",), warps, stages)


def _moments(dtype: str, precision: str) -> Case:
    block, block_v, warps, stages = moments.CONFIGS[precision]
    pointers = {"x": f"*{dtype}", "centre": "*fp64", "sums": "*fp64", "scatter": "*fp64"}
    constants = {"stride_d": 1, "CHUNK": moments.CHUNK, "BLOCK": block, "BLOCK_V": block_v, "PRECISION": precision}
    return Case("moments", f"{dtype} {precision}", moments.moments_kernel, pointers, constants, (), warps, stages)


def _rank_update(precision: str) -> Case:
    block, block_m, warps, stages = rank_update.CONFIGS[precision]
    pointers = dict.fromkeys(("matrix", "w_r", "w_a", "scale", "out"), "*fp32")
    constants = dict.fromkeys(("stride_n", "stride_rn", "stride_an", "stride_on"), 1)
    constants |= {"BLOCK": block, "BLOCK_M": block_m, "PRECISION": precision}
    function = rank_update.rank_update_kernel
    return Case("rank_update", f"fp32 {precision}", function, pointers, constants, (), warps, stages)


def _newton_schulz(precision: str, product: str) -> Case:
    """`product` "residual": I − Z Y on the full grid, Y read by rows; "update": Y + ½ Y E, a mirrored triangle."""
    block, block_p, warps, stages = newton_schulz.CONFIGS[precision]
    dots, update = newton_schulz.PRECISIONS[precision][1], product == "update"
    pointers = dict.fromkeys(("p_matrix", "q_matrix", "x_matrix", "out"), "*bf16" if precision == "bf16" else "*fp32")
    constants = dict.fromkeys(("stride_pn", "stride_qn" if update else "stride_qm", "stride_xn", "stride_on"), 1)
    constants |= {"HAS_X": update, "SYMMETRIC": update, "BLOCK": block, "BLOCK_P": block_p, "PRECISION": dots}
    function, floats = newton_schulz.fused_product_kernel, ("alpha", "beta", "gamma")
    return Case("newton_schulz", f"{product} {precision}", function, pointers, constants, floats, warps, stages)


def cases() -> list[Case]:
    """Every kernel in the configurations that stand for the others."""
    return [
        *(_swap_logdet(order, precision) for order, precision in swap_logdet.CONFIGS),
        *(_moments(dtype, "tf32x3") for dtype in ("bf16", "fp16", "fp32")),
        _moments("bf16", "ieee"),
        *(_rank_update(precision) for precision in rank_update.PRECISIONS),
        *(_newton_schulz(precision, "update") for precision in newton_schulz.PRECISIONS),
        *(_newton_schulz(precision, "residual") for precision in newton_schulz.PRECISIONS),
    ]


# --------------------------------------------------------------------------------------------------------------- facts


def quick_cases() -> list[tuple[Case, int]]:
    """(case, capability) of the widest kernel everywhere and of each other one where its registers are scarcest."""
    return [
        *((_swap_logdet(128, "tf32x3"), capability) for capability in CAPABILITIES),
        (_moments("fp32", "tf32x3"), 80),
        (_rank_update("tf32x3"), 80),
        (_newton_schulz("tf32", "update"), 100),
    ]


def triton_fact(case: Case, capability: int) -> dict:
    """One row of the table: `case` compiled for sm_`capability`; triton's own error if it does not compile."""
    names = case.function.arg_names
    constants = {(names.index(name),): value for name, value in case.constants.items()}
    # sizes and strides of the benchmark's problem are multiples of 16, as the launcher would find out by itself
    aligned = [n for n in names if n in case.pointers or n in ("r", "n", "d") or n.startswith("stride_")]
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned if n not in case.constants}
    source = ASTSource(
        case.function,
        signature={name: _type(case, name) for name in names},
        constexprs=constants,
        attrs=attributes,
    )
    options = {"num_warps": case.warps, "num_stages": case.stages}
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, stack, instructions = _machine_code(built.asm["cubin"])
    return {
        "kernel": case.kernel,
        "config": case.config,
        "capability": capability,
        "warps": case.warps,
        "registers": registers,
        "stack_bytes": stack,
        "shared_bytes": built.metadata.shared,
        "shared_limit": SHARED_LIMIT[capability],
        **instructions,
        "compiler": f"triton {triton.__version__}",
        "source": fingerprint(case),
    }


def fingerprint(case: Case) -> str:
    """Twelve hexadecimal digits of the source of a case: the kernel, what it calls, and its configuration."""
    functions = {name: f for name, f in case.function.fn.__globals__.items() if isinstance(f, triton.JITFunction)}
    parts = [inspect.getsource(functions[name].fn) for name in sorted(functions)]
    parts.append(repr((case.pointers, case.constants, case.warps, case.stages)))
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]


def _type(case: Case, name: str) -> str:
    """Triton's name for the type of an argument; batch strides may pass 2³¹ and are int64."""
    if name in case.constants:
        return "constexpr"
    if name in case.pointers:
        return case.pointers[name]
    if name in case.floats:
        return "fp32"
    return "i64" if re.fullmatch(r"stride_\w?b", name) else "i32"


def _machine_code(cubin: bytes) -> tuple[int, int, dict]:
    """(registers a thread, stack bytes, tensor-core instructions) of one compiled kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _output([TOOLS / "cuobjdump", "--dump-resource-usage", path])
        listing = _output([TOOLS / "nvdisasm", "-c", path])
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    return registers, stack, {name: len(re.findall(rf"\b{name}\b", listing)) for name in TENSOR_INSTRUCTIONS}


def _output(command) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def cuda_facts(nvcc: str, capability: int) -> list[dict]:
    """Rows for ldl_logdet<float> at k = 256 and ldl_logdet<double> at k = 128, compiled by nvcc for sm_`capability`."""
    with tempfile.TemporaryDirectory() as folder:
        target = ["-cubin", "-o", Path(folder) / "ldl_logdet.cubin", f"-arch=sm_{capability}"]
        command = [nvcc, "-O3", "-std=c++17", "-Xptxas", "-v", *target, CUDA_SOURCE]
        log = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stderr
    release = re.search(r"release ([\d.]+)", _output([nvcc, "--version"])).group(1)
    rows = []
    for letter, bits, k in (("f", 32, 256), ("d", 64, 128)):
        entry = rf"Compiling entry function '\S*ldl_logdetI{letter}E.*?Used \d+ registers"
        text = re.search(entry, log, re.DOTALL).group()
        dynamic = 256 * (8 + 4) + (k * (k + 1) // 2 + 2 * k) * bits // 8  # ldl_shared_bytes of csrc/cuda/ldl_logdet.cuh
        rows.append(
            {
                "kernel": "ldl_logdet",
                "config": f"k={k} fp{bits}",
                "capability": capability,
                "warps": 8,
                "registers": int(re.search(r"Used (\d+) registers", text).group(1)),
                "stack_bytes": int(re.search(r"(\d+) bytes stack frame", text).group(1)),
                "shared_bytes": dynamic,
                "shared_limit": SHARED_LIMIT[capability],
                **dict.fromkeys(TENSOR_INSTRUCTIONS, 0),
                "compiler": f"nvcc {release}",
                "source": "",
            }
        )
    return rows


def all_facts(quick: bool = False) -> list[dict]:
    """The whole table, or its `quick` part; without nvcc, or its source, the CUDA kernel's rows are left out."""
    if interpreted():
        raise RuntimeError("TRITON_INTERPRET is set, so no kernel can be compiled; run this without it")
    every = quick_cases() if quick else [(case, capability) for case in cases() for capability in CAPABILITIES]
    rows = [triton_fact(case, capability) for case, capability in every]
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc and CUDA_SOURCE.exists():
        rows += [row for capability in CAPABILITIES[: 1 if quick else None] for row in cuda_facts(nvcc, capability)]
    return rows


# ---------------------------------------------------------------------------------------------------------- comparison


def problems(row: dict, kept: dict | None) -> list[str]:
    """What is wrong with a fact by itself, and worse than the `kept` one if that is of the same compiler."""
    found = []
    if row["stack_bytes"] > (kept["stack_bytes"] if kept else 0):
        found.append(f"spills {row['stack_bytes']} bytes")
    if row["shared_bytes"] > row["shared_limit"]:
        found.append(f"asks for {row['shared_bytes']} of {row['shared_limit']} bytes of shared memory")
    if row["registers"] > 255 or row["registers"] * 32 * row["warps"] > 65536:
        found.append(f"takes {row['registers']} registers a thread with {row['warps']} warps")
    if row["kernel"] != "ldl_logdet" and "ieee" not in row["config"] and not sum(row[n] for n in TENSOR_INSTRUCTIONS):
        found.append("has no tensor-core instruction")
    if kept and kept["compiler"] == row["compiler"]:
        for column in ("registers", "shared_bytes"):
            if row[column] > kept[column]:
                found.append(f"{column} rose from {kept[column]} to {row[column]}")
    return [f"{row['kernel']} {row['config']} on sm_{row['capability']} {what}" for what in found]


def key(row: dict) -> tuple:
    """What a fact is about: kernel, configuration, capability."""
    return row["kernel"], row["config"], row["capability"]


def read_table(path: Path = TABLE) -> dict:
    """Facts of a CSV file by `key`, numbers as int."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    texts = ("kernel", "config", "compiler", "source")
    facts = [{name: value if name in texts else int(value) for name, value in row.items()} for row in rows]
    return {key(row): row for row in facts}


def write_table(rows: list[dict], file) -> None:
    """Facts as CSV."""
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def main() -> int:
    """Command line; see the module's head."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {os.path.relpath(TABLE, ROOT)}")
    parser.add_argument("--check", action="store_true", help="exit with 1 if something is worse than in that file")
    parser.add_argument("--quick", action="store_true", help="a few rows, every kernel once")
    options = parser.parse_args()
    if options.write and options.quick:
        parser.error("--write keeps the whole table; leave --quick out")
    rows = all_facts(options.quick)
    write_table(rows, sys.stdout)
    kept = read_table() if options.check else {}
    found = [problem for row in rows for problem in problems(row, kept.get(key(row)))]
    if options.write:
        with open(TABLE, "w", newline="") as file:
            write_table(rows, file)
    print("\n".join(found) or "no spills, within every limit", file=sys.stderr)
    return int(bool(found) and options.check)


if __name__ == "__main__":
    sys.exit(main())
