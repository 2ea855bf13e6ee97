"""``solve``: from weights to a solution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gyroperm import measures
from gyroperm.arguments import checked_duration, checked_integer, checked_threads
from gyroperm.arrangement import Arrangement
from gyroperm.arrays import check_finite, check_non_negative, to_numpy
from gyroperm.gram import Gram
from gyroperm.interrupt import interrupted
from gyroperm.memory import require
from gyroperm.output import OBJECTIVES, SEARCH_DAMP, Inputs, LayerOutput, Objective
from gyroperm.pattern import Pattern
from gyroperm.problem import Problem
from gyroperm.solution import Solution
from gyroperm.stopping import MaxRounds, Stop, TimeLimit
from gyroperm.views import WeightView

DEFAULT_VEC_SIZE = 64


class _DefaultInt(int):
    """A default that can be told from the same number given by the user."""


class _DefaultFloat(float):
    """A default that can be told from the same number given by the user."""


_N, _M, _VEC_RATIO = _DefaultInt(2), _DefaultInt(4), _DefaultFloat(0.0)


def solve(
    weights: Any,
    *,
    n: int = _N,
    m: int = _M,
    vec_ratio: float = _VEC_RATIO,
    vec_size: int | None = None,
    pattern: Pattern | None = None,
    saliency: Any = None,
    gram: Any = None,
    activations: Any = None,
    objective: Objective | None = None,
    damp: float = SEARCH_DAMP,
    groups: int = 1,
    normalize: bool = False,
    method: str = "auto",
    options: Any = None,
    stop: Stop | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    initial: Solution | None = None,
    threads: int | None = None,
    progress: bool = False,
    bound: bool | float = False,
) -> Solution:
    """Find the order of rows and columns, and the mask, that keep the most of what matters.

    That is saliency, or, where it is known what the layer is fed (``gram`` or ``activations``),
    the layer's output.

    Parameters
    ----------
    weights : array_like, shape (R, C) or (R, C, kh, kw), or a list of them
        NumPy, torch (any device and float dtype) or CuPy array, or anything that offers
        ``__array__`` or ``__dlpack__``. Rows are output channels, columns input channels. For a
        convolution, plain N:M orders the C input channels, kernel positions riding along as
        rows; two-level patterns order the ``C * kh * kw`` columns of the im2col view. The
        matrices of a list share one column order (plain N:M and windowed patterns).
    n, m : int
        Keep n of every m; 2 and 4 by default.
    vec_ratio : float
        The fraction of column vectors that is pruned before, in ``[0, 1)``; 0 by default.
    vec_size : int, optional
        V, the rows of a tile. By default 64, or all rows when ``vec_ratio`` is 0. Where V or m
        does not divide the matrix, virtual rows and columns fill up (-1 in the solution).
    pattern : Pattern, optional
        The pattern, instead of the four arguments above.
    saliency : array_like or list, optional
        Non-negative, in the shape of ``weights``; ``|weights|`` by default, and
        what pruning a weight alone costs where the objective is an error, up to a factor:
        ``weights^2 * diag H``, the square of Wanda's, or OBS where it is compensated.
    gram : array_like, shape (C, C), optional
        ``H = X^T X / tokens`` of the layer's inputs X, up to a positive factor. The matrices of a
        list share it. For a convolution under a two-level pattern that of the im2col view, whose
        columns are ``C * kh * kw``.
    activations : array_like, shape (tokens, C), optional
        X itself, instead of ``gram``.
    objective : {"saliency", "error", "compensated"}, optional
        What is searched for: the most saliency; the least squared output error
        ``tr((W - What) H (W - What)^T)`` of the masked weights; or the least once
        :func:`gyroperm.compensate` has updated what is kept. Masks within groups are then chosen
        by that error too. ``"error"`` by default where inputs are given and the method is
        ``auto`` or judges by the output, ``"saliency"`` for all other methods.
    damp : float
        The share of the mean of H's diagonal that is added to it while an error is searched for,
        against fitting what calibration alone has seen; ``output_error`` is reported without.
    groups : int
        The groups of a grouped convolution, whose rows and input channels stay among themselves.
    normalize : bool
        For a list: divide each matrix's saliency by its sum, and its output by its norm, so that
        each counts alike. Measures are then in those units.
    method : str
        A registered method; see ``gyroperm methods``. ``auto`` is the one that keeps the most in
        the time there is; given options, it is ``assign``.
    options : mapping or options dataclass, optional
        The method's own options.
    stop : callable, optional
        When to stop, see :mod:`gyroperm.stopping`; by default when the method has converged.
    time_limit : float, optional
        Seconds, compilation excluded; together with ``stop``, whichever comes first. Annealing
        is stretched to fill the time, so more of it gives a better answer, not the same one.
    seed : int
        Non-negative. The same seed and number of rounds give the same answer for any number of
        threads. No global random state is read or changed.
    initial : Solution, optional
        Where to start: a solution of the same pattern and shapes. The result is never worse.
    threads : int, optional
        Worker threads; every processor this process may use by default.
    progress : bool
        Show a progress bar on standard error.
    bound : bool or float
        How hard to try, after the search, to prove how much any permutation can keep. False
        takes what unstructured pruning keeps, at no cost. True solves the linear relaxation of
        the set partition, for 60 seconds at most. A number is a time limit in seconds, compilation
        excluded, within which branching then goes on lowering the bound until it meets what was
        found. Prices for all ``C(C, m)`` groups are needed: 384 columns and 2:4 take a minute
        or two on two cores; where the time does not suffice, and for patterns other than plain
        N:M, the unstructured bound stays. ``bound_kind`` of the solution tells which it is.

    Returns
    -------
    Solution
        Never below ``identity`` (no permutation), nor below ``initial``, in what was searched
        for: the saliency that is kept, or the output error.

    Raises
    ------
    ValueError
        If an argument is out of range or arguments do not fit together; the message names the
        argument and what would be accepted.
    TypeError
        If an argument is no array of real numbers.
    MemoryError
        If the search would not fit into the memory that is available; says both figures.

    Warns
    -----
    UserWarning
        If ``gram`` or ``activations`` lack rank: fewer tokens than channels; names the rank.

    Examples
    --------
    >>> import numpy as np, gyroperm
    >>> weights = np.random.default_rng(0).standard_normal((64, 64))
    >>> solution = gyroperm.solve(weights, n=2, m=4)
    >>> bool(solution.retained > solution.identity)
    True
    >>> int(solution.apply(weights).astype(bool).sum())
    2048
    """
    from gyroperm.solvers import registry
    from gyroperm.solvers.auto import chosen_method

    pattern = _pattern(pattern, n, m, vec_ratio, vec_size)
    groups = checked_integer("groups", groups, 1)
    inputs = Inputs.of(gram, activations, damp)
    aim = _objective(objective, method, inputs is not None)
    problem, view = _problem(weights, saliency, pattern, groups, normalize, inputs, aim)
    stop = _combined_stop(stop, time_limit)
    threads = checked_threads(threads)
    if method == "auto":
        if aim != "saliency":
            method = OUTPUT_METHOD
        elif not options:
            method = chosen_method(problem, stop, threads)
    found = registry.get(method)
    checked_options = found.make_options(options)
    seed = checked_integer("seed", seed, 0)
    effort = _checked_bound(bound)
    start = _checked_initial(initial, problem, view)
    return _run(
        problem,
        view,
        found,
        checked_options,
        stop=stop,
        seed=seed,
        start=start,
        threads=threads,
        progress=progress,
        effort=effort,
    )


def _pattern(
    pattern: Pattern | None,
    n: int,
    m: int,
    vec_ratio: float,
    vec_size: int | None,
) -> Pattern:
    parts = {"n": n, "m": m, "vec_ratio": vec_ratio, "vec_size": vec_size}
    defaults = {id(_N), id(_M), id(_VEC_RATIO), id(None)}
    given = {name: value for name, value in parts.items() if id(value) not in defaults}
    if pattern is not None:
        if given:
            raise ValueError(f"give either pattern or {', '.join(given)}, not both")
        if not isinstance(pattern, Pattern):
            raise TypeError(f"pattern must be a gyroperm.Pattern, got {type(pattern).__name__}")
        return pattern
    if vec_size is None and vec_ratio:
        vec_size = DEFAULT_VEC_SIZE
    return Pattern(n=n, m=m, vec_ratio=vec_ratio, vec_size=vec_size)


#: What ``auto`` is where the objective is an error.
OUTPUT_METHOD = "output"


def _objective(objective: Any, method: str, known: bool) -> Objective:
    """What to search for; ValueError unless inputs and the method are made for it."""
    from gyroperm.solvers import registry

    if objective is not None and objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}")
    by_output = method != "auto" and registry.get(method).judges == "output"
    if not known:
        if by_output or objective not in (None, "saliency"):
            what = f"method {method!r}" if by_output else f"objective {objective!r}"
            raise ValueError(f"{what} judges by the layer's output: give gram or activations")
        return "saliency"
    if objective is None:
        return "error" if method == "auto" or by_output else "saliency"
    if method != "auto" and by_output == (objective == "saliency"):
        judged = "the layer's output" if by_output else "saliency"
        raise ValueError(
            f"method {method!r} judges by {judged}, which does not fit objective {objective!r}; "
            f"methods that judge by the output can start from its solution, given as initial"
        )
    return cast(Objective, objective)


def _problem(
    weights: Any,
    saliency: Any,
    pattern: Pattern,
    groups: int,
    normalize: bool,
    inputs: Inputs | None = None,
    objective: Objective = "saliency",
) -> tuple[Problem, WeightView]:
    listed = isinstance(weights, list | tuple)
    if listed and not weights:
        raise ValueError("weights must hold at least one matrix, got an empty list")
    if listed and len(weights) > 1 and not pattern.shared_order:
        raise ValueError(
            f"the tiles of {pattern} order their own columns: a list of matrices that share one "
            f"order needs plain N:M or a windowed pattern; solve them one by one"
        )
    if listed and groups > 1:
        raise ValueError("groups must be 1 for a list of matrices")
    arrays = _arrays(weights, "weights", listed)
    _require_memory([a.shape for a in arrays])
    for i, array in enumerate(arrays):
        check_finite(array, f"weights[{i}]" if listed else "weights")
    view = WeightView.of([a.shape for a in arrays], pattern, listed=listed, groups=groups)
    output = None
    if inputs is not None:
        output = inputs.meeting(arrays, view, objective, normalize=normalize)
    if saliency is None:
        saliencies = [np.abs(array) for array in arrays]
        if output is not None and objective != "saliency":
            saliencies = view.split(output.saliency)
    else:
        saliencies = _saliencies(saliency, [a.shape for a in arrays], listed)
    _check_sums(saliencies)
    if normalize:
        saliencies = [s / (s.sum(dtype=np.float64) or 1.0) for s in saliencies]
    problem = Problem(view.matrix(saliencies), pattern, view.blocks, view.orders, output)
    return problem, view


# Saliency, its copy in the search's scale and the tiles' columns, in float32, and masks.
_BYTES_A_WEIGHT = 14
# Up to so many weights there is no need to ask the system.
_SMALL = 1 << 20


def _require_memory(shapes: Sequence[tuple[int, ...]]) -> None:
    """MemoryError, before anything is copied, if a search of such weights would not fit."""
    size = sum(math.prod(shape) for shape in shapes)
    if size > _SMALL:
        require(_BYTES_A_WEIGHT * size, f"a search of {size} weights")


def _check_sums(saliencies: Sequence[NDArray[np.floating]]) -> None:
    with np.errstate(over="ignore"):
        if not np.isfinite(sum(s.sum(dtype=np.float64) for s in saliencies)):
            raise ValueError("saliency is so large that its sum overflows float64; scale it down")


def _arrays(given: Any, name: str, listed: bool) -> list[NDArray[np.floating]]:
    if not listed:
        return [to_numpy(given, name)]
    return [to_numpy(array, f"{name}[{i}]") for i, array in enumerate(given)]


def _saliencies(
    saliency: Any, shapes: Sequence[tuple[int, ...]], listed: bool
) -> list[NDArray[np.floating]]:
    if listed and (not isinstance(saliency, list | tuple) or len(saliency) != len(shapes)):
        raise ValueError(f"saliency must be a list of {len(shapes)} arrays, as weights is")
    arrays = _arrays(saliency, "saliency", listed)
    for i, (array, shape) in enumerate(zip(arrays, shapes, strict=True)):
        name = f"saliency[{i}]" if listed else "saliency"
        if array.shape != shape:
            raise ValueError(f"{name} must have the shape of weights, {shape}, got {array.shape}")
        check_finite(array, name)
        check_non_negative(array, name)
    return arrays


@dataclass(frozen=True)
class _Effort:
    """What the bound may cost: seconds, and whether to branch once the relaxation is solved."""

    seconds: float
    branch: bool


def _checked_bound(bound: Any) -> _Effort | None:
    from gyroperm.bounds import DEFAULT_SECONDS

    if isinstance(bound, bool | np.bool_):
        return _Effort(DEFAULT_SECONDS, False) if bound else None
    try:
        return _Effort(checked_duration("bound", bound), True)
    except ValueError:
        raise ValueError(
            f"bound must be True, False or a number of seconds of at least 0, got {bound!r}"
        ) from None


def _combined_stop(stop: Stop | None, time_limit: float | None) -> Stop | None:
    if stop is not None and not callable(stop):
        raise TypeError(f"stop must be callable, got {type(stop).__name__}")
    if time_limit is None:
        return stop
    limit = TimeLimit(checked_duration("time_limit", time_limit))
    return limit if stop is None else limit | stop


def _checked_initial(
    initial: Solution | None, problem: Problem, view: WeightView
) -> Arrangement | None:
    if initial is None:
        return None
    if not isinstance(initial, Solution):
        raise TypeError(f"initial must be a gyroperm.Solution, got {type(initial).__name__}")
    if initial.pattern != problem.pattern:
        raise ValueError(f"initial is of pattern {initial.pattern}, not {problem.pattern}")
    if initial.view != view:
        raise ValueError(f"initial is for weights of {initial.view.shapes}, not {view.shapes}")
    try:
        initial.arrangement.check(problem)
    except ValueError as error:
        raise ValueError(f"initial does not fit this saliency: {error}") from error
    if problem.judged_by_output:
        return initial.arrangement.with_mask(view.matrix(initial.masks))
    return initial.arrangement


def _run(
    problem: Problem,
    view: WeightView,
    method: Any,
    options: Any,
    *,
    stop: Stop | None,
    seed: int,
    start: Arrangement | None,
    threads: int,
    progress: bool,
    effort: _Effort | None,
) -> Solution:
    from gyroperm.solvers import registry
    from gyroperm.solvers.auto import chosen_method
    from gyroperm.solvers.identity import identity_arrangement
    from gyroperm.solvers.search import Search

    if registry.is_shipped(method.name):
        # A method that refuses the pattern says so of this problem, not of the small one.
        with suppress(ValueError):
            objective = problem.output.objective if problem.output else "saliency"
            if method.judges == "output" and start is None:
                # It begins with what keeps the most saliency.
                chosen = chosen_method(problem, stop, threads)
                _warm_up(chosen, problem.pattern, problem.saliency.dtype.name)
            _warm_up(method.name, problem.pattern, problem.saliency.dtype.name, objective)
    identity = identity_arrangement(problem)
    kept_by_identity = _value(problem, identity)
    with _progress_bar(progress, method.name) as bar:
        search = Search(problem, seed=seed, threads=threads, stop=stop, initial=start, progress=bar)
        found = method.solve(search, options)
        seconds = search.seconds
    # As large as the weights; measuring takes as much again.
    problem.free_search_saliency()
    # Whoever registers a method hears of a wrong answer, also of one that keeps little.
    found.check(problem)
    # A method may end below where it began; what is returned never does.
    candidates = [found, identity] if start is None else [found, start, identity]
    values = [_value(problem, candidate) for candidate in candidates]
    errors = [_error(problem, candidate) for candidate in candidates]
    # Methods sum in another order than the final measure: rounding must not show as a loss.
    if problem.judged_by_output:
        best = int(np.argmin(errors))
        history = [(s, max(1.0 - value, errors[best])) for s, value in search.history]
        history.append((seconds, errors[best]))
    else:
        best = int(np.argmax(values))
        history = [(s, min(_unscaled(problem, value), values[best])) for s, value in search.history]
        history.append((seconds, values[best]))
    proof = search.proof and (_unscaled(problem, search.proof[0]), search.proof[1])
    if effort is not None and not _met(proof, values[best]):
        proof = _lower(proof, _bound(problem, candidates[best], effort, threads, stop))
    return Solution.measured(
        problem,
        candidates[best],
        identity=kept_by_identity,
        view=view,
        proof=proof,
        output_error=errors[best],
        identity_output_error=errors[-1],
        objective=problem.output.objective if problem.output else "saliency",
        method=method.name,
        seed=seed,
        seconds=seconds,
        history=tuple(history),
    )


_Proof = tuple[float, str]


def _met(proof: _Proof | None, value: float) -> bool:
    """Whether nothing is left to prove."""
    return proof is not None and proof[0] <= value * (1.0 + 1e-12)


def _lower(one: _Proof | None, other: _Proof | None) -> _Proof | None:
    return min((proof for proof in (one, other) if proof is not None), default=None)


def _bound(
    problem: Problem, arrangement: Arrangement, effort: _Effort, threads: int, stop: Stop | None
) -> _Proof | None:
    """What can be proven; whoever interrupts the search interrupts this too."""
    from gyroperm import bounds

    bounds.warm_up()
    return bounds.prove(
        problem,
        arrangement,
        seconds=effort.seconds,
        branch=effort.branch,
        threads=threads,
        stopped=lambda: interrupted(stop),
    )


def _value(problem: Problem, arrangement: Arrangement) -> float:
    return measures.retained(
        problem.saliency, arrangement.mask(problem.saliency, problem.pattern.n)
    )


def _error(problem: Problem, arrangement: Arrangement) -> float:
    """The squared relative output error; NaN where it is not known what the layer is fed."""
    if problem.output is None:
        return math.nan
    return problem.output.error(arrangement.mask(problem.saliency, problem.pattern.n))


def _unscaled(problem: Problem, value: float) -> float:
    """A value of the search in the saliency's own scale; infinite where that overflows."""
    with np.errstate(over="ignore"):
        return float(np.ldexp(value, int(np.frexp(float(problem.saliency.max()))[1])))


