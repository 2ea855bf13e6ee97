"""Times of work on a card: everything that is compared in turns, by events around graphs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# A sample takes at least so long, so that what begins and ends it does not count.
SAMPLE_SECONDS = 2e-3

# Calls of a graph: what makes them is Python.
_MOST_CALLS = 2000

#: What a contender may fail with and leave the others to be measured.
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


class WrongResultError(Exception):
    """What is timed does not compute what it should."""


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Parameters
    ----------
    label : str
    calls : sequence of callable
        The work by each copy of its weights, on torch's current stream. Together the copies are
        more than the caches hold.
    check : callable, optional
        Raises :class:`WrongResultError` unless a call computes what it should.
    amounts : mapping
        What a call moves and computes, and what the model says; goes into the results.
    eager : bool
        Time calls as they are made from Python, not replayed.
    """

    label: str
    calls: Sequence[Callable[[], Any]]
    check: Callable[[], None] | None = None
    amounts: Mapping[str, Any] = field(default_factory=dict)
    eager: bool = False


@dataclass(frozen=True)
class Sampled:
    """Takes samples of a contender: the seconds of a call, the mean over ``calls`` of them."""

    sample: Callable[[], float]
    calls: int
    timed_by: str


Sampler = Callable[[Contender], Sampled]


def measure(
    contenders: Sequence[Contender], rounds: int, sampler: Sampler
) -> dict[str, dict[str, Any]]:
    """Time all contenders in turns.

    Parameters
    ----------
    contenders : sequence of Contender
        With different labels.
    rounds : int
        Samples of each.
    sampler : callable
        Makes what takes the samples of a contender, once.

    Returns
    -------
    dict
        For each label ``seconds`` (a call's, of every round), ``calls`` (of a sample), ``copies``
        (of the weights), ``timed_by`` ("graph" or "calls") and its amounts; or ``absent``, the
        reason why it could not be timed; or ``wrong``, how its result is wrong.
    """
    found: dict[str, dict[str, Any]] = {}
    samples: dict[str, Callable[[], float]] = {}
    for contender in contenders:
        try:
            if contender.check is not None:
                contender.check()
            sampled = sampler(contender)
        except WrongResultError as error:
            found[contender.label] = {"wrong": str(error)}
        except FAILURES as error:
            found[contender.label] = {"absent": f"{type(error).__name__}: {error}"}
        else:
            samples[contender.label] = sampled.sample
            found[contender.label] = {
                "calls": sampled.calls,
                "copies": len(contender.calls),
                "timed_by": sampled.timed_by,
                **contender.amounts,
            }
    for label, seconds in in_turns(samples, rounds).items():
        found[label]["seconds"] = seconds
    return found


def in_turns(samples: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """A sample of each in every round; the first of a round is the second of the one before."""
    seconds: dict[str, list[float]] = {label: [] for label in samples}
    labels = list(samples)
    for i in range(rounds):
        first = i % max(1, len(labels))
        for label in labels[first:] + labels[:first]:
            seconds[label].append(samples[label]())
    return seconds


def on_card(contender: Contender) -> Sampled:
    """Samples by events on torch's device: of a graph of all copies, or of calls.

    A call that cannot be captured is timed as it is made.
    """
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in contender.calls:
            call()
    stream.synchronize()
    if contender.eager:
        return _of_calls(contender, stream)
    try:
        sweep = _captured(contender.calls, 1, stream)
    except RuntimeError:
        torch.cuda.synchronize()
        return _of_calls(contender, stream)
    took = min(_seconds(sweep.replay, stream) for _ in range(3))
    sweeps = repetitions(took, len(contender.calls))
    graph = sweep if sweeps == 1 else _captured(contender.calls, sweeps, stream)
    graph.replay()
    calls = sweeps * len(contender.calls)
    return Sampled(lambda: _seconds(graph.replay, stream) / calls, calls, "graph")


def repetitions(sweep_seconds: float, calls: int) -> int:
    """How often all copies are gone through in a sample."""
    wanted = math.ceil(SAMPLE_SECONDS / max(sweep_seconds, 1e-7))
    return max(1, min(wanted, _MOST_CALLS // calls))


def _of_calls(contender: Contender, stream: Any) -> Sampled:
    def sweep() -> None:
        for call in contender.calls:
            call()

    took = min(_seconds(sweep, stream) for _ in range(3))
    sweeps = repetitions(took, len(contender.calls))
    calls = sweeps * len(contender.calls)

    def all_sweeps() -> None:
        for _ in range(sweeps):
            sweep()

    return Sampled(lambda: _seconds(all_sweeps, stream) / calls, calls, "calls")


def _captured(calls: Sequence[Callable[[], Any]], sweeps: int, stream: Any) -> Any:
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(sweeps):
            for call in calls:
                call()
    return graph


def _seconds(work: Callable[[], Any], stream: Any) -> float:
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.stream(stream):
        begin.record()
        work()
        end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
