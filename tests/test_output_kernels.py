"""Kernels of the search for the least output error, against definitions."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from gyroperm import Pattern
from gyroperm.solvers.cooling import gumbel_noise
from gyroperm.solvers.kernels.output import choose_masks, include, pruning_costs
from gyroperm.solvers.output import _blocks, _in_tiles, _prunable

NOISE = gumbel_noise()


def layer(rows, channels, seed=0):
    random = np.random.default_rng(seed)
    X = random.standard_normal((3 * channels, 3)) @ random.standard_normal((3, channels))
    X += 0.3 * random.standard_normal(X.shape)
    return random.standard_normal((rows, channels)), X.T @ X / len(X)


def grouped(channels, m, n, rows, virtual=0, seed=0):
    """Random groups, the last with virtual columns, and masks that prune the first of each."""
    random = np.random.default_rng(seed)
    order = np.concatenate([random.permutation(channels), np.full(virtual, -1)])
    groups = order.reshape(-1, m).astype(np.int32)
    pruned = np.zeros((rows, channels), dtype=np.bool_)
    for group in groups:
        real = group[group >= 0]
        pruned[:, real[: max(0, len(real) - n)]] = True
    return groups, pruned


def draw(W, H, groups, pruned, n, heat, sweeps, state=0):
    G = np.where(pruned, W, 0.0) @ H
    heats = np.full(len(W), float(heat))
    blocks = _blocks(H, groups)
    lost = _prunable(n, groups.shape[1])
    states = np.array([state], dtype=np.uint64)
    choose_masks(W, G, H, pruned, groups, blocks, lost, sweeps, heats, NOISE, states)
    return G


def error(w, H, pruned):
    lost = np.where(pruned, w, 0.0)
    return float(lost @ H @ lost)


def neighbours(pruned, group, n, exchange):
    """The masks that differ in one group, or by an exchange within it."""
    real = [int(c) for c in group if c >= 0]
    for kept in combinations(real, min(n, len(real))):
        other = pruned.copy()
        other[real] = True
        other[list(kept)] = False
        if not exchange or np.count_nonzero(other != pruned) == 2:
            yield other


@pytest.mark.parametrize(("n", "m", "virtual"), [(2, 4, 0), (1, 4, 2), (3, 5, 1), (8, 16, 3)])
@pytest.mark.parametrize("heat", [0.0, 0.5])
def test_masks_settle_where_no_group_has_a_better_one(n, m, virtual, heat):
    W, H = layer(6, 4 * m - virtual)
    groups, pruned = grouped(4 * m - virtual, m, n, 6, virtual)
    before = [error(w, H, p) for w, p in zip(W, pruned, strict=True)]
    if heat:
        start = pruned.copy()
        G = draw(W, H, groups, pruned, n, heat, 3)
        assert not np.array_equal(pruned, start)
        assert pytest.approx(np.where(pruned, W, 0.0) @ H) == G
    G = draw(W, H, groups, pruned, n, 0.0, 50)
    assert pytest.approx(np.where(pruned, W, 0.0) @ H) == G
    exchange = not len(_prunable(n, m))
    for w, p, once in zip(W, pruned, before, strict=True):
        now = error(w, H, p)
        assert heat or now <= once
        for group in groups:
            real = group[group >= 0]
            assert np.count_nonzero(~p[real]) == min(n, len(real))
            for other in neighbours(p, group, n, exchange):
                assert error(w, H, other) >= now * (1 - 1e-9)


def test_draws_are_of_the_boltzmann_distribution():
    W, H = layer(1, 4, seed=3)
    groups, pruned = grouped(4, 4, 2, 1)
    masks = list(neighbours(pruned[0], groups[0], 2, exchange=False))
    errors = np.array([error(W[0], H, mask) for mask in masks])
    heat = errors.max() - errors.min()
    expected = np.exp(-errors / heat) / np.exp(-errors / heat).sum()
    draws = 4000
    W, pruned = np.repeat(W, draws, axis=0), np.repeat(pruned, draws, axis=0)
    draw(W, H, groups, pruned, 2, heat, 1)
    shares = [np.mean((pruned == mask).all(axis=1)) for mask in masks]
    # Four standard deviations of a share, and what the noise's 4096 values are off by.
    assert shares == pytest.approx(expected, abs=4 * 0.5 / np.sqrt(draws))


@pytest.mark.parametrize("channels", [24, 300])
def test_averages_and_their_products_follow_masks(channels):
    W, H = layer(5, channels)
    W = W.astype(np.float32)
    random = np.random.default_rng(1)
    average, products, settled = (np.zeros_like(W) for _ in range(3))
    before = np.zeros(W.shape, dtype=np.bool_)
    masks = []
    for t in range(4):
        masks.append(random.random(W.shape) < 0.5)
        share = np.float32(1 / (t + 1))
        include(W, _in_tiles(H), before, masks[-1], share, average, settled, products)
        before = masks[-1]
        assert average == pytest.approx(np.mean(masks, axis=0), abs=1e-6)
        scale = np.abs(W).max() * np.abs(H).sum(axis=0).max()
        assert settled == pytest.approx((W * before) @ H, abs=1e-5 * scale)
        assert products == pytest.approx((W * average) @ H, abs=1e-5 * scale)


def test_pruning_costs_are_differences_of_errors():
    W, H = layer(4, 12)
    pruned = np.random.default_rng(2).random(W.shape) < 0.5
    costs = np.empty(W.shape, dtype=np.float32)
    products = ((W * pruned) @ H).astype(np.float32)
    own = np.diagonal(H).astype(np.float32)
    pruning_costs(W.astype(np.float32), own, pruned.astype(np.float32), products, costs)
    for w, p, cost in zip(W, pruned, costs, strict=True):
        expected = []
        for c in range(len(w)):
            without, within = p.copy(), p.copy()
            without[c], within[c] = False, True
            expected.append(error(w, H, within) - error(w, H, without))
        assert cost == pytest.approx(np.array(expected) - min(expected), abs=1e-4)
        assert cost.min() == 0


def test_a_surrogate_is_semidefinite_and_near_the_error_after_compensation():
    from gyroperm.gram import Gram
    from gyroperm.output import LayerOutput
    from gyroperm.problem import Problem
    from gyroperm.solvers.search import Search
    from gyroperm.solvers.surrogate import surrogate_gram
    from gyroperm.stopping import TimeLimit

    W, H = layer(32, 48)
    output = LayerOutput(W, Gram.of(H), objective="compensated")
    problem = Problem(output.saliency, Pattern.nm(), output=output)
    _, pruned = grouped(48, 4, 2, 32)
    M = surrogate_gram(problem, ~pruned, Search(problem))
    assert np.linalg.eigvalsh(M).min() > -1e-12
    lost = np.where(pruned, W, 0.0)
    guess, bare = (np.einsum("rc,rc->r", lost @ A, lost).sum() for A in (M, output.damped_gram))
    updated = output.gram.energies(W - output.pruned(~pruned)).sum()
    assert abs(guess - updated) < 0.5 * abs(bare - updated)
    hurried = Search(problem, stop=TimeLimit(0.0))
    assert np.array_equal(surrogate_gram(problem, ~pruned, hurried), output.damped_gram)
