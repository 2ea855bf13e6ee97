"""What products need beside their operands, by the kernel that computes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gyroperm.gpu.candidates import Way, window_way
from gyroperm.gpu.decode import DecodePlan, decode_launch
from gyroperm.gpu.index import IndexTables
from gyroperm.gpu.launch import Launch
from gyroperm.gpu.schedule import Schedule, balanced
from gyroperm.gpu.source import Variant
from gyroperm.gpu.spmm import STEP_COLUMNS, Blocking, Packed, spmm_launch
from gyroperm.gpu.transpose import to_features, to_tokens
from gyroperm.gpu.window import WindowBlocking, WindowPlan, WindowTables, window_launch


class Placed(Packed, Protocol):
    """A packed matrix where launches will run."""

    @property
    def index(self) -> IndexTables:
        """Its tables on the host."""

    @property
    def dtype(self) -> str:
        """float16 or bfloat16."""

    @property
    def sparse(self) -> bool:
        """Whether two of every four slots are stored."""

    @property
    def window(self) -> WindowPlan | None:
        """Of a matrix that lies in the order of one."""


class Scratch(Protocol):
    """Gives memory that lasts until the launches of one product are through."""

    def __call__(self, name: str, shape: tuple[int, ...], dtype: str) -> Any:
        """An array of a shape and dtype, as CuPy's; its elements are anything."""


class Plan(Protocol):
    """How products with some numbers of columns are computed."""

    def launches(
        self,
        matrix: Placed,
        x: Any,
        out: Any,
        scratch: Scratch,
        *,
        layout: str,
        keep_order: bool = False,
        activation: str | None = None,
        **epilogue: Any,
    ) -> list[Launch]:
        """The launches of a product, in their order, for arrays that have been checked.

        Parameters
        ----------
        matrix : Placed
            The one that the plan was made for.
        x, out : array
            X and what is written, in the layout.
        scratch : Scratch
        layout, keep_order, activation, **epilogue
            As :meth:`gyroperm.gpu.DeviceMatrix.multiply` has them.
        """


@dataclass(frozen=True)
class Target:
    """The device that plans are made for.

    Parameters
    ----------
    multiprocessors : int
    shared_bytes : int
        Shared memory that a block may use.
    resident : callable
        How many blocks of a variant, with so many threads and bytes of shared memory, it holds.
    place : callable
        Copies an array of the host to where the launches will run.
    """

    multiprocessors: int
    shared_bytes: int
    resident: Callable[[Variant, int, int], int]
    place: Callable[[NDArray[Any]], Any]


