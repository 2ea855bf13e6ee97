"""The kernels, the dispatcher's choice among them, and the libraries they are held against."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.spmm_cases import Sample
from benchmarks.spmm_tensors import bits, empty, normal
from benchmarks.spmm_timing import FAILURES, Contender, WrongResultError
from gyroperm.gpu import model
from gyroperm.gpu.decode import MAX_COLUMNS, DecodePlan, decode_launch
from gyroperm.gpu.format import HinmMatrix
from gyroperm.gpu.launch import Launch
from gyroperm.gpu.model import Card, Tiles
from gyroperm.gpu.plans import Target
from gyroperm.gpu.reorder import reordered
from gyroperm.gpu.schedule import balanced
from gyroperm.gpu.spmm import blocking, spmm_launch
from gyroperm.gpu.window import (
    WindowPlan,
    WindowTables,
    window_blocking,
    window_launch,
    window_plan,
)

#: What the dispatcher takes for a product; the label of that contender.
CHOSEN = "gyroperm"
#: cuBLAS for ``X W^T`` as a linear layer has it, and for feature-major ``W X``.
DENSE = ("cublas", "cublas features")
CUSPARSELT = "cusparselt"

# All that a sweep over the copies touches is so many times L2.
_TIMES_L2 = 3


def copies(l2_size: int, weight_bytes: int, other_bytes: int) -> int:
    """How many copies of the weights to go through, so that none is found in L2."""
    return max(2, math.ceil(_TIMES_L2 * l2_size / (weight_bytes + other_bytes)))


def activation_bytes(matrix: HinmMatrix, n: int) -> int:
    """What X and Y have together."""
    return 2 * n * sum(matrix.shape)


def amounts(matrix: HinmMatrix, n: int) -> dict[str, Any]:
    """What a product moves and computes.

    ``memory_bytes`` to and from memory; ``l2_bytes``, the gathered X and the weights once for
    each 128 columns at least; ``operations`` of the tensor cores, zeros counted; ``instruction``,
    whose ceiling that is of.
    """
    slots = len(matrix.columns)
    weights = matrix.values.nbytes + matrix.metadata.nbytes + matrix.columns.nbytes
    return {
        "weight_bytes": matrix.nbytes,
        "memory_bytes": matrix.nbytes + activation_bytes(matrix, n),
        "l2_bytes": 2 * slots * n + -(-n // 128) * weights,
        "operations": 2 * slots * matrix.tile_size * n,
        "instruction": "mma.sp" if matrix.sparse else "mma.sync",
    }


def dense_amounts(outputs: int, inputs: int, n: int) -> dict[str, Any]:
    """The same of a dense product."""
    moved = 2 * (outputs * inputs + n * (outputs + inputs))
    operations = 2 * outputs * inputs * n
    return {
        "weight_bytes": 2 * outputs * inputs,
        "memory_bytes": moved,
        "l2_bytes": moved,
        "operations": operations,
        "instruction": "cublas",
    }


@dataclass(frozen=True, eq=False)
class Planned:
    """A kernel with what it needs for products with a matrix.

    Parameters
    ----------
    launch : callable
        Of (matrix, x, y): the launch.
    copies : list of DeviceMatrix
        In the order of slots that the kernel reads.
    predicted : float
        Seconds by the performance model.
    """

    launch: Callable[[Any, Any, Any], Launch]
    copies: list[Any]
    predicted: float


Maker = Callable[["Rotation", int, Target, Card], Planned]


def candidates(n: int) -> dict[str, Maker]:
    """What plans the kernels that can multiply with N columns, in every blocking of use."""
    found: dict[str, Maker] = {
        f"spmm {block_n}": partial(_spmm, block_n=block_n)
        for block_n in ((64,) if n <= 64 else (64, 128))
    }
    return found | ({"decode": _decode} if n <= MAX_COLUMNS else {"window": _window})


def _spmm(rotation: Rotation, n: int, target: Target, card: Card, *, block_n: int) -> Planned:
    host = rotation.host
    chosen = blocking(host.tile_size, block_n, sparse=host.sparse, shared_limit=target.shared_bytes)
    bfloat16 = host.dtype == "bfloat16"
    variant = chosen.variant(bfloat16=bfloat16, aligned=n % 8 == 0)
    blocks = target.resident(variant, chosen.threads, chosen.shared_bytes)
    schedule = balanced(host.tile_steps, n, chosen.block_n, blocks)
    given = {
        "work_ptr": target.place(schedule.work_ptr),
        "work_items": target.place(schedule.items),
        "workspace": _empty(target, schedule.slots * chosen.slot_values),
        "counters": _zeros(target, schedule.counters),
    }
    predicted = model.spmm(card, chosen, Tiles.of(host), n, aligned=n % 8 == 0)

    def launch(matrix: Any, x: Any, y: Any) -> Launch:
        return spmm_launch(
            matrix, x, y, blocking=chosen, bfloat16=bfloat16, schedule=schedule, **given
        )

    return Planned(launch, rotation.copies, predicted.seconds)


def _decode(rotation: Rotation, n: int, target: Target, card: Card) -> Planned:
    host = rotation.host
    plan = DecodePlan.of(
        host.index, sparse=host.sparse, multiprocessors=target.multiprocessors, n=n
    )
    given = {
        "work_items": None if plan.work_items is None else target.place(plan.work_items),
        "workspace": _empty(target, plan.workspace_values),
        "counters": _zeros(target, plan.counters),
    }
    predicted = model.decode(card, plan, Tiles.of(host), n)

    def launch(matrix: Any, x: Any, y: Any) -> Launch:
        return decode_launch(matrix, x, y, plan=plan, bfloat16=host.dtype == "bfloat16", **given)

    return Planned(launch, rotation.copies, predicted.seconds)


def _window(rotation: Rotation, n: int, target: Target, card: Card) -> Planned:
    windowed = rotation.windowed(target)
    bfloat16 = rotation.host.dtype == "bfloat16"

    def launch(matrix: Any, x: Any, y: Any) -> Launch:
        return window_launch(
            matrix, x, y, blocking=windowed.plan.blocking, tables=windowed.tables, bfloat16=bfloat16
        )

    predicted = model.window(card, windowed.plan, Tiles.of(rotation.host), n, aligned=n % 8 == 0)
    return Planned(launch, windowed.copies, predicted.seconds)


def _empty(target: Target, values: int) -> Any:
    return target.place(np.zeros(values, np.float32)) if values else None


def _zeros(target: Target, count: int) -> Any:
    return target.place(np.zeros(count, np.uint32)) if count else None


def device_target() -> Target:
    """Plans for CUDA device 0."""
    import cupy

    from gyroperm.gpu.device import limits, resident_blocks

    of_device = limits(0)
    return Target(
        of_device.multiprocessors,
        of_device.shared_bytes,
        lambda variant, threads, shared: resident_blocks(variant, threads, shared, 0),
        cupy.asarray,
    )


@dataclass(frozen=True, eq=False)
class Windowed:
    """What the kernel with a shared window multiplies with."""

    plan: WindowPlan
    tables: WindowTables
    copies: list[Any]


@dataclass(eq=False)
class Rotation:
    """A packed matrix on the card, as often as it takes for L2 to hold none of the copies."""

    host: HinmMatrix
    copies: list[Any]
    _windowed: Windowed | None = None

    @classmethod
    def of(cls, host: HinmMatrix, count: int) -> Rotation:
        """Upload it once and copy it there; each copy makes its own plans."""
        return cls(host, _uploaded(host, count))

    def windowed(self, target: Target) -> Windowed:
        """As many copies in the order of a window's plan, which is made once."""
        if self._windowed is None:
            host = self.host
            chosen = window_blocking(
                host.tile_size, host.shape[1], sparse=host.sparse, shared_limit=target.shared_bytes
            )
            plan = window_plan(host, chosen)
            copies = _uploaded(reordered(host, plan.order), len(self.copies))
            self._windowed = Windowed(plan, plan.tables.moved(target.place), copies)
        return self._windowed


