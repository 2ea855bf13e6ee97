"""Layers of all-MiniLM-L6-v2, what they are fed, and what their outputs lose to a mask."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import gyroperm
from benchmarks.embeddings import Encoder, agreement
from gyroperm import Pattern
from gyroperm.arrangement import Arrangement
from gyroperm.gram import Gram
from gyroperm.models import Calibration, calibrate

#: Ten layers, every kind and every depth, in the order of their use.
LAYERS = (
    "encoder.layer.0.attention.self.query",
    "encoder.layer.0.intermediate.dense",
    "encoder.layer.1.attention.self.key",
    "encoder.layer.1.attention.output.dense",
    "encoder.layer.2.attention.self.value",
    "encoder.layer.2.output.dense",
    "encoder.layer.3.intermediate.dense",
    "encoder.layer.4.attention.self.query",
    "encoder.layer.5.attention.self.value",
    "encoder.layer.5.intermediate.dense",
)

PATTERNS = {
    "2:4": Pattern.nm(2, 4),
    "HiNM 75 %": Pattern.hinm(2, 4, vec_ratio=0.5, vec_size=32),
}

SALIENCIES = ("magnitude", "wanda", "ria", "obs")

#: One of so many sentences calibrates, the others compare.
PARTS = 3


@dataclass(frozen=True)
class Permutation:
    """A way to find the order of rows and columns.

    Attributes
    ----------
    title : str
    method : str
    patterns : tuple of str
        Of :data:`PATTERNS`.
    objective : str or None
        What ``solve`` is given the layer's inputs for; None where it is not given them.
    start : str or None
        Where learning begins.
    published : bool
        Whether it runs to its published end, not for so many seconds. By one saliency alone, the
        published one: it takes its time.
    """

    title: str
    method: str
    patterns: tuple[str, ...] = tuple(PATTERNS)
    objective: str | None = None
    start: str | None = None
    published: bool = False

    @property
    def aim(self) -> str:
        """What masks by error are chosen for: what the search was for, where that is an error."""
        return "error" if self.objective is None else self.objective

    @property
    def by_error(self) -> bool:
        """Whether its own masks within groups are those of the least error."""
        return self.method == "auto" and self.objective is not None


#: By what they are called on the command line.
PERMUTATIONS = {
    "none": Permutation("none", "identity"),
    "ria": Permutation("RIA's search", "ria", ("2:4",)),
    "stripe": Permutation("stripe search", "stripe", ("2:4",)),
    "gyro": Permutation("gyro-permutation", "gyro", ("HiNM 75 %",)),
    "learned-published": Permutation(
        "learned as published", "learned", objective="error", start="random", published=True
    ),
    "learned-random": Permutation(
        "learned, random start", "learned", objective="error", start="random"
    ),
    "learned-start": Permutation(
        "learned, our start", "learned", objective="error", start="combinatorial"
    ),
    "auto": Permutation("auto", "auto"),
    "auto-error": Permutation("auto on output error", "auto", objective="error"),
    "auto-compensated": Permutation("auto on compensated error", "auto", objective="compensated"),
}

#: The saliency by which alone methods run to their published end.
PUBLISHED_SALIENCY = "wanda"

#: How masks are chosen within the groups that a permutation makes.
MASKS = ("saliency", "error")


@dataclass(frozen=True)
class Row:
    """A line of the table: how every layer is pruned."""

    pattern: str
    saliency: str
    permutation: str

    @property
    def how(self) -> Permutation:
        """The permutation."""
        return PERMUTATIONS[self.permutation]

    @property
    def own_mask(self) -> str:
        """Which of :data:`MASKS` belongs to the permutation."""
        return "error" if self.how.by_error else "saliency"


def rows(
    patterns: Sequence[str], saliencies: Sequence[str], permutations: Sequence[str]
) -> list[Row]:
    """The lines of the table, without those that do not exist."""
    return [
        Row(pattern, saliency, permutation)
        for pattern in patterns
        for saliency in saliencies
        for permutation in permutations
        if pattern in PERMUTATIONS[permutation].patterns
        and (not PERMUTATIONS[permutation].published or saliency == PUBLISHED_SALIENCY)
    ]


@dataclass(frozen=True)
class Settings:
    """What figures depend on besides the row and the layer.

    Attributes
    ----------
    seconds : float
        For each search that is not published to its end.
    iterations : int
        Passes of learning as published.
    sentences : int or None
        Use the first so many only.
    """

    seconds: float = 0.8
    iterations: int = 50
    sentences: int | None = None


class Data:
    """The dense model, what its layers are fed by some sentences, and by others.

    Parameters
    ----------
    sentences : sequence of str
    names : sequence of str
        The linear layers that matter.
    """

    def __init__(self, sentences: Sequence[str], names: Sequence[str]) -> None:
        self.names = list(names)
        self._seen = [s for i, s in enumerate(sentences) if i % PARTS == 0]
        self.held_out = [s for i, s in enumerate(sentences) if i % PARTS]

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder, with its own weights between calls."""
        return Encoder()

    @cached_property
    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Of each layer."""
        bert = self.encoder.bert
        # Copies: the model's own are replaced for a while.
        return {
            name: bert.get_submodule(name).weight.detach().numpy().copy() for name in self.names
        }

    @cached_property
    def activations(self) -> dict[str, NDArray[np.float32]]:
        """What each layer is fed for sentences of calibration, (tokens, C)."""
        import torch

        fed: dict[str, list[Any]] = {name: [] for name in self.names}

        def see(name: str, _: Any, arguments: Any) -> None:
            fed[name].append(arguments[0].reshape(-1, arguments[0].shape[-1]))

        bert = self.encoder.bert
        hooks = [
            bert.get_submodule(name).register_forward_pre_hook(partial(see, name))
            for name in self.names
        ]
        try:
            with torch.no_grad():
                for sentence in self._seen:
                    bert(**self.encoder.tokens([sentence]))
        finally:
            for hook in hooks:
                hook.remove()
        return {name: torch.cat(parts).numpy() for name, parts in fed.items()}

    @cached_property
    def seen(self) -> dict[str, Gram]:
        """The Gram matrices of calibration."""
        return {name: Gram.of_activations(X) for name, X in self.activations.items()}

    @cached_property
    def unseen(self) -> dict[str, Gram]:
        """The Gram matrices of the other sentences."""
        return self._grams()

    @cached_property
    def embeddings(self) -> NDArray[np.float32]:
        """Of the sentences that calibration has not seen."""
        return self.encoder.embed(self.held_out)

    def saliency(self, name: str, layer: str) -> NDArray[np.floating]:
        """One of :data:`SALIENCIES` of a layer."""
        weights, gram = self.weights[layer], self.seen[layer]
        makers: Mapping[str, Callable[[], NDArray[np.floating]]] = {
            "magnitude": lambda: gyroperm.magnitude(weights),
            "wanda": lambda: gyroperm.wanda(weights, gram.norms),
            "ria": lambda: gyroperm.ria(weights, gram.norms),
            "obs": lambda: gyroperm.obs(weights, gram.matrix),
        }
        return makers[name]()

    def pruned_so_far(self, weights: Mapping[str, NDArray[np.floating]]) -> dict[str, Any]:
        """What a model with all of these layers pruned makes of the sentences not seen.

        The error of each layer, fed by the model with the layers before it pruned; and the
        agreement of embeddings.
        """
        dense = self.embeddings
        with self.encoder.replaced(weights):
            grams = self._grams()
            near = agreement(dense, self.encoder.embed(self.held_out))
        errors = {
            name: gram.relative_error(self.weights[name], weights[name])
            for name, gram in grams.items()
        }
        return {
            "errors": errors,
            "mean_cosine": near.mean_cosine,
            "rank_correlation": near.rank_correlation,
        }

    def _grams(self) -> dict[str, Gram]:
        # A sentence at a time: padding would count as tokens.
        batches = (self.encoder.tokens([sentence]) for sentence in self.held_out)
        fed: Calibration = calibrate(
            self.encoder.bert, batches, statistics="gram", modules=self.names, progress=False
        )
        return {name: Gram.of(fed[name].gram, warn=False) for name in self.names}


def search(data: Data, row: Row, layer: str, settings: Settings, threads: int) -> dict[str, Any]:
    """Find the order of one layer; its masks and the seconds, ready for JSON."""
    how = row.how
    weights, saliency = data.weights[layer], data.saliency(row.saliency, layer)
    given: dict[str, Any] = {
        "pattern": PATTERNS[row.pattern],
        "saliency": saliency,
        "threads": threads,
    }
    fed = {"gram": data.seen[layer].matrix}
    options: dict[str, Any] = {}
    if how.method == "learned":
        fed = {"activations": data.activations[layer]}
        options = {"options": {"start": how.start, "iterations": settings.iterations}}
    judged = {} if how.objective is None else {**fed, "objective": how.objective}
    limit = {} if how.published else {"time_limit": settings.seconds}
    solution = gyroperm.solve(weights, method=how.method, **given, **judged, **options, **limit)
    # The same groups, as if nothing were known of the output.
    arrangement = solution.arrangement
    own = Arrangement(arrangement.tile_rows, arrangement.groups, arrangement.col_order)
    by_saliency = own.mask(saliency, solution.pattern.n)
    # For every row alike: from the masks that the search has left on, as long as it takes.
    by_error = gyroperm.solve(
        weights,
        **{**given, "gram": data.seen[layer].matrix, "objective": how.aim},
        method="output",
        options={"columns": False},
        initial=solution,
    )
    masks = {"saliency": by_saliency, "error": by_error.mask}
    return {
        "layer": layer,
        "seconds": solution.seconds,
        "ratio": solution.ratio,
        "masks": {kind: pack(mask) for kind, mask in masks.items()},
    }


def pack(mask: NDArray[np.bool_]) -> str:
    """A mask as text."""
    return base64.b64encode(zlib.compress(np.packbits(mask).tobytes())).decode()


def unpack(text: str, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The mask of :func:`pack`."""
    bits = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)
    return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(np.bool_)