def planned_columns(n: int) -> int:
    """The most columns of the products that share a plan with those of N."""
    return 1 << (n - 1).bit_length() if n <= 64 else -(-n // 128) * 128


def make_plan(way: Way, columns: int, matrix: Placed, target: Target) -> Plan:
    """A plan for products of at most so many columns by one way.

    Raises
    ------
    ValueError
        If the way has no plans, or its parameters do not fit the matrix.
    """
    options = dict(way.parameters)
    if way.kind == "spmm":
        chosen = Blocking(matrix.index.tile_size, **options, sparse=matrix.sparse)
        return SpmmProducts.of(matrix, columns, target, chosen)
    if way.kind == "decode":
        return DecodeProducts.of(matrix, columns, target, **options)
    if way.kind == "window" and matrix.window is not None and way == window_way(matrix.window):
        return WindowProducts.of(matrix.window, target)
    raise ValueError(f"there is no plan for {way} and this matrix")


@dataclass(frozen=True, eq=False)
class SpmmProducts:
    """Of many columns; token-major ones are transposed on both sides."""

    blocking: Blocking
    schedule: Schedule
    work_ptr: Any
    work_items: Any
    counters: Any

    @classmethod
    def of(cls, matrix: Placed, columns: int, target: Target, chosen: Blocking) -> SpmmProducts:
        """A plan for products of at most so many columns."""
        variant = chosen.variant(bfloat16=matrix.dtype == "bfloat16", aligned=True)
        blocks = target.resident(variant, chosen.threads, chosen.shared_bytes)
        steps = np.diff(matrix.index.tile_ptr) // STEP_COLUMNS
        schedule = balanced(steps, columns, chosen.block_n, blocks)
        return cls(
            chosen,
            schedule,
            target.place(schedule.work_ptr),
            target.place(schedule.items),
            _zeros(schedule.counters, target),
        )

    def launches(
        self,
        matrix: Placed,
        x: Any,
        out: Any,
        scratch: Scratch,
        *,
        layout: str,
        keep_order: bool = False,
        activation: str | None = None,
        **epilogue: Any,
    ) -> list[Launch]:
        """See :class:`Plan`."""
        read, written = _by_features(x, out, scratch, layout)
        launch = spmm_launch(
            matrix,
            read,
            written,
            blocking=self.blocking,
            bfloat16=matrix.dtype == "bfloat16",
            schedule=self.schedule,
            work_ptr=self.work_ptr,
            work_items=self.work_items,
            workspace=_workspace(self.schedule.slots * self.blocking.slot_values, scratch),
            counters=self.counters,
            keep_order=keep_order,
            activation=activation,
            **epilogue,
        )
        return _transposed(x, out, launch, read, written, layout)


@dataclass(frozen=True, eq=False)
class WindowProducts:
    """Of any number of columns, by tiles that share a window; transposed as for the SpMM."""

    blocking: WindowBlocking
    tables: WindowTables

    @classmethod
    def of(cls, plan: WindowPlan, target: Target) -> WindowProducts:
        """A plan for products of any number of columns."""
        return cls(plan.blocking, plan.tables.moved(target.place))

    def launches(
        self,
        matrix: Placed,
        x: Any,
        out: Any,
        scratch: Scratch,
        *,
        layout: str,
        keep_order: bool = False,
        activation: str | None = None,
        **epilogue: Any,
    ) -> list[Launch]:
        """See :class:`Plan`."""
        read, written = _by_features(x, out, scratch, layout)
        launch = window_launch(
            matrix,
            read,
            written,
            blocking=self.blocking,
            tables=self.tables,
            bfloat16=matrix.dtype == "bfloat16",
            keep_order=keep_order,
            activation=activation,
            **epilogue,
        )
        return _transposed(x, out, launch, read, written, layout)


@dataclass(frozen=True, eq=False)
class DecodeProducts:
    """Of at most 16 columns; either layout is read and written as it lies."""

    plan: DecodePlan
    work_items: Any
    counters: Any

    @classmethod
    def of(
        cls,
        matrix: Placed,
        columns: int,
        target: Target,
        *,
        block_rows: int | None = None,
        part_steps: int | None = None,
    ) -> DecodeProducts:
        """A plan for products of at most so many columns, by default cut as estimated."""
        plan = DecodePlan.of(
            matrix.index,
            sparse=matrix.sparse,
            multiprocessors=target.multiprocessors,
            n=columns,
            block_rows=block_rows,
            part_steps=part_steps,
        )
        items = None if plan.work_items is None else target.place(plan.work_items)
        return cls(plan, items, _zeros(plan.counters, target))

    def launches(
        self,
        matrix: Placed,
        x: Any,
        out: Any,
        scratch: Scratch,
        *,
        layout: str,
        keep_order: bool = False,
        activation: str | None = None,
        **epilogue: Any,
    ) -> list[Launch]:
        """See :class:`Plan`."""
        launch = decode_launch(
            matrix,
            x,
            out,
            plan=self.plan,
            bfloat16=matrix.dtype == "bfloat16",
            work_items=self.work_items,
            workspace=_workspace(self.plan.workspace_values, scratch),
            counters=self.counters,
            token_major_x=layout == "tokens",
            token_major_y=layout == "tokens",
            keep_order=keep_order,
            activation=activation,
            **epilogue,
        )
        return [launch]


def _by_features(x: Any, out: Any, scratch: Scratch, layout: str) -> tuple[Any, Any]:
    """X and Y as a feature-major kernel takes them."""
    if layout == "features":
        return x, out
    n, inputs = x.shape
    # So wide that each row begins on 16 bytes.
    wide = max(8, planned_columns(n))
    return (
        scratch("x", (inputs, wide), "int16")[:, :n],
        scratch("y", (out.shape[1], wide), "int16")[:, :n],
    )


def _transposed(
    x: Any, out: Any, launch: Launch, read: Any, written: Any, layout: str
) -> list[Launch]:
    if layout == "features":
        return [launch]
    return [to_features(x, read), launch, to_tokens(written, out)]


def _workspace(values: int, scratch: Scratch) -> Any:
    return scratch("workspace", (values,), "float32") if values else None


def _zeros(count: int, target: Target) -> Any:
    return target.place(np.zeros(count, np.uint32)) if count else None
