"""Slow, obvious answers to compare the package with.

Everything here is written from the definitions alone, with loops, sorting and complete
enumeration, and imports nothing from gyroperm. Virtual rows and columns are -1. Each pattern has
an optimum, an identity and a check of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from itertools import combinations, permutations

import numpy as np

# ---------------------------------------------------------------- building blocks


def ceil_to(count: int, unit: int) -> int:
    """``count`` rounded up to a multiple of ``unit``."""
    while count % unit:
        count += 1
    return count


def kept_vectors(columns: int, m: int, vec_ratio: float) -> int:
    """K of a tile, in exact arithmetic, for a ratio of small integers."""
    kept = (1 - Fraction(vec_ratio).limit_denominator(1000)) * ceil_to(columns, m)
    return m * math.floor(kept / m)


def ragged_budget(rows: int, V: int, columns: int, m: int, vec_ratio: float) -> int:
    """The groups that all tiles of TVW share: what full tiles would keep, by the row."""
    per_tile = kept_vectors(columns, m, vec_ratio) // m
    return math.floor(Fraction(per_tile * rows, min(V, rows)))


def partitions(items: Sequence[int], size: int) -> Iterator[list[tuple[int, ...]]]:
    """Every way to split items into unordered groups of ``size``."""
    if not items:
        yield []
        return
    first, rest = items[0], list(items[1:])
    for others in combinations(rest, size - 1):
        left = [item for item in rest if item not in others]
        for tail in partitions(left, size):
            yield [(first, *others), *tail]


def splits(total: int, parts: int, most: int) -> Iterator[tuple[int, ...]]:
    """Every way to write ``total`` as an ordered sum of ``parts`` numbers from 0 to ``most``."""
    if parts == 0:
        if total == 0:
            yield ()
        return
    for first in range(min(total, most) + 1):
        for rest in splits(total - first, parts - 1, most):
            yield (first, *rest)


def numbered(count: int, unit: int) -> list[int]:
    """0 .. count-1, then distinct negative numbers for what is virtual."""
    return list(range(count)) + [-1 - i for i in range(ceil_to(count, unit) - count)]


def entry(S: np.ndarray, r: int, c: int) -> float:
    """The saliency of an entry; virtual ones have none."""
    return float(S[r, c]) if r >= 0 and c >= 0 else 0.0


def group_value(S: np.ndarray, rows: Sequence[int], group: Sequence[int], n: int) -> float:
    """What a group of columns keeps in some rows: the n largest of each."""
    total = 0.0
    for r in rows:
        total += sum(sorted((entry(S, r, c) for c in group), reverse=True)[:n])
    return total


def column_sum(S: np.ndarray, rows: Sequence[int], c: int) -> float:
    """The summed saliency of a column vector of a tile."""
    return math.fsum(entry(S, r, c) for r in rows)


def best_columns(S: np.ndarray, rows: Sequence[int], columns: Sequence[int], k: int) -> list[int]:
    """The k columns of the largest sums, in their own order; ties keep the earlier."""
    places = sorted(range(len(columns)), key=lambda i: (-column_sum(S, rows, columns[i]), i))[:k]
    return [columns[i] for i in sorted(places)]


def tiles_as_they_lie(rows: Sequence[int], V: int) -> list[list[int]]:
    """Consecutive rows in tiles of V, the last filled up with -1."""
    tiles = [list(rows[i : i + V]) for i in range(0, len(rows), V)]
    return [tile + [-1] * (V - len(tile)) for tile in tiles]


def chunks(columns: Sequence[int], m: int, count: int) -> list[list[int]]:
    """Columns filled up with -1 to ``count``, in groups of m as they lie."""
    filled = list(columns) + [-1] * (count - len(columns))
    return [filled[i : i + m] for i in range(0, count, m)]


def surviving_rows(S: np.ndarray, row_ratio: float) -> list[int]:
    """The rows that a threshold on their sums leaves, ascending; ties keep the earlier."""
    R = len(S)
    pruned = math.floor(Fraction(row_ratio).limit_denominator(1000) * R)
    ranked = sorted(range(R), key=lambda r: (-math.fsum(float(x) for x in S[r]), r))
    return sorted(ranked[: max(1, R - pruned)])


# ---------------------------------------------------------------- the best mask of an arrangement


def best_mask(
    S: np.ndarray,
    tile_rows: Sequence[Sequence[int]],
    groups: Sequence[Sequence[Sequence[int]]],
    n: int,
) -> np.ndarray:
    """The mask that keeps the n largest of every group in every row."""
    mask = np.zeros(S.shape, dtype=bool)
    for rows, tile in zip(tile_rows, groups, strict=True):
        for r in rows:
            for group in tile:
                real = [c for c in group if c >= 0]
                if r >= 0:
                    for c in sorted(real, key=lambda c: -S[r, c])[:n]:
                        mask[r, c] = True
    return mask


def masked_sum(S: np.ndarray, mask: np.ndarray) -> float:
    """The saliency that a mask keeps, summed exactly."""
    total = []
    for r in range(S.shape[0]):
        for c in range(S.shape[1]):
            if mask[r, c]:
                total.append(float(S[r, c]))
    return math.fsum(total)


def unstructured_by_row(S: np.ndarray, kept: Sequence[int]) -> float:
    """The largest sum with ``kept[r]`` entries of each row."""
    return math.fsum(
        x for r in range(len(S)) for x in sorted(map(float, S[r]), reverse=True)[: kept[r]]
    )


def unstructured_by_layer(S: np.ndarray, kept: int) -> float:
    """The largest sum with ``kept`` entries of the whole layer."""
    return math.fsum(sorted(map(float, S.reshape(-1)), reverse=True)[:kept])


# ---------------------------------------------------------------- the optimum, by enumeration


def optimum_nm(S: np.ndarray, n: int, m: int) -> float:
    """Plain N:M: every partition of the columns into groups of m."""
    R, C = S.shape

    @cache
    def value(group: tuple[int, ...]) -> float:
        return group_value(S, range(R), group, n)

    return max(sum(map(value, groups)) for groups in partitions(numbered(C, m), m))


def optimum_hinm(S: np.ndarray, n: int, m: int, V: int, vec_ratio: float) -> float:
    """HiNM: every tiling of the rows; in each tile every choice of K columns, every grouping."""
    R, C = S.shape
    K = kept_vectors(C, m, vec_ratio)

    @cache
    def tile_value(rows: tuple[int, ...]) -> float:
        best = 0.0
        for chosen in combinations(range(C), min(K, C)):
            filled = list(chosen) + [-1 - i for i in range(K - len(chosen))]
            for groups in partitions(filled, m):
                best = max(best, sum(group_value(S, rows, g, n) for g in groups))
        return best

    return max(sum(map(tile_value, tiling)) for tiling in partitions(numbered(R, V), V))


def optimum_vnm(S: np.ndarray, n: int, V: int, M: int, m: int = 4) -> float:
    """V:N:M: every set of windows shared by all tiles, every tiling, m of each window."""
    R, C = S.shape

    @cache
    def window_value(rows: tuple[int, ...], window: tuple[int, ...]) -> float:
        return max(group_value(S, rows, group, n) for group in combinations(window, m))

    best = 0.0
    for windows in partitions(numbered(C, M), M):
        for tiling in partitions(numbered(R, V), V):
            best = max(best, sum(window_value(t, w) for t in tiling for w in windows))
    return best


def optimum_vector_nm(S: np.ndarray, N: int, M: int, V: int) -> float:
    """Vector N:M: every set of shared windows, every tiling, the N best whole vectors of each."""
    R, C = S.shape

    @cache
    def window_value(rows: tuple[int, ...], window: tuple[int, ...]) -> float:
        return max(
            sum(column_sum(S, rows, c) for c in vectors) for vectors in combinations(window, N)
        )

    best = 0.0
    for tiling in partitions(numbered(R, V), V):
        for windows in partitions(numbered(C, M), M):
            best = max(best, sum(window_value(t, w) for t in tiling for w in windows))
    return best


def optimum_tvw(
    S: np.ndarray, n: int, m: int, V: int, vec_ratio: float, row_ratio: float = 0.0
) -> float:
    """TVW: the rows that survive, every tiling of them, every spread of the groups over tiles."""
    C = S.shape[1]
    alive = surviving_rows(S, row_ratio)
    most = ceil_to(C, m) // m
    budget = ragged_budget(len(alive), V, C, m, vec_ratio)

    @cache
    def tile_value(rows: tuple[int, ...], group_count: int) -> float:
        K = group_count * m
        best = 0.0
        for chosen in combinations(range(C), min(K, C)):
            filled = list(chosen) + [-1 - i for i in range(K - len(chosen))]
            for groups in partitions(filled, m):
                best = max(best, sum(group_value(S, rows, g, n) for g in groups))
        return best

    best = 0.0
    places = numbered(len(alive), V)
    for tiling in partitions(places, V):
        tiles = [tuple(alive[p] if p >= 0 else -1 for p in tile) for tile in tiling]
        for split in splits(budget, len(tiles), most):
            best = max(best, sum(map(tile_value, tiles, split)))
    return best


# ---------------------------------------------------------------- without permutation


def identity_nm(S: np.ndarray, n: int, m: int) -> float:
    """Plain N:M of the matrix as it lies."""
    R, C = S.shape
    groups = chunks(range(C), m, ceil_to(C, m))
    return masked_sum(S, best_mask(S, [range(R)], [groups], n))


def identity_hinm(S: np.ndarray, n: int, m: int, V: int, vec_ratio: float) -> float:
    """HiNM without permutation: the K best column sums of each tile, ascending."""
    R, C = S.shape
    K = kept_vectors(C, m, vec_ratio)
    tiles = tiles_as_they_lie(range(R), V)
    groups = [chunks(best_columns(S, rows, range(C), min(K, C)), m, K) for rows in tiles]
    return masked_sum(S, best_mask(S, tiles, groups, n))


def identity_vnm(S: np.ndarray, n: int, V: int, M: int, m: int = 4) -> float:
    """V:N:M without permutation: the m best column sums of every M columns as they lie."""
    R, C = S.shape
    tiles = tiles_as_they_lie(range(R), V)
    groups = []
    for rows in tiles:
        tile = []
        for start in range(0, C, M):
            window = range(start, min(start + M, C))
            tile += chunks(best_columns(S, rows, window, m), m, m)
        groups.append(tile)
    return masked_sum(S, best_mask(S, tiles, groups, n))


def identity_vector_nm(S: np.ndarray, N: int, M: int, V: int) -> float:
    """Vector N:M without permutation: the sums of the N best whole vectors of every M."""
    R, C = S.shape
    kept = []
    for rows in tiles_as_they_lie(range(R), V):
        for start in range(0, C, M):
            sums = [column_sum(S, rows, c) for c in range(start, min(start + M, C))]
            kept += sorted(sums, reverse=True)[:N]
    return math.fsum(kept)


def identity_tvw(
    S: np.ndarray, n: int, m: int, V: int, vec_ratio: float, row_ratio: float = 0.0
) -> float:
    """TVW without permutation: the spread of groups of vectors with the largest summed vectors.

    Where several spreads are equally good in that sum, the answer is not defined: use matrices
    without such ties.
    """
    C = S.shape[1]
    alive = surviving_rows(S, row_ratio)
    tiles = tiles_as_they_lie(alive, V)
    most = ceil_to(C, m) // m
    total = ragged_budget(len(alive), V, C, m, vec_ratio)

    def vector_value(split: Sequence[int]) -> float:
        value = 0.0
        for rows, count in zip(tiles, split, strict=True):
            sums = sorted((column_sum(S, rows, c) for c in range(C)), reverse=True)
            value += sum(sums[: count * m])
        return value

    split = max(splits(total, len(tiles), most), key=vector_value)
    groups = [
        chunks(best_columns(S, rows, range(C), min(k * m, C)), m, k * m)
        for rows, k in zip(tiles, split, strict=True)
    ]
    return masked_sum(S, best_mask(S, tiles, groups, n))


# ---------------------------------------------------------------- is this of the pattern at all?


def _require(truth: object, complaint: str) -> None:
    if not truth:
        raise AssertionError(complaint)


def _require_tiling(tile_rows: Sequence[Sequence[int]], rows: Sequence[int], V: int) -> None:
    tiles = [list(map(int, tile)) for tile in tile_rows]
    _require(all(len(tile) == V for tile in tiles), f"every tile must have {V} rows")
    _require(len(tiles) * V == ceil_to(len(rows), V), "no tile may be all virtual")
    packed = sorted(r for tile in tiles for r in tile if r >= 0)
    _require(packed == sorted(rows), "the tiles are no bijection of the rows")


def _require_kept(
    mask: np.ndarray,
    tile_rows: Sequence[Sequence[int]],
    groups: Sequence[Sequence[Sequence[int]]],
    n: int,
) -> None:
    """Exactly min(n, real columns) of every group in every row, and nothing elsewhere."""
    allowed = np.zeros(mask.shape, dtype=bool)
    for rows, tile in zip(tile_rows, groups, strict=True):
        for r in rows:
            for group in tile:
                real = [int(c) for c in group if c >= 0]
                if r >= 0:
                    count = sum(bool(mask[r, c]) for c in real)
                    _require(count == min(n, len(real)), f"row {r} keeps {count} of {real}")
                    allowed[r, real] = True
    _require(not (mask & ~allowed).any(), "the mask keeps entries outside the kept vectors")


def _require_tile_columns(tile: Sequence[Sequence[int]], m: int, C: int) -> None:
    _require(all(len(group) == m for group in tile), f"every group must have {m} slots")
    real = [int(c) for group in tile for c in group if c >= 0]
    _require(len(set(real)) == len(real), "a tile keeps a column twice")
    _require(all(c < C for c in real), "a tile keeps a column that does not exist")
    slots = m * len(tile)
    _require(len(real) == min(slots, C), f"{slots} slots hold {len(real)} real columns of {C}")


def _require_order(order: Sequence[int], C: int, unit: int) -> None:
    order = list(map(int, order))
    _require(len(order) == ceil_to(C, unit), "col_order has the wrong length")
    _require(sorted(c for c in order if c >= 0) == list(range(C)), "col_order is no bijection")


def check_nm(mask, tile_rows, groups, col_order, *, n, m) -> None:  # type: ignore[no-untyped-def]
    """Plain N:M: one order of all columns, cut into groups of m, the same for every row."""
    R, C = mask.shape
    _require(col_order is not None and len(groups) == 1, "plain N:M has one order and one tile")
    _require_tiling(tile_rows, range(R), R)
    _require_order(col_order, C, m)
    order = list(map(int, col_order))
    for g, group in enumerate(groups[0]):
        _require(
            sorted(map(int, group)) == sorted(order[g * m : g * m + m]),
            f"group {g} is not the columns of its place in col_order",
        )
    _require(len(groups[0]) * m == len(order), "not every group is there")
    _require_kept(mask, tile_rows, groups, n)


def check_hinm(mask, tile_rows, groups, *, n, m, V, vec_ratio) -> None:  # type: ignore[no-untyped-def]
    """HiNM: every tile keeps the same K columns' worth of groups, whichever columns."""
    R, C = mask.shape
    _require_tiling(tile_rows, range(R), V)
    for tile in groups:
        _require(len(tile) * m == kept_vectors(C, m, vec_ratio), "a tile keeps another K")
        _require_tile_columns(tile, m, C)
    _require_kept(mask, tile_rows, groups, n)


