"""The state of a `DistributionReward`, as it comes from a file, checked before anything of it is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastfid.rewards.network_parts import Part
from fastfid.rewards.reference_rows import Keys, ReferenceRows
from fastfid.runtime.errors import shown

ENTRIES = ("networks", "real", "units", "rows", "keys", "ages", "texts")
OF_NETWORKS = ENTRIES[:4]  # tables with an entry for each network


def checked_state(
    state: Any, mine: Mapping[str, Any], parts: Sequence[Part], size: int
) -> tuple[ReferenceRows, dict[str, float | None], Keys]:
    """The reference set, the units of the networks and the texts of a state; `mine` is the state of this reward.

    ValueError, in one sentence, for a state of other networks or real images, for a larger set than `size`, and for
    entries that no `state_dict` has.
    """
    if not isinstance(state, Mapping) or any(name not in state for name in ENTRIES):
        raise ValueError(
            f"the state is not one of DistributionReward.state_dict, a table of {', '.join(ENTRIES)}; load what "
            "it returned"
        )
    for name in OF_NETWORKS:
        if not isinstance(state[name], Mapping):
            raise _damaged(name, f"a {type(state[name]).__name__}")
    _check_same(state, mine)
    for name in ("units", "rows"):
        if set(state[name]) != {part.name for part in parts}:
            raise _damaged(name, f"of {shown(', '.join(map(str, state[name])) or 'nothing')}")
    keys, ages = _numbers("keys", state["keys"]), _numbers("ages", state["ages"])
    if len(keys) != len(ages) or len(ages.unique()) != len(ages):
        raise _damaged("ages", f"of {len(ages.unique())} different values for {len(keys)} images")
    if len(keys) > size:
        raise ValueError(f"the state has {len(keys)} images and size is {size}; raise size")
    rows = tuple(_rows(part, state["rows"][part.name], len(keys)) for part in parts)
    units = {part.name: _unit(part.name, state["units"][part.name]) for part in parts}
    return ReferenceRows(rows, keys.clone(), ages.clone()), units, _texts(state["texts"])


def _check_same(state: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    for what, called in (("networks", "networks"), ("real", "real images")):
        there, here = state[what], mine[what]
        if there != here:
            names = sorted({*map(str, there), *here})
            first = next((name for name in names if there.get(name) != here.get(name)), "another entry")
            raise ValueError(
                f"the state is of other {called}: {shown(first)} has {shown(str(there.get(first, 'none')))} there and "
                f"{here.get(first, 'none')} here; make the reward as it was made then"
            )


def _numbers(name: str, values: object) -> Tensor:
    if not isinstance(values, Tensor) or values.dtype != torch.int64 or values.ndim != 1:
        raise _damaged(name, kind_in_words(values))
    return values.detach().cpu()


def _rows(part: Part, values: object, count: int) -> Tensor:
    if not isinstance(values, Tensor) or values.dtype != torch.float32 or values.shape != (count, part.extractor.dim):
        raise _damaged(
            "rows", f"{kind_in_words(values)} for {count} images and the {part.extractor.dim} features of {part.name}"
        )
    if not torch.isfinite(values).all():
        raise _damaged("rows", f"NaN or infinity for {part.name}")
    return values.detach().to(part.extractor.device).clone()


def _unit(name: str, unit: object) -> float | None:
    if unit is None or (isinstance(unit, float) and 0 < unit < math.inf):
        return unit
    raise _damaged("units", f"{shown(repr(unit))} for {name}")


def _texts(texts: object) -> Keys:
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts) or len(set(texts)) < len(texts):
        raise _damaged("texts", shown(repr(texts)))
    return Keys(texts)


def kind_in_words(values: object) -> str:
    """The kind of a value as words of a sentence: a float32 tensor of shape (3, 4), a list."""
    if isinstance(values, Tensor):
        return f"a {str(values.dtype).removeprefix('torch.')} tensor of shape {tuple(values.shape)}"
    return f"a {type(values).__name__}"


def _damaged(name: str, held: str) -> ValueError:
    return ValueError(f"the state has {name} that no state_dict has: {held}; load the file that was saved, or refresh")
