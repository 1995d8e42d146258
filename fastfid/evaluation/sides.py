"""The sides of a comparison: opened, checked against each other, and turned into features in every network.

A side is given as images, as statistics, or as both (ADM's references).  Everything that can be known before an image
is read is checked before, so that hours of work do not end in a mismatch.

Legend: n images, d feature dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from fastfid.distances.moments import FeatureMoments
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

UNKNOWN = "unknown network"  # of statistics that do not tell


@dataclass
class Side:
    """One side as it was given: images, or statistics, or both."""

    role: str
    name: str
    images: ImageSource | None = None
    statistics: Statistics | None = None
    path: Path | None = None  # of the statistics file, which may hold several networks


@dataclass
class SideInNetwork:
    """One side in one network: moments always, the rest where there are images or saved features.

    features, logits, spatial_features  [n, …] float32, or None
    spatial                             moments of the spatial features, or None
    names, indices, labels              of the images, n each, or None
    """

    name: str
    network: str
    moments: FeatureMoments
    provenance: dict
    features: Tensor | None = None
    logits: Tensor | None = None
    spatial: FeatureMoments | None = None
    spatial_features: Tensor | None = None
    names: list[str] | None = None
    indices: list[int] | None = None
    labels: list[str] | None = None
    skipped: list[str] = field(default_factory=list)

    @property
    def dim(self) -> int:
        """Feature dimension d."""
        return self.moments.dim

    @property
    def identity(self) -> Identity:
        """The network that made the features, as far as it is known."""
        return Identity.of(self.provenance)

    def image_name(self, row: int) -> str:
        """Name of the image behind feature row `row`."""
        return self.names[row] if self.names else f"row {row}"

    def image_index(self, row: int) -> int:
        """Its number in the source, which counts skipped images too."""
        return self.indices[row] if self.indices else row


# --- opening -----------------------------------------------------------------------------------------------------


def open_side(source, role: str, settings: Settings) -> Side:
    """Open one side without reading its images; statistics files of several networks are opened later.

    Whatever lies on a GPU comes to the host, where the other side's file or extracted features are.
    """
    called = role if role.isupper() else f"the {role}"  # A, or the samples
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
    path = Path(source)
    if not holds_statistics(path):
        return Side(role, str(path), images=settings.open_images(source))
    side = Side(role, str(path), path=path)
    if path.suffix.lower() in (".npz", ".npy"):
        side.statistics = read_statistics(path)
        if side.statistics.images:
            side.images = settings.open_images(path)
    return side


def networks_of(features, protocol: Protocol, sides: list[Side], settings: Settings, spatial: bool = False) -> list:
    """The networks asked for, built only if some side has images; else their names."""
    asked = features if isinstance(features, list | tuple) else [features]
    if not asked:
        raise ValueError("features is empty; name a network")
    for bare in (x for x in asked if isinstance(x, nn.Module)):
        raise ValueError(
            f"features is a bare {type(bare).__name__}; say its width and preparation with "
            "FeatureExtractor.from_module(module, dim)"
        )
    asked = [_recorded_network(sides, protocol) if x is None else x for x in asked]
    if len(asked) > 1 and isinstance(settings.weights, str | Path):
        raise ValueError(
            f"one weights file for {len(asked)} networks; pass weights={{network: path}} (--weights NAME=PATH)"
        )
    needed = any(side.images is not None for side in sides)
    return [_network(x, protocol, settings, spatial) if needed else x for x in asked]


def _network(asked, protocol: Protocol, settings: Settings, spatial: bool) -> FeatureExtractor:
    if not isinstance(asked, str):
        return asked
    weights = settings.weights.get(asked) if isinstance(settings.weights, dict) else settings.weights
    device = distributed.local_device(settings.device)
    return build_extractor(asked, protocol.input_of(asked), weights, device, spatial)


def _recorded_network(sides: list[Side], protocol: Protocol) -> str:
    """The network that statistics were made with, where one is recorded and known here; else the protocol's.

    Without images any recorded name will do: nothing has to be run.
    """
    images = any(side.images is not None for side in sides)
    for side in sides:
        recorded = side.statistics.provenance.get("extractor") if side.statistics else None
        if recorded in NETWORK_NAMES or (recorded and not images):
            return recorded
    return protocol.network if images or protocol.name != "fastfid" else UNKNOWN


# --- gathering ---------------------------------------------------------------------------------------------------


def gather(
    sides: list[Side], extractors: list, settings: Settings, warnings: list[str], keep: bool = True
) -> list[list[SideInNetwork]]:
    """For each side, its material in each network; everything known is checked before an image is read.

    keep  False: moments only, so that memory does not grow with the number of images

    On ranks above 0 of a process group images give no material.
    """
    with distributed.agreement():
        given = [[_given(side, extractor) for extractor in extractors] for side in sides]
        for of_network, extractor in zip(zip(*given, strict=True), extractors, strict=True):
            _check_early(of_network, extractor, settings)
    return [
        _materials(side, extractors, ready, settings, warnings, keep) for side, ready in zip(sides, given, strict=True)
    ]


def _given(side: Side, extractor) -> Statistics | None:
    """The side's statistics in this network, None where it only has images (or also images, of another network)."""
    name = extractor if isinstance(extractor, str) else extractor.name
    if side.path is not None and side.statistics is None:
        return read_statistics(side.path, None if name == UNKNOWN else name)
    recorded = side.statistics.provenance.get("extractor") if side.statistics else None
    if side.images is not None and recorded != name:
        return None
    return side.statistics


