"""What apex's ASP asks of its search and of a mask calculator; ASP itself is tested in apex/."""

import itertools
import sys

import numpy as np
import pytest
import torch

import gyroperm
from gyroperm import Pattern
from gyroperm.plugins import apex_asp

SEARCH = {"seed": 0, "stop": gyroperm.MaxRounds(50), "threads": 1}


def best_by_enumeration(matrix):
    """The best 2 of each 4 consecutive weights, tried one by one."""
    total = 0.0
    for row in np.abs(matrix):
        for group in row.reshape(-1, 4):
            total += max(sum(pair) for pair in itertools.combinations(group.tolist(), 2))
    return total


@pytest.fixture
def matrix():
    return torch.randn(12, 32, generator=torch.Generator().manual_seed(0))


def test_the_search_returns_every_column_once_as_plain_integers(matrix):
    before = matrix.clone()
    found = apex_asp.accelerated_search_for_good_permutation(matrix, **SEARCH)
    assert isinstance(found, list) and all(type(column) is int for column in found)
    assert sorted(found) == list(range(32))
    assert torch.equal(matrix, before)


def test_the_order_keeps_what_the_solution_says(matrix):
    found = apex_asp.accelerated_search_for_good_permutation(matrix, options=None, **SEARCH)
    solution = gyroperm.solve(matrix, **SEARCH)
    kept = apex_asp.sum_after_2_to_4(matrix.numpy()[:, found])
    assert kept == pytest.approx(solution.retained, rel=1e-6)
    assert kept > 1.02 * apex_asp.sum_after_2_to_4(matrix.numpy())


def test_a_parameter_that_needs_gradients_is_taken(matrix):
    parameter = torch.nn.Parameter(matrix)
    assert apex_asp.accelerated_search_for_good_permutation(
        parameter, **SEARCH
    ) == apex_asp.accelerated_search_for_good_permutation(matrix, **SEARCH)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_equal_enumeration_and_ours(matrix, dtype):
    values = matrix.numpy().astype(dtype)
    kept = apex_asp.sum_after_2_to_4(values)
    assert kept == pytest.approx(best_by_enumeration(values), rel=1e-6)
    assert kept == pytest.approx(gyroperm.solve(values, method="identity").retained, rel=1e-6)
    assert apex_asp.sum_after_2_to_4(np.zeros((2, 8))) == 0


def test_options_and_verbosity_of_apex_are_understood(matrix, capsys):
    options = {
        "strategy": "progressive channel swap",
        "progressive_search_time_limit": 0.05,
        "improvement_threshold": 1e-9,
    }
    found = apex_asp.accelerated_search_for_good_permutation(matrix, options=options, verbosity=0)
    assert sorted(found) == list(range(32))
    assert capsys.readouterr().out == ""
    apex_asp.accelerated_search_for_good_permutation(matrix, {}, verbosity=2, **SEARCH)
    assert "efficacy" in capsys.readouterr().out


@pytest.mark.parametrize("shape", [(8, 16), (8, 16, 3), (8, 16, 3, 3)])
def test_masks_are_true_where_a_weight_is_kept(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    mask = apex_asp.mask_calculator(**SEARCH)(torch.nn.Parameter(weight))
    assert mask.dtype == torch.bool and mask.shape == weight.shape
    assert float(mask.float().mean()) == 0.5
    # The other way round the small half would stay.
    assert weight.abs()[mask].sum() > 1.5 * weight.abs()[~mask].sum()
    plain = weight.abs().reshape(8, 4, 4, -1).sort(dim=2).values[:, :, 2:].sum()
    assert weight.abs()[mask].sum() > plain


def test_masks_of_other_patterns(matrix):
    pattern = Pattern.hinm(vec_ratio=0.5, vec_size=4)
    mask = apex_asp.mask_calculator(pattern, **SEARCH)(matrix)
    assert float(mask.float().mean()) == 0.25


def test_bad_shapes_are_named(matrix):
    with pytest.raises(ValueError, match=r"columns that 4 divides, got \(12, 30\)"):
        apex_asp.accelerated_search_for_good_permutation(matrix[:, :30])
    with pytest.raises(ValueError, match=r"C divided by 4, got shape \(12, 30\)"):
        apex_asp.sum_after_2_to_4(matrix[:, :30])


def test_without_apex_only_installing_fails_and_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "apex", None)
    with (
        pytest.raises(ImportError, match=r"needs apex\.contrib.*github\.com/NVIDIA/apex"),
        apex_asp.install(),
    ):
        pass
