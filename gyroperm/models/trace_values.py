"""Traced values: which positions of a tensor follow which ids, and what operations do to that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from gyroperm.models.trace_ledger import Ids, Ledger

# More positions between operations than this are not followed.
_MOST = 2**22


@dataclass(frozen=True, eq=False)
class Factor:
    """Ids of the positions along some dimensions of a value.

    Attributes
    ----------
    dims : tuple of int
        Ascending. One for plain channels; several where the order moves positions across them
        together, such as heads and their dimensions.
    ids : ndarray of int64
        One axis for each of ``dims``.
    """

    dims: tuple[int, ...]
    ids: Ids


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor between two operations.

    Attributes
    ----------
    shape : tuple of int
    factors : tuple of Factor
        Over disjoint dimensions. Positions along all others stay where they are.
    uniform : bool
        All its elements are equal, so that it tells no positions apart.
    why : str
        Why some of its dimensions stay; for messages.
    parameter : str
        The parameter or buffer that it is, unchanged; empty for a computed one.
    """

    shape: tuple[int, ...]
    factors: tuple[Factor, ...] = ()
    uniform: bool = False
    why: str = ""
    parameter: str = ""

    def at(self, dim: int) -> Factor | None:
        """The factor that runs over a dimension."""
        return next((f for f in self.factors if dim in f.dims), None)

    def without(self, dims: Iterable[int]) -> tuple[Factor, ...]:
        """The factors that touch none of these dimensions."""
        gone = set(dims)
        return tuple(f for f in self.factors if not gone & set(f.dims))

    def stays(self, dim: int) -> bool:
        """Whether positions along the dimension differ and cannot move."""
        return not self.uniform and self.shape[dim] > 1 and self.at(dim) is None


