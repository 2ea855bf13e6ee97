"""The kernels' sources: what is in them, and a variant of one by its compile-time constants."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np

_FOLDER = files("gyroperm.gpu") / "kernels"
_INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.MULTILINE)
_KERNEL = re.compile(r"KERNEL void BOUNDS\([^)]*\)\s*(\w+)\(([^)]*)\)")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel as its source declares it."""

    name: str
    declared: str

    @property
    def is_pointer(self) -> bool:
        """Whether an array is passed."""
        return "*" in self.declared

    @property
    def is_written(self) -> bool:
        """Whether it is an array that the kernel may write."""
        return self.is_pointer and "const" not in self.declared

    @property
    def scalar(self) -> type[np.generic]:
        """The NumPy type of a number; not for pointers."""
        return _SCALARS[self.declared]


_SCALARS: dict[str, type[np.generic]] = {
    "int": np.int32,
    "u32": np.uint32,
    "long long": np.int64,
    "float": np.float32,
}


@dataclass(frozen=True)
class Variant:
    """A kernel with its compile-time constants.

    Parameters
    ----------
    kernel : str
        The name of the kernel, and of its file without ``.cu``.
    constants : tuple of (str, int)
        Names and values of the macros it is compiled with, sorted by name.
    """

    kernel: str
    constants: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, kernel: str, constants: Mapping[str, int]) -> Variant:
        """A variant by a mapping of its constants."""
        return cls(kernel, tuple(sorted((name, int(value)) for name, value in constants.items())))

    @property
    def defines(self) -> tuple[str, ...]:
        """The compiler's options for the constants."""
        return tuple(f"-D{name}={value}" for name, value in self.constants)

    def __str__(self) -> str:
        return f"{self.kernel}({', '.join(f'{name}={value}' for name, value in self.constants)})"


@cache
def text(name: str) -> str:
    """The source of a file of the kernels."""
    return (_FOLDER / name).read_text(encoding="utf-8")


@cache
def headers(name: str) -> dict[str, str]:
    """Every header that a source includes, directly or not, by name."""
    found: dict[str, str] = {}
    waiting = _INCLUDE.findall(text(name))
    while waiting:
        header = waiting.pop()
        # The emulation's header replaces the device's half of primitives.h, and is not shipped.
        if header in found or header == "emulation.h":
            continue
        found[header] = text(header)
        waiting += _INCLUDE.findall(found[header])
    return found


@cache
def parameters(kernel: str) -> tuple[Parameter, ...]:
    """The parameters of a kernel, read from its declaration.

    Raises
    ------
    ValueError
        If its file does not declare it.
    """
    for name, declared in _KERNEL.findall(text(f"{kernel}.cu")):
        if name == kernel:
            return tuple(_parameter(part) for part in declared.split(","))
    raise ValueError(f"{kernel}.cu declares no kernel of that name")


def _parameter(declaration: str) -> Parameter:
    words = declaration.replace("__restrict__", " ").replace("*", " * ").split()
    return Parameter(name=words[-1], declared=" ".join(words[:-1]))


def fingerprint(variant: Variant) -> str:
    """A hash of everything that a variant is compiled from."""
    name = f"{variant.kernel}.cu"
    digest = hashlib.sha256(repr((variant.constants, text(name))).encode())
    for header, content in sorted(headers(name).items()):
        digest.update(repr((header, content)).encode())
    return digest.hexdigest()
