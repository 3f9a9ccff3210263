"""Where things are kept between runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`INSTANTSTYLE_CACHE`, else `instantstyle` in the XDG cache folder."""
    base = os.environ.get("INSTANTSTYLE_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "instantstyle"
