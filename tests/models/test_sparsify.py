"""Models pruned: what is kept, where, and that the function is the same before anything is."""

from __future__ import annotations

import copy
import json
import random
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

import gyroperm
from gyroperm import MaxRounds, Pattern
from gyroperm.models import (
    Calibration,
    Coupled,
    FunctionChanged,
    LayerInputs,
    Spec,
    calibrate,
    permute,
    sparsify,
)
from gyroperm.models.layers import prunable_layers
from small_families import new_model
from small_models import (
    CNN,
    bert,
    cnn,
    gpt2,
    grouped,
    kept_in_groups,
    llama,
    outputs,
    pictures,
    tokens,
    top,
)

ROUNDS = MaxRounds(10)

MODELS = {
    "bert": (bert, None, tokens),
    "llama": (llama, None, tokens),
    "gpt2": (gpt2, None, tokens),
    "cnn": (cnn, CNN, pictures),
}


def pruned(model, **options):
    return sparsify(model, "2:4", stop=ROUNDS, progress=False, threads=1, **options)


def oriented(model, name, array):
    """An array of a parameter's layout as (out, in, ...)."""
    return np.asarray(prunable_layers(model)[name].oriented(array))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model, before):
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[n], before[n]) for n in before)


@pytest.fixture(scope="module", params=MODELS)
def surgery(request):
    """A dense model, the same one reordered, and the same one pruned with surgery."""
    make, spec, data = MODELS[request.param]
    dense = make()
    model = copy.deepcopy(dense)
    batches = data()
    calibration = calibrate(dense, batches, statistics="gram")
    inputs = batches[0]
    report = pruned(
        model,
        surgery=True,
        graph=spec,
        saliency="wanda",
        calibration=calibration,
        inputs=inputs,
    )
    reordered = copy.deepcopy(dense)
    permute(reordered, report.orders, graph=report.graph, verified=False)
    return dense, reordered, model, report, batches, calibration


def test_every_weight_keeps_exactly_2_of_4_consecutive_channels(surgery):
    _, _, model, report, _, _ = surgery
    assert report.masks
    for name, mask in report.masks.items():
        weight = model.get_parameter(name)
        assert mask.dtype == torch.bool and mask.shape == weight.shape
        assert (kept_in_groups(oriented(model, name, mask.numpy())) == 2).all()
        assert not weight[~mask].any() and weight[mask].all()


def test_the_function_is_unchanged_before_masking_and_then_only_masked(surgery):
    dense, reordered, model, report, batches, _ = surgery
    # Llama's norms compute in float32, whatever they are asked for.
    allowed = 1e-10 if report.verified.dtype == torch.float64 else 1e-6
    assert report.verified.error < allowed
    assert any((order != np.arange(len(order))).any() for order in report.orders.values())
    before = outputs(dense, batches[1])
    assert outputs(reordered, batches[1]) == pytest.approx(before, abs=allowed * abs(before).max())
    masked = state(reordered)
    for name, mask in report.masks.items():
        masked[name] = torch.where(mask, masked[name], 0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, masked.get(name, value)), name


def test_no_coupled_group_keeps_less_than_without_permutation(surgery):
    assert surgery[3].sites
    for site in surgery[3].sites:
        assert site.identity <= site.retained <= site.unstructured
    assert sum(s.retained for s in surgery[3].sites) > sum(s.identity for s in surgery[3].sites)
    totals = surgery[3].totals
    assert totals["identity"] < totals["retained"] <= totals["unstructured"]


def test_masks_and_measures_are_those_of_the_reordered_models_own_saliency(surgery):
    """Calibrated anew, in the new order: statistics have followed the channels."""
    dense, reordered, _, report, batches, calibration = surgery
    anew = calibrate(reordered, batches, statistics="gram")
    for row in report.layers:
        module = row.name.removesuffix(".weight")
        assert report.calibration[module].norms == pytest.approx(anew[module].norms, rel=1e-4)
        kept = report.calibration[module].ordered_gram
        if kept is not None:
            assert kept == pytest.approx(
                anew[module].gram, abs=1e-4 * float(anew[module].gram.max())
            )
        for model, statistics, total in (
            (reordered, report.calibration, row.retained),
            (dense, calibration, row.identity),
        ):
            weights = oriented(model, row.name, model.get_parameter(row.name).detach())
            S = gyroperm.wanda(np.array(weights), statistics[module].norms.astype(np.float32))
            assert S[top(S)].sum(dtype=float) == pytest.approx(total, rel=1e-6)
            if model is reordered:
                mask = oriented(model, row.name, report.masks[row.name])
                assert np.array_equal(mask, top(S))
                error = row.output_error
            else:
                mask, error = top(S), row.identity_error
            if kept is None:
                assert np.isnan(error)
            else:
                gram = statistics[module].ordered_gram
                expected = gyroperm.output_error(weights, weights * mask, gram=gram)
                assert error == pytest.approx(expected, rel=1e-4)