def check_vnm(mask, tile_rows, groups, col_order=None, *, n, V, M, m=4) -> None:  # type: ignore[no-untyped-def]
    """V:N:M: windows of M columns shared by all tiles, of each of which a tile keeps one group.

    Without ``col_order`` every set of windows is tried.
    """
    R, C = mask.shape
    _require_tiling(tile_rows, range(R), V)
    if col_order is None:
        candidates = partitions(numbered(C, M), M)
    else:
        _require_order(col_order, C, M)
        order = list(map(int, col_order))
        candidates = iter([[tuple(order[i : i + M]) for i in range(0, len(order), M)]])

    def fits(windows: list[tuple[int, ...]]) -> bool:
        for tile in groups:
            if len(tile) != len(windows):
                return False
            for window in windows:
                real = {c for c in window if c >= 0}
                inside = [g for g in tile if {int(c) for c in g if c >= 0} <= real]
                inside = [g for g in inside if any(c >= 0 for c in g)]
                if len(inside) != (1 if real else 0):
                    return False
                if inside and sum(c >= 0 for c in inside[0]) != min(m, len(real)):
                    return False
        return True

    _require(all(len(g) == m for tile in groups for g in tile), f"groups must have {m} slots")
    _require(any(map(fits, candidates)), "no shared windows of which every tile keeps one group")
    _require_kept(mask, tile_rows, groups, n)


