"""What only a GPU can show: kernels run on it, values as on the CPU, a training, NCCL.

On a machine with an NVIDIA GPU, which tests/conftest.py hides from the tests otherwise:

    FASTFID_TEST_GPU=1 pytest tests/test_gpu.py
    FASTFID_TEST_GPU=1 compute-sanitizer --tool memcheck python -m pytest tests/test_gpu.py -k kernel
                                                                     also: --tool racecheck
"""

import json
import math
import subprocess
import sys
import warnings

import pytest
import torch

import fastfid
from fastfid import FeatureMoments, SwapEngine, triton_kernels
from fastfid.runtime.devices import as_tensor
from fastfid.triton_kernels import trial
from sit_rl import train
from sit_rl.models import attention
from sit_rl.models.sit import SiT, SiTConfig
from sit_rl.ranks.background import BackgroundWorker
from sit_rl.runs.log import Clock
from tests.support.device_cases import ADDED, ENGINE, METRICS, REAL, REFERENCE, REMOVED, engine_on

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs an NVIDIA GPU: FASTFID_TEST_GPU=1 pytest tests/test_gpu.py"
)
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
several = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
EPS = 2.0**-24  # rounding of float32
SLACK = 1e-3


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(CUDA, dtype)


# --- fastfid on a device -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", [*ENGINE, *METRICS])
def test_torchs_routes_give_the_cpus_numbers(route, tmp_path):
    compute = (ENGINE | METRICS)[route]
    expected, found = compute(CPU, tmp_path), compute(CUDA, tmp_path)
    if isinstance(found, torch.Tensor):
        assert found.device == CUDA
        found = found.detach().cpu()
    # float32 rows, and covariances of rank below d, have fewer digits than 1e-6 of the distance in some routes
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["triton", "torch"])
@pytest.mark.parametrize("m", [1, 10, 50, 100])  # 100: wider than a Triton program, factored by csrc/cuda
def test_engine_kernel_is_within_its_error(name, m):
    """The default's promise: 1e-4 of the candidates' standard deviation, against float64 on the CPU."""
    real, reference, added = normal(3000, 64), 1.1 * normal(2000, 64, seed=1), normal(8, m, 64, seed=2)
    removed = torch.stack([torch.randperm(2000, generator=torch.Generator().manual_seed(i))[:m] for i in range(8)])
    moments = FeatureMoments.from_features(real)
    engine = SwapEngine(moments, reference, backend=name)
    change = engine.change(removed.to(CUDA), added)
    assert change.device == CUDA and engine.report()["backend"] == name
    exact = SwapEngine(moments.to("cpu"), reference.cpu().double(), dtype=torch.float64, backend="torch")
    expected = exact.change(removed, added.cpu().double())
    assert float((change.cpu() - expected).abs().max() / expected.std()) < 1e-4


def test_auto_takes_triton_here():
    pytest.importorskip("triton")
    engine = SwapEngine(FeatureMoments.from_features(REAL.to(CUDA)), REFERENCE.to(CUDA))
    engine.score(REMOVED.to(CUDA), ADDED.to(CUDA))
    assert engine.report()["backend"] == "triton"


