"""The page on models: its code runs as it stands. Those of plug-ins are with their tests."""

from doc_pages import run_script


def test_the_code_of_the_page(tmp_path):
    printed = run_script("models.md", tmp_path)
    assert "outputs differ by" in printed and "the first module that differs" in printed
