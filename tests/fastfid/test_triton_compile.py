"""What compilers make of the GPU kernels, against bench/results/compiler_facts.csv, without a GPU.

Every row's source and checksum are compared here.  A process of its own compiles again: all rows of the CUDA kernel
where there is nvcc, and of the Triton kernels those that the library launches by default; with `-m slow` all rows,
which takes minutes.  Only a compiler of the table can fail; of another the test prints what is worse.
"""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the GPU kernels need triton: pip install triton")

import torch  # noqa: E402
import triton  # noqa: E402

from bench import compile_facts, facts_table, roofline  # noqa: E402
from fastfid.triton_kernels import ldl_logdet  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
KEPT_BY = "triton 3.9.0"  # a compiler of the table
CAPABILITIES = compile_facts.CAPABILITIES
CUDA_CONFIGS = ("k=256 fp32", "k=128 fp64")


@pytest.fixture(scope="module")
def kept():
    return facts_table.read_table()


def compiled(*flags):
    """Facts of a process that compiles and checks them, its exit code, and what it said."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-m", "bench.compile_facts", "--check", *flags]
    child = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert child.returncode in (0, 1), child.stderr
    return facts_table.read_rows(io.StringIO(child.stdout)), child.returncode, child.stderr


def check_compiled(rows, code, said, cases):
    assert code == 0, said
    expected = {(case.kernel, case.config, n, compile_facts.TRITON) for case in cases for n in CAPABILITIES}
    if compile_facts.nvcc():
        expected |= {
            ("ldl_logdet", config, n, compile_facts.nvcc_release()) for config in CUDA_CONFIGS for n in CAPABILITIES
        }
    known = {compiler for *_, compiler in facts_table.read_table()}
    found = {facts_table.key(row) for row in rows}
    assert found <= expected
    assert all(compiler not in known for *_, compiler in expected - found)  # another one may not compile everything
    print(said)


def test_what_the_library_launches_compiles_to_the_kept_facts():
    cases = compile_facts.quick_cases()
    assert {case.kernel for case in cases} == {case.kernel for case in compile_facts.cases()}
    check_compiled(*compiled("--quick"), cases)


@pytest.mark.slow
def test_every_case_compiles_to_the_kept_facts():
    check_compiled(*compiled(), compile_facts.cases())


def test_kept_facts_are_of_these_kernels_and_without_problem(kept):
    sources = {(case.kernel, case.config): compile_facts.fingerprint(case) for case in compile_facts.cases()}
    cuda = {("ldl_logdet", config): compile_facts.cuda_fingerprint() for config in CUDA_CONFIGS}
    by_compiler = {}
    for (*case, compiler), row in kept.items():
        by_compiler.setdefault(compiler, set()).add(tuple(case))
        assert facts_table.problems(row) == []
        assert row["source"] == (sources | cuda)[case[0], case[1]], "of other kernels: compile_facts --write"
        assert row == facts_table.sealed(row), "not as compile_facts --write left it"
    assert {name.split()[0] for name in by_compiler} == {"triton", "nvcc"}
    for compiler, found in by_compiler.items():
        of = sources if compiler.startswith("triton") else cuda
        assert found == {(*case, capability) for case in of for capability in CAPABILITIES}


def test_a_source_is_known_by_all_that_it_is_made_of(monkeypatch, tmp_path):
    case = next(case for case in compile_facts.quick_cases() if case.kernel == "ldl_pivots")
    before, cuda = compile_facts.fingerprint(case), compile_facts.cuda_fingerprint()
    assert compile_facts.fingerprint(case._replace(warps=2 * case.warps)) != before
    assert compile_facts.fingerprint(case._replace(constants=case.constants | {"K": 64})) != before
    monkeypatch.setattr(ldl_logdet, "LEAST", triton.language.constexpr(1e-6))  # which the kernel reads
    assert compile_facts.fingerprint(case) != before
    monkeypatch.undo()
    monkeypatch.setattr(ldl_logdet, "_log1p", ldl_logdet._excess)  # which it calls
    assert compile_facts.fingerprint(case) != before
    monkeypatch.undo()
    assert compile_facts.fingerprint(case) == before
    for i, path in enumerate(compile_facts.CUDA_SOURCES):
        (tmp_path / path.name).write_bytes(path.read_bytes() + b"//")
        changed = [*compile_facts.CUDA_SOURCES[:i], tmp_path / path.name, *compile_facts.CUDA_SOURCES[i + 1 :]]
        monkeypatch.setattr(compile_facts, "CUDA_SOURCES", changed)
        assert compile_facts.cuda_fingerprint() != cuda
        monkeypatch.undo()


@pytest.mark.parametrize("capability, instruction", [(80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA")])
def test_kept_facts_use_the_tensor_cores_of_each_device(kept, capability, instruction):
    expected = [
        ("plan_grams", "K=128 fp32 tf32x3"),
        ("project", "fp32 tf32x3"),
        ("moments", "bf16 tf32x3"),
        ("rank_update", "fp32 tf32x3"),
    ]
    expected += [("newton_schulz", f"update {precision}") for precision in ("tf32x3", "tf32", "bf16")]
    for kernel, config in expected:
        rows = [row for key, row in kept.items() if key[:3] == (kernel, config, capability)]
        assert rows and all(row[instruction] > 0 for row in rows)


WORSE = {
    "stack_bytes": (8, "spills 8 bytes"),
    "shared_bytes": (1 << 20, "asks for 1048576 of 232448 bytes"),
    "registers": (256, "takes 256 registers"),
    "HGMMA": (0, "lost its HGMMA instructions"),
}


@pytest.mark.parametrize("column", WORSE)
def test_what_is_worse_fails_under_the_tables_compilers_and_is_told_of_others(kept, column):
    good = kept["plan_grams", "K=128 fp32 tf32x3", 90, KEPT_BY]
    value, message = WORSE[column]
    wrong, notes = facts_table.check([good | {column: value}], kept)
    assert any(message in problem or f"{column} went from" in problem for problem in wrong)
    assert not notes
    wrong, notes = facts_table.check([good | {column: value, "compiler": "triton 99.0"}], kept)
    assert not wrong and notes[0] == "triton 99.0 is not in the table, so its facts cannot fail"
    assert any(message in note for note in notes)


def test_a_source_is_the_same_whatever_its_comments_say(tmp_path):
    text = 'def f(x):\n    """One."""\n    return "x" + x\n'
    reworded = 'def f(x):  # of x\n    """Two,\n    three."""\n\n    # four\n    return "x" + x\n'
    other = text.replace('"x" +', '"y" +')
    codes = []
    for i, source in enumerate((text, reworded, other, text.replace("    return", "    if x:\n        return"))):
        (path := tmp_path / f"{i}.py").write_text(source)
        exec(compile(source, path, "exec"), names := {})
        codes.append(compile_facts._code(names["f"]))
    assert codes[0] == codes[1] and len(set(codes)) == 3


def test_what_does_not_compile_fails_under_the_tables_compilers_and_is_told_of_others(monkeypatch, capsys):
    def compiled(case, capability):
        raise ValueError("no such thing")

    monkeypatch.setattr(compile_facts, "triton_facts", compiled)
    monkeypatch.setattr(compile_facts, "nvcc", lambda: None)
    monkeypatch.setattr(sys, "argv", ["compile_facts", "--quick", "--check"])
    for compiler, code in ((KEPT_BY, 1), ("triton 99.0", 0)):
        monkeypatch.setattr(compile_facts, "TRITON", compiler)
        assert compile_facts.main() == code
        said = capsys.readouterr().err
        assert f"plan_grams K=128 fp32 tf32x3 on sm_80 does not compile: no such thing ({compiler})" in said


@pytest.mark.parametrize("column", ["registers", "shared_bytes", "HGMMA", "source"])
def test_the_tables_own_compiler_must_give_the_table(kept, column):
    good = kept["plan_grams", "K=128 fp32 tf32x3", 90, KEPT_BY]
    assert facts_table.check([good], kept) == ([], [])
    for step in (1, -1):  # a table better than its kernels is as wrong as one that is worse
        other = good | {column: "0" * 12 if column == "source" else good[column] + step}
        (found,), notes = facts_table.check([other], kept)
        assert f"{column} went from {good[column]} to {other[column]}" in found and not notes
    (found,), _ = facts_table.check([good | {"config": "K=7"}], kept)
    assert "K=7 on sm_90 is not in the table" in found


def test_a_row_edited_by_hand_is_noticed(kept):
    row = kept["moments", "bf16 ieee", 80, KEPT_BY]
    assert row == facts_table.sealed(row)
    for edited in ({"registers": row["registers"] - 20}, {"shared_bytes": row["shared_bytes"] - 1000}, {"warps": 4}):
        assert row | edited != facts_table.sealed(row | edited)


def test_write_keeps_a_better_table_unless_told(kept, monkeypatch, tmp_path, capsys):
    own = [dict(row) for row in kept.values() if row["compiler"] == KEPT_BY]
    table = tmp_path / "facts.csv"
    monkeypatch.setattr(facts_table, "TABLE", table)
    monkeypatch.setattr(compile_facts, "all_facts", lambda quick: (rows, {}))

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["compile_facts", *flags])
        return compile_facts.main(), capsys.readouterr().err

    rows = [dict(row) for row in kept.values()]
    assert run("--write") == (0, "nothing found\n") and facts_table.read_table(table) == kept  # the first table
    before = table.read_text()
    rows = own
    rows[3] = facts_table.sealed(rows[3] | {"registers": rows[3]["registers"] + 1})
    gone = rows.pop()
    code, said = run("--write")
    assert code == 1 and table.read_text() == before
    assert f"registers rose from {rows[3]['registers'] - 1} to {rows[3]['registers']} ({KEPT_BY})" in said
    assert f"{gone['config']} on sm_{gone['capability']} is missing" in said
    code, said = run("--write", "--accept")
    assert code == 0 and "registers rose" in said
    found = facts_table.read_table(table)
    assert len(found) == len(kept) - 1 and found[facts_table.key(rows[3])] == rows[3]
    others = {at: row for at, row in kept.items() if row["compiler"] != KEPT_BY}
    assert others.items() <= found.items()  # facts of other compilers stay
    newer = [facts_table.sealed(row | {"compiler": "triton 99.0"}) for row in own]
    rows = newer
    assert run("--write")[0] == 0 and facts_table.read_table(table).items() >= others.items()


def test_shared_memory_of_the_cuda_kernel():
    # by its documentation: float32 fits up to k = 256 everywhere, float64 up to 199 and 236
    limits = compile_facts.SHARED_LIMIT
    assert ldl_logdet.ldl_shared_bytes(256, torch.float32) <= limits[80]
    for most, limit in ((199, limits[80]), (236, limits[90]), (236, limits[100])):
        assert ldl_logdet.ldl_shared_bytes(most, torch.float64) <= limit
        assert ldl_logdet.ldl_shared_bytes(most + 1, torch.float64) > limit


def test_roofline_counts():
    found = {phase.name: phase for phase in roofline.phases(roofline.Plan(nodes=16, functions=10, positions=3000))}
    assert found["projection"].flops == 3 * 2 * 6400 * 2048**2
    assert found["gram"].flops == 3 * 2 * 128 * 128**2 * 3000
    assert found["mix"].flops == 2 * 128 * 16 * 10 * 100**2
    assert found["moments"].flops == 3 * 2 * 528 * 64**2 * 5000
    rows = {(row["device"], row["phase"]): row for row in roofline.table()}
    assert len(rows) == 4 * 10 and all(row["status"] == "computed, not measured" for row in rows.values())
    # A100, projection: 161 Gflop on 156 Tflop/s
    milliseconds = float(rows["A100 SXM", "projection"]["milliseconds"])
    assert milliseconds == pytest.approx(161.06e9 / 156e12 * 1e3, rel=1e-3)
    # every phase counts something, and a candidate's bound on an H200 is below 12 µs
    assert all(float(row["gflop"]) > 0 for (_, phase), row in rows.items() if phase != "call")
    assert 0.002 < float(rows["H200", "score, a candidate"]["milliseconds"]) < 0.012
    with open(roofline.TABLE, newline="") as file:
        assert list(csv.DictReader(file)) == [{c: str(row[c]) for c in roofline.COLUMNS} for row in rows.values()]
