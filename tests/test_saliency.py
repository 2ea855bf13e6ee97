"""Saliencies against loops over their formulas."""

from __future__ import annotations

import numpy as np
import pytest

from gyroperm import magnitude, obs, ria, solve, wanda


def example(dtype=np.float32):
    random = np.random.default_rng(0)
    return random.standard_normal((5, 7)).astype(dtype), random.random(7).astype(dtype)


def naive_ria(W, norms, power):
    result = np.zeros(W.shape)
    for r in range(W.shape[0]):
        for c in range(W.shape[1]):
            w = abs(float(W[r, c]))
            row, column = np.abs(W[r]).sum(dtype=float), np.abs(W[:, c]).sum(dtype=float)
            relative = (w / row if row else 0.0) + (w / column if column else 0.0)
            result[r, c] = relative * float(norms[c]) ** power
    return result


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_magnitude(dtype):
    W, _ = example(dtype)
    assert np.array_equal(magnitude(W), np.abs(W))
    assert magnitude(W).dtype == dtype


def test_wanda():
    W, norms = example()
    result = wanda(W, norms)
    for r in range(5):
        for c in range(7):
            assert result[r, c] == abs(W[r, c]) * norms[c]
    assert result.dtype == np.float32


@pytest.mark.parametrize("power", [0.5, 1.0, 0.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ria(power, dtype):
    W, norms = example(dtype)
    rel = 1e-5 if dtype is np.float32 else 1e-12
    assert ria(W, norms, power=power) == pytest.approx(naive_ria(W, norms, power), rel=rel)
    assert ria(W, norms, power=power).dtype == dtype
    if power == 0.5:
        assert np.array_equal(ria(W, norms), ria(W, norms, power=power))


def test_ria_of_rows_and_columns_of_zeros():
    W, norms = example()
    W[2] = 0
    W[:, 3] = 0
    result = ria(W, norms)
    assert np.isfinite(result).all()
    assert not result[2].any() and not result[:, 3].any()
    assert result == pytest.approx(naive_ria(W, norms, 0.5), rel=1e-5)


@pytest.mark.parametrize("helper", [wanda, ria])
def test_convolutions_take_one_norm_an_input_channel(helper):
    W, norms = example()
    conv = np.repeat(W[:, :, None], 3, axis=2)[..., None]
    result = helper(conv, norms)
    assert result.shape == conv.shape
    # Three equal positions: a third of each share, so of the relative importance.
    expected = helper(W, norms) / (3 if helper is ria else 1)
    for position in range(3):
        assert result[:, :, position, 0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("helper", [wanda, ria])
@pytest.mark.parametrize(
    ("weights", "norms", "message"),
    [
        (np.ones((3, 4)), np.ones(3), r"input_norms must have shape \(4,\)"),
        (np.ones((3, 4)), np.ones((4, 1)), r"input_norms must have shape \(4,\)"),
        (np.ones(4), np.ones(4), r"weights must be \(R, C\)"),
        (np.ones((3, 4)), np.array([1, -1, 1, 1.0]), r"input_norms must not be negative.*\(1,\)"),
        (np.ones((3, 4)), np.array([1, 1, np.nan, 1]), r"input_norms must be finite.*\(2,\)"),
        (np.array([[1.0, np.inf]]), np.ones(2), r"weights must be finite.*\(0, 1\)"),
    ],
)
def test_what_does_not_fit_is_refused(helper, weights, norms, message):
    with pytest.raises(ValueError, match=message):
        helper(weights, norms)


@pytest.mark.parametrize("helper", [wanda, ria])
def test_the_result_is_a_saliency(helper):
    W, norms = example()
    S = helper(W, norms)
    solution = solve(W, saliency=S, method="identity")
    assert solution.retained == pytest.approx(float(S[solution.mask].sum(dtype=float)))


def test_torch_tensors_are_taken():
    torch = pytest.importorskip("torch")
    W, norms = example()
    tensor = torch.from_numpy(W).bfloat16()
    host = tensor.float().numpy()
    assert np.array_equal(magnitude(tensor), np.abs(host))
    assert np.array_equal(wanda(tensor, torch.from_numpy(norms)), wanda(host, norms))
    assert np.array_equal(ria(tensor.requires_grad_(), torch.from_numpy(norms)), ria(host, norms))


def gram_of(tokens, channels=7, seed=1):
    X = np.random.default_rng(seed).standard_normal((channels, tokens))
    return X @ X.T


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_obs(dtype):
    W, _ = example(dtype)
    H = gram_of(20)
    damped = H + 0.01 * np.mean(np.diag(H)) * np.eye(7)
    expected = W.astype(float) ** 2 / np.diag(np.linalg.inv(damped))
    result = obs(W, H)
    assert result == pytest.approx(expected, rel=1e-5 if dtype is np.float32 else 1e-10)
    assert result.dtype == dtype
    assert obs(W, 1e30 * H) == pytest.approx(1e30 * expected, rel=1e-5)


def test_obs_is_the_error_that_the_best_other_weights_leave():
    """Hassibi and Stork's definition: remove one weight, solve the others anew."""
    W, H = example(np.float64)[0], gram_of(20)
    result = obs(W, H, damp=0)
    for c in range(7):
        rest = [i for i in range(7) if i != c]
        others = W[:, rest] + W[:, [c]] * (np.linalg.solve(H[np.ix_(rest, rest)], H[rest, c]))
        lost = W.copy()
        lost[:, c] = 0
        lost[:, rest] = others
        error = np.einsum("rc,cd,rd->r", W - lost, H, W - lost)
        assert result[:, c] == pytest.approx(error, rel=1e-9)


def test_obs_of_fewer_tokens_than_channels_and_silent_channels():
    W, _ = example()
    H = gram_of(3).astype(np.float32)
    H[5], H[:, 5] = 0, 0
    result = obs(W, H)
    assert np.isfinite(result).all() and (result >= 0).all()
    cost = (result / W**2).mean(axis=0)
    assert cost.argmin() == 5
    assert not obs(W, np.zeros((7, 7))).any()
    # What is computed from the channels reordered is the result reordered.
    order = np.random.default_rng(2).permutation(7)
    assert obs(W[:, order], H[np.ix_(order, order)]) == pytest.approx(result[:, order], rel=1e-4)


_UNEVEN, _NAN = gram_of(20), gram_of(20)
_UNEVEN[0, 1] += 1
_NAN[2, 2] = np.nan


@pytest.mark.parametrize(
    ("weights", "gram", "damp", "message"),
    [
        (np.ones((3, 7)), gram_of(20, 6), 0.01, r"gram must have shape \(7, 7\).*\(6, 6\)"),
        (np.ones((3, 7)), np.ones((7, 6)), 0.01, r"gram must be a square matrix.*\(7, 6\)"),
        (np.ones((3, 7, 1)), gram_of(20), 0.01, r"weights must be \(R, C\).*\(3, 7, 1\)"),
        (np.full((3, 7), np.inf), gram_of(20), 0.01, "weights must be finite"),
        (np.ones((3, 7)), _UNEVEN, 0.01, "gram must be symmetric"),
        (np.ones((3, 7)), _NAN, 0.01, r"gram must be finite.*\(2, 2\)"),
        (np.ones((3, 7)), gram_of(20) - 30 * np.eye(7), 0.5, "positive semidefinite"),
        (np.ones((3, 7)), -np.eye(7), 0.01, "positive semidefinite"),
        (np.ones((3, 7)), np.ones((7, 7)), 0.0, "no inverse with damp=0"),
        (np.ones((3, 7)), gram_of(20), -1, "damp must not be negative"),
        (np.ones((3, 7)), gram_of(20), np.nan, "damp must not be negative"),
    ],
)
def test_what_obs_refuses(weights, gram, damp, message):
    with pytest.raises(ValueError, match=message):
        obs(weights, gram, damp=damp)
