"""What every method must do for every pattern."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gyroperm
import naive
import strategies
from gyroperm import MaxRounds, Pattern, solve

FEW = {"stop": MaxRounds(4), "threads": 1}
EXACT = {"rel": 1e-12, "abs": 0.0}

every_kind = pytest.mark.parametrize("kind", strategies.KINDS)
every_method = pytest.mark.parametrize("method", strategies.METHODS)
# auto is an alias of another method, so the costlier properties need not see it twice.
named_method = pytest.mark.parametrize("method", [m for m in strategies.METHODS if m != "auto"])


def same_answer(a, b):
    """Whether two solutions are the same in everything but time."""
    assert np.array_equal(a.mask, b.mask)
    assert np.array_equal(a.tile_rows, b.tile_rows)
    assert len(a.groups) == len(b.groups)
    assert all(np.array_equal(x, y) for x, y in zip(a.groups, b.groups, strict=True))
    assert (a.col_order is None) == (b.col_order is None)
    assert a.col_order is None or np.array_equal(a.col_order, b.col_order)


@every_kind
@every_method
@given(data=st.data())
def test_the_answer_is_of_the_pattern_and_measured_right(kind, method, data):
    case = data.draw(strategies.cases(kind))
    S = case.saliency
    solution = solve(-S, pattern=case.pattern, method=method, seed=3, **FEW)

    case.check(solution)
    assert sorted(solution.row_order) == list(range(len(S)))
    assert solution.retained == pytest.approx(naive.masked_sum(S, solution.mask), **EXACT)
    best = naive.best_mask(S, solution.tile_rows, solution.groups, case.pattern.n)
    assert solution.retained == pytest.approx(naive.masked_sum(S, best), **EXACT)

    kept = solution.mask.sum(axis=1)
    by_row = naive.unstructured_by_row(S, kept)
    by_layer = naive.unstructured_by_layer(S, int(kept.sum()))
    assert solution.unstructured_by_row == pytest.approx(by_row, **EXACT)
    assert solution.unstructured_by_layer == pytest.approx(by_layer, **EXACT)
    assert solution.unstructured == (
        solution.unstructured_by_row if kind == "nm" else solution.unstructured_by_layer
    )
    assert solution.identity <= solution.retained <= solution.bound
    assert solution.gap >= 0.0
    assert solution.method in (method, "assign")
    assert solution.seed == 3
    assert solution.pattern == case.pattern


@every_kind
@given(data=st.data())
def test_identity_is_the_pattern_without_permutation(kind, data):
    # Ties between tiles leave the ragged spread of TVW open.
    case = data.draw(strategies.cases(kind, ties=kind != "tvw"))
    solution = solve(case.saliency, pattern=case.pattern, method="identity")
    assert solution.retained == solution.identity
    assert solution.identity == pytest.approx(case.identity(), **EXACT)
    packed = solution.row_order[: int((solution.tile_rows >= 0).sum())]
    assert (np.diff(packed) > 0).all()


@every_kind
@named_method
@settings(max_examples=12)
@given(data=st.data())
def test_never_above_the_enumerated_optimum(kind, method, data):
    case = data.draw(strategies.cases(kind, tiny=True))
    solution = solve(case.saliency, pattern=case.pattern, method=method, seed=1, **FEW)
    optimum = case.optimum()
    case.check(solution)
    assert solution.retained <= optimum * (1 + 1e-12)
    assert optimum <= solution.bound
    if solution.status == "optimal":
        assert solution.retained == pytest.approx(optimum, rel=1e-9, abs=0.0)


@every_kind
@named_method
@settings(max_examples=12)
@given(data=st.data())
def test_the_same_seed_gives_the_same_answer(kind, method, data):
    case = data.draw(strategies.cases(kind))
    seed = data.draw(st.integers(0, 2**70))
    run = {"pattern": case.pattern, "method": method, "seed": seed, "stop": MaxRounds(3)}
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    one = solve(case.saliency, threads=1, **run)
    two = solve(case.saliency, threads=2, **run)
    again = solve(case.saliency, threads=1, **run)
    after = np.random.get_state()  # noqa: NPY002

    same_answer(one, two)
    same_answer(one, again)
    assert one.retained == two.retained == again.retained
    assert random.getstate() == of_python
    assert of_numpy[0] == after[0] and of_numpy[2:] == after[2:]
    assert np.array_equal(of_numpy[1], after[1])


@every_kind
@named_method
@settings(max_examples=12)
@given(data=st.data())
def test_a_power_of_two_scales_everything_and_changes_nothing(kind, method, data):
    case = data.draw(strategies.cases(kind))
    factor = 2.0 ** data.draw(st.integers(-20, 20))
    run = {"pattern": case.pattern, "method": method, **FEW}
    one = solve(case.saliency, **run)
    scaled = solve(case.saliency * case.saliency.dtype.type(factor), **run)
    same_answer(one, scaled)
    assert scaled.retained == one.retained * factor
    assert scaled.identity == one.identity * factor
    assert scaled.unstructured == one.unstructured * factor


@every_kind
@named_method
@settings(max_examples=12)
@given(data=st.data())
def test_never_below_the_initial_solution(kind, method, data):
    case = data.draw(strategies.cases(kind))
    other = data.draw(st.sampled_from(["identity", "gyro", "assign"]))
    first = solve(case.saliency, pattern=case.pattern, method=other, seed=9, **FEW)
    then = solve(case.saliency, pattern=case.pattern, method=method, initial=first, **FEW)
    case.check(then)
    assert then.retained >= first.retained


@every_kind
@every_method
def test_saliency_is_what_counts_and_weights_are_what_is_pruned(kind, method):
    random = np.random.default_rng(4)
    pattern, rows, columns = LARGER[kind]
    weights = random.standard_normal((rows, columns)).astype(np.float32)
    saliency = random.random((rows, columns))
    solution = solve(weights, pattern=pattern, saliency=saliency, method=method, **FEW)
    assert solution.retained == pytest.approx(naive.masked_sum(saliency, solution.mask), **EXACT)
    pruned = solution.apply(weights)
    assert pruned.dtype == weights.dtype
    assert np.array_equal(pruned[solution.mask], weights[solution.mask])
    assert not pruned[~solution.mask].any()


# Sizes that the tiles, groups and windows do not divide, and enough blocks for two threads.
LARGER = {
    "nm": (Pattern.nm(), 50, 90),
    "hinm": (Pattern.hinm(vec_size=16, vec_ratio=0.5), 90, 70),
    "vnm": (Pattern.vnm(16, 2, 8), 90, 70),
    "vector_nm": (Pattern.vector_nm(2, 8, 16), 90, 70),
    "tvw": (Pattern.tvw(vec_size=16, vec_ratio=0.5, row_ratio=0.125), 90, 70),
}


@every_kind
@named_method
def test_threads_do_not_change_a_larger_answer(kind, method):
    pattern, rows, columns = LARGER[kind]
    S = np.random.default_rng(11).random((rows, columns), dtype=np.float32)
    run = {"pattern": pattern, "method": method, "seed": 5, "stop": MaxRounds(6)}
    answers = [solve(S, threads=threads, **run) for threads in (1, 2, 3)]
    same_answer(answers[0], answers[1])
    same_answer(answers[0], answers[2])


@every_kind
@pytest.mark.parametrize("method", ["assign", "auto", "gyro"])
def test_a_search_finds_more_than_no_search(kind, method):
    pattern, rows, columns = LARGER[kind]
    S = np.random.default_rng(12).random((rows, columns)) ** 3
    solution = solve(S, pattern=pattern, method=method, stop=MaxRounds(50))
    assert solution.retained > solution.identity
    assert solution.efficacy > 0.0
    assert [r for _, r in solution.history][-1] == solution.retained
    seconds = [s for s, _ in solution.history]
    assert seconds == sorted(seconds)
    assert solution.seconds >= seconds[-1] >= 0.0


@every_kind
@pytest.mark.parametrize("method", ["assign", "auto", "gyro"])
def test_different_seeds_explore_differently(kind, method):
    pattern, rows, columns = LARGER[kind]
    S = np.random.default_rng(13).random((rows, columns))
    run = {"pattern": pattern, "method": method, "stop": MaxRounds(3)}
    answers = [solve(S, seed=seed, **run).mask.tobytes() for seed in range(3)]
    assert len(set(answers)) > 1


@pytest.mark.parametrize("kind", strategies.KINDS)
@pytest.mark.parametrize("method", ["assign", "gyro"])
def test_history_rises_to_what_is_retained(kind, method):
    pattern, rows, columns = LARGER[kind]
    S = np.random.default_rng(17).random((rows, columns))
    solution = solve(S, pattern=pattern, method=method)
    seconds, values = zip(*solution.history, strict=True)
    assert list(seconds) == sorted(seconds)
    assert list(values) == sorted(values)
    assert values[-1] == solution.retained


# How often the best of all arrangements is found by the method's own convergence; each case:
# kind, pattern, shape, parameters of the oracle, seeds out of 20 that must be optimal.
SMALL = [
    ("nm", Pattern.nm(), (8, 8), {"n": 2, "m": 4}, 18),
    ("nm", Pattern.nm(), (6, 12), {"n": 2, "m": 4}, 14),
    ("nm", Pattern.nm(1, 2), (6, 8), {"n": 1, "m": 2}, 18),
    (
        "hinm",
        Pattern.hinm(1, 2, vec_ratio=1 / 3, vec_size=2),
        (4, 6),
        {"n": 1, "m": 2, "V": 2, "vec_ratio": 1 / 3},
        16,
    ),
    (
        "vnm",
        Pattern(1, 2, 2, 0.5, "window", 4),
        (4, 8),
        {"n": 1, "m": 2, "V": 2, "M": 4},
        19,
    ),
    ("vector_nm", Pattern.vector_nm(2, 4, 2), (4, 8), {"N": 2, "M": 4, "V": 2}, 18),
    (
        "tvw",
        Pattern.tvw(1, 2, vec_ratio=1 / 3, vec_size=2),
        (4, 6),
        {"n": 1, "m": 2, "V": 2, "vec_ratio": 1 / 3},
        19,
    ),
]


@pytest.mark.parametrize(("kind", "pattern", "shape", "parameters", "enough"), SMALL, ids=str)
def test_auto_finds_most_small_optima(kind, pattern, shape, parameters, enough):
    found = 0
    for seed in range(20):
        S = np.abs(np.random.default_rng(seed).standard_normal(shape))
        optimum = getattr(naive, f"optimum_{kind}")(S, **parameters)
        solution = solve(S, pattern=pattern, seed=seed)
        assert solution.retained <= optimum * (1 + 1e-12)
        assert solution.retained >= 0.8 * optimum
        found += solution.retained >= optimum * (1 - 1e-9)
    assert found >= enough, f"{found} of 20"


def test_vec_size_defaults():
    S = np.random.default_rng(0).random((70, 16))
    assert solve(S, method="identity").pattern == Pattern.nm(2, 4)
    assert solve(S, method="identity", n=1, m=2).pattern == Pattern.nm(1, 2)
    assert solve(S, method="identity", vec_ratio=0.5).pattern == Pattern.hinm(vec_size=64)
    given = solve(S, method="identity", vec_ratio=0.5, vec_size=8).pattern
    assert given == Pattern.hinm(vec_size=8)


def test_hinm_and_vnm_are_not_each_other():
    """A generic HiNM arrangement has no shared windows; every V:N:M one is also of HiNM."""
    S = np.random.default_rng(2).random((8, 8))
    hinm = solve(S, n=1, m=2, vec_ratio=0.5, vec_size=2, stop=MaxRounds(8))
    with pytest.raises(AssertionError, match="no shared windows"):
        naive.check_vnm(hinm.mask, hinm.tile_rows, hinm.groups, n=1, m=2, V=2, M=4)

    pattern = Pattern(1, 2, 2, 0.5, "window", 4)
    vnm = solve(S, pattern=pattern, stop=MaxRounds(8))
    naive.check_vnm(vnm.mask, vnm.tile_rows, vnm.groups, n=1, m=2, V=2, M=4)
    naive.check_hinm(vnm.mask, vnm.tile_rows, vnm.groups, n=1, m=2, V=2, vec_ratio=0.5)


def test_the_checks_refuse_other_patterns():
    """An oracle that accepts everything would prove nothing."""
    S = np.random.default_rng(3).random((8, 8))
    ragged = S * np.linspace(0.01, 1.0, 8)[:, None]
    tvw = solve(ragged, pattern=Pattern.tvw(1, 2, vec_ratio=0.5, vec_size=2), method="identity")
    assert len({len(g) for g in tvw.groups}) > 1
    with pytest.raises(AssertionError, match="another K"):
        naive.check_hinm(tvw.mask, tvw.tile_rows, tvw.groups, n=1, m=2, V=2, vec_ratio=0.5)

    nm = solve(S, n=1, m=2, method="identity")
    swapped = nm.col_order.copy()
    swapped[[0, 2]] = swapped[[2, 0]]
    with pytest.raises(AssertionError, match="its place"):
        naive.check_nm(nm.mask, nm.tile_rows, nm.groups, swapped, n=1, m=2)

    more = nm.mask.copy()
    more[0] = True
    with pytest.raises(AssertionError, match="keeps 2 of"):
        naive.check_nm(more, nm.tile_rows, nm.groups, nm.col_order, n=1, m=2)

    vector = solve(S, pattern=Pattern.vector_nm(2, 4, 2), method="identity")
    partly = vector.mask.copy()
    partly[0] = False
    with pytest.raises(AssertionError, match="in part"):
        naive.check_vector_nm(partly, vector.tile_rows, vector.col_order, N=2, M=4, V=2)


REAL = [
    ("layer.0.attention.self.query", Pattern.nm()),
    ("layer.0.intermediate.dense", Pattern.hinm(vec_ratio=0.5, vec_size=32)),
    ("layer.0.attention.self.query", Pattern.vnm(64, 2, 8)),
]


@named_method
@pytest.mark.parametrize(("name", "pattern"), REAL, ids=str)
def test_real_layers(minilm, name, pattern, method):
    weights = minilm(name)
    solution = solve(weights, pattern=pattern, method=method, time_limit=0.3)
    S = np.abs(weights)
    assert solution.retained == pytest.approx(float(S[solution.mask].sum(dtype=np.float64)))
    best = naive.best_mask(S[:4], [range(4)], solution.groups[:1], pattern.n)
    rows = solution.tile_rows[0]
    if pattern.is_plain:
        assert np.array_equal(solution.mask[:4], best)
    else:
        own = naive.best_mask(S, [rows[:4]], solution.groups[:1], pattern.n)
        assert np.array_equal(solution.mask[rows[:4]], own[rows[:4]])
    assert solution.identity <= solution.retained
    assert solution.retained <= min(solution.unstructured, solution.bound)
    assert solution.mask.mean() == pytest.approx(1 - pattern.sparsity)


def test_the_package_has_the_names_it_promises():
    assert all(hasattr(gyroperm, name) for name in gyroperm.__all__)
