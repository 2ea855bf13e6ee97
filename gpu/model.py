"""The performance model: what a product takes, from the bytes at each level and the tensor cores.

A launch is as slow as the slowest of four: device memory, what passes from L2 to the
multiprocessors, what passes through their shared memory, and the tensor cores; stretched by how
unevenly the work ends, plus what a launch takes whatever it does::

    seconds = fixed + max(max(1, stretch / 2) * max(memory, l2), stretch * max(shared, tensor))

The halved stretch: while others idle, a multiprocessor draws twice its share of what all share.

This is the top-down analysis of NM-SpMM (arXiv 2503.01253), with the gathered X in the place of
its packed windows. Rates are a card's published ones times the fraction that kernels reach. What
is counted is exact; the rates are not, and nothing here was fitted to a measurement: see
docs/gpu.md for where each number comes from. Known to be rough: levels overlap perfectly or not
at all; L2 holds what fits and nothing else; cuBLAS picks the best of a few tiles; weights and X
come from memory even if an earlier kernel left them in L2; epilogues of a dense product are free.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gyroperm.gpu.decode import DecodePlan
from gyroperm.gpu.index import IndexTables
from gyroperm.gpu.schedule import TILE_STEPS, estimated, whole_longest
from gyroperm.gpu.spmm import MOST_REGISTERS, STEP_COLUMNS, Blocking
from gyroperm.gpu.window import WindowPlan

# Products of 16-bit operands summed in float32, of a multiprocessor a clock: the published
# tensor-core rate; for Hopper what mma.sync reaches of wgmma's (Luo et al., arXiv 2402.13499:
# 62 %), for datacentre Blackwell assumed to be Hopper's.
_PRODUCTS = {80: 1024, 86: 512, 89: 512, 90: 1270, 100: 1270, 120: 512}
# GeForce cards sum in float32 at half the rate of the same chip's other cards.
_HALVED = (86, 89, 120)
# cuBLAS issues wgmma on Hopper and tcgen05 on datacentre Blackwell, at the full rate; there two
# blocks side by side share what they load.
_DENSE_PRODUCTS = {90: 2048, 100: 4096}
# Bytes a clock that L2 delivers to all multiprocessors: published for sm_80, assumed for others.
_L2_BYTES = {80: 5120, 86: 2560, 89: 2560, 90: 5120, 100: 10240, 120: 2560}
# Bytes a clock that one multiprocessor takes from L2, and that pass through its shared memory.
_L2_BYTES_EACH, _SHARED_BYTES_EACH = 64, 128
# Of the published rates, what kernels without faults reach.
_REACHED, _L2_REACHED = 0.88, 0.75
# Seconds that a loaded memory and a loaded L2 take to answer: bytes under way limit their rates.
_MEMORY_LATENCY, _L2_LATENCY = 1.2e-6, 0.8e-6
# A multiprocessor that works while others idle draws at most so many shares of L2 and memory.
_ALONE = 2.0
# A launch, in seconds, from the end of the one before on the same stream; the latency of a
# block's chain: index, X, products, output; and of parts that are left, counted and summed.
LAUNCH, CHAIN, SPLIT = 2e-6, 2.5e-6, 2e-6
# What memory is read and written in.
_SECTOR = 32
# Blocks of registers and threads that a multiprocessor holds.
_REGISTERS = 65536
_THREADS = {80: 2048, 86: 1536, 89: 1536, 90: 2048, 100: 2048, 120: 1536}
_LEVELS, _SHARED_BY_ALL = ("memory", "l2", "shared", "tensor"), ("memory", "l2")
# Tiles of cuBLAS, rows by columns.
_DENSE_TILES = ((128, 256), (128, 128), (64, 128), (128, 64), (64, 64))


@dataclass(frozen=True)
class Card:
    """A device as the model sees it; :func:`gyroperm.gpu.device.card` asks a driver for one.

    Parameters
    ----------
    name : str
        As CUDA names it: a "GeForce" multiplies at half rate.
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
    def family(self) -> int:
        """The newest architecture whose rates are known that is not newer than the card's."""
        number = int("".join(filter(str.isdigit, self.architecture)))
        return max((known for known in _PRODUCTS if known <= number), default=min(_PRODUCTS))

    @property
    def products(self) -> float:
        """Multiplications and additions of dense 16-bit operands a second, by ``mma.sync``."""
        halved = "GeForce" in self.name and self.family in _HALVED
        return _PRODUCTS[self.family] * (0.5 if halved else 1.0) * self.clocks

    @property
    def dense_products(self) -> float:
        """The same by the instructions that cuBLAS has."""
        full = _DENSE_PRODUCTS.get(self.family)
        return self.products if full is None else full * self.clocks

    @property
    def sparse_factor(self) -> float:
        """How many times the products of ``mma.sp`` a second, zeros counted, are the dense ones."""
        return 2.0

    @property
    def memory_reached(self) -> float:
        """Bytes a second to and from memory that kernels reach."""
        return _REACHED * self.memory_bytes

    @property
    def l2_reached(self) -> float:
        """Bytes a second from L2 to the multiprocessors that kernels reach."""
        most = min(_L2_BYTES[self.family], _L2_BYTES_EACH * self.multiprocessors)
        return _L2_REACHED * most * self.clock

    @property
    def shared_bytes(self) -> float:
        """Bytes a second through shared memory."""
        return _SHARED_BYTES_EACH * self.clocks

    @property
    def clocks(self) -> float:
        """Clocks a second of all multiprocessors together."""
        return self.multiprocessors * self.clock

    @property
    def threads(self) -> int:
        """Threads that a multiprocessor holds."""
        return _THREADS[self.family]


