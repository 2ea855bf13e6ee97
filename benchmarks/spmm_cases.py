"""Packed matrices of every structure that is measured, made without a search.

What a kernel's time depends on is drawn at random, as a search leaves it: the order of the rows,
which columns a tile keeps, how they are grouped, which two of four are kept. The values are
normal: zeros and constants would let a card clock higher.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gyroperm.gpu.format import HinmMatrix
from gyroperm.gpu.index import IndexTables
from gyroperm.gpu.numbers import from_bits, to_bits

STEP = 64

#: Output and input channels of the matrices: as in models of 7 and 8 billion weights.
SHAPES = ((4096, 4096), (11008, 4096), (4096, 14336))
COLUMNS = (1, 8, 16, 64, 256, 4096)

QUICK_SHAPES = ((4096, 4096),)
QUICK_COLUMNS = (1, 64, 4096)

# Two places of four in ascending order, as metadata holds them.
_PLACES = np.array([4, 8, 12, 9, 13, 14], dtype=np.uint32)

# Values and metadata are drawn so often, then repeated: a prime, so that no two tiles are alike.
_DRAWN = 1_000_003


@dataclass(frozen=True)
class Structure:
    """What a packed matrix is like.

    Parameters
    ----------
    pattern : {"hinm", "vector", "tvw"}
        Whole columns of a tile pruned and 2:4 inside; the columns alone; and as the first, but
        tiles keep different numbers of columns.
    outputs, inputs : int
        R, any, and C, a multiple of 64.
    tile_size : int
        V.
    vec_ratio : float
        The fraction of a tile's columns that is pruned, rounded to steps of 64.
    dtype : {"float16", "bfloat16"}
    is_sorted : bool
        Rows in their order, and the columns of each tile ascending, as without a permutation.
    """

    pattern: str
    outputs: int
    inputs: int
    tile_size: int
    vec_ratio: float
    dtype: str = "bfloat16"
    is_sorted: bool = False

    @property
    def sparse(self) -> bool:
        """Whether two of four are kept inside."""
        return self.pattern != "vector"

    @property
    def sparsity(self) -> float:
        """The fraction of the weights that is pruned."""
        return 1 - (1 - self.vec_ratio) * (0.5 if self.sparse else 1.0)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "sparsity": self.sparsity}


@dataclass(frozen=True)
class Case:
    """A structure, and the columns N of what it is multiplied with."""

    structure: Structure
    n: int


def product_cases(*, quick: bool) -> list[Case]:
    """The products that are measured; those of a structure follow one another."""
    shapes, columns = (QUICK_SHAPES, QUICK_COLUMNS) if quick else (SHAPES, COLUMNS)
    structures = []
    for shape in shapes:
        for vec_ratio in (0.0, 0.5, 0.75):
            sizes = [128] if quick else [64, 128]
            if not quick and shape == SHAPES[0] and vec_ratio > 0:
                sizes.append(32)
            structures += [Structure("hinm", *shape, V, vec_ratio) for V in sizes]
        for vec_ratio in (0.75, 0.875):
            structures += [Structure("vector", *shape, V, vec_ratio, "float16") for V in (32, 128)]
    cases = []
    for structure in structures:
        narrow = structure.pattern == "vector" or structure.tile_size == 32
        wanted = [n for n in columns if n in (1, 16, 64, 4096) or not narrow]
        cases += [Case(structure, n) for n in wanted]
    return cases


def tvw_cases(*, quick: bool) -> list[Case]:
    """Tiles of different numbers of columns."""
    shapes, columns = (QUICK_SHAPES, QUICK_COLUMNS) if quick else (SHAPES, (1, 16, 64, 256, 4096))
    return [Case(Structure("tvw", *shape, 128, 0.5), n) for shape in shapes for n in columns]


def even(structure: Structure) -> Structure:
    """The structure whose tiles all keep as many columns as those of a ragged one on average."""
    changed = {**asdict(structure), "pattern": "hinm"}
    return Structure(**changed)


def make_matrix(
    structure: Structure, seed: int = 0, row_order: NDArray[np.integer] | None = None
) -> HinmMatrix:
    """A packed matrix of a structure.

    Parameters
    ----------
    structure : Structure
    seed : int
    row_order : ndarray of int, shape (R,), optional
        Which output rows the tiles hold, one after the other; drawn by default.

    Raises
    ------
    ValueError
        If C is no multiple of 64.
    """
    if structure.inputs % STEP:
        raise ValueError(f"inputs must be a multiple of {STEP}, got {structure.inputs}")
    rng = np.random.default_rng(seed)
    V = structure.tile_size
    tiles = -(-structure.outputs // V)
    rows = np.full(tiles * V, -1)
    if structure.is_sorted:
        rows[: structure.outputs] = np.arange(structure.outputs)
    else:
        order = rng.permutation(structure.outputs) if row_order is None else row_order
        rows[: structure.outputs] = order
    tile_steps = steps_of_tiles(structure, tiles, rng)
    drawn = [rng.permutation(structure.inputs)[: STEP * count] for count in tile_steps]
    if structure.is_sorted:
        drawn = [np.sort(columns) for columns in drawn]
    index = IndexTables(
        np.concatenate(drawn),
        STEP * np.concatenate([[0], np.cumsum(tile_steps)]),
        rows,
        structure.inputs,
        structure.outputs,
    )
    steps, blocks = int(tile_steps.sum()), V // 16
    values = _values(rng, (steps, 2 if structure.sparse else 4, blocks, 32, 8), structure)
    metadata = _metadata(rng, (steps * structure.sparse, blocks, 32))
    return HinmMatrix(values, metadata, index, structure.dtype)


def steps_of_tiles(structure: Structure, tiles: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The steps of 64 kept columns of each tile.

    Of a ragged structure they lie between a quarter and seven quarters of the mean, and their
    sum is that of equal ones.
    """
    most = structure.inputs // STEP
    mean = max(1, round(most * (1 - structure.vec_ratio)))
    steps = np.full(tiles, mean)
    if structure.pattern != "tvw":
        return steps
    least, greatest = max(1, mean // 4), min(most, 2 * mean - max(1, mean // 4))
    # Pairs of tiles, of which one takes what the other gives.
    given = rng.integers(0, min(mean - least, greatest - mean) + 1, tiles // 2)
    pairs = rng.permutation(tiles)[: 2 * len(given)].reshape(-1, 2)
    steps[pairs[:, 0]] += given
    steps[pairs[:, 1]] -= given
    return steps


def _values(
    rng: np.random.Generator, shape: tuple[int, ...], structure: Structure
) -> NDArray[np.uint16]:
    # Such that Y is about as large as X.
    kept = structure.inputs * (1 - structure.sparsity)
    pool = rng.standard_normal(_DRAWN, dtype=np.float32) / np.float32(kept**0.5)
    return _frozen(np.resize(to_bits(pool, structure.dtype), shape))


def _metadata(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint32]:
    words = np.zeros(_DRAWN, dtype=np.uint32)
    for group in range(8):
        words |= _PLACES[rng.integers(0, len(_PLACES), _DRAWN)] << np.uint32(4 * group)
    return _frozen(np.resize(words, shape) if shape[0] else np.empty(shape, np.uint32))


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    # What cannot be written is not copied by the packed matrix.
    array.setflags(write=False)
    return array


def tile_block(matrix: HinmMatrix, tile: int) -> NDArray[np.float32]:
    """The weights of a tile, shape (V, K): unpacked by NumPy, not by what packs them."""
    first, last = (int(slot) // STEP for slot in matrix.index.tile_ptr[tile : tile + 2])
    values = from_bits(matrix.values[first:last], matrix.dtype)
    steps, inner, blocks = values.shape[:3]
    # Axes: row % 8, k % 8 // 2; k // 8, row // 8, k % 2.
    parts = values.reshape(steps, inner, blocks, 8, 4, 2, 2, 2)
    stored = parts.transpose(2, 6, 3, 0, 1, 5, 4, 7).reshape(matrix.tile_size, -1)
    if not matrix.sparse:
        return stored
    words = matrix.metadata[first:last].reshape(steps, blocks, 8, 2, 2, 1, 1)
    shifts = (16 * np.arange(2)[:, None] + 4 * np.arange(4)).astype(np.uint32)
    places = (words >> shifts) & np.uint32(15)
    places = places.transpose(1, 5, 2, 0, 3, 4, 6).reshape(matrix.tile_size, -1)
    at = np.stack([places & 3, places >> 2], axis=-1).astype(np.int64)
    block = np.zeros((*places.shape, 4), np.float32)
    np.put_along_axis(block, at, stored.reshape(*places.shape, 2), axis=-1)
    return block.reshape(matrix.tile_size, -1)


def dense_weights(matrix: HinmMatrix) -> NDArray[np.float32]:
    """The whole matrix, shape (R, C)."""
    dense = np.zeros(matrix.shape, np.float32)
    for tile, rows in enumerate(matrix.row_map.reshape(matrix.tiles, -1)):
        real = rows >= 0
        columns = _columns(matrix, tile)
        dense[rows[real][:, None], columns] = tile_block(matrix, tile)[real]
    return dense


def _columns(matrix: HinmMatrix, tile: int) -> NDArray[np.integer]:
    first, last = matrix.index.tile_ptr[tile : tile + 2]
    return matrix.columns[first:last]


@dataclass(frozen=True, eq=False)
class Sample:
    """Some elements of a product, in float64, to hold a kernel's against.

    Parameters
    ----------
    rows, columns : ndarray of int
        Of Y.
    expected, terms : ndarray of float64
        ``W X`` there, and ``|W| |X|``.
    """

    rows: NDArray[np.integer]
    columns: NDArray[np.integer]
    expected: NDArray[np.float64]
    terms: NDArray[np.float64]

    @classmethod
    def of(cls, matrix: HinmMatrix, x: NDArray[np.uint16]) -> Sample:
        """The rows of the first, a middle and the last tile, and eight columns at most."""
        n = x.shape[1]
        columns = np.unique(np.linspace(0, n - 1, 8).astype(int))
        exact = from_bits(np.ascontiguousarray(x[:, columns]), matrix.dtype).astype(np.float64)
        rows, expected, terms = [], [], []
        row_map = matrix.row_map.reshape(matrix.tiles, -1)
        for tile in sorted({0, matrix.tiles // 2, matrix.tiles - 1}):
            real = row_map[tile] >= 0
            weights = tile_block(matrix, tile)[real].astype(np.float64)
            read = exact[_columns(matrix, tile)]
            rows.append(row_map[tile][real])
            expected.append(weights @ read)
            terms.append(np.abs(weights) @ np.abs(read))
        return cls(np.concatenate(rows), columns, np.concatenate(expected), np.concatenate(terms))

    def excess(self, y: NDArray[np.uint16], dtype: str) -> float:
        """By how much the worst of these elements of Y is off beyond rounding; NaN if one is.

        Sums are in float32 in whatever order, cut off by tensor cores at each addition, and
        rounded once. A term too many or too few is hundreds of times what that makes.
        """
        half = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
        bound = 1.01 * half * np.abs(self.expected) + 2.0**-17 * self.terms
        return float((np.abs(from_bits(y, dtype) - self.expected) - bound).max())
