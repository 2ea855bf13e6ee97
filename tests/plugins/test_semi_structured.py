"""torch.sparse: a mask passes torch's own 2:4 conversion, and nothing else does."""

import numpy as np
import pytest
import torch
from torch import nn

import gyroperm
from gyroperm import Pattern
from gyroperm.plugins.semi_structured import packed_order, round_trip, to_semi_structured

SEARCH = {"seed": 0, "stop": gyroperm.MaxRounds(50), "threads": 1}


@pytest.fixture(scope="module")
def weight():
    return torch.randn(64, 128, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def solution(weight):
    return gyroperm.solve(weight, **SEARCH)


def first_two(rows=64, columns=128):
    return torch.tensor([True, True, False, False]).repeat(rows, columns // 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_solution_in_its_order_passes(weight, solution, dtype):
    packed = packed_order(weight, solution)
    expanded = round_trip(packed, dtype=dtype)
    assert expanded.dtype == dtype
    order = torch.tensor(solution.col_order).long()
    expected = torch.where(torch.tensor(solution.mask), weight, 0.0)[:, order]
    assert torch.equal(packed, expected)
    assert torch.equal(expanded, expected.to(dtype))
    # Reading the input in that order gives the product of the pruned weight in its own.
    x = torch.randn(3, 128)
    torch.testing.assert_close(x[:, order] @ packed.T, x @ solution.apply(weight).T)


def test_true_is_keep(weight):
    kept = first_two()
    expanded = round_trip(weight, kept)
    assert torch.equal(expanded != 0, kept)
    assert torch.equal(expanded, (weight * kept).half())
    # As NumPy array, and as numbers.
    assert torch.equal(round_trip(weight, kept.numpy().astype(np.int8)), expanded)


def test_a_mask_of_another_order_is_refused(weight, solution):
    assert (solution.col_order != np.arange(128)).any()
    with pytest.raises(ValueError, match=r"keeps [34] of columns \d+ to \d+ in row \d+; 2 of 4"):
        round_trip(weight, solution)
    with pytest.raises(ValueError, match=r"the weight keeps 4 of columns 0 to 3 in row 0"):
        round_trip(weight)


def test_where_the_first_fault_is(weight):
    kept = first_two()
    kept[5, 10] = True
    with pytest.raises(ValueError, match=r"keeps 3 of columns 8 to 11 in row 5"):
        round_trip(weight, kept)


def test_the_conversion_itself_loses_what_is_not_2_of_4(weight):
    # What the check guards against: torch compresses anything, without a word.
    from torch.sparse import _semi_structured_conversions as conversions

    dense = weight.half()
    back = conversions.sparse_semi_structured_to_dense_cutlass(
        *conversions.sparse_semi_structured_from_dense_cutlass(dense)
    )
    assert int((back != 0).sum()) == dense.numel() // 2


def test_fewer_than_two_are_fine(weight):
    kept = first_two() & (torch.arange(128) % 8 < 4)
    assert torch.equal(round_trip(weight, kept) != 0, kept)


def test_what_cannot_be_compressed_is_named(weight):
    with pytest.raises(ValueError, match=r"multiple of 32 rows and of 64 columns.*got \(40, 128\)"):
        round_trip(weight[:40], first_two(40))
    with pytest.raises(ValueError, match=r"float16 or bfloat16, got torch.float32"):
        round_trip(weight, first_two(), dtype=torch.float32)
    with pytest.raises(ValueError, match=r"must have shape \(64, 128\), got \(128, 64\)"):
        round_trip(weight, first_two(128, 64))
    with pytest.raises(ValueError, match="columns are a multiple of 4"):
        round_trip(weight[:, :6], torch.ones(64, 6))


def test_only_plain_patterns_have_one_order(weight):
    hinm = gyroperm.solve(weight, pattern=Pattern.hinm(), method="identity")
    with pytest.raises(ValueError, match=r"plain 2:4 of one matrix"):
        packed_order(weight, hinm)
    plain = gyroperm.solve(weight, method="identity")
    with pytest.raises(ValueError, match=r"is of weights \(64, 128\), got \(128, 64\)"):
        packed_order(weight.T, plain)


def model(dtype=torch.float16):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32)).to(dtype)


def test_without_a_device_nothing_is_converted_but_everything_is_checked():
    one = model()
    masks = {"0.weight": first_two(), "2": first_two(32, 64)}
    with pytest.raises(RuntimeError, match=r"0 cannot be converted: .* CUDA"):
        to_semi_structured(one, masks)
    assert type(one[0].weight.data) is torch.Tensor
    assert bool((one[0].weight != 0).all())
    masks["2"][1] = True
    with pytest.raises(ValueError, match=r"2 keeps 4 of columns 0 to 3 in row 1"):
        to_semi_structured(one, masks)
    with pytest.raises(ValueError, match=r"the model has no layer 'head'"):
        to_semi_structured(one, {"head.weight": first_two()})
    with pytest.raises(ValueError, match=r"1 must be an nn.Linear, got ReLU"):
        to_semi_structured(one, {"1": first_two()})
    with pytest.raises(ValueError, match=r"float32 format keeps 1 of 2.*\.half\(\)"):
        to_semi_structured(model(torch.float32), {"0": first_two()})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_converted_layers_compute_what_masked_ones_do():
    one = model().cuda()
    masks = {"0": first_two(), "2.weight": first_two(32, 64)}
    x = torch.randn(64, 128, dtype=torch.float16, device="cuda")
    twin = model().cuda()
    with torch.no_grad():
        twin[0].weight.mul_(masks["0"].cuda())
        twin[2].weight.mul_(masks["2.weight"].cuda())
        expected = twin(x)
    assert to_semi_structured(one, masks) == ["0", "2"]
    assert isinstance(one[0].weight.data, torch.sparse.SparseSemiStructuredTensor)
    torch.testing.assert_close(one(x), expected, rtol=1e-2, atol=1e-2)
