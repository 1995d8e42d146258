"""SiT against a float64 restatement of the published equations, and its checkpoints in every form they come in."""

import argparse
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sit_rl.models.loading import load_sit
from sit_rl.models.sit import SiT, SiTConfig, infer_config, sincos_positions

SMALL = SiTConfig(image_size=8, patch_size=2, channels=3, width=48, depth=2, heads=4, num_classes=5, learn_sigma=True)


def random_sit(config=SMALL, seed=0):
    torch.manual_seed(seed)
    model = SiT(config)
    for p in model.parameters():
        if p.requires_grad:
            p.data = 0.2 * torch.randn_like(p)
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
    return image[:, : config.channels]


@pytest.mark.parametrize("learn_sigma", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "math"])
def test_forward_is_the_published_network(learn_sigma, attention):
    config = SiTConfig(**{**SMALL.to_dict(), "learn_sigma": learn_sigma})
    model = random_sit(config).double()
    model.set_attention(attention)
    rng = np.random.default_rng(0)
    x, t, y = rng.standard_normal((4, 3, 8, 8)), rng.random(4), rng.integers(0, 6, 4)
    expected = reference_forward(model.state_dict(), config, x, t, y)
    got = model(torch.from_numpy(x), torch.from_numpy(t), torch.from_numpy(y)).detach().numpy()
    # Time angles are float32 by design (as published): 1e-7 relative, amplified by two layers of weights of size 0.2.
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


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


def test_published_head_sizes():
    with torch.device("meta"):
        assert infer_config(SiT(SiTConfig()).state_dict()).heads == 16


def test_train_mode_changes_nothing():
    """No label dropout or other mode: the trap that corrupts log-probabilities cannot occur."""
    model = random_sit()
    x, t, y = torch.randn(3, 3, 8, 8), torch.rand(3), torch.tensor([0, 1, 4])
    assert torch.equal(model.eval()(x, t, y), model.train()(x, t, y))


def test_zero_initialisation_predicts_zero_velocity():
    model = SiT(SMALL)
    assert not model(torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([0, 1])).any()


def save_forms(model, folder):
    state = model.state_dict()
    save_file(state, folder / "a.safetensors", {"heads": "4"})
    torch.save(state, folder / "bare.pt")
    zeros = {k: torch.zeros_like(v) for k, v in state.items()}
    args = argparse.Namespace(model="SiT-S/2", lr=1e-4)
    torch.save({"model": zeros, "ema": state, "opt": {"state": {}}, "args": args}, folder / "trainer.pt")
    return ("a.safetensors", "bare.pt", "trainer.pt")


def test_every_checkpoint_form_loads(tmp_path):
    config = SiTConfig(**{**SMALL.to_dict(), "width": 144, "heads": 2})  # 72 channels a head, as in XL
    model = random_sit(config)
    for name in save_forms(model, tmp_path)[1:]:
        loaded = load_sit(tmp_path / name)
        assert loaded.config == config
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_safetensors_metadata_names_the_heads(tmp_path):
    save_forms(random_sit(), tmp_path)
    assert load_sit(tmp_path / "a.safetensors").config == SMALL


class Payload:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (print, ("this must not run",))


def test_bad_checkpoints_are_named(tmp_path, capsys):
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    wrong = random_sit().state_dict()
    wrong["blocks.1.attn.qkv.weight"] = torch.zeros(3, 3)
    save_file(wrong, tmp_path / "wrong.safetensors")
    torch.save({"ema": Payload()}, tmp_path / "evil.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, message in {
        "missing.pt": "does not exist",
        "cut.safetensors": "cannot be read as safetensors",
        "other.safetensors": "no tensor 'x_embedder.proj.weight'",
        "wrong.safetensors": "not of an architecture",
        "evil.pt": "cannot be read as tensors alone",
        "list.pt": "holds a list",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            load_sit(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    assert "must not run" not in capsys.readouterr().out


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match="patch_size 3"):
        SiT(SiTConfig(image_size=8, patch_size=3, channels=1, width=48, depth=1, heads=4, num_classes=2))
    with pytest.raises(ValueError, match="heads 5"):
        SiT(SiTConfig(image_size=8, patch_size=2, channels=1, width=48, depth=1, heads=5, num_classes=2))