def test_the_coupled_groups_are_all_there():
    llama_sites = {s.name: s for s in pruned(llama(), surgery=True).sites}
    heads = [f"model.layers.{i}.self_attn.values[{h}]" for i in range(2) for h in range(2)]
    ffn = [f"model.layers.{i}.ffn" for i in range(2)]
    assert list(llama_sites) == [*heads, *ffn, "residual"]
    # Eight dimensions of a head, in two query heads each, of 32 output rows.
    assert llama_sites[heads[0]].size == 8 and llama_sites[heads[0]].weights == 2 * 32 * 8
    # q, k, v, gate, up of both layers; the output head is skipped.
    assert len(llama_sites["residual"].layers) == 10
    gpt2_sites = {s.name: s for s in pruned(gpt2(), surgery=True).sites}
    assert gpt2_sites["transformer.h.0.ffn"].layers == ("transformer.h.0.mlp.c_proj.weight",)
    assert gpt2_sites["residual"].weights == 2 * 32 * (96 + 128)


def test_blocks_of_whole_groups_lose_nothing_by_staying():
    """Heads of eight dimensions are two groups each wherever they go; those of six straddle."""
    assert pruned(llama(), surgery=True).unsearched == {}
    left = pruned(new_model("GPT2", "LMHeadModel"), surgery=True).unsearched
    kinds = {name.partition("[")[0].rpartition(".")[2] for name in left}
    assert kinds == {"values", "heads"}
    assert set(left.values()) == {"its channels do not lie in runs of whole groups of 4"}


def test_gpt2_groups_run_along_its_input_channels_which_are_dimension_0():
    model = gpt2()
    report = pruned(model, surgery=True)
    mask = report.masks["transformer.h.0.mlp.c_fc.weight"]
    assert mask.shape == (32, 128)
    assert (mask.reshape(8, 4, 128).sum(dim=1) == 2).all()
    assert not (mask.T.reshape(32, 32, 4).sum(dim=1) == 2).all()
    row = next(r for r in report.layers if r.name == "transformer.h.0.mlp.c_fc.weight")
    assert row.transposed and "32x128 (in, out)" in str(report)
    assert "embedding" in report.skipped["lm_head.weight"]
    assert "lm_head.weight" not in report.masks


@pytest.mark.parametrize("saliency", ["magnitude", "ria", "obs"])
def test_saliencies(saliency):
    model = llama()
    data = tokens()
    calibration = None if saliency == "magnitude" else calibrate(model, data, statistics="gram")
    report = pruned(model, saliency=saliency, calibration=calibration)
    dense = llama()
    for row in report.layers:
        weights = dense.get_parameter(row.name).detach().numpy()
        if saliency == "magnitude":
            S = gyroperm.magnitude(weights)
        elif saliency == "ria":
            norms = calibration[row.name.removesuffix(".weight")].norms
            S = gyroperm.ria(weights, norms.astype(np.float32))
        else:
            S = gyroperm.obs(weights, calibration[row.name.removesuffix(".weight")].gram)
        mask = report.masks[row.name].numpy()
        assert gyroperm.retained(S, mask) == pytest.approx(row.retained, rel=1e-5)
        assert gyroperm.retained(S, top(S)) == pytest.approx(row.identity, rel=1e-5)
        assert row.retained > row.identity and row.efficacy > 0


def test_obs_with_surgery_follows_the_channels():
    model, data = bert(), tokens()
    report = pruned(model, surgery=True, saliency="obs", calibration=data)
    reordered = bert()
    permute(reordered, report.orders, graph=report.graph, verified=False)
    anew = calibrate(reordered, data, statistics="gram")
    for row in report.layers:
        weights = reordered.get_parameter(row.name).detach().numpy()
        S = gyroperm.obs(weights, anew[row.name.removesuffix(".weight")].gram)
        assert S[top(S)].sum(dtype=float) == pytest.approx(row.retained, rel=1e-3)
        assert np.isfinite(row.output_error)


