"""Hidden states leave a reordered model in their original order, however they are asked for."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gyroperm.models import Coupled, Leaving, Spec, coupling, permute, restore_leaving
from gyroperm.models.verify import floats
from small_families import SMALL, assert_same_state, random_orders, small_model, state_of

TOKENS = {"input_ids": torch.arange(2, 26).reshape(2, 12)}
CASES = [
    ("Bert", "Model", TOKENS),
    ("Bert", "ForMaskedLM", TOKENS),
    ("Bert", "ForSequenceClassification", TOKENS),
    ("Roberta", "Model", TOKENS),
    ("DistilBert", "Model", TOKENS),
    ("GPT2", "Model", TOKENS),
    ("GPT2", "LMHeadModel", TOKENS),
    ("Llama", "Model", TOKENS),
    ("Llama", "ForCausalLM", TOKENS),
    ("Qwen3Moe", "Model", TOKENS),
    ("Bloom", "Model", TOKENS),
    ("GPTNeoX", "ForCausalLM", TOKENS),
    ("T5", "Model", {**TOKENS, "decoder_input_ids": TOKENS["input_ids"][:, :5]}),
    ("T5", "ForConditionalGeneration", {**TOKENS, "decoder_input_ids": TOKENS["input_ids"]}),
    ("ViT", "Model", {"pixel_values": torch.linspace(-1, 1, 384).reshape(2, 3, 8, 8)}),
    ("DeiT", "Model", {"pixel_values": torch.linspace(-1, 1, 384).reshape(2, 3, 8, 8)}),
    ("Yolos", "Model", {"pixel_values": torch.linspace(-1, 1, 384).reshape(2, 3, 8, 8)}),
    ("Swin", "Model", {"pixel_values": torch.linspace(-1, 1, 6144).reshape(2, 3, 32, 32)}),
    ("ResNet", "Model", {"pixel_values": torch.linspace(-1, 1, 6144).reshape(2, 3, 32, 32)}),
    ("ResNet", "Backbone", {"pixel_values": torch.linspace(-1, 1, 6144).reshape(2, 3, 32, 32)}),
    ("MobileNetV2", "Model", {"pixel_values": torch.linspace(-1, 1, 6144).reshape(2, 3, 32, 32)}),
]


@torch.no_grad()
def _outputs(model: torch.nn.Module, inputs: dict[str, Any], **asked: Any) -> list[torch.Tensor]:
    return floats(model(**inputs, **asked))


def _same(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    assert [one.shape for one in before] == [one.shape for one in after]
    return all(
        torch.allclose(new, old, rtol=0, atol=2e-4 * old.abs().max().item())
        for old, new in zip(before, after, strict=True)
    )


@pytest.mark.parametrize(("family", "kind", "inputs"), CASES)
def test_all_ways_to_ask(family: str, kind: str, inputs: dict[str, Any]) -> None:
    model = small_model(family, kind)
    ways: list[dict[str, Any]] = [
        {"output_hidden_states": hidden, "return_dict": named, "use_cache": False}
        for hidden in (False, True)
        for named in (True, False)
    ]
    if "pixel_values" in inputs:
        ways = [{key: way[key] for key in way if key != "use_cache"} for way in ways]
    before = [_outputs(model, inputs, **way) for way in ways]
    assert len(before[2]) > len(before[0])
    permute(model, random_orders(coupling(model)))
    after = [_outputs(model, inputs, **way) for way in ways]
    assert all(_same(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("named", [True, False])
def test_the_kind_of_output_stays(named: bool) -> None:
    model = small_model("Bert")
    model.config.return_dict = named
    before = model(**TOKENS, output_hidden_states=True)
    permute(model, random_orders(coupling(model)))
    after = model(**TOKENS, output_hidden_states=True)
    assert type(after) is type(before) and len(after) == len(before) == 3
    assert isinstance(after[2], tuple)
    assert _same(floats(before), floats(after))
    if named:
        assert list(after.keys()) == list(before.keys())
        assert after.last_hidden_state is after["last_hidden_state"] is after[0]


def test_router_logits_leave_in_the_order_of_the_experts() -> None:
    model = small_model("Qwen2Moe", "ForCausalLM", decoder_sparse_step=1)
    graph = coupling(model)
    before = model(**TOKENS, output_router_logits=True).router_logits
    permute(
        model, {s.name: random_orders(graph)[s.name] for s in graph.free if "experts" in s.name}
    )
    after = model(**TOKENS, output_router_logits=True).router_logits
    assert len(before) == 2 and _same(list(before), list(after))


def test_orders_add_up_and_undo() -> None:
    model = small_model("Llama")
    before, start = state_of(model), _outputs(model, TOKENS)
    order = np.random.default_rng(0).permutation(24)
    permute(model, {"residual": order})
    permute(model, {"residual": order})
    assert model.gyroperm_order_residual.tolist() == order[order].tolist()
    assert "forward" in vars(model)
    assert _same(start, _outputs(model, TOKENS))
    permute(model, {"residual": np.argsort(order)})
    permute(model, {"residual": np.argsort(order)})
    assert_same_state(model, before)
    assert "forward" not in vars(model)


@pytest.mark.parametrize(
    ("family", "kind"), [("Bert", "Model"), ("Llama", "ForCausalLM"), ("ResNet", "Backbone")]
)
def test_a_state_dict_loads_into_a_new_model(family: str, kind: str) -> None:
    inputs = next(given for name, what, given in CASES if (name, what) == (family, kind))
    model = small_model(family, kind)
    before = _outputs(model, inputs, output_hidden_states=True)
    permute(model, random_orders(coupling(model)))
    state = model.state_dict()
    new = small_model(family, kind, seed=1)
    with pytest.raises(RuntimeError, match="gyroperm_order_residual"):
        new.load_state_dict(state)
    restored = restore_leaving(new, state)
    assert {site.partition(".")[0] for site in restored} >= {"residual"}
    new.load_state_dict(state)
    assert _same(before, _outputs(new, inputs, output_hidden_states=True))
    # Reordered further, the new model still knows where it came from.
    permute(new, random_orders(coupling(new), seed=2))
    assert _same(before, _outputs(new, inputs, output_hidden_states=True))


def test_saved_and_loaded_by_transformers(tmp_path: Path) -> None:
    """from_pretrained does not know the buffer: hidden states leave in the new order until told."""
    from safetensors.torch import load_file

    model = small_model("Bert")
    before = _outputs(model, TOKENS)
    permute(model, {"residual": np.random.default_rng(0).permutation(24)})
    model.save_pretrained(tmp_path)
    new = type(model).from_pretrained(tmp_path)
    assert not _same(before, _outputs(new, TOKENS))
    assert restore_leaving(new, load_file(tmp_path / "model.safetensors")) == ["residual"]
    assert _same(before, _outputs(new, TOKENS))


def test_forward_called_by_itself() -> None:
    """As sentence-transformers does, past all hooks."""
    model = small_model("Bert")
    before, signature = floats(model.forward(**TOKENS)), inspect.signature(model.forward)
    permute(model, random_orders(coupling(model)))
    assert _same(before, floats(model.forward(**TOKENS)))
    assert inspect.signature(model.forward) == signature


def test_exported_and_compiled() -> None:
    model = small_model("ViT")
    pixels = dict(CASES[14][2])
    before = _outputs(model, pixels)
    permute(model, random_orders(coupling(model)))
    exported = torch.export.export(model, (), pixels, strict=False).module()
    assert _same(before, _outputs(exported, pixels))
    assert _same(before, _outputs(torch.compile(model, backend="eager"), pixels))


def test_another_that_stands_before_forward() -> None:
    """Such as accelerate: before ours or behind it, what it does is still done."""
    model = small_model("Bert")
    before, calls = _outputs(model, TOKENS), []

    def counted(inner: Any) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return inner(*args, **kwargs)

        return forward

    first = model.forward = counted(model.forward)
    order = np.random.default_rng(0).permutation(24)
    permute(model, {"residual": order}, verified=False)
    model.forward = second = counted(model.forward)
    assert _same(before, _outputs(model, TOKENS)) and len(calls) == 2
    permute(model, {"residual": np.argsort(order)}, verified=False)
    assert model.forward is second
    assert _same(before, _outputs(model, TOKENS)) and len(calls) == 4
    permute(model, {"residual": order}, verified=False)
    assert _same(before, _outputs(model, TOKENS)) and len(calls) == 6
    assert first is not second


def test_copies_and_pickles_undo_too() -> None:
    model = small_model("Bert")
    before = _outputs(model, TOKENS)
    permute(model, random_orders(coupling(model)))
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert _same(before, _outputs(again, TOKENS))
        permute(again, random_orders(coupling(again), seed=3))
        assert _same(before, _outputs(again, TOKENS))
    assert _same(before, _outputs(model, TOKENS))


def test_an_inner_model_is_restored_where_it_lies() -> None:
    inner = small_model("Bert")
    before = _outputs(inner, TOKENS)
    permute(inner, random_orders(coupling(inner)))
    outer = torch.nn.Sequential(inner)
    new = torch.nn.Sequential(small_model("Bert", seed=1))
    assert set(restore_leaving(new, outer.state_dict())) == {"residual", "pooled"}
    new.load_state_dict(outer.state_dict())
    assert _same(before, _outputs(new[0], TOKENS))


def test_restoring_what_does_not_fit() -> None:
    model = small_model("Bert")
    assert restore_leaving(model, model.state_dict()) == []
    with pytest.raises(ValueError, match="holds gyroperm_order_stem, but bert has no such site"):
        restore_leaving(model, {"gyroperm_order_stem": torch.arange(24)})
    with pytest.raises(ValueError, match=r"gyroperm_order_residual must have shape \(24,\), got"):
        restore_leaving(model, {"gyroperm_order_residual": torch.arange(23)})
    assert "forward" not in vars(model)


class Two(torch.nn.Module):
    """Returns a tensor, a tuple or a dictionary, as asked."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Linear(3, 5)

    def forward(self, x: torch.Tensor, how: str = "tensor") -> Any:
        y = self.one(x)
        return {"tensor": y, "tuple": (x, [y, y.T]), "dict": {"y": y, "none": None}}[how]


@pytest.mark.parametrize(
    ("how", "leaving"),
    [
        ("tensor", [Leaving("", "rows")]),
        ("tuple", [Leaving("1.0", "rows"), Leaving("1.1", "rows", 0)]),
        ("dict", [Leaving("y", "rows"), Leaving("none", "rows"), Leaving("other", "rows")]),
    ],
)
def test_other_outputs(how: str, leaving: list[Leaving]) -> None:
    torch.manual_seed(0)
    model, x = Two(), torch.randn(4, 3)
    rows = Coupled("rows", {"one.weight[0]": "c", "one.bias[0]": "c"}, order="c")
    before = _outputs(model, {"x": x, "how": how})
    spec = Spec("two", (rows,), tuple(leaving))
    permute(model, {"rows": [4, 2, 0, 1, 3]}, graph=spec, inputs={"x": x, "how": how})
    assert model.one.bias.tolist() != before[0].tolist()
    assert _same(before, _outputs(model, {"x": x, "how": how}))


def test_every_family_is_asked() -> None:
    decoders = {"Mistral", "Qwen2", "Qwen3", "Mixtral", "Qwen2Moe", "Phi3"}
    assert set(SMALL) - decoders - {"XLMRoberta"} == {family for family, *_ in CASES}