def check_vector_nm(mask, tile_rows, col_order, *, N, M, V) -> None:  # type: ignore[no-untyped-def]
    """Vector N:M: every tile keeps N whole vectors of each of the shared windows, from the mask."""
    R, C = mask.shape
    _require_tiling(tile_rows, range(R), V)
    _require_order(col_order, C, M)
    order = list(map(int, col_order))
    for tile in tile_rows:
        rows = [int(r) for r in tile if r >= 0]
        for start in range(0, len(order), M):
            real = [c for c in order[start : start + M] if c >= 0]
            whole = sum(all(mask[r, c] for r in rows) for c in real)
            touched = sum(any(mask[r, c] for r in rows) for c in real)
            _require(whole == touched, "a vector is kept in part")
            _require(whole == min(N, len(real)), f"a window keeps {whole} vectors, not {N}")


def check_tvw(mask, tile_rows, groups, alive, *, n, m, V, vec_ratio) -> None:  # type: ignore[no-untyped-def]
    """TVW: ragged tiles of the rows in ``alive``, only the sum of their groups is fixed."""
    C = mask.shape[1]
    _require_tiling(tile_rows, alive, V)
    budget = ragged_budget(len(alive), V, C, m, vec_ratio)
    _require(sum(len(tile) for tile in groups) == budget, "the budget of groups is not met")
    for tile in groups:
        _require(len(tile) * m <= ceil_to(C, m), "a tile keeps more groups than there are")
        _require_tile_columns(tile, m, C)
    _require_kept(mask, tile_rows, groups, n)


