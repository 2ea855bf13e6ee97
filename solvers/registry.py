"""Methods by name. Register your own and ``gyroperm.solve`` takes it like any other."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gyroperm.arrangement import Arrangement
from gyroperm.solvers.search import Search


@dataclass(frozen=True)
class NoOptions:
    """The options of a method that has none."""


#: A method: takes a search and its options, returns an arrangement that passes its own check.
Solver = Callable[[Search, Any], Arrangement]

#: What a method judges by.
Judges = Literal["saliency", "output"]


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes
    ----------
    name : str
    solve : callable
        ``solve(search, options) -> Arrangement``.
    options : type
        The frozen dataclass of its options; validates in ``__post_init__``.
    summary : str
        One line: what it is and where it comes from.
    judges : {"saliency", "output"}
        What it searches for: the most saliency, or the least error of the layer's output, for
        which ``search.problem.output`` says what the layer is fed.
    """

    name: str
    solve: Solver
    options: type
    summary: str
    judges: Judges = "saliency"

    def make_options(self, given: Any) -> Any:
        """Options from None, a mapping or an instance; ValueError or TypeError says what fits."""
        if given is None:
            return self.options()
        if isinstance(given, self.options):
            return given
        known = [f.name for f in dataclasses.fields(self.options)]
        if not isinstance(given, Mapping):
            raise TypeError(
                f"options of {self.name!r} must be a mapping or {self.options.__name__}, got "
                f"{type(given).__name__}"
            )
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ValueError(
                f"unknown option {', '.join(map(repr, unknown))} of method {self.name!r}; it "
                f"takes {', '.join(known) or 'none'}"
            )
        return self.options(**given)


# The methods that ship, by module, so that a method's code is loaded when it is first used.
_SHIPPED = {
    "identity": "gyroperm.solvers.identity",
    "gyro": "gyroperm.solvers.gyro",
    "assign": "gyroperm.solvers.assign",
    "stripe": "gyroperm.solvers.stripe",
    "swap": "gyroperm.solvers.swap",
    "ria": "gyroperm.solvers.ria",
    "random": "gyroperm.solvers.random_orders",
    "two_axis": "gyroperm.solvers.two_axis",
    "ovw": "gyroperm.solvers.ovw",
    "dive": "gyroperm.solvers.dive",
    "exact": "gyroperm.solvers.exact",
    "output": "gyroperm.solvers.output",
    "learned": "gyroperm.solvers.learned",
}
_methods: dict[str, Method] = {}
_aliases: dict[str, str] = {"auto": "assign", "gyro-permutation": "gyro"}


def register(
    name: str,
    *,
    options: type = NoOptions,
    summary: str = "",
    aliases: tuple[str, ...] = (),
    judges: Judges = "saliency",
) -> Callable[[Solver], Solver]:
    """Register a method under a name (a decorator).

    Parameters
    ----------
    name : str
        What users pass as ``method=``; registering a name again replaces it.
    options : type
        A dataclass whose fields are the method's options.
    summary : str
        One line for ``gyroperm methods``; the first line of the docstring by default.
    aliases : tuple of str
        Other names for it.
    judges : {"saliency", "output"}
        What it searches for. A method that judges by the layer's output may return an arrangement
        with a mask of its own, see :meth:`gyroperm.arrangement.Arrangement.with_mask`.
    """

    def decorate(solve: Solver) -> Solver:
        line = summary or (solve.__doc__ or "").strip().split("\n")[0]
        _methods[name] = Method(name, solve, options, line, judges)
        _aliases.pop(name, None)
        _aliases.update(dict.fromkeys(aliases, name))
        return solve

    return decorate


def names(judges: Judges | None = None) -> list[str]:
    """The names of all methods, or those that judge by this, ``auto`` first, without aliases."""
    known = ["auto", *sorted({*_SHIPPED, *_methods} - {"auto"})]
    return [name for name in known if judges is None or get(name).judges == judges]


def is_shipped(name: str) -> bool:
    """Whether this method comes with gyroperm and has not been replaced."""
    return name in _SHIPPED and _methods[name].solve.__module__ == _SHIPPED[name]


def get(name: str) -> Method:
    """The method of a name or alias; ValueError lists the known."""
    key = _aliases.get(name, name) if isinstance(name, str) else str(name)
    if key not in _methods and key in _SHIPPED:
        importlib.import_module(_SHIPPED[key])
    if key not in _methods:
        raise ValueError(f"unknown method {name!r}; known are {', '.join(names())}")
    return _methods[key]
