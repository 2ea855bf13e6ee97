"""A limit on the memory of the process itself, and a checkpoint several times as large."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from test_checkpoint import random_words

from small_checkpoints import words_in

# The largest group in float32, and what the process may have beside two and a half of it.
ROWS, COLUMNS = 2048, 1024
MORE = 500 << 20

_LIMITED = """
import resource, sys
from pathlib import Path
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
from gyroperm import Pattern
from gyroperm.checkpoints import Job, Settings, prune_checkpoint
settings = Settings(Pattern.hinm(vec_size=64), rounds=2)
report = prune_checkpoint(Job(Path(sys.argv[1]), Path(sys.argv[2]), settings), threads=1)
print(max(layer["peak_bytes"] for layer in report["layers"]))
"""


def large(folder: Path, size: int) -> list[str]:
    """A checkpoint of so many bytes: two layers, and a table that is a hole in the file."""
    folder.mkdir()
    names = ["layers.0.weight", "layers.1.weight"]
    layer = 2 * ROWS * COLUMNS
    table = (size - 2 * layer) // (2 * COLUMNS) * 2 * COLUMNS
    header, end = {}, 0
    for name, length in (("embed.weight", table), *((name, layer) for name in names)):
        shape = [length // (2 * COLUMNS), COLUMNS]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + length]}
        end += length
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.seek(table, 1)
        for seed in range(2):
            file.write(random_words("BF16", (ROWS, COLUMNS), seed).tobytes())
    return names


def test_a_checkpoint_larger_than_memory(tmp_path: Path) -> None:
    limit = 5 * 4 * ROWS * COLUMNS // 2 + MORE
    names = large(tmp_path / "model", 3 * limit)
    out = tmp_path / "out"
    found = subprocess.run(
        [sys.executable, "-c", _LIMITED, tmp_path / "model", out, str(limit)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) < limit
    assert (out / "model.safetensors").stat().st_size > 3 * limit - 2 * COLUMNS
    for name in names:
        before, after = words_in(tmp_path / "model", name), words_in(out, name)
        assert (after != 0).mean() < 0.26
        np.testing.assert_array_equal(after[after != 0], before[after != 0])
    (out / "model.safetensors").unlink()
