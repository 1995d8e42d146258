"""Calls on a pretended device: as many waits as promised, the CPU's numbers, its errors, memory as counted."""

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench import roofline
from fastfid import _C, RealFactor, SwapEngine
from fastfid.linalg import weight_plan
from fastfid.linalg.device_plan import DevicePlan
from fastfid.swap import device_calls, nodes
from fastfid.swap.by_plan import node_grams
from tests.support.kernel_stand_ins import stand_ins
from tests.support.pretend_cuda import Account, pretended
from tests.support.swap_sets import make, moments, rare


def on(device, real, reference, **options):
    mean, cov = moments(real)
    return SwapEngine((mean.to(device), cov.to(device)), torch.from_numpy(reference).to(device), **options)


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


@pytest.mark.parametrize("kind", ["change", "each", "one out", "only removed", "only added"])
def test_a_call_waits_once(kind):
    real, reference, removed, added = make(N=300, d=10, m_r=0 if kind == "only added" else 5,
                                           m_a=0 if kind == "only removed" else 5)  # fmt: skip
    out, rows = tensors(removed, added)
    account = Account()

    def call(engine, given):
        if kind == "one out":
            return engine.leave_one_out()
        return engine.change_each(*given) if kind == "each" else engine.change(*given)

    expected = call(on("cpu", real, reference), (out, rows))
    with pretended(account) as cuda:
        engine, given = on(cuda, real, reference), (out.to(cuda), rows.to(cuda))
        call(engine, given)  # makes nodes and their plan
        account.waits.clear()
        found = call(engine, given)
        waits = list(account.waits)
        found = found.cpu()
        report = engine.report()
    assert waits == ["tolist"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert {"project", "logdet"} <= report["seconds"].keys() and report["workspace"] == 2 << 30


@pytest.mark.parametrize("m_r, m_a", [(5, 5), (3, 8), (0, 4), (9, 2), (1, 2)])
def test_the_gradient_is_the_cpus(m_r, m_a):
    """In closed form on both: the extension's against the plan's Cholesky factors."""
    real, reference, removed, added = make(N=300, d=12, m_r=m_r, m_a=m_a)
    out, rows = tensors(removed, added)

    def gradient(device):
        given = rows.clone().to(device).requires_grad_()
        engine = on(device, real, reference, dtype=torch.float64)
        change = engine.change(out.to(device), given)
        (change * torch.arange(1, 5, device=device)).sum().backward()
        return given.grad.cpu(), change.detach().cpu()

    expected, account = gradient("cpu"), Account()
    with pretended(account) as cuda:
        found = gradient(cuda)
    assert not any("slogdet" in wait for wait in account.waits)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_rows_that_need_more_nodes_are_computed_again():
    """A result depends on its own rows, whatever the engine computed before."""
    real, reference, removed, added = make(N=300, d=10)
    out, small, large = tensors(removed, added, 100 * added)
    expected = on("cpu", real, reference).change(out, large)
    with pretended() as cuda:
        engine = on(cuda, real, reference)
        first = engine.change(out.to(cuda), large.to(cuda)).cpu()
        engine.change(out.to(cuda), small.to(cuda))
        again = engine.change(out.to(cuda), large.to(cuda)).cpu()
        assert engine.report()["node_range"][1] > 2 * engine.report()["lambda_max"]
    assert torch.equal(first, again)
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-4), (torch.float64, 2e-6)])
def test_rare_directions_are_computed_again(dtype, limit):
    real, reference, removed, added = rare(5, 5)
    out, rows = tensors(removed, added)
    expected = on("cpu", real, reference, dtype=torch.float64).change(out, rows)
    with pretended() as cuda:
        engine = on(cuda, real, reference, dtype=dtype)
        change = engine.change(out.to(cuda), rows.to(cuda))
        assert engine.report()["recomputed"] == 3
        change = change.cpu()
    torch.testing.assert_close(change, expected, rtol=0, atol=limit * float(expected.abs().max()))


