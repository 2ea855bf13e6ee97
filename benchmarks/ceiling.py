"""What a core can do at best: the ceilings that kernels are measured against."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numba import njit

#: Operations of one term of the gain product, ``max(x, q) - q`` with the thresholds subtracted from
#: the sum: take the larger, add.
RELU_OPERATIONS = 2

# Elements that stay in the first-level cache, and passes over them in a call: about a millisecond.
_ELEMENTS, _PASSES = 1024, 512


@njit(nogil=True, fastmath=True)
def _four_sums(x, q, passes):  # type: ignore[no-untyped-def]
    zero = np.float32(0)
    total = zero
    for _ in range(passes):
        q0, q1, q2, q3 = q[0], q[1], q[2], q[3]
        s0 = s1 = s2 = s3 = zero
        for i in range(len(x)):
            u = x[i]
            s0 += max(u, q0)
            s1 += max(u, q1)
            s2 += max(u, q2)
            s3 += max(u, q3)
        # So that no pass repeats the last, and none can be left out.
        total = s0 + s1 + s2 + s3
        q[0] = total * np.float32(1e-9)
    return total


@njit(nogil=True, fastmath=True)
def _eight_sums(x, q, passes):  # type: ignore[no-untyped-def]
    zero = np.float32(0)
    total = zero
    for _ in range(passes):
        q0, q1, q2, q3, q4, q5, q6, q7 = q[0], q[1], q[2], q[3], q[4], q[5], q[6], q[7]
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = zero
        for i in range(len(x)):
            u = x[i]
            s0 += max(u, q0)
            s1 += max(u, q1)
            s2 += max(u, q2)
            s3 += max(u, q3)
            s4 += max(u, q4)
            s5 += max(u, q5)
            s6 += max(u, q6)
            s7 += max(u, q7)
        total = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7
        q[0] = total * np.float32(1e-9)
    return total


def relu_loops() -> list[tuple[Callable[[], object], float]]:
    """Loops whose sums and thresholds stay in registers, and how many operations each makes.

    ``sum_i max(x[i], q)`` for four and for eight thresholds at once: one load, of a vector in the
    first-level cache, for so many maxima and additions. The faster of the
    two is the ceiling of float32 arithmetic of one core, as Numba's compiler can reach it.
    """
    x = np.random.default_rng(0).random(_ELEMENTS, dtype=np.float32)
    loops: list[tuple[Callable[[], object], float]] = []
    for sums, loop in ((4, _four_sums), (8, _eight_sums)):
        q = np.linspace(0.0, 0.5, sums, dtype=np.float32)
        operations = float(RELU_OPERATIONS * sums * _ELEMENTS * _PASSES)
        loops.append((partial(loop, x, q, _PASSES), operations))
    return loops


def copy_loop(size: int) -> tuple[Callable[[], object], float]:
    """A copy of ``size`` bytes, more than caches hold, and how many bytes it reads and writes."""
    source = np.ones(size // 4, dtype=np.float32)
    target = np.empty_like(source)
    return lambda: np.copyto(target, source), 2.0 * source.nbytes
