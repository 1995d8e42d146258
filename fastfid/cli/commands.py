"""What every fastfid command does with its arguments.

Each command does its work on all ranks of a torchrun and returns a function, which rank 0 alone calls: it writes and
prints.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastfid.cli import parser
from fastfid.runtime.terminal import printable

if TYPE_CHECKING:
    from fastfid.distances.frechet import FrechetTerms
    from fastfid.evaluation.sides import SideInNetwork

Finish = Callable[[], None]

INFO_SCHEMA = "fastfid.info/1"
SCHEMA = "fastfid.distance/1"  # of the JSON of `fastfid A B`; evaluation/results.py says when the number grows


def carry_out(form: parser.Form) -> None:
    """Do the work of the command whose arguments `form` holds on every rank, then its output on rank 0."""
    from fastfid.runtime import distributed

    with distributed.process_group():
        finish = _work_of(form)
        with distributed.agreement():
            if distributed.is_main():
                finish()


def _work_of(form: parser.Form) -> Finish:
    if isinstance(form, parser.Evaluate):
        return evaluate_samples(form)
    if isinstance(form, parser.Difference):
        return compare_with_real(form)
    if isinstance(form, parser.MakeStatistics):
        return make_statistics(form)
    if isinstance(form, parser.Convert):
        return convert_statistics(form)
    if isinstance(form, parser.Information):
        return show_information(form)
    return compare_two(form)


# --- eval, diff --------------------------------------------------------------------------------------------------


def evaluate_samples(form: parser.Evaluate) -> Finish:
    """`fastfid eval`: every metric of the samples against the real images."""
    from fastfid import evaluate
    from fastfid.evaluation.html_report import write_report

    if form.html:
        check_target(form.html)
    result = evaluate(
        form.samples,
        form.real,
        metrics=None if form.metrics is None else parser.words_of(form.metrics),
        features=parser.words_of(form.network) if form.network else None,
        kid_subset_size=form.kid_subset_size,
        nearest_k=form.nearest_k,
        split=form.split,
        **form.settings(),
    )

    def finish() -> None:
        _say(result.to_json() if form.json else result.table())
        if form.html:  # after the scores, so that a full disk does not lose them
            write_report(result, form.html)
        if not result.scores:  # a script reads the exit status
            raise ValueError("no score could be computed; what was left out, with its reason, is printed above")

    return finish


def compare_with_real(form: parser.Difference) -> Finish:
    """`fastfid diff`: which of A and B is nearer to the real images."""
    from fastfid import diff

    result = diff(
        form.a, form.b, form.real, features=form.network, same_noise=form.same_noise, **form.settings()
    )  # fmt: skip
    return lambda: _say(result.to_json() if form.json else result.table())


# --- stats, convert, info ----------------------------------------------------------------------------------------


def make_statistics(form: parser.MakeStatistics) -> Finish:
    """`fastfid stats`: the statistics of a set of images as a file."""
    return _save_statistics_of(form.images, form.out, form, form.keep_features, form.spatial)


def _save_statistics_of(
    images: str, out: str, form: parser.NetworkOptions, keep_features: bool = False, spatial: bool = False
) -> Finish:
    from fastfid.evaluation.evaluate import statistics_of
    from fastfid.images.source import counted

    check_npz(out)
    check_target(out)
    statistics = statistics_of(
        images, features=form.network, keep_features=keep_features, spatial=spatial, **form.settings()
    )

    def finish() -> None:
        statistics.save(out)
        _say(f"{out}: {statistics.count} images, {_described(statistics.provenance)}")
        if skipped := statistics.provenance.get("skipped"):
            first = statistics.provenance["first_skipped"]
            _note(f"left out: {counted(int(skipped), 'unreadable image')}, the first: {first}")
        if notes := statistics.provenance.get("notes"):
            _note(notes)

    return finish


def convert_statistics(form: parser.Convert) -> Finish:
    """`fastfid convert`: any peer's statistics as fastfid's; ValueError where a flag contradicts the file."""
    from fastfid import read_statistics

    check_npz(form.out)
    check_target(form.out)
    statistics = read_statistics(form.file, form.network)
    recorded = statistics.provenance.get("extractor")
    if form.network and recorded not in (None, form.network):
        raise ValueError(f"{form.file} says its network is {recorded}, not {form.network}; leave --network out")
    if form.network:
        statistics.provenance["extractor"] = form.network
    if form.count is not None:
        if statistics.count not in (None, form.count):
            raise ValueError(f"{form.file} says it is of {statistics.count} images; leave --count out")
        statistics.moments.count = form.count
    statistics.provenance.setdefault("source", f"{Path(form.file).name} ({statistics.form})")

    def finish() -> None:
        statistics.save(form.out)
        count = statistics.count or "unknown number of"
        _say(f"{form.out}: {count} images, {_described(statistics.provenance)}")

    return finish


def show_information(form: parser.Information) -> Finish:
    """`fastfid info`: what a file holds, or what this installation can do."""
    from fastfid.cli import info
    from fastfid.runtime.version_commit_date import origin

    if form.file is None:
        found, text = info.facts(), info.text
    else:
        found, text = info.file_facts(form.file, form.network), info.file_text
    known = {name: value for name, value in found.items() if value is not None}  # a file may state its own version
    stamped = {"schema": INFO_SCHEMA, **found, **origin(), **known}
    return lambda: _say(json.dumps(stamped) if form.json else text(found))


def _described(provenance: dict[str, Any]) -> str:
    weights = provenance.get("weights_sha256") or "unknown"
    return f"network {provenance.get('extractor') or 'unknown'}, weights {weights[:12]}"


# --- A B: one Fréchet distance -----------------------------------------------------------------------------------


def compare_two(form: parser.Compare) -> Finish:
    """`fastfid A B`: one Fréchet distance, its last line in pytorch-fid's form."""
    from fastfid.evaluation.evaluate import compare

    if form.save_stats:
        return _save_statistics_of(form.a, form.b, form)
    a, b, terms, warnings = compare(form.a, form.b, features=form.network, **form.settings())

    def finish() -> None:
        for warning in warnings:  # on stderr, because the last line of stdout is pytorch-fid's
            _note(warning)
        found = {**_report(form, a, b, terms), "warnings": warnings}
        _say(json.dumps(found) if form.json else _text(found))

    return finish


