"""Specs that a user writes: row blocks, reasons, and what is refused."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from torch import nn

from gyroperm.models import Coupled, CouplingGraph, Spec, coupling, permute
from small_families import small_model


class Grouped(nn.Module):
    """A grouped convolution between two plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 1)
        self.grouped = nn.Conv2d(12, 6, 3, groups=3)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.grouped(self.first(x).relu()).relu())


def _within_groups() -> Coupled:
    return Coupled(
        "inner",
        {
            "first.weight[0]": "g c",
            "first.bias[0]": "g c",
            "grouped.weight[1]": "g o | c",
        },
        order="c",
        within="g",
        sizes={"g": 3, "c": 4},
    )


def _whole_groups() -> Coupled:
    return Coupled(
        "groups",
        {
            "first.weight[0]": "g c",
            "first.bias[0]": "g c",
            "grouped.weight[0]": "g o",
            "grouped.bias[0]": "g o",
            "last.weight[1]": "g o",
        },
        order="g",
        sizes={"g": 3},
    )


def test_each_group_has_an_order_of_its_own() -> None:
    torch.manual_seed(0)
    model, inputs = Grouped(), torch.randn(2, 3, 5, 5)
    graph = coupling(model, Spec("grouped", (_within_groups(), _whole_groups())))
    assert [site.constraint for site in graph.sites] == ["within block"] * 3 + ["whole blocks"]
    assert [str(site.axes[2]) for site in graph.sites[:3]] == [
        "grouped.weight[0:2][1]",
        "grouped.weight[2:4][1]",
        "grouped.weight[4:6][1]",
    ]
    orders = {"inner": [[1, 2, 3, 0], [3, 2, 1, 0], [0, 2, 1, 3]], "groups": [2, 0, 1]}
    found = permute(model, orders, graph=graph, inputs=inputs)
    assert found.dtype == torch.float64 and found.error < 1e-14


def test_reasons_for_what_stays() -> None:
    kept = {"first.weight[1]": "pixels", "last.weight[{i}]?": "no such tensor"}
    with pytest.raises(ValueError, match="an axis is written"):
        coupling(Grouped(), Spec("grouped", (_whole_groups(),), kept=kept))
    graph = coupling(
        Grouped(), Spec("grouped", (_whole_groups(),), kept={"first.weight[1]": "why"})
    )
    assert graph.skipped == {
        "first.weight[1]": "why",
        "grouped.weight[1]": "not described by the spec",
        "last.weight[0]": "not described by the spec",
    }


@pytest.mark.parametrize(
    ("axes", "within", "message"),
    [
        ({"grouped.weight[1]": "o g | c"}, "g", "outermost in dimension 0"),
        ({"grouped.weight[1]": "g o | c"}, None, "outermost in dimension 0"),
        ({"grouped.weight[0]": "g | c"}, "g", "order another dimension"),
        ({"grouped.weight[1]": "c 3"}, None, r"grouped\.weight\[1\] has 4 positions, which 'c 3'"),
        ({"grouped.weight[1]": "d"}, None, "the layout 'd' of grouped.weight.1. lacks 'c'"),
        ({"grouped.weight[7]": "c"}, None, r"grouped\.weight\[7\]: the tensor has shape \(6, 4"),
        ({"other.weight[0]": "c"}, None, "the model has no tensor for 'other.weight.0.'"),
        ({"first.weight[0]": "c", "last.weight[1]": "c"}, None, "differ in blocks or elements"),
    ],
)
def test_a_spec_that_does_not_fit(axes: dict[str, str], within: str | None, message: str) -> None:
    wrong = Coupled("wrong", axes, order="c", within=within, sizes={"g": 3})
    with pytest.raises(ValueError, match=message):
        coupling(Grouped(), Spec("wrong", (wrong,)))


