"""The frame of sit_rl's commands: expected errors in one sentence, exit statuses, a process group.

Sentences and statuses are those of `fastfid.cli.command_line`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

from fastfid.cli import command_line
from fastfid.cli.command_line import CommandError
from fastfid.runtime.errors import one_line
from sit_rl.ranks.process_group import process_group


class HasThreads(Protocol):
    """Arguments of a command that runs on several ranks."""

    @property
    def threads(self) -> int:
        """CPU threads of a rank; 0 divides the cores among the ranks."""


Arguments = TypeVar("Arguments", bound=HasThreads)


def run_command(work: Callable[[], object], interrupted: str = "interrupted") -> None:
    """Call `work`.  SystemExit with the status of `fastfid.cli.command_line` if it fails in an expected way.

    interrupted  what to print after Ctrl-C
    """
    status = command_line.run("error", work, interrupted=interrupted)
    if status != command_line.DONE:
        raise SystemExit(status)


def run_on_ranks(parse: Callable[[], Arguments], work: Callable[[Arguments, torch.device], None]) -> None:
    """Parse, then call `work` with the arguments and this rank's device, inside a process group."""

    def run() -> None:
        arguments = parse()
        with process_group(arguments.threads) as device:
            try:
                work(arguments, device)
            except torch.OutOfMemoryError as error:
                reason = one_line(error)
                raise CommandError(f"out of GPU memory: lower --batch, with another --out ({reason})") from None

    run_command(run, "interrupted; the same command goes on from the images already written")