def test_a_saliency_of_ones_own_sees_weights_gradients_and_inputs():
    model, seen = gpt2(), {}
    model(**tokens()[0], labels=tokens()[0]["input_ids"]).loss.backward()

    def taylor(layer):
        seen[layer.name] = layer
        return np.abs(layer.weights * layer.gradient)

    calibration = calibrate(model, tokens(), statistics="gram")
    report = pruned(model, saliency=taylor, calibration=calibration)
    name = "transformer.h.0.mlp.c_fc.weight"
    layer, dense = seen[name], gpt2().get_parameter(name).detach().numpy()
    assert np.array_equal(layer.weights, dense.T)
    assert layer.gradient.shape == (128, 32) and np.abs(layer.gradient).sum() > 0
    assert layer.norms.shape == (32,) and layer.gram.shape == (32, 32)
    assert report.settings["saliency"] == "taylor"
    row = next(r for r in report.layers if r.name == name)
    kept = np.abs(dense.T * layer.gradient)[report.masks[name].numpy().T].sum()
    assert kept == pytest.approx(row.retained, rel=1e-5)


def test_masks_alone_are_those_of_solve_for_each_layer():
    for pattern in (Pattern.nm(2, 4), Pattern.hinm(vec_size=8), Pattern.vnm(8, 2, 8)):
        model, dense = bert(1), bert(1)
        report = sparsify(model, pattern, stop=ROUNDS, progress=False, threads=1)
        assert report.orders == {} and report.graph is None and report.verified is None
        for row in report.layers:
            weights = dense.get_parameter(row.name).detach().numpy()
            solution = gyroperm.solve(weights, pattern=pattern, stop=ROUNDS, threads=1)
            assert np.array_equal(report.masks[row.name].numpy(), solution.mask)
            assert (row.retained, row.identity) == (solution.retained, solution.identity)
            pruned_weights = model.get_parameter(row.name).detach().numpy()
            assert np.array_equal(pruned_weights, solution.apply(weights))
            arrangement = report.arrangements[row.name]
            assert all(map(np.array_equal, arrangement.groups, solution.groups))


def test_a_convolution_network():
    model, dense = cnn(), cnn()
    report = pruned(model, surgery=True, graph=CNN, inputs=pictures()[0])
    assert [s.name for s in report.sites] == ["first", "second"]
    assert report.sites[0].weights == 16 * 9 * 16
    # Four pixels of the flattened map are a whole group wherever they go; two are not.
    assert "third" not in report.unsearched
    straddling = pruned(cnn(pixels=2), surgery=True, graph=CNN, inputs=pictures()[0]).unsearched
    assert re.search("do not lie in runs", straddling["third"])
    assert "3 input channels do not make whole groups of 4" in report.skipped["conv1.weight"]
    assert "1 input channels do not make" in report.skipped["depthwise.weight"]
    assert "output head" in report.skipped["classifier.weight"]
    assert set(report.masks) == {"conv2.weight", "conv3.weight", "hidden.weight"}
    assert torch.equal(model.conv1.weight[0], dense.conv1.weight[report.orders["first"][0]])
    # The flattened map is masked as it lies.
    mask = report.masks["hidden.weight"].numpy()
    assert np.array_equal(mask, top(np.abs(dense.hidden.weight.detach().numpy())))


