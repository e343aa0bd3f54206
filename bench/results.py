"""What was measured, as objects and as results.json.

`BenchResult` is what ``edgekiln bench --json`` prints; `Results`, which adds accuracy, equality
and provenance, is what ``edgekiln deploy`` leaves behind and what the report is made from.

Two rules keep the numbers honest, and `BenchResult` refuses to break them: instructions, cycles
and time are three different fields, and a number that an emulator cannot measure is None.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from edgekiln.errors import BadInputError
from edgekiln.files import read_input_file, write_json

D = TypeVar("D")


@dataclass(frozen=True)
class NodeCost:
    """One node of the compiled graph.

    Attributes:
        index: Position in the order of execution.
        op: TFLite's name of the operation, such as ``CONV_2D``.
        name: The name of the tensor it makes.
        macs: Multiply-accumulates of one inference.
        instructions: Instructions retired in one inference, or None where they were not counted.
        cycles: Clock cycles of one inference, or None where nothing counts them.
    """

    index: int
    op: str
    name: str
    macs: int
    instructions: int | None
    cycles: int | None

    @property
    def cost(self) -> int | None:
        """Instructions or cycles, whichever was counted."""
        return self.cycles if self.instructions is None else self.instructions


@dataclass(frozen=True)
class BenchResult:
    """One model on one board.

    Attributes:
        board: The board's slug.
        emulated: True when an emulator stood for the board.
        model: The model's name.
        macs: Multiply-accumulates of one inference.
        instructions: Instructions retired in one inference, or None.
        cycles: Clock cycles of one inference, or None where nothing counts them.
        cycles_model: How an emulator models them, in words, or None.
        latency_us: Time of one inference, or None; an emulator has none.
        flash_bytes: The linked image: vectors, code, constants, initialised data.
        flash_constants_bytes: The model's weights, biases and tables in it.
        flash_code_bytes: The rest of it.
        ram_bytes: Arena, .data, .bss and the measured peak of the stack.
        arena_bytes: All activations, input and output included.
        stack_bytes: Measured peak of the stack, or None where it is not measured.
        per_node: The nodes in the order of execution.
        toolchain: The C compiler and its version.
        flags: The C compiler's flags.
    """

    board: str
    emulated: bool
    model: str
    macs: int
    instructions: int | None
    cycles: int | None
    cycles_model: str | None
    latency_us: float | None
    flash_bytes: int
    flash_constants_bytes: int
    flash_code_bytes: int
    ram_bytes: int
    arena_bytes: int
    stack_bytes: int | None
    per_node: tuple[NodeCost, ...]
    toolchain: str
    flags: str

    def __post_init__(self) -> None:
        """Refuses numbers that contradict each other.

        Raises:
            BadInputError: They do.
        """
        sizes = [
            ("flash_constants_bytes + flash_code_bytes is more than flash_bytes",
             self.flash_constants_bytes + self.flash_code_bytes, self.flash_bytes),
            ("arena_bytes + stack_bytes is more than ram_bytes",
             self.arena_bytes + (self.stack_bytes or 0), self.ram_bytes),
        ]  # fmt: skip
        for what, part, whole in sizes:
            if part > whole:
                raise BadInputError(what, where="result", got=part, allowed=f"at most {whole}")
        if (self.cycles_model is not None) != (self.emulated and self.cycles is not None):
            raise BadInputError(
                "an emulator's cycles, and no others, come with a word on how they are modelled",
                where="result: cycles_model",
                got=repr(self.cycles_model),
            )
        if self.emulated and self.latency_us is not None:
            raise BadInputError(
                "an emulated board has no latency",
                where="result: latency_us",
                got=self.latency_us,
                allowed="null",
            )

    @property
    def counted(self) -> Literal["instructions", "cycles", ""]:
        """What was counted; empty where nothing was."""
        if self.instructions is not None:
            return "instructions"
        return "cycles" if self.cycles is not None else ""

    @property
    def cost(self) -> int | None:
        """Instructions or cycles of one inference, whichever was counted."""
        return self.cycles if self.instructions is None else self.instructions


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy over the whole held-out set, as fractions; None where it is not known.

    Attributes:
        float_model: The Keras model before pruning. The key in JSON is ``float``.
        pruned: The Keras model after pruning.
        int8_host: The int8 model on this machine, by the engine `int8_host_runtime`.
        int8_device: The image on the board.
        samples: Number of inferences on the board that all of this rests on.
        device_equals_host_bytes: Whether every output of the board equals the generated C's on
            this machine, real numbers included.
        int8_host_runtime: The name of the engine behind `int8_host`.
    """

    float_model: float | None = field(metadata={"key": "float"})
    pruned: float | None
    int8_host: float | None
    int8_device: float | None
    samples: int
    device_equals_host_bytes: bool
    int8_host_runtime: str

    def __post_init__(self) -> None:
        """Refuses what is not a fraction.

        Raises:
            BadInputError: An accuracy lies outside 0 to 1.
        """
        for value in (self.float_model, self.pruned, self.int8_host, self.int8_device):
            if value is not None and not 0 <= value <= 1:
                raise BadInputError("not an accuracy", where="result", got=value, allowed="0 to 1")


