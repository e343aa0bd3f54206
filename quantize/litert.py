"""Runs an int8 ``.tflite`` on the PC with LiteRT's own kernels.

LiteRT's default interpreter hands the model to XNNPACK, whose int8 results differ by several
steps from one version to the next; a figure measured with it could not be repeated. What is
read as "int8 on the host" is therefore BUILTIN_REF's, or, where those kernels would take too
long, that of its optimized kernels without XNNPACK, which round now and then otherwise by one
step. `runtime_name` says which.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgekiln.errors import BadModelError, ToolMissingError
from edgekiln.quantize.affine import quantize_array

_DISTRIBUTION = "ai-edge-litert"
_REFERENCE_MACS = 50_000_000_000  # about a minute

Kernels = Literal["BUILTIN_REF", "BUILTIN_WITHOUT_DEFAULT_DELEGATES"]


@dataclass(frozen=True)
class InputSpec:
    """What an int8 model takes.

    Attributes:
        shape: Shape of one sample, without the batch.
        scale: Real value of one step.
        zero_point: The code that stands for 0.0.
    """

    shape: tuple[int, ...]
    scale: float
    zero_point: int


def choose_kernels(macs: int, samples: int) -> Kernels:
    """Returns the reference kernels unless ``samples`` inferences take too long with them."""
    if macs * samples <= _REFERENCE_MACS:
        return "BUILTIN_REF"
    return "BUILTIN_WITHOUT_DEFAULT_DELEGATES"


def runtime_name(kernels: Kernels = "BUILTIN_REF") -> str:
    """Returns the name of what `run_int8` runs on, with its version.

    Raises:
        ToolMissingError: It is not installed.
    """
    try:
        return f"{_DISTRIBUTION} {importlib.metadata.version(_DISTRIBUTION)} {kernels}"
    except importlib.metadata.PackageNotFoundError:
        raise _missing() from None


def read_input_spec(tflite: bytes, where: object) -> InputSpec:
    """Returns shape and quantization of an int8 model's one input. Raises as `run_int8`."""
    details = _open(tflite, where).get_input_details()[0]
    scale, zero_point = details["quantization"]
    return InputSpec(
        shape=tuple(int(size) for size in details["shape"][1:]),
        scale=float(scale),
        zero_point=int(zero_point),
    )


def run_int8(
    tflite: bytes,
    inputs: npt.NDArray[np.int8],
    where: object,
    kernels: Kernels = "BUILTIN_REF",
) -> npt.NDArray[np.int8]:
    """Returns the model's outputs.

    Args:
        tflite: An int8 model with a batch of 1, one input and one output.
        inputs: int8 [N, ...].
        where: The model's name, for messages.
        kernels: What computes it.

    Returns:
        int8 [N, ...], in the order of the inputs.

    Raises:
        BadModelError: The model cannot be loaded, or is not as described.
        ToolMissingError: LiteRT is not installed.
    """
    interpreter = _open(tflite, where, kernels)
    input_index = interpreter.get_input_details()[0]["index"]
    output_index = interpreter.get_output_details()[0]["index"]
    outputs = []
    for sample in inputs:
        interpreter.set_tensor(input_index, sample[np.newaxis])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(output_index)[0])
    return np.stack(outputs)


def measure_accuracy(
    tflite: bytes,
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    where: object,
    kernels: Kernels = "BUILTIN_REF",
) -> float:
    """Returns the share of ``images`` (float32 [N, ...]) whose class the int8 model finds.

    Raises:
        BadModelError: The model cannot be loaded, or has several inputs or outputs.
        ToolMissingError: LiteRT is not installed.
    """
    spec = read_input_spec(tflite, where)
    codes = quantize_array(images, spec.scale, spec.zero_point, np.int8)
    outputs = run_int8(tflite, codes, where, kernels)
    return float(np.mean(np.argmax(outputs, axis=-1) == labels))


def open_interpreter(
    tflite: bytes, where: object, *, kernels: Kernels = "BUILTIN_REF", keep_all: bool = False
) -> Any:
    """Returns LiteRT's interpreter of a model.

    Args:
        tflite: The file's content.
        where: Its name, for messages.
        kernels: Which of LiteRT's kernels.
        keep_all: Whether tensors between ops can be read after an inference.

    Raises:
        BadModelError: The model cannot be loaded.
        ToolMissingError: LiteRT is not installed.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError:
        raise _missing() from None
    try:
        interpreter = Interpreter(
            model_content=tflite,
            experimental_op_resolver_type=OpResolverType[kernels],
            experimental_preserve_all_tensors=keep_all,
            num_threads=1,
        )
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise BadModelError("LiteRT cannot run it", where=where, got=error) from None
    return interpreter


def _open(tflite: bytes, where: object, kernels: Kernels = "BUILTIN_REF") -> Any:
    interpreter = open_interpreter(tflite, where, kernels=kernels)
    tensors = (*interpreter.get_input_details(), *interpreter.get_output_details())
    if len(tensors) != 2 or any(tensor["dtype"] != np.int8 for tensor in tensors):
        got = ", ".join(f"{np.dtype(tensor['dtype'])} '{tensor['name']}'" for tensor in tensors)
        raise BadModelError(
            "has other inputs and outputs than wanted",
            where=where,
            got=got,
            allowed="one int8 input and one int8 output",
        )
    return interpreter


def _missing() -> ToolMissingError:
    return ToolMissingError(
        f"{_DISTRIBUTION} is needed to run int8 models on this machine",
        hint="install it with: pip install 'edgekiln[litert]'",
    )
