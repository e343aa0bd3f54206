"""ONNX files, each checked against the model it was made from.

The float file comes from Keras and is compared with Keras. The int8 file comes from the int8
``.tflite`` that ships, so that both hold the same codes, and is compared with that.

ONNX has no integer convolution with TensorFlow Lite's rounding: the int8 file says
"dequantize, convolve, quantize", in float. Now and then that rounds a value to the code next
to TensorFlow Lite's, and a softmax spreads it. Measured with onnxruntime, on 360 to 1000 real
inputs each::

    model             bytes different   largest difference   decisions changed
    digits_mlp              0    %              0 codes           0
    digits_cnn              0.3  %             14                 0
    mnist_resnet (TinyMaix) 0.2  %             10                 0
    mnist_rect   (TinyMaix) 5.1  %              9                 0
    mnist_dw     (TinyMaix) 6.5  %             14                 0.4 %

so an int8 file passes with up to 10 % different bytes, none by more than 32 codes; one with a
wrong weight or scale is far outside. Both checks run the file as it is written, with
onnxruntime's graph optimizations off: what those choose depends on the processor.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekiln import files
from edgekiln.errors import BadInputError, CheckFailedError
from edgekiln.quantize.process import run_worker

OPSET = 18

#: A float output may differ by ``FLOAT_ABSOLUTE + FLOAT_RELATIVE * |Keras's output|``.
FLOAT_ABSOLUTE = 1e-5
FLOAT_RELATIVE = 1e-4

INT8_MAX_DIFFERENT_SHARE = 0.10
INT8_MAX_DIFFERENCE = 32

_WORKER = "edgekiln.export.onnx_worker"


@dataclass(frozen=True)
class OnnxCheck:
    """What the comparison of an ONNX file with its source found.

    Attributes:
        file: The ONNX file's name.
        sha256: Its SHA-256.
        size_bytes: Its size.
        opset: Its operator set.
        reference: What it was compared with, with the version.
        runtime: What ran it, with the version.
        samples: Inputs that were compared.
        values: Output values that were compared: bytes, for int8.
        different_values: Those that are not equal, or, for float, outside of the tolerance.
        max_abs_diff: Largest difference; in codes, for int8.
        changed_decisions: Samples whose largest output is another one.
        bound: What was allowed.
    """

    file: str
    sha256: str
    size_bytes: int
    opset: int
    reference: str
    runtime: str
    samples: int
    values: int
    different_values: int
    max_abs_diff: float
    changed_decisions: int
    bound: str


def export_onnx_float(model_path: Path, inputs: npt.NDArray[np.float32], output: Path) -> OnnxCheck:
    """Writes a Keras model as float32 ONNX with a batch of 1, and compares the two.

    Args:
        model_path: A ``.keras`` file of a model with one input and one output.
        inputs: float32 [N, ...], what to compare on.
        output: The ``.onnx`` to write, once it has passed.

    Returns:
        What the comparison found.

    Raises:
        BadInputError: A file cannot be read or written, or the inputs cannot be used.
        BadModelError: The model cannot be loaded or converted.
        CheckFailedError: An output is outside of the tolerance.
        ToolMissingError: A package is not installed.
    """
    _require(inputs, np.dtype(np.float32), model_path)
    data, check = _export("float", model_path, inputs, output)
    if check.different_values:
        raise _failure(check, output)
    files.write_bytes(output, data)
    return check


def export_onnx_int8(tflite_path: Path, inputs: npt.NDArray[np.int8], output: Path) -> OnnxCheck:
    """Writes an int8 ``.tflite`` as ONNX with int8 input and output, and compares the two.

    Args:
        tflite_path: An int8 ``.tflite`` with a batch of 1, one input and one output.
        inputs: int8 [N, ...], what to compare on; real inputs, as random ones prove little.
        output: The ``.onnx`` to write, once it has passed.

    Returns:
        What the comparison found.

    Raises:
        BadInputError: A file cannot be read or written, or the inputs cannot be used.
        BadModelError: The model cannot be loaded or converted.
        CheckFailedError: The outputs differ by more than the module's text allows.
        ToolMissingError: A package is not installed.
    """
    _require(inputs, np.dtype(np.int8), tflite_path)
    data, check = _export("int8", tflite_path, inputs, output)
    if (
        check.different_values > INT8_MAX_DIFFERENT_SHARE * check.values
        or check.max_abs_diff > INT8_MAX_DIFFERENCE
    ):
        raise _failure(check, output)
    files.write_bytes(output, data)
    return check


def _require(inputs: npt.NDArray[Any], dtype: np.dtype[Any], where: Path) -> None:
    files.read_input_file(where)
    if inputs.dtype != dtype or inputs.ndim < 2 or inputs.size == 0:
        raise BadInputError(
            "cannot be compared with its ONNX file on these inputs",
            where=where,
            got=f"{inputs.dtype} {list(inputs.shape)}",
            allowed=f"{dtype} [N, ...] with N >= 1",
        )


def _export(
    task: str, source: Path, inputs: npt.NDArray[Any], output: Path
) -> tuple[bytes, OnnxCheck]:
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as scratch:
        samples, made = Path(scratch) / "inputs.npy", Path(scratch) / "model.onnx"
        np.save(samples, inputs, allow_pickle=False)
        job = {
            "task": task,
            "source": str(source),
            "inputs": str(samples),
            "output": str(made),
            "opset": OPSET,
            "absolute": FLOAT_ABSOLUTE,
            "relative": FLOAT_RELATIVE,
        }
        found = run_worker(_WORKER, job, where=source, description=f"exporting {task} ONNX")
        data = made.read_bytes()
    check = OnnxCheck(
        file=output.name,
        sha256=files.sha256_bytes(data),
        size_bytes=len(data),
        opset=OPSET,
        bound=_bound(task),
        **found,
    )
    return data, check


def _bound(task: str) -> str:
    if task == "float":
        return f"every value within {FLOAT_ABSOLUTE:g} + {FLOAT_RELATIVE:g} * |reference|"
    return (
        f"at most {INT8_MAX_DIFFERENT_SHARE:.0%} of the bytes different, "
        f"each by at most {INT8_MAX_DIFFERENCE} codes"
    )


def _failure(check: OnnxCheck, output: Path) -> CheckFailedError:
    return CheckFailedError(
        f"{check.runtime} and {check.reference} disagree",
        where=output,
        got=f"{check.different_values} of {check.values} values different, "
        f"the largest difference is {check.max_abs_diff:g}",
        allowed=check.bound,
        hint="the file was not written",
    )
