"""The packed matrix: values, metadata and index tables, in the order the kernels read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gyroperm.arrays import to_numpy
from gyroperm.files import atomic_path
from gyroperm.gpu.index import IndexTables, fuse
from gyroperm.gpu.numbers import checked_dtype, from_bits, is_infinite, to_bits
from gyroperm.gpu.tiling import FRAGMENT_ROWS, STEP, TILE_SIZES, Tiling, is_sparse_inside
from gyroperm.gpu.weights import weight_matrix
from gyroperm.solution import Solution

SCHEMA = 1
_FORMAT = "gyroperm.HinmMatrix"

# Fragments of a step, by whether they are sparse inside: they cover 32 slots, or 16.
_INNER = {True: 2, False: 4}


@dataclass(frozen=True, eq=False)
class HinmMatrix:
    """A pruned weight matrix, compressed for sparse tensor cores.

    Tiles of V rows hold the columns that they keep, in steps of 64 slots. A step's values lie in
    fragments, one for each 16 rows and 32 slots (sparse inside: two of every four slots are
    stored, the metadata says which) or 16 slots (dense inside: all are stored), in the order in
    which the lanes of a warp take them. Every output row is in one tile; those that the pattern
    pruned whole are in tiles of no steps.

    Parameters
    ----------
    values : ndarray of uint16, shape (steps, inner, V / 16, 32, 8)
        The bits of the weights; ``inner`` is 2 for sparse inside, 4 for dense inside. Lane
        ``4 * (row % 8) + k % 8 // 2`` holds value k of a row of its fragment at place
        ``2 * (row // 8 + 2 * (k // 8)) + k % 2``.
    metadata : ndarray of uint32, shape (steps, V / 16, 32), or (0, V / 16, 32) for dense inside
        Which slots of four are stored, as ``mma.sp::ordered_metadata`` reads it: with selector 0
        (of the lanes with ``lane % 4`` in {0, 1}) for a step's first fragment, 1 for its second.
    index : IndexTables
        ``tile_ptr`` in slots, multiples of 64; a pad reads row 0 of X and has zero values.
    dtype : {"float16", "bfloat16"}

    Raises
    ------
    ValueError
        If the arrays do not fit together, or a place in the metadata is not above the one
        before; the message names the array.
    TypeError
        If an array is of another type.
    """

    values: NDArray[np.uint16]
    metadata: NDArray[np.uint32]
    index: IndexTables
    dtype: str

    def __post_init__(self) -> None:
        checked_dtype(self.dtype)
        values = _checked("values", self.values, np.uint16)
        metadata = _checked("metadata", self.metadata, np.uint32)
        _check_index(self.index)
        blocks = self.index.tile_size // FRAGMENT_ROWS
        steps = len(self.index.columns) // STEP
        expected = [(steps, inner, blocks, 32, 8) for inner in _INNER.values()]
        if values.shape not in expected:
            raise ValueError(
                f"values must have shape {expected[0]} (sparse inside) or {expected[1]} (dense "
                f"inside), as index has {steps} steps, got {values.shape}"
            )
        is_sparse = values.shape[1] == _INNER[True]
        if metadata.shape != (steps * is_sparse, blocks, 32):
            raise ValueError(
                f"metadata must have shape {(steps * is_sparse, blocks, 32)}, got {metadata.shape}"
            )
        _check_ordered(metadata)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "metadata", metadata)

    @classmethod
    def from_solution(
        cls, solution: Solution, weights: Any, dtype: str | None = None
    ) -> HinmMatrix:
        """Pack the weights that the mask of a solution keeps.

        Parameters
        ----------
        solution : Solution
            Of any pattern whose ``vec_size`` is a multiple of 16 or None. Tiles of other than
            16, 32, 64, 128 or 256 rows are cut into such ones that repeat the columns: of the
            largest size that divides ``vec_size``; where that is None or more than 256, of at
            most 128. A list of matrices is packed as one, its outputs stacked; a convolution as
            the matrix of its im2col view.
        weights : array of the shape that was solved, or a list of them
            NumPy, torch or CuPy; half precision is packed bit for bit if the dtype is its own.
        dtype : {"float16", "bfloat16"}, optional
            What to round to, nearest and ties to even; by default that of the weights, float16
            for weights of another precision.

        Raises
        ------
        ValueError
            If the pattern has another ``vec_size``, no single product is behind the solution
            (a grouped convolution, or one solved by input channel), the weights are of another
            shape, or a weight that is kept is too large for the dtype.
        TypeError
            If the weights are no arrays of real numbers.
        """
        if dtype is not None:
            checked_dtype(dtype)
        tiling = Tiling.of(solution)
        matrix, given = weight_matrix(weights, solution.view)
        dtype = dtype or given or "float16"
        source = _Source(_read_only(matrix), given, _kept(solution), dtype)
        is_sparse = is_sparse_inside(solution.pattern)
        values, metadata = _packed(tiling, source, is_sparse)
        return cls(values, metadata, tiling.index, dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """(R, C): the rows of Y, and those of the X that the index tables read."""
        return self.index.outputs, self.index.inputs

    @property
    def tiles(self) -> int:
        """T, the number of tiles, those without steps included."""
        return self.index.tiles

    @property
    def tile_size(self) -> int:
        """V, the rows of a tile."""
        return self.index.tile_size

    @property
    def columns(self) -> NDArray[np.integer]:
        """The row of X that each slot reads, shape (64 * steps,)."""
        return self.index.columns

    @property
    def row_map(self) -> NDArray[np.integer]:
        """The row of Y at each packed row, shape (T * V,); -1 is virtual."""
        return self.index.row_map

    @property
    def steps(self) -> int:
        """The steps of all tiles together."""
        return len(self.values)

    @property
    def tile_steps(self) -> NDArray[np.integer]:
        """The steps of each tile, shape (T,)."""
        return np.diff(self.index.tile_ptr) // STEP

    @property
    def sparse(self) -> bool:
        """Whether two of every four slots are stored (else all are)."""
        return self.values.shape[1] == _INNER[True]

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays, index tables included."""
        tables = self.columns, self.index.tile_ptr, self.row_map
        return sum(array.nbytes for array in (self.values, self.metadata, *tables))

    @cached_property
    def density(self) -> float:
        """The fraction of the R x C weights that is stored and not zero."""
        return int(np.count_nonzero(self.values & 0x7FFF)) / (self.shape[0] * self.shape[1])

    def to_dense(self) -> NDArray[np.float32]:
        """The masked weights, exactly, shape (R, C)."""
        bits = np.zeros(self.shape, dtype=np.uint16)
        for rows, columns, block in self._blocks():
            real = rows >= 0
            block = block[real]
            # A zero may be a pad's, whose column is another slot's.
            row, slot = np.nonzero(block)
            bits[rows[real][row], columns[slot]] = block[row, slot]
        return from_bits(bits, self.dtype)

    def matmul_reference(self, x: Any) -> NDArray[np.float64]:
        """The product with X in float64, to compare a kernel with.

        Parameters
        ----------
        x : array of real numbers, shape (C, N)
            Feature-major: row c is what input channel c is multiplied with.

        Returns
        -------
        ndarray of float64, shape (R, N)

        Raises
        ------
        ValueError
            If X has another number of rows.
        """
        host = to_numpy(x, "x").astype(np.float64, copy=False)
        if host.ndim != 2 or len(host) != self.shape[1]:
            raise ValueError(f"x must have shape ({self.shape[1]}, N), got {host.shape}")
        y = np.zeros((self.shape[0], host.shape[1]))
        for rows, columns, block in self._blocks():
            real = rows >= 0
            weights = from_bits(block[real], self.dtype).astype(np.float64)
            y[rows[real]] = weights @ host[columns]
        return y

    def fused(self, producer_row_order: ArrayLike) -> HinmMatrix:
        """The same matrix for an X that its producer left in its own row order.

        The values are shared, only the index tables differ; see :func:`gyroperm.gpu.fuse`.

        Parameters
        ----------
        producer_row_order : array_like of int, shape (P,)
            The original row at each position of the producer's output, -1 for none:
            ``producer.index.output_order``.

        Raises
        ------
        ValueError, TypeError
            As :func:`gyroperm.gpu.fuse`.
        """
        return replace(self, index=fuse(self.index, producer_row_order))

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, complete or not at all; :meth:`load` reads it back."""
        from safetensors.numpy import save_file

        tensors: dict[str, NDArray[Any]] = {
            "values": self.values,
            "metadata": self.metadata,
            "columns": self.columns,
            "tile_ptr": self.index.tile_ptr,
            "row_map": self.row_map,
        }
        described = {
            "format": _FORMAT,
            "schema": str(SCHEMA),
            "dtype": self.dtype,
            "inputs": str(self.index.inputs),
            "outputs": str(self.index.outputs),
        }
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata=described)

    @classmethod
    def load(cls, path: str | Path) -> HinmMatrix:
        """Read what :meth:`save` wrote.

        Raises
        ------
        OSError
            If there is no such file, or it cannot be read.
        ValueError
            If it is no packed matrix, one of another schema, or damaged.
        """
        described, tensors = _read(Path(path))
        try:
            index = IndexTables(
                columns=tensors["columns"],
                tile_ptr=tensors["tile_ptr"],
                row_map=tensors["row_map"],
                inputs=int(described["inputs"]),
                outputs=int(described["outputs"]),
            )
            return cls(tensors["values"], tensors["metadata"], index, described["dtype"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is a damaged packed matrix: {error!r}") from error

    def _blocks(self) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[np.uint16]]]:
        """Each tile's rows (V,), -1 is virtual, its columns (K,) and its bits (V, K)."""
        from gyroperm.gpu.packing import unpack_dense, unpack_sparse

        for t, rows in enumerate(self.row_map.reshape(self.tiles, -1)):
            start, end = self.index.tile_ptr[t : t + 2].tolist()
            block = np.zeros((self.tile_size, end - start), dtype=np.uint16)
            steps = slice(start // STEP, end // STEP)
            if self.sparse:
                unpack_sparse(self.values[steps], self.metadata[steps], block)
            else:
                unpack_dense(self.values[steps], block)
            yield rows, self.columns[start:end], block


@dataclass(frozen=True, eq=False)
class _Source:
    """What is packed: a matrix of numbers, or of the bits of ``given``, its mask, and into what."""

    matrix: NDArray[Any]
    given: str | None
    mask: NDArray[np.bool_]
    dtype: str

    def rounded(self, packed: NDArray[Any]) -> NDArray[np.uint16]:
        """Values of the matrix as bits of the dtype; ValueError if one is too large for it."""
        if self.given == self.dtype:
            return packed
        numbers = packed if self.given is None else from_bits(packed, self.given)
        bits = to_bits(numbers, self.dtype)
        overflown = is_infinite(bits, self.dtype) & np.isfinite(numbers)
        if overflown.any():
            advice = ', pack with dtype="bfloat16"' if self.dtype == "float16" else ""
            raise ValueError(
                f"weights hold {numbers[overflown][0]}, too large for {self.dtype}{advice}"
            )
        return bits


def _packed(
    tiling: Tiling, source: _Source, is_sparse: bool
) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    from gyroperm.gpu.packing import pack_dense, pack_sparse
    from gyroperm.solvers.parallel import default_threads, parallel_map

    ends = tiling.tile_ptr // STEP
    blocks = tiling.rows.shape[1] // FRAGMENT_ROWS
    values = np.empty((ends[-1], _INNER[is_sparse], blocks, 32, 8), dtype=np.uint16)
    metadata = np.zeros((ends[-1] * is_sparse, blocks, 32), dtype=np.uint32)

    def pack(tile: int) -> None:
        steps = slice(ends[tile], ends[tile + 1])
        packed = np.zeros(values[steps].shape, dtype=source.matrix.dtype)
        given = source.matrix, source.mask, tiling.rows[tile], tiling.columns[tile]
        if is_sparse:
            pack_sparse(*given, packed, metadata[steps])
        else:
            pack_dense(*given, packed)
        values[steps] = source.rounded(packed)

    parallel_map(pack, range(len(tiling.columns)), default_threads())
    return _read_only(values), _read_only(metadata)


def _kept(solution: Solution) -> NDArray[np.bool_]:
    masks = solution.mask if solution.view.listed else [solution.mask]
    return _read_only(solution.view.matrix(masks))


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    # A view: whose array it is may go on writing, and kernels are compiled for one kind only.
    view = array.view()
    view.setflags(write=False)
    return view


def _checked(name: str, array: Any, dtype: type[np.generic]) -> NDArray[Any]:
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        raise TypeError(
            f"{name} must be a NumPy array of {np.dtype(dtype)}, got "
            f"{getattr(array, 'dtype', type(array).__name__)}"
        )
    if array.flags.writeable:
        array = array.copy()
    return _read_only(np.ascontiguousarray(array))


def _check_index(index: IndexTables) -> None:
    V = index.tile_size
    if V not in TILE_SIZES:
        sizes = ", ".join(map(str, TILE_SIZES))
        raise ValueError(f"index must have tiles of {sizes} rows, got {V}")
    if (index.tile_ptr % STEP).any():
        raise ValueError(f"tile_ptr of index must hold multiples of {STEP}")
    if (index.row_map >= 0).sum() != index.outputs:
        raise ValueError(
            f"row_map of index must name each of {index.outputs} output rows, got "
            f"{(index.row_map >= 0).sum()}"
        )


def _check_ordered(metadata: NDArray[np.uint32]) -> None:
    """Raise unless every second place is above the first: the hardware would read anything."""
    first = metadata & np.uint32(0x33333333)
    second = metadata >> np.uint32(2) & np.uint32(0x33333333)
    # In each four bits: 3 + second - first, which reaches 4 if the second is above.
    above = (second | np.uint32(0x44444444)) - first - np.uint32(0x11111111)
    wrong = np.argwhere(above & np.uint32(0x44444444) != 0x44444444)
    if len(wrong):
        at = tuple(wrong[0].tolist())
        raise ValueError(
            f"metadata must name two places of four in ascending order, got "
            f"{int(metadata[at]):#010x} at {at}"
        )


def _read(path: Path) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    from safetensors import SafetensorError, safe_open

    with path.open("rb"):
        pass  # what cannot be read is no ValueError
    try:
        with safe_open(path, framework="np") as file:
            described = file.metadata() or {}
            _check_described(path, described)
            return described, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no packed matrix: expected a safetensors file, got {error}"
        ) from error


def _check_described(path: Path, described: dict[str, str]) -> None:
    if described.get("format") != _FORMAT:
        raise ValueError(
            f"{path} is no packed matrix: expected format {_FORMAT!r} in its metadata, got "
            f"{described.get('format')!r}"
        )
    if described.get("schema") != str(SCHEMA):
        raise ValueError(
            f"{path} has schema {described.get('schema')}; this version reads schema {SCHEMA}"
        )