@dataclass(frozen=True)
class Comparison:
    """Two runs over the same inputs, compared byte by byte.

    Attributes:
        left: The engine under test.
        right: The engine it is held against.
        samples: Number of inferences.
        bytes: Number of output bytes.
        mismatched_bytes: How many of them are wrong: they differ, and belong to an integer or to
            a real number that lies further off than the operators' tolerance allows.
        tolerated_bytes: How many more differ, in real numbers that lie within the tolerance.
    """

    left: str
    right: str
    samples: int
    bytes: int
    mismatched_bytes: int
    tolerated_bytes: int = 0

    @property
    def equal_bytes(self) -> int:
        """How many bytes are the same."""
        return self.bytes - self.mismatched_bytes - self.tolerated_bytes


@dataclass(frozen=True)
class HostRun:
    """One engine on the machine that ran this program. It says nothing about the board.

    Attributes:
        runner: The engine's name.
        accuracy: Top-1 accuracy as a fraction, or None without labels.
        agreement: The fraction of inputs for which it chose the board's class.
        median_us: Median time of one inference, the call from Python included.
        p90_us: The time that nine of ten inferences do not exceed.
    """

    runner: str
    accuracy: float | None
    agreement: float
    median_us: float
    p90_us: float


@dataclass(frozen=True)
class Conditions:
    """The state of a board's processor at one moment; None for what it does not say.

    Attributes:
        governor: The frequency governor, such as ``ondemand``.
        frequency_mhz: The clock of the first core.
        temperature_c: The processor's temperature in degrees Celsius.
        throttled: What has slowed it down, now or since it was switched on; empty for nothing.
    """

    governor: str | None
    frequency_mhz: int | None
    temperature_c: float | None
    throttled: tuple[str, ...] | None


@dataclass(frozen=True)
class Latency:
    """How long one inference takes in a runtime on a board: the call alone, no copies around it.

    Attributes:
        median: In microseconds, as are the others.
        p90: What nine of ten do not exceed.
        p99: What ninety-nine of a hundred do not exceed.
        warmup: Inferences before the first one that counts.
        runs: Inferences that count.
        threads: How many threads the runtime might use.
        emulated: Whether an emulator stood for the board. Then it says nothing about one.
    """

    median: float
    p90: float
    p99: float
    warmup: int
    runs: int
    threads: int
    emulated: bool


