"""Hypothesis strategies: small problems of every pattern, ties and padding included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

import gyroperm
import naive
from gyroperm.arrangement import Arrangement
from gyroperm.problem import Problem
from gyroperm.solution import Solution
from gyroperm.solvers import Search, registry
from gyroperm.solvers.vectors import choose_vectors, vector_scores
from gyroperm.views import WeightView

KINDS = ("nm", "hinm", "vnm", "vector_nm", "tvw")
METHODS = ("identity", "gyro", "assign", "auto")

RATIOS = (0.0, 0.25, 1 / 3, 0.5, 2 / 3, 0.75)


@dataclass(frozen=True)
class Case:
    """A pattern of some kind, its parameters, and a saliency matrix for it."""

    kind: str
    pattern: gyroperm.Pattern
    saliency: np.ndarray
    parameters: dict[str, Any]

    def optimum(self) -> float:
        """The enumerated optimum."""
        return getattr(naive, f"optimum_{self.kind}")(self.saliency, **self.parameters)

    def identity(self) -> float:
        """What the pattern keeps without permutation."""
        return getattr(naive, f"identity_{self.kind}")(self.saliency, **self.parameters)

    def check(self, solution: gyroperm.Solution) -> None:
        """Raise AssertionError unless the solution is of this pattern."""
        check(self.kind, self.saliency, solution, self.parameters)


def check(
    kind: str, saliency: np.ndarray, solution: gyroperm.Solution, parameters: dict[str, Any]
) -> None:
    """Run the naive check of a pattern on a solution of one matrix."""
    parts = solution.mask, solution.tile_rows, solution.groups
    if kind == "nm":
        naive.check_nm(*parts, solution.col_order, **parameters)
    elif kind == "hinm":
        assert solution.col_order is None
        naive.check_hinm(*parts, **parameters)
    elif kind == "vnm":
        naive.check_vnm(*parts, solution.col_order, **parameters)
    elif kind == "vector_nm":
        naive.check_vector_nm(parts[0], parts[1], solution.col_order, **parameters)
    else:
        assert solution.col_order is None
        others = dict(parameters)
        alive = naive.surviving_rows(saliency, others.pop("row_ratio"))
        naive.check_tvw(*parts, alive, **others)


def answer(
    method: str, problem: Problem, options: dict[str, Any] | None = None, **run: Any
) -> tuple[Arrangement, Search]:
    """What a method itself answers, and its search; nothing guards it against being worse."""
    found = registry.get(method)
    search = Search(problem, **run)
    arrangement = found.solve(search, found.make_options(options))
    arrangement.check(problem)
    return arrangement, search


def kept(problem: Problem, arrangement: Arrangement) -> float:
    """What an arrangement keeps of the saliency, summed exactly."""
    S = problem.saliency.astype(np.float64)
    return naive.masked_sum(S, arrangement.mask(S, problem.pattern.n))


def same(one: Arrangement, other: Arrangement) -> bool:
    """Whether two arrangements agree in every tile and group."""
    return np.array_equal(one.tile_rows, other.tile_rows) and all(
        np.array_equal(a, b) for a, b in zip(one.groups, other.groups, strict=True)
    )


def saliencies(rows: int, columns: int, *, ties: bool = True) -> st.SearchStrategy[np.ndarray]:
    """Matrices that are generic, tied, sparse, constant or of a wide range.

    Entries of the tied kinds are small integers, so that their sums are exact in any order.
    """
    shape = (rows, columns)

    def make(kind: str, seed: int, dtype: type) -> np.ndarray:
        random = np.random.default_rng(seed)
        if kind == "normal":
            values = np.abs(random.standard_normal(shape))
        elif kind == "wide":
            values = np.exp(4 * random.standard_normal(shape))
        elif kind == "tied":
            values = random.integers(0, 4, shape)
        elif kind == "sparse":
            values = random.integers(1, 9, shape) * (random.random(shape) < 0.2)
        else:
            values = np.full(shape, seed % 3)
        return values.astype(dtype)

    kinds = ("normal", "wide", "tied", "sparse", "constant") if ties else ("normal", "wide")
    return st.builds(
        make,
        st.sampled_from(kinds),
        st.integers(0, 2**20),
        st.sampled_from((np.float32, np.float64)),
    )


@st.composite
def cases(draw: st.DrawFn, kind: str, *, tiny: bool = False, ties: bool = True) -> Case:
    """A pattern of a kind with a matrix that it fits; ``tiny`` if it will be enumerated."""
    rows = draw(st.integers(1, 4 if tiny else 11))
    V = draw(st.integers(1, 3 if tiny else 5))
    if kind == "nm":
        m = draw(st.integers(1, 4))
        n = draw(st.integers(1, m))
        columns = draw(st.integers(1, 8 if tiny else 21))
        pattern = gyroperm.Pattern.nm(n, m)
        parameters = {"n": n, "m": m}
    elif kind in ("hinm", "tvw"):
        m = draw(st.integers(1, 3 if tiny else 5))
        n = draw(st.integers(1, m))
        columns = draw(st.integers(1, 6 if tiny else 23))
        fitting = [x for x in RATIOS if naive.kept_vectors(columns, m, x) >= m]
        parameters = {"n": n, "m": m, "V": V, "vec_ratio": draw(st.sampled_from(fitting))}
        given = {"vec_ratio": parameters["vec_ratio"], "vec_size": V}
        if kind == "hinm":
            pattern = gyroperm.Pattern.hinm(n, m, **given)
        else:
            parameters["row_ratio"] = draw(st.sampled_from((0.0, 0.25, 0.5)))
            pattern = gyroperm.Pattern.tvw(n, m, **given, row_ratio=parameters["row_ratio"])
    elif kind == "vnm" and tiny:
        # The named constructor fixes m = 4, whose windows are large to enumerate.
        m = draw(st.integers(2, 3))
        M = draw(st.integers(m, 4))
        n = draw(st.integers(1, m - 1))
        columns = draw(st.integers(1, 8))
        pattern = gyroperm.Pattern(
            n=n, m=m, vec_size=V, vec_ratio=1 - m / M, allocation="window", window=M
        )
        parameters = {"n": n, "V": V, "M": M, "m": m}
    elif kind == "vnm":
        M = draw(st.integers(4, 10))
        n = draw(st.integers(1, 4))
        columns = draw(st.integers(1, 24))
        pattern = gyroperm.Pattern.vnm(V, n, M)
        parameters = {"n": n, "V": V, "M": M}
    else:
        M = draw(st.integers(1, 4 if tiny else 8))
        N = draw(st.integers(1, M))
        columns = draw(st.integers(1, 8 if tiny else 24))
        pattern = gyroperm.Pattern.vector_nm(N, M, V)
        parameters = {"N": N, "M": M, "V": V}
    return Case(kind, pattern, draw(saliencies(rows, columns, ties=ties)), parameters)


def shuffled_solution(
    weights: np.ndarray, pattern: gyroperm.Pattern, rng: np.random.Generator
) -> Solution:
    """A solution with rows, columns and virtual rows in random places, as a search leaves them."""
    problem = Problem(np.abs(weights), pattern)
    tile_rows = np.full(problem.tiles * problem.tile_size, -1)
    tile_rows[rng.permutation(tile_rows.size)[: len(problem.block_rows[0])]] = problem.block_rows[0]
    tile_rows = tile_rows.reshape(problem.tiles, problem.tile_size)
    order = None
    if pattern.shared_order:
        columns = np.full(problem.padded_columns, -1, dtype=np.int32)
        columns[: problem.columns] = np.arange(problem.columns)
        order = rng.permutation(columns)
    if pattern.is_plain:
        chosen = [order]
    else:
        chosen = choose_vectors(problem, vector_scores(problem.saliency, tile_rows), order)
    if order is None:
        chosen = [rng.permutation(columns) for columns in chosen]
    return Solution.measured(
        problem,
        Arrangement(tile_rows, tuple(c.reshape(-1, pattern.m) for c in chosen), order),
        identity=0.0,
        view=WeightView.of([weights.shape], pattern, listed=False),
        method="shuffled",
        seed=0,
        seconds=0.0,
    )


@st.composite
def packable_solutions(draw: st.DrawFn, kind: str) -> Solution:
    """A shuffled solution of a kind of pattern whose tiles the GPU's kernels take."""
    V = draw(st.sampled_from((16, 32, 48)))
    n, m = draw(st.sampled_from(((1, 2), (1, 4), (2, 4), (1, 3), (2, 3), (2, 2), (4, 4))))
    ratio = draw(st.sampled_from((0.0, 0.5, 0.75)))
    if kind == "nm":
        pattern = gyroperm.Pattern.nm(n, m)
    elif kind == "hinm":
        pattern = gyroperm.Pattern.hinm(n, m, vec_ratio=ratio, vec_size=V)
    elif kind == "vnm":
        pattern = gyroperm.Pattern.vnm(V, draw(st.integers(1, 4)), draw(st.integers(4, 10)))
    elif kind == "vector_nm":
        M = draw(st.integers(1, 8))
        pattern = gyroperm.Pattern.vector_nm(draw(st.integers(1, M)), M, V)
    else:
        rows_pruned = draw(st.sampled_from((0.0, 0.25, 0.5)))
        pattern = gyroperm.Pattern.tvw(n, m, vec_ratio=ratio, vec_size=V, row_ratio=rows_pruned)
    shape = draw(st.integers(1, 150)), draw(st.integers(16, 150))
    random = np.random.default_rng(draw(st.integers(0, 2**20)))
    return shuffled_solution(random.random(shape), pattern, random)
