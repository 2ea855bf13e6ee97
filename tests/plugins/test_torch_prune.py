"""torch.nn.utils.prune: masks, what composes with them, and what is left when they go."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import gyroperm
from gyroperm import Pattern
from gyroperm.plugins.torch_prune import NMPermuted, from_solution, nm_permuted, solution_of

SEARCH = {"seed": 0, "stop": gyroperm.MaxRounds(50), "threads": 1}


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(32, 16)


def test_one_is_keep_and_the_kept_are_the_solution_s(linear):
    dense = linear.weight.detach().clone()
    assert nm_permuted(linear, **SEARCH) is linear
    solution = solution_of(linear)
    assert linear.weight_mask.dtype == dense.dtype
    np.testing.assert_array_equal(linear.weight_mask.numpy(), solution.mask.astype(np.float32))
    assert torch.equal(linear.weight, torch.where(linear.weight_mask == 1, dense, 0.0))
    assert float(linear.weight.detach().abs().sum()) == pytest.approx(solution.retained, rel=1e-6)
    assert solution.retained > solution.identity
    # The other way round would keep the small half.
    assert float(linear.weight.detach().abs().sum()) > float(dense.abs().sum()) / 2


def test_forward_and_gradients_go_through_the_mask(linear):
    nm_permuted(linear, **SEARCH)
    x = torch.randn(3, 32)
    expected = x @ (linear.weight_orig * linear.weight_mask).T + linear.bias
    out = linear(x)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert not linear.weight_orig.grad[linear.weight_mask == 0].any()


def test_remove_makes_it_final(linear):
    nm_permuted(linear, **SEARCH)
    mask = linear.weight_mask.clone()
    prune.remove(linear, "weight")
    assert set(dict(linear.named_parameters())) == {"weight", "bias"}
    assert not linear.weight[mask == 0].any()
    assert bool(linear.weight[mask == 1].all())
    with pytest.raises(ValueError, match="is not pruned"):
        solution_of(linear)


@pytest.mark.parametrize(
    "saliency", [None, lambda module, weight: torch.ones_like(weight)], ids=["magnitude", "ones"]
)
def test_what_was_pruned_before_stays_pruned_and_counts_nothing(linear, saliency):
    prune.l1_unstructured(linear, "weight", amount=0.3)
    earlier = linear.weight_mask.clone()
    nm_permuted(linear, saliency=saliency, **SEARCH)
    (hook,) = linear._forward_pre_hooks.values()
    assert isinstance(hook, prune.PruningContainer)
    assert isinstance(hook[1], NMPermuted)
    assert not linear.weight_mask[earlier == 0].any()
    solution = solution_of(linear)
    kept = torch.tensor(solution.mask)
    assert torch.equal(linear.weight_mask.bool(), kept & earlier.bool())
    if saliency is not None:
        # With equal weights, what counts is how many of the survivors are kept.
        assert solution.retained == float(linear.weight_mask.sum())
        assert solution.retained > solution.identity


def test_a_later_method_composes(linear):
    nm_permuted(linear, **SEARCH)
    first = linear.weight_mask.clone()
    prune.random_unstructured(linear, "weight", amount=0.25)
    assert int(linear.weight_mask.sum()) == round(0.75 * int(first.sum()))
    assert not linear.weight_mask[first == 0].any()
    assert solution_of(linear).pattern == Pattern.nm()


@pytest.mark.parametrize(
    "pattern", [Pattern.nm(1, 4), Pattern.hinm(vec_size=8), Pattern.vnm(8, 2, 8)], ids=str
)
def test_any_pattern(linear, pattern):
    nm_permuted(linear, pattern=pattern, **SEARCH)
    assert solution_of(linear).pattern == pattern
    assert float(linear.weight_mask.mean()) == pytest.approx(1 - pattern.sparsity)


def test_a_grouped_convolution_keeps_its_groups_apart():
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 8, 3, groups=2)
    nm_permuted(conv, **SEARCH)
    assert solution_of(conv).view.conv_groups == 2
    assert solution_of(conv).col_order.shape == (2, 8)
    assert conv(torch.randn(1, 16, 5, 5)).shape == (1, 8, 3, 3)


def test_a_saliency_decides(linear):
    wanted = torch.zeros(16, 32)
    wanted[:, ::2] = 1
    nm_permuted(linear, saliency=wanted, **SEARCH)
    assert torch.equal(linear.weight_mask, wanted)


def test_a_bias_is_pruned_by_nobody_and_a_failure_changes_nothing(linear):
    prune.l1_unstructured(linear, "weight", amount=0.3)
    state = copy.deepcopy(linear.state_dict())
    hooks = list(linear._forward_pre_hooks.values())
    with pytest.raises(ValueError, match=r"saliency must have the shape \(16, 32\)"):
        nm_permuted(linear, saliency=torch.ones(32, 16), **SEARCH)
    with pytest.raises(ValueError, match=r"finite"):
        nm_permuted(linear, saliency=lambda module, weight: weight * torch.nan, **SEARCH)
    with pytest.raises(ValueError, match=r"matrix"):
        nm_permuted(linear, "bias", **SEARCH)
    with pytest.raises(ValueError, match="ConvTranspose2d is \\(input, output\\)"):
        nm_permuted(nn.ConvTranspose2d(8, 8, 3), **SEARCH)
    other = gyroperm.solve(np.ones((4, 8)), method="identity")
    with pytest.raises(ValueError, match=r"shape \(16, 32\), the solution is of \[\(4, 8\)\]"):
        from_solution(linear, "weight", other)
    assert list(linear._forward_pre_hooks.values()) == hooks
    assert all(torch.equal(linear.state_dict()[name], value) for name, value in state.items())


def test_half_precision():
    torch.manual_seed(0)
    linear = nn.Linear(16, 8).bfloat16()
    nm_permuted(linear, **SEARCH)
    assert linear.weight.dtype == linear.weight_mask.dtype == torch.bfloat16
    assert float(linear.weight_mask.float().mean()) == 0.5
