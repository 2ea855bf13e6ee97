"""Activations in another order of features, alone or on their way out of an RMSNorm.

For layers that a stock 2:4 kernel multiplies, which reads its input in the order of the weights:
where the layer before cannot write that order, one of these launches does. The permutation costs
nothing where a normalisation goes before it, which moves the same bytes.
"""

from __future__ import annotations

from typing import Any

from gyroperm.gpu.arrays import (
    check_activations,
    check_contiguous,
    check_elements,
    check_table,
    is_wide,
    row_stride,
)
from gyroperm.gpu.launch import Launch
from gyroperm.gpu.source import Variant

MOST_CHANNELS = 32768
# What a block of any architecture from sm_80 on may have, the smallest of them sm_86's.
SHARED_BYTES = 99 * 1024

_DTYPES = ("float16", "bfloat16")
# Of a block, by the most channels.
_THREADS = {2048: 128, 8192: 256, MOST_CHANNELS: 512}
_MOST_TOKENS = 8
# So many blocks fill every multiprocessor of the largest device; below, each takes fewer tokens.
_ENOUGH_BLOCKS = 1024
# Rows of a block beyond which what is under way no longer grows: other blocks have no room.
_ROWS_BYTES = 32 * 1024


def permute(tokens: Any, order: Any, out: Any) -> Launch:
    """Gather channels: ``out[n, i] = tokens[n, order[i]]``.

    Parameters
    ----------
    tokens : array of 16-bit elements, shape (N, C)
        C is at most 32768. Rows may lie apart (a view of a wider array).
    order : array of uint16 or int32, shape (D,)
        The channel of ``tokens``, below C, at each channel of ``out``. Usually a permutation; a
        channel may also be named several times or not at all.
    out : array of 16-bit elements, shape (N, D)
        Written whole; not the memory of ``tokens``.

    Returns
    -------
    Launch

    Raises
    ------
    TypeError
        If elements do not have 16 bits, or ``order`` does not hold uint16 or int32.
    ValueError
        If shapes do not fit together, or there are too many channels.
    """
    _check_tokens(tokens)
    check_activations("out", out)
    check_table("order", order)
    _check_shape("out", out, (tokens.shape[0], order.shape[0]), "(N, D)")
    return _launch(tokens, order, None, out, dtype="float16", epsilon=0.0, feature_major=False)


def rms_norm(
    tokens: Any, weight: Any, out: Any, *, epsilon: float, dtype: str, order: Any = None
) -> Launch:
    """RMSNorm, gathered: ``out[n, i]`` is channel ``order[i]`` of the normalised token n.

    Parameters
    ----------
    tokens : array of 16-bit elements, shape (N, C)
        C is at most 32768. Rows may lie apart (a view of a wider array).
    weight : array of 16-bit elements, shape (C,)
        In the order of the channels of ``tokens``.
    out : array of 16-bit elements, shape (N, D)
        Written whole; not the memory of ``tokens``.
    epsilon : float
        Added to the mean of squares.
    dtype : {"float16", "bfloat16"}
        What the 16 bits are.
    order : array of uint16 or int32, shape (D,), optional
        The channel of ``tokens``, below C, at each channel of ``out``. By default the original
        order, with D = C.

    Returns
    -------
    Launch

    Raises
    ------
    TypeError
        If elements do not have 16 bits, or ``order`` does not hold uint16 or int32.
    ValueError
        If shapes do not fit together, there are too many channels, ``epsilon`` is negative or no
        number, or ``dtype`` is none of the two.

    Notes
    -----
    Computed in float32 and rounded as ``LlamaRMSNorm`` of transformers does: the normalised value
    ``x * rsqrt(mean(x**2) + epsilon)`` to ``dtype`` before the multiplication by ``weight``, and
    the product once more. A module that multiplies before it rounds (torch's fused ``rms_norm``)
    differs in the last bit here and there.
    """
    _check_norm(tokens, weight, epsilon, dtype, order)
    check_activations("out", out)
    _check_shape("out", out, (tokens.shape[0], _outputs(tokens, order)), "(N, D)")
    return _launch(tokens, order, weight, out, dtype, epsilon, feature_major=False)


