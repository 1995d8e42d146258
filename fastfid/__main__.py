"""Command line: evaluate generators, keep statistics with their provenance, and read every peer's.

fastfid eval samples/ reference.npz                 every metric, with intervals
fastfid diff a/ b/ reference/                       is A nearer than B?
fastfid stats real/ real.npz                        statistics for later runs
fastfid convert peer.pkl ours.npz                   statistics of any peer as ours
fastfid info real.npz                               what a file of statistics or images holds
fastfid info                                        networks, protocols, extras, back ends of this installation
fastfid real/ generated.zip                         FD (fashion-a):  3.1415
fastfid real.npz generated/ --network inception     FID:  3.1415

`python -m fastfid` is the same; `fastfid COMMAND --help` lists the options.  `torchrun --nproc-per-node 8 -m fastfid …`
divides the images among processes; one of them prints and writes.

Whatever loads torch, which takes seconds, is imported where a command begins its work: help and wrong arguments do not
wait for it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fastfid import __version__
from fastfid.features.names import BATCH_SIZE, NETWORK_NAMES
from fastfid.protocols import METRICS, PROTOCOLS

if TYPE_CHECKING:
    from fastfid.distances.frechet import FrechetTerms
    from fastfid.evaluation.sides import Material

SCHEMA = "fastfid.distance/1"  # of the JSON of A B; grows as those of results.py do
INTERRUPTED = 130  # exit status of a command that Ctrl-C ended, by the shells' convention


def main(argv: list[str] | None = None) -> int:
    """Run the command line; exit status 0, or 2 with one sentence on stderr for bad input."""
    argv = sys.argv[1:] if argv is None else list(argv)
    named = bool(argv) and argv[0] in COMMANDS  # a folder of such a name is given as ./eval
    parser = _command_parser() if named else _parser()
    arguments, unknown = parser.parse_known_args(_joined(argv))
    if unknown:
        remedy = "; --json prints: write `--json > FILE`" if getattr(arguments, "json", False) else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{remedy}")
    try:
        return _run(COMMANDS[arguments.command] if named else _compare, arguments)
    except KeyboardInterrupt:
        # Ctrl-C reaches every process of a torchrun; which of them is rank 0 is not known any more
        if os.environ.get("RANK", "0") == "0":
            print("fastfid: interrupted; the same command goes on from the features it cached", file=sys.stderr)
        return INTERRUPTED


def _run(command: Callable, arguments: argparse.Namespace) -> int:
    """A command's work on every rank, then what it returns, its writing and printing, on rank 0 alone."""
    from fastfid.runtime import distributed

    try:
        with distributed.process_group():
            finish = command(arguments)
            with distributed.agreement():
                if distributed.is_main():
                    finish()
    except distributed.OtherRankFailed:
        return 2  # rank 0 tells it
    except (ValueError, OSError, ImportError) as error:
        print(f"fastfid: {error}", file=sys.stderr)
        return 2
    return 0


# --- eval, diff, stats, convert, info ----------------------------------------------------------------------------


