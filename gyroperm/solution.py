"""The answer to a permutation problem, checked, measured, and applied to weights."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gyroperm import measures
from gyroperm.arrangement import Arrangement
from gyroperm.arrays import is_cupy, is_torch, to_numpy
from gyroperm.files import atomic_path
from gyroperm.output import Objective
from gyroperm.pattern import Pattern
from gyroperm.problem import Problem
from gyroperm.views import WeightView

#: Schema 1 had no ``bound_kind``, schema 2 no output errors.
SCHEMA = 3
_READ = (1, 2, 3)

Status = Literal["infeasible", "feasible", "optimal", "lossless"]
Basis = Literal["row", "layer"]

#: The bound that costs nothing: what unstructured pruning of as many weights would keep.
UNSTRUCTURED = "unstructured"

# A retained sum this close to the bound, relatively, equals it up to the rounding of both.
_EQUAL = 1e-12
# By more than this no rounding makes a bound too low.
_WRONG = 1e-10


def shown(value: float, form: str, unit: str = "") -> str:
    """A measure for people, in a format and with its unit; "-" where it is NaN."""
    return "-" if math.isnan(value) else f"{value:{form}}{unit}"


@dataclass(frozen=True, eq=False)
class Solution:
    """The order of rows and columns and the mask that a search found.

    Checked when it is made: orders are bijections, the budget is met, and the mask keeps exactly
    n of every m (all real columns, in a group that has fewer).

    Attributes
    ----------
    pattern : Pattern
    arrangement : Arrangement
        Rows in tiles and columns in groups; ``tile_rows``, ``groups`` and ``col_order`` are
        its parts.
    mask : ndarray of bool in the weights' shape, or a list of them
        True where a weight is kept, in the original order.
    retained, identity : float
        The saliency kept, and what the pattern keeps without permutation.
    output_error, identity_output_error : float
        ``tr((W - What) H (W - What)^T) / tr(W H W^T)``, the squared relative error of the layer's
        output, of the mask and without permutation; NaN where it was not said what the layer is
        fed. Both after compensation where that is the objective.
    objective : {"saliency", "error", "compensated"}
        What was searched for.
    unstructured_by_row, unstructured_by_layer : float
        The largest sums with as many weights in each row, and in the layer, as the mask keeps.
    bound : float
        A proven upper bound of ``retained`` for this pattern under any permutation.
    bound_kind : str
        How it was proven. ``"unstructured"``: nothing with as many weights keeps more.
        ``"relaxation"``: by prices of the columns (duals of the set partition's linear
        relaxation) that pay for every group of m there is. ``"branching"``: by branching over
        the groups that such prices leave. A method may name another way.
    lost : int
        The nonzero saliencies outside the mask.
    status : {"infeasible", "feasible", "optimal", "lossless"}
        ``lossless`` if every nonzero saliency is kept, which is optimal too; else ``infeasible``
        if :func:`gyroperm.lossless` has proven that none can be; ``optimal`` only when proven,
        to within float64 rounding.
    infeasible : str
        Why no arrangement is lossless, where that was asked for and proven; else empty.
    method, seed : str, int
        How it was found.
    seconds : float
        The search's time, compilation excluded.
    history : tuple of (float, float)
        (seconds, retained) at every improvement; (seconds, output_error) where the objective is
        an error.
    view : WeightView
        How the weights are seen as a matrix.
    """

    pattern: Pattern
    arrangement: Arrangement
    mask: Any
    retained: float
    identity: float
    unstructured_by_row: float
    unstructured_by_layer: float
    bound: float
    lost: int
    method: str
    seed: int
    seconds: float
    view: WeightView
    history: tuple[tuple[float, float], ...] = ()
    infeasible: str = ""
    bound_kind: str = UNSTRUCTURED
    output_error: float = math.nan
    identity_output_error: float = math.nan
    objective: Objective = "saliency"
    _matrix_mask: NDArray[np.bool_] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_matrix_mask", self.view.matrix(self.masks))
        self._matrix_mask.setflags(write=False)
        for mask in self.masks:
            mask.setflags(write=False)
        self.arrangement.check(self.view.layout(self.pattern))
        _check_mask(self.arrangement, self._matrix_mask, self.pattern.n)

    @property
    def masks(self) -> list[NDArray[np.bool_]]:
        """The mask of each weight, also where there is but one."""
        return list(self.mask) if self.view.listed else [self.mask]

    @property
    def tile_rows(self) -> NDArray[np.int32]:
        """Original rows of each tile, shape (T, V); -1 for virtual rows."""
        return self.arrangement.tile_rows

    @property
    def groups(self) -> tuple[NDArray[np.int32], ...]:
        """Original columns of each tile's groups, T arrays of shape (G_t, m); -1 is virtual."""
        return self.arrangement.groups

    @property
    def col_order(self) -> NDArray[np.int32] | None:
        """The layer's one column order, (C',), -1 for virtual columns; None if it has none.

        Shape (groups, C') for a grouped convolution, whose groups have channels of their own.
        """
        return self.arrangement.col_order

    @property
    def row_order(self) -> NDArray[np.int32]:
        """``row_order[p]`` is the original row at packed row p; rows pruned whole come last."""
        return self.arrangement.row_order(self._matrix_mask.shape[0])

    @property
    def basis(self) -> Basis:
        """Which unstructured sum ``efficacy`` uses: each row's for plain N:M, else the layer's."""
        return "row" if self.pattern.is_plain else "layer"

    @property
    def unstructured(self) -> float:
        """The unstructured sum that ``efficacy`` uses; see ``basis``."""
        return self.unstructured_by_row if self.basis == "row" else self.unstructured_by_layer

    @property
    def efficacy(self) -> float:
        """``100 * (retained - identity) / (unstructured - identity)``; NaN without room."""
        return measures.efficacy(self.retained, self.identity, self.unstructured)

    @property
    def ratio(self) -> float:
        """``retained / unstructured``; NaN where there is no saliency."""
        return self.retained / self.unstructured if self.unstructured else math.nan

    @property
    def gap(self) -> float:
        """``(bound - retained) / bound``, at least 0; 0 where the bound is 0."""
        return max(0.0, 1.0 - self.retained / self.bound) if self.bound else 0.0

    @property
    def gap_points(self) -> float:
        """The gap in points of efficacy: what proof leaves open; NaN where there is no room."""
        at_most = measures.efficacy(self.bound, self.identity, self.unstructured)
        return max(0.0, at_most - self.efficacy) if math.isfinite(at_most) else math.nan

    @property
    def status(self) -> Status:
        """``lossless``, ``infeasible``, ``optimal`` or ``feasible``; see the class."""
        if not self.lost:
            return "lossless"
        if self.infeasible:
            return "infeasible"
        return "optimal" if self.gap <= _EQUAL else "feasible"

    def apply(self, weights: Any) -> Any:
        """The weights with everything outside the mask set to zero, in the original order.

        Parameters
        ----------
        weights : array of the shape that was solved, or a list of them
            NumPy, torch and CuPy arrays keep their kind, dtype and device.

        Raises
        ------
        ValueError
            If a shape differs.
        """
        given = self._as_list(weights)
        pruned = [_masked(w, mask) for w, mask in zip(given, self.masks, strict=True)]
        return pruned if self.view.listed else pruned[0]

    def permute(self, weights: Any) -> NDArray[Any] | list[NDArray[Any]]:
        """The weights in the order the hardware reads them, dense inside what is kept.

        Parameters
        ----------
        weights : array of the shape that was solved, or a list of them

        Returns
        -------
        ndarray, shape (R, C'), for plain N:M with one column order
            Rows as they lie, columns in ``col_order``; virtual columns are zero. A list of
            weights gives one matrix too, theirs one below the other: R is the sum of their
            rows. A convolution, (R, C, *kernel), gives (R * positions, C'): the kernel
            positions of an output channel are consecutive rows, since only its C input channels
            are ordered.
        list of T ndarrays, shape (V, K_t), for every other pattern
            Each tile's rows and kept columns, group after group; virtual ones are zero. The
            columns of a convolution are the ``C * positions`` of its im2col view. Plain N:M on a
            grouped convolution gives such a list too, one matrix a group of the convolution.
        """
        matrix = self._matrix(weights)
        if self._one_matrix:
            return _gather(matrix, self.tile_rows[0], self.groups[0].reshape(-1))
        return [
            _gather(matrix, rows, groups.reshape(-1))
            for rows, groups in zip(self.tile_rows, self.groups, strict=True)
        ]

    def unpermute(self, permuted: NDArray[Any] | Sequence[NDArray[Any]]) -> Any:
        """The inverse of :meth:`permute`: the masked weights in the original order and shape."""
        blocks = [permuted] if self._one_matrix else list(permuted)
        if len(blocks) != len(self.groups):
            raise ValueError(f"permuted must hold {len(self.groups)} blocks, got {len(blocks)}")
        matrix = np.zeros(self._matrix_mask.shape, dtype=np.asarray(blocks[0]).dtype)
        for t, block in enumerate(blocks):
            rows, columns = self.tile_rows[t], self.groups[t].reshape(-1)
            if np.shape(block) != (len(rows), len(columns)):
                raise ValueError(
                    f"block {t} must have shape {(len(rows), len(columns))}, got {np.shape(block)}"
                )
            real = np.ix_(rows >= 0, columns >= 0)
            matrix[np.ix_(rows[rows >= 0], columns[columns >= 0])] = np.asarray(block)[real]
        matrix[~self._matrix_mask] = 0
        parts = self.view.split(matrix)
        return parts if self.view.listed else parts[0]

    @property
    def _one_matrix(self) -> bool:
        return self.pattern.is_plain and len(self.groups) == 1

    def _as_list(self, weights: Any) -> list[Any]:
        given = list(weights) if self.view.listed else [weights]
        if len(given) != len(self.view.shapes):
            raise ValueError(f"weights must hold {len(self.view.shapes)} arrays, got {len(given)}")
        given = [w if hasattr(w, "shape") else to_numpy(w) for w in given]
        for array, shape in zip(given, self.view.shapes, strict=True):
            if tuple(array.shape) != shape:
                raise ValueError(f"weights must have shape {shape}, got {tuple(array.shape)}")
        return given

    def _matrix(self, weights: Any) -> NDArray[np.floating]:
        return self.view.matrix([to_numpy(w) for w in self._as_list(weights)])

    def summary(self) -> str:
        """A few lines for people: what was kept, how good it is, and how it was found."""
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.view.shapes)
        kept = int(self._matrix_mask.sum())
        lines = [
            f"pattern       {self.pattern}",
            f"weights       {shapes}",
            f"kept          {kept} of {self._matrix_mask.size} weights "
            f"({100 * kept / self._matrix_mask.size:.2f} %)",
            f"retained      {self.retained:.6g} = {shown(self.ratio, '.4f')} of unstructured "
            f"(identity {self.identity:.6g})",
            f"efficacy      {shown(self.efficacy, '.2f', ' %')} of the room above identity, "
            f"per {self.basis}",
            f"bound         {self.bound:.6g} by {self.bound_kind}, gap {100 * self.gap:.3f} % = "
            f"{shown(self.gap_points, '.2f')} points of efficacy, {self.status}",
            f"method        {self.method}, seed {self.seed}, {self.seconds:.2f} s",
        ]
        if not math.isnan(self.output_error):
            after = ", after compensation" if self.objective == "compensated" else ""
            lines.append(
                f"output error  {self.output_error:.4g} of the squared output{after} "
                f"(identity {self.identity_output_error:.4g})"
            )
        if self.infeasible:
            lines.append(f"not lossless  {self.lost} nonzeros are lost: {self.infeasible}")
        return "\n".join(lines)

    def rescaled(self, exponent: int) -> Solution:
        """The same solution of a saliency that is ``2**exponent`` times as large."""
        measures = ("retained", "identity", "unstructured_by_row", "unstructured_by_layer", "bound")
        history = tuple((s, math.ldexp(kept, exponent)) for s, kept in self.history)
        changed: dict[str, Any] = {"history": history}
        for name in measures:
            changed[name] = math.ldexp(getattr(self, name), exponent)
        return replace(self, **changed)

    def save(self, path: str | Path) -> None:
        """Write to an ``.npz`` file, complete or not at all; read it back with :meth:`load`."""
        arrays, texts = self.stored()
        arrays["schema"] = np.array(SCHEMA)
        arrays["history"] = np.array(self.history, dtype=np.float64).reshape(-1, 2)
        arrays.update({name: np.array(text) for name, text in texts.items()})
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    def stored(self) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
        """All but the history as arrays and as texts; :meth:`from_stored` takes them together."""
        scalars = {name: getattr(self, name) for name in _SCALARS}
        arrays: dict[str, NDArray[Any]] = {
            "mask_bits": np.packbits(self._matrix_mask),
            "tile_rows": self.tile_rows,
            "group_counts": np.array([len(g) for g in self.groups], dtype=np.int64),
            "groups": np.concatenate(self.groups),
        }
        if self.col_order is not None:
            arrays["col_order"] = self.col_order
        texts = {
            "pattern": json.dumps(asdict(self.pattern)),
            "view": json.dumps(asdict(self.view)),
            "scalars": json.dumps(scalars),
        }
        return arrays, texts

    @classmethod
    def load(cls, path: str | Path) -> Solution:
        """Read what :meth:`save` wrote.

        Raises
        ------
        ValueError
            If this is no such file, or one of a schema that this version does not know.
        """
        try:
            stored = _read_arrays(path)
        except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, *_ZIP_ERRORS) as error:
            raise ValueError(f"{path} is no gyroperm solution: {error}") from error
        if int(stored["schema"]) not in _READ:
            raise ValueError(
                f"{path} has schema {int(stored['schema'])}; "
                f"this version reads schema 1 to {SCHEMA}"
            )
        try:
            return cls.from_stored(stored, int(stored["schema"]))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"{path} is a damaged gyroperm solution: {error!r}") from error

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any], schema: int = SCHEMA) -> Solution:
        """A solution of what :meth:`stored` gave, and ``history`` where there is one.

        Raises
        ------
        KeyError, TypeError, ValueError, IndexError
            If something is missing or does not fit.
        """
        scalars = json.loads(str(stored["scalars"]))
        if schema < SCHEMA:
            scalars.setdefault("bound_kind", UNSTRUCTURED)
            scalars.setdefault("output_error", math.nan)
            scalars.setdefault("identity_output_error", math.nan)
            scalars.setdefault("objective", "saliency")
        for name, kind in _SCALARS.items():
            if not isinstance(scalars[name], kind) or isinstance(scalars[name], bool):
                raise TypeError(f"{name} is {scalars[name]!r}")
        view_fields = json.loads(str(stored["view"]))
        view_fields["shapes"] = tuple(tuple(shape) for shape in view_fields["shapes"])
        view = WeightView(**view_fields)
        ends = np.cumsum(stored["group_counts"])[:-1]
        arrangement = Arrangement(
            stored["tile_rows"],
            tuple(np.split(stored["groups"], ends)),
            stored.get("col_order"),
        )
        shape = sum(view.row_counts), view.columns
        bits = np.unpackbits(stored["mask_bits"], count=shape[0] * shape[1])
        masks = view.split(bits.astype(np.bool_).reshape(shape))
        return cls(
            pattern=Pattern(**json.loads(str(stored["pattern"]))),
            arrangement=arrangement,
            mask=masks if view.listed else masks[0],
            view=view,
            history=tuple((float(s), float(r)) for s, r in stored.get("history", ())),
            **scalars,
        )

    @classmethod
    def measured(
        cls,
        problem: Problem,
        arrangement: Arrangement,
        *,
        identity: float,
        view: WeightView,
        proof: tuple[float, str] | None = None,
        **found: Any,
    ) -> Solution:
        """The solution of an arrangement that has passed its check: its best mask, measured.

        Parameters
        ----------
        problem : Problem
        arrangement : Arrangement
        identity : float
            What the pattern keeps without permutation.
        view : WeightView
        proof : (float, str), optional
            A bound besides the unstructured one, and how it was proven; the lower one counts.

        **found
            ``method``, ``seed``, ``seconds`` and ``history``; output errors and the objective.

        Raises
        ------
        RuntimeError
            If the bound is below what is retained: then it was not proven.
        """
        mask = arrangement.mask(problem.saliency, problem.pattern.n)
        against = measures.reference(problem, mask)
        masks = view.split(mask)
        retained = measures.retained(problem.saliency, mask)
        bound, kind = min((against.bound, UNSTRUCTURED), proof or (math.inf, ""))
        if retained > bound * (1.0 + _WRONG):
            raise RuntimeError(f"the {kind} bound {bound!r} is below {retained!r}, which is kept")
        return cls(
            pattern=problem.pattern,
            arrangement=arrangement,
            mask=masks if view.listed else masks[0],
            retained=retained,
            identity=identity,
            unstructured_by_row=against.by_row,
            unstructured_by_layer=against.by_layer,
            lost=int(np.count_nonzero((problem.saliency > 0) & ~mask)),
            bound=max(bound, retained),
            bound_kind=kind,
            view=view,
            **found,
        )


