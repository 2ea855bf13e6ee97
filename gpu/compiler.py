"""From a kernel's source to a cubin, by NVRTC; no device is needed."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gyroperm.gpu.source import Variant, fingerprint, headers, text

# What the kernels' instructions ask for, and the newest that all features were compiled for.
OLDEST_ARCHITECTURE = 80

INSTALL = "pip install 'gyroperm[gpu-cuda13]' (CUDA 13) or 'gyroperm[gpu-cuda12]'"

# Minimal: without what kernels do not use, such as textures, which would take time to read.
_OPTIONS = ("--std=c++17", "-default-device", "-minimal", "--ptxas-options=-v")


@dataclass(frozen=True)
class Cubin:
    """A compiled variant.

    Parameters
    ----------
    code : bytes
        The ELF file that a driver loads.
    registers : int
        Of a thread.
    stack_bytes : int
        Of a thread: arrays that are not held in registers, and registers that are spilled.
    spilled_bytes : int
        Stores and loads of registers that did not fit.
    shared_bytes : int
        Static shared memory of a block.
    """

    code: bytes
    registers: int
    stack_bytes: int
    spilled_bytes: int
    shared_bytes: int


def compile_variant(variant: Variant, architecture: str) -> Cubin:
    """Compile a variant for an architecture.

    Parameters
    ----------
    variant : Variant
        What to compile.
    architecture : str
        As NVRTC names it, without ``sm_``: "80", "90", "90a".

    Returns
    -------
    Cubin

    Raises
    ------
    ImportError
        If CuPy is not installed; the message says how to install it.
    ValueError
        If the architecture is older than sm_80.
    RuntimeError
        If NVRTC refuses the source; the message is its log.
    """
    if int(re.sub(r"\D", "", architecture)) < OLDEST_ARCHITECTURE:
        raise ValueError(
            f"architecture must be at least sm_{OLDEST_ARCHITECTURE} (Ampere), got "
            f"sm_{architecture}: older tensor cores have no sparse products"
        )
    nvrtc = _nvrtc()
    name = f"{variant.kernel}.cu"
    included = headers(name)
    program = nvrtc.createProgram(
        text(name),
        name,
        [content.encode() for content in included.values()],
        [header.encode() for header in included],
    )
    options = (*_OPTIONS, f"-arch=sm_{architecture}", *variant.defines)
    try:
        nvrtc.compileProgram(program, options)
        log = nvrtc.getProgramLog(program)
        # CuPy's binding drops the last byte, a zero that pads the file.
        code = nvrtc.getCUBIN(program) + b"\0"
    except nvrtc.NVRTCError as error:
        raise RuntimeError(
            f"NVRTC does not compile {variant} for sm_{architecture}:\n"
            f"{nvrtc.getProgramLog(program)}"
        ) from error
    finally:
        nvrtc.destroyProgram(program)
    return Cubin(code, **_resources(log))


def cubin_file(variant: Variant, architecture: str) -> Path:
    """A compiled variant in a file, compiled unless an earlier process has done so.

    The files lie in ``$GYROPERM_CACHE_DIR``, by default ``~/.cache/gyroperm``; their names hash
    the source, the constants, the architecture and the compiler.

    Raises
    ------
    ImportError, ValueError, RuntimeError
        As :func:`compile_variant`.
    """
    parts = (fingerprint(variant), architecture, _OPTIONS, _nvrtc().getVersion())
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()
    path = cache_folder() / f"{variant.kernel}-sm{architecture}-{digest[:32]}.cubin"
    if not path.exists():
        write_whole(path, compile_variant(variant, architecture).code)
    return path


def cache_folder() -> Path:
    """Where compiled kernels and tuned choices are kept: ``$GYROPERM_CACHE_DIR`` or the default."""
    chosen = os.environ.get("GYROPERM_CACHE_DIR")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(home) / "gyroperm"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that no reader sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _nvrtc() -> Any:
    try:
        from cupy_backends.cuda.libs import nvrtc

        nvrtc.getVersion()
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"kernels are compiled by CuPy's NVRTC, which did not load: {INSTALL}"
        ) from error
    return nvrtc


def _resources(log: str) -> dict[str, int]:
    def largest(pattern: str) -> int:
        return max((int(found) for found in re.findall(pattern, log)), default=0)

    return {
        "registers": largest(r"Used (\d+) registers"),
        "stack_bytes": largest(r"(\d+) bytes stack frame"),
        "spilled_bytes": largest(r"(\d+) bytes spill stores") + largest(r"(\d+) bytes spill loads"),
        "shared_bytes": largest(r"(\d+) bytes smem"),
    }
