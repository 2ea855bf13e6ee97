"""What a run will do, checked before any of it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gyroperm.checkpoints.folder import RunFolder, tensor_figures
from gyroperm.checkpoints.orientation import oriented
from gyroperm.checkpoints.settings import Settings
from gyroperm.checkpoints.source import Source
from gyroperm.checkpoints.tasks import Placed
from gyroperm.pattern import Pattern
from gyroperm.report import format_table, skipped_summary
from gyroperm.selection import Layer, Rules, Skipped, select, unmatched

if TYPE_CHECKING:
    from gyroperm.checkpoints.coupling import Coupling

# A guess that is right to within a few times: 4096 x 4096 takes a core of an AMD EPYC one to three
# minutes at 2:4 and at HiNM, method auto until it has converged.
_SECONDS_PER_WEIGHT = 1.0e-5
# Python, its libraries and compiled kernels; and arrays as large as the saliency in float32.
_BASE_BYTES, _COPIES = 4.0e8, 2.5


@dataclass(frozen=True)
class Plan:
    """A run that passed its checks.

    Attributes
    ----------
    source : Source
    folder : RunFolder
    settings : Settings
    layers : tuple of Layer
        To be pruned, in the order of the shards.
    skipped : tuple of Skipped
    notes : tuple of str
        What the user may want to know, though it is no error.
    coupled : Coupling or None
        With surgery: which channels are coupled.
    """

    source: Source
    folder: RunFolder
    settings: Settings
    layers: tuple[Layer, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...] = ()
    coupled: Coupling | None = None

    def placed(self, layer: Layer, **more: Any) -> Placed:
        """A layer with the place where its weights are."""
        return Placed(
            layer.name,
            self.source.path_of(layer.name),
            layer.tensor.shape,
            layer.transposed,
            **more,
        )

    def begun(self) -> dict[str, Any]:
        """Everything that the result hangs on but the weights themselves, ready for JSON."""
        return {
            "settings": self.settings.as_dict(),
            "layers": [
                {**tensor_figures(layer.tensor), "transposed": layer.transposed}
                for layer in self.layers
            ],
            "unsearched": self.coupled.unsearched if self.coupled else {},
        }

    def _groups(self) -> list[int]:
        """The weights that are searched together."""
        sizes = {layer.name: layer.tensor.size for layer in self.layers}
        groups = self.coupled.groups if self.coupled else ()
        return [*sizes.values(), *(sum(sizes[name] for name in g.layers) for g in groups)]

    def described(self, *, jobs: int = 1, threads: int = 1) -> str:
        """The plan for people: layers, patterns, memory and estimated time.

        Parameters
        ----------
        jobs, threads : int
            Workers, and threads of each.
        """
        pattern = self.settings.common_pattern
        rows, total = [], 0.0
        for layer in self.layers:
            seconds = estimated_seconds(layer.tensor.size, self.settings, threads)
            total += seconds
            rows.append(
                [
                    layer.name,
                    "x".join(map(str, layer.tensor.shape)) + " (in, out)" * layer.transposed,
                    layer.tensor.dtype,
                    f"{estimated_bytes(layer.tensor.size) / 1e6:.0f} MB",
                    duration(seconds),
                ]
            )
        weights = sum(layer.tensor.size for layer in self.layers)
        largest = max(self._groups())
        lines = [
            f"{self.source.folder} -> {self.folder.path}",
            f"{pattern}, method {self.settings.method}, {self.settings.allocation} allocation"
            + (f", surgery {self.settings.surgery}" if self.settings.surgery else ""),
            "",
            format_table(["layer", "shape", "dtype", "memory", "seconds"], rows),
            "",
            f"{len(self.layers)} layers, {weights} weights; {self.source.size} bytes in "
            f"{len(self.source.shards)} shards are read and written",
            f"estimated: {duration(total / jobs)} with {jobs} x {threads} threads, "
            f"at most {jobs} x {estimated_bytes(largest) / 1e6:.0f} MB",
        ]
        if self.coupled is not None:
            lines += ["", self.coupled.described()]
        if self.skipped:
            lines += ["", skipped_summary(self.skipped)]
        return "\n".join(lines)


@dataclass(frozen=True)
class Job:
    """What to prune, how, and where to write.

    Parameters
    ----------
    source : Path
        A safetensors file, an index, or a folder of shards.
    target : Path
        The folder to write; another one.
    settings : Settings
    rules : Rules
        Which tensors are pruned.
    """

    source: Path
    target: Path
    settings: Settings
    rules: Rules = field(default_factory=Rules)

    def planned(self) -> Plan:
        """Check everything that can be told from names, shapes and configuration.

        Raises
        ------
        ValueError
            If the checkpoint is unsound, an option does not fit, nothing is left to prune, or
            surgery does not know the architecture.
        OSError
            If the checkpoint cannot be read, or a shard is missing.
        """
        source = Source.open(self.source)
        target = Path(self.target)
        if target.resolve() == source.folder.resolve():
            raise ValueError(f"the output {target} is the input's own folder; give another one")
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(f"the output {target} is no folder")
        rules = oriented(self.rules, source.config)
        pattern = self.settings.common_pattern
        layers, skipped = select(source.tensors, pattern, rules)
        if self.settings.surgery:
            layers, misfits = whole_groups(layers, pattern)
            skipped += [Skipped(source.tensors[name], why) for name, why in misfits.items()]
        notes = [f"{option} matches no tensor" for option in unmatched(source.tensors, self.rules)]
        if not layers:
            why = skipped_summary(skipped) if skipped else "it holds no tensors"
            raise ValueError("\n".join([f"{self.source} has nothing to prune", *notes, why]))
        coupling = None
        if self.settings.surgery:
            from gyroperm.checkpoints.coupling import coupled

            coupling = coupled(source, layers, self.settings.surgery)
        return Plan(
            source,
            RunFolder(target),
            self.settings,
            tuple(layers),
            tuple(skipped),
            tuple(notes),
            coupling,
        )


def whole_groups(layers: Sequence[Layer], pattern: Pattern) -> tuple[list[Layer], dict[str, str]]:
    """The layers whose input channels make whole groups as they lie, and why others do not."""
    kept, misfits = [], {}
    for layer in layers:
        if len(layer.shape) > 2:
            misfits[layer.name] = "a convolution, whose channels surgery on files does not reorder"
        elif layer.shape[1] % pattern.m:
            misfits[layer.name] = (
                f"its {layer.shape[1]} input channels do not make whole groups of {pattern.m}"
            )
        else:
            kept.append(layer)
    return kept, misfits


def estimated_seconds(weights: int, settings: Settings, threads: int) -> float:
    """About how long a layer of so many weights is searched; a guess without a time limit."""
    if settings.time_limit is not None:
        return settings.time_limit
    return _SECONDS_PER_WEIGHT * weights / threads


def estimated_bytes(weights: int) -> float:
    """About the most memory that a process has that searches a layer of so many weights."""
    return _BASE_BYTES + _COPIES * 4 * weights


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"
