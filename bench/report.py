"""Makes report.html: one file that tells what was measured, and needs nothing but a browser.

This module decides what is shown and works out every position and label; the template only
places them. All text from outside is escaped by Jinja, and a content security policy in the
page forbids scripts and anything fetched from elsewhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekiln import __version__
from edgekiln.bench.results import (
    Buffer,
    Confusion,
    Latency,
    MemoryPlan,
    Results,
    RuntimeRun,
    System,
)
from edgekiln.errors import ToolMissingError
from edgekiln.export.inspect import short_tensor_name
from edgekiln.files import write_text

TEMPLATES = Path(__file__).parent / "templates"

_MOST_CLASSES_IN_MATRIX = 24
_WORST_PAIRS_SHOWN = 5
_THINNEST_BOX = 4.0
_MINUS = "\u2212"


@dataclass(frozen=True)
class Tile:
    """One headline number."""

    label: str
    value: str
    unit: str
    note: str


@dataclass(frozen=True)
class AccuracyRow:
    """One stage of the model, with its place on the axis in percent of the axis's length."""

    label: str
    note: str
    percent: str
    correct: str
    change: str
    position: float
    is_device: bool


@dataclass(frozen=True)
class AccuracyChart:
    """The accuracies on one axis, which does not begin at zero and says so."""

    rows: tuple[AccuracyRow, ...]
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Part:
    """A part of flash or RAM."""

    label: str
    bytes: int
    percent: float


@dataclass(frozen=True)
class Usage:
    """Flash or RAM: its parts, and how much of the board they take."""

    title: str
    used_bytes: int
    board_bytes: int | None
    percent_of_board: float | None
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class NodeRow:
    """One node's cost, with the length of its bar in percent of the longest."""

    index: int
    op: str
    name: str
    short_name: str
    macs: int
    cost: int | None
    per_mac: str
    share: str
    length: float


@dataclass(frozen=True)
class Cell:
    """One cell of the confusion matrix; ``heat`` is 0 to 100."""

    count: int
    heat: float
    on_diagonal: bool


@dataclass(frozen=True)
class ConfusionView:
    """The confusion matrix, or for many classes only the pairs most often confused."""

    class_names: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    recalls: tuple[str, ...]
    worst: tuple[tuple[str, str, int], ...]
    wrong: int


@dataclass(frozen=True)
class Box:
    """A tensor's rectangle in the drawing of the memory plan, in its units."""

    x: float
    y: float
    width: float
    height: float
    label: str
    title: str
    shade: int


@dataclass(frozen=True)
class PlanView:
    """The memory plan: nodes from left to right, arena addresses upwards."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    columns: tuple[tuple[float, str], ...]
    ticks: tuple[tuple[float, str], ...]
    bound_y: float
    has_overlaps: bool


@dataclass(frozen=True)
class RuntimeCell:
    """One model in one runtime, as texts; ``reason`` where there is nothing."""

    accuracy: str
    time: str
    time_note: str
    memory: str
    disk: str
    reason: str


@dataclass(frozen=True)
class RuntimeRow:
    """A runtime with the float and the quantized model side by side; None where there is none."""

    name: str
    note: str
    floating: RuntimeCell | None
    quantized: RuntimeCell | None


@dataclass(frozen=True)
class ThreadsRow:
    """Times of one model in one runtime, one text for each number of threads."""

    name: str
    times: tuple[str, ...]


@dataclass(frozen=True)
class RuntimesView:
    """The runtimes of a board that runs Linux; ``codes`` is what the quantized model takes."""

    codes: str
    rows: tuple[RuntimeRow, ...]
    threads: tuple[int, ...]
    by_threads: tuple[ThreadsRow, ...]
    reasons: tuple[tuple[str, str], ...]
    conditions: str


@dataclass(frozen=True)
class Line:
    """One curve of the training history."""

    label: str
    points: str
    end_x: float
    end_y: float
    label_y: float
    shade: int


@dataclass(frozen=True)
class Curves:
    """Training and validation values of one metric, epoch by epoch."""

    title: str
    lines: tuple[Line, ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_ticks: tuple[tuple[float, str], ...]


def write_report(path: Path, results: Results) -> None:
    """Writes the report, whole or not at all.

    Raises:
        ToolMissingError: Jinja is not installed.
        BadInputError: The file cannot be written there.
    """
    write_text(path, render_report(results))


def render_report(results: Results) -> str:
    """Returns the report as HTML.

    Raises:
        ToolMissingError: Jinja is not installed.
    """
    try:
        import jinja2
    except ImportError:
        raise ToolMissingError(
            "the Python package jinja2 is not installed",
            where="report",
            hint="pip install 'edgekiln[report]'",
        ) from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["grouped"] = grouped
    environment.filters["size"] = size
    return environment.get_template("report.html").render(
        results=results,
        tiles=plan_tiles(results),
        accuracy=plan_accuracy(results),
        confusion=None if results.confusion is None else plan_confusion(results.confusion),
        usages=plan_usages(results),
        nodes=plan_nodes(results),
        plan=plan_memory(results.memory_plan),
        curves=plan_curves(results),
        runtimes=plan_runtimes(results),
        version=__version__,
    )


def grouped(number: int) -> str:
    """Returns an integer with its thousands set apart: ``1,234,567``."""
    return f"{number:,}"


def size(size_bytes: int) -> str:
    """Returns a size for reading: ``812 B``, ``26.8 KiB``, ``4 MiB``."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    for unit, factor in (("KiB", 1 << 10), ("MiB", 1 << 20)):
        if size_bytes < factor << 10 or unit == "MiB":
            return f"{size_bytes / factor:.1f}".removesuffix(".0") + f" {unit}"
    raise AssertionError("unreachable")


