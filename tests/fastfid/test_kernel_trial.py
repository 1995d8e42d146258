"""Kernels are tried on a device before they are trusted, once, and a failure is told and remembered."""

from types import SimpleNamespace

import pytest
import torch

from fastfid import SwapEngine, backend, triton_kernels
from fastfid.triton_kernels import trial
from tests.support.pretend_cuda import pretended
from tests.support.swap_sets import make, moments

pytest.importorskip("triton", reason="the kernels need triton: pip install triton")
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)

LAUNCHERS = {
    "plan_grams": "plan_grams",
    "ldl_logdet": "ldl_logdet",
    "centre_sums": "centre_sums",
    "project": "project",
    "moments": "centred_moments",
    "rank_update": "rank_update",
    "newton_schulz": "iterates",
}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A pretended H100 whose kernels are their references; gives the kernels' modules and the cache's folder."""
    monkeypatch.setenv("FASTFID_CACHE", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    properties = SimpleNamespace(name="NVIDIA H100", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        trial, "_normal", lambda device, *shape, seed=0, real=trial._normal: real(CPU, *shape, seed=seed)
    )
    tried = []
    for name in triton_kernels.KERNELS:
        case = trial._CASES[name]
        monkeypatch.setitem(trial._CASES, name, lambda device, n=name, c=case: tried.append(n) or c(CPU))
    for name, launcher in LAUNCHERS.items():
        module = triton_kernels.load(name)
        monkeypatch.setattr(module, launcher, getattr(module, f"{launcher}_ref"))
    trial.obstacle.cache_clear()
    yield SimpleNamespace(folder=tmp_path, tried=tried, properties=properties)
    trial.obstacle.cache_clear()


def test_every_kernel_is_tried_once_for_a_device_and_its_compiler(machine, monkeypatch):
    assert trial._CASES.keys() == set(triton_kernels.KERNELS)
    assert trial.obstacle(CUDA) == "" and machine.tried == list(triton_kernels.KERNELS)
    trial.obstacle.cache_clear()  # as in another process
    assert trial.obstacle(CUDA) == "" and len(machine.tried) == len(triton_kernels.KERNELS)
    files = {trial.cache_file(CUDA)}
    machine.properties.name = "NVIDIA B200"
    files.add(trial.cache_file(CUDA))
    monkeypatch.setattr("triton.__version__", "99.0")
    files.add(trial.cache_file(CUDA))
    assert len(files) == 3


@pytest.mark.parametrize("failure", ["wrong", "nan", "raises"])
def test_a_kernel_that_fails_is_not_used_and_told(machine, monkeypatch, capsys, failure):
    kernel = launcher = "rank_update"
    module = triton_kernels.load(kernel)
    right = getattr(module, launcher)

    def broken(*given):
        if failure == "raises":
            raise RuntimeError("PTXAS error:\n no such instruction")
        return right(*given) * (float("nan") if failure == "nan" else 1.001)

    monkeypatch.setattr(module, launcher, broken)
    verdict = trial.obstacle(CUDA)
    expected = (
        "RuntimeError: PTXAS error: no such instruction" if failure == "raises" else f"the kernel {kernel} is wrong"
    )
    assert expected in verdict and kernel in verdict
    said = capsys.readouterr().err
    assert said.startswith(f"fastfid: {verdict}; torch computes instead (remembered in {machine.folder}")
    trial.obstacle.cache_clear()
    assert trial.obstacle(CUDA) == verdict and capsys.readouterr().err == said  # from the file
    assert backend.triton_obstacle(CUDA, torch.float32, False) == verdict


def test_the_engine_falls_back_to_torch_and_reports_why(monkeypatch):
    real, reference, removed, added = make()
    monkeypatch.setattr(trial, "obstacle", lambda device: "the kernel moments is wrong")
    obstacle = backend.triton_obstacle
    with pretended() as cuda, pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "triton_obstacle", obstacle)
        patch.setattr(triton_kernels, "interpreted", lambda: False)
        mean, cov = moments(real)
        engine = SwapEngine((mean.to(cuda), cov.to(cuda)), torch.from_numpy(reference).to(cuda))
        engine.change(torch.from_numpy(removed).to(cuda), torch.from_numpy(added).to(cuda))
        report = engine.report()
    assert (report["backend"], report["backend_why"]) == ("torch", "the kernel moments is wrong")


def test_a_cache_that_cannot_be_read_or_written_is_no_error(machine, monkeypatch):
    path = trial.cache_file(CUDA)
    path.write_text("{")
    assert trial.obstacle(CUDA) == "" and len(machine.tried) == len(triton_kernels.KERNELS)
    file = machine.folder / "file"
    file.write_text("")
    monkeypatch.setenv("FASTFID_CACHE", str(file / "below"))
    trial.obstacle.cache_clear()
    assert trial.obstacle(CUDA) == ""


def test_a_full_device_says_nothing_of_a_kernel(machine, monkeypatch, capsys):
    def full(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_kernels.load("moments"), "centred_moments", full)
        assert "no memory was left for the trial" in trial.obstacle(CUDA)
    assert "in this process" in capsys.readouterr().err and not trial.cache_file(CUDA).exists()
    trial.obstacle.cache_clear()
    assert trial.obstacle(CUDA) == ""
