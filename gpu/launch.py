"""What a launch is, for a device and for the emulation alike: a variant, sizes and arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gyroperm.gpu.source import Variant, parameters


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Parameters
    ----------
    variant : Variant
        What is launched.
    grid : tuple of int, shape (3,)
        Blocks in x, y and z.
    threads : int
        Threads of a block.
    shared_bytes : int
        Dynamic shared memory of a block.
    arguments : mapping
        An array (of the host for the emulation, of the device otherwise), None for no array, or
        a number, for each of the kernel's parameters by name.

    Raises
    ------
    TypeError
        If the names are not those of the kernel's parameters, or a number was given for an array
        or the reverse.
    """

    variant: Variant
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    arguments: Mapping[str, Any]

    def __post_init__(self) -> None:
        declared = parameters(self.variant.kernel)
        names = {parameter.name for parameter in declared}
        if names != set(self.arguments):
            wrong = sorted(names ^ set(self.arguments))
            raise TypeError(f"{self.variant.kernel} has other parameters: {', '.join(wrong)}")
        for parameter in declared:
            value = self.arguments[parameter.name]
            is_array = value is None or len(getattr(value, "shape", ())) > 0
            if parameter.is_pointer != is_array:
                kind = "an array" if parameter.is_pointer else "a number"
                raise TypeError(f"{parameter.name} of {self.variant.kernel} must be {kind}")

    @property
    def ordered(self) -> list[Any]:
        """The arguments as the kernel declares them, numbers in its types."""
        return [
            self.arguments[parameter.name]
            if parameter.is_pointer
            else parameter.scalar(self.arguments[parameter.name])
            for parameter in parameters(self.variant.kernel)
        ]
