"""Where everything of a run lies in its output folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from gyroperm.checkpoint import Tensor
from gyroperm.files import file_name

#: The folder beside the shards that holds all that is no part of the model.
OWN = "gyroperm"


@dataclass(frozen=True)
class RunFolder:
    """The output folder of a run.

    Parameters
    ----------
    path : Path
        With the shards; what belongs to the run lies in ``gyroperm`` inside of it.
    """

    path: Path

    @property
    def own(self) -> Path:
        """The folder of the run itself."""
        return self.path / OWN

    @property
    def journal(self) -> Path:
        """What is finished."""
        return self.own / "journal.jsonl"

    @property
    def manifest(self) -> Path:
        """What is made from what, with checksums."""
        return self.own / "manifest.json"

    @property
    def masks(self) -> Path:
        """The folder of the layers' results."""
        return self.own / "masks"

    @property
    def orders(self) -> Path:
        """The folder of the orders of coupled channels."""
        return self.own / "orders"

    @property
    def report(self) -> Path:
        """The report, without its suffix."""
        return self.own / "report"

    def mask_of(self, tensor: str) -> Path:
        """The result of a layer."""
        return self.masks / file_name(tensor, ".safetensors")

    def orders_of(self, group: str) -> Path:
        """The orders of a group of coupled channels."""
        return self.orders / file_name(group, ".safetensors")

    def make(self, names: Iterable[str]) -> None:
        """Make the folders, and remove what a killed process left half written.

        Parameters
        ----------
        names : iterable of str
            The files that the output will have beside its own folder.

        Raises
        ------
        OSError
            If they cannot be made or written.
        """
        for folder in (self.path, self.own, self.masks, self.orders):
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(f"the folder {folder} cannot be written")
        self.tidy(names)

    def tidy(self, names: Iterable[str]) -> None:
        """Remove what killed processes left half written; none must be at work.

        Parameters
        ----------
        names : iterable of str
            The files that the output has, or will have, beside its own folder.
        """
        left = [file for name in names for file in self.path.glob(f".{escape(name)}.*")]
        for folder in (self.own, self.masks, self.orders):
            left += folder.glob(".*")
        for file in left:
            file.unlink(missing_ok=True)

    def read_manifest(self) -> dict[str, Any] | None:
        """The manifest; None where no run was begun.

        Raises
        ------
        ValueError
            If it is damaged.
        """
        if not self.manifest.exists():
            return None
        try:
            content: dict[str, Any] = json.loads(self.manifest.read_text(encoding="utf-8"))
            if content["format"] != OWN:
                raise ValueError(f"its format is {content['format']!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.manifest} is damaged: {error!r}") from error
        return content


def tensor_figures(tensor: Tensor) -> dict[str, Any]:
    """What a manifest says of a tensor."""
    return {"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype}
