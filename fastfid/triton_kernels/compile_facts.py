"""What compilers make of the GPU kernels, with no GPU: registers, spills, shared memory, tensor-core instructions.

    python -m fastfid.triton_kernels.compile_facts             prints the table
    python -m fastfid.triton_kernels.compile_facts --check     also fails where bench/results/compiler_facts.csv differs
    python -m fastfid.triton_kernels.compile_facts --write     writes that file, unless something is worse than in it
    python -m fastfid.triton_kernels.compile_facts --write --accept     writes it all the same
    python -m fastfid.triton_kernels.compile_facts --quick     what the library launches by default; may go with --check

Triton kernels are compiled ahead of time for A100 (sm_80), H100 (sm_90) and B200 (sm_100) with the configurations that
their launchers use, and their machine code is read by the tools in triton's own wheel; the CUDA kernel is compiled by
nvcc where there is one.  No GPU or driver is needed, and nothing here is a time.  A stack above 0 bytes means that
registers spilled.  Tensor-core instructions are counted in the machine code, not executions: HMMA (sm_80, and tf32 on
all), HGMMA (sm_90), UTCHMMA (sm_100), DMMA (float64).

The column `source` is a hash of what a row was compiled from, kernel and configuration: a table older than its kernels
is known by it without a compiler, as is a row edited by hand by its `checksum`.  With the compiler of the table a row
must come out as it stands there; another allocates registers differently, and only spills, limits and the presence of
tensor-core instructions are compared.

Legend: a case is one kernel with one configuration; a fact is one row of the table, a case on one capability.
"""

import argparse
import csv
import hashlib
import inspect
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastfid.triton_kernels import interpreted, moments, newton_schulz, rank_update, swap_logdet

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "bench" / "results" / "compiler_facts.csv"
CUDA_SOURCES = tuple(ROOT / "csrc" / "cuda" / f"ldl_logdet.{suffix}" for suffix in ("cu", "cuh", "h"))
CUDA_FLAGS = ("-O3", "-std=c++17")
CUDA_CASES = ((torch.float32, 256), (torch.float64, 128))  # dtype and order k of ldl_logdet
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

CAPABILITIES = (80, 90, 100)

# Most shared memory a block may ask for, bytes: CUDA C++ Programming Guide, table "Technical specifications per compute
# capability": 163 kB on 8.0, 227 kB on 9.0 and 10.0.
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}

TENSOR_INSTRUCTIONS = ("HMMA", "HGMMA", "UTCHMMA", "DMMA")
COLUMNS = ("kernel", "config", "capability", "warps", "registers", "stack_bytes", "shared_bytes", "shared_limit")
COLUMNS += (*TENSOR_INSTRUCTIONS, "compiler", "source", "checksum")


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
    """`product` "residual": I − Z Y on the full grid, Y read by rows; "polynomial": p₀I + p₁E + p₂E E on the full grid;
    "update": p₀Y + p₁Y E, a mirrored triangle."""
    block, block_p, warps, stages = newton_schulz.CONFIGS[precision]
    dots, residual, update = newton_schulz.PRECISIONS[precision][1], product == "residual", product == "update"
    pointers = dict.fromkeys(("p_matrix", "q_matrix", "x_matrix", "out"), "*bf16" if precision == "bf16" else "*fp32")
    constants = dict.fromkeys(("stride_pn", "stride_qm" if residual else "stride_qn", "stride_xn", "stride_on"), 1)
    constants |= {"HAS_X": not residual, "SYMMETRIC": update, "BLOCK": block, "BLOCK_P": block_p, "PRECISION": dots}
    function, floats = newton_schulz.fused_product_kernel, ("alpha", "beta", "gamma")
    return Case("newton_schulz", f"{product} {precision}", function, pointers, constants, floats, warps, stages)


PRODUCTS = ("update", "residual", "polynomial")


def cases() -> list[Case]:
    """Every kernel in the configurations that stand for the others."""
    return [
        *(_swap_logdet(order, precision) for order, precision in swap_logdet.CONFIGS),
        *(_moments(dtype, "tf32x3") for dtype in ("bf16", "fp16", "fp32")),
        _moments("bf16", "ieee"),
        *(_rank_update(precision) for precision in rank_update.PRECISIONS),
        *(_newton_schulz(p, product) for product in PRODUCTS for p in newton_schulz.PRECISIONS),
    ]


def quick_cases() -> list[Case]:
    """What the library launches by default for 50-swaps, every kernel among it; the widest of `swap_logdet`."""
    return [
        _swap_logdet(128, "tf32x3"),
        _moments("fp32", "tf32x3"),
        _rank_update("tf32x3"),
        *(_newton_schulz("tf32x3", product) for product in PRODUCTS),
    ]


