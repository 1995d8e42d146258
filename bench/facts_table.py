"""The table of compiler facts: its columns, its file, and how a new fact compares with it."""

import csv
import hashlib
import re
from pathlib import Path

TABLE = Path(__file__).resolve().parent / "results" / "compiler_facts.csv"

# Kernels that multiply no matrices, so tensor cores cannot help.
WITHOUT_PRODUCTS = ("ldl_logdet", "ldl_pivots", "ldl_logs", "ldl_remaining", "centre_sums")

TENSOR_INSTRUCTIONS = ("HMMA", "HGMMA", "UTCHMMA", "DMMA")
COLUMNS = ("kernel", "config", "capability", "warps", "registers", "stack_bytes", "shared_bytes", "shared_limit")
COLUMNS += (*TENSOR_INSTRUCTIONS, "compiler", "source", "checksum")


def sealed(row: dict) -> dict:
    """The row with the checksum of its other columns."""
    values = [str(row[name]) for name in COLUMNS if name != "checksum"]
    return {**row, "checksum": digits(",".join(values).encode())}


def digits(source: bytes) -> str:
    """Twelve hexadecimal digits of a SHA-256."""
    return hashlib.sha256(source).hexdigest()[:12]


def key(row: dict) -> tuple[str, str, int, str]:
    """What a fact is about: kernel, configuration, capability, compiler."""
    return row["kernel"], row["config"], row["capability"], row["compiler"]


def problems(row: dict) -> list[str]:
    """Problems of a fact that need no comparison."""
    found = []
    if row["stack_bytes"]:
        found.append(f"spills {row['stack_bytes']} bytes")
    if row["shared_bytes"] > row["shared_limit"]:
        found.append(f"asks for {row['shared_bytes']} of {row['shared_limit']} bytes of shared memory")
    if row["registers"] > 255 or row["registers"] * 32 * row["warps"] > 65536:
        found.append(f"takes {row['registers']} registers a thread with {row['warps']} warps")
    if (
        row["kernel"] not in WITHOUT_PRODUCTS
        and "ieee" not in row["config"]
        and not sum(row[n] for n in TENSOR_INSTRUCTIONS)
    ):
        found.append("has no tensor-core instruction")
    return [f"{_title(row)} {what}" for what in found]


def differences(row: dict, kept: dict) -> list[str]:
    """Differences of a fact from the `kept` one of the same compiler, in either direction."""
    moved = [f"{c} went from {kept[c]} to {row[c]}" for c in COLUMNS if c != "checksum" and row[c] != kept[c]]
    return [f"{_title(row)}: {what}" for what in moved]


def losses(row: dict, kept: dict) -> list[str]:
    """What is worse in a fact than in the `kept` one of its case, which may be of another compiler."""
    rises = [c for c in ("registers", "shared_bytes") if row[c] > kept[c]]
    found = [f"{_title(row)}: {c} rose from {kept[c]} to {row[c]} ({row['compiler']})" for c in rises]
    lost = [name for name in TENSOR_INSTRUCTIONS if kept[name] and not row[name]]
    return found + [f"{_title(row)} lost its {name} instructions" for name in lost]


def check(rows: list[dict], table: dict) -> tuple[list[str], list[str]]:
    """What is wrong in rows whose compiler is in the table, and what is worse in rows of other compilers."""
    known = {row["compiler"] for row in table.values()}
    wrong, notes = [], []
    for row in rows:
        if row["compiler"] in known:
            kept = table.get(key(row))
            wrong += problems(row)
            wrong += differences(row, kept) if kept else [f"{_title(row)} is not in the table"]
        else:
            notes += problems(row)
            notes += [loss for kept in _nearest(row, table) for loss in losses(row, kept)]
    foreign = sorted({row["compiler"] for row in rows} - known)
    return wrong, [f"{name} is not in the table, so its facts cannot fail" for name in foreign] + notes


def _nearest(row: dict, table: dict) -> list[dict]:
    """The table's fact of the same case from the newest compiler, in a list that may be empty."""
    same = [kept for kept in table.values() if key(kept)[:3] == key(row)[:3]]
    return sorted(same, key=lambda kept: _version(kept["compiler"]))[-1:]


def _version(compiler: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", compiler)))


def replaced(table: dict, rows: list[dict]) -> dict:
    """The table with `rows` in place of all facts of their compilers, sorted by compiler."""
    compilers = {row["compiler"] for row in rows}
    kept = [row for row in table.values() if row["compiler"] not in compilers]
    order = {name: i for i, name in enumerate(sorted({r["compiler"] for r in [*kept, *rows]}))}
    return {key(row): row for row in sorted([*kept, *rows], key=lambda row: order[row["compiler"]])}


def worse(table: dict, rows: list[dict]) -> list[str]:
    """What `replaced` would make worse: problems, losses with the same compiler, missing facts."""
    found = [problem for row in rows for problem in problems(row)]
    found += [loss for row in rows if key(row) in table for loss in losses(row, table[key(row)])]
    missing = table.keys() - replaced(table, rows).keys()
    return found + [f"{_title(table[at])} is missing" for at in sorted(missing)]


def _title(row: dict) -> str:
    return f"{row['kernel']} {row['config']} on sm_{row['capability']}"


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
