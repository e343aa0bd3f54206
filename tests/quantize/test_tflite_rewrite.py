"""Weights of a ``.tflite`` replaced."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tflite_builder import BuiltOp, BuiltTensor, activation, build_model, constant

from edgekiln.errors import BadModelError
from edgekiln.export.ir import DType
from edgekiln.export.tflite_reader import read_tflite
from edgekiln.quantize.tflite_rewrite import TfliteRewriter, Weights, file_layout, pack_int4

GENERATOR = np.random.default_rng(6)
SCALES = np.array([0.5, 0.25, 0.125], np.float32)
BIAS = np.array([1.0, -2.0, 0.3])


def two_dense_layers(bias: bool = True) -> bytes:
    """5 -> 3 twice over, with one kernel for both, and no bias in the second."""
    kernel = GENERATOR.integers(-9, 9, (3, 5)).astype(np.int8)
    tensors: list[BuiltTensor] = [
        activation((1, 5), 0.1, 3),
        constant(kernel, [1.0] * 3),
        constant(np.zeros(3, np.int32), [0.1] * 3),
        activation((1, 3), 0.2, 0),
        activation((1, 3), 0.2, 0),
    ]
    options = ("FullyConnectedOptions", {"FusedActivationFunction": 0})
    ops = [
        BuiltOp("FULLY_CONNECTED", (0, 1, 2), (3,), *options),
        BuiltOp("FULLY_CONNECTED", (0, 1, 2 if bias else -1), (4,), *options),
    ]
    return build_model(tensors, ops, [0], [3, 4])


@given(hnp.arrays(np.int8, st.integers(0, 40), elements=st.integers(-8, 7)))
def test_packing_keeps_every_code(codes: np.ndarray) -> None:
    packed = pack_int4(codes)
    assert packed.shape == (-(-len(codes) // 2),)
    halves = [half for byte in packed.tolist() for half in (byte & 15, byte >> 4)]
    assert [(half ^ 8) - 8 for half in halves[: len(codes)]] == codes.tolist()


def test_the_first_code_is_in_the_low_half() -> None:
    assert pack_int4(np.array([[1, -2], [3, 0]], np.int8)).tolist() == [0xE1, 0x03]
    assert pack_int4(np.array([-8, 7, -1], np.int8)).tolist() == [0x78, 0x0F]


def test_layouts() -> None:
    kernel = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    np.testing.assert_array_equal(file_layout(kernel, "CONV_2D")[4, 1, 2, 3], kernel[1, 2, 3, 4])
    assert file_layout(kernel, "DEPTHWISE_CONV_2D").shape == (1, 2, 3, 20)
    assert file_layout(kernel, "DEPTHWISE_CONV_2D")[0, 1, 2, 3 * 5 + 4] == kernel[1, 2, 3, 4]
    np.testing.assert_array_equal(
        file_layout(kernel, "TRANSPOSE_CONV")[3, 1, 2, 4], kernel[1, 2, 3, 4]
    )
    np.testing.assert_array_equal(file_layout(kernel[0, 0], "FULLY_CONNECTED"), kernel[0, 0].T)


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_are_replaced_and_the_rest_stays(bits: int) -> None:
    data = two_dense_layers()
    codes = GENERATOR.integers(-7, 8, (5, 3)).astype(np.int8)
    rewriter = TfliteRewriter(data, "m")
    first, second = rewriter.linear_operators()
    np.testing.assert_array_equal(rewriter.read_codes(first), read_tflite(data, "m").tensor(1).data)
    np.testing.assert_array_equal(rewriter.read_scales(first), [1, 1, 1])
    for operator in (first, second):
        rewriter.set_weights(operator, Weights(codes, SCALES, BIAS, bits))
    graph = read_tflite(rewriter.to_bytes(), "m")
    before = read_tflite(data, "m")
    for op in graph.ops:
        kernel, bias = (graph.tensor(op.inputs[n]) for n in (1, 2))
        assert kernel.dtype is (DType.INT4 if bits == 4 else DType.INT8)
        np.testing.assert_array_equal(kernel.data, codes.T)
        np.testing.assert_array_equal(np.float32(kernel.q.scales), SCALES)
        assert bias.data is not None
        np.testing.assert_array_equal(bias.data, np.round(BIAS / (0.1 * SCALES)))
        np.testing.assert_allclose(bias.q.scales, np.float32(0.1) * SCALES, rtol=1e-7)
    assert (graph.inputs, graph.outputs) == (before.inputs, before.outputs)
    for index in (0, 3, 4):
        assert graph.tensor(index).quantization == before.tensor(index).quantization


def test_activation_scales_are_set_to_the_nearest() -> None:
    data = two_dense_layers()
    rewriter = TfliteRewriter(data, "m")
    near = float(np.nextafter(np.float32(0.2), np.float32(1)))
    rewriter.set_activation_scales([(0.1, 3), (near, 0), (0.3, 0)])
    graph = read_tflite(rewriter.to_bytes(), "m")
    assert graph.tensor(3).q.scale == near
    assert graph.tensor(1).q.scales == (1, 1, 1)
    with pytest.raises(BadModelError) as caught:
        rewriter.set_activation_scales([(0.1, 4), (0.2, 0)])
    assert str(caught.value) == (
        "m: tensor 't0': the converter gave an activation a range of its own; "
        "got scale 0.1, zero point 3"
    )


def test_what_does_not_fit_is_named() -> None:
    rewriter = TfliteRewriter(two_dense_layers(bias=False), "m")
    first, second = rewriter.linear_operators()
    good = Weights(np.ones((5, 3), np.int8), SCALES, BIAS)
    with pytest.raises(BadModelError, match=r"^m: node 1 FULLY_CONNECTED: an operator without a "):
        rewriter.set_weights(second, good)
    with pytest.raises(BadModelError) as caught:
        rewriter.set_weights(first, Weights(np.full((5, 3), 9, np.int8), SCALES, BIAS, bits=4))
    assert str(caught.value) == (
        "m: node 0 FULLY_CONNECTED: weights do not fit; got (3, 5), codes 9 to 9; "
        "allowed: (3, 5), codes -8 to 7"
    )
    with pytest.raises(BadModelError, match=r"weights do not fit; got \(3, 4\), codes 1 to 1"):
        rewriter.set_weights(first, Weights(np.ones((4, 3), np.int8), SCALES, BIAS))
    with pytest.raises(BadModelError) as caught:
        rewriter.set_weights(first, Weights(good.codes, SCALES * 1e-9, BIAS))
    assert "node 0 FULLY_CONNECTED, channel 1: a bias does not fit 32 bits; got -2 at scale" in str(
        caught.value
    )


def test_files_that_are_none() -> None:
    with pytest.raises(BadModelError, match=r"^m: is not a .tflite file; check the file$"):
        TfliteRewriter(b"no model at all", "m")
