"""Which columns lie in a block's window of shared memory, and when each tile works off what.

Several tiles share a window of slots, each of which holds one row of X. Phases follow each other:
a phase brings columns in, then every tile may work off one step of 64 of its slots, all of whose
columns are there. The order in which a tile takes its units (groups of four columns where two of
four are kept inside, else single columns) is free, and is chosen here together with what leaves
the window, so that little is brought in twice.
"""

from __future__ import annotations

from collections import namedtuple

import numpy as np

from gyroperm.solvers.kernels.jit import kernel

# A slot's class is the group of banks that its chunks begin in; eight rows of eight classes are
# read together without conflict.
_CLASSES = 8
# What a second column of a class costs: in the group that has the column brought in, in the group
# that is read with it, in groups that are read later, in the rest of an open step.
_OWN, _BESIDE, _LATER, _NEAR = 32, 16, 8, 1
_TAKEN = 1 << 30

_State = namedtuple(
    "_State",
    [
        "units",  # (units, width): columns, -1 for none
        "unit_of",  # (columns, tiles): the unit that holds a column, or -1
        "cost",  # (units,): of taking a unit next; _TAKEN once it is taken
        "missing",  # (units,): its columns that are not in the window
        "uses",  # (columns,): units that have yet to take it
        "slot_of",  # (columns,): its slot, or -1
        "column_in",  # (slots,): the column in a slot, or -1
        "pinned",  # (slots,): units of open steps that need it
        "busy",  # (slots,): the last phase in which it is read or under way
        "open_units",  # (tiles, units of a step): taken, not yet worked off
        "open_count",  # (tiles,)
        "open_classes",  # (tiles, classes): columns of the open step
    ],
)


@kernel
def _share(resident, uses):  # type: ignore[no-untyped-def]
    """What a column adds to the cost of a unit, in tenths of a load.

    A last use frees a slot; a column that only this unit needs takes none for long.
    """
    if resident:
        return -10 if uses == 1 else (-2 if uses == 2 else 0)
    return 5 if uses == 1 else 10


@kernel
def _add_share(state, column, sign):  # type: ignore[no-untyped-def]
    share = sign * _share(state.slot_of[column] >= 0, state.uses[column])
    for tile in range(state.unit_of.shape[1]):
        unit = state.unit_of[column, tile]
        if unit >= 0 and state.cost[unit] != _TAKEN:
            state.cost[unit] += share


@kernel
def _note_moved(state, column, slot):  # type: ignore[no-untyped-def]
    """A column comes into a slot, or leaves the window for slot -1."""
    _add_share(state, column, -1)
    for tile in range(state.unit_of.shape[1]):
        unit = state.unit_of[column, tile]
        if unit >= 0:
            state.missing[unit] += 1 if slot < 0 else -1
    state.slot_of[column] = slot
    _add_share(state, column, 1)


@kernel
def _note_uses(state, column, change):  # type: ignore[no-untyped-def]
    _add_share(state, column, -1)
    state.uses[column] += change
    _add_share(state, column, 1)


@kernel
def _partner(state, tile):  # type: ignore[no-untyped-def]
    """The group that the next of a tile's open step is read with, or -1."""
    count = state.open_count[tile]
    return state.open_units[tile, count - 1] if state.units.shape[1] > 1 and count % 2 else -1


@kernel
def _clashes(state, unit, partner):  # type: ignore[no-untyped-def]
    """Pairs of columns of two groups that lie in the window in slots of one class."""
    clashes = 0
    for a in state.units[unit]:
        if a >= 0 and state.slot_of[a] >= 0:
            for b in state.units[partner]:
                if b >= 0 and (state.slot_of[a] - state.slot_of[b]) % _CLASSES == 0:
                    clashes += 1
    return clashes


