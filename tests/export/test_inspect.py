"""`edgekiln inspect`: what a model holds, its memory plan, and the picture of it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from edgekiln import cli
from edgekiln.errors import BadInputError
from edgekiln.export.compiler import compile_model
from edgekiln.export.inspect import (
    Inspection,
    buffer_rows,
    inspect_model,
    node_rows,
    short_tensor_name,
)
from edgekiln.export.memory_plot import draw_memory_plan, write_plot

GOLDEN = Path(__file__).parent.parent / "golden"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(params=["digits_mlp_int8", "digits_cnn_int8"])
def model(request: pytest.FixtureRequest) -> Path:
    return GOLDEN / f"{request.param}.tflite"


@pytest.fixture
def found(model: Path) -> Inspection:
    return inspect_model(model.read_bytes(), model.name, target="cortex-m4")


def test_it_agrees_with_the_compiler(model: Path, found: Inspection) -> None:
    report = compile_model(model.read_bytes(), name="m", target="cortex-m4").report
    for key in ("macs", "arena_bytes", "arena_bound_bytes", "live_set_bytes", "constants_bytes"):
        assert getattr(found, key) == report[key], key
    assert [n.kernel for n in found.nodes] == [n["kernel"] for n in report["nodes"]]
    assert [(b.offset, b.bytes, b.first, b.last) for b in found.buffers] == [
        (b["offset"], b["bytes"], b["first"], b["last"]) for b in report["buffers"]
    ]
    assert found.peak_node is not None
    assert found.nodes[found.peak_node].index == report["peak_node"]["index"]


def test_sums_are_those_of_the_nodes(found: Inspection) -> None:
    assert found.macs == sum(node.macs for node in found.nodes)
    assert found.weights_bytes == sum(node.weights_bytes for node in found.nodes)
    assert found.arena_bytes == max(b.offset + b.bytes for b in found.buffers)


def test_tables_have_a_row_for_each_node_and_buffer(found: Inspection) -> None:
    assert [row[0] for row in node_rows(found)] == [node.index for node in found.nodes]
    rows = buffer_rows(found)
    assert len(rows) == len(found.buffers)
    for _, _, first, last, bar, _ in rows:
        assert isinstance(bar, str) and len(bar) == len(found.nodes) + 2
        assert (bar[0] == "█") == (first == "start")
        assert (bar[-1] == "█") == (last == "end")
        assert "█·█" not in bar


def test_bars_of_long_models_are_shortened(shared: Path) -> None:
    path = shared / "models/tinymaix/mbnet96_0.25_q.tflite"
    found = inspect_model(path.read_bytes(), path.name)
    assert {len(str(row[4])) for row in buffer_rows(found)} == {min(48, len(found.nodes) + 2)}


def test_the_picture_shows_every_buffer_in_its_place(found: Inspection) -> None:
    root = ET.fromstring(draw_memory_plan(found))
    boxes = [
        box
        for box in root.iter(f"{SVG}rect")
        if "buffer" in box.get("class", "") and box.find(f"{SVG}title") is not None
    ]
    assert len(boxes) == len(found.buffers)
    lowest = max(float(b.get("y", 0)) + float(b.get("height", 0)) for b in boxes)
    per_byte = 440.0 / found.arena_bytes
    for box, buffer in zip(boxes, found.buffers, strict=True):
        title = box.find(f"{SVG}title")
        assert title is not None and title.text is not None
        assert title.text.startswith(f"{buffer.label}: {buffer.bytes:,} bytes at")
        height = max(buffer.bytes * per_byte, 1.0)  # else it could not be seen
        assert float(box.get("height", 0)) == pytest.approx(height, abs=0.1)
        top = lowest - float(box.get("y", 0))
        assert top == pytest.approx((buffer.offset + buffer.bytes) * per_byte, abs=1.1)
    hatched = [r for r in root.iter(f"{SVG}rect") if r.get("class") == "overlap"]
    pairs = [
        (a, b)
        for number, a in enumerate(found.buffers)
        for b in found.buffers[:number]
        if a.shared_bytes(b)
    ]
    assert len(hatched) == len(pairs) + bool(pairs)  # and one in the legend


def test_names_in_the_picture_are_escaped(tmp_path: Path) -> None:
    data = (GOLDEN / "digits_mlp_int8.tflite").read_bytes()
    found = inspect_model(data, "<script>alert(1)</script>.tflite")
    write_plot(tmp_path / "m.html", found)
    text = (tmp_path / "m.html").read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;script" in text
    assert "http://www.w3.org/2000/svg" in text and text.count("http") == 1


def test_unknown_kinds_of_pictures_are_told_so(tmp_path: Path, found: Inspection) -> None:
    with pytest.raises(BadInputError, match=r"--plot: unknown kind.*\.png.*\.svg, \.html"):
        write_plot(tmp_path / "m.png", found)
    assert list(tmp_path.iterdir()) == []


def test_the_command(model: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plot = tmp_path / "m.svg"
    assert cli.main(["inspect", str(model), "--plot", str(plot)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "FULLY_CONNECTED" in out and "decides" in out and "█" in out
    ET.fromstring(plot.read_text(encoding="utf-8"))
    assert cli.main(["inspect", str(model), "--json", "--target", "cortex-m4"]) == 0
    report = json.loads(capfd.readouterr()[0])
    assert report["target"] == "cortex-m4"
    assert {"nodes", "tensors", "buffers", "arena_bytes"} <= set(report)


def test_the_command_refuses_what_compile_refuses(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(b"\0" * 100)
    assert cli.main(["inspect", str(path)]) == 2
    out, err = capfd.readouterr()
    assert out == "" and "not a .tflite file" in err


def test_short_names() -> None:
    assert short_tensor_name("a/b/Relu;a/b/BiasAdd;x") == "b/Relu"
    assert short_tensor_name("") == ""
