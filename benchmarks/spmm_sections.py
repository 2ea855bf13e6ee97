"""What is measured, section by section: the cases of each, and how one of them is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks import spmm_ceilings
from benchmarks.spmm_card import of_model
from benchmarks.spmm_cases import (
    QUICK_COLUMNS,
    QUICK_SHAPES,
    SHAPES,
    Case,
    Structure,
    even,
    make_matrix,
    product_cases,
    tvw_cases,
)
from benchmarks.spmm_contenders import (
    Rotation,
    copies,
    dense_contenders,
    product_contenders,
)
from benchmarks.spmm_layers import Ffn, chain_contenders, linear_contenders
from benchmarks.spmm_tensors import empty, normal
from benchmarks.spmm_timing import Contender, Sampler, measure
from gyroperm.gpu.format import HinmMatrix


@dataclass
class Bench:
    """What the cases of all sections are measured with.

    Parameters
    ----------
    card : dict
        From :func:`benchmarks.spmm_card.describe`.
    rounds : int
    ways : int
        How many ways of each kernel are measured, those that are predicted to be the fastest.
    sampler : callable
    """

    card: dict[str, Any]
    rounds: int
    ways: int
    sampler: Sampler
    _rotations: dict[Structure, Rotation] = field(default_factory=dict)

    @property
    def l2_size(self) -> int:
        """Bytes of the card's L2."""
        return int(self.card["l2_size"])

    def rotation(self, structure: Structure) -> Rotation:
        """Copies of a matrix on the card; those of the last two structures are kept."""
        if structure not in self._rotations:
            while len(self._rotations) > 1:
                del self._rotations[next(iter(self._rotations))]
            host = make_matrix(structure)
            # Enough for any N: with few columns the weights are all that is read.
            count = copies(self.l2_size, host.nbytes, 0)
            self._rotations[structure] = Rotation.of(host, count)
        return self._rotations[structure]

    def host(self, structure: Structure) -> HinmMatrix:
        """The packed matrix of a structure."""
        return self.rotation(structure).host

    def measured(self, contenders: list[Contender]) -> dict[str, dict[str, Any]]:
        """All contenders in turns."""
        return measure(contenders, self.rounds, self.sampler)


@dataclass(frozen=True)
class Item:
    """A case of a section.

    Parameters
    ----------
    key : dict
        What it is, ready for JSON.
    measure : callable
        Of a bench: the contenders' figures.
    """

    key: dict[str, Any]
    measure: Callable[[Bench], dict[str, dict[str, Any]]]


def ceilings(*, quick: bool) -> Iterator[Item]:
    """What the card can do at best."""
    yield Item(
        {"section": "ceilings"},
        lambda bench: spmm_ceilings.run(bench.card, bench.rounds, bench.sampler, quick=quick),
    )


def products(*, quick: bool) -> Iterator[Item]:
    """Every kernel, the dispatcher's choice, cuBLAS and cuSPARSELt on feature-major X."""

    def measured(bench: Bench, case: Case) -> dict[str, dict[str, Any]]:
        structure, n, card = case.structure, case.n, of_model(bench.card)
        dense = dense_contenders(structure.outputs, structure.inputs, n, structure.dtype, card)
        ours = product_contenders(bench.rotation(structure), n, card, bench.ways)
        return bench.measured(dense + ours)

    for case in product_cases(quick=quick):
        key = {"section": "products", "structure": case.structure.as_dict(), "n": case.n}
        yield Item(key, lambda bench, case=case: measured(bench, case))


def transposes(*, quick: bool) -> Iterator[Item]:
    """Between token-major and feature-major activations, and torch's own copy of a transpose."""
    for channels in (4096,) if quick else (4096, 11008, 14336):
        for n in (256, 4096):
            key = {"section": "transposes", "channels": channels, "n": n}
            yield Item(key, lambda bench, c=channels, n=n: bench.measured(_transposes(c, n)))


def _transposes(channels: int, n: int) -> list[Contender]:
    from gyroperm.gpu.device import current_stream, run
    from gyroperm.gpu.transpose import to_features, to_tokens

    tokens, back = normal(n, channels), empty(n, channels)
    features = empty(channels, n)
    amounts = {"memory_bytes": 4 * n * channels}
    entering, leaving = to_features(tokens, features), to_tokens(features, back)
    return [
        Contender("to features", [lambda: run(entering, current_stream(tokens))], amounts=amounts),
        Contender("to tokens", [lambda: run(leaving, current_stream(tokens))], amounts=amounts),
        Contender("torch", [lambda: features.copy_(tokens.T)], amounts=amounts),
    ]


def tvw(*, quick: bool) -> Iterator[Item]:
    """Tiles of different lengths against equal ones of the same sum."""

    def measured(bench: Bench, case: Case) -> dict[str, dict[str, Any]]:
        card = of_model(bench.card)
        contenders: list[Contender] = []
        for prefix, structure in (("ragged ", case.structure), ("even ", even(case.structure))):
            rotation = bench.rotation(structure)
            contenders += product_contenders(rotation, case.n, card, 1, prefix)
        return bench.measured(contenders)

    for case in tvw_cases(quick=quick):
        key = {"section": "tvw", "structure": case.structure.as_dict(), "n": case.n}
        yield Item(key, lambda bench, case=case: measured(bench, case))


def linear(*, quick: bool) -> Iterator[Item]:
    """HinmLinear in the place of nn.Linear."""
    shapes, columns = (QUICK_SHAPES, QUICK_COLUMNS) if quick else (SHAPES, (1, 16, 64, 256, 4096))
    for shape in shapes:
        for vec_ratio in (0.5,) if quick else (0.5, 0.75):
            structure = Structure("hinm", *shape, 128, vec_ratio)
            for n in columns:
                key = {"section": "linear", "structure": structure.as_dict(), "n": n}
                yield Item(
                    key,
                    lambda bench, structure=structure, n=n: bench.measured(
                        linear_contenders(bench.host(structure), n, bench.l2_size)
                    ),
                )


def chain(*, quick: bool) -> Iterator[Item]:
    """A gated feed-forward block with its residual branch."""
    for hidden in (11008,) if quick else (11008, 14336):
        for n in QUICK_COLUMNS if quick else (1, 16, 64, 256, 4096):
            ffn = Ffn(4096, hidden)
            key = {"section": "chain", "channels": ffn.channels, "hidden": hidden}
            key |= {"tile_size": ffn.tile_size, "vec_ratio": ffn.vec_ratio, "n": n}
            yield Item(
                key,
                lambda bench, ffn=ffn, n=n: bench.measured(chain_contenders(ffn, n, bench.l2_size)),
            )


#: By name, in the order in which they are measured.
SECTIONS: dict[str, Callable[..., Iterator[Item]]] = {
    "ceilings": ceilings,
    "products": products,
    "transposes": transposes,
    "tvw": tvw,
    "linear": linear,
    "chain": chain,
}
