"""Between torch's layout of activations, token-major, and the kernels' own, feature-major.

Both launches can go through a table of the rows of the feature-major side, so that a chain of
layers whose features are in an order of their own is entered and left without a pass of its own.
"""

from __future__ import annotations

from typing import Any

from gyroperm.gpu.arrays import check_activations, check_table, is_wide, row_stride
from gyroperm.gpu.launch import Launch
from gyroperm.gpu.source import Variant

_TILE, _THREADS = 64, 256


def to_features(tokens: Any, features: Any, positions: Any = None) -> Launch:
    """Enter a chain: ``features[positions[c], n] = tokens[n, c]``.

    Parameters
    ----------
    tokens : array of 16-bit elements, shape (N, C)
        Rows may lie apart (a view of a wider array).
    features : array of 16-bit elements, shape (P, at least N)
        Written in its first N columns, where ``positions`` says; the rest is left as it is.
    positions : array of uint16 or int32, shape (C,), optional
        The row of ``features`` that channel c goes to, all of them different and below P: what
        :func:`gyroperm.gpu.fusion.invert` gives for a row order. By default c itself.

    Returns
    -------
    Launch

    Raises
    ------
    TypeError
        If elements do not have 16 bits, or ``positions`` does not hold uint16 or int32.
    ValueError
        If shapes do not fit together.

    Notes
    -----
    Whichever side has rows that all begin on 16 bytes is accessed by 16 bytes.
    """
    _check(tokens, features, positions)
    return _launch(tokens, features, positions, positions_of_out=1, shape=tokens.shape)


def to_tokens(features: Any, tokens: Any, positions: Any = None) -> Launch:
    """Leave a chain: ``tokens[n, c] = features[positions[c], n]``.

    Parameters
    ----------
    features : array of 16-bit elements, shape (P, at least N)
        What the last layer wrote; columns from N on are not read.
    tokens : array of 16-bit elements, shape (N, C)
        Written whole. Rows may lie apart (a view of a wider array).
    positions : array of uint16 or int32, shape (C,), optional
        The row of ``features`` that holds channel c, below P: what
        :func:`gyroperm.gpu.fusion.invert` gives for the row order of a producer. By default c
        itself.

    Returns
    -------
    Launch

    Raises
    ------
    TypeError
        If elements do not have 16 bits, or ``positions`` does not hold uint16 or int32.
    ValueError
        If shapes do not fit together.
    """
    _check(tokens, features, positions)
    shape = tokens.shape[::-1]
    return _launch(features, tokens, positions, positions_of_out=0, shape=shape)


def _check(tokens: Any, features: Any, positions: Any) -> None:
    check_activations("tokens", tokens)
    check_activations("features", features)
    count, channels = tokens.shape
    if features.shape[1] < count:
        raise ValueError(
            f"features must have at least the {count} columns of as many tokens, got shape "
            f"{tuple(features.shape)}"
        )
    if features.shape[0] < channels:
        raise ValueError(
            f"features must have at least the {channels} rows of as many channels, got shape "
            f"{tuple(features.shape)}"
        )
    if positions is None:
        return
    check_table("positions", positions)
    if positions.shape[0] != channels:
        raise ValueError(
            f"positions must have one entry for each of {channels} channels, got "
            f"{positions.shape[0]}"
        )


def _launch(
    source: Any, target: Any, positions: Any, *, positions_of_out: int, shape: tuple[int, ...]
) -> Launch:
    rows, columns = shape
    return Launch(
        Variant.of("transpose", {}),
        grid=(-(-rows // _TILE) * -(-columns // _TILE), 1, 1),
        threads=_THREADS,
        shared_bytes=_TILE * _TILE * 2,
        arguments={
            "in": source,
            "in_stride": row_stride(source),
            "out": target,
            "out_stride": row_stride(target),
            "positions": positions,
            "wide_positions": is_wide(positions),
            "positions_of_out": positions_of_out,
            "rows": rows,
            "columns": columns,
        },
    )
