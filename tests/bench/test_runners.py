"""The engines on the host: what they take, what they refuse, and that their bytes agree."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgekiln.bench import runners
from edgekiln.bench.accuracy import (
    agreement,
    compare_bytes,
    confusion_matrix,
    measure_host_latency,
    top1_accuracy,
)
from edgekiln.bench.compiled import STRICT_FLAGS, CompiledRunner
from edgekiln.bench.runners import (
    LiteRTRunner,
    NumpyRunner,
    OnnxRunner,
    TflmRunner,
    read_tensor_specs,
    tflm_available,
)
from edgekiln.bench.tensors import Tensor, Tensors, TensorSpec, check_inputs
from edgekiln.errors import (
    BadInputError,
    BadModelError,
    CheckFailedError,
    ToolMissingError,
    UnsupportedOpError,
)
from edgekiln.export.compiler import compile_model, write_bundle

needs_oracle = pytest.mark.skipif(
    not tflm_available(), reason="no tflite-micro wheel for this Python and machine"
)

DOUBLE_EACH_BYTE = """
    for (int i = 0; i < 4; ++i) { arena[4 + i] = (int8_t)(2 * arena[i]); }
    EK_AFTER_NODE(0, arena + 4, 4);
    for (int i = 0; i < 4; ++i) { arena[4 + i] = (int8_t)(arena[4 + i] + 1); }
    EK_AFTER_NODE(1, arena + 4, 4);
