"""The folder in which downloads, features and built kernels are kept."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """Return the folder of packages and weights: `$INTARSIA_HOME`, or the platform's cache."""
    home = os.environ.get("INTARSIA_HOME")
    return Path(home).expanduser() if home else own_cache()


def own_cache() -> Path:
    """Return this user's cache on this platform, whatever `$INTARSIA_HOME` says."""
    return Path(platformdirs.user_cache_dir("intarsia"))
