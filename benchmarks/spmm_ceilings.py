"""The ceilings of a card: memory, L2, tensor cores; what kernels' times are held against."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.spmm_tensors import empty, normal, placed, words
from benchmarks.spmm_timing import Contender, Sampler, measure
from gyroperm.gpu.source import text

SOURCE = Path(__file__).with_suffix(".cu")

# As in the source.
LOADS, SUMS, READ_THREADS, PRODUCT_THREADS = 8, 8, 512, 256

#: Bytes that are copied, and read from memory: far more than L2 holds.
COPIED = 1 << 30
#: Bytes that are read from L2: what its halves hold each, and all of it.
READ_FROM_L2 = (8 << 20, 16 << 20, 24 << 20)
#: Rows, columns and channels of the dense products.
DENSE = (4096, 8192)

_PASSES = 4096


def compiled(architecture: str, *, sparse: bool) -> bytes:
    """The cubin of the ceilings' kernels for an architecture, by CuPy's NVRTC."""
    from cupy_backends.cuda.libs import nvrtc

    program = nvrtc.createProgram(
        SOURCE.read_text(encoding="utf-8"),
        SOURCE.name,
        [text("primitives.h").encode()],
        [b"primitives.h"],
    )
    options = ["--std=c++17", "-default-device", f"-arch=sm_{architecture}"]
    options += ["-DGYROPERM_BF16=1", f"-DSPARSE={int(sparse)}"]
    try:
        nvrtc.compileProgram(program, options)
        # CuPy's binding drops the last byte, a zero that pads the file.
        return bytes(nvrtc.getCUBIN(program)) + b"\0"
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"{SOURCE.name}: {nvrtc.getProgramLog(program)}") from error
    finally:
        nvrtc.destroyProgram(program)


@cache
def _kernel(name: str, architecture: str, sparse: bool = False) -> Any:
    import cupy

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ceilings.cubin"
        path.write_bytes(compiled(architecture, sparse=sparse))
        return cupy.RawModule(path=str(path)).get_function(name)


def ceilings(card: dict[str, Any], *, quick: bool) -> list[Contender]:
    """What is measured on a card that :func:`benchmarks.spmm_card.describe` described.

    Each with the amount, ``bytes`` or ``operations``, of a call, and the ``ceiling`` it is of.
    """
    found = [_copy(COPIED), _read("memory", COPIED, card)]
    found += [_read("l2", size, card) for size in (READ_FROM_L2[1:2] if quick else READ_FROM_L2)]
    found += [_products(card, sparse=False), _products(card, sparse=True)]
    return found + [_dense(size) for size in (DENSE[:1] if quick else DENSE)]


def best(measured: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The ceilings, bytes or operations a second, from what :func:`measure` gave.

    The highest median of each; those alone that could be measured.
    """
    found: dict[str, float] = {}
    for one in measured.values():
        if "seconds" in one:
            rate = one["amount"] / float(np.median(one["seconds"]))
            found[one["ceiling"]] = max(found.get(one["ceiling"], 0.0), rate)
    return found


def run(
    card: dict[str, Any], rounds: int, sampler: Sampler, *, quick: bool
) -> dict[str, dict[str, Any]]:
    """Measure the ceilings in turns."""
    return measure(ceilings(card, quick=quick), rounds, sampler)


def _copy(size: int) -> Contender:
    import torch

    source = words(size // 4)
    target = torch.empty_like(source)
    return Contender(
        f"copy of {size >> 20} MiB",
        [lambda: target.copy_(source)],
        amounts={"ceiling": "memory", "amount": 2 * size, "unit": "bytes"},
    )


def _read(ceiling: str, size: int, card: dict[str, Any]) -> Contender:

    blocks = 2 * card["multiprocessors"]
    share = 16 * LOADS * READ_THREADS
    visits = COPIED // (share * blocks)
    shares = min(size // share, visits * blocks)
    source = words(shares * share // 4)
    out = empty(blocks * READ_THREADS, dtype="int32")
    arguments = (source, out, np.int32(shares), np.int32(visits))
    kernel = _kernel("read_all", card["architecture"])
    return Contender(
        f"{size >> 20} MiB read from {'L2' if ceiling == 'l2' else ceiling}",
        [_launched(kernel, blocks, READ_THREADS, arguments)],
        amounts={
            # What is read alone is no copy: a ceiling of its own.
            "ceiling": "l2" if ceiling == "l2" else "memory read",
            "amount": share * blocks * visits,
            "unit": "bytes",
        },
    )


def _products(card: dict[str, Any], *, sparse: bool) -> Contender:
    import torch

    blocks = 2 * card["multiprocessors"]
    operands = normal(2 * PRODUCT_THREADS * 8).view(torch.int32)
    # Two places of four, ascending, in every four bits.
    places = placed(np.full(PRODUCT_THREADS, 0x4E9D8C49, np.int32))
    out = empty(blocks * PRODUCT_THREADS, dtype="float32")
    kernel = _kernel("multiply_all", card["architecture"], sparse)
    arguments = (operands, places, out, np.int32(_PASSES))
    warps = blocks * PRODUCT_THREADS // 32
    each = 2 * 16 * 8 * (32 if sparse else 16)
    return Contender(
        "mma.sp m16n8k32, zeros counted" if sparse else "mma.sync m16n8k16",
        [_launched(kernel, blocks, PRODUCT_THREADS, arguments)],
        amounts={
            "ceiling": "mma.sp" if sparse else "mma.sync",
            "amount": warps * _PASSES * SUMS * each,
            "unit": "operations",
        },
    )


def _dense(size: int) -> Contender:
    import torch

    a, b = (normal(size, size) for _ in range(2))
    out = torch.empty_like(a)
    return Contender(
        f"cuBLAS {size} x {size} x {size}",
        [lambda: torch.mm(a, b, out=out)],
        amounts={"ceiling": "cublas", "amount": 2 * size**3, "unit": "operations"},
    )


def _launched(
    kernel: Any, blocks: int, threads: int, arguments: Sequence[Any]
) -> Callable[[], None]:
    from gyroperm.gpu.device import as_cupy, current_stream

    tensors = [one for one in arguments if hasattr(one, "data_ptr")]
    given = tuple(as_cupy(one) for one in arguments)

    def call() -> None:
        with current_stream(*tensors):
            kernel((blocks, 1, 1), (threads, 1, 1), given)

    return call
