"""What was measured on a card, kept in files for later processes."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gyroperm.gpu.candidates import DENSE, Way
from gyroperm.gpu.compiler import cache_folder, write_whole
from gyroperm.gpu.decode import MAX_COLUMNS
from gyroperm.gpu.model import HasTables
from gyroperm.gpu.source import Variant, fingerprint
from gyroperm.gpu.spmm import STEP_COLUMNS, Blocking

SCHEMA = 1
# Whose sources decide what a measurement is worth.
_KERNELS = ("decode", "spmm", "transpose", "window")
_BLOCKING = ("block_n", "stages", "warps_m", "warps_n")
_CUT = ("block_rows", "part_steps")


@dataclass(frozen=True)
class TunedWays:
    """The measurements of a card, in files of :func:`~gyroperm.gpu.compiler.cache_folder`.

    A file holds the ways of one product by their seconds; its name hashes what they depend on:
    card, driver, kernels, the shape of the matrix and of its tiles, N up to a power of two, the
    layout. A file that is damaged, or says that it is of something else, is ignored with a
    warning.

    Parameters
    ----------
    card : str
        Its name.
    driver : int
        The driver's version.
    """

    card: str
    driver: int

    def measured(
        self, matrix: HasTables, n: int, layout: str, *, aligned: bool = True
    ) -> list[tuple[Way, float]]:
        """Ways and seconds, the fastest first; nothing if this product was not measured."""
        key = self._key(matrix, n, layout, aligned)
        path = _path(key)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return _ways(found, key, matrix, n)
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
            warnings.warn(
                f"{path} is ignored, the product is chosen by prediction: {error}", stacklevel=2
            )
            return []

    def keep(
        self,
        matrix: HasTables,
        n: int,
        layout: str,
        ways: Iterable[tuple[Way, float]],
        *,
        aligned: bool = True,
    ) -> Path:
        """Write what was measured, in the place of an earlier measurement; the file.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        key = self._key(matrix, n, layout, aligned)
        listed = [
            {"kind": way.kind, "parameters": dict(way.parameters), "seconds": seconds}
            for way, seconds in sorted(ways, key=lambda one: one[1])
        ]
        content = {"schema": SCHEMA, "of": key, "ways": listed}
        write_whole(_path(key), json.dumps(content, indent=1).encode())
        return _path(key)

    def _key(self, matrix: HasTables, n: int, layout: str, aligned: bool) -> dict[str, Any]:
        index = matrix.index
        steps = np.diff(index.tile_ptr).astype("<i4") // STEP_COLUMNS
        kernels = [fingerprint(Variant.of(kernel, {})) for kernel in _KERNELS]
        return {
            "card": self.card,
            "driver": self.driver,
            "kernels": _digest(kernels),
            "shape": [index.outputs, index.inputs],
            "tile_size": index.tile_size,
            "sparse": matrix.sparse,
            "dtype": matrix.dtype,
            "column_bytes": index.columns.dtype.itemsize,
            "tiles": _digest(steps.tolist()),
            "columns": 1 << (n - 1).bit_length(),
            "layout": layout,
            "aligned": aligned or layout == "tokens",
        }


def _path(key: dict[str, Any]) -> Path:
    return cache_folder() / f"tuned-{_digest(key)}.json"


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _ways(found: Any, key: dict[str, Any], matrix: HasTables, n: int) -> list[tuple[Way, float]]:
    if found["schema"] != SCHEMA:
        raise ValueError(f"schema {found['schema']!r}, this version reads {SCHEMA}")
    if found["of"] != key:
        other = [name for name in key if found["of"].get(name) != key[name]]
        raise ValueError(f"it is of something else: {', '.join(other)} differ")
    ways = [
        (_checked(Way.of(one["kind"], **one["parameters"]), matrix, n), float(one["seconds"]))
        for one in found["ways"]
    ]
    if not ways or not all(0 < seconds < np.inf for _, seconds in ways):
        raise ValueError("it holds no ways, or times that are not positive")
    return sorted(ways, key=lambda one: one[1])


def _checked(way: Way, matrix: HasTables, n: int) -> Way:
    """The way, if it can be planned: a launch of another would fail, or be wrong."""
    V = matrix.index.tile_size
    names = tuple(name for name, _ in way.parameters)
    values = dict(way.parameters)
    if all(type(value) is int and value > 0 for value in values.values()):
        if way == DENSE:
            return way
        if way.kind == "decode" and names == _CUT and n <= MAX_COLUMNS:
            if V % values["block_rows"] == 0 and values["block_rows"] % 16 == 0:
                return way
        elif way.kind == "window":
            return way  # that of the matrix is taken, or none
        elif way.kind == "spmm" and names == _BLOCKING:
            blocking = Blocking(V, **values, sparse=matrix.sparse)
            fits = V % (16 * blocking.warps_m) == 0 and blocking.threads <= 1024
            if fits and blocking.block_n % (16 * blocking.warps_n) == 0 and blocking.stages >= 2:
                return way
    raise ValueError(f"{way} is no way to compute this product")