def _progress_bar(progress: bool, description: str) -> Any:
    from tqdm import tqdm

    return tqdm(desc=description, unit="round", disable=not progress, leave=False, delay=0.5)


#: Methods that follow the relaxation of the set partition.
_BY_PARTITION = ("dive", "exact")


@cache
def _warm_up(method: str, pattern: Pattern, dtype: str, objective: Objective = "saliency") -> None:
    """Compile what a method needs, on a small problem, so that no clock sees it."""
    from gyroperm.solvers import registry
    from gyroperm.solvers.search import Search

    # Two windows, or groups, at least: a single one has nothing to exchange.
    columns = pattern.padded_columns(max(8, 2 * (pattern.window or pattern.m)))
    while True:
        try:
            pattern.kept_columns(columns)
            break
        except ValueError:
            columns *= 2
    rows = 2 * min(pattern.vec_size or 4, 8)
    saliency = np.random.default_rng(0).random((rows, columns)).astype(dtype)
    output = None
    if objective != "saliency":
        inputs = np.random.default_rng(1).standard_normal((2 * columns, columns))
        output = LayerOutput(saliency, Gram.of(inputs.T @ inputs), inputs, objective=objective)
    if pattern.vec_size is not None:
        pattern = replace(pattern, vec_size=rows // 2)
    found = registry.get(method)
    problem = Problem(saliency, pattern, output=output)
    # Without a time limit a method that judges by the output begins as it does for most problems.
    stop = MaxRounds(100) if output else MaxRounds(100) | TimeLimit(60)
    search = Search(problem, stop=stop)
    arrangement = found.solve(search, found.make_options(None))
    _value(search.problem, arrangement)
    if method in _BY_PARTITION:
        # How far they get along the relaxation depends on the problem; a proof gets to its end.
        from gyroperm import bounds

        bounds.warm_up()
