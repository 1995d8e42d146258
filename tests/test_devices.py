"""Everything on a device that is not the host: nothing here has a GPU, so one is pretended (tests/pretend_cuda.py).

What a route computes must be what it computes on the CPU, and no tensor may meet one of another device on the way.
"""

import contextlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fastfid
from fastfid import FeatureMoments, SwapEngine, frechet_distance, mmd, prdc
from fastfid.distances.moments import reducing_device
from fastfid.distances.real_side import RealFactor
from fastfid.features.extractor import outputs_of
from fastfid.features.registry import build_extractor
from fastfid.linalg.iterative_roots import trace_sqrt_product
from fastfid.runtime import devices
from fastfid.runtime.devices import as_tensor, float32_products, full_float32
from sit_rl import sample, train
from sit_rl.components.build import build_components
from sit_rl.components.image_sets import load_embedded
from sit_rl.estimators import build_estimator
from sit_rl.learner import checkpoint
from sit_rl.rollout import generate
from sit_rl.runs.log import Clock
from sit_rl.training.held_out import evaluate_model
from sit_rl.training.loop import train_step
from sit_rl.training.state import start
from tests.support import pretend_cuda
from tests.support.device_cases import (
    ADDED,
    ENGINE,
    GENERATOR,
    METRICS,
    REAL,
    REFERENCE,
    REMOVED,
    engine_on,
    moments_of,
)
from tests.support.foreign_arrays import OnDevice
from tests.support.pretend_cuda import CPU, pretended

# --- the pretence itself -----------------------------------------------------------------------------------------


def test_the_pretence_refuses_what_a_gpu_refuses():
    with pretended() as cuda:
        x, host = torch.randn(8, 3).to(cuda), torch.ones(3)
        rows = torch.tensor([0, 1])
        for refused in (lambda: x + host, lambda: torch.cat([x, host[None]]), lambda: host[rows.to(cuda)],
                        lambda: x.index_put_((rows,), torch.ones(2, 3)),
                        lambda: torch.randn(3, device=cuda, generator=torch.Generator())):  # fmt: skip
            with pytest.raises(RuntimeError, match=r"one device|generator"):
                refused()
        for refused in (x.numpy, lambda: np.asarray(x)):
            with pytest.raises(TypeError, match="convert cuda"):
                refused()


def test_the_pretence_allows_what_a_gpu_allows():
    with pretended() as cuda:
        x = torch.randn(8, 3).to(cuda)
        x[:2] = torch.ones(2, 3)  # a copy
        kept = [x + 1, x * torch.tensor(2.0), x[torch.tensor([0, 1])], x.double(), x.new_zeros(3), torch.zeros_like(x)]
        kept += [torch.zeros(3, device=cuda), torch.as_tensor(np.ones(3), device="cuda"), x.detach().to(torch.float64)]
        assert {y.device for y in kept} == {cuda}
        assert {y.device for y in (x.cpu(), x.to("cpu", torch.float64), torch.zeros(3))} == {CPU}
        layer = torch.nn.Linear(3, 2).to(cuda)
        F.mse_loss(layer(x), x.new_ones(8, 2)).backward()
        assert layer.weight.device == layer.weight.grad.device == cuda and x.cpu().numpy().shape == (8, 3)


# --- fastfid -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", [*ENGINE, *METRICS])
def test_the_same_on_both_devices(route, tmp_path):
    compute = (ENGINE | METRICS)[route]
    expected = compute(CPU, tmp_path)
    with pretended() as cuda:
        found = compute(cuda, tmp_path)
        if isinstance(found, torch.Tensor):
            assert found.device == cuda
            found = found.detach().cpu()
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("argument", ["removed", "added", "reference"])
def test_tensors_of_two_devices_are_an_error_that_names_them(argument):
    with pretended() as cuda:
        engine, given = engine_on(cuda), {"removed": REMOVED.to(cuda), "added": ADDED.to(cuda)}
        if argument == "reference":
            factor = RealFactor(FeatureMoments.from_features(REAL))
            call = lambda: SwapEngine(factor, REFERENCE.to(cuda))  # noqa: E731
        else:
            call = lambda: engine.score(**given | {argument: given[argument].cpu()})  # noqa: E731
        with pytest.raises(ValueError, match=r"cpu.* cuda:0|cuda:0.* cpu"):
            call()


def test_moments_of_two_devices_are_an_error_with_a_remedy():
    with pretended() as cuda:
        here, there = FeatureMoments.from_features(REAL), FeatureMoments.from_features(REFERENCE.to(cuda))
        with pytest.raises(ValueError, match=r"cpu and cuda:0; move one side with \.to"):
            frechet_distance(here, there)
        assert here.to("cpu") is here and here.to(cuda).cov.device == cuda
        distance = frechet_distance(here.to(cuda), there)
    assert distance == pytest.approx(frechet_distance(*moments_of(CPU)), rel=1e-12)


