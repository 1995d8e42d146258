"""The command line of the fuzzer; exit status 1 if a fault was found, whose inputs are kept in --keep."""

import argparse
import hashlib
import os
import sys
import time
from functools import partial
from pathlib import Path

from tests.fuzz import __doc__ as ABOUT

HOUR = 3600.0


def main():
    """Parse, and fuzz with the project's own mutations or under the guidance of coverage."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=ABOUT, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--inputs", type=int, help="as many inputs, however long they take")
    parser.add_argument("--full", action="store_true", help="an hour")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", help="files of one kind alone, such as npz or card.json")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--keep", type=Path, default=Path("fuzz-faults"), help="folder for the inputs of faults")
    parser.add_argument("--guided", metavar="KIND", help="files of one kind, guided by coverage, with atheris")
    options = parser.parse_args()
    if options.guided:
        from tests.fuzz.guided import guide

        return guide(_kind(options.guided))
    return fuzz(options)


def fuzz(options):
    """Try the corpus, then mutations; print the report, keep what broke a reader."""
    import torch

    from tests.fuzz.readers import READERS
    from tests.fuzz.runner import corpus, input_of, run, warm

    torch.set_num_threads(1)  # children are forked
    warm()
    kinds = [_kind(options.kind)] if options.kind else list(READERS)
    committed = corpus()
    report = run(committed.__getitem__, 0, len(committed), workers=options.workers)
    seconds = HOUR if options.full else options.seconds
    stop, deadline = (options.inputs, None) if options.inputs else (sys.maxsize // 2, time.monotonic() + seconds)
    found = run(partial(input_of, options.seed, kinds=kinds), 0, stop, deadline, workers=options.workers)
    report.add(found)
    for fault in report.faults:
        options.keep.mkdir(exist_ok=True)
        name, ending = fault.of.rpartition(".")[::2]
        digest = hashlib.sha256(fault.content).hexdigest()[:12]
        path = options.keep / f"{name}{name and '-'}{fault.kind}-{digest}.{ending}"
        path.write_bytes(fault.content)
        print(f"{fault.kind} {fault.reader}: {path}\n{fault.told}")
    print(f"{report.table()}\n{report.text()}")
    return 1 if report.faults else 0


def _kind(word):
    """The kind that --kind names: npz, or card.json."""
    from tests.fuzz.readers import READERS

    kind = word if word in READERS else f".{word}"
    if kind not in READERS:
        sys.exit(f"--kind {word} is none of {', '.join(known.removeprefix('.') for known in READERS)}")
    return kind


if __name__ == "__main__":
    sys.exit(main())
