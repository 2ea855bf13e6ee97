"""What ``auto`` is for a problem and the time there is."""

from __future__ import annotations

import math

from gyroperm.problem import Problem
from gyroperm.stopping import Stop, seconds_allowed

# Measured on 2 cores: from so many seconds on the relaxation of 384 x 384 leads further than
# annealing does; its work grows with the cube of the columns and the root of the rows.
_SECONDS, _COLUMNS, _ROWS = 8.0, 384, 384
# In less there is nothing that annealing does not find, or no time for anything else: of uniform
# 128 x 64, 2 s of diving find the optimum for some seeds, and of annealing in chains for all.
_LEAST_SECONDS = 4.0


def chosen_method(problem: Problem, stop: Stop | None) -> str:
    """The method that keeps the most: ``assign``, or ``dive`` where there is time for it.

    Diving follows the linear relaxation of the set partition, which takes its time and then
    leads further than annealing, on layers of few columns. Without a time limit, and for
    patterns of two levels, it is ``assign``.
    """
    pattern = problem.pattern
    seconds = seconds_allowed(stop)
    if not pattern.is_plain or pattern.n == pattern.m or pattern.m not in (3, 4):
        return "assign"
    shape = (problem.columns / _COLUMNS) ** 3 * (problem.rows / _ROWS) ** 0.5
    needed = max(_LEAST_SECONDS, _SECONDS * problem.orders * shape)
    return "dive" if needed <= seconds < math.inf else "assign"
