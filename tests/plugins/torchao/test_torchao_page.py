"""The page of torchao: its script runs as it stands."""

from doc_pages import run_script


def test_the_script_of_the_page(tmp_path):
    assert "on the ordered model" in run_script("plugins/torchao.md", tmp_path)
