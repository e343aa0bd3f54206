"""`edgekiln verify`: compiles a model, runs it, and compares every output byte with the oracle.

The oracle is TensorFlow Lite Micro. When a byte differs, one inference is run again node by
node on the oracle, by the numpy definitions and by the generated C, and the first node that
differs is named.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.bench.runners import (
    CompiledRunner,
    Tensors,
    TflmRunner,
    check_inputs,
    read_tensor_specs,
)
from edgekiln.errors import BadInputError
from edgekiln.export.compiler import c_name_of, compile_model, write_bundle
from edgekiln.export.interpret import run_all_nodes
from edgekiln.export.ir import Graph
from edgekiln.files import read_input_file

HOST = "host"
ORACLE = "tflm"


@dataclass(frozen=True)
class Mismatch:
    """Where two runs of one inference part.

    Attributes:
        node: The node's number in the model file.
        op: Its operator.
        index: Position in the node's output, in elements of the flat array.
        got: The value there.
        want: The oracle's value.
        engine: Who computed ``got``: "numpy", "c" (on the host) or the board's slug.
        sample: Which of the inputs shows it.
    """

    node: int
    op: str
    index: int
    got: int
    want: int
    engine: str
    sample: int


@dataclass(frozen=True)
class Verification:
    """What `verify_model` found.

    Attributes:
        match: Whether every byte equals the oracle's.
        samples: Number of inferences.
        bytes: Output bytes compared.
        mismatched_bytes: How many of them differ.
        max_abs_diff: The largest difference of two codes.
        first_mismatch: The first node that differs; None when all bytes match.
        oracle: Name of the oracle.
        target: "host" or the board's slug.
        model: The file's name.
    """

    match: bool
    samples: int
    bytes: int
    mismatched_bytes: int
    max_abs_diff: int
    first_mismatch: Mismatch | None
    oracle: str
    target: str
    model: str

    def to_json(self) -> dict[str, Any]:
        """Returns the object that ``edgekiln verify --json`` prints."""
        return asdict(self)


def random_inputs(model: bytes, samples: int, seed: int) -> Tensors:
    """Makes inputs for a model: int8 codes, half of the samples over the full range.

    Uniform codes drive saturating operators such as softmax to their ends, where little
    can differ. Every second sample therefore varies around a base code in a random
    narrower range.

    Args:
        model: A .tflite file's bytes.
        samples: How many.
        seed: Of the generator.

    Returns:
        One array ``[samples, ...]`` per model input.
    """
    if samples < 1:
        raise BadInputError("number of samples", where="--random", got=samples, allowed="1 or more")
    generator = np.random.default_rng(seed)
    specs, _ = read_tensor_specs(model)
    inputs = []
    for spec in specs:
        info = np.iinfo(spec.dtype)
        rows = np.empty((samples, *spec.batch_shape), spec.dtype)
        for sample in range(samples):
            low, high = int(info.min), int(info.max)
            if sample % 2:
                low, high = sorted(int(v) for v in generator.integers(low, high, 2))
            rows[sample] = generator.integers(low, high + 1, spec.batch_shape)
        inputs.append(rows)
    return tuple(inputs)


def read_inputs(path: Path, model: bytes) -> Tensors:
    """Reads inputs for a model from an .npz or .npy file.

    An .npz holds one array ``[N, ...]`` per model input, named as the model's inputs or in
    their order; an .npy holds the array of a model with one input.

    Raises:
        BadInputError: The file is unreadable or does not fit the model.
    """
    read_input_file(path)
    specs, _ = read_tensor_specs(model)
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = (
            dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {specs[0].name: loaded}
        )
    except (OSError, ValueError, EOFError) as error:
        raise BadInputError(f"not a readable .npz or .npy file: {error}", where=path) from None
    names = [spec.name for spec in specs]
    chosen = [arrays[n] for n in names] if set(names) <= set(arrays) else list(arrays.values())
    return check_inputs(tuple(chosen[: len(specs)]), specs)


def verify_model(
    path: Path,
    *,
    inputs: Tensors | None = None,
    samples: int = 20,
    seed: int = 0,
    target: str = HOST,
    optimize: str = "balanced",
) -> Verification:
    """Compares the generated C with the oracle.

    Args:
        path: A .tflite file.
        inputs: One array ``[N, ...]`` per model input; random ones by default.
        samples: Number of random inputs.
        seed: Of the random inputs.
        target: "host", or a board's slug to run on that board.
        optimize: As for the compiler.

    Raises:
        EdgekilnError: The model cannot be compiled or run.
    """
    model = read_input_file(path)
    with tempfile.TemporaryDirectory(prefix="edgekiln-verify-") as temporary:
        bundle = Path(temporary) / "c"
        compiler_target = HOST if target == HOST else _board_target(target)
        compiled = compile_model(
            model, name=c_name_of(path), target=compiler_target, optimize=optimize, where=str(path)
        )
        write_bundle(compiled, bundle)
        chosen = random_inputs(model, samples, seed) if inputs is None else inputs
        want = TflmRunner(model).run(chosen)
        got = _run(bundle, target, chosen, Path(temporary))
        return _compare(path, model, compiled.graph, bundle, target, chosen, want, got)


def _board_target(slug: str) -> str:
    from edgekiln.firmware.boards import load_board

    return load_board(slug).target


def _run(bundle: Path, target: str, inputs: Tensors, work: Path) -> Tensors:
    if target == HOST:
        return CompiledRunner(bundle).run(inputs)
    from edgekiln.bench.device import run_on_board
    from edgekiln.firmware.boards import load_board
    from edgekiln.firmware.image import build_image

    board = load_board(target)
    image = build_image(bundle, board, work / "image")
    return run_on_board(image, board, inputs).outputs


def _compare(
    path: Path,
    model: bytes,
    graph: Graph,
    bundle: Path,
    target: str,
    inputs: Tensors,
    want: Tensors,
    got: Tensors,
) -> Verification:
    differences = [
        np.abs(a.astype(np.int64).reshape(len(a), -1) - b.astype(np.int64).reshape(len(b), -1))
        for a, b in zip(want, got, strict=True)
    ]
    joined = np.concatenate(differences, axis=1)
    wrong = np.concatenate(
        [
            (a.reshape(len(a), -1).view(np.uint8) != b.reshape(len(b), -1).view(np.uint8))
            for a, b in zip(
                map(np.ascontiguousarray, want), map(np.ascontiguousarray, got), strict=True
            )
        ],
        axis=1,
    )
    first = None
    if wrong.any():
        sample = int(np.argmax(wrong.any(axis=1)))
        one = tuple(array[sample : sample + 1] for array in inputs)
        first = find_first_mismatch(model, graph, bundle, one, sample)
        if first is None:
            first = _output_mismatch(graph, want, got, sample, target)
    return Verification(
        match=first is None,
        samples=len(inputs[0]),
        bytes=int(wrong.size),
        mismatched_bytes=int(wrong.sum()),
        max_abs_diff=int(joined.max(initial=0)),
        first_mismatch=first,
        oracle=ORACLE,
        target=target,
        model=path.name,
    )


def find_first_mismatch(
    model: bytes, graph: Graph, bundle: Path, inputs: Tensors, sample: int = 0
) -> Mismatch | None:
    """Compares all nodes of one inference on the oracle, by numpy and by the C on the host.

    Args:
        model: The .tflite file's bytes.
        graph: The compiled graph.
        bundle: The generated C.
        inputs: One array ``[1, ...]`` per model input.
        sample: The number to report.

    Returns:
        The first difference in running order; None when all nodes agree.
    """
    outputs = [tensor for op in graph.ops for tensor in op.outputs]
    oracle = TflmRunner(model, preserve_nodes=True).node_tensors(inputs, outputs)
    shaped = [
        array.reshape(graph.tensor(t).shape) for array, t in zip(inputs, graph.inputs, strict=True)
    ]
    values = run_all_nodes(graph, shaped)
    ran = dict(CompiledRunner(bundle, record_nodes=True).node_outputs(inputs))
    for op in graph.ops:
        if not op.outputs:
            continue
        tensor = op.outputs[0]
        dtype = np.dtype(graph.tensor(tensor).dtype.value)
        want = oracle[tensor].reshape(-1)
        found = {"numpy": values[tensor].reshape(-1)}
        if op.index in ran:
            found["c"] = np.frombuffer(ran[op.index], dtype)
        for engine, got in found.items():
            if not np.array_equal(got, want):
                index = int(np.argmax(got != want))
                return Mismatch(
                    op.index, op.name, index, int(got[index]), int(want[index]), engine, sample
                )
    return None


def _output_mismatch(
    graph: Graph, want: Tensors, got: Tensors, sample: int, target: str
) -> Mismatch:
    """Names a difference that only the board shows."""
    for tensor, a, b in zip(graph.outputs, want, got, strict=True):
        wanted, found = a[sample].reshape(-1), b[sample].reshape(-1)
        if not np.array_equal(wanted, found):
            index = int(np.argmax(wanted != found))
            writer = next(op for op in graph.ops if tensor in op.outputs)
            return Mismatch(
                writer.index,
                writer.name,
                index,
                int(found[index]),
                int(wanted[index]),
                target,
                sample,
            )
    raise AssertionError("no output differs")
