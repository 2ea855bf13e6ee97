"""The micro-benchmarks: ceilings, the work of each kernel, and what a regression looks like."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]

if not (ROOT / "benchmarks" / "kernels.py").is_file():
    pytest.skip("tests/ lies apart from the source tree", allow_module_level=True)

if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import kernels, sweep_cost  # noqa: E402
from benchmarks.ceiling import copy_loop, relu_loops  # noqa: E402
from benchmarks.kernel_cases import Case, all_cases  # noqa: E402


@pytest.fixture
def short_samples(monkeypatch):
    monkeypatch.setattr(kernels, "_SAMPLE_SECONDS", 1e-4)


@pytest.fixture(scope="module")
def quick_cases():
    return all_cases(quick=True)


def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def busy(kernel, seconds, operations=0.0, traffic=0.0):
    return Case(kernel, "any", lambda: spin(seconds), operations, traffic, "calls", 1.0)


def test_the_ceilings_loop_computes_what_it_says():
    for (loop, operations), sums in zip(relu_loops(), (4, 8), strict=True):
        x = np.random.default_rng(0).random(1024, dtype=np.float32)
        q = np.linspace(0.0, 0.5, sums, dtype=np.float32)
        q[0] = 0  # the passes after the first take a threshold next to nothing
        terms = np.maximum(x, q[:, None])
        assert loop() == pytest.approx(float(terms.sum(dtype=np.float64)), rel=1e-4)
        assert operations == 2 * terms.size * 512


def test_the_ceilings_copy_is_counted_read_and_written():
    call, moved = copy_loop(1 << 12)
    call()
    assert moved == 2 * (1 << 12)


@pytest.mark.alone
def test_nothing_exceeds_the_ceiling_of_arithmetic(quick_cases, short_samples):
    found = kernels.measure(quick_cases, rounds=1, copied=1 << 16)
    fractions = {(one["kernel"], one["size"]): one["fraction"] for one in found["kernels"]}
    assert len(fractions) == len(quick_cases)
    # The rounds are short here, and what else the machine does may slow the ceiling alone.
    assert all(0 < one["median"] < 2.5 for one in fractions.values())
    # The gain product comes near it; an assignment does not by far.
    assert fractions["gain product", "96 x 96 x 384"]["median"] > 0.2
    assert fractions["assignment, real gains", "64 x 64"]["median"] < 0.2


def test_a_case_does_the_same_work_at_every_call(quick_cases):
    every = {(case.kernel, case.size) for case in quick_cases}
    assert len(every) == len(quick_cases) and len({kernel for kernel, _ in every}) >= 8
    for case in quick_cases:
        for _ in range(3):
            case.call()
        assert case.count > 0 and case.operations + case.traffic > 0


@pytest.mark.alone
def test_a_fraction_is_of_the_ceiling_that_takes_longer(short_samples, monkeypatch):
    monkeypatch.setattr(kernels, "relu_loops", lambda: [(lambda: spin(0.002), 2e6)])
    monkeypatch.setattr(kernels, "copy_loop", lambda size: (lambda: spin(0.002), 4e6))
    cases = [
        busy("arithmetic", 0.004, operations=2e6),
        busy("memory", 0.004, operations=1e6, traffic=4e6),
    ]
    found = kernels.measure(cases, rounds=3)
    assert found["ceiling"]["operations_per_second"]["median"] == pytest.approx(1e9, rel=0.2)
    assert found["ceiling"]["bytes_per_second"]["median"] == pytest.approx(2e9, rel=0.2)
    for one in found["kernels"]:
        assert one["limit"] == one["kernel"] and one["rounds"] == 3
        assert one["fraction"]["median"] == pytest.approx(0.5, rel=0.2)
        assert one["fraction"]["least"] <= one["fraction"]["median"]
        assert one["fraction"]["median"] <= one["fraction"]["greatest"]
        assert one["per_second"]["median"] == pytest.approx(250, rel=0.2)


def figures(**fractions):
    spread = {"least": 0.1, "greatest": 0.9}
    return {
        "ceiling": {
            "operations_per_second": {"median": 3e9, **spread},
            "bytes_per_second": {"median": 2e9, **spread},
        },
        "kernels": [
            {
                "kernel": kernel,
                "size": "8 x 8",
                "unit": "terms",
                "limit": "arithmetic",
                "per_second": {"median": 1e6, **spread},
                "fraction": {"median": fraction, **spread},
                "rounds": 1,
            }
            for kernel, fraction in fractions.items()
        ],
    }


def test_a_kernel_that_fell_is_named_beside_what_it_was():
    before, now = figures(a=0.5, b=0.5, gone=0.5), figures(a=0.41, b=0.39, new=0.1)
    (line,) = kernels.slower(now, before)
    assert line == "b 8 x 8: 39 % of the ceiling, before 50 %"
    text = kernels.kernels_text(now, before)
    assert "1.5 G terms/s" in text and "2.0 GB/s" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines()[4:]}
    assert rows["a"][-2:] == ["50", "%"] and rows["new"][-1] == "-"
    assert "before" not in kernels.kernels_text(now)


@pytest.mark.alone
def test_a_run_writes_what_a_later_one_is_held_against(tmp_path, short_samples, monkeypatch):
    seconds = {"now": 0.001}
    case = Case("a", "any", lambda: spin(seconds["now"]), 1e6, 0.0, "calls", 1.0)
    monkeypatch.setattr(kernels, "all_cases", lambda quick: [case])
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    assert kernels.main(["--quick", "--out", str(first)]) == 0
    found = json.loads(first.read_text())
    assert found["machine"]["cores"] >= 1 and found["kernels"][0]["rounds"] == 3
    compare = ["--quick", "--rounds", "1", "--against", str(first), "--out", str(second)]
    seconds["now"] = 0.04
    assert kernels.main(compare) == 1
    seconds["now"] = 0.00005
    assert kernels.main(compare) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rounds", "0"], "at least 1"),
        (["--out", "no/such/folder/kernels.json"], "does not exist"),
        (["--against", "no_such_file.json"], "no_such_file.json"),
    ],
)
def test_bad_usage_is_refused_before_any_work(options, said, capsys):
    with pytest.raises(SystemExit) as refused:
        kernels.main(options)
    assert refused.value.code == 2
    assert said in capsys.readouterr().err


# --- the cost of a sweep


def test_a_sweeps_terms_are_those_of_its_blocks():
    sweeps = sweep_cost.measure(16, (64, 128), (8, 16, 24, 32), repeats=1)
    assert [(one.columns, one.block_groups) for one in sweeps] == [
        (64, 8),
        (64, 16),
        (128, 8),
        (128, 16),
        (128, 24),
        (128, 32),
    ]
    for one in sweeps:
        if one.columns // 4 % one.block_groups == 0:
            assert one.terms == one.rows * one.columns * one.block_groups // 4
        assert one.seconds >= one.least > 0 and one.predicted > 0
    # 32 groups in two blocks of 16.
    assert sweeps[4].terms == 16 * (16**2 + 16**2)
    rates = {one.predicted / one.terms for one in sweeps}
    assert max(rates) == pytest.approx(min(rates))


def test_sweeps_are_drawn_and_listed(tmp_path):
    pytest.importorskip("matplotlib")
    sweeps = sweep_cost.measure(16, (64, 128), (8, 16), repeats=2)
    sweep_cost.save_plot(tmp_path / "sweeps.png", sweeps)
    assert (tmp_path / "sweeps.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert len(sweep_cost.sweeps_table(sweeps).splitlines()) == 6
    assert sweep_cost.as_dicts(sweeps)[0]["terms"] == 16 * 64 * 8 // 4
