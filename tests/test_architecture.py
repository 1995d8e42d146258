"""The rules of docs/architecture.md, checked on the import graph that docs/import_graph.py reads from the files."""

import re
import subprocess

import pytest

from docs import import_graph
from docs.import_graph import PACKAGES, ROOT, Import, arrows, circles, floors, imports, modules, room_of, rooms

# The rooms of each package, lowest first: a room may import those before it and none after it.
ROOMS = {
    "fastfid": (
        "runtime", "pages", "identity", "triton_kernels", "backend", "linalg", "distances", "swap", "images",
        "protocols", "features", "statistics", "metrics", "evaluation", "rewards", "api", "cli", "__main__",
    ),
    "sit_rl": (
        "files", "ranks", "command_line", "models", "sampling", "ema", "reward_names", "options", "config",
        "config_files", "presets", "learner", "components", "reward", "rollout", "estimators", "runs", "generation",
        "report", "compare", "training", "pretraining", "sample", "evaluate", "pretrain", "train", "study", "cli",
    ),
}  # fmt: skip

# Who judges, and what no judge may import, directly or through others.
MEASURES = (
    "sit_rl.training.held_out", "sit_rl.training.network_judge", "sit_rl.training.intervals_and_classes",
    "sit_rl.evaluate",
)  # fmt: skip
JUDGES = ("fastfid.evaluation", "fastfid.metrics", *MEASURES)
REWARDS = ("fastfid.rewards", "sit_rl.reward")
# What sit_rl reaches through few modules.  Moments are no distance yet.
DISTANCES = ("fastfid.distances", "fastfid.swap", "fastfid.metrics", "fastfid.evaluation")
MOMENTS = ("fastfid.distances.moments",)

MOST_LINES = 400
SOURCES = (".py", ".cpp", ".h", ".cu", ".cuh", ".sh")
# Files that are longer because they are one table, with the table's name.
TABLES: dict[str, str] = {}


def within(module, rooms_or_modules):
    """Whether a module is one of these, or lies in one of them."""
    return any(module == name or module.startswith(f"{name}.") for name in rooms_or_modules)


def shown(found):
    return "\n".join(f"{each.source} → {each.target}" for each in found)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_itself_through_others(package):
    edges = {(each.source, each.target) for each in imports(package) if not each.typing_only}
    assert circles({edge for edge in edges if edge[1].startswith(package)}) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_has_its_place(package):
    found = {room.partition(".")[2] for room in rooms(package)}
    assert found <= set(ROOMS[package]), found - set(ROOMS[package])
    assert len(set(ROOMS[package])) == len(ROOMS[package])


@pytest.mark.parametrize("package", PACKAGES)
def test_no_room_imports_one_above_it(package):
    height = {f"{package}.{room}": i for i, room in enumerate(ROOMS[package])}
    wrong = [
        each
        for (source, target), behind in arrows(package, typing_only=True).items()
        if height.get(source, 0) < height.get(target, 0)  # a room without a place fails the test above
        for each in behind
    ]
    assert not wrong, shown(wrong)


def test_fastfid_does_not_know_sit_rl():
    wrong = [each for each in imports("fastfid") if each.target.startswith("sit_rl")]
    assert not wrong, shown(wrong)


@pytest.mark.parametrize(
    ("targets", "doors"), [(("fastfid.rewards",), ("sit_rl.reward",)), (DISTANCES, ("sit_rl.reward", *MEASURES))]
)
def test_sit_rl_reaches_distances_through_few_doors(targets, doors):
    reaching = [each for each in imports("sit_rl") if within(each.target, targets) and not within(each.target, MOMENTS)]
    wrong = [each for each in reaching if not within(each.source, doors)]
    assert reaching and not wrong, shown(wrong)


def test_judges_do_not_know_rewards():
    below = {}
    for package in PACKAGES:
        for each in imports(package):
            if each.source != package:  # a package hands out public names; who imports one imports its module here
                below.setdefault(each.source, set()).add(each.target)
    judges = [module for package in PACKAGES for module in modules(package) if within(module, JUDGES)]
    assert judges
    for judge in judges:
        reached, waiting = set(), [judge]
        while waiting:
            module = waiting.pop()
            if module not in reached:
                reached.add(module)
                waiting += below.get(module, ())
        known = sorted(module for module in reached if within(module, REWARDS))
        assert not known, f"{judge} reaches {known}"


