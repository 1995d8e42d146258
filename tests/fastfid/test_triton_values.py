"""Values of the Triton kernels: a process under Triton's interpreter, and here their references and their errors.

Triton reads TRITON_INTERPRET when a kernel is defined, and an interpreted kernel cannot be compiled in the same
process.  So the files of triton_interpreted/ run in a child process, and test_triton_compile.py compiles in another.
"""

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

import fastfid.triton_kernels as kernels
from fastfid import backend
from fastfid.linalg.iterative_roots import trace_sqrt_product
from fastfid.swap import routes

HERE = Path(__file__).resolve().parent
INTERPRETED = sorted((HERE / "triton_interpreted").glob("*.py"))


def module(name):
    pytest.importorskip("triton", reason="the GPU kernels need triton: pip install triton")
    return kernels.load(name)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_values_under_the_interpreter():
    pytest.importorskip("triton", reason="the GPU kernels need triton: pip install triton")
    command = [sys.executable, "-m", "pytest", "-q", "--durations=5", "-p", "no:cacheprovider", *map(str, INTERPRETED)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    child = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True)
    print(child.stdout.splitlines()[-1] if child.stdout else "no output")
    assert child.returncode == 0, f"{child.stdout}\n{child.stderr}"


def test_loading_without_triton_names_the_remedy(monkeypatch):
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install triton"):
        kernels.load("plan_grams")
    with pytest.raises(ValueError, match="name must be one of plan_grams, .* got 'gemm'"):
        kernels.load("gemm")


# ----------------------------------------------------------------------------------------------------------- references


def test_logdet_reference_is_slogdet():
    w = torch.cat([0.05 * normal(3, 4, 20), normal(3, 6, 20, seed=1)], 1)
    weights = 1 / (torch.linspace(0.2, 2, 20).double() + torch.tensor([[0.09], [1.0]]).double())
    grams = (w[:, None] * weights[:, None]) @ w[:, None].mT
    logdets, remaining = module("ldl_logdet").ldl_logdet_ref(grams, 4)
    signs = torch.cat([-torch.ones(4), torch.ones(6)]).double().diag()
    torch.testing.assert_close(logdets, torch.linalg.slogdet(signs + grams).logabsdet, rtol=1e-13, atol=1e-13)
    left = torch.linalg.eigvalsh(torch.eye(4).double() - grams[:, 0, :4, :4])[:, 0]
    torch.testing.assert_close(remaining, left, rtol=1e-13, atol=1e-13)


def test_gram_and_row_references_are_their_definitions():
    w, functions = normal(2, 3, 7), normal(9, seed=1)
    places = torch.tensor([0, 2]), torch.tensor([4, 7]), torch.tensor([0, 4])
    found = module("plan_grams").plan_grams_ref(w, functions, *places)
    for f, positions in enumerate((range(4), range(2, 7))):
        terms = [functions[4 * f + i] * w[:, :, p, None] * w[:, None, :, p] for i, p in enumerate(positions)]
        torch.testing.assert_close(found[:, f], sum(terms), rtol=1e-13, atol=1e-13)
    x, mean = normal(4, 3, seed=2), normal(3, seed=3)
    projected = module("project").project_ref(x, mean, normal(3, 5))
    torch.testing.assert_close(projected, torch.stack([(row - mean) @ normal(3, 5) for row in x]), rtol=1e-13, atol=0)
    sums = module("centre_sums").centre_sums_ref(x[None, :2], x, torch.tensor([[3]]), mean, mean)
    torch.testing.assert_close(sums.total[0], x[:2].sum(0) - x[3] - mean, rtol=1e-13, atol=1e-13)
    assert sums.norm_added.item() == pytest.approx(float((x[:2] - mean).square().sum()))