def _uploaded(host: HinmMatrix, count: int) -> list[Any]:
    from gyroperm.gpu import DeviceMatrix

    first = DeviceMatrix.upload(host)
    arrays = ("values", "metadata", "columns", "row_map")
    others = [
        replace(first, **{name: getattr(first, name).copy() for name in arrays})
        for _ in range(count - 1)
    ]
    return [first, *others]


def product_contenders(rotation: Rotation, n: int, card: Card, prefix: str = "") -> list[Contender]:
    """The dispatcher's choice, then every kernel, for feature-major X; checked by a sample."""
    host = rotation.host
    x = normal(host.shape[1], n, dtype=host.dtype)
    y = empty(host.shape[0], n, dtype=host.dtype)
    sample = Sample.of(host, bits(x))
    of_all = amounts(host, n)
    count = copies(card.l2_size, host.nbytes, activation_bytes(host, n))
    calls = [_multiply(matrix, x, y) for matrix in rotation.copies[:count]]
    found = [Contender(prefix + CHOSEN, calls, checked(calls[-1], y, sample, host), of_all)]
    target = device_target()
    for label, plan in candidates(n).items():
        try:
            planned = plan(rotation, n, target, card)
            calls = [_launch(planned.launch, matrix, x, y) for matrix in planned.copies[:count]]
        except FAILURES as error:
            found.append(failed(prefix + label, error))
            continue
        check = checked(calls[-1], y, sample, host)
        predicted = {"predicted": planned.predicted}
        found.append(Contender(prefix + label, calls, check, {**of_all, **predicted}))
    return found


