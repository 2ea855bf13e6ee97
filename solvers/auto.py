"""What ``auto`` is for a problem and the time there is."""

from __future__ import annotations

import math

from gyroperm.problem import Problem
from gyroperm.solvers.dive import tile_seconds
from gyroperm.stopping import Stop, seconds_allowed

# Measured on 2 cores: from so many seconds on the relaxation of 384 x 384 leads further than
# annealing does; its work grows with the cube of the columns and with the rows.
_SECONDS, _COLUMNS, _ROWS = 4.0, 384, 384
# In less there is nothing that annealing does not find, or no time for anything else: of uniform
# 128 x 64, 2 s of diving find the optimum for some seeds, and of annealing in chains for all.
_LEAST_SECONDS = 4.0
# With a vector level, so many times what one turn of dives takes.
_DIVES = 1.3


def chosen_method(problem: Problem, stop: Stop | None, threads: int) -> str:
    """The method that keeps the most: ``assign``, or ``dive`` where there is time for it.

    Diving follows the linear relaxation of the set partition, which takes its time and then
    leads further than annealing, on layers of few columns, or few tiles of few kept columns.
    Without a time limit, and where tiles share columns or a budget, it is ``assign``.
    """
    pattern = problem.pattern
    seconds = seconds_allowed(stop)
    uniform = pattern.allocation == "uniform"
    if not uniform or pattern.n == pattern.m or pattern.m not in (3, 4) or math.isinf(seconds):
        return "assign"
    return "dive" if seconds >= _needed(problem, threads) else "assign"


def _needed(problem: Problem, threads: int) -> float:
    if not problem.pattern.is_plain:
        # The start, which chooses rows and vectors, has at least half of the time.
        return max(_LEAST_SECONDS, _DIVES * tile_seconds(problem) / threads)
    shape = (problem.columns / _COLUMNS) ** 3 * (problem.rows / _ROWS)
    return max(_LEAST_SECONDS, _SECONDS * problem.orders * shape)
