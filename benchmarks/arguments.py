"""Numbers on a command line, checked as argparse wants it."""

from __future__ import annotations

import argparse


def positive_seconds(text: str) -> float:
    """A positive, finite number of seconds."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, got {text}")
    return value


def at_least(least: int, text: str) -> int:
    """An integer of at least ``least``."""
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
    return value
