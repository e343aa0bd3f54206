"""Kernels for pruned weights, which neither store nor multiply zeros, and their weights' layout.

Each computes the same bytes as a dense kernel. Where it is chosen, cost and constants are less
together (`edgekiln.export.lower.select_kernel`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.base import (
    Array,
    Kernel,
    KernelCall,
    Overlaps,
    Scratch,
    as_int64,
    constant_bytes,
)
from edgekiln.export.ops.conv_2d import Conv2D, is_pointwise
from edgekiln.export.ops.convolution import (
    bias_and_input_offset,
    matrix_overlap,
    output_scalars,
)
from edgekiln.export.ops.cortex_m4 import channels_of, output_scalars_of
from edgekiln.export.ops.fully_connected import FullyConnected
from edgekiln.export.ops.windows import window_overlap, window_scalars

_Linear = Conv2D | FullyConnected

_LONGEST_GAP = 255
_MOST_GROUPS = 65535
_FEWEST_ZEROS = 0.3
"""Share of zeros below which no layout is smaller than the weights themselves."""
_CODE_BYTES = 400
"""What one more kernel takes of the flash, about."""
_INSTRUCTIONS = {(False, 1): 7.8, (False, 4): 4.3, (True, 1): 4.4, (True, 4): 2.7}
"""What a stored weight takes, without and with the DSP extension, by the weights in a group."""


def pack_groups(matrix: NDArray[np.int64], block: int) -> tuple[Array, Array]:
    """Packs ``[channels, inputs]`` int8 weights for ``ek_sparse_s8``.

    Args:
        matrix: The weights; their inputs are a multiple of ``block``.
        block: Weights in a group, 1 or 4.

    Returns:
        int8: for each group of a channel its gap and its weights; and uint16 [channels], how
        many groups each has.
    """
    channels, inputs = matrix.shape
    blocks = matrix.reshape(channels, inputs // block, block)
    entries, counts = [], []
    for weights in blocks:
        places = np.flatnonzero(weights.any(axis=1))
        gaps = np.diff(places, prepend=0)
        # A gap that is too long for a byte passes through groups of zeros.
        steps = 1 + np.maximum(gaps - 1, 0) // _LONGEST_GAP
        last = np.cumsum(steps) - 1
        count = int(steps.sum())
        packed = np.zeros((count + (count % 2 if block == 1 else 0), 1 + block), np.int64)
        packed[:count, 0] = _LONGEST_GAP
        packed[last, 0] = gaps - _LONGEST_GAP * (steps - 1)
        packed[last, 1:] = weights[places]
        entries.append(packed.astype(np.uint8).view(np.int8).reshape(-1))
        counts.append(len(packed))
    found = np.concatenate(entries)
    # C has no empty tables.
    return (found if len(found) else np.zeros(1, np.int8)), np.array(counts, np.uint16)


def _matrix(op: _Linear, graph: Graph) -> NDArray[np.int64]:
    weights = op.input(graph, 1)
    return as_int64(weights.data).reshape(weights.shape[0], -1)


def _rows(op: _Linear, graph: Graph) -> int:
    """How often the weights are gone through."""
    return op.output(graph).elements // op.input(graph, 1).shape[0]


def _depth(op: _Linear, graph: Graph) -> int:
    """Inputs of an output."""
    return op.input(graph, 1).elements // op.input(graph, 1).shape[0]


@dataclass(frozen=True)
class _Layout:
    """A way to store pruned weights, and the C kernels that go with it.

    Attributes:
        block: Weights in a group.
        dsp: Whether the kernel uses the DSP extension.
        window: Whether the kernel is that of a convolution with any filter.
    """

    block: int
    dsp: bool
    window: bool

    def kernel(self) -> Kernel:
        """Returns it as one of an operator's kernels."""
        shape = "conv_2d" if self.window else "matrix"
        blocks, dsp = "_blocks" if self.block > 1 else "", "_dsp" if self.dsp else ""
        return Kernel(
            f"{shape}_sparse{blocks}{dsp}_s8",
            self._lower,
            self._cost,
            frozenset({"dsp"} if self.dsp else ()),
            self._accepts,
            self._overlap,
            self._constants,
        )

    def _accepts(self, op: _Linear, graph: Graph) -> bool:
        tensors = (op.input(graph, 0), op.input(graph, 1), op.output(graph))
        if any(tensor.dtype is not DType.INT8 for tensor in tensors):
            return False
        if isinstance(op, Conv2D) and not (_has_window if self.window else is_pointwise)(op, graph):
            return False
        matrix = _matrix(op, graph)
        groups, rest = divmod(matrix.shape[1], self.block)
        zeros = matrix.size - np.count_nonzero(matrix)
        if rest or groups >= _MOST_GROUPS or zeros <= _FEWEST_ZEROS * matrix.size:
            return False
        if not self.dsp:
            return True
        channels, _ = channels_of(op, graph, matrix, padded=False)
        return channels.shifts_fit() and channels.accumulators_fit(128)

    def _groups(self, op: _Linear, graph: Graph) -> tuple[Array, Array]:
        matrix = _matrix(op, graph)
        if self.dsp:
            matrix = channels_of(op, graph, matrix, padded=False)[0].matrix
        return pack_groups(matrix, self.block)

    def _cost(self, op: _Linear, graph: Graph) -> float:
        stored = self.block * int(self._groups(op, graph)[1].sum())
        rows, outputs = _rows(op, graph), op.output(graph).elements
        gathering = 1.5 * rows * _depth(op, graph) if self.window else 0.0
        products = _INSTRUCTIONS[self.dsp, self.block] * rows * stored
        return products + gathering + (42.0 if self.dsp else 60.0) * outputs

    def _constants(self, op: _Linear, graph: Graph) -> float:
        entries, groups = self._groups(op, graph)
        others = constant_bytes(op, graph) - op.input(graph, 1).bytes
        return entries.nbytes + groups.nbytes + others + _CODE_BYTES

    def _lower(self, op: _Linear, graph: Graph) -> tuple[KernelCall, ...]:
        kernel = "ek_conv_2d_sparse_s8" if self.window else "ek_matrix_sparse_s8"
        entries, groups = self._groups(op, graph)
        of_outputs, tables = _dsp_tables(op, graph) if self.dsp else _tables(op, graph)
        scalars = {
            **_place_scalars(op, graph, self.window),
            "channels": op.input(graph, 1).shape[0],
            "block": self.block,
            "dsp": int(self.dsp),
            **of_outputs,
        }
        call = KernelCall(
            kernel,
            f"{kernel}.h",
            scalars,
            {"entries": entries, "groups": groups, **tables},
            (op.inputs[0],),
            op.outputs[0],
            scratch=(Scratch(DType.INT8, _depth(op, graph)),) if self.window else (),
            specialise=(
                *("block", "dsp", "per_channel", "shifts_left"),
                *(("dilation_height",) if self.window else ()),
            ),
        )
        return (call,)

    def _overlap(self, op: _Linear, graph: Graph) -> Overlaps:
        if self.window and isinstance(op, Conv2D):
            return window_overlap(op, graph, op.windows(graph), channelwise=True)
        return matrix_overlap(op, graph, _rows(op, graph))