def _command_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastfid", description="Metrics of image generators, with their provenance.")
    commands = parser.add_subparsers(dest="command", required=True)
    source = "folder, .zip, .npz or .npy of images, or a file of statistics or features"

    evaluation = commands.add_parser("eval", help=PURPOSES["eval"], description=PURPOSES["eval"])
    evaluation.add_argument("samples", metavar="SAMPLES", help=source)
    evaluation.add_argument("reference", metavar="REFERENCE", help=source)
    evaluation.add_argument("--metrics", type=_list, metavar="NAMES", help=f"comma-separated, of {', '.join(METRICS)}")
    evaluation.add_argument(
        "--kid-subset-size", type=int, metavar="N", help="rows of a KID subset (default: the protocol's)"
    )
    evaluation.add_argument(
        "--nearest-k", type=int, metavar="K", help="neighbour of precision, recall, density, coverage"
    )
    evaluation.add_argument("--html", metavar="PATH", help="also write a self-contained report")
    _add_network_options(evaluation, several=True)
    _add_json(evaluation)

    difference = commands.add_parser("diff", help=PURPOSES["diff"], description=PURPOSES["diff"])
    for name in ("a", "b", "reference"):
        difference.add_argument(name, metavar=name.upper() if len(name) == 1 else "REFERENCE", help=source)
    difference.add_argument("--same-noise", action="store_true", help="image i of A and of B came from the same noise")
    _add_network_options(difference)
    _add_json(difference)

    statistics = commands.add_parser("stats", help=PURPOSES["stats"], description=PURPOSES["stats"])
    statistics.add_argument("images", metavar="IMAGES", help="folder, .zip, .npz or .npy of images")
    statistics.add_argument("out", metavar="OUT", help="the .npz to write; pytorch-fid reads its mu and sigma")
    statistics.add_argument("--keep-features", action="store_true", help="also keep the features, for KID and others")
    statistics.add_argument("--spatial", action="store_true", help="also statistics of spatial features (sFID)")
    _add_network_options(statistics)

    conversion = commands.add_parser("convert", help=PURPOSES["convert"], description=PURPOSES["convert"])
    conversion.add_argument("file", metavar="IN", help=".npz, .npy, .pkl or .pt of statistics or features")
    conversion.add_argument("out", metavar="OUT", help="the .npz to write")
    conversion.add_argument(
        "--network", metavar="NAME", help="which of several networks in the file, or whose features they are"
    )
    conversion.add_argument(
        "--count", type=int, metavar="N", help="how many images they are of, where the file does not tell"
    )

    information = commands.add_parser("info", help=PURPOSES["info"], description=PURPOSES["info"])
    information.add_argument("file", metavar="FILE", nargs="?", help=f"{source}; left out: this installation")
    information.add_argument("--network", metavar="NAME", help="which of several networks in the file")
    _add_json(information)
    return parser


