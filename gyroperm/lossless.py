"""``lossless``: an order in which a pattern keeps every nonzero of a sparse matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gyroperm import engine
from gyroperm.arguments import checked_integer, checked_threads
from gyroperm.arrangement import Arrangement
from gyroperm.pattern import Pattern
from gyroperm.problem import Problem
from gyroperm.solution import Solution
from gyroperm.stopping import SearchState, Stop


def lossless(
    weights: Any,
    *,
    n: int = engine._N,
    m: int = engine._M,
    vec_ratio: float = engine._VEC_RATIO,
    vec_size: int | None = None,
    pattern: Pattern | None = None,
    groups: int = 1,
    method: str = "auto",
    options: Any = None,
    stop: Stop | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: bool = False,
) -> Solution:
    """Find an order of rows and columns under which a pattern keeps every nonzero weight.

    An already sparse matrix becomes one that the hardware can run, without a change of any
    weight. Which nonzeros are lost is all that counts, not their size. The method is run again
    and again, each time from where it ended, on nonzeros that weigh more in the rows that have
    lost some (as the clauses in breakout local search), until none is lost.

    Parameters
    ----------
    weights, n, m, vec_ratio, vec_size, pattern, groups, method, options, seed, threads, progress
        As for :func:`gyroperm.solve`.
    stop : callable, optional
        When to give up; a round is a run of the method. Without a limit of time or rounds also
        after three starts afresh in a row that brought nothing.
    time_limit : float, optional
        Seconds after which to give up, compilation excluded.

    Returns
    -------
    Solution
        Of the saliency that is 1 where a weight is not zero: ``retained`` counts the nonzeros
        kept and ``lost`` the others. Its ``status`` is

        - ``"lossless"``: ``lost`` is 0; :meth:`Solution.apply` changes nothing;
        - ``"infeasible"``: no order is lossless, proven without a search; ``infeasible`` says
          why, and the order is the one without permutation;
        - ``"feasible"`` (``"optimal"`` if its bound is met): none was found; the order is the
          one that loses the fewest of those found.

    Raises
    ------
    ValueError, TypeError
        As :func:`gyroperm.solve`; not if no order is lossless.

    References
    ----------
    Pool and Yu, Channel Permutations for N:M Sparsity, NeurIPS 2021 (unstructured to structured
    without loss). Morris, The Breakout Method for Escaping from Local Minima, AAAI 1993.

    Examples
    --------
    >>> import numpy as np, gyroperm
    >>> rng = np.random.default_rng(0)
    >>> weights = rng.standard_normal((32, 32)) * (rng.random((32, 32)) < 0.2)
    >>> solution = gyroperm.lossless(weights, n=2, m=4)
    >>> solution.status, bool((solution.apply(weights) == weights).all())
    ('lossless', True)
    """
    from gyroperm.solvers import registry
    from gyroperm.solvers.identity import identity_arrangement
    from gyroperm.solvers.search import Search

    pattern = engine._pattern(pattern, n, m, vec_ratio, vec_size)
    groups = checked_integer("groups", groups, 1)
    dense, view = engine._problem(weights, None, pattern, groups, False)
    problem = replace(dense, saliency=(dense.saliency > 0).astype(np.float32))
    found = registry.get(method)
    checked_options = found.make_options(options)
    seed = checked_integer("seed", seed, 0)
    stop = engine._combined_stop(stop, time_limit)
    threads = checked_threads(threads)
    identity = identity_arrangement(problem)
    kept_by_identity = engine._value(problem, identity)
    reason = why_infeasible(problem)
    if not reason and registry.is_shipped(found.name):
        engine._warm_up(found.name, pattern, problem.saliency.dtype.name)
    with engine._progress_bar(progress and not reason, found.name) as bar:
        nonzeros = float(problem.search_saliency.sum(dtype=np.float64))
        search = Search(
            problem, seed=seed, threads=threads, stop=stop, progress=bar, enough=nonzeros
        )
        arrangement = identity
        if not reason:
            arrangement = _repaired(search, found, checked_options, identity)
        seconds = search.seconds
    history = [(s, engine._unscaled(problem, value)) for s, value in search.history]
    history.append((seconds, engine._value(problem, arrangement)))
    return Solution.measured(
        problem,
        arrangement,
        identity=kept_by_identity,
        view=view,
        method=found.name,
        seed=seed,
        seconds=seconds,
        history=tuple(history),
        infeasible=reason,
    )


# --- The search ------------------------------------------------------------------------------

# Runs without a nonzero fewer lost, after which to start afresh. Where a method starts from an
# arrangement it may leave its tiles as they are: then few runs tell all.
_PATIENCE = 50
_PATIENCE_WITH_TILES = 4
# Fresh starts in a row that bring nothing, after which to give up where nothing sets the pace.
_STARTS = 3


def _repaired(search: Any, method: Any, options: Any, identity: Arrangement) -> Arrangement:
    """Run a method until nothing is lost, on nonzeros that weigh more where some were lost."""
    problem: Problem = search.problem
    unit = float(problem.search_saliency.max())
    nonzeros = int(np.count_nonzero(problem.saliency))
    best, fewest = identity, int(_lost(problem, identity).sum())
    search.improve(unit * (nonzeros - fewest))
    patience = _PATIENCE if problem.pattern.is_plain else _PATIENCE_WITH_TILES
    row_weights = np.ones(problem.rows, dtype=np.float32)
    current: Arrangement | None = None
    # The fewest lost since the last fresh start, the runs since then, starts that brought nothing.
    least, stale, starts = nonzeros + 1, 0, 0
    for run in count():
        if search.stopped() or (starts >= _STARTS and search.progress() is None):
            return best
        current = _run(search, method, options, run, row_weights, current)
        lost = _lost(problem, current)
        total = int(lost.sum())
        if total < fewest:
            best, fewest, starts = current, total, 0
        search.record(unit * (nonzeros - fewest))
        stale = 0 if total < least else stale + 1
        least = min(least, total)
        # Which rows are pruned whole depends on what they weigh.
        if not problem.pattern.row_ratio:
            row_weights += lost > 0
        if stale >= patience:
            current, least, stale = None, nonzeros + 1, 0
            row_weights[:] = 1.0
            starts += 1
    raise AssertionError("unreachable")


def _run(
    search: Any,
    method: Any,
    options: Any,
    run: int,
    row_weights: NDArray[np.float32],
    start: Arrangement | None,
) -> Arrangement:
    """Run the method once, to its own convergence or until nothing is lost."""
    from gyroperm.solvers.search import Search

    problem: Problem = search.problem
    weighted = replace(problem, saliency=problem.saliency * row_weights[:, None])

    # Not the criterion itself: a method would plan to fill all of its time with this one run.
    def stop(_: SearchState) -> bool:
        return bool(search.stopped())

    within = Search(
        weighted,
        seed=int(search.random(run).integers(2**62)),
        threads=search.threads,
        stop=stop,
        initial=start,
        # Small integers times a power of two: this sum and those of the search are exact.
        enough=float(weighted.search_saliency.sum(dtype=np.float64)),
    )
    found: Arrangement = method.solve(within, options)
    found.check(weighted)
    return found


def _lost(problem: Problem, arrangement: Arrangement) -> NDArray[np.int64]:
    """The nonzeros of each row that the arrangement's best mask does not keep, shape (R,)."""
    mask = arrangement.mask(problem.saliency, problem.pattern.n)
    return np.asarray(np.count_nonzero((problem.saliency > 0) & ~mask, axis=1), dtype=np.int64)