@kernel
def _class_costs(state, column, reader, partner, costs):  # type: ignore[no-untyped-def]
    """By class of a slot: how badly a column there would go with what it is read with.

    The unit ``reader`` has the column brought in, and is read together with ``partner``.
    """
    costs[:] = 0
    for k in range(state.units.shape[1]):
        if partner >= 0 and state.units[partner, k] >= 0:
            costs[state.slot_of[state.units[partner, k]] % _CLASSES] += _BESIDE
    for tile in range(state.unit_of.shape[1]):
        unit = state.unit_of[column, tile]
        if unit < 0 or state.cost[unit] == _TAKEN:
            continue
        for k in range(state.units.shape[1]):
            other = state.units[unit, k]
            if other >= 0 and other != column and state.slot_of[other] >= 0:
                costs[state.slot_of[other] % _CLASSES] += _OWN if unit == reader else _LATER
        for k in range(_CLASSES):
            costs[k] += _NEAR * state.open_classes[tile, k]


@kernel
def _worth(state, column):  # type: ignore[no-untyped-def]
    """How soon a column in the window is wanted: units that lack little are taken early."""
    worth = 0
    for tile in range(state.unit_of.shape[1]):
        unit = state.unit_of[column, tile]
        if unit >= 0 and state.cost[unit] != _TAKEN:
            worth += 256 >> 2 * state.missing[unit]
    return worth


@kernel
def _find_slot(state, column, reader, partner, phase, ahead, costs):  # type: ignore[no-untyped-def]
    """A slot for a column that the phase brings in, or -1 if all are in use.

    Its copy begins ``ahead`` phases earlier: the slot must not be read from then on. Slots that
    nobody needs any more come first, by class; then the column that is wanted last gives way.
    """
    _class_costs(state, column, reader, partner, costs)
    free = victim = -1
    least_cost = least_worth = _TAKEN
    for slot in range(len(state.column_in)):
        if state.pinned[slot] > 0 or state.busy[slot] >= phase - ahead:
            continue
        there = state.column_in[slot]
        if there < 0 or state.uses[there] == 0:
            if costs[slot % _CLASSES] < least_cost:
                least_cost = costs[slot % _CLASSES]
                free = slot
        elif free < 0:
            worth = _worth(state, there) * 64 + costs[slot % _CLASSES]
            if worth < least_worth:
                least_worth = worth
                victim = slot
    return free if free >= 0 else victim


@kernel
def _pin(state, unit, change):  # type: ignore[no-untyped-def]
    for k in range(state.units.shape[1]):
        column = state.units[unit, k]
        if column >= 0 and state.slot_of[column] >= 0:
            state.pinned[state.slot_of[column]] += change


@kernel
def _bring(state, unit, tile, phase, ahead, loads, count, costs):  # type: ignore[no-untyped-def]
    """Bring a unit's missing columns in; returns the phase's loads, negative if some found no slot.

    What came in stays, whoever takes it.
    """
    _pin(state, unit, 1)
    partner = _partner(state, tile)
    found = True
    for k in range(state.units.shape[1]):
        column = state.units[unit, k]
        if column < 0 or state.slot_of[column] >= 0:
            continue
        slot = _find_slot(state, column, unit, partner, phase, ahead, costs)
        if slot < 0:
            found = False
            break
        if state.column_in[slot] >= 0:
            _note_moved(state, state.column_in[slot], -1)
        _note_moved(state, column, slot)
        state.column_in[slot] = column
        state.busy[slot] = phase - 1
        state.pinned[slot] = 1
        loads[count, 0], loads[count, 1] = column, slot
        count += 1
    if not found:
        _pin(state, unit, -1)
        return -1 - count
    return count


@kernel
def _take(state, unit, tile):  # type: ignore[no-untyped-def]
    """Put a unit, all of whose columns are there, into its tile's open step."""
    state.cost[unit] = _TAKEN
    state.open_units[tile, state.open_count[tile]] = unit
    state.open_count[tile] += 1
    for k in range(state.units.shape[1]):
        column = state.units[unit, k]
        if column >= 0:
            _note_uses(state, column, -1)
            state.open_classes[tile, state.slot_of[column] % _CLASSES] += 1


