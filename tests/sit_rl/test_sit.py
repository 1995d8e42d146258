"""SiT and DiT against a float64 restatement of the published equations."""

import math
import resource
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sit_rl.models.dit import DiT
from sit_rl.models.loading import load_model
from sit_rl.models.sit import MODEL_NAMES, SiT, SiTConfig, gelu, infer_config, sincos_positions
from tests.support.random_sits import SMALL, random_sit

# Every product of a float32 network is rounded to 2^-24 = 6e-8, and a layer's sums of 1152 to 4608 of them to about
# 1e-6 of their size; residual blocks add such errors up as a random walk, to below 1e-5 for 28 blocks.
FLOAT32_ERROR = 1e-5


def near_trained(model, seed=0):
    """Weights of the size training leaves: every layer's output near unit variance, modulations about 0.3."""
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        if p.requires_grad:
            std = 0.3 if "adaLN" in name or "embedder" in name else 1.0
            fan_in = p[0].numel() if p.ndim > 1 else 100
            p.data = std * torch.randn_like(p) / math.sqrt(1 if "table" in name else fan_in)
    return model.eval()


def reference_forward(state, config, x, t, y):
    """The equations of DiT/SiT in NumPy float64, written from the papers; shares nothing with the module."""
    s = {k: v.double().numpy() for k, v in state.items()}
    n, patch, grid = len(x), config.patch_size, config.image_size // config.patch_size

    def linear(h, name):
        return h @ s[name + ".weight"].T + s[name + ".bias"]

    def silu(h):
        return h / (1 + np.exp(-h))

    def norm(h):
        return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)

    frequencies = np.exp(-math.log(10000) * np.arange(128) / 128)
    angles = t[:, None] * frequencies
    c = linear(np.concatenate([np.cos(angles), np.sin(angles)], 1), "t_embedder.mlp.0")
    c = linear(silu(c), "t_embedder.mlp.2") + s["y_embedder.embedding_table.weight"][y]
    tokens = np.zeros((n, grid * grid, config.width))
    for i in range(grid):
        for j in range(grid):
            block = x[:, :, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            kernel = s["x_embedder.proj.weight"]
            tokens[:, i * grid + j] = np.einsum("ncab,dcab->nd", block, kernel) + s["x_embedder.proj.bias"]
    tokens = tokens + s["pos_embed"]
    size = config.width // config.heads
    for b in range(config.depth):
        name = f"blocks.{b}."
        m = np.split(linear(silu(c), name + "adaLN_modulation.1")[:, None], 6, axis=-1)
        qkv = linear(norm(tokens) * (1 + m[1]) + m[0], name + "attn.qkv")
        q, k, v = (part.reshape(n, -1, config.heads, size) for part in np.split(qkv, 3, axis=-1))
        logits = np.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(size)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        attended = np.einsum("nhqk,nkhd->nqhd", weights, v).reshape(n, -1, config.width)
        tokens = tokens + m[2] * linear(attended, name + "attn.proj")
        hidden = linear(norm(tokens) * (1 + m[4]) + m[3], name + "mlp.fc1")
        gelu = 0.5 * hidden * (1 + np.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        tokens = tokens + m[5] * linear(gelu, name + "mlp.fc2")
    shift, scale = np.split(linear(silu(c), "final_layer.adaLN_modulation.1")[:, None], 2, axis=-1)
    patches = linear(norm(tokens) * (1 + scale) + shift, "final_layer.linear")
    image = np.zeros((n, patches.shape[-1] // patch**2, config.image_size, config.image_size))
    for i in range(grid):
        for j in range(grid):
            block = patches[:, i * grid + j].reshape(n, patch, patch, -1).transpose(0, 3, 1, 2)
            image[:, :, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch] = block
    return image


def relative_error(got, expected):
    return np.abs(got - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("learn_sigma", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "math"])
def test_forward_is_the_published_network(learn_sigma, attention):
    config = SiTConfig(**{**SMALL.to_dict(), "learn_sigma": learn_sigma})
    model = random_sit(config).double()
    model.set_attention(attention)
    rng = np.random.default_rng(0)
    x, t, y = rng.standard_normal((4, 3, 8, 8)), rng.random(4), rng.integers(0, 6, 4)
    expected = reference_forward(model.state_dict(), config, x, t, y)[:, : config.channels]
    got = model(torch.from_numpy(x), torch.from_numpy(t), torch.from_numpy(y)).detach().numpy()
    # Time angles are float32 by design (as published): 1e-7 relative, amplified by two layers of weights of size 0.2.
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["S/8", "XL/2"])
def test_float32_forward_at_published_widths(name):
    """Two blocks of the true width, heads and tokens, in the arithmetic that training uses."""
    config = SiTConfig.named(name, depth=2)
    model = near_trained(SiT(config))
    rng = np.random.default_rng(1)
    x, t, y = rng.standard_normal((1, 4, 32, 32)), rng.random(1), rng.integers(0, 1001, 1)
    expected = reference_forward(model.state_dict(), config, x, t, y)[:, :4]
    got = model(torch.from_numpy(x).float(), torch.from_numpy(t).float(), torch.from_numpy(y)).detach().numpy()
    assert relative_error(got, expected) < FLOAT32_ERROR


def test_dit_returns_noise_and_variance_at_discrete_times():
    torch.manual_seed(0)
    model = DiT(SMALL)
    model.load_state_dict(random_sit().state_dict())
    rng = np.random.default_rng(0)
    x, t, y = rng.standard_normal((3, 3, 8, 8)), np.array([0.0, 499.0, 999.0]), rng.integers(0, 6, 3)
    expected = reference_forward(model.state_dict(), SMALL, x, t, y)
    got = model.double()(torch.from_numpy(x), torch.from_numpy(t), torch.from_numpy(y)).detach().numpy()
    assert got.shape == (3, 6, 8, 8)
    # Angles up to 999 rounded to float32 are 3e-5 off, 1000 times those of times in [0, 1].
    assert relative_error(got, expected) < 3e-3
    with pytest.raises(ValueError, match="learn_sigma"):
        DiT(SiTConfig(**{**SMALL.to_dict(), "learn_sigma": False}))


def test_published_shapes_by_name():
    """Parameters in millions, from DiT's table 1 (S 33, B 130, L 458, XL 675 at patch 2) and its parameter counts."""
    millions = {"S/2": 33, "B/2": 130, "L/2": 458, "XL/2": 675, "S/8": 33, "B/4": 130, "L/8": 459, "XL/8": 676}
    with torch.device("meta"):
        for name, expected in millions.items():
            count = sum(p.numel() for p in SiT(SiTConfig.named(f"SiT-{name}")).parameters()) / 1e6
            assert count == pytest.approx(expected, abs=1)
    assert [SiTConfig.named(name).name for name in MODEL_NAMES] == list(MODEL_NAMES) and len(MODEL_NAMES) == 12
    assert SiTConfig.named("DiT-XL/2") == SiTConfig() and SMALL.name == "custom"
    assert SiTConfig.named("B/4", image_size=64).image_shape == (4, 64, 64)
    for wrong in ("SiT-XL", "XL/3", "H/2", "XL/2/2", ""):
        with pytest.raises(ValueError, match="choose SiT- or DiT- with one of S/2"):
            SiTConfig.named(wrong)


def test_official_key_layout_and_shapes_of_xl():
    with torch.device("meta"):
        keys = {k: tuple(v.shape) for k, v in SiT(SiTConfig()).state_dict().items()}
    assert keys["x_embedder.proj.weight"] == (1152, 4, 2, 2)
    assert keys["pos_embed"] == (1, 256, 1152)
    assert keys["y_embedder.embedding_table.weight"] == (1001, 1152)
    assert keys["t_embedder.mlp.0.weight"] == (1152, 256) and keys["t_embedder.mlp.2.bias"] == (1152,)
    assert keys["blocks.27.attn.qkv.weight"] == (3456, 1152) and keys["blocks.0.attn.proj.bias"] == (1152,)
    assert keys["blocks.3.mlp.fc1.weight"] == (4608, 1152) and keys["blocks.3.mlp.fc2.weight"] == (1152, 4608)
    assert keys["blocks.9.adaLN_modulation.1.weight"] == (6912, 1152)
    assert keys["final_layer.linear.weight"] == (32, 1152)
    assert keys["final_layer.adaLN_modulation.1.weight"] == (2304, 1152)
    # 10 tensors a block, 8 before and 4 after them, the fixed position table among the 8 as in the official file
    assert len(keys) == 28 * 10 + 8 + 4
    assert sum(math.prod(s) for s in keys.values()) == pytest.approx(675.1e6, rel=2e-3)


def test_position_table_is_half_columns_half_rows():
    table = sincos_positions(16, 3)
    assert torch.equal(table[0 * 3 + 1, :8], table[2 * 3 + 1, :8])  # same column, other row
    assert torch.equal(table[1 * 3 + 0, 8:], table[1 * 3 + 2, 8:])  # same row, other column


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_shape_is_inferred(learn_sigma):
    config = SiTConfig(**{**SMALL.to_dict(), "learn_sigma": learn_sigma})
    assert infer_config(random_sit(config).state_dict(), heads=4) == config


def test_published_head_numbers_are_inferred():
    for name, heads in {"S/2": 6, "B/8": 12, "L/4": 16, "XL/2": 16}.items():
        with torch.device("meta"):
            config = SiTConfig.named(name)
            assert infer_config(SiT(config).state_dict()) == config and config.heads == heads


def test_train_mode_changes_nothing():
    """No label dropout or other mode: the trap that corrupts log-probabilities cannot occur."""
    model = random_sit()
    x, t, y = torch.randn(3, 3, 8, 8), torch.rand(3), torch.tensor([0, 1, 4])
    assert torch.equal(model.eval()(x, t, y), model.train()(x, t, y))


def test_zero_initialisation_predicts_zero_velocity():
    model = SiT(SMALL)
    assert not model(torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([0, 1])).any()


@pytest.mark.slow
def test_xl_2_loads_runs_and_trains_within_24_gigabytes(tmp_path, capsys):
    """The true shape: a checkpoint from disk, a forward pass held against float64, one AdamW step.

    Prints seconds and the process's peak memory; run with `pytest -m slow -s`.
    """
    clock = [time.perf_counter()]
    torch.save(near_trained(SiT(SiTConfig.named("SiT-XL/2"))).state_dict(), tmp_path / "SiT-XL-2-256.pt")
    clock.append(time.perf_counter())
    model = load_model(tmp_path / "SiT-XL-2-256.pt")
    clock.append(time.perf_counter())
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(675.1e6, rel=1e-3)
    rng = np.random.default_rng(2)
    x, t, y = rng.standard_normal((1, 4, 32, 32)), rng.random(1), rng.integers(0, 1000, 1)
    arguments = torch.from_numpy(x).float(), torch.from_numpy(t).float(), torch.from_numpy(y)
    with torch.no_grad():
        got = model(*arguments).numpy()
    clock.append(time.perf_counter())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)
    loss = (model(*arguments) - torch.from_numpy(x).float()).square().mean()
    loss.backward()
    optimizer.step()
    clock.append(time.perf_counter())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kilobytes on Linux
    optimizer.zero_grad()
    del optimizer
    with torch.no_grad():
        after = (model(*arguments) - torch.from_numpy(x).float()).square().mean()
    state = load_model(tmp_path / "SiT-XL-2-256.pt").state_dict()
    (tmp_path / "SiT-XL-2-256.pt").unlink()  # 2.7 GB, which pytest would keep
    error = relative_error(got, reference_forward(state, model.config, x, t, y)[:, :4])
    save, load, forward, step = np.diff(clock)
    with capsys.disabled():
        print(
            f"\nSiT-XL/2, one image: make and save {save:.1f} s, load {load:.1f} s, forward {forward:.2f} s, "
            f"training step {step:.2f} s, peak {peak:.1f} GB, float32 against float64 {error:.1e}, "
            f"loss {float(loss):.4f} to {float(after):.4f}"
        )
    assert error < FLOAT32_ERROR
    assert peak < 24 and after < loss


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match="patch_size 3"):
        SiT(SiTConfig(image_size=8, patch_size=3, channels=1, width=48, depth=1, heads=4, num_classes=2))
    with pytest.raises(ValueError, match="heads 5"):
        SiT(SiTConfig(image_size=8, patch_size=2, channels=1, width=48, depth=1, heads=5, num_classes=2))


def test_gelu_as_compiled_is_the_same_function(monkeypatch):
    """x σ(2u) for x (1 + tanh u)/2: value and slope, by the eager form in float64."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    # a product of |x| ≤ 12 or of its square and factors below 1; float32 adds the rounding of 2u ≤ 141 to σ's exponent
    for dtype, error in ((torch.float64, 1e-13), (torch.float32, 2e-5)):
        x = torch.linspace(-12, 12, 2_001, dtype=dtype).requires_grad_()
        z = x.detach().double().requires_grad_()
        out, expected = gelu(x), F.gelu(z, approximate="tanh")
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=error)
        slopes = torch.autograd.grad(out.sum(), x)[0].double(), torch.autograd.grad(expected.sum(), z)[0]
        torch.testing.assert_close(*slopes, rtol=0, atol=error)
