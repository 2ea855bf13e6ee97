"""llm-compressor's ``oneshot`` on a small Llama: channels reordered first, and masks of our own."""

import copy

import numpy as np
import pytest
import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.factory import ModifierFactory
from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
from llmcompressor.modifiers.pruning.wanda import WandaPruningModifier
from tokenizers import Tokenizer, models
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import gyroperm
from doc_pages import run_script
from gyroperm import Pattern
from gyroperm.models import Coupled, FunctionChanged, Leaving, Spec
from gyroperm.plugins import llmcompressor as plugin
from gyroperm.plugins import sparsegpt

SEARCH = {"seed": 0, "stop": gyroperm.MaxRounds(50), "threads": 1}
IGNORE = ["re:.*lm_head"]
MLP = "model.layers.{i}.mlp."
FFN = Spec(
    "llama",
    (
        Coupled(
            "layers.{i}.ffn",
            {
                MLP + "gate_proj.weight[0]": "c",
                MLP + "up_proj.weight[0]": "c",
                MLP + "down_proj.weight[1]": "c",
            },
            order="c",
        ),
    ),
)
LAYER = "model.layers.{i}."
RESIDUAL = Spec(
    "llama",
    (
        *FFN.coupled,
        Coupled(
            "residual",
            {
                "model.embed_tokens.weight[1]": "d",
                **{f"{LAYER}self_attn.{one}_proj.weight[1]": "d" for one in "qkv"},
                f"{LAYER}self_attn.o_proj.weight[0]": "d",
                **{f"{MLP}{one}_proj.weight[1]": "d" for one in ("gate", "up")},
                f"{MLP}down_proj.weight[0]": "d",
                f"{LAYER}input_layernorm.weight[0]": "d",
                f"{LAYER}post_attention_layernorm.weight[0]": "d",
                "model.norm.weight[0]": "d",
                "lm_head.weight[1]": "d",
            },
            order="d",
        ),
    ),
    (Leaving("hidden_states", "residual"),),
)
DOWN = [f"model.layers.{i}.mlp.down_proj" for i in range(2)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # Channels that differ, as those of trained models do.
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(torch.rand(64).add(0.1))
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    # oneshot asks for one, though the data are tokens already.
    tokens = models.WordLevel({str(i): i for i in range(64)}, "0")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(tokens)).save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved):
    return LlamaForCausalLM.from_pretrained(saved).eval()


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 64, (8, 16), generator=generator)
    batches = [
        {"input_ids": row[None], "attention_mask": torch.ones(1, 16).long()} for row in tokens
    ]
    return DataLoader(batches, batch_size=None)


def run(model, data, *modifiers):
    return oneshot(model=model, dataset=data, recipe=list(modifiers))


def weights(model, names=DOWN):
    return {name: model.get_submodule(name).weight.detach().clone() for name in names}


def kept(model, names=DOWN):
    return sum(float(weight.abs().double().sum()) for weight in weights(model, names).values())


def zeros_by_group(weight, m=4):
    return (weight == 0).reshape(len(weight), -1, m).sum(2)


def logits(model, data):
    with torch.no_grad():
        return torch.cat([model(**batch).logits for batch in data])


def calibrated(model, data, name):
    """The inputs of a layer of the dense model, as the calibration sees them."""
    inputs = []
    hook = model.get_submodule(name).register_forward_pre_hook(
        lambda _m, args: inputs.append(args[0].reshape(-1, args[0].shape[-1]))
    )
    logits(model, data)
    hook.remove()
    return torch.cat(inputs)


# --- channels reordered first


