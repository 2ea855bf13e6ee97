"""The annealing schedule: phases, and the thermostat."""

from itertools import pairwise

import numpy as np
import pytest

from gyroperm import MaxRounds, Pattern, solve
from gyroperm.problem import Problem
from gyroperm.solvers.cooling import Phase, Thermostat, gumbel_noise
from gyroperm.solvers.kernels.grouping import NOISE_STRIP
from gyroperm.solvers.search import Search


def _search(stop=None):
    return Search(Problem(np.ones((4, 8)), Pattern.nm()), stop=stop)


def _targets(phase, search):
    targets = []
    while (target := phase.next_target()) is not None:
        targets.append(target)
        search.record()
        if len(targets) >= 100:
            break
    return targets


def test_a_phase_cools_over_its_own_rounds_and_then_descends():
    search = _search()
    targets = _targets(Phase(search, rounds=10, hot=0.5, cold=0.05, share=1.0), search)
    assert targets[0] == 0.5
    assert all(a > b > 0.05 for a, b in pairwise(targets[:10]))
    assert set(targets[10:]) == {0.0}


def test_a_phase_fills_its_share_of_the_rounds_allowed():
    search = _search(MaxRounds(40))
    first = _targets(Phase(search, rounds=10, hot=0.5, cold=0.05, share=0.5), search)
    second = _targets(Phase(search, rounds=10, hot=0.5, cold=0.05, share=1.0), search)
    assert len(first) == 20
    assert len(second) == 20
    assert first[-1] == second[-1] == 0.0
    assert sum(target > 0 for target in first) == 19


def test_a_phase_without_rounds_only_descends():
    search = _search(MaxRounds(5))
    assert set(_targets(Phase(search, rounds=0, hot=0.5, cold=0.05, share=1.0), search)) == {0.0}


@pytest.mark.parametrize(("moved", "direction"), [(0, 1), (100, -1)])
def test_a_thermostat_follows_its_target_but_never_runs_away(moved, direction):
    thermostat = Thermostat()
    start = thermostat.temperature
    thermostat.count(moved, 100)
    thermostat.steer(0.1)
    assert (thermostat.temperature - start) * direction > 0
    for _ in range(1000):
        thermostat.count(moved, 100)
        thermostat.steer(0.1)
    assert 1e-6 <= thermostat.temperature <= 100.0


STUCK = [
    (pattern, S)
    for pattern in (Pattern.nm(), Pattern.hinm(vec_size=4), Pattern.tvw(vec_size=4))
    for S in (np.zeros((16, 32)), np.ones((16, 32)))
]


@pytest.mark.parametrize(("pattern", "S"), [*STUCK, (Pattern.nm(), np.ones((8, 4)))], ids=str)
def test_what_cannot_gain_is_still_solved_after_many_rounds(pattern, S):
    solution = solve(S, pattern=pattern, method="assign", stop=MaxRounds(600))
    assert solution.retained == solution.identity


def test_the_noise_is_centred_gumbel():
    noise = gumbel_noise()
    assert noise.shape == (4096 + NOISE_STRIP,)
    assert noise[:-NOISE_STRIP].mean() == pytest.approx(0.0, abs=1e-5)
    assert np.array_equal(noise[:NOISE_STRIP], noise[-NOISE_STRIP:])
    # The variance of the standard Gumbel distribution is pi^2 / 6; its far tail is cut off.
    assert noise.var() == pytest.approx(np.pi**2 / 6, rel=0.01)
