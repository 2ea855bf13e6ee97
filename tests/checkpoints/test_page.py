"""The report's page: sound, whole without a network, and with everything in it."""

from __future__ import annotations

import base64
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from gyroperm import Pattern
from gyroperm.checkpoints import Job, Settings, prune_checkpoint, read_solution
from gyroperm.checkpoints.page import _png, _short
from small_checkpoints import layers, sharded

_VOID = {"meta", "img", "br"}


class Elements(HTMLParser):
    """Checks that elements are closed in order; notes them and what they refer to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href", "data", "action")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("page")
    tensors = layers()
    tensors["layers.<b>&.weight"] = tensors["model.layers.0.up.weight"]
    model = sharded(folder / "model", tensors)
    settings = Settings(Pattern.hinm(vec_size=8), rounds=5)
    return prune_checkpoint(Job(model, folder / "out", settings)), folder / "out"


def test_the_page_is_sound_and_alone(run) -> None:
    report, out = run
    text = (out / "gyroperm/report.html").read_text()
    page = Elements()
    page.feed(text)
    page.close()
    assert page.open == []
    assert "script" not in page.seen and "link" not in page.seen
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not re.search(r"https?:|url\(|@import", text)
    assert 'name="viewport" content="width=device-width' in text
    count = len(report["layers"])
    assert page.seen.count("img") == 2 * count
    assert page.seen.count("svg") == 2 * count
    for layer in report["layers"]:
        assert layer["name"] in page.text
        assert f"{layer['ratio']:.4f}" in page.text
        assert f"{layer['efficacy']:.2f} %" in page.text
    assert "embedding or output head" in page.text
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(svg)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.0, "0"), (0.123456, "0.1235"), (810.24, "810.2"), (9999.4, "9999")),
        *((13_249.0, "13.25 k"), (290_512.0, "290.5 k"), (12_345_678.0, "12.35 M")),
        *((4.4e10, "44 G"), (1e30, "1e+30")),
    ],
)
def test_labels_of_axes_are_short(value: float, text: str) -> None:
    assert _short(value) == text


def test_a_picture_can_be_read_back() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    data = _png(rgb)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    begin = data.index(b"IDAT") + 4
    length = int.from_bytes(data[begin - 8 : begin - 4], "big")
    lines = np.frombuffer(zlib.decompress(data[begin : begin + length]), np.uint8).reshape(5, 22)
    assert not lines[:, 0].any()
    np.testing.assert_array_equal(lines[:, 1:].reshape(5, 7, 3), rgb)


def test_the_corner_shows_what_is_kept(run) -> None:
    report, out = run
    for layer in report["layers"]:
        file = out / "gyroperm/masks" / f"{layer['file']}"
        solution = read_solution(file)
        for side in ("before", "after"):
            corner = layer["picture"][side]
            pixels = np.frombuffer(base64.b64decode(corner["pixels"]), np.uint8)
            kept = (pixels >= 128).reshape(corner["rows"], corner["columns"])
            if side == "before":
                shape = kept.shape
                np.testing.assert_array_equal(kept, solution.mask[: shape[0], : shape[1]])
            else:
                # Two of each four, as the hardware reads them.
                assert (kept.reshape(len(kept), -1, 4).sum(axis=2) == 2).all()
