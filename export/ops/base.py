"""What every operator brings: a reader, a checker, a numpy definition, kernels and a cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import BadModelError, UnsupportedOpError
from edgekiln.export.ir import DType, Graph, Tensor

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader

Array = NDArray[Any]


@dataclass(frozen=True)
class Scratch:
    """Working memory that a kernel needs while it runs.

    Attributes:
        dtype: Type of its elements.
        elements: How many.
    """

    dtype: DType
    elements: int

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.elements * self.dtype.bytes


@dataclass(frozen=True, eq=False)
class KernelCall:
    """One call of a C kernel, with all that the kernel must know ahead of time.

    The kernel ``ek_<name>`` stands in ``kernels/<header>`` and has the signature
    ``(const ek_<name>_params *p, const T *input…, T *output, T *state…, T *scratch…)``, each T
    the C type of that tensor. Its params struct holds the keys of ``scalars`` (int32_t, or
    float for a Python float) and the keys of ``arrays`` as pointers, in this order.

    Attributes:
        kernel: The C function's name.
        header: The header that defines it.
        scalars: Parameters.
        arrays: Constant tables, 1-D.
        inputs: Tensor indices of the input pointers; constants are passed as tables.
        output: Tensor index of the output pointer; None when only states are written.
        input_offsets: Elements to add to each input pointer; () for none.
        output_offset: Elements to add to the output pointer.
        states: Tensor indices of the variables it reads and writes.
        scratch: Working memory.
        specialise: Scalars that are worth a copy of the kernel each: with ``--optimize
            balanced`` only nodes that agree on them share a function.
        bytewise: The kernel moves bytes: it takes ``int8_t`` pointers whatever the tensors'
            types, and offsets are in bytes.
    """

    kernel: str
    header: str
    scalars: Mapping[str, int | float]
    arrays: Mapping[str, Array]
    inputs: tuple[int, ...]
    output: int | None
    input_offsets: tuple[int, ...] = ()
    output_offset: int = 0
    states: tuple[int, ...] = ()
    scratch: tuple[Scratch, ...] = ()
    specialise: tuple[str, ...] = ()
    bytewise: bool = False


@dataclass(frozen=True)
class Overlap:
    """How an output may lie over an input that is read for the last time.

    Proved from the kernel's order of reads and writes: no byte of the input is overwritten
    before it was read for the last time when the output begins at least ``before`` bytes
    before the input, or, with the kernel running backwards, at least ``after`` bytes after it.

    Attributes:
        before: Distance in bytes for the kernel as it is; 0 allows the same place.
        after: Distance in bytes for the kernel with its scalar ``reverse`` set to 1; None
            when it has no such scalar.
    """

    before: int
    after: int | None = None


Overlaps = Mapping[int, Overlap]
"""By position of the input."""


def no_overlap(op: Any, graph: Graph) -> Overlaps:
    """The overlap of a kernel that promises nothing about its order of reads and writes."""
    return {}


def overlap_in_place(op: Any, graph: Graph) -> Overlaps:
    """The overlap of a kernel that writes element i after it has read element i of each input.

    The tensors' elements have the same size, and both are gone through in memory order.
    """
    size = op.output(graph).bytes
    return {p: Overlap(0) for p, t in enumerate(op.inputs) if graph.tensor(t).bytes == size}


def constant_bytes(op: Any, graph: Graph) -> float:
    """Returns the size of an operator's constants as they are in the model."""
    found = [graph.tensor(t) for t in op.inputs if t >= 0]
    return float(sum(tensor.bytes for tensor in found if tensor.is_constant))


@dataclass(frozen=True)
class Kernel:
    """A way to compute an operator on some targets.

    Attributes:
        name: For the report.
        lower: Turns the operator into calls.
        cost: Estimates its instructions for this operator.
        features: Target features it needs.
        accepts: Tells whether it can compute this operator.
        overlap: How the output may lie over each input.
        constants: Estimates the bytes of its tables.
    """

    name: str
    lower: Callable[[Any, Graph], tuple[KernelCall, ...]]
    cost: Callable[[Any, Graph], float]
    features: frozenset[str] = frozenset()
    accepts: Callable[[Any, Graph], bool] = lambda _op, _graph: True
    overlap: Callable[[Any, Graph], Overlaps] = no_overlap
    constants: Callable[[Any, Graph], float] = constant_bytes


