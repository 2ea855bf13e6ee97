"""Methods by name, methods of one's own, and what an import loads."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

import gyroperm
from gyroperm import MaxRounds, Pattern
from gyroperm.arrangement import Arrangement
from gyroperm.solvers import registry
from gyroperm.solvers.identity import identity_arrangement

SHIPPED = (
    "identity",
    "gyro",
    "assign",
    "stripe",
    "swap",
    "ria",
    "random",
    "two_axis",
    "ovw",
    "learned",
)


@pytest.fixture
def own_methods(monkeypatch):
    """A registry that forgets what a test adds."""
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    monkeypatch.setattr(registry, "_aliases", dict(registry._aliases))


def test_the_names_have_auto_first_and_every_shipped_method():
    names = registry.names()
    assert names[0] == "auto"
    assert set(SHIPPED) < set(names)
    assert len(names) == len(set(names))
    assert "learned" in registry.names("output")
    assert set(registry.names("output")) == set(names) - set(registry.names("saliency"))


@pytest.mark.parametrize("name", ["auto", *SHIPPED])
def test_every_name_gives_a_method_with_a_summary_and_validated_options(name):
    method = registry.get(name)
    assert callable(method.solve)
    assert method.summary and "\n" not in method.summary
    assert dataclasses.is_dataclass(method.options)
    options = method.make_options(None)
    assert isinstance(options, method.options)
    assert method.make_options(options) is options
    assert method.make_options(dataclasses.asdict(options)) == options
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.anything = 1
    with pytest.raises(ValueError, match="unknown option 'nonsense'"):
        method.make_options({"nonsense": 1})
    with pytest.raises(TypeError, match="must be a mapping or"):
        method.make_options(3)


def test_aliases_name_the_same_method():
    assert registry.get("gyro-permutation") is registry.get("gyro")
    assert registry.get("auto").name in SHIPPED


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="unknown method 'magic'; known are auto, assign, dive"):
        registry.get("magic")


@dataclasses.dataclass(frozen=True)
class ReversalOptions:
    twice: bool = False


def test_a_method_of_ones_own_is_solved_like_any_other(own_methods):
    @registry.register("reversal", options=ReversalOptions, aliases=("backwards",))
    def reversal(search, options):
        """Columns from right to left."""
        start = identity_arrangement(search.problem)
        step = 1 if options.twice else -1
        order = start.col_order[::step]
        return Arrangement(start.tile_rows, (order.reshape(-1, 4),), order)

    assert "reversal" in registry.names() and "backwards" not in registry.names()
    assert registry.get("backwards").summary == "Columns from right to left."
    S = np.zeros((3, 6))
    # From left to right, columns 4 and 5 share a group with nothing: from right to left too,
    # but column 2 then leaves the crowd of 0 and 1.
    S[:, [0, 1, 2]] = 1.0
    solution = gyroperm.solve(S, method="backwards")
    assert solution.method == "reversal"
    assert list(solution.col_order) == [-1, -1, 5, 4, 3, 2, 1, 0]
    twice = gyroperm.solve(S, method="reversal", options={"twice": True})
    assert twice.retained == twice.identity


def test_registering_a_name_again_replaces_it(own_methods):
    for text in ("one", "two"):

        @registry.register("mine", summary=text)
        def solve(search, options):
            return identity_arrangement(search.problem)

        assert registry.get("mine").summary == text
    assert registry.names().count("mine") == 1


def test_a_method_below_identity_never_shows(own_methods):
    @registry.register("worst")
    def worst(search, options):
        """The strongest columns together."""
        problem = search.problem
        order = np.argsort(-problem.saliency.sum(axis=0)).astype(np.int32)
        return Arrangement(identity_arrangement(problem).tile_rows, (order.reshape(-1, 4),), order)

    S = np.tile([8.0, 8.0, 1.0, 1.0, 8.0, 8.0, 1.0, 1.0], (4, 1))
    assert gyroperm.solve(S, method="worst").retained == 4 * 32.0


def test_a_method_with_a_broken_answer_is_an_error_even_where_it_keeps_little(own_methods):
    @registry.register("broken")
    def broken(search, options):
        """The last columns again and again."""
        problem = search.problem
        start = identity_arrangement(problem)
        group = np.arange(problem.columns - 4, problem.columns)
        return Arrangement(start.tile_rows, (np.tile(group, (2, 1)),), start.col_order)

    S = np.tile([1.0] * 4 + [0.0] * 4, (4, 1))
    with pytest.raises(ValueError, match=r"twice|outside|keeps"):
        gyroperm.solve(S, method="broken")


def test_random_streams_are_separate_and_repeatable():
    from gyroperm.problem import Problem
    from gyroperm.solvers import Search

    problem = Problem(np.ones((4, 4)), Pattern.nm())
    search, same = Search(problem, seed=3), Search(problem, seed=3)
    assert search.random(1, 2).random() == same.random(1, 2).random()
    draws = {search.random(*stream).random() for stream in [(), (0, 1), (1,), (1, 0, 1), (2,)]}
    assert len(draws) == 5
    assert Search(problem, seed=4).random(1).random() not in draws


def test_a_search_notes_what_improves():
    from gyroperm.problem import Problem
    from gyroperm.solvers import Search

    search = Search(Problem(np.ones((4, 4)), Pattern.nm()), stop=MaxRounds(3))
    for value in (2.0, 1.0):
        search.record(value)
        assert search.best == 2.0
    assert not search.stopped()
    search.record(5.0)
    assert search.stopped()
    assert [value for _, value in search.history] == [2.0, 5.0]


HEAVY = (
    "torch", "cupy", "ortools", "numba", "matplotlib", "networkx", "safetensors", "tqdm",
)  # fmt: skip


def _loaded_by(statement):
    script = (
        f"import sys, json; before = set(sys.modules); {statement}; "
        f"print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(run.stdout)


def test_importing_the_package_loads_nothing_heavy():
    loaded = _loaded_by("import gyroperm")
    assert not [name for name in HEAVY if name in loaded]
    # NumPy and the standard library make most of it: about 150 were loaded when this was written.
    assert len(loaded) < IMPORTED_MODULES
    assert not [name for name in loaded if name.startswith("gyroperm.solvers")]


IMPORTED_MODULES = 240


def test_solving_loads_no_optional_package():
    loaded = _loaded_by(
        "import numpy, gyroperm; gyroperm.solve(numpy.eye(8), method='identity'); "
        "gyroperm.Pattern.nm()"
    )
    assert not [name for name in ("torch", "cupy", "matplotlib") if name in loaded]
