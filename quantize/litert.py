"""Runs an int8 ``.tflite`` on the PC with LiteRT's reference kernels.

LiteRT's default interpreter hands the model to XNNPACK, whose int8 results differ by several
steps from one version to the next; a figure measured with it could not be repeated. What is
read as "int8 on the host" is therefore always BUILTIN_REF's.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekiln.console import track
from edgekiln.errors import BadModelError, ToolMissingError
from edgekiln.quantize.affine import dequantize_array, quantize_array

_DISTRIBUTION = "ai-edge-litert"


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


@dataclass(frozen=True)
class Port:
    """An input or an output of a model with a signature.

    Attributes:
        name: Its name in the signature.
        shape: Its shape, the batch of 1 included.
        dtype: Its numpy type's name.
        scale: Real value of one step; 0 where values are real.
        zero_point: The code that stands for 0.0.
        index: The tensor's index in the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float
    zero_point: int
    index: int

    def encode(self, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Returns real values, float32 [N, …], as the model takes them."""
        if not self.scale:
            return values.astype(self.dtype)
        return quantize_array(values, self.scale, self.zero_point, self.dtype)

    def decode(self, codes: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Returns the real values of what the model gives, float32 [N, …]."""
        if not self.scale:
            return codes.astype(np.float32)
        return dequantize_array(codes, self.scale, self.zero_point)


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives, in the order of the file.

    Attributes:
        inputs: Its inputs.
        outputs: Its outputs.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @property
    def is_integer(self) -> bool:
        """Whether the first input takes codes."""
        return self.inputs[0].scale > 0


def runtime_name(*, reference: bool = True) -> str:
    """Returns the name of what models run on, with its version.

    Args:
        reference: The kernels of `run_int8`; otherwise those of `run_real` for float models.

    Raises:
        ToolMissingError: It is not installed.
    """
    kernels = "BUILTIN_REF" if reference else "BUILTIN"
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


def run_int8(tflite: bytes, inputs: npt.NDArray[np.int8], where: object) -> npt.NDArray[np.int8]:
    """Returns the model's outputs.

    Args:
        tflite: An int8 model with a batch of 1, one input and one output.
        inputs: int8 [N, ...].
        where: The model's name, for messages.

    Returns:
        int8 [N, ...], in the order of the inputs.

    Raises:
        BadModelError: The model cannot be loaded, or is not as described.
        ToolMissingError: LiteRT is not installed.
    """
    interpreter = _open(tflite, where)
    input_index = interpreter.get_input_details()[0]["index"]
    output_index = interpreter.get_output_details()[0]["index"]
    outputs = []
    for sample in inputs:
        interpreter.set_tensor(input_index, sample[np.newaxis])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(output_index)[0])
    return np.stack(outputs)


def measure_accuracy(
    tflite: bytes, images: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], where: object
) -> float:
    """Returns the share of ``images`` (float32 [N, ...]) whose class the int8 model finds.

    Raises:
        BadModelError: The model cannot be loaded, or has several inputs or outputs.
        ToolMissingError: LiteRT is not installed.
    """
    spec = read_input_spec(tflite, where)
    codes = quantize_array(images, spec.scale, spec.zero_point, np.int8)
    outputs = run_int8(tflite, codes, where)
    return float(np.mean(np.argmax(outputs, axis=-1) == labels))


def read_signature(tflite: bytes, where: object) -> Signature:
    """Returns the inputs and outputs of a model that the converter wrote from a SavedModel.

    Raises:
        BadModelError: The model cannot be loaded, or has no signature.
        ToolMissingError: LiteRT is not installed.
    """
    interpreter = _load(tflite, where)
    try:
        runner = interpreter.get_signature_runner()
    except ValueError as error:
        raise BadModelError("has no signature", where=where, got=error) from None
    return Signature(
        _ports(runner.get_input_details(), interpreter.get_input_details()),
        _ports(runner.get_output_details(), interpreter.get_output_details()),
    )


def run_real(
    tflite: bytes,
    inputs: Mapping[str, npt.NDArray[np.float32]],
    where: object,
    description: str = "",
) -> dict[str, npt.NDArray[np.float32]]:
    """Runs a model of any type on real values, with real values as the result.

    A model that takes real values runs on LiteRT's optimized kernels, which differ from the
    reference kernels by the rounding of float32 alone, and are many times as fast.

    Args:
        tflite: A model with a batch of 1 and a signature.
        inputs: Input's name to float32 [N, …].
        where: The model's name, for messages.
        description: Text of the progress bar; none where it is empty.

    Returns:
        Output's name to float32 [N, …].

    Raises:
        BadModelError: The model cannot be loaded, or has no signature.
        ToolMissingError: LiteRT is not installed.
    """
    signature = read_signature(tflite, where)
    interpreter = _load(tflite, where, reference=signature.is_integer)
    codes = {port.index: port.encode(inputs[port.name]) for port in signature.inputs}
    samples = range(len(next(iter(codes.values()))))
    results: dict[str, list[npt.NDArray[Any]]] = {port.name: [] for port in signature.outputs}
    for sample in track(samples, description, len(samples)) if description else samples:
        for index, values in codes.items():
            interpreter.set_tensor(index, values[sample : sample + 1])
        interpreter.invoke()
        for port in signature.outputs:
            results[port.name].append(interpreter.get_tensor(port.index))
    return {
        port.name: port.decode(np.concatenate(results[port.name])) for port in signature.outputs
    }


def _ports(by_name: Mapping[str, Any], in_order: Sequence[Any]) -> tuple[Port, ...]:
    names = {details["index"]: name for name, details in by_name.items()}
    return tuple(
        Port(
            name=names[details["index"]],
            shape=tuple(int(size) for size in details["shape"]),
            dtype=np.dtype(details["dtype"]).name,
            scale=float(details["quantization"][0]),
            zero_point=int(details["quantization"][1]),
            index=int(details["index"]),
        )
        for details in in_order
    )


def _load(tflite: bytes, where: object, *, reference: bool = True) -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError:
        raise _missing() from None
    try:
        kernels = OpResolverType.BUILTIN_REF
        if not reference:
            kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        interpreter = Interpreter(
            model_content=tflite, experimental_op_resolver_type=kernels, num_threads=1
        )
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise BadModelError("LiteRT cannot run it", where=where, got=error) from None
    return interpreter


def _open(tflite: bytes, where: object) -> Any:
    """Loads a model with one int8 input and one int8 output."""
    interpreter = _load(tflite, where)
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