def test_wrong_input_is_told_as_on_the_cpu():
    """A wrong index is not looked up: on a device that would end every later call."""
    real, reference, removed, added = make(N=120, d=12)
    cases = []
    for place, value in (((0, 0), 120), ((1, 2), -1), ((2, 1), removed[2, 0])):
        wrong = removed.copy()
        wrong[place] = value
        cases.append((wrong, added))
    for value in (np.nan, np.inf):
        rows = added.copy()
        rows[3, 1, 4] = value
        cases.append((removed, rows))
    engine = on("cpu", real, reference)
    with pretended() as cuda:
        device_engine = on(cuda, real, reference)
        for given in cases:
            sentences = []
            for used, device in ((engine, "cpu"), (device_engine, cuda)):
                with pytest.raises(ValueError) as raised:
                    used.change(*(x.to(device) for x in tensors(*given)))
                sentences.append(str(raised.value))
            assert sentences[0] == sentences[1]


def test_a_changed_reference_is_noticed():
    real, reference, removed, added = make(N=120, d=12)
    with pretended() as cuda:
        for call in ("change", "change_each"):
            engine = on(cuda, real, reference)
            engine.prepared.rows.mul_(30)
            engine.prepared.projected.mul_(30)
            with pytest.raises(ValueError, match="its rows are not part of the reference as prepared"):
                getattr(engine, call)(*(x.to(cuda) for x in tensors(removed, added)))


def test_a_call_launches_as_little_as_the_roofline_says():
    real, reference, removed, added = make(N=300, d=12)
    out, rows = tensors(removed, added.astype(np.float32))
    account = Account()
    with pretended(account) as cuda, stand_ins():
        engine, given = on(cuda, real, reference), (out.to(cuda), rows.to(cuda))
        engine.change(*given)
        account.waits.clear()
        account.launches = 0
        engine.change(*given)
        found = account.launches
        waits = list(account.waits)
    assert waits == ["tolist"] and 20 < found <= roofline.LAUNCHES


class Memory(TorchDispatchMode):
    """The largest number of bytes of tensors that were made in this block and are alive at one time."""

    def __init__(self):
        super().__init__()
        self.most, self.alive = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        self.alive = {key: held for key, held in self.alive.items() if not held[0].expired()}
        for x in (x for x in tree_leaves(out) if isinstance(x, torch.Tensor)):
            storage = x.untyped_storage()
            if storage._cdata not in given:
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return out


