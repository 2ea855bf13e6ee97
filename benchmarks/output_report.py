"""What a benchmark of output errors found: its table, its goals, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.output_cells import MASKS, PERMUTATIONS
from gyroperm.files import atomic_path

#: Between these lines of a page the table is written.
BEGIN, END = "<!-- output-error: begin -->", "<!-- output-error: end -->"

_SALIENCIES = {"magnitude": "magnitude", "wanda": "Wanda", "ria": "RIA", "obs": "OBS"}

_HEADERS = (
    "saliency",
    "permutation",
    "masks by saliency",
    "by error",
    "by saliency, compensated",
    "by error, compensated",
    "pruned so far",
    "compensated",
    "mean cosine",
    "compensated",
    "search, s",
)

# What the objective of a search has to beat everyone at, and the weights it is judged with.
_AIMS = {"auto-error": "plain", "auto-compensated": "compensated"}


def summed(result: Mapping[str, Any], mask: str, weights: str) -> float:
    """The squared relative output errors of a row, summed over layers."""
    return sum(layer["errors"][mask][weights] for layer in result["layers"])


def seconds(result: Mapping[str, Any]) -> float:
    """Of a row's searches together."""
    return sum(layer["seconds"] for layer in result["layers"])


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """A markdown table for each pattern."""
    parts = []
    for pattern in dict.fromkeys(result["pattern"] for result in results):
        lines = [_HEADERS, ("---",) * len(_HEADERS)]
        lines += [_cells(result) for result in results if result["pattern"] == pattern]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts.append(f"### {pattern}\n\n{table}")
    return "\n\n".join(parts)


def _cells(result: Mapping[str, Any]) -> tuple[str, ...]:
    errors = [summed(result, mask, kind) for kind in ("plain", "compensated") for mask in MASKS]
    models = [result["models"][kind] for kind in ("plain", "compensated")]
    return (
        _SALIENCIES[result["saliency"]],
        PERMUTATIONS[result["permutation"]].title,
        *(f"{error:.4f}" for error in errors),
        *(f"{sum(model['errors'].values()):.4f}" for model in models),
        *(f"{model['mean_cosine']:.4f}" for model in models),
        f"{seconds(result):.1f}",
    )


# --- goals


