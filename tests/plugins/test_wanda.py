"""The Wanda recipe: True = prune, and no less of the metric stays than by the script's own loop."""

import numpy as np
import pytest
import torch

import gyroperm
from gyroperm import Pattern
from gyroperm.plugins.wanda import prune_mask

SEARCH = {"seed": 0, "stop": gyroperm.MaxRounds(50), "threads": 1}


def script_mask(metric, prune_n, prune_m):
    """The smallest prune_n of every prune_m consecutive columns, as the scripts take them."""
    groups = metric.reshape(metric.shape[0], -1, prune_m)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    return mask.scatter_(2, groups.argsort(dim=2)[..., :prune_n], True).reshape(metric.shape)


@pytest.fixture
def metric():
    torch.manual_seed(0)
    return torch.randn(24, 32).abs() * torch.rand(32).add(0.1)


@pytest.mark.parametrize(("prune_n", "prune_m"), [(2, 4), (1, 4), (3, 4), (4, 8)])
def test_true_is_prune(metric, prune_n, prune_m):
    before = metric.clone()
    mask = prune_mask(metric, prune_n, prune_m, **SEARCH)
    assert mask.dtype == torch.bool and mask.shape == metric.shape
    assert torch.equal(mask.sum(1), torch.full((24,), 32 * prune_n // prune_m))
    assert torch.equal(metric, before)
    # What is pruned is worth less, a weight, than what stays: the other way round it is more.
    assert metric[mask].mean() < metric[~mask].mean()
    assert metric[mask].sum() < metric[script_mask(metric, prune_n, prune_m)].sum()


def test_the_mask_is_n_of_m_in_the_order_that_was_found(metric):
    mask = prune_mask(metric, 1, 4, **SEARCH)
    order = gyroperm.solve(metric, n=3, m=4, **SEARCH).col_order
    pruned = mask[:, torch.from_numpy(order.astype(np.int64))].reshape(24, 8, 4).sum(2)
    assert (pruned == 1).all()


def test_without_a_search_it_is_the_script_s_own_mask(metric):
    mask = prune_mask(metric, method="identity")
    assert torch.equal(mask, script_mask(metric, 2, 4))


def test_other_patterns_and_half_precision(metric):
    pattern = Pattern.hinm(vec_ratio=0.5, vec_size=8)
    mask = prune_mask(metric.half(), pattern=pattern, **SEARCH)
    assert float(mask.float().mean()) == pytest.approx(0.75)


def test_unstructured_is_refused(metric):
    with pytest.raises(ValueError, match="prune_n=0, prune_m=0"):
        prune_mask(metric, 0, 0)