@kernel
def _give_up(state, tile, left):  # type: ignore[no-untyped-def]
    """Undo a tile's open step, so that others find slots."""
    for i in range(state.open_count[tile]):
        unit = state.open_units[tile, i]
        _pin(state, unit, -1)
        cost = 0
        for k in range(state.units.shape[1]):
            column = state.units[unit, k]
            if column >= 0:
                _note_uses(state, column, 1)
                cost += _share(state.slot_of[column] >= 0, state.uses[column])
        state.cost[unit] = cost
    left[tile] += state.open_count[tile]
    state.open_count[tile] = 0
    state.open_classes[tile] = 0


@kernel
def _cheapest(state, tile_ptr, left, step_units, budget):  # type: ignore[no-untyped-def]
    """The cheapest unit among tiles whose step is open, and its tile."""
    best, where, of = _TAKEN, -1, -1
    fewest = 0
    for tile in range(len(left)):
        if left[tile] == 0 or state.open_count[tile] == step_units:
            continue
        partner = _partner(state, tile)
        for unit in range(tile_ptr[tile], tile_ptr[tile + 1]):
            cost = state.cost[unit]
            if cost > best or cost == _TAKEN or state.missing[unit] > budget:
                continue
            clashes = _clashes(state, unit, partner) if partner >= 0 else 0
            if cost < best or clashes < fewest:
                best, where, of, fewest = cost, unit, tile, clashes
    return where, of


@kernel
def _next_by_key(state, tile_ptr, left, key, lead, step_units, budget):  # type: ignore[no-untyped-def]
    """The unit of the smallest key, unless it runs ahead of a tile whose step is full."""
    best, where, of = np.inf, -1, -1
    bound = np.inf
    for tile in range(len(left)):
        if left[tile] == 0:
            continue
        unit = tile_ptr[tile + 1] - left[tile]
        if state.open_count[tile] == step_units:
            bound = min(bound, key[unit] + lead)
        elif key[unit] < best:
            best, where, of = key[unit], unit, tile
    if best > bound or (where >= 0 and state.missing[where] > budget):
        return -1, -1
    return where, of


@kernel
def _excess(first, second):  # type: ignore[no-untyped-def]
    """Conflicts of eight rows that are read together, and then how unevenly classes are taken."""
    deepest = total = 0
    for k in range(_CLASSES):
        depth = first[k] + second[k]
        deepest = max(deepest, depth)
        total += max(0, depth - 1)
    return max(0, deepest - 1) * 16 + total


@kernel
def _pair_up(classes, order):  # type: ignore[no-untyped-def]
    """Order the groups of a step so that each two that are read together have unlike classes."""
    pairs = len(order) // 2
    improved = True
    while improved:
        improved = False
        for a in range(pairs):
            for b in range(a + 1, pairs):
                for there in range(2):
                    i, j = order[2 * a + 1], order[2 * b + there]
                    p, q = order[2 * a], order[2 * b + 1 - there]
                    before = _excess(classes[p], classes[i]) + _excess(classes[q], classes[j])
                    after = _excess(classes[p], classes[j]) + _excess(classes[q], classes[i])
                    if after < before:
                        order[2 * a + 1], order[2 * b + there] = j, i
                        improved = True


@kernel
def _deal_out(classes, order):  # type: ignore[no-untyped-def]
    """Order single columns so that each eight that are read together have unlike classes."""
    octets = len(order) // 8
    filled = np.zeros(octets, np.int64)
    held = np.zeros((octets, _CLASSES + 1), np.int64)
    own = np.full(len(order), _CLASSES)  # a slot without a column fits everywhere, and comes last
    frequency = np.zeros(_CLASSES + 1, np.int64)  # none counted for those without a column
    for i in range(len(order)):
        for k in range(_CLASSES):
            if classes[i, k] > 0:
                own[i] = k
                frequency[k] += 1
    for _ in range(_CLASSES + 1):
        chosen = frequency.argmax()
        frequency[chosen] = -1
        for i in range(len(order)):
            if own[i] != chosen:
                continue
            to = -1
            for octet in range(octets):
                if filled[octet] < 8 and (
                    to < 0
                    or held[octet, chosen] < held[to, chosen]
                    or (held[octet, chosen] == held[to, chosen] and filled[octet] < filled[to])
                ):
                    to = octet
            order[to * 8 + filled[to]] = i
            filled[to] += 1
            held[to, chosen] += 1