def short_count(number: int) -> tuple[str, str]:
    """Returns a count with three digits and the word for the rest: ``("1.23", "M")``."""
    for factor, unit in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if number >= 0.9995 * factor:
            return f"{number / factor:#.3g}".rstrip("."), unit
    return str(number), ""


def time(time_us: float) -> str:
    """Returns a time for reading: ``8.4 µs``, ``12.35 ms``."""
    for unit, factor in (("s", 1e6), ("ms", 1e3)):
        if time_us >= 9.995 * factor:
            return f"{time_us / factor:.4g} {unit}"
    return f"{time_us:,.0f} µs" if time_us >= 99.5 else f"{time_us:.2g} µs"


def percent(fraction: float) -> str:
    """Returns a fraction as ``98.33 %``."""
    return f"{100 * fraction:.2f} %"


def points(difference: float) -> str:
    """Returns a difference of two fractions in percentage points: ``−0.28 pt``."""
    value = round(100 * difference, 2)
    sign = "±" if value == 0 else "+" if value > 0 else _MINUS
    return f"{sign}{abs(value):.2f} pt"


def plan_tiles(results: Results) -> tuple[Tile, ...]:
    """Returns the headline numbers."""
    facts = results.board_facts
    tiles = [
        _accuracy_tile(results),
        _size_tile(
            "Program" if results.system else "Flash", results.flash_bytes, facts.flash_bytes
        ),
        _size_tile("RAM", results.ram_bytes, facts.ram_bytes),
        _speed_tile(results),
    ]
    return tuple(tile for tile in tiles if tile is not None)


def plan_accuracy(results: Results) -> AccuracyChart | None:
    """Returns the accuracies on one axis, or None when none is known."""
    accuracy = results.accuracy
    on_board = accuracy.int8_device
    stages = [
        ("float", "Keras", accuracy.float_model),
        ("pruned", "Keras, float", accuracy.pruned),
        ("int8, host", accuracy.int8_host_runtime, accuracy.int8_host),
        ("int8, board", f"the {'program' if results.system else 'image'} itself", on_board),
    ]
    known = [(label, note, value) for label, note, value in stages if value is not None]
    if not known:
        return None
    low = max(0, math.floor(100 * min(value for _, _, value in known)) - 1)
    span = 100 - low
    step = _tick_step(span, most=4)
    reference = accuracy.float_model
    rows = tuple(
        AccuracyRow(
            label=label,
            note=note,
            percent=percent(value),
            correct=f"{round(value * accuracy.samples):,}",
            change="" if reference is None or label == "float" else points(value - reference),
            position=100 * (100 * value - low) / span,
            is_device=label == "int8, board",
        )
        for label, note, value in known
    )
    marks = [low + i * step for i in range(int(span / step) + 1)]
    return AccuracyChart(rows, tuple((100 * (m - low) / span, f"{m:g}") for m in marks))


