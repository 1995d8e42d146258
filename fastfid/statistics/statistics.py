"""Statistics: moments of one network's features with their provenance and, where kept, the features.

Legend: n images, d feature dimension, s spatial feature dimension.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from fastfid.distances.moments import FeatureMoments
from fastfid.distances.moments_file import StoredMoments, as_array, write_moments
from fastfid.identity import Identity, Provenance
from fastfid.runtime.devices import as_tensor
from fastfid.statistics.peer_files import read_file


@dataclass
class Statistics:
    """Moments of a set of images in one network's features, with their provenance and, where kept, the features.

    moments   FeatureMoments, float64; its provenance holds extractor, weights_sha256, preprocessing, protocol, dtype,
              source, source_sha256 and version, as far as they are known
    name      file or source, for messages
    features  [n, d] float, or None: KID, MMD and the neighbours need them
    spatial   FeatureMoments of the spatial features (sFID), or None
    form      whose file it was read from, "fastfid" for our own
    """

    moments: FeatureMoments
    name: str = "statistics"
    features: Tensor | None = None
    spatial: FeatureMoments | None = None
    form: str = "fastfid"
    images: bool = field(default=False, repr=False)  # the file also holds images, as ADM's files do

    @property
    def count(self) -> int | None:
        """Number of images n, None where the file does not tell."""
        return self.moments.count

    @property
    def dim(self) -> int:
        """Feature dimension d."""
        return self.moments.dim

    @property
    def provenance(self) -> Provenance:
        """What is known of the features' origin, by name; strings."""
        return self.moments.provenance

    @property
    def identity(self) -> Identity:
        """The network that made the features, as far as it is known."""
        return self.moments.identity

    @classmethod
    def from_features(
        cls,
        features: Tensor,
        provenance: Provenance | None = None,
        *,
        name: str = "features",
        spatial: Tensor | None = None,
    ) -> Statistics:
        """Statistics that keep `features` [n ≥ 2, d], any float dtype; `spatial` [n, s] adds moments for sFID."""
        features = as_tensor(features)
        moments = FeatureMoments.from_features(features, provenance)
        dtype = str(features.dtype).removeprefix("torch.")
        moments.provenance.setdefault("dtype", dtype)
        return cls(moments, name, features, None if spatial is None else FeatureMoments.from_features(spatial))

    def cpu(self) -> Statistics:
        """The same with every tensor in host memory."""
        features = None if self.features is None else self.features.cpu()
        spatial = None if self.spatial is None else self.spatial.to("cpu")
        return replace(self, moments=self.moments.to("cpu"), features=features, spatial=spatial)

    def save(self, path: str | os.PathLike[str], keep_features: bool = True) -> None:
        """Write one npz: mu, sigma (which pytorch-fid reads), count, provenance as JSON, mu_s, sigma_s, features.

        No pickle; the file appears whole or not at all.  ValueError unless `path` ends in .npz, as NumPy would add it.
        """
        path = Path(path)
        if path.suffix.lower() != ".npz":
            raise ValueError(f"{path} does not end in .npz; statistics are written as one .npz")
        more: dict[str, np.ndarray] = {}
        if self.spatial is not None:
            more |= {"mu_s": as_array(self.spatial.mean), "sigma_s": as_array(self.spatial.cov)}
        if keep_features and self.features is not None:
            more["features"] = as_array(self.features)
        moments = self.moments
        write_moments(path, StoredMoments(moments.count, moments.mean, moments.cov, moments.provenance), more)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Statistics:
        """The same as `read_statistics(path)`."""
        return read_statistics(path)


def read_statistics(path: str | os.PathLike[str], network: str | None = None) -> Statistics:
    """Read statistics or features of fastfid or of another tool (peer_files.py), with float64 moments.

    network  entry of a file that holds several networks (EDM2: "inception" or "dinov2"); needed only there

    FileNotFoundError for a missing file.  ValueError for a file that holds something else, is damaged, or is a pickle
    that asks for more than arrays.
    """
    content = read_file(Path(path), network)
    if content.moments is None:
        assert content.features is not None  # a file holds one of the two
        statistics = Statistics.from_features(content.features, content.provenance, name=str(Path(path)))
        statistics.form = content.form
        return statistics
    return Statistics(content.moments, str(Path(path)), content.features, content.spatial, content.form, content.images)
