"""Is A nearer to the real images than B?  FD(A) − FD(B) against one set of them, with a 95% interval.

Both distances share the real images, so their errors are not independent.  Leaving real image j out changes both
distances; the jackknife takes the difference of the two changes.

Legend: N images of a side.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastfid.evaluation.frechet_scores import fd_label
from fastfid.evaluation.intervals import jackknife_error, normal_interval
from fastfid.evaluation.pair import Pair
from fastfid.evaluation.placement import placed
from fastfid.evaluation.provenance import record, unrecorded
from fastfid.evaluation.results import REAL, DifferenceResult, Json
from fastfid.evaluation.settings import Settings
from fastfid.evaluation.sides import (
    Network,
    NetworkChoice,
    Side,
    gather,
    holds_features,
    networks_of,
    open_side,
)
from fastfid.identity import check_comparable
from fastfid.protocols import Protocol, protocol_named
from fastfid.runtime import distributed


def diff(
    a: object,
    b: object,
    real: object,
    *,
    features: NetworkChoice = None,
    protocol: str | Protocol | None = None,
    same_noise: bool = False,
    **settings: Any,
) -> DifferenceResult:
    """Is A nearer to the real images than B?  FD(A) − FD(B) with a 95% interval by the jackknife over all sides.

    a, b, real  as in `evaluate`; a and b need features, a real side without features is taken as fixed
    features         one network, as in `evaluate`
    same_noise       image i of A and image i of B were made from the same noise: they are left out together
    settings         as in `evaluate`

    ValueError for several networks, or for a side without features or with fewer than 3 images.
    """
    started = time.perf_counter()
    options, chosen = Settings.of(settings), protocol_named(protocol)
    with distributed.agreement():
        sides = [open_side(x, role, options) for x, role in ((a, "A"), (b, "B"), (real, "real"))]
        networks = networks_of(features, chosen, sides, options)
        _check(sides, networks)
    warnings: list[str] = []
    in_networks = gather(sides, networks, options, warnings, mixed_sizes=chosen.mixed_sizes)

    def compared() -> DifferenceResult:
        first, second, third = (side for (side,) in in_networks)
        for side in (first, second):
            warnings.extend(check_comparable(side, third, options.force))
        warnings.extend(unrecorded(first, second, third))
        on_a, on_b, on_third = placed((first, second, third), options, warnings)
        of_a, of_b = (Pair(side, on_third, chosen, options) for side in (on_a, on_b))
        changes, method = _changes(of_a, of_b, same_noise)
        warnings.extend(unequal_sizes(of_a, of_b))
        seconds = {"total": time.perf_counter() - started}
        provenance = record({"A": [first], "B": [second], "real": [third]}, chosen, options, seconds)
        return _result(of_a, of_b, jackknife_error(changes), method, warnings, provenance)

    found: DifferenceResult = distributed.from_main(compared)
    return found


def _check(sides: Sequence[Side], networks: Sequence[Network]) -> None:
    """ValueError, before an image is read, for several networks or for an A or B that has no rows of features."""
    if len(networks) > 1:
        raise ValueError(f"diff compares in one network, {len(networks)} were given; call it once for each")
    for side in sides[:2]:
        if side.images is None and not holds_features(side, networks[0]):
            raise ValueError(f"{side.name} holds statistics only, and an interval needs its images; pass images")


def _result(
    of_a: Pair, of_b: Pair, error: float, method: str, warnings: list[str], provenance: Json
) -> DifferenceResult:
    """The difference with its interval; the better side is the one on whose side of 0 the whole interval lies."""
    network = of_a.network
    a, b = float(of_a.terms.total), float(of_b.terms.total)
    interval = normal_interval(a - b, error)
    better = "A" if interval[1] < 0 else "B" if interval[0] > 0 else None
    return DifferenceResult(
        fd_label(network), network, a, b, a - b, error, interval, better, method, warnings, provenance
    )


def unequal_sizes(of_a: Pair, of_b: Pair) -> list[str]:
    """A warning with the bias of both distances where A and B hold unequal numbers of images."""
    first, second = _sample_changes(of_a), _sample_changes(of_b)
    if len(first) == len(second):
        return []
    biases = [jackknife_bias(changes) for changes in (first, second)]
    unbiased = float(of_a.terms.total - of_b.terms.total) - (biases[0] - biases[1])
    fewer = min(len(first), len(second))
    return [
        f"A has {len(first)} images and B has {len(second)}, and a distance of fewer images is larger: by the "
        f"jackknife that of A is too large by {biases[0]:.4g} and that of B by {biases[1]:.4g}, so that A - B would be "
        f"{unbiased:+.4g} without this bias; compare {fewer} images of each"
    ]


def jackknife_bias(changes: Tensor) -> float:
    """Bias of a distance by the jackknife: (N − 1) times the mean of its changes [N] without each image.

    It removes the part that falls as 1/N (Quenouille 1956).
    """
    return (len(changes) - 1) * changes.mean().item()


def _changes(of_a: Pair, of_b: Pair, same_noise: bool) -> tuple[list[Tensor], str]:
    """Leave-one-out changes of FD(A) − FD(B) for each set of images, and the words for their jackknife."""
    changes_a, changes_b = _sample_changes(of_a), _sample_changes(of_b)
    if not same_noise:
        changes, words = [changes_a, changes_b], "jackknife over the samples of A and B"
    elif len(changes_a) != len(changes_b):
        raise ValueError(
            f"same_noise pairs images, but A has {len(changes_a)} and B {len(changes_b)}; pass equal numbers"
        )
    else:
        changes, words = [changes_a - changes_b], "jackknife over pairs of samples"
    theirs_a, theirs_b = of_a.real_changes, of_b.real_changes
    if theirs_a is None or theirs_b is None:
        return changes, f"{words}, {REAL} taken as fixed"
    return [*changes, theirs_a - theirs_b], f"{words} and over the shared {REAL}"


def _sample_changes(pair: Pair) -> Tensor:
    """Change of FD without each sample, float64 [N]; ValueError where the rows or their number do not allow it."""
    if pair.sample_changes is not None:
        return pair.sample_changes
    rows = 0 if pair.samples.features is None else len(pair.samples.features)
    raise ValueError(
        f"{pair.samples.name} holds {rows} images; an interval needs 3"
        if rows < 3
        else f"the mu and sigma in {pair.samples.name} are not of its {rows} images, and an interval needs "
        "images; pass the images alone"
    )
