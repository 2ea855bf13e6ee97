"""The picture of a coupling graph: readable, valid, and written whole or not at all."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from gyroperm.models import CouplingGraph, coupling
from gyroperm.models.picture import drawn, lines_of
from gyroperm.models.trace import trace


@pytest.fixture(scope="module")
def bert() -> CouplingGraph:
    sizes = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 32}
    return coupling(BertModel(BertConfig(**sizes, num_hidden_layers=2, vocab_size=50)))


@pytest.mark.parametrize(
    ("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_a_picture_is_written(
    bert: CouplingGraph, tmp_path: Path, suffix: str, begins: bytes
) -> None:
    path = tmp_path / f"graph.{suffix}"
    bert.draw(path)
    assert path.read_bytes().startswith(begins)
    assert list(tmp_path.iterdir()) == [path]
    if suffix == "svg":
        assert "encoder.layer.1.ffn" in path.read_text()


def test_a_png_has_ink_where_its_marks_are(bert: CouplingGraph, tmp_path: Path) -> None:
    from matplotlib.image import imread

    bert.draw(tmp_path / "graph.png")
    pixels = imread(tmp_path / "graph.png")
    assert min(pixels.shape[:2]) > 300
    assert len({tuple(p) for p in pixels.reshape(-1, pixels.shape[2])[::7]}) > 10


def test_labels_do_not_overlap(bert: CouplingGraph) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = drawn(bert)
    renderer = FigureCanvasAgg(figure).get_renderer()
    (axes,) = figure.axes
    labels = [*axes.get_xticklabels(), *axes.get_yticklabels(), *figure.texts]
    assert len(labels) > 20
    boxes = [label.get_window_extent(renderer) for label in labels]
    for (a, one), (b, two) in combinations(zip(labels, boxes, strict=True), 2):
        assert not one.overlaps(two), (a.get_text(), b.get_text())
    whole = figure.bbox
    assert all(whole.contains(box.x0, box.y0) and whole.contains(box.x1, box.y1) for box in boxes)


def test_columns_follow_the_model_and_blocks_share_a_line(bert: CouplingGraph) -> None:
    (axes,) = drawn(bert).axes
    columns = [label.get_text() for label in axes.get_xticklabels()]
    assert columns[0] == "embeddings.word_embeddings"
    assert columns.index("encoder.layer.0.output.dense") < columns.index(
        "encoder.layer.1.attention.self.query"
    )
    keys = [line for line in lines_of(bert) if line.label.startswith("encoder.layer.0.attention.k")]
    assert [line.label for line in keys] == ["encoder.layer.0.attention.keys (3 x 8, within block)"]
    assert keys[0].marks == {f"encoder.layer.0.attention.self.{n}": {0} for n in ("query", "key")}


def test_a_traced_graph_and_an_empty_one(tmp_path: Path) -> None:
    trace(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(2, 3)).draw(
        tmp_path / "traced.png"
    )
    CouplingGraph("nothing", ()).draw(tmp_path / "nothing.png")
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in tmp_path.iterdir())


def test_a_failure_leaves_what_was_there(
    bert: CouplingGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    with pytest.raises(ValueError, match="horse"):
        bert.draw(tmp_path / "graph.horse")
    assert not list(tmp_path.iterdir())

    path = tmp_path / "graph.png"
    path.write_text("before")

    def fails(self: Figure, file: Path, **kwargs: object) -> None:
        Path(file).write_text("half")
        raise OSError("the disk is full")

    monkeypatch.setattr(Figure, "savefig", fails)
    with pytest.raises(OSError, match="full"):
        bert.draw(path)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