@pytest.mark.parametrize("saliency", ["magnitude", "wanda", "ria"])
def test_each_group_of_a_grouped_convolution_has_its_own_channels(saliency):
    model, graph = grouped()
    dense = copy.deepcopy(model)
    data = [torch.randn(2, 8, 5) * torch.arange(1, 9)[:, None] for _ in range(3)]
    calibration = calibrate(model, data)
    report = pruned(
        model,
        surgery=True,
        graph=graph,
        saliency=saliency,
        calibration=calibration,
        inputs=data[0],
        include="grouped",
    )
    assert [site.weights for site in report.sites] == [6 * 3 * 8] * 2
    weights = dense.grouped.weight.detach().numpy()
    for g in range(2):
        order = report.orders[f"inputs[{g}]"]
        own = weights[6 * g : 6 * g + 6][:, order]
        norms = calibration["grouped"].norms[8 * g : 8 * g + 8][order].astype(np.float32)
        S = {
            "magnitude": np.abs(own),
            "wanda": gyroperm.wanda(own, norms),
            "ria": gyroperm.ria(own, norms),
        }[saliency]
        site = report.sites[g]
        assert S[top(S)].sum(dtype=float) == pytest.approx(site.retained, rel=1e-5)
        assert np.array_equal(report.masks["grouped.weight"].numpy()[6 * g : 6 * g + 6], top(S))
        assert site.retained >= site.identity
    anew = calibrate(permuted(dense, report), data)["grouped"].norms
    assert report.calibration["grouped"].norms == pytest.approx(anew, rel=1e-5)


def permuted(model, report):
    permute(model, report.orders, graph=report.graph, verified=False)
    return model


def test_an_order_that_costs_unsearched_weights_more_than_it_gains_is_left():
    """Two pixels a channel: groups of four straddle channels, and are not searched."""

    def make(scale):
        model = cnn(pixels=2)
        with torch.no_grad():
            # As they lie the flattened weights lose next to nothing.
            model.hidden.weight.mul_(1e-3)
            model.hidden.weight[:, ::2] += scale
        return model

    third = CNN.coupled[2]
    reader = Coupled(third.name, {**third.axes, "reader.weight[1]": "c"}, "c", sizes={"c": 32})
    spec = Spec("with a reader", (reader,))

    def run(scale):
        model = make(scale)
        model.reader = nn.Linear(32, 8)
        with torch.no_grad():
            nn.init.normal_(model.reader.weight, generator=torch.Generator().manual_seed(0))
        dense = copy.deepcopy(model)
        return dense, model, pruned(model, surgery=True, graph=spec, verified=False)

    dense, model, report = run(0.0)
    assert [s.kept for s in report.sites] == [True] and list(report.orders) == ["third"]
    dense, model, report = run(100.0)
    # Whole channels move, so what lies in even places stays there: the order still costs nothing.
    hidden = next(r for r in report.layers if r.name == "hidden.weight")
    both = [r for r in report.layers if r.name in ("hidden.weight", "reader.weight")]
    assert sum(r.retained for r in both) >= sum(r.identity for r in both)
    assert hidden.kept == hidden.weights // 2

    def spiteful(layer):
        # Pairs of neighbours that must not meet: big with big keeps less.
        if layer.name == "hidden.weight":
            S = np.full(layer.weights.shape, 1e-6)
            S[:, 0::8] = S[:, 1::8] = S[:, 4::8] = S[:, 5::8] = 0
            S[:, 2::8] = S[:, 3::8] = S[:, 6::8] = S[:, 7::8] = 1000.0
            return S
        return np.abs(layer.weights)

    model = copy.deepcopy(dense)
    report = pruned(model, surgery=True, graph=spec, verified=False, saliency=spiteful)
    assert [s.kept for s in report.sites] == [False] and report.orders == {}
    assert torch.equal(model.conv3.weight != 0, report.masks["conv3.weight"])
    assert torch.equal(model.conv3.bias, dense.conv3.bias)


def test_a_run_that_was_interrupted_goes_on(tmp_path, monkeypatch):
    from gyroperm.models import solutions

    whole_model = llama()
    whole = pruned(whole_model, surgery=True)
    calls = []
    solve = solutions.solve

    def counted(*args, **named):
        if named.get("method") != "identity":
            calls.append(named["seed"])
            if len(calls) == 4:
                raise KeyboardInterrupt
        return solve(*args, **named)

    monkeypatch.setattr(solutions, "solve", counted)
    model = llama()
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        pruned(model, surgery=True, store=tmp_path / "store")
    assert unchanged(model, before)
    assert len(list((tmp_path / "store").iterdir())) == 3
    report = pruned(model, surgery=True, store=tmp_path / "store")
    assert len(calls) == 4 + len(whole.sites) - 3
    assert all(np.array_equal(report.orders[name], whole.orders[name]) for name in whole.orders)
    assert unchanged(model, state(whole_model))
    again = llama()
    pruned(again, surgery=True, store=tmp_path / "store")
    assert len(calls) == 4 + len(whole.sites) - 3 and unchanged(again, state(whole_model))
    # Other settings, and other weights, are other solutions; so are damaged files none.
    for file in (tmp_path / "store").iterdir():
        file.write_bytes(b"PK damaged")
    pruned(llama(), surgery=True, store=tmp_path / "store", seed=1)
    pruned(llama(), surgery=True, store=tmp_path / "store")
    assert len(calls) == 4 + len(whole.sites) - 3 + 2 * len(whole.sites)


