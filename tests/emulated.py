"""Launches kernels on the host: the same source, compiled with emulation/emulation.h."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from gyroperm.gpu.launch import Launch
from gyroperm.gpu.source import Variant, headers, parameters, text
from turns import exclusive

FOLDER = Path(__file__).parent / "emulation"
GUARD = 256  # bytes of a zone on each side of a buffer
# What would not do the same on a device, but for addresses, which the emulation checks.
_TRAPPED = "shift,signed-integer-overflow,integer-divide-by-zero,bounds"
_OPTIONS = (
    *("-std=c++17", "-O0", "-g0", "-shared", "-fPIC", "-fno-exceptions", "-fno-rtti"),
    *("-fno-sanitize=all", f"-fsanitize={_TRAPPED}", f"-fsanitize-trap={_TRAPPED}"),
)


class EmulationError(Exception):
    """A launch did what a device forbids, or would not show."""


class Counts(ctypes.Structure):
    """What a launch did; as struct Counts of emulation.h."""

    _fields_ = [
        (name, ctypes.c_longlong)
        for name in (
            "matrix_loads",
            "matrix_conflicts",
            "copies",
            "copy_conflicts",
            "accesses",
            "access_conflicts",
            "products",
            "bytes_loaded",
            "bytes_copied",
            "bytes_stored",
        )
    ]


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("start", ctypes.c_void_p),
        ("bytes", ctypes.c_longlong),
        ("writable", ctypes.c_int),
        ("written", ctypes.c_void_p),
    ]


def run(
    launch: Launch,
    *,
    seed: int = 1,
    once: tuple[str, ...] = ("y",),
    edit: Callable[[str], str] | None = None,
) -> Counts:
    """Emulate a launch; arrays that the kernel writes are written in place.

    Parameters
    ----------
    launch : Launch
        With arrays of the host.
    seed : int
        Of the order in which threads and blocks take turns; 0 is ascending order.
    once : tuple of str
        Parameters of which no byte may be written twice.
    edit : callable, optional
        Changes the kernel's source and headers before they are compiled: for mutations.

    Raises
    ------
    EmulationError
        What went wrong, by the thread and block that did it.
    """
    library = _library(launch.variant, edit)
    guarded, arguments, buffers, keep = {}, [], [], []
    for parameter, value in zip(parameters(launch.variant.kernel), launch.ordered, strict=True):
        if parameter.is_pointer and value is not None:
            zone, inner, outside = _guarded(value)
            guarded[parameter.name] = (parameter, value, zone, inner, outside)
            size, written = zone.nbytes - 2 * GUARD, None
            if parameter.name in once:
                flags = np.zeros(max(size, 1), np.uint8)
                keep.append(flags)
                written = flags.ctypes.data
            buffers.append(_Buffer(inner.ctypes.data, size, int(parameter.is_written), written))
            cell = ctypes.c_void_p(inner.ctypes.data)
        elif parameter.is_pointer:
            cell = ctypes.c_void_p(None)
        else:
            cell = np.ctypeslib.as_ctypes(np.array(value))
        keep.append(cell)
        arguments.append(ctypes.addressof(cell))
    counts, message = Counts(), ctypes.create_string_buffer(600)
    failed = library.gyroperm_launch(
        (ctypes.c_void_p * len(arguments))(*arguments),
        (ctypes.c_int * 3)(*launch.grid),
        launch.threads,
        launch.shared_bytes,
        ctypes.c_ulonglong(seed),
        (_Buffer * max(len(buffers), 1))(*buffers),
        len(buffers),
        ctypes.byref(counts),
        message,
        len(message),
    )
    if failed:
        raise EmulationError(f"{launch.variant}: {message.value.decode()}")
    for name, (parameter, value, zone, inner, outside) in guarded.items():
        if (zone[outside] != 0xA5).any():
            raise EmulationError(f"{launch.variant}: {name} was written outside of its bounds")
        if parameter.is_written:
            value[...] = inner
    return counts


def _guarded(array: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A copy between two zones, aligned (or not) to 256 bytes and strided as the array itself is.

    Of the zones and the gaps between rows, which a kernel must leave alone, the last is true.
    """
    size = array.itemsize if array.size else 0
    size += sum((n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True) if n)
    offset = array.ctypes.data % 16
    flat = np.full(size + 2 * GUARD + 512, 0xA5, np.uint8)
    start = -(flat.ctypes.data + GUARD) % 256 + offset
    zone = flat[start : start + 2 * GUARD + size]
    inner = _strided_as(array, zone[GUARD : GUARD + size].view(array.dtype))
    inner[...] = array
    outside = np.full(zone.size, True)
    bits = np.zeros(size, np.uint8)
    _strided_as(array, bits.view(f"u{array.itemsize}"))[...] = 256**array.itemsize - 1
    outside[GUARD : GUARD + size] = bits == 0
    return zone, inner, outside


def _strided_as(array: np.ndarray, flat: np.ndarray) -> np.ndarray:
    return np.lib.stride_tricks.as_strided(flat, array.shape, array.strides)


def _library(variant: Variant, edit: Callable[[str], str] | None) -> ctypes.CDLL:
    name = f"{variant.kernel}.cu"
    sources = {name: text(name), **headers(name)}
    if edit is not None:
        changed = {file: edit(source) for file, source in sources.items()}
        assert changed != sources, "the mutation does not apply"
        sources = changed
    for header in ("emulation.h", "host.cpp"):
        sources[header] = (FOLDER / header).read_text(encoding="utf-8")
    return _built(variant, tuple(sorted(sources.items())))


@cache
def _built(variant: Variant, sources: tuple[tuple[str, str], ...]) -> ctypes.CDLL:
    digest = hashlib.sha256(repr((variant, sources, _OPTIONS)).encode()).hexdigest()[:32]
    cached = Path(tempfile.gettempdir()) / f"gyroperm-emulation-{_user()}"
    cached.mkdir(exist_ok=True, mode=0o700)
    library = cached / f"{digest}.so"
    if not library.exists():
        with exclusive(cached / f"{digest}.lock"):
            if not library.exists():
                _make(library, variant, sources)
    return ctypes.CDLL(str(library))


def _make(library: Path, variant: Variant, sources: tuple[tuple[str, str], ...]) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        for file, source in sources:
            (Path(folder) / file).write_text(source, encoding="utf-8")
        _compile(variant, Path(folder)).replace(library)


def _compile(variant: Variant, folder: Path) -> Path:
    built = folder / "built.so"
    values = ", ".join(
        f"*({parameter.declared}*)arguments[{i}]"
        for i, parameter in enumerate(parameters(variant.kernel))
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ziglang", "c++", "-nostdlib++", *_OPTIONS),
            *variant.defines,
            f'-DGYROPERM_SOURCE="{variant.kernel}.cu"',
            f"-DGYROPERM_CALL={variant.kernel}({values})",
            *("-I", str(folder), "-o", str(built), str(folder / "host.cpp")),
        ],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the emulation of {variant} does not compile:\n{done.stderr}")
    return built


def _user() -> str:
    import getpass

    return getpass.getuser()