@dataclass(frozen=True)
class RuntimeRun:
    """One model in one runtime on a board that runs Linux, in a process of its own.

    Attributes:
        name: The runtime, with the kernels it takes.
        version: Its version, or None where it is not there.
        model: What the model takes: ``float``, or codes: ``int8``, ``int16``, ….
        format: ``C``, ``TFLite`` or ``ONNX``.
        samples: Number of inferences whose outputs are known; 0 where it failed.
        accuracy: Top-1 accuracy as a fraction, or None without labels.
        agreement: The fraction of inputs for which it chose the class of the generated C on the
            board.
        reference: What on the host its bytes were held against, or None for real numbers.
        bytes: Number of output bytes compared.
        equal_bytes: How many of them are the same.
        latency_us: With one thread, or None.
        latency_us_by_threads: With one thread and with more.
        peak_memory_bytes: The most memory that its process had up to the end of the last
            sample, with one thread.
        model_bytes: The model's file, or the generated C's tables and code in the program.
        size_bytes: What has to lie on the disk: the model, and the runtime with what it needs
            (but Python); or the whole program.
        conditions: The processor's state right after, or None.
        error: Why there is nothing, or None.
    """

    name: str
    version: str | None
    model: str
    format: str
    samples: int
    accuracy: float | None
    agreement: float | None
    reference: str | None
    bytes: int
    equal_bytes: int
    latency_us: Latency | None
    latency_us_by_threads: tuple[Latency, ...]
    peak_memory_bytes: int | None
    model_bytes: int | None
    size_bytes: int | None
    conditions: Conditions | None
    error: str | None


@dataclass(frozen=True)
class System:
    """The Linux on a board.

    Attributes:
        model: What the board calls itself.
        os: The operating system.
        kernel: The kernel's release.
        architecture: That of programs.
        cores: How many processors there are.
        memory_bytes: Main memory.
        python: Version of its Python, or None where there is none.
        before: The processor's state before the measurements.
        after: The same after them.
    """

    model: str
    os: str
    kernel: str
    architecture: str
    cores: int
    memory_bytes: int
    python: str | None
    before: Conditions
    after: Conditions


@dataclass(frozen=True)
class BoardFacts:
    """What the report says about the board.

    Attributes:
        display_name: The board's full name.
        core: Its processor core.
        flash_bytes: Its flash, or None where that is no limit.
        ram_bytes: Its RAM, or None where that is no limit.
        emulator: The emulator and its version, or None for a real board.
    """

    display_name: str
    core: str
    flash_bytes: int | None
    ram_bytes: int | None
    emulator: str | None


@dataclass(frozen=True)
class Buffer:
    """A tensor in the arena, or several that share its bytes.

    Attributes:
        name: The tensor's name.
        offset: Its first byte in the arena.
        bytes: Its size.
        first: The first of the plan's steps in which it is needed, counted from 0.
        last: The last one.
    """

    name: str
    offset: int
    bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class MemoryPlan:
    """Where the activations lie.

    Attributes:
        arena_bytes: The plan's size.
        bound_bytes: The size that no plan can be below.
        peak_node: The node that decides it.
        steps: What the inference consists of: ``in``, the nodes' numbers, ``out``.
        buffers: The tensors.
    """

    arena_bytes: int
    bound_bytes: int
    peak_node: str
    steps: tuple[str, ...]
    buffers: tuple[Buffer, ...]


@dataclass(frozen=True)
class Confusion:
    """Which class was taken for which, on the board.

    Attributes:
        class_names: The classes.
        counts: Rows are true classes, columns are predicted ones.
    """

    class_names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        """Refuses a matrix that is not square.

        Raises:
            BadInputError: It is not, or has another size than the list of names.
        """
        sizes = {len(self.counts), *(len(row) for row in self.counts)}
        if sizes != {len(self.class_names)}:
            raise BadInputError(
                "the confusion matrix is not square",
                where="result",
                got=sorted(sizes),
                allowed=len(self.class_names),
            )