def test_the_same_seed_gives_the_same_for_any_number_of_threads_and_touches_no_global_state():
    def run(threads, seed=0):
        model = bert()
        report = sparsify(
            model, "2:4", surgery=True, stop=ROUNDS, threads=threads, seed=seed, progress=False
        )
        return state(model), report

    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    run(1)
    drawn = torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002
    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    bert()
    torch.manual_seed(0)
    expected = np.random.rand(), random.random()  # noqa: NPY002
    assert drawn[1:] == expected
    first, report = run(1)
    second, other = run(2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(np.array_equal(report.orders[n], other.orders[n]) for n in report.orders)
    assert any(not np.array_equal(report.orders[n], run(1, 7)[1].orders[n]) for n in report.orders)


def test_torchs_random_state_is_left_alone():
    model = bert()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    pruned(model, surgery=True)
    assert torch.equal(torch.rand(3), expected)


def test_frozen_and_shared_weights_are_pruned_once_and_said_to_be():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
            self.second.weight = self.first.weight
            self.frozen = nn.Linear(8, 8).requires_grad_(False)

        def forward(self, x):
            return self.frozen(self.second(self.first(x).relu()).relu())

    torch.manual_seed(0)
    model = Shared()
    data = [torch.randn(5, 8)]
    calibration = calibrate(model, data)
    dense = model.first.weight.detach().clone().numpy()
    report = pruned(model, saliency="wanda", calibration=calibration)
    assert list(report.masks) == ["first.weight", "frozen.weight"]
    shared, frozen = report.layers
    assert shared.shared == ("first", "second") and not shared.frozen and frozen.frozen
    assert "shared by first, second" in str(report) and "frozen" in str(report)
    # What both modules are fed counts.
    norms = np.hypot(calibration["first"].norms, calibration["second"].norms)
    S = gyroperm.wanda(dense, norms.astype(np.float32))
    kept = gyroperm.retained(S, report.masks["first.weight"].numpy())
    assert kept == pytest.approx(shared.retained, rel=1e-6)
    assert (model.frozen.weight == 0).sum() == 32
    assert report.masks["frozen.weight"].sum() == 32


def test_a_matrix_shared_with_an_embedding_is_left_as_it_is():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(16, 8)
            self.body, self.out = nn.Linear(8, 8), nn.Linear(8, 16, bias=False)
            self.out.weight = self.table.weight

        def forward(self, x):
            return self.out(self.body(self.table(x)))

    report = pruned(Tied())
    assert list(report.masks) == ["body.weight"]
    (reason,) = report.skipped.values()
    assert "embedding" in reason


def test_include_exclude_and_embeddings():
    report = pruned(bert(), include=r"layer\.0\.", exclude=["query", r"output\.dense"])
    assert [name.split(".", 3)[-1] for name in report.masks] == [
        "attention.self.key.weight",
        "attention.self.value.weight",
        "intermediate.dense.weight",
    ]
    assert report.skipped["encoder.layer.1.intermediate.dense.weight"] == "matched by no include"
    assert report.skipped["encoder.layer.0.output.dense.weight"] == "matched by exclude"
    assert "classifier.weight" in pruned(cnn(), embeddings=True, exclude="conv").masks


def test_low_precision_weights_keep_their_dtype():
    model = bert().bfloat16()
    report = pruned(model, surgery=True)
    for name, mask in report.masks.items():
        weight = model.get_parameter(name)
        assert weight.dtype == torch.bfloat16 and not weight[~mask].any()
        assert (kept_in_groups(mask.numpy()) == 2).all()


def test_the_report(tmp_path):
    report = pruned(bert(), surgery=True, calibration=tokens())
    text = str(report)
    assert text.startswith("2:4, with surgery, saliency magnitude")
    for row in report.layers:
        assert row.name in text and f"{row.ratio:.4f}" in text and f"{row.efficacy:.2f} %" in text
        assert f"{row.output_error:.4f}" in text and f"{row.identity_error:.4f}" in text
    assert f"total of {len(report.layers)}" in text
    assert f"reordered {len(report.orders)} sites" in text
    assert "a parameter of Embedding" in text
    report.save(tmp_path / "report.json")
    read = json.loads((tmp_path / "report.json").read_text())
    assert [layer["name"] for layer in read["layers"]] == list(report.masks)
    assert read["layers"][0]["retained"] == report.layers[0].retained
    assert read["totals"]["kept"] * 2 == read["totals"]["weights"]
    assert read["orders"]["residual"] == report.orders["residual"].tolist()
    assert read["pattern"]["text"] == "2:4" and read["seed"] == 0
    assert read["verified"]["dtype"] == "float64"
    report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_progress_bar_names_the_site(capsys):
    sparsify(bert(1), "2:4", surgery=True, stop=ROUNDS)
    assert "residual" in capsys.readouterr().err


# --- what is refused, and leaves the model as it was


def wrong_llama():
    """Values tied across key-value heads: the order of one is applied to the other's outputs."""
    axes = {"model.layers.{i}.self_attn.o_proj.weight[1]": "kv rep hd"}
    sizes = {"kv": 2, "rep": 2}
    return Spec("wrong", (Coupled("model.layers.{i}.values", axes, "hd", "kv", sizes),))


def test_a_wrong_spec_is_caught_and_the_model_left_as_it_was():
    model = llama()
    before = state(model)
    with pytest.raises(FunctionChanged, match=r"o_proj|self_attn"):
        pruned(model, surgery=True, graph=wrong_llama())
    assert unchanged(model, before)


def test_a_failure_after_reordering_takes_the_orders_back():
    model, calls = bert(), []
    before = state(model)

    def failing(layer):
        calls.append(layer.name)
        # Before, for the search, and again when all is reordered.
        if calls.count("pooler.dense.weight") == 3:
            raise RuntimeError("enough")
        return np.abs(layer.weights)

    with pytest.raises(RuntimeError, match="enough"):
        pruned(model, surgery=True, saliency=failing)
    assert unchanged(model, before) and not model._forward_hooks
    assert not any("gyroperm" in name for name, _ in model.named_buffers())


def with_nan():
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    return model


def unreached():
    calibration = calibrate(llama(), tokens())
    left = dict(calibration.layers)
    del left["model.layers.1.mlp.up_proj"]
    return Calibration(left, 4)


def of_another():
    layers = dict(calibrate(llama(), tokens()).layers)
    layers["model.layers.0.mlp.up_proj"] = LayerInputs(3, np.ones(7))
    return Calibration(layers, 4)


@pytest.mark.parametrize(
    ("make", "pattern", "options", "error", "message"),
    [
        (llama, "2-4", {}, ValueError, "pattern must be N:M such as '2:4'.*'2-4'"),
        (llama, 2, {}, TypeError, "pattern must be a gyroperm.Pattern or text.*int"),
        (llama, "5:4", {}, ValueError, "n must be at most m"),
        (llama, Pattern.hinm(), {"surgery": True}, ValueError, "surgery is for plain N:M.*HiNM"),
        (cnn, "2:4", {"graph": CNN}, ValueError, "graph is only used with surgery=True"),
        (llama, "2:4", {"saliency": "best"}, ValueError, "saliency must be one of.*'best'"),
        (llama, "2:4", {"saliency": "wanda"}, ValueError, "'wanda' needs calibration"),
        (llama, "2:4", {"method": "none"}, ValueError, "none"),
        (llama, "2:4", {"seed": -1}, ValueError, "seed must be an integer"),
        (llama, "2:4", {"time_limit": -1}, ValueError, "time_limit must not be negative"),
        (llama, "2:4", {"include": "nothing"}, ValueError, "include 'nothing' matches no weight"),
        (llama, "2:4", {"exclude": "["}, ValueError, r"exclude must be regular expressions.*'\['"),
        (llama, "2:4", {"exclude": "."}, ValueError, "nothing to prune.*matched by exclude"),
        (cnn, "2:4", {"strict": True}, ValueError, "conv1.weight: its 3 input channels.*strict"),
        (llama, "2:5", {}, ValueError, "nothing to prune.*do not make whole groups of 5"),
        (nn.ReLU, "2:4", {}, ValueError, "ReLU has nothing to prune"),
        (with_nan, "2:4", {}, ValueError, r"layers.1.mlp.up_proj.weight must be finite.*\(3, 4\)"),
        (
            llama,
            "2:4",
            {"saliency": "wanda", "calibration": unreached},
            ValueError,
            "never reached 'model.layers.1.mlp.up_proj'",
        ),
        (
            llama,
            "2:4",
            {"saliency": "ria", "calibration": of_another},
            ValueError,
            "calibration of model.layers.0.mlp.up_proj.weight has 7 input channels.*has 32",
        ),
        (
            llama,
            "2:4",
            {"saliency": "obs", "calibration": lambda: calibrate(llama(), tokens())},
            ValueError,
            "'obs' needs the Gram matrix of model.layers.0.self_attn.q_proj.weight",
        ),
        (
            llama,
            "2:4",
            {"saliency": lambda: lambda layer: -np.ones(layer.weights.shape)},
            ValueError,
            "saliency of model.layers.0.self_attn.q_proj.weight must not be negative",
        ),
        (
            llama,
            "2:4",
            {"saliency": lambda: lambda layer: np.ones(3)},
            ValueError,
            r"saliency of model.layers.0.self_attn.q_proj.weight must have the shape \(32, 32\)",
        ),
        (
            cnn,
            "2:4",
            {"surgery": True, "graph": CNN},
            ValueError,
            "inputs must be given",
        ),
    ],
)
def test_bad_input(make, pattern, options, error, message):
    model = make()
    before = state(model)
    given = {
        key: value() if callable(value) and key in ("calibration", "saliency") else value
        for key, value in options.items()
    }
    with pytest.raises(error, match=message):
        sparsify(model, pattern, stop=ROUNDS, progress=False, **given)
    now = model.state_dict()
    assert all(torch.equal(now[n].nan_to_num(9), before[n].nan_to_num(9)) for n in before)


def test_obs_skips_convolutions():
    model = cnn()
    report = pruned(model, saliency="obs", calibration=pictures(20))
    assert list(report.masks) == ["hidden.weight"]
    assert "OBS is for linear layers" in report.skipped["conv2.weight"]


MEMORY = """
    import resource, sys, tracemalloc
    import torch
    from torch import nn
    from gyroperm import MaxRounds
    from gyroperm.models import Coupled, Spec, sparsify

    width, hidden = 512, 256
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

        def forward(self, x):
            return x + self.down(self.up(x).relu())

    class Model(nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.layers = nn.ModuleList(Block() for _ in range(layers))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    ffn = {"layers.{i}.up.weight[0]": "c", "layers.{i}.up.bias[0]": "c"}
    ffn["layers.{i}.down.weight[1]"] = "c"
    spec = Spec("blocks", (Coupled("layers.{i}.ffn", ffn, "c"),))
    inputs = torch.randn(2, width)
    options = dict(surgery=True, graph=spec, inputs=inputs, stop=MaxRounds(2), threads=1)
    sparsify(Model(1), "2:4", progress=False, **options)
    for layers in map(int, sys.argv[1:]):
        model = Model(layers)
        # High-water marks count what torch allocates too, which tracemalloc does not see.
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tracemalloc.start()
        report = sparsify(model, "2:4", progress=False, **options)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
        assert len(report.sites) == layers
        masks = sum(mask.numel() for mask in report.masks.values())
        size = 4 * sum(p.numel() for p in model.parameters())
        print(peak, masks, 1024 * resident, 4 * width * hidden, size)
        del model, report
"""


def peaks(*layers):
    script = textwrap.dedent(MEMORY)
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, layers)],
        capture_output=True,
        text=True,
        check=True,
    )
    return [tuple(map(int, line.split())) for line in done.stdout.splitlines()]


def test_one_coupled_group_at_a_time_is_held_beside_the_model():
    """What is held besides masks: saliency, the search's copies of it, measures of one group."""
    (few, _, _, group, _), (many, masks, resident, _, model) = peaks(4, 40)
    assert few < 6 * group, (few, group)
    assert many - masks < 6 * group < model / 10, (many, masks, group, model)
    assert resident - masks < model / 3, (resident, masks, model)
