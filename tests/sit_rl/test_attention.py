"""Back ends of attention agree with each other; the choice is explained; flash packages are called as they document."""

import sys
import types

import pytest
import torch

from sit_rl.models import attention
from sit_rl.models.sit import SiT, SiTConfig

RUNS_HERE = ("sdpa", "sdpa-flash", "sdpa-math", "math")


def inputs(head_dim, dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(2, 17, 3, head_dim).to(dtype).requires_grad_() for _ in range(3)]


def exact_attention(q, k, v):
    """The definition, a head at a time, in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    heads = []
    for h in range(q.shape[2]):
        logits = torch.einsum("nqd,nkd->nqk", q[:, :, h], k[:, :, h]) / q.shape[-1] ** 0.5
        weights = torch.exp(logits - logits.amax(-1, keepdim=True))
        heads.append(torch.einsum("nqk,nkd->nqd", weights / weights.sum(-1, keepdim=True), v[:, :, h]))
    return torch.stack(heads, dim=2)


@pytest.mark.parametrize("head_dim", [32, 64, 72, 7])
@pytest.mark.parametrize("backend", RUNS_HERE)
def test_outputs_and_gradients_are_the_definitions(backend, head_dim):
    given = inputs(head_dim)
    out, exact = attention.attention(*given, backend), exact_attention(*given)
    # float32 sums of 72 products and of 17 weights: well under 1e-5 for unit-variance inputs
    torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=1e-5)
    for got, expected in zip(
        torch.autograd.grad(out.square().sum(), given), torch.autograd.grad(exact.square().sum(), given), strict=True
    ):
        torch.testing.assert_close(got, expected, atol=5e-5, rtol=1e-4)


def test_choice_on_a_cpu_is_explained():
    cpu = torch.device("cpu")
    assert attention.choose("auto", device=cpu) == "sdpa" and attention.choose("math") == "math"
    line = attention.explain("auto", 72, torch.float32, cpu)
    assert line == "sdpa, its flash kernel, 72 channels a head, float32 on cpu: flash needs an NVIDIA GPU"
    with pytest.raises(ValueError, match="choose one of auto, flash, sdpa, math, flash-attn-3"):
        attention.choose("fast")
    for name in ("flash", "flash-attn-4"):
        with pytest.raises(ValueError, match=f"but {name} needs an NVIDIA GPU; use 'auto' or 'sdpa' here"):
            attention.choose(name, device=cpu)


class Package(types.ModuleType):
    """Stands in for a flash package: its documented call, layout, types and alignment, computed by the definition."""

    def __init__(self, name, with_lse=False, error=0.0):
        super().__init__(name)
        self.shapes, self.with_lse, self.error = [], with_lse, error

    def flash_attn_func(self, q, k, v, softmax_scale=None, causal=False):
        assert q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] % 8 == 0 and not causal
        self.shapes.append(tuple(q.shape))
        rescaled = q.double() * (softmax_scale * q.shape[-1] ** 0.5)
        out = (exact_attention(rescaled, k, v) + self.error).to(q.dtype)
        return (out, None) if self.with_lse else out


@pytest.fixture
def gpu(monkeypatch):
    """A pretended GPU of a given generation with given packages; trials run on the CPU."""
    monkeypatch.setattr(attention, "_trial", lambda f, d, t, where, real=attention._trial: real(f, d, t, "cpu"))
    monkeypatch.setattr(attention, "_sdpa_choice", lambda *_: "flash")

    def pretend(major, **packages):
        attention._decide.cache_clear()
        attention._FUNCTIONS.clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (major, 0))
        for name in ("flash_attn", "flash_attn.cute", "flash_attn_interface"):
            monkeypatch.setitem(sys.modules, name, packages.get(name.replace(".", "_")))
        return torch.device("cuda")

    yield pretend
    attention._decide.cache_clear()
    attention._FUNCTIONS.clear()


def test_each_generation_gets_its_flash_attention(gpu):
    two, three, four = Package("2"), Package("3"), Package("4", with_lse=True)
    every = dict(flash_attn=two, flash_attn_interface=three, flash_attn_cute=four)
    for major, expected in {
        7: "sdpa",
        8: "flash-attn-4",
        9: "flash-attn-3",
        10: "flash-attn-4",
        12: "flash-attn-4",
    }.items():
        assert attention.choose("auto", device=gpu(major, **every)) == expected
    assert three.shapes == [(1, 32, 2, 72)] and four.shapes == 3 * three.shapes  # 72 needs no padding
    assert attention.choose("auto", device=gpu(8, flash_attn=two)) == "flash-attn-2"
    assert attention.choose("flash", device=gpu(10, flash_attn=two)) == "flash-attn-2"
    hopper = gpu(9, flash_attn_cute=four)
    assert attention.choose("auto", device=hopper) == "flash-attn-4"
    assert "float16 or bfloat16" in attention.explain("auto", 72, torch.float32, hopper)


def test_a_package_that_is_missing_broken_or_wrong_is_passed_over(gpu):
    hopper = gpu(9, flash_attn_interface=Package("3", error=0.1), flash_attn=Package("2"))
    assert attention.choose("flash", device=hopper) == "flash-attn-2"
    line = attention.explain("auto", 72, torch.bfloat16, gpu(9, flash_attn_interface=Package("3", error=0.1)))
    assert line.startswith("sdpa, its flash kernel, 72 channels a head, bfloat16 on cuda: flash flash-attn-3 is wrong")
    assert "flash-attn-4 is not installed (pip install" in line
    broken = types.ModuleType("flash_attn_interface")
    broken.flash_attn_func = lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no kernel image"))
    with pytest.raises(ValueError, match=r"flash-attn-3 fails for 72 channels a head \(no kernel image\)"):
        attention.choose("flash-attn-3", device=gpu(9, flash_attn_interface=broken))


@pytest.mark.parametrize("head_dim, padded", [(72, 72), (36, 40)])
def test_flash_calls_pad_heads_and_keep_the_scale(gpu, head_dim, padded):
    four = Package("4", with_lse=True)
    gpu(10, flash_attn_cute=four)
    given = inputs(head_dim, torch.bfloat16)
    out = attention.attention(*given, "flash-attn-4")
    assert four.shapes == [(2, 17, 3, padded)] and out.dtype == torch.bfloat16
    # one rounding to bfloat16, 2^-9 of the result
    torch.testing.assert_close(out.double(), exact_attention(*given), atol=0, rtol=2**-8)
    full = inputs(head_dim)
    attention.attention(*full, "flash-attn-4")  # float32 goes to sdpa
    assert len(four.shapes) == 1


def test_a_model_of_72_channels_a_head_gives_the_same_on_every_back_end():
    torch.manual_seed(0)
    model = SiT(SiTConfig(image_size=8, width=144, depth=2, heads=2, num_classes=4))
    for p in model.parameters():
        if p.requires_grad:
            p.data = 0.1 * torch.randn_like(p)
    x, t, y = torch.randn(2, 4, 8, 8), torch.rand(2), torch.tensor([1, 3])
    expected = model(x, t, y)
    for backend in RUNS_HERE:
        model.set_attention(backend)
        torch.testing.assert_close(model(x, t, y), expected, rtol=1e-4, atol=1e-4)
