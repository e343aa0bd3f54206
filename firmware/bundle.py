"""The compiler's bundle as the firmware sees it: files, and what compile_report.json says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.errors import BadInputError
from edgekiln.files import read_input_file

REPORT_NAME = "compile_report.json"

# What the application moves and prints, with the size of an element in bytes.
DTYPES = {
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "int16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
}


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a model.

    Attributes:
        name: Its name in the model file.
        shape: Its shape for one inference.
        dtype: Type of its elements, a key of `DTYPES`.
        scale: Real value of one step of the code, or None where it is not quantized.
        zero_point: Code of the real value 0; 0 where it is not quantized.
        offset: Where it lies in the arena, in bytes.
        bytes: Its size.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None
    zero_point: int
    offset: int
    bytes: int


@dataclass(frozen=True)
class NodeInfo:
    """A node of the compiled graph, in the order of execution.

    Attributes:
        index: Its number in the model file.
        op: TFLite's name of the operation.
        name: The name of the tensor it makes.
        macs: Multiply-accumulates of one inference.
        constants_bytes: Size of its weights and other tables.
    """

    index: int
    op: str
    name: str
    macs: int
    constants_bytes: int

    def __str__(self) -> str:
        return f"node {self.index} ({self.op} {self.name.split(';')[0]})"


@dataclass(frozen=True)
class Bundle:
    """A generated model: its directory and its report.

    Attributes:
        directory: Where the files lie.
        name: The model's name in C.
        model_sha256: Of the .tflite.
        arena_bytes: All activations, inputs and outputs included.
        state_bytes: What the model remembers between inferences; 0 for most.
        constants_bytes: All weights and other tables.
        macs: Multiply-accumulates of one inference.
        peak_node: Index of the node at which the arena is fullest, or None without nodes.
        inputs: The model's inputs, in its order.
        outputs: Its outputs.
        nodes: Its nodes, in the order of execution.
        sources: The C files, golden pair excluded.
    """

    directory: Path
    name: str
    model_sha256: str
    arena_bytes: int
    state_bytes: int
    constants_bytes: int
    macs: int
    peak_node: int | None
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    nodes: tuple[NodeInfo, ...]
    sources: tuple[str, ...]

    @property
    def golden_source(self) -> str:
        """The C file with the golden input and output."""
        return f"{self.name}_golden.c"

    def find_node(self, index: int) -> NodeInfo | None:
        """Returns the node with this index, or None."""
        return next((node for node in self.nodes if node.index == index), None)


def read_bundle(directory: Path) -> Bundle:
    """Reads the report of a bundle and checks that its C files are there.

    Raises:
        BadInputError: The report is missing or damaged, a file is missing, or the bundle is of
            a kind that the application cannot run: ``--io separate``, or an input or output
            of a type that is not in `DTYPES`.
    """
    path = directory / REPORT_NAME
    try:
        report = json.loads(read_input_file(path))
        bundle = _read_report(directory, report)
        io = report["io"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"not a compile report: {type(error).__name__}: {error}"
        raise BadInputError(what, where=path) from None
    if io != "arena":
        raise BadInputError(
            "the application needs inputs and outputs in the arena",
            where=directory,
            got=f"--io {io}",
            hint="compile with --io arena",
        )
    for tensor in (*bundle.inputs, *bundle.outputs):
        if tensor.dtype not in DTYPES:
            raise BadInputError(
                f"the application cannot move values of the type of {tensor.name}",
                where=directory,
                got=tensor.dtype,
                allowed=", ".join(DTYPES),
            )
    for name in (*bundle.sources, bundle.golden_source):
        if not (directory / name).is_file():
            raise BadInputError("the bundle lacks a file", where=directory, got=name)
    return bundle


def _read_report(directory: Path, report: dict[str, Any]) -> Bundle:
    name = str(report["name"])
    peak = report["peak_node"]
    return Bundle(
        directory=directory,
        name=name,
        model_sha256=bytes.fromhex(report["model_sha256"]).hex(),
        arena_bytes=int(report["arena_bytes"]),
        state_bytes=int(report.get("state_bytes", 0)),
        constants_bytes=int(report["constants_bytes"]),
        macs=int(report["macs"]),
        peak_node=int(peak["index"]) if peak else None,
        inputs=tuple(_read_tensor(tensor) for tensor in report["inputs"]),
        outputs=tuple(_read_tensor(tensor) for tensor in report["outputs"]),
        nodes=tuple(
            NodeInfo(
                index=int(node["index"]),
                op=str(node["op"]),
                name=str(node["name"]),
                macs=int(node["macs"]),
                constants_bytes=int(node["constants_bytes"]),
            )
            for node in report["nodes"]
        ),
        sources=tuple(
            sorted(
                file
                for file in report["files"]
                if file.endswith(".c") and file != f"{name}_golden.c"
            )
        ),
    )


def _read_tensor(tensor: dict[str, Any]) -> TensorInfo:
    scale, zero_point = tensor["scale"], tensor["zero_point"]
    return TensorInfo(
        name=str(tensor["name"]),
        shape=tuple(int(size) for size in tensor["shape"]),
        dtype=str(tensor["dtype"]),
        scale=None if scale is None else float(scale),
        zero_point=0 if zero_point is None else int(zero_point),
        offset=int(tensor["offset"]),
        bytes=int(tensor["bytes"]),
    )
