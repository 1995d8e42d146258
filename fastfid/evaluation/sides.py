"""The sides of a comparison: opened, checked against each other, and turned into features in every network.

A side is images, statistics, or both, as ADM's files are.  Whatever can be checked before an image is read is
checked before, so that a mismatch does not cost hours of work.

Legend: n images, d feature dimension, s spatial feature dimension, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from fastfid.distances.moments import FeatureMoments
from fastfid.evaluation.network_choice import network_for, unfit_network
from fastfid.evaluation.results import REAL
from fastfid.evaluation.settings import Settings
from fastfid.features.extraction import Extracted, extract
from fastfid.features.extractor import FeatureExtractor
from fastfid.features.names import NETWORK_NAMES
from fastfid.features.registry import build_extractor
from fastfid.identity import Identified, Identity, NetworkFeatures, check_comparable
from fastfid.images.source import ImageSource, counted
from fastfid.protocols import Protocol
from fastfid.runtime import distributed
from fastfid.runtime.devices import as_tensor
from fastfid.statistics.peer_files import holds_statistics
from fastfid.statistics.statistics import Statistics, read_statistics

# A network to run, or the name of one whose features are already there; and how a caller asks for one or several.
Network = FeatureExtractor | str
NetworkChoice = Network | Sequence[Network] | None

UNKNOWN = "unknown network"  # name of the network of statistics that record none


# What messages call a side; others by their role.
SHOWN = {"real": f"set of {REAL}", "split": f"set of other {REAL}"}


@dataclass
class Side:
    """One side as it was given: images, statistics, or both.

    role        "samples", "real", "A", "B" or "images"
    name        for messages
    images      an ImageSource, or None
    statistics  those that are read so far, or None
    path        of the statistics file, which may hold several networks; None without a file
    """

    role: str
    name: str
    images: ImageSource | None = None
    statistics: Statistics | None = None
    path: Path | None = None


@dataclass
class SideInNetwork:
    """One side in one network: always its moments; the rest where there are images or saved features.

    moments                             without provenance; `identity` says which network they are of
    features, logits, spatial_features  float32 [n, d], [n, C] and [n, s], or None
    spatial                             moments of the spatial features, or None
    names, indices, labels              of the n images, or None; an index counts skipped images
    skipped                             a sentence for each unreadable image that was left out
    notes                               sentences on what was found beside the images and not read
    """

    name: str
    network: str
    moments: FeatureMoments
    provenance: dict[str, Any]
    features: Tensor | None = None
    logits: Tensor | None = None
    spatial: FeatureMoments | None = None
    spatial_features: Tensor | None = None
    names: list[str] | None = None
    indices: list[int] | None = None
    labels: list[str] | None = None
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def dim(self) -> int:
        """Feature dimension d."""
        return self.moments.dim

    @property
    def identity(self) -> Identity:
        """The network that made the features, as far as it is known."""
        return Identity.of(self.provenance)

    def image_name(self, row: int) -> str:
        """Name of the image that feature row `row` is of."""
        return self.names[row] if self.names else f"row {row}"

    def image_index(self, row: int) -> int:
        """Its number in the source."""
        return self.indices[row] if self.indices else row


# --- opening -----------------------------------------------------------------------------------------------------


def open_side(source: object, role: str, settings: Settings) -> Side:
    """Open one side without reading its images; a statistics file of several networks is read later.

    Tensors on a GPU are copied to the host, where the features of the other side are; evaluation/placement.py decides
    where the metrics are computed.
    """
    called = role if role.isupper() else f"the {SHOWN.get(role, role)}"  # A, or the samples
    if isinstance(source, Statistics):
        return Side(role, source.name, statistics=source.cpu())
    if isinstance(source, FeatureMoments):
        return Side(role, called, statistics=Statistics(source, called).cpu())
    if isinstance(source, Tensor | np.ndarray) and source.ndim == 2:
        statistics = Statistics.from_features(as_tensor(source).cpu(), name=called)
        return Side(role, statistics.name, statistics=statistics)
    if not isinstance(source, str | Path):
        images = settings.open_images(source, name=called)
        return Side(role, images.name, images=images)
    return _open_path(source, role, settings)


def _open_path(source: str | Path, role: str, settings: Settings) -> Side:
    path = Path(source)
    if not holds_statistics(path):
        return Side(role, str(path), images=settings.open_images(source))
    side = Side(role, str(path), path=path)
    if path.suffix.lower() in (".npz", ".npy"):
        side.statistics = read_statistics(path)
        if side.statistics.images:
            side.images = settings.open_images(path)
    return side


def networks_of(
    features: NetworkChoice,
    protocol: Protocol,
    sides: Sequence[Side],
    settings: Settings,
    spatial: bool = False,
    moments_only: bool = False,
) -> list[Network]:
    """The networks asked for: extractors if some side's images are needed, else their names.

    features  None: the network that the sides' statistics record, else the protocol's, or the one that fits the images
    spatial   also make the spatial features of sFID (Inception only)
    moments_only  the images of a side that holds statistics of the network are not needed

    ValueError for an empty list, a bare module, or one weights file for several networks.
    """
    asked = cast("list[Network | None]", [*features] if isinstance(features, list | tuple) else [features])
    if not asked:
        raise ValueError("features is empty; name a network")
    for bare in (x for x in asked if isinstance(x, nn.Module)):
        raise ValueError(
            f"features is a bare {type(bare).__name__}; say its width and preparation with "
            "FeatureExtractor.from_module(module, dim)"
        )
    if len(asked) > 1 and isinstance(settings.weights, str | Path):
        raise ValueError(
            f"one weights file for {len(asked)} networks; pass weights={{network: path}} (--weights NAME=PATH)"
        )
    named: list[Network] = [_recorded_network(sides, protocol) if x is None else x for x in asked]
    return [
        _built(network, protocol, settings, spatial)
        if any(_needs_network(side, network, moments_only) for side in sides)
        else network
        for network in named
    ]


def _needs_network(side: Side, network: Network, moments_only: bool) -> bool:
    """Whether features of the side's images have to be computed."""
    return side.images is not None and not (moments_only and _statistics_in(side, network) is not None)