def test_tf32_and_autocast_change_nothing():
    images = torch.randint(256, (8, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    net, engine = fastfid.feature_extractor("fashion-a", device=CUDA), engine_on(CUDA)
    expected = net(images), engine.score(REMOVED.to(CUDA), ADDED.to(CUDA))
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        with torch.autocast("cuda", torch.bfloat16):
            found = net(images), engine.score(REMOVED.to(CUDA), ADDED.to(CUDA))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(expected[0].cpu(), fastfid.feature_extractor("fashion-a")(images), rtol=1e-4, atol=1e-4)


@several
def test_kernels_follow_their_tensors_to_another_device():
    other = torch.device("cuda", 1)
    assert torch.cuda.current_device() == 0
    for name in ("triton", "torch"):
        engine = SwapEngine(FeatureMoments.from_features(REAL.to(other)), REFERENCE.to(other), backend=name)
        scores = engine.score(REMOVED.to(other), ADDED.to(other))
        assert scores.device == other
        torch.testing.assert_close(scores.cpu(), engine_on(CPU).score(REMOVED, ADDED), rtol=1e-4, atol=1e-6)


def test_cupy_arrays_are_taken_without_a_copy():
    cupy = pytest.importorskip("cupy")
    real, reference, removed, added = (cupy.asarray(x.numpy()) for x in (REAL, REFERENCE, REMOVED, ADDED))
    assert as_tensor(reference).data_ptr() == reference.data.ptr
    scores = SwapEngine(FeatureMoments.from_features(real), reference, backend="torch").score(removed, added)
    torch.testing.assert_close(scores, engine_on(CUDA).score(REMOVED.to(CUDA), ADDED.to(CUDA)), rtol=0, atol=0)


# --- the kernels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 7, 100, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ldl_kernel(k, dtype):
    _C = pytest.importorskip("fastfid._C")
    if not _C.has_cuda:
        pytest.skip("the extension was built without CUDA")
    removed, rows = k // 2, normal(5, k, 60, dtype=torch.float64) / math.sqrt(60 * k)  # leverages well below one
    gram = (rows @ rows.mT).to(dtype).contiguous()
    signs = torch.where(torch.arange(k, device=CUDA) < removed, -1.0, 1.0).double().diag()
    logdets, bad, left = (
        torch.full((5,), -7, dtype=kind, device=CUDA) for kind in (torch.float64, torch.int32, torch.float64)
    )
    stream = torch.cuda.current_stream().cuda_stream
    status = _C.ldl_logdet_cuda(
        *(t.data_ptr() for t in (gram, logdets, bad, left)), count=5, nodes=1, k=k, removed=removed, slack=SLACK,
        is_double=dtype == torch.float64, stream=stream,
    )  # fmt: skip
    if k == 256 and dtype == torch.float64:
        assert status == 1  # 270 kB of shared memory, more than a block may have
        return
    assert status == 0 and bad.tolist() == [-1] * 5
    expected = torch.linalg.slogdet(gram.double() + signs).logabsdet
    torch.testing.assert_close(logdets, expected, rtol=0, atol=10 * k * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", triton_kernels.KERNELS)
def test_kernel_passes_its_trial(name):
    """The small case of fastfid/triton_kernels/trial.py, which the engine runs before it trusts a kernel."""
    assert trial.error_of(name, CUDA) <= 1, name


@pytest.mark.parametrize("by_cuda", [True, False], ids=["cuda", "triton"])
@pytest.mark.parametrize("m_r, m_a", [(0, 3), (5, 6), (50, 50), (64, 64)])
def test_factor_kernel(m_r, m_a, by_cuda, monkeypatch):
    kernel, k = triton_kernels.load("ldl_logdet"), m_r + m_a
    if not by_cuda:
        monkeypatch.setattr(kernel, "factor_obstacle", lambda *_: "asked for")
    elif kernel.factor_obstacle(k, torch.float32, CUDA):
        pytest.skip(kernel.factor_obstacle(k, torch.float32, CUDA))
    rows = normal(6, k, 200) / math.sqrt(200 * k)
    grams = (rows @ rows.mT).view(2, 3, k, k)
    found, expected = kernel.ldl_logdet(grams, m_r), kernel.ldl_logdet_ref(grams, m_r)
    # entries of G are below 1 and err by ε·√rank or less; k pivots, each near one, add up
    torch.testing.assert_close(found.logdets, expected.logdets, rtol=0, atol=16 * k * EPS)
    torch.testing.assert_close(found.remaining, expected.remaining, rtol=0.2, atol=1e-4)


@pytest.mark.parametrize("k, r", [(1, 5), (100, 2048), (128, 300)])
def test_gram_kernel(k, r):
    kernel, w, functions = triton_kernels.load("plan_grams"), normal(3, k, r), normal(2 * r, seed=1)
    places = torch.tensor([[0, r // 2], [r, r]], device=CUDA, dtype=torch.int32)
    offset = torch.tensor([0, r], device=CUDA)
    found = kernel.plan_grams(w, functions, *places, offset)
    expected = kernel.plan_grams_ref(w, functions, *places, offset)
    assert float((found - expected).abs().max()) <= 16 * EPS * r**0.5 * float(expected.abs().max())


def test_projection_and_sums_kernels():
    sums, project = triton_kernels.load("centre_sums"), triton_kernels.load("project")
    added, reference, mean = (
        normal(4, 50, 300) + 100,
        normal(90, 300, seed=1) + 100,
        normal(300, dtype=torch.float64) + 100,
    )
    removed = torch.stack([torch.randperm(90, device=CUDA)[:20] for _ in range(4)])
    for found, expected in zip(sums.centre_sums(added, reference, removed, mean, mean),
                               sums.centre_sums_ref(added, reference, removed, mean, mean), strict=True):  # fmt: skip
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-9)
    matrix = normal(300, 200, seed=2)
    found = project.project(added.flatten(0, 1), mean, matrix)
    torch.testing.assert_close(
        found.double(), project.project_ref(added.flatten(0, 1), mean, matrix), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("eigensolver", ["device", "host"])
def test_a_reference_is_prepared_in_a_thread_and_a_stream_beside_the_loop(eigensolver):
    """As the trainer does: the results are there when the future is, and any stream may use them."""
    worker = BackgroundWorker("test", CUDA)
    real, reference = FeatureMoments.from_features(REAL.to(CUDA)), REFERENCE.to(CUDA)
    begun = worker.submit(lambda: SwapEngine(real, reference, eigensolver=eigensolver).ready_for(REMOVED.shape[1]))
    busy = torch.randn(512, 512, device=CUDA) @ torch.randn(512, 512, device=CUDA)
    scores = begun.result().score(REMOVED.to(CUDA), ADDED.to(CUDA))
    torch.testing.assert_close(scores.cpu(), engine_on(CPU).score(REMOVED, ADDED), rtol=1e-4, atol=1e-6)
    assert torch.isfinite(busy).all()


def test_a_call_waits_once():
    """The read-back at its end; torch warns of each."""
    engine = SwapEngine(FeatureMoments.from_features(REAL.to(CUDA)), REFERENCE.to(CUDA))
    removed, added = REMOVED.to(CUDA), ADDED.to(CUDA)
    engine.score(removed, added)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            engine.score(removed, added)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in seen if "synchroniz" in str(w.message)]) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n, d", [(1, 3), (700, 130), (5000, 64)])
def test_moments_kernel(n, d, dtype):
    kernel = triton_kernels.load("moments")
    x, centre = normal(n, d, dtype=dtype), torch.zeros(d, dtype=torch.float64, device=CUDA)
    sums, scatter = kernel.centred_moments(x, centre)
    expected_sums, expected = kernel.centred_moments_ref(x, centre)
    bound = (kernel.CHUNK + 16) * EPS * expected.diagonal().sqrt()  # the kernel's own, of Cauchy and Schwarz
    assert ((scatter - expected).abs() <= bound[:, None] * expected.diagonal().sqrt()).all()
    assert ((sums - expected_sums).abs() <= (kernel.CHUNK + 16) * EPS * x.double().abs().sum(0)).all()
    assert torch.equal(scatter, scatter.T)


@pytest.mark.parametrize("precision", ["tf32x3", "ieee"])
def test_rank_update_kernel(precision):
    kernel, m = triton_kernels.load("rank_update"), normal(130, 130)
    matrix, w_r, w_a = m @ m.T / 130, normal(3, 7, 130, seed=1), normal(3, 20, 130, seed=2)
    matrix = (matrix + matrix.T) / 2
    found = kernel.rank_update(matrix, w_r, w_a, 0.5, input_precision=precision)
    expected = kernel.rank_update_ref(matrix, w_r, w_a, 0.5)
    size = matrix.double().abs() + sum(w.double().abs().mT @ w.double().abs() for w in (w_r, w_a))
    assert ((found - expected).abs() <= (27 + 16) * EPS * size).all()


@pytest.mark.parametrize("precision", ["tf32x3", "ieee"])
def test_newton_schulz_kernel(precision):
    kernel = triton_kernels.load("newton_schulz")
    basis = torch.linalg.qr(normal(2, 150, 150, dtype=torch.float64)).Q
    values = torch.linspace(0.05, 1, 150, device=CUDA, dtype=torch.float64)
    matrices = (basis * values / values.norm()) @ basis.mT
    *_, (y, _, _) = kernel.iterates(matrices.float(), [(1.5, -0.5, 0.0)] * 25, precision)
    traces = y.double().diagonal(dim1=1, dim2=2).sum(-1)
    torch.testing.assert_close(traces, (values / values.norm()).sqrt().sum().expand(2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("method", ["newton_schulz", "polar_express"])
def test_roots_by_the_kernels(method):
    pytest.importorskip("triton")
    expected = engine_on(CPU, method=method).score(REMOVED, ADDED)
    moments = FeatureMoments.from_features(REAL.to(CUDA))
    engine = SwapEngine(moments, REFERENCE.to(CUDA), method=method)
    torch.testing.assert_close(engine.score(REMOVED.to(CUDA), ADDED.to(CUDA)).cpu(), expected, rtol=1e-4, atol=1e-6)
    assert engine.report()["backend"] == "triton"


def test_moments_by_the_kernel():
    pytest.importorskip("triton")
    x = normal(5000, 130)
    found, expected = FeatureMoments.from_features(x, kernel="triton").cov, FeatureMoments.from_features(x).cov
    size = expected.diagonal().sqrt()
    assert ((found - expected).abs() <= 528 * EPS * size[:, None] * size).all()  # the bound that `update` states


# --- the generator and its training ------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["sdpa", "math", *attention.SDPA_KERNELS, *attention.FLASH])
def test_sit_by_every_attention(backend):
    config = SiTConfig(image_size=16, patch_size=2, channels=4, width=144, depth=2, heads=2, num_classes=10)
    torch.manual_seed(0)
    model = SiT(config).to(CUDA)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.05)
    x, t, y = normal(3, *config.image_shape), torch.rand(3, device=CUDA), torch.arange(3, device=CUDA)
    model.set_attention("math")
    expected = model(x, t, y)
    try:
        chosen = attention.choose(backend, 72, torch.bfloat16, CUDA)
        model.set_attention(chosen)
        with torch.autocast("cuda", torch.bfloat16):
            found = model(x, t, y)
            empty = model(x[:0], t[:0], y[:0])
    except (ValueError, RuntimeError) as error:
        pytest.skip(f"{backend} does not run here: {' '.join(str(error).split())[:100]}")
    assert empty.shape == (0, 4, 16, 16)
    # products of bfloat16, 2⁻⁹ each, through two blocks: a few percent of the largest value
    assert float((found.float() - expected).abs().max()) < 0.05 * float(expected.abs().max())


@pytest.mark.parametrize("flags", [
    ["--compile", "off"], ["--compile", "on"], ["--precision", "bf16", "--estimator", "sde_policy_gradient"],
    ["--activation-checkpointing", "--micro-batch", "16"],
], ids=" ".join)  # fmt: skip
def test_a_smoke_training(tmp_path, flags):
    config = train.parse(["--preset", "smoke", "--out", str(tmp_path / "run"), *flags])
    train.run(config, CUDA, Clock())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert all(math.isfinite(summary["after"][key]["fd"]) for key in ("ode", "sde"))
    train.run(config, CUDA, Clock())  # a finished run, resumed from its last checkpoint


@several
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_over_nccl(tmp_path, parallel):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "sit_rl.train",
        "--preset", "smoke", "--out", str(tmp_path / "run"), "--parallel", parallel, "--compile", "off",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["ranks"] == 2
