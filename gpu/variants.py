"""Every kernel that the package chooses, and what it may take of a multiprocessor.

Kernels are compiled where they are first used, on machines that nobody has tested. What is listed
here is compiled for every architecture before a change is taken; it must spill no register, and
take so few of them that the blocks by which a multiprocessor hides latencies are resident. Only
what :meth:`gyroperm.gpu.DeviceMatrix.tune` tries besides is not listed: it is timed on the very
card.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from gyroperm.gpu import decode, permute
from gyroperm.gpu.source import Variant
from gyroperm.gpu.spmm import BLOCK_COLUMNS, MOST_REGISTERS, blockings
from gyroperm.gpu.tiling import TILE_SIZES
from gyroperm.gpu.window import window_blocking

_REGISTERS = 65536  # of a multiprocessor
_REGISTER_UNIT = 8  # in which a thread gets them
_RESERVED = 1024  # bytes of shared memory that the device adds to every block

# Warps that a multiprocessor is to hold, by the rows of a tile. Sums take the more registers the
# more rows a warp has, up to 64, and what is read again and again from shared memory the fewer.
_SPMM_WARPS = {16: 16, 32: 10, 64: 10, 128: 10, 256: 8}
_DECODE_THREADS = 512
_PERMUTE_THREADS = 1024
_TRANSPOSE_THREADS = 1280


@dataclass(frozen=True)
class Architecture:
    """What multiprocessors of an architecture have.

    Parameters
    ----------
    name : str
        As NVRTC names it, without ``sm_``.
    shared_bytes : int
        Shared memory of a multiprocessor.
    block_shared_bytes : int
        Shared memory that a block may use.
    threads : int
        Threads that may be resident.
    """

    name: str
    shared_bytes: int
    block_shared_bytes: int
    threads: int


ARCHITECTURES = {
    name: Architecture(name, shared << 10, block_shared << 10, threads)
    for name, shared, block_shared, threads in (
        ("80", 164, 163, 2048),
        ("86", 100, 99, 1536),
        ("89", 100, 99, 1536),
        ("90", 228, 227, 2048),
        ("100", 228, 227, 2048),
        ("120", 100, 99, 1536),
    )
}


@dataclass(frozen=True)
class Shipped:
    """A kernel that the package asks for.

    Parameters
    ----------
    variant : Variant
    threads : int
        Threads of a block.
    shared_bytes : int
        Shared memory that a block asks for, at most.
    resident : int
        Blocks of which registers must be left on a multiprocessor.
    """

    variant: Variant
    threads: int
    shared_bytes: int
    resident: int

    @property
    def most_registers(self) -> int:
        """Registers that a thread may take."""
        each = _REGISTERS // (self.threads * self.resident)
        return min(MOST_REGISTERS, each // _REGISTER_UNIT * _REGISTER_UNIT)


def shipped(architecture: Architecture) -> list[Shipped]:
    """Every kernel that plans and launches ask for on an architecture, each once."""
    found = [*_spmm(architecture), *_window(architecture), *_decode(), *_moving(architecture)]
    return list({one.variant: one for one in found}.values())


def _spmm(architecture: Architecture) -> Iterator[Shipped]:
    limit = architecture.block_shared_bytes
    for V, n, sparse in product(TILE_SIZES, BLOCK_COLUMNS, (False, True)):
        for chosen in blockings(V, n, sparse=sparse, shared_limit=limit):
            resident = _fitting(
                architecture, chosen.threads, chosen.shared_bytes, 32 * _SPMM_WARPS[V]
            )
            for aligned, bfloat16 in product((False, True), repeat=2):
                variant = chosen.variant(bfloat16=bfloat16, aligned=aligned)
                yield Shipped(variant, chosen.threads, chosen.shared_bytes, resident)


def _window(architecture: Architecture) -> Iterator[Shipped]:
    inputs = architecture.block_shared_bytes  # more than fit
    for V, sparse in product(TILE_SIZES, (False, True)):
        chosen = window_blocking(
            V, inputs, sparse=sparse, shared_limit=architecture.block_shared_bytes
        )
        for aligned, bfloat16 in product((False, True), repeat=2):
            variant = chosen.variant(bfloat16=bfloat16, aligned=aligned)
            yield Shipped(variant, chosen.threads, chosen.shared_bytes, chosen.blocks)


def _decode() -> Iterator[Shipped]:
    for rows, n, layout in product(TILE_SIZES, (8, 16), decode.X_LAYOUTS):
        threads = decode.block_threads(rows)
        shared = decode.most_shared_bytes(rows, n)
        for sparse, bfloat16 in product((False, True), repeat=2):
            variant = decode.decode_variant(
                rows, n, sparse=sparse, bfloat16=bfloat16, x_layout=layout
            )
            yield Shipped(variant, threads, shared, max(1, _DECODE_THREADS // threads))


def _moving(architecture: Architecture) -> Iterator[Shipped]:
    """What moves activations, and composes tables."""
    for variant, threads in permute.variants().items():
        yield Shipped(variant, threads, permute.SHARED_BYTES, _PERMUTE_THREADS // threads)
    for name, shared, resident_threads in (
        ("transpose", 64 * 64 * 2, _TRANSPOSE_THREADS),
        ("fuse", 0, architecture.threads),
        ("invert", 0, architecture.threads),
    ):
        yield Shipped(Variant.of(name, {}), 256, shared, resident_threads // 256)


def _fitting(architecture: Architecture, threads: int, shared_bytes: int, wanted: int) -> int:
    """Blocks of as many threads as wanted, or as shared memory and the device hold."""
    by_shared = architecture.shared_bytes // (shared_bytes + _RESERVED)
    return max(1, min(by_shared, wanted // threads, architecture.threads // threads))
