"""`edgekiln verify`: compiles a model, runs it, and compares every output byte with the oracle.

The oracle is TensorFlow Lite Micro. When a byte differs, one inference is run again node by
node (`edgekiln.bench.divergence`), and the first node that differs is named.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.bench.divergence import (
    Mismatch,
    differs,
    find_first_mismatch,
    find_in_outputs,
    find_on_board,
    load_oracle,
)
from edgekiln.bench.runners import CompiledRunner, Tensors, check_inputs, read_tensor_specs
from edgekiln.bench.tensors import TensorSpec
from edgekiln.console import say
from edgekiln.errors import BadInputError
from edgekiln.export.compiler import c_name_of, compile_model, write_bundle
from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.base import Tolerance, accumulated_tolerance
from edgekiln.files import read_input_file

if TYPE_CHECKING:
    from edgekiln.bench.linux import LinuxBoard

HOST = "host"


@dataclass(frozen=True)
class Verification:
    """What `verify_model` found.

    Attributes:
        match: Whether every byte equals the oracle's, and every float32 lies within the
            operators' tolerance.
        samples: Number of inferences.
        bytes: Output bytes compared.
        mismatched_bytes: How many of them differ; of float32 values, by more than allowed.
        max_abs_diff: The largest difference of two codes, or of two real numbers.
        tolerance: How far float32 outputs may lie from the oracle's; None when there are none.
        first_mismatch: The first node that differs; None when all bytes match.
        oracle: Name of the oracle.
        target: "host" or the board's slug.
        model: The file's name.
    """

    match: bool
    samples: int
    bytes: int
    mismatched_bytes: int
    max_abs_diff: int | float
    tolerance: Tolerance | None
    first_mismatch: Mismatch | None
    oracle: str
    target: str
    model: str

    def to_json(self) -> dict[str, Any]:
        """Returns the object that ``edgekiln verify --json`` prints."""
        return asdict(self)


def random_inputs(model: bytes, samples: int, seed: int) -> Tensors:
    """Makes inputs for a model, half of the samples over the full range of codes.

    Uniform codes drive saturating operators such as softmax to their ends, where little
    can differ. Every second sample therefore varies around a base code in a random
    narrower range. Real numbers are normally distributed, with several magnitudes.

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
        rows = np.empty((samples, *spec.batch_shape), spec.dtype)
        for sample in range(samples):
            rows[sample] = _random_row(generator, spec, full_range=sample % 2 == 0)
        inputs.append(rows)
    return tuple(inputs)


def _random_row(generator: np.random.Generator, spec: TensorSpec, full_range: bool) -> NDArray[Any]:
    if spec.dtype.kind == "f":
        magnitude = 1.0 if full_range else 10.0 ** generator.uniform(-2, 1)
        return (magnitude * generator.standard_normal(spec.batch_shape)).astype(spec.dtype)
    if spec.dtype.kind == "b":
        return generator.integers(0, 2, spec.batch_shape).astype(spec.dtype)
    info = np.iinfo(spec.dtype)
    low, high = int(info.min), int(info.max)
    if not full_range:
        low, high = sorted(int(v) for v in generator.integers(low, high, 2))
    return generator.integers(low, high, spec.batch_shape, spec.dtype, endpoint=True)


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
    linux: LinuxBoard | None = None,
) -> Verification:
    """Compares the generated C with the oracle.

    Args:
        path: A .tflite file.
        inputs: One array ``[N, ...]`` per model input; random ones by default.
        samples: Number of random inputs.
        seed: Of the random inputs.
        target: "host", or a board's slug to run on that board.
        optimize: As for the compiler.
        linux: The board, where it is one that runs Linux.

    Raises:
        EdgekilnError: The model cannot be compiled or run.
    """
    return _Verifier(path, target, optimize, linux).verify(samples, seed, inputs)


