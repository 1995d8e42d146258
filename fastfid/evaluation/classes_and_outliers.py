"""What stands behind the scores of a pair: its classes, and single images.

Legend: n, m rows; d feature dimension.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import Tensor

from fastfid.distances.precision_recall import prdc
from fastfid.evaluation.intervals import wilson_interval
from fastfid.evaluation.pair import Pair
from fastfid.evaluation.results import LeftOut

OUTLIERS = 12  # images listed at each end
NEIGHBOURS = 5  # nearest reference images listed for a sample
NEIGHBOUR_SAMPLES = 12  # samples they are listed for: a third each that hurt, that help, and evenly spaced
DISTANCE_ROWS = 512  # reference rows a block of the neighbour search


# --- classes -----------------------------------------------------------------------------------------------------


def class_scores(pair: Pair) -> tuple[list[dict], list[LeftOut]]:
    """Precision, recall, density and coverage within each class both sides have, by the schema of results.py.

    Both lists are empty where neither side has labels.
    """
    sides = (pair.samples, pair.reference)
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
        reasons.append(f"no class in common: {first[0]} … against {first[1]} …")
    if few := len(common) - len(large):
        reasons.append(f"{few} classes have no neighbour number {pair.nearest_k} on a side")
    return [_one_class(pair, name) for name in large], [LeftOut("classes", pair.network, r) for r in reasons]


def _one_class(pair: Pair, name: str) -> dict:
    generated, real = (
        side.features[[i for i, label in enumerate(side.labels) if label == name]]
        for side in (pair.samples, pair.reference)
    )
    found = prdc(real, generated, pair.nearest_k) | pair.precision_recall(real, generated)
    return {
        "network": pair.network,
        "class": name,
        "samples": len(generated),
        "reference": len(real),
        "nearest_k": pair.nearest_k,
        "inclusive": pair.protocol.inclusive,
        "precision": found["precision"],
        "precision_interval": wilson_interval(found["precision"], len(generated)),
        "recall": found["recall"],
        "recall_interval": wilson_interval(found["recall"], len(real)),
        "density": found["density"],
        "coverage": found["coverage"],
    }


def _natural(name: str) -> tuple:
    """Numbers before names, 9 before 10."""
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)


# --- single images -----------------------------------------------------------------------------------------------


def outliers(pair: Pair) -> dict:
    """The samples that hurt and help the distance most, by what leaving them out would change."""
    changes = pair.sample_changes
    order = changes.argsort().tolist()
    entry = lambda row: {  # noqa: E731
        "index": pair.samples.image_index(row),
        "name": pair.samples.image_name(row),
        "change_if_left_out": changes[row].item(),
    }
    hurt = [entry(row) for row in order[:OUTLIERS] if changes[row] < 0]
    help_ = [entry(row) for row in reversed(order[-OUTLIERS:]) if changes[row] > 0]
    return {"network": pair.network, "hurt": hurt, "help": help_}


def outliers_obstacle(pair: Pair) -> str | None:
    """Why outliers cannot be told; they are no Score."""
    if pair.sample_changes is None:
        return f"{pair.samples.name} holds statistics only, or fewer than 3 images; pass images"
    return None


def neighbours(pair: Pair) -> list[dict]:
    """Nearest reference images of some samples: of those that hurt, that help, and evenly spaced ones."""
    if pair.reference.features is None:
        return []
    order = pair.sample_changes.argsort().tolist()
    third = NEIGHBOUR_SAMPLES // 3
    spaced = np.linspace(0, len(order) - 1, third).round().astype(int).tolist()
    rows = list(dict.fromkeys(order[:third] + order[-third:] + spaced))
    distances, nearest = nearest_rows(pair.samples.features[rows], pair.reference.features, NEIGHBOURS)
    return [
        {
            "network": pair.network,
            "index": pair.samples.image_index(row),
            "name": pair.samples.image_name(row),
            "nearest": [
                {"index": pair.reference.image_index(j), "name": pair.reference.image_name(j), "distance": d}
                for j, d in zip(nearest[i].tolist(), distances[i].tolist(), strict=True)
            ],
        }
        for i, row in enumerate(rows)
    ]


def nearest_rows(queries: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Euclidean distances float64 [q, k] and indices [q, k] of the k rows [m, d] nearest to each query [q, d]."""
    queries, k = queries.double(), min(k, len(rows))
    exact = "donot_use_mm_for_euclid_dist"  # differences squared: a copy is at distance 0
    blocks = [torch.cdist(queries, block.double(), compute_mode=exact) for block in rows.split(DISTANCE_ROWS)]
    found = torch.cat(blocks, dim=1).topk(k, dim=1, largest=False)
    return found.values, found.indices
