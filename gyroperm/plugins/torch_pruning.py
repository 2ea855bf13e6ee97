"""Torch-Pruning's ``DependencyGraph`` as a source of coupling, with the guards that it lacks.

Its groups say which channels are *removed* together. Removing is not reordering: it takes a
channel of every head, so it does not care that values must not cross heads, and neither what
leaves the model nor what is added to a model's input matters to it. So here attention gets its
heads, outputs are put back, and a random order of every site is tried out before it is offered.
Tested with torch-pruning 1.6.1 and torch 2.13.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import nn

from gyroperm.models import Axis, CouplingGraph, FunctionChanged, Leaving, Site, permute
from gyroperm.models.graph import named_tensors, undescribed
from gyroperm.models.inputs import model_inputs
from gyroperm.models.sites import Constraint
from gyroperm.models.verify import evaluating
from gyroperm.plugins.toolkits import need

_tp: Any = need("torch_pruning", "torch-pruning==1.6.1", "torch-pruning 1.6.1, torch 2.13.0")

_OUTPUT = "output:"
# What mixes positions of a head: the heads must be known where one is met.
_ATTENTION = ("ScaledDotProduct", "Bmm", "Baddbmm")
# A walk that has met so many nodes for each of the graph will not end: each is met once or twice.
_VISITS = 8
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
# Layers that make channels of their own, and those that also mix the ones they read.
_MAKERS = (_tp.ops.TORCH_CONV, nn.Linear, nn.Embedding, nn.MultiheadAttention)
_OPAQUE = {_tp.ops.OPTYPE.LSTM: "an LSTM's gates", _tp.ops.OPTYPE.CUSTOMIZED: "a customized layer"}


def coupling_from_dependency_graph(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    num_heads: int | Mapping[nn.Module, int] | None = None,
    proven: bool = True,
    **build: Any,
) -> CouplingGraph:
    """The coupling graph of a model by Torch-Pruning's tracing.

    Parameters
    ----------
    model : nn.Module
        As it was afterwards.
    example_inputs : Tensor, tuple or mapping, optional
        Made up for Hugging Face models.
    num_heads : int or mapping of nn.Module to int, optional
        Heads of all attentions, or of each by one of its query, key or value layers (as
        Torch-Pruning's pruners take it). By default an attribute of the module around them, such
        as ``num_heads`` or ``num_attention_heads``, or of the model's configuration. An
        attention whose heads are not known is fixed.
    proven : bool
        Try a random order of every site; one that changes the function is fixed, and says so.
    build
        Further arguments of ``DependencyGraph.build_dependency``, such as
        ``unwrapped_parameters``.

    Returns
    -------
    CouplingGraph
        Sites of queries, keys, values and the output projection are one per head, and tie all
        four: Torch-Pruning does not tell them apart. Fixed sites have their reason.

    Raises
    ------
    ValueError
        If inputs are needed and none were given.
    """
    arguments = model_inputs(model, example_inputs)
    traced = _traced(model, arguments, build)
    classes = _Classes(model, traced, num_heads)
    for root in traced.roots():
        classes.follow(root)
    sites, leaving = classes.sites()
    skipped = undescribed(model, sites, "Torch-Pruning's graph does not reach it")
    graph = CouplingGraph("Torch-Pruning's dependency graph", sites, leaving, skipped)
    return _proven(model, graph, example_inputs) if proven else graph


# --- tracing


@dataclass(frozen=True)
class _Traced:
    """A dependency graph, and the output of the run that it was traced from."""

    graph: Any
    outputs: dict[str, torch.Tensor]

    def roots(self) -> list[Any]:
        """The nodes that make channels, in the order in which the model names them."""
        places = {module: i for i, module in enumerate(self.graph._module2name)}
        nodes = [n for m, n in self.graph.module2node.items() if isinstance(m, _MAKERS)]
        return sorted(nodes, key=lambda node: places[node.module])

    def leaves_at(self, node: Any) -> list[str]:
        """The fields of the output that a node makes."""
        return [name for name, one in self.outputs.items() if one.grad_fn is node.grad_fn]


def _traced(model: nn.Module, arguments: tuple[tuple, dict], build: Mapping[str, Any]) -> _Traced:
    seen: list[Any] = []

    def forward(model: nn.Module, inputs: Any) -> Any:
        seen.append(model(*inputs[0], **inputs[1]))
        return seen[-1]

    with evaluating(model), torch.enable_grad(), _differentiable(model):
        graph = _tp.DependencyGraph().build_dependency(
            model, arguments, forward_fn=forward, **{"verbose": False, **build}
        )
        return _Traced(graph, dict(_named(seen[-1])))


def _named(output: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The differentiable tensors of an output by field, as :class:`Leaving` names them."""
    if isinstance(output, torch.Tensor):
        parts: Iterable[tuple[str, Any]] = [("", output)]
    elif hasattr(output, "keys"):
        parts = [(key, output[key]) for key in output.keys()]  # noqa: SIM118 - ModelOutput
    elif isinstance(output, list | tuple):
        parts = [(str(i), part) for i, part in enumerate(output)]
    else:
        parts = []
    for name, part in parts:
        if isinstance(part, torch.Tensor) and part.grad_fn is not None:
            yield name, part


@contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """Frozen parameters leave no trace in the graph of gradients, so none is within the block."""
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


# --- which positions of which tensors are one channel


@dataclass(frozen=True)
class _Part:
    """A dimension of a tensor that a layer's channels lie on.

    ``groups`` are those of a grouped convolution's inputs: each has rows of its own. ``block`` is
    how many consecutive channels may change places among themselves, 0 for all.
    """

    tensor: str
    dim: int
    groups: int = 1
    block: int = 0


@dataclass(frozen=True)
class _Key:
    tensor: str
    dim: int
    rows: tuple[int, int] | None = None


@dataclass
class _Classes:
    """Positions of axes joined into channels, by every path of the dependency graph."""

    model: nn.Module
    traced: _Traced
    num_heads: int | Mapping[nn.Module, int] | None
    _joined: nx.utils.UnionFind = field(default_factory=nx.utils.UnionFind)
    _blocks: dict[_Key, int] = field(default_factory=dict)
    _reasons: dict[_Key, str] = field(default_factory=dict)
    _made: dict[Any, set[int]] = field(default_factory=lambda: defaultdict(set))
    _makers: set[_Key] = field(default_factory=set)
    _readers: set[_Key] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._tensors = named_tensors(self.model)
        self._names: dict[int, str] = {}
        for name, tensor in self._tensors.items():
            # Tied tensors are one: what orders one orders the other.
            self._names.setdefault(id(tensor), name)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors, tied ones once."""
        return {name: tuple(self._tensors[name].shape) for name in self._names.values()}

    # From a layer through everything that its channels reach, as Torch-Pruning walks to find what
    # is removed together. Its own groups drop all but one channel where several meet.
    def follow(self, root: Any) -> None:
        """Join all that is coupled with the outputs of a layer."""
        graph = self.traced.graph
        count = graph.get_out_channels(root)
        if len(self._made[root]) == count:
            return
        make = graph.get_pruner_of_module(root.module).prune_out_channels
        hybrid = _tp._helpers._HybridIndex
        start = [hybrid(idx=i, root_idx=i) for i in range(count)]
        stack, seen = [(root, make, start)], [(root, make, start)]
        walked: list[tuple[Any, Any, Any]] = []
        most = _VISITS * len(graph.module2node)
        while stack and len(walked) <= most:
            node, function, indices = stack.pop()
            walked.append((node, function, indices))
            for dep in node.dependencies:
                if not dep.is_triggered_by(function):
                    continue
                mapped = indices
                for mapping in dep.index_mapping:
                    mapped = mapped if mapping is None else mapping(mapped)
                step = (dep.target, dep.handler, mapped)
                if mapped and not any(_same(step, one) for one in seen):
                    seen.append(step)
                    stack.append(step)
        endless = "Torch-Pruning's graph leads its channels to ever new places" if stack else ""
        self._join(root, walked, endless)

    def _join(self, root: Any, walked: list[tuple[Any, Any, Any]], reason: str) -> None:
        reason = reason or self._why_fixed(walked)
        joined: set[_Key] = set()
        for node, function, indices in walked:
            for key, places in self._positions(node, function, indices):
                joined.add(key)
                if max(position for position, _ in places) >= self._length(key):
                    reason = reason or f"Torch-Pruning finds a channel beyond those of {key.tensor}"
                    continue
                for position, channel in places:
                    self._joined.union((root, channel), (key, position))
        if not reason and self._attends(walked):
            heads = self._heads_of(walked)
            # The narrowest is the output projection, also where queries, keys and values are one.
            count = min(self._length(key) for key in joined)
            if heads and count % heads == 0:
                self._blocks.update(dict.fromkeys(joined, count // heads))
            else:
                reason = (
                    "it goes through attention, and nothing says rightly how many heads there are; "
                    "give num_heads"
                )
        if reason:
            self._reasons.update(dict.fromkeys(joined, reason))

    def _length(self, key: _Key) -> int:
        if key.tensor.startswith(_OUTPUT):
            return self.traced.outputs[key.tensor.removeprefix(_OUTPUT)].shape[key.dim]
        return self._tensors[key.tensor].shape[key.dim]

    def _why_fixed(self, walked: list[tuple[Any, Any, Any]]) -> str:
        for node, _, indices in walked:
            if node.type in _OPAQUE:
                return f"it meets {_OPAQUE[node.type]}"
            if any(one.root_idx is None for one in indices):
                return "Torch-Pruning does not say which heads are repeated for grouped queries"
        return ""

    def _attends(self, walked: list[tuple[Any, Any, Any]]) -> bool:
        # What an nn.MultiheadAttention does inside is its own; its parts are known.
        if any(node.type == _tp.ops.OPTYPE.MHA for node, _, _ in walked):
            return False
        return any(_operation(node).startswith(_ATTENTION) for node, _, _ in walked)

    def _heads_of(self, walked: list[tuple[Any, Any, Any]]) -> int:
        if isinstance(self.num_heads, int):
            return self.num_heads
        layers = [node.module for node, _, _ in walked if isinstance(node.module, nn.Linear)]
        for layer in layers:
            if layer in (self.num_heads or {}):
                return self.num_heads[layer]  # type: ignore[index]
        for layer in layers:
            name = self.traced.graph._module2name[layer]
            while name:
                name = name.rpartition(".")[0]
                if heads := _attribute(self.model.get_submodule(name)):
                    return heads
        return _attribute(getattr(self.model, "config", None))

    def _positions(
        self, node: Any, function: Any, indices: Any
    ) -> Iterator[tuple[_Key, list[tuple[int, int]]]]:
        """Where channels lie in the tensors of a node: positions and channels of each axis."""
        makes = self.traced.graph.is_out_channel_pruning_fn(function)
        known = [(one.idx, one.root_idx) for one in indices if one.root_idx is not None]
        if not known:
            return
        for part in self._parts(node, makes):
            for key, places in self._placed(part, known).items():
                if part.block:
                    self._blocks[key] = part.block
                if isinstance(node.module, _MAKERS):
                    # An attention's inputs come with its outputs.
                    inner = isinstance(node.module, nn.MultiheadAttention) and part.dim == 1
                    (self._readers if inner or not makes else self._makers).add(key)
                yield key, places
        if makes:
            self._made[node].update(index for index, _ in known)
            for name in self.traced.leaves_at(node):
                yield _Key(_OUTPUT + name, _channel_dim(self.traced.outputs[name])), known

    def _placed(
        self, part: _Part, known: list[tuple[int, int]]
    ) -> dict[_Key, list[tuple[int, int]]]:
        """Positions of a part by axis, of which a grouped convolution's inputs have several."""
        if part.groups == 1:
            return {_Key(part.tensor, part.dim): known}
        shape = self._tensors[part.tensor].shape
        rows, size = shape[0] // part.groups, shape[part.dim]
        found: dict[_Key, list[tuple[int, int]]] = defaultdict(list)
        for index, channel in known:
            group, position = divmod(index, size)
            key = _Key(part.tensor, part.dim, (group * rows, (group + 1) * rows))
            found[key].append((position, channel))
        return found

    def _parts(self, node: Any, makes: bool) -> list[_Part]:
        module = node.module
        if isinstance(module, nn.Parameter):
            return self._owned([(module, node.pruning_dim % module.dim())])
        if isinstance(module, nn.Linear):
            return self._owned(
                [(module.weight, 0), (module.bias, 0)] if makes else [(module.weight, 1)]
            )
        if isinstance(module, _tp.ops.TORCH_CONV):
            return self._of_convolution(module, makes)
        if isinstance(module, nn.MultiheadAttention):
            return self._of_attention(module)
        if isinstance(module, nn.Embedding):
            return self._owned([(module.weight, 1)])
        if isinstance(module, nn.LayerNorm):
            last = len(module.normalized_shape) - 1
            return self._owned([(module.weight, last), (module.bias, last)])
        if isinstance(module, nn.GroupNorm):
            block = module.num_channels // module.num_groups
            return self._owned([(module.weight, 0), (module.bias, 0)], block=block)
        if isinstance(module, nn.PReLU):
            return self._owned([(module.weight, 0)] if module.num_parameters > 1 else [])
        if isinstance(module, (_tp.ops.TORCH_BATCHNORM, _tp.ops.TORCH_INSTANCENORM)):
            own = (module.weight, module.bias, module.running_mean, module.running_var)
            return self._owned([(tensor, 0) for tensor in own])
        return []

    def _of_convolution(self, module: Any, makes: bool) -> list[_Part]:
        groups = module.groups
        if groups == module.out_channels == module.in_channels and groups > 1:
            return self._owned([(module.weight, 0), (module.bias, 0)])
        if module.transposed:
            dims = (1, 0)
            if groups > 1:
                return []
        else:
            dims = (0, 1)
        if makes:
            block = module.out_channels // groups if groups > 1 else 0
            return self._owned([(module.weight, dims[0]), (module.bias, 0)], block=block)
        return self._owned([(module.weight, dims[1])], groups=groups)

    def _of_attention(self, module: nn.MultiheadAttention) -> list[_Part]:
        """Inputs and outputs; values, which Torch-Pruning would move along, keep to their heads."""
        if module.in_proj_weight is None:
            return []
        out, size = module.out_proj, module.embed_dim
        hd = size // module.num_heads
        values = [(module.in_proj_weight, 0, 2 * size), (module.in_proj_bias, 0, 2 * size)]
        for tensor, dim, shift in [*values, (out.weight, 1, 0)]:
            for part in self._owned([(tensor, dim)]):
                key = _Key(part.tensor, dim)
                self._blocks[key] = hd
                for j in range(size):
                    self._joined.union((module, j), (key, shift + j))
        return self._owned([(module.in_proj_weight, 1), (out.weight, 0), (out.bias, 0)])

    def _owned(self, tensors: list[tuple[Any, int]], **settings: int) -> list[_Part]:
        return [
            _Part(self._names[id(tensor)], dim, **settings)
            for tensor, dim in tensors
            if tensor is not None and id(tensor) in self._names
        ]

    # --- channels that are alike may change places

    def sites(self) -> tuple[tuple[Site, ...], tuple[Leaving, ...]]:
        """Sites, and where their elements leave the model."""
        alike: dict[tuple, list[dict[_Key, list[int]]]] = defaultdict(list)
        for joined in self._joined.to_sets():
            places: dict[_Key, list[int]] = defaultdict(list)
            for owner, position in joined:
                if isinstance(owner, _Key):
                    places[owner].append(position)
            for positions in places.values():
                positions.sort()
            keys = sorted(places, key=self._rank)
            kind = tuple((key, len(places[key])) for key in keys)
            # Those of different blocks may not change places.
            block = tuple(
                tuple(p // self._blocks[key] for p in places[key])
                for key in keys
                if key in self._blocks
            )
            alike[kind, block].append({key: places[key] for key in keys})
        return self._named_sites(alike)

    def _rank(self, key: _Key) -> tuple:
        order = {name: i for i, name in enumerate(self._tensors)}
        return order.get(key.tensor, len(order)), key.tensor, key.dim, key.rows or (0, 0)

    def _named_sites(
        self, alike: Mapping[tuple, list[dict[_Key, list[int]]]]
    ) -> tuple[tuple[Site, ...], tuple[Leaving, ...]]:
        kinds: dict[tuple, list[list[dict[_Key, list[int]]]]] = defaultdict(list)
        for (kind, _), channels in alike.items():
            channels.sort(key=lambda places: next(iter(places.values())))
            kinds[kind].append(channels)
        sites: list[Site] = []
        leaving: list[Leaving] = []
        taken: set[str] = set()
        ordered = sorted(kinds, key=lambda kind: [self._rank(key) for key, _ in kind])
        for kind in ordered:
            name = _unused(self._name(kind), taken)
            blocks = sorted(kinds[kind], key=lambda channels: next(iter(channels[0].values())))
            for b, channels in enumerate(blocks):
                label = f"{name}[{b}]" if len(blocks) > 1 else name
                site, exits = self._site(label, channels, len(blocks) > 1)
                if site is not None:
                    sites.append(site)
                    leaving.extend(exits)
        return tuple(sites), tuple(leaving)

    def _name(self, kind: tuple) -> str:
        """The layer that makes the channels, else the first tensor that has them."""
        made = [key.tensor for key, _ in kind if key in self._makers]
        first = (made or [key.tensor for key, _ in kind])[0]
        ends = ".weight", ".bias", ".in_proj_weight"
        return next((first.removesuffix(end) for end in ends if first.endswith(end)), first)

    def _site(
        self, name: str, channels: list[dict[_Key, list[int]]], within: bool
    ) -> tuple[Site | None, list[Leaving]]:
        keys = list(channels[0])
        members = {key: np.array([one[key] for one in channels], dtype=np.int64) for key in keys}
        axes = tuple(
            Axis(key.tensor, key.dim, members[key], key.rows)
            for key in keys
            if not key.tensor.startswith(_OUTPUT)
        )
        if len(channels) < 2 or not axes:
            return None, []
        exits = [key for key in keys if key.tensor.startswith(_OUTPUT)]
        reason = next((self._reasons[key] for key in keys if key in self._reasons), "")
        reason = reason or self._why_not_out(exits, keys, members)
        if reason:
            return Site(name, len(channels), axes, "fixed", reason), []
        constraint: Constraint = "within block" if within else "free"
        leaving = [Leaving(key.tensor.removeprefix(_OUTPUT), name, key.dim) for key in exits]
        return Site(name, len(channels), axes, constraint), leaving

    def _why_not_out(self, exits: list[_Key], keys: list[_Key], members: Mapping[_Key, Any]) -> str:
        for key in exits:
            if not np.array_equal(members[key], np.arange(self._length(key))[:, None]):
                return "its channels leave the model, and not as a dimension of their own"
        if exits and self._readers.isdisjoint(keys):
            return "its channels are the model's output, and nothing else reads them"
        return ""


def _same(one: tuple[Any, Any, Any], other: tuple[Any, Any, Any]) -> bool:
    return one[0] is other[0] and one[1] == other[1] and one[2] == other[2]


def _operation(node: Any) -> str:
    name = getattr(node.grad_fn, "name", None)
    return name() if callable(name) else ""


def _attribute(owner: Any) -> int:
    found = (getattr(owner, name, None) for name in _HEADS)
    return next((value for value in found if isinstance(value, int)), 0)


def _channel_dim(tensor: torch.Tensor) -> int:
    """Where channels lie by torch's conventions: pictures and sequences of features apart."""
    return 1 if tensor.dim() > 3 else tensor.dim() - 1


def _unused(name: str, taken: set[str]) -> str:
    label, count = name, 1
    while label in taken:
        count += 1
        label = f"{name}/{count}"
    taken.add(label)
    return label


# --- what the graph says, tried out


def _proven(model: nn.Module, graph: CouplingGraph, inputs: Any) -> CouplingGraph:
    """The graph with every site fixed whose random order changes the function."""
    families = list(dict.fromkeys(site.family for site in graph.free))
    if not families or not _wrong(model, graph, families, inputs):
        return graph
    wrong = {f: why for f in families if (why := _wrong(model, graph, [f], inputs))}
    sites = tuple(
        replace(site, constraint="fixed", reason=wrong[site.family])
        if site.family in wrong and not site.fixed
        else site
        for site in graph.sites
    )
    names = {site.name for site in sites if not site.fixed}
    leaving = tuple(one for one in graph.leaving if one.site in names)
    return replace(graph, sites=sites, leaving=leaving)


def _wrong(model: nn.Module, graph: CouplingGraph, families: list[str], inputs: Any) -> str:
    """Why random orders of these sites do not preserve the function; empty if they do."""
    draw = np.random.default_rng(0)
    orders = {
        site.name: draw.permutation(site.size) for site in graph.free if site.family in families
    }
    try:
        permute(model, orders, graph=graph, inputs=inputs)
    except FunctionChanged as error:
        at = f", first in {error.module}" if error.module else ""
        return f"a random order of what Torch-Pruning couples changes the function{at}"
    back = {name: np.argsort(order) for name, order in orders.items()}
    permute(model, back, graph=graph, inputs=inputs, verified=False)
    return ""