def plan_confusion(confusion: Confusion) -> ConfusionView:
    """Returns the heat map's cells and the pairs most often confused."""
    names, counts = confusion.class_names, confusion.counts
    errors = [
        (names[true], names[guess], count)
        for true, row in enumerate(counts)
        for guess, count in enumerate(row)
        if true != guess and count
    ]
    errors.sort(key=lambda error: -error[2])
    most = max((error[2] for error in errors), default=1)
    rows = tuple(
        tuple(
            Cell(count, _heat(count, sum(row) if true == guess else most), true == guess)
            for guess, count in enumerate(row)
        )
        for true, row in enumerate(counts)
    )
    recalls = tuple(
        f"{100 * row[true] / sum(row):.0f} %" if sum(row) else "–"
        for true, row in enumerate(counts)
    )
    return ConfusionView(
        class_names=names,
        rows=rows if len(names) <= _MOST_CLASSES_IN_MATRIX else (),
        recalls=recalls,
        worst=tuple(errors[:_WORST_PAIRS_SHOWN]),
        wrong=sum(error[2] for error in errors),
    )


def plan_usages(results: Results) -> tuple[Usage, ...]:
    """Returns flash and RAM, each split into its parts."""
    facts = results.board_facts
    stack_bytes = results.stack_bytes or 0
    flash = [
        ("weights and tables", results.flash_constants_bytes),
        ("model code", results.flash_code_bytes - results.flash_app_bytes),
        ("application and start-up", results.flash_app_bytes),
    ]
    ram = [
        ("arena", results.arena_bytes),
        ("variables", results.ram_bytes - results.arena_bytes - stack_bytes),
        ("stack, measured peak", stack_bytes),
    ]
    return (
        _usage(_flash_title(results), results.flash_bytes, facts.flash_bytes, flash),
        _usage("RAM", results.ram_bytes, facts.ram_bytes, ram),
    )


def _flash_title(results: Results) -> str:
    return "Program, without the C library" if results.system else "Flash"


def plan_runtimes(results: Results) -> RuntimesView | None:
    """Returns the runtimes of a board that runs Linux, float beside int8, or None elsewhere."""
    if not results.runtimes:
        return None
    pairs: dict[tuple[str, str], dict[str, RuntimeRun]] = {}
    for run in results.runtimes:
        pairs.setdefault((run.name, run.format), {})[run.model] = run
    threads = sorted({t.threads for run in results.runtimes for t in run.latency_us_by_threads})
    by_threads = [run for run in results.runtimes if len(run.latency_us_by_threads) > 1]
    return RuntimesView(
        codes=next((run.model for run in results.runtimes if run.model != "float"), "int8"),
        rows=tuple(_runtime_row(name, kind, runs) for (name, kind), runs in pairs.items()),
        threads=tuple(threads),
        by_threads=tuple(
            ThreadsRow(
                f"{run.name}, {run.model}",
                tuple(
                    next((_spread(t) for t in run.latency_us_by_threads if t.threads == n), "–")
                    for n in threads
                ),
            )
            for run in by_threads
        ),
        reasons=tuple(
            (f"{run.name}, {run.model}, {run.format}", run.error)
            for run in results.runtimes
            if run.error is not None
        ),
        conditions=_tell_conditions(results.system) if results.system else "",
    )


