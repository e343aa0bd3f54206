"""Damaged files end in one clear error: some thousand here, many more by ``make fuzz``.

What the fuzzer has found stays here as a test of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import tflite
from fuzz_reader import CPU_LIMIT_S, GOLDEN, damaged_file, load_seeds
from tflite_builder import BuiltOp, BuiltTensor, activation, build_model, constant

from edgekiln.errors import BadInputError, BadModelError, UnsupportedOpError
from edgekiln.export.compiler import compile_model, plan_model
from edgekiln.export.interpret import run_graph
from edgekiln.export.tflite_reader import read_tflite

SUPPORT = Path(__file__).parent.parent / "support"


def test_damaged_files_end_in_a_graph_or_an_error() -> None:
    command = [sys.executable, str(SUPPORT / "fuzz_reader.py"), "--cases", "2500", "--run", "7"]
    done = subprocess.run(command, capture_output=True, text=True, env={}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2,500 cases, 0 findings" in done.stdout


def test_a_case_can_be_had_again(tmp_path: Path) -> None:
    seeds = load_seeds([GOLDEN], 100_000)
    saved = tmp_path / "damaged.tflite"
    command = [sys.executable, str(SUPPORT / "fuzz_reader.py"), "--case", "11", "--save", saved]
    subprocess.run(command, capture_output=True, env={}, check=True)
    _, data = damaged_file(seeds, 11)
    assert saved.read_bytes() == data
    assert data != damaged_file(seeds, 12)[1]


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("raise ZeroDivisionError", "ZeroDivisionError"),
        ("while True: pass", "time"),
        ("bytearray(200 << 20)", "memory"),
        ("os.kill(os.getpid(), 9)", "death"),
    ],
)
def test_the_fuzzer_finds_what_it_looks_for(fault: str, what: str, tmp_path: Path) -> None:
    """The reader is replaced by one with a fault that two files of forty bring about."""
    script = f"""
import os, sys
sys.path.insert(0, {str(SUPPORT)!r})
import fuzz_reader
read = fuzz_reader.read_tflite
fuzz_reader.CPU_LIMIT_S = {CPU_LIMIT_S / 4}
files = [fuzz_reader.damaged_file(fuzz_reader.load_seeds([fuzz_reader.GOLDEN], 100000), n)[1]
         for n in (5, 17)]
def faulty(data, where):
    if data in files:
        {fault}
    return read(data, where)
fuzz_reader.read_tflite = faulty
fuzz_reader.__file__ = __file__
if __name__ == "__main__":
    sys.exit(fuzz_reader.main())