@dataclass(frozen=True)
class Artifact:
    """One file that the pipeline made.

    Attributes:
        name: Its path under the build directory.
        what: What it is, for a person.
        bytes: Its size.
        sha256: Its hash, 64 hexadecimal digits.
    """

    name: str
    what: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Results(BenchResult):
    """Everything that a deploy measured; the attributes of `BenchResult` come first.

    Attributes:
        instructions_min: The fewest instructions that an inference took, or None.
        instructions_max: The most instructions that an inference took, or None.
        flash_app_bytes: The application, start-up code and drivers, a part of
            `flash_code_bytes`.
        accuracy: Accuracy and equality in brief.
        oracle: ``tflm``, or None where TensorFlow Lite Micro could not be run.
        inputs: Where the inputs come from.
        comparisons: Which runs were compared, and how many bytes differ.
        nodes_compared: Nodes of the graph whose output on the first input was compared with the
            oracle's, by the numpy definitions and by the generated C on this machine, and found
            equal; 0 without an oracle.
        host: The engines on this machine.
        confusion: The confusion matrix, or None without labels.
        training: Metric to its value after each epoch; empty for a model from outside.
        memory_plan: Where the activations lie.
        board_facts: The board.
        artifacts: The files.
        versions: Package or program to its version.
        seeds: What each seed is for, and its value.
        model_sha256: The hash of the .tflite.
        created: When the board ran, in UTC, as ISO 8601.
        runtimes: Every runtime on a board that runs Linux, the generated C first; empty for others.
        system: The Linux there, or None.
    """

    instructions_min: int | None
    instructions_max: int | None
    flash_app_bytes: int
    accuracy: Accuracy
    oracle: str | None
    inputs: str
    comparisons: tuple[Comparison, ...]
    nodes_compared: int
    host: tuple[HostRun, ...]
    confusion: Confusion | None
    training: Mapping[str, tuple[float, ...]]
    memory_plan: MemoryPlan
    board_facts: BoardFacts
    artifacts: tuple[Artifact, ...]
    versions: Mapping[str, str]
    seeds: Mapping[str, int]
    model_sha256: str
    created: str
    runtimes: tuple[RuntimeRun, ...] = ()
    system: System | None = None

    @property
    def all_equal(self) -> bool:
        """True when something was compared and no byte is wrong."""
        return bool(self.comparisons) and all(
            c.bytes > 0 and c.mismatched_bytes == 0 for c in self.comparisons
        )

    @property
    def is_exact(self) -> bool:
        """True when, beyond that, no byte differs within a tolerance."""
        return self.all_equal and all(c.tolerated_bytes == 0 for c in self.comparisons)


def to_json(value: object) -> Any:
    """Returns a result as what `json.dumps` takes, with the keys of the file."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {_key(f): to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[D], value: object, where: str) -> D:
    """Reads one of this module's dataclasses from parsed JSON.

    Args:
        kind: The dataclass.
        value: What `json.loads` returned.
        where: The file, for messages.

    Raises:
        BadInputError: A key is missing or unknown, or a value has the wrong type.
    """
    result: D = _decode(kind, value, where)
    return result


def write_results(path: Path, results: Results) -> None:
    """Writes results.json, whole or not at all."""
    write_json(path, to_json(results))


def read_results(path: Path) -> Results:
    """Reads results.json.

    Raises:
        BadInputError: The file is missing or is not a results.json; the message names the key.
    """
    try:
        value = json.loads(read_input_file(path))
    except ValueError as error:
        raise BadInputError(
            f"not JSON: {error}", where=path, hint="run edgekiln deploy again"
        ) from None
    return from_json(Results, value, str(path))


def _key(item: dataclasses.Field[Any]) -> str:
    return str(item.metadata.get("key", item.name))


def _decode(kind: Any, value: object, where: str) -> Any:
    """Returns ``value`` as ``kind``, one of the annotations that this module uses."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        if value is None:
            return None
        return _decode(arguments[0], value, where)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_decode(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {k: _decode(arguments[1], v, f"{where}: {k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    names = {tuple: "a list", Mapping: "an object", int: "an integer", float: "a number"}
    raise BadInputError(
        "wrong type",
        where=where,
        got=json.dumps(value)[:60],
        allowed=names.get(origin or kind, getattr(kind, "__name__", str(kind))),
    )


def _decode_dataclass(kind: Any, value: object, where: str) -> Any:
    if not isinstance(value, dict):
        raise BadInputError(
            "wrong type", where=where, got=json.dumps(value)[:60], allowed="an object"
        )
    hints = typing.get_type_hints(kind)
    fields = {_key(item): item for item in dataclasses.fields(kind)}
    if fields.keys() != value.keys():
        missing, unknown = fields.keys() - value.keys(), value.keys() - fields.keys()
        raise BadInputError(
            "not the keys that edgekiln writes",
            where=where,
            got=f"missing {sorted(missing)}, unknown {sorted(unknown)}",
            hint="run edgekiln deploy again",
        )
    return kind(
        **{
            item.name: _decode(hints[item.name], value[key], f"{where}: {key}")
            for key, item in fields.items()
        }
    )
