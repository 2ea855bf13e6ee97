"""Figures that the searches are meant to reach, and whether they do."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from benchmarks.instances import INTERMEDIATE, QUERY
from benchmarks.quality_runs import Measured, Run
from gyroperm.report import format_table


@dataclass(frozen=True)
class Target:
    """A figure to reach on two cores, compilation excluded.

    Attributes
    ----------
    instance, pattern, method : str
    budget : float or None
        The time limit of the run in seconds; None until the method has converged.
    measure : {"ratio", "efficacy"}
        Retained / unstructured, or efficacy in percent.
    at_least : float
        What the measure should reach.
    within : float
        Seconds that the search may take for it.
    """

    instance: str
    pattern: str
    method: str
    budget: float | None
    measure: Literal["ratio", "efficacy"]
    at_least: float
    within: float

    def runs(self, seeds: Sequence[int]) -> list[Run]:
        """The runs that it is judged by, one for each seed."""
        return [Run(self.instance, self.pattern, self.method, self.budget, seed) for seed in seeds]


TARGETS = (
    Target(INTERMEDIATE, "hinm75-v32", "gyro", None, "ratio", 0.850, 9.0),
    Target(INTERMEDIATE, "hinm75-v32", "assign", 10.0, "ratio", 0.860, 10.0),
    Target(INTERMEDIATE, "hinm75-v32", "assign", None, "ratio", 0.860, 10.0),
    Target(QUERY, "2:4", "assign", 0.5, "efficacy", 26.5, 0.5),
)


@dataclass(frozen=True)
class Outcome:
    """What a target's runs gave: medians over seeds, and whether both suffice."""

    target: Target
    value: float
    seconds: float
    reached: bool

    def as_dict(self) -> dict[str, Any]:
        """The target's parts and the outcome side by side, ready for JSON."""
        outcome = asdict(self)
        return {**outcome.pop("target"), **outcome}


def outcome(target: Target, measured: Sequence[Measured]) -> Outcome:
    """Judge a target by its runs.

    Parameters
    ----------
    target : Target
    measured : sequence of Measured
        At least one.
    """
    value = statistics.median(m.figures[target.measure] for m in measured)
    seconds = statistics.median(m.figures["seconds"] for m in measured)
    reached = value >= target.at_least and seconds <= target.within
    return Outcome(target, value, seconds, reached)


def targets_table(outcomes: Sequence[Outcome]) -> str:
    """A row for each target."""
    headers = ["target", "value", "at least", "seconds", "within", "reached"]
    rows = []
    for one in outcomes:
        target = one.target
        limit = "converged" if target.budget is None else f"{target.budget:g} s"
        instance = target.instance.removeprefix("encoder.")
        name = f"{target.method} ({limit}), {instance}, {target.pattern}, {target.measure}"
        form = "{:.4f}" if target.measure == "ratio" else "{:.2f} %"
        rows.append(
            [
                name,
                form.format(one.value),
                form.format(target.at_least),
                f"{one.seconds:.2f}",
                f"{target.within:g}",
                "yes" if one.reached else "no",
            ]
        )
    return format_table(headers, rows)
