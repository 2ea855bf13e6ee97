"""What was found for a layer, or for coupled channels, in files beside the pruned weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gyroperm.checkpoints.packed import read_arrays, write_arrays
from gyroperm.solution import Solution

_FORMAT = "gyroperm"


def save_solution(path: str | Path, solution: Solution, layer: Mapping[str, Any]) -> str:
    """Write a layer's orders and mask, completely or not at all.

    Neither the search's time nor its history goes in: the same search gives the same bytes.

    Parameters
    ----------
    path : str or Path
    solution : Solution
    layer : mapping
        What to note of the layer, for people.

    Returns
    -------
    str
        The file's SHA-256.
    """
    arrays, texts = replace(solution, seconds=0.0).stored()
    notes = {"format": _FORMAT, "layer": json.dumps(dict(layer)), **texts}
    return write_arrays(path, arrays, notes)


def read_solution(path: str | Path) -> Solution:
    """The solution of a layer, from the ``masks`` of a pruned checkpoint.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    Solution
        Of the weight as (out, in, ...), in the order in which the output has it; without the
        search's time and history.

    Raises
    ------
    OSError, ValueError
        If the file cannot be read, or is none of these.
    """
    arrays, notes = read_arrays(path)
    try:
        return Solution.from_stored({**arrays, **notes})
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is no layer of a pruned checkpoint: {error!r}") from error


def save_orders(path: str | Path, orders: Mapping[str, NDArray[np.int64]]) -> str:
    """Write the orders of coupled channels by site; returns the file's SHA-256."""
    return write_arrays(path, orders, {"format": _FORMAT})


def read_orders(path: str | Path) -> dict[str, NDArray[np.int64]]:
    """The orders of coupled channels by site: position p takes element ``order[p]``."""
    return read_arrays(path)[0]
