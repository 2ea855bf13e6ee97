"""Numbers that users pass, checked by name."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any


def is_number(value: Any) -> bool:
    """Whether this is a real number other than NaN; truth values are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)


def checked_integer(name: str, value: Any, minimum: int) -> int:
    """An integer of at least ``minimum``; ValueError names the argument otherwise."""
    if not is_number(value) or math.isinf(value) or int(value) != value or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")
    return int(value)


def checked_duration(name: str, value: Any) -> float:
    """A non-negative number of seconds; ValueError names the argument otherwise."""
    if not is_number(value) or value < 0:
        raise ValueError(f"{name} must not be negative, a number of seconds, got {value!r}")
    return float(value)


def checked_threads(threads: Any) -> int:
    """How many threads to use: as given, or every processor this process may run on."""
    from gyroperm.solvers.parallel import default_threads

    return default_threads() if threads is None else checked_integer("threads", threads, 1)
