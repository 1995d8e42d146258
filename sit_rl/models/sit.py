"""SiT, a transformer over image patches that predicts the velocity of a flow (Ma et al. 2024, arXiv 2401.08740).

Blocks are DiT's adaLN-Zero (Peebles & Xie 2023, arXiv 2212.09748): the class and the time give each block a shift, a
scale and a gate for its attention and its MLP, all zero at initialisation, so that every block starts as the identity.
Parameter names and shapes are those of the official checkpoint. The model never drops labels; pretraining passes the
null class. So train and eval mode give the same log-probabilities.

Shape legend: n images, C channels, H height = width, P patch, T = (H/P)² tokens, D width.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sit_rl.models.attention import attention, load
from sit_rl.models.conditions import Conditions
from sit_rl.models.generator_model import GeneratorModel

# Frequencies of the time embedding as published: 256, with periods up to 10,000 · 2π.
TIME_FREQUENCIES, TIME_MAX_PERIOD = 256, 10_000
# Number of operations after which Inductor stores a value on a CPU, by default 30. GELU's gradient has fewer, so it was
# computed again in the column sum for fc1's bias: 30 ms per block, and 10 ms with the stored value.
CPU_COMPILE_OPTIONS = {"realize_opcount_threshold": 8}
# Width, depth and heads of the published sizes (DiT, arXiv 2212.09748, table 1; SiT has the same).
SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
PATCH_SIZES = (2, 4, 8)
IMAGENET_CLASSES = 1000  # of the published models
# The linear layers of a block that LoRA adapts.
LORA_TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
MODEL_NAMES = tuple(f"{size}/{patch}" for size in SIZES for patch in PATCH_SIZES)


@dataclass(frozen=True)
class SiTConfig:
    """Shape of a SiT: all that the tensors of a checkpoint determine, the number of heads, and the null class."""

    image_size: int = 32
    patch_size: int = 2
    channels: int = 4
    width: int = 1152
    depth: int = 28
    heads: int = 16
    num_classes: int = 1000
    learn_sigma: bool = True  # the last layer has 2·C outputs; the first half is the velocity
    null_class: bool = True  # the label table has one row more than classes, for the null class that guidance needs

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, H)."""
        return self.channels, self.image_size, self.image_size

    @classmethod
    def named(cls, name: str, **changes: Any) -> SiTConfig:
        """A published shape, for example 'SiT-XL/2' or 'B/4', for 32×32×4 latents of 1000 classes.

        changes  fields with other values

        ValueError, with all names, for an unknown name.
        """
        size, _, patch = name.removeprefix("SiT-").removeprefix("DiT-").partition("/")
        if f"{size}/{patch}" not in MODEL_NAMES:
            raise ValueError(f"model is {name!r}; choose SiT- or DiT- with one of {', '.join(MODEL_NAMES)}")
        width, depth, heads = SIZES[size]
        fields: dict[str, Any] = {"patch_size": int(patch), "width": width, "depth": depth, "heads": heads} | changes
        return cls(**fields)

    @property
    def name(self) -> str:
        """The published name, such as 'XL/2', or 'custom'."""
        sizes = {shape: size for size, shape in SIZES.items()}
        name = f"{sizes.get((self.width, self.depth, self.heads))}/{self.patch_size}"
        return name if name in MODEL_NAMES else "custom"

    @property
    def label_rows(self) -> int:
        """Rows of the label table."""
        return self.num_classes + self.null_class

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a file's metadata."""
        return asdict(self)


class PatchEmbed(nn.Module):
    """Non-overlapping patches [n, C, H, H] → tokens [n, T, D]."""

    def __init__(self, config: SiTConfig):
        super().__init__()
        self.proj = nn.Conv2d(config.channels, config.width, config.patch_size, config.patch_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the strided convolution as one matrix product over flattened patches."""
        n, channels, height, _ = x.shape
        patch = self.proj.kernel_size[0]
        grid = height // patch
        patches = x.view(n, channels, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(n, grid * grid, channels * patch**2)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


def time_frequencies(device: torch.device) -> torch.Tensor:
    """The angular frequencies of the time embedding, float32 [TIME_FREQUENCIES / 2]."""
    half = TIME_FREQUENCIES // 2
    exponent = torch.arange(half, dtype=torch.float32, device=device) / half
    return torch.exp(-math.log(TIME_MAX_PERIOD) * exponent)


class TimeEmbed(nn.Module):
    """t in [0, 1] [n] → [n, D]: sinusoids (cosines first), then a two-layer MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """Embed times t [n]."""
        angles = t.float()[:, None] * time_frequencies(t.device)
        weight = cast(nn.Linear, self.mlp[0]).weight
        out: torch.Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(weight.dtype))
        return out


