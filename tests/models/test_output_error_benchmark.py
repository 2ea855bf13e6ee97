"""The benchmark of output errors: a tiny run of it, its goals, and what it writes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

# Last on the path, and gyroperm is imported by now: the tree cannot shadow what is installed.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import minilm, output_cells, output_error, output_report  # noqa: E402
from benchmarks.output_cells import LAYERS, PATTERNS, PERMUTATIONS, Data  # noqa: E402
from benchmarks.sentences import read_sentences  # noqa: E402

METHODS = ["none", "learned-published", "auto-error", "auto-compensated"]
OPTIONS = ["--layers", "1", "--sentences", "9", "--seconds", "0.05", "--methods", *METHODS]


def run(out, *options):
    arguments = ["--quick", "--quiet", "--threads", "1", "--out", str(out), *OPTIONS, *options]
    assert output_error.main(arguments) == 0
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    for package in ("sentence_transformers", minilm.PACKAGE):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("output_error")
    page = folder / "page.md"
    page.write_text(f"before\n{output_report.BEGIN}\nold\n{output_report.END}\nafter\n")
    out, plot = folder / "found.json", folder / "found.png"
    content = run(out, "--page", str(page), "--plot", str(plot))
    return out, content, page.read_text(), plot


def test_every_row_is_measured_plain_and_compensated(tiny):
    _, content, _, _ = tiny
    found = {(one["pattern"], one["permutation"]): one for one in content["results"]}
    assert set(found) == {(pattern, method) for pattern in PATTERNS for method in METHODS}
    for (pattern, method), one in found.items():
        (layer,) = one["layers"]
        assert layer["layer"] == LAYERS[0] and "masks" not in layer
        for mask in output_cells.MASKS:
            plain, compensated = (layer["errors"][mask][k] for k in ("plain", "compensated"))
            assert 0 < plain < 1 and 0 < compensated < 1
        assert layer["seconds"] > 0
        for kind, model in one["models"].items():
            # The first layer is fed by the dense model, whatever is pruned.
            own = "error" if PERMUTATIONS[method].by_error else "saliency"
            expected = layer["errors"][own][kind]
            assert model["errors"] == {LAYERS[0]: pytest.approx(expected, rel=1e-4)}
            assert 0.5 < model["mean_cosine"] < 1.0 + 1e-6
        assert one["saliency"] == "wanda" and pattern in PATTERNS
    assert content["goals"] and content["settings"]["iterations"] == 2


def test_an_error_is_that_of_the_outputs_for_sentences_not_seen(tiny):
    _, content, _, _ = tiny
    data = Data(read_sentences()[:9], LAYERS[:1])
    assert len(data.held_out) == 6 and not set(data.held_out) & set(data._seen)
    (none,) = [
        one
        for one in content["results"]
        if one["permutation"] == "none" and one["pattern"] == "2:4"
    ]
    layer = LAYERS[0]
    W = data.weights[layer].astype(np.float64)
    groups = data.saliency("wanda", layer).reshape(len(W), -1, 4)
    ranks = np.argsort(np.argsort(-groups, axis=2, kind="stable"), axis=2)
    pruned = np.where((ranks < 2).reshape(W.shape), W, 0.0)
    fed = []
    module = data.encoder.bert.get_submodule(layer)
    hook = module.register_forward_pre_hook(lambda _, given: fed.append(given[0].flatten(0, 1)))
    for sentence in data.held_out:
        data.encoder.embed([sentence])
    hook.remove()
    X = torch.cat(fed).double().numpy()
    expected = np.sum((X @ (W - pruned).T) ** 2) / np.sum((X @ W.T) ** 2)
    found = none["layers"][0]["errors"]["saliency"]["plain"]
    assert found == pytest.approx(expected, rel=1e-4)


def test_embeddings_are_held_against_those_of_the_dense_model_whenever_they_are_asked_for():
    for package in ("sentence_transformers", minilm.PACKAGE):
        pytest.importorskip(package)
    data = Data(read_sentences()[:9], LAYERS[:1])
    W = data.weights[LAYERS[0]]
    # Nothing was asked of the dense model before.
    lost = data.pruned_so_far({LAYERS[0]: np.zeros_like(W)})
    with data.encoder.replaced({LAYERS[0]: np.zeros_like(W)}):
        pruned = data.encoder.embed(data.held_out)
    dense = data.encoder.embed(data.held_out)
    expected = np.sum(dense * pruned, axis=1) / np.linalg.norm(dense, axis=1)
    expected = np.mean(expected / np.linalg.norm(pruned, axis=1))
    assert lost["mean_cosine"] == pytest.approx(expected, abs=1e-5) and expected < 0.999
    assert lost["errors"] == {LAYERS[0]: pytest.approx(1.0)}
    kept = data.pruned_so_far({LAYERS[0]: W})
    assert kept["mean_cosine"] == pytest.approx(1.0, abs=1e-6)
    assert kept["errors"] == {LAYERS[0]: pytest.approx(0.0, abs=1e-9)}


def test_an_interrupted_run_goes_on(tiny, monkeypatch):
    out, content, _, _ = tiny

    def never(*arguments):
        raise AssertionError("measured again")

    monkeypatch.setattr(output_error, "search", never)
    monkeypatch.setattr(output_error.Comparison, "_errors", never)
    monkeypatch.setattr(Data, "pruned_so_far", never)
    assert run(out)["results"] == content["results"]


def test_tables_go_between_the_marks_of_a_page_and_a_picture_is_drawn(tiny, tmp_path):
    _, content, page, plot = tiny
    assert page.startswith(f"before\n{output_report.BEGIN}\n### 2:4\n")
    assert page.endswith(f"|\n{output_report.END}\nafter\n") and "old" not in page
    assert page.count("| Wanda |") == len(content["results"])
    assert plot.read_bytes().startswith(b"\x89PNG")
    unmarked = tmp_path / "page.md"
    unmarked.write_text("nothing")
    with pytest.raises(ValueError, match="must have the lines"):
        output_report.write_section(unmarked, "text")


def test_masks_are_the_same_when_they_are_read_again():
    mask = np.random.default_rng(0).random((5, 7)) < 0.5
    assert np.array_equal(output_cells.unpack(output_cells.pack(mask), mask.shape), mask)


def test_rows_leave_out_what_does_not_exist():
    rows = output_cells.rows(list(PATTERNS), list(output_cells.SALIENCIES), list(PERMUTATIONS))
    found = {(row.pattern, row.saliency, row.permutation) for row in rows}
    assert len(found) == len(rows)
    assert ("2:4", "obs", "stripe") in found and ("HiNM 75 %", "obs", "stripe") not in found
    assert {s for _, s, permutation in found if permutation == "learned-published"} == {"wanda"}


def made_up(permutation, errors, seconds, saliency="wanda", pattern="2:4"):
    """A row whose layers have these errors; half of them compensated."""
    layers = [
        {
            "layer": f"layer {i}",
            "seconds": seconds,
            "errors": {m: {"plain": e, "compensated": e / 2} for m in output_cells.MASKS},
        }
        for i, e in enumerate(errors)
    ]
    return {
        "pattern": pattern,
        "saliency": saliency,
        "permutation": permutation,
        "layers": layers,
    }


def test_goals_count_layers_and_compare_totals_and_seconds():
    none = made_up("none", [1.0] * 10, 0.0)
    learned = made_up("learned-published", [0.5] * 10, 20.0)
    quick = made_up("learned-random", [0.7] * 10, 1.0)
    auto = made_up("auto-error", [0.4] * 9 + [0.6], 1.0)
    lines = output_report.goals([none, learned, quick, auto])
    assert "on 9 of 10 layers, in total 4.2000; the next, learned as published" in lines[0]
    assert lines[0].endswith(": reached")
    assert "takes 0.050 of the seconds" in lines[1] and lines[1].endswith(": reached")
    assert "the same time: auto on output error 4.2000, learned, random start" in lines[2]
    assert "errs by 0.210 of Wanda without either" in lines[-1] and lines[-1].endswith(": reached")
    worse = made_up("auto-error", [0.4] * 8 + [0.6] * 2, 3.0)
    lines = output_report.goals([none, learned, quick, worse])
    assert "on 8 of 10 layers" in lines[0] and lines[0].endswith(": missed")
    assert "takes 0.150 of the seconds" in lines[1] and lines[1].endswith(": missed")
    assert output_report.goals([none]) == []


def test_orders_that_keep_more_and_err_by_more_are_counted():
    def row(permutation, *layers):
        one = made_up(permutation, [error for _, error in layers], 0.0)
        for layer, (ratio, _) in zip(one["layers"], layers, strict=True):
            layer["ratio"] = ratio
        return one

    rows = [
        row("none", (0.90, 0.50), (0.90, 0.50)),
        row("ria", (0.95, 0.40), (0.95, 0.55)),
        row("auto", (0.96, 0.42), (0.9505, 0.60)),
        # No order for the saliency.
        row("auto-error", (0.91, 9.0), (0.91, 9.0)),
    ]
    (line,) = output_report.misled(rows)
    # First auto for ria; then both for none, and of ria and auto neither keeps clearly more.
    assert line.endswith("in 3 of 5 pairs, by 20.0 % at most")
    (line,) = output_report.misled(rows[:1])
    assert line.endswith("in 0 of 0 pairs")


def test_bad_usage_is_refused(tmp_path, capsys):
    for wrong in (["--methods", "magic"], ["--layers", "11"], ["--seconds", "0"]):
        with pytest.raises(SystemExit) as refused:
            output_error.main([*wrong, "--out", str(tmp_path / "found.json")])
        assert refused.value.code == 2
        assert "error" in capsys.readouterr().err
