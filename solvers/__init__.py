"""Permutation searches: one module a method, over Numba kernels and OR-Tools.

A method takes a :class:`~gyroperm.solvers.search.Search` and its options and returns an
:class:`~gyroperm.arrangement.Arrangement`. It knows nothing of models or files.
"""

from gyroperm.solvers.registry import Method, NoOptions, get, names, register
from gyroperm.solvers.search import Search

__all__ = ["Method", "NoOptions", "Search", "get", "names", "register"]
