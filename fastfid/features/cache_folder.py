"""Where features are kept; nothing here loads torch, so that the help of a command can name the place."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where features are kept: $FASTFID_CACHE, else $XDG_CACHE_HOME/fastfid, else ~/.cache/fastfid."""
    if os.environ.get("FASTFID_CACHE"):
        return Path(os.environ["FASTFID_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "fastfid"
