"""`edgekiln inspect`: what a model holds, and what the compiler makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgekiln.export.compiler import plan_model
from edgekiln.export.emit.program import Program
from edgekiln.export.emit.tables import Tables
from edgekiln.export.ir import Tensor
from edgekiln.export.lower import Node
from edgekiln.export.plan import Buffer

SCRATCH_LABEL = "working memory"


@dataclass(frozen=True)
class TensorFacts:
    """One tensor.

    Attributes:
        index: Its number in the model file.
        name: Its name there.
        shape: Its dimensions.
        dtype: Type of its elements.
        scales: float32, one or one per channel; () without quantization.
        zero_points: As many as ``scales``.
        bytes: Its size.
        kind: "constant", "state" or "activation".
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    bytes: int
    kind: str


@dataclass(frozen=True)
class NodeFacts:
    """One operator.

    Attributes:
        index: Its number in the model file.
        op: Its name in TensorFlow Lite.
        name: Name of its first output.
        attributes: What it holds besides its tensors.
        inputs: Tensor numbers; -1 for an optional input that is absent.
        outputs: Tensor numbers.
        macs: Multiply-accumulate steps of one inference.
        weights_bytes: Size of its constants in the model file.
        constants_bytes: Size of its tables in the generated code.
        kernel: The kernel chosen for it; None when nothing needs to run.
    """

    index: int
    op: str
    name: str
    attributes: Mapping[str, str]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    macs: int
    weights_bytes: int
    constants_bytes: int
    kernel: str | None


@dataclass(frozen=True)
class BufferFacts:
    """Bytes of the arena, and when they are in use.

    Attributes:
        label: Name of the first tensor in it, or "working memory".
        kind: "input", "output", "activation" or "scratch".
        tensors: Numbers of the tensors that share it.
        offset: Where it begins.
        bytes: Its size.
        first: Position of the first node at which it is alive; -1 before the first.
        last: Position of the last node at which it is alive; the number of nodes for what
            outlives them.
    """

    label: str
    kind: str
    tensors: tuple[int, ...]
    offset: int
    bytes: int
    first: int
    last: int

    def shared_bytes(self, other: BufferFacts) -> int:
        """Returns how many bytes lie in both buffers while both are alive."""
        if self.first > other.last or other.first > self.last:
            return 0
        end = min(self.offset + self.bytes, other.offset + other.bytes)
        return max(0, end - max(self.offset, other.offset))


@dataclass(frozen=True)
class Inspection:
    """What `inspect_model` found.

    Attributes:
        model: The file's name.
        sha256: Of the file.
        model_bytes: Its size.
        target: What kernels are chosen for.
        optimize: What the compiler favours.
        macs: Of one inference.
        weights_bytes: Size of the constants that the nodes use.
        constants_bytes: Size of all tables in the generated code.
        state_bytes: What is kept from one inference to the next.
        arena_bytes: Size of the arena.
        arena_bound_bytes: What the most demanding node takes by itself.
        live_set_bytes: The largest sum of live activations, were nothing to overlap.
        peak_node: Position in ``nodes`` of the node that decides; None without nodes.
        inputs: Tensor numbers.
        outputs: Tensor numbers.
        tensors: All tensors that nodes use.
        nodes: In running order.
        buffers: In the order of their first use.
    """

    model: str
    sha256: str
    model_bytes: int
    target: str
    optimize: str
    macs: int
    weights_bytes: int
    constants_bytes: int
    state_bytes: int
    arena_bytes: int
    arena_bound_bytes: int
    live_set_bytes: int
    peak_node: int | None
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    tensors: tuple[TensorFacts, ...]
    nodes: tuple[NodeFacts, ...]
    buffers: tuple[BufferFacts, ...]

    def tensor(self, index: int) -> TensorFacts:
        """Returns the tensor with this number."""
        return next(tensor for tensor in self.tensors if tensor.index == index)

    def to_json(self) -> dict[str, Any]:
        """Returns the object that ``edgekiln inspect --json`` prints."""
        return asdict(self)


def inspect_model(
    data: bytes, model: str, *, target: str = "generic", optimize: str = "balanced"
) -> Inspection:
    """Reads a model, chooses kernels and plans its memory.

    Args:
        data: The .tflite file.
        model: Its name.
        target: One of `edgekiln.export.targets.TARGETS`.
        optimize: One of `edgekiln.export.compiler.OPTIMIZE`.

    Raises:
        BadInputError: An option is wrong.
        BadModelError: The model is damaged or contradicts itself.
        UnsupportedOpError: The model holds what the compiler lacks.
    """
    program = plan_model(data, name="model", target=target, optimize=optimize, where=model)
    graph, plan = program.graph, program.plan
    nodes = tuple(_node_facts(program, node) for node in program.nodes)
    used = {t for op in graph.ops for t in (*op.inputs, *op.outputs) if t >= 0}
    used.update(graph.inputs, graph.outputs)
    constants = {t for op in graph.ops for t in op.inputs if _is_constant(program, t)}
    return Inspection(
        model=model,
        sha256=program.sha256,
        model_bytes=len(data),
        target=target,
        optimize=optimize,
        macs=program.macs,
        weights_bytes=sum(graph.tensor(t).bytes for t in constants),
        constants_bytes=Tables(program).bytes,
        state_bytes=program.state_bytes,
        arena_bytes=plan.arena_bytes,
        arena_bound_bytes=plan.bound_bytes,
        live_set_bytes=plan.live_set_bytes,
        peak_node=max(plan.peak, 0) if nodes else None,
        inputs=graph.inputs,
        outputs=graph.outputs,
        tensors=tuple(_tensor_facts(graph.tensor(t)) for t in sorted(used)),
        nodes=nodes,
        buffers=tuple(
            _buffer_facts(program, buffer, start)
            for buffer, start in zip(plan.buffers, plan.starts, strict=True)
        ),
    )


