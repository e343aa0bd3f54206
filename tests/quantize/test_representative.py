"""Checks of representative data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekiln.errors import BadInputError
from edgekiln.quantize.representative import (
    InputShape,
    Representative,
    batches,
    check_representative,
    read_representative,
)

INPUTS = np.random.default_rng(3).uniform(-1, 1, (40, 6, 6, 2)).astype(np.float32)
LEFT, RIGHT = np.zeros((5, 3), np.float32), np.ones((5, 4), np.float32)
PAIR = [InputShape("left", (3,)), InputShape("right", (4,))]


def spoiled(value: float) -> np.ndarray:
    samples = INPUTS.copy()
    samples[[7, 9], 1, 2, 0] = value
    return samples


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (INPUTS.astype(np.float64), "have the wrong type; got float64; allowed: float32"),
        (np.zeros((4, 3), np.int8), "have the wrong type; got int8; allowed: float32"),
        (INPUTS[:0], r"are empty or lack the axis of samples; got shape \(0, 6, 6, 2\)"),
        (np.zeros(3, np.float32), r"are empty or lack the axis of samples; got shape \(3,\)"),
        (spoiled(np.nan), "hold NaN or infinity; got 2 such samples, the first is number 7"),
        (spoiled(-np.inf), "hold NaN or infinity; got 2 such samples, the first is number 7"),
    ],
)
def test_data_that_cannot_be_used(samples: np.ndarray, message: str) -> None:
    check_representative(INPUTS, "m")
    with pytest.raises(BadInputError, match=f"^m: the representative data {message}"):
        check_representative(samples, "m")
    with pytest.raises(BadInputError, match=f"^m, input b: the representative data {message}"):
        check_representative({"a": INPUTS, "b": samples}, "m")
    with pytest.raises(BadInputError, match=f"^m, input 1: the representative data {message}"):
        check_representative([INPUTS, samples], "m")


@pytest.mark.parametrize("data", [{}, []])
def test_no_data_at_all(data: Representative) -> None:
    with pytest.raises(BadInputError, match=r"^m: there are no representative data$"):
        check_representative(data, "m")


def test_inputs_of_different_length() -> None:
    with pytest.raises(BadInputError, match=r"different numbers .*; got 5, 4; allowed: as many"):
        check_representative([LEFT, RIGHT[:4]], "m")


@pytest.mark.parametrize(
    "data", [[LEFT, RIGHT], {"left": LEFT, "right": RIGHT}, {"right": RIGHT, "left": LEFT}]
)
def test_data_find_their_inputs(data: Representative) -> None:
    found = check_representative(data, "m").for_inputs(PAIR, "m")
    assert list(found) == ["left", "right"]
    assert found["left"] is LEFT and found["right"] is RIGHT


def test_a_free_axis_takes_any_size() -> None:
    inputs = [InputShape("image", (None, 6, 2))]
    assert check_representative(INPUTS, "m").for_inputs(inputs, "m")["image"] is INPUTS


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"left": LEFT, "rihgt": RIGHT}, "got left, rihgt; allowed: left, right"),
        ([LEFT], r"another number of inputs .*; got 1; allowed: 2 \(left, right\)"),
        ([RIGHT, LEFT], r"input 'left'; got samples of shape \(4,\); allowed: shape \(3,\)"),
        ([LEFT, INPUTS[:5]], r"'right'; got samples of shape \(6, 6, 2\); allowed: shape \(4,\)"),
    ],
)
def test_data_of_other_inputs(data: Representative, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        check_representative(data, "m").for_inputs(PAIR, "m")


def test_one_input_is_not_named_in_the_message() -> None:
    with pytest.raises(BadInputError, match=r"do not fit the model's input; got samples of"):
        check_representative(LEFT, "m").for_inputs([InputShape("x", (4,))], "m")


@pytest.mark.parametrize("names", [None, ["file", "b"]])
def test_a_set_is_read_as_it_was_written(names: list[str] | None, tmp_path: Path) -> None:
    data = [LEFT, RIGHT] if names is None else dict(zip(names, (LEFT, RIGHT), strict=True))
    checked = check_representative(data, "m")
    checked.write(tmp_path / "set.npz")
    read = read_representative(tmp_path / "set.npz", checked.names)
    assert read.names == checked.names
    for one, other in zip(read.arrays, checked.arrays, strict=True):
        np.testing.assert_array_equal(one, other)


def test_batches_hold_all_samples_in_order() -> None:
    parts = list(batches({"a": INPUTS, "b": INPUTS + 1}, 16))
    assert [len(part["a"]) for part in parts] == [16, 16, 8]
    for name, expected in (("a", INPUTS), ("b", INPUTS + 1)):
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), expected)