def rms_norm_to_features(
    tokens: Any,
    weight: Any,
    features: Any,
    *,
    epsilon: float,
    dtype: str,
    order: Any = None,
    shared_bytes: int = SHARED_BYTES,
) -> Launch:
    """RMSNorm, gathered and feature-major: ``features[i, n]`` is what :func:`rms_norm` has there.

    Parameters
    ----------
    tokens, weight, epsilon, dtype, order
        As :func:`rms_norm`.
    features : array of 16-bit elements, shape (D, at least N)
        Written in its first N columns; the rest is left as it is.
    shared_bytes : int
        What a block may have of the device's shared memory. Eight tokens of C channels in it
        make for stores of 16 bytes; with fewer, down to one, writing takes longer.

    Returns
    -------
    Launch

    Raises
    ------
    TypeError
        As :func:`rms_norm`.
    ValueError
        As :func:`rms_norm`, or if ``shared_bytes`` does not hold one token.
    """
    _check_norm(tokens, weight, epsilon, dtype, order)
    check_activations("features", features)
    count, outputs = tokens.shape[0], _outputs(tokens, order)
    if features.shape[0] != outputs or features.shape[1] < count:
        raise ValueError(
            f"features must have shape ({outputs}, at least {count}), which is (D, N), got "
            f"{tuple(features.shape)}"
        )
    return _launch(
        tokens, order, weight, features, dtype, epsilon, feature_major=True, limit=shared_bytes
    )


def _launch(
    tokens: Any,
    order: Any,
    weight: Any,
    out: Any,
    dtype: str,
    epsilon: float,
    feature_major: bool,
    limit: int = SHARED_BYTES,
) -> Launch:
    count, inputs = tokens.shape
    threads = _threads(inputs)
    normalise = weight is not None
    row_bytes = -(-inputs // 8) * 16
    # A normalised row leaves a partial sum of each warp beside it.
    token_bytes = row_bytes + (threads // 32 * 4 if normalise else 0)
    if token_bytes > limit:
        raise ValueError(
            f"shared_bytes must hold a token of {inputs} channels, {token_bytes} bytes, got {limit}"
        )
    if feature_major:
        each = _power_of_two(min(_MOST_TOKENS, limit // token_bytes))
    else:
        each = _power_of_two(
            min(_MOST_TOKENS, _ROWS_BYTES // row_bytes, -(-count // _ENOUGH_BLOCKS))
        )
    return Launch(
        _variant(threads, normalise, feature_major, normalise and dtype == "bfloat16"),
        grid=(-(-count // each), 1, 1),
        threads=threads,
        shared_bytes=each * token_bytes,
        arguments={
            "in": tokens,
            "in_stride": row_stride(tokens),
            "order": order,
            "wide_order": is_wide(order),
            "weight": weight,
            "epsilon": epsilon,
            "out": out,
            "out_stride": row_stride(out),
            "all_tokens": count,
            "tokens_each": each,
            "inputs": inputs,
            "outputs": _outputs(tokens, order),
        },
    )


def variants() -> dict[Variant, int]:
    """Every kernel that the launches here ask for, and the threads of its blocks."""
    found = {}
    for threads in _THREADS.values():
        found[_variant(threads, False, False, False)] = threads
        for feature_major in (False, True):
            for bfloat16 in (False, True):
                found[_variant(threads, True, feature_major, bfloat16)] = threads
    return found


def _threads(inputs: int) -> int:
    return next(threads for most, threads in _THREADS.items() if inputs <= most)


def _variant(threads: int, normalise: bool, feature_major: bool, bfloat16: bool) -> Variant:
    return Variant.of(
        "permute",
        {
            "THREADS": threads,
            "NORM": normalise,
            "FEATURE_MAJOR": feature_major,
            "GYROPERM_BF16": bfloat16,
        },
    )


def _power_of_two(limit: int) -> int:
    """The largest up to a limit, and at least 1."""
    return int(1 << max(limit, 1).bit_length() - 1)


def _outputs(tokens: Any, order: Any) -> int:
    return int(tokens.shape[1] if order is None else order.shape[0])


def _check_tokens(tokens: Any) -> None:
    check_activations("tokens", tokens)
    if tokens.shape[1] > MOST_CHANNELS:
        raise ValueError(
            f"tokens must have at most {MOST_CHANNELS} channels, a row of which fits into shared "
            f"memory, got shape {tuple(tokens.shape)}"
        )


def _check_norm(tokens: Any, weight: Any, epsilon: float, dtype: str, order: Any) -> None:
    _check_tokens(tokens)
    check_elements("weight", weight)
    _check_shape("weight", weight, (tokens.shape[1],), "(C,)")
    check_contiguous("weight", weight)
    if not epsilon >= 0:
        raise ValueError(f"epsilon must be at least 0, got {epsilon}")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    if order is not None:
        check_table("order", order)


def _check_shape(name: str, array: Any, shape: tuple[int, ...], symbols: str) -> None:
    if tuple(array.shape) != shape:
        raise ValueError(
            f"{name} must have shape {shape}, which is {symbols}, got {tuple(array.shape)}"
        )