# ---------------------------------------------------------------- published searches of plain N:M


def best_swap(S: np.ndarray, one: Sequence[int], other: Sequence[int], n: int) -> float:
    """The most that exchanging a column of one group with one of another adds; 0 if none does."""
    rows = range(len(S))
    now = group_value(S, rows, one, n) + group_value(S, rows, other, n)
    best = now
    for i in range(len(one)):
        for j in range(len(other)):
            first = [*one[:i], other[j], *one[i + 1 :]]
            second = [*other[:j], one[i], *other[j + 1 :]]
            best = max(best, group_value(S, rows, first, n) + group_value(S, rows, second, n))
    return best - now


def best_split(S: np.ndarray, groups: Sequence[Sequence[int]], n: int) -> float:
    """The most that dealing the columns of some groups anew adds, by every way to do so."""
    rows = range(len(S))
    m = len(groups[0])

    @cache
    def value(places: tuple[int, ...]) -> float:
        return group_value(S, rows, [columns[p] for p in places], n)

    columns = [c for group in groups for c in group]
    now = sum(group_value(S, rows, group, n) for group in groups)
    return max(sum(map(value, split)) for split in partitions(range(len(columns)), m)) - now


# ---------------------------------------------------------------- one step of a published method


def window_value(sums: Sequence[float], kept: int) -> float:
    """What a window keeps of the summed vectors in it: the largest."""
    return math.fsum(sorted(map(float, sums), reverse=True)[:kept])


