"""Torch-Pruning 1.6: its graph as coupling, the guards that it lacks, against our own specs."""

import copy

import numpy as np
import pytest
import torch
import torch_pruning
from torch import nn

from gyroperm.models import FunctionChanged, coupling, permute
from gyroperm.plugins.torch_pruning import coupling_from_dependency_graph


def bert(**settings):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=24,
        **settings,
    )
    return BertModel(config)


class Cnn(nn.Module):
    """Batch norm, a residual, depthwise and grouped convolutions, group norm, concat, flatten."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.bn = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.b = nn.Conv2d(16, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped, self.gn = nn.Conv2d(16, 24, 3, groups=2, padding=1), nn.GroupNorm(4, 24)
        self.c, self.prelu = nn.Conv2d(3, 8, 3, padding=1), nn.PReLU(8)
        self.d = nn.Conv2d(32, 12, 1)
        self.fc, self.out = nn.Linear(12 * 16, 20), nn.Linear(20, 5)
        for norm in (self.bn, self.gn):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
        nn.init.normal_(self.bn.running_mean)
        nn.init.uniform_(self.bn.running_var, 0.5, 2)
        nn.init.uniform_(self.prelu.weight)

    def forward(self, x):
        y = torch.relu(self.bn(self.a(x)))
        y = self.depthwise(y + self.b(y))
        y = torch.relu(self.gn(self.grouped(y)))
        z = torch.cat([y, self.prelu(self.c(x))], 1)
        z = nn.functional.max_pool2d(torch.relu(self.d(z)), 2)
        return self.out(torch.relu(self.fc(z.flatten(1))))


def picture():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def axes_of(site):
    return {(axis.tensor, axis.dim) for axis in site.axes}


def random_orders(graph, seed=3):
    draw = np.random.default_rng(seed)
    return {site.name: draw.permutation(site.size) for site in graph.free}


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


# --- against our own spec


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_encoder_is_coupled_as_its_spec_says(attention):
    model = bert(attn_implementation=attention)
    before = state(model)
    theirs, ours = coupling_from_dependency_graph(model), coupling(model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert model.training
    assert axes_of(theirs.by_name["embeddings.word_embeddings"]) == axes_of(
        ours.by_name["residual"]
    )
    for i in range(2):
        layer = f"encoder.layer.{i}"
        assert axes_of(theirs.by_name[f"{layer}.intermediate.dense"]) == axes_of(
            ours.by_name[f"{layer}.ffn"]
        )
        for head in range(2):
            site = theirs.by_name[f"{layer}.attention.self.query[{head}]"]
            assert site.constraint == "within block"
            tied = [
                ours.by_name[f"{layer}.attention.{kind}[{head}]"] for kind in ("keys", "values")
            ]
            assert axes_of(site) == axes_of(tied[0]) | axes_of(tied[1])
            for axis in site.axes:
                np.testing.assert_array_equal(axis.members[:, 0], 16 * head + np.arange(16))


@pytest.mark.parametrize("seed", range(3))
def test_an_encoder_computes_the_same_in_any_order(seed):
    model = bert().eval()
    inputs = {"input_ids": torch.randint(2, 60, (2, 9))}
    expected = model(**inputs)
    graph = coupling_from_dependency_graph(model, inputs)
    before = state(model)
    found = permute(model, random_orders(graph, seed), graph=graph, inputs=inputs)
    assert found.error < 1e-10
    assert found.dtype == torch.float64
    moved = [
        name for name, value in before.items() if not torch.equal(model.state_dict()[name], value)
    ]
    assert "encoder.layer.1.attention.self.value.weight" in moved
    assert "embeddings.word_embeddings.weight" in moved
    # The hidden state leaves in its own order.
    torch.testing.assert_close(
        model(**inputs).last_hidden_state, expected.last_hidden_state, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_convolution_network_computes_the_same_in_any_order(seed):
    model = Cnn()
    graph = coupling_from_dependency_graph(model, picture())
    assert permute(model, random_orders(graph, seed), graph=graph, inputs=picture()).error < 1e-10


def test_what_a_convolution_network_couples():
    graph = coupling_from_dependency_graph(Cnn(), picture())
    by_name = graph.by_name
    # Two groups of the grouped convolution part the channels that go in ...
    assert [by_name[name].size for name in ("a", "a/2")] == [8, 8]
    assert {"a.weight", "bn.running_var", "b.weight", "depthwise.weight", "grouped.weight"} <= {
        axis.tensor for axis in by_name["a"].axes
    }
    # ... and four groups of the norm those that come out.
    assert [by_name[f"grouped[{b}]"].size for b in range(4)] == [6] * 4
    (pixels,) = [axis for axis in by_name["d"].axes if axis.tensor == "fc.weight"]
    assert pixels.copies == 16
    (joined,) = [axis for axis in by_name["c"].axes if axis.tensor == "d.weight"]
    np.testing.assert_array_equal(joined.members[:, 0], 24 + np.arange(8))
    assert by_name["out"].fixed
    assert "model's output" in by_name["out"].reason


# --- the guards


def test_torch_pruning_itself_lets_values_cross_heads():
    model = bert()
    value = model.encoder.layer[0].attention.self.value
    dependency = torch_pruning.DependencyGraph().build_dependency(
        model, {"input_ids": torch.randint(2, 60, (2, 9))}, verbose=False
    )
    group = dependency.get_pruning_group(
        value, torch_pruning.prune_linear_out_channels, list(range(32))
    )
    # One group of 32 channels in all four layers; nothing tells the heads apart.
    assert {len(item.idxs) for item in group} == {32}
    unguarded = coupling_from_dependency_graph(model, num_heads=1, proven=False)
    name = "encoder.layer.0.attention.self.query"
    assert unguarded.by_name[name].size == 32
    crossing = np.roll(np.arange(32), 5)
    before = state(model)
    with pytest.raises(FunctionChanged):
        permute(model, {name: crossing}, graph=unguarded)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    # With the heads there is no such site to give an order to.
    guarded = coupling_from_dependency_graph(model)
    with pytest.raises(ValueError, match="has 2 blocks, got 32 orders"):
        permute(model, {name: crossing}, graph=guarded)


def test_a_wrong_number_of_heads_is_found_out():
    model = bert()
    graph = coupling_from_dependency_graph(model, num_heads=1)
    for i in range(2):
        site = graph.by_name[f"encoder.layer.{i}.attention.self.query"]
        assert site.fixed
        assert "a random order of what Torch-Pruning couples changes the function" in site.reason
    # The others are not blamed for it.
    assert not graph.by_name["embeddings.word_embeddings"].fixed
    assert not graph.by_name["encoder.layer.0.intermediate.dense"].fixed


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        parts = [one(x).unflatten(-1, (4, 4)).transpose(1, 2) for one in (self.q, self.k, self.v)]
        y = nn.functional.scaled_dot_product_attention(*parts)
        return self.o(y.transpose(1, 2).flatten(2))


def test_heads_that_nobody_knows():
    model = nn.Sequential(nn.Linear(8, 16), Attention())
    x = torch.randn(2, 5, 8)
    unknown = coupling_from_dependency_graph(model, x)
    assert unknown.by_name["1.q"].fixed
    assert "give num_heads" in unknown.by_name["1.q"].reason
    assert "give num_heads" in unknown.describe()
    known = coupling_from_dependency_graph(model, x, num_heads={model[1].v: 4})
    assert [known.by_name[f"1.q[{head}]"].size for head in range(4)] == [4] * 4
    assert permute(model, random_orders(known), graph=known, inputs=x).same
    model[1].num_heads = 4
    found = coupling_from_dependency_graph(model, x)
    assert [site.name for site in found.sites] == [site.name for site in known.sites]


def test_torch_s_own_attention():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.Sequential(nn.Linear(8, 16), layer, nn.Linear(16, 4))
    nn.init.normal_(layer.self_attn.in_proj_bias)
    x = torch.randn(2, 5, 8)
    graph = coupling_from_dependency_graph(model, x)
    values = graph.by_name["1.self_attn[1]"]
    assert values.size == 8
    np.testing.assert_array_equal(values.axes[0].members[:, 0], 32 + 8 + np.arange(8))
    assert permute(model, random_orders(graph), graph=graph, inputs=x).same


def test_rotary_queries_and_keys_stay():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=60,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=32,
            use_cache=False,
        )
    )
    graph = coupling_from_dependency_graph(model)
    moved = {axis.tensor for site in graph.free for axis in site.axes if axis.dim == 0}
    assert not any("q_proj" in name or "k_proj" in name for name in moved)
    assert {site.name for site in graph.free} == {
        "model.embed_tokens",
        "model.layers.0.mlp.gate_proj",
    }
    assert permute(model, random_orders(graph), graph=graph).same


def test_what_is_added_to_the_input_stays():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(x + self.down(torch.relu(self.up(x))))

    graph = coupling_from_dependency_graph(Skip(), torch.randn(4, 8))
    assert not graph.by_name["up"].fixed
    assert "changes the function" in graph.by_name["down"].reason


def test_tied_weights_are_one():
    from transformers import BertForMaskedLM

    torch.manual_seed(0)
    model = BertForMaskedLM(bert().config)
    graph = coupling_from_dependency_graph(model)
    site = graph.by_name["bert.embeddings.word_embeddings/2"]
    assert ("cls.predictions.transform.dense.weight", 0) in axes_of(site)
    assert permute(model, random_orders(graph), graph=graph).error < 1e-10


def test_frozen_parameters_are_traced_and_stay_frozen():
    model = Cnn()
    expected = {site.name for site in coupling_from_dependency_graph(model, picture()).sites}
    model.requires_grad_(False)
    with torch.no_grad():
        graph = coupling_from_dependency_graph(model, picture())
    assert {site.name for site in graph.sites} == expected
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_inputs_are_asked_for():
    with pytest.raises(ValueError, match="inputs must be given"):
        coupling_from_dependency_graph(Cnn())


def test_a_graph_of_a_model_fits_its_copies():
    model = bert()
    graph = coupling_from_dependency_graph(model)
    assert permute(copy.deepcopy(model), random_orders(graph), graph=graph).same
