"""A plug-in without its toolkit says what to install and what it was tested with."""

import sys
from importlib import import_module

import pytest


@pytest.mark.parametrize(
    ("plugin", "toolkit", "said"),
    [
        ("modelopt", "modelopt", r"nvidia-modelopt requests huggingface_hub.*modelopt 0\.47\.0"),
        ("llmcompressor", "llmcompressor", r"pip install 'llmcompressor'.*llmcompressor 0\.14\.0"),
    ],
)
def test_it_says_what_to_install(monkeypatch, plugin, toolkit, said):
    for name in list(sys.modules):
        if name.partition(".")[0] == toolkit:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, toolkit, None)
    monkeypatch.delitem(sys.modules, f"gyroperm.plugins.{plugin}", raising=False)
    with pytest.raises(ImportError, match=said):
        import_module(f"gyroperm.plugins.{plugin}")
