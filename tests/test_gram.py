"""Gram matrices: what is refused, what is warned of, and what they measure."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from gyroperm import MaxRounds, compensate, obs, output_error, solve
from gyroperm.gram import Gram


def inputs(tokens=40, channels=8, seed=0):
    random = np.random.default_rng(seed)
    return random.standard_normal((tokens, channels)) @ random.standard_normal((channels, channels))


def spoilt(at, value):
    H = inputs().T @ inputs()
    H[at] = value
    return H


TAKERS = {
    "solve": lambda H: solve(np.ones((4, 8)), gram=H),
    "compensate": lambda H: compensate(np.ones((4, 8)), np.ones((4, 8), dtype=bool), H),
    "obs": lambda H: obs(np.ones((4, 8)), H),
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize(
    ("gram", "message"),
    [
        (spoilt((1, 2), 1e3), "gram must be symmetric"),
        (np.diag([1.0, -0.1] * 4), "gram must be positive semidefinite"),
        (-np.eye(8), "gram must be positive semidefinite"),
        (spoilt((3, 3), np.nan), r"gram must be finite, got nan at index \(3, 3\)"),
        (spoilt((3, 3), np.inf), r"gram must be finite, got inf at index \(3, 3\)"),
        (np.eye(7), r"gram must have shape \(8, 8\)"),
        (np.ones((8, 4)), "gram must be a square matrix"),
        (np.ones(8), "gram must be a square matrix"),
    ],
)
def test_what_is_no_gram_matrix_is_refused(taker, gram, message):
    with pytest.raises(ValueError, match=message):
        TAKERS[taker](gram)


def test_rounding_is_no_fault():
    X = inputs(tokens=400).astype(np.float32)
    H = (X.T @ X).astype(np.float32)
    H[0, 1] *= 1 + 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Gram.of(H)
    assert np.array_equal(found.matrix, found.matrix.T)
    assert np.ldexp(found.matrix, found.exponent) == pytest.approx(H, rel=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_too_few_tokens_are_warned_of_with_the_rank(dtype):
    X = inputs(tokens=5).astype(dtype)
    with pytest.warns(UserWarning, match="5 tokens of 8 input channels have rank 5"):
        assert Gram.of_activations(X).rank == 5
    with pytest.warns(UserWarning, match="gram has rank 5 where 8 input channels are heard"):
        assert Gram.of(X.T @ X).rank == 5
    with pytest.warns(UserWarning, match="rank 5"):
        solve(np.ones((4, 8)), activations=X, stop=MaxRounds(1))
    with pytest.warns(UserWarning, match="rank 5"):
        compensate(np.ones((4, 8)), np.ones((4, 8), dtype=bool), X.T @ X)


def test_a_silent_channel_is_no_missing_rank():
    X = inputs()
    X[:, 2] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Gram.of(X.T @ X).rank is None


def test_activations_and_their_gram_matrix_are_the_same():
    X = inputs()
    by_activations, by_gram = Gram.of_activations(X), Gram.of(X.T @ X / len(X))
    assert by_activations.exponent == by_gram.exponent
    assert by_activations.matrix == pytest.approx(by_gram.matrix, rel=1e-12)
    # Leading dimensions are tokens too.
    assert np.array_equal(Gram.of_activations(X.reshape(5, 8, 8)).matrix, by_activations.matrix)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gram": np.eye(8), "activations": np.ones((9, 8))}, "either gram or activations"),
        ({"activations": np.ones((9, 7))}, r"activations must have shape \(tokens, 8\)"),
        ({"activations": np.full((9, 8), np.nan)}, "activations must be finite"),
        ({"gram": np.eye(8), "damp": -1}, "damp must not be negative"),
        ({"objective": "error"}, "objective 'error' judges by the layer's output: give gram"),
        ({"method": "output"}, "method 'output' judges by the layer's output: give gram"),
        ({"gram": np.eye(8), "objective": "loss"}, "objective must be one of saliency, error"),
        ({"gram": np.eye(8), "objective": "error", "method": "ria"}, "'ria' judges by saliency"),
        ({"gram": np.eye(8), "objective": "saliency", "method": "output"}, "'output' judges by"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        solve(np.ones((4, 8)), **given)


def test_convolutions_need_the_im2col_view():
    W = np.random.default_rng(0).standard_normal((4, 2, 2, 2))
    with pytest.raises(ValueError, match="inputs of every row"):
        solve(W, gram=np.eye(2))
    solution = solve(W, gram=np.eye(8), vec_size=2, vec_ratio=0.5)
    assert solution.output_error < 1


def test_the_error_is_that_of_the_definition():
    random = np.random.default_rng(3)
    W, X = random.standard_normal((6, 8)), inputs()
    pruned = np.where(random.random(W.shape) < 0.5, W, 0)
    lost, total = X @ (W - pruned).T, X @ W.T
    found = Gram.of_activations(X).relative_error(W, pruned)
    assert found == pytest.approx((lost**2).sum() / (total**2).sum(), rel=1e-10)
    assert found == pytest.approx(output_error(W, pruned, activations=X.T) ** 2, rel=1e-10)
    assert Gram.of(np.zeros((8, 8))).relative_error(W, pruned) == 0
