"""When a search stops: small callables that can be combined."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from gyroperm.arguments import checked_duration, checked_integer


@dataclass(frozen=True)
class SearchState:
    """What a stopping criterion sees.

    Attributes
    ----------
    seconds : float
        Since the search began, compilation excluded.
    rounds : int
        Finished rounds of the method (what a round is, each method says).
    retained : float
        The best so far, in the search's own scale.
    stale_rounds : int
        Rounds since the best last rose.
    """

    seconds: float
    rounds: int
    retained: float
    stale_rounds: int


#: A stopping criterion: any callable that takes the state and returns True to stop.
Stop = Callable[[SearchState], bool]


class Criterion:
    """A stopping criterion that combines: ``a | b`` stops at either, ``a & b`` at both.

    Attributes
    ----------
    timed : bool
        Whether a clock is among what decides.
    counted : bool
        Whether a number of rounds is.
    """

    timed: bool = False
    counted: bool = False

    def __call__(self, state: SearchState) -> bool:
        """Whether to stop now."""
        raise NotImplementedError

    def progress(self, state: SearchState) -> float | None:
        """How much of what is allowed is used up, in [0, 1]; None if that cannot be told."""
        return None

    def seconds_allowed(self) -> float:
        """The seconds that are allowed; infinite where they are not counted."""
        return math.inf

    def __or__(self, other: Stop) -> Criterion:
        return AnyOf(self, other)

    def __and__(self, other: Stop) -> Criterion:
        return AllOf(self, other)

    __ror__ = __or__
    __rand__ = __and__


def _known_progress(criteria: tuple[Stop, ...], state: SearchState) -> list[float]:
    given = (c.progress(state) for c in criteria if isinstance(c, Criterion))
    return [progress for progress in given if progress is not None]


def _any_is(criteria: tuple[Stop, ...], what: str) -> bool:
    return any(getattr(c, what) for c in criteria if isinstance(c, Criterion))


def _share(used: float, allowed: float) -> float:
    return min(1.0, used / allowed) if allowed > 0 else 1.0


class AnyOf(Criterion):
    """Stop as soon as one of the criteria would."""

    def __init__(self, *criteria: Stop) -> None:
        self.criteria = criteria
        self.timed = _any_is(criteria, "timed")
        self.counted = _any_is(criteria, "counted")

    def __call__(self, state: SearchState) -> bool:
        return any(criterion(state) for criterion in self.criteria)

    def progress(self, state: SearchState) -> float | None:
        known = _known_progress(self.criteria, state)
        return max(known) if known else None

    def seconds_allowed(self) -> float:
        """The fewest that one of the criteria allows."""
        return min(map(seconds_allowed, self.criteria))


class AllOf(Criterion):
    """Stop when all of the criteria would."""

    def __init__(self, *criteria: Stop) -> None:
        self.criteria = criteria
        self.timed = _any_is(criteria, "timed")
        self.counted = _any_is(criteria, "counted")

    def __call__(self, state: SearchState) -> bool:
        return all(criterion(state) for criterion in self.criteria)

    def progress(self, state: SearchState) -> float | None:
        known = _known_progress(self.criteria, state)
        return min(known) if len(known) == len(self.criteria) else None

    def seconds_allowed(self) -> float:
        """The most that one of the criteria allows."""
        return max(map(seconds_allowed, self.criteria))


class TimeLimit(Criterion):
    """Stop after so many seconds, compilation excluded."""

    timed = True

    def __init__(self, seconds: float) -> None:
        self.seconds = checked_duration("seconds", seconds)

    def __call__(self, state: SearchState) -> bool:
        return state.seconds >= self.seconds

    def progress(self, state: SearchState) -> float | None:
        # No share of forever is ever used up; a method then keeps its own pace.
        return None if math.isinf(self.seconds) else _share(state.seconds, self.seconds)

    def seconds_allowed(self) -> float:
        """The limit."""
        return self.seconds


class MaxRounds(Criterion):
    """Stop after so many rounds; the same number gives the same answer on any machine."""

    counted = True

    def __init__(self, rounds: int) -> None:
        self.rounds = checked_integer("rounds", rounds, 0)

    def __call__(self, state: SearchState) -> bool:
        return state.rounds >= self.rounds

    def progress(self, state: SearchState) -> float:
        return _share(state.rounds, self.rounds)


class NoImprovement(Criterion):
    """Stop after so many rounds in a row that brought nothing."""

    counted = True

    def __init__(self, rounds: int) -> None:
        self.rounds = checked_integer("rounds", rounds, 1)

    def __call__(self, state: SearchState) -> bool:
        return state.stale_rounds >= self.rounds


def seconds_allowed(stop: Stop | None) -> float:
    """The seconds that a criterion allows; infinite where it does not count them."""
    return stop.seconds_allowed() if isinstance(stop, Criterion) else math.inf