"""


def make_bundle(directory: Path, body: str) -> Path:
    """Writes a bundle by hand: 4 input bytes at 0, 4 output bytes at 4, an arena of 8."""
    tensor = {"shape": [1, 4], "dtype": "int8", "scale": 1.0, "zero_point": 0, "bytes": 4}
    report = {
        "name": "toy",
        "inputs": [{**tensor, "name": "in", "offset": 0}],
        "outputs": [{**tensor, "name": "out", "offset": 4}],
        "arena_bytes": 8,
    }
    (directory / "compile_report.json").write_text(json.dumps(report), encoding="utf-8")
    (directory / "toy.c").write_text(
        "#include <stdint.h>\n"
        "#ifndef EK_AFTER_NODE\n#define EK_AFTER_NODE(index, data, bytes)\n#endif\n"
        "void toy_invoke(int8_t arena[8]);\n"
        f"void toy_invoke(int8_t arena[8])\n{{{body}}}\n",
        encoding="utf-8",
    )
    return directory


def four(*rows: tuple[int, int, int, int]) -> tuple[np.ndarray[Any, Any]]:
    return (np.array(rows, dtype=np.int8),)


class TestCompiledRunner:
    def test_runs_each_row_from_a_fresh_arena(self, tmp_path: Path) -> None:
        runner = CompiledRunner(make_bundle(tmp_path, DOUBLE_EACH_BYTE), flags=STRICT_FLAGS)
        (outputs,) = runner.run(four((1, 2, 3, -4), (0, 0, 0, 63)))
        assert outputs.dtype == np.int8
        assert outputs.tolist() == [[3, 5, 7, -7], [1, 1, 1, 127]]

    def test_shows_what_each_node_wrote(self, tmp_path: Path) -> None:
        bundle = make_bundle(tmp_path, DOUBLE_EACH_BYTE)
        runner = CompiledRunner(bundle, record_nodes=True, flags=STRICT_FLAGS)
        assert runner.node_outputs(four((1, 2, 3, 4))) == [
            (0, bytes([2, 4, 6, 8])),
            (1, bytes([3, 5, 7, 9])),
        ]
        assert runner.run(four((1, 2, 3, 4)))[0].tolist() == [[3, 5, 7, 9]]

    def test_nodes_are_recorded_only_on_demand(self, tmp_path: Path) -> None:
        runner = CompiledRunner(make_bundle(tmp_path, DOUBLE_EACH_BYTE))
        with pytest.raises(BadInputError, match="record_nodes"):
            runner.node_outputs(four((1, 2, 3, 4)))

    @pytest.mark.parametrize("place", ["arena[8] = 1;", "arena[-1] = 1;"])
    def test_writing_outside_the_arena_is_found(self, tmp_path: Path, place: str) -> None:
        runner = CompiledRunner(make_bundle(tmp_path, place))
        with pytest.raises(CheckFailedError, match="outside its arena; allowed: 8 bytes"):
            runner.run(four((0, 0, 0, 0)))

    def test_bytes_never_written_do_not_look_like_zeros(self, tmp_path: Path) -> None:
        runner = CompiledRunner(make_bundle(tmp_path, "(void)arena;"))
        (outputs,) = runner.run(four((7, 7, 7, 7)))
        assert 0 not in outputs

    def test_c_that_does_not_compile_is_one_line(self, tmp_path: Path) -> None:
        bundle = make_bundle(tmp_path, "int unused;")
        CompiledRunner(bundle)
        with pytest.raises(CheckFailedError, match="unused") as caught:
            CompiledRunner(bundle, flags=STRICT_FLAGS)
        assert "\n" not in str(caught.value)

    def test_no_compiler(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CC", "no-such-compiler")
        with pytest.raises(ToolMissingError, match="no-such-compiler, a C compiler"):
            CompiledRunner(make_bundle(tmp_path, ""))

    @pytest.mark.parametrize("text", [None, "", "{}", "[]"])
    def test_a_directory_that_is_no_bundle(self, tmp_path: Path, text: str | None) -> None:
        if text is not None:
            (tmp_path / "compile_report.json").write_text(text, encoding="utf-8")
        with pytest.raises(BadInputError, match=r"compile_report\.json"):
            CompiledRunner(tmp_path)

    def test_leaves_no_files_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        bundle, temporary = tmp_path / "bundle", tmp_path / "temporary"
        bundle.mkdir()
        temporary.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(temporary))
        before = sorted(path.name for path in make_bundle(bundle, DOUBLE_EACH_BYTE).iterdir())
        CompiledRunner(bundle).run(four((0, 0, 0, 0)))
        assert sorted(path.name for path in bundle.iterdir()) == before
        assert list(temporary.iterdir()) == []


class TestInputs:
    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ((), "wrong number of inputs; got 0; allowed: 1"),
            (four((1, 2, 3, 4)) * 2, "wrong number of inputs; got 2"),
            ((np.zeros((1, 4), np.float32),), "input in: wrong dtype; got float32; allowed: int8"),
            ((np.zeros((1, 5), np.int8),), r"input in: wrong shape; got \[1, 5\]"),
            ((np.int8(0) * np.ones((), np.int8),), "wrong shape"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, tmp_path: Path, inputs: Tensors, message: str
    ) -> None:
        runner = CompiledRunner(make_bundle(tmp_path, DOUBLE_EACH_BYTE))
        with pytest.raises(BadInputError, match=message):
            runner.run(inputs)

    def test_lengths_must_agree(self) -> None:
        spec = TensorSpec("x", (1, 2), np.dtype(np.int8))
        with pytest.raises(BadInputError, match="different length"):
            check_inputs((np.zeros((3, 2), np.int8), np.zeros((2, 2), np.int8)), [spec] * 2)

    def test_no_rows_give_no_rows(self, tmp_path: Path) -> None:
        runner = CompiledRunner(make_bundle(tmp_path, DOUBLE_EACH_BYTE))
        (outputs,) = runner.run((np.zeros((0, 4), np.int8),))
        assert outputs.shape == (0, 4)


class TestMissingPackages:
    @pytest.mark.parametrize(
        ("module", "make", "extra"),
        [
            ("tflite_micro.python.tflite_micro.runtime", TflmRunner, r"edgekiln\[oracle\]"),
            ("ai_edge_litert.interpreter", LiteRTRunner, r"edgekiln\[litert\]"),
            ("onnxruntime", OnnxRunner, r"edgekiln\[onnx\]"),
        ],
    )
    def test_the_extra_is_named(
        self, monkeypatch: pytest.MonkeyPatch, module: str, make: Any, extra: str
    ) -> None:
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ToolMissingError, match=f"pip install '{extra}'"):
            make(b"")


class FakeTflm(ModuleType):
    """Stands for TFLM's Python module: says on stderr what the C++ says, and fails."""

    def __init__(self, message: bytes, needed_bytes: int) -> None:
        super().__init__("fake")
        self.arenas: list[int] = []

        def from_bytes(model: bytes, *, arena_size: int, intrepreter_config: object) -> str:
            self.arenas.append(arena_size)
            if arena_size < needed_bytes:
                os.write(2, message)
                raise RuntimeError("TFLM failed to allocate tensors")
            return "loaded"

        self.Interpreter = SimpleNamespace(from_bytes=from_bytes)


