"""What may not move: refused where the spec says so, caught where a user's spec is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gyroperm.models import Coupled, FunctionChanged, Spec, coupling, permute
from small_families import assert_same_state, random_orders, rolled_orders, small_model, state_of

OWN = "model.layers.0.self_attn."


def _user(coupled: Coupled) -> Spec:
    return Spec("a user's spec", (coupled,))


def _caught(model: torch.nn.Module, coupled: Coupled, module: str) -> None:
    """The order is caught, the module named, and the model as it was."""
    before = state_of(model)
    graph = coupling(model, _user(coupled))
    with pytest.raises(FunctionChanged, match="a user's spec does not describe it rightly") as seen:
        permute(model, rolled_orders(graph), graph=graph)
    assert seen.value.module == module
    assert repr(module) in str(seen.value)
    assert_same_state(model, before)
    assert "forward" not in vars(model)


def test_values_across_heads() -> None:
    """Any order of the values keeps v and o consistent, but takes dimensions to other heads."""
    model = small_model("Llama", "ForCausalLM", num_key_value_heads=4)
    across = {OWN + "v_proj.weight[0]": "c", OWN + "o_proj.weight[1]": "c"}
    _caught(model, Coupled("values", across, order="c"), OWN + "o_proj")


def test_values_across_heads_of_a_fused_projection() -> None:
    model = small_model("GPT2", "LMHeadModel")
    own = "transformer.h.0.attn."
    across = {
        own + "c_attn.weight[1]": "q + k + c",
        own + "c_attn.bias[0]": "q + k + c",
        own + "c_proj.weight[0]": "c",
    }
    sizes = {"q": 24, "k": 24, "c": 24}
    _caught(model, Coupled("values", across, order="c", sizes=sizes), own + "c_proj")


@pytest.mark.parametrize("order", ["hd", "kv"])
def test_rotary_queries_and_keys(order: str) -> None:
    """Within a head the frequencies differ; whole heads of q and k alone leave v behind."""
    model = small_model("Qwen3", "ForCausalLM")
    axes = {OWN + "q_proj.weight[0]": "kv rep hd", OWN + "k_proj.weight[0]": "kv hd"}
    if order == "hd":
        axes |= {OWN + "q_norm.weight[0]": "hd", OWN + "k_norm.weight[0]": "hd"}
    coupled = Coupled("keys", axes, order=order, sizes={"kv": 2, "hd": 8})
    _caught(model, coupled, OWN + "o_proj")


def test_residual_of_one_layer_alone() -> None:
    model = small_model("Bert")
    layer = "encoder.layer.0."
    axes = {
        **{f"{layer}attention.self.{one}.weight[1]": "d" for one in ("query", "key", "value")},
        **{f"{layer}attention.output.dense.{one}[0]": "d" for one in ("weight", "bias")},
        **{f"{layer}attention.output.LayerNorm.{one}[0]": "d" for one in ("weight", "bias")},
        layer + "intermediate.dense.weight[1]": "d",
        **{f"{layer}output.dense.{one}[0]": "d" for one in ("weight", "bias")},
        **{f"{layer}output.LayerNorm.{one}[0]": "d" for one in ("weight", "bias")},
    }
    _caught(model, Coupled("residual", axes, order="d"), layer + "attention.self.query")


def test_residual_block_of_convolutions_alone() -> None:
    model = small_model("ResNet", "ForImageClassification")
    block = "resnet.encoder.stages.0.layers.0.layer."
    axes = {
        block + "1.convolution.weight[0]": "c",
        **{
            f"{block}1.normalization.{one}[0]": "c"
            for one in ("weight", "bias", "running_mean", "running_var")
        },
    }
    # The block's own output holds other sums.
    _caught(
        model,
        Coupled("block", axes, order="c"),
        "resnet.encoder.stages.0.layers.0.activation",
    )


def test_neighbour_of_a_depthwise_convolution_alone() -> None:
    model = small_model("MobileNetV2", "ForImageClassification")
    layer = "mobilenet_v2.layer.0."
    axes = {
        layer + "expand_1x1.convolution.weight[0]": "c",
        **{
            f"{layer}expand_1x1.normalization.{one}[0]": "c"
            for one in ("weight", "bias", "running_mean", "running_var")
        },
        layer + "reduce_1x1.convolution.weight[1]": "c",
    }
    _caught(model, Coupled("expanded", axes, order="c"), layer + "conv_3x3.convolution")


def test_heads_with_alibi() -> None:
    model = small_model("Bloom", "ForCausalLM")
    own = "transformer.h.0.self_attention."
    axes = {
        own + "query_key_value.weight[0]": "head 3 hd",
        own + "query_key_value.bias[0]": "head 3 hd",
        own + "dense.weight[1]": "head hd",
    }
    coupled = Coupled("heads", axes, order="head", sizes={"head": 4})
    _caught(model, coupled, own + "attention_dropout")


def test_heads_of_one_layer_that_shares_its_bias_table() -> None:
    model = small_model("T5", "EncoderModel")
    own = "encoder.block.1.layer.0.SelfAttention."
    axes = {f"{own}{one}.weight[0]": "head hd" for one in "qkv"}
    coupled = Coupled(
        "heads", {**axes, own + "o.weight[1]": "head hd"}, order="head", sizes={"head": 4}
    )
    _caught(model, coupled, own + "o")


def test_router_without_its_experts() -> None:
    model = small_model("Mixtral", "ForCausalLM")
    with pytest.raises(FunctionChanged):
        gate = {"model.layers.0.mlp.gate.weight[0]": "e"}
        graph = coupling(model, _user(Coupled("experts", gate, order="e")))
        permute(model, rolled_orders(graph), graph=graph)


def test_a_change_in_training_mode_is_left_in_training_mode() -> None:
    model = small_model("ResNet", "ForImageClassification").train()
    before = state_of(model)
    permute(model, random_orders(coupling(model)))
    assert model.training and all(module.training for module in model.modules())
    counted = [name for name in before if name.endswith("num_batches_tracked")]
    assert counted and all(torch.equal(state_of(model)[n], before[n]) for n in counted)


# --- refusals that need no comparison


@pytest.mark.parametrize(
    ("family", "kind", "site", "why"),
    [
        ("Llama", "ForCausalLM", "model.layers.0.self_attn.rotary", "rotary embedding turns"),
        ("Phi3", "ForCausalLM", "model.layers.1.self_attn.rotary", "rotary embedding turns"),
        ("GPTNeoX", "ForCausalLM", "gpt_neox.layers.0.attention.rotary", "rotary embedding"),
        ("Bloom", "Model", "h.0.self_attention.heads", "ALiBi's slopes are computed"),
    ],
)
def test_a_fixed_site_is_refused(family: str, kind: str, site: str, why: str) -> None:
    model = small_model(family, kind)
    size = coupling(model).by_name[site].size
    before = state_of(model)
    with pytest.raises(ValueError, match=f"the order of {site} is fixed: {why}"):
        permute(model, {site: np.arange(size)})
    assert_same_state(model, before)


def test_unrotated_dimensions_are_free_and_turned_ones_are_not() -> None:
    graph = coupling(small_model("GPTNeoX", "ForCausalLM"))
    own = "gpt_neox.layers.0.attention."
    assert graph.by_name[own + "rotary"].fixed and graph.by_name[own + "rotary"].size == 4
    keys = graph.by_name[own + "keys[0]"]
    assert not keys.fixed
    # Head 0 holds q, k and v of 8; the last 4 of q and of k are not turned.
    assert keys.axes[0].members.tolist() == [[4, 12], [5, 13], [6, 14], [7, 15]]


@pytest.mark.parametrize(("share", "turned"), [(0.25, 2), (0.5, 4), (0.4, 4), (1.0, 8)])
def test_dimensions_are_turned_in_pairs(share: float, turned: int) -> None:
    """Of three dimensions the last has a partner that turns with it."""
    model = small_model("GPTNeoX", rotary_pct=share)
    assert coupling(model).by_name["layers.0.attention.rotary"].size == turned


ORDER = np.arange(20)


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ({"model.layers.0.fnn": ORDER}, "there is no site 'model.layers.0.fnn'; there are model"),
        ({"model.layers.7.ffn": ORDER}, "there is no site 'model.layers.7.ffn'"),
        ({"model.layers.0.ffn": ORDER[:-1]}, r"must be 20 integers.*shape \(19,\)"),
        ({"model.layers.0.ffn": ORDER[None]}, r"must be 20 integers.*shape \(1, 20\)"),
        ({"model.layers.0.ffn": ORDER * 1.0}, "must be 20 integers.*got float64"),
        ({"model.layers.0.ffn": ORDER // 2}, "must hold each of 0 to 19 once"),
        ({"model.layers.0.ffn": ORDER - 1}, "must hold each of 0 to 19 once"),
        ({"model.layers.0.self_attn.values": np.arange(8)[None]}, "has 2 blocks, got 1 orders"),
        ({"model.layers.0.self_attn.values[2]": np.arange(8)}, "there is no site"),
    ],
)
def test_bad_orders(orders: dict[str, np.ndarray], message: str) -> None:
    model = small_model("Llama", "ForCausalLM")
    before = state_of(model)
    good = {"residual": np.roll(np.arange(24), 1)}
    with pytest.raises(ValueError, match=message):
        permute(model, {**good, **orders})
    assert_same_state(model, before)


def test_a_model_of_another_build_is_refused() -> None:
    model = small_model("Bert", is_decoder=True, add_cross_attention=True)
    with pytest.raises(ValueError, match="does not describe cross-attention"):
        coupling(model)
    with pytest.raises(ValueError, match="does not describe backbones"):
        coupling(small_model("Swin", "Backbone", out_features=["stage1", "stage3"]))
    llama = small_model("Llama", "ForCausalLM")
    llama.config.num_key_value_heads = 3
    with pytest.raises(ValueError, match="positions, which"):
        coupling(llama)
    llama.config.model_type = "gpt2"
    with pytest.raises(ValueError, match=r"has no parameter 'wte\.weight'"):
        coupling(llama)