class Follower:
    """What operations do to values, written into a ledger.

    Attributes
    ----------
    ledger : Ledger
    where : str
        The operation and module at hand, for reasons.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.where = ""

    # --- giving up

    def pinned(self, value: Value, factors: Iterable[Factor], why: str) -> Value:
        """The value without some factors, whose ids stay from now on."""
        gone = list(factors)
        for factor in gone:
            self.ledger.pin(factor.ids, why)
        return replace(
            value,
            factors=tuple(f for f in value.factors if f not in gone),
            why=value.why or why,
            parameter="",
        )

    def only(self, value: Value, dims: Iterable[int], why: str = "") -> Value:
        """The value with single factors over these dimensions and none over others."""
        kept = set(dims)
        for dim in kept:
            value = self.alone(value, dim)
        others = [f for f in value.factors if not set(f.dims) <= kept]
        return self.pinned(value, others, why or f"not followed through {self.where}")

    def alone(self, value: Value, dim: int) -> Value:
        """The value with a factor of its own for a dimension whose positions move as blocks.

        Where ids run over this and other dimensions together, all that lie at one position of
        this one become one, and move as they lie.
        """
        factor = value.at(dim)
        if factor is None or len(factor.dims) == 1:
            return value
        ids = np.moveaxis(factor.ids, factor.dims.index(dim), 0).reshape(value.shape[dim], -1)
        whole = self.ledger.between(len(ids))
        tags = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        self.ledger.enter(
            [ids.ravel(), np.repeat(whole, ids.shape[1])],
            tags.ravel(),
            f"moves as one block in {self.where}",
        )
        rest = tuple(f for f in value.factors if f is not factor)
        return replace(value, factors=(*rest, Factor((dim,), whole)), parameter="")

    # --- meeting

    def meet(self, values: Sequence[Value], shape: Sequence[int] | None = None) -> Value:
        """What an operation on broadcast values, element by element, gives."""
        size = tuple(shape) if shape is not None else _broadcast([v.shape for v in values])
        lifted = [_lifted(v, len(size)) for v in values if not v.uniform]
        if not lifted:
            return Value(size, uniform=all(v.uniform for v in values) and bool(values))
        factors, why = [], ""
        for dims in _components(lifted):
            factor, reason = self._met(lifted, dims, size)
            factors += [] if factor is None else [factor]
            why = why or reason
        return Value(size, tuple(factors), why=why or next((v.why for v in lifted if v.why), ""))

    def _met(
        self, values: Sequence[Value], dims: tuple[int, ...], size: tuple[int, ...]
    ) -> tuple[Factor | None, str]:
        """The factor over linked dimensions where values meet, and what keeps some in place."""
        cover = next((f for v in values for f in v.factors if f.dims == dims), None)
        parts: list[tuple[Value, list[Factor]]] = []
        for value in values:
            own = [f for f in value.factors if set(f.dims) <= set(dims)]
            own.sort(key=lambda f: f.dims[-1])
            # Of several only the innermost can move with the others.
            moving = [f for f in own[-1:] if cover is not None and self._fits(cover, f)]
            for factor in own:
                if factor not in moving:
                    self.ledger.pin(factor.ids, f"one of several blocks in {self.where}")
            parts.append((value, moving))
        if cover is None:
            return None, ""
        grid = tuple(size[d] for d in dims)
        columns = []
        staying: set[int] = set()
        why = ""
        for value, own in parts:
            covered = {d for factor in own for d in factor.dims}
            still = {d for d in dims if value.shape[d] > 1 and d not in covered}
            why = why or (value.why if still else "")
            staying |= still
            columns += [np.broadcast_to(_spread(f, dims), grid).ravel() for f in own]
        if len(columns) > 1 or staying:
            tags = _coordinates(grid, [dims.index(d) for d in sorted(staying)])
            reason = f"meets {why or 'values that stay'} in {self.where}"
            self.ledger.enter(columns, tags.ravel(), reason)
        return None if staying == set(dims) else cover, why

    def _fits(self, cover: Factor, factor: Factor) -> bool:
        """Whether a factor over some of the dimensions may decide where all of them go.

        One over the heads alone would take each head as a whole; the head's own dimensions may
        move only if it stays. Pixels of one channel go together anyway.
        """
        if factor.dims[-1] == cover.dims[-1]:
            return True
        inner = tuple(k for k, d in enumerate(cover.dims) if d not in factor.dims)
        origin = self.ledger.origin(cover.ids)
        return bool((origin.max(axis=inner) == origin.min(axis=inner)).all())

    def reduced(self, value: Value, dims: Iterable[int]) -> tuple[Factor, ...]:
        """The factors that are left when some dimensions are summed over, in whatever order."""
        gone = set(dims)
        left = []
        for factor in value.factors:
            if not gone & set(factor.dims):
                left.append(factor)
                continue
            outer = [k for k, d in enumerate(factor.dims) if d not in gone]
            tags = _coordinates(factor.ids.shape, outer)
            reason = f"keeps to its block in {self.where}" if outer else ""
            self.ledger.enter([factor.ids.ravel()], tags.ravel(), reason)
        return tuple(left)

    def contracted(self, values: Sequence[Value], labels: Sequence[str], out: str) -> Value:
        """A sum of products, as ``einsum`` writes it: each dimension has a letter."""
        letters = list(dict.fromkeys(out + "".join(labels)))
        size = [1] * len(letters)
        spread = []
        for value, own in zip(values, labels, strict=True):
            for dim, letter in enumerate(own):
                size[letters.index(letter)] = max(size[letters.index(letter)], value.shape[dim])
            spread.append(_relabelled(value, own, letters))
        product = self.meet(spread, size)
        kept = self.reduced(product, range(len(out), len(letters)))
        return Value(tuple(size[: len(out)]), kept, why=product.why)

    # --- structure

    def reshaped(self, value: Value, shape: Sequence[int]) -> Value:
        """The value seen with other dimensions."""
        size = tuple(shape)
        done = replace(value, shape=size, factors=(), parameter="")
        if not value.factors:
            return done
        if 0 in size:
            return replace(self.pinned(value, value.factors, f"empty in {self.where}"), shape=size)
        groups = _groups(value.shape, size)
        for group, _ in groups:
            inside = [f for f in value.factors if set(f.dims) & set(group)]
            if len(inside) > 1:
                inside.sort(key=lambda f: f.dims[-1])
                value = self.pinned(value, inside[:-1], f"moves with others in {self.where}")
        factors = []
        for factor in value.factors:
            mine = [(g, o) for g, o in groups if set(g) & set(factor.dims)]
            before = [d for g, _ in mine for d in g]
            after = tuple(d for _, o in mine for d in o)
            ids = self._mingled(value, factor, tuple(before))
            if ids is None:
                self.ledger.pin(factor.ids, f"too many positions in {self.where}")
                continue
            factors.append(Factor(after, ids.reshape([size[d] for d in after])))
        return replace(done, factors=tuple(factors), why=value.why)

    def _mingled(self, value: Value, factor: Factor, dims: tuple[int, ...]) -> Ids | None:
        """Ids over more dimensions than the factor has: each place along the others its own."""
        others = [k for k, d in enumerate(dims) if d not in factor.dims]
        if not others:
            return factor.ids
        grid = tuple(value.shape[d] for d in dims)
        if math.prod(grid) > _MOST:
            return None
        ids = np.broadcast_to(_spread(factor, dims), grid).ravel()
        fresh = self.ledger.between(math.prod(grid), ids)
        tags = _coordinates(grid, others)
        self.ledger.enter([ids, fresh], tags.ravel(), f"moves as one block in {self.where}")
        return fresh.reshape(grid)

    def arranged(self, value: Value, order: Sequence[int | None]) -> Value:
        """Dimensions in another order; None is a new one of size 1, one left out has size 1."""
        shape = tuple(1 if d is None else value.shape[d] for d in order)
        factors = []
        for factor in value.factors:
            places = [order.index(d) for d in factor.dims]
            by = np.argsort(places)
            ids = factor.ids.transpose(by)
            factors.append(Factor(tuple(places[k] for k in by), ids))
        return replace(value, shape=shape, factors=tuple(factors), parameter="")

    def taken(self, value: Value, dim: int, index: Ids | int) -> Value:
        """Some positions of a dimension, or one of them without the dimension."""
        factor = value.at(dim)
        factors = [f for f in value.factors if f is not factor]
        single = isinstance(index, int)
        if factor is not None:
            k = factor.dims.index(dim)
            ids = np.take(factor.ids, index, axis=k)
            if not single:
                factors.append(Factor(factor.dims, ids))
            elif ids.ndim:
                factors.append(Factor(tuple(d for d in factor.dims if d != dim), ids))
            else:
                self.ledger.pin(ids, f"taken out by {self.where}")
        if not single:
            shape = (*value.shape[:dim], len(np.atleast_1d(index)), *value.shape[dim + 1 :])
            return replace(value, shape=shape, factors=tuple(factors), parameter="")
        shape = value.shape[:dim] + value.shape[dim + 1 :]
        moved = tuple(Factor(tuple(d - (d > dim) for d in f.dims), f.ids) for f in factors)
        return replace(value, shape=shape, factors=moved, parameter="")

    def joined(self, values: Sequence[Value], dim: int) -> Value:
        """Values one after the other along a dimension."""
        size = list(values[0].shape)
        size[dim] = sum(v.shape[dim] for v in values)
        why = next((v.why for v in values if v.why), "")
        alike = {f.dims for v in values if (f := v.at(dim)) is not None}
        if not alike:
            met = self.meet([_narrowed(v, (dim,)) for v in values])
            return Value(tuple(size), met.factors, why=why)
        if len(alike) > 1:
            values = [self.alone(v, dim) for v in values]
            alike = {(dim,)}
        (dims,) = alike
        pieces, rest = [], []
        for value in values:
            pieces.append(self._piece(value, dim, dims))
            inside = [f for f in value.factors if set(f.dims) & set(dims) and f.dims != dims]
            rest.append(_narrowed(self.pinned(value, inside, f"fixed by {self.where}"), dims))
        along = Factor(dims, np.concatenate(pieces, axis=dims.index(dim)))
        others = self.meet([replace(v, factors=v.without(dims)) for v in rest])
        return Value(tuple(size), (*others.factors, along), why=why)

    def _piece(self, value: Value, dim: int, dims: tuple[int, ...]) -> Ids:
        """The ids of a value along ``dims``; what stays there is given ids that stay."""
        factor = value.at(dim)
        if factor is not None:
            return factor.ids
        grid = tuple(value.shape[d] for d in dims)
        fresh = self.ledger.between(math.prod(grid))
        self.ledger.pin(fresh, f"beside {value.why or 'values that stay'} in {self.where}")
        return fresh.reshape(grid)


# --- helpers on shapes


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(np.broadcast_shapes(*shapes))


def _lifted(value: Value, rank: int) -> Value:
    """With leading dimensions of size 1, as broadcasting adds them."""
    more = rank - len(value.shape)
    factors = tuple(Factor(tuple(d + more for d in f.dims), f.ids) for f in value.factors)
    return replace(value, shape=(1,) * more + value.shape, factors=factors)


def _narrowed(value: Value, dims: Iterable[int]) -> Value:
    """Of size 1 along some dimensions; their factors are the caller's business."""
    shape = tuple(1 if d in set(dims) else s for d, s in enumerate(value.shape))
    return replace(value, shape=shape)


