"""The values of --weights: one path, or NAME=PATH for several networks."""

from __future__ import annotations


def weights_of(words: tuple[str, ...]) -> str | dict[str, str] | None:
    """--weights as fastfid takes it: one path, or {network: path}."""
    pairs = [text.partition("=") for text in words]
    if len(pairs) == 1 and not pairs[0][1]:
        return words[0]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError(f"--weights is {' '.join(words)}; write NAME=PATH for each of several networks")
    return {name: path for name, _, path in pairs} or None


def weights_files(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """(flag, path) of each file of --weights."""
    weights = weights_of(words)
    files = {"": weights} if isinstance(weights, str) else weights or {}
    return [("--weights", path) for path in files.values()]
