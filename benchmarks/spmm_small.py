"""A small launch of every kernel, checked: what runs under a sanitizer, or in an emulation.

``python -m benchmarks.spmm_small KERNEL...`` runs those of some kernels on a CUDA card, each array
in memory of its own, so that what lies beyond an array is nobody's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.spmm_cases import STEP, Sample, Structure, make_matrix
from gyroperm.gpu.decode import DecodePlan, decode_launch
from gyroperm.gpu.format import HinmMatrix
from gyroperm.gpu.fusion import fuse_columns, invert
from gyroperm.gpu.launch import Launch
from gyroperm.gpu.numbers import from_bits, to_bits
from gyroperm.gpu.permute import permute, rms_norm, rms_norm_to_features
from gyroperm.gpu.reorder import reordered
from gyroperm.gpu.schedule import balanced
from gyroperm.gpu.spmm import blocking, spmm_launch
from gyroperm.gpu.transpose import to_features, to_tokens
from gyroperm.gpu.window import window_blocking, window_launch, window_plan

# As much as the smallest device has that the kernels run on.
_SHARED_BYTES = 99 * 1024
_NAN = 0x7FFF  # in both dtypes


@dataclass(frozen=True)
class Small:
    """One launch.

    Parameters
    ----------
    name : str
    launch : Launch
    wrong : callable
        What is wrong with the result, after the launch; None if nothing is.
    """

    name: str
    launch: Launch
    wrong: Callable[[], str | None]


@dataclass(frozen=True)
class Place:
    """Where launches run: how arrays get there and back."""

    put: Callable[[NDArray[Any]], Any]
    get: Callable[[Any], NDArray[Any]]


@dataclass(frozen=True)
class _Uploaded:
    values: Any
    metadata: Any
    columns: Any
    row_map: Any


def launches(kernel: str, place: Place) -> Iterator[Small]:
    """The launches of one of :data:`KERNELS`; each is to be run before the next is asked for."""
    return KERNELS[kernel](place)


def _matrix(host: HinmMatrix, place: Place) -> _Uploaded:
    arrays = host.values, host.metadata, host.columns, host.row_map
    return _Uploaded(*(place.put(array) for array in arrays))


def _product(
    name: str, host: HinmMatrix, n: int, place: Place, make: Callable[[Any, Any, Any], Launch]
) -> Small:
    rng = np.random.default_rng(n)
    bits = to_bits(rng.standard_normal((host.shape[1], n)), host.dtype)
    y = place.put(np.full((host.shape[0], n), _NAN, np.uint16))
    sample = Sample.of(host, bits)

    def wrong() -> str | None:
        got = place.get(y)[sample.rows][:, sample.columns]
        excess = sample.excess(np.ascontiguousarray(got), host.dtype)
        return None if excess <= 0 else f"off by {excess:.3g} more than rounding"

    return Small(f"{name}, N = {n}", make(_matrix(host, place), place.put(bits), y), wrong)


def _hosts() -> Iterator[tuple[str, HinmMatrix, slice]]:
    """Name, matrix, and which of a kernel's numbers of columns it is multiplied with."""
    yield "tvw", make_matrix(Structure("tvw", 200, 512, 64, 0.5)), slice(0, 2)
    yield "vector", make_matrix(Structure("vector", 96, 256, 32, 0.5, "float16")), slice(1, 2)


def _spmm(place: Place) -> Iterator[Small]:
    for name, host, some in _hosts():
        for n in (9, 64)[some]:
            yield _product(f"spmm of {name}", host, n, place, _spmm_of(host, n, place))


def _spmm_of(host: HinmMatrix, n: int, place: Place) -> Callable[[Any, Any, Any], Launch]:
    chosen = blocking(host.tile_size, n, sparse=host.sparse, shared_limit=_SHARED_BYTES)
    # More blocks than tiles: some are shared.
    schedule = balanced(host.tile_steps, n, chosen.block_n, 3 * host.tiles)

    def make(matrix: Any, x: Any, y: Any) -> Launch:
        return spmm_launch(
            matrix,
            x,
            y,
            blocking=chosen,
            bfloat16=host.dtype == "bfloat16",
            schedule=schedule,
            work_ptr=place.put(schedule.work_ptr),
            work_items=place.put(schedule.items),
            workspace=_array(place, schedule.slots * chosen.slot_values, np.float32),
            counters=_array(place, schedule.counters, np.uint32),
        )

    return make


def _decode(place: Place) -> Iterator[Small]:
    for name, host, some in _hosts():
        for n in (3, 16)[some]:
            yield _product(f"decode of {name}", host, n, place, _decode_of(host, n, place))


def _decode_of(host: HinmMatrix, n: int, place: Place) -> Callable[[Any, Any, Any], Launch]:
    plan = DecodePlan.of(host.index, sparse=host.sparse, multiprocessors=16, n=n, part_steps=2)
    items = None if plan.work_items is None else place.put(plan.work_items)

    def make(matrix: Any, x: Any, y: Any) -> Launch:
        return decode_launch(
            matrix,
            x,
            y,
            plan=plan,
            bfloat16=host.dtype == "bfloat16",
            work_items=items,
            workspace=_array(place, plan.workspace_values, np.float32),
            counters=_array(place, plan.counters, np.uint32),
        )

    return make


