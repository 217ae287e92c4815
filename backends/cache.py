"""Where things are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(what: str) -> Path:
    """The folder for one kind of things: in ``OPTC_CACHE``, or in the user's cache folder."""
    given = os.environ.get("OPTC_CACHE")
    if given:
        return Path(given) / what
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "optc" / what
