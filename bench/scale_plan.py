"""What a training step would cost on many GPUs, and what part of it the reward takes.  Computed, not measured.

    python -m bench.scale_plan                   the SiT-XL/2 preset on 1, 8, 64 and 1,024 H100
    python -m bench.scale_plan --gpu B200

A step generates images, decodes them, extracts features, scores swaps, and updates the generator.  The first three and
the update are divided among the GPUs.  The reward is not: every rank needs all scores, so each computes them from the
gathered features, and the preparation of the rolling reference is one matrix on one GPU.  So its part of a step
grows with the number of GPUs, and at some number it reaches 5%.

    rollout, update     counted flops / (GPUs · peak · UTILISATION) of sit_rl.runs.gpu_plan
    weights, gradients  FSDP: each micro-batch gathers the bfloat16 weights twice and sums float32 gradients once;
                        (GPUs − 1)/GPUs of them pass each GPU's link
    features            one gather of the step's float32 features
    swaps               bench.roofline's bound of a score, per candidate, times SLOWER
    prepare             EIGH_SECONDS and PLAN_SECONDS, less the update and the rollout that they run beside

Everything that is assumed has its source below.  Nothing here has run on a GPU.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import tyro

from bench import roofline
from sit_rl.config import Config, resolve
from sit_rl.options.option import filled_in
from sit_rl.presets import PRESETS
from sit_rl.runs.gpu_plan import PEAKS, PRESET_MODELS, UTILISATION, count_flops, count_parameters, total_flops
from sit_rl.runs.planned_model import decoding

PRESET = "sit-xl-imagenet256"
COUNTS = (1, 8, 64, 1024)
PART = 0.05  # of a step, at which the reward is said to cost something
D = 2048  # features of Inception

# Bytes a second that a GPU sends and receives at once: NVLink 4 inside a machine of 8 (NVIDIA's H100 data sheet, 900
# GB/s both ways), and one 400 Gb/s InfiniBand port a GPU between machines.
NVLINK, NETWORK, PER_MACHINE = 450e9, 50e9, 8

# A float64 eigendecomposition of order 2048 on a current GPU: 0.2 to 0.5 s are reported for cuSOLVER; unmeasured here.
EIGH_SECONDS = 0.35

# The weight plan of that reference on a core of the host, measured at d = 2048.
PLAN_SECONDS = 0.1

# How much slower than the sum of its bounds a score is taken: between 1.5 and 2 is usual for chains of small kernels.
SLOWER = 2.0

# The roofline's name of each GPU that --gpu takes.
ROOFLINES = {"A100": "A100 SXM", "H100": "H100 SXM", "H200": "H200", "B200": "B200"}


class Step(NamedTuple):
    """Seconds of the parts of one step on one number of GPUs.

    divided      rollout, decoding, features, update
    weights      gathers and sums of FSDP, not overlapped
    features     the gather of features
    swaps        scores of all candidates, on every GPU
    prepare      what eigendecomposition and weight plan add beyond the update and the rollout that they run beside
    """

    gpus: int
    divided: float
    weights: float
    features: float
    swaps: float
    prepare: float

    @property
    def whole(self) -> float:
        """Seconds of the step."""
        return self.divided + self.weights + self.features + self.swaps + self.prepare

    @property
    def reward_part(self) -> float:
        """The part of the step that the reward takes: features' gather, swaps, preparation."""
        return (self.features + self.swaps + self.prepare) / self.whole


@cache
def counted() -> tuple[Config, dict[str, float], int]:
    """The preset, the flops of each phase of its run, and its generator's parameters."""
    config, (_, shape) = resolve(PRESETS[PRESET][1]), PRESET_MODELS[PRESET]
    return config, total_flops(config, count_flops(shape), decoding(shape).flops), count_parameters(shape)


def step_on(gpus: int, gpu: str = "H100") -> Step:
    """The parts of one step of the preset on this number of GPUs, all of one kind."""
    config, phases, parameters = counted()
    peak = PEAKS[gpu]["bf16"] * UTILISATION
    update = phases["update"] / config.steps / peak / gpus
    rollout, refresh = (phases[name] / config.steps / peak / gpus for name in ("rollout", "refresh"))
    swaps = config.reward.images_per_step / roofline.M * _seconds_a_candidate(gpu)
    link = NVLINK if gpus <= PER_MACHINE else NETWORK
    return Step(
        gpus,
        rollout + refresh + update,
        _weights_seconds(config, gpus, link, parameters),
        4 * D * config.reward.images_per_step * (gpus - 1) / gpus / link,
        swaps,
        max(0.0, EIGH_SECONDS + PLAN_SECONDS - update - rollout),
    )


def _seconds_a_candidate(gpu: str) -> float:
    device = next(device for device in roofline.DEVICES if device.name == ROOFLINES[gpu])
    return SLOWER * roofline.score_bound(device) / roofline.B


def _weights_seconds(config: Config, gpus: int, link: float, parameters: int) -> float:
    """Gathers of bfloat16 weights, forward and backward, and sums of float32 gradients, of all updates of a step."""
    if gpus == 1:
        return 0.0
    share = -(-filled_in(config.update.minibatch) // gpus)
    micro = -(-share // min(config.run.micro_batch or share, share))
    moved = filled_in(config.update.updates) * (micro * 2 * 2 + 4) * parameters
    return moved * (gpus - 1) / gpus / link


def gpus_at(part: float, gpu: str = "H100") -> int:
    """The smallest power of two of GPUs on which the reward takes at least this part of a step."""
    gpus = 1
    while step_on(gpus, gpu).reward_part < part and gpus < 2**20:
        gpus *= 2
    return gpus


def table(gpu: str = "H100") -> str:
    """A Markdown table of the steps, and the number at which the reward takes 5%."""
    heading = ["GPUs", "generate, features, update", "weights, gradients", "gather features", "swaps"]
    heading += ["prepare", "step", "reward"]
    lines = [f"| {' | '.join(heading)} |", "|---:|" + 7 * "---:|"]
    for step in (step_on(gpus, gpu) for gpus in COUNTS):
        seconds = " | ".join(_shown(x) for x in (*step[1:], step.whole))
        lines.append(f"| {step.gpus:,} | {seconds} | {100 * step.reward_part:.2g}% |")
    launches = roofline.STEP_LAUNCHES * roofline.LAUNCH
    lines.append(
        f"\nThe reward takes {PART:.0%} of a step from {gpus_at(PART, gpu):,} GPUs on (computed for {gpu}). The "
        f"launches of its kernels, which CUDA graphs would save, take at most {_shown(launches)}: "
        f"{100 * launches / step_on(COUNTS[-1], gpu).whole:.2g}% of a step on {COUNTS[-1]:,} GPUs."
    )
    return "\n".join(lines)


def _shown(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{seconds * 1e3:.3g} ms"


def main(gpu: str = "H100") -> None:
    """Print the plan of the SiT-XL/2 preset. Computed, not measured."""
    print(table(gpu))


if __name__ == "__main__":
    tyro.cli(main)
