"""Channels reordered in files: the model computes the same, and groups of m are consecutive."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from gyroperm import Pattern  # noqa: E402
from gyroperm.checkpoints import Job, Settings, read_orders  # noqa: E402
from gyroperm.checkpoints import prune_checkpoint as prune  # noqa: E402
from gyroperm.checkpoints.coupling import composed  # noqa: E402
from gyroperm.checkpoints.tasks import ShardTask  # noqa: E402
from small_checkpoints import results, words_in  # noqa: E402
from small_families import small_model  # noqa: E402
from small_models import kept_in_groups  # noqa: E402

KINDS = {"GPT2": "LMHeadModel", "Bert": "Model", "T5": "ForConditionalGeneration"}


def stored(folder: Path, family: str, **changes) -> Path:
    model = small_model(family, KINDS.get(family, "ForCausalLM"), **changes)
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def computed(folder: Path) -> list[torch.Tensor]:
    """The outputs and the hidden states of a stored model, in float64."""
    config = transformers.AutoConfig.from_pretrained(folder)
    (architecture,) = config.architectures
    model = getattr(transformers, architecture).from_pretrained(folder).double().eval()
    tokens = torch.arange(2, 20).reshape(2, 9)
    more = {"decoder_input_ids": tokens} if config.model_type == "t5" else {}
    with torch.no_grad():
        found = model(tokens, output_hidden_states=True, **more)
    return [found[0], *(found.get("hidden_states") or found["encoder_hidden_states"])]


def reordered(plan, orders: dict[str, np.ndarray], target: Path) -> Path:
    """A checkpoint with its channels in these orders, and nothing masked."""
    source = plan.source
    shapes = {name: tensor.shape for name, tensor in source.tensors.items()}
    moved = composed(plan.coupled.sites, orders, shapes)
    shutil.copytree(source.folder, target)
    for name in source.shards:
        own = {t: o for t, o in moved.items() if source.shard_of[t] == name}
        ShardTask(source.folder / name, target / name, {}, frozenset(), own).run(1)
    return target


def assert_same_function(family: str, surgery: str, model: Path, changed: Path) -> None:
    before, after = computed(model), computed(changed)
    # The residual stream leaves in its new order, where that was asked for.
    seen = (1 if family != "Bert" else 0) if surgery == "all" else len(before)
    for old, new in zip(before[:seen], after[:seen], strict=True):
        # Some norms compute in float32 whatever they are given.
        torch.testing.assert_close(new, old, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("surgery", ["inner", "all"])
@pytest.mark.parametrize(
    "family", ["Llama", "Mistral", "Qwen3", "Phi3", "GPT2", "GPTNeoX", "Bert", "T5"]
)
def test_the_function_stays(tmp_path: Path, family: str, surgery: str) -> None:
    model = stored(tmp_path / "model", family)
    plan = Job(model, tmp_path / "out", Settings(Pattern.nm(), surgery=surgery)).planned()
    rng = np.random.default_rng(0)
    orders = {site.name: rng.permutation(site.size) for site in plan.coupled.sites}
    assert len(orders) > 4
    changed = reordered(plan, orders, tmp_path / "changed")
    assert results(changed) != results(model)
    assert_same_function(family, surgery, model, changed)


@pytest.mark.parametrize(
    ("family", "surgery"), [("Llama", "inner"), ("Llama", "all"), ("GPT2", "all")]
)
def test_orders_that_are_searched(tmp_path: Path, family: str, surgery: str) -> None:
    model, out = stored(tmp_path / "model", family), tmp_path / "out"
    plan = Job(model, out, Settings(Pattern.nm(), surgery=surgery, rounds=3)).planned()
    report = prune(plan)
    orders: dict[str, np.ndarray] = {}
    for group in plan.coupled.groups:
        orders |= read_orders(plan.folder.orders_of(group.name))
    changed = reordered(plan, orders, tmp_path / "changed")
    assert_same_function(family, surgery, model, changed)
    for layer in report["layers"]:
        weight = torch.from_numpy(words_in(out, layer["name"]).view(np.float32))
        dense = torch.from_numpy(words_in(changed, layer["name"]).view(np.float32))
        assert torch.equal(weight[weight != 0], dense[weight != 0])
        if layer["transposed"]:
            weight = weight.T
        assert kept_in_groups(weight).max() <= 2
        # Random weights have no zeros of their own.
        assert int((weight != 0).sum()) == layer["kept"]
        assert layer["retained"] == pytest.approx(float(weight.abs().double().sum()), rel=1e-6)
    for site in report["sites"]:
        assert site["retained"] >= site["identity"] * (1 - 1e-12)
    sums = report["totals"]
    assert sums["retained"] > sums["identity"]


def test_any_number_of_workers(tmp_path: Path) -> None:
    model = stored(tmp_path / "model", "Llama")
    settings = Settings(Pattern.nm(), surgery="inner", method="ria")
    for jobs in (1, 2):
        prune(Job(model, tmp_path / f"out{jobs}", settings), jobs=jobs)
    assert results(tmp_path / "out1") == results(tmp_path / "out2")


def test_what_the_spec_does_not_know_is_refused(tmp_path: Path) -> None:
    model = stored(tmp_path / "model", "Mixtral")
    job = Job(model, tmp_path / "out", Settings(Pattern.nm(), surgery="inner"))
    with pytest.raises(ValueError, match=r"spec of mixtral (does not say|does not fit)"):
        job.planned()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mamba"}, "says model_type 'mamba'; known are bert"),
        ({}, "with a model_type is missing"),
        ({"model_type": "bert"}, "spec of bert does not fit"),
        ({"model_type": "llama"}, "its config.json lacks 'num_attention_heads'"),
    ],
)
def test_an_unknown_architecture(tmp_path: Path, config: dict, message: str) -> None:
    model = stored(tmp_path / "model", "Llama")
    (model / "config.json").write_text(json.dumps(config))
    job = Job(model, tmp_path / "out", Settings(Pattern.nm(), surgery="inner"))
    with pytest.raises(ValueError, match=message):
        job.planned()
