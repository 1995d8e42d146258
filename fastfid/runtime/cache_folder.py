"""Where fastfid keeps what it need not compute again; loads no torch, so that a command's help can name the place."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder of the cache: $FASTFID_CACHE, else $XDG_CACHE_HOME/fastfid, else ~/.cache/fastfid."""
    if os.environ.get("FASTFID_CACHE"):
        return Path(os.environ["FASTFID_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "fastfid"
