"""The kernels, the dispatcher's choice among them, and the libraries they are held against."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.spmm_cases import Sample
from benchmarks.spmm_tensors import bits, empty, normal
from benchmarks.spmm_timing import FAILURES, Contender, WrongResultError
from gyroperm.gpu import model
from gyroperm.gpu.candidates import Candidate, candidates
from gyroperm.gpu.dispatch import choose
from gyroperm.gpu.format import HinmMatrix
from gyroperm.gpu.model import Card
from gyroperm.gpu.plans import Plan, Target, make_plan, planned_columns

#: What the dispatcher takes for a product; the label of that contender.
CHOSEN = "gyroperm"
#: cuBLAS for ``X W^T`` as a linear layer has it, and for feature-major ``W X``.
DENSE = ("cublas", "cublas features")
CUSPARSELT = "cusparselt"

# Tiles of more rows gain little by a window of X that they share.
_WINDOW_ROWS = 64

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
class Rotation:
    """A packed matrix on the card, as often as it takes for L2 to hold none of the copies.

    Products are never dense ones. Tiles of few rows are uploaded with a window, for every kernel
    alike.
    """

    host: HinmMatrix
    copies: list[Any]

    @classmethod
    def of(cls, host: HinmMatrix, count: int) -> Rotation:
        """Upload it once and copy it there; each copy makes its own plans."""
        return cls(host, _uploaded(host, count, window=host.tile_size <= _WINDOW_ROWS))


def _uploaded(host: HinmMatrix, count: int, *, window: bool) -> list[Any]:
    import cupy

    from gyroperm.gpu import DeviceMatrix

    def copied(array: Any) -> Any:
        made = cupy.empty(array.shape, array.dtype)
        made.data.copy_from_device_async(array.data, array.nbytes)
        return made

    first = DeviceMatrix.upload(host, allow_dense=False, window=window)
    arrays = ("values", "metadata", "columns", "row_map")
    others = [
        replace(first, **{name: copied(getattr(first, name)) for name in arrays})
        for _ in range(count - 1)
    ]
    return [first, *others]


def likely(first: Any, n: int, card: Card, most: int) -> list[Candidate]:
    """What the dispatcher chooses from, but for a dense product: of each kernel the first few.

    Those of which the model predicts least time, ``most`` of a kernel.
    """
    found = candidates(first, n, "features", card, window=first.window, aligned=n % 8 == 0)
    found.sort(key=lambda one: one.prediction.seconds)
    kinds = ("decode", "spmm", "window")
    return [one for kind in kinds for one in [c for c in found if c.way.kind == kind][:most]]


def product_contenders(
    rotation: Rotation, n: int, card: Card, ways: int, prefix: str = ""
) -> list[Contender]:
    """The dispatcher's choice, then so many ways of each kernel, for feature-major X.

    The first says which ``way`` it is, and which is ``dispatched`` where a product may be dense.
    """
    host, first = rotation.host, rotation.copies[0]
    x = normal(host.shape[1], n, dtype=host.dtype)
    y = empty(host.shape[0], n, dtype=host.dtype)
    sample = Sample.of(host, bits(x))
    of_all = amounts(host, n)
    used = rotation.copies[: copies(card.l2_size, host.nbytes, activation_bytes(host, n))]
    calls = [_multiply(matrix, x, y) for matrix in used]
    said = {
        "way": str(first.choice(n).way),
        "dispatched": str(choose(first, n, "features", card, window=first.window).way),
    }
    check = checked(calls[-1], y, sample, host)
    found = [Contender(prefix + CHOSEN, calls, check, {**of_all, **said})]
    target = device_target()
    for one in likely(first, n, card, ways):
        label = f"{prefix}{one.way}"
        try:
            plan = make_plan(one.way, planned_columns(n), first, target)
            calls = [_launches(plan, matrix, x, y, target) for matrix in used]
        except FAILURES as error:
            found.append(failed(label, error))
            continue
        check = checked(calls[-1], y, sample, host)
        predicted = {"predicted": one.prediction.seconds}
        found.append(Contender(label, calls, check, {**of_all, **predicted}))
    return found


def failed(label: str, error: Exception) -> Contender:
    """A contender that says, when it is measured, why it cannot be."""

    def call() -> None:
        raise error

    return Contender(label, [call])


def _multiply(matrix: Any, x: Any, y: Any) -> Callable[[], Any]:
    return lambda: matrix.multiply(x, out=y)


def _launches(plan: Plan, matrix: Any, x: Any, y: Any, target: Target) -> Callable[[], None]:
    from gyroperm.gpu.device import as_cupy, current_stream, run

    def scratch(name: str, shape: tuple[int, ...], dtype: str) -> Any:
        return target.place(np.zeros(shape, dtype))

    launches = plan.launches(matrix, as_cupy(x), as_cupy(y), scratch, layout="features")

    def call() -> None:
        stream = current_stream(x)
        for launch in launches:
            run(launch, stream)

    return call


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