def tiles_value(
    S: np.ndarray, tiles: Sequence[Sequence[int]], windows: Sequence[Sequence[int]], kept: int
) -> float:
    """What tiles keep at the vector level: the best ``kept`` sums of each window."""
    return math.fsum(
        window_value([column_sum(S, [r for r in rows if r >= 0], c) for c in window], kept)
        for rows in tiles
        for window in windows
    )


def best_exchange(
    sets: Sequence[Sequence[int]], place: int, value: Callable[[list[list[int]]], float]
) -> list[list[int]]:
    """The best way to put what is at one place of every set back at that place of some set."""

    def exchanged(order: Sequence[int]) -> list[list[int]]:
        result = [list(members) for members in sets]
        for members, source in zip(result, order, strict=True):
            members[place] = sets[source][place]
        return result

    return max((exchanged(order) for order in permutations(range(len(sets)))), key=value)


# ---------------------------------------------------------------- moves of windows, budget


def choice_without(
    S: np.ndarray,
    rows: Sequence[int],
    window: Sequence[int],
    choice: Sequence[int],
    place: int,
    n: int,
) -> list[int]:
    """The positions that rows keep of a window when the best discarded one stands in for one."""
    if place not in choice:
        return list(choice)
    rest = [k for k in choice if k != place]
    spare = [k for k in range(len(window)) if k not in choice]
    return max(
        ([*rest, k] for k in spare),
        key=lambda kept: group_value(S, rows, [window[k] for k in kept], n),
        default=rest,
    )


