"""Registers, spills, shared memory and tensor-core instructions of the compiled GPU kernels. Needs no GPU.

    python -m bench.compile_facts                      prints the facts of the installed compilers
    python -m bench.compile_facts --check              also fails if they differ from the table
    python -m bench.compile_facts --write              writes them into the table, unless something is worse than in it
    python -m bench.compile_facts --write --accept     writes them even then
    python -m bench.compile_facts --quick              only what the library launches by default; also with --check

Triton compiles its kernels ahead of time for A100 (sm_80), H100 (sm_90) and B200 (sm_100) with the configurations of
their launchers.  Tools in triton's own wheel read the machine code.  If nvcc is installed, it compiles the CUDA kernel.
Nothing here is a time.  A stack above 0 bytes means that registers spilled.  The counts of tensor-core instructions are
counts in the machine code, not of executions: HMMA (sm_80, and tf32 everywhere), HGMMA (sm_90), UTCHMMA (sm_100), DMMA
(float64).

A fact belongs to its compiler, because every version allocates registers differently.  The table holds the facts of
each compiler that was tried.  Such a compiler must give the facts of the table.  For any other compiler, `--check`
prints what is worse than in the table and does not fail, so a user's compiler never decides whether the tests pass.

The table is bench/results/compiler_facts.csv.  Its column `source` is a hash of kernel and configuration.  It shows
without a compiler whether the table is older than its kernels.  `checksum` shows whether a row was edited by hand.

Legend: a case is one kernel with one configuration; a fact is one row of the table, a case on one capability by one
compiler.
"""

import argparse
import inspect
import io
import re
import shutil
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from bench import facts_table
from fastfid.triton_kernels import (
    centre_sums,
    interpreted,
    ldl_logdet,
    moments,
    newton_schulz,
    plan_grams,
    project,
    rank_update,
)

ROOT = Path(__file__).resolve().parents[1]
CUDA_SOURCES = tuple(ROOT / "csrc" / "cuda" / f"ldl_logdet.{suffix}" for suffix in ("cu", "cuh", "h"))
CUDA_FLAGS = ("-O3", "-std=c++17")
CUDA_CASES = ((torch.float32, 256), (torch.float64, 128))  # dtype and order k of ldl_logdet
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

TRITON = f"triton {triton.__version__}"

CAPABILITIES = (80, 90, 100)

# Most shared memory that a block may ask for, in bytes: 163 kB on 8.0, 227 kB on 9.0 and 10.0 (CUDA C++ Programming
# Guide, table "Technical specifications per compute capability").
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}


class Case(NamedTuple):
    """A Triton kernel as its launcher calls it: argument types by name, constants, warps and stages."""

    kernel: str
    config: str
    function: object
    pointers: dict
    constants: dict
    floats: tuple
    warps: int
    stages: int


# --------------------------------------------------------------------------------------------------------------- cases


def _plan_grams(order: int) -> Case:
    block, warps, stages = plan_grams.CONFIGS[order]
    pointers = dict.fromkeys(("w", "functions", "grams"), "*fp32")
    pointers |= {"first": "*i32", "stop": "*i32", "offset": "*i64"}
    constants = {"K": order, "BLOCK": block, "PRECISION": plan_grams.PRECISION}
    function, config = plan_grams.plan_grams_kernel, f"K={order} fp32 {plan_grams.PRECISION}"
    return Case("plan_grams", config, function, pointers, constants, (), warps, stages)


def _ldl(order: int, part: str) -> Case:
    """A kernel of the factors: "pivots", "logs" or "remaining"."""
    arrays = {
        "pivots": {"grams": "*fp32", "pivots": "*fp32", "inverses": "*fp32"},
        "logs": {"grams": "*fp32", "pivots": "*fp32", "logdets": "*fp64"},
        "remaining": {"inverses": "*fp32", "remaining": "*fp64"},
    }
    warps, stages = ldl_logdet.CONFIGS[order] if part != "logs" else (ldl_logdet.LOG_WARPS, 1)
    function = getattr(ldl_logdet, f"ldl_{part}_kernel")
    floats = ("slack",) if part == "logs" else ()
    return Case(f"ldl_{part}", f"K={order} fp32", function, arrays[part], {"K": order}, floats, warps, stages)


def _project(dtype: str) -> Case:
    pointers = {"x": f"*{dtype}", "mean": "*fp64", "projection": "*fp32", "out": "*fp32"}
    constants = {name: getattr(project, name) for name in ("BLOCK_V", "BLOCK_P", "BLOCK_D", "PRECISION")}
    constants |= {"stride_d": 1, "stride_pr": 1}
    config = f"{dtype} {project.PRECISION}"
    return Case("project", config, project.project_kernel, pointers, constants, (), project.WARPS, project.STAGES)


