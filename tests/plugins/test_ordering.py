"""Orders for toolkits that prune afterwards: what is stacked, and what is left alone."""

import numpy as np
import pytest
import torch
from torch import nn

import gyroperm
from gyroperm import Pattern
from gyroperm.models import Coupled, CouplingGraph, Spec, permute, sparsify
from gyroperm.plugins.ordering import searched_orders
from small_models import CNN, cnn, grouped, pictures

SEARCH = {"seed": 0, "stop": gyroperm.MaxRounds(50), "threads": 1}


class Grouped(nn.Module):
    """Values of two key-value heads, each of which serves two query heads; then two readers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.v, self.o = nn.Linear(12, 16), nn.Linear(32, 10)
        self.left, self.right = nn.Linear(10, 6), nn.Linear(10, 6)

    def forward(self, x):
        values = self.v(x).unflatten(-1, (2, 8)).repeat_interleave(2, dim=-2)
        y = torch.relu(self.o(values.flatten(-2)))
        return self.left(y) * self.right(y)


SPEC = Spec(
    "grouped",
    (
        Coupled(
            "values",
            {"v.weight[0]": "kv hd", "v.bias[0]": "kv hd", "o.weight[1]": "kv rep hd"},
            order="hd",
            within="kv",
            sizes={"kv": 2, "hd": 8},
        ),
        Coupled(
            "read",
            {
                "o.weight[0]": "c",
                "o.bias[0]": "c",
                "left.weight[1]": "c",
                "right.weight[1]": "c",
            },
            order="c",
        ),
    ),
)


def kept(weight):
    """What 2:4 keeps of a matrix in the order in which it lies."""
    return gyroperm.solve(weight, method="identity").retained


def saliencies(model, names):
    return {f"{n}.weight": model.get_submodule(n).weight.detach().abs().numpy() for n in names}


def test_what_is_promised_is_what_the_reordered_model_keeps():
    model = Grouped()
    graph = CouplingGraph.from_spec(model, SPEC)
    given = saliencies(model, ["o"])
    orders = searched_orders(graph, given, Pattern.nm(), **SEARCH)
    assert set(orders) == {"values[0]", "values[1]"}
    # The two query heads of a key-value head are searched as rows of one matrix.
    stacked = np.concatenate([given["o.weight"][:, 16:24], given["o.weight"][:, 24:32]])
    expected = gyroperm.solve(stacked, **SEARCH)
    np.testing.assert_array_equal(orders["values[1]"], expected.col_order)
    before = kept(model.o.weight)
    assert permute(model, orders, graph=graph, inputs=torch.randn(3, 12)).same
    assert kept(model.o.weight) > before
    assert kept(model.o.weight[:, 16:]) == pytest.approx(expected.retained, rel=1e-6)


def test_layers_that_share_a_site_are_searched_together_or_not_at_all():
    model = Grouped()
    graph = CouplingGraph.from_spec(model, SPEC)
    given = saliencies(model, ["left", "right"])
    # Ten channels are no whole groups of four, but of two and of five.
    assert searched_orders(graph, given, Pattern.nm(), **SEARCH) == {}
    pattern = Pattern.nm(1, 2)
    orders = searched_orders(graph, given, pattern, **SEARCH)
    assert set(orders) == {"read"}
    expected = gyroperm.solve(list(given.values()), pattern=pattern, **SEARCH)
    np.testing.assert_array_equal(orders["read"], expected.col_order)
    assert expected.retained > expected.identity


def test_each_group_of_a_grouped_convolution_has_its_own_order():
    model, graph = grouped()
    weight = model.grouped.weight.detach().abs().numpy()
    orders = searched_orders(graph, {"grouped.weight": weight}, Pattern.nm(), **SEARCH)
    assert set(orders) == {"inputs[0]", "inputs[1]"}
    for g in range(2):
        own = np.moveaxis(weight[6 * g : 6 * g + 6], 1, -1).reshape(-1, 8)
        expected = gyroperm.solve(own, **SEARCH)
        np.testing.assert_array_equal(orders[f"inputs[{g}]"], expected.col_order)


def test_the_orders_are_those_of_sparsify():
    model = cnn()
    weights = {n: p.detach().abs().numpy() for n, p in model.named_parameters() if p.dim() > 1}
    inputs = pictures()[0]
    options = {"graph": CNN, "inputs": inputs, "progress": False}
    report = sparsify(model, "2:4", surgery=True, **options, **SEARCH)
    given = {name: weights[name] for name in report.masks}
    orders = searched_orders(report.graph, given, Pattern.nm(), **SEARCH)
    assert orders.keys() == report.orders.keys() and orders
    assert all(np.array_equal(orders[name], report.orders[name]) for name in orders)


def test_only_plain_patterns():
    graph = CouplingGraph.from_spec(Grouped(), SPEC)
    with pytest.raises(ValueError, match="need plain N:M"):
        searched_orders(graph, {}, Pattern.hinm())
