"""Products with few columns by the decode kernel, emulated, against float64."""

from __future__ import annotations

import numpy as np

from emulated import run
from gpu_cases import HALF_ULP, activated, padded
from gyroperm.gpu.decode import DecodePlan, decode_launch
from gyroperm.gpu.numbers import from_bits, to_bits


def plan_of(matrix, n=16, **chosen):
    return DecodePlan.of(matrix.index, sparse=matrix.sparse, multiprocessors=4, n=n, **chosen)


def work_arrays(plan):
    return {
        "work_items": plan.work_items,
        "workspace": np.full(plan.workspace_values, np.nan, np.float32) if plan.slots else None,
        "counters": np.zeros(plan.counters, np.uint32) if plan.slots else None,
    }


def check(
    rng,
    matrix,
    plan,
    n,
    *,
    x_pad=0,
    y_pad=0,
    token_major_x=False,
    token_major_y=False,
    keep_order=False,
    bias=False,
    activation=None,
    factor=False,
    addend=False,
    seed=3,
    arrays=None,
    edit=None,
    variant=None,
):
    """Run a launch on random inputs and compare it with float64; returns the bits of Y."""
    dtype, tables = matrix.dtype, matrix.index
    outputs = len(tables.row_map) if keep_order else tables.outputs

    def operand(features, token_major, pad):
        shape = (n, features) if token_major else (features, n)
        rows = padded(rng, *shape, dtype, pad)
        values = from_bits(rows, dtype).astype(np.float64)
        return rows, values.T if token_major else values

    x, x_values = operand(tables.inputs, token_major_x, x_pad)
    y, _ = operand(outputs, token_major_y, y_pad)
    y_whole = y.base
    factor_rows, scale = operand(outputs, token_major_y, y_pad) if factor else (None, 1.0)
    addend_rows, added = operand(outputs, token_major_y, y_pad) if addend else (None, 0.0)
    poison = to_bits(np.full(y_whole.shape, np.nan), dtype)
    y_whole[...] = poison
    bias_bits = to_bits(rng.standard_normal(tables.outputs), dtype) if bias else None
    launch = decode_launch(
        matrix,
        x,
        y,
        plan=plan,
        bfloat16=dtype == "bfloat16",
        **(work_arrays(plan) if arrays is None else arrays),
        token_major_x=token_major_x,
        token_major_y=token_major_y,
        bias=bias_bits,
        activation=activation,
        factor=factor_rows,
        addend=addend_rows,
        keep_order=keep_order,
    )
    assert variant in (None, launch.variant)
    counts = run(launch, seed=seed, edit=edit)
    assert launch.arguments["counters"] is None or not launch.arguments["counters"].any()

    offset = from_bits(bias_bits, dtype).astype(np.float64)[:, None] if bias else 0.0
    dense = matrix.to_dense().astype(np.float64)
    sums = dense @ x_values
    sizes = np.abs(dense) @ np.abs(x_values) + np.abs(offset)
    expected = activated(sums + offset, activation)
    if keep_order:
        held = tables.row_map >= 0
        expected, sizes = (a[np.where(held, tables.row_map, 0)] for a in (expected, sizes))
    else:
        held = np.ones(outputs, bool)
    # The sum is wrong by some 2^-24 of its terms' sizes, of which no activation makes more than
    # 1.13 times as much; Y by half an ulp, and what factor and addend are applied to once more.
    unit, widest = HALF_ULP[dtype], np.abs(scale)
    result = expected * scale + added
    bound = 2.0**-20 * sizes * widest + 2.0**-24
    bound = bound + unit * (np.abs(result) + (np.abs(expected) * widest if factor or addend else 0))
    written = from_bits(y, dtype).astype(np.float64)
    written = written.T if token_major_y else written
    assert (np.abs(written - result)[held] <= 1.01 * bound[held]).all()
    rest = np.ones(y_whole.shape, bool)
    inside = rest[:, : y.shape[1]]
    (inside.T if token_major_y else inside)[held] = False
    assert np.array_equal(y_whole[rest], poison[rest]), "what no row belongs to was written"
    return y_whole, counts
