"""Parts that families of models have in common: attention, feed-forward nets, norms, heads.

Layouts use the same factors everywhere: ``d`` the residual stream, ``c`` a hidden channel, ``kv``
key-value heads, ``rep`` the query heads of one, ``qd`` and ``vd`` the dimensions of a query or key
and of a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from gyroperm.models.layout import parsed
from gyroperm.models.spec import Coupled, Leaving

#: Axes by name, with their layouts.
Axes = dict[str, str]

ROTARY = "rotary embedding turns each pair of dimensions by its own frequency"

#: What every model has at its rim: axes that stand for tokens, positions, labels or pixels.
RIM = {
    "tokens": "stands for the tokens of the vocabulary",
    "positions": "stands for positions",
    "types": "stands for token types",
    "labels": "stands for labels",
    "pixels": "stands for the channels of the input",
    "buckets": "stands for distances",
    "layers": "stands for the layers",
}


def has(model: nn.Module, *suffixes: str) -> bool:
    """Whether the model has a parameter that ends in any of these."""
    names = (name for name, _ in model.named_parameters(remove_duplicate=False))
    return any(name.endswith(suffixes) for name in names)


def rows(module: str, layout: str) -> Axes:
    """What a linear map puts out."""
    return {f"{module}.weight[0]": layout, f"{module}.bias[0]?": layout}


def columns(module: str, layout: str) -> Axes:
    """What a linear map takes in."""
    return {f"{module}.weight[1]": layout}


def norm(module: str, layout: str = "d") -> Axes:
    """A layer or RMS norm."""
    return {f"{module}.weight[0]": layout, f"{module}.bias[0]?": layout}


def optional(axes: Axes) -> Axes:
    """The same axes, each of which a model may lack."""
    return {axis if axis.endswith("?") else axis + "?": layout for axis, layout in axes.items()}


def ffn(name: str, up: Iterable[str], down: str, layout: str = "c") -> Coupled:
    """The hidden channels between linear maps; a fused gate and up has the layout ``2 c``."""
    axes: Axes = {}
    for module in up:
        axes |= rows(module, layout)
    return Coupled(name, {**axes, **columns(down, "c")}, order="c")


def separate_attention(module: str, q: str, k: str, v: str, o: str) -> Axes:
    """Axes of an attention with a linear map each for queries, keys, values and the output."""
    return {
        **rows(f"{module}.{q}", "kv rep qd"),
        **rows(f"{module}.{k}", "kv qd"),
        **rows(f"{module}.{v}", "kv vd"),
        **columns(f"{module}.{o}", "kv rep vd"),
    }


def head_sizes(config: Any) -> dict[str, int]:
    """``kv``, ``rep`` and ``hd`` of a Hugging Face configuration."""
    heads = config.num_attention_heads
    kv = getattr(config, "num_key_value_heads", None) or heads
    hd = getattr(config, "head_dim", None) or config.hidden_size // heads
    return {"kv": kv, "rep": heads // kv, "hd": hd}


def rotary_dimensions(config: Any, hd: int) -> int:
    """How many dimensions of a head are turned by position."""
    rope = getattr(config, "rope_parameters", None) or {}
    share = rope.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    turned = int(hd * (1.0 if share is None else share))
    # Dimensions are turned in pairs, the last of which is completed.
    return min(hd, turned + turned % 2)


def without_cross_attention(config: Any) -> None:
    """Refuse a decoder that looks at an encoder, which is not described.

    Raises
    ------
    ValueError
        If the configuration adds cross-attention.
    """
    if getattr(config, "add_cross_attention", False):
        raise ValueError(
            f"the spec of {config.model_type} does not describe cross-attention; give a spec of "
            f"your own as graph="
        )


def factors(sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of the factors of an attention's layouts."""
    return {"kv": sizes["kv"], "rep": sizes["rep"], "vd": sizes["hd"], "qd": sizes["hd"]}


def attention(
    name: str,
    axes: Mapping[str, str],
    sizes: Mapping[str, int],
    *,
    rotary: int | None = None,
    heads: bool = True,
    heads_fixed: str = "",
) -> list[Coupled]:
    """The sites of an attention: values, keys, query heads within a group, whole groups.

    Parameters
    ----------
    name : str
        Of the attention; sites are called ``name.values`` and so on.
    axes : mapping of str to str
        Its axes with layouts of ``kv``, ``rep``, ``qd`` and ``vd``.
    sizes : mapping of str to int
        ``kv``, ``rep`` and ``hd``.
    rotary : int, optional
        How many dimensions of queries and keys are turned by position; those behind are free.
    heads : bool
        Whether whole heads are sites; False where the caller ties them across layers.
    heads_fixed : str
        Why whole heads must stay; empty where they may move.
    """
    hd = sizes["hd"]
    known = factors(sizes)
    if rotary is not None:
        known |= {"rot": rotary, "pass": hd - rotary}
        axes = {axis: layout.replace("qd", "(rot + pass)") for axis, layout in axes.items()}

    def site(kind: str, order: str, within: str | None = None, fixed: str = "") -> Coupled:
        own = {a: layout for a, layout in axes.items() if order in parsed(layout).factors}
        return Coupled(f"{name}.{kind}", own, order, within, known, fixed)

    sites = [site("values", "vd", "kv")]
    if rotary is None:
        sites.append(site("keys", "qd", "kv"))
    else:
        sites.append(site("rotary", "rot", fixed=ROTARY))
        if rotary < hd:
            sites.append(site("keys", "pass", "kv"))
    if sizes["rep"] > 1:
        sites.append(site("query_heads", "rep", "kv", heads_fixed))
    if heads:
        sites.append(site("heads", "kv", fixed=heads_fixed))
    return sites


def hidden_states_leave(*extra: str) -> tuple[Leaving, ...]:
    """The fields in which the residual stream leaves a model."""
    fields = ("last_hidden_state", "hidden_states", *extra)
    return tuple(Leaving(field, "residual") for field in fields)
