"""Draws a memory plan: offset over running order, as an SVG that needs nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from edgekiln.errors import BadInputError
from edgekiln.export.inspect import SCRATCH_LABEL, BufferFacts, Inspection, short_tensor_name
from edgekiln.files import write_text

_HEIGHT = 440.0
_LEFT, _RIGHT, _TOP = 92.0, 28.0, 108.0
_MOST_WIDTH = 1700.0
_LETTER = 6.4
"""Width of a letter of 11 pixels, on the safe side."""

_STYLE = """
  svg { background: #fff; font: 11px system-ui, "Segoe UI", "Noto Sans", sans-serif; fill: #1c1917 }
  .title { font-size: 17px; font-weight: 650 }
  .muted { fill: #6b645e }
  .grid { stroke: #e7e3de }
  .axis { stroke: #a8a29e; fill: none }
  .peak { fill: #fdf0dc }
  .peak-name { font-weight: 700; fill: #b45309 }
  .buffer { stroke-width: 1.2; fill-opacity: .62 }
  .input { fill: #93c5fd; stroke: #1d4ed8 }
  .output { fill: #86d9a5; stroke: #15803d }
  .activation { fill: #fbbf9d; stroke: #c2410c }
  .other { fill: #f8d7a0; stroke: #b06a05 }
  .scratch { fill: #d6d3d1; stroke: #57534e; stroke-dasharray: 3 2 }
  .overlap { fill: url(#hatch); stroke: none }
  .arena { stroke: #1c1917; stroke-width: 1.4 }
  .bound { stroke: #b91c1c; stroke-width: 1.4; stroke-dasharray: 6 4 }
  .bound-name { fill: #b91c1c }
"""


@dataclass(frozen=True)
class _Scale:
    """Where offsets and positions lie in the picture.

    Attributes:
        columns: Nodes, and one column each before and after them.
        arena_bytes: Size of the arena.
        column: Width of a column.
    """

    columns: int
    arena_bytes: int
    column: float

    def x(self, position: int) -> float:
        """Returns the left end of a node's column; -1 is what comes before the first."""
        return _LEFT + (position + 1) * self.column

    def y(self, offset: float) -> float:
        """Returns the height of an offset; 0 lies at the bottom."""
        return _TOP + _HEIGHT * (1 - offset / max(self.arena_bytes, 1))

    @property
    def right(self) -> float:
        """The right end of the last column."""
        return self.x(self.columns - 1)


def write_plot(path: Path, inspection: Inspection) -> None:
    """Writes the picture as .svg, or as .html.

    Raises:
        BadInputError: The name ends otherwise, or the file cannot be written.
    """
    svg = draw_memory_plan(inspection)
    if path.suffix == ".html":
        head = f'<!doctype html>\n<meta charset="utf-8">\n<title>{escape(inspection.model)}</title>'
        svg = f'{head}\n<body style="margin: 0; background: #fff">\n{svg}</body>\n'
    elif path.suffix != ".svg":
        raise BadInputError(
            "unknown kind of picture",
            where="--plot",
            got=path.suffix or path.name,
            allowed=".svg, .html",
        )
    write_text(path, svg)


def draw_memory_plan(inspection: Inspection) -> str:
    """Returns the memory plan as SVG.

    The nodes stand along the x axis in running order, offsets in the arena grow upwards. A
    rectangle is a buffer: as high as it has bytes, as wide as it lives. Hatched is where an
    output lies over the input that its node reads for the last time.
    """
    columns = len(inspection.nodes) + 2
    column = max(13.0, min(74.0, (_MOST_WIDTH - _LEFT - _RIGHT) / columns))
    scale = _Scale(columns, inspection.arena_bytes, column)
    names = max((len(node.op) + 4 for node in inspection.nodes), default=6)
    height = _TOP + _HEIGHT + 24 + names * _LETTER * 0.72 + 30
    width = max(scale.right + _RIGHT, 720.0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="Memory plan of {escape(inspection.model)}">',
        f"<style>{_STYLE}</style>",
        '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><path d="M0 0V6" stroke="#1c1917" stroke-width="1.6" '
        'stroke-opacity=".5"/></pattern></defs>',
        *_title(inspection),
        *_peak(inspection, scale),
        *_offsets(inspection, scale),
        *_buffers(inspection, scale),
        *_overlaps(inspection, scale),
        *_labels(inspection, scale),
        *_limits(inspection, scale),
        *_nodes(inspection, scale),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _title(inspection: Inspection) -> Iterator[str]:
    saved = inspection.live_set_bytes - inspection.arena_bytes
    text = f"Arena of {inspection.arena_bytes:,} bytes for {inspection.target}"
    if saved > 0:
        text += f"; without overlaps at least {inspection.live_set_bytes:,}"
    if inspection.peak_node is not None:
        node = inspection.nodes[inspection.peak_node]
        text += f"; node {node.index} ({node.op}) decides"
    yield _text(_LEFT, 34, inspection.model, "title")
    yield _text(_LEFT, 54, text, "muted")
    kinds = {
        "input": "input",
        "activation": "activation",
        "output": "output",
        "scratch": SCRATCH_LABEL,
    }
    x = _LEFT
    shown = {buffer.kind for buffer in inspection.buffers}
    for kind, name in kinds.items():
        if kind in shown:
            yield f'<rect class="buffer {kind}" x="{x:.1f}" y="67" width="14" height="11"/>'
            yield _text(x + 20, 77, name)
            x += 32 + len(name) * _LETTER
    if any(True for _ in _shared(inspection)):
        yield f'<rect class="overlap" x="{x:.1f}" y="67" width="14" height="11"/>'
        yield _text(x + 20, 77, "output over an input that is read for the last time")


def _peak(inspection: Inspection, scale: _Scale) -> Iterator[str]:
    if inspection.peak_node is not None:
        x = scale.x(inspection.peak_node)
        yield (
            f'<rect class="peak" x="{x:.1f}" y="{_TOP}" '
            f'width="{scale.column:.1f}" height="{_HEIGHT}"/>'
        )


def _offsets(inspection: Inspection, scale: _Scale) -> Iterator[str]:
    step = _round_step(inspection.arena_bytes)
    for offset in range(0, inspection.arena_bytes + 1, step):
        y = scale.y(offset)
        yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{scale.right:.1f}"/>'
        if scale.y(inspection.arena_bytes) + 12 < y or offset == 0:
            yield _text(_LEFT - 8, y + 4, f"{offset:,}", "muted", "end")
    yield f'<path class="axis" d="M{_LEFT} {_TOP}V{_TOP + _HEIGHT}H{scale.right:.1f}"/>'


def _round_step(size: int) -> int:
    """Returns a round number that divides an axis into about six parts."""
    for power in itertools.count():
        for factor in (1, 2, 4, 8):
            step = int(factor * 1024 * 16**power) if size >= 8192 else factor * 4 * 16**power
            if size / step <= 8:
                return step
    raise AssertionError("not reached")


def _buffers(inspection: Inspection, scale: _Scale) -> Iterator[str]:
    for number, buffer in enumerate(inspection.buffers):
        kind = "other" if buffer.kind == "activation" and number % 2 else buffer.kind
        x, y, width, height = _place(buffer, scale)
        alive = _span(inspection, buffer)
        about = (
            f"{buffer.label}: {buffer.bytes:,} bytes at {buffer.offset:,} to "
            f"{buffer.offset + buffer.bytes:,}, {alive}"
        )
        yield (
            f'<rect class="buffer {kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}" rx="1.5"><title>{escape(about)}</title></rect>'
        )


def _place(buffer: BufferFacts, scale: _Scale) -> tuple[float, float, float, float]:
    """Returns a buffer's left and upper end, its width and its height."""
    x, y = scale.x(buffer.first), scale.y(buffer.offset + buffer.bytes)
    width = (buffer.last - buffer.first + 1) * scale.column
    return x + 1, y, width - 2, max(scale.y(buffer.offset) - y, 1.0)


def _span(inspection: Inspection, buffer: BufferFacts) -> str:
    """Tells from which node to which a buffer lives."""
    first = "the start" if buffer.first < 0 else f"node {inspection.nodes[buffer.first].index}"
    ends = buffer.last >= len(inspection.nodes)
    last = "the end" if ends else f"node {inspection.nodes[buffer.last].index}"
    return f"alive at {first}" if first == last else f"alive from {first} to {last}"


def _shared(inspection: Inspection) -> Iterator[tuple[BufferFacts, BufferFacts]]:
    for a, b in itertools.combinations(inspection.buffers, 2):
        if a.shared_bytes(b):
            yield a, b


def _overlaps(inspection: Inspection, scale: _Scale) -> Iterator[str]:
    for a, b in _shared(inspection):
        first, last = max(a.first, b.first), min(a.last, b.last)
        bottom = max(a.offset, b.offset)
        upper = scale.y(bottom + a.shared_bytes(b))
        yield (
            f'<rect class="overlap" x="{scale.x(first) + 1:.1f}" y="{upper:.1f}" '
            f'width="{(last - first + 1) * scale.column - 2:.1f}" '
            f'height="{scale.y(bottom) - upper:.1f}"><title>'
            f"{a.shared_bytes(b):,} bytes shared</title></rect>"
        )


def _labels(inspection: Inspection, scale: _Scale) -> Iterator[str]:
    """Names the buffers that can hold their name or size, clear of hatched parts if possible."""
    for buffer in inspection.buffers:
        _, y, _, height = _place(buffer, scale)
        first, last = _clear_span(inspection, buffer)
        middle = (scale.x(first) + scale.x(last + 1)) / 2
        letters = int(((last - first + 1) * scale.column - 6) / _LETTER)
        size = f"{buffer.bytes:,}"
        name = _shorten(short_tensor_name(buffer.label), letters)
        lines = [text for text in (name, size) if text and len(text) <= letters]
        lines = lines[: int(height / 13)] if height < 26 else lines
        for number, text in enumerate(lines):
            up = (len(lines) - 1) / 2 - number
            yield _text(middle, y + height / 2 + 4 - 13 * up, text, "name", "middle")


def _clear_span(inspection: Inspection, buffer: BufferFacts) -> tuple[int, int]:
    """Returns the part of a buffer's life in which nothing lies over it, else its beginning."""
    first, last = buffer.first, buffer.last
    for other in inspection.buffers:
        if other is not buffer and buffer.shared_bytes(other):
            if other.first <= first:
                first = max(first, other.last + 1)
            else:
                last = min(last, other.first - 1)
    return (first, last) if first <= last else (buffer.first, buffer.first)


def _shorten(text: str, letters: int) -> str:
    if len(text) <= letters or text == SCRATCH_LABEL:
        return text
    return text[: letters - 1] + "…" if letters >= 6 else ""


def _limits(inspection: Inspection, scale: _Scale) -> Iterator[str]:
    arena, bound = scale.y(inspection.arena_bytes), scale.y(inspection.arena_bound_bytes)
    yield f'<path class="arena" d="M{_LEFT - 5} {arena:.1f}H{scale.right:.1f}"/>'
    yield _text(_LEFT - 8, arena + 4, f"{inspection.arena_bytes:,}", "", "end")
    if inspection.arena_bound_bytes < inspection.arena_bytes:
        yield f'<path class="bound" d="M{_LEFT} {bound:.1f}H{scale.right:.1f}"/>'
        text = f"lower bound {inspection.arena_bound_bytes:,}"
        yield _text(scale.right - 4, bound + 13, text, "bound-name", "end")


def _nodes(inspection: Inspection, scale: _Scale) -> Iterator[str]:
    bottom = _TOP + _HEIGHT + 10
    names = ["inputs", *(f"{n.index} {n.op}" for n in inspection.nodes), "outputs"]
    for position, name in enumerate(names, start=-1):
        x = scale.x(position) + scale.column / 2
        kind = "peak-name" if position == inspection.peak_node else "muted"
        yield (
            f'<text class="{kind}" text-anchor="end" '
            f'transform="translate({x + 4:.1f} {bottom:.1f}) rotate(-48)">{escape(name)}</text>'
        )


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    attributes = f' class="{kind}"' if kind else ""
    attributes += f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{attributes}>{escape(text)}</text>'
