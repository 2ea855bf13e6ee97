"""Plug-ins are imported when used, and say what they need."""

import subprocess
import sys

import pytest

TOOLKITS = (
    "torch",
    "torchao",
    "torch_pruning",
    "modelopt",
    "llmcompressor",
    "apex",
    "transformers",
)


def python(program):
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_the_package_of_plug_ins_imports_no_toolkit():
    done = python(
        f"import sys, gyroperm.plugins\nprint([name for name in {TOOLKITS} if name in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("plugin", "toolkit", "install", "tested"),
    [
        ("torch_prune", "torch", "pip install 'gyroperm[torch]'", "2.13.0"),
        ("torch_ao", "torch", "pip install 'gyroperm[torch]'", "2.13.0"),
        ("semi_structured", "torch", "pip install 'gyroperm[torch]'", "2.13.0"),
        (
            "torchao_wanda",
            "torchao",
            "pip install 'torchao==0.18.0'",
            "torchao 0.18.0, torch 2.13.0",
        ),
        (
            "torch_pruning",
            "torch_pruning",
            "pip install 'torch-pruning==1.6.1'",
            "torch-pruning 1.6.1, torch 2.13.0",
        ),
        (
            "modelopt",
            "modelopt",
            "pip install 'gyroperm[modelopt]'",
            "nvidia-modelopt 0.47.0, torch 2.13.0",
        ),
        (
            "llmcompressor",
            "llmcompressor",
            "pip install 'gyroperm[llmcompressor]'",
            "llmcompressor 0.14.0, transformers 5.17.0, torch 2.13.0",
        ),
        ("sparsegpt", "torch", "pip install 'gyroperm[torch]'", "2.13.0"),
        ("wanda", "torch", "pip install 'gyroperm[torch]'", "2.13.0"),
        ("apex_asp", "torch", "pip install 'gyroperm[torch]'", "2.13.0"),
    ],
)
def test_what_is_missing_is_named(plugin, toolkit, install, tested):
    # None in sys.modules is how an import fails as if the toolkit were not there.
    done = python(f"import sys; sys.modules[{toolkit!r}] = None\nimport gyroperm.plugins.{plugin}")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError")
    assert toolkit in last and install in last and f"tested with {tested}" in last
