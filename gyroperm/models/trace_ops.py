"""What each ATen operation does to the positions of its operands."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from gyroperm.models.trace_values import Factor, Follower, Value

#: Arguments of an operation by the names of its schema.
Arguments = dict[str, Any]
#: Shape of a result, or of each of several.
Shapes = Any
Rule = Callable[[Follower, Arguments, Shapes], Any]

RULES: dict[str, Rule] = {}

#: Why the places of a kernel stay; such axes are no one's business.
KERNEL = "a place in a convolution's kernel"


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register what is done for operations of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def follow(follower: Follower, target: Any, args: Any, kwargs: Any, shapes: Shapes) -> Any:
    """The results of one operation.

    Parameters
    ----------
    follower : Follower
    target : OpOverload
    args, kwargs
        With :class:`Value` in place of tensors.
    shapes : tuple of int, or list of them
        Of the results.

    Returns
    -------
    Value or list of Value
    """
    arguments = _bound(target._schema, args, kwargs)
    name = operation(target)
    found = RULES.get(name) or (_spatial if _SPATIAL.match(name) else None)
    if target._schema.is_mutable or (found is None and not _pointwise(target)):
        return unknown(follower, arguments, shapes)
    result = (found or _meet)(follower, arguments, shapes)
    return _fitting(follower, result, shapes)


def operation(target: Any) -> str:
    """The name of an operation without its library and overload; others keep their library."""
    library, _, name = str(target._schema.name).rpartition("::")
    return str(name) if library == "aten" else f"{library}.{name}"


def unknown(follower: Follower, arguments: Any, shapes: Shapes) -> Any:
    """All that goes in stays, and nothing is known of what comes out."""
    why = f"not followed through {follower.where}"
    for value in _values(arguments):
        follower.pinned(value, value.factors, why)
    return _stays(shapes, f"what {follower.where} returns")


def _stays(shapes: Shapes, why: str) -> Any:
    if isinstance(shapes, list):
        return [_stays(shape, why) for shape in shapes]
    return None if shapes is None else Value(shapes, why=why)


def _fitting(follower: Follower, result: Any, shapes: Shapes) -> Any:
    """The result if its sizes are those that the operation has; else it is not followed."""
    if isinstance(result, list):
        if len(result) < len(shapes):
            result = [*result, *_stays(shapes[len(result) :], f"what {follower.where} returns")]
        return [_fitting(follower, r, s) for r, s in zip(result, shapes, strict=True)]
    if not isinstance(result, Value):
        return result
    sizes = [(f, tuple(shapes[d] for d in f.dims if d < len(shapes))) for f in result.factors]
    if result.shape != shapes or any(f.ids.shape != size for f, size in sizes):
        return unknown(follower, [result], shapes)
    return result


def _bound(schema: Any, args: Sequence[Any], kwargs: Any) -> Arguments:
    found = {}
    for k, argument in enumerate(schema.arguments):
        if k < len(args):
            found[argument.name] = args[k]
        elif argument.name in kwargs:
            found[argument.name] = kwargs[argument.name]
        else:
            found[argument.name] = argument.default_value
    return found


def _values(arguments: Any) -> list[Value]:
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Value)]


def _dim(dim: int, rank: int) -> int:
    return dim % rank if rank else 0


def _dims(dims: Any, rank: int) -> list[int]:
    """Dimensions as given: one, several, or all where there are none."""
    if dims is None or dims == []:
        return list(range(rank))
    return [_dim(d, rank) for d in ([dims] if isinstance(dims, int) else dims)]


# --- element by element

_ELEMENTWISE = (
    "clone", "_to_copy", "to", "contiguous", "alias", "detach", "dropout", "feature_dropout",
    "alpha_dropout", "lift_fresh_copy", "lift_fresh", "type_as", "_prelu_kernel", "where",
    "masked_fill", "relu6", "hardtanh", "leaky_relu", "softplus", "elu", "selu", "celu", "mish",
    "copy", "conj", "native_dropout", "rrelu", "hardswish", "hardsigmoid", "float",
)  # fmt: skip


def _pointwise(target: Any) -> bool:
    return torch.Tag.pointwise in target.tags


@rule(*_ELEMENTWISE)
def _meet(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    values = [a["src"]] if "src" in a and "non_blocking" in a else _values(list(a.values()))
    first = shapes[0] if isinstance(shapes, list) else shapes
    result = t.meet(values, first)
    return [result] if isinstance(shapes, list) else result


@rule("prelu")
def _prelu(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    return t.meet([a["self"], _by_channel(t, a["weight"], a["self"])], shapes)


def _by_channel(t: Follower, vector: Value, like: Value) -> Value:
    """A vector along dimension 1."""
    if len(like.shape) < 2 or vector.shape == (1,):
        return vector
    return t.reshaped(vector, (vector.shape[0], *[1] * (len(like.shape) - 2)))


@rule("zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones")
@rule("new_full", "scalar_tensor", "fill")
def _uniform(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    if isinstance(a.get("value"), Value) or isinstance(a.get("fill_value"), Value):
        return unknown(t, a, shapes)
    return Value(shapes, uniform=True)


@rule("arange", "linspace", "tril_indices", "triu_indices", "eye", "rand", "randn", "empty")
@rule("new_empty", "empty_like", "rand_like", "randn_like", "bernoulli", "new_empty_strided")
def _constant(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    return Value(shapes, why="a constant tensor")


@rule("_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range")
@rule("sym_constrain_range_for_size", "_assert_tensor_metadata_")
def _nothing(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    return None


# --- the same numbers in another arrangement


@rule("reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as", "ravel")
@rule("view_copy", "_reshape_alias", "view")
def _reshape(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    value = a["self"]
    if math.prod(value.shape) != math.prod(shapes) or isinstance(a.get("dtype"), torch.dtype):
        return unknown(t, a, shapes)
    return t.reshaped(value, shapes)


@rule("expand", "expand_as", "expand_copy", "broadcast_to")
def _expand(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    value = a["self"]
    if value.uniform:
        return replace(value, shape=shapes)
    return t.meet([value], shapes)


@rule("repeat", "tile")
def _repeat(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    value = a["self"]
    wide = t.meet([value], (1,) * (len(shapes) - len(value.shape)) + value.shape)
    times = [new // old for new, old in zip(shapes, wide.shape, strict=True)]
    factors = tuple(
        Factor(f.dims, np.tile(f.ids, [times[d] for d in f.dims])) for f in wide.factors
    )
    return replace(wide, shape=shapes, factors=factors)


@rule("repeat_interleave")
def _repeat_interleave(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    value, dim = a.get("self"), a.get("dim")
    if value is None or dim is None or not isinstance(a.get("repeats"), int):
        return unknown(t, a, shapes)
    index = np.repeat(np.arange(value.shape[dim]), a["repeats"])
    return t.taken(value, _dim(dim, len(value.shape)), index)


@rule("permute", "permute_copy")
def _permute(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    return t.arranged(a["self"], _dims(a["dims"], len(shapes)))


@rule("transpose", "transpose_copy", "swapaxes", "swapdims")
def _transpose(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    one, two = [v for k, v in a.items() if k != "self"]
    order = list(range(len(shapes)))
    one, two = _dim(one, len(shapes)), _dim(two, len(shapes))
    order[one], order[two] = two, one
    return t.arranged(a["self"], order)


@rule("t", "t_copy", "numpy_T", "mT", "adjoint")
def _t(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    value = a["self"]
    order = list(range(len(shapes)))
    return t.arranged(value, [*order[:-2], *order[:-3:-1]] if len(order) > 1 else order)


@rule("movedim", "moveaxis")
def _movedim(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    rank = len(shapes)
    sources, goals = _dims(a["source"], rank), _dims(a["destination"], rank)
    order = [d for d in range(rank) if d not in sources]
    for goal, source in sorted(zip(goals, sources, strict=True)):
        order.insert(goal, source)
    return t.arranged(a["self"], order)


@rule("squeeze", "squeeze_copy", "unsqueeze", "unsqueeze_copy")
def _squeeze(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    return t.reshaped(a["self"], shapes)


@rule("select", "select_copy")
def _select(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    value = a["self"]
    dim = _dim(a["dim"], len(value.shape))
    return t.taken(value, dim, int(a["index"]) % value.shape[dim])


@rule("slice", "slice_copy")
def _slice(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    value = a["self"]
    dim = _dim(a["dim"], len(value.shape))
    index = np.arange(value.shape[dim])[slice(a["start"], a["end"], a["step"])]
    return t.taken(value, dim, index)


@rule("narrow", "narrow_copy")
def _narrow(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    value = a["self"]
    dim = _dim(a["dim"], len(value.shape))
    if not isinstance(a["start"], int):
        return unknown(t, a, shapes)
    start = a["start"] % value.shape[dim] if a["start"] < 0 else a["start"]
    return t.taken(value, dim, np.arange(start, start + a["length"]))


@rule("split", "split_with_sizes", "chunk", "unsafe_chunk", "unsafe_split", "tensor_split")
@rule("split_copy", "split_with_sizes_copy", "unsafe_split_with_sizes")
def _split(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    value = a["self"] if "self" in a else a["tensor"]
    dim = _dim(a["dim"], len(value.shape))
    pieces, start = [], 0
    for shape in shapes:
        pieces.append(t.taken(value, dim, np.arange(start, start + shape[dim])))
        start += shape[dim]
    return pieces


@rule("unbind", "unbind_copy")
def _unbind(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    value = a["self"]
    dim = _dim(a["dim"], len(value.shape))
    return [t.taken(value, dim, k) for k in range(value.shape[dim])]


@rule("flip")
def _flip(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    value = a["self"]
    for dim in _dims(a["dims"], len(value.shape)):
        value = t.taken(value, dim, np.arange(value.shape[dim])[::-1])
    return value


@rule("roll")
def _roll(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    value, shifts = a["self"], a["shifts"]
    if not a["dims"]:
        return unknown(t, a, shapes)
    shifts = [shifts] if isinstance(shifts, int) else shifts
    for dim, shift in zip(_dims(a["dims"], len(value.shape)), shifts, strict=True):
        value = t.taken(value, dim, np.roll(np.arange(value.shape[dim]), shift))
    return value


@rule("cat", "concat", "concatenate")
def _cat(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    values = [v for v in a["tensors"] if v.shape != (0,)]
    return t.joined(values, _dim(a["dim"], len(shapes)))


@rule("stack")
def _stack(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    dim = _dim(a["dim"], len(shapes))
    one = (*shapes[:dim], 1, *shapes[dim + 1 :])
    return t.joined([t.reshaped(v, one) for v in a["tensors"]], dim)


@rule("slice_scatter")
def _slice_scatter(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    dim = _dim(a["dim"], len(shapes))
    places = np.arange(shapes[dim])
    inside = places[slice(a["start"], a["end"], a["step"])]
    if not len(inside):
        return a["self"]
    low, high = inside[0], inside[-1] + 1
    if len(inside) != high - low:
        return unknown(t, a, shapes)
    return _put(t, a["self"], a["src"], dim, low, high)


def _put(t: Follower, value: Value, piece: Value, dim: int, low: int, high: int) -> Value:
    """The value with a piece in place of the positions from ``low`` to ``high``."""
    places = np.arange(value.shape[dim])
    before, after = (t.taken(value, dim, part) for part in (places[:low], places[high:]))
    return t.joined([part for part in (before, piece, after) if part.shape[dim]], dim)


@rule("select_scatter")
def _select_scatter(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    dim = _dim(a["dim"], len(shapes))
    k = int(a["index"]) % shapes[dim]
    src = t.reshaped(a["src"], (*shapes[:dim], 1, *shapes[dim + 1 :]))
    return _put(t, a["self"], src, dim, k, k + 1)


@rule("constant_pad_nd", "pad")
def _pad(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    value, pad = a["self"], list(a["pad"])
    if a.get("mode", "constant") != "constant" or min(pad, default=0) < 0:
        return _keeping(
            t, a, shapes, [d for d in range(len(shapes)) if value.shape[d] == shapes[d]]
        )
    for k in range(len(pad) // 2):
        dim = len(shapes) - 1 - k
        for side, count in enumerate(pad[2 * k : 2 * k + 2]):
            if count:
                size = (*value.shape[:dim], count, *value.shape[dim + 1 :])
                edge = Value(size, uniform=True, why="padding")
                value = t.joined([value, edge] if side else [edge, value], dim)
    return value


@rule("pixel_shuffle")
def _pixel_shuffle(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    value, r = a["self"], a["upscale_factor"]
    value = t.only(value, range(len(shapes) - 2))
    channels = len(shapes) - 3
    blocks = (*shapes[:channels], shapes[channels], r * r, *value.shape[-2:])
    return replace(t.alone(t.reshaped(value, blocks), channels), shape=shapes)


@rule("pixel_unshuffle")
def _pixel_unshuffle(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    value, r = a["self"], a["downscale_factor"]
    value = t.only(value, range(len(shapes) - 2))
    channels = len(shapes) - 3
    size = value.shape[channels]
    wide = Value((*shapes[:channels], size, r * r, *shapes[-2:]), value.factors, why=value.why)
    return t.reshaped(wide, shapes)


@rule("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    size, groups = shapes[1], a["groups"]
    index = np.arange(size).reshape(groups, -1).T.ravel()
    return t.taken(a["self"], 1, index)


# --- places chosen by an index


@rule("embedding")
def _embedding(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    return _index_rows(t, a["weight"], 0, a["indices"], shapes)


@rule("index_select")
def _index_select(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    return _index_rows(t, a["self"], _dim(a["dim"], len(shapes)), a["index"], shapes)


def _index_rows(t: Follower, value: Value, dim: int, index: Value, shapes: Shapes) -> Value:
    t.pinned(index, index.factors, f"not followed through {t.where}")
    left = t.pinned(value, [f for f in value.factors if dim in f.dims], f"indexed by {t.where}")
    more = len(index.shape) - 1
    factors = tuple(
        Factor(tuple(d + more if d > dim else d for d in f.dims), f.ids) for f in left.factors
    )
    return Value(shapes, factors, why=f"what {t.where} looks up")


@rule("index", "_unsafe_index")
def _index(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    value, indices = a["self"], list(a["indices"])
    used = [d for d, index in enumerate(indices) if index is not None]
    given = [index for index in indices if index is not None]
    for index in given:
        t.pinned(index, index.factors, f"not followed through {t.where}")
    touched = [f for f in value.factors if set(f.dims) & set(used)]
    left = t.pinned(value, touched, f"indexed by {t.where}")
    rank = len(shapes) - (len(value.shape) - len(used))
    together = used == list(range(used[0], used[-1] + 1))
    kept = [d for d in range(len(value.shape)) if d not in used]
    start = used[0] if together else 0
    place = {d: (k if k < start else k + rank) for k, d in enumerate(kept)}
    factors = tuple(Factor(tuple(place[d] for d in f.dims), f.ids) for f in left.factors)
    return Value(shapes, factors, why=f"what {t.where} looks up")


# --- along a dimension


@rule("softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax")
def _softmax(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    value = a["self"]
    t.reduced(value, [_dim(a["dim"], len(shapes))])
    return replace(value, parameter="")


@rule("sum", "mean", "amax", "amin", "var", "std", "var_mean", "std_mean", "prod", "logsumexp")
@rule("norm", "linalg_vector_norm", "any", "all", "nansum", "linalg_norm")
def _reduce(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    value = a["self"]
    rank = len(value.shape)
    dims = _dims(a.get("dim"), rank)
    kept = t.reduced(value, dims)
    narrow = tuple(1 if d in dims else s for d, s in enumerate(value.shape))
    summed = replace(value, shape=narrow, factors=kept, parameter="")
    if isinstance(shapes, list):
        return [t.reshaped(summed, shape) for shape in shapes]
    return t.reshaped(summed, shapes)


@rule("max", "min")
def _extreme(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    if isinstance(a.get("other"), Value):
        return t.meet([a["self"], a["other"]], shapes)
    return _along(t, a, shapes) if "dim" in a else _reduce(t, a, shapes)


@rule("cumsum", "cumprod", "logcumsumexp", "sort", "argsort", "topk", "argmax", "argmin")
@rule("median", "kthvalue", "mode")
def _along(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    value = a["self"]
    if a.get("dim") is None:
        return unknown(t, a, shapes)
    dim = _dim(a["dim"], len(value.shape))
    kept = t.only(value, [d for d in range(len(value.shape)) if d != dim])
    first = shapes[0] if isinstance(shapes, list) else shapes
    if len(first) == len(value.shape):
        result = replace(kept, shape=first, parameter="")
    else:
        narrow = tuple(1 if d == dim else size for d, size in enumerate(value.shape))
        result = t.reshaped(replace(kept, shape=narrow, parameter=""), first)
    return [result] * len(shapes) if isinstance(shapes, list) else result


@rule("tril", "triu")
def _triangle(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    return _keeping(t, a, shapes, range(len(shapes) - 2))


def _keeping(t: Follower, a: Arguments, shape: tuple[int, ...], dims: Iterable[int]) -> Value:
    """Followed along some dimensions, of which each is treated like the next."""
    kept = t.only(a["self"], dims)
    return Value(shape, kept.factors, why=kept.why)


_SPATIAL = re.compile(
    r"(_?adaptive_)?(max|avg|lp|fractional_max)_pool|_?upsample|(reflection|replication)_pad"
    r"|mkldnn_(max|avg)_pool|_adaptive_avg_pool|grid_sampler"
)


def _spatial(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    value = a.get("self", a.get("input"))
    first = shapes[0] if isinstance(shapes, list) else shapes
    channels = 1 if len(first) > 2 else 0
    result = _keeping(t, {"self": value}, first, range(channels + 1))
    others = [v for v in _values(list(a.values())) if v is not value]
    for other in others:
        t.pinned(other, other.factors, f"not followed through {t.where}")
    return [result] if isinstance(shapes, list) else result


@rule("glu")
def _glu(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    value = a["self"]
    dim = _dim(a["dim"], len(shapes))
    half = np.arange(shapes[dim])
    return t.meet([t.taken(value, dim, half), t.taken(value, dim, half + shapes[dim])], shapes)


# --- norms


@rule("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def _layer_norm(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    value = a["input"]
    rank = len(value.shape)
    t.reduced(value, range(rank - len(a["normalized_shape"]), rank))
    scales = [v for v in (a.get("weight"), a.get("bias")) if v is not None]
    normed = replace(value, parameter="")
    result = t.meet([normed, *scales], value.shape) if scales else normed
    return [result] if isinstance(shapes, list) else result


@rule("group_norm", "native_group_norm")
def _group_norm(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    value = a["input"]
    groups = a["num_groups"] if "num_groups" in a else a["group"]
    value = t.only(value, [0, 1])
    if (factor := value.at(1)) is not None:
        tags = np.arange(len(factor.ids)) // (len(factor.ids) // groups)
        t.ledger.enter([factor.ids], tags, f"keeps to its group in {t.where}")
    result = _scaled(t, value, [a["weight"], a["bias"]])
    return [result] if isinstance(shapes, list) else result


@rule(
    "batch_norm",
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_no_update",
    "cudnn_batch_norm",
    "instance_norm",
)
def _batch_norm(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    names = ("weight", "bias", "running_mean", "running_var")
    value = t.only(a["input"], [0, 1])
    result = _scaled(t, value, [a.get(name) for name in names])
    return [result] if isinstance(shapes, list) else result


def _scaled(t: Follower, value: Value, vectors: Sequence[Value | None]) -> Value:
    scales = [_by_channel(t, v, value) for v in vectors if v is not None]
    return t.meet([value, *scales], value.shape)


@rule("_weight_norm", "_weight_norm_interface")
def _weight_norm(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    v, rank = a["v"], len(a["v"].shape)
    t.reduced(v, [d for d in range(rank) if d != _dim(a["dim"], rank)])
    result = t.meet([v, a["g"]], v.shape)
    return [result] if isinstance(shapes, list) else result


# --- products

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@rule("linear")
def _linear(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    x, weight = a["input"], a["weight"]
    batch = _LETTERS[: len(x.shape) - 1]
    out = "Z" if len(weight.shape) > 1 else ""
    product = t.contracted([x, weight], [batch + "Y", out + "Y"], batch + out)
    return product if a["bias"] is None else t.meet([product, a["bias"]], shapes)


@rule("matmul", "mm", "bmm", "mv", "dot")
def _matmul(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    one, two = [v for v in a.values() if isinstance(v, Value)]
    return t.reshaped(_product(t, one, two), shapes)


def _product(t: Follower, one: Value, two: Value) -> Value:
    rank = max(len(one.shape), len(two.shape), 2) - 2
    batch = _LETTERS[:rank]
    left = (batch[rank - len(one.shape) + 2 :] + "XY") if len(one.shape) > 1 else "Y"
    right = (batch[rank - len(two.shape) + 2 :] + "YZ") if len(two.shape) > 1 else "Y"
    out = batch + ("X" if "X" in left else "") + ("Z" if "Z" in right else "")
    return t.contracted([one, two], [left, right], out)


@rule("addmm", "baddbmm", "addmv")
def _addmm(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    bias, one, two = [v for v in a.values() if isinstance(v, Value)]
    return t.meet([bias, _product(t, one, two)], shapes)


@rule("einsum")
def _einsum(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    equation = a["equation"].replace(" ", "")
    inputs, arrow, out = equation.partition("->")
    labels = inputs.split(",")
    if not arrow or "." in equation or any(len(set(one)) < len(one) for one in labels):
        return unknown(t, a, shapes)
    return t.contracted(a["tensors"], labels, out)


@rule("scaled_dot_product_attention")
def _attention(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    return _attended(t, a["query"], a["key"], a["value"], a.get("attn_mask"))


@rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention")
@rule("_scaled_dot_product_flash_attention", "_scaled_dot_product_cudnn_attention")
@rule("_scaled_dot_product_attention_math")
def _attention_kernel(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    mask = a.get("attn_mask", a.get("attn_bias"))
    return [_attended(t, a["query"], a["key"], a["value"], mask)]


def _attended(t: Follower, q: Value, k: Value, v: Value, mask: Value | None) -> Value:
    batch = _LETTERS[: len(q.shape) - 2]
    if len(q.shape) > 2:
        # Grouped queries: each key-value head serves several.
        times = q.shape[-3] // k.shape[-3]
        index = np.repeat(np.arange(k.shape[-3]), times)
        k, v = (t.taken(one, len(one.shape) - 3, index) for one in (k, v)) if times > 1 else (k, v)
    scores = t.contracted([q, k], [batch + "TD", batch + "SD"], batch + "TS")
    if mask is not None:
        scores = t.meet([scores, mask], scores.shape)
    t.reduced(scores, [len(scores.shape) - 1])
    return t.contracted([scores, v], [batch + "TS", batch + "SD"], batch + "TD")


# --- convolutions


@rule("conv1d", "conv2d", "conv3d")
def _conv(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    return _mapped(t, a, _convolved, shapes)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    return _mapped(t, a, _deconvolved, shapes)


@rule("convolution", "_convolution")
def _convolution(t: Follower, a: Arguments, shapes: Shapes) -> Any:
    return _mapped(t, a, _deconvolved if a["transposed"] else _convolved, shapes)


def _mapped(
    t: Follower,
    a: Arguments,
    channels: Callable[[Follower, Value, Value, int], Value],
    shapes: Shapes,
) -> Value:
    """A convolution: what it does to the channels; places of its maps and kernel do not move."""
    x, weight, bias = a["input"], a["weight"], a["bias"]
    # A map may come without a batch.
    dim = len(x.shape) - len(weight.shape) + 1
    x = t.only(x, [dim])
    factors = tuple(Factor((0,), f.ids) for f in x.factors)
    inside = Value((x.shape[dim],), factors, why=x.why)
    out = channels(t, inside, _kernel(t, weight), a["groups"])
    if bias is not None:
        out = t.meet([out, bias], out.shape)
    return Value(shapes, tuple(Factor((dim,), f.ids) for f in out.factors), why=out.why)


def _kernel(t: Follower, weight: Value) -> Value:
    """The weight as a matrix."""
    own = t.only(weight, [0, 1], KERNEL)
    return Value(weight.shape[:2], own.factors, why=weight.why, parameter=weight.parameter)


def _rows(kernel: Value) -> Value:
    return replace(kernel, shape=kernel.shape[:1], factors=kernel.without([1]))


def _convolved(t: Follower, inside: Value, kernel: Value, groups: int) -> Value:
    size = inside.shape[0]
    if groups == 1:
        return t.contracted([inside, kernel], ["i", "oi"], "o")
    if groups == size:
        return _times(t, inside, _rows(kernel))
    met = t.meet([_grouped(t, inside, groups), _of_groups(t, kernel, groups)], (size,))
    t.reduced(t.reshaped(met, (groups, size // groups)), [1])
    return _grouped(t, _rows(kernel), groups)


def _deconvolved(t: Follower, inside: Value, kernel: Value, groups: int) -> Value:
    size = inside.shape[0]
    if groups == 1:
        return t.contracted([inside, kernel], ["i", "io"], "o")
    if kernel.shape[1] == 1 and groups == size:
        return _times(t, inside, _rows(kernel))
    met = t.meet([_grouped(t, inside, groups), _rows(kernel)], (size,))
    t.reduced(t.reshaped(met, (groups, size // groups)), [1])
    return _grouped(t, _of_groups(t, kernel, groups), groups)


def _times(t: Follower, inside: Value, rows: Value) -> Value:
    """Channels, each of which has a block of outputs."""
    size, out = inside.shape[0], rows.shape[0]
    own, made = inside.at(0), rows.at(0)
    if size == out or made is None:
        return t.meet([inside, rows], (out,))
    block = np.repeat(np.arange(size), out // size)
    if own is None:
        t.ledger.enter([made.ids], block, f"meets {inside.why} in {t.where}")
    else:
        t.ledger.enter([own.ids[block], made.ids])
    return rows


def _grouped(t: Follower, channels: Value, groups: int) -> Value:
    """Channels that keep to the group in which they lie."""
    if (factor := channels.at(0)) is not None:
        tags = np.arange(len(factor.ids)) // (len(factor.ids) // groups)
        t.ledger.enter([factor.ids], tags, f"keeps to its group in {t.where}")
    return channels


def _of_groups(t: Follower, kernel: Value, groups: int) -> Value:
    """Dimension 1 of a grouped weight for each group in turn: its rows have their own order."""
    rows, inner = kernel.shape
    if not kernel.parameter:
        kernel = t.only(kernel, [0], f"the groups of {t.where} share it")
        return Value((groups * inner,), why=kernel.why)
    step = rows // groups
    ids = [
        t.ledger.axis(kernel.parameter, 1, inner, (g * step, (g + 1) * step)) for g in range(groups)
    ]
    return Value((groups * inner,), (Factor((0,), np.concatenate(ids)),) if inner > 1 else ())