def window_gain(
    S: np.ndarray, rows: Sequence[int], kept: Sequence[int], column: int, n: int, m: int
) -> float:
    """What rows gain if a column may take the place of any one of m that are kept, or a gap."""
    value = group_value(S, rows, kept, n)
    if len(kept) < m:
        return group_value(S, rows, [*kept, column], n) - value
    others = [[c for c in kept if c != k] for k in kept]
    return max(0.0, *(group_value(S, rows, [*rest, column], n) - value for rest in others))


# ---------------------------------------------------------------- fragments of tensor cores


def stored_places(kept: Sequence[int]) -> list[int]:
    """The two of four places that a group stores: what it keeps, and else its last ones."""
    places = list(kept)
    for last in (3, 2):
        if len(places) < 2 and last not in places:
            places.append(last)
    return sorted(places)


def packed_sparse_tile(bits: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A tile as every lane of m16n8k32 with two of four reads it, from the manual's formulas.

    bits and mask (V, K), K a multiple of 64, V of 16. The values are (K / 64, 2, V / 16, 32, 8),
    the metadata (K / 64, V / 16, 32), of which selector 0 means the first 32 slots.
    """
    V, K = bits.shape
    values = np.zeros((K // 64, 2, V // 16, 32, 8), np.uint16)
    metadata = np.zeros((K // 64, V // 16, 32), np.uint32)

    def places(row: int, first: int) -> list[int]:
        return stored_places([p for p in range(4) if mask[row, first + p]])

    for step in range(K // 64):
        for block in range(V // 16):
            for lane in range(32):
                group_id, thread = lane // 4, lane % 4
                for half in range(2):
                    for i in range(8):
                        row = block * 16 + group_id + (8 if i in (2, 3, 6, 7) else 0)
                        # The four slots that elements i and i + 1 (i even) come from.
                        first = step * 64 + half * 32 + thread * 4 + (16 if i >= 4 else 0)
                        slot = first + places(row, first)[i % 2]
                        if mask[row, slot]:
                            values[step, half, block, lane, i] = bits[row, slot]
                word = 0
                for upper in range(2):
                    for group in range(4):
                        row = block * 16 + group_id + 8 * upper
                        # Threads 0 and 1 of four serve selector 0, threads 2 and 3 selector 1.
                        first = step * 64 + thread // 2 * 32 + thread % 2 * 16 + group * 4
                        for i, place in enumerate(places(row, first)):
                            word |= place << (upper * 16 + group * 4 + i * 2)
                metadata[step, block, lane] = word
    return values, metadata


def packed_dense_tile(bits: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A tile as every lane of m16n8k16 reads it, shape (K / 64, 4, V / 16, 32, 8)."""
    V, K = bits.shape
    values = np.zeros((K // 64, 4, V // 16, 32, 8), np.uint16)
    for step in range(K // 64):
        for part in range(4):
            for block in range(V // 16):
                for lane in range(32):
                    for i in range(8):
                        row = block * 16 + lane // 4 + (8 if i in (2, 3, 6, 7) else 0)
                        slot = lane % 4 * 2 + i % 2 + (8 if i >= 4 else 0)
                        slot += step * 64 + part * 16
                        if mask[row, slot]:
                            values[step, part, block, lane, i] = bits[row, slot]
    return values


# ---------------------------------------------------------------- output errors


def row_error(weights: np.ndarray, kept: Sequence[int], gram: np.ndarray) -> float:
    """``d H d`` of one row that keeps these columns and loses all others."""
    lost = [0.0 if c in kept else float(w) for c, w in enumerate(weights)]
    return sum(lost[i] * gram[i, j] * lost[j] for i in range(len(lost)) for j in range(len(lost)))


def least_output_error(weights: np.ndarray, gram: np.ndarray, n: int, m: int) -> float:
    """The least ``tr(D H D^T)`` of n:m over all groupings of the columns and all masks."""
    best = math.inf
    for groups in partitions(range(weights.shape[1]), m):
        best = min(best, least_error_in_groups(weights, gram, groups, n))
    return best


def least_error_in_groups(
    weights: np.ndarray, gram: np.ndarray, groups: Sequence[Sequence[int]], n: int
) -> float:
    """The least ``tr(D H D^T)`` of all masks that keep n of each group in each row."""
    masks: list[tuple[int, ...]] = [()]
    for group in groups:
        masks = [mask + chosen for mask in masks for chosen in combinations(group, n)]
    return sum(min(row_error(row, mask, gram) for mask in masks) for row in weights)