class TestLoadingIntoTflm:
    def test_the_arena_grows_until_the_model_fits(self) -> None:
        fake = FakeTflm(b"Failed to resize buffer.\n", 3 << 20)
        assert runners._load_tflm(fake, b"model", None) == "loaded"
        assert fake.arenas[0] < 3 << 20 <= fake.arenas[1]
        assert len(fake.arenas) == 2

    def test_it_does_not_grow_for_ever(self) -> None:
        fake = FakeTflm(b"Failed to resize buffer.\n", 1 << 60)
        with pytest.raises(BadModelError, match="Failed to resize buffer"):
            runners._load_tflm(fake, b"model", None)
        assert max(fake.arenas) < 1 << 30

    def test_an_op_which_the_oracle_lacks_is_named(self, capfd: pytest.CaptureFixture[str]) -> None:
        fake = FakeTflm(b"Didn't find op for builtin opcode 'GELU'\n", 1 << 60)
        with pytest.raises(UnsupportedOpError, match="GELU"):
            runners._load_tflm(fake, b"model", None)
        assert len(fake.arenas) == 1
        assert capfd.readouterr().err == ""


class TestTflite:
    @pytest.mark.parametrize("data", [b"", b"TFL3", b"\xff" * 4096, bytes(4096)])
    def test_a_damaged_file_is_refused(self, data: bytes) -> None:
        with pytest.raises(BadModelError, match="not a readable"):
            read_tensor_specs(data)

    def test_specs(self, shared: Path) -> None:
        model = shared / "models/mlperf_tiny/keyword_spotting/kws_ref_model.tflite"
        (first,), (last,) = read_tensor_specs(model.read_bytes())
        assert (first.shape, first.dtype, first.batch_shape) == (
            (1, 49, 10, 1),
            "int8",
            (49, 10, 1),
        )
        assert (last.shape, last.dtype, last.bytes) == ((1, 12), "int8", 12)

    @needs_oracle
    def test_reference_kernels_of_litert_equal_the_oracle(self, shared: Path) -> None:
        model = (shared / "models/tinymaix/mnist_valid_q.tflite").read_bytes()
        oracle = TflmRunner(model)
        rng = np.random.default_rng(5)
        inputs = (rng.integers(-128, 128, (8, 28, 28, 1), dtype=np.int8),)
        want = oracle.run(inputs)
        assert want[0].shape == (8, 10)
        assert compare_bytes(LiteRTRunner(model).run(inputs), want).equal

    @needs_oracle
    def test_no_state_is_kept_between_inferences(self, shared: Path) -> None:
        model = (shared / "models/tflite_micro/mnist_lstm_int8.tflite").read_bytes()
        rng = np.random.default_rng(0)
        loudness = np.array([1, 20, 100, 0]).reshape(4, 1, 1)
        rows = (rng.standard_normal((4, 28, 28)) * loudness).astype(np.int8)
        (outputs,) = TflmRunner(model).run((np.concatenate([rows, rows]),))
        assert np.array_equal(outputs[:4], outputs[4:])

    @needs_oracle
    def test_every_tensor_of_the_oracle_can_be_read(self, shared: Path) -> None:
        model = (shared / "models/tinymaix/mnist_valid_q.tflite").read_bytes()
        runner = TflmRunner(model, preserve_nodes=True)
        inputs = (np.arange(784, dtype=np.int64).astype(np.int8).reshape(1, 28, 28, 1),)
        first = runner.node_tensors(inputs, [0])[0]
        assert np.array_equal(first, inputs[0])


