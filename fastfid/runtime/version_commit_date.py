"""Where a result comes from: version, commit, command, date, torch and device, for every file of results."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

import torch

import fastfid

ROOT = Path(__file__).resolve().parents[2]
GIT_SECONDS = 5.0  # git answers in 20 ms; on a slow network file system a result does not wait for it


def origin(device: torch.device | str = "cpu") -> dict[str, str | None]:
    """version, commit, command, date (UTC), torch and device of what this process computes on `device`.

    commit  of the project's git checkout, with "+changes" where files differ from it; None for an installed package
    """
    return {
        "version": f"fastfid {fastfid.__version__}",
        "commit": commit(),
        "command": command(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "device": device_name(device),
    }


@cache
def commit() -> str | None:
    """The project's commit, None without a git checkout or without git."""
    if not (ROOT / ".git").exists():
        return None
    head, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return f"{head}+changes" if head and changed else head


def _git(*words: str) -> str | None:
    """What git prints of the project; None if it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=GIT_SECONDS, check=True
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def command() -> str:
    """The command line of this process, as it can be typed again."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    module = None if spec is None else spec.name.removesuffix(".__main__")
    start = (sys.argv[:1] or [""]) if module is None else ["-m", module]
    script = module is None and not start[0].endswith(".py")  # such as fastfid, found by its name
    if "TORCHELASTIC_RUN_ID" in os.environ:
        count = os.environ.get("LOCAL_WORLD_SIZE", "1")
        launcher = ["torchrun"] if count == "1" else ["torchrun", "--nproc-per-node", count]
    else:
        launcher = [] if script else ["python"]
    start = Path(start[0]).name.split() if script else start  # "sit-rl train"
    return shlex.join([*launcher, *start, *sys.argv[1:]])


@cache
def device_name(device: torch.device | str) -> str:
    """The name of a device: "cuda (NVIDIA H200)", "cpu (AMD EPYC 7B13)"."""
    kind = torch.device(device)
    if kind.type == "cuda" and torch.cuda.is_available():
        return f"{kind.type} ({torch.cuda.get_device_name(kind)})"
    return f"{kind.type} ({_cpu()})" if kind.type == "cpu" else kind.type


def _cpu() -> str:
    """The processor's name; the architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