@kernel
def _lay_out(state, tile, units, slots):  # type: ignore[no-untyped-def]
    """Write down an open step: its units and slots in the order in which they are read.

    A place without a column repeats a slot that is read with it: that row's address costs
    nothing, and its weights are zero. Returns the conflicts of the step's eight reads.
    """
    step_units, width = slots.shape
    classes = np.zeros((step_units, _CLASSES), np.int64)
    order = np.arange(step_units)
    any_slot = -1
    for i in range(state.open_count[tile]):
        for k in range(width):
            column = state.units[state.open_units[tile, i], k]
            if column >= 0:
                any_slot = state.slot_of[column]
                classes[i, any_slot % _CLASSES] += 1
    if width == 1:
        _deal_out(classes, order)
    else:
        _pair_up(classes, order)
    together = 8 // width
    conflicts = 0
    for first in range(0, step_units, together):
        depths = np.zeros(_CLASSES, np.int64)
        repeated = any_slot
        for i in range(first, first + together):
            taken = order[i] < state.open_count[tile]
            units[i] = state.open_units[tile, order[i]] if taken else -1
            for k in range(width):
                column = state.units[units[i], k] if taken else -1
                slots[i, k] = state.slot_of[column] if column >= 0 else -1
                if column >= 0:
                    repeated = slots[i, k]
                    depths[repeated % _CLASSES] += 1
        conflicts += max(0, depths.max() - 1)
        for i in range(first, first + together):
            for k in range(width):
                if slots[i, k] < 0:
                    slots[i, k] = repeated
    return conflicts


@kernel
def _work_off(state, tile, phase):  # type: ignore[no-untyped-def]
    """A tile's step is done: its columns may go."""
    for i in range(state.open_count[tile]):
        unit = state.open_units[tile, i]
        _pin(state, unit, -1)
        for k in range(state.units.shape[1]):
            column = state.units[unit, k]
            if column >= 0:
                state.busy[state.slot_of[column]] = phase
    state.open_count[tile] = 0
    state.open_classes[tile] = 0


@kernel
def _begin(units, tile_ptr, columns, slots, step_units):  # type: ignore[no-untyped-def]
    tiles = len(tile_ptr) - 1
    unit_of = np.full((columns, tiles), -1)
    uses = np.zeros(columns, np.int64)
    missing = np.zeros(len(units), np.int64)
    for tile in range(tiles):
        for unit in range(tile_ptr[tile], tile_ptr[tile + 1]):
            for column in units[unit]:
                if column >= 0:
                    unit_of[column, tile] = unit
                    uses[column] += 1
                    missing[unit] += 1
    cost = np.zeros(len(units), np.int64)
    for unit in range(len(units)):
        for column in units[unit]:
            if column >= 0:
                cost[unit] += _share(False, uses[column])
    return _State(
        units,
        unit_of,
        cost,
        missing,
        uses,
        np.full(columns, -1),
        np.full(slots, -1),
        np.zeros(slots, np.int64),
        np.full(slots, -_TAKEN),
        np.zeros((tiles, step_units), np.int64),
        np.zeros(tiles, np.int64),
        np.zeros((tiles, _CLASSES), np.int64),
    )


