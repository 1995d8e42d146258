"""The identity of a feature network: what must agree before two sets of features are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple, Protocol

# What a statistics file records of its features' origin, by name; the fields of Identity and others.
Provenance = dict[str, str | None]


class Difference(NamedTuple):
    """A field of two identities that differs: its name and both values."""

    field: str
    first: str
    second: str


@dataclass(frozen=True)
class Identity:
    """The network that made features; a field is None where it is unknown.

    The names of the fields are those of provenance in statistics files.

    extractor       name of the network
    weights_sha256  SHA-256 of its weights, hexadecimal
    preprocessing   sentence on resizing, channels and range of values
    """

    extractor: str | None = None
    weights_sha256: str | None = None
    preprocessing: str | None = None

    @classmethod
    def of(cls, provenance: Mapping[str, str | None]) -> Identity:
        """The identity that a provenance records."""
        return cls(**{field.name: provenance.get(field.name) for field in fields(cls)})

    def provenance(self) -> dict[str, str]:
        """The known fields, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def difference(self, other: Identity) -> Difference | None:
        """The first field that both identities know and that differs, or None."""
        for field in fields(self):
            first, second = getattr(self, field.name), getattr(other, field.name)
            if first is not None and second is not None and first != second:
                return Difference(field.name, first, second)
        return None


class Identified(Protocol):
    """Features that say where they are from: `name` for messages, dimension `dim`, and the network's `identity`."""

    @property
    def name(self) -> str:
        """Name of the set or file, for messages."""

    @property
    def dim(self) -> int:
        """Feature dimension d."""

    @property
    def identity(self) -> Identity:
        """The network that made the features."""


class NetworkFeatures(NamedTuple):
    """The features that a network will make, before it has made any."""

    name: str
    dim: int
    identity: Identity


def mismatch(a: Identified, b: Identified) -> str | None:
    """One sentence that names both sides if their networks are known to differ, or None."""
    found = a.identity.difference(b.identity)
    if found is None:
        return None
    return (
        f"the {found.field.replace('_', ' ')} of {a.name} is {found.first}, that of {b.name} is {found.second}: "
        "extract both with the same network and preprocessing (--protocol sets it)"
    )


def check_comparable(a: Identified, b: Identified, force: bool = False) -> list[str]:
    """Check that a and b are features of one network.  Return warnings.

    ValueError that names both sides if their dimensions differ, or if their networks are known to differ.  With `force`
    the latter becomes a warning.
    """
    if a.dim != b.dim:
        raise ValueError(
            f"{a.name} has d = {a.dim} features, {b.name} has d = {b.dim}: features of d = {a.dim} and d = {b.dim} "
            "cannot be compared, use one network for both"
        )
    found = mismatch(a, b)
    if found and not force:
        raise ValueError(f"{found}, or pass force=True (--force) to compare them regardless")
    return [f"compared regardless of a mismatch: {found}"] if found else []