# --- Proofs that there is none ---------------------------------------------------------------


def why_infeasible(problem: Problem) -> str:
    """Why no arrangement keeps every nonzero of a problem, or an empty text if none is known."""
    for proof in PROOFS:
        reason = proof(problem)
        if reason:
            return reason
    return ""


def _by_pruned_rows(problem: Problem) -> str:
    kept = np.concatenate(problem.block_rows)
    pruned = np.setdiff1d(np.arange(problem.rows), kept)
    filled = pruned[problem.saliency[pruned].any(axis=1)]
    if not len(filled):
        return ""
    return (
        f"{len(pruned)} rows are pruned whole, but only {len(pruned) - len(filled)} of them can "
        f"be rows without nonzeros"
    )


def _by_row(problem: Problem) -> str:
    pattern = problem.pattern
    groups = problem.groups_per_tile
    if pattern.allocation == "global":
        groups = min(problem.total_groups, problem.padded_columns // pattern.m)
    most = min(pattern.n * groups, problem.columns)
    counts = np.count_nonzero(problem.saliency, axis=1)
    row = int(np.argmax(counts))
    if counts[row] <= most:
        return ""
    return f"row {row} has {counts[row]} nonzeros, of which the pattern keeps {most} at most"


def _by_total(problem: Problem) -> str:
    pattern = problem.pattern
    if pattern.allocation != "global":
        return ""
    total = int(np.count_nonzero(problem.saliency))
    most = problem.total_groups * pattern.n * problem.tile_size
    if total <= most:
        return ""
    return f"there are {total} nonzeros, of which the pattern keeps {most} at most"


def _by_vectors(problem: Problem) -> str:
    """A column with s nonzeros in a block needs a vector in ceil(s / V) of its tiles."""
    if problem.pattern.is_plain:
        return ""
    needed, end = [], 0
    for rows in problem.blocks:
        counts = np.count_nonzero(problem.saliency[end : end + rows], axis=0)
        needed.append(int((-(-counts // problem.tile_size)).sum()))
        end += rows
    kept = [tiles * problem.kept_columns for tiles in problem.block_tiles]
    if problem.pattern.allocation == "global":
        needed, kept = [sum(needed)], [problem.total_groups * problem.pattern.m]
    for need, keep in zip(needed, kept, strict=True):
        if need > keep:
            return (
                f"the columns' nonzeros need {need} vectors of {problem.tile_size} rows at least, "
                f"of which the pattern keeps {keep}"
            )
    return ""


def _by_pairs(problem: Problem) -> str:
    """Count the pairs of nonzeros of a row that share a group, from columns and from rows.

    A column shares its group with m - 1 others: summed over all columns, with the fewest rows in
    which both are nonzero, that is twice a lower bound. A row of k nonzeros, n at most in a
    group, has the most pairs with as many full groups as it fills.
    """
    pattern = problem.pattern
    if not pattern.is_plain or pattern.m == 1:
        return ""
    for rows in _rows_of_orders(problem):
        nonzero = np.zeros((len(rows), problem.padded_columns), dtype=np.float32)
        nonzero[:, : problem.columns] = problem.saliency[rows] > 0
        shared = nonzero.T @ nonzero
        np.fill_diagonal(shared, np.inf)
        shared.partition(pattern.m - 2, axis=1)
        least = shared[:, : pattern.m - 1].sum(dtype=np.float64)
        full, rest = np.divmod(np.count_nonzero(nonzero, axis=1), pattern.n)
        most = int((full * (pattern.n * (pattern.n - 1)) + rest * (rest - 1)).sum())
        if least > most:
            return (
                f"groups of {pattern.m} columns hold {int(least + 1) // 2} pairs of nonzeros of a "
                f"row at least, and {most // 2} at most if each row keeps {pattern.n} of a group"
            )
    return ""


def _rows_of_orders(problem: Problem) -> list[NDArray[np.intp]]:
    ends = np.cumsum(problem.blocks) if problem.orders > 1 else np.array([problem.rows])
    return np.split(np.arange(problem.rows), ends[:-1])


#: Proofs, the cheapest first: each takes a problem and returns why it is infeasible, or "". An
#: upper bound of what can be kept that lies below the number of nonzeros is one, too.
PROOFS: list[Callable[[Problem], str]] = [
    _by_pruned_rows,
    _by_row,
    _by_total,
    _by_vectors,
    _by_pairs,
]
