"""Damaged, foreign and unsupported files: one clear error each, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite_builder import BuiltOp, BuiltTensor, activation, build_model, constant

from edgekiln.errors import BadInputError, BadModelError, UnsupportedOpError
from edgekiln.export.compiler import compile_model
from edgekiln.export.passes import run_passes
from edgekiln.export.tflite_reader import read_tflite

GOLDEN = Path(__file__).parent.parent / "golden"
DIGITS = (GOLDEN / "digits_mlp_int8.tflite").read_bytes()


def small_model(**changes: object) -> bytes:
    """A fully connected layer 4 -> 2 with some tensor or option changed."""
    weights = constant(np.ones((2, 4), np.int8), [0.1])
    tensors = {
        "x": activation((1, 4), 0.1, 0),
        "weights": weights,
        "y": activation((1, 2), 0.1, 0),
        "bias": constant(np.zeros(2, np.int32), [0.01]),
    }
    tensors.update({k: v for k, v in changes.items() if isinstance(v, BuiltTensor)})
    values = changes.get("values", {})
    assert isinstance(values, dict)
    op = BuiltOp("FULLY_CONNECTED", [0, 1, 3], [2], "FullyConnectedOptions", values)
    return build_model(list(tensors.values()), [op], [0], [2])


def test_the_small_model_is_fine() -> None:
    assert compile_model(small_model(), name="m").report["macs"] == 8


@pytest.mark.parametrize("data", [b"", b"x", b"\x00" * 64, b"GIF89a" + b"\x00" * 100])
def test_what_is_not_a_tflite_file_is_told_so(data: bytes) -> None:
    with pytest.raises(BadModelError, match=r"m\.tflite: not a \.tflite file; got .*TFL3"):
        read_tflite(data, "m.tflite")


@pytest.mark.parametrize("length", [16, 100, 1000, len(DIGITS) // 2, len(DIGITS) - 40])
def test_truncated_files_are_told_so(length: int) -> None:
    with pytest.raises(BadModelError, match=r"^m\.tflite"):
        run_passes(read_tflite(DIGITS[:length], "m.tflite"))


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.integers(8, len(DIGITS) - 1), st.integers(0, 255)), min_size=1, max_size=8
    ),
    st.integers(0, 2**31),
)
def test_damaged_files_end_in_an_error_or_a_graph(
    changes: list[tuple[int, int]], seed: int
) -> None:
    damaged = bytearray(DIGITS)
    for position, value in changes:
        damaged[position] = value
    # Structure is a small part of the file: damage it as well.
    damaged[8 + seed % 600] = seed >> 23 & 255
    try:
        run_passes(read_tflite(bytes(damaged), "m.tflite"))
    except BadInputError as error:
        assert "\n" not in str(error)


def test_a_hybrid_model_says_what_to_do() -> None:
    x, y = BuiltTensor((1, 4), "FLOAT32", name="image"), BuiltTensor((1, 2), "FLOAT32")
    with pytest.raises(
        UnsupportedOpError,
        match=r"node 0 FULLY_CONNECTED: the filter is quantized but the activations are float32.*"
        "int8; allowed: float32; convert with a representative dataset",
    ):
        compile_model(small_model(x=x, y=y), name="m")


def test_an_unsupported_operator_is_named() -> None:
    tensors = [activation((1, 4), 0.1, 0), activation((1, 4), 0.1, 0)]
    model = build_model(tensors, [BuiltOp("HASHTABLE", [0], [1])], [0], [1])
    with pytest.raises(UnsupportedOpError, match="m: node 0: operator HASHTABLE is not supported"):
        compile_model(model, name="m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": constant(np.ones((2, 5), np.int8), [0.1])}, "disagree on depth"),
        ({"weights": constant(np.ones((3, 4), np.int8), [0.1])}, "number of biases"),
        ({"weights": constant(np.ones((2, 4), np.int8), [0.1, 0.2, 0.3])}, "number of filter sc"),
        ({"weights": constant(np.ones((2, 4), np.int8))}, "filter carries no scale"),
        ({"bias": constant(np.zeros(2, np.float32))}, "type of the bias"),
        ({"y": activation((1, 3), 0.1, 0)}, "shape of 't2'"),
        ({"y": activation((1, 2), 0.1, 300)}, "zero point of tensor 't2'"),
        ({"y": activation((1, 2), float("nan"), 0)}, "scale"),
        ({"y": activation((1, 2), -0.1, 0)}, "scale"),
        ({"y": activation((1, -1), 0.1, 0)}, "shape"),
        ({"values": {"FusedActivationFunction": 4}}, "fused activation; got TANH"),
        ({"values": {"FusedActivationFunction": 77}}, "unknown activation; got 77"),
        ({"values": {"WeightsFormat": 1}}, "weights format"),
        (
            {
                "weights": constant(np.full((2, 70000), 127, np.int8), [0.1]),
                "x": activation((1, 70000), 0.1, -128),
            },
            "could overflow 32 bits",
        ),
    ],
)
def test_contradictions_name_the_node_or_tensor(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        compile_model(small_model(**changes), name="m")
    assert str(caught.value).startswith("m: ")


def test_a_filter_that_is_computed_is_not_supported() -> None:
    tensors = [activation((1, 4), 0.1, 0), activation((2, 4), 0.1, 0), activation((1, 2), 0.1, 0)]
    op = BuiltOp("FULLY_CONNECTED", [0, 1], [2], "FullyConnectedOptions")
    with pytest.raises(UnsupportedOpError, match="the filter is computed at run time"):
        run_passes(read_tflite(build_model(tensors, [op], [0, 1], [2]), "m"))


def test_a_cycle_and_a_missing_output_are_found() -> None:
    tensors = [activation((1, 4), 0.1, 0) for _ in range(3)]
    relu = BuiltOp("RELU", [1], [2])
    with pytest.raises(BadModelError, match="node 0 RELU: reads a tensor before it is written"):
        run_passes(read_tflite(build_model(tensors, [relu], [0], [2]), "m"))
    with pytest.raises(BadModelError, match="a model output is never written"):
        run_passes(read_tflite(build_model(tensors, [], [0], [2]), "m"))
    with pytest.raises(BadModelError, match="name tensors that are not there"):
        read_tflite(build_model(tensors, [BuiltOp("RELU", [9], [1])], [0], [1]), "m")
