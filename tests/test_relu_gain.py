"""The relu product and the noise on it, against plain NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gyroperm.solvers.cooling import gumbel_noise
from gyroperm.solvers.kernels.gain import relu_gain, relu_gain_by_terms
from gyroperm.solvers.kernels.grouping import add_noise


def product(kernel, X, Q):
    gain = np.full((len(Q), len(X)), np.nan, dtype=np.float32)
    kernel(X, Q, gain)
    return gain


def exact(X, Q):
    return np.maximum(X[None].astype(np.float64) - Q[:, None], 0.0).sum(axis=2)


# Few and many columns and groups, rows that eight does and does not divide, none at all.
@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([1, 5, 63, 64, 97, 256, 300]),
    st.sampled_from([1, 2, 7, 8, 9, 33]),
    st.sampled_from([0, 1, 7, 8, 20, 64, 517]),
    st.integers(0, 2**32 - 1),
)
def test_products_are_those_of_numpy(columns, groups, rows, seed):
    rng = np.random.default_rng(seed)
    X = rng.random((columns, rows), dtype=np.float32)
    Q = rng.random((groups, rows), dtype=np.float32)
    sums = X.sum(axis=1) + Q.sum(axis=1)[:, None]
    assert (abs(product(relu_gain, X, Q) - exact(X, Q)) <= 1e-6 * (1 + sums)).all()
    by_terms = product(relu_gain_by_terms, X, Q)
    ulps = 1.001 * 2.0**-24 * (min(rows, 512) + rows // 512 + 1)
    assert (abs(by_terms - exact(X, Q)) <= ulps * exact(X, Q)).all()


def test_what_no_column_exceeds_gains_exactly_nothing():
    rng = np.random.default_rng(0)
    X = rng.random((128, 40), dtype=np.float32)
    Q = np.broadcast_to(X.max(axis=0), (16, 40)).copy()
    assert not product(relu_gain, X, Q).any()


@pytest.mark.parametrize("power", [-40, -3, 5, 60])
def test_scaling_by_a_power_of_two_scales_the_product_exactly(power):
    rng = np.random.default_rng(1)
    X = rng.random((70, 37), dtype=np.float32)
    Q = rng.random((12, 37), dtype=np.float32)
    factor = np.float32(2.0**power)
    assert np.array_equal(
        product(relu_gain, factor * X, factor * Q), factor * product(relu_gain, X, Q)
    )


def test_noise_is_drawn_for_every_gain_in_its_items_spread():
    state = np.array([7], dtype=np.uint64)
    gain = np.zeros((400, 150), dtype=np.float32)
    spread = np.linspace(0.5, 2.0, 150, dtype=np.float32)
    add_noise(gain, spread, 0.25, gumbel_noise(), state)
    drawn = gain / (0.25 * spread)
    assert drawn.mean() == pytest.approx(0.0, abs=0.02)
    assert drawn.var() == pytest.approx(np.pi**2 / 6, rel=0.05)
    # No two slots, and no two items, have noise in common.
    rows = np.corrcoef(drawn)[np.triu_indices(400, 1)]
    columns = np.corrcoef(drawn.T)[np.triu_indices(150, 1)]
    assert abs(columns).max() < 0.3 and np.abs(rows).mean() < 0.08
