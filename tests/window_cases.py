"""Products by a shared window, emulated, against float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from emulated import run
from gpu_cases import HALF_ULP, activated, padded
from gyroperm.gpu.numbers import from_bits, to_bits
from gyroperm.gpu.reorder import reordered
from gyroperm.gpu.window import window_launch


def tile_blocks(matrix):
    """The V x K_t block of each tile, read element by element from the layout."""
    steps, inner, blocks = matrix.values.shape[:3]
    rows = 16 * blocks
    dense = np.zeros((steps, rows, 64))
    row = np.arange(rows)
    for h in range(inner):
        for k in range(16):
            lane, register = row % 8 * 4 + k % 8 // 2, row % 16 // 8 + 2 * (k // 8)
            stored = matrix.values[:, h, row // 16, lane, register * 2 + k % 2]
            stored = from_bits(stored, matrix.dtype)
            if inner == 4:
                dense[:, row, h * 16 + k] = stored
                continue
            word = matrix.metadata[:, row // 16, row % 8 * 4 + 2 * h + k // 8]
            place = word >> (row % 16 // 8 * 16 + k // 2 % 4 * 4 + k % 2 * 2).astype(np.uint32) & 3
            at = h * 32 + k // 2 * 4 + place
            dense[np.arange(steps)[:, None], row[None], at] = stored
    return [
        dense[a // 64 : b // 64].transpose(1, 0, 2).reshape(rows, b - a)
        for a, b in zip(matrix.index.tile_ptr[:-1], matrix.index.tile_ptr[1:], strict=True)
    ]


def to_dense(matrix):
    """All packed rows by the rows of X."""
    result = np.zeros((len(matrix.row_map), matrix.index.inputs))
    for t, block in enumerate(tile_blocks(matrix)):
        columns = matrix.index.columns[matrix.index.tile_ptr[t] : matrix.index.tile_ptr[t + 1]]
        size = matrix.index.tile_size
        for k, column in enumerate(columns):
            result[t * size : (t + 1) * size, column] += block[:, k]
    return result


def multiply(
    matrix,
    plan,
    n,
    rng,
    *,
    seed=1,
    stride=None,
    keep_order=False,
    full=False,
    activation=None,
    edit=None,
    variant=None,
):
    """Launch on random X and compare with float64; returns the counts.

    ``full`` adds a bias, a factor and an addend.
    """
    dtype, index = matrix.dtype, matrix.index
    stride = stride or -(-n // 8) * 8
    rows = len(index.row_map) if keep_order else index.outputs

    x, factor, addend = (
        padded(rng, count, n, dtype, stride - n) for count in (index.inputs, rows, rows)
    )
    whole = np.full((rows, stride), 0xFFFF, np.uint16)
    y = whole[:, :n]
    bias = to_bits(rng.standard_normal(index.outputs), dtype) if full else None
    arranged = reordered(matrix, plan.order)
    launch = window_launch(
        arranged,
        x,
        y,
        blocking=plan.blocking,
        tables=plan.tables,
        bfloat16=dtype == "bfloat16",
        bias=bias,
        activation=activation,
        factor=factor if full else None,
        addend=addend if full else None,
        keep_order=keep_order,
    )
    assert variant in (None, launch.variant)
    counts = run(
        replace(
            launch,
            arguments={**launch.arguments, "x": x.base, "y": whole}
            | ({"factor": factor.base, "addend": addend.base} if full else {}),
        ),
        edit=edit,
        seed=seed,
    )
    dense, real = to_dense(matrix), np.flatnonzero(index.row_map >= 0)
    channel = index.row_map[real]
    half = HALF_ULP[dtype]
    reference = dense[real] @ from_bits(x, dtype).astype(np.float64)
    # What fp32 sums differ by, then half an ulp for each rounding of the output.
    error = 2.0**-20 * (abs(dense[real]) @ abs(from_bits(x, dtype).astype(np.float64)) + 4)
    if full:
        reference = reference + from_bits(bias, dtype).astype(np.float64)[channel][:, None]
    reference = activated(reference, activation)
    error = 1.2 * error + half * abs(reference) + 2.0**-24
    to = real if keep_order else channel
    if full:
        scale = from_bits(factor, dtype).astype(np.float64)[to]
        reference = reference * scale + from_bits(addend, dtype).astype(np.float64)[to]
        error = error * abs(scale) + half * abs(reference) + 2.0**-24
    result = from_bits(y, dtype).astype(np.float64)
    assert (abs(result[to] - reference) <= 1.05 * error).all()
    untouched = np.setdiff1d(np.arange(rows), to)
    assert np.isnan(result[untouched]).all()
    return counts