@pytest.mark.parametrize("m_r, m_a, d", [(8, 8, 96), (20, 4, 40), (1, 1, 64)])
def test_chunks_are_as_many_as_fit(m_r, m_a, d):
    real, reference, removed, added = make(N=400, d=d, m_r=m_r, m_a=m_a, batch=12)
    out, rows = tensors(removed, added)
    sizes, inner = [], device_calls._enqueued

    def counted(candidates, *rest):
        sizes.append(len(candidates))
        return inner(candidates, *rest)

    with pretended() as cuda, pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_calls, "_enqueued", counted)
        whole = on(cuda, real, reference).change(out.to(cuda), rows.to(cuda)).cpu()
        parts = on(cuda, real, reference, workspace=1).change(out.to(cuda), rows.to(cuda)).cpu()
    assert sizes == [12, *[1] * 12]
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_plan_on_a_device_is_the_cpus(dtype):
    """One plan object for all routes: Gram matrices of the nodes by it against those of the weights themselves."""
    assert (weight_plan.SLICE, weight_plan.SPAN) == (_C.SLICE, _C.SPAN)
    spectrum, tau = np.geomspace(1, 1e-6, 700)[::-1].copy(), np.geomspace(1e-3, 1, 9)
    name = np.dtype(str(dtype).removeprefix("torch."))
    plan = weight_plan.weight_plan(spectrum, tau, 1e-6, weight_plan.SLICE, weight_plan.SPAN, name)
    device_plan = DevicePlan.of(plan, torch.device("cpu"))
    assert len(device_plan) == plan.terms.sum() and device_plan.combine.shape == (9, len(device_plan))
    w = (
        torch.randn(2, 5, 700, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        * torch.from_numpy(spectrum).sqrt()
    )
    weights = 1 / (torch.from_numpy(spectrum) + torch.from_numpy(tau)[:, None] ** 2)
    expected = (w[:, None] * weights[:, None]) @ w[:, None].mT
    found = node_grams(w.to(dtype), device_plan, by_triton=False).double()
    size = expected.diagonal(dim1=2, dim2=3).sqrt()
    assert ((found - expected).abs() <= 4e-6 * size[..., None] * size[..., None, :]).all()


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("m_r, m_a, d", [(8, 8, 96), (20, 4, 40), (1, 1, 64)])
def test_memory_is_what_is_counted(m_r, m_a, d, needs_grad):
    """A chunk takes at most the bytes that its size was chosen by, and at least a quarter of them."""
    if needs_grad and max(m_r, m_a) == 1:
        pytest.skip("single images' gradients are autograd's")
    real, reference, removed, added = make(N=400, d=d, m_r=m_r, m_a=m_a, batch=24)
    out, rows = tensors(removed, added.astype(np.float32))
    told = []
    count = device_calls.bytes_per_candidate
    with pretended() as cuda, pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_calls, "bytes_per_candidate", lambda *args: told.append(count(*args)) or told[-1])
        engine, given = on(cuda, real, reference), (out.to(cuda), rows.to(cuda).requires_grad_(needs_grad))
        engine.change(*given)
        with Memory() as memory:
            engine.change(*given)
    allowed = 24 * told[-1]
    assert allowed / 4 <= memory.most <= allowed


def test_the_host_may_decompose_a_devices_reference(monkeypatch):
    """Of a regular and of a singular spectrum: the same numbers, by a matrix in host memory."""
    places = []
    for name in ("eigh", "svd"):
        solve = getattr(torch.linalg, name)
        monkeypatch.setattr(
            torch.linalg, name, lambda x, *rest, f=solve, **kw: places.append(x.device) or f(x, *rest, **kw)
        )
    for kind in ("plain", "constant in reference"):
        real, reference, removed, added = make(kind)
        out, rows = tensors(removed, added)
        expected = on("cpu", real, reference, dtype=torch.float64).change(out, rows)
        with pretended() as cuda:
            mean, cov = moments(real)
            factor = RealFactor((mean.to(cuda), cov.to(cuda)))
            places.clear()
            engine = SwapEngine(factor, torch.from_numpy(reference).to(cuda), dtype=torch.float64, eigensolver="host")
            assert {place.type for place in places} == {"cpu"} and engine.prepared.spectrum.device == cuda
            found = engine.change(out.to(cuda), rows.to(cuda)).cpu()
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    with pytest.raises(ValueError, match="eigensolver must be one of device, host, got 'gpu'"):
        on("cpu", real, reference, eigensolver="gpu")


def test_a_reference_that_was_made_ready_needs_no_plan_in_a_call(monkeypatch):
    """Of subsets and of single images, swapped and left out: the same numbers as without."""
    made, plan = [], nodes.weight_plan
    monkeypatch.setattr(nodes, "weight_plan", lambda *arguments: made.append(arguments) or plan(*arguments))
    real, reference, removed, added = make(N=300, d=10)
    out, rows = tensors(removed, added)
    found = []
    with pretended() as cuda:
        given = out.to(cuda), rows.to(cuda)
        for ready in (False, True):
            engine = on(cuda, real, reference)
            if ready:
                engine.ready_for(out.shape[1], 1)
            count = len(made)
            found.append([engine.change(*given).cpu(), engine.change_each(*given).cpu(), engine.leave_one_out().cpu()])
            assert len(made) - count == (0 if ready else 2)
        assert engine.report()["seconds"]["plan"] > 0
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
    lost = SwapEngine(moments(real), reference[:5]).ready_for(2)  # a singular spectrum waits for the new rows
    assert len(made) == 4 and lost.report()["nodes"] == 0
