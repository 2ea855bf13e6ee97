"""Ctrl-C as a stopping criterion: the first asks for the best so far, the second aborts."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from gyroperm.stopping import AllOf, AnyOf, Criterion, SearchState, Stop

_MESSAGE = b"\ninterrupted: finishing with the best so far; press Ctrl-C again to abort\n"


class Interrupt(Criterion):
    """Within its context the first SIGINT sets ``requested``, the second raises.

    A stopping criterion too: a search that is given it stops when it is requested. Only the main
    thread can watch signals, and a process that was started to ignore SIGINT goes on ignoring
    it; there the context changes nothing.

    Attributes
    ----------
    requested : bool
        Whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __call__(self, state: SearchState) -> bool:
        """Whether Ctrl-C was pressed."""
        return self.requested

    def __enter__(self) -> Interrupt:
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        if threading.current_thread() is threading.main_thread() and not ignored:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        # Not through sys.stderr, whose buffer may be the very code that was interrupted.
        with contextlib.suppress(OSError):
            os.write(2, _MESSAGE)


def interrupted(stop: Stop | None) -> bool:
    """Whether Ctrl-C was pressed, if a stopping criterion watches for it."""
    if isinstance(stop, AnyOf | AllOf):
        return any(map(interrupted, stop.criteria))
    return isinstance(stop, Interrupt) and stop.requested
