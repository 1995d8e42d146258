"""The command sit-rl: every command of sit_rl under one name, on one process or on several.

    sit-rl train --steps 48              as torchrun sit_rl/train.py --steps 48
    sit-rl train --nproc-per-node 8 …    on eight processes of this machine, one for each GPU
    sit-rl COMMAND --help

With --nproc-per-node, torch starts the processes as torchrun does.  An error that a process expects is its one
sentence: torchrun would print a traceback of its own around it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from fastfid.cli.command_line import BAD_INPUT, DONE, refuse
from fastfid.cli.torchrun_ending import quieten

PROGRAM = "sit-rl"
# Command → what it does.  Each is the module sit_rl.COMMAND with a function main(argv); one without a module is not
# listed.
COMMANDS = {
    "pretrain": "train a generator of your own images (base), or feature networks alone (features)",
    "train": "fine-tune a generator with distribution-wise rewards",
    "sample": "generate images with a checkpoint or a run",
    "evaluate": "measure a generator on held-out real images",
    "compare": "a table of several runs, with the spread of their seeds",
    "study": "several runs of one plan",
    "report": "write report.html of a run, also of one under way",
    "ema": "averages of other widths after a run",
}
ON_SEVERAL = ("train", "sample", "evaluate", "pretrain")  # commands that divide their work among processes
PROCESSES = "--nproc-per-node"


def main(argv: list[str] | None = None) -> None:
    """Run the command that the words begin with; SystemExit with its status."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        raise SystemExit(DONE if words else BAD_INPUT)
    name, *rest = words
    if name not in commands():
        refuse(PROGRAM, f"{name!r} is no command; choose one of {', '.join(commands())}")
    count, rest = _processes(name, rest)
    if count is not None:
        raise SystemExit(_launch(name, count, rest))
    sys.argv = [f"{PROGRAM} {name}", *rest]  # which usage lines and records of results name
    import_module(_module(name)).main(rest)


def commands() -> list[str]:
    """The commands that this installation has."""
    return [name for name in COMMANDS if find_spec(f"sit_rl.{name}") is not None]


def _module(name: str) -> str:
    """The module of an existing command: sit_rl.NAME, or its __main__ where that is a package."""
    starter = f"sit_rl.{name}.__main__"
    return starter if Path(__file__).with_name(name).is_dir() and find_spec(starter) else f"sit_rl.{name}"


def _help() -> str:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {COMMANDS[name]}" for name in commands())
    return (
        f"usage: {PROGRAM} COMMAND [flags]\n\n{listed}\n\n{PROGRAM} COMMAND --help lists the flags of a command.\n"
        f"{PROCESSES} N runs {', '.join(ON_SEVERAL[:-1])} or {ON_SEVERAL[-1]} on N processes."
    )


def _processes(name: str, words: list[str]) -> tuple[int | None, list[str]]:
    """The number behind --nproc-per-node, None without it, and the other words."""
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag != PROCESSES:
            continue
        value, after = (value, i + 1) if equals else (words[i + 1] if i + 1 < len(words) else "", i + 2)
        if not value.isdecimal() or int(value) < 1:
            refuse(PROGRAM, f"{PROCESSES} is {value!r}; it must be a number of processes, such as 2")
        if name not in ON_SEVERAL:
            refuse(PROGRAM, f"{name} works in one process; leave {PROCESSES} out")
        return int(value), words[:i] + words[after:]
    return None, words


def _launch(name: str, count: int, words: list[str]) -> int:
    """Run the command on `count` processes of this machine; the first status that is not 0, else 0."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    start = ["--standalone", PROCESSES, str(count), *_target(name), *words]
    quieten()
    try:
        run(get_args_parser().parse_args(start))
    except ChildFailedError as error:
        return max(1, error.get_first_failure()[1].exitcode)  # the process has printed why
    return DONE


def _target(name: str) -> list[str]:
    """What torch starts on every process: a script, whose folder is not needed on the path, or a module."""
    script = Path(__file__).with_name(f"{name}.py")
    return [str(script)] if name == "train" else ["-m", f"sit_rl.{name}"]


if __name__ == "__main__":
    main()