_SCALARS: dict[str, type] = {
    "retained": float,
    "identity": float,
    "unstructured_by_row": float,
    "unstructured_by_layer": float,
    "bound": float,
    "lost": int,
    "infeasible": str,
    "bound_kind": str,
    "output_error": float,
    "identity_output_error": float,
    "objective": str,
    "method": str,
    "seed": int,
    "seconds": float,
}

# What zipfile raises for a kind of compression or encryption it does not know.
_ZIP_ERRORS = (NotImplementedError, RuntimeError)


def _read_arrays(path: str | Path) -> dict[str, NDArray[Any]]:
    with Path(path).open("rb") as raw:
        if raw.read(2) != b"PK":
            raise ValueError("it is no .npz archive")
    file = np.load(path, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("it is a bare array")
    with file:
        stored = {name: file[name] for name in file.files}
    if "schema" not in stored:
        raise ValueError("it has no schema version")
    if stored["schema"].shape or stored["schema"].dtype.kind != "i":
        raise ValueError("its schema version is no integer")
    return stored


def _gather(
    matrix: NDArray[Any], rows: NDArray[np.integer], columns: NDArray[np.integer]
) -> NDArray[Any]:
    # -1 would read the last row or column: it is read, and then set to zero.
    block = matrix[np.ix_(rows, columns)]
    block[rows < 0] = 0
    block[:, columns < 0] = 0
    return block


def _masked(weights: Any, mask: NDArray[np.bool_]) -> Any:
    if is_torch(weights):
        import torch

        keep = torch.from_numpy(np.array(mask)).to(weights.device)
        return torch.where(keep, weights, torch.zeros((), dtype=weights.dtype, device=keep.device))
    if is_cupy(weights):
        import cupy

        return cupy.where(cupy.asarray(mask), weights, weights.dtype.type(0))
    host = np.asarray(weights)
    return np.where(mask, host, np.zeros((), dtype=host.dtype))


def _check_mask(arrangement: Arrangement, mask: NDArray[np.bool_], n: int) -> None:
    """Raise unless the mask keeps exactly min(n, real columns) in each row of each group."""
    total = 0
    for rows, groups in zip(arrangement.tile_rows, arrangement.groups, strict=True):
        rows = rows[rows >= 0]
        real = groups >= 0
        kept = mask[rows[:, None], np.where(real, groups, 0).reshape(-1)]
        counts = (kept.reshape(len(rows), *groups.shape) & real).sum(axis=2)
        if not (counts == np.minimum(n, real.sum(axis=1))).all():
            raise ValueError(f"the mask does not keep exactly {n} of every group in every row")
        total += int(counts.sum())
    if total != int(mask.sum()):
        raise ValueError("the mask keeps weights outside the kept vectors")
