"""Names of reward components, as --reward takes them.

    KIND                    on the network of --reward-features
    KIND:NETWORK            on another feature network
    package.module:NAME     a function NAME(images, labels) -> [n], or a set reward, that Python can import
    FILE.py:NAME            the same in a file

each with =WEIGHT at the end, or weight 1.  The last two may begin with python:, which a module needs whose name is a
KIND.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastfid.runtime.imported_objects import FORM, ObjectName, object_name

KINDS = ("fd", "kid", "mmd", "sliced_wasserstein", "density_ratio")
PYTHON = "python"


@dataclass(frozen=True)
class ComponentName:
    """One component of the reward.

    kind    one of KINDS, or PYTHON
    source  the feature network, or the name of a Python object, of the form FORM
    weight  above 0
    """

    kind: str
    source: str
    weight: float = 1.0

    def __str__(self) -> str:
        return f"{self.kind}:{self.source}"

    @property
    def own(self) -> ObjectName:
        """Where the Python object is."""
        found = object_name(self.source)
        assert found is not None, "checked by components_of"
        return found


def components_of(words: tuple[str, ...], network: str) -> tuple[ComponentName, ...]:
    """The components that --reward names, `fd` if it names none; `network` is that of --reward-features.

    ValueError for a word that names no component, and for one that is named twice.
    """
    found = tuple(_component(word, network) for word in words or ("fd",))
    names = [str(each) for each in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--reward names {name} twice; give it once, with a larger weight")
    return found


def networks_of(components: tuple[ComponentName, ...]) -> tuple[str, ...]:
    """The feature networks of the components, each once, in their order."""
    return tuple(dict.fromkeys(each.source for each in components if each.kind != PYTHON))


def _component(word: str, network: str) -> ComponentName:
    name, weight = word, 1.0
    # a network torchscript:PATH?side=S&range=R has an = of its own in each part
    if re.split("[?&]", word)[-1].count("=") > ("?" in word):
        name, _, number = word.rpartition("=")
        weight = _weight(word, number)
    kind, colon, source = name.partition(":")
    if kind not in (*KINDS, PYTHON) and object_name(name):
        kind, source = PYTHON, name
    other = f"another network than {network}" if network else "its network"  # none is known before the preset is
    if kind not in (*KINDS, PYTHON):
        raise ValueError(
            f"--reward {word}: unknown component {kind!r}; choose {', '.join(KINDS)}, each with :NETWORK for {other}, "
            f"or your own, {FORM}"
        )
    if kind == PYTHON and not object_name(source):
        raise ValueError(f"--reward {word}: write {FORM}, a function or a set reward")
    if colon and not source:
        raise ValueError(f"--reward {word} names no network after the colon; write {kind} for {network}")
    return ComponentName(kind, source or network, weight)


def _weight(word: str, number: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise ValueError(f"--reward {word}: the weight {number!r} is no positive number; write one such as 0.5")
    return weight
