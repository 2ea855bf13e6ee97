"""Checkpoints as they are published: sharded, large, pruned in bounded memory, interrupted.

A :class:`Job` is planned and then pruned by :func:`prune_checkpoint` into a folder with the same
shards, and the orders and masks beside them, which :func:`read_solution` reads.
"""

from gyroperm.checkpoints.plan import Job, Plan
from gyroperm.checkpoints.results import read_orders, read_solution
from gyroperm.checkpoints.run import prune_checkpoint
from gyroperm.checkpoints.settings import Settings
from gyroperm.checkpoints.source import Source

__all__ = [
    "Job",
    "Plan",
    "Settings",
    "Source",
    "prune_checkpoint",
    "read_orders",
    "read_solution",
]
