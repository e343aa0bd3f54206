"""A fault is put into one engine; the first node that it changes is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from edgekiln import cli
from edgekiln.bench.divergence import (
    cut_after,
    differs,
    find_first_mismatch,
)
from edgekiln.bench.runners import NumpyRunner, read_tensor_specs, tflm_available
from edgekiln.bench.verify import random_inputs, verify_model
from edgekiln.export import emit
from edgekiln.export.compiler import compile_model, write_bundle
from edgekiln.export.interpret import run_all_nodes
from edgekiln.export.ir import Graph
from edgekiln.export.ops.base import Array, Tolerance, accumulated_tolerance
from edgekiln.export.ops.pool_2d import MaxPool2D

MODEL = Path(__file__).parent.parent / "golden" / "digits_cnn_int8.tflite"

# The second of the model's two pools is the one with 48 channels.
FAULTY_NODE = 5
SOUND = "ek_clamp_s8(largest,"
FAULTY = "ek_clamp_s8(largest + (p->channels == 48 && channel == 7 ? EK_FAULT : 0),"

needs_oracle = pytest.mark.skipif(
    not tflm_available(), reason="no tflite-micro wheel for this Python and machine"
)


@pytest.fixture
def put_fault(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes one kernel of the generated C wrong by what a C expression says."""
    read_kernels = emit.read_kernels

    def put(fault: str) -> None:
        def read_faulty_kernels(headers: Iterable[str]) -> dict[str, str]:
            files = read_kernels(headers)
            text = files["ek_pool_2d_s8.h"]
            assert text.count(SOUND) == 1
            files["ek_pool_2d_s8.h"] = f"{fault}\n{text.replace(SOUND, FAULTY)}"
            return files

        monkeypatch.setattr(emit, "read_kernels", read_faulty_kernels)

    return put


@needs_oracle
def test_a_wrong_kernel_in_c_is_named(put_fault: Callable[[str], None]) -> None:
    put_fault("#define EK_FAULT 3")
    found = verify_model(MODEL, samples=4)
    first = found.first_mismatch
    assert not found.match and first is not None
    assert (first.node, first.op, first.engine) == (FAULTY_NODE, "MAX_POOL_2D", "c")
    assert (first.output, first.index % 48, first.elements) == (0, 7, 192)
    assert isinstance(first.got, int) and isinstance(first.want, int)
    assert 0 < first.got - first.want <= 3
    assert 1 <= first.differing <= 4
    assert found.mismatched_bytes > 0


@needs_oracle
def test_a_wrong_definition_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = MODEL.read_bytes()
    compiled = compile_model(data, name="m", target="host")
    write_bundle(compiled, tmp_path / "c")
    define = MaxPool2D.define

    def faulty(
        self: MaxPool2D, graph: Graph, inputs: tuple[Array | None, ...]
    ) -> tuple[Array, ...]:
        (value,) = define(self, graph, inputs)
        return ((value ^ 1) if self.index == FAULTY_NODE else value,)

    inputs = random_inputs(data, 1, seed=0)
    assert find_first_mismatch(data, compiled.graph, tmp_path / "c", inputs) is None
    monkeypatch.setattr(MaxPool2D, "define", faulty)
    first = find_first_mismatch(data, compiled.graph, tmp_path / "c", inputs, sample=9)
    assert first is not None
    assert (first.node, first.engine, first.index, first.sample) == (FAULTY_NODE, "numpy", 0, 9)
    assert (first.differing, first.elements) == (192, 192)


@needs_oracle
@pytest.mark.emulator
def test_what_only_the_board_does_wrong_is_named(put_fault: Callable[[str], None]) -> None:
    """The model is cut off after one node after another, and run on the board."""
    put_fault("#ifdef __arm__\n#define EK_FAULT 3\n#else\n#define EK_FAULT 0\n#endif")
    found = verify_model(MODEL, samples=2, target="mps2-an386")
    first = found.first_mismatch
    assert first is not None
    assert (first.node, first.op, first.engine) == (FAULTY_NODE, "MAX_POOL_2D", "mps2-an386")
    assert first.index % 48 == 7
    assert isinstance(first.got, int) and isinstance(first.want, int)
    assert 0 < first.got - first.want <= 3


@needs_oracle
def test_the_command_tells_it_to_people(
    put_fault: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    put_fault("#define EK_FAULT 3")
    assert cli.main(["verify", str(MODEL), "--random", "4"]) == 1
    out, err = capfd.readouterr()
    facts = dict(line.split("  ", 1) for line in out.splitlines())
    facts = {key: value.strip() for key, value in facts.items()}
    assert facts["first node that differs"] == "5 MAX_POOL_2D"
    assert facts["tensor"].endswith("max_pooling2d_1_2/MaxPool2d")
    assert facts["computed by"] == "the generated C on this machine"
    assert int(facts["got"]) > int(facts["want"])
    assert len(err.splitlines()) == 1 and "node that does is 5 (MAX_POOL_2D)" in err


def test_a_cut_model_ends_with_that_tensor() -> None:
    data = MODEL.read_bytes()
    inputs = random_inputs(data, 1, seed=3)
    whole = compile_model(data, name="m").graph
    values = run_all_nodes(whole, [inputs[0].reshape(whole.tensor(whole.inputs[0]).shape)])
    for op in whole.ops:
        cut = cut_after(data, op.outputs[0])
        _, (output,) = read_tensor_specs(cut)
        assert output.shape == whole.tensor(op.outputs[0]).shape
        (got,) = NumpyRunner(cut).run(inputs)
        assert np.array_equal(got.reshape(-1), values[op.outputs[0]].reshape(-1))


@pytest.mark.parametrize(
    ("got", "want", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.00001], [False, False]),
        ([1.0, 2.0], [1.0, 2.001], [False, True]),
        ([1e-9, 100.0], [-1e-9, 100.0], [False, False]),  # what sums cancel to
        ([float("nan"), float("inf")], [float("nan"), float("inf")], [False, False]),
        ([1.0, float("nan")], [1.0, 0.0], [False, True]),
    ],
)
def test_real_numbers_may_differ_by_the_tolerance(
    got: list[float], want: list[float], expected: list[bool]
) -> None:
    tolerance = Tolerance(relative=1e-5, absolute=1e-6)
    a, b = np.array(got, np.float32), np.array(want, np.float32)
    assert differs(a, b, tolerance).tolist() == expected


def test_integers_may_not() -> None:
    a, b = np.array([1, 2], np.int16), np.array([1, 3], np.int16)
    assert differs(a, b, Tolerance(1.0, 1.0)).tolist() == [False, True]


def test_tolerances_add_up_along_the_model() -> None:
    graph = compile_model(MODEL.read_bytes(), name="m").graph
    total = accumulated_tolerance(graph.ops)
    assert total.relative == pytest.approx(sum(op.tolerance.relative for op in graph.ops))
    assert accumulated_tolerance(()) == Tolerance(0, 0)
