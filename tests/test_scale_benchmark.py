"""The benchmark of large layers: its contests, what they say, and going on where it stopped."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]

if not (ROOT / "benchmarks" / "scale.py").is_file():
    pytest.skip("tests/ lies apart from the source tree", allow_module_level=True)

if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import peak_memory, scale  # noqa: E402
from benchmarks.instances import INSTANCES, PATTERNS, Instance  # noqa: E402
from benchmarks.scale_contests import Contest, contest_text, findings, hold  # noqa: E402

DESCRIBED = {"shape": [1000, 2000], "dtype": "float32"}


def maker(efficacies, seconds=100.0, peak=10**8):
    """Makes runs that retain what is given, by their budget; keeps a list of them."""
    made = []

    def make(run):
        made.append(run)
        efficacy = efficacies[run.budget]
        figures = {"efficacy": efficacy, "ratio": 0.8 + efficacy / 1000}
        figures["seconds"] = seconds if run.budget is None else run.budget
        return {"figures": figures, "cut": run.budget is None, "peak_bytes": peak}

    return make, made


def test_a_contest_gives_a_twentieth_of_the_time_and_ten_times_that():
    make, made = maker({None: 20.0, 5.0: 21.0, 30.0: 23.0, 50.0: 24.0, 120.0: 24.5})
    contest = Contest("hinm75-v128", "gyro", (30.0, 120.0))
    entries = hold(contest, "an instance", DESCRIBED, make)
    assert [(run.method, run.budget) for run in made] == [
        ("gyro", None),
        ("assign", 5.0),
        ("assign", 50.0),
        ("assign", 30.0),
        ("assign", 120.0),
    ]
    found = findings(entries)
    assert found["share_lead_points"] == pytest.approx(1.0)
    assert found["share_lead_ratio"] == pytest.approx(0.001)
    assert found["best_lead_points"] == pytest.approx(4.5)
    assert [step["seconds"] for step in found["more_time"]] == [[5, 30], [30, 50], [50, 120]]
    assert [step["points"] for step in found["more_time"]] == pytest.approx([2.0, 1.0, 0.5])
    text = contest_text(entries, DESCRIBED)
    assert "an instance (1000 x 2000), hinm75-v128" in text and "to its end, cut" in text
    assert "+1.00 in 1/20 of its time" in text


def test_what_more_time_adds_is_told_in_the_order_of_time():
    make, _ = maker({None: 20.0, 50.0: 22.0, 500.0: 22.5, 1.0: 21.0}, seconds=1000.0)
    entries = hold(Contest("2:4", "gyro", (1.0,)), "an instance", DESCRIBED, make)
    first, second = findings(entries)["more_time"]
    assert first["seconds"] == [1.0, 50.0] and first["points"] == pytest.approx(1.0)
    assert second["seconds"] == [50.0, 500.0] and second["points"] == pytest.approx(0.5)


@pytest.mark.parametrize(("peak", "within"), [(324_000_000, True), (324_000_001, False)])
def test_memory_is_held_against_three_matrices_and_300_mb(peak, within):
    make, _ = maker({None: 20.0, 5.0: 21.0, 50.0: 21.5, 1.0: 20.5}, peak=peak)
    entries = hold(Contest("2:4", "gyro", (1.0,)), "an instance", DESCRIBED, make)
    assert [one.as_dict()["within_memory"] for one in entries] == [within] * 4
    assert ("324!" in contest_text(entries, DESCRIBED)) is not within


def test_contests_are_of_known_patterns_on_instances_that_have_them():
    for contest in (*scale.CONTESTS, *scale.QUICK_CONTESTS):
        assert contest.pattern in PATTERNS
    for name, instance in INSTANCES.items():
        if instance.large or name in scale.QUICK_INSTANCES:
            assert {contest.pattern for contest in scale.CONTESTS} <= set(instance.patterns)


# --- as a command


@pytest.fixture
def tiny(monkeypatch):
    """A matrix in place of the large ones, contests of an instant, and sweeps of a few columns."""
    name = scale.QUICK_INSTANCES[0]
    weights = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    instance = Instance(name, "normal", lambda: weights, ("2:4", "hinm75-v128"))
    monkeypatch.setitem(INSTANCES, name, instance)
    contests = (
        Contest("2:4", "identity", (0.05,)),
        Contest("hinm75-v128", "gyro", (0.02,)),
    )
    monkeypatch.setattr(scale, "QUICK_CONTESTS", contests)
    monkeypatch.setattr(scale, "_QUICK_SWEEPS", (16, (64, 128), (8, 16)))
    return name


@pytest.fixture
def alone(monkeypatch):
    """Runs take place, but in this process; a list of them."""
    made = []
    measure = peak_memory.make_here

    def here(run, *, threads, longest, modules):
        made.append(run)
        return measure(run, threads=threads, longest=longest)

    monkeypatch.setattr(peak_memory, "measure", here)
    return made


def test_a_run_writes_contests_and_sweeps_and_is_not_repeated(tmp_path, tiny, alone, capsys):
    out = tmp_path / "scale.json"
    arguments = ["--quick", "--threads", "1", "--out", str(out)]
    assert scale.main(arguments) == 0
    found = json.loads(out.read_text())
    assert [run["method"] for run in found["runs"]] == [
        *("identity", "assign", "assign", "assign"),
        *("gyro", "assign", "assign", "assign"),
    ]
    assert found["runs"][-1]["budget"] == pytest.approx(0.02)
    for run in found["runs"]:
        assert run["instance"] == tiny and run["peak_bytes"] > 0 and run["retained"] > 0
    assert [one["published"] for one in found["findings"]] == ["identity", "gyro"]
    assert found["findings"][0]["best_lead_points"] > 0
    assert len(found["sweeps"]) == 4 and not found["problems"]
    assert found["instances"][tiny]["shape"] == [32, 64]
    shown = capsys.readouterr().out
    assert f"{tiny} (32 x 64), hinm75-v128" in shown and "A sweep of assignment moves" in shown
    before = len(alone)
    assert scale.main([*arguments, "--no-sweeps"]) == 0 and len(alone) == before
    again = json.loads(out.read_text())
    assert again["runs"] == found["runs"] and again["sweeps"] == []
    assert scale.main([*arguments, "--no-sweeps", "--patterns", "2:4", "--fresh"]) == 0
    assert len(alone) == before + 4


def test_a_contest_that_cannot_be_held_is_named_and_the_others_are(
    tmp_path, tiny, alone, monkeypatch, capsys
):
    unknown = Contest("2:4", "nobody", (0.05,))
    monkeypatch.setattr(scale, "QUICK_CONTESTS", (unknown, scale.QUICK_CONTESTS[1]))
    out = tmp_path / "scale.json"
    assert scale.main(["--quick", "--no-sweeps", "--out", str(out)]) == 1
    assert "unknown method 'nobody'" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert [one["published"] for one in found["findings"]] == ["gyro"]
    assert len(found["problems"]) == 1


def test_an_interrupted_run_goes_on(tmp_path, tiny, alone, monkeypatch, capsys):
    measure = peak_memory.measure

    def interrupted(run, **arguments):
        if len(alone) == 2:
            raise KeyboardInterrupt
        return measure(run, **arguments)

    monkeypatch.setattr(peak_memory, "measure", interrupted)
    arguments = ["--quick", "--no-sweeps", "--patterns", "2:4", "--out", str(tmp_path / "s.json")]
    assert scale.main(arguments) == 130
    assert "the same command continues" in capsys.readouterr().err
    monkeypatch.setattr(peak_memory, "measure", measure)
    assert scale.main(arguments) == 0 and len(alone) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--plugin", "no_such_module_of_methods"], "no_such_module_of_methods"),
        (["--out", "no/such/folder/scale.json"], "does not exist"),
        (["--longest", "0"], "positive number of seconds"),
        (["--instances", "gauss512"], "invalid choice"),
    ],
)
def test_bad_usage_is_refused_before_any_work(options, said, capsys):
    with pytest.raises(SystemExit) as refused:
        scale.main(options)
    assert refused.value.code == 2
    assert said in capsys.readouterr().err