def _is_constant(program: Program, tensor: int) -> bool:
    return tensor >= 0 and program.graph.tensor(tensor).is_constant


def _tensor_facts(tensor: Tensor) -> TensorFacts:
    quantization = tensor.quantization
    return TensorFacts(
        index=tensor.index,
        name=tensor.name,
        shape=tensor.shape,
        dtype=tensor.dtype.value,
        scales=quantization.scales if quantization else (),
        zero_points=quantization.zero_points if quantization else (),
        bytes=tensor.bytes,
        kind="constant" if tensor.is_constant else "state" if tensor.is_variable else "activation",
    )


def _node_facts(program: Program, node: Node) -> NodeFacts:
    graph, op = program.graph, node.op
    written = op.outputs or op.states(graph)
    constants = {t for t in op.inputs if _is_constant(program, t)}
    return NodeFacts(
        index=op.index,
        op=op.name,
        name=graph.tensor(written[0]).name if written else "",
        attributes={key: str(value) for key, value in op.attributes().items()},
        inputs=op.inputs,
        outputs=op.outputs,
        macs=op.macs(graph),
        weights_bytes=sum(graph.tensor(t).bytes for t in constants),
        constants_bytes=sum(a.nbytes for call in node.calls for a in call.arrays.values()),
        kernel=node.kernel or None,
    )


def _buffer_facts(program: Program, buffer: Buffer, start: int) -> BufferFacts:
    graph = program.graph
    kind, label = "scratch", SCRATCH_LABEL
    if buffer.tensors:
        label = graph.tensor(buffer.tensors[0]).name
        kind = "activation"
        if any(t in graph.outputs for t in buffer.tensors):
            kind = "output"
        if any(t in graph.inputs for t in buffer.tensors):
            kind = "input"
    return BufferFacts(label, kind, buffer.tensors, start, buffer.bytes, buffer.first, buffer.last)


def describe_tensor(inspection: Inspection, index: int) -> str:
    """Returns a tensor's name, type, shape and quantization as one line."""
    tensor = inspection.tensor(index)
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    text = f"{tensor.name}: {tensor.dtype} {shape}"
    if len(tensor.scales) == 1:
        text += f", scale {tensor.scales[0]:.6g}, zero point {tensor.zero_points[0]}"
    return text


def node_rows(inspection: Inspection) -> list[tuple[str | int | None, ...]]:
    """Returns the table of nodes.

    Each row holds: node, op, name, output type and shape, scale, zero point, MACs, bytes of
    weights, kernel.
    """
    rows: list[tuple[str | int | None, ...]] = []
    for node in inspection.nodes:
        written = [inspection.tensor(t) for t in node.outputs]
        first = written[0] if written else None
        shapes = [f"{t.dtype} {'x'.join(map(str, t.shape)) or 'scalar'}" for t in written[:1]]
        more = f" and {len(written) - 1} more" if len(written) > 1 else ""
        quantized = first is not None and len(first.scales) == 1
        rows.append(
            (
                node.index,
                node.op,
                short_tensor_name(node.name),
                "".join(shapes) + more or None,
                f"{first.scales[0]:.6g}" if first is not None and quantized else None,
                first.zero_points[0] if first is not None and quantized else None,
                node.macs or None,
                node.weights_bytes or None,
                node.kernel or "nothing to run",
            )
        )
    return rows


_MOST_MARKS = 48


def buffer_rows(inspection: Inspection) -> list[tuple[str | int | None, ...]]:
    """Returns the table of buffers, with a bar that shows when each is alive.

    Each row holds: offset, bytes, first node, last node, bar, name.
    """
    nodes = inspection.nodes
    columns = len(nodes) + 2
    marks = min(columns, _MOST_MARKS)
    rows: list[tuple[str | int | None, ...]] = []
    for buffer in sorted(inspection.buffers, key=lambda b: (b.first, b.last, b.offset)):
        first = (buffer.first + 1) * marks // columns
        last = (buffer.last + 1) * marks // columns
        bar = "·" * first + "█" * (last - first + 1) + "·" * (marks - last - 1)
        names = short_tensor_name(buffer.label)
        if len(buffer.tensors) > 1:
            names += f" and {len(buffer.tensors) - 1} more"
        rows.append(
            (
                buffer.offset,
                buffer.bytes,
                "start" if buffer.first < 0 else str(nodes[buffer.first].index),
                "end" if buffer.last >= len(nodes) else str(nodes[buffer.last].index),
                bar,
                names,
            )
        )
    return rows


def short_tensor_name(name: str) -> str:
    """Returns the telling part of a converter's name, which lists all ops it fused.

    ``functional_1/conv2d_1/Relu;functional_1/conv2d_1/BiasAdd`` becomes ``conv2d_1/Relu``.
    """
    parts = name.split(";")[0].split("/")
    return "/".join(parts[-2:])