# --------------------------------------------------------------------------------------------------------------- facts


def triton_fact(case: Case, capability: int) -> dict:
    """One row of the table: `case` compiled for sm_`capability`; triton's own error if it does not compile."""
    source = ASTSource(case.function, *_specialised(case))
    options = {"num_warps": case.warps, "num_stages": case.stages}
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, stack, instructions = _machine_code(built.asm["cubin"])
    return sealed(
        {
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
    )


def _specialised(case: Case) -> tuple[dict, dict, dict]:
    """Signature, constants and alignments of a case, as its launcher would find them for the benchmark's problem."""
    names = case.function.arg_names
    constants = {(names.index(name),): value for name, value in case.constants.items()}
    # sizes and strides of the benchmark's problem are multiples of 16
    aligned = [n for n in names if n in case.pointers or n in ("r", "n", "d") or n.startswith("stride_")]
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned if n not in case.constants}
    return {name: _type(case, name) for name in names}, constants, attributes


def fingerprint(case: Case) -> str:
    """Twelve hexadecimal digits of what a Triton row is made from: the kernel, what it may call, its configuration."""
    parts = sorted(_sources(case.function.fn.__globals__))
    parts.append(repr((case.function.__name__, _specialised(case), case.warps, case.stages)))
    return _digits("\n".join(parts).encode())


def _sources(names: dict, seen: frozenset = frozenset()) -> set[str]:
    """Sources of the Triton functions among `names` and among those they see, and the constants they may read."""
    found = {f"{name} = {value.value!r}" for name, value in names.items() if isinstance(value, tl.constexpr)}
    for value in names.values():
        if isinstance(value, triton.JITFunction):
            found.add(inspect.getsource(value.fn))
            module = value.fn.__module__
            if module not in seen:
                found |= _sources(value.fn.__globals__, seen | {module})
    return found


def cuda_fingerprint() -> str:
    """The same of the CUDA rows: the files of csrc/cuda and nvcc's flags."""
    return _digits(b"".join(path.read_bytes() for path in CUDA_SOURCES) + repr((CUDA_FLAGS, CUDA_CASES)).encode())


def sealed(row: dict) -> dict:
    """The row with the checksum of its other columns."""
    values = [str(row[name]) for name in COLUMNS if name != "checksum"]
    return {**row, "checksum": _digits(",".join(values).encode())}


