"""Equality between engines, and what the results say about a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tflite_builder import BuiltOp, BuiltTensor, build_model

from edgekiln.bench.inputs import ModelInputs, read_inputs_file, write_inputs
from edgekiln.bench.measure import (
    compare_all,
    installed_versions,
    litert_is_safe,
    read_memory_plan,
)
from edgekiln.bench.tensors import Tensors
from edgekiln.errors import BadInputError, CheckFailedError
from edgekiln.export.compiler import compile_model
from edgekiln.export.ops.base import Tolerance
from edgekiln.export.passes import run_passes
from edgekiln.export.tflite_reader import read_tflite


def run_of(*values: int) -> Tensors:
    return (np.array(values, np.int8).reshape(2, -1),)


class TestCompareAll:
    def test_every_pair_is_compared(self) -> None:
        same = run_of(1, 2, 3, 4)
        found = compare_all({"board": same, "c": same, "oracle": same}, "m on b")
        assert [(c.left, c.right) for c in found] == [
            ("board", "c"),
            ("board", "oracle"),
            ("c", "oracle"),
        ]
        assert all((c.samples, c.bytes, c.mismatched_bytes) == (2, 4, 0) for c in found)

    def test_one_wrong_byte_of_the_board(self) -> None:
        right = run_of(1, 2, 3, 4)
        with pytest.raises(CheckFailedError) as caught:
            compare_all({"board": run_of(1, 2, 9, 4), "c": right, "oracle": right}, "m on b")
        assert str(caught.value) == (
            "m on b: board and c differ in 1 of 4 output bytes, first in sample 1, output 0, "
            "byte 0; got 9; allowed: 3; edgekiln verify names the node"
        )

    def test_where_the_compiler_is_wrong_the_board_is_not_blamed(self) -> None:
        wrong = run_of(1, 2, 9, 4)
        with pytest.raises(CheckFailedError, match="c and oracle differ"):
            compare_all({"board": wrong, "c": wrong, "oracle": run_of(1, 2, 3, 4)}, "m")

    def test_nothing_is_no_proof(self) -> None:
        nothing = (np.zeros((0, 3), np.int8),)
        with pytest.raises(CheckFailedError, match="nothing to compare"):
            compare_all({"board": nothing, "c": nothing}, "m")


def test_real_numbers_may_lie_within_the_tolerance_of_the_reference() -> None:
    c = (np.array([[1.0, 2.0], [3.0, np.nan]], np.float32),)
    near = (c[0] + np.float32(2**-20),)
    runs = {"board": c, "generated C on host": c, "oracle": near}
    found = compare_all(runs, "m", Tolerance(1e-5, 0.0))
    assert [(f.bytes, f.mismatched_bytes) for f in found] == [(16, 0)] * 3
    assert [f.tolerated_bytes > 0 for f in found] == [False, True, True]
    assert found[1].equal_bytes == 16 - found[1].tolerated_bytes
    with pytest.raises(CheckFailedError, match="generated C on host and oracle differ"):
        compare_all(runs, "m", Tolerance(1e-8, 0.0))


def test_the_board_computes_the_same_real_numbers_as_the_host() -> None:
    c = (np.array([[1.0, 2.0]], np.float32),)
    near = (c[0] + np.float32(2**-20),)
    runs = {"board": near, "generated C on host": c, "oracle": c}
    with pytest.raises(CheckFailedError, match="board and generated C on host differ"):
        compare_all(runs, "m", Tolerance(1e-5, 0.0))


def test_integers_are_never_near_enough() -> None:
    runs = {"c": run_of(1, 2), "oracle": run_of(1, 3)}
    with pytest.raises(CheckFailedError, match="c and oracle differ"):
        compare_all(runs, "m", Tolerance(1.0, 10.0))


@pytest.mark.parametrize("state", ["INT8", "INT16"])
def test_litert_is_kept_from_a_state_that_it_writes_beyond(state: str) -> None:
    tensors = [
        BuiltTensor((1, 3), "INT8", (0.1,), (0,)),
        BuiltTensor((2, 3), "INT8", (0.1,), (0,), 0, np.ones((2, 3), np.int8)),
        BuiltTensor((2, 4), state, (0.1,), (0,), 0, np.ones((2, 4), state.lower())),
        BuiltTensor((2,), "INT32", (0.01,), (0,), 0, np.ones(2, np.int32)),
        BuiltTensor((1, 8), state, (0.1,), (0,), is_variable=True),
        BuiltTensor((1, 2), "INT8", (0.1,), (0,)),
    ]
    op = BuiltOp("SVDF", [0, 1, 2, 3, 4], [5], "SVDFOptions", {"Rank": 1})
    graph = run_passes(read_tflite(build_model(tensors, [op], [0], [5]), "m"))
    assert litert_is_safe(graph) == (state == "INT16")


def test_memory_plan_of_a_real_model(root: Path) -> None:
    model = (root / "tests/golden/digits_cnn_int8.tflite").read_bytes()
    report = compile_model(model, name="digits", target="host").report
    plan = read_memory_plan(report)
    assert plan.arena_bytes == report["arena_bytes"] >= plan.bound_bytes
    assert plan.steps[0] == "in" and plan.steps[-1] == "out"
    assert len(plan.steps) == len(report["nodes"]) + 2
    assert max(buffer.offset + buffer.bytes for buffer in plan.buffers) == plan.arena_bytes
    assert all(0 <= b.first <= b.last < len(plan.steps) for b in plan.buffers)
    assert plan.buffers[0].first == 0 and max(b.last for b in plan.buffers) == len(plan.steps) - 1


def test_versions_name_what_took_part() -> None:
    versions = installed_versions()
    assert {"edgekiln", "Python", "numpy"} <= set(versions)
    assert versions["numpy"] == np.__version__


class TestInputsFile:
    inputs = ModelInputs(
        (np.arange(6, dtype=np.int8).reshape(3, 2), np.ones((3, 1), np.int16)),
        np.array([2, 0, 1]),
        ("a", "ü", '"'),
        "three of them",
    )

    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "inputs.npz"
        write_inputs(path, self.inputs)
        read = read_inputs_file(path)
        assert [a.dtype for a in read.tensors] == [np.int8, np.int16]
        pairs = zip(read.tensors, self.inputs.tensors, strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
        assert read.labels is not None and read.labels.tolist() == [2, 0, 1]
        assert (read.class_names, read.description) == (("a", "ü", '"'), "three of them")

    def test_equal_inputs_give_equal_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_inputs(tmp_path / "a.npz", self.inputs)
        monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
        write_inputs(tmp_path / "b.npz", self.inputs)
        assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()

    def test_head(self) -> None:
        head = self.inputs.head(2)
        assert head.samples == 2 and head.labels is not None and head.labels.tolist() == [2, 0]

    @pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x93NUMPY"])
    def test_a_damaged_file_is_one_line(self, tmp_path: Path, data: bytes) -> None:
        path = tmp_path / "inputs.npz"
        path.write_bytes(data)
        with pytest.raises(BadInputError, match="not a file of inputs") as caught:
            read_inputs_file(path)
        assert "\n" not in str(caught.value)