"""
    path = tmp_path / "faulty.py"
    path.write_text(script)
    command = [sys.executable, str(path), "--cases", "40"]
    done = subprocess.run(command, capture_output=True, text=True, env={}, check=False)
    assert done.returncode == 1, done.stderr
    assert "40 cases, 2 findings" in done.stdout
    assert what in done.stdout
    assert "5, 17" in done.stdout


def conv_2d(
    *,
    x: Sequence[int] = (1, 4, 4, 4),
    y: Sequence[int] = (1, 4, 4, 2),
    filters: Sequence[int] = (2, 1, 1, 4),
    scales: tuple[float, float, float] = (0.1, 0.1, 0.1),
    zero_point: int = 0,
    dtype: str = "INT8",
    options: Mapping[str, int] | None = None,
) -> bytes:
    """One convolution with unusual numbers."""
    tensors = [
        BuiltTensor(tuple(x), dtype, (scales[0],), (zero_point,)),
        constant(np.ones(filters, np.int8), [scales[1]]),
        BuiltTensor(tuple(y), dtype, (scales[2],), (0,)),
    ]
    values = {"Padding": 1, "StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1}
    op = BuiltOp("CONV_2D", [0, 1], [2], "Conv2DOptions", values | dict(options or {}))
    return build_model(tensors, [op], [0], [2])


def test_the_convolution_is_fine() -> None:
    assert compile_model(conv_2d(), name="m").report["macs"] == 128


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (conv_2d(x=(1, 4, 4, 0)), "a tensor has no elements; got tensor 0"),
        (conv_2d(y=(1, 0, 4, 2)), "a tensor has no elements; got tensor 2"),
        (conv_2d(filters=(2, 1, 1, 0)), "disagree on channels"),
        (conv_2d(filters=(0, 1, 1, 4)), "shape of|no elements|number of filter scales"),
        (conv_2d(x=(1, 1 << 14, 1 << 14, 4)), "size of a tensor; got"),
        (conv_2d(x=(1 << 30, 1 << 30, 1 << 30, 1 << 30)), "size of a tensor; got"),
        (
            conv_2d(x=(1, 1000, 1000, 1), y=(1, 901, 901, 1), filters=(1, 100, 100, 1)),
            "elements under all windows",
        ),
        (conv_2d(scales=(1e-20, 0.1, 0.1)), "scale; got"),
        (conv_2d(scales=(0.1, 1e20, 0.1)), "scale; got"),
        (conv_2d(scales=(0.1, 0.1, float("inf"))), "scale; got"),
        (conv_2d(scales=(1e6, 1e6, 1e-9)), "the output's scale is too small"),
        (conv_2d(scales=(1e3, 1e3, 1e-3), dtype="INT16"), "the output's scale is too small"),
        (conv_2d(zero_point=2**31), "zero point"),
        (conv_2d(options={"StrideH": -1}), "stride over the height; got -1"),
        (conv_2d(options={"StrideW": 0}), "stride over the width; got 0"),
        (conv_2d(options={"DilationHFactor": 0}), "dilation over the height; got 0"),
        (conv_2d(options={"StrideH": 2**31 - 1}), "shape of"),
        (conv_2d(options={"Padding": 9}), "unknown padding; got 9"),
    ],
)
def test_extremes_are_told_so(model: bytes, message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        compile_model(model, name="m")
    assert "\n" not in str(caught.value)


def test_a_variable_is_for_operators_that_keep_a_state() -> None:
    """Nothing else may read one: it was taken for a constant, and folded."""
    tensors = [
        activation((1, 4), 0.1, 0),
        BuiltTensor((1, 4), "INT8", (0.1,), (0,), is_variable=True),
        activation((1, 4), 0.1, 0),
    ]
    op = BuiltOp("ADD", [0, 1], [2], "AddOptions")
    with pytest.raises(UnsupportedOpError, match="node 0 ADD: reads the variable 't1'"):
        plan_model(build_model(tensors, [op], [0], [2]), name="m")


def test_an_operator_with_a_state_has_no_other_variable() -> None:
    """A second variable had no new value after an inference."""
    tensors = [BuiltTensor(shape, "FLOAT32") for shape in ((1, 1),) * 3 + ((1,), (1, 1), (1, 1))]
    for tensor in tensors[1:4]:
        tensor.data = np.ones(tensor.shape, np.float32)
    for tensor in tensors[3:5]:
        tensor.data, tensor.is_variable = None, True
    op = BuiltOp("SVDF", [0, 1, 2, 3, 4], [5], "SVDFOptions", {"Rank": 1})
    with pytest.raises(UnsupportedOpError, match="node 0 SVDF: reads the variable 't3'"):
        compile_model(build_model(tensors, [op], [0], [5]), name="m")


def test_a_tiny_scale_of_a_sum_is_told_so() -> None:
    tensors = [
        activation((1, 100), 1e3, 0),
        constant(np.array([1], np.int32)),
        activation((1,), 1e-9, 0),
    ]
    op = BuiltOp("SUM", [0, 1], [2], "ReducerOptions")
    with pytest.raises(UnsupportedOpError, match="the output's scale is too small"):
        compile_model(build_model(tensors, [op], [0], [2]), name="m")


def test_sums_that_overflow_float32_are_clamped() -> None:
    model = build_model(
        [
            BuiltTensor((1, 2), "FLOAT32"),
            constant(np.full((1, 2), 3e38, np.float32)),
            BuiltTensor((1, 1), "FLOAT32"),
        ],
        [BuiltOp("FULLY_CONNECTED", [0, 1], [2], "FullyConnectedOptions")],
        [0],
        [2],
    )
    graph = read_tflite(model, "m")
    assert run_graph(graph, [np.full((1, 2), 3e38, np.float32)])[0] == np.finfo(np.float32).max


def test_names_do_not_reach_the_terminal_raw() -> None:
    x = BuiltTensor((1, 4), "INT8", (0.1,), (0,), name="a\x1b[2Jb\nc")
    model = build_model([x, activation((1, 4), 0.1, 0)], [BuiltOp("RELU", [0], [1])], [0], [1])
    assert read_tflite(model, "m").tensor(0).name == "a\ufffd[2Jb\ufffdc"


def test_a_wrong_dimension_on_a_bias_is_no_fault() -> None:
    """Converters of 2019 left the filter's dimension on the bias."""
    bias = constant(np.zeros(2, np.int32), [0.01, 0.01], axis=3)
    weights = constant(np.ones((2, 4), np.int8), [0.1, 0.1])
    tensors = [activation((1, 4), 0.1, 0), weights, bias, activation((1, 2), 0.1, 0)]
    op = BuiltOp("FULLY_CONNECTED", [0, 1, 2], [3], "FullyConnectedOptions")
    assert compile_model(build_model(tensors, [op], [0], [3]), name="m").report["macs"] == 8


