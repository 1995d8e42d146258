"""Command line: evaluate generators, keep statistics with their provenance, and read every peer's.

fastfid eval samples/ real.npz                      every metric, with intervals
fastfid diff a/ b/ real/                            is A nearer than B?
fastfid stats real/ real.npz                        statistics for later runs
fastfid convert peer.pkl ours.npz                   statistics of another tool as ours
fastfid info real.npz                               what a file of statistics or images holds
fastfid info                                        networks, protocols, extras, back ends of this installation
fastfid real/ generated.zip                         FD (fashion-a):  3.1415
fastfid real.npz generated/ --network inception     FID:  3.1415

`python -m fastfid` is the same; `fastfid COMMAND --help` lists the options.  `torchrun --nproc-per-node 8 -m fastfid …`
divides the images among processes; one of them prints and writes.

Modules that load torch, which takes seconds, are imported where a command begins its work: help and wrong arguments do
not wait for them.
"""

from __future__ import annotations

import sys

from fastfid.cli import commands, parser
from fastfid.cli.command_line import run

INTERRUPTED = f"{parser.PROGRAM}: interrupted; the same command goes on from the features it cached"


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 2 with one sentence on stderr for bad input, 130 after Ctrl-C."""
    form = parser.parse_arguments(argv)
    return run(parser.PROGRAM, lambda: commands.carry_out(form), interrupted=INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
