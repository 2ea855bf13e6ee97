"""apex's ASP with gyroperm's search and masks; only where apex is installed."""

import pytest
import torch
from torch import nn

library = pytest.importorskip(
    "apex.contrib.sparsity.permutation_lib", reason="apex is on no package index"
)

from apex.contrib.sparsity import ASP  # noqa: E402

import gyroperm  # noqa: E402
from doc_pages import run_script  # noqa: E402
from gyroperm import Pattern  # noqa: E402
from gyroperm.plugins import apex_asp  # noqa: E402

SEARCH = {"seed": 0, "stop": gyroperm.MaxRounds(50), "threads": 1}


@pytest.fixture(autouse=True)
def fresh():
    """ASP keeps what it prunes in its class."""
    state = {name: value for name, value in vars(ASP).items() if name.startswith("_ASP__")}
    kept = {
        name: list(value) if isinstance(value, list) else value for name, value in state.items()
    }
    yield
    for name, value in kept.items():
        setattr(ASP, name, value)


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)).eval()


def test_the_search_is_replaced_within_the_block_alone():
    names = ("accelerated_search_for_good_permutation", "sum_after_2_to_4")
    before = [getattr(library, name, None) for name in names]
    with apex_asp.install(**SEARCH):
        weight = make()[2].weight
        found = library.accelerated_search_for_good_permutation(weight, options={}, verbosity=0)
        assert sorted(found) == list(range(64))
    assert [getattr(library, name, None) for name in names] == before


def test_asp_prunes_with_the_order_that_was_found():
    model, dense = make(), make()
    ASP.init_model_for_pruning(model, verbosity=0, allow_permutation=True)
    with apex_asp.install(**SEARCH):
        ASP.compute_sparse_masks()
    weight = model[2].weight.detach()
    assert ((weight == 0).reshape(16, 16, 4).sum(2) == 2).all()
    plain = apex_asp.sum_after_2_to_4(dense[2].weight)
    assert float(weight.abs().sum()) > 1.01 * plain


def test_asp_takes_the_mask_calculator():
    model, dense = make(), make()
    calculator = apex_asp.mask_calculator(Pattern.nm(1, 4), **SEARCH)
    ASP.init_model_for_pruning(
        model, mask_calculator=calculator, verbosity=0, allow_permutation=False
    )
    ASP.compute_sparse_masks()
    expected = gyroperm.solve(dense[2].weight, n=1, m=4, **SEARCH).mask
    assert torch.equal(model[2].weight != 0, torch.from_numpy(expected.copy()))


def test_the_script_of_the_page(tmp_path):
    assert "permuted" in run_script("plugins/apex.md", tmp_path)