def _built(network: Network, protocol: Protocol, settings: Settings, spatial: bool) -> FeatureExtractor:
    if not isinstance(network, str):
        return network
    device = distributed.local_device(settings.device)
    return build_extractor(network, protocol.input_of(network), settings.weights_of(network), device, spatial)


def _recorded_network(sides: Sequence[Side], protocol: Protocol) -> str:
    """The network that the statistics of a side record, if it can be run or need not be; else the protocol's.

    fastfid's own protocol chooses it by the images.
    """
    images = any(side.images is not None for side in sides)
    for side in sides:
        recorded = side.statistics.identity.extractor if side.statistics else None
        if recorded is not None and (recorded in NETWORK_NAMES or not images):
            return recorded
    if protocol.name != "fastfid":
        return protocol.network
    return (
        network_for([side.images for side in sides if side.images is not None], protocol.network) if images else UNKNOWN
    )


# --- features ----------------------------------------------------------------------------------------------------


def gather(
    sides: Sequence[Side],
    networks: Sequence[Network],
    settings: Settings,
    warnings: list[str],
    keep: bool = True,
    mixed_sizes: bool = False,
) -> list[list[SideInNetwork]]:
    """Every side in every network: the statistics it was given with, or the features of its images.

    warnings  sentences about skipped images and the like are appended
    keep      False: only moments, so that memory does not grow with the number of images
    mixed_sizes  each image is resized on its own, as the protocol says

    ValueError, before an image is read, where statistics do not fit each other or a network.  With several ranks, those
    above 0 get empty lists for sides that are images.
    """
    with distributed.agreement():
        given = [[_statistics_in(side, network) for network in networks] for side in sides]
        for of_network, network in zip(zip(*given, strict=True), networks, strict=True):
            _check_early(of_network, network, settings)
    return [
        _side_in_networks(side, networks, statistics, settings, warnings, keep, mixed_sizes)
        for side, statistics in zip(sides, given, strict=True)
    ]


def name_of(network: Network) -> str:
    """The name of a network that may not be built."""
    return network if isinstance(network, str) else network.name


def _statistics_in(side: Side, network: Network) -> Statistics | None:
    """The side's statistics in this network; None where it has images and no statistics of this network."""
    name = name_of(network)
    if side.path is not None and side.statistics is None:
        return read_statistics(side.path, None if name == UNKNOWN else name)
    recorded = side.statistics.identity.extractor if side.statistics else None
    if side.images is not None and recorded != name:
        return None
    return side.statistics


def holds_features(side: Side, network: Network) -> bool:
    """Whether the side's statistics in this network come with the features."""
    statistics = _statistics_in(side, network)
    return statistics is not None and statistics.features is not None


