"""Solutions in a folder of files, each found again by all that it was made from."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gyroperm.measures import retained
from gyroperm.pattern import Pattern
from gyroperm.solution import Solution

# Folders and names of temporary files take their share of what a file system allows.
_LONGEST = 200


def stored_name(
    name: str,
    pattern: Pattern,
    settings: Mapping[str, Any],
    array: NDArray[np.floating],
    *more: NDArray[Any],
) -> str:
    """The name of the file for a search: another one wherever anything differs.

    Parameters
    ----------
    name : str
        Of the layer, for people.
    pattern : Pattern
    settings : mapping of str
        Everything else that the result hangs on, as JSON can hold it; with ``"method"``.
    array : ndarray
        What is searched.
    more : ndarray
        Further arrays that the result hangs on.
    """
    described = {
        **settings,
        "pattern": asdict(pattern),
        "shape": array.shape,
        "dtype": array.dtype.str,
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for one in (array, *more):
        digest.update(np.ascontiguousarray(one).data)
    parts = (name, str(pattern), str(settings["method"]), digest.hexdigest()[:16])
    return re.sub(r"[^\w.\-]+", "_", ".".join(parts))[-_LONGEST:] + ".npz"


def read_stored(path: Path, pattern: Pattern, saliency: NDArray[np.floating]) -> Solution | None:
    """A stored solution; None if there is none, or it is damaged or not of this saliency."""
    if not path.exists():
        return None
    try:
        solution = Solution.load(path)
    except ValueError:
        return None
    if solution.pattern != pattern or solution.view.shapes != (saliency.shape,):
        return None
    kept = retained(saliency, solution.mask)
    return solution if math.isclose(kept, solution.retained, rel_tol=1e-9) else None
