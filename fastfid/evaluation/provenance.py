"""Where the numbers come from: the record of sides, networks and settings, and warnings about what is not recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch

from fastfid.evaluation.results import Json
from fastfid.evaluation.settings import Settings
from fastfid.evaluation.sides import SideInNetwork
from fastfid.protocols import Protocol
from fastfid.runtime.version_commit_date import origin


def record(
    sides: Mapping[str, Sequence[SideInNetwork]],
    protocol: Protocol,
    settings: Settings,
    seconds: Mapping[str, float],
) -> Json:
    """The provenance of a result, by the names of its JSON schema.

    sides    name → the side in every network, such as samples and real; the networks are those of the first and
             the last side
    seconds  name → duration of a part of the work
    """
    first, *_, last = sides.values()
    return {
        **{name: _side_record(side[0]) for name, side in sides.items()},
        "networks": [_network_record(a, b) for a, b in zip(first, last, strict=True)],
        "protocol": {"name": protocol.name, "source": protocol.source},
        "settings": {k: v if v is None or isinstance(v, int | float) else str(v) for k, v in asdict(settings).items()},
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        **origin(settings.device),
    }


def _side_record(side: SideInNetwork) -> Json:
    return {
        "name": side.name,
        "count": side.moments.count,
        "images": len(side.names) if side.names else None,
        "source_sha256": side.provenance.get("source_sha256"),
        "skipped": side.skipped,
    }


def _network_record(first: SideInNetwork, last: SideInNetwork) -> Json:
    known = {**last.provenance, **{name: value for name, value in first.provenance.items() if value is not None}}
    return {
        "name": first.network,
        "dim": first.moments.dim,
        "preprocessing": known.get("preprocessing"),
        "weights_sha256": known.get("weights_sha256"),
    }


# --- warnings ----------------------------------------------------------------------------------------------------


def unrecorded(*sides: SideInNetwork) -> list[str]:
    """A warning for each side that does not record its network or preprocessing, if another side does."""
    known = next((side for side in sides if side.identity.preprocessing), None)
    if known is None:
        return []
    found = []
    for side in sides:
        if not side.identity.extractor:
            found.append(
                f"{side.name} does not tell which network its features are of; they are taken for those of "
                f"{known.network}"
            )
        elif not side.identity.preprocessing:
            found.append(
                f"{side.name} does not tell how its images were prepared; they are taken for prepared as {known.name}: "
                f"{known.identity.preprocessing}"
            )
    return found


def few_images(*sides: SideInNetwork) -> list[str]:
    """A warning for each side with at most d images, whose covariance is singular."""
    return [
        f"{side.name}: {side.moments.count} images for d = {side.moments.dim} features: the distance is biased "
        "upwards, use more"
        for side in sides
        if side.moments.count is not None and side.moments.count <= side.moments.dim
    ]


def same_images(samples: SideInNetwork, real: SideInNetwork) -> list[str]:
    """A warning if both sides have the same features: unbiased estimates and intervals assume independent draws."""
    ours, others = samples.features, real.features
    if ours is None or others is None or ours.shape != others.shape or not torch.equal(ours, others):
        return []
    return [
        f"{samples.name} and {real.name} hold the same images: unbiased KID and MMD² fall below 0, and no "
        "interval is that of two independent draws"
    ]
