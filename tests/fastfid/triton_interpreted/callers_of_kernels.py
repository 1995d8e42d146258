"""The functions of fastfid that call the kernels.

tests/fastfid/test_triton_values.py runs this file under Triton's interpreter, in a process of its own.
"""

from unittest import mock

import numpy as np
import pytest
import torch

from tests.support import triton_interpreter
from tests.support.pretend_cuda import pretended
from tests.support.triton_values import EPS, normal

triton_interpreter.install()

from fastfid import FeatureMoments, SwapEngine, backend, frechet_distance  # noqa: E402
from fastfid.linalg import iterative_roots  # noqa: E402
from fastfid.triton_kernels import ldl_logdet, moments, newton_schulz, plan_grams, project, rank_update  # noqa: E402


def counted(monkeypatch, module, name):
    """The calls of a launcher from now on, as a list that grows."""
    calls, launcher = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **options: calls.append(name) or launcher(*args, **options))
    return calls


@pytest.mark.parametrize("method", ["newton_schulz", "polar_express"])
@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-6), ("tf32", 1e-4)])
def test_trace_sqrt_product_goes_by_the_kernel(method, precision, tolerance, monkeypatch):
    # κ(M) < 4: what is left after the correction is float32's rounding, or that of tf32 squared
    products = counted(monkeypatch, newton_schulz, "fused_product")
    one = torch.eye(20, dtype=torch.float64) + 0.1 * torch.cov(normal(20, 80, seed=3))
    many = torch.stack([one, torch.eye(20).double()])
    exact = iterative_roots.trace_sqrt_product(one, many)
    terms = iterative_roots.trace_sqrt_terms(one, many, method, precision=precision, iterations=8, backend="triton")
    per_step = 3 if method == "newton_schulz" else 4  # less E and Z of the first step, where Z is the identity
    assert len(products) == 8 * per_step - 2
    torch.testing.assert_close(terms.trace, exact, rtol=tolerance, atol=0)
    assert (terms.residual < 1e-2).all()


@pytest.mark.parametrize("method", ["newton_schulz", "polar_express"])
def test_the_engine_takes_roots_by_the_kernels(method, monkeypatch):
    monkeypatch.setattr(
        "fastfid.swap.whole_matrices.PRODUCT_STEPS", {"newton_schulz": 8, "polar_express": 5}
    )  # it is slow
    updates = counted(monkeypatch, rank_update, "rank_update")
    products = counted(monkeypatch, newton_schulz, "fused_product")
    real, reference, added = normal(60, 7), normal(50, 7, seed=1), normal(3, 4, 7, seed=2)
    removed = torch.tensor([[0, 7, 9], [1, 2, 3], [8, 30, 49]])
    changes = {}
    for name in ("triton", "torch"):
        engine = SwapEngine(FeatureMoments.from_features(real), reference, backend=name, method=method)
        changes[name] = engine.change(removed, added)
        assert engine.report()["backend"] == name
        assert engine.report()["backend_why"] == "asked for"
        assert bool(updates) and bool(products)
    assert len(updates) == 1
    # the same steps in float32 from matrices of order one, traces of 7 roots
    torch.testing.assert_close(changes["triton"], changes["torch"], rtol=0, atol=7 * 20 * EPS)


@pytest.mark.parametrize("method", ["logdet", "newton_schulz", "polar_express"])
def test_auto_takes_the_kernels_on_a_cuda_device(method, monkeypatch):
    """The device is pretended (tests/pretend_cuda.py), its kernels are interpreted."""
    monkeypatch.setattr("fastfid.swap.whole_matrices.PRODUCT_STEPS", {"newton_schulz": 8, "polar_express": 5})
    obstacle = backend.triton_obstacle  # which the pretended device replaces
    monkeypatch.setattr(ldl_logdet, "factor_obstacle", lambda *_: "csrc/cuda runs on no pretended device")
    by_plan = [
        counted(monkeypatch, kernel, name)
        for kernel, name in ((plan_grams, "plan_grams"), (ldl_logdet, "ldl_logdet"), (project, "project"))
    ]
    launched = [*by_plan, counted(monkeypatch, newton_schulz, "fused_product")]
    real, reference, added = normal(60, 7), normal(50, 7, seed=1), normal(2, 3, 7, seed=2)
    removed = torch.tensor([[0, 7, 9], [1, 2, 3]])
    options = {"method": method, "tol": 1e-3}
    route = "cpp" if method == "logdet" else "torch"  # the kernels of log-determinants take the extension's weight plan
    plain = SwapEngine(FeatureMoments.from_features(real), reference, backend=route, **options).change(removed, added)
    with pretended() as cuda, mock.patch.object(backend, "triton_obstacle", obstacle):
        engine = SwapEngine(FeatureMoments.from_features(real.to(cuda)), reference.to(cuda), **options)
        change = engine.change(removed.to(cuda), added.to(cuda))
        report = engine.report()
        assert change.device == cuda
        change = change.cpu()
    assert (report["backend"], report["backend_why"]) == ("triton", "data on cuda:0")
    assert [bool(calls) for calls in launched] == 3 * [method == "logdet"] + [method != "logdet"]
    # float32 rows and products of order one, 7 roots
    torch.testing.assert_close(change, plain, rtol=0, atol=7 * 20 * EPS)


