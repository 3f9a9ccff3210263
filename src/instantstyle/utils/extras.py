"""Libraries that only some commands need, imported where they are used."""

import importlib
from typing import Any

from instantstyle.errors import InputError


def import_extra(module: str, extra: str) -> Any:
    """A module of a library that the optional dependency group `extra` installs.

    Raises InputError with the install command when it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise InputError(
            f"this needs {module.split('.')[0]}, which is not installed: pip install 'instantstyle[{extra}]'"
        ) from e
