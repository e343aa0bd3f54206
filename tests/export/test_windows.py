"""The distance that a window kernel's output keeps from its input, against every pixel."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from edgekiln.export.ops.windows import Padding, Window, furthest_ahead

windows = st.builds(
    Window,
    size=st.integers(1, 5),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 4),
    padding=st.sampled_from(Padding),
    border=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)


def read_positions(window: Window, size: int, outputs: int) -> list[list[int]]:
    """Returns the positions inside of the input under each window."""
    before = window.pad_before(size, outputs)
    starts = [i * window.stride - before for i in range(outputs)]
    taps = [tap * window.dilation for tap in range(window.size)]
    return [[s + tap for tap in taps if 0 <= s + tap < size] for s in starts]


@given(
    st.tuples(windows, windows),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_no_pixel_is_further_ahead(
    pair: tuple[Window, Window], sizes: tuple[int, int], inputs: int, outputs: int
) -> None:
    out = tuple(w.output_size(size) for w, size in zip(pair, sizes, strict=True))
    assume(min(out) >= 1)
    read = [read_positions(w, size, o) for w, size, o in zip(pair, sizes, out, strict=True)]
    # A window in the padding alone: no kernel is made for that.
    assume(all(positions for along in read for positions in along))
    first = np.array([[min(r) * sizes[1] + min(c) for c in read[1]] for r in read[0]]) * inputs
    lowest = np.minimum.accumulate(first.reshape(-1)[::-1])[::-1]
    furthest = (np.arange(lowest.size) * outputs - lowest).max()
    x_shape, y_shape = (1, *sizes, inputs), (1, *out, outputs)
    assert furthest_ahead(pair, x_shape, y_shape) == furthest