def test_extractors_work_where_they_were_put():
    images = torch.randint(256, (6, 3, 20, 20), dtype=torch.uint8, generator=GENERATOR)
    for name in ("fashion-a", "fashion-b"):
        expected = fastfid.feature_extractor(name)(images)
        with pretended() as cuda:
            for build in (fastfid.feature_extractor, build_extractor):
                net = build(name, device="cuda")
                found, none = net(images), net(images[:0])
                assert found.device == none.device == cuda
                torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(outputs_of(net, images)["features"], found.cpu())


@pytest.mark.parametrize("kind", ["features", "moments"])
def test_evaluate_takes_what_lies_on_a_gpu(kind):
    """A statistics file, or features that were extracted, are in host memory."""
    expected = fastfid.evaluate(REFERENCE, REAL, metrics=["fd"])["fd"].value
    with pretended() as cuda:
        samples = REFERENCE.to(cuda) if kind == "features" else FeatureMoments.from_features(REFERENCE.to(cuda))
        assert fastfid.evaluate(samples, REAL, metrics=["fd"])["fd"].value == pytest.approx(expected, rel=1e-12)


# --- float32 is float32 ------------------------------------------------------------------------------------------

BY_BACK_END = "torch.backends.cuda.matmul.fp32_precision = 'tf32'"  # after which torch refuses its older question


@pytest.fixture
def settings():
    """torch's settings of float32, brought back after the test."""
    backends = torch.backends
    parts = (backends.cuda.matmul, backends.mkldnn.matmul, backends.cudnn.conv, backends.cudnn.rnn)

    def told():
        return [part.fp32_precision for part in parts]

    before = told()
    yield told
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = True
    for part, value in zip(parts, before, strict=True):
        part.fp32_precision = value


@pytest.mark.parametrize("how", ["torch.set_float32_matmul_precision('high')", BY_BACK_END,
                                 "torch.backends.cudnn.conv.fp32_precision = 'tf32'"])  # fmt: skip
def test_tf32_is_put_aside_and_restored(settings, how):
    exec(how)
    chosen = settings()
    with full_float32(CPU), full_float32(torch.device("cuda")):
        assert settings()[:3] == ["ieee"] * 3
    assert settings() == chosen
    with contextlib.suppress(ZeroDivisionError), float32_products("high"):
        assert settings()[0] == "tf32"
        raise ZeroDivisionError
    assert settings() == chosen


def test_threads_that_overlap_restore_once(settings):
    torch.set_float32_matmul_precision("medium")
    chosen = settings()
    first, second = full_float32(CPU), full_float32(CPU)
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    assert settings()[0] == "ieee"
    second.__exit__(None, None, None)
    assert settings() == chosen and devices._settings.blocks == 0


def test_tf32_chosen_by_back_end_is_no_error(settings):
    expected = engine_on(CPU).score(REMOVED, ADDED), prdc(REAL, REFERENCE)
    exec(BY_BACK_END)
    with pytest.raises(RuntimeError):
        torch.get_float32_matmul_precision()
    torch.testing.assert_close(engine_on(CPU).score(REMOVED, ADDED), expected[0], rtol=0, atol=0)
    assert prdc(REAL, REFERENCE) == expected[1]
    assert float(trace_sqrt_product(torch.eye(3), torch.eye(3), "polar_express")) == pytest.approx(3, rel=1e-6)


def test_an_extractor_ignores_the_callers_autocast():
    net, images = fastfid.feature_extractor("fashion-a"), torch.full((2, 1, 28, 28), 7, dtype=torch.uint8)
    expected = net(images)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(net(images), expected, rtol=0, atol=0)


# --- arrays of other libraries -----------------------------------------------------------------------------------


def test_arrays_of_the_other_byte_order_and_sparse_tensors():
    """The first are converted; the second are refused by whatever takes features."""
    x = np.random.default_rng(0).normal(size=(30, 4))
    dense = torch.from_numpy(x)
    for order in ("<f8", ">f8"):
        assert torch.equal(as_tensor(x.astype(order)), dense)
        assert mmd(x.astype(order), dense[::2]) == mmd(dense, dense[::2])
        assert torch.equal(FeatureMoments.from_features(x.astype(order)).cov, FeatureMoments.from_features(dense).cov)
    for take in (FeatureMoments.from_features, lambda s: prdc(s, dense), lambda s: fastfid.evaluate(s, dense)):
        with pytest.raises(ValueError, match=r"is a sparse_coo tensor of shape \(30, 4\); pass it as .to_dense\(\)"):
            take(dense.to_sparse())