def _relabelled(value: Value, own: str, letters: Sequence[str]) -> Value:
    """The value in the space of all letters, of size 1 along those that it lacks."""
    shape = [1] * len(letters)
    for dim, letter in enumerate(own):
        shape[letters.index(letter)] = value.shape[dim]
    factors = []
    for factor in value.factors:
        places = [letters.index(own[d]) for d in factor.dims]
        by = np.argsort(places)
        factors.append(Factor(tuple(places[k] for k in by), factor.ids.transpose(by)))
    return replace(value, shape=tuple(shape), factors=tuple(factors))


def _components(values: Sequence[Value]) -> list[tuple[int, ...]]:
    """Dimensions that any factor links, ascending, in the order of their first."""
    sets = [set(f.dims) for v in values for f in v.factors]
    merged = True
    while merged:
        merged = False
        for a, b in combinations(range(len(sets)), 2):
            if sets[a] & sets[b]:
                sets[a] |= sets.pop(b)
                merged = True
                break
    return sorted(tuple(sorted(one)) for one in sets)


def _spread(factor: Factor, dims: tuple[int, ...]) -> Ids:
    """The ids with an axis for each of ``dims``, of size 1 where the factor does not run."""
    shape = [1] * len(dims)
    for k, d in enumerate(factor.dims):
        shape[dims.index(d)] = factor.ids.shape[k]
    return factor.ids.reshape(shape)


def _coordinates(grid: Sequence[int], axes: Sequence[int]) -> Ids:
    """For each place of a grid its number along some of the axes; 0 without any."""
    tags = np.zeros(tuple(grid), np.int64)
    for k in axes:
        shape = [1] * len(grid)
        shape[k] = grid[k]
        tags = tags * grid[k] + np.arange(grid[k]).reshape(shape)
    return tags


def _groups(
    before: tuple[int, ...], after: tuple[int, ...]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Runs of dimensions, larger than 1, that a reshape turns into one another."""
    old = [d for d, s in enumerate(before) if s > 1]
    new = [d for d, s in enumerate(after) if s > 1]
    groups = []
    i = j = 0
    while i < len(old):
        left, right = [old[i]], [new[j]]
        i, j = i + 1, j + 1
        a, b = before[left[0]], after[right[0]]
        while a != b:
            if a < b:
                left.append(old[i])
                a *= before[old[i]]
                i += 1
            else:
                right.append(new[j])
                b *= after[new[j]]
                j += 1
        groups.append((tuple(left), tuple(right)))
    return groups