def _centre_sums() -> Case:
    pointers = {"added": "*fp32", "reference": "*fp32", "removed": "*i64"}
    pointers |= dict.fromkeys(("mean", "gap", "totals", "parts"), "*fp64")
    constants = {"ROWS": centre_sums.ROWS, "BLOCK": centre_sums.BLOCK, "stride_ad": 1, "stride_rd": 1}
    function = centre_sums.centre_sums_kernel
    return Case("centre_sums", "fp32", function, pointers, constants, (), centre_sums.WARPS, centre_sums.STAGES)


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


LDL_PARTS = ("pivots", "logs", "remaining")
PRODUCTS = ("update", "residual", "polynomial")


def cases() -> list[Case]:
    """Every kernel in the configurations that stand for the others."""
    return [
        *(_plan_grams(order) for order in plan_grams.CONFIGS),
        *(_ldl(order, part) for part in LDL_PARTS for order in ldl_logdet.CONFIGS),
        _project("fp32"),
        _centre_sums(),
        *(_moments(dtype, "tf32x3") for dtype in ("bf16", "fp16", "fp32")),
        _moments("bf16", "ieee"),
        *(_rank_update(precision) for precision in rank_update.PRECISIONS),
        *(_newton_schulz(p, product) for product in PRODUCTS for p in newton_schulz.PRECISIONS),
    ]


def quick_cases() -> list[Case]:
    """What the library launches by default for swaps of 50: every kernel with its widest tile."""
    return [
        _plan_grams(128),
        *(_ldl(128, part) for part in LDL_PARTS),
        _project("fp32"),
        _centre_sums(),
        _moments("fp32", "tf32x3"),
        _rank_update("tf32x3"),
        *(_newton_schulz("tf32x3", product) for product in PRODUCTS),
    ]


# --------------------------------------------------------------------------------------------------------------- facts


def triton_facts(case: Case, capability: int) -> list[dict]:
    """The row of `case` compiled for sm_`capability`; triton's own error if it does not compile."""
    from triton.backends.compiler import (
        GPUTarget,
    )  # here: if a version moved them, it counts as one that cannot compile
    from triton.compiler import ASTSource

    source = ASTSource(case.function, *_specialised(case))
    options = {"num_warps": case.warps, "num_stages": case.stages}
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, stack, instructions = _machine_code(built.asm["cubin"])
    row = {
        "kernel": case.kernel,
        "config": case.config,
        "capability": capability,
        "warps": case.warps,
        "registers": registers,
        "stack_bytes": stack,
        "shared_bytes": built.metadata.shared,
        "shared_limit": SHARED_LIMIT[capability],
        **instructions,
        "compiler": TRITON,
        "source": fingerprint(case),
    }
    return [facts_table.sealed(row)]


def _specialised(case: Case) -> tuple[dict, dict, dict]:
    """Signature, constants and alignments of a case, as in its launcher for the problem of the benchmark."""
    names = case.function.arg_names
    constants = {(names.index(name),): value for name, value in case.constants.items()}
    # in that problem, sizes and strides are multiples of 16
    aligned = [n for n in names if n in case.pointers or n in ("r", "n", "d") or n.startswith("stride_")]
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned if n not in case.constants}
    return {name: _type(case, name) for name in names}, constants, attributes


def fingerprint(case: Case) -> str:
    """Twelve hexadecimal digits of a hash of a Triton row's kernel, what it may call, and its configuration."""
    parts = sorted(_sources(case.function.fn.__globals__))
    parts.append(repr((case.function.__name__, _specialised(case), case.warps, case.stages)))
    return facts_table.digits("\n".join(parts).encode())


def _sources(names: dict, seen: frozenset = frozenset()) -> set[str]:
    """Sources of the Triton functions in `names` and in their modules, and the constants that they may read."""
    found = {f"{name} = {value.value!r}" for name, value in names.items() if isinstance(value, tl.constexpr)}
    for value in names.values():
        if isinstance(value, triton.JITFunction):
            found.add(_code(value.fn))
            module = value.fn.__module__
            if module not in seen:
                found |= _sources(value.fn.__globals__, seen | {module})
    return found