def _report(form: parser.Compare, a: SideInNetwork, b: SideInNetwork, terms: FrechetTerms) -> dict[str, Any]:
    """Everything the command found, by the names of its JSON output."""
    from fastfid.evaluation.frechet_scores import fd_label
    from fastfid.runtime.devices import chosen_device
    from fastfid.runtime.version_commit_date import origin

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
        "a": {"source": form.a, "count": a.moments.count},
        "b": {"source": form.b, "count": b.moments.count},
        **origin(chosen_device(form.device)),
    }


def _text(report: dict[str, Any]) -> str:
    """Provenance lines, then the distance in pytorch-fid's form."""
    weights = (report["weights_sha256"] or "unknown")[:12]
    lines = [f"network {report['network']}, d = {report['dim']}, weights {weights}"]
    lines.append(f"preprocessing: {report['preprocessing'] or 'unknown'}")
    lines += [f"{report[side]['count'] or 'unknown number of'} images: {report[side]['source']}" for side in "ab"]
    return "\n".join([*lines, f"{report['metric']}:  {report['value']}"])


# --- shared ------------------------------------------------------------------------------------------------------


def _say(text: str) -> None:
    """Print to stdout; what names of files hold does not command the terminal."""
    print(printable(text), flush=True)


def _note(sentence: str) -> None:
    print(printable(f"{parser.PROGRAM}: note: {sentence}"), file=sys.stderr)


def check_target(path: str) -> None:
    """ValueError, before hours of work, if no file can be written to `path`; rank 0 reports it."""
    from fastfid.runtime import distributed

    with distributed.agreement():
        folder = Path(path).resolve().parent
        if Path(path).is_dir():
            raise ValueError(f"{path} is a folder; name a file in it")
        if not folder.is_dir():
            raise ValueError(f"the folder of {path} does not exist; create it first")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(f"no file can be written into {folder}, the folder of {path}; write it elsewhere")


def check_npz(path: str) -> None:
    """ValueError if the name of a file of statistics does not end in .npz."""
    if Path(path).suffix.lower() != ".npz":
        raise ValueError(f"{path} does not end in .npz; statistics are written as one .npz")
