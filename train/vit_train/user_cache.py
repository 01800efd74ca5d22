"""The folder of this machine for cached results."""

import os
from pathlib import Path


def user_cache() -> Path:
    """The folder vit-parity under XDG_CACHE_HOME (default: ~/.cache); it may be missing, or removed at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vit-parity"