@pytest.mark.parametrize("saliency", ["magnitude", "wanda"])
def test_reordering_keeps_the_function(model, data, saliency):
    before, dense = logits(model, data), weights(model)
    reorder = plugin.ReorderModifier(saliency=saliency, graph=FFN, ignore=IGNORE, search=SEARCH)
    run(model, data, reorder)
    assert list(reorder.orders) == ["layers.0.ffn", "layers.1.ffn"]
    for name, order in zip(DOWN, reorder.orders.values(), strict=True):
        assert not np.array_equal(order, np.arange(64))
        assert torch.equal(model.get_submodule(name).weight, dense[name][:, order])
    torch.testing.assert_close(logits(model, data), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("modifier", [WandaPruningModifier, SparseGPTModifier])
def test_the_modifiers_behind_it_keep_more(model, data, modifier):
    def pruning():
        return modifier(sparsity=0.5, mask_structure="2:4", targets=["re:.*down_proj"])

    mlp = model.model.layers[0].mlp
    inputs = calibrated(model, data, "model.layers.0.mlp")
    dense = mlp(inputs).detach()
    plain = copy.deepcopy(model)
    run(plain, data, pruning())
    reorder = plugin.ReorderModifier(saliency="wanda", graph=FFN, ignore=IGNORE, search=SEARCH)
    run(model, data, reorder, pruning())
    for name in DOWN:
        # Plain 2:4 of consecutive columns, which stock kernels read.
        assert (zeros_by_group(model.get_submodule(name).weight) == 2).all()
    lost, plain_lost = (
        (one(inputs).detach() - dense).norm() for one in (mlp, plain.model.layers[0].mlp)
    )
    assert lost < 0.99 * plain_lost
    if modifier is WandaPruningModifier:
        assert kept(model) > 1.02 * kept(plain)


def test_the_residual_stream_moves_and_the_checkpoint_has_no_new_tensor(model, data):
    before, names = logits(model, data), list(model.state_dict())
    queries = [f"model.layers.{i}.self_attn.q_proj" for i in range(2)]
    plain = copy.deepcopy(model)
    reorder = plugin.ReorderModifier(graph=RESIDUAL, ignore=IGNORE, search=SEARCH)
    run(model, data, reorder)
    assert "residual" in reorder.orders
    torch.testing.assert_close(logits(model, data), before, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == names
    # The modifiers' own tracing follows the model as before.
    wanda = {"sparsity": 0.5, "mask_structure": "2:4", "ignore": IGNORE}
    run(plain, data, WandaPruningModifier(**wanda))
    run(model, data, WandaPruningModifier(**wanda))
    assert kept(model, queries) > kept(plain, queries)


def test_a_mask_structure_says_how_many_go(model, data):
    reorder = plugin.ReorderModifier(
        mask_structure="1:4", graph=FFN, targets=["re:.*down_proj"], search=SEARCH
    )
    dense = weights(model)
    run(model, data, reorder)
    for name, order in zip(DOWN, reorder.orders.values(), strict=True):
        expected = gyroperm.solve([dense[name]], n=3, m=4, **SEARCH).col_order
        np.testing.assert_array_equal(order, expected)


def test_sites_limit_what_moves(model, data):
    before = weights(model)
    reorder = plugin.ReorderModifier(graph=FFN, sites=["layers.1.ffn"], search=SEARCH)
    run(model, data, reorder)
    assert list(reorder.orders) == ["layers.1.ffn"]
    assert torch.equal(model.get_submodule(DOWN[0]).weight, before[DOWN[0]])


def test_a_wrong_spec_is_caught_and_leaves_the_model(model, data):
    wrong = Spec("llama", (Coupled("down.{i}", {MLP + "down_proj.weight[1]": "c"}, order="c"),))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FunctionChanged, match="down_proj"):
        run(model, data, plugin.ReorderModifier(graph=wrong, search=SEARCH))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_wanda_s_order_draws_nothing_from_the_global_generator(model, data):
    from llmcompressor.core.state import Data, State

    reorder = plugin.ReorderModifier(saliency="wanda", graph=FFN, search=SEARCH)
    state = torch.random.get_rng_state()
    reorder.initialize(State(model=model, data=Data(calib=data)))
    assert torch.equal(torch.random.get_rng_state(), state)
    # No hook stays behind.
    assert not any(module._forward_pre_hooks for module in model.modules())


# --- masks of our own


FIRST = "model.layers.0.mlp.down_proj"


def test_permuted_wanda_prunes_where_the_mask_says_so(model, data):
    targets = ["re:.*layers.0.mlp.down_proj"]
    dense = model.get_submodule(FIRST).weight.detach().clone()
    norms = calibrated(model, data, FIRST).norm(dim=0)
    plain = copy.deepcopy(model)
    run(plain, data, WandaPruningModifier(sparsity=0.5, mask_structure="2:4", targets=targets))
    run(model, data, plugin.PermutedWandaModifier(targets=targets, search=SEARCH))
    pruned = model.get_submodule(FIRST).weight.detach()
    assert torch.equal(pruned, torch.where(pruned != 0, dense, 0.0))
    assert int((pruned != 0).sum()) == dense.numel() // 2

    def stays(weight):
        return float(((weight != 0) * dense.abs() * norms).sum())

    # True = prune there: the other way round the small half would stay.
    assert stays(pruned) > 1.02 * stays(plain.get_submodule(FIRST).weight)
    assert stays(plain.get_submodule(FIRST).weight) > stays(dense) / 2


def test_permuted_wanda_takes_any_pattern(model, data):
    pattern = Pattern.hinm(vec_ratio=0.5, vec_size=8)
    modifier = plugin.PermutedWandaModifier(pattern=pattern, ignore=IGNORE, search=SEARCH)
    run(model, data, modifier)
    for weight in weights(model).values():
        assert float((weight != 0).float().mean()) == 0.25


def test_permuted_sparsegpt_loses_less_than_its_own(model, data):
    targets = ["re:.*layers.0.mlp.down_proj"]
    dense = model.get_submodule(FIRST).weight.detach().clone()
    inputs = calibrated(model, data, FIRST)
    plain = copy.deepcopy(model)
    run(plain, data, SparseGPTModifier(sparsity=0.5, mask_structure="2:4", targets=targets))
    run(model, data, plugin.PermutedSparseGPTModifier(targets=targets, search=SEARCH))
    pruned = model.get_submodule(FIRST).weight.detach()
    assert int((pruned != 0).sum()) == dense.numel() // 2

    def lost(weight):
        return float(((weight.detach() - dense) @ inputs.T).norm())

    assert lost(pruned) < lost(plain.get_submodule(FIRST).weight) < lost(dense * (pruned != 0))
    expected = sparsegpt.prune(dense, inputs.T @ inputs, **SEARCH).weights
    torch.testing.assert_close(pruned, expected, rtol=1e-3, atol=1e-4)


# --- recipes


def test_recipes_in_yaml_know_the_modifiers(model, data, tmp_path):
    recipe = """
    prune_stage:
      prune_modifiers:
        PermutedWandaModifier:
          targets: ["re:.*down_proj"]
          mask_structure: "3:4"
          search: {seed: 0, method: gyro}
    """
    oneshot(model=model, dataset=data, recipe=recipe, output_dir=str(tmp_path / "out"))
    for weight in weights(model).values():
        assert float((weight != 0).float().mean()) == 0.25
    again = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(again, data), logits(model, data))
    assert "PermutedWandaModifier" in (tmp_path / "out" / "recipe.yaml").read_text()
    for one in ("ReorderModifier", "PermutedSparseGPTModifier"):
        assert one in ModifierFactory._registered_registry


# --- bad input


def test_what_is_wrong_is_named(model, data):
    def run_one(**fields):
        run(model, data, plugin.ReorderModifier(graph=FFN, search=SEARCH, **fields))

    with pytest.raises(ValueError, match="mask_structure must be"):
        run_one(mask_structure="0:0")
    with pytest.raises(ValueError, match="leave no linear layer"):
        run_one(targets=["re:.*nothing"])
    with pytest.raises(ValueError, match="needs calibration data"):
        oneshot(model=model, recipe=[plugin.ReorderModifier(graph=FFN, saliency="wanda")])
    with pytest.raises(ValueError, match="Input should be"):
        run_one(saliency="guess")


# --- the page


def test_the_script_of_the_page(tmp_path):
    printed = run_script("plugins/llmcompressor.md", tmp_path)
    assert "reordered" in printed
