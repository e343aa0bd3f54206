"""The audit of int8 models: what passes, what is refused, and what the message names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tflite_builder import BuiltOp, BuiltTensor, activation, build_model, constant

from edgekiln.errors import BadModelError
from edgekiln.quantize.audit import Finding, audit, audit_int8, find_problems
from edgekiln.quantize.scheme import Scheme

GOLDEN = Path(__file__).parent.parent / "golden"
MLPERF_TINY = [
    "image_classification/pretrainedResnet_quant",
    "keyword_spotting/kws_ref_model",
    "visual_wake_words/vww_96_int8",
    "anomaly_detection/ad01_int8",
    "streaming_wakeword/str_ww_ref_model",
]


def relu_model(first: BuiltTensor, second: BuiltTensor) -> bytes:
    return build_model([first, second], [BuiltOp("RELU", [0], [1])], [0], [1])


def dense_model(weights: np.ndarray, bias: np.ndarray) -> bytes:
    tensors = [
        activation((1, 4), 0.1, 0),
        constant(weights, [0.1]),
        constant(bias, [0.01]),
        activation((1, 3), 0.1, 0),
    ]
    op = BuiltOp("FULLY_CONNECTED", [0, 1, 2], [3], "FullyConnectedOptions")
    return build_model(tensors, [op], [0], [3])


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*_int8.tflite")), ids=lambda p: p.stem)
def test_our_own_models_pass(path: Path) -> None:
    audit_int8(path.read_bytes(), path)


@pytest.mark.parametrize("name", MLPERF_TINY)
def test_the_mlperf_tiny_models_pass(name: str, shared: Path) -> None:
    audit_int8((shared / f"models/mlperf_tiny/{name}.tflite").read_bytes(), name)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("mlperf_tiny/keyword_spotting/kws_ref_model_float32", "FLOAT32 'input_1' (CONV_2D, node"),
        ("mlperf_tiny/anomaly_detection/model_ToyCar_quant_fullint", "FLOAT32 'input_1' (QUANTIZE"),
        ("tinymaix/mbnet96_0.25_q", "INT32 'model/reshape/Shape' (SHAPE, node 28)"),
        ("tflite_micro/seanet_conv0", "INT16 'streamable_model_10/unet_0/base_conv_first"),
    ],
)
def test_models_of_others_that_are_not_int8(name: str, problem: str, shared: Path) -> None:
    path = next((shared / "models").rglob(f"{Path(name).name}.tflite"))
    with pytest.raises(BadModelError) as caught:
        audit_int8(path.read_bytes(), path.name)
    assert str(caught.value).startswith(
        f"{path.name}: is not int8 with fixed shapes throughout; got {problem}"
    )


def test_int8_weights_and_int32_biases_pass() -> None:
    audit_int8(dense_model(np.ones((3, 4), np.int8), np.ones(3, np.int32)), "m")


MIXED = {
    Scheme.FLOAT32: ("FLOAT32", np.float32, np.float32),
    Scheme.FLOAT16: ("FLOAT32", np.float16, np.float32),
    Scheme.DYNAMIC_RANGE: ("FLOAT32", np.int8, np.float32),
    Scheme.INT8: ("INT8", np.int8, np.int32),
    Scheme.INT16X8: ("INT16", np.int8, np.int64),
}


def scheme_model(scheme: Scheme) -> bytes:
    data, weights, bias = MIXED[scheme]
    tensors = [
        BuiltTensor((1, 4), data),
        BuiltTensor((3, 4), np.dtype(weights).name.upper(), data=np.ones((3, 4), weights)),
        BuiltTensor((3,), np.dtype(bias).name.upper(), data=np.ones(3, bias)),
        BuiltTensor((1, 3), data),
    ]
    op = BuiltOp("FULLY_CONNECTED", [0, 1, 2], [3], "FullyConnectedOptions")
    return build_model(tensors, [op], [0], [3])


@pytest.mark.parametrize("scheme", Scheme)
def test_every_scheme_takes_its_own_models_alone(scheme: Scheme) -> None:
    audit(scheme_model(scheme), scheme, "m")
    for other in set(Scheme) - {scheme, Scheme.FLOAT32}:
        with pytest.raises(BadModelError, match=f"{other} "):
            audit(scheme_model(scheme), other, "m")


def test_the_message_names_the_scheme_and_its_types() -> None:
    with pytest.raises(BadModelError) as caught:
        audit(scheme_model(Scheme.INT8), Scheme.INT16X8, "m.tflite")
    assert str(caught.value) == (
        "m.tflite: is not int16x8 with fixed shapes throughout; got INT8 't0' (FULLY_CONNECTED, "
        "node 0), INT8 't3' (FULLY_CONNECTED, node 0); allowed: INT16 between ops, constants also "
        "INT8, INT32 or INT64; replace the layers that have no int16x8 form"
    )


def test_a_scheme_that_changed_no_weights_is_refused() -> None:
    with pytest.raises(BadModelError, match=r"^m: float16 found no weights to convert; got no FLO"):
        audit(scheme_model(Scheme.FLOAT32), Scheme.FLOAT16, "m")


def test_float_constants_are_named() -> None:
    found = find_problems(dense_model(np.ones((3, 4), np.float32), np.ones(3, np.float32)), "m")
    assert found == (
        Finding("t1", "FULLY_CONNECTED", 0, "constant FLOAT32"),
        Finding("t2", "FULLY_CONNECTED", 0, "constant FLOAT32"),
    )


@pytest.mark.parametrize("dtype", ["FLOAT32", "FLOAT16", "INT16", "INT32", "UINT8", "BOOL"])
def test_other_types_between_ops_are_named(dtype: str) -> None:
    data = relu_model(activation((1, 4), 0.1, 0), BuiltTensor((1, 4), dtype, name="the/result"))
    with pytest.raises(BadModelError) as caught:
        audit_int8(data, "m.tflite")
    assert str(caught.value) == (
        f"m.tflite: is not int8 with fixed shapes throughout; got {dtype} 'the/result' "
        "(RELU, node 0); allowed: INT8 between ops, constants also INT32, INT64 or INT4; "
        "replace the layers that have no int8 form"
    )


def test_each_tensor_is_named_once_in_the_order_of_the_ops() -> None:
    tensors = [
        activation((1, 4), 0.1, 0),
        *(BuiltTensor((1, 4), "FLOAT32", name=f"x{number};other") for number in range(7)),
    ]
    ops = [BuiltOp("RELU", [number], [number + 1]) for number in range(7)]
    data = build_model(tensors, ops, [0], [7])
    found = find_problems(data, "m")
    assert [finding.tensor for finding in found] == [f"x{number};…" for number in range(7)]
    assert [finding.node for finding in found] == [0, 1, 2, 3, 4, 5, 6]
    with pytest.raises(BadModelError, match=r"'x3;…' \(RELU, node 3\) and 3 more; allowed"):
        audit_int8(data, "m")


@pytest.mark.parametrize("shape", [(1, -1), (1, 0), (0, 4), (-1, 4)])
def test_shapes_that_are_not_fixed_are_named(shape: tuple[int, ...]) -> None:
    data = relu_model(activation((1, 4), 0.1, 0), activation(shape, 0.1, 0))
    with pytest.raises(BadModelError) as caught:
        audit_int8(data, "m")
    assert f"got shape {list(shape)} of 't1' (RELU, node 0)" in str(caught.value)


def test_a_float_model_of_free_size_is_named() -> None:
    tensors = [BuiltTensor(shape, "FLOAT32") for shape in ((1, 4), (1, -1))]
    with pytest.raises(BadModelError, match=r"m: is not float32 with .*; allowed: FLOAT32, INT32"):
        audit(relu_model(*tensors), Scheme.FLOAT32, "m")


def test_a_graph_without_ops_is_refused() -> None:
    data = build_model([activation((1, 4), 0.1, 0)], [], [0], [0])
    with pytest.raises(BadModelError, match=r"^m: holds no op$"):
        audit_int8(data, "m")


@pytest.mark.parametrize("data", [b"", b"TFL3", b"no model, but a long enough text", bytes(64)])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(BadModelError, match=r"^m: is not a \.tflite file"):
        audit_int8(data, "m")


MODEL = (GOLDEN / "digits_mlp_int8.tflite").read_bytes()


@pytest.mark.parametrize("length", [8, 9, 32, 100, 600, len(MODEL) // 2])
def test_truncated_files_are_refused(length: int) -> None:
    with pytest.raises(BadModelError, match=r"^m: is a damaged \.tflite file$"):
        audit_int8(MODEL[:length], "m")


@given(st.data())
def test_damage_ends_in_an_answer(data: st.DataObject) -> None:
    damaged = bytearray(MODEL)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(MODEL) - 1))
        damaged[position] = data.draw(st.integers(0, 255))
    try:
        assert isinstance(find_problems(bytes(damaged), "m"), tuple)
    except BadModelError as error:
        assert str(error).startswith("m: ")


def test_the_audit_imports_no_tensorflow() -> None:
    program = (
        "import sys; from edgekiln.quantize.audit import audit_int8;"
        f"audit_int8(open({str(GOLDEN / 'digits_cnn_int8.tflite')!r}, 'rb').read(), 'm');"
        "sys.exit(any(m in sys.modules for m in ('tensorflow', 'keras', 'ai_edge_litert')))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