def _digits(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()[:12]


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


def nvcc() -> str | None:
    """The CUDA compiler, if there is one."""
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def cuda_facts(capability: int) -> list[dict]:
    """Rows of `CUDA_CASES`, compiled by nvcc for sm_`capability`."""
    with tempfile.TemporaryDirectory() as folder:
        target = ["-cubin", "-o", Path(folder) / "ldl_logdet.cubin", f"-arch=sm_{capability}"]
        command = [nvcc(), *CUDA_FLAGS, "-Xptxas", "-v", *target, CUDA_SOURCES[0]]
        log = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stderr
    release = re.search(r"\bV([\d.]+)", _output([nvcc(), "--version"])).group(1)
    rows = []
    for dtype, k in CUDA_CASES:
        letter, bits = ("f", 32) if dtype == torch.float32 else ("d", 64)
        entry = rf"Compiling entry function '\S*ldl_logdetI{letter}E.*?Used \d+ registers"
        text = re.search(entry, log, re.DOTALL).group()
        rows.append(
            sealed(
                {
                    "kernel": "ldl_logdet",
                    "config": f"k={k} fp{bits}",
                    "capability": capability,
                    "warps": 8,
                    "registers": int(re.search(r"Used (\d+) registers", text).group(1)),
                    "stack_bytes": int(re.search(r"(\d+) bytes stack frame", text).group(1)),
                    "shared_bytes": swap_logdet.ldl_shared_bytes(k, dtype),
                    "shared_limit": SHARED_LIMIT[capability],
                    **dict.fromkeys(TENSOR_INSTRUCTIONS, 0),
                    "compiler": f"nvcc {release}",
                    "source": cuda_fingerprint(),
                }
            )
        )
    return rows


def all_facts(quick: bool = False) -> list[dict]:
    """The whole table, or its `quick` part; without nvcc the CUDA kernel's rows are left out."""
    if interpreted():
        raise RuntimeError("TRITON_INTERPRET is set, so no kernel can be compiled; run this without it")
    some = quick_cases() if quick else cases()
    rows = [triton_fact(case, capability) for case in some for capability in CAPABILITIES]
    return rows + ([row for capability in CAPABILITIES for row in cuda_facts(capability)] if nvcc() else [])


# ---------------------------------------------------------------------------------------------------------- comparison


def problems(row: dict, kept: dict | None) -> list[str]:
    """What is wrong with a fact under any compiler, by itself and beside the `kept` one."""
    found = []
    if row["stack_bytes"]:
        found.append(f"spills {row['stack_bytes']} bytes")
    if row["shared_bytes"] > row["shared_limit"]:
        found.append(f"asks for {row['shared_bytes']} of {row['shared_limit']} bytes of shared memory")
    if row["registers"] > 255 or row["registers"] * 32 * row["warps"] > 65536:
        found.append(f"takes {row['registers']} registers a thread with {row['warps']} warps")
    if row["kernel"] != "ldl_logdet" and "ieee" not in row["config"] and not sum(row[n] for n in TENSOR_INSTRUCTIONS):
        found.append("has no tensor-core instruction")
    for name in TENSOR_INSTRUCTIONS:
        if kept and kept[name] and not row[name]:
            found.append(f"lost its {name} instructions")
    return [f"{_title(row)} {what}" for what in found]


def differences(row: dict, kept: dict) -> list[str]:
    """Where a fact is not the `kept` one, of the same compiler: nothing may have moved, in either direction."""
    moved = [
        f"{c} went from {kept[c]} to {row[c]}"
        for c in COLUMNS
        if c not in ("compiler", "checksum") and row[c] != kept[c]
    ]
    return [f"{_title(row)}: {what}" for what in moved]


def losses(rows: list[dict], kept: dict) -> list[str]:
    """What is worse in `rows` than in the `kept` table, whatever the compilers: problems, rises, missing rows."""
    found = [problem for row in rows for problem in problems(row, kept.get(key(row)))]
    for row in rows:
        before = kept.get(key(row), row)
        rises = [c for c in ("registers", "shared_bytes") if row[c] > before[c]]
        found += [f"{_title(row)}: {c} rose from {before[c]} to {row[c]} ({row['compiler']})" for c in rises]
    missing = kept.keys() - {key(row) for row in rows}
    return found + [f"{_title(kept[at])} is missing" for at in sorted(missing)]


def _title(row: dict) -> str:
    return f"{row['kernel']} {row['config']} on sm_{row['capability']}"


def key(row: dict) -> tuple:
    """What a fact is about: kernel, configuration, capability."""
    return row["kernel"], row["config"], row["capability"]


def read_table(path: Path | None = None) -> dict:
    """Facts of a CSV file, `TABLE` by default, by `key`."""
    with open(path or TABLE, newline="") as file:
        return {key(row): row for row in read_rows(file)}


def read_rows(file) -> list[dict]:
    """Facts of a CSV file, numbers as int."""
    texts = ("kernel", "config", "compiler", "source", "checksum")
    return [{n: v if n in texts else int(v) for n, v in row.items()} for row in csv.DictReader(file)]


def write_table(rows: list[dict], file) -> None:
    """Facts as CSV."""
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def check(rows: list[dict], kept: dict) -> tuple[list[str], list[str]]:
    """(what is wrong with `rows` beside the `kept` table, what could not be compared)."""
    found, skipped = [], set()
    for row in rows:
        before = kept.get(key(row))
        found += problems(row, before)
        if before is None:
            found.append(f"{_title(row)} is not in the table")
        elif before["compiler"] == row["compiler"]:
            found += differences(row, before)
        else:
            skipped.add(f"registers not compared: the table is of {before['compiler']}, this is {row['compiler']}")
    return found, sorted(skipped)


def main() -> int:
    """Command line; see the module's head."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write bench/results/compiler_facts.csv unless worse")
    parser.add_argument("--accept", action="store_true", help="write it even so")
    parser.add_argument("--check", action="store_true", help="exit with 1 where it differs from that file")
    parser.add_argument("--quick", action="store_true", help="what the library launches by default")
    options = parser.parse_args()
    if options.write and options.quick:
        parser.error("--write keeps the whole table; leave --quick out")
    if options.accept and not options.write:
        parser.error("--accept goes with --write")
    rows, kept = all_facts(options.quick), read_table() if TABLE.exists() else {}
    write_table(rows, sys.stdout)
    found, skipped = check(rows, kept) if options.check else ([], [])
    found += losses(rows, kept) if options.write else []
    print("\n".join([*found, *skipped]) or "nothing found", file=sys.stderr)
    if found and options.write and not options.accept:
        print("the table stays as it is; --accept writes the new one", file=sys.stderr)
    elif options.write:
        with open(TABLE, "w", newline="") as file:
            write_table(rows, file)
    return int(bool(found) and not options.accept)


if __name__ == "__main__":
    sys.exit(main())