def _check_early(given: Sequence[Statistics | None], network: Network, settings: Settings) -> None:
    """ValueError if the sides' statistics do not fit each other or the network."""
    known: list[Identified] = [statistics for statistics in given if statistics is not None]
    if not isinstance(network, str):
        known.append(NetworkFeatures(f"the network {network.name}", network.dim, network.identity))
    elif network != UNKNOWN:
        for statistics in known:
            recorded = statistics.identity.extractor
            if recorded not in (None, network) and not settings.force:
                raise ValueError(
                    f"{statistics.name} holds features of {recorded}, not of {network}; leave the network out, or "
                    "pass force=True (--force)"
                )
    for other in known[1:]:
        check_comparable(known[0], other, settings.force)


def _side_in_networks(
    side: Side,
    networks: Sequence[Network],
    given: Sequence[Statistics | None],
    settings: Settings,
    warnings: list[str],
    keep: bool,
    mixed_sizes: bool,
) -> list[SideInNetwork]:
    """The side in every network: saved statistics as they are, images through all networks in one pass."""
    known = [statistics for statistics in given if statistics is not None]
    needs_images = len(known) < len(given) or keep
    if side.images is None or not needs_images:
        return [
            _from_statistics(side, name_of(network), statistics)
            for network, statistics in zip(networks, known, strict=True)
        ]
    extractors = [network for network in networks if not isinstance(network, str)]
    extracted = _extracted(side, extractors, settings, warnings, keep, mixed_sizes)  # empty on ranks above 0
    with distributed.agreement():
        found = [_from_images(side, settings, *of_network) for of_network in zip(extractors, extracted, strict=False)]
    for in_network, statistics in zip(found, given, strict=False):
        if statistics is not None:
            _take_moments_of(statistics, in_network, warnings)
    return found


def _extracted(
    side: Side,
    extractors: list[FeatureExtractor],
    settings: Settings,
    warnings: list[str],
    keep: bool,
    mixed_sizes: bool,
) -> list[Extracted[FeatureMoments]]:
    """What every network makes of the side's images; problems of the cache and skipped images are warned about."""
    assert side.images is not None
    cache = settings.open_cache()
    accumulate = None if keep else FeatureMoments.empty
    extracted = extract(side.images, extractors, cache, settings.batch_size, settings.progress, accumulate, mixed_sizes)
    problems = distributed.gather_objects(cache.problem if cache is not None else None)
    warnings += list(dict.fromkeys(problem for problem in problems if problem))
    warnings += extracted[0].notes if extracted else []
    for extractor, found in zip(extractors, extracted, strict=False):
        warnings += unfit_network(extractor.name, found.shape, side.name)
    if extracted and extracted[0].skipped:
        skipped = extracted[0].skipped
        warnings.append(
            f"left out of {side.name}: {counted(len(skipped), 'unreadable image')}, the first: {skipped[0]}"
        )
    return extracted


def _take_moments_of(statistics: Statistics, in_network: SideInNetwork, warnings: list[str]) -> None:
    """Replace the moments of images by those of a file that holds both, as ADM's files do."""
    in_network.moments = statistics.moments.without_provenance()
    if statistics.spatial is not None:
        in_network.spatial, in_network.spatial_features = statistics.spatial.without_provenance(), None
    warnings.append(
        f"FD and sFID use the mu and sigma in {in_network.name}; its {len(in_network.names or [])} images serve the "
        "other metrics"
    )


def _from_images(
    side: Side, settings: Settings, extractor: FeatureExtractor, extracted: Extracted[FeatureMoments]
) -> SideInNetwork:
    """Moments of all outputs but the logits, with the rows where they were kept."""
    moments = extracted.accumulated or {
        name: FeatureMoments.from_features(rows) for name, rows in extracted.outputs.items() if name != "logits"
    }
    source = {"source": side.name, "source_sha256": extracted.source_sha256, "dtype": "float32"}
    return SideInNetwork(
        side.name,
        extractor.name,
        moments["features"],
        {**extractor.identity.provenance(), **source},
        features=extracted.outputs.get("features"),
        logits=extracted.outputs.get("logits"),
        spatial=moments.get("spatial"),
        spatial_features=extracted.outputs.get("spatial"),
        names=extracted.names,
        indices=extracted.indices,
        labels=settings.classes_of(extracted.labels),
        skipped=extracted.skipped,
        notes=[*extracted.notes, *unfit_network(extractor.name, extracted.shape, side.name)],
    )


def _from_statistics(side: Side, network: str, statistics: Statistics) -> SideInNetwork:
    if network == UNKNOWN:
        network = statistics.identity.extractor or network
    return SideInNetwork(
        side.name,
        network,
        statistics.moments.without_provenance(),
        statistics.provenance,
        features=statistics.features,
        spatial=None if statistics.spatial is None else statistics.spatial.without_provenance(),
    )