def holds_features(side: Side, extractor) -> bool:
    """Whether the side's statistics in this network, a name or a FeatureExtractor, come with the features."""
    given = _given(side, extractor)
    return given is not None and given.features is not None


def _check_early(given: Sequence[Statistics | None], extractor, settings: Settings) -> None:
    """ValueError before any image is read if statistics do not fit each other or the network."""
    known: list[Identified] = [statistics for statistics in given if statistics is not None]
    if not isinstance(extractor, str):
        known.append(NetworkFeatures(f"the network {extractor.name}", extractor.dim, extractor.identity))
    elif extractor != UNKNOWN:
        for statistics in known:
            recorded = statistics.identity.extractor
            if recorded not in (None, extractor) and not settings.force:
                raise ValueError(
                    f"{statistics.name} holds features of {recorded}, not of {extractor}; leave the network out, or "
                    "pass force=True (--force)"
                )
    for other in known[1:]:
        check_comparable(known[0], other, settings.force)


def _materials(
    side: Side, extractors, given, settings: Settings, warnings: list[str], keep: bool
) -> list[SideInNetwork]:
    """Saved statistics as they are, images through all networks in one pass."""
    if side.images is None:
        names = [x if isinstance(x, str) else x.name for x in extractors]
        return [_from_statistics(side, name, x) for name, x in zip(names, given, strict=True)]
    if not keep and None not in given:  # statistics and images: nothing but the moments is wanted
        return [_from_statistics(side, e.name, x) for e, x in zip(extractors, given, strict=True)]
    cache = settings.open_cache()
    extracted = extract(side.images, extractors, cache, settings.batch_size, settings.progress, keep)
    problems = distributed.gather_objects(cache.problem if cache is not None else None)
    warnings += list(dict.fromkeys(problem for problem in problems if problem))
    if extracted and extracted[0].skipped:
        skipped = extracted[0].skipped
        warnings.append(
            f"left out of {side.name}: {counted(len(skipped), 'unreadable image')}, the first: {skipped[0]}"
        )
    found = [_from_images(side, extractor, x) for extractor, x in zip(extractors, extracted, strict=False)]
    for material, statistics in zip(found, given, strict=False):
        if statistics is not None:
            material.moments = statistics.moments
            if statistics.spatial is not None:
                material.spatial, material.spatial_features = statistics.spatial, None
            warnings.append(
                f"FD and sFID use the mu and sigma in {side.name}; its {len(material.names)} images serve the other "
                "metrics"
            )
    return found


def _from_images(side: Side, extractor: FeatureExtractor, x: Extracted) -> SideInNetwork:
    source = {"source": side.name, "source_sha256": x.source_sha256, "dtype": "float32"}
    return SideInNetwork(
        side.name, extractor.name, x.moments, {**extractor.identity.provenance(), **source}, x.outputs.get("features"),
        x.outputs.get("logits"), x.spatial, x.outputs.get("spatial"), x.names, x.indices, x.labels, x.skipped,
    )  # fmt: skip


def _from_statistics(side: Side, network: str, statistics: Statistics) -> SideInNetwork:
    if network == UNKNOWN:
        network = statistics.provenance.get("extractor") or network
    return SideInNetwork(
        side.name, network, statistics.moments, statistics.provenance, statistics.features, spatial=statistics.spatial
    )
