"""Who does the work: this process, several on this machine, or any executor."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any

from gyroperm.arguments import checked_integer, checked_threads
from gyroperm.checkpoints.tasks import Task, perform

# A pool that breaks this often without finishing anything will break again.
_ATTEMPTS = 3
_PATIENCE = 30.0
# Tasks handed to an executor that does not say how many workers it has.
_MANY = 1 << 10


class Crew:
    """Workers, and how many threads each of them may use.

    Parameters
    ----------
    make : callable
        Gives an executor; asked again when the one it gave is broken, if ``owned``.
    width : int
        Tasks to hand over at once.
    threads : int or None
        Of each task.
    owned : bool
        Whether the executor is this object's to shut down and to replace.
    """

    def __init__(
        self, make: Callable[[], Executor], *, width: int, threads: int | None, owned: bool
    ) -> None:
        self._make = make
        self._width = width
        self._threads = threads
        self._owned = owned
        self._executor: Executor | None = None

    def each(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, dict[str, Any]]]:
        """Do tasks, the largest first; give each with what it found, as they are finished.

        A worker process that dies costs the tasks in flight, which are begun again.

        Raises
        ------
        Exception
            What the first task that fails raises; tasks that were not begun are cancelled.
        RuntimeError
            If workers die again and again.
        """
        left = deque(sorted(tasks, key=lambda task: (-task.weights, task.name)))
        flying: dict[Future[dict[str, Any]], Task] = {}
        broken = 0
        try:
            while left or flying:
                try:
                    while left and len(flying) < self._width:
                        future = self._executor_now().submit(perform, left[0], self._threads)
                        flying[future] = left.popleft()
                    # Ctrl-C is heard only while Python runs.
                    done = wait(flying, timeout=1.0, return_when=FIRST_COMPLETED).done
                    for future in done:
                        found = future.result()
                        yield flying.pop(future), found
                        broken = 0
                except BrokenProcessPool as error:
                    broken += 1
                    if not self._owned or broken >= _ATTEMPTS:
                        raise RuntimeError(
                            f"worker processes died {broken} times in a row, the last time while "
                            f"doing {', '.join(task.name for task in flying.values())}; was there "
                            f"enough memory? What is finished is kept: the same command goes on"
                        ) from error
                    left.extendleft(reversed(flying.values()))
                    flying.clear()
                    self._executor = None
        finally:
            for future in flying:
                future.cancel()

    def close(self, *, abort: bool = False) -> None:
        """End the workers, if they are this object's; at once, or when they are idle."""
        if not self._owned or self._executor is None:
            return
        processes = dict(getattr(self._executor, "_processes", None) or {})
        self._executor.shutdown(wait=not abort, cancel_futures=True)
        if abort:
            # A search in flight may take hours; nothing that it has written is half a file.
            for process in processes.values():
                process.terminate()

    def _executor_now(self) -> Executor:
        if self._executor is None:
            self._executor = self._make()
        return self._executor


class _Here(Executor):
    """Does what it is given at once, in this thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def crew(
    *,
    jobs: int = 1,
    threads: int | None = None,
    executor: Executor | None = None,
    scheduler: str | None = None,
) -> Iterator[Crew]:
    """Workers for a run.

    Parameters
    ----------
    jobs : int
        Processes on this machine; one works in this process itself.
    threads : int, optional
        Of each task. By default all processors, divided by the jobs; one in an executor of one's
        own and on a cluster, whose workers may share a machine.
    executor : concurrent.futures.Executor, optional
        Instead of jobs: anything that takes functions and arguments that can be pickled.
    scheduler : str, optional
        Instead of jobs: the address of a Dask scheduler (extra ``dask``).

    Raises
    ------
    ValueError
        If more than one kind of worker is asked for.
    ConnectionError
        If the scheduler cannot be reached, or has no workers.
    """
    jobs = checked_integer("jobs", jobs, 1)
    if sum((jobs > 1, executor is not None, scheduler is not None)) > 1:
        raise ValueError("give only one of jobs, executor and scheduler")
    if scheduler is not None:
        with _dask(scheduler) as remote:
            yield Crew(lambda: remote, width=_MANY, threads=threads or 1, owned=False)
    elif executor is not None:
        width = getattr(executor, "_max_workers", None)
        width = 2 * width if isinstance(width, int) else _MANY
        yield Crew(lambda: executor, width=width, threads=threads or 1, owned=False)
    else:
        share = threads or max(1, checked_threads(None) // jobs)
        make = _Here if jobs == 1 else partial(_pool, jobs)
        own = Crew(make, width=jobs, threads=share, owned=True)
        try:
            yield own
        except BaseException:
            own.close(abort=True)
            raise
        own.close()


def _pool(jobs: int) -> Executor:
    # Not by fork: a process with threads cannot be copied safely.
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_ignore_interrupt)


def _ignore_interrupt() -> None:
    """Ctrl-C reaches every process of the terminal; the one that drives the run ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError("--scheduler needs Dask: pip install 'gyroperm[dask]'") from error
    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ConnectionError(f"no Dask scheduler answers at {address}: {error}") from error
    try:
        if not client.nthreads():
            raise ConnectionError(f"the Dask scheduler at {address} has no workers")
        yield client.get_executor(pure=False)
    finally:
        client.close()