@pytest.mark.parametrize("folder", ("fastfid", "sit_rl", "csrc", "bench", "docs", "tests"))
def test_no_file_is_long_but_a_table(folder):
    listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / line for line in listed.splitlines() if line.endswith(SOURCES)]
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths if path.is_file()}
    long = {name: count for name, count in lines.items() if count > MOST_LINES and name not in TABLES}
    assert not long, "\n".join(f"{count:5} {name}" for name, count in sorted(long.items(), key=lambda pair: -pair[1]))


def test_no_test_file_imports_another():
    listed = subprocess.run(["git", "ls-files", "tests"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tests = [ROOT / line for line in listed.splitlines() if line.endswith(".py")]
    found = {
        f"{path.relative_to(ROOT)}: {line}"
        for path in tests
        if path.is_file()
        for line in re.findall(r"^(?:from|import) tests\.\S+", path.read_text(), re.MULTILINE)
        if not re.match(r"(?:from|import) tests\.(?:support|fuzz)\b", line)
    }
    assert not found, sorted(found)


def test_the_page_describes_every_room():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for package in PACKAGES:
        section = text.split(f"## Rooms of {package}")[1].split("\n## ")[0]
        cells = " ".join(re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE))
        described = set(re.findall(r"`(\w+)(?:/|\.py)`", cells))
        found = {room.partition(".")[2] for room in rooms(package)}
        assert described == found, described ^ found


def test_the_picture_has_every_room():
    picture = (ROOT / "docs" / "architecture.svg").read_text()
    for package in PACKAGES:
        for room in rooms(package):
            assert f">{room.partition('.')[2]}</text>" in picture, (
                f"draw it again: python -m docs.draw_architecture ({room})"
            )


# --- the reader itself -----------------------------------------------------------------------------------------------


def test_circles_and_floors():
    assert circles({("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")}) == [["a", "b", "c"]]
    assert circles({("a", "b"), ("b", "c"), ("a", "c")}) == []
    assert floors({"a", "b", "c", "d"}, {("a", "b"), ("b", "c"), ("a", "c")}) == {"a": 2, "b": 1, "c": 0, "d": 0}
    assert import_graph.without_implied({("a", "b"), ("b", "c"), ("a", "c")}) == {("a", "b"), ("b", "c")}
    with pytest.raises(ValueError, match="circles"):
        floors({"a", "b"}, {("a", "b"), ("b", "a")})


def test_every_way_to_import_is_read(tmp_path, monkeypatch):
    files = {
        "fastfid/__init__.py": "",
        "fastfid/api.py": "from fastfid.swap.engine import SwapEngine\n",
        "fastfid/swap/__init__.py": "",
        "fastfid/swap/engine.py": "import fastfid.runtime.hashes\n",
        "fastfid/runtime/__init__.py": "",
        "fastfid/runtime/hashes.py": "",
        "sit_rl/__init__.py": "",
        "sit_rl/direct.py": "from fastfid import SwapEngine\n",
        "sit_rl/attribute.py": "import fastfid\nfastfid.SwapEngine\n",
        "sit_rl/late.py": "def f():\n    from fastfid.runtime import hashes\n",
        "sit_rl/types_only.py": "if TYPE_CHECKING:\n    import sit_rl.late\nelse:\n    import sit_rl.direct\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(import_graph, "ROOT", tmp_path)
    cached = (import_graph.modules, import_graph.public_names, import_graph.imports)
    for function in cached:
        function.cache_clear()
    try:
        found = {*import_graph.imports("fastfid"), *import_graph.imports("sit_rl")}
    finally:
        monkeypatch.undo()
        for function in cached:
            function.cache_clear()
    assert found == {
        Import("fastfid.api", "fastfid.swap.engine", False),
        Import("fastfid.swap.engine", "fastfid.runtime.hashes", False),
        Import("sit_rl.direct", "fastfid.swap.engine", False),
        Import("sit_rl.attribute", "fastfid.swap.engine", False),
        Import("sit_rl.late", "fastfid.runtime.hashes", False),
        Import("sit_rl.types_only", "sit_rl.late", True),
        Import("sit_rl.types_only", "sit_rl.direct", False),
    }
    assert room_of("fastfid.swap.engine") == "fastfid.swap"
