"""Speed of SiT next to the same network built from parts of timm and diffusers, and of attention's back ends.

    python bench/bench_sit.py                         every case, 1 thread
    python bench/bench_sit.py --cases fashion s2 --rounds 15 --threads 2

In a round, every provider runs once, in turn.  The tables give medians over rounds, so a slow moment of the machine
affects all providers.  `× ours` above 1 means slower than SiT in its default form.  All providers have the same layers
of the same sizes, with random weights.  timm: its Attention and Mlp inside adaLN-Zero blocks, as in the official SiT
and DiT.  diffusers: DiTTransformer2DModel, which also embeds time and label again in every block.  A package that is
not installed is left out.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from tqdm import tqdm

from bench.measuring import DEVICE, installed
from sit_rl.components.image_sets import FASHION_SIT
from sit_rl.models import attention
from sit_rl.models.sit import SiT, SiTConfig, compile_blocks

OURS = "sit_rl"
PASSES = ("forward", "forward and backward")
# Name: shape and batch. The first is the embedded model with a training minibatch; the others fit a CPU.
MODELS = {
    "fashion": (FASHION_SIT, 400),
    "s2": (SiTConfig.named("S/2"), 2),
    "b2": (SiTConfig.named("B/2"), 1),
}
# Name: [n, tokens, heads, channels per head].
ATTENTION = {"attention-fashion": (400, 16, 4, 32), "attention-xl": (2, 256, 16, 72)}


class TimmBlock(nn.Module):
    """adaLN-Zero around timm's attention and MLP."""

    def __init__(self, config: SiTConfig):
        super().__init__()
        from timm.layers import Mlp
        from timm.models.vision_transformer import Attention

        width = config.width
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.attn = Attention(width, num_heads=config.heads, qkv_bias=True)
        self.mlp = Mlp(width, 4 * width, act_layer=lambda: nn.GELU(approximate="tanh"))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, c):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c).unsqueeze(1).chunk(6, dim=-1)
        x = x + gate_a * self.attn(self.norm1(x) * (1 + scale_a) + shift_a)
        return x + gate_m * self.mlp(self.norm2(x) * (1 + scale_m) + shift_m)


class TimmSiT(SiT):
    """SiT with timm's blocks and patch embedding; the rest is ours."""

    def __init__(self, config: SiTConfig):
        from timm.layers import PatchEmbed

        super().__init__(config)
        self.blocks = nn.ModuleList(TimmBlock(config) for _ in range(config.depth))
        self.x_embedder = PatchEmbed(config.image_size, config.patch_size, config.channels, config.width)


def diffusers_model(config: SiTConfig) -> tuple[nn.Module, Callable]:
    """DiTTransformer2DModel of the same shape, and it as a function (x, t, y)."""
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        in_channels=config.channels,
        out_channels=config.channels * (2 if config.learn_sigma else 1),
        num_layers=config.depth,
        sample_size=config.image_size,
        patch_size=config.patch_size,
        num_embeds_ada_norm=config.num_classes,
    ).eval()  # training mode would drop labels
    return model, lambda x, t, y: model(x, t, y).sample


def compiled(config: SiTConfig) -> SiT:
    """Our SiT with every block compiled on its own."""
    model = SiT(config)
    compile_blocks(model, DEVICE)
    return model


def model_providers(config: SiTConfig) -> dict[str, tuple[nn.Module, Callable]]:
    """Provider: (module, call)."""
    makers = {OURS: SiT, "sit_rl, blocks compiled": compiled}
    if installed("timm"):
        makers["timm blocks"] = TimmSiT
    providers = {name: (module, module) for name, make in makers.items() if (module := make(config))}
    if installed("diffusers"):
        providers["diffusers DiTTransformer2DModel"] = diffusers_model(config)
    for name in ("timm", "diffusers"):
        if not installed(name):
            print(f"{name} is left out: it is not installed", flush=True)
    return providers


def bench_model(name: str, rounds: int, only: str | None) -> list[str]:
    """Tables of the forward pass and of forward and backward, or only of the pass `only`."""
    config, batch = MODELS[name]
    torch.manual_seed(0)
    x, t = torch.randn(batch, *config.image_shape, device=DEVICE), torch.rand(batch, device=DEVICE)
    y = torch.randint(config.num_classes, (batch,), device=DEVICE)
    providers = model_providers(config)
    for module, _ in providers.values():  # layers that start at zero would multiply zeros
        module.to(DEVICE)
        for p in module.parameters():
            p.data.normal_(0, 0.05)

    def forward(call):
        with torch.no_grad():
            return call(x, t, y)

    def backward(module, call):
        module.zero_grad()
        call(x, t, y).square().mean().backward()

    size = f"{name}: {config.width} wide, {config.depth} deep, {(config.image_size // config.patch_size) ** 2} tokens"
    passes = {
        PASSES[0]: {key: lambda c=call: forward(c) for key, (_, call) in providers.items()},
        PASSES[1]: {key: lambda p=pair: backward(*p) for key, pair in providers.items()},
    }
    asked = {what: calls for what, calls in passes.items() if only in (None, what)}
    return [table(f"{size}, batch {batch}, {what}", alternate(calls, rounds)) for what, calls in asked.items()]


def bench_attention(name: str, rounds: int, only: str | None) -> list[str]:
    """A table of the back ends that run on this machine, forward and backward together."""
    shape = ATTENTION[name]
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    given = [torch.randn(shape, device=DEVICE, dtype=dtype).requires_grad_() for _ in range(3)]
    calls = {}
    for backend in ("sdpa", "math", *attention.SDPA_KERNELS, *attention.FLASH):

        def call(backend=backend):
            out = attention.attention(*given, backend)
            torch.autograd.grad(out.sum(), given)

        try:
            attention.choose(backend, shape[-1], dtype, DEVICE)
            call()
        except (ValueError, RuntimeError) as error:
            print(f"{name}: {backend} does not run here: {' '.join(str(error).split())[:90]}", flush=True)
            continue
        calls[backend] = call
    chosen = attention.explain("auto", shape[-1], dtype, DEVICE)
    calls = {OURS: calls.pop(attention.choose("auto", shape[-1], dtype, DEVICE)), **calls}
    heading = f"{name} [n, tokens, heads, channels] = {list(shape)}, forward and backward; {OURS} is {chosen}"
    return [table(heading, alternate(calls, rounds))]


def alternate(calls: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Median seconds of each call, in turns. The first two rounds (compilation, new memory) do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in tqdm(range(rounds + 2), desc="rounds", leave=False):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            if i >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(heading: str, medians: dict[str, float]) -> str:
    """Markdown table: milliseconds and the ratio to ours."""
    lines = [f"\n**{heading}**\n", "| | ms | × ours |", "|---|---:|---:|"]
    lines += [f"| {name} | {1e3 * s:.2f} | {s / medians[OURS]:.2f} |" for name, s in medians.items()]
    return "\n".join(lines)


CASES = dict.fromkeys(ATTENTION, bench_attention) | dict.fromkeys(MODELS, bench_model)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=PASSES, help="pass of the models; default: both")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, {platform.machine()}, {arguments.rounds} rounds")
    for name in arguments.cases:
        print("\n".join(CASES[name](name, arguments.rounds, arguments.only)), flush=True)


if __name__ == "__main__":
    main()
