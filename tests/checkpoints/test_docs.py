"""The page on checkpoints: its code runs as it stands."""

from __future__ import annotations

from pathlib import Path

from doc_pages import run_script


def test_the_code_of_the_page(tmp_path: Path) -> None:
    assert "of what unstructured pruning keeps" in run_script("checkpoints.md", tmp_path)
