"""Options of the command for folders of shards, and what all options share."""

from __future__ import annotations

import argparse
from typing import Any

#: What a single file does not take, with the defaults.
FOLDER_OPTIONS = {
    "jobs": 1,
    "scheduler": None,
    "dry_run": False,
    "surgery": "",
    "target_sparsity": None,
    "allocation": "uniform",
    "verbose": False,
}


def add_folder_options(group: Any) -> None:
    """The options of a run over a folder of shards."""
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan, and do nothing: layers, patterns, memory, estimated time",
    )
    group.add_argument(
        "--jobs",
        type=positive,
        default=1,
        metavar="N",
        help="processes on this machine, which divide up its processors (default 1)",
    )
    group.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="work on the Dask cluster of this scheduler, whose workers see both folders under the "
        "same paths (extra dask)",
    )
    group.add_argument(
        "--target-sparsity",
        type=float,
        metavar="FRACTION",
        help="the share of the pruned layers' weights that shall be zero; sets --vec-ratio",
    )
    group.add_argument(
        "--allocation",
        choices=("uniform", "global"),
        default="uniform",
        help="whether every layer gets the same vec_ratio for that (default), or what retains the "
        "most in all",
    )
    group.add_argument(
        "--surgery",
        nargs="?",
        const="inner",
        default="",
        choices=("inner", "all"),
        help="for plain N:M: reorder the channels in the files, so that groups are consecutive, as "
        "stock kernels read them; those inside of layers, which nothing outside can see (default), "
        "or all: with the residual stream, in whose new order hidden states then leave the model",
    )
    group.add_argument(
        "--verbose", action="store_true", help="tell of every step, also where there is a bar"
    )


def check_file_options(arguments: argparse.Namespace) -> None:
    """Refuse, for a single file, what is for folders."""
    given = [
        flag(name)
        for name, default in FOLDER_OPTIONS.items()
        if getattr(arguments, name) != default
    ]
    if given:
        raise ValueError(
            f"{', '.join(given)} is for a folder of shards or its index; {arguments.checkpoint} is "
            f"neither"
        )


def flag(option: str) -> str:
    """What an option is called on the command line."""
    return "--" + option.replace("_", "-")


def natural(text: str) -> int:
    """An integer of at least 0, as an argument."""
    return _at_least(0, text)


def positive(text: str) -> int:
    """An integer of at least 1, as an argument."""
    return _at_least(1, text)


def _at_least(minimum: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = minimum - 1
    if value < minimum:
        raise argparse.ArgumentTypeError(f"must be an integer of at least {minimum}, got {text!r}")
    return value