def test_lists_that_lie_over_each_other_are_bounded() -> None:
    """A file of some kilobytes names one tensor of thousands of scales thousands of times."""
    count = 2000
    many = constant(np.ones((count, 1), np.int8), [0.1] * count)
    tensors = [many, *(activation((1, 4), 0.1, 0) for _ in range(count))]
    data = bytearray(build_model(tensors, [BuiltOp("RELU", [1], [2])], [1], [2]))
    table = tflite.Model.GetRootAs(bytes(data), 0).Subgraphs(0)._tab
    start = table.Vector(table.Offset(4))  # SubGraph.tensors
    first = int.from_bytes(data[start : start + 4], "little") + start
    for number in range(count):
        at = start + 4 * number
        data[at : at + 4] = (first - at).to_bytes(4, "little")
    with pytest.raises(BadModelError, match="number of "):
        read_tflite(bytes(data), "m")


def test_tensors_that_share_a_buffer_share_memory() -> None:
    """Else a file could ask for a copy of one large constant a thousand times."""
    weights = constant(np.ones((2, 4), np.int8), [0.1])
    tensors = [activation((1, 4), 0.1, 0), weights, activation((1, 2), 0.1, 0)]
    op = BuiltOp("FULLY_CONNECTED", [0, 1], [2], "FullyConnectedOptions")
    data = build_model(tensors, [op], [0], [2])
    value = read_tflite(data, "m").tensor(1).value
    assert np.shares_memory(value, np.frombuffer(data, np.uint8))
    assert not value.flags.writeable


def test_resizing_takes_no_more_memory_than_its_output() -> None:
    """Rows and columns were gathered one after the other, by way of an image of 200 MB."""
    tensors = [
        activation((1, 3, 4096, 3), 0.1, 0),
        constant(np.array([4096, 2], np.int32)),
        activation((1, 4096, 2, 3), 0.1, 0),
    ]
    name = "RESIZE_NEAREST_NEIGHBOR"
    op = BuiltOp(name, [0, 1], [2], "ResizeNearestNeighborOptions")
    data = build_model(tensors, [op], [0], [2])
    tracemalloc.start()
    compile_model(data, name="m")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 64 << 20
