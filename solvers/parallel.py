"""Kernels over blocks in a thread pool: the same blocks for any number of threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def default_threads() -> int:
    """The processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parallel_map(function: Callable[[A], B], items: Iterable[A], threads: int) -> list[B]:
    """``[function(item) for item in items]``, by several threads where that is asked for."""
    work = list(items)
    if threads <= 1 or len(work) <= 1:
        return [function(item) for item in work]
    with ThreadPoolExecutor(min(threads, len(work)), thread_name_prefix="gyroperm") as pool:
        return list(pool.map(function, work))
