"""A folder of shards pruned into another: what changes, what stays, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_checkpoint import as_float64, random_words, write_raw

import gyroperm
from gyroperm import Pattern
from gyroperm.checkpoint import Checkpoint
from gyroperm.checkpoints import Job, Settings, Source, prune_checkpoint, read_solution
from gyroperm.cli import main
from small_checkpoints import layers, linear, results, sharded, vector, words_in

HINM = Pattern.hinm(vec_size=8)
IDENTITY = Settings(HINM, method="identity")


def solve(*arguments: object, method: str = "identity") -> int:
    return main(["solve", *map(str, arguments), "--method", method])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return sharded(tmp_path / "model", layers())


PRUNED = [f"model.layers.{i}.up.weight" for i in range(4)]


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_shards_keep_everything_but_what_is_pruned(tmp_path: Path, dtype: str) -> None:
    model, out = sharded(tmp_path / "model", layers(dtype=dtype)), tmp_path / "out"
    assert solve(model, "-o", out, "--pattern", "hinm", "--vec-size", 8) == 0
    shards = sorted(file.name for file in model.glob("*.safetensors"))
    assert sorted(file.name for file in out.glob("*.safetensors")) == shards
    for name in shards:
        before, after = (model / name).read_bytes(), (out / name).read_bytes()
        with Checkpoint(model / name) as shard:
            tensors = list(shard.tensors.values())
        first = tensors[0].begin
        assert after[:first] == before[:first]
        for tensor in tensors:
            old, new = before[tensor.begin : tensor.end], after[tensor.begin : tensor.end]
            if tensor.name not in PRUNED:
                assert old == new
                continue
            words = words_in(model, tensor.name)
            found = gyroperm.solve(as_float64(dtype, words), pattern=HINM, method="identity")
            np.testing.assert_array_equal(
                words_in(out, tensor.name), np.where(found.mask, words, 0)
            )
    for name in ("model.safetensors.index.json", "config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (model / name).read_bytes()
    assert not (out / "pytorch_model.bin").exists()


def test_searches_are_those_of_solve(model: Path, tmp_path: Path) -> None:
    report = prune_checkpoint(Job(model, tmp_path / "out", Settings(HINM, seed=3, rounds=20)))
    assert [layer["name"] for layer in report["layers"]] == PRUNED
    for layer in report["layers"]:
        name = layer["name"]
        weights = as_float64("BF16", words_in(model, name)).astype(np.float32)
        expected = gyroperm.solve(weights, pattern=HINM, seed=3, stop=gyroperm.MaxRounds(20))
        for figure in ("retained", "identity", "unstructured", "efficacy", "ratio", "bound"):
            assert layer[figure] == getattr(expected, figure), figure
        stored = read_solution(tmp_path / "out/gyroperm/masks" / f"{name}.safetensors")
        np.testing.assert_array_equal(stored.mask, expected.mask)
        np.testing.assert_array_equal(stored.tile_rows, expected.tile_rows)
        assert all(map(np.array_equal, stored.groups, expected.groups))
        assert stored.retained == expected.retained
        kept = words_in(tmp_path / "out", name) != 0
        np.testing.assert_array_equal(kept, expected.mask)
        assert sum(layer["histogram"]["all"]) == weights.size
        assert layer["histogram"]["top"] == np.abs(weights).max()
        assert sum(layer["histogram"]["kept"]) == layer["kept"] == expected.mask.sum()


@pytest.mark.parametrize("exponent", [-100, 0, 100])
def test_scale_does_not_matter(tmp_path: Path, exponent: int) -> None:
    weights = np.random.default_rng(0).standard_normal((16, 16)).astype("<f4")
    scaled = np.ldexp(weights, exponent)
    model = tmp_path / "model"
    model.mkdir()
    write_raw(model / "model.safetensors", {"a.weight": ("F32", (16, 16), scaled.tobytes())})
    settings = Settings(Pattern.nm(), rounds=5)
    (layer,) = prune_checkpoint(Job(model, tmp_path / "out", settings))["layers"]
    expected = gyroperm.solve(scaled, stop=gyroperm.MaxRounds(5))
    assert layer["retained"] == expected.retained
    assert layer["history"][-1][1] == expected.retained


def test_a_folder_of_one_file_and_transposed_layers(tmp_path: Path) -> None:
    words = random_words("F32", (16, 32))
    tensors = {
        "h.0.attn.c_attn.weight": ("F32", (16, 32), words.tobytes()),
        "h.0.attn.c_attn.bias": vector(32),
        "h.0.attn.bias": ("F32", (1, 1, 8, 8), np.tri(8, dtype="<f4").tobytes()),
    }
    model = tmp_path / "model"
    model.mkdir()
    write_raw(model / "model.safetensors", tensors)
    (model / "config.json").write_text('{"model_type": "gpt2"}')
    out = tmp_path / "out"
    assert solve(model, "-o", out) == 0
    name = "h.0.attn.c_attn.weight"
    expected = gyroperm.solve(as_float64("F32", words).T, method="identity")
    np.testing.assert_array_equal(words_in(out, name), np.where(expected.mask.T, words, 0))
    # A causal mask as old checkpoints have it, which patterns of two levels would fit.
    assert solve(model, "-o", tmp_path / "h", "--pattern", "hinm", "--vec-size", 1) == 0
    mask = words_in(model, "h.0.attn.bias")
    np.testing.assert_array_equal(words_in(tmp_path / "h", "h.0.attn.bias"), mask)


def test_embeddings_and_heads_when_asked_for(model: Path, tmp_path: Path) -> None:
    assert solve(model, "-o", tmp_path / "out", "--include-embeddings") == 0
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert (words_in(tmp_path / "out", name) == 0).mean() >= 0.5


def test_tied_tensors_stay_equal(tmp_path: Path) -> None:
    tied = linear(40, 16)
    tensors = {"model.embed_tokens.weight": tied, "a.weight": linear(8, 16), "lm_head.weight": tied}
    model = sharded(tmp_path / "model", tensors, shards=2)
    out = tmp_path / "out"
    assert solve(model, "-o", out, "--include-embeddings", "--rounds", 3, method="auto") == 0
    np.testing.assert_array_equal(
        words_in(out, "model.embed_tokens.weight"), words_in(out, "lm_head.weight")
    )


def test_lossless_changes_no_weight(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert solve(model, "-o", out, "--lossless", "--rounds", 2, method="auto") == 0
    for file in model.glob("*.safetensors"):
        assert (out / file.name).read_bytes() == file.read_bytes()
    assert len(list((out / "gyroperm/masks").iterdir())) == 4


def test_dry_run_writes_nothing(model: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert solve(model, "-o", out, "--dry-run", "--pattern", "hinm", "--vec-size", 8) == 0
    printed = capsys.readouterr().out
    assert not out.exists()
    for name in PRUNED:
        assert name in printed
    assert "HiNM 2:4, vec_ratio 0.5, V=8" in printed
    assert "MB" in printed and "estimated" in printed


def test_a_manifest_with_checksums(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert solve(model, "-o", out) == 0
    manifest = json.loads((out / "gyroperm/manifest.json").read_text())
    for side, folder in (("input", model), ("output", out)):
        for name, said in manifest[side].items():
            assert said["size"] == (folder / name).stat().st_size
            found = results(folder)[name]
            assert said["sha256"] == found
    assert set(manifest["output"]) == {
        *(file.name for file in model.glob("*.safetensors")),
        *("model.safetensors.index.json", "config.json", "tokenizer.json"),
    }


def test_lines_where_there_is_no_terminal(model: Path, tmp_path: Path, capsys) -> None:
    assert solve(model, "-o", tmp_path / "out") == 0
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("gyroperm: layers: ")]
    assert [line.split(",")[0] for line in lines] == [
        f"gyroperm: layers: {i} of 4" for i in range(1, 5)
    ]
    assert all(" left: model.layers." in line for line in lines)
    assert all(" of unstructured in " in line for line in lines)
    assert "total of 4 layers" in said.out
    assert solve(model, "-o", tmp_path / "out") == 0
    assert "layers: 4 of 4 are there already" in capsys.readouterr().err
    assert solve(model, "-o", tmp_path / "quiet", "--quiet") == 0
    said = capsys.readouterr()
    assert said.out == said.err == ""


def test_nothing_is_done_twice(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert solve(model, "-o", out) == 0
    written = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    journal = (out / "gyroperm/journal.jsonl").read_bytes()
    assert solve(model, "-o", out) == 0
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")} == written
    assert (out / "gyroperm/journal.jsonl").read_bytes() == journal


def test_the_report_again(model: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert solve(model, "-o", out, "--json", tmp_path / "report.json") == 0
    page, figures = out / "gyroperm/report.html", out / "gyroperm/report.json"
    before = page.read_text(), figures.read_text()
    assert (tmp_path / "report.json").read_text() == before[1]
    page.unlink()
    figures.unlink()
    capsys.readouterr()
    assert main(["report", str(out)]) == 0
    assert (page.read_text(), figures.read_text()) == before
    assert "total of 4 layers" in capsys.readouterr().out
    assert main(["report", str(model)]) == 2
    assert "holds no run" in capsys.readouterr().err


# --- bad input


def _fails(capsys, *arguments: object, code: int = 2) -> str:
    assert solve(*arguments) == code
    return capsys.readouterr().err


def test_a_missing_shard(model: Path, tmp_path: Path, capsys) -> None:
    (model / "model-00002-of-00003.safetensors").unlink()
    said = _fails(capsys, model, "-o", tmp_path / "out")
    assert "model-00002-of-00003.safetensors" in said and "1 of 3 shards are missing" in said
    assert not (tmp_path / "out").exists()


def test_an_index_that_names_what_is_not_there(model: Path, tmp_path: Path, capsys) -> None:
    index = model / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.layers.9.up.weight"] = "model-00001-of-00003.safetensors"
    index.write_text(json.dumps(content))
    said = _fails(capsys, model, "-o", tmp_path / "out")
    assert "places model.layers.9.up.weight in model-00001-of-00003.safetensors" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no index of a checkpoint"),
        ("[]", "no index of a checkpoint"),
        ('{"weight_map": {}}', "names no tensors"),
        ('{"weight_map": {"a": "../b.safetensors"}}', "no file of its own folder"),
    ],
)
def test_an_index_that_is_none(
    model: Path, tmp_path: Path, content: str, message: str, capsys
) -> None:
    index = model / "model.safetensors.index.json"
    index.write_text(content)
    assert message in _fails(capsys, index, "-o", tmp_path / "out")


def test_folders_without_or_with_several_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no \.safetensors file"):
        Source.open(tmp_path)
    for name in ("a", "b"):
        write_raw(tmp_path / f"{name}.safetensors", {"w": linear(4, 4)})
    with pytest.raises(ValueError, match=r"'w' is both in a\.safetensors and in b\.saf"):
        Source.open(tmp_path)


def test_weights_that_are_not_finite(tmp_path: Path, capsys) -> None:
    tensors = layers()
    words = random_words("BF16", (32, 16))
    words[3, 5] = 0x7FC0
    tensors[PRUNED[2]] = ("BF16", (32, 16), words.tobytes())
    model = sharded(tmp_path / "model", tensors)
    said = _fails(capsys, model, "-o", tmp_path / "out")
    assert PRUNED[2] in said and "got nan at index (3, 5)" in said
    assert not list((tmp_path / "out").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--surgery", "--pattern", "hinm"], "surgery is for plain N:M"),
        (["--target-sparsity", "0.75"], "target_sparsity sets vec_ratio"),
        (["--allocation", "global"], "allocation='global' needs target_sparsity"),
        (["--target-sparsity", "0.2", "--pattern", "hinm"], r"must lie in [0.5, 1)"),
        (["--target-sparsity", "0.8", "--vec-ratio", "0.5", "--pattern", "hinm"], "give either"),
        (["--solutions", "somewhere"], "--solutions is for a single file"),
        (["--include", "nothing"], "has nothing to prune"),
        (["--option", "anneal=3"], "unknown option 'anneal'"),
    ],
)
def test_options_that_do_not_fit(
    model: Path, tmp_path: Path, options: list[str], message: str, capsys
) -> None:
    assert message in _fails(capsys, model, "-o", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_surgery_without_a_configuration(model: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("torch")
    said = _fails(capsys, model, "-o", tmp_path / "out", "--surgery")
    assert "surgery needs to know the architecture" in said
    assert not (tmp_path / "out").exists()


def test_options_of_folders_for_a_file(model: Path, tmp_path: Path, capsys) -> None:
    file = model / "model-00001-of-00003.safetensors"
    said = _fails(capsys, file, "-o", tmp_path / "out.safetensors", "--jobs", 2, "--dry-run")
    assert "--jobs, --dry-run is for a folder" in said


def test_outputs_that_cannot_be(model: Path, tmp_path: Path, capsys) -> None:
    assert "input's own folder" in _fails(capsys, model, "-o", model)
    file = tmp_path / "file"
    file.touch()
    assert "is no folder" in _fails(capsys, model, "-o", file)


def test_no_permission(model: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    # Root may write anywhere: what the system says is all that can be tested everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    said = _fails(capsys, model, "-o", tmp_path / "out")
    assert f"the folder {tmp_path / 'out'} cannot be written" in said


def test_space_is_checked_before_any_work(model: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert "bytes are needed" in _fails(capsys, model, "-o", tmp_path / "out", code=1)
    assert not (tmp_path / "out").exists()


def test_another_run_in_the_folder(model: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert solve(model, "-o", out) == 0
    before = results(out)
    said = _fails(capsys, model, "-o", out, "--seed", 5)
    assert "holds a run that differs (seed was 0)" in said
    said = _fails(capsys, model, "-o", out, "--exclude", "layers.2")
    assert "holds a run that differs (layers)" in said
    assert results(out) == before