def tabulate_runtimes(results: Results) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Returns the runtimes as a table for a terminal: the names of its columns, and its rows."""
    took = "time, emulated" if results.emulated else "time"
    columns = ("runtime", "model", "accuracy", took, "memory", "on disk")
    names = list(dict.fromkeys((run.name, run.format) for run in results.runtimes))
    ordered = sorted(  # float above int8
        results.runtimes,
        key=lambda run: (names.index((run.name, run.format)), run.model != "float"),
    )
    rows = []
    for run in ordered:
        cell = _runtime_cell(run)
        row = (cell.accuracy, cell.time, cell.memory, cell.disk)
        rows.append((run.name, run.model, *(row if run.error is None else ("failed", *"–––"))))
    return columns, tuple(rows)


def plan_nodes(results: Results) -> tuple[NodeRow, ...]:
    """Returns the nodes with their bars: what was counted, else MACs."""
    costs = [node.macs if node.cost is None else node.cost for node in results.per_node]
    total, most = sum(costs), max([*costs, 1])
    return tuple(
        NodeRow(
            index=node.index,
            op=node.op,
            name=node.name,
            short_name=short_tensor_name(node.name),
            macs=node.macs,
            cost=node.cost,
            per_mac=_ratio(node.cost, node.macs),
            share=f"{100 * cost / total:.1f} %" if total else "–",
            length=100 * cost / most,
        )
        for node, cost in zip(results.per_node, costs, strict=True)
    )


def plan_memory(plan: MemoryPlan) -> PlanView | None:
    """Returns the drawing of the memory plan, or None when it holds no tensor."""
    if not plan.buffers:
        return None
    column = min(110.0, max(34.0, 880.0 / len(plan.steps)))
    height, left = 240.0, 64.0
    scale = height / max(plan.arena_bytes, 1)
    tall = [max(buffer.bytes * scale, _THINNEST_BOX) for buffer in plan.buffers]
    boxes = tuple(
        Box(
            x=left + column * buffer.first,
            y=max(height - buffer.offset * scale - tall[number], 0),
            width=column * (buffer.last - buffer.first + 1),
            height=tall[number],
            label=size(buffer.bytes) if buffer.bytes * scale >= 14 else "",
            title=f"{buffer.name}: {buffer.bytes:,} bytes at {buffer.offset:,}",
            shade=number % 4,
        )
        for number, buffer in enumerate(plan.buffers)
    )
    step = _tick_step(plan.arena_bytes, most=4)
    marks = [i * step for i in range(int(plan.arena_bytes / step) + 1)]
    return PlanView(
        width=left + column * len(plan.steps),
        height=height,
        boxes=boxes,
        columns=tuple((left + column * (i + 0.5), name) for i, name in enumerate(plan.steps)),
        ticks=tuple((height - mark * scale, grouped(round(mark))) for mark in marks),
        bound_y=height - plan.bound_bytes * scale,
        has_overlaps=any(overlap(a, b) for a, b in itertools.combinations(plan.buffers, 2)),
    )


def overlap(a: Buffer, b: Buffer) -> bool:
    """Tells whether two buffers share bytes while both are needed."""
    return (
        a.first <= b.last
        and b.first <= a.last
        and a.offset < b.offset + b.bytes
        and b.offset < a.offset + a.bytes
    )


def plan_curves(results: Results) -> tuple[Curves, ...]:
    """Returns the charts of the training history, those that there are values for."""
    charts = (
        ("Accuracy", (("accuracy", "training"), ("val_accuracy", "validation"))),
        ("Loss", (("loss", "training"), ("val_loss", "validation"))),
    )
    drawn = []
    for title, series in charts:
        found = [(label, results.training[key]) for key, label in series if key in results.training]
        found = [(label, values) for label, values in found if len(values) > 1]
        if found:
            drawn.append(_plan_curve(title, found))
    return tuple(drawn)


def _plan_curve(title: str, series: Sequence[tuple[str, Sequence[float]]]) -> Curves:
    """Places curves in a field of 300 x 140 units."""
    width, height = 300.0, 140.0
    low, high = _range(value for _, values in series for value in values)
    epochs = max(len(values) for _, values in series)

    def place(epoch: int, value: float) -> tuple[float, float]:
        return width * epoch / (epochs - 1), height * (high - value) / (high - low)

    ends = [place(len(values) - 1, values[-1]) for _, values in series]
    lines = tuple(
        Line(
            label=label,
            points=" ".join("{:.1f},{:.1f}".format(*place(e, v)) for e, v in enumerate(values)),
            end_x=ends[number][0],
            end_y=ends[number][1],
            label_y=_label_y(number, [y for _, y in ends]),
            shade=number,
        )
        for number, (label, values) in enumerate(series)
    )
    step = _tick_step(high - low, most=6)
    first = math.ceil(low / step - 1e-9)
    marks = [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
    every = max(1, round(_tick_step(epochs, most=5)))
    return Curves(
        title=title,
        lines=lines,
        y_ticks=tuple((height * (high - mark) / (high - low), f"{mark:.4g}") for mark in marks),
        x_ticks=tuple(
            (width * e / (epochs - 1), str(e + 1))
            for e in range(epochs)
            if e == 0 or (e + 1) % every == 0
        ),
    )


def _label_y(number: int, ends: Sequence[float]) -> float:
    """Moves the labels of two curves that end close together apart."""
    if len(ends) != 2 or abs(ends[0] - ends[1]) >= 12:
        return ends[number]
    upper = ends[number] < ends[1 - number] or (ends[0] == ends[1] and number == 0)
    return sum(ends) / 2 + (-6 if upper else 6)


def _range(values: Iterable[float]) -> tuple[float, float]:
    """Returns the least and greatest value with a margin of a twentieth."""
    seen = list(values)
    low, high = min(seen), max(seen)
    margin = (high - low) / 20 or 0.05
    return low - margin, high + margin


def _tick_step(span: float, most: int) -> float:
    """Returns the least step of 1, 2 or 5 times a power of ten with at most ``most`` steps."""
    power = 10.0 ** math.floor(math.log10(max(span, 1e-9) / most))
    return next(f * power for f in (1, 2, 5, 10) if f * power * most >= span * (1 - 1e-9))


def _heat(count: int, most: int) -> float:
    return 100 * count / most if most else 0.0


def _ratio(cost: int | None, macs: int) -> str:
    return f"{cost / macs:.2f}" if cost is not None and macs else "–"


def _usage(
    title: str, used_bytes: int, board_bytes: int | None, parts: Sequence[tuple[str, int]]
) -> Usage:
    return Usage(
        title=title,
        used_bytes=used_bytes,
        board_bytes=board_bytes,
        percent_of_board=100 * used_bytes / board_bytes if board_bytes else None,
        parts=tuple(
            Part(label, part_bytes, 100 * part_bytes / used_bytes)
            for label, part_bytes in parts
            if part_bytes > 0
        ),
    )


def _runtime_row(name: str, kind: str, runs: Mapping[str, RuntimeRun]) -> RuntimeRow:
    versions = sorted({run.version for run in runs.values() if run.version})
    notes = [" ".join([kind, *versions])]
    for run in runs.values():
        if run.reference is not None:
            equal = f"{run.equal_bytes:,} of {run.bytes:,}"
            notes.append(f"{equal} bytes as {run.reference}")
    floating = runs.get("float")
    quantized = next((run for model, run in runs.items() if model != "float"), None)
    return RuntimeRow(
        name=name,
        note="; ".join(notes),
        floating=None if floating is None else _runtime_cell(floating),
        quantized=None if quantized is None else _runtime_cell(quantized),
    )


def _runtime_cell(run: RuntimeRun) -> RuntimeCell:
    latency = run.latency_us
    return RuntimeCell(
        accuracy="–" if run.accuracy is None else percent(run.accuracy),
        time="–" if latency is None else time(latency.median),
        time_note="" if latency is None else f"p90 {time(latency.p90)}, p99 {time(latency.p99)}",
        memory="–" if run.peak_memory_bytes is None else size(run.peak_memory_bytes),
        disk="–" if run.size_bytes is None else size(run.size_bytes),
        reason=run.error or "",
    )


def _spread(latency: Latency) -> str:
    return f"{time(latency.median)} ({time(latency.p90)}, {time(latency.p99)})"


def _tell_conditions(system: System) -> str:
    """Returns one sentence on what may have changed the times, as far as the board says."""
    before, after = system.before, system.after
    told = []
    if after.governor is not None:
        told.append(f"frequency governor {after.governor}")
    if after.frequency_mhz is not None:
        told.append(f"{after.frequency_mhz:,}\u00a0MHz at the end")
    if before.temperature_c is not None and after.temperature_c is not None:
        degrees = [f"{each.temperature_c:.0f}\u00a0°C" for each in (before, after)]
        told.append(f"{degrees[0]} before and {degrees[1]} after")
    if after.throttled is not None:
        told.append(", ".join(after.throttled) or "not throttled")
    text = "; ".join(told)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _accuracy_tile(results: Results) -> Tile | None:
    accuracy = results.accuracy
    if accuracy.int8_device is None:
        return None
    note = f"{accuracy.samples:,} held-out inputs"
    if accuracy.float_model is not None:
        note = f"{points(accuracy.int8_device - accuracy.float_model)} against float"
    return Tile("Accuracy on the board", f"{100 * accuracy.int8_device:.2f}", "%", note)


def _size_tile(label: str, used_bytes: int, board_bytes: int | None) -> Tile:
    value, _, unit = size(used_bytes).partition(" ")
    if board_bytes is None:
        return Tile(label, value, unit, f"{used_bytes:,} bytes")
    share = 100 * used_bytes / board_bytes
    return Tile(label, value, unit, f"{share:.2g} % of the board's {size(board_bytes)}")


def _speed_tile(results: Results) -> Tile:
    if results.latency_us is not None:
        note = "one inference, on the board"
        if results.latency_us >= 1000:
            return Tile("Latency", f"{results.latency_us / 1000:.3g}", "ms", note)
        return Tile("Latency", f"{results.latency_us:.3g}", "µs", note)
    if results.cost is None:
        return Tile("Work", *short_count(results.macs), "multiply-accumulates per inference")
    per_mac = _ratio(results.cost, results.macs)
    return Tile(
        "Clock cycles" if results.counted == "cycles" else "Instructions",
        *short_count(results.cost),
        f"per inference, {per_mac} for each multiply-accumulate",
    )
