"""The speeds that are aimed at on an H200, and what a run reached of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.spmm_contenders import CHOSEN, DENSE
from benchmarks.spmm_layers import FUSED, SELECTED, SORTED
from benchmarks.spread import Spread

Entry = dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """A ratio of times that cases should reach.

    Parameters
    ----------
    text : str
        Of which cases.
    least : float
    of : callable
        Whether a case counts.
    slow, fast : sequence of str
        Labels: the fastest of the first, by the second that there is.
    """

    text: str
    least: float
    of: Callable[[Entry], bool]
    slow: Sequence[str]
    fast: Sequence[str]

    def judged(self, cases: Iterable[Entry]) -> dict[str, Any]:
        """``measured``, the least median among the cases, ``case``, which one, and ``reached``.

        None where nothing was measured.
        """
        found = []
        for case in filter(self.of, cases):
            spread = ratio(case["contenders"], self.slow, self.fast)
            if spread is not None:
                found.append((spread.median, case_text(case)))
        measured, where = min(found) if found else (None, None)
        return {
            "goal": self.text,
            "least": self.least,
            "measured": measured,
            "case": where,
            "cases": len(found),
            "reached": None if measured is None else measured >= self.least,
        }


def ratio(
    contenders: dict[str, dict[str, Any]], slow: Sequence[str], fast: Sequence[str]
) -> Spread | None:
    """The times of the first labels by those of the second, round by round.

    Of each, the one with the least median. None where one of both was not measured.
    """
    above, below = (fastest(contenders, labels) for labels in (slow, fast))
    if above is None or below is None:
        return None
    pairs = zip(contenders[above]["seconds"], contenders[below]["seconds"], strict=True)
    return Spread.of([a / b for a, b in pairs])


def fastest(contenders: dict[str, dict[str, Any]], labels: Iterable[str]) -> str | None:
    """The label with the least median time; None where none was measured."""
    medians = {
        label: Spread.of(contenders[label]["seconds"]).median
        for label in labels
        if contenders.get(label, {}).get("seconds")
    }
    return min(medians, key=lambda label: medians[label]) if medians else None


def case_text(case: Entry) -> str:
    """A case in words, for tables."""
    if "structure" not in case:
        return f"{case['channels']} - {case['hidden']}, N = {case['n']}"
    structure = case["structure"]
    return (
        f"{structure['outputs']} x {structure['inputs']}, V = {structure['tile_size']}, "
        f"N = {case['n']}"
    )


def _products(
    pattern: str,
    sparsity: float,
    columns: Sequence[int],
    tile_sizes: Sequence[int],
    shapes: Sequence[tuple[int, int]] | None = None,
) -> Callable[[Entry], bool]:
    def is_of(case: Entry) -> bool:
        if case["section"] != "products" or case["n"] not in columns:
            return False
        structure = case["structure"]
        shape = (structure["outputs"], structure["inputs"])
        return (
            structure["pattern"] == pattern
            and abs(structure["sparsity"] - sparsity) < 1e-9
            and structure["tile_size"] in tile_sizes
            and (shapes is None or shape in shapes)
        )

    return is_of


def _of(section: str) -> Callable[[Entry], bool]:
    return lambda case: case["section"] == section


def _dense(text: str, least: float, of: Callable[[Entry], bool]) -> Goal:
    return Goal(f"{text}, against cuBLAS", least, of, DENSE, (CHOSEN,))


_SMALL, _LARGE = [(4096, 4096)], [(11008, 4096), (4096, 14336)]
_FEW, _SIZES = (1, 8, 16), (64, 128)

GOALS = (
    _dense("N <= 16, 75 %, 4096 x 4096", 1.9, _products("hinm", 0.75, _FEW, _SIZES, _SMALL)),
    _dense(
        "N <= 16, 75 %, 11008 x 4096 and 4096 x 14336",
        2.4,
        _products("hinm", 0.75, _FEW, _SIZES, _LARGE),
    ),
    _dense("N = 64, 75 %, V = 128", 1.6, _products("hinm", 0.75, [64], [128])),
    _dense("N = 4096, 75 %, V = 128", 1.5, _products("hinm", 0.75, [4096], [128])),
    _dense("N = 4096, 87.5 %, V = 128", 2.9, _products("hinm", 0.875, [4096], [128])),
    *(
        _dense(
            f"N = 4096, vector N:M fp16, {100 * sparsity:g} %, V = {V}",
            least,
            _products("vector", sparsity, [4096], [V]),
        )
        for V, sparsity, least in (
            (32, 0.75, 1.2),
            (32, 0.875, 1.9),
            (128, 0.75, 1.8),
            (128, 0.875, 3.0),
        )
    ),
    Goal(
        "TVW, tiles of different lengths within 10 % of equal ones",
        1 / 1.1,
        _of("tvw"),
        (f"even {CHOSEN}",),
        (f"ragged {CHOSEN}",),
    ),
    Goal("chain within 2 % of sorted, identity", 1 / 1.02, _of("chain"), (SORTED,), (FUSED,)),
    Goal("chain against index_select", 1.1, _of("chain"), (SELECTED,), (FUSED,)),
)


def judge(cases: Sequence[Entry]) -> list[dict[str, Any]]:
    """Every goal, with what was measured of it."""
    return [goal.judged(cases) for goal in GOALS]
