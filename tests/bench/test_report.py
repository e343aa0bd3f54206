"""The report: what it says, that nothing from outside can act in it, that it is one file."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgekiln.bench import report
from edgekiln.bench.results import Accuracy, Buffer, Confusion, NodeCost, Results
from edgekiln.errors import BadInputError

HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
VOID_TAGS = {"meta", "br", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """Reads a page and fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.pieces).split())


def page_of(results: Results) -> Page:
    return Page(report.render_report(results))


def test_verdict_and_figures(results: Results) -> None:
    text = page_of(results).text
    assert "All 20 inputs give the same bytes everywhere" in text
    assert "board = generated C on host 40 of 40 bytes equal, 20 inputs" in text
    assert "node by node 2 of 2 nodes equal, the first input" in text
    assert "9,000 bytes" in text and "1,500 bytes" in text
    assert "80.00 %" in text and "−10.00 pt" in text
    assert "dog as cat (3)" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "They are not clock cycles and not time" in text
    assert "over all inputs 3,400 to 3,600" in text
    assert "ab" * 6 in text and "cd" * 32 in text


def test_a_differing_byte_turns_the_verdict(results: Results) -> None:
    worse = dataclasses.replace(results.comparisons[0], mismatched_bytes=3)
    page = page_of(dataclasses.replace(results, comparisons=(worse,)))
    assert "not shown to be equal" in page.text
    assert "board ≠ generated C on host 37 of 40 bytes equal" in page.text
    assert "same bytes everywhere" not in page.text


def test_no_comparison_is_no_proof(results: Results) -> None:
    page = page_of(dataclasses.replace(results, comparisons=()))
    assert "not shown to be equal" in page.text


def test_an_absent_oracle_is_said(results: Results) -> None:
    assert "TensorFlow Lite Micro, the oracle, could not run" not in page_of(results).text
    page = page_of(dataclasses.replace(results, oracle=None))
    assert "TensorFlow Lite Micro, the oracle, could not run" in page.text


def test_hostile_names_do_nothing(results: Results) -> None:
    hostile = dataclasses.replace(
        results,
        model=HOSTILE,
        inputs=HOSTILE,
        flags=HOSTILE,
        per_node=(NodeCost(0, HOSTILE, HOSTILE, 1, 1, None),),
        confusion=Confusion((HOSTILE, "dog"), ((9, 1), (3, 7))),
        artifacts=(dataclasses.replace(results.artifacts[0], name=HOSTILE),),
        versions={HOSTILE: HOSTILE},
        seeds={HOSTILE: 1},
        host=(dataclasses.replace(results.host[0], runner=HOSTILE),),
        memory_plan=dataclasses.replace(
            results.memory_plan,
            peak_node=HOSTILE,
            buffers=(dataclasses.replace(results.memory_plan.buffers[0], name=HOSTILE),),
        ),
    )
    page = page_of(hostile)
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert not [name for _, attributes in page.tags for name in attributes if name[:2] == "on"]
    assert page.text.count("alert(1)") >= 8


