"""Published searches against gyroperm's own on large layers: who gets how far in what time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from benchmarks.instances import shape_text
from benchmarks.quality_runs import Run
from gyroperm.report import format_table

#: The share of the published search's own time that gyroperm's search gets.
SHARE = 1 / 20

#: How much more time than that shows what time still adds.
MORE = 10.0

#: Peak memory is held against this many times the float32 matrix, and so much for the process.
MATRICES, PROCESS_BYTES = 3, 300_000_000

OURS = "assign"


@dataclass(frozen=True)
class Contest:
    """A published search to its end against gyroperm's in a share of its time, and in more.

    Gyroperm's search gets :data:`SHARE` of the time, :data:`MORE` times that, and fixed times.

    Attributes
    ----------
    pattern : str
    published : str
        A label of :mod:`benchmarks.variants`.
    times : tuple of float
        Seconds for gyroperm's search.
    """

    pattern: str
    published: str
    times: tuple[float, ...]


@dataclass(frozen=True)
class Entry:
    """One run of a contest.

    Attributes
    ----------
    run : Run
    time : str
        What time it had, for people.
    figures : dict
    cut : bool
        Whether a run to its end was ended before.
    peak_bytes, allowed_bytes : int
        The peak of its process, and what is held against it.
    """

    run: Run
    time: str
    figures: dict[str, Any]
    cut: bool
    peak_bytes: int
    allowed_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        within = self.peak_bytes <= self.allowed_bytes
        return {**self.figures, **asdict(self.run), "time": self.time, "cut": self.cut} | {
            "peak_bytes": self.peak_bytes,
            "allowed_bytes": self.allowed_bytes,
            "within_memory": within,
        }


#: Makes a run in a process of its own; returns ``figures``, ``cut`` and ``peak_bytes``.
Make = Callable[[Run], dict[str, Any]]


def hold(contest: Contest, instance: str, described: dict[str, Any], make: Make) -> list[Entry]:
    """The runs of a contest on one instance, the published search first.

    Parameters
    ----------
    contest : Contest
    instance : str
    described : dict
        From :func:`benchmarks.instances.description`.
    make : callable
    """
    rows, columns = described["shape"]
    allowed = MATRICES * 4 * rows * columns + PROCESS_BYTES

    def entry(method: str, budget: float | None, time: str) -> Entry:
        run = Run(instance, contest.pattern, method, budget, 0)
        found = make(run)
        return Entry(run, time, found["figures"], found["cut"], found["peak_bytes"], allowed)

    published = entry(contest.published, None, "to its end")
    share = SHARE * published.figures["seconds"]
    entries = [published, entry(OURS, share, f"1/{1 / SHARE:.0f} of that, {share:.2g} s")]
    more = MORE * share
    entries.append(entry(OURS, more, f"{MORE:g} times that, {more:.2g} s"))
    return entries + [entry(OURS, seconds, f"{seconds:g} s") for seconds in contest.times]


def findings(entries: Sequence[Entry]) -> dict[str, Any]:
    """What a contest's runs say, in points of efficacy and parts of the retained saliency.

    Returns
    -------
    dict
        ``share_lead_points`` and ``share_lead_ratio``: how far gyroperm's search in the share of
        the time lies above the published one; ``best_lead_points``: the best of its runs;
        ``more_time``: for each of its times after the shortest, what it adds to the one before.
    """
    published = entries[0].figures
    share = entries[1].figures
    ours = sorted(entries[1:], key=lambda one: one.run.budget or 0.0)
    return {
        "instance": entries[0].run.instance,
        "pattern": entries[0].run.pattern,
        "published": entries[0].run.method,
        "share_lead_points": share["efficacy"] - published["efficacy"],
        "share_lead_ratio": share["ratio"] - published["ratio"],
        "best_lead_points": max(one.figures["efficacy"] for one in ours) - published["efficacy"],
        "more_time": [
            {
                "seconds": [earlier.run.budget, later.run.budget],
                "points": later.figures["efficacy"] - earlier.figures["efficacy"],
                "ratio": later.figures["ratio"] - earlier.figures["ratio"],
            }
            for earlier, later in pairwise(ours)
        ],
    }


def contest_text(entries: Sequence[Entry], described: dict[str, Any]) -> str:
    """A contest as a table, under what it is on, with what it says below."""
    headers = ["method", "time", "seconds", "efficacy", "ret./unstr.", "peak MB", "allowed MB"]
    rows = [
        [
            one.run.method,
            one.time + ", cut" * one.cut,
            f"{one.figures['seconds']:.2f}",
            f"{one.figures['efficacy']:.2f} %",
            f"{one.figures['ratio']:.5f}",
            f"{one.peak_bytes / 1e6:.0f}" + "!" * (one.peak_bytes > one.allowed_bytes),
            f"{one.allowed_bytes / 1e6:.0f}",
        ]
        for one in entries
    ]
    found = findings(entries)
    first = entries[0].run
    added = "".join(
        f"; {step['seconds'][1]:.3g} s after {step['seconds'][0]:.3g} s: {step['points']:+.2f}"
        for step in found["more_time"]
    )
    return (
        f"{first.instance} ({shape_text(described)}), {first.pattern}\n"
        f"{format_table(headers, rows)}\n"
        f"{OURS} above {first.method}, in points of efficacy: {found['share_lead_points']:+.2f} in "
        f"1/{1 / SHARE:.0f} of its time{added}"
    )
