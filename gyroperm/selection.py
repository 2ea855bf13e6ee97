"""Which tensors of a checkpoint are pruned, and why the others are not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gyroperm.checkpoint import WEIGHT_WORDS, Tensor
from gyroperm.pattern import Pattern
from gyroperm.views import WeightView

#: Names of embeddings: tables that are looked up, not multiplied with.
EMBEDDINGS = r"embed|(^|\.)(wte|wpe|shared|relative_attention_bias)\."
#: Names of output heads, which set the scores themselves and suffer most from pruning.
HEADS = (
    r"(^|\.)(classifier|score|head|lm_head)(\.weight)?$|(^|\.)lm_head\.|^cls\."
    r"|^(fc|output)\.weight$"
)


@dataclass(frozen=True)
class Layer:
    """A tensor that is pruned.

    Attributes
    ----------
    tensor : Tensor
    transposed : bool
        Whether it is stored as (in, out, ...), so that rows and columns change places.
    """

    tensor: Tensor
    transposed: bool

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.tensor.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight as (out, in, ...)."""
        shape = self.tensor.shape
        return (shape[1], shape[0], *shape[2:]) if self.transposed else shape


@dataclass(frozen=True)
class Skipped:
    """A tensor that stays as it is, and the reason."""

    tensor: Tensor
    reason: str


@dataclass(frozen=True)
class Rules:
    """What the user says about which tensors to prune.

    Parameters
    ----------
    include, exclude : tuple of re.Pattern
        Searched in tensor names. A tensor is pruned if one of ``include`` matches (or there is
        none) and none of ``exclude`` does.
    transposed : tuple of re.Pattern
        Tensors stored as (in, out).
    embeddings : bool
        Whether embeddings and output heads are pruned too.
    """

    include: tuple[re.Pattern[str], ...] = ()
    exclude: tuple[re.Pattern[str], ...] = ()
    transposed: tuple[re.Pattern[str], ...] = ()
    embeddings: bool = False


def select(
    tensors: Mapping[str, Tensor], pattern: Pattern, rules: Rules
) -> tuple[list[Layer], list[Skipped]]:
    """Split tensors into those that are pruned and those that are not.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        All tensors of a checkpoint.
    pattern : Pattern
    rules : Rules

    Returns
    -------
    list of Layer, list of Skipped
        Both in the order of ``tensors``.

    Raises
    ------
    ValueError
        If the bias of a selected weight says that the weight is stored the other way round.
    """
    layers, skipped = [], []
    for tensor in tensors.values():
        layer = Layer(tensor, _matches(rules.transposed, tensor.name))
        reason = _why_not(layer, pattern, rules)
        if reason is None:
            _check_orientation(layer, tensors)
            layers.append(layer)
        else:
            skipped.append(Skipped(tensor, reason))
    return layers, skipped


def unmatched(tensors: Mapping[str, Tensor], rules: Rules) -> list[str]:
    """The options whose expressions match no tensor, as the user gave them."""
    given = {
        "--include": rules.include,
        "--exclude": rules.exclude,
        "--transposed": rules.transposed,
    }
    return [
        f"{option} {expression.pattern!r}"
        for option, expressions in given.items()
        for expression in expressions
        if not any(expression.search(name) for name in tensors)
    ]


def _matches(expressions: tuple[re.Pattern[str], ...], name: str) -> bool:
    return any(expression.search(name) for expression in expressions)


def _why_not(layer: Layer, pattern: Pattern, rules: Rules) -> str | None:
    tensor = layer.tensor
    if tensor.dtype not in WEIGHT_WORDS:
        return f"stored as {tensor.dtype}; weights are {', '.join(WEIGHT_WORDS)}"
    if not tensor.size:
        return "empty"
    if len(tensor.shape) < 2:
        return f"{len(tensor.shape)}-D (biases, norms, scales)"
    if tensor.name.endswith("bias"):
        return "a bias, or a mask that is stored as one"
    if rules.include and not _matches(rules.include, tensor.name):
        return "matched by no --include"
    if _matches(rules.exclude, tensor.name):
        return "matched by --exclude"
    if not rules.embeddings and re.search(f"{EMBEDDINGS}|{HEADS}", tensor.name):
        return "embedding or output head (--include-embeddings prunes it)"
    if len(tensor.shape) == 3 and "experts" in tensor.name:
        # Three axes would be read as a convolution's.
        return "a stack of experts"
    return why_no_fit(layer.shape, pattern)


def why_no_fit(shape: tuple[int, ...], pattern: Pattern) -> str | None:
    """Why a weight of shape (out, in, ...) cannot take the pattern; None if it can."""
    try:
        columns = WeightView.of([shape], pattern, listed=False).columns
        kept = pattern.kept_columns(columns)
    except ValueError as error:
        return str(error)
    # A global budget may leave out whole tiles and rows.
    if pattern.allocation != "global" and columns <= min(kept, pattern.n):
        return (
            f"nothing can be pruned: {pattern.n} of every {pattern.m} columns are kept, and it has "
            f"{columns} (a depthwise convolution has 1)"
        )
    return None


def _check_orientation(layer: Layer, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a weight whose bias has as many entries as it has columns, but not rows.

    Groups along the wrong axis run on no hardware, and nothing later would tell.
    """
    bias = tensors.get(re.sub(r"weight$", "bias", layer.name))
    if bias is None or len(bias.shape) != 1:
        return
    rows, columns = layer.shape[:2]
    if bias.size == rows or bias.size != columns:
        return
    stored = " x ".join(map(str, layer.tensor.shape))
    if layer.transposed:
        raise ValueError(
            f"{layer.name!r} ({stored}) has a bias of {bias.size}: it seems to be stored as "
            f"(out, in), but --transposed matches it"
        )
    raise ValueError(
        f"{layer.name!r} ({stored}) has a bias of {bias.size}: it seems to be stored as "
        f"(in, out), as GPT-2's Conv1D is; say so by --transposed RE (for all of its kind, square "
        f"ones too), or leave it out by --exclude RE"
    )
