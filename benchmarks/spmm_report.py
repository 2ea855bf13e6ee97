"""Tables in Markdown of what :mod:`benchmarks.spmm` measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from benchmarks.spmm_ceilings import best
from benchmarks.spmm_contenders import CHOSEN, CUSPARSELT, DENSE
from benchmarks.spmm_goals import Entry, case_text, fastest, judge, ratio
from benchmarks.spmm_layers import EAGER, FUSED, LINEAR, PACKED, SELECTED, SORTED
from benchmarks.spread import Spread

_PATTERNS = {"hinm": "HiNM 2:4", "vector": "vector N:M", "tvw": "TVW"}
_NOT_KERNELS = {CHOSEN, CUSPARSELT, *DENSE}
_MISSING = "-"


def tables(found: dict[str, Any]) -> str:
    """Everything that a results file has, a table for each section.

    Raises
    ------
    KeyError, TypeError, ValueError
        If it is no such file.
    """
    card, cases = found["card"], found["cases"]
    limits = best(_contenders_of(cases, "ceilings"))
    parts = [_headline(found), _ceilings(cases, limits), _goals(judge(cases))]
    for pattern, name in _PATTERNS.items():
        parts.append(_products(cases, pattern, name, limits))
    parts += [_transposes(cases, limits), _tvw(cases), _linear(cases), _chain(cases)]
    parts.append(_missing(cases, card))
    return "\n\n".join(part for part in parts if part)


def _headline(found: dict[str, Any]) -> str:
    card, machine = found["card"], found["machine"]
    commit = (machine["commit"] or "unknown commit")[:12]
    changed = " with changes" if machine["modified"] else ""
    driver = card.get("driver_version", card["cuda_driver"])
    quick = ", quick" if found["quick"] else ""
    return (
        f"{card['name']} (sm_{card['architecture']}, {card['multiprocessors']} multiprocessors), "
        f"driver {driver}, CUDA {card['torch_cuda']}, torch "
        f"{machine['packages'].get('torch')}; gyroperm {machine['gyroperm']} at {commit}{changed}, "
        f"{found['date'][:10]}; median of {found['rounds']} rounds in turns (least..greatest)"
        f"{quick}"
    )


def markdown(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its first column to the left; nothing without rows."""
    if not rows:
        return ""
    lines = [headers, ["---", *("---:" for _ in headers[1:])], *rows]
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(line)} |" for line in lines)])


def _contenders_of(cases: Sequence[Entry], section: str) -> dict[str, dict[str, Any]]:
    return next((case["contenders"] for case in cases if case["section"] == section), {})


def _in(cases: Sequence[Entry], section: str) -> list[Entry]:
    return [case for case in cases if case["section"] == section]


def _median(contenders: dict[str, dict[str, Any]], label: str | None) -> float | None:
    seconds = contenders.get(label or "", {}).get("seconds")
    return Spread.of(seconds).median if seconds else None


def _micros(contenders: dict[str, dict[str, Any]], label: str | None) -> str:
    median = _median(contenders, label)
    return _MISSING if median is None else f"{1e6 * median:.1f}"


def _ratio(contenders: dict[str, Any], slow: Sequence[str], fast: Sequence[str]) -> str:
    spread = ratio(contenders, slow, fast)
    return _MISSING if spread is None else spread.text(".2f")


def _rate(value: float, unit: str) -> str:
    return f"{value / 1e12:.2f} TB/s" if unit == "bytes" else f"{value / 1e12:.0f} TFLOP/s"


def _ceilings(cases: Sequence[Entry], limits: dict[str, float]) -> str:
    rows = []
    for label, one in _contenders_of(cases, "ceilings").items():
        if "seconds" not in one:
            continue
        rates = Spread.of([one["amount"] / seconds for seconds in one["seconds"]])
        text, least, greatest = (
            _rate(rate, one["unit"]) for rate in (rates.median, rates.least, rates.greatest)
        )
        mark = "yes" if rates.median == limits[one["ceiling"]] else ""
        rows.append([label, text, f"{least}..{greatest}", mark])
    return markdown("Ceilings", ["", "rate", "least..greatest", "held against"], rows)


def _goals(judged: Sequence[dict[str, Any]]) -> str:
    rows = []
    for one in judged:
        if one["measured"] is None:
            rows.append([one["goal"], f"{one['least']:.2f}", _MISSING, "not measured", ""])
            continue
        reached = "yes" if one["reached"] else "no"
        measured = f"{one['measured']:.2f}"
        rows.append([one["goal"], f"{one['least']:.2f}", measured, reached, one["case"]])
    return markdown("Goals on an H200", ["", "goal", "measured (worst)", "reached", "where"], rows)


def of_ceiling(one: dict[str, Any], limits: dict[str, float]) -> tuple[str, float] | None:
    """Which ceiling a contender came nearest to, and the fraction of it that it reached."""
    if "seconds" not in one:
        return None
    # What is mostly read is held against what can be read.
    memory = limits.get("memory read", limits.get("memory"))
    rates = {
        "memory": memory and one["memory_bytes"] / memory,
        "L2": limits.get("l2") and one.get("l2_bytes", 0) / limits["l2"],
        "tensor": limits.get(one.get("instruction", ""))
        and one["operations"] / limits[one["instruction"]],
    }
    median = Spread.of(one["seconds"]).median
    known = {name: seconds / median for name, seconds in rates.items() if seconds}
    if not known:
        return None
    name = max(known, key=lambda name: known[name])
    return name, known[name]


