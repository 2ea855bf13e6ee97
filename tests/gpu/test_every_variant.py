"""Every kernel of products that is shipped, for any architecture, emulated at every width.

Tiles are ragged, one of them is empty, rows are mapped and some are nobody's; outputs are poisoned,
buffers lie between guards, and threads take turns in a random order. What moves activations has
tests of its own, of all of its kernels.
"""

import numpy as np
import pytest

from decode_cases import check, plan_of
from gpu_cases import WIDTHS, case_of, packed
from gyroperm.gpu.decode import X_LAYOUTS
from gyroperm.gpu.spmm import ACTIVATIONS, Blocking
from gyroperm.gpu.variants import ARCHITECTURES, shipped
from gyroperm.gpu.window import WindowBlocking, window_plan
from spmm_cases import product
from window_cases import multiply

INPUTS = 330
# Columns of tiles: six steps, more than are under way at a time, none, and less than one.
KEPT = (330, 0, 61)
# Each with fewer and with more columns than a fragment has; not all end as vectors do.
WIDTHS_OF_DECODE = {1: (1, 7, 8), 2: (9, 15, 16)}

EVERY = list(dict.fromkeys(one.variant for a in ARCHITECTURES.values() for one in shipped(a)))


def of(kernel):
    return pytest.mark.parametrize("variant", [v for v in EVERY if v.kernel == kernel], ids=str)


def constants(variant):
    """The constants, and the type that they stand for."""
    given = dict(variant.constants)
    return given, ("float16", "bfloat16")[given["GYROPERM_BF16"]]


def padding(n, aligned):
    """What to add to rows of n, so that they begin at 16 bytes; or at an odd place."""
    return -n % 8 if aligned else 1 + n % 2


def activation(i):
    return list(ACTIVATIONS)[i % len(ACTIVATIONS)]


def test_no_kernel_is_left_out():
    assert {variant.kernel for variant in EVERY} == {
        *("spmm", "window", "decode"),  # here
        *("permute", "transpose", "fuse", "invert"),  # in files of their own
    }


@pytest.mark.emulated
@of("spmm")
def test_products(variant):
    c, dtype = constants(variant)
    rng = np.random.default_rng(1)
    chosen = Blocking(
        *(c[name] for name in ("TILE_ROWS", "BLOCK_N", "WARPS_M", "WARPS_N", "STAGES")),
        sparse=bool(c["SPARSE"]),
    )
    assert chosen.variant(bfloat16=c["GYROPERM_BF16"], aligned=c["ALIGNED"]) == variant
    matrix = packed(rng, chosen.tile_size, KEPT, inputs=INPUTS, sparse=chosen.sparse, dtype=dtype)
    for i, n in enumerate(WIDTHS):
        pad = padding(n, c["ALIGNED"])
        case = case_of(matrix, n, rng, pad=pad)
        given = {"bias": case.bias, "activation": activation(i // 2)} if i % 2 else {}
        y = product(case, variant=variant, stride=n + pad, chosen=chosen, seed=i, **given)
        case.check(y, case.reference(given.get("activation"), bias=bool(given)))


@pytest.mark.emulated
@of("window")
def test_products_by_a_shared_window(variant):
    c, dtype = constants(variant)
    rng = np.random.default_rng(2)
    chosen = WindowBlocking(
        *(c[name] for name in ("TILE_ROWS", "GROUP", "WARPS_M", "BLOCK_N")),
        -(-INPUTS // 8) * 8,
        *(c[name] for name in ("LOADS", "AHEAD", "BLOCKS")),
        sparse=bool(c["SPARSE"]),
    )
    # One tile more than share a window.
    kept = [KEPT[i % 3] for i in range(max(3, chosen.group + 1))]
    matrix = packed(rng, chosen.tile_size, kept, inputs=INPUTS, sparse=chosen.sparse, dtype=dtype)
    plan = window_plan(matrix, chosen)
    for i, n in enumerate(WIDTHS):
        multiply(
            matrix,
            plan,
            n,
            rng,
            variant=variant,
            stride=n + padding(n, c["ALIGNED"]),
            full=i % 2 == 1,
            activation=activation(i),
            keep_order=i % 3 == 2,
            seed=i,
        )


@pytest.mark.emulated
@of("decode")
def test_products_with_few_columns(variant):
    c, dtype = constants(variant)
    rng = np.random.default_rng(3)
    rows, fragments = c["BLOCK_ROWS"], c["COLUMN_FRAGMENTS"]
    matrix = packed(rng, rows, KEPT, inputs=INPUTS, sparse=bool(c["SPARSE"]), dtype=dtype)
    plan = plan_of(matrix, n=8 * fragments, block_rows=rows, part_steps=4)
    _, token_major, vectors = X_LAYOUTS
    layout = c["X_LAYOUT"]
    for i, n in enumerate(WIDTHS_OF_DECODE[fragments]):
        if layout == vectors and n % 8:
            continue
        check(
            rng,
            matrix,
            plan,
            n,
            variant=variant,
            token_major_x=layout == token_major,
            token_major_y=i % 2 == 1,
            # Vectors need whole rows of them; elsewhere rows begin anywhere.
            x_pad=8 if layout == vectors else padding(n, aligned=False),
            y_pad=i,
            bias=i % 2 == 0,
            factor=i == 1,
            addend=i == 2,
            activation=activation(i),
            keep_order=i == 1,
            seed=i,
        )
