"""The search for the least output error, against enumeration and against its own start."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gyroperm
import naive
from gyroperm import MaxRounds, Pattern, Solution, compensate, output_error, solve
from gyroperm.gram import Gram

PATTERNS = {
    "2:4": Pattern.nm(),
    "1:4": Pattern.nm(1, 4),
    "3:5": Pattern.nm(3, 5),
    "8:16": Pattern.nm(8, 16),
    "4:4": Pattern.nm(4, 4),
    "HiNM": Pattern.hinm(vec_size=4),
    "V:N:M": Pattern.vnm(4, 2, 8),
    "vectors": Pattern.vector_nm(2, 4, 4),
    "TVW": Pattern.tvw(vec_size=4),
}


def case(rows=12, channels=24, seed=0, dtype=np.float64):
    """Correlated inputs, so that what a mask loses is not what its weights lose one by one."""
    random = np.random.default_rng(seed)
    X = random.standard_normal((4 * channels, 4)) @ random.standard_normal((4, channels))
    X += 0.5 * random.standard_normal(X.shape)
    return random.standard_normal((rows, channels)).astype(dtype), X


@pytest.mark.parametrize("seed", range(4))
def test_small_layers_come_near_the_enumerated_optimum(seed):
    W, X = case(3, 8, seed)
    H = X.T @ X
    solution = solve(W, gram=H, damp=0.0, options={"patience": 10})
    lost = solution.output_error * np.trace(W @ H @ W.T)
    least = naive.least_output_error(W, H, 2, 4)
    start = solve(W, saliency=gyroperm.wanda(W, np.sqrt(np.diag(H))))
    before = np.trace((W - start.apply(W)) @ H @ (W - start.apply(W)).T)
    assert least * (1 - 1e-9) <= lost <= before
    groups = [[int(c) for c in group] for group in solution.groups[0]]
    within = naive.least_error_in_groups(W, H, groups, 2)
    # Coordinate descent has optima of its own, most of the time the best.
    assert within * (1 - 1e-9) <= lost <= 1.3 * within


@pytest.mark.parametrize("objective", ["error", "compensated"])
@pytest.mark.parametrize("name", PATTERNS)
def test_every_pattern_is_solved_and_measured(name, objective):
    W, X = case()
    H = X.T @ X
    pattern = PATTERNS[name]
    solution = solve(W, gram=H, pattern=pattern, objective=objective)
    pruned = solution.apply(W)
    if objective == "compensated":
        pruned = compensate(W, solution.mask, H)
    assert solution.output_error == pytest.approx(output_error(W, pruned, gram=H) ** 2, rel=1e-6)
    assert solution.output_error <= solution.identity_output_error
    assert solution.objective == objective
    assert f"{solution.output_error:.4g}" in solution.summary()


@given(st.integers(0, 10_000), st.sampled_from(sorted(PATTERNS)))
def test_a_solution_given_never_gets_worse(seed, name):
    W, X = case(seed=seed)
    given_ = {"gram": X.T @ X, "pattern": PATTERNS[name]}
    start = solve(W, **given_, method="identity")
    better = solve(W, **given_, initial=start)
    again = solve(W, **given_, initial=better)
    assert again.output_error <= better.output_error <= start.output_error


@pytest.mark.parametrize("name", ["2:4", "HiNM"])
def test_seeds_threads_and_powers_of_two(name):
    W, X = case(16, 48)
    H = X.T @ X

    def found(W=W, H=H, **given):
        return solve(W, gram=H, pattern=PATTERNS[name], seed=3, stop=MaxRounds(8), **given)

    one = found(threads=1)
    for other in (found(threads=2), found(H=2.0**50 * H), found(W=2.0**-40 * W)):
        assert np.array_equal(other.mask, one.mask)
        assert other.output_error == one.output_error
        for a, b in zip(other.groups, one.groups, strict=True):
            assert np.array_equal(a, b)


def test_masks_alone_leave_columns_where_they_are():
    W, X = case()
    start = solve(W, gram=X.T @ X, method="identity")
    found = solve(W, gram=X.T @ X, initial=start, method="output", options={"columns": False})
    assert np.array_equal(found.groups[0], start.groups[0])
    assert found.output_error < start.output_error


def test_a_list_shares_an_order_and_its_inputs():
    W, X = case(24)
    parts = [W[:8], 100 * W[8:]]
    solution = solve(parts, activations=X)
    stacked = solve(np.concatenate(parts), activations=X)
    assert solution.output_error == pytest.approx(stacked.output_error)
    alike = solve(parts, activations=X, normalize=True)
    errors = [
        output_error(w, pruned, activations=X.T) ** 2
        for w, pruned in zip(parts, alike.apply(parts), strict=True)
    ]
    assert alike.output_error == pytest.approx(np.mean(errors), rel=1e-6)


def test_a_file_gives_back_the_errors(tmp_path):
    W, X = case()
    solution = solve(W, activations=X, objective="compensated")
    solution.save(tmp_path / "solution.npz")
    loaded = Solution.load(tmp_path / "solution.npz")
    for name in ("output_error", "identity_output_error", "objective", "history"):
        assert getattr(loaded, name) == getattr(solution, name)


def test_history_falls_to_the_error():
    W, X = case(32, 64)
    solution = solve(W, activations=X)
    errors = [error for _, error in solution.history]
    assert errors[-1] == solution.output_error
    assert all(error >= solution.output_error for error in errors)


def test_methods_for_saliency_report_the_error():
    W, X = case()
    solution = solve(W, activations=X, method="ria")
    assert solution.objective == "saliency"
    expected = output_error(W, solution.apply(W), activations=X.T) ** 2
    assert solution.output_error == pytest.approx(expected)
    assert np.isnan(solve(W, method="ria").output_error)


def test_a_time_limit_is_kept():
    W, X = case(384, 384)
    solve(W, activations=X, stop=MaxRounds(1))
    for limit in (0.0, 0.3):
        assert solve(W, activations=X, time_limit=limit).seconds <= limit + 0.5


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"columns": 1}, "columns must be true or false, got 1"),
        ({"rounds": 0}, "rounds must be .*at least 1"),
        ({"sweeps": -1}, "sweeps must be .*at least 0"),
        ({"start_share": 0}, r"start_share must lie in \(0, 1\), got 0"),
        ({"mask_share": "much"}, r"mask_share must lie in \(0, 1\), got 'much'"),
    ],
)
def test_bad_options_are_named(options, complaint):
    W, X = case()
    with pytest.raises(ValueError, match=complaint):
        solve(W, activations=X, method="output", options=options)


def test_masks_that_are_only_descended_to_lose_no_less_than_annealed_ones():
    W, X = case(48, 96)
    start = solve(W, activations=X, method="identity")
    given = {"activations": X, "method": "output", "initial": start}
    descended, annealed = (
        solve(W, **given, options={"columns": False, "sweeps": sweeps}) for sweeps in (0, 100)
    )
    assert descended.output_error < start.output_error
    assert annealed.output_error < 0.99 * descended.output_error


@pytest.mark.parametrize("zero", ["weights", "gram"])
def test_nothing_to_lose(zero):
    W, X = case()
    W, H = (0 * W, X.T @ X) if zero == "weights" else (W, np.zeros((24, 24)))
    assert solve(W, gram=H).output_error == 0


def test_a_real_layer_generalises(minilm):
    W = minilm("layer.0.attention.self.query")
    random = np.random.default_rng(0)
    mixing = random.standard_normal((384, 384)) * np.geomspace(1, 0.01, 384)
    seen, unseen = (random.standard_normal((2000, 384)) @ mixing.T for _ in range(2))
    held_out = Gram.of_activations(unseen)
    S = gyroperm.wanda(W, np.linalg.norm(seen, axis=0))
    by_saliency = solve(W, saliency=S, stop=MaxRounds(20))
    by_error = solve(W, activations=seen, stop=MaxRounds(20))
    updated = solve(W, activations=seen, objective="compensated", stop=MaxRounds(20))
    errors = [held_out.relative_error(W, s.apply(W)) for s in (by_error, by_saliency)]
    assert errors[0] < 0.9 * errors[1]
    after = compensate(W, updated.mask, Gram.of_activations(seen))
    assert held_out.relative_error(W, after) < errors[0]