def short(way: str | None) -> str:
    """A way by its kernel and what it is mostly cut by."""
    cut = re.search(r"block_(?:n|rows)=(\d+)", way or "")
    return f"{(way or '').split('(')[0]} {cut[1]}" if cut else way or _MISSING


def _products(cases: Sequence[Entry], pattern: str, name: str, limits: dict[str, float]) -> str:
    rows = []
    for case in _in(cases, "products"):
        structure, contenders = case["structure"], case["contenders"]
        if structure["pattern"] != pattern:
            continue
        kernel = fastest(contenders, [one for one in contenders if one not in _NOT_KERNELS])
        predicted = contenders.get(kernel or "", {}).get("predicted")
        nearest = of_ceiling(contenders.get(CHOSEN, {}), limits)
        rows.append(
            [
                f"{structure['outputs']} x {structure['inputs']}",
                f"{100 * structure['sparsity']:g} %",
                str(structure["tile_size"]),
                str(case["n"]),
                _micros(contenders, fastest(contenders, DENSE)),
                _micros(contenders, CHOSEN),
                _ratio(contenders, DENSE, [CHOSEN]),
                _ratio(contenders, [CUSPARSELT], [CHOSEN]),
                short(contenders.get(CHOSEN, {}).get("way")),
                f"{short(kernel)}, {_micros(contenders, kernel)}",
                _MISSING if predicted is None else f"{1e6 * predicted:.1f}",
                _MISSING if nearest is None else f"{100 * nearest[1]:.0f} % of {nearest[0]}",
            ]
        )
    headers = ["R x C", "sparsity", "V", "N", "cuBLAS, us", "gyroperm, us", "cuBLAS / gyroperm"]
    headers += ["cuSPARSELt / gyroperm", "way", "fastest way, us", "predicted, us", "of ceiling"]
    return markdown(f"Products, {name}", headers, rows)


def _transposes(cases: Sequence[Entry], limits: dict[str, float]) -> str:
    rows = []
    for case in _in(cases, "transposes"):
        contenders = case["contenders"]
        row = [str(case["channels"]), str(case["n"])]
        for label in ("to features", "to tokens", "torch"):
            median = _median(contenders, label)
            row.append(_micros(contenders, label))
            if label != "torch":
                copied = median and limits.get("memory")
                moved = contenders.get(label, {}).get("memory_bytes", 0)
                row.append(
                    f"{100 * moved / median / limits['memory']:.0f} %" if copied else _MISSING
                )
        rows.append(row)
    headers = ["C", "N", "to features, us", "of a copy", "to tokens, us", "of a copy", "torch, us"]
    return markdown("Transposes", headers, rows)


def _tvw(cases: Sequence[Entry]) -> str:
    rows = []
    for case in _in(cases, "tvw"):
        contenders = case["contenders"]
        even, ragged = f"even {CHOSEN}", f"ragged {CHOSEN}"
        rows.append(
            [
                case_text(case),
                _micros(contenders, even),
                _micros(contenders, ragged),
                _ratio(contenders, [ragged], [even]),
            ]
        )
    headers = ["", "equal tiles, us", "different tiles, us", "different / equal"]
    return markdown("TVW, as many columns in all", headers, rows)


def _linear(cases: Sequence[Entry]) -> str:
    rows = []
    for case in _in(cases, "linear"):
        contenders = case["contenders"]
        rows.append(
            [
                case_text(case),
                f"{100 * case['structure']['sparsity']:g} %",
                _micros(contenders, LINEAR),
                _micros(contenders, PACKED),
                _ratio(contenders, [LINEAR], [PACKED]),
                _ratio(contenders, [LINEAR + EAGER], [PACKED + EAGER]),
            ]
        )
    headers = ["", "sparsity", "nn.Linear, us", "HinmLinear, us", "ratio", "ratio, eager"]
    return markdown("Layers on [tokens, C], transposes included", headers, rows)


def _chain(cases: Sequence[Entry]) -> str:
    rows = []
    for case in _in(cases, "chain"):
        contenders = case["contenders"]
        rows.append(
            [
                case_text(case),
                _micros(contenders, FUSED),
                _ratio(contenders, [FUSED], [SORTED]),
                _ratio(contenders, [SELECTED], [FUSED]),
            ]
        )
    headers = ["", "fused, us", "fused / sorted, identity", "index_select / fused"]
    return markdown("Gated feed-forward block with its residual branch", headers, rows)


def _missing(cases: Sequence[Entry], card: dict[str, Any]) -> str:
    """What could not be measured, each reason once, and everything that is wrong."""
    absent: dict[tuple[str, str], int] = {}
    lines = []
    for case in cases:
        for label, one in case["contenders"].items():
            if "absent" in one:
                place = (label, one["absent"].splitlines()[0] if one["absent"] else "")
                absent[place] = absent.get(place, 0) + 1
            if "wrong" in one:
                lines.append(f"- **wrong**: {label}, {case_name(case)}: {one['wrong']}")
    if absent and card.get("cusparselt") is None:
        lines.append("- torch was built without cuSPARSELt")
    lines += [
        f"- {label}: {reason} ({count} case{'s' * (count > 1)})"
        for (label, reason), count in absent.items()
    ]
    return "\n".join(["**Not measured**", "", *lines]) if lines else ""


def case_name(case: Entry) -> str:
    """The section of a case, and the case where it has a structure or a chain."""
    if "structure" in case or "hidden" in case:
        return f"{case['section']}, {case_text(case)}"
    return str(case["section"])
