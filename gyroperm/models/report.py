"""What pruning a model did, layer by layer, for people and for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gyroperm import measures
from gyroperm.arrangement import Arrangement
from gyroperm.files import atomic_path
from gyroperm.models.calibration import Calibration
from gyroperm.models.graph import CouplingGraph
from gyroperm.models.stacks import SiteResult
from gyroperm.models.verify import Verified
from gyroperm.pattern import Pattern
from gyroperm.report import format_table, pattern_figures, write_json

# So many names are written out for each reason.
_SHOWN = 3
_SUMMED = ("weights", "kept", "retained", "identity", "unstructured", "seconds")


@dataclass(frozen=True)
class LayerReport:
    """What was done to one weight.

    Attributes
    ----------
    name : str
        Of the parameter.
    shape : tuple of int
        As the model stores it.
    weights, kept : int
    retained, identity, unstructured : float
        The saliency kept, what the pattern keeps of the weight as it lay before, and what
        unstructured pruning of as many weights would keep (each row's for plain N:M).
    seconds : float
        Of its search; of a joint search its share.
    output_error, identity_error : float
        ``||(W - What) X||_F / ||W X||_F`` with the mask, and with that of no permutation; NaN
        where the calibration has no Gram matrix.
    frozen : bool
        Whether it needs no gradient; it is pruned all the same.
    shared : tuple of str
        The modules that use it, where they are more than one.
    transposed : bool
        Whether it is stored as (in, out).
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    kept: int
    retained: float
    identity: float
    unstructured: float
    seconds: float
    output_error: float = math.nan
    identity_error: float = math.nan
    frozen: bool = False
    shared: tuple[str, ...] = ()
    transposed: bool = False

    @property
    def ratio(self) -> float:
        """``retained / unstructured``; NaN where there is no saliency."""
        return self.retained / self.unstructured if self.unstructured else math.nan

    @property
    def efficacy(self) -> float:
        """Pool and Yu's, in percent; NaN where there is no room."""
        return measures.efficacy(self.retained, self.identity, self.unstructured)

    @property
    def notes(self) -> str:
        """What is special about it."""
        notes = ["frozen"] if self.frozen else []
        if self.shared:
            notes.append(f"shared by {', '.join(self.shared)}")
        return "; ".join(notes)


@dataclass(frozen=True, eq=False)
class Report:
    """What :func:`gyroperm.models.sparsify` did.

    Attributes
    ----------
    pattern : Pattern
    settings : dict
        Saliency, method, seed and the like.
    layers : tuple of LayerReport
    masks : dict of str to Tensor of bool
        True where a weight is kept, in the parameter's own layout and present order.
    orders : dict of str to ndarray of int64
        By site: ``orders[name][p]`` is the element that came to position p. Empty without surgery.
    sites : tuple of SiteResult
        The coupled orders that were searched.
    unsearched : dict of str to str
        Sites with channels of pruned weights that were not searched, and why.
    skipped : dict of str to str
        Weights that stay as they are, and why.
    verified : Verified or None
        How near the model's outputs before and after reordering were, before anything was masked.
    arrangements : dict of str to Arrangement
        The rows and columns found for each weight, without surgery: what the format of a pattern
        needs, and where another search may start.
    graph : CouplingGraph or None
        With surgery: what was coupled.
    calibration : Calibration or None
        What the layers are fed, in their present order.
    saliency : str or callable
        What was given.
    """

    pattern: Pattern
    settings: dict[str, Any]
    layers: tuple[LayerReport, ...]
    masks: dict[str, torch.Tensor]
    orders: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    sites: tuple[SiteResult, ...] = ()
    unsearched: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    verified: Verified | None = None
    arrangements: Mapping[str, Arrangement] = field(default_factory=dict)
    graph: CouplingGraph | None = None
    calibration: Calibration | None = None
    saliency: Any = "magnitude"

    @property
    def surgery(self) -> bool:
        """Whether the model's channels were reordered."""
        return self.graph is not None

    @property
    def totals(self) -> dict[str, float]:
        """Sums over the layers, and the ratio and efficacy of those sums."""
        sums = {name: sum(getattr(layer, name) for layer in self.layers) for name in _SUMMED}
        ratio = sums["retained"] / sums["unstructured"] if sums["unstructured"] else math.nan
        efficacy = measures.efficacy(sums["retained"], sums["identity"], sums["unstructured"])
        return {**sums, "ratio": ratio, "efficacy": efficacy}

    def as_dict(self) -> dict[str, Any]:
        """Everything but masks, ready for JSON."""
        verified = self.verified and {
            "error": self.verified.error,
            "tolerance": self.verified.tolerance,
            "dtype": str(self.verified.dtype).removeprefix("torch."),
        }
        return {
            "pattern": pattern_figures(self.pattern),
            **self.settings,
            "layers": [
                {**asdict(one), "ratio": one.ratio, "efficacy": one.efficacy} for one in self.layers
            ],
            "totals": self.totals,
            "sites": [{**asdict(one), "efficacy": one.efficacy} for one in self.sites],
            "orders": {name: order.tolist() for name, order in self.orders.items()},
            "unsearched": dict(self.unsearched),
            "skipped": dict(self.skipped),
            "verified": verified,
        }

    def save(self, path: str | Path) -> None:
        """Write everything but masks as JSON, complete or not at all."""
        write_json(path, self.as_dict())

    def __str__(self) -> str:
        """The table, what was reordered, and what was left."""
        kind = "with surgery" if self.surgery else "masks only"
        parts = [f"{self.pattern}, {kind}, saliency {self.settings['saliency']}", self._table()]
        if self.verified is not None:
            parts.append(
                f"reordered {len(self.orders)} sites; before masking the outputs differed by "
                f"{self.verified.error:.1e} ({self.verified.tolerance:.0e} allowed)"
            )
        if self.unsearched:
            parts.append(_by_reason("not searched, masked as they lie", self.unsearched))
        if self.skipped:
            parts.append(_by_reason("skipped, and left as they are", self.skipped))
        return "\n\n".join(parts)

    def _table(self) -> str:
        errors = any(math.isfinite(layer.output_error) for layer in self.layers)
        notes = any(layer.notes for layer in self.layers)
        headers = ["layer", "shape", "retained/unstructured", "unpermuted", "efficacy", "seconds"]
        headers += ["output error", "unpermuted"] if errors else []
        headers += ["notes"] if notes else []
        rows = []
        for layer in self.layers:
            shape = "x".join(map(str, layer.shape)) + " (in, out)" * layer.transposed
            row = [layer.name, shape, *_measured(vars(layer) | _ratios(layer))]
            if errors:
                row += [_number(e, "{:.4f}") for e in (layer.output_error, layer.identity_error)]
            rows.append(row + ([layer.notes] if notes else []))
        totals = self.totals
        total = [f"total of {len(rows)}", f"{totals['kept']} of {totals['weights']} kept"]
        total += _measured(totals)
        rows.append(total + [""] * (len(headers) - len(total)))
        return format_table(headers, rows)

    def plot(self, path: str | Path) -> None:
        """Draw what each layer keeps, with and without permutation (extra ``plot``).

        Parameters
        ----------
        path : str or Path
            The picture, written whole or not at all; its suffix names the format.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 1.5 + 0.22 * len(self.layers)), layout="constrained")
        axis = figure.subplots()
        places = np.arange(len(self.layers))[::-1]
        against = [layer.unstructured or math.nan for layer in self.layers]
        for label, values, height in (
            ("no permutation", [layer.identity for layer in self.layers], 0.8),
            ("permuted", [layer.retained for layer in self.layers], 0.4),
        ):
            share = np.divide(values, against)
            axis.barh(places, 1 - share, height=height, label=label)
        axis.set_yticks(places, [layer.name for layer in self.layers], fontsize=6)
        axis.set_xlabel("saliency lost against unstructured pruning of as many weights")
        axis.set_title(str(self.pattern))
        axis.legend(fontsize=7)
        suffix = Path(path).suffix.lstrip(".") or "png"
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=suffix, dpi=150)


def _ratios(layer: LayerReport) -> dict[str, float]:
    return {"ratio": layer.ratio, "efficacy": layer.efficacy}


def _measured(figures: Mapping[str, Any]) -> list[str]:
    identity = (
        figures["identity"] / figures["unstructured"] if figures["unstructured"] else math.nan
    )
    return [
        _number(figures["ratio"], "{:.4f}"),
        _number(identity, "{:.4f}"),
        _number(figures["efficacy"], "{:.2f} %"),
        f"{figures['seconds']:.2f}",
    ]


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)


def _by_reason(title: str, reasons: Mapping[str, str]) -> str:
    grouped: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        grouped.setdefault(reason, []).append(name)
    lines = [f"{title}: {len(reasons)}"]
    for reason, names in grouped.items():
        shown = ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)
        lines.append(f"{len(names):5}  {reason}: {shown}")
    return "\n".join(lines)