class HasTables(Protocol):
    """A packed matrix on the host or on a device, as far as the choice of a way reads it."""

    @property
    def index(self) -> IndexTables:
        """Its tables on the host."""

    @property
    def sparse(self) -> bool:
        """Whether two of every four slots are stored."""

    @property
    def dtype(self) -> str:
        """float16 or bfloat16."""


@dataclass(frozen=True, eq=False)
class Tiles:
    """The sizes of a packed matrix.

    Parameters
    ----------
    tile_size : int
        V.
    sparse : bool
        Two of four kept inside, else dense.
    steps : ndarray of int, shape (T,)
        Steps of 64 kept columns of each tile.
    inputs, outputs : int
        C and R.
    column_bytes : int
        Of an entry of the column index.
    """

    tile_size: int
    sparse: bool
    steps: NDArray[np.integer]
    inputs: int
    outputs: int
    column_bytes: int

    @classmethod
    def of(cls, matrix: HasTables) -> Tiles:
        """The sizes of a matrix."""
        index = matrix.index
        return cls(
            index.tile_size,
            matrix.sparse,
            np.diff(index.tile_ptr) // STEP_COLUMNS,
            index.inputs,
            index.outputs,
            index.columns.dtype.itemsize,
        )

    @property
    def total(self) -> int:
        """Steps of all tiles."""
        return int(self.steps.sum())

    @property
    def step_bytes(self) -> int:
        """Of weights, in the fragments and metadata of a step."""
        return self.tile_size * (72 if self.sparse else 128)

    @property
    def weight_bytes(self) -> int:
        """Of all that is packed."""
        rows = len(self.steps) * self.tile_size
        tables = STEP_COLUMNS * self.column_bytes * self.total + 4 * (len(self.steps) + 1 + rows)
        return self.step_bytes * self.total + tables

    @property
    def dense_bytes(self) -> int:
        """Of the same weights, zeros stored."""
        return 2 * self.inputs * self.outputs


@dataclass(frozen=True)
class Prediction:
    """What a product takes by the model.

    Parameters
    ----------
    memory, l2, shared, tensor : float
        Seconds at each level, were it alone.
    stretch : float
        The work of the multiprocessor that has the most over that of the mean, at least 1.
    fixed : float
        Seconds of what does not shrink with the levels: the launch, latencies, and transposes.
    """

    memory: float
    l2: float
    shared: float
    tensor: float
    stretch: float
    fixed: float = LAUNCH + CHAIN

    @property
    def level(self) -> str:
        """The slowest level: "memory", "l2", "shared" or "tensor"."""
        return max(_LEVELS, key=self.stretched)

    def stretched(self, level: str) -> float:
        """Seconds of a level as the work is spread."""
        alone = _ALONE if level in _SHARED_BY_ALL else 1.0
        return float(getattr(self, level) * max(1.0, self.stretch / alone))

    @property
    def bound_by(self) -> str:
        """The slowest level, or "latency" where what is fixed takes longer."""
        return "latency" if self.fixed > self.seconds / 2 else self.level

    @property
    def seconds(self) -> float:
        """Of the product."""
        return self.fixed + self.stretched(self.level)

    def with_transposes(self, card: Card, tiles: Tiles, n: int) -> Prediction:
        """The product of a token-major X by a kernel that takes none: transposes on both sides."""
        more = transpose(card, tiles.inputs, n) + transpose(card, tiles.outputs, n)
        return replace(self, fixed=self.fixed + more)


def transpose(card: Card, channels: int, n: int) -> float:
    """Seconds to transpose a (C, N) of 16-bit elements; what fits into half of L2 stays there."""
    moved = 2 * 2 * channels * n
    rate = card.l2_reached if moved <= card.l2_size // 2 else card.memory_reached
    return LAUNCH + moved / min(rate, card.l2_reached)


