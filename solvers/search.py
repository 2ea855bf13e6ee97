"""One run of a solver: its problem, clock, random streams, and the best so far."""

from __future__ import annotations

import time
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from gyroperm.problem import Problem
from gyroperm.stopping import Criterion, SearchState, Stop, seconds_allowed

if TYPE_CHECKING:
    from gyroperm.arrangement import Arrangement


class Search:
    """What a solver works with besides its options.

    Parameters
    ----------
    problem : Problem
        What to solve.
    seed : int
        The seed of every random stream.
    threads : int
        Worker threads to use; the answer must not depend on it.
    stop : callable or None
        The user's stopping criterion. The solver also stops by itself when it has converged.
    initial : Arrangement or None
        Where to start from, already checked against the problem.
    progress : tqdm-like or None
        A bar to advance by one a round.
    enough : float or None
        A recorded value at which the search is over, in the scale of ``problem.search_saliency``.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        threads: int = 1,
        stop: Stop | None = None,
        initial: Arrangement | None = None,
        progress: Any = None,
        enough: float | None = None,
    ) -> None:
        self.problem = problem
        self.seed = seed
        self.threads = threads
        self.initial = initial
        self.enough = enough
        self.history: list[tuple[float, float]] = []
        #: The least bound that was proven and how, see :meth:`prove`.
        self.proof: tuple[float, str] | None = None
        self._stop = stop
        self._bar = progress
        self._lock = Lock()
        self._rounds = 0
        self._stale = 0
        self._begin = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the search began."""
        return time.perf_counter() - self._begin

    @property
    def best(self) -> float:
        """The best recorded value, 0 before the first."""
        return self.history[-1][1] if self.history else 0.0

    @property
    def seconds_left(self) -> float:
        """Until a time limit of the user's criterion is reached; infinite without one."""
        return max(0.0, seconds_allowed(self._stop) - self.seconds)

    def part(self, share: float) -> Search:
        """A search of its own for a method that this one calls, for a share of what is allowed.

        To be used before the first round; where the criterion sets no pace the method does.
        """
        stop = None if self._stop is None else _Share(self._stop, share)
        return Search(
            self.problem,
            seed=self.seed,
            threads=self.threads,
            stop=stop,
            initial=self.initial,
            progress=self._bar,
        )

    def prove(self, bound: float, kind: str) -> None:
        """Note that no arrangement retains more than ``bound``.

        In the scale of ``problem.search_saliency``, but of the saliency before it was rounded to
        float32; ``kind`` says how it was proven.
        """
        if self.proof is None or bound < self.proof[0]:
            self.proof = bound, kind

    def random(self, *stream: int) -> np.random.Generator:
        """A generator of its own for each stream; the same for any number of threads."""
        return np.random.default_rng([self.seed, *stream])

    def record(self, retained: float | None = None) -> None:
        """End a round.

        Parameters
        ----------
        retained : float, optional
            What is retained now, in the scale of ``problem.search_saliency``; None in a round
            that has no such value, which then does not count as one without improvement.
        """
        self._rounds += 1
        if retained is not None:
            self._stale += 1
            self.improve(retained)
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix(retained=f"{self.best:.6g}", refresh=False)

    def improve(self, retained: float) -> None:
        """Note a value within a round, if it is better than the best so far."""
        if not self.history or retained > self.best:
            self.history.append((self.seconds, float(retained)))
            self._stale = 0

    def stopped(self) -> bool:
        """Whether the user's criterion, or ``enough``, says stop.

        Ask between rounds and within long ones.
        """
        if self.enough is not None and self.history and self.best >= self.enough:
            return True
        if self._stop is None:
            return False
        return bool(self._stop(self._state()))

    def affords(self, seconds: float) -> bool:
        """Whether a step of so many seconds may begin that nothing can interrupt.

        False where the search is stopped, or its criterion tells that it would be by then.
        """
        if self.stopped():
            return False
        if not isinstance(self._stop, Criterion):
            return True
        state = self._state()
        used = self._stop.progress(replace(state, seconds=state.seconds + seconds))
        return used is None or used < 1.0

    def progress(self) -> float | None:
        """How much of what the user's criterion allows is used up, in [0, 1]; None if unknown.

        Lets a method that cools down or plans ahead fill the time it is given.
        """
        return self._stop.progress(self._state()) if isinstance(self._stop, Criterion) else None

    @property
    def timed(self) -> bool:
        """Whether the user's criterion is about time, so that a round may take what fits in."""
        return isinstance(self._stop, Criterion) and self._stop.timed

    def apart(self, problem: Problem, haste: float) -> Search:
        """A search of another problem with records of its own and a clock that runs faster.

        It ends after as many rounds, or a ``haste``-th of a time limit, and with this search.
        """
        return Search(
            problem, seed=self.seed, threads=self.threads, stop=_Apart(self, self._stop, haste)
        )

    @property
    def by_clock(self) -> bool:
        """Whether a clock alone sets the pace, and no number of rounds stands for an answer."""
        counted = getattr(self._stop, "counted", False)
        return self.timed and not counted and self.progress() is not None

    def chain(self, index: int, begin: float, end: float) -> Search:
        """One of several independent searches that divide up this one, and run side by side.

        It has random streams of its own, one thread, and the time in which :attr:`progress` of
        this search goes from ``begin`` to ``end``; its rounds count as rounds of this one too.
        """
        return _Chain(self, index, _Stretch(self, begin, end))

    def _state(self) -> SearchState:
        return SearchState(self.seconds, self._rounds, self.best, self._stale)


