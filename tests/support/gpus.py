"""GPUs are hidden from tests unless FASTFID_TEST_GPU=1, with which only tests/test_gpu.py runs (tests/conftest.py)."""

import os
from pathlib import Path

VARIABLE = "FASTFID_TEST_GPU"
GPU_TESTS = "test_gpu.py"
DRIVER = Path("/proc/driver/nvidia/gpus")  # asking torch would need CUDA, which is hidden


def wanted() -> bool:
    return os.environ.get(VARIABLE, "0") not in ("", "0")


def hide() -> None:
    """Before CUDA is first asked for."""
    if not wanted():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def split(items):
    """(tests that run, tests that do not) of those that pytest collected."""
    if not wanted():
        return items, []
    shown = [item for item in items if item.path.name == GPU_TESTS]
    return shown, [item for item in items if item.path.name != GPU_TESTS]


def unused(folder: Path = DRIVER) -> str:
    """A line for the end of a run that left a GPU unused, or an empty string."""
    count = len(list(folder.iterdir())) if folder.is_dir() and not wanted() else 0
    return f"{count} NVIDIA GPU(s) were hidden from these tests: {VARIABLE}=1 pytest tests/{GPU_TESTS}" * bool(count)