@pytest.mark.parametrize("dtype", moments.DTYPES)
def test_feature_moments_go_by_the_kernel(dtype, monkeypatch):
    calls = counted(monkeypatch, moments, "centred_moments")
    x, others = (normal(n, 9, seed=n).to(dtype) * 3 + 20 for n in (130, 77))
    whole = FeatureMoments.from_features(torch.cat([x, others]), {"extractor": "e"})
    fused = FeatureMoments.from_features(x, {"extractor": "e"}, kernel="triton")
    kept = fused.cov
    mixed = fused.copy().update(others[:30]).update(others[30:], kernel="triton")  # and rows that wait in the buffer
    fused.update(others, kernel="triton").update(others[:0], kernel="triton")
    assert calls and torch.equal(kept, FeatureMoments.from_features(x, kernel="triton").cov)
    size = whole.cov.diagonal().sqrt()
    for made in (fused, mixed):
        assert made.count == whole.count == 207 and made.provenance == whole.provenance
        # entries of order one a product, 207 of random sign in float32, over 206
        assert ((made.cov - whole.cov).abs() <= 16 * EPS * size[:, None] * size).all()
        torch.testing.assert_close(made.mean, whole.mean, rtol=0, atol=16 * EPS * size.max().item())
    assert frechet_distance(fused, whole) < 1e-6
    assert torch.equal(fused.cov, fused.cov.T)
    fused.update(x)  # the buffer takes over
    assert fused.count == 337 and torch.equal(kept, FeatureMoments.from_features(x, kernel="triton").cov)


def test_feature_moments_by_the_kernel_refuse_what_it_lacks():
    x = normal(5, 3)
    with pytest.raises(ValueError, match="x must be float32, float16 or bfloat16, got torch.float64; kernel='torch'"):
        FeatureMoments.from_features(x, kernel="triton")
    with pytest.raises(ValueError, match="kernel='triton' carries no gradient; detach"):
        FeatureMoments.from_features(x.float().requires_grad_(), kernel="triton")
    with pytest.raises(ValueError, match="kernel must be 'torch' or 'triton', got 'cuda'"):
        FeatureMoments.empty(3).update(x, kernel="cuda")


def test_wide_changes_say_who_factors_them():
    real, reference = normal(400, 5), normal(300, 5, seed=1)
    engine = SwapEngine(FeatureMoments.from_features(real), reference, backend="triton", tol=1e-3)
    engine.change(torch.arange(70)[None], normal(1, 70, 5, seed=2))
    why = engine.report()["backend_why"]
    assert "140 rows exceed a program's 128" in why and "torch's Cholesky, as data lives on cpu" in why


@pytest.mark.parametrize("m_r, m_a", [(3, 4), (0, 2), (5, 0)])
def test_the_engine_scores_the_same_through_the_kernel(m_r, m_a):
    rng = np.random.default_rng(m_r)
    real, reference, added = (rng.standard_normal(shape) for shape in ((60, 7), (50, 7), (2, m_a, 7)))
    removed = np.stack([rng.permutation(50)[:m_r] for _ in range(2)])
    moments_of_real = real.mean(0), np.cov(real.T)
    changes = {}
    for name in ("triton", "cpp"):  # which take the same weight plan
        engine = SwapEngine(moments_of_real, reference, backend=name, tol=1e-3)  # few nodes: the interpreter is slow
        changes[name] = engine.change(removed, added)
        assert engine.report()["backend"] == name
    # both sum the same float32 rows; a change of about 0.1 is made of terms of order one
    torch.testing.assert_close(changes["triton"], changes["cpp"], rtol=0, atol=20 * EPS)