def goals(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was asked for and what came of it, a line each; nothing of rows that are missing."""
    lines = []
    for pattern in dict.fromkeys(result["pattern"] for result in results):
        own = [result for result in results if result["pattern"] == pattern]
        for permutation, weights in _AIMS.items():
            lines += _beats_all(pattern, own, permutation, weights)
        lines += _against_learned(pattern, own)
    return lines + _halves(results)


def _title(result: Mapping[str, Any]) -> str:
    return f"{PERMUTATIONS[result['permutation']].title} ({_SALIENCIES[result['saliency']]})"


def _verdict(reached: bool) -> str:
    return "reached" if reached else "missed"


def _beats_all(
    pattern: str, results: Sequence[Mapping[str, Any]], permutation: str, weights: str
) -> list[str]:
    mine = [result for result in results if result["permutation"] == permutation]
    others = [result for result in results if result["permutation"] not in _AIMS]
    if not mine or not others:
        return []
    best = min(mine, key=lambda result: summed(result, "error", weights))
    rivals = [(result, mask) for result in others for mask in MASKS]
    wins = sum(
        layer["errors"]["error"][weights]
        < min(result["layers"][i]["errors"][mask][weights] for result, mask in rivals)
        for i, layer in enumerate(best["layers"])
    )
    rival, mask = min(rivals, key=lambda one: summed(*one, weights))
    total, least = summed(best, "error", weights), summed(rival, mask, weights)
    layers = len(best["layers"])
    reached = 10 * wins >= 9 * layers and total < least
    return [
        f"{pattern}, {weights}: {_title(best)} beats every other row on {wins} of {layers} layers, "
        f"in total {total:.4f}; the next, {_title(rival)} with masks by {mask}, {least:.4f}: "
        f"{_verdict(reached)}"
    ]


def _against_learned(pattern: str, results: Sequence[Mapping[str, Any]]) -> list[str]:
    found = {(result["permutation"], result["saliency"]): result for result in results}
    lines = []
    for name, saliency in found:
        mine = found.get(("auto-error", saliency))
        if mine is None or not name.startswith("learned"):
            continue
        rival = found[name, saliency]
        own, other = summed(mine, "error", "plain"), summed(rival, "saliency", "plain")
        title = _title(rival)
        if PERMUTATIONS[name].published:
            share = seconds(mine) / seconds(rival)
            lines.append(
                f"{pattern}: auto on output error takes {share:.3f} of the seconds of {title}, "
                f"{seconds(mine):.1f} of {seconds(rival):.1f}, and errs by {own:.4f}, not "
                f"{other:.4f}: {_verdict(share < 0.1 and own < other)}"
            )
        else:
            lines.append(
                f"{pattern}, the same time: auto on output error {own:.4f}, {title} {other:.4f}: "
                f"{_verdict(own < other)}"
            )
    return lines


def _halves(results: Sequence[Mapping[str, Any]]) -> list[str]:
    plain = [result for result in results if result["pattern"] == "2:4"]
    wanda = [r for r in plain if (r["permutation"], r["saliency"]) == ("none", "wanda")]
    moved = [result for result in plain if result["permutation"] != "none"]
    if not wanda or not moved:
        return []
    rivals = [(result, mask) for result in moved for mask in MASKS]
    best, mask = min(rivals, key=lambda one: summed(*one, "compensated"))
    least, before = summed(best, mask, "compensated"), summed(wanda[0], "saliency", "plain")
    return [
        f"2:4: {_title(best)} with masks by {mask}, compensated, errs by {least / before:.3f} of "
        f"Wanda without either, {least:.4f} of {before:.4f}: {_verdict(least <= 0.5 * before)}"
    ]


# --- saliency against error

# Of unstructured; orders whose retained saliency differs by less are not compared.
_CLEARLY = 1e-3


def misled(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """How often, of two orders of a layer, the one that keeps more saliency errs by more."""
    lines = []
    for pattern, saliency in dict.fromkeys((r["pattern"], r["saliency"]) for r in results):
        orders = [
            result["layers"]
            for result in results
            if (result["pattern"], result["saliency"]) == (pattern, saliency)
            and result["permutation"] not in _AIMS
        ]
        excesses = [
            _plain(more) / _plain(less) - 1
            for layers in zip(*orders, strict=True)
            for less, more in combinations(sorted(layers, key=lambda one: one["ratio"]), 2)
            if more["ratio"] - less["ratio"] >= _CLEARLY
        ]
        wrong = [excess for excess in excesses if excess > 0]
        by = f", by {100 * max(wrong):.1f} % at most" if wrong else ""
        lines.append(
            f"{pattern}, {_SALIENCIES[saliency]}: of two orders of a layer the one that keeps more "
            f"saliency errs by more in {len(wrong)} of {len(excesses)} pairs{by}"
        )
    return lines


def _plain(layer: Mapping[str, Any]) -> float:
    error: float = layer["errors"]["saliency"]["plain"]
    return error


# --- files


def write_section(page: Path, text: str) -> None:
    """Put text between the marks of a page.

    Raises
    ------
    ValueError
        If the page has no such marks.
    """
    whole = page.read_text(encoding="utf-8")
    if whole.count(BEGIN) != 1 or whole.count(END) != 1 or whole.index(BEGIN) > whole.index(END):
        raise ValueError(f"{page} must have the lines {BEGIN} and {END} once, in this order")
    head, tail = whole.split(BEGIN)[0], whole.split(END)[1]
    with atomic_path(page) as temporary:
        temporary.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", encoding="utf-8")


def save_plot(path: Path, results: Sequence[Mapping[str, Any]], saliency: str) -> None:
    """Draw the summed errors of every permutation by one saliency, plain and compensated.

    Parameters
    ----------
    path : Path
        The PNG, written whole or not at all.
    results : sequence of mapping
    saliency : str
    """
    from matplotlib.figure import Figure

    patterns = list(dict.fromkeys(result["pattern"] for result in results))
    figure = Figure(figsize=(6.4 * len(patterns), 4.8), layout="constrained")
    axes = figure.subplots(1, len(patterns), squeeze=False)[0]
    for axis, pattern in zip(axes, patterns, strict=True):
        shown = [r for r in results if (r["pattern"], r["saliency"]) == (pattern, saliency)]
        for place, result in enumerate(shown):
            own = "error" if PERMUTATIONS[result["permutation"]].by_error else "saliency"
            for offset, weights, colour in ((-0.2, "plain", "C0"), (0.2, "compensated", "C1")):
                error = summed(result, own, weights)
                axis.barh(
                    place + offset,
                    error,
                    height=0.38,
                    color=colour,
                    label=weights if place == 0 else None,
                )
                axis.text(error, place + offset, f" {error:.3f}", va="center", fontsize=8)
        titles = [f"{PERMUTATIONS[r['permutation']].title}\n{seconds(r):.3g} s" for r in shown]
        axis.set_yticks(range(len(shown)), titles, fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.set_title(f"{pattern}, {_SALIENCIES[saliency]}'s saliency", fontsize=10)
        axis.set_xlabel(
            f"squared relative output error, summed over {len(shown[0]['layers'])} layers"
        )
        axis.legend(loc="lower right", fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