def _window(place: Place) -> Iterator[Small]:
    for name, host, some in _hosts():
        chosen = window_blocking(
            host.tile_size, host.shape[1], sparse=host.sparse, shared_limit=_SHARED_BYTES
        )
        # As small a window as can be: columns are dropped and brought in again.
        chosen = replace(chosen, slots=2 * STEP)
        plan = window_plan(host, chosen)
        given = reordered(host, plan.order)
        for n in (9, 72)[some]:
            make = partial(
                window_launch,
                blocking=chosen,
                tables=plan.tables.moved(place.put),
                bfloat16=host.dtype == "bfloat16",
            )
            yield _product(f"window of {name}", given, n, place, make)


def _array(place: Place, count: int, dtype: type[np.generic]) -> Any:
    return place.put(np.zeros(count, dtype)) if count else None


def _equal(place: Place, array: Any, expected: NDArray[Any]) -> Callable[[], str | None]:
    def wrong() -> str | None:
        differ = np.count_nonzero(place.get(array) != expected)
        return f"{differ} of {expected.size} entries differ" if differ else None

    return wrong


def _transpose(place: Place) -> Iterator[Small]:
    rng = np.random.default_rng(0)
    for count, channels in ((65, 130), (72, 128)):
        tokens = rng.integers(0, 1 << 16, (count, channels)).astype(np.uint16)
        positions = rng.permutation(channels).astype(np.uint16)
        features = place.put(np.zeros((channels, count), np.uint16))
        expected = np.zeros((channels, count), np.uint16)
        expected[positions] = tokens.T
        yield Small(
            f"to features, {count} x {channels}",
            to_features(place.put(tokens), features, place.put(positions)),
            _equal(place, features, expected),
        )
        back = place.put(np.zeros((count, channels), np.uint16))
        yield Small(
            f"to tokens, {count} x {channels}",
            to_tokens(place.put(expected), back, place.put(positions)),
            _equal(place, back, tokens),
        )


def _permute(place: Place) -> Iterator[Small]:
    rng = np.random.default_rng(0)
    count, channels = 19, 200
    tokens = to_bits(rng.standard_normal((count, channels)), "bfloat16")
    weight = to_bits(rng.standard_normal(channels), "bfloat16")
    order = rng.permutation(channels).astype(np.uint16)
    out = place.put(np.zeros((count, channels), np.uint16))
    given, placed_order, scale = map(place.put, (tokens, order, weight))
    yield Small("permute", permute(given, placed_order, out), _equal(place, out, tokens[:, order]))
    expected = _normalised(tokens, weight)[:, order]
    normal = {"epsilon": 1e-5, "dtype": "bfloat16", "order": placed_order}
    written = place.put(np.zeros((count, channels), np.uint16))
    launch = rms_norm(given, scale, written, **normal)
    yield Small("rms_norm", launch, _near(place, written, expected))
    features = place.put(np.zeros((channels, count), np.uint16))
    launch = rms_norm_to_features(given, scale, features, **normal)
    yield Small("rms_norm to features", launch, _near(place, features, expected.T))


def _normalised(tokens: NDArray[np.uint16], weight: NDArray[np.uint16]) -> NDArray[np.float64]:
    x = from_bits(tokens, "bfloat16").astype(np.float64)
    by = 1 / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-5)
    return x * by * from_bits(weight, "bfloat16")


def _near(place: Place, array: Any, expected: NDArray[np.float64]) -> Callable[[], str | None]:
    def wrong() -> str | None:
        error = np.abs(from_bits(place.get(array), "bfloat16") - expected)
        # Rounded twice, by half an ulp each.
        excess = float((error - 2.1 * 2.0**-8 * np.abs(expected)).max())
        return None if excess <= 0 else f"off by {excess:.3g} more than rounding"

    return wrong


def _fusion(place: Place) -> Iterator[Small]:
    rng = np.random.default_rng(0)
    order = rng.permutation(np.concatenate([np.arange(300), np.full(20, -1)])).astype(np.int32)
    position_of = np.zeros(300, np.uint16)
    position_of[order[order >= 0]] = np.flatnonzero(order >= 0)
    written = place.put(np.zeros(300, np.uint16))
    launch = invert(place.put(order), written)
    yield Small("invert", launch, _equal(place, written, position_of))
    columns = rng.integers(0, 300, 1000).astype(np.uint16)
    fused = place.put(np.zeros(1000, np.uint16))
    launch = fuse_columns(place.put(columns), place.put(position_of), fused, len(order))
    yield Small("fuse", launch, _equal(place, fused, position_of[columns]))


#: By name: a group of kernels that are run together.
KERNELS: dict[str, Callable[[Place], Iterator[Small]]] = {
    "spmm": _spmm,
    "decode": _decode,
    "window": _window,
    "transpose": _transpose,
    "permute": _permute,
    "fusion": _fusion,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the launches of the kernels that are named; the exit code is 0, or 1 if one is wrong."""
    names = sys.argv[1:] if argv is None else list(argv)
    unknown = sorted(set(names) - set(KERNELS))
    if unknown or not names:
        print(f"spmm_small: error: name some of {', '.join(KERNELS)}, got {names}", file=sys.stderr)
        return 2
    import cupy

    from gyroperm.gpu.device import run

    cupy.cuda.set_allocator(None)
    place = Place(cupy.asarray, cupy.asnumpy)
    found = []
    for name in names:
        for small in launches(name, place):
            run(small.launch)
            cupy.cuda.runtime.deviceSynchronize()
            wrong = small.wrong()
            print(f"{small.name}: {wrong or 'as it should be'}", flush=True)
            found += [wrong] if wrong else []
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
