"""What must hold before a GPU is there: older compilers, missing tools, one stream, whole graphs, install hints."""

import ast
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from sit_rl.models import attention
from sit_rl.models.sit import SiT, SiTConfig
from sit_rl.ranks import cpu_batches
from tests.support import gpus

ROOT = Path(__file__).parents[1]
RIVALS = {"prdc", "torch_fidelity", "torchmetrics", "pytorch_fid", "cleanfid", "sklearn", "timm", "diffusers"}


@pytest.mark.parametrize("said, expected", [
    ("Cuda compilation tools, release 13.0, V13.0.88", "80-real;90-real;100-real;120-real;120-virtual"),
    ("Cuda compilation tools, release 12.8, V12.8.93", "80-real;90-real;100-real;120-real;120-virtual"),
    ("Cuda compilation tools, release 12.6, V12.6.20", "80-real;90-real;90-virtual"),
    ("Cuda compilation tools, release 11.5, V11.5.50", "80-real;80-virtual"),
    ("Cuda compilation tools, release 10.2, V10.2.89", ""),
    ("command not understood", ""),
])  # fmt: skip
def test_nvcc_gets_the_architectures_that_it_knows(tmp_path, said, expected):
    """nvcc below 12.8 does not know sm_100, and the whole installation would end."""
    if not shutil.which("cmake"):
        pytest.skip("cmake is not installed: pip install cmake")
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho '{said}'\n")
    nvcc.chmod(0o755)
    script = tmp_path / "ask.cmake"
    architectures = ROOT / "csrc" / "cuda" / "architectures.cmake"
    script.write_text(f'include({architectures})\nfastfid_cuda_architectures({nvcc} found)\nmessage("<${{found}}>")\n')
    done = subprocess.run(["cmake", "-P", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == f"<{expected}>"


def imported(path):
    """Modules that a file of the repository imports when it is imported, with those of its own imports."""
    tree, names = ast.parse(path.read_text()), set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    for name in [name for name in names if name.startswith("bench.")]:
        inner = ROOT / f"{name.replace('.', '/')}.py"
        names |= imported(inner) if inner.exists() else set()
    return names


@pytest.mark.parametrize("path", sorted((ROOT / "bench").glob("bench_*.py")), ids=lambda path: path.stem)
def test_a_benchmark_is_collected_without_its_rivals(path):
    assert not {name.split(".")[0] for name in imported(path)} & RIVALS


def test_the_second_stream_of_a_device_is_always_the_same(monkeypatch):
    """The allocator keeps the free memory of every stream apart: a stream a call would reserve it again each time."""
    made = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(device) or SimpleNamespace(device=device))
    cpu_batches.second_stream.cache_clear()
    try:
        lanes = [cpu_batches.second_stream(torch.device("cuda", i), "decode") for i in (0, 1, 0, 0)]
        other = cpu_batches.second_stream(torch.device("cuda", 0), "reward")
    finally:
        cpu_batches.second_stream.cache_clear()
    assert len(made) == 3 and lanes[0] is lanes[2] is lanes[3] is not lanes[1] and other not in lanes


def flash_attn_func(q, k, v, softmax_scale=None, causal=False):
    """Stands in for a flash package's function."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), scale=softmax_scale).transpose(1, 2)


@pytest.mark.parametrize("backend", ["sdpa", "flash-attn-4"])
def test_a_compiled_block_is_one_graph(monkeypatch, backend):
    """A break sends a block that is recomputed in the backward pass to eager code."""
    package = types.ModuleType("flash_attn.cute")
    package.flash_attn_func = flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn.cute", package)
    monkeypatch.setattr(attention, "_FUNCTIONS", {})
    model = SiT(SiTConfig(image_size=8, width=32, depth=1, heads=2, num_classes=4))
    model.set_attention(backend)
    x, c = torch.randn(2, 16, 32), torch.randn(2, 32)

    def block(x, c):
        with torch.autocast("cpu", torch.bfloat16):
            return model.blocks[0](x, c)

    torch._dynamo.reset()
    found = torch._dynamo.explain(block)(x, c)
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


def test_gpus_are_hidden_unless_asked_for(monkeypatch, tmp_path):
    """Also under xdist, whose workers do not see the command's arguments."""
    items = [SimpleNamespace(path=Path(name)) for name in ("tests/test_gpu.py", "tests/test_x.py")]
    (tmp_path / "0000:01:00.0").touch()
    monkeypatch.delenv(gpus.VARIABLE, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    gpus.hide()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and gpus.split(items) == (items, [])
    assert gpus.unused(tmp_path).startswith("1 NVIDIA GPU(s) were hidden") and not gpus.unused(tmp_path / "none")
    monkeypatch.setenv(gpus.VARIABLE, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    gpus.hide()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0" and gpus.split(items) == (items[:1], items[1:])
    assert not gpus.unused(tmp_path)


def test_install_hints_name_extras_that_exist():
    text = (ROOT / "pyproject.toml").read_text()
    extras = set(re.findall(r"^(\w+) = \[", text.split("[project.optional-dependencies]")[1].split("\n[")[0], re.M))
    assert {"flash", "flash4", "cupy"} <= extras and '"triton>=' in text
    hints = [package.install for package in attention.FLASH.values() if package.install.startswith("pip")]
    assert len(hints) == 2 and {hint.split("fastfid[")[1].rstrip("]'") for hint in hints} <= extras
    assert "--no-build-isolation" in attention.FLASH["flash-attn-2"].install
