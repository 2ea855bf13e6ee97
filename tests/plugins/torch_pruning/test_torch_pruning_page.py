"""The page of Torch-Pruning: its script runs as it stands."""

from doc_pages import run_script


def test_the_script_of_the_page(tmp_path):
    assert "within block" in run_script("plugins/torch_pruning.md", tmp_path)
