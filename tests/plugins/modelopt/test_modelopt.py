"""Model Optimizer's ``mts.sparsify`` with the mode ``gyroperm``: masks, saving, orders."""

import copy

import modelopt.torch.opt as mto
import modelopt.torch.sparsity as mts
import numpy as np
import pytest
import torch
from torch import nn

import gyroperm
from doc_pages import run_script
from gyroperm import Pattern
from gyroperm.models import Coupled, FunctionChanged, Spec
from gyroperm.plugins import modelopt as plugin

SEARCH = {"seed": 0, "stop": gyroperm.MaxRounds(50), "threads": 1}
CONFIG = {"search": SEARCH, "verbose": False}


class Net(nn.Module):
    """Two convolutions and two linear layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(16, 32, 3, padding=1)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=2)
        self.hidden = nn.Linear(32, 48)
        self.out = nn.Linear(48, 16)

    def forward(self, x):
        x = self.grouped(self.first(x).relu()).relu().mean((2, 3))
        return self.out(self.hidden(x).relu())


LAYERS = ("first", "grouped", "hidden", "out")
HIDDEN = Spec(
    "net",
    (
        Coupled(
            "hidden",
            {"hidden.weight[0]": "c", "hidden.bias[0]": "c", "out.weight[1]": "c"},
            order="c",
        ),
    ),
)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def x():
    return torch.randn(4, 16, 5, 5, generator=torch.Generator().manual_seed(1))


def weights(model):
    return {name: model.get_submodule(name).weight.detach().clone() for name in LAYERS}


def kept(model, names=LAYERS):
    return sum(float(weights(model)[name].abs().sum()) for name in names)


def test_true_is_keep_and_the_masks_are_the_search_s(net):
    dense = weights(net)
    sparse = mts.sparsify(net, "gyroperm", CONFIG)
    for name, weight in dense.items():
        module = sparse.get_submodule(name)
        solution = gyroperm.solve(weight, groups=getattr(module, "groups", 1), **SEARCH)
        assert module._weight_mask.dtype == torch.bool
        np.testing.assert_array_equal(module._weight_mask.numpy(), solution.mask)
        assert torch.equal(module.weight, torch.where(module._weight_mask, weight, 0.0))
        # The other way round would keep the small half.
        assert float(module.weight.detach().abs().sum()) > float(weight.abs().sum()) / 2


def test_more_stays_than_by_model_optimizer_s_own_masks(net):
    own = mts.sparsify(copy.deepcopy(net), "sparse_magnitude", {"verbose": False})
    ours = mts.sparsify(net, "gyroperm", CONFIG)
    assert sum(int((w != 0).sum()) for w in weights(ours).values()) == sum(
        int((w != 0).sum()) for w in weights(own).values()
    )
    assert kept(ours) > 1.01 * kept(own)


@pytest.mark.parametrize(
    ("pattern", "share"),
    [
        ("2:4 sparsity", 0.5),
        ("1:4", 0.25),
        (Pattern.nm(4, 8), 0.5),
        (Pattern.hinm(vec_ratio=0.5, vec_size=8), 0.25),
    ],
)
def test_patterns_beyond_two_of_four(net, pattern, share):
    config = {**CONFIG, "pattern": pattern}
    sparse = mts.sparsify(net, [("gyroperm", {"nn.Conv2d": {"*": None}})], config)
    for name in ("hidden", "out"):
        assert float(sparse.get_submodule(name)._weight_mask.float().mean()) == share
    assert not (sparse.first.weight == 0).any()


def test_saliency_may_be_a_function_of_the_module(net):
    seen = []

    def saliency(module, weight):
        seen.append(tuple(weight.shape))
        return weight.abs() * torch.arange(1, weight.shape[1] + 1).reshape(
            1, -1, *(1,) * (weight.dim() - 2)
        )

    dense = net.out.weight.detach().clone()
    sparse = mts.sparsify(net, "gyroperm", {**CONFIG, "saliency": saliency})
    expected = gyroperm.solve(dense, saliency=saliency(None, dense), **SEARCH).mask
    np.testing.assert_array_equal(sparse.out._weight_mask.numpy(), expected)
    assert set(seen) == {(32, 16, 3, 3), (32, 16, 3, 3), (48, 32), (16, 48)}


def test_save_and_restore(net, x, tmp_path):
    sparse = mts.sparsify(net, "gyroperm", {**CONFIG, "pattern": Pattern.nm(1, 4)})
    expected, masks = sparse(x), {n: sparse.get_submodule(n)._weight_mask for n in LAYERS}
    mto.save(sparse, tmp_path / "sparse.pth")
    torch.manual_seed(5)
    restored = mto.restore(Net(), tmp_path / "sparse.pth")
    assert torch.equal(restored(x), expected)
    for name, mask in masks.items():
        assert torch.equal(restored.get_submodule(name)._weight_mask, mask)
        assert not restored.get_submodule(name).weight[~mask].any()


def test_masks_hold_through_training_and_export(net, x):
    sparse = mts.sparsify(net, "gyroperm", CONFIG)
    masks = {n: sparse.get_submodule(n)._weight_mask.clone() for n in LAYERS}
    optimizer = torch.optim.SGD(sparse.parameters(), 0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        sparse(x).square().sum().backward()
        optimizer.step()
    expected = sparse(x)
    exported = mts.export(sparse)
    assert torch.equal(exported(x), expected)
    for name, mask in masks.items():
        assert type(exported.get_submodule(name).weight) is nn.Parameter
        assert not exported.get_submodule(name).weight[~mask].any()


def test_a_layer_that_does_not_divide_stays_dense_and_is_named():
    model = nn.Sequential(nn.Linear(18, 8), nn.Linear(8, 8))
    with pytest.warns(UserWarning, match="Skipping 0: 4 does not divide its 18 columns"):
        sparse = mts.sparsify(model, "gyroperm", CONFIG)
    assert not (sparse[0].weight == 0).any()
    assert int((sparse[1].weight == 0).sum()) == 32


@pytest.mark.parametrize("pattern", ["half", 0.5, "4:2 sparsity"])
def test_a_wrong_pattern_is_named(net, pattern):
    with pytest.raises(ValueError, match=r"pattern must be|n must be at most m"):
        mts.sparsify(net, "gyroperm", {**CONFIG, "pattern": pattern})


# --- orders for the toolkit's own masks


@pytest.mark.parametrize("mode", ["sparse_magnitude", "sparsegpt"])
def test_an_order_first_makes_the_toolkit_s_own_masks_keep_more(net, x, mode):
    config = {"verbose": False, "forward_loop": lambda model: model(x)}
    rules = [(mode, {"nn.Conv2d": {"*": None}})]
    plain = mts.sparsify(copy.deepcopy(net), rules, config)
    before = net(x)
    orders = plugin.order_for_sparsify(net, graph=HIDDEN, inputs=x, **SEARCH)
    assert list(orders) == ["hidden"] and sorted(orders["hidden"]) == list(range(48))
    torch.testing.assert_close(net(x), before)
    ordered = mts.sparsify(net, rules, config)
    zeros = (ordered.out.weight == 0).reshape(16, 12, 4).sum(2)
    # Its SparseGPT also prunes what no input reaches.
    assert (zeros == 2).all() if mode == "sparse_magnitude" else (zeros >= 2).all()
    if mode == "sparse_magnitude":
        assert kept(ordered, ["out"]) > 1.01 * kept(plain, ["out"])


def test_a_wrong_spec_is_caught_and_leaves_the_model(net, x):
    wrong = Spec("net", (Coupled("out", {"out.weight[1]": "c"}, order="c"),))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(FunctionChanged, match="out"):
        plugin.order_for_sparsify(net, graph=wrong, inputs=x, **SEARCH)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


# --- the page


def test_the_script_of_the_page(tmp_path):
    printed = run_script("plugins/modelopt.md", tmp_path)
    assert "restored: same outputs True" in printed