def test_describe() -> None:
    text = coupling(small_model("GPTNeoX", "ForCausalLM")).describe()
    lines = [line.split("  ") for line in text.splitlines()]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert rows[0] == ["gpt_neox"]
    assert rows[1] == ["site", "elements", "may move", "axes"]
    own = "gpt_neox.layers.*.attention."
    first = "gpt_neox.layers.0."
    qkv = f"{first}attention.query_key_value"
    rotary = "fixed: rotary embedding turns each pair of dimensions by its own frequency"
    assert rows[3:] == [
        [own + "values", "8 x 8", "within block", f"{qkv}.weight[0], {qkv}.bias[0] and 1 more"],
        [own + "rotary", "2 x 4", rotary, f"{qkv}.weight[0] x 8, {qkv}.bias[0] x 8"],
        [own + "keys", "8 x 4", "within block", f"{qkv}.weight[0] x 2, {qkv}.bias[0] x 2"],
        [
            own + "heads",
            "2 x 4",
            "whole blocks",
            f"{qkv}.weight[0] x 24, {qkv}.bias[0] x 24 and 1 more",
        ],
        [
            "gpt_neox.layers.*.ffn",
            "2 x 20",
            "free",
            f"{first}mlp.dense_h_to_4h.weight[0], {first}mlp.dense_h_to_4h.bias[0] and 1 more",
        ],
        [
            "residual",
            "32",
            "free",
            "gpt_neox.embed_in.weight[1], gpt_neox.final_layer_norm.weight[0] and 22 more",
        ],
        ["left as they are:"],
        ["gpt_neox.embed_in.weight[0]: stands for the tokens of the vocabulary"],
        ["lm_head.weight[0]: stands for the tokens of the vocabulary"],
    ]


@pytest.mark.parametrize("family", ["Llama", "Mixtral", "GPTNeoX", "T5", "ResNet", "MobileNetV2"])
def test_components_of_free_edges_are_the_sites(family: str) -> None:
    """Each free site ties all of its axes and no others, and so do all that share axes."""
    found = coupling(small_model(family))
    free = nx.Graph()
    for site in found.free:
        own = {(axis.tensor, axis.dim) for axis in site.axes}
        edges = [(a, b) for a, b, name in found.graph.edges(data="site") if name == site.name]
        tied = nx.Graph(edges)
        tied.add_nodes_from(own)
        assert set(tied) == own and nx.is_connected(tied)
        nx.add_path(free, sorted(own))
        assert all(site.name in found.graph.nodes[node]["sites"] for node in own)
    constraints = nx.get_edge_attributes(found.graph, "constraint")
    edges = [edge[:2] for edge, constraint in constraints.items() if constraint != "fixed"]
    drawn = nx.Graph(edges)
    drawn.add_nodes_from(free)
    components = {frozenset(part) for part in nx.connected_components(drawn)}
    assert components == {frozenset(part) for part in nx.connected_components(free)}
    for site in found.sites:
        if site.fixed and len(site.axes) > 1:
            edges = [e for *_, e in found.graph.edges(data=True) if e["site"] == site.name]
            assert {edge["reason"] for edge in edges} == {site.reason}


def test_residual_and_hidden_channels_are_components_of_their_own() -> None:
    found = coupling(small_model("ResNet"))
    edges = [(a, b) for a, b, site in found.graph.edges(data="site")]
    parts = {frozenset(part) for part in nx.connected_components(nx.Graph(edges))}
    sites = {frozenset((axis.tensor, axis.dim) for axis in site.axes) for site in found.sites}
    # No axis of a plain convolution network is in two sites.
    assert parts == sites


def test_a_graph_cannot_have_two_sites_of_a_name() -> None:
    site = coupling(small_model("ResNet")).sites[0]
    with pytest.raises(ValueError, match=f"two sites are called {site.name}"):
        CouplingGraph("twice", (site, site))


def test_orders_of_stacked_experts_move_one_slice_only() -> None:
    model = small_model("Mixtral")
    stack = model.layers[0].mlp.experts
    before = stack.gate_up_proj.detach().clone()
    permute(model, {"layers.0.mlp.experts.ffn[2]": np.roll(np.arange(20), 1)})
    moved = [not torch.equal(stack.gate_up_proj[e], before[e]) for e in range(4)]
    assert moved == [False, False, True, False]
    rolled = torch.cat([before[2, :20].roll(1, 0), before[2, 20:].roll(1, 0)])
    assert torch.equal(stack.gate_up_proj[2], rolled)
