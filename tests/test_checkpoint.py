"""Checkpoints: every dtype read exactly, written bit for bit, unsound files refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from gyroperm.checkpoint import Checkpoint

ITEMSIZE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "F8_E4M3": 1}


def write_raw(
    path: Path,
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]],
    metadata: dict[str, str] | None = None,
) -> Path:
    """A safetensors file, written by hand so that the reader is not checked by itself."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return path


def random_words(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """The words of normal weights in a dtype; bfloat16 by cutting float32."""
    values = np.random.default_rng(seed).standard_normal(shape)
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2")
    size = ITEMSIZE[dtype]
    return values.astype(f"<f{size}").view(f"<u{size}")


def as_float64(dtype: str, words: np.ndarray) -> np.ndarray:
    if dtype == "BF16":
        return (words.astype("<u4") << 16).view("<f4").astype(np.float64)
    return words.view(f"<f{words.itemsize}").astype(np.float64)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A file with weights of each dtype, and tensors of dtypes that are no weights."""
    tensors = {
        dtype.lower(): (dtype, (4, 6), random_words(dtype, (4, 6), i).tobytes())
        for i, dtype in enumerate(["F64", "F32", "F16", "BF16"])
    }
    tensors["ids"] = ("I64", (3,), np.arange(3).astype("<i8").tobytes())
    tensors["fp8"] = ("F8_E4M3", (2, 4), bytes(range(8)))
    tensors["scalar"] = ("F32", (), np.float32(2.5).tobytes())
    tensors["none"] = ("F32", (0, 4), b"")
    return write_raw(tmp_path / "mixed.safetensors", tensors, {"format": "pt", "note": "é"})


@pytest.mark.parametrize(
    ("dtype", "read_as"),
    [("F64", np.float64), ("F32", np.float32), ("F16", np.float16), ("BF16", np.float32)],
)
def test_weights_are_read_exactly(tmp_path: Path, dtype: str, read_as: type) -> None:
    words = random_words(dtype, (5, 8))
    path = write_raw(tmp_path / "w.safetensors", {"w": (dtype, (5, 8), words.tobytes())})
    with Checkpoint(path) as checkpoint:
        weights = checkpoint.read("w")
    assert weights.dtype == read_as
    assert weights.shape == (5, 8)
    np.testing.assert_array_equal(weights.astype(np.float64), as_float64(dtype, words))


def test_bf16_agrees_with_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    weights = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    weights[0, 0], weights[0, 1] = 3e38, 1e-40
    path = tmp_path / "torch.safetensors"
    save_file({"w": weights, "b": torch.ones(3)}, path, metadata={"format": "pt"})
    mask = np.zeros((6, 8), dtype=bool)
    mask[:, ::2] = True
    with Checkpoint(path) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("w"), weights.float().numpy())
        checkpoint.write_masked(tmp_path / "out.safetensors", {"w": np.packbits(mask)})
    pruned = load_file(tmp_path / "out.safetensors")
    assert torch.equal(pruned["w"], torch.where(torch.from_numpy(mask), weights, 0))
    assert torch.equal(pruned["b"], torch.ones(3))


def test_tensors_and_metadata(mixed: Path) -> None:
    with Checkpoint(mixed) as checkpoint:
        assert checkpoint.metadata == {"format": "pt", "note": "é"}
        assert {t.name: t.shape for t in checkpoint.tensors.values()} == {
            "f64": (4, 6),
            "f32": (4, 6),
            "f16": (4, 6),
            "bf16": (4, 6),
            "ids": (3,),
            "fp8": (2, 4),
            "scalar": (),
            "none": (0, 4),
        }
        assert checkpoint.read("scalar") == 2.5
        assert checkpoint.read("none").shape == (0, 4)


def test_kept_bits_stay_and_the_rest_is_zero(mixed: Path, tmp_path: Path) -> None:
    before = mixed.read_bytes()
    masks = {
        name: np.random.default_rng(i).random((4, 6)) < 0.5
        for i, name in enumerate(["bf16", "f64", "f16", "f32"])
    }
    target = tmp_path / "out.safetensors"
    with Checkpoint(mixed) as checkpoint:
        checkpoint.write_masked(target, {name: np.packbits(m) for name, m in masks.items()})
        tensors = checkpoint.tensors
    after = target.read_bytes()
    assert len(after) == len(before)
    untouched = 0
    for name, mask in masks.items():
        tensor = tensors[name]
        size = ITEMSIZE[tensor.dtype]
        old = np.frombuffer(before[tensor.begin : tensor.end], f"<u{size}").reshape(4, 6)
        new = np.frombuffer(after[tensor.begin : tensor.end], f"<u{size}").reshape(4, 6)
        np.testing.assert_array_equal(new, np.where(mask, old, 0))
    for tensor in tensors.values():
        if tensor.name not in masks:
            assert after[tensor.begin : tensor.end] == before[tensor.begin : tensor.end]
            untouched += 1
    assert untouched == 4
    first = min(tensor.begin for tensor in tensors.values())
    assert after[:first] == before[:first]


def test_without_masks_the_file_is_copied(mixed: Path, tmp_path: Path) -> None:
    with Checkpoint(mixed) as checkpoint:
        checkpoint.write_masked(tmp_path / "copy.safetensors", {})
    assert (tmp_path / "copy.safetensors").read_bytes() == mixed.read_bytes()


def test_large_files_are_copied_in_chunks(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gyroperm.checkpoint._CHUNK_BYTES", 7)
    with Checkpoint(mixed) as checkpoint:
        checkpoint.write_masked(tmp_path / "copy.safetensors", {})
    assert (tmp_path / "copy.safetensors").read_bytes() == mixed.read_bytes()


def test_a_checkpoint_can_replace_itself(tmp_path: Path) -> None:
    words = random_words("F32", (4, 4))
    path = write_raw(tmp_path / "w.safetensors", {"w": ("F32", (4, 4), words.tobytes())})
    mask = np.eye(4, dtype=bool)
    with Checkpoint(path) as checkpoint:
        checkpoint.write_masked(path, {"w": np.packbits(mask)})
    with Checkpoint(path) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("w").view("<u4"), np.where(mask, words, 0))
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_write_leaves_the_old_file(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"old")

    def fail(handle: int) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "fsync", fail)
    with Checkpoint(mixed) as checkpoint, pytest.raises(OSError, match="the disk is gone"):
        checkpoint.write_masked(target, {})
    assert target.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == [mixed, target]


def test_a_file_cut_while_it_is_open(tmp_path: Path) -> None:
    # Larger than what a buffered reader may have read ahead.
    raw = random_words("F32", (300, 300)).tobytes()
    path = write_raw(tmp_path / "w.safetensors", {"w": ("F32", (300, 300), raw)})
    target = tmp_path / "out.safetensors"
    with Checkpoint(path) as checkpoint:
        os.truncate(path, 200_000)
        with pytest.raises(ValueError, match="ends within 'w'"):
            checkpoint.read("w")
        with pytest.raises(ValueError, match="ends within 'w'"):
            checkpoint.write_masked(target, {"w": np.packbits(np.ones((300, 300), bool))})
    assert not target.exists()


def test_only_weights_are_read(mixed: Path) -> None:
    with Checkpoint(mixed) as checkpoint:
        with pytest.raises(ValueError, match="'ids' is stored as I64"):
            checkpoint.read("ids")
        with pytest.raises(KeyError, match="missing"):
            checkpoint.read("missing")


def _with_header(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no safetensors file: it has 0 bytes"),
        (b"abc", "no safetensors file: it has 3 bytes"),
        (b"PK\x03\x04 is a zip file, as PyTorch's are", "header should have"),
        ((1 << 63).to_bytes(8, "little") + b"{}", "header should have 9223372036854775808 bytes"),
    ],
)
def test_files_without_a_header(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        Checkpoint(path)
    assert str(path) in str(error.value)


_SOUND = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{not json", "its header is no JSON"),
        (b"\xff\xfe\xfd", "its header is no JSON"),
        (b"[" * 100_000, "its header is no JSON"),
        (b"[1, 2]", "no JSON object"),
        ({"w": 3}, "entry of 'w' is malformed"),
        ({"w": {"dtype": "F32", "shape": [2, 2]}}, "entry of 'w' is malformed"),
        ({"w": {**_SOUND, "shape": None}}, "entry of 'w' is malformed"),
        ({"w": {**_SOUND, "data_offsets": [0, 8, 16]}}, "entry of 'w' is malformed"),
        ({"w": {**_SOUND, "data_offsets": [16, 0]}}, "offsets out of range"),
        ({"w": {**_SOUND, "data_offsets": [-4, 12]}}, "offsets out of range"),
        ({"w": {**_SOUND, "data_offsets": [0, 160]}}, "truncated: 'w' ends at byte"),
        ({"w": {**_SOUND, "shape": [2, 3]}}, "no sound safetensors file"),
        ({"w": {**_SOUND, "dtype": "F33"}}, "no sound safetensors file"),
        ({"w": {**_SOUND, "shape": [2, 1], "data_offsets": [8, 16]}}, "no sound safetensors file"),
        ({"v": _SOUND, "w": _SOUND}, "no sound safetensors file"),
    ],
)
def test_unsound_headers(tmp_path: Path, header: object, message: str) -> None:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = _with_header(tmp_path / "bad.safetensors", encoded, bytes(16))
    with pytest.raises(ValueError, match=message) as error:
        Checkpoint(path)
    assert str(path) in str(error.value)


def test_every_truncation_is_refused(mixed: Path, tmp_path: Path) -> None:
    content = mixed.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in range(0, len(content), 13):
        cut.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.safetensors"):
            Checkpoint(cut)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Checkpoint(tmp_path / "missing.safetensors")
    with pytest.raises(IsADirectoryError):
        Checkpoint(tmp_path)