def test_moment_references_are_torchs():
    moments = module("moments")
    x, old = normal(30, 5) + 7, normal(12, 5, seed=1)
    count, mean, cov = moments.update_moments_ref(12, old.mean(0), torch.cov(old.T), x)
    assert count == 42
    torch.testing.assert_close(mean, torch.cat([old, x]).mean(0), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(cov, torch.cov(torch.cat([old, x]).T), rtol=1e-12, atol=1e-12)


def test_rank_update_reference_is_the_changed_matrix():
    w_r, w_a, matrix = normal(2, 3, 8), normal(2, 4, 8, seed=1), torch.eye(8).double()
    changed = module("rank_update").rank_update_ref(matrix, w_r, w_a, torch.tensor([1.0, 0.5]))
    for b, c in enumerate((1.0, 0.5)):
        signed = sum(s * torch.outer(v, v) for s, w in ((-1, w_r[b]), (1, w_a[b])) for v in w)
        torch.testing.assert_close(changed[b], c * (matrix + signed), rtol=1e-13, atol=1e-13)


def test_newton_schulz_reference_is_the_root():
    samples = normal(3, 40, 12)
    matrices = samples.mT @ samples
    matrices = matrices / torch.linalg.matrix_norm(matrices)[:, None, None]
    expected = torch.linalg.eigvalsh(matrices).sqrt().sum(-1)
    *_, (y, _, _) = module("newton_schulz").iterates_ref(matrices, [(1.5, -0.5, 0.0)] * 25)
    torch.testing.assert_close(y.diagonal(dim1=1, dim2=2).sum(-1), expected, rtol=1e-12, atol=0)


# --------------------------------------------------------------------------------------------------------------- errors


def test_errors_name_argument_value_and_remedy():
    grams, ldl, project, moments = map(module, ("plan_grams", "ldl_logdet", "project", "moments"))
    first, narrow = torch.zeros(1, dtype=torch.int32), torch.zeros(2, 3, 10)[..., ::2]
    rank, newton = module("rank_update"), module("newton_schulz")
    w, one = torch.zeros(2, 3, 5), torch.ones(5)
    wrong = [
        (lambda: grams.plan_grams(narrow, one, first, first, first), r"w must be \[b, k, r\] float32 with contiguous"),
        (lambda: grams.plan_grams(w.double(), one, first, first, first), "torch.float64 .* use the torch backend"),
        (lambda: grams.plan_grams(torch.zeros(1, 129, 2), one, first, first, first), "129 rows .* a program takes 128"),
        (lambda: grams.plan_grams(w, one, first, first[:0], first), r"first, stop, offset \[F\].*\(0,\)"),
        (lambda: ldl.ldl_logdet(w, 1), r"grams must be \[b, Q, k, k\] float32, got \(2, 3, 5\)"),
        (lambda: ldl.ldl_logdet(torch.zeros(1, 1, 3, 3), 4), r"m_r must lie in \[0, 3\].*got 4"),
        (lambda: project.project(w[0], one[:4].double(), w[0].T), r"x must be \[n, d\], mean \[d\].*\(3, 5\), \(4,\)"),
        (lambda: project.project(w[0].double(), one.double(), w[0].T), "x must be float32, .* got torch.float64"),
        (lambda: moments.centred_moments(w, one), r"x must be \[n, d\] and centre \[d\]"),
        (lambda: moments.centred_moments(w[0].double(), one), "x must be float32, float16 or bfloat16"),
        (lambda: moments.update_moments(-1, one, one, w[0]), "count must be at least 0, got -1"),
        (lambda: rank.rank_update(w[0], w, w), r"matrix must be \[n, n\], got \(3, 5\)"),
        (lambda: rank.rank_update(torch.eye(4), w, w), r"w_r must be \[b, m, 4\]"),
        (lambda: rank.rank_update(torch.eye(5), w, w, torch.ones(3)), r"scale must be a number or \[2\], got \(3,\)"),
        (lambda: newton.fused_product(w, w), r"p must be \[b, n, n\]"),
        (lambda: newton.fused_product(w[:, :, :3], w[:, :, :3], precision="bf16"), "p must be torch.bfloat16 for"),
        (lambda: newton.fused_product(w[:, :, :3], w), r"q must be \[b, n, n\] as p, got \(2, 3, 5\)"),
        (lambda: next(newton.iterates(w, [])), r"matrix must be \[b, n, n\], got \(2, 3, 5\)"),
        (lambda: next(newton.iterates(w[:, :, :3], [], "fp8")), "precision must be one of ieee, .*, got fp8"),
        (lambda: next(newton.iterates(w[:, :, :3].double(), [])), "matrix must be torch.float32 .*, got torch.float64"),
    ]
    for call, message in wrong:
        with pytest.raises(ValueError, match=message):
            call()


def test_host_memory_is_refused_unless_interpreted(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    w, one = torch.zeros(2, 3, 5), torch.ones(5)
    calls = [
        lambda: module("ldl_logdet").ldl_logdet(torch.zeros(1, 1, 3, 3), 1),
        lambda: module("project").project(w[0], one.double(), w[0].T),
        lambda: module("moments").centred_moments(w[0], one),
        lambda: module("rank_update").rank_update(torch.eye(5), w, w),
        lambda: next(module("newton_schulz").iterates(w[:, :, :3], [(1.5, -0.5, 0.0)])),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="is on cpu, where Triton has no compiler; .* take torch's route"):
            call()


# ------------------------------------------------------------------------------------------------ who calls the kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    "requested, device, method, precision, name, why",
    [
        ("auto", CUDA, "newton_schulz", "float32", "triton", "data on cuda:0"),
        ("auto", CUDA, "polar_express", "tf32", "triton", "data on cuda:0"),
        ("auto", CUDA, "newton_schulz", "bfloat16", "torch", "the fused product has no bfloat16"),
        ("auto", CUDA, "newton_schulz", "float64", "torch", "the fused product has no float64"),
        ("auto", CUDA, "eigh", "float32", "torch", "eigenvalues are left to torch"),
        ("auto", CPU, "newton_schulz", "float32", "torch", "data lives on cpu"),
        ("cpp", CPU, "newton_schulz", "float32", "torch", "data lives on cpu"),
        ("torch", CUDA, "newton_schulz", "float32", "torch", "asked for"),
        ("triton", CUDA, "newton_schulz", "float32", "triton", "asked for"),
    ],
)
def test_products_go_where_they_can(requested, device, method, precision, name, why, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert backend.choose_products(requested, device, method, precision) == (name, why)


def test_products_asked_of_triton_in_vain(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="backend='triton' cannot be used: data lives on cpu; pass backend='auto'"):
        trace_sqrt_product(torch.eye(3), torch.eye(3), "newton_schulz", backend="triton")
    with pytest.raises(ValueError, match="cannot be used: the fused product has no float64"):
        backend.choose_products("triton", CUDA, "newton_schulz", "float64")
    with pytest.raises(ValueError, match="cannot be used: added rows require a gradient"):
        backend.choose_products("triton", CUDA, "newton_schulz", "float32", needs_grad=True)
    with pytest.raises(ValueError, match="backend must be one of auto, torch, triton, got 'cpp'"):
        trace_sqrt_product(torch.eye(3), torch.eye(3), "newton_schulz", backend="cpp")


def test_the_cuda_factor_is_left_where_it_cannot_serve(monkeypatch):
    swap = module("ldl_logdet")
    monkeypatch.setattr(swap, "_cuda_kernel", lambda: object())
    block = mock.Mock(shared_memory_per_block_optin=163 << 10)  # an A100's
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: block)
    assert swap.factor_obstacle(256, torch.float32, CUDA) == ""
    assert swap.factor_obstacle(199, torch.float64, CUDA) == ""
    assert swap.factor_obstacle(256, torch.float64, CUDA) == (
        "256 rows need 270336 bytes of shared memory and a block has 166912"
    )
    assert swap.factor_obstacle(257, torch.float32, CUDA) == "257 rows exceed the CUDA kernel's 256"
    assert swap.factor_obstacle(200, torch.float32, CPU) == "data lives on cpu"
    why = routes.choose("auto", CUDA, rank=200).why
    assert why == "data on cuda:0; 200 rows exceed a program's 128: Gram matrices by torch, factors by csrc/cuda"
    monkeypatch.setattr(swap, "_cuda_kernel", lambda: None)
    assert "torch's Cholesky, as fastfid._C was built without CUDA" in routes.choose("auto", CUDA, rank=200).why
