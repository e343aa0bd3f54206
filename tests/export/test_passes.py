"""Passes, as text in and text out, and that they leave every value as it was."""

from __future__ import annotations

import numpy as np
from tflite_builder import BuiltOp, activation, build_model, constant

from edgekiln.export.interpret import run_graph
from edgekiln.export.ir import Graph, dump_graph
from edgekiln.export.passes import run_passes
from edgekiln.export.passes.fold_constants import fold_constants
from edgekiln.export.passes.remove_dead_ops import remove_dead_ops
from edgekiln.export.tflite_reader import read_tflite


def example() -> Graph:
    """A constant that is rescaled and joined to the input, and a node that nobody reads."""
    tensors = [
        activation((1, 4), 0.1, 0),
        constant(np.array([[10, 20]], np.int8), [0.05]),
        activation((1, 2), 0.1, 0),
        activation((1, 6), 0.1, 0),
        activation((1, 4), 0.1, 0),
    ]
    ops = [
        BuiltOp("QUANTIZE", [1], [2], "QuantizeOptions"),
        BuiltOp("RELU", [0], [4]),
        BuiltOp("CONCATENATION", [0, 2], [3], "ConcatenationOptions", {"Axis": 1}),
    ]
    return read_tflite(build_model(tensors, ops, [0], [3]), "m")


BEFORE = """\
inputs  t0:int8[1x4]*0.1@0
  0 QUANTIZE (t1:const int8[1x2]*0.05@0) -> t2:int8[1x2]*0.1@0
  1 RELU (t0:int8[1x4]*0.1@0) -> t4:int8[1x4]*0.1@0
  2 CONCATENATION axis=1 activation=NONE (t0:int8[1x4]*0.1@0, t2:int8[1x2]*0.1@0) -> \
t3:int8[1x6]*0.1@0
outputs t3:int8[1x6]*0.1@0
"""

AFTER = """\
inputs  t0:int8[1x4]*0.1@0
  2 CONCATENATION axis=1 activation=NONE (t0:int8[1x4]*0.1@0, t2:const int8[1x2]*0.1@0) -> \
t3:int8[1x6]*0.1@0
outputs t3:int8[1x6]*0.1@0
"""


def test_the_dump_is_stable() -> None:
    assert dump_graph(example()) == BEFORE


def test_constants_are_folded_and_dead_nodes_removed() -> None:
    assert dump_graph(remove_dead_ops(fold_constants(example()))) == AFTER


def test_passes_change_no_value() -> None:
    x = np.array([[1, -2, 3, -128]], np.int8)
    (before,) = run_graph(example(), [x])
    (after,) = run_graph(run_passes(example()), [x])
    np.testing.assert_array_equal(before, after)
    assert before.tolist() == [[1, -2, 3, -128, 5, 10]]