@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn"])
@pytest.mark.parametrize("io", ["arena", "separate"])
class TestGoldenModels:
    def compiled(self, root: Path, directory: Path, name: str, io: str) -> tuple[bytes, Path]:
        model = (root / f"tests/golden/{name}_int8.tflite").read_bytes()
        compiled = compile_model(model, name=name, target="host", io=io)
        write_bundle(compiled, directory / "c")
        return model, directory / "c"

    @needs_oracle
    def test_every_byte_equals_the_oracle(
        self, root: Path, tmp_path: Path, name: str, io: str
    ) -> None:
        model, bundle = self.compiled(root, tmp_path, name, io)
        inputs = (np.load(root / "tests/golden/digits_inputs.npz")["inputs"],)
        want = TflmRunner(model).run(inputs)
        result = compare_bytes(CompiledRunner(bundle, flags=STRICT_FLAGS).run(inputs), want)
        assert result.equal and result.total_bytes == 10 * len(inputs[0])

    def test_every_byte_equals_the_numpy_definition(
        self, root: Path, tmp_path: Path, name: str, io: str
    ) -> None:
        model, bundle = self.compiled(root, tmp_path, name, io)
        runner = NumpyRunner(model)
        shape = (4, *runner.inputs[0].batch_shape)
        inputs = (np.random.default_rng(3).integers(-128, 128, shape, dtype=np.int8),)
        assert compare_bytes(CompiledRunner(bundle).run(inputs), runner.run(inputs)).equal

    def test_nodes_are_recorded_in_order(
        self, root: Path, tmp_path: Path, name: str, io: str
    ) -> None:
        _, bundle = self.compiled(root, tmp_path, name, io)
        runner = CompiledRunner(bundle, record_nodes=True, flags=STRICT_FLAGS)
        inputs = (np.zeros((1, *runner.inputs[0].batch_shape), np.int8),)
        seen = runner.node_outputs(inputs)
        assert [index for index, _ in seen] == sorted({index for index, _ in seen})
        assert seen[-1][1] == runner.run(inputs)[0].tobytes()


class TestComparison:
    def test_the_first_mismatch_is_named(self) -> None:
        want = np.array([[1, 2], [3, 4]], np.int8)
        got = np.array([[1, 2], [3, -5]], np.int8)
        result = compare_bytes((got,), (want,))
        assert (result.samples, result.total_bytes, result.mismatched_bytes) == (2, 4, 1)
        assert result.max_abs_diff == 9
        assert str(result.first) == "sample 1, output 0, byte 1: got -5, want 4"
        assert not result.equal

    def test_the_earliest_sample_counts_over_all_outputs(self) -> None:
        zeros = np.zeros((3, 1), np.int8)
        late, early = zeros.copy(), zeros.copy()
        late[2], early[1] = 1, 1
        result = compare_bytes((late, early), (zeros, zeros))
        assert result.first is not None
        assert (result.first.sample, result.first.output) == (1, 1)

    def test_wider_values_are_compared_by_byte(self) -> None:
        result = compare_bytes((np.array([[256]], np.int16),), (np.array([[1]], np.int16),))
        assert (result.total_bytes, result.mismatched_bytes, result.max_abs_diff) == (2, 2, 255)

    def test_nothing_compared_is_not_equal(self) -> None:
        nothing = (np.zeros((0, 4), np.int8),)
        assert not compare_bytes(nothing, nothing).equal

    @pytest.mark.parametrize("other", [np.zeros((2, 3), np.int8), np.zeros((1, 3), np.uint8)])
    def test_different_shapes_are_refused(self, other: Tensor) -> None:
        with pytest.raises(BadInputError, match="cannot be compared"):
            compare_bytes((other,), (np.zeros((1, 3), np.int8),))


class TestAccuracy:
    outputs = np.array([[9, 1, 0], [0, 5, 5], [1, 2, 3], [7, 0, 0]], np.int8)

    def test_accuracy_and_ties(self) -> None:
        assert top1_accuracy(self.outputs, np.array([0, 1, 2, 1])) == 0.75

    def test_confusion_rows_are_the_truth(self) -> None:
        matrix = confusion_matrix(self.outputs, np.array([0, 1, 2, 1]), 3)
        assert matrix.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]

    @pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 1, 2, -1]])
    def test_labels_out_of_range(self, labels: list[int]) -> None:
        with pytest.raises(BadInputError, match="out of range; allowed: 0 to 2"):
            confusion_matrix(self.outputs, np.array(labels), 3)

    def test_one_label_for_each_row(self) -> None:
        with pytest.raises(BadInputError, match="one label"):
            top1_accuracy(self.outputs, np.array([0]))
        with pytest.raises(BadInputError, match="one label"):
            top1_accuracy(self.outputs[:0], np.array([], int))

    def test_agreement(self) -> None:
        assert agreement(self.outputs, self.outputs[::-1]) == 0.5 / 1
        with pytest.raises(BadInputError, match="cannot be compared"):
            agreement(self.outputs, self.outputs[:2])


def test_latency_counts_the_repeats_only(tmp_path: Path) -> None:
    runner = CompiledRunner(make_bundle(tmp_path, DOUBLE_EACH_BYTE))
    latency = measure_host_latency(runner, four((1, 2, 3, 4)), warmup=1, repeats=7)
    assert latency.repeats == 7 and latency.runner == "generated C on host"
    assert 0 < latency.median_us <= latency.p90_us