def _add_network_options(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Options of every command that may run a network."""
    more = ", or several separated by commas" if several else ""
    parser.add_argument(
        "--network", metavar="NAME", help=f"of {', '.join(NETWORK_NAMES)}{more} (default: the protocol's)"
    )
    peers = f"network, resizing and metric defaults of a peer: {', '.join(PROTOCOLS)}"
    parser.add_argument("--protocol", choices=PROTOCOLS, metavar="NAME", help=peers)
    parser.add_argument(
        "--weights", type=_weights, metavar="PATH", help="weights file of the network, or NAME=PATH,NAME=PATH"
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", default=BATCH_SIZE, help=f"images a step (default {BATCH_SIZE})"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="threads that decode files (default: one a core, up to 8)"
    )
    parser.add_argument("--value-range", type=_range, metavar="LOW,HIGH", help="of float images in .npz and .npy")
    parser.add_argument("--device", default="cpu", help="where the network runs, e.g. cuda (default cpu)")
    parser.add_argument("--no-cache", action="store_true", help="neither read nor write the cache of features")
    parser.add_argument("--skip-corrupt", action="store_true", help="leave unreadable images out, and say so")
    parser.add_argument("--force", action="store_true", help="compare what does not match, with a warning")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no LOW,HIGH such as 0,1 or -1,1") from None
    return low, high


def _joined(argv: list[str]) -> list[str]:
    """The words with `--value-range -1,1` as one: argparse takes -1,1 for an option."""
    flag = "--value-range"
    if flag not in argv[:-1]:
        return argv
    at = argv.index(flag)
    return [*argv[:at], f"{flag}={argv[at + 1]}", *argv[at + 2 :]]


def _weights(text: str) -> str | dict[str, str]:
    """A path, or {network: path} from NAME=PATH,NAME=PATH."""
    parts = [part.partition("=") for part in _list(text)]
    if all(name in NETWORK_NAMES and equals for name, equals, _ in parts):
        return {name: path for name, _, path in parts}
    return text


def _settings(arguments: argparse.Namespace) -> dict:
    """Keyword arguments of `evaluate`, `diff` and `statistics_of`."""
    return {
        "protocol": arguments.protocol,
        "weights": arguments.weights,
        "device": arguments.device,
        "batch_size": arguments.batch_size,
        "workers": arguments.workers,
        "value_range": arguments.value_range,
        "cache": not arguments.no_cache,
        "skip_corrupt": arguments.skip_corrupt,
        "force": arguments.force,
        "progress": True,
    }


def _evaluate(arguments: argparse.Namespace) -> Callable[[], None]:
    from fastfid import evaluate
    from fastfid.evaluation.html_report import write_report

    if arguments.html:
        _check_target(arguments.html)
    result = evaluate(
        arguments.samples,
        arguments.reference,
        metrics=arguments.metrics,
        features=_list(arguments.network) if arguments.network else None,
        kid_subset_size=arguments.kid_subset_size,
        nearest_k=arguments.nearest_k,
        **_settings(arguments),
    )

    def finish() -> None:
        print(result.to_json() if arguments.json else result.table(), flush=True)
        if arguments.html:  # after the scores, which a full disk must not cost
            write_report(result, arguments.html)
        if not result.scores:  # a script reads the exit status
            raise ValueError("no score could be computed; what was left out, with its reason, is printed above")

    return finish


def _difference(arguments: argparse.Namespace) -> Callable[[], None]:
    from fastfid import diff

    sides = (arguments.a, arguments.b, arguments.reference)
    result = diff(*sides, features=arguments.network, same_noise=arguments.same_noise, **_settings(arguments))
    return lambda: print(result.to_json() if arguments.json else result.table())


def _statistics(arguments: argparse.Namespace) -> Callable[[], None]:
    from fastfid.evaluation.evaluate import statistics_of
    from fastfid.images.source import counted

    _check_npz(arguments.out)
    _check_target(arguments.out)
    keep, spatial = arguments.keep_features, arguments.spatial
    settings = _settings(arguments)
    statistics = statistics_of(
        arguments.images, features=arguments.network, keep_features=keep, spatial=spatial, **settings
    )

    def finish() -> None:
        statistics.save(arguments.out)
        print(f"{arguments.out}: {statistics.count} images, {_described(statistics.provenance)}")
        if skipped := statistics.provenance.get("skipped"):
            first = statistics.provenance["first_skipped"]
            left_out = counted(int(skipped), "unreadable image")
            print(f"fastfid: note: left out: {left_out}, the first: {first}", file=sys.stderr)

    return finish


def _convert(arguments: argparse.Namespace) -> Callable[[], None]:
    from fastfid import read_statistics

    _check_npz(arguments.out)
    _check_target(arguments.out)
    statistics = read_statistics(arguments.file, arguments.network)
    recorded = statistics.provenance.get("extractor")
    if arguments.network and recorded not in (None, arguments.network):
        raise ValueError(
            f"{arguments.file} says its network is {recorded}, not {arguments.network}; leave --network out"
        )
    if arguments.network:
        statistics.provenance["extractor"] = arguments.network
    if arguments.count is not None:
        if statistics.count not in (None, arguments.count):
            raise ValueError(f"{arguments.file} says it is of {statistics.count} images; leave --count out")
        statistics.moments.count = arguments.count
    statistics.provenance.setdefault("source", f"{Path(arguments.file).name} ({statistics.form})")

    def finish() -> None:
        statistics.save(arguments.out)
        count = statistics.count or "unknown number of"
        print(f"{arguments.out}: {count} images, {_described(statistics.provenance)}")

    return finish


def _information(arguments: argparse.Namespace) -> Callable[[], None]:
    from fastfid import open_images
    from fastfid.cli import info
    from fastfid.statistics.statistics import holds_statistics

    if arguments.file is None:
        found = info.facts()
        return lambda: print(json.dumps(found) if arguments.json else info.text(found))
    if holds_statistics(arguments.file):
        found = _statistics_facts(arguments)
    else:
        images = open_images(arguments.file)
        found = {"file": arguments.file, "holds": "images", "count": len(images)}
        found["shape of the first, C × H × W"] = " × ".join(map(str, images.image(0).shape))
        found["classes"] = len(set(images.labels(0, len(images)) or []))
    width = max(map(len, found))
    lines = (f"{name.ljust(width)}  {'unknown' if v is None else v}" for name, v in found.items())
    return lambda: print(json.dumps(found) if arguments.json else "\n".join(lines))


def _statistics_facts(arguments: argparse.Namespace) -> dict:
    from fastfid import read_statistics

    statistics = read_statistics(arguments.file, arguments.network)
    return {
        "file": arguments.file,
        "holds": f"statistics, {statistics.form}",
        "count": statistics.count,
        "dim": statistics.dim,
        "features": statistics.features is not None,
        "spatial": statistics.spatial is not None,
        "images": statistics.images,
        "mean norm": statistics.moments.mean.norm().item(),
        "trace": statistics.moments.cov.trace().item(),
        **{name: statistics.provenance.get(name) for name in FACTS},
    }


# Provenance that `info` shows, known or not.
FACTS = ("extractor", "weights_sha256", "preprocessing", "protocol", "dtype", "source", "source_sha256", "version")

PURPOSES = {
    "eval": "every metric of SAMPLES against REFERENCE, with intervals",
    "diff": "is A nearer to REFERENCE than B?",
    "stats": "write the statistics of IMAGES to OUT.npz",
    "convert": "write statistics of any peer as fastfid's",
    "info": "what a file or a set of images holds, or what this installation can do",
}

COMMANDS = {
    "eval": _evaluate,
    "diff": _difference,
    "stats": _statistics,
    "convert": _convert,
    "info": _information,
}


def _described(provenance: dict) -> str:
    weights = provenance.get("weights_sha256") or "unknown"
    return f"network {provenance.get('extractor') or 'unknown'}, weights {weights[:12]}"


def _check_target(path: str) -> None:
    """ValueError if no file can be written to `path`, before hours of work; rank 0 tells."""
    from fastfid.runtime import distributed

    with distributed.agreement():
        folder = Path(path).resolve().parent
        if Path(path).is_dir():
            raise ValueError(f"{path} is a folder; name a file in it")
        if not folder.is_dir():
            raise ValueError(f"the folder of {path} does not exist; create it first")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(f"no file can be written into {folder}, the folder of {path}; write it elsewhere")


def _check_npz(path: str) -> None:
    if Path(path).suffix.lower() != ".npz":
        raise ValueError(f"{path} does not end in .npz; statistics are written as one .npz")


# --- A B: one Fréchet distance -----------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastfid",
        description="Fréchet distance of two sets of images.",
        epilog="further commands, each with --help:\n" + "\n".join(f"  {n:<9}{text}" for n, text in PURPOSES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", metavar="A", help="folder, .zip, .npz or .npy of images, or .npz of statistics mu, sigma")
    parser.add_argument("b", metavar="B", help="the other set; with --save-stats the file to write")
    parser.add_argument("--save-stats", action="store_true", help="write the statistics of A to B (.npz) and stop")
    parser.add_argument("--version", action="version", version=f"fastfid {__version__}")
    _add_network_options(parser)
    _add_json(parser)
    return parser


def _compare(arguments: argparse.Namespace) -> Callable[[], None]:
    from fastfid.evaluation.evaluate import compare

    if arguments.save_stats:
        arguments.images, arguments.out = arguments.a, arguments.b
        arguments.keep_features = arguments.spatial = False
        return _statistics(arguments)
    sides = (arguments.a, arguments.b)
    a, b, terms, warnings = compare(*sides, features=arguments.network, **_settings(arguments))

    def finish() -> None:
        for warning in warnings:  # not on stdout, whose last line is pytorch-fid's
            print(f"fastfid: note: {warning}", file=sys.stderr)
        report = {**_report(arguments, a, b, terms), "warnings": warnings}
        print(json.dumps(report) if arguments.json else _text(report))

    return finish


def _report(arguments: argparse.Namespace, a: Material, b: Material, terms: FrechetTerms) -> dict:
    """Everything the command found, by the names of its JSON output."""
    from fastfid.evaluation.scores import fd_label

    known = a.provenance if a.provenance.get("extractor") else b.provenance
    return {
        "schema": SCHEMA,
        "metric": fd_label(a.network),
        "value": terms.total,
        "mean_term": terms.mean_term,
        "trace_term": terms.trace_term,
        "root_term": terms.root_term,
        "root_by": terms.root_by,
        "clipped_eigenvalues": terms.clipped,
        "network": a.network,
        "dim": a.moments.dim,
        "preprocessing": known.get("preprocessing"),
        "weights_sha256": known.get("weights_sha256"),
        "a": {"source": arguments.a, "count": a.moments.count},
        "b": {"source": arguments.b, "count": b.moments.count},
        "version": f"fastfid {__version__}",
    }


def _text(report: dict) -> str:
    """Provenance lines, then the distance in pytorch-fid's form."""
    weights = (report["weights_sha256"] or "unknown")[:12]
    lines = [f"network {report['network']}, d = {report['dim']}, weights {weights}"]
    lines.append(f"preprocessing: {report['preprocessing'] or 'unknown'}")
    lines += [f"{report[side]['count'] or 'unknown number of'} images: {report[side]['source']}" for side in "ab"]
    return "\n".join([*lines, f"{report['metric']}:  {report['value']}"])


if __name__ == "__main__":
    sys.exit(main())
