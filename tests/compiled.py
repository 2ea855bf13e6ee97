"""Compiled kernels, made by all processors and kept between runs, and the instructions in them."""

from __future__ import annotations

import getpass
import hashlib
import multiprocessing
import os
import pickle
import re
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.metadata import files
from pathlib import Path

from gyroperm.gpu import compiler
from gyroperm.gpu.compiler import Cubin, compile_variant
from gyroperm.gpu.source import Variant, fingerprint
from turns import exclusive

Job = tuple[Variant, str]

_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_.]+)", re.M)


def compiled(jobs: Iterable[Job]) -> dict[Job, Cubin]:
    """Every variant for its architecture; those that an earlier run compiled are not again."""
    paths = {job: _path(job) for job in jobs}
    # Who comes second finds what the first has compiled.
    with exclusive(_folder() / "compiling.lock"):
        missing = [job for job, path in paths.items() if not path.exists()]
        if missing:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(os.cpu_count(), context) as pool:
                for job, cubin in zip(missing, pool.map(_compile, missing), strict=True):
                    compiler.write_whole(paths[job], pickle.dumps(cubin))
    return {job: pickle.loads(path.read_bytes()) for job, path in paths.items()}


def instructions(cubin: Cubin) -> list[str]:
    """The names of a kernel's instructions, with their modifiers, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin.code)
        command = [_nvdisasm(), "--print-code", "--no-dataflow", file]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return _INSTRUCTION.findall(listing)


def _compile(job: Job) -> Cubin:
    return compile_variant(*job)


def _path(job: Job) -> Path:
    variant, architecture = job
    parts = fingerprint(variant), architecture, _compiler()
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    return _folder() / f"{digest}.pickle"


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"gyroperm-compiled-{getpass.getuser()}"
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder


@cache
def _compiler() -> tuple[object, ...]:
    return Path(compiler.__file__).read_text(encoding="utf-8"), compiler._nvrtc().getVersion()


@cache
def _nvdisasm() -> Path:
    # Not whatever a PATH has: the package that the tests depend on.
    for file in files("nvidia-cuda-nvdisasm") or ():
        if file.name in ("nvdisasm", "nvdisasm.exe"):
            return Path(file.locate())
    raise FileNotFoundError("the package nvidia-cuda-nvdisasm holds no nvdisasm")