@kernel
def arrange(units, tile_ptr, columns, key, lead, slots, phase_loads, ahead, step_units):  # type: ignore[no-untyped-def]
    """Arrange the units of tiles that share a window into steps, and the steps into phases.

    Parameters
    ----------
    units : ndarray of int64, shape (units, width)
        The columns of each unit, tile after tile, -1 for none; each unit has one at least, and
        a tile has each column once.
    tile_ptr : ndarray of int64, shape (tiles + 1,)
        The units of each tile.
    columns : int
        How many columns there are, named 0, 1 and so on.
    key : ndarray of float64, shape (units,) or (0,)
        By which units are taken in order, not falling inside a tile; empty for the order that
        brings the fewest columns in at each choice.
    lead : float
        How far a unit's key may lie beyond that of a unit that waits for its tile's next step.
    slots : int
        Of the window; more than the columns of a step.
    phase_loads : int
        The most columns that a phase brings in; at least a unit's.
    ahead : int
        Phases from the beginning of a column's copy to its use.
    step_units : int
        Units of a step.

    Returns
    -------
    step_units : ndarray of int64, shape (steps, step_units)
        The units of each step, tile after tile, -1 for none.
    step_slots : ndarray of int64, shape (steps, step_units, width)
        The slot of the window that each of their columns is read from.
    done : ndarray of int64, shape (phases, tiles)
        The steps that each tile has worked off after each phase.
    loads : ndarray of int64, shape (phases, phase_loads, 2)
        Columns and slots that each phase brings in, -1 after the last.
    conflicts : int
        Wavefronts beyond the first over all reads of eight rows.
    """
    tiles, width = len(tile_ptr) - 1, units.shape[1]
    state = _begin(units, tile_ptr, columns, slots, step_units)
    left = tile_ptr[1:] - tile_ptr[:-1]
    first_step = np.zeros(tiles + 1, np.int64)
    for tile in range(tiles):
        first_step[tile + 1] = first_step[tile] + (left[tile] + step_units - 1) // step_units
    laid_units = np.full((first_step[-1], step_units), -1)
    laid_slots = np.full((first_step[-1], step_units, width), -1)
    done = np.zeros((64, tiles), np.int64)
    loads = np.full((64, phase_loads, 2), -1)
    costs = np.zeros(_CLASSES, np.int64)
    conflicts = phase = idle = 0
    alone = -1  # the one tile that goes on after too many open steps filled the window
    worked = np.zeros(tiles, np.int64)
    while left.sum() + state.open_count.sum() > 0:
        if phase == len(done):
            done = np.concatenate((done, np.zeros_like(done)))
            loads = np.concatenate((loads, np.full_like(loads, -1)))
        count, progress = 0, False
        while True:
            eligible = left.copy()
            if alone >= 0:
                eligible[:] = 0
                eligible[alone] = left[alone]
            if len(key):
                unit, tile = _next_by_key(
                    state, tile_ptr, eligible, key, lead, step_units, phase_loads - count
                )
            else:
                unit, tile = _cheapest(state, tile_ptr, eligible, step_units, phase_loads - count)
            if unit < 0:
                break
            count = _bring(state, unit, tile, phase, ahead, loads[phase], count, costs)
            if count < 0:
                break
            _take(state, unit, tile)
            left[tile] -= 1
            progress = True
        for tile in range(tiles):
            full = state.open_count[tile] == step_units
            if full or (left[tile] == 0 and state.open_count[tile] > 0):
                step = first_step[tile] + worked[tile]
                conflicts += _lay_out(state, tile, laid_units[step], laid_slots[step])
                _work_off(state, tile, phase)
                worked[tile] += 1
                progress = True
                if tile == alone:
                    alone = -1
        done[phase] = worked
        phase += 1
        idle = 0 if progress else idle + 1
        if idle > ahead:
            alone = -1
            for tile in range(tiles):
                if left[tile] + state.open_count[tile] > 0 and (
                    alone < 0 or state.open_count[tile] > state.open_count[alone]
                ):
                    alone = tile
            for tile in range(tiles):
                if tile != alone:
                    _give_up(state, tile, left)
    return laid_units, laid_slots, done[:phase], loads[:phase], conflicts
