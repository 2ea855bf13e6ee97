"""A solution checks itself, prints itself, and survives a file."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

import strategies
from gyroperm import MaxRounds, Pattern, Solution, solve

FEW = {"stop": MaxRounds(3), "threads": 1}


def weights_of(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def solved(kind):
    """A solution of each kind of pattern and of weights, none of whose sizes divide."""
    if kind == "conv":
        return solve(weights_of(5, 6, 3, 3), **FEW)
    if kind == "grouped":
        return solve(weights_of(6, 5, 3, 3), groups=2, **FEW)
    if kind == "list":
        return solve([weights_of(5, 10), weights_of(3, 10)], **FEW)
    patterns = {
        "nm": Pattern.nm(),
        "hinm": Pattern.hinm(vec_ratio=0.5, vec_size=4),
        "vnm": Pattern.vnm(4, 2, 8),
        "vector_nm": Pattern.vector_nm(2, 4, 4),
        "tvw": Pattern.tvw(vec_ratio=0.5, vec_size=4, row_ratio=0.25),
    }
    return solve(weights_of(10, 19), pattern=patterns[kind], **FEW)


KINDS = (*strategies.KINDS, "conv", "grouped", "list")
every_kind = pytest.mark.parametrize("kind", KINDS)


def masks(solution):
    return solution.mask if isinstance(solution.mask, list) else [solution.mask]


# ---------------------------------------------------------------- files


@every_kind
def test_a_file_gives_back_every_field(kind, tmp_path):
    solution = solved(kind)
    path = tmp_path / "solution.npz"
    solution.save(path)
    loaded = Solution.load(path)

    assert isinstance(loaded.mask, list) == isinstance(solution.mask, list)
    for a, b in zip(masks(solution), masks(loaded), strict=True):
        assert np.array_equal(a, b) and a.dtype == b.dtype
    assert np.array_equal(loaded.tile_rows, solution.tile_rows)
    assert len(loaded.groups) == len(solution.groups)
    for a, b in zip(loaded.groups, solution.groups, strict=True):
        assert np.array_equal(a, b) and a.shape == b.shape
    assert (loaded.col_order is None) == (solution.col_order is None)
    assert loaded.col_order is None or np.array_equal(loaded.col_order, solution.col_order)
    assert np.array_equal(loaded.row_order, solution.row_order)
    fields = {f.name for f in dataclasses.fields(Solution)}
    for name in fields - {"mask", "arrangement", "_matrix_mask"}:
        one, other = getattr(loaded, name), getattr(solution, name)
        # Output errors are NaN where it was not said what the layer is fed.
        assert one == other or (one != one and other != other), name
    for name in ("unstructured", "gap", "status", "basis"):
        assert getattr(loaded, name) == getattr(solution, name), name
    assert loaded.summary() == solution.summary()


def test_a_loaded_solution_is_a_valid_start(tmp_path):
    weights = weights_of(10, 19)
    first = solve(weights, vec_ratio=0.5, vec_size=4, **FEW)
    first.save(tmp_path / "first.npz")
    loaded = Solution.load(str(tmp_path / "first.npz"))
    again = solve(
        weights, vec_ratio=0.5, vec_size=4, initial=loaded, stop=MaxRounds(0), method="identity"
    )
    assert again.retained == first.retained


def _tampered(path, **changes):
    with np.load(path) as file:
        stored = {name: file[name] for name in file.files}
    stored.update(changes)
    np.savez(path, **{name: value for name, value in stored.items() if value is not None})


@pytest.mark.parametrize("schema", [0, 4, 99])
def test_another_schema_is_refused(tmp_path, schema):
    path = tmp_path / "solution.npz"
    solved("nm").save(path)
    _tampered(path, schema=np.array(schema))
    with pytest.raises(ValueError, match=rf"schema {schema}; this version reads schema 1 to 3"):
        Solution.load(path)


@pytest.mark.parametrize(
    "content", [b"", b"not a solution", b"PK\x03\x04 nearly a zip", b"\x93NUMPY\x01\x00"]
)
def test_a_file_that_is_no_solution_is_refused(tmp_path, content):
    path = tmp_path / "solution.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"solution\.npz is no gyroperm solution"):
        Solution.load(path)


def test_an_array_file_is_refused(tmp_path):
    path = tmp_path / "weights.npy"
    np.save(path, weights_of(4, 4))
    with pytest.raises(ValueError, match=r"weights\.npy is no gyroperm solution"):
        Solution.load(path)


def test_other_arrays_are_refused(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, weights=weights_of(4, 4))
    with pytest.raises(ValueError, match="no schema version"):
        Solution.load(path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(tmp_path, part):
    path = tmp_path / "solution.npz"
    solved("hinm").save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match="no gyroperm solution"):
        Solution.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"tile_rows": None},
        {"scalars": None},
        {"pattern": np.array("not json")},
        {"pattern": np.array(json.dumps({"colour": "blue"}))},
        {"scalars": np.array("{}")},
        {"groups": np.zeros((3, 4), dtype=np.int32)},
        {"groups": np.full((9, 4), 10**6, dtype=np.int32)},
        {"tile_rows": np.zeros((3, 4), dtype=np.int32)},
        {"tile_rows": np.full((3, 4), 10**6, dtype=np.int32)},
        {"mask_bits": np.zeros(1, dtype=np.uint8)},
    ],
    ids=lambda changes: "-".join(
        f"{k}={'missing' if v is None else v.dtype}" for k, v in changes.items()
    ),
)
def test_a_damaged_file_is_refused(tmp_path, changes):
    path = tmp_path / "solution.npz"
    solved("hinm").save(path)
    _tampered(path, **changes)
    with pytest.raises(ValueError):
        Solution.load(path)


def test_nothing_in_a_file_is_executed(tmp_path):
    path = tmp_path / "solution.npz"
    solved("nm").save(path)
    _tampered(path, pattern=np.array([{"n": 2}], dtype=object))
    with pytest.raises(ValueError, match="no gyroperm solution"):
        Solution.load(path)


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Solution.load(tmp_path / "nothing.npz")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "solution.npz"
    old = solved("nm")
    old.save(path)
    before = path.read_bytes()

    def half_written(file, **arrays):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", half_written)
    with pytest.raises(OSError, match="no space"):
        solved("hinm").save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["solution.npz"]


def test_saving_into_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(OSError):
        solved("nm").save(tmp_path / "nowhere" / "solution.npz")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- it checks itself


def _changed_arrangement(solution, **changes):
    broken = dataclasses.replace(solution.arrangement, **changes)
    return dataclasses.replace(solution, arrangement=broken)


@pytest.mark.parametrize("kind", strategies.KINDS)
def test_a_mask_with_one_entry_more_or_less_is_refused(kind):
    solution = solved(kind)
    for index in (tuple(np.argwhere(solution.mask)[0]), tuple(np.argwhere(~solution.mask)[0])):
        mask = solution.mask.copy()
        mask[index] = ~mask[index]
        with pytest.raises(ValueError, match="mask"):
            dataclasses.replace(solution, mask=mask)


@pytest.mark.parametrize("kind", strategies.KINDS)
def test_a_row_that_is_in_no_tile_is_refused(kind):
    solution = solved(kind)
    tile_rows = solution.tile_rows.copy()
    place = tuple(np.argwhere(tile_rows >= 0)[0])
    lost = int(tile_rows[place])
    tile_rows[place] = -1
    mask = solution.mask.copy()
    mask[lost] = False
    broken = dataclasses.replace(solution.arrangement, tile_rows=tile_rows)
    with pytest.raises(ValueError, match="tile_rows"):
        dataclasses.replace(solution, arrangement=broken, mask=mask)


@pytest.mark.parametrize("kind", strategies.KINDS)
def test_a_row_that_is_in_two_places_is_refused(kind):
    solution = solved(kind)
    tile_rows = solution.tile_rows.copy()
    first, second = map(tuple, np.argwhere(tile_rows >= 0)[:2])
    tile_rows[first] = tile_rows[second]
    with pytest.raises(ValueError):
        _changed_arrangement(solution, tile_rows=tile_rows)


@pytest.mark.parametrize("kind", strategies.KINDS)
@pytest.mark.parametrize("what", ["tile_rows", "groups"])
@pytest.mark.parametrize("index", [1000, -2])
def test_an_index_that_does_not_exist_is_refused(kind, what, index):
    solution = solved(kind)
    arrays = solution.tile_rows if what == "tile_rows" else solution.groups[0]
    changed = arrays.copy()
    changed[0, 0] = index
    with pytest.raises(ValueError, match=r"tile_rows|groups|window|column"):
        if what == "groups":
            _changed_arrangement(solution, groups=(changed, *solution.groups[1:]))
        else:
            _changed_arrangement(solution, tile_rows=changed)


def test_a_column_in_two_groups_is_refused_even_where_it_keeps_nothing():
    S = np.tile([9.0, 9.0, 0.0, 1.0, 9.0, 9.0, 2.0, 3.0], (4, 1))
    solution = solve(S, method="identity")
    groups = solution.groups[0].copy()
    groups[0, 3] = 2
    with pytest.raises(ValueError, match="twice"):
        _changed_arrangement(solution, groups=(groups,))


@pytest.mark.parametrize("kind", ["nm", "vnm", "vector_nm"])
def test_a_column_order_that_is_no_bijection_is_refused(kind):
    solution = solved(kind)
    order = solution.col_order.copy()
    first, second = np.flatnonzero(order >= 0)[:2]
    order[first] = order[second]
    with pytest.raises(ValueError, match="col_order"):
        _changed_arrangement(solution, col_order=order)
    with pytest.raises(ValueError, match="col_order"):
        _changed_arrangement(solution, col_order=None)


def test_a_window_that_keeps_the_columns_of_another_is_refused():
    """The same mask and groups, but windows that do not hold them."""
    solution = solved("vnm")
    order = solution.col_order.copy()
    order[[0, 8]] = order[[8, 0]]
    order[[1, 9]] = order[[9, 1]]
    order[[2, 10]] = order[[10, 2]]
    order[[3, 11]] = order[[11, 3]]
    order[[4, 12]] = order[[12, 4]]
    with pytest.raises(ValueError, match="window"):
        _changed_arrangement(solution, col_order=order)


def test_a_ragged_tile_cannot_keep_more_groups_than_there_are():
    """Half-empty groups in one tile would keep it dense, which no kernel runs."""
    S = np.ones((4, 4))
    pattern = Pattern.tvw(1, 2, vec_ratio=0.5, vec_size=2)
    solution = solve(S, pattern=pattern, method="identity")
    assert sum(map(len, solution.groups)) == 2
    more = solve(np.ones((8, 4)), pattern=pattern, method="identity")
    assert sum(map(len, more.groups)) == 4
    dense = np.array([[0, -1], [1, -1], [2, -1], [3, -1]])
    empty = np.zeros((0, 2), dtype=np.int32)
    mask = np.zeros((8, 4), dtype=bool)
    mask[more.tile_rows[0]] = True
    broken = dataclasses.replace(more.arrangement, groups=(dense, empty, empty, empty))
    with pytest.raises(ValueError, match="groups"):
        dataclasses.replace(more, arrangement=broken, mask=mask)


# ---------------------------------------------------------------- frozen


@every_kind
def test_arrays_are_read_only(kind):
    solution = solved(kind)
    arrays = [*masks(solution), solution.tile_rows, *solution.groups]
    if solution.col_order is not None:
        arrays.append(solution.col_order)
    for array in arrays:
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array.reshape(-1)[:1] = 0


def test_fields_cannot_be_set():
    with pytest.raises(dataclasses.FrozenInstanceError):
        solved("nm").retained = 1.0


# ---------------------------------------------------------------- what it says


@every_kind
def test_the_summary_has_the_figures(kind):
    solution = solved(kind)
    text = solution.summary()
    for figure in (
        str(solution.pattern),
        f"{solution.retained:.6g}",
        f"{solution.identity:.6g}",
        f"{solution.ratio:.4f}",
        f"{solution.efficacy:.2f} %",
        f"{100 * solution.gap:.3f} %",
        f"per {solution.basis}",
        solution.status,
        solution.method,
        f"seed {solution.seed}",
        str(sum(int(mask.sum()) for mask in masks(solution))),
    ):
        assert figure in text
    for mask in masks(solution):
        assert "x".join(map(str, mask.shape)) in text


def test_efficacy_is_nan_without_room():
    everything = solve(weights_of(6, 8), n=4, m=4, **FEW)
    assert math.isnan(everything.efficacy)
    assert everything.ratio == pytest.approx(1.0)
    assert everything.status == "lossless"
    zeros = solve(np.zeros((6, 8)), **FEW)
    assert math.isnan(zeros.efficacy) and math.isnan(zeros.ratio)
    assert zeros.gap == 0.0
    for text in (everything.summary(), zeros.summary()):
        assert "efficacy      - of the room above identity, per row" in text
        assert "gap 0.000 % = - points of efficacy, lossless" in text
        assert "nan" not in text
    assert "retained      0 = - of unstructured" in zeros.summary()


def test_efficacy_is_that_of_its_definition():
    solution = solved("hinm")
    room = solution.unstructured_by_layer - solution.identity
    expected = 100 * (solution.retained - solution.identity) / room
    assert solution.efficacy == pytest.approx(expected, rel=1e-14)
    assert (solution.basis, solved("nm").basis) == ("layer", "row")


def test_status_is_optimal_only_when_the_bound_is_met():
    solution = solved("hinm")
    assert solution.gap > 0 and solution.status == "feasible"
    assert solution.gap == pytest.approx(1 - solution.retained / solution.bound)
    assert dataclasses.replace(solution, bound=solution.retained).status == "optimal"