@pytest.mark.filterwarnings("ignore:.*not writable")  # torch warns once a process, so another test may have seen it
def test_arrays_are_taken_without_a_copy():
    x, array = torch.ones(3, 2), np.ones((3, 2))
    array.setflags(write=False)
    assert as_tensor(x) is x and as_tensor(OnDevice(x)).data_ptr() == x.data_ptr()
    assert as_tensor(array).data_ptr() == array.ctypes.data
    moments = FeatureMoments.from_features(OnDevice(REAL))
    assert torch.equal(moments.cov, FeatureMoments.from_features(REAL).cov)
    scores = SwapEngine(moments, OnDevice(REFERENCE)).score(OnDevice(REMOVED), OnDevice(ADDED))
    torch.testing.assert_close(scores, SwapEngine(moments, REFERENCE).score(REMOVED, ADDED), rtol=0, atol=0)


# --- ranks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config, expected", [("cpu:gloo,cuda:gloo", CPU), ("cpu:gloo,cuda:nccl", CPU),
                                              ("cuda:nccl", pretend_cuda.CUDA)])  # fmt: skip
def test_all_ranks_reduce_on_one_kind_of_device(monkeypatch, config, expected):
    """Also a rank that has no rows, and so no device: in a group of both kinds it would wait for the others in gloo."""
    monkeypatch.setattr(torch.distributed, "get_backend_config", lambda group: config)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for own in (CPU, pretend_cuda.CUDA):
        assert reducing_device(own, None) == expected


# --- sit_rl ------------------------------------------------------------------------------------------------------


@pytest.fixture
def statistics(tmp_path):
    """Files of real and held-out moments, as ImageNet's come."""
    net, paths = fastfid.feature_extractor("fashion-a"), []
    for split in ("train", "heldout"):
        paths.append(tmp_path / f"{split}.npz")
        FeatureMoments.from_features(net(load_embedded(split).images[:200])).save(paths[-1])
    return "--real", paths[0], "--heldout", paths[1]


def trained(device, arguments):
    """Records of a step, of another after a save and a load, and the metrics of the averaged weights."""
    config = train.parse([*arguments, "--compile", "off"])
    components = build_components(config, device, progress=False)
    estimator, state = build_estimator(config, components), start(config, components, None, None, Clock())
    first = train_step(config, components, state, estimator)
    state.save()
    state.writer.wait()
    path = checkpoint.latest(config.run_folder / "checkpoints")
    state = start(config, components, path, checkpoint.load_values(path), Clock())
    second = train_step(config, components, state, estimator)
    model, sampler = state.learner.averaged(), config.evaluation.sde
    last = evaluate_model(components, model, sampler, 20, seed=config.seed, batch=config.rollout.batch, grid=5)
    return first, second, last


@pytest.mark.parametrize("estimator", ["advantage_matching", "sde_policy_gradient"])
def test_a_training(command, statistics, tmp_path, estimator):
    flags = [*statistics, "--reference", "rolling"]
    if estimator == "sde_policy_gradient":
        flags = ["--micro-batch", "5", "--credit", "influence", "--activation-checkpointing"]
    flags += ["--estimator", estimator]
    *expected, evaluated = trained(CPU, command(tmp_path / "host", *flags))
    with pretended() as cuda:
        *found, judged = trained(cuda, command(tmp_path / "device", *flags))
    # another route of the engine rounds otherwise, and AdamW's first steps take a gradient's sign
    for a, b, rel in zip(found, expected, (1e-2, 5e-2), strict=True):
        for key in ("reference_fd", "image_reward_std", "loss", "gradient_norm"):
            assert a[key] == pytest.approx(b[key], rel=rel), key
    assert judged.metrics["fd"] == pytest.approx(evaluated.metrics["fd"], rel=5e-2)


def test_a_rank_without_samples_has_them_on_its_device(command, tmp_path, monkeypatch):
    """Else it would send what it has not by another back end than the others receive by, and all would wait."""
    monkeypatch.setattr("sit_rl.rollout.owned_samples", lambda count, batch: range(0))
    with pretended() as cuda:
        config = train.parse([*command(tmp_path / "run"), "--compile", "off"])
        components = build_components(config, cuda, progress=False)
        (made,) = generate(
            components, components.model, torch.arange(10), [config.rollout.sampler], seed=0, step=0, batch=5
        )
        assert {x.device for x in (made.samples, made.features, made.labels)} == {cuda}
        assert made.images.device == CPU


def test_sampling(tmp_path, settings):
    for device in (CPU, pretend_cuda.CUDA):
        with pretended() if device != CPU else contextlib.nullcontext():
            config = sample.SampleConfig(images=4, batch=2, steps=2, compile="off", out=tmp_path / f"{device.type}.npz")
            sample.run(config, device)
    found, expected = (np.load(tmp_path / f"{kind}.npz")["arr_0"].astype(int) for kind in ("cuda", "cpu"))
    assert np.abs(found - expected).max() <= 1 and settings()[2] == "none"  # convolutions without TF32
