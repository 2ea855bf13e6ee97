"""The pages of the plug-ins that need torch alone: their scripts run as they stand."""

import pytest

from doc_pages import run_script


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("torch_prune", "retained"),
        ("torch_ao", "2.weight"),
        ("semi_structured", "of the magnitude"),
        ("sparsegpt_and_wanda", "under a permutation"),
    ],
)
def test_the_script_of_a_page(page, said, tmp_path):
    assert said in run_script(f"plugins/{page}.md", tmp_path)
