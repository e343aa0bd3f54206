"""Runs ``.tflite`` models of any type on the PC: several inputs and outputs, codes or reals.

Names and order are those of the model's signature, which the converter writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekiln.console import track
from edgekiln.errors import BadModelError
from edgekiln.quantize.affine import dequantize_array, quantize_array
from edgekiln.quantize.litert import Kernels, open_interpreter


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


def read_signature(tflite: bytes, where: object) -> Signature:
    """Returns the inputs and outputs of a model that the converter wrote from a SavedModel.

    Raises:
        BadModelError: The model cannot be loaded, or has no signature.
        ToolMissingError: LiteRT is not installed.
    """
    interpreter = open_interpreter(tflite, where)
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
    kernels: Kernels,
    description: str = "",
) -> dict[str, npt.NDArray[np.float32]]:
    """Runs a model of any type on real values, with real values as the result.

    Args:
        tflite: A model with a batch of 1 and a signature.
        inputs: Input's name to float32 [N, …].
        where: The model's name, for messages.
        kernels: What computes it.
        description: Text of the progress bar; none where it is empty.

    Returns:
        Output's name to float32 [N, …].

    Raises:
        BadModelError: The model cannot be loaded, or has no signature.
        ToolMissingError: LiteRT is not installed.
    """
    signature = read_signature(tflite, where)
    interpreter = open_interpreter(tflite, where, kernels=kernels)
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
