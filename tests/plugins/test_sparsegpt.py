"""The SparseGPT recipe against the definition of its update, exact least squares and bare masks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import gyroperm
from gyroperm import MaxRounds, Pattern
from gyroperm.plugins import sparsegpt

SEARCH = {"seed": 0, "stop": MaxRounds(50), "threads": 1}


def problem(rows=12, columns=16, tokens=64, seed=0, dtype=torch.float64):
    """Weights, and the Gram matrix of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    inputs = (mixing + 2 * torch.eye(columns)) @ torch.randn(
        columns, tokens, generator=generator, dtype=torch.float64
    )
    return weights.to(dtype), (inputs @ inputs.T).to(dtype)


def losses(weights, pruned, gram):
    """Each row's squared output error."""
    error = (weights - pruned).double()
    return ((error @ gram.double()) * error).sum(1)


def least_squares(weights, gram, mask):
    """The best kept weights there are, row by row."""
    best = torch.zeros_like(weights)
    for row, kept in enumerate(mask):
        inner, cross = gram[kept][:, kept], gram[kept] @ weights[row]
        best[row, kept] = torch.linalg.lstsq(inner, cross[:, None], driver="gelsd").solution[:, 0]
    return best


def damped(gram, damp=0.01):
    return gram + damp * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)


def by_definition(weights, gram, chosen):
    """Optimal brain surgeon with a growing set of columns whose turn is over, inverted each time.

    ``chosen(column, weights, cost)`` gives a column's mask from the weights as they then are and
    what removing one from each of the columns to come costs, or None.
    """
    updated, mask = weights.clone(), torch.ones_like(weights, dtype=torch.bool)
    columns = weights.shape[1]
    for j in range(columns):
        inverse = torch.linalg.inv(gram[j:, j:])
        # Costs of columns further on are of those left when their own turn comes.
        cost = [float(1 / torch.linalg.inv(gram[i:, i:])[0, 0]) for i in range(columns)]
        found = chosen(j, updated, torch.tensor(cost, dtype=weights.dtype))
        if found is not None:
            mask[:, j : j + found.shape[1]] = found
        lost = torch.where(mask[:, j], 0.0, updated[:, j])
        updated[:, j:] -= lost[:, None] * inverse[0] / inverse[0, 0]
    return updated * mask, mask


def nm_mask(scores, n, m):
    groups = scores.reshape(len(scores), -1, m)
    kept = torch.zeros_like(groups, dtype=torch.bool)
    return kept.scatter_(2, groups.topk(n, dim=2).indices, True).reshape(scores.shape)


# --- the update


@pytest.mark.parametrize("block_size", [1, 3, 8, 128])
def test_compensate_is_the_sequential_update(block_size):
    weights, gram = problem()
    mask = nm_mask(weights.abs(), 2, 4)
    expected, _ = by_definition(weights, damped(gram), lambda j, W, cost: mask[:, j, None])
    updated = sparsegpt.compensate(weights, gram, mask, block_size=block_size)
    better = losses(weights, expected, gram) <= losses(weights, weights * mask, gram)
    assert better.sum() >= 9
    torch.testing.assert_close(updated[better], expected[better], rtol=1e-9, atol=1e-9)
    assert torch.equal(updated[~better], (weights * mask)[~better])


@pytest.mark.parametrize("block_size", [1, 4, 6, 128])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
def test_prune_nm_chooses_from_the_updated_weights(n, m, block_size):
    weights, gram = problem()

    def chosen(j, W, cost):
        return None if j % m else nm_mask(W[:, j : j + m] ** 2 * cost[j : j + m], n, m)

    expected, mask = by_definition(weights, damped(gram), chosen)
    found = sparsegpt.prune_nm(weights, gram, n, m, block_size=block_size)
    assert torch.equal(found.mask, mask)
    better = losses(weights, expected, gram) <= losses(weights, weights * mask, gram)
    torch.testing.assert_close(found.weights[better], expected[better], rtol=1e-9, atol=1e-9)


def test_groups_are_pruned_as_if_the_columns_lay_so():
    weights, gram = problem()
    order = torch.from_numpy(np.random.default_rng(0).permutation(16))
    there = sparsegpt.prune_nm(weights[:, order], gram[order][:, order])
    here = sparsegpt.prune_nm(weights, gram, groups=order.reshape(4, 4))
    assert torch.equal(here.mask[:, order], there.mask)
    torch.testing.assert_close(here.weights[:, order], there.weights)


