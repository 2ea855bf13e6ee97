"""What was measured so far, on disk, so that a benchmark that is interrupted continues."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any


class RunLog:
    """Measurements by what was measured, a line of JSON each, written when it is known.

    Parameters
    ----------
    path : Path or None
        The file to read and append to; None keeps everything in memory alone.
    conditions : mapping
        What a measurement depends on besides its key (the code, the machine), ready for JSON. It
        is found again under the same conditions only.
    fresh : bool
        Whether to begin anew: what the file holds is removed with the first measurement.

    Notes
    -----
    A line that was cut off, by a crash or a full disk, counts as not measured.
    """

    def __init__(
        self, path: Path | None, conditions: Mapping[str, Any], *, fresh: bool = False
    ) -> None:
        self.path = path
        self._conditions = dict(conditions)
        self._entries: list[dict[str, Any]] = []
        self._found: dict[str, Any] = {}
        self._mode = "w" if fresh else "a"
        self._ends_whole = True
        if path is not None and path.exists() and not fresh:
            text = path.read_text(encoding="utf-8")
            self._ends_whole = not text or text.endswith("\n")
            for line in text.splitlines():
                self._take(line)

    def _take(self, line: str) -> None:
        try:
            entry = json.loads(line)
            place = _place(entry["key"], entry["conditions"])
            entry["value"]
        except (ValueError, KeyError, TypeError):
            return
        self._entries.append(entry)
        self._found[place] = entry["value"]

    def find(self, key: Mapping[str, Any]) -> Any:
        """What was measured for a key under these conditions; None if nothing was."""
        return self._found.get(_place(key, self._conditions))

    def add(self, key: Mapping[str, Any], value: Any) -> None:
        """Note, and write, what was measured for a key."""
        line = json.dumps({"key": key, "conditions": self._conditions, "value": value})
        self._take(line)
        if self.path is None:
            return
        with self.path.open(self._mode, encoding="utf-8") as file:
            file.write(("" if self._ends_whole else "\n") + line + "\n")
        self._mode, self._ends_whole = "a", True

    def measured(self, key: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """What was measured for a key; measured now, and noted, if nothing was."""
        found = self.find(key)
        if found is None:
            found = measure()
            self.add(key, found)
        return found

    def everything(self) -> Iterator[tuple[dict[str, Any], Any]]:
        """The key and value of every measurement in the file, under whatever conditions."""
        for entry in self._entries:
            yield entry["key"], entry["value"]


def _place(key: Mapping[str, Any], conditions: Mapping[str, Any]) -> str:
    # Through JSON once, so that what is read again compares equal to what was given.
    return json.dumps([key, conditions], sort_keys=True)
