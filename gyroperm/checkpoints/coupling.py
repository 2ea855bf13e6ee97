"""Which channels of a checkpoint are coupled, by its configuration and its tensors' names alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gyroperm.checkpoint import WEIGHT_WORDS
from gyroperm.checkpoints.portrait import thinned
from gyroperm.checkpoints.results import save_orders
from gyroperm.checkpoints.saliency import Orders
from gyroperm.checkpoints.settings import Settings, Surgery
from gyroperm.checkpoints.source import Source
from gyroperm.checkpoints.tasks import Placed
from gyroperm.selection import Layer
from gyroperm.solution import Solution
from gyroperm.stopping import MaxRounds

if TYPE_CHECKING:
    from gyroperm.models.sites import Site

# What older libraries saved though it is computed: causal masks, frequencies, positions.
_COMPUTED = re.compile(
    r"(^|\.)((attn|attention)\.(masked_)?bias|rotary_emb\.inv_freq|(position|token_type)_ids)$"
)
# What configurations call the same, the first where there are several.
_ALIASES = {
    "hidden_size": ("n_embd", "d_model", "dim"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "partial_rotary_factor": ("rotary_pct",),
}
_LEAVES = "hidden states leave the model in this order; surgery 'all' reorders it all the same"


class _Config:
    """A configuration's entries as attributes."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self._entries = entries

    def __getattr__(self, name: str) -> Any:
        entries = object.__getattribute__(self, "_entries")
        for key in (name, *_ALIASES.get(name, ())):
            if key in entries:
                return entries[key]
        raise AttributeError(f"its config.json lacks {name!r}")


@dataclass(frozen=True)
class _Shape:
    """A stored tensor, as far as a spec asks for it."""

    shape: tuple[int, ...]

    def dim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)


class _StoredModel:
    """What a family's spec asks of a model, answered by a checkpoint."""

    def __init__(self, source: Source) -> None:
        self.config = _Config(source.config)
        self._shapes = {
            name: _Shape(tensor.shape)
            for name, tensor in source.tensors.items()
            if not _is_computed(name, tensor.shape)
        }

    def named_parameters(self, remove_duplicate: bool = True) -> Iterator[tuple[str, _Shape]]:
        """The names and shapes of all tensors."""
        yield from self._shapes.items()

    def named_buffers(self, remove_duplicate: bool = True) -> Iterator[tuple[str, _Shape]]:
        """None: a checkpoint does not tell them from parameters."""
        yield from ()


def _is_computed(name: str, shape: tuple[int, ...]) -> bool:
    # The bias of a linear map that is called attention has one dimension.
    return bool(_COMPUTED.search(name)) and not (len(shape) == 1 and name.endswith(".bias"))


@dataclass(frozen=True)
class Group:
    """Sites whose orders are searched one after the other, since they share columns of weights.

    Attributes
    ----------
    name : str
    sites : tuple of Site
    layers : tuple of str
        The pruned weights whose columns they order.
    """

    name: str
    sites: tuple[Site, ...]
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Coupling:
    """The coupled channels of a checkpoint.

    Attributes
    ----------
    family : str
    sites : tuple of Site
        Those that may be reordered, in the order in which that is done.
    groups : tuple of Group
        What is searched.
    unsearched : dict of str to str
        Sites that stay, and why.
    """

    family: str
    sites: tuple[Site, ...]
    groups: tuple[Group, ...]
    unsearched: dict[str, str] = field(default_factory=dict)

    def described(self) -> str:
        """A few lines for people."""
        lines = [
            f"surgery by the spec of {self.family}: {len(self.groups)} groups of coupled channels"
        ]
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.unsearched.items():
            by_reason.setdefault(reason, []).append(name)
        for reason, names in by_reason.items():
            more = ", ..." if len(names) > 1 else ""
            lines.append(f"{len(names):5}  stay: {reason}: {names[0]}{more}")
        return "\n".join(lines)


def coupled(source: Source, layers: Sequence[Layer], surgery: Surgery) -> Coupling:
    """The channels that may be reordered in a checkpoint's files.

    Parameters
    ----------
    source : Source
    layers : sequence of Layer
        The weights to be pruned.
    surgery : {"inner", "all"}

    Raises
    ------
    ValueError
        If the configuration names no family with a spec, or the spec does not describe every
        tensor: what it does not know cannot follow.
    ImportError
        Without torch, which the specs of models come with.
    """
    from gyroperm.models.families import FAMILIES
    from gyroperm.models.graph import CouplingGraph

    family = str(source.config.get("model_type", ""))
    if family not in FAMILIES:
        said = f"says model_type {family!r}" if family else "with a model_type is missing"
        raise ValueError(
            f"surgery needs to know the architecture, and config.json in {source.folder} {said}; "
            f"known are {', '.join(FAMILIES)}. Without surgery any checkpoint can be pruned"
        )
    stored: Any = _StoredModel(source)
    try:
        spec = FAMILIES[family](stored)
        graph = CouplingGraph.from_spec(stored, spec)
    except (AttributeError, ValueError) as error:
        raise ValueError(f"the spec of {family} does not fit {source.folder}: {error}") from error
    _check_described(graph, source, family)
    leaving = {leaving.site for leaving in spec.leaving} if surgery == "inner" else set()
    unsearched = {site.name: _LEAVES for site in graph.sites if site.name in leaving}
    unsearched |= {site.name: site.reason for site in graph.sites if site.fixed}
    sites = tuple(site for site in graph.sites if site.name not in unsearched)
    return Coupling(family, sites, tuple(_groups(sites, layers)), unsearched)


