"""The report: what it says, that nothing from outside can act in it, that it is one file."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgekiln.bench import report
from edgekiln.bench.report import plan_runtimes, tabulate_runtimes
from edgekiln.bench.results import (
    Accuracy,
    Buffer,
    Conditions,
    Confusion,
    Latency,
    NodeCost,
    Results,
    RuntimeRun,
    System,
)
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


def test_cycles_are_shown_with_how_they_are_modelled(results: Results) -> None:
    modelled = dataclasses.replace(
        results,
        instructions=None,
        instructions_min=None,
        instructions_max=None,
        cycles=6_543,
        cycles_model="by the table of <its> manual",
        per_node=tuple(
            dataclasses.replace(node, instructions=None, cycles=node.instructions)
            for node in results.per_node
        ),
    )
    page = page_of(modelled)
    assert "Clock cycles by node" in page.text
    assert "as the emulator models them: by the table of <its> manual." in page.text
    assert "6,543" in page.text
    assert "nstructions" not in page.text


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


def on_linux(results: Results, *, emulated: bool) -> Results:
    """Returns the small result as of a board that runs Linux with four runtimes."""

    def latency(threads: int) -> Latency:
        return Latency(1234.5 / threads, 2000.0, 12345.6, 10, 200, threads, emulated)

    before = Conditions("ondemand", 600, 41.5, ())
    after = Conditions("ondemand", 1500, 61.2, ("under-voltage has occurred",))
    own = RuntimeRun(
        name="generated C",
        version=None,
        model="int8",
        format="C",
        samples=20,
        accuracy=0.8,
        agreement=1.0,
        reference="generated C on host",
        bytes=40,
        equal_bytes=40,
        latency_us=latency(1),
        latency_us_by_threads=(latency(1),),
        peak_memory_bytes=708 << 10,
        model_bytes=9000,
        size_bytes=600_000,
        conditions=after,
        error=None,
    )
    other = dataclasses.replace(own, name="LiteRT (XNNPACK)", version="2.3.0", format="TFLite")
    other = dataclasses.replace(other, latency_us_by_threads=(latency(1), latency(4)))
    floating = dataclasses.replace(
        other, model="float", accuracy=0.85, reference=None, bytes=0, equal_bytes=0
    )
    missing = dataclasses.replace(
        other,
        name="ONNX Runtime",
        format="ONNX",
        version=None,
        accuracy=None,
        latency_us=None,
        latency_us_by_threads=(),
        peak_memory_bytes=None,
        size_bytes=None,
        error="it crashed (SIGILL) <script>",
        equal_bytes=0,
        reference=None,
    )
    return dataclasses.replace(
        results,
        emulated=emulated,
        latency_us=None if emulated else 1234.5,
        runtimes=(own, floating, other, missing),
        system=System(
            *("Raspberry Pi 4", "Debian 12", "6.6.1", "aarch64"),
            *(4, 4 << 30, "3.11.2", before, after),
        ),
    )


def test_runtimes_stand_float_beside_int8(results: Results) -> None:
    results = on_linux(results, emulated=False)
    view = plan_runtimes(results)
    assert view is not None
    assert [row.name for row in view.rows] == ["generated C", "LiteRT (XNNPACK)", "ONNX Runtime"]
    own, litert, onnx = view.rows
    assert own.floating is None and own.quantized is not None
    assert own.note == "C; 40 of 40 bytes as generated C on host"
    assert litert.floating is not None and litert.quantized is not None
    assert (litert.floating.accuracy, litert.quantized.accuracy) == ("85.00 %", "80.00 %")
    assert litert.quantized.time_note == "p90 2,000 µs, p99 12.35 ms"
    assert (own.quantized.memory, own.quantized.disk) == ("708 KiB", "585.9 KiB")
    assert onnx.quantized is not None and onnx.quantized.accuracy == "–"
    assert view.reasons == (("ONNX Runtime, int8, ONNX", "it crashed (SIGILL) <script>"),)
    assert view.threads == (1, 4)
    assert view.by_threads[0].times == (
        "1,234 µs (2,000 µs, 12.35 ms)",
        "309 µs (2,000 µs, 12.35 ms)",
    )
    assert view.conditions == (
        "Frequency governor ondemand; 1,500\u00a0MHz at the end; "
        "42\u00a0°C before and 61\u00a0°C after; "
        "under-voltage has occurred."
    )
    page = page_of(results)
    assert "it crashed (SIGILL) <script>" in page.text and "emulat" not in page.text
    assert "Debian 12, Linux 6.6.1, aarch64, Python 3.11.2" in page.text


def test_runtimes_as_a_table(results: Results) -> None:
    linux = on_linux(results, emulated=False)
    columns, rows = tabulate_runtimes(linux)
    own, floating, *rest = linux.runtimes
    mixed = dataclasses.replace(linux, runtimes=(own, *rest, floating))
    assert tabulate_runtimes(mixed) == (columns, rows)
    assert columns[3] == "time" and {len(row) for row in rows} == {len(columns)}
    assert rows[0] == ("generated C", "int8", "80.00 %", "1,234 µs", "708 KiB", "585.9 KiB")
    assert rows[1][:3] == ("LiteRT (XNNPACK)", "float", "85.00 %")
    assert rows[3] == ("ONNX Runtime", "int8", "failed", *"–––")
    assert tabulate_runtimes(on_linux(results, emulated=True))[0][3] == "time, emulated"


def test_times_in_an_emulator_are_never_a_board_s(results: Results) -> None:
    page = page_of(on_linux(results, emulated=True))
    assert "An emulator stood for the board: its times and its memory say nothing" in page.text
    assert "time, emulated" in page.text and "Time in the emulator by threads" in page.text
    assert "one inference, on the board" not in page.text


def test_a_board_without_linux_has_no_runtimes(results: Results) -> None:
    assert plan_runtimes(results) is None
    assert "Runtimes on the board" not in page_of(results).text


def test_a_silent_processor_is_no_sentence(results: Results) -> None:
    results = on_linux(results, emulated=False)
    assert results.system is not None
    nothing = Conditions(None, None, None, None)
    system = dataclasses.replace(results.system, before=nothing, after=nothing)
    view = plan_runtimes(dataclasses.replace(results, system=system))
    assert view is not None and view.conditions == ""


@pytest.mark.parametrize(
    ("time_us", "text"),
    [
        *((0.4, "0.4 µs"), (8.43, "8.4 µs"), (99.4, "99 µs"), (99.6, "100 µs")),
        *((1234.5, "1,234 µs"), (9999, "9.999 ms"), (123_456, "123.5 ms"), (12_345_678, "12.35 s")),
    ],
)
def test_times_are_read_at_a_glance(time_us: float, text: str) -> None:
    assert report.time(time_us) == text