class _Verifier:
    def __init__(self, path: Path, target: str, optimize: str, linux: LinuxBoard | None) -> None:
        self.path = path
        self.model = read_input_file(path)
        self.target = target
        self.optimize = optimize
        self.linux = linux

    def verify(self, samples: int, seed: int, inputs: Tensors | None) -> Verification:
        with tempfile.TemporaryDirectory(prefix="edgekiln-verify-") as temporary:
            bundle = Path(temporary) / "c"
            graph = self.compile(self.model, bundle)
            chosen = random_inputs(self.model, samples, seed) if inputs is None else inputs
            oracle, oracle_name = load_oracle(self.model)
            want = oracle.run(chosen)
            got = self.run(bundle, chosen, Path(temporary))
            wrong = _wrong_bytes(graph, want, got)
            first = None
            if wrong.any():
                sample = int(np.argmax(wrong.any(axis=1)))
                first = self.find_first(graph, bundle, chosen, want, got, sample)
        return Verification(
            match=first is None,
            samples=len(chosen[0]),
            bytes=int(wrong.size),
            mismatched_bytes=int(wrong.sum()),
            max_abs_diff=max(map(_largest_difference, want, got), default=0),
            tolerance=_tolerance_of_outputs(graph),
            first_mismatch=first,
            oracle=oracle_name,
            target=self.target,
            model=self.path.name,
        )

    def compile(self, model: bytes, bundle: Path) -> Graph:
        target = HOST if self.target == HOST else _board_target(self.target)
        if self.linux is not None:
            target = self.linux.core.target
        compiled = compile_model(
            model,
            name=c_name_of(self.path),
            target=target,
            optimize=self.optimize,
            where=str(self.path),
        )
        write_bundle(compiled, bundle)
        return compiled.graph

    def run(self, bundle: Path, inputs: Tensors, work: Path) -> Tensors:
        if self.target == HOST:
            return CompiledRunner(bundle).run(inputs)
        if self.linux is not None:
            from edgekiln.bench.linux import LEAST_EFFORT

            return self.linux.run(bundle, inputs, effort=LEAST_EFFORT)[1].outputs
        from edgekiln.bench.device import run_on_board
        from edgekiln.firmware.boards import load_board
        from edgekiln.firmware.image import build_image

        board = load_board(self.target)
        image = build_image(bundle, board, work / "image")
        return run_on_board(image, board, inputs).outputs

    def run_model(self, model: bytes, inputs: Tensors) -> Tensors:
        """Compiles another model with the same options, and runs it."""
        with tempfile.TemporaryDirectory(prefix="edgekiln-verify-") as temporary:
            bundle = Path(temporary) / "c"
            self.compile(model, bundle)
            return self.run(bundle, inputs, Path(temporary))

    def find_first(
        self, graph: Graph, bundle: Path, inputs: Tensors, want: Tensors, got: Tensors, sample: int
    ) -> Mismatch:
        """Looks for the first node that differs: on this machine, then on the board."""
        one = tuple(array[sample : sample + 1] for array in inputs)
        found = find_first_mismatch(self.model, graph, bundle, one, sample)
        if found is None and self.target != HOST:
            say(f"All nodes are right on this machine; looking for the first on {self.target}.")
            found = find_on_board(self.model, graph, self.run_model, one, self.target, sample)
        if found is None:
            found = find_in_outputs(graph, want, got, sample, self.target)
        assert found is not None
        return found


def _board_target(slug: str) -> str:
    from edgekiln.firmware.boards import load_board

    return load_board(slug).target


def _tolerance_of_outputs(graph: Graph) -> Tolerance | None:
    real = any(graph.tensor(index).dtype is DType.FLOAT32 for index in graph.outputs)
    return accumulated_tolerance(graph.ops) if real else None


def _wrong_bytes(graph: Graph, want: Tensors, got: Tensors) -> NDArray[np.bool_]:
    """Returns for each sample which output bytes are wrong, ``[N, bytes]``."""
    tolerance = accumulated_tolerance(graph.ops)
    return np.concatenate(list(_wrong_rows(want, got, tolerance)), axis=1)


def _wrong_rows(want: Tensors, got: Tensors, tolerance: Tolerance) -> Iterator[NDArray[np.bool_]]:
    for a, b in zip(want, got, strict=True):
        right, found = a.reshape(len(a), -1), b.reshape(len(b), -1)
        different = np.ascontiguousarray(right).view(np.uint8) != np.ascontiguousarray(found).view(
            np.uint8
        )
        wrong = np.stack([differs(f, r, tolerance) for f, r in zip(found, right, strict=True)])
        yield different & np.repeat(wrong, right.dtype.itemsize, axis=1)


def _largest_difference(want: NDArray[Any], got: NDArray[Any]) -> int | float:
    if want.dtype.kind == "f":
        difference = np.abs(want.astype(np.float64) - got.astype(np.float64))
        return float(difference[np.isfinite(difference)].max(initial=0.0))
    return int(np.abs(want.astype(np.int64) - got.astype(np.int64)).max(initial=0))
