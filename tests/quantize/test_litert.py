"""Int8 models on the host."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tflite_builder import BuiltOp, BuiltTensor, activation, build_model

from edgekiln.errors import BadModelError
from edgekiln.quantize import litert
from edgekiln.train.datasets import load_dataset

GOLDEN = Path(__file__).parent.parent / "golden"
MODELS = ["digits_mlp", "digits_cnn"]


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}_int8.tflite").read_bytes()


@pytest.mark.parametrize("name", MODELS)
def test_accuracy_of_the_kept_models(name: str) -> None:
    digits = load_dataset("digits")
    measured = litert.measure_accuracy(golden(name), digits.x_test, digits.y_test, name)
    assert measured >= 0.985
    assert measured * 360 == pytest.approx(round(measured * 360))


def test_accuracy_counts_right_answers() -> None:
    digits = load_dataset("digits")
    images, labels = digits.x_test[:20], digits.y_test[:20]
    assert litert.measure_accuracy(golden("digits_cnn"), images, labels, "") == 1.0
    wrong = np.where(np.arange(20) < 5, (labels + 1) % 10, labels)
    assert litert.measure_accuracy(golden("digits_cnn"), images, wrong, "") == 0.75


@pytest.mark.parametrize("name", MODELS)
def test_input_spec(name: str) -> None:
    spec = litert.read_input_spec(golden(name), name)
    assert spec == litert.InputSpec((8, 8, 1), float(np.float32(1 / 255)), -128)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_equal_tensorflow_lite_micro(name: str) -> None:
    """True of these models, not of all: BUILTIN_REF rounds FULLY_CONNECTED otherwise."""
    runtime = pytest.importorskip("tflite_micro").runtime
    inputs = np.load(GOLDEN / "digits_inputs.npz")["inputs"]
    interpreter = runtime.Interpreter.from_bytes(golden(name))
    expected = []
    for sample in inputs:
        interpreter.set_input(sample[np.newaxis], 0)
        interpreter.invoke()
        expected.append(np.array(interpreter.get_output(0)[0]))
    outputs = litert.run_int8(golden(name), inputs, name)
    assert outputs.dtype == np.int8 and outputs.shape == (32, 10)
    np.testing.assert_array_equal(outputs, expected)


def test_the_runtime_is_named_with_its_version() -> None:
    name, version, resolver = litert.runtime_name().split()
    assert (name, resolver) == ("ai-edge-litert", "BUILTIN_REF") and version[0].isdigit()


@pytest.mark.parametrize("data", [b"", b"not a model at all", golden("digits_mlp")[:100]])
def test_damaged_models_are_refused(data: bytes) -> None:
    with pytest.raises(BadModelError, match=r"^m: LiteRT cannot run it; got "):
        litert.run_int8(data, np.zeros((1, 8, 8, 1), np.int8), "m")


def test_models_with_other_inputs_are_refused() -> None:
    tensors = [BuiltTensor((1, 4), "FLOAT32", name="x"), BuiltTensor((1, 4), "FLOAT32", name="y")]
    data = build_model(tensors, [BuiltOp("RELU", [0], [1])], [0], [1])
    with pytest.raises(BadModelError, match="got float32 'x', float32 'y'; allowed: one int8"):
        litert.read_input_spec(data, "m")
    pair = [activation((1, 4), 0.1, 0) for _ in range(3)]
    data = build_model(pair, [BuiltOp("ADD", [0, 1], [2], "AddOptions")], [0, 1], [2])
    with pytest.raises(BadModelError, match="got int8 't0', int8 't1', int8 't2'"):
        litert.read_input_spec(data, "m")
