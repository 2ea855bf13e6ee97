"""Products with many columns, emulated, for a check against float64."""

from __future__ import annotations

import numpy as np

from emulated import run
from gpu_cases import Case
from gyroperm.gpu.launch import Launch
from gyroperm.gpu.schedule import Schedule, balanced
from gyroperm.gpu.source import Variant
from gyroperm.gpu.spmm import Blocking, blocking, spmm_launch

SHARED = 232448


def tile_steps(case: Case) -> np.ndarray:
    return np.diff(case.matrix.index.tile_ptr) // 64


def launch_of(
    case: Case,
    y: np.ndarray,
    *,
    schedule: Schedule | None = None,
    chosen: Blocking | None = None,
    **options,
) -> tuple[Launch, np.ndarray]:
    matrix = case.matrix
    chosen = chosen or blocking(matrix.tile_size, case.n, sparse=matrix.sparse, shared_limit=SHARED)
    if schedule is None:
        schedule = balanced(tile_steps(case), case.n, chosen.block_n, blocks=3)
    workspace = np.full(max(1, schedule.slots * chosen.slot_values), np.nan, np.float32)
    counters = np.zeros(max(1, schedule.counters), np.uint32)
    launch = spmm_launch(
        matrix,
        case.x,
        y,
        blocking=chosen,
        bfloat16=matrix.dtype == "bfloat16",
        schedule=schedule,
        work_ptr=schedule.work_ptr,
        work_items=schedule.items,
        workspace=workspace,
        counters=counters,
        **options,
    )
    return launch, counters


def poisoned(rows: int, n: int, stride: int | None = None) -> np.ndarray:
    return np.full((rows, stride or n), 0xFFFF, np.uint16)[:, :n]


def product(
    case: Case,
    *,
    seed: int = 1,
    stride: int | None = None,
    variant: Variant | None = None,
    **options,
) -> np.ndarray:
    """Y, by a variant if one is named, in rows that lie ``stride`` words apart."""
    y = poisoned(case.matrix.shape[0], case.n, stride)
    launch, counters = launch_of(case, y, **options)
    assert variant in (None, launch.variant)
    run(launch, seed=seed)
    assert not counters.any()
    return y