# The first number of the random streams of a chain, which no other stream begins with.
_CHAIN = 1 << 20


class _Chain(Search):
    """See :meth:`Search.chain`."""

    def __init__(self, whole: Search, index: int, stop: Stop | None) -> None:
        super().__init__(whole.problem, seed=whole.seed, stop=stop)
        self._whole = whole
        self._index = index

    def random(self, *stream: int) -> np.random.Generator:
        return self._whole.random(_CHAIN, self._index, *stream)

    def part(self, share: float) -> Search:
        stop = None if self._stop is None else _Share(self._stop, share)
        return _Chain(self._whole, self._index, stop)

    def record(self, retained: float | None = None) -> None:
        super().record(retained)
        with self._whole._lock:
            self._whole.record(retained)


class _Stretch(Criterion):
    """Stop with another search, or when its progress comes to where a stretch of it ends."""

    timed = True

    def __init__(self, whole: Search, begin: float, end: float) -> None:
        self._whole = whole
        self._begin, self._end = begin, end
        self._seconds = (end - begin) * (whole.seconds + whole.seconds_left)

    def __call__(self, state: SearchState) -> bool:
        return self._whole.stopped() or self.progress(state) >= 1.0

    def progress(self, state: SearchState) -> float:
        now = self._whole.progress()
        if now is None or now >= self._end:
            return 1.0
        return max(0.0, (now - self._begin) / (self._end - self._begin))

    def seconds_allowed(self) -> float:
        return self._seconds


class _Share(Criterion):
    """Stop when a share of what a criterion allows is used up."""

    def __init__(self, stop: Stop, share: float) -> None:
        self.stop = stop
        self.share = share
        self.timed = isinstance(stop, Criterion) and stop.timed
        self.counted = isinstance(stop, Criterion) and stop.counted

    def __call__(self, state: SearchState) -> bool:
        progress = self.progress(state)
        return bool(self.stop(state)) or (progress is not None and progress >= 1.0)

    def progress(self, state: SearchState) -> float | None:
        if not isinstance(self.stop, Criterion):
            return None
        progress = self.stop.progress(state)
        return None if progress is None else min(1.0, progress / self.share)

    def seconds_allowed(self) -> float:
        return self.share * seconds_allowed(self.stop)


class _Apart(Criterion):
    """The limits of a criterion for another search, to which time passes faster.

    Whatever else the criterion looks at, it sees of the search that it was given to.
    """

    def __init__(self, search: Search, stop: Stop | None, haste: float) -> None:
        self._search = search
        self._stop = stop
        self._haste = haste
        self.timed = isinstance(stop, Criterion) and stop.timed
        self.counted = isinstance(stop, Criterion) and stop.counted

    def __call__(self, state: SearchState) -> bool:
        return self._search.stopped() or self.progress(state) == 1.0

    def progress(self, state: SearchState) -> float | None:
        if not isinstance(self._stop, Criterion):
            return None
        return self._stop.progress(replace(state, seconds=self._haste * state.seconds))

    def seconds_allowed(self) -> float:
        return seconds_allowed(self._stop) / self._haste
