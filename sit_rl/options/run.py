"""How to run it: processes, memory, saving, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sit_rl.options.option import check_bounds, option


@dataclass(frozen=True)
class RunOptions:
    """How to run it: processes, memory, saving, and when to stop."""

    attention: Literal["auto", "flash", "sdpa", "math"] = option("auto")
    precision: Literal["float32", "bf16"] = option(
        "float32",
        "bf16: matrix products of the generator in bfloat16 and a GPU's convolutions of the autoencoder in TF32; "
        "weights, log-probabilities, losses, features and the reward stay float32, which float32 means for everything",
    )
    parallel: Literal["auto", "ddp", "fsdp"] = option(
        "auto",
        "several ranks: whole copies (ddp), sharded (fsdp); auto: fsdp above 300M trained parameters",
        machine=True,
    )
    micro_batch: int = option(
        0, "images of a minibatch that a rank passes at once; 0 means all of its share", least=0, machine=True
    )
    activation_checkpointing: bool = option(
        False, "keep only the blocks' inputs and recompute the rest in the backward pass", machine=True
    )
    compile: Literal["auto", "on", "off"] = option("auto", "torch.compile of the blocks; auto: on a GPU", machine=True)
    threads: int = option(0, "CPU threads of a rank; 0: the cores divided among the ranks", machine=True)
    keep_checkpoints: int = option(2, "steps whose checkpoints stay on disk, the newest ones", least=1, machine=True)
    save_every: int = option(1, "steps between checkpoints", least=1, machine=True)
    grace: float = option(
        20.0,
        "seconds that a step under way may still take after SIGTERM or SIGUSR1; torchrun kills after 30",
        least=0,
        machine=True,
    )
    dead_after: float = option(
        45.0,
        "seconds without a sign of life from a rank after which the others end with an error",
        above=0,
        machine=True,
    )
    stop_fd: float = option(
        5.0, "stop when the reference FD exceeds this multiple of the first step's; 0: never", least=0, machine=True
    )
    stop_drift: float = option(
        1.0,
        "stop when the mean squared departure from the base velocity exceeds this; 0: never",
        least=0,
        machine=True,
    )
    stop_kl: float = option(
        100.0,
        "stop when a path's KL from the policy that made it exceeds this, nats; 0: never",
        least=0,
        machine=True,
    )
    wandb: str | None = option(
        None, "Weights & Biases project to log to as well (pip install 'fastfid[wandb]')", machine=True
    )
    dry_run: bool = option(
        False, "print the plan (images, memory, flops, hours on GPUs) and stop; needs no weights", machine=True
    )
    gpus: tuple[str, ...] = option(
        ("1xH100", "8xH100", "8xA100"),
        "what --dry-run plans for: COUNTxNAME of A100, H100, H200, B200, L40S, or COUNTxNAME=PEAK in dense TFLOP/s",
        machine=True,
    )

    def check(self) -> None:
        """ValueError for a number out of bounds."""
        check_bounds(self)