def test_the_page_is_one_file_that_fetches_nothing(results: Results) -> None:
    html = report.render_report(results)
    assert not re.search(r"https?://|url\(|@import|\bsrc=|\bhref=", html)
    policy = [a for tag, a in Page(html).tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert [a["content"] for a in policy] == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_a_model_from_outside_has_no_accuracy_section(results: Results) -> None:
    outside = dataclasses.replace(
        results,
        accuracy=Accuracy(None, None, None, None, 20, True, ""),
        confusion=None,
        training={},
        host=(),
    )
    text = page_of(outside).text
    assert "Top-1" not in text and "Confusion" not in text and "Training" not in text
    assert "All 20 inputs give the same bytes" in text


def test_a_real_board_shows_its_latency(results: Results) -> None:
    real = dataclasses.replace(
        results,
        emulated=False,
        instructions=None,
        latency_us=1234.0,
        per_node=tuple(dataclasses.replace(n, instructions=None) for n in results.per_node),
        board_facts=dataclasses.replace(results.board_facts, emulator=None),
    )
    text = page_of(real).text
    assert "1.23ms" in text and "real board" in text
    assert "Instructions were not counted here" in text and "emulated" not in text


def test_many_classes_are_listed_instead_of_drawn(results: Results) -> None:
    names = tuple(f"class{i}" for i in range(100))
    counts = [[0] * 100 for _ in range(100)]
    counts[3][7] = 5
    for i in range(100):
        counts[i][i] = 10
    view = report.plan_confusion(Confusion(names, tuple(tuple(row) for row in counts)))
    assert view.rows == ()
    assert view.worst == (("class3", "class7", 5),)
    assert view.recalls[3] == "67 %"


def test_a_class_without_samples_has_no_recall() -> None:
    view = report.plan_confusion(Confusion(("a", "b"), ((0, 0), (0, 4))))
    assert view.recalls == ("–", "100 %")
    assert view.wrong == 0 and view.worst == ()


def test_parts_add_up_to_the_whole(results: Results) -> None:
    for varied in (results, dataclasses.replace(results, stack_bytes=None, ram_bytes=1200)):
        for usage in report.plan_usages(varied):
            assert sum(part.bytes for part in usage.parts) == usage.used_bytes
            assert sum(part.percent for part in usage.parts) == pytest.approx(100)


def test_a_board_without_limits_has_no_gauge(results: Results) -> None:
    facts = dataclasses.replace(results.board_facts, flash_bytes=None, ram_bytes=None)
    assert "of the board's" in page_of(results).text
    assert "of the board's" not in page_of(dataclasses.replace(results, board_facts=facts)).text


def test_accuracy_axis_holds_every_point(results: Results) -> None:
    for values in [(1.0, 1.0), (0.0, 1.0), (0.5, 0.123), (0.9999, 0.9998)]:
        accuracy = dataclasses.replace(
            results.accuracy, float_model=values[0], int8_device=values[1]
        )
        chart = report.plan_accuracy(dataclasses.replace(results, accuracy=accuracy))
        assert chart is not None
        assert all(0 <= row.position <= 100 for row in chart.rows)
        assert all(0 <= x <= 100 for x, _ in chart.ticks) and len(chart.ticks) >= 2


def test_memory_plan_stays_inside_its_frame(results: Results) -> None:
    view = report.plan_memory(results.memory_plan)
    assert view is not None and len(view.boxes) == 2
    for box in view.boxes:
        assert box.y >= 0 and box.y + box.height <= view.height
        assert box.x >= 0 and box.x + box.width <= view.width


@pytest.mark.parametrize(
    ("b", "shared"),
    [
        (Buffer("b", 9, 5, 2, 3), True),
        (Buffer("b", 10, 5, 2, 3), False),
        (Buffer("b", 0, 10, 3, 4), False),
        (Buffer("b", 2, 3, 1, 1), True),
    ],
)
def test_shared_bytes_are_pointed_out(results: Results, b: Buffer, shared: bool) -> None:
    plan = dataclasses.replace(results.memory_plan, buffers=(Buffer("a", 0, 10, 0, 2), b))
    assert report.overlap(*plan.buffers) == report.overlap(*plan.buffers[::-1]) == shared
    text = page_of(dataclasses.replace(results, memory_plan=plan)).text
    assert ("Where boxes overlap" in text) == shared


def test_training_of_constant_values_is_drawn(results: Results) -> None:
    flat = dataclasses.replace(results, training={"loss": (0.5, 0.5), "val_loss": (0.5, 0.5)})
    (curves,) = report.plan_curves(flat)
    assert [line.label for line in curves.lines] == ["training", "validation"]
    assert curves.lines[0].label_y != curves.lines[1].label_y


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (27412, "26.8 KiB"), (4 << 20, "4 MiB")],
)
def test_sizes_are_read_at_a_glance(size_bytes: int, text: str) -> None:
    assert report.size(size_bytes) == text


@pytest.mark.parametrize(
    ("difference", "text"),
    [(0.0, "±0.00 pt"), (-0.0028, "−0.28 pt"), (0.01, "+1.00 pt"), (-0.00001, "±0.00 pt")],
)
def test_differences_have_a_sign(difference: float, text: str) -> None:
    assert report.points(difference) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (999, "999"),
        (1000, "1.00 k"),
        (640_123, "640 k"),
        (999_400, "999 k"),
        (999_600, "1.00 M"),
        (12_501_632, "12.5 M"),
    ],
)
def test_counts_are_shortened(number: int, text: str) -> None:
    assert " ".join(report.short_count(number)).strip() == text


def test_tensor_names_are_shortened() -> None:
    assert report.short_tensor_name("a/b/Relu;a/b/BiasAdd;x") == "b/Relu"
    assert report.short_tensor_name("") == ""


def test_a_report_that_cannot_be_written_is_one_line(results: Results, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(BadInputError, match="cannot be written"):
        report.write_report(tmp_path / "file" / "report.html", results)
