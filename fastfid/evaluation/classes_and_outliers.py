"""What lies behind the scores of a pair: its classes, and single images.

Legend: N samples, n and m rows, d feature dimension.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastfid.distances.precision_recall import prdc
from fastfid.evaluation.intervals import wilson_interval
from fastfid.evaluation.pair import Pair
from fastfid.evaluation.results import Json, LeftOut
from fastfid.evaluation.sides import SideInNetwork

OUTLIERS = 12  # images listed at each end
OF_CLASS = 4  # images listed of a class, where the samples have labels
NEIGHBOURS = 5  # nearest real images listed for a sample
NEIGHBOUR_SAMPLES = 12  # samples they are listed for: a third each that hurt, that help, and evenly spaced
DISTANCE_ROWS = 512  # real rows of a block of the neighbour search


# --- classes -----------------------------------------------------------------------------------------------------


def class_scores(pair: Pair) -> tuple[list[Json], list[LeftOut]]:
    """Precision, recall, density and coverage within each class that both sides have, by the schema of results.py.

    Classes without a k-th neighbour on a side are left out.  Both lists are empty where neither side has labels.
    """
    sides = (pair.samples, pair.real)
    labelled = [side for side in sides if side.labels and side.features is not None]
    if not labelled:
        return [], []
    if len(labelled) == 1:
        bare = next(side for side in sides if side is not labelled[0])
        return [], [LeftOut("classes", pair.network, f"{bare.name} has no labels, {labelled[0].name} has")]
    mine, theirs = (Counter(side.labels) for side in sides)
    common = sorted(mine.keys() & theirs.keys(), key=_natural)
    large = [name for name in common if min(mine[name], theirs[name]) > pair.nearest_k]
    reasons = []
    if not common:
        first = [", ".join(sorted(side, key=_natural)[:3]) for side in (mine, theirs)]
        remedy = "class_names (--class-names) gives numbered classes their names"
        reasons.append(f"no class in common: {first[0]} … against {first[1]} …; {remedy}")
    if few := len(common) - len(large):
        reasons.append(f"{few} classes have no neighbour number {pair.nearest_k} on a side")
    return [_one_class(pair, name) for name in large], [LeftOut("classes", pair.network, r) for r in reasons]


def _one_class(pair: Pair, name: str) -> Json:
    generated, real = (_rows_of_class(side, name) for side in (pair.samples, pair.real))
    found = prdc(real, generated, pair.nearest_k) | pair.precision_recall(real, generated)
    return {
        "network": pair.network,
        "class": name,
        "samples": len(generated),
        "real": len(real),
        "nearest_k": pair.nearest_k,
        "inclusive": pair.protocol.inclusive,
        "precision": found["precision"],
        "precision_interval": wilson_interval(found["precision"], len(generated)),
        "recall": found["recall"],
        "recall_interval": wilson_interval(found["recall"], len(real)),
        "density": found["density"],
        "coverage": found["coverage"],
    }


def _rows_of_class(side: SideInNetwork, name: str) -> Tensor:
    """Features [n, d] of the images with this label, on a side that has both."""
    assert side.features is not None and side.labels is not None
    return side.features[[i for i, label in enumerate(side.labels) if label == name]]


def _natural(name: str) -> tuple[int, int, str]:
    """Sort key: numbers before names, 9 before 10."""
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)


# --- single images -----------------------------------------------------------------------------------------------


def missing_outliers(pair: Pair) -> str | None:
    """Why outliers cannot be listed; None if they can."""
    if pair.sample_changes is None:
        return f"{pair.samples.name} holds statistics only, or fewer than 3 images; pass images"
    return None


def outliers(pair: Pair, changes: Tensor) -> Json:
    """The samples that hurt and help the distance most, by its `changes` [N] without each of them."""
    order = changes.argsort().tolist()
    hurt = [row for row in order[:OUTLIERS] if changes[row] < 0]
    help_ = [row for row in reversed(order[-OUTLIERS:]) if changes[row] > 0]
    entries = [
        [{**_image(pair.samples, row), "change_if_left_out": changes[row].item()} for row in rows]
        for rows in (hurt, help_)
    ]
    return {
        "network": pair.network,
        "hurt": entries[0],
        "help": entries[1],
        "classes": _worst_of_classes(pair, changes, order),
    }


def _worst_of_classes(pair: Pair, changes: Tensor, order: Sequence[int]) -> list[Json]:
    """The samples of each class that hurt most, the class with the worst sample first; none without labels.

    order  all rows by their change, ascending
    """
    labels = pair.samples.labels
    if not labels:
        return []
    rows: dict[str, list[int]] = {}
    for row in order:
        if changes[row] < 0 and len(found := rows.setdefault(labels[row], [])) < OF_CLASS:
            found.append(row)
    return [
        {
            "class": name,
            "hurt": [{**_image(pair.samples, row), "change_if_left_out": changes[row].item()} for row in found],
        }
        for name, found in rows.items()
    ]


def neighbours(pair: Pair, changes: Tensor) -> list[Json]:
    """Nearest real images of some samples: those that hurt most, that help most, and evenly spaced ones.

    changes  of the distance without each sample, float64 [N]
    """
    real, samples = pair.real.features, pair.samples.features
    if real is None or samples is None:
        return []
    rows = _chosen_samples(changes.argsort().tolist())
    distances, nearest = nearest_rows(samples[rows], real, NEIGHBOURS)
    return [
        {
            "network": pair.network,
            **_image(pair.samples, row),
            "nearest": [
                {**_image(pair.real, j), "distance": distance}
                for j, distance in zip(nearest[i].tolist(), distances[i].tolist(), strict=True)
            ],
        }
        for i, row in enumerate(rows)
    ]


def _chosen_samples(order: Sequence[int]) -> list[int]:
    """NEIGHBOUR_SAMPLES rows, each once: a third from the start of `order`, from its end, and evenly spaced."""
    third = NEIGHBOUR_SAMPLES // 3
    spaced = np.linspace(0, len(order) - 1, third).round().astype(int).tolist()
    return list(dict.fromkeys([*order[:third], *order[-third:], *spaced]))


def _image(side: SideInNetwork, row: int) -> Json:
    """Number and name of the image that a feature row is of."""
    return {"index": side.image_index(row), "name": side.image_name(row)}


def nearest_rows(queries: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Euclidean distances float64 [q, k] and indices [q, k] of the k rows [m, d] nearest to each query [q, d]."""
    queries, k = queries.double(), min(k, len(rows))
    exact = "donot_use_mm_for_euclid_dist"  # squares of differences: a copy is at distance 0
    blocks = [torch.cdist(queries, block.double(), compute_mode=exact) for block in rows.split(DISTANCE_ROWS)]
    found = torch.cat(blocks, dim=1).topk(k, dim=1, largest=False)
    return found.values, found.indices