def spmm(card: Card, blocking: Blocking, tiles: Tiles, n: int, aligned: bool = True) -> Prediction:
    """The product by :func:`gyroperm.gpu.spmm.spmm_launch`.

    Parameters
    ----------
    card : Card
    blocking : Blocking
    tiles : Tiles
    n : int
        N.
    aligned : bool
        Whether all rows of X begin on 16 bytes; else a load takes one element.
    """
    column_blocks = -(-n // blocking.block_n)
    steps = tiles.total * column_blocks
    gathered = tiles.total * STEP_COLUMNS * _sectors(n)
    in_stage = steps * STEP_COLUMNS * blocking.block_n * 2
    fragments = steps * tiles.step_bytes
    ids = steps * STEP_COLUMNS * tiles.column_bytes
    written = tiles.outputs * _sectors(n)
    # Every warp reads the fragments of its rows and of its columns.
    read = in_stage * blocking.warps_m + fragments * blocking.warps_n
    each = resident_blocks(card, blocking)
    blocks = each * card.multiprocessors
    under_way = blocks * (blocking.stages - 1) * blocking.stage_bytes
    passed = gathered + fragments + ids + written
    return Prediction(
        memory=_bytes_by_passes(card, tiles, n, blocking.block_n, len(tiles.steps), blocks)
        / card.memory_reached,
        l2=_streamed(passed, card.l2_reached, under_way, _L2_LATENCY),
        shared=(in_stage * (1 if aligned else 8) + fragments + read) / card.shared_bytes,
        tensor=_tensor(card, tiles, steps * STEP_COLUMNS * blocking.block_n),
        stretch=stretch(card, tiles.steps, column_blocks, blocks),
    )


def _bytes_by_passes(
    card: Card, tiles: Tiles, n: int, block_n: int, items: int, blocks: int
) -> float:
    """Bytes to and from memory: blocks of columns go by, as many at a time as blocks work on.

    X and Y pass once; so do the weights where they stay in L2 beside the columns in use.
    """
    column_blocks = -(-n // block_n)
    together = min(column_blocks, -(-blocks // items))
    in_use = tiles.weight_bytes + tiles.inputs * together * block_n * 2
    passes = 1 if in_use <= card.l2_size else -(-column_blocks // together)
    return tiles.weight_bytes * passes + (tiles.inputs + tiles.outputs) * n * 2


def window(card: Card, plan: WindowPlan, tiles: Tiles, n: int, aligned: bool = True) -> Prediction:
    """The product by :func:`gyroperm.gpu.window.window_launch`.

    Of X what the plan loads, for each block of columns; weights go to registers.
    """
    blocking = plan.blocking
    column_blocks = -(-n // blocking.block_n)
    steps = tiles.total * column_blocks
    brought = plan.loaded * column_blocks * blocking.block_n * 2
    words = plan.tables.loads.size * 4 + tiles.total * STEP_COLUMNS * 2 * blocking.warps_m
    written = tiles.outputs * _sectors(n)
    passed = plan.loaded * _sectors(n) + steps * tiles.step_bytes + words * column_blocks + written
    read = steps * STEP_COLUMNS * blocking.block_n * 2 * blocking.warps_m
    blocks = blocking.blocks * card.multiprocessors
    under_way = blocks * blocking.phase_loads * blocking.ahead * blocking.block_n * 2
    # A block takes as long as the longest of its tiles.
    of_groups = plan.tables.tile_steps[..., 1].max(axis=1)
    beside = -(-min(blocks, len(of_groups) * column_blocks) // card.multiprocessors)
    longest = (whole_longest(of_groups, column_blocks, blocks) - TILE_STEPS) * beside
    mean = tiles.total / blocking.group * column_blocks / card.multiprocessors
    return Prediction(
        memory=_bytes_by_passes(card, tiles, n, blocking.block_n, len(of_groups), blocks)
        / card.memory_reached,
        l2=_streamed(passed, card.l2_reached, under_way, _L2_LATENCY),
        shared=(brought * (1 if aligned else 8) + read) / card.shared_bytes,
        tensor=_tensor(card, tiles, steps * STEP_COLUMNS * blocking.block_n),
        stretch=max(1.0, longest / max(mean, 1)),
    )


def decode(
    card: Card, plan: DecodePlan, tiles: Tiles, n: int, token_major: bool = False
) -> Prediction:
    """The product by :func:`gyroperm.gpu.decode.decode_launch`: the weights are read once.

    Each block gathers X for itself, by sectors, from the first-level cache where its
    multiprocessor has read them before.
    """
    row_blocks = tiles.tile_size // plan.block_rows
    fragments = 1 if n <= 8 else 2
    values = tiles.total * STEP_COLUMNS * row_blocks
    gathered = values * _SECTOR * n if token_major or n % 8 else values * _sectors(n)
    x_bytes, y_bytes = tiles.inputs * n * 2, tiles.outputs * n * 2
    read = tiles.total * tiles.tile_size // 16 * 2 * fragments * 512
    parts = np.maximum(1, -(-tiles.steps // plan.part_steps))
    blocks = int(parts.sum()) * row_blocks
    busy = min(blocks, card.multiprocessors)
    each = max(1, min(-(-blocks // card.multiprocessors), card.threads // plan.threads))
    # Of a lane eight loads of 16 bytes, less where a part is shorter than that.
    longest = min(plan.part_steps, max(1, int(tiles.steps.max())))
    ahead = min(plan.threads * 8 * 16, longest * tiles.step_bytes // row_blocks)
    moved = tiles.weight_bytes + x_bytes + y_bytes
    sums = 2 * 4 * n * plan.block_rows * blocks if parts.max() > 1 else 0
    most = -(-blocks // card.multiprocessors) * longest
    mean = tiles.total * row_blocks / card.multiprocessors
    return Prediction(
        memory=_streamed(moved, card.memory_reached, busy * each * ahead, _MEMORY_LATENCY),
        l2=(tiles.weight_bytes + min(gathered, busy * x_bytes) + sums) / card.l2_reached,
        shared=(gathered + values * n * 2 + read) / card.shared_bytes,
        tensor=_tensor(card, tiles, tiles.total * STEP_COLUMNS * 8 * fragments),
        stretch=max(1.0, most / max(mean, 1)),
        fixed=LAUNCH + CHAIN + (SPLIT if parts.max() > 1 else 0.0),
    )


def dense(card: Card, *, channels: int, outputs: int, n: int) -> Prediction:
    """The same product by cuBLAS, zeros and all, by whichever of its tiles takes the least."""
    found = _dense_products(card, channels, outputs, n)
    return min(found, key=lambda prediction: prediction.seconds)


def _dense_products(card: Card, channels: int, outputs: int, n: int) -> Iterator[Prediction]:
    weights, x_bytes, y_bytes = channels * outputs * 2, channels * n * 2, outputs * n * 2
    sharing = 2 if card.family in _DENSE_PRODUCTS else 1
    for rows, columns in _DENSE_TILES:
        down, across = -(-outputs // rows), -(-n // columns)
        waves = down * across / card.multiprocessors
        loaded = weights * across + x_bytes * down
        yield Prediction(
            memory=(weights + x_bytes + y_bytes) / card.memory_reached,
            l2=(loaded / sharing + y_bytes) / card.l2_reached,
            shared=0.0,
            tensor=outputs * channels * max(n, 16) / (_REACHED * card.dense_products),
            # What does not fill the card once is split along the channels.
            stretch=float(np.ceil(waves) / waves) if waves > 1 else 1.0,
        )


def resident_blocks(card: Card, blocking: Blocking) -> int:
    """Blocks that a multiprocessor holds at once, at least one."""
    by_shared = card.shared_total // (blocking.shared_bytes + 1024)
    by_threads = card.threads // blocking.threads
    by_registers = _REGISTERS // (min(blocking.registers, MOST_REGISTERS) * blocking.threads)
    return max(1, min(by_shared, by_threads, by_registers))


def stretch(card: Card, steps: NDArray[np.integer], column_blocks: int, blocks: int) -> float:
    """The work of the multiprocessor that has the most over the mean of all.

    Of what shared tiles leave for each other nothing is counted.
    """
    longest, busy = estimated(steps, column_blocks, blocks)
    mean = float(steps.sum()) * column_blocks / card.multiprocessors
    return max(1.0, longest * -(-busy // card.multiprocessors) / max(mean, 1))


def _streamed(count: float, rate: float, under_way: float, latency: float) -> float:
    """Seconds for so many bytes; of their latency, the first time is among what is fixed."""
    return max(count / rate, latency * (count / max(under_way, 1) - 1))


def _tensor(card: Card, tiles: Tiles, columns: int) -> float:
    factor = card.sparse_factor if tiles.sparse else 1.0
    return columns * tiles.tile_size / (_REACHED * factor * card.products)


def _sectors(n: int) -> int:
    return -(-2 * n // _SECTOR) * _SECTOR


def described(seconds: float) -> str:
    """Seconds for a reader: "8.4 us", "1.25 ms"."""
    return f"{seconds * 1e6:.3g} us" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"


def sizes(matrix: HasTables, n: int) -> str:
    """A product for a reader: "4096 x 4096 by 16 columns"."""
    index = matrix.index
    return f"{index.outputs} x {index.inputs} by {n} column{'s' if n > 1 else ''}"
