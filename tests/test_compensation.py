"""Compensation against least squares, row by row."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gyroperm import compensate
from gyroperm.gram import Gram


def case(rows=6, channels=12, tokens=60, seed=0, share=0.5):
    random = np.random.default_rng(seed)
    X = random.standard_normal((tokens, channels)) @ random.standard_normal((channels, channels))
    W = random.standard_normal((rows, channels))
    return W, random.random(W.shape) < share, X


def least_squares(W, mask, X, damp):
    """Each row by lstsq on the tokens; damping is a token for each channel."""
    scale = np.sqrt(damp * np.mean(np.sum(X**2, axis=0)))
    A = np.vstack([X, scale * np.eye(X.shape[1])])
    result = np.zeros_like(W)
    for r, kept in enumerate(mask):
        if kept.any():
            result[r, kept] = np.linalg.lstsq(A[:, kept], A @ W[r], rcond=None)[0]
    return result


@pytest.mark.parametrize("damp", [0.0, 0.01, 1.0])
def test_exact_is_least_squares_row_by_row(damp):
    W, mask, X = case()
    mask[0], mask[1] = False, True
    mask[3] = mask[2]
    found = compensate(W, mask, X.T @ X, damp=damp)
    assert found == pytest.approx(least_squares(W, mask, X, damp), rel=1e-6, abs=1e-8)
    assert not found[~mask].any()


@given(
    st.integers(0, 10_000),
    st.integers(1, 30),
    st.sampled_from(["exact", "sequential"]),
    st.sampled_from([0.0, 0.01, 100.0]),
    st.sampled_from([np.float32, np.float64]),
)
def test_no_row_ever_loses_more_than_by_the_bare_mask(seed, tokens, update, damp, dtype):
    W, mask, X = case(tokens=tokens, seed=seed)
    X[:, 3] = 0
    X[:, 5] = X[:, 6]
    W = W.astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        H = Gram.of(X.T @ X)
        found = compensate(W, mask, X.T @ X, damp=damp, update=update)
    assert found.dtype == dtype
    assert not found[~mask].any()
    bare = np.where(mask, W, 0)
    after, before = H.energies(W - found.astype(float)), H.energies(W - bare.astype(float))
    assert (after <= before * (1 + 1e-9)).all()


def test_exact_is_never_beaten_by_sequential():
    W, mask, X = case(rows=20)
    H = Gram.of_activations(X)
    errors = [
        H.relative_error(W, compensate(W, mask, H, damp=0.0, update=update))
        for update in ("exact", "sequential")
    ]
    assert errors[0] <= errors[1] < H.relative_error(W, np.where(mask, W, 0))


def test_many_columns_and_any_number_of_threads():
    W, mask, X = case(rows=9, channels=203, tokens=900)
    one, two = (compensate(W, mask, X.T @ X, threads=threads) for threads in (1, 2))
    assert np.array_equal(one, two)
    assert one == pytest.approx(least_squares(W, mask, X, 0.01), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("update", ["exact", "sequential"])
def test_powers_of_two_change_nothing(update):
    W, mask, X = case()
    H = X.T @ X
    found = compensate(W, mask, H, update=update)
    assert np.array_equal(compensate(W, mask, 2.0**40 * H, update=update), found)
    assert np.array_equal(compensate(2.0**-30 * W, mask, H, update=update), 2.0**-30 * found)


def test_kinds_and_shapes_stay():
    torch = pytest.importorskip("torch")
    W, mask, X = case()
    H = X.T @ X
    found = compensate(W, mask, H)
    tensor = compensate(torch.from_numpy(W).bfloat16(), torch.from_numpy(mask), torch.from_numpy(H))
    assert tensor.dtype == torch.bfloat16
    assert tensor.float().numpy() == pytest.approx(found, abs=0.1)
    conv = compensate(W.reshape(6, 3, 2, 2), mask.reshape(6, 3, 2, 2), H)
    assert np.array_equal(conv.reshape(6, 12), found)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask": np.ones((6, 12))}, "mask must be boolean"),
        ({"mask": np.ones((6, 11), dtype=bool)}, r"of shape \(6, 12\)"),
        ({"weights": np.full((6, 12), np.nan)}, "weights must be finite"),
        ({"weights": np.ones(12)}, r"weights must be \(R, C\)"),
        ({"update": "quick"}, "update must be one of exact, sequential"),
        ({"damp": np.nan}, "damp must not be negative"),
    ],
)
def test_what_does_not_fit_is_refused(given, message):
    W, mask, X = case()
    with pytest.raises(ValueError, match=message):
        compensate(**{"weights": W, "mask": mask, "gram": X.T @ X, **given})