@dataclass(frozen=True)
class Tolerance:
    """How far a float32 value may lie from the oracle's: ``absolute + relative * |oracle|``.

    Attributes:
        relative: In relation to the oracle's value.
        absolute: For values near zero.
    """

    relative: float = 1e-5
    absolute: float = 1e-6


@dataclass(frozen=True)
class Op:
    """Base of all operators.

    Attributes:
        index: Its number in the model file.
        inputs: Tensor indices; -1 stands for an optional input that is absent.
        outputs: Tensor indices.
    """

    index: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    name: ClassVar[str]
    """The operator's name in TensorFlow Lite."""

    variants: ClassVar[str] = "int8"
    """What of the operator is supported, for the table of operators."""

    tolerance: ClassVar[Tolerance] = Tolerance()
    """How far its float32 outputs may lie from the oracle's; all other types must be equal."""

    oracle: ClassVar[str] = "TensorFlow Lite Micro"
    """What defines its bytes: LiteRT's reference kernels where the former lacks something."""

    aliases_input: ClassVar[bool] = False
    """True when the output is the first input's bytes, so that nothing needs to run."""

    state_inputs: ClassVar[tuple[int, ...]] = ()
    """Positions of the inputs that are variables; nowhere else may a variable stand."""

    kernels: ClassVar[tuple[Kernel, ...]] = ()
    """The kernels which can compute it."""

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        return cls(reader.index, reader.inputs, reader.outputs)

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        raise AssertionError(f"{type(self).__name__} has no checker")

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the outputs from the inputs: the definition of the operator.

        Args:
            graph: The graph it belongs to.
            inputs: Values of all inputs, states among them; None for an absent optional one.

        Returns:
            Values of all outputs, with the tensors' dtypes and shapes, then the new values of
            all states, in the order of `states`.
        """
        raise AssertionError(f"{type(self).__name__} has no definition")

    def macs(self, graph: Graph) -> int:
        """Returns the number of multiply-accumulate steps."""
        return 0

    def attributes(self) -> dict[str, object]:
        """Returns what the operator holds besides its tensors."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("index", "inputs", "outputs")
        }

    def activation_inputs(self, graph: Graph) -> tuple[int, ...]:
        """Returns the inputs that exist only while the model runs."""
        return tuple(
            t
            for t in self.inputs
            if t >= 0 and not graph.tensor(t).is_constant and not graph.tensor(t).is_variable
        )

    def states(self, graph: Graph) -> tuple[int, ...]:
        """Returns the variables that it reads or writes."""
        return tuple(t for t in self.inputs if t >= 0 and graph.tensor(t).is_variable)

    def input(self, graph: Graph, position: int) -> Tensor:
        """Returns the input at a position where the operator must have one."""
        if position >= len(self.inputs) or self.inputs[position] < 0:
            self.reject(graph, f"input {position} is missing")
        return graph.tensor(self.inputs[position])

    def optional_input(self, graph: Graph, position: int) -> Tensor | None:
        """Returns the input at a position, or None when it is absent."""
        if position >= len(self.inputs) or self.inputs[position] < 0:
            return None
        return graph.tensor(self.inputs[position])

    def output(self, graph: Graph, position: int = 0) -> Tensor:
        """Returns an output."""
        if position >= len(self.outputs):
            self.reject(graph, f"output {position} is missing")
        return graph.tensor(self.outputs[position])

    def where(self, graph: Graph) -> str:
        """Names this node for a message."""
        return f"{graph.name}: node {self.index} {self.name}"

    def reject(self, graph: Graph, what: str, got: object = "", allowed: object = "") -> NoReturn:
        """Raises an error for a node that contradicts itself or the file format."""
        raise BadModelError(what, where=self.where(graph), got=got, allowed=allowed)

    def unsupported(
        self, graph: Graph, what: str, got: object = "", allowed: object = "", hint: str = ""
    ) -> NoReturn:
        """Raises an error for a node that is right but not supported."""
        raise UnsupportedOpError(what, where=self.where(graph), got=got, allowed=allowed, hint=hint)

    # Checks that many operators share.

    def check_counts(self, graph: Graph, inputs: range, outputs: int = 1) -> None:
        """Checks the number of inputs and outputs."""
        if len(self.inputs) not in inputs:
            wanted = f"{inputs.start} to {inputs.stop - 1}"
            self.reject(graph, "wrong number of inputs", len(self.inputs), wanted)
        if len(self.outputs) != outputs:
            self.reject(graph, "wrong number of outputs", len(self.outputs), outputs)

    def check_type(self, graph: Graph, tensor: Tensor, *allowed: DType) -> None:
        """Checks a tensor's type, and that quantized activations have one scale.

        int8, uint8 and int16 count as quantized; a float32 or int32 tensor needs no scale.
        """
        if tensor.dtype not in allowed:
            float_instead = tensor.dtype is DType.FLOAT32 and DType.INT8 in allowed
            self.unsupported(
                graph,
                f"tensor '{tensor.name}' has a type which is not supported here",
                tensor.dtype.value,
                " or ".join(dtype.value for dtype in allowed),
                "quantize the model to int8 first (edgekiln quantize)" if float_instead else "",
            )
        if tensor.dtype in (DType.INT8, DType.UINT8, DType.INT16):
            if tensor.quantization is None:
                self.reject(graph, f"{tensor.dtype.value} tensor '{tensor.name}' carries no scale")
            if tensor.quantization.per_channel and not tensor.is_constant:
                self.reject(graph, f"tensor '{tensor.name}' is quantized per channel")

    def check_int8(self, graph: Graph, tensor: Tensor) -> None:
        """Checks that a tensor is int8 and quantized per tensor."""
        self.check_type(graph, tensor, DType.INT8)

    def check_same_type(self, graph: Graph, a: Tensor, b: Tensor) -> None:
        """Checks that two tensors have the same element type."""
        if a.dtype is not b.dtype:
            self.unsupported(
                graph, f"types of '{a.name}' and '{b.name}' differ", b.dtype.value, a.dtype.value
            )

    def check_same_shape(self, graph: Graph, a: Tensor, b: Tensor) -> None:
        """Checks that two tensors have the same shape."""
        if a.shape != b.shape:
            self.reject(graph, f"shapes of '{a.name}' and '{b.name}' differ", b.shape, a.shape)

    def check_rank(self, graph: Graph, tensor: Tensor, ranks: tuple[int, ...]) -> None:
        """Checks the number of dimensions."""
        if len(tensor.shape) not in ranks:
            allowed = " or ".join(f"{rank} dimensions" for rank in ranks)
            self.unsupported(graph, f"shape of '{tensor.name}'", tensor.shape, allowed)

    def check_same_quantization(self, graph: Graph, a: Tensor, b: Tensor) -> None:
        """Checks that two tensors have the same scale and zero point."""
        if (a.q.scale, a.q.zero_point) != (b.q.scale, b.q.zero_point):
            self.reject(
                graph,
                f"scale and zero point of '{b.name}' differ from those of '{a.name}'",
                f"{b.q.scale:.8g}, {b.q.zero_point}",
                f"{a.q.scale:.8g}, {a.q.zero_point}",
            )

    def constant(self, graph: Graph, position: int, what: str) -> Tensor:
        """Returns an input that has to be a constant."""
        tensor = self.input(graph, position)
        if not tensor.is_constant:
            self.unsupported(graph, f"the {what} is computed at run time", allowed="a constant")
        return tensor


def as_int64(array: Array | None) -> NDArray[np.int64]:
    """Widens a value for exact arithmetic."""
    if array is None:
        raise AssertionError("an absent input was used")
    return np.asarray(array).astype(np.int64)


def accumulated_tolerance(ops: Iterable[Op]) -> Tolerance:
    """Returns how far a float32 value may lie from the oracle's after all of these operators."""
    found = [op.tolerance for op in ops]
    return Tolerance(sum(t.relative for t in found), sum(t.absolute for t in found))
