"""Sentence embeddings of all-MiniLM-L6-v2, dense and pruned, and how well they agree."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import minilm
from gyroperm.files import atomic_path


class Encoder:
    """all-MiniLM-L6-v2 as an encoder of sentences, on the CPU and without the network.

    Attributes
    ----------
    model : sentence_transformers.SentenceTransformer
    """

    def __init__(self) -> None:
        # The model is complete on disk: the hub is not asked for anything.
        os.environ["HF_HUB_OFFLINE"] = "1"
        import transformers
        from sentence_transformers import SentenceTransformer

        transformers.logging.disable_progress_bar()
        self.model = SentenceTransformer(str(minilm.model_folder()), device="cpu")

    @property
    def bert(self) -> Any:
        """The Hugging Face model inside: what can be reordered and pruned."""
        from transformers import PreTrainedModel

        return next(one for one in self.model.modules() if isinstance(one, PreTrainedModel))

    def tokens(self, sentences: Sequence[str]) -> dict[str, Any]:
        """What :attr:`bert` is fed for sentences, as one batch; shorter ones are padded."""
        return dict(self.model.tokenizer(list(sentences), padding=True, return_tensors="pt"))

    def embed(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings of unit length, shape ``(sentences, 384)``."""
        return self.model.encode(
            list(sentences), normalize_embeddings=True, show_progress_bar=False
        )

    @contextmanager
    def replaced(self, weights: Mapping[str, NDArray[np.floating]]) -> Iterator[None]:
        """Within the context, linear layers have other weights; afterwards their own again.

        Parameters
        ----------
        weights : mapping of str to ndarray
            New weights by the layer's name, such as ``encoder.layer.0.output.dense``.

        Raises
        ------
        KeyError
            If the model has no such layer.
        """
        import torch

        parameters = {name: self._parameter(name) for name in weights}
        own = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        try:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(torch.from_numpy(np.ascontiguousarray(weights[name])))
            yield
        finally:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(own[name])

    def _parameter(self, layer: str) -> Any:
        # What sentence-transformers calls the module around the encoder differs by version.
        for name, parameter in self.model.named_parameters():
            if name.endswith(f".{layer}.weight"):
                return parameter
        raise KeyError(f"all-MiniLM-L6-v2 has no linear layer {layer!r}")


class EmbeddingStore:
    """Embeddings of fixed sentences under pruned weights, kept on disk as ``.npy`` files.

    The model is loaded only when an embedding is not there yet.

    Parameters
    ----------
    folder : Path
        Made when it is missing.
    sentences : sequence of str
    fresh : bool
        Whether to compute again what the folder already holds.
    """

    def __init__(self, folder: Path, sentences: Sequence[str], *, fresh: bool = False) -> None:
        self.folder = folder
        self.sentences = list(sentences)
        self.fresh = fresh
        folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder, with its own weights between calls of :meth:`embed`."""
        return Encoder()

    @cached_property
    def _digest(self) -> Any:
        digest = hashlib.sha256("\n".join(self.sentences).encode())
        digest.update(minilm.weights_file().read_bytes())
        return digest

    def embed(self, weights: Mapping[str, NDArray[np.floating]]) -> NDArray[np.float32]:
        """Embeddings with these weights in place of the model's own; none for the dense model."""
        digest = self._digest.copy()
        for name in sorted(weights):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(weights[name]).data)
        path = self.folder / f"{digest.hexdigest()[:32]}.npy"
        stored = None if self.fresh else self._read(path)
        if stored is not None:
            return stored
        with self.encoder.replaced(weights):
            embeddings = self.encoder.embed(self.sentences)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, embeddings)
        return embeddings

    def _read(self, path: Path) -> NDArray[np.float32] | None:
        if not path.exists():
            return None
        try:
            stored = np.load(path, allow_pickle=False)
        except (ValueError, EOFError):
            return None
        return stored if len(stored) == len(self.sentences) else None


@dataclass(frozen=True)
class Agreement:
    """How alike two sets of embeddings of the same sentences are.

    Attributes
    ----------
    mean_cosine : float
        Mean over sentences of the cosine between the two embeddings of a sentence.
    rank_correlation : float
        Spearman's rank correlation, over all pairs of sentences, of the cosine of the pair in
        one set with that in the other: whether the same sentences are found to be near.
    """

    mean_cosine: float
    rank_correlation: float


def agreement(dense: NDArray[np.floating], pruned: NDArray[np.floating]) -> Agreement:
    """Compare embeddings of unit length, each ``(sentences, dimensions)``."""
    from scipy.stats import spearmanr

    first, second = dense.astype(np.float64), pruned.astype(np.float64)
    pairs = np.triu_indices(len(first), k=1)
    ranks = spearmanr((first @ first.T)[pairs], (second @ second.T)[pairs])
    return Agreement(float((first * second).sum(axis=1).mean()), float(ranks.statistic))
