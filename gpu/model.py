"""The performance model: what a product takes, from the bytes at each level and the tensor cores.

A product is as slow as the slowest of four: what it reads from and writes to device memory, what
passes from L2 to the multiprocessors, what passes through shared memory, and the tensor cores;
stretched by how unevenly the work ends, plus what a launch takes. This is the top-down analysis of
NM-SpMM (arXiv 2503.01253), with the gathered X in the place of its packed windows. Rates are a
card's published ones times the fraction that plain loops reach; :mod:`benchmarks.spmm` prints
predicted beside measured times.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gyroperm.gpu.schedule import TILE_STEPS, Schedule
from gyroperm.gpu.spmm import STEP_COLUMNS, Blocking


@dataclass(frozen=True)
class Card:
    """A device as the model sees it.

    Parameters
    ----------
    name : str
    architecture : str
        "80", "90", ... as NVRTC names it.
    multiprocessors : int
    clock : float
        Hz, of the multiprocessors under load.
    memory_bytes : float
        Bytes a second to and from device memory.
    l2_size : int
        Bytes.
    shared_limit, shared_total : int
        Bytes of shared memory that a block may use, and that a multiprocessor has.
    """

    name: str
    architecture: str
    multiprocessors: int
    clock: float
    memory_bytes: float
    l2_size: int
    shared_limit: int
    shared_total: int

    @property
    def products(self) -> float:
        """Multiplications and additions of dense 16-bit operands a second, by ``mma.sync``."""
        return _PRODUCTS[_family(self.architecture)] * self.multiprocessors * self.clock

    @property
    def sparse_factor(self) -> float:
        """How many times the products of ``mma.sp`` a second, zeros counted, are the dense ones."""
        return 2.0

    @property
    def l2_bytes(self) -> float:
        """Bytes a second from L2 to the multiprocessors."""
        return _L2_BYTES * self.multiprocessors * self.clock

    @property
    def shared_bytes(self) -> float:
        """Bytes a second of shared memory."""
        return 128.0 * self.multiprocessors * self.clock


# Products of a multiprocessor a clock: the published tensor-core rate, for Hopper what mma.sync
# reaches of wgmma's (Luo et al., arXiv 2402.13499: 62 %); Blackwell's by the same fraction.
_PRODUCTS = {80: 1024, 86: 512, 89: 512, 90: 1270, 100: 1270, 120: 512}
# 64 bytes a clock and multiprocessor are published for Ampere and Hopper; plain loops reach 3/4.
_L2_BYTES = 48.0
# Of the published rates of memory and tensor cores, what kernels without faults reach.
_REACHED = 0.88
# A launch, in seconds, from the end of the one before on the same stream; and the latency of the
# first loads of a block's chain: index, X, products, output.
LAUNCH, CHAIN = 2e-6, 2.5e-6


def _family(architecture: str) -> int:
    number = int("".join(filter(str.isdigit, architecture)))
    return max((known for known in _PRODUCTS if known <= number), default=80)


@dataclass(frozen=True)
class Prediction:
    """What a product takes by the model.

    Parameters
    ----------
    memory, l2, shared, tensor : float
        Seconds at each level, were it alone.
    stretch : float
        The time of the block that ends last over that of the mean, at least 1.
    """

    memory: float
    l2: float
    shared: float
    tensor: float
    stretch: float

    @property
    def bound_by(self) -> str:
        """The slowest level: "memory", "l2", "shared" or "tensor"."""
        levels = ("memory", "l2", "shared", "tensor")
        return max(levels, key=lambda level: getattr(self, level))

    @property
    def seconds(self) -> float:
        """Of one launch."""
        return LAUNCH + CHAIN + getattr(self, self.bound_by) * self.stretch


def memory_seconds(card: Card, weights: int, x: int, y: int) -> float:
    """Seconds to read the weights and X and write Y once, in bytes of each."""
    return (weights + x + y) / (_REACHED * card.memory_bytes)


def spmm(
    card: Card,
    blocking: Blocking,
    schedule: Schedule,
    *,
    weight_bytes: int,
    channels: int,
    outputs: int,
    n: int,
) -> Prediction:
    """The product by :func:`gyroperm.gpu.spmm.spmm_launch`.

    Parameters
    ----------
    card : Card
    blocking : Blocking
    schedule : Schedule
        For ``blocking.block_n``.
    weight_bytes : int
        Of the packed matrix.
    channels, outputs, n : int
        C, R and N.
    """
    steps = int(schedule.items[:, 3].sum())
    gathered = steps * STEP_COLUMNS * blocking.block_n * 2
    fragments = steps * (blocking.stage_bytes - STEP_COLUMNS * blocking.block_n * 2)
    read_again = gathered * blocking.warps_m + fragments * blocking.warps_n
    dense = steps * STEP_COLUMNS * blocking.tile_size * blocking.block_n
    factor = card.sparse_factor if blocking.sparse else 1.0
    return Prediction(
        memory=memory_seconds(card, weight_bytes, channels * n * 2, outputs * n * 2),
        l2=(gathered + fragments + outputs * n * 2) / card.l2_bytes,
        shared=(gathered + fragments + read_again) / card.shared_bytes,
        tensor=dense / (_REACHED * factor * card.products),
        stretch=stretch(schedule, resident_blocks(card, blocking)),
    )


def decode(
    card: Card, *, weight_bytes: int, channels: int, outputs: int, n: int, blocks: int
) -> Prediction:
    """The product by the decode kernel: the weights are read once, from memory."""
    waves = blocks / (2 * card.multiprocessors)
    return Prediction(
        memory=memory_seconds(card, weight_bytes, channels * n * 2, outputs * n * 2),
        l2=weight_bytes / card.l2_bytes,
        shared=0.0,
        tensor=0.0,
        stretch=max(1.0, np.ceil(waves) / waves),
    )


def dense(card: Card, *, channels: int, outputs: int, n: int) -> Prediction:
    """The same product by cuBLAS, zeros and all."""
    wide = max(1, -(-n // 128)) * -(-outputs // 128)
    waves = wide / card.multiprocessors
    return Prediction(
        memory=memory_seconds(card, channels * outputs * 2, channels * n * 2, outputs * n * 2),
        l2=0.0,
        shared=0.0,
        tensor=outputs * channels * max(n, 16) / (_REACHED * _dense_products(card)),
        # Small products are split along the channels.
        stretch=np.ceil(waves) / waves if waves > 1 else 1.0,
    )


def _dense_products(card: Card) -> float:
    # cuBLAS issues wgmma on Hopper and tcgen05 on datacentre Blackwell, at the full rate.
    full = {90: 2048, 100: 4096}.get(_family(card.architecture))
    return card.products if full is None else full * card.multiprocessors * card.clock


def resident_blocks(card: Card, blocking: Blocking) -> int:
    """Blocks that the device holds at once: by shared memory, threads and registers."""
    by_shared = card.shared_total // (blocking.shared_bytes + 1024)
    by_threads = (
        2048 // blocking.threads
        if _family(card.architecture) in (80, 90, 100)
        else (1536 // blocking.threads)
    )
    # A thread has at most 255 registers: 65536 of them hold 256 threads of such blocks.
    by_registers = max(1, 65536 // (registers_of(blocking) * blocking.threads))
    return card.multiprocessors * max(1, min(by_shared, by_threads, by_registers))


def registers_of(blocking: Blocking) -> int:
    """About how many registers a thread takes: its sums, and as much as was seen beside them."""
    sums = blocking.tile_size * blocking.block_n // blocking.threads
    return min(255, sums + 104)


def stretch(schedule: Schedule, blocks: int) -> float:
    """The time of the block that ends last over that of the mean of all that could work."""
    ideal = (schedule.items[:, 3] + TILE_STEPS).sum() / blocks
    return max(1.0, schedule.longest / max(ideal, 1e-9))


def tile_steps(tile_ptr: NDArray[np.int32]) -> NDArray[np.int64]:
    """The steps of each tile, from its pointers in slots."""
    return np.diff(tile_ptr.astype(np.int64)) // STEP_COLUMNS
