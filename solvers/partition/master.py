"""The linear relaxation over some of the groups, with subset-row cuts, solved by GLOP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gyroperm.solvers.kernels.linear import solve_linear

# GLOP's own tolerance leaves a gap that is larger than what separates good partitions.
_PARAMETERS = (
    "use_preprocessing:false dual_feasibility_tolerance:1e-9 primal_feasibility_tolerance:1e-9"
)

# Rows up to which the prices are solved anew from the basis.
_SOLVED = 1000


@dataclass(frozen=True, eq=False)
class Duals:
    """Prices of the columns and of the cuts: what a group pays for what it uses.

    Attributes
    ----------
    u : ndarray of float64, shape (C',)
    w : ndarray of float64, shape (cuts,)
        Not negative.
    """

    u: NDArray[np.float64]
    w: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Relaxed:
    """An optimum of the relaxation over the groups of the master.

    Attributes
    ----------
    value : float
    x : ndarray of float64, shape (groups of the master,)
    duals : Duals
    """

    value: float
    x: NDArray[np.float64]
    duals: Duals


def cut_uses(groups: NDArray[np.int32], cuts: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which groups (k, m) hold two or more columns of which cuts (c, 3): shape (k, c).

    At most one group of a partition holds two or more of any three columns.
    """
    held = np.zeros((len(groups), len(cuts)), dtype=np.int8)
    for k in range(groups.shape[1]):
        for i in range(3):
            held += groups[:, k, None] == cuts[None, :, i]
    return held >= 2


class Master:
    """The relaxation ``max value * x`` with every column covered once, over a pool that grows.

    Parameters
    ----------
    columns : int
        C', the columns to be covered.
    m : int
        The columns of a group.
    """

    def __init__(self, columns: int, m: int) -> None:
        from ortools.linear_solver import pywraplp

        self._solver = pywraplp.Solver.CreateSolver("GLOP")
        if self._solver is None:
            raise RuntimeError("OR-Tools offers no GLOP, which bounds need")
        self._solver.SetSolverSpecificParametersAsString(_PARAMETERS)
        self._rows = [self._solver.Constraint(1.0, 1.0) for _ in range(columns)]
        self._cut_rows: list[Any] = []
        self._objective = self._solver.Objective()
        self._objective.SetMaximization()
        self._variables: list[Any] = []
        self._spares: list[Any] = []
        self._penalty = 0.0
        self._keys: set[bytes] = set()
        self.groups = np.zeros((0, m), dtype=np.int32)
        self.values = np.zeros(0)
        self.cuts = np.zeros((0, 3), dtype=np.int32)

    def unknown(self, groups: NDArray[np.int32]) -> NDArray[np.intp]:
        """The places of the groups, ascending (k, m) each, that the master does not hold yet."""
        places = []
        seen = set()
        for i, group in enumerate(np.ascontiguousarray(groups, dtype=np.int32)):
            key = group.tobytes()
            if key not in self._keys and key not in seen:
                seen.add(key)
                places.append(i)
        return np.array(places, dtype=np.intp)

    def add(self, groups: NDArray[np.int32], values: NDArray[np.float64]) -> int:
        """Add groups, ascending (k, m) each; returns how many were new."""
        places = self.unknown(groups)
        groups, values = groups[places], values[places]
        uses = cut_uses(groups, self.cuts)
        infinity = self._solver.infinity()
        for group, value, used in zip(groups, values.tolist(), uses, strict=True):
            x = self._solver.NumVar(0.0, infinity, "")
            self._objective.SetCoefficient(x, value)
            for j in group.tolist():
                self._rows[j].SetCoefficient(x, 1.0)
            for c in np.flatnonzero(used).tolist():
                self._cut_rows[c].SetCoefficient(x, 1.0)
            self._variables.append(x)
            self._keys.add(group.astype(np.int32).tobytes())
        self.groups = np.concatenate([self.groups, groups])
        self.values = np.concatenate([self.values, values])
        return len(places)

    def add_cuts(self, cuts: NDArray[np.int32]) -> None:
        """Add subset-row cuts, (c, 3): at most one group holds two or more of three columns.

        Jepsen et al., Subset-Row Inequalities, Operations Research 2008.
        """
        uses = cut_uses(self.groups, cuts)
        for c in range(len(cuts)):
            row = self._solver.Constraint(-self._solver.infinity(), 1.0)
            for i in np.flatnonzero(uses[:, c]).tolist():
                row.SetCoefficient(self._variables[i], 1.0)
            self._cut_rows.append(row)
        self.cuts = np.concatenate([self.cuts, cuts])

    def add_spares(self, penalty: float) -> None:
        """Let every column be covered by itself at a loss, so that there is always a cover."""
        self._penalty = penalty
        for row in self._rows:
            x = self._solver.NumVar(0.0, self._solver.infinity(), "")
            self._objective.SetCoefficient(x, -penalty)
            row.SetCoefficient(x, 1.0)
            self._spares.append(x)

    def allow(self, allowed: NDArray[np.bool_]) -> None:
        """Let the relaxation use these of its groups only."""
        infinity = self._solver.infinity()
        for x, free in zip(self._variables, allowed.tolist(), strict=True):
            x.SetUb(infinity if free else 0.0)

    def solve(self, seconds: float) -> Relaxed | None:
        """The optimum; None if time is up before.

        Raises
        ------
        RuntimeError
            If GLOP gives no answer for another reason; the message names its status.
        """
        solver = self._solver
        if seconds <= 0.0:
            return None
        solver.SetTimeLimit(0 if math.isinf(seconds) else max(1, int(1e3 * min(seconds, 1e6))))
        status = solver.Solve()
        if status in (solver.NOT_SOLVED, solver.FEASIBLE):
            return None
        if status != solver.OPTIMAL:
            raise RuntimeError(f"GLOP cannot solve a relaxation: {_status_name(solver, status)}")
        x = np.array([v.solution_value() for v in self._variables])
        return Relaxed(float(self._objective.Value()), x, self._duals())

    def _duals(self) -> Duals:
        """The prices, solved anew from the basis: GLOP's carry the error of its tolerances."""
        rows = [*self._rows, *self._cut_rows]
        raw = np.array([row.dual_value() for row in rows])
        C = len(self._rows)
        groups = self.groups[self._basic(self._variables)]
        spares = np.flatnonzero(self._basic(self._spares))
        slack = np.flatnonzero(self._basic(rows))
        if len(rows) <= _SOLVED and len(groups) + len(spares) + len(slack) == len(rows):
            B = np.zeros((len(rows), len(rows)))
            B[np.arange(len(groups))[:, None], groups] = 1.0
            B[: len(groups), C:] = cut_uses(groups, self.cuts)
            B[len(groups) + np.arange(len(spares)), spares] = 1.0
            B[len(groups) + len(spares) + np.arange(len(slack)), slack] = 1.0
            right = np.zeros(len(rows))
            right[: len(groups)] = self.values[self._basic(self._variables)]
            right[len(groups) : len(groups) + len(spares)] = -self._penalty
            solved = solve_linear(B, right)
            if solved and np.abs(right - raw).max() < 1e-5 * (1.0 + np.abs(raw).max()):
                raw = right
        return Duals(raw[:C], np.maximum(raw[C:], 0.0))

    def _basic(self, parts: Sequence[Any]) -> NDArray[np.bool_]:
        """Which variables, or rows, are in the basis."""
        return np.array([p.basis_status() == self._solver.BASIC for p in parts], dtype=np.bool_)


def _status_name(solver: Any, status: int) -> str:
    names = ("FEASIBLE", "INFEASIBLE", "UNBOUNDED", "ABNORMAL", "NOT_SOLVED", "MODEL_INVALID")
    return next((name for name in names if getattr(solver, name) == status), f"status {status}")