class LabelEmbed(nn.Module):
    """Class labels [n] → [n, D]; the row after the classes, index `num_classes`, is the null class if there is one."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(rows, width)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """Look labels up."""
        out: torch.Tensor = self.embedding_table(y)
        return out


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused qkv projection."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.backend = heads, "sdpa"
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend over the tokens of x [n, T, D]."""
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, self.heads, width // self.heads).unbind(2)
        out: torch.Tensor = self.proj(attention(q, k, v, self.backend).reshape(n, tokens, width))
        return out


class Mlp(nn.Module):
    """Two linear layers with a hidden width of 4·D and the tanh form of GELU."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply to tokens [n, T, D]."""
        out: torch.Tensor = self.fc2(gelu(self.fc1(x)))
        return out


def gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU's tanh form (Hendrycks & Gimpel 2016, arXiv 1606.08415): x (1 + tanh u)/2, u = √(2/π) (x + 0.044715 x³).

    Compiled code uses the same function as x σ(2u). Both forms become one loop, but an exponential is faster than tanh:
    4.9 instead of 11.9 ms for 3.3 million values on one CPU core.
    """
    if not torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x (1 + scale) + shift for tokens x [n, T, D], shift and scale [n, D]."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


def normalise(x: torch.Tensor) -> torch.Tensor:
    """LayerNorm without parameters; ε = 1e-6 as published."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class Block(nn.Module):
    """Transformer block; its shifts, scales and gates are computed from the condition c [n, D]."""

    def __init__(self, config: SiTConfig):
        super().__init__()
        self.attn = SelfAttention(config.width, config.heads)
        self.mlp = Mlp(config.width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 6 * config.width))

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """x + gate·attention(modulated x), then the same with the MLP."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=-1)
        x = torch.addcmul(x, gate_a[:, None], self.attn(modulate(normalise(x), shift_a, scale_a)))
        return torch.addcmul(x, gate_m[:, None], self.mlp(modulate(normalise(x), shift_m, scale_m)))


def compile_blocks(model: GeneratorModel, device: torch.device) -> None:
    """torch.compile every block separately, in place. Blocks with equal input shapes share their compiled code."""
    for block in model.units():
        block.compile(options=CPU_COMPILE_OPTIONS if device.type == "cpu" else None)


class FinalLayer(nn.Module):
    """Tokens [n, T, D] → flattened output patches [n, T, P·P·channels], with C or 2·C channels."""

    def __init__(self, config: SiTConfig):
        super().__init__()
        out_channels = config.channels * (2 if config.learn_sigma else 1)
        self.linear = nn.Linear(config.width, config.patch_size**2 * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 2 * config.width))

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Modulate and project."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        out: torch.Tensor = self.linear(modulate(normalise(x), shift, scale))
        return out


class SiT(GeneratorModel):
    """Velocity v(x, t, y) of the flow from noise (t = 0) to data (t = 1)."""

    frozen = frozenset({"pos_embed"})

    def __init__(self, config: SiTConfig):
        super().__init__()
        if config.image_size % config.patch_size:
            raise ValueError(
                f"image_size {config.image_size} is not a multiple of patch_size {config.patch_size}; change one"
            )
        if config.heads < 1 or config.width % config.heads:
            raise ValueError(f"width {config.width} is not a multiple of heads {config.heads}; change one")
        self.config = config
        self.x_embedder = PatchEmbed(config)
        self.t_embedder = TimeEmbed(config.width)
        self.y_embedder = LabelEmbed(config.label_rows, config.width)
        grid = config.image_size // config.patch_size
        self.pos_embed = nn.Parameter(sincos_positions(config.width, grid)[None], requires_grad=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)
        self.initialise()

    @property
    def sample_shape(self) -> tuple[int, int, int]:  # noqa: D102
        return self.config.image_shape

    @property
    def conditions(self) -> Conditions:
        """The classes."""
        return Conditions.numbered(self.config.num_classes)

    @property
    def null_condition(self) -> int | None:
        """The row of the label table after the classes."""
        return self.config.num_classes if self.config.null_class else None

    def units(self) -> list[nn.Module]:  # noqa: D102
        return list(self.blocks)

    def lora_targets(self) -> list[str]:
        """The layers of attention and MLP, and not the modulation."""
        return [f"blocks.{i}.{name}" for i in range(len(self.blocks)) for name in LORA_TARGETS]

    def initialise(self) -> None:
        """Published initialisation: Xavier for linear layers, N(0, 0.02²) embeddings, zero modulation and output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(cast(torch.Tensor, self.x_embedder.proj.bias))
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for layer in (self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            nn.init.normal_(cast(nn.Linear, layer).weight, std=0.02)
        modulations = [cast(Block, block).adaLN_modulation[1] for block in self.blocks]
        for layer in [*modulations, self.final_layer.adaLN_modulation[1], self.final_layer.linear]:
            nn.init.zeros_(cast(nn.Linear, layer).weight)
            nn.init.zeros_(cast(nn.Linear, layer).bias)

    def set_attention(self, backend: str) -> None:
        """Use this kernel, a result of `sit_rl.models.attention.choose`, in every block."""
        load(backend)
        for block in self.blocks:
            cast(Block, block).attn.backend = backend

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Velocity [n, C, H, H] at x [n, C, H, H], times t [n] in [0, 1], labels y int64 [n] (num_classes = null)."""
        return self.outputs(x, t, y)[:, : self.config.channels]

    def outputs(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """All channels of the last layer, [n, C or 2C, H, H]; arguments as in `forward`."""
        config = self.config
        c = self.t_embedder(t) + self.y_embedder(y)
        tokens = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, c)
        patches = self.final_layer(tokens, c)
        grid, patch = config.image_size // config.patch_size, config.patch_size
        n, out_channels = len(x), patches.shape[-1] // patch**2
        image: torch.Tensor = patches.view(n, grid, grid, patch, patch, out_channels).permute(0, 5, 1, 3, 2, 4)
        return image.reshape(n, out_channels, config.image_size, config.image_size)


def sincos_positions(width: int, grid: int) -> torch.Tensor:
    """Fixed 2-D sine-cosine positions, float32 [grid², width]: columns in the first half, rows in the second."""
    omega = 1 / 10_000 ** (np.arange(width // 4) / (width / 4))
    rows, columns = np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij")
    tables = [
        np.concatenate([np.sin(a), np.cos(a)], axis=1) for a in (np.outer(p.ravel(), omega) for p in (columns, rows))
    ]
    return torch.from_numpy(np.concatenate(tables, axis=1)).float()


def published_heads(width: int, depth: int) -> int | None:
    """Number of heads of the published SiT with this width and depth; None if there is none."""
    return {(w, d): h for w, d, h in SIZES.values()}.get((width, depth))


def likely_null_class(rows: int) -> bool:
    """Whether a label table probably ends with a null class: not if it has 1 row, or as many as ImageNet classes."""
    return rows not in (1, IMAGENET_CLASSES)


def infer_config(state: dict[str, torch.Tensor], heads: int | None = None, null_class: bool | None = None) -> SiTConfig:
    """The shape of a SiT from its tensors, which do not show two of its numbers.

    heads       None: the published number, or 72, 64 or 32 channels per head
    null_class  whether the label table ends with a row for it; None: `likely_null_class`

    ValueError that names the first missing key if `state` is not that of a SiT.
    """
    try:
        width, channels, patch, _ = state["x_embedder.proj.weight"].shape
        outputs = state["final_layer.linear.weight"].shape[0]
        tokens = state["pos_embed"].shape[1]
        rows = state["y_embedder.embedding_table.weight"].shape[0]
    except KeyError as error:
        first = f", and begins with {next(iter(state))!r}" if state else ""
        raise ValueError(f"not a SiT checkpoint: it has no tensor {error}{first}; choose another file") from None
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    if heads is None:
        others = (width // size for size in (72, 64, 32, width) if width % size == 0)
        heads = published_heads(width, depth) or next(others)
    null_class = likely_null_class(rows) if null_class is None else null_class
    if rows <= null_class:
        raise ValueError(f"its label table of {rows} rows has no class" + (" beside the null class" if rows else ""))
    return SiTConfig(
        image_size=math.isqrt(tokens) * patch, patch_size=patch, channels=channels, width=width, depth=depth,
        heads=heads, num_classes=rows - null_class, learn_sigma=outputs == 2 * channels * patch**2,
        null_class=null_class,
    )  # fmt: skip
