"""What is measured of each method: its default options, and the variants that were published.

A label names either: ``gyro`` is the method with its defaults, ``gyro/recipe`` a variant of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gyroperm.solvers import registry

#: Options by method and variant. A baseline is not judged by one choice of options alone. What
#: is a method's default anyway is measured once, and what is not registered not at all.
VARIANTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    # The schedule of the authors' released recipe.
    "gyro": {"recipe": {"schedule": (8, 1, 4, 1, 2, 1, 1)}},
    # Rows that are alike by which of their weights are large; and the best of ten clusterings.
    "ovw": {"mask": {"features": "mask"}, "restarts": {"restarts": 10}},
    # Passes until none brings anything, and the authors' fast variant.
    "ria": {"converged": {"passes": None}, "fast": {"blocks": 4}},
    # Windows of 12 columns at 2:4 rather than 8, and the regressions that its library asks for.
    "stripe": {
        "12": {"stripes": 3},
        "escapes": {"escape_attempts": 100},
        "12-escapes": {"stripes": 3, "escape_attempts": 100},
    },
    "swap": {"escapes": {"escape_attempts": 100}},
    # Turns until nothing moves.
    "two_axis": {"converged": {"rounds": 1000}},
}

#: What chooses a method by the problem and the time.
AUTO = "auto"

#: Methods that search for nothing: one run says it all, whatever the budget and the seed.
SINGLE = frozenset({"identity"})


def all_labels() -> list[str]:
    """The labels of every method that judges by saliency, ``identity`` first, with variants."""
    # An alias would be measured twice; auto is a choice among methods, not an alias of one.
    names = dict.fromkeys(
        name if name == AUTO else registry.get(name).name for name in registry.names("saliency")
    )
    ordered = sorted(names, key=lambda name: (name not in SINGLE, name))
    return [label for name in ordered for label in labels_of(name)]


def labels_of(name: str) -> list[str]:
    """The labels of a method, default options first, or of a label alone.

    Raises
    ------
    ValueError
        If there is no such method or variant; the message lists the known.
    """
    if "/" in name:
        resolve(name)
        return [name]
    if name == AUTO:
        return [AUTO]
    method = registry.get(name)
    default = method.make_options(None)
    others = (
        variant
        for variant, options in VARIANTS.get(method.name, {}).items()
        if method.make_options(options) != default
    )
    return [method.name, *(f"{method.name}/{variant}" for variant in others)]


def resolve(label: str) -> tuple[str, dict[str, Any]]:
    """The method and the options of a label; ValueError lists the known."""
    if label == AUTO:
        return AUTO, {}
    name, slash, variant = label.partition("/")
    method = registry.get(name).name
    if not slash:
        return method, {}
    known = VARIANTS.get(method, {})
    if variant not in known:
        listed = ", ".join(f"{method}/{one}" for one in known) or "none"
        raise ValueError(f"unknown variant {label!r}; known of {method!r} are {listed}")
    return method, dict(known[variant])


def unique_labels(names: Sequence[str]) -> tuple[str, ...]:
    """The labels of several methods or labels, each once."""
    return tuple(dict.fromkeys(label for name in names for label in labels_of(name)))
