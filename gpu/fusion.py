"""Index fusion on the device: what :func:`gyroperm.gpu.fuse` does, in arrays that exist already.

For row orders that only the device knows, or tables that are composed anew without waiting for
it. What would take a look at the entries is not checked here: a row order that is none makes a
consumer read anything. :func:`gyroperm.gpu.fuse` checks it all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gyroperm.gpu.arrays import check_holds, check_table, is_wide
from gyroperm.gpu.launch import Launch
from gyroperm.gpu.source import Variant

_THREADS = 256
_MOST_BLOCKS = 4096


def fusion(
    producer_row_order: Any, position_of: Any, consumers: Iterable[tuple[Any, Any]]
) -> list[Launch]:
    """The launches, in this order, that make consumers read what their producer left as it was.

    Parameters
    ----------
    producer_row_order : array of int32 or uint16, shape (P,)
        The original row at each position of the producer's output, -1 where there is none:
        every row of the consumers' X once.
    position_of : array of uint16 or int32, shape (C,)
        Written: where each row of the consumers' X lies.
    consumers : iterable of (columns, fused)
        Of each consumer the column table, and the array of as many slots that its fused one is
        written to. Or the row map, in int32, of a product that is to lie where the producer's
        does (:func:`gyroperm.gpu.index.align`), and the one that it is to have.

    Returns
    -------
    list of Launch
        :func:`invert`, then :func:`fuse_columns` for each consumer.

    Raises
    ------
    TypeError, ValueError
        As the two; before any launch is made of those given.
    """
    inputs = len(producer_row_order)
    return [
        invert(producer_row_order, position_of),
        *(fuse_columns(columns, position_of, fused, inputs) for columns, fused in consumers),
    ]


def invert(producer_row_order: Any, position_of: Any) -> Launch:
    """Invert a row order: ``position_of[producer_row_order[p]] = p``.

    Parameters
    ----------
    producer_row_order : array of int32 or uint16, shape (P,)
        The original row at each position of the producer's output; -1 marks a position that
        holds no row. Must name each of C rows once.
    position_of : array of uint16 or int32, shape (C,)
        Written.

    Returns
    -------
    Launch

    Raises
    ------
    TypeError
        If an array does not hold uint16 or int32.
    ValueError
        If the row order is shorter than the rows it must name, or ``position_of`` cannot hold
        P - 1.
    """
    check_table("producer_row_order", producer_row_order)
    check_table("position_of", position_of)
    positions, rows = len(producer_row_order), len(position_of)
    if positions < rows:
        raise ValueError(
            f"producer_row_order names at most {positions} rows, position_of is of {rows} rows"
        )
    check_holds("position_of", position_of, positions)
    return Launch(
        Variant.of("invert", {}),
        grid=_grid(positions),
        threads=_THREADS,
        shared_bytes=0,
        arguments={
            "order": producer_row_order,
            "wide_order": is_wide(producer_row_order),
            "positions": positions,
            "position_of": position_of,
            "wide_positions": is_wide(position_of),
            "rows": rows,
        },
    )


def fuse_columns(columns: Any, position_of: Any, fused: Any, inputs: int) -> Launch:
    """Compose a consumer's table: ``fused[k] = position_of[columns[k]]``.

    Parameters
    ----------
    columns : array of uint16 or int32, shape (S,)
        The row of X, in the original order, that each slot reads; -1, in a row map, stays.
    position_of : array of uint16 or int32, shape (C,)
        From :func:`invert`; C is above every column.
    fused : array of uint16 or int32, shape (S,)
        Written; not the memory of ``columns``.
    inputs : int
        P, the rows of the X that the producer left: positions are below.

    Returns
    -------
    Launch

    Raises
    ------
    TypeError
        If an array does not hold uint16 or int32.
    ValueError
        If ``fused`` does not have the slots of ``columns`` or cannot hold P - 1, or P is below
        C.
    """
    check_table("columns", columns)
    check_table("position_of", position_of)
    check_table("fused", fused)
    if len(fused) != len(columns):
        raise ValueError(f"fused must have the {len(columns)} slots of columns, got {len(fused)}")
    if inputs < len(position_of):
        raise ValueError(
            f"inputs must be at least the {len(position_of)} rows of position_of, got {inputs}"
        )
    check_holds("fused", fused, inputs)
    return Launch(
        Variant.of("fuse", {}),
        grid=_grid(len(columns)),
        threads=_THREADS,
        shared_bytes=0,
        arguments={
            "columns": columns,
            "wide_columns": is_wide(columns),
            "position_of": position_of,
            "wide_positions": is_wide(position_of),
            "fused": fused,
            "wide_fused": is_wide(fused),
            "slots": len(columns),
        },
    )


def _grid(entries: int) -> tuple[int, int, int]:
    return (min(_MOST_BLOCKS, -(-entries // _THREADS)), 1, 1)
