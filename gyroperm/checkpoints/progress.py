"""How far a run is, for people: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from gyroperm.checkpoints.plan import duration

logger = logging.getLogger("gyroperm.checkpoints")


class Progress:
    """Told of every step that is finished.

    Parameters
    ----------
    bar : bool
        Whether to draw a bar on standard error; without one each step is a line of the log.
    """

    def __init__(self, bar: bool = False) -> None:
        self._draws = bar
        self._bar: Any = None
        self._stage = ""
        self._steps = self._finished = self._before = 0
        self._weights = self._covered = 0
        self._begin = 0.0

    def stage(self, name: str, steps: int, weights: int = 0, *, before: int = 0) -> None:
        """Begin a stage of so many steps, which are so many weights together.

        Parameters
        ----------
        name : str
        steps, weights : int
        before : int
            Steps that an earlier run has finished.
        """
        self.close()
        self._stage, self._steps, self._before = name, steps, before
        self._finished = self._covered = 0
        self._weights = weights
        self._begin = time.perf_counter()
        if before:
            logger.info("%s: %d of %d are there already", name, before, before + steps)
        if self._draws and steps:
            from tqdm import tqdm

            self._bar = tqdm(
                total=weights or steps,
                desc=name,
                unit="weight" if weights else "step",
                unit_scale=bool(weights),
                leave=False,
                file=sys.stderr,
            )

    def done(self, name: str, weights: int = 0, note: str = "") -> None:
        """A step is finished."""
        self._finished += 1
        self._covered += weights
        text = (
            f"{self._stage}: {self._before + self._finished} of {self._before + self._steps}, "
            f"{duration(self.seconds_left())} left: {name}{': ' if note else ''}{note}"
        )
        if self._bar is None:
            logger.info(text)
            return
        logger.debug(text)
        self._bar.set_postfix_str(f"{name} {note}"[:60], refresh=False)
        self._bar.update(weights if self._weights else 1)

    def seconds_left(self) -> float:
        """About how long the stage still takes, at the pace so far."""
        spent = time.perf_counter() - self._begin
        share = self._covered / self._weights if self._weights else self._finished / self._steps
        return spent * (1.0 - share) / share if share else 0.0

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