def _check_described(graph: Any, source: Source, family: str) -> None:
    """ValueError if a tensor that may have channels to follow is not described."""
    axes = [axis for site in graph.sites for axis in site.axes]
    known = {axis.tensor for axis in axes}
    lengths = {source.tensors[axis.tensor].shape[axis.dim] for axis in axes}
    lost = [name.partition("[")[0] for name, why in graph.skipped.items() if why.startswith("not ")]
    lost += [axis.tensor for axis in axes if axis.rows is not None]
    lost += [n for n in known if source.tensors[n].dtype not in WEIGHT_WORDS]
    lost += [
        name
        for name, tensor in source.tensors.items()
        if len(tensor.shape) == 1
        and tensor.shape[0] in lengths
        and name not in known
        and f"{name.removesuffix('bias')}weight[0]" not in graph.skipped
        and not _is_computed(name, tensor.shape)
    ]
    if lost:
        raise ValueError(
            f"the spec of {family} does not say how {', '.join(dict.fromkeys(lost[:4]))} of "
            f"{source.folder} would follow: surgery on it would change what the model computes"
        )


def _groups(sites: Sequence[Site], layers: Sequence[Layer]) -> Iterator[Group]:
    """Sites by the weights whose columns they share."""
    inputs = {layer.name: 0 if layer.transposed else 1 for layer in layers}
    groups: list[tuple[list[Site], set[str]]] = []
    for site in sites:
        own = {axis.tensor for axis in site.axes if inputs.get(axis.tensor) == axis.dim}
        if not own:
            continue
        joined, shared = [site], own
        apart = []
        for others, tensors in groups:
            if tensors & own:
                joined, shared = others + joined, tensors | shared
            else:
                apart.append((others, tensors))
        groups = [*apart, (joined, shared)]
    place = {site.name: i for i, site in enumerate(sites)}
    for joined, shared in groups:
        ordered = tuple(sorted(joined, key=lambda site: place[site.name]))
        yield Group(ordered[0].family, ordered, tuple(n for n in inputs if n in shared))


@dataclass(frozen=True)
class _Weight:
    """A stored weight as a search of coupled channels asks for it."""

    name: str
    shape: tuple[int, ...]
    groups: int
    input_dim: int
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class ChannelsTask:
    """Search the orders of a group of coupled channels, and write them.

    Parameters
    ----------
    group : Group
    layers : tuple of Placed
    wide : frozenset of str
        Layers stored as F64.
    settings : Settings
    result : Path
        The file to write.
    """

    group: Group
    layers: tuple[Placed, ...]
    wide: frozenset[str]
    settings: Settings
    result: Path

    @property
    def name(self) -> str:
        """By which the journal knows it."""
        return f"channels {self.group.name}"

    @property
    def weights(self) -> int:
        """How much there is to search."""
        return sum(layer.size for layer in self.layers)

    def run(self, threads: int | None) -> dict[str, Any]:
        """Do it."""
        from gyroperm.models.graph import CouplingGraph
        from gyroperm.models.stacks import search_sites

        placed = {layer.tensor: layer for layer in self.layers}
        searches = _searches(self.settings, threads)
        found, _ = search_sites(
            CouplingGraph("a checkpoint", self.group.sites),
            {layer.tensor: self._weight(layer) for layer in self.layers},
            set(placed),
            lambda name: placed[name].saliency(),
            searches,
        )
        sites = [
            {
                **asdict(site),
                "efficacy": site.efficacy,
                "history": thinned(searches.histories.get(site.name, ())),
            }
            for site in found.sites
        ]
        return {
            "file": self.result.name,
            "sha256": save_orders(self.result, found.orders),
            "sites": sites,
            "unsearched": found.unsearched,
        }

    def _weight(self, layer: Placed) -> _Weight:
        shape = layer.shape[::-1] if layer.transposed else layer.shape
        dtype = np.dtype(np.float64 if layer.tensor in self.wide else np.float32)
        return _Weight(layer.tensor, shape, 1, 0 if layer.transposed else 1, dtype)


def _searches(settings: Settings, threads: int | None) -> Any:
    from gyroperm.models.solutions import Searches

    @dataclass(frozen=True)
    class Noted(Searches):
        """Searches whose histories are kept, for the report."""

        histories: dict[str, Any] = field(default_factory=dict)

        def solve(self, name: str, saliency: NDArray[Any], **more: Any) -> Solution:
            solution = super().solve(name, saliency, **more)
            self.histories[name] = solution.history
            return solution

    return Noted(
        settings.pattern,
        settings.method,
        settings.options or None,
        None if settings.rounds is None else MaxRounds(settings.rounds),
        settings.time_limit,
        settings.seed,
        threads,
    )


def composed(
    sites: Sequence[Site],
    orders: Mapping[str, NDArray[np.int64]],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Orders]:
    """For every tensor that moves: what comes to each place of its first two dimensions.

    Parameters
    ----------
    sites : sequence of Site
        In the order in which they are applied.
    orders : mapping of str to ndarray
        Of those that are reordered, by site.
    shapes : mapping of str to tuple of int
        Of the tensors.
    """
    found: dict[tuple[str, int], NDArray[np.int64]] = {}
    for site in sites:
        if site.name not in orders:
            continue
        order = site.checked(orders[site.name])
        done: set[tuple[str, int, bytes]] = set()
        for axis in site.axes:
            key = (axis.tensor, axis.dim, axis.members.tobytes())
            if key in done:
                continue
            done.add(key)
            length = shapes[axis.tensor][axis.dim]
            now = found.get(key[:2], np.arange(length))
            found[key[:2]] = now[axis.index(order, length)]
    tensors = dict.fromkeys(tensor for tensor, _ in found)
    return {name: (found.get((name, 0)), found.get((name, 1))) for name in tensors}