@given(st.integers(1, 6), st.integers(2, 18), st.integers(1, 40), st.integers(0, 99), st.booleans())
def test_between_least_squares_and_the_bare_mask(rows, columns, tokens, seed, choose):
    weights, gram = problem(rows, columns, tokens, seed)
    if choose:
        found = sparsegpt.prune_nm(weights, gram)
        updated, mask = found.weights, found.mask
    else:
        mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.5
        updated = sparsegpt.compensate(weights, gram, mask)
    lost = losses(weights, updated, gram)
    slack = 1e-9 * float(losses(weights, torch.zeros_like(weights), gram).max())
    assert not updated[~mask].any()
    assert (lost <= losses(weights, weights * mask, gram) + slack).all()
    assert (lost >= losses(weights, least_squares(weights, gram, mask), gram) - slack).all()


@pytest.mark.parametrize("columns", [5, 7, 18])
def test_columns_that_m_does_not_divide(columns):
    weights, gram = problem(columns=columns)
    found = sparsegpt.prune(weights, gram, **SEARCH)
    for group in found.solution.groups[0]:
        real = group[group >= 0]
        assert (found.mask[:, real].sum(1) == min(2, len(real))).all()
    last = columns // 4 * 4
    assert (sparsegpt.prune_nm(weights, gram).mask[:, last:].sum(1) == min(2, columns % 4)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tokens", [1, 3, 15])
def test_a_gram_matrix_of_less_than_full_rank(tokens, dtype):
    weights, gram = problem(tokens=tokens, dtype=dtype)
    gram[5], gram[:, 5] = 0.0, 0.0
    for damp in (0.01, 0.0):
        found = sparsegpt.prune_nm(weights, gram, damp=damp)
        assert found.weights.dtype == dtype
        assert torch.isfinite(found.weights).all()
        assert (found.mask.reshape(12, 4, 4).sum(2) == 2).all()
        assert not found.mask[:, 5].any()
        bare = losses(weights, weights * found.mask, gram)
        assert (losses(weights, found.weights, gram) <= bare * (1 + 1e-4)).all()


def test_silent_inputs_altogether():
    weights, gram = problem()
    found = sparsegpt.prune_nm(weights, torch.zeros_like(gram))
    assert torch.equal(found.weights, weights * found.mask)


def test_a_silent_column_that_is_kept_keeps_its_weights():
    weights, gram = problem()
    gram[5], gram[:, 5] = 0.0, 0.0
    mask = nm_mask(weights.abs(), 2, 4)
    mask[:, 5] = True
    updated = sparsegpt.compensate(weights, gram, mask)
    assert torch.equal(updated[:, 5], weights[:, 5])
    assert not torch.equal(updated, weights * mask)


def test_half_precision_keeps_its_dtype():
    weights, gram = problem()
    found = sparsegpt.prune(weights.bfloat16(), gram.float(), **SEARCH)
    assert found.weights.dtype == torch.bfloat16
    assert not found.weights[~found.mask].any()
    exact = sparsegpt.prune_nm(
        weights.bfloat16().double(), gram, groups=found.solution.groups[0]
    ).weights
    torch.testing.assert_close(found.weights.double(), exact, rtol=0.05, atol=0.05)


# --- the search


def test_patterns_with_vectors_take_the_search_s_mask():
    weights, gram = problem(rows=16, columns=32, tokens=200)
    found = sparsegpt.prune(weights, gram, Pattern.hinm(vec_ratio=0.5, vec_size=8), **SEARCH)
    assert found.solution.retained > found.solution.identity
    np.testing.assert_array_equal(found.mask.numpy(), found.solution.mask)
    bare = losses(weights, weights * found.mask, gram)
    assert losses(weights, found.weights, gram).sum() < 0.9 * bare.sum()


@pytest.mark.parametrize("name", ["layer.0.attention.self.query", "layer.2.attention.output.dense"])
def test_a_permutation_lowers_the_error_of_real_weights(minilm, name):
    weights = torch.from_numpy(minilm(name))
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(384, 384, generator=generator) / 384**0.5 + torch.eye(384)
    inputs = mixing @ torch.randn(384, 2048, generator=generator)
    gram = inputs @ inputs.T
    without = sparsegpt.prune_nm(weights, gram)
    found = sparsegpt.prune(weights, gram, seed=0, stop=MaxRounds(200), threads=1)

    def error(pruned):
        return gyroperm.output_error(weights, pruned, gram=gram)

    bare = error(weights * without.mask)
    assert error(found.weights) < 0.98 * error(without.weights) < 0.8 * bare
    given = torch.tensor(found.solution.mask)
    updated = sparsegpt.compensate(weights, gram, given)
    assert error(found.weights) < error(updated) < error(weights * given)


# --- in a script


class Gathering:
    """What a SparseGPT script has gathered of a layer: the layer, and H."""

    def __init__(self, layer, inputs):
        self.layer = layer
        self.H = 2 / len(inputs) * inputs.T @ inputs


def test_fasterprune_replaces_the_layer_s_weight():
    permuted, unpermuted = 0.0, 0.0
    for seed in range(8):
        torch.manual_seed(seed)
        layer = nn.Linear(32, 16)
        inputs = torch.randn(100, 32) @ torch.randn(32, 32)
        dense = layer(inputs).detach()
        weight = layer.weight.detach().clone()
        gpt = Gathering(layer, inputs)
        found = sparsegpt.fasterprune(gpt, 0.5, prunen=2, prunem=4, **SEARCH)
        assert isinstance(layer.weight, nn.Parameter)
        assert torch.equal(layer.weight.detach(), found.weights)
        assert torch.equal(layer.weight != 0, found.mask)
        own = sparsegpt.prune_nm(weight, gpt.H).weights
        permuted += float((layer(inputs) - dense).norm() ** 2)
        unpermuted += float(((own - weight) @ inputs.T).norm() ** 2)
    # One layer may lose by a permutation, which is chosen before the update is known.
    assert permuted < unpermuted


def test_fasterprune_prunes_prunen_of_prunem():
    torch.manual_seed(0)
    gpt = Gathering(nn.Linear(32, 16), torch.randn(100, 32))
    found = sparsegpt.fasterprune(gpt, 0.25, prunen=1, prunem=4, **SEARCH)
    assert (found.mask.sum(1) == 24).all()


def test_fasterprune_of_transposed_and_convolution_weights():
    torch.manual_seed(0)
    inputs = torch.randn(100, 36)
    conv = nn.Conv2d(4, 8, 3)
    shape = conv.weight.shape
    found = sparsegpt.fasterprune(Gathering(conv, inputs), **SEARCH)
    assert conv.weight.shape == shape
    assert torch.equal(conv.weight.detach().flatten(1), found.weights)

    Conv1D = type("Conv1D", (SimpleNamespace,), {})
    weight = torch.randn(36, 8)
    transposed = Conv1D(weight=nn.Parameter(weight.clone()))
    found = sparsegpt.fasterprune(Gathering(transposed, inputs), **SEARCH)
    assert found.weights.shape == (8, 36)
    assert torch.equal(transposed.weight.detach(), found.weights.t())


def test_fasterprune_refuses_unstructured_sparsity():
    gpt = Gathering(nn.Linear(8, 8), torch.randn(10, 8))
    with pytest.raises(ValueError, match=r"prunen=0, prunem=0, sparsity=0\.5"):
        sparsegpt.fasterprune(gpt, 0.5, prunen=0, prunem=0)
    with pytest.raises(ValueError, match=r"sparsity=0\.6"):
        sparsegpt.fasterprune(gpt, 0.6, prunen=2, prunem=4)


# --- bad input


def test_bad_arguments_are_named():
    weights, gram = problem()
    mask = weights > 0
    with pytest.raises(ValueError, match=r"gram must have shape \(16, 16\)"):
        sparsegpt.prune_nm(weights, gram[:8, :8])
    with pytest.raises(ValueError, match="mask must be boolean, True = keep"):
        sparsegpt.compensate(weights, gram, mask.float())
    with pytest.raises(ValueError, match="hold each of the 16 columns once"):
        sparsegpt.prune_nm(weights, gram, groups=torch.zeros(4, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="gram must be finite"):
        sparsegpt.compensate(weights, gram / 0, mask)
    with pytest.raises(ValueError, match=r"weights must be \(R, C\)"):
        sparsegpt.prune_nm(weights[0], gram)