def _has_window(op: Conv2D, graph: Graph) -> bool:
    x, weights = op.input(graph, 0), op.input(graph, 1)
    return x.shape[0] == 1 and op.dilation_w == 1 and weights.shape[3] == x.shape[3]


def _tables(op: _Linear, graph: Graph) -> tuple[dict[str, int], dict[str, Array]]:
    bias, _ = bias_and_input_offset(op, graph, _matrix(op, graph), padded=False)
    requant = op.requantization(graph)
    scalars = output_scalars(op.output(graph), requant, op.activation)
    return scalars, {"bias": bias, **requant.as_c_arrays()}


def _dsp_tables(op: _Linear, graph: Graph) -> tuple[dict[str, int], dict[str, Array]]:
    channels, _ = channels_of(op, graph, _matrix(op, graph), padded=False)
    scalars = {**output_scalars_of(op, graph), "per_channel": 1, "shifts_left": 0}
    tables: dict[str, Array] = {
        "bias": channels.bias.astype(np.int32),
        "multiplier": channels.multiplier.astype(np.int32),
        "shift": (-channels.right_shift).astype(np.int8),
    }
    return scalars, tables


def _place_scalars(op: _Linear, graph: Graph, window: bool) -> dict[str, int | float]:
    """Returns what the kernel has to know of the inputs' places."""
    if not window or not isinstance(op, Conv2D):
        return {"reverse": 0, "rows": _rows(op, graph), "depth": _depth(op, graph)}
    x, weights, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    places = window_scalars(x, y, op.windows(graph))
    del places["dilation_width"]
    return {
        "input_height": x.shape[1],
        "input_width": x.shape[2],
        "input_channels": x.shape[3],
        "input_zero_point": x.q.zero_point,
        "filter_height": weights.shape[1],
        "filter_width": weights.shape[2],
        **places,
    }


def _kernels(window: bool) -> tuple[Kernel, ...]:
    return tuple(_Layout(block, dsp, window).kernel() for block in (1, 4) for dsp in (False, True))


FULLY_CONNECTED = _kernels(window=False)
CONV_2D = FULLY_CONNECTED + _kernels(window=True)
