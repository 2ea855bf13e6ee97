"""``gyroperm solve`` for a folder of shards."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gyroperm.arguments import checked_threads
from gyroperm.checkpoints.plan import Job, Plan
from gyroperm.checkpoints.progress import logger
from gyroperm.checkpoints.report import report_text
from gyroperm.checkpoints.run import prune_checkpoint
from gyroperm.checkpoints.settings import Settings
from gyroperm.files import check_writable
from gyroperm.pattern import Pattern
from gyroperm.report import write_json
from gyroperm.selection import Rules

_OK, _FAILURE, _INTERRUPTED = 0, 1, 130


def prune_folder(arguments: argparse.Namespace, pattern: Pattern, rules: Rules) -> int:
    """Plan and do what the options say.

    Parameters
    ----------
    arguments : argparse.Namespace
        Of ``gyroperm solve``.
    pattern : Pattern
    rules : Rules

    Returns
    -------
    int
        The exit code: 0 done, 1 failed while working, 130 interrupted; both can be gone on with.

    Raises
    ------
    ValueError, TypeError, OSError
        If anything is wrong that can be told before any search.
    """
    plan = Job(
        arguments.checkpoint, arguments.output, _settings(arguments, pattern), rules
    ).planned()
    for note in plan.notes:
        print(f"gyroperm: note: {note}", file=sys.stderr)
    if arguments.json is not None:
        check_writable(arguments.json)
    if arguments.dry_run:
        jobs = arguments.jobs
        threads = arguments.threads or max(1, checked_threads(None) // jobs)
        print(plan.described(jobs=jobs, threads=threads))
        return _OK
    with _told(arguments):
        return _pruned(plan, arguments)


def _settings(arguments: argparse.Namespace, pattern: Pattern) -> Settings:
    if arguments.target_sparsity is not None and arguments.vec_ratio is not None:
        raise ValueError("give either --vec-ratio or --target-sparsity, which sets it")
    if arguments.solutions is not None:
        raise ValueError(
            "--solutions is for a single file; a folder has orders and masks in gyroperm/masks"
        )
    return Settings(
        pattern,
        method=arguments.method,
        options=dict(arguments.option),
        seed=arguments.seed,
        rounds=arguments.rounds,
        time_limit=arguments.time_limit,
        bound=arguments.bound,
        lossless=arguments.lossless,
        surgery=arguments.surgery,
        target_sparsity=arguments.target_sparsity,
        allocation=arguments.allocation,
    )


def _pruned(plan: Plan, arguments: argparse.Namespace) -> int:
    folder = plan.folder.path
    try:
        report = prune_checkpoint(
            plan,
            jobs=arguments.jobs,
            threads=arguments.threads,
            scheduler=arguments.scheduler,
            bar=not arguments.quiet and sys.stderr.isatty(),
        )
        if arguments.json is not None:
            write_json(arguments.json, report)
    except KeyboardInterrupt:
        logger.error("interrupted; what is finished is kept: the same command goes on")
        return _INTERRUPTED
    except (BrokenPipeError, ConnectionError, PermissionError):
        raise
    except (OSError, MemoryError, RuntimeError) as error:
        logger.error("%s", error)
        if plan.folder.journal.exists():
            logger.error("what is finished is kept in %s: the same command goes on", folder)
        return _FAILURE
    if not arguments.quiet:
        print(report_text(report))
        page = plan.folder.report.with_suffix(".html")
        print(f"\nwrote {folder}; the report is {page}", flush=True)
    return _OK


class _Lines(logging.Handler):
    """Lines on standard error that leave a progress bar whole."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        kind = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        tqdm.write(f"gyroperm: {kind}{self.format(record)}", file=sys.stderr)


@contextmanager
def _told(arguments: Any) -> Iterator[None]:
    """The log on standard error, as much of it as was asked for."""
    level = logging.DEBUG if arguments.verbose else logging.INFO
    handler = _Lines()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if arguments.quiet else level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