def failed(label: str, error: Exception) -> Contender:
    """A contender that says, when it is measured, why it cannot be."""

    def call() -> None:
        raise error

    return Contender(label, [call])


def _multiply(matrix: Any, x: Any, y: Any) -> Callable[[], Any]:
    return lambda: matrix.multiply(x, out=y)


def _launch(make: Callable[..., Launch], matrix: Any, x: Any, y: Any) -> Callable[[], None]:
    from gyroperm.gpu.device import as_cupy, current_stream, run

    launch = make(matrix, as_cupy(x), as_cupy(y))
    return lambda: run(launch, current_stream(x))


def checked(
    call: Callable[[], Any], y: Any, sample: Sample, host: HinmMatrix
) -> Callable[[], None]:
    """A check that a call writes into y what the sample says, over NaN that was there before."""
    import torch

    rows = torch.from_numpy(sample.rows.astype(np.int64))
    columns = torch.from_numpy(sample.columns.astype(np.int64))

    def check() -> None:
        y.fill_(float("nan"))
        call()
        excess = sample.excess(bits(y.cpu()[rows][:, columns]), host.dtype)
        if not excess <= 0:
            raise WrongResultError(f"off by {excess:.3g} more than rounding")

    return check


def dense_contenders(outputs: int, inputs: int, n: int, dtype: str, card: Card) -> list[Contender]:
    """cuBLAS in both layouts and, for 2:4 of the whole matrix, cuSPARSELt, all through torch."""
    predicted = model.dense(card, channels=inputs, outputs=outputs, n=n)
    of_all = {**dense_amounts(outputs, inputs, n), "predicted": predicted.seconds}
    moved = of_all["memory_bytes"] - of_all["weight_bytes"]
    count = copies(card.l2_size, of_all["weight_bytes"], moved)
    weights = [normal(outputs, inputs, dtype=dtype)]
    weights += [weights[0].clone() for _ in range(count - 1)]
    x, y = normal(inputs, n, dtype=dtype), empty(outputs, n, dtype=dtype)
    tokens, written = normal(n, inputs, dtype=dtype), empty(n, outputs, dtype=dtype)
    found = [
        Contender(DENSE[0], [_mm(tokens, w.t(), written) for w in weights], None, of_all),
        Contender(DENSE[1], [_mm(w, x, y) for w in weights], None, of_all),
    ]
    return [*found, _cusparselt(weights[0], x, card.l2_size, dense_amounts(outputs, inputs, n))]


def _mm(a: Any, b: Any, out: Any) -> Callable[[], Any]:
    import torch

    return lambda: torch.mm(a, b, out=out)


def _cusparselt(weight: Any, x: Any, l2_size: int, of_dense: dict[str, Any]) -> Contender:
    import torch

    # A value and two bits of place for two of every four.
    size = of_dense["weight_bytes"] * 9 // 16
    moved = of_dense["memory_bytes"] - of_dense["weight_bytes"]
    of_all = {**of_dense, "weight_bytes": size, "memory_bytes": size + moved}
    of_all |= {"l2_bytes": size + moved, "instruction": "mma.sp"}
    try:
        from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured

        SparseSemiStructuredTensor._FORCE_CUTLASS = False
        groups = weight.view(-1, 4)
        least = groups.abs().argsort(dim=1)[:, :2]
        pruned = groups.scatter(1, least, 0.0).view_as(weight)
        first = to_sparse_semi_structured(pruned)
        expected = pruned.float() @ x.float()
    except FAILURES as error:
        return failed(CUSPARSELT, error)
    weights = [first]
    weights += [to_sparse_semi_structured(pruned) for _ in range(copies(l2_size, size, moved) - 1)]

    def call(w: Any) -> Callable[[], Any]:
        return lambda: torch.mm(w, x)

    calls = [call(w) for w in weights]

    def check() -> None:
        got = calls[-1]().float()
        if not torch.allclose(got, expected, rtol=2.0**-6, atol=float(expected.abs().max()) / 64):
            raise WrongResultError("is not the product of the pruned weights")

    return Contender(CUSPARSELT, calls, check, of_all)
