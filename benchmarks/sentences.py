"""The sentences that embeddings are compared on."""

from __future__ import annotations

from pathlib import Path

#: One sentence a line, below comments that name its source; see the head of the file.
FILE = Path(__file__).with_name("sentences.txt")


def read_sentences() -> list[str]:
    """The sentences of :data:`FILE`, in its order, without comments and blank lines."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]