def _code(function) -> str:
    """Tokens of a function without comments and docstring, which no compiler sees."""
    tokens = tokenize.generate_tokens(io.StringIO(inspect.getsource(function)).readline)
    code = [token for token in tokens if token.type not in (tokenize.COMMENT, tokenize.NL)]
    layout = (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    return " ".join(
        tokenize.tok_name[token.type] if token.type in layout else token.string
        for before, token in zip([None, *code], code, strict=False)
        if not (token.type == tokenize.STRING and before is not None and before.type == tokenize.INDENT)
    )


def cuda_fingerprint() -> str:
    """The same for the CUDA rows: a hash of the files of csrc/cuda and nvcc's flags."""
    return facts_table.digits(
        b"".join(path.read_bytes() for path in CUDA_SOURCES) + repr((CUDA_FLAGS, CUDA_CASES)).encode()
    )


def _type(case: Case, name: str) -> str:
    """Triton's name for the type of an argument. Batch strides may exceed 2³¹ and are int64."""
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
    return (
        registers,
        stack,
        {name: len(re.findall(rf"\b{name}\b", listing)) for name in facts_table.TENSOR_INSTRUCTIONS},
    )


def _output(command) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def nvcc() -> str | None:
    """Path of the CUDA compiler; None if it is not installed."""
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def nvcc_release() -> str:
    """The name "nvcc" with the installed version."""
    return "nvcc " + re.search(r"\bV([\d.]+)", _output([nvcc(), "--version"])).group(1)


def cuda_facts(capability: int) -> list[dict]:
    """Rows of `CUDA_CASES`, compiled by nvcc for sm_`capability`."""
    with tempfile.TemporaryDirectory() as folder:
        target = ["-cubin", "-o", Path(folder) / "ldl_logdet.cubin", f"-arch=sm_{capability}"]
        command = [nvcc(), *CUDA_FLAGS, "-Xptxas", "-v", *target, CUDA_SOURCES[0]]
        log = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stderr
    rows = []
    for dtype, k in CUDA_CASES:
        letter, bits = ("f", 32) if dtype == torch.float32 else ("d", 64)
        entry = rf"Compiling entry function '\S*ldl_logdetI{letter}E.*?Used \d+ registers"
        text = re.search(entry, log, re.DOTALL).group()
        rows.append(
            facts_table.sealed(
                {
                    "kernel": "ldl_logdet",
                    "config": f"k={k} fp{bits}",
                    "capability": capability,
                    "warps": 8,
                    "registers": int(re.search(r"Used (\d+) registers", text).group(1)),
                    "stack_bytes": int(re.search(r"(\d+) bytes stack frame", text).group(1)),
                    "shared_bytes": ldl_logdet.ldl_shared_bytes(k, dtype),
                    "shared_limit": SHARED_LIMIT[capability],
                    **dict.fromkeys(facts_table.TENSOR_INSTRUCTIONS, 0),
                    "compiler": nvcc_release(),
                    "source": cuda_fingerprint(),
                }
            )
        )
    return rows


def all_facts(quick: bool = False) -> tuple[list[dict], dict[str, str]]:
    """All rows or the `quick` ones, and what did not compile: a dict from a sentence to its compiler.

    Without nvcc, there are no rows of the CUDA kernel.
    """
    if interpreted():
        raise RuntimeError("TRITON_INTERPRET is set, so no kernel can be compiled; run this without it")
    rows, failures = [], {}
    for title, compiler, compiled in _compilations(quick_cases() if quick else cases()):
        try:
            rows += compiled()
        except Exception as error:  # every version of a compiler has its own kinds of error
            said = getattr(error, "stderr", None) or str(error) or type(error).__name__
            failures[f"{title} does not compile: {' '.join(said.split())[:200]}"] = compiler
    return rows, failures


def _compilations(some: list[Case]) -> Iterator[tuple[str, str, Callable[[], list[dict]]]]:
    """(title, compiler, a call that compiles and gives rows) of these Triton cases and of the CUDA kernel."""
    for case in some:
        for capability in CAPABILITIES:
            title = f"{case.kernel} {case.config} on sm_{capability}"
            yield title, TRITON, partial(triton_facts, case, capability)
    if nvcc():
        for capability in CAPABILITIES:
            yield f"ldl_logdet on sm_{capability}", nvcc_release(), partial(cuda_facts, capability)


def main() -> int:
    """Command line, described at the top of this file."""
    options = _options()
    table = facts_table.read_table() if facts_table.TABLE.exists() else {}
    rows, failures = all_facts(options.quick)
    facts_table.write_table(rows, sys.stdout)
    wrong, notes = facts_table.check(rows, table) if options.check else ([], [])
    known = {row["compiler"] for row in table.values()}
    for sentence, compiler in failures.items():
        (wrong if options.write or compiler in known else notes).append(f"{sentence} ({compiler})")
    wrong += facts_table.worse(table, rows) if options.write else []
    print("\n".join([*wrong, *notes]) or "nothing found", file=sys.stderr)
    if wrong and options.write and not options.accept:
        print("the table stays as it is; --accept writes the new one", file=sys.stderr)
    elif options.write:
        with open(facts_table.TABLE, "w", newline="") as file:
            facts_table.write_table(list(facts_table.replaced(table, rows).values()), file)
    return int(bool(wrong) and not options.accept)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the facts into bench/results/compiler_facts.csv")
    parser.add_argument("--accept", action="store_true", help="write even what is worse")
    parser.add_argument("--check", action="store_true", help="exit with 1 if the facts differ from that file")
    parser.add_argument("--quick", action="store_true", help="only what the library launches by default")
    options = parser.parse_args()
    if options.write and options.quick:
        parser.error("--write keeps all cases of a compiler; leave --quick out")
    if options.accept and not options.write:
        parser.error("--accept goes with --write")
    return options


if __name__ == "__main__":
    sys.exit(main())
