"""Toolkits that a plug-in needs, imported or asked for by name."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def need(module: str, install: str, tested: str) -> ModuleType:
    """The module of a toolkit.

    Parameters
    ----------
    module : str
        What is imported.
    install : str
        What pip is asked for.
    tested : str
        The versions that the plug-in was tested with.

    Raises
    ------
    ImportError
        If it cannot be imported; says what to install and which versions were tested.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this plug-in needs {module}: pip install '{install}' (tested with {tested}): {error}"
        ) from error
