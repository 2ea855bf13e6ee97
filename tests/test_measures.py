"""Measures against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import naive
import strategies
from gyroperm import efficacy, output_error, retained
from gyroperm.measures import top_sum, unstructured_by_layer, unstructured_by_row

matrices = st.tuples(st.integers(1, 8), st.integers(1, 8)).flatmap(
    lambda shape: strategies.saliencies(*shape)
)


@given(S=matrices, seed=st.integers(0, 1000))
def test_retained_is_the_sum_of_what_is_kept(S, seed):
    mask = np.random.default_rng(seed).random(S.shape) < 0.5
    assert retained(S, mask) == pytest.approx(naive.masked_sum(S, mask), rel=1e-13, abs=0.0)
    assert retained(S, np.zeros_like(mask)) == 0.0


def test_retained_sums_float32_in_float64():
    S = np.full((3, 1000), 1.0 + 2.0**-20, dtype=np.float32)
    S[0, 0] = 2.0**24
    exact = 2.0**24 + 2999 * (1.0 + 2.0**-20)
    assert retained(S, np.ones(S.shape, dtype=bool)) == pytest.approx(exact, rel=1e-15)


@given(S=matrices, data=st.data())
def test_unstructured_sums_are_the_largest(S, data):
    kept = data.draw(st.lists(st.integers(0, S.shape[1]), min_size=len(S), max_size=len(S)))
    by_row = unstructured_by_row(S, np.array(kept))
    by_layer = unstructured_by_layer(S, sum(kept))
    assert by_row == pytest.approx(naive.unstructured_by_row(S, kept), rel=1e-13, abs=0.0)
    expected = naive.unstructured_by_layer(S, sum(kept))
    assert by_layer == pytest.approx(expected, rel=1e-13, abs=0.0)
    assert by_row <= by_layer * (1 + 1e-13)


def test_one_count_serves_every_row():
    S = np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
    assert unstructured_by_row(S, 2) == 14.0
    assert unstructured_by_layer(S, 2) == 9.0


@pytest.mark.parametrize(("count", "total"), [(0, 0.0), (-1, 0.0), (2, 7.0), (3, 8.0), (9, 8.0)])
def test_top_sum(count, total):
    assert top_sum(np.array([4.0, 1.0, 3.0]), count) == total


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("values", ["scales", "ties", "zeros"])
def test_unstructured_sums_of_large_layers(monkeypatch, dtype, values):
    monkeypatch.setattr("gyroperm.measures._SELECTED", 100)
    random = np.random.default_rng(0)
    S = random.lognormal(0.0, 20.0, (31, 23)).astype(dtype)
    if values == "ties":
        S = random.integers(1, 4, (31, 23)).astype(dtype)
    elif values == "zeros":
        S[random.random(S.shape) < 0.7] = -0.0
    ordered = np.sort(S.reshape(-1).astype(np.float64))[::-1]
    for kept in (-1, 0, 1, 2, 200, 350, 712, 713, 800):
        found = unstructured_by_layer(S, kept)
        assert found == pytest.approx(math.fsum(ordered[: max(kept, 0)]), rel=1e-14)


def test_efficacy():
    assert efficacy(7.0, 6.0, 10.0) == 25.0
    assert efficacy(6.0, 6.0, 10.0) == 0.0
    assert efficacy(10.0, 6.0, 10.0) == 100.0
    assert math.isnan(efficacy(6.0, 6.0, 6.0))
    assert math.isnan(efficacy(6.0, 6.0, 5.0))


def _error(W, P, X):
    return np.linalg.norm((W - P) @ X) / np.linalg.norm(W @ X)


def test_output_error_from_activations_and_from_their_gram_matrix():
    random = np.random.default_rng(0)
    W, X = random.standard_normal((6, 8)), random.standard_normal((8, 30))
    P = np.where(random.random(W.shape) < 0.5, W, 0)
    expected = _error(W, P, X)
    assert output_error(W, P, activations=X) == pytest.approx(expected, rel=1e-12)
    assert output_error(W, P, gram=X @ X.T) == pytest.approx(expected, rel=1e-12)
    assert output_error(W, P, gram=7 * X @ X.T) == pytest.approx(expected, rel=1e-12)
    single = output_error(W.astype(np.float32), P.astype(np.float32), activations=X)
    assert single == pytest.approx(expected, rel=1e-5)


def test_output_error_at_its_ends():
    W, X = np.ones((2, 3)), np.ones((3, 4))
    assert output_error(W, W, activations=X) == 0.0
    assert output_error(W, 0 * W, activations=X) == pytest.approx(1.0)
    assert output_error(0 * W, 0 * W, activations=X) == 0.0
    assert output_error(0 * W, W, activations=X) == math.inf


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of activations and gram"),
        ({"activations": np.ones((3, 4)), "gram": np.eye(3)}, "exactly one"),
        ({"activations": np.ones((4, 3))}, r"activations must have shape \(3, tokens\)"),
        ({"activations": np.ones(3)}, r"activations must have shape \(3, tokens\)"),
        ({"gram": np.eye(4)}, r"gram must have shape \(3, 3\)"),
    ],
)
def test_output_error_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        output_error(np.ones((2, 3)), np.ones((2, 3)), **given)


def test_output_error_refuses_weights_of_other_shapes():
    # (1, 3) would broadcast.
    with pytest.raises(ValueError, match="shape"):
        output_error(np.ones((2, 3)), np.ones((1, 3)), gram=np.eye(3))
