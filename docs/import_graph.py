"""The import graph of both packages: modules, rooms, arrows, circles.  It parses the files and imports none of them.

    python -m docs.import_graph         prints every arrow between rooms, and the imports behind it

A room is a folder of a package, or a file that lies directly in the package.  Imports inside functions count like any
other.  Imports under `if TYPE_CHECKING:` are marked.  docs/draw_architecture.py draws this graph, and
tests/test_architecture.py checks it.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fastfid", "sit_rl")


class Import(NamedTuple):
    """One module importing another, for example fastfid.swap.engine → fastfid.linalg.quadrature."""

    source: str
    target: str
    typing_only: bool


# --- reading ---------------------------------------------------------------------------------------------------------


@cache
def modules(package: str) -> dict[str, Path]:
    """Dotted name → file of every module of a package; a folder's own name stands for its __init__.py."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


@cache
def public_names(package: str) -> dict[str, str]:
    """Public name → module that defines it, from the imports of api.py; empty for a package without that file."""
    path = modules(package).get(f"{package}.api")
    tree = ast.parse(path.read_text()) if path else ast.Module([], [])
    found: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {alias.asname or alias.name: node.module for alias in node.names}
    return found


@cache
def imports(package: str) -> tuple[Import, ...]:
    """Every import of one of the two packages' modules by a module of `package`, sorted, without repeats."""
    known = {name for each in PACKAGES for name in modules(each)}
    found = set()
    for name, path in modules(package).items():
        for target, typing_only in _imports_of(ast.parse(path.read_text()), known):
            if target != name:
                found.add(Import(name, target, typing_only))
    return tuple(sorted(found))


def _imports_of(node: ast.AST, known: set[str], typing_only: bool = False) -> Iterator[tuple[str, bool]]:
    """Modules imported in a syntax tree, each with whether a type checker alone sees it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for part in child.body:
                yield from _imports_of(ast.Module([part], []), known, True)
            for part in child.orelse:
                yield from _imports_of(ast.Module([part], []), known, typing_only)
        elif isinstance(child, ast.Import):
            yield from ((alias.name, typing_only) for alias in child.names if alias.name in known - set(PACKAGES))
        elif isinstance(child, ast.Attribute) and isinstance(child.value, ast.Name) and child.value.id in PACKAGES:
            yield _resolve(child.value.id, child.attr, known), typing_only  # import fastfid; fastfid.evaluate(…)
        elif isinstance(child, ast.ImportFrom) and child.module in known:
            yield from ((_resolve(child.module, alias.name, known), typing_only) for alias in child.names)
        else:
            yield from _imports_of(child, known, typing_only)


def _resolve(module: str, name: str, known: set[str]) -> str:
    """The module that `from module import name` reads: a public name of fastfid stands for its defining module."""
    if f"{module}.{name}" in known and name not in public_names(module):
        return f"{module}.{name}"
    return public_names(module).get(name, module) if module in PACKAGES else module


def room_of(module: str) -> str:
    """The room of a module: fastfid.swap.engine → fastfid.swap, fastfid.backend → fastfid.backend."""
    return ".".join(module.split(".")[:2])


@cache
def rooms(package: str) -> dict[str, tuple[str, ...]]:
    """Room → names of its files, without __init__."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in modules(package):
        if name != package:
            found[room_of(name)] += [name.split(".", 2)[2]] if name.count(".") > 1 else []
    return {room: tuple(files) for room, files in sorted(found.items())}


@cache
def arrows(package: str, typing_only: bool = False) -> dict[tuple[str, str], tuple[Import, ...]]:
    """(room, room it imports) within a package → the imports behind the arrow; those for type checkers if asked for."""
    found: dict[tuple[str, str], list[Import]] = defaultdict(list)
    for each in imports(package):
        pair = room_of(each.source), room_of(each.target)
        inside = each.target.startswith(f"{package}.") and each.source != package and pair[0] != pair[1]
        if inside and (typing_only or not each.typing_only):
            found[pair].append(each)
    return {pair: tuple(each) for pair, each in sorted(found.items())}


# --- graphs ----------------------------------------------------------------------------------------------------------


def circles(edges: set[tuple[str, str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (strongly connected components of two and more), by Tarjan's algorithm."""
    following: dict[str, list[str]] = defaultdict(list)
    for source, target in sorted(edges):
        following[source].append(target)
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = lowest[node] = len(number)
        stack.append(node)
        for other in following.get(node, ()):
            if other not in number:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], number[other])
        if lowest[node] == number[node]:
            group = stack[stack.index(node) :]
            del stack[-len(group) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted({node for edge in edges for node in edge}):
        if node not in number:
            visit(node)
    return found


def floors(nodes: set[str], edges: set[tuple[str, str]]) -> dict[str, int]:
    """Node → length of the longest path of imports below it; ValueError for a graph with a circle."""
    if circles(edges):
        raise ValueError(f"the graph has circles, remove them first: {circles(edges)}")
    below = {node: sorted(target for source, target in edges if source == node) for node in nodes}

    @cache
    def floor(node: str) -> int:
        return max((floor(other) + 1 for other in below[node]), default=0)

    return {node: floor(node) for node in sorted(nodes)}


def without_implied(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows that no longer path implies (the transitive reduction of a graph without circles)."""
    below: dict[str, set[str]] = defaultdict(set)
    for source, target in edges:
        below[source].add(target)

    @cache
    def reached(node: str) -> frozenset[str]:
        found = set(below.get(node, ()))
        return frozenset(found.union(*(reached(other) for other in found)))

    return {(s, t) for s, t in edges if not any(t in reached(other) for other in below[s] if other != t)}


def list_arrows() -> str:
    """One line an arrow between rooms, the imports behind it indented below."""
    lines = []
    for package in PACKAGES:
        for (source, target), behind in arrows(package, typing_only=True).items():
            lines.append(f"{source} → {target}")
            lines += [f"    {i.source} → {i.target}{' (types)' if i.typing_only else ''}" for i in behind]
    return "\n".join(lines)


if __name__ == "__main__":
    print(list_arrows())
