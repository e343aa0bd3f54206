"""Compares what engines answered: accuracy, agreement, equality of bytes, and host latency."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.bench.runners import Runner
from edgekiln.bench.tensors import Tensor, Tensors
from edgekiln.errors import BadInputError


@dataclass(frozen=True)
class FirstMismatch:
    """The first byte in which two runs differ.

    Attributes:
        sample: The inference's index.
        output: The model output's index.
        index: The byte's index within that output of that inference.
        got: The byte that was found, 0 to 255, or as a signed number for int8 outputs.
        want: The byte that the reference has.
    """

    sample: int
    output: int
    index: int
    got: int
    want: int

    def __str__(self) -> str:
        return (
            f"sample {self.sample}, output {self.output}, byte {self.index}: "
            f"got {self.got}, want {self.want}"
        )


@dataclass(frozen=True)
class ByteComparison:
    """How many bytes of one run equal another's.

    Attributes:
        samples: Number of inferences.
        total_bytes: Number of output bytes compared.
        mismatched_bytes: How many of them differ.
        max_abs_diff: The largest difference between two output values, 0 when all are equal.
        first: The first difference, or None.
    """

    samples: int
    total_bytes: int
    mismatched_bytes: int
    max_abs_diff: float
    first: FirstMismatch | None

    @property
    def equal(self) -> bool:
        """True when at least one byte was compared and none differs."""
        return self.mismatched_bytes == 0 and self.total_bytes > 0


def compare_bytes(got: Tensors, want: Tensors) -> ByteComparison:
    """Compares two runs byte by byte.

    Args:
        got: One array ``[N, ...]`` per model output.
        want: The reference, with the same shapes and dtypes.

    Raises:
        BadInputError: The runs have different shapes or dtypes.
    """
    kinds = [[(array.shape, array.dtype) for array in run] for run in (got, want)]
    if kinds[0] != kinds[1]:
        raise BadInputError("the runs cannot be compared", got=kinds[0], allowed=kinds[1])
    total = mismatched = 0
    largest = 0.0
    first: FirstMismatch | None = None
    for output, (a, b) in enumerate(zip(got, want, strict=True)):
        rows_a, rows_b = _byte_rows(a), _byte_rows(b)
        different = rows_a != rows_b
        total += different.size
        count = int(np.count_nonzero(different))
        if count == 0:
            continue
        mismatched += count
        largest = max(largest, _largest_difference(a, b))
        sample, index = (int(i) for i in np.argwhere(different)[0])
        if first is None or sample < first.sample:
            values = (int(rows[sample, index]) for rows in (rows_a, rows_b))
            first = FirstMismatch(sample, output, index, *values)
    return ByteComparison(len(got[0]) if got else 0, total, mismatched, largest, first)


def predictions(outputs: Tensor) -> NDArray[np.int64]:
    """Returns the class of each row: the index of its largest value, the first one of several.

    Args:
        outputs: Scores or probabilities ``[N, C]``, of any dtype.
    """
    classes: NDArray[np.int64] = np.argmax(outputs.reshape(len(outputs), -1), axis=1)
    return classes


def top1_accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Returns the fraction of rows whose largest value is at the label.

    Args:
        outputs: Scores or probabilities ``[N, C]``.
        labels: Classes ``int [N]``.

    Raises:
        BadInputError: There are no rows, or not one label for each.
    """
    _check_labels(outputs, labels)
    return float(np.mean(predictions(outputs) == labels))


def confusion_matrix(outputs: Tensor, labels: Tensor, classes: int) -> NDArray[np.int64]:
    """Counts the predictions: rows are true classes, columns are predicted ones.

    Args:
        outputs: Scores or probabilities ``[N, classes]``.
        labels: Classes ``int [N]``.
        classes: Number of classes.

    Returns:
        ``int64 [classes, classes]``.

    Raises:
        BadInputError: There are no rows, not one label for each, or a class out of range.
    """
    _check_labels(outputs, labels)
    predicted = predictions(outputs)
    if min(labels.min(), predicted.min()) < 0 or max(labels.max(), predicted.max()) >= classes:
        raise BadInputError("class out of range", allowed=f"0 to {classes - 1}")
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def agreement(a: Tensor, b: Tensor) -> float:
    """Returns the fraction of rows for which two runs chose the same class.

    Args:
        a: Scores or probabilities ``[N, C]``.
        b: The other run's, ``[N, C]``.

    Raises:
        BadInputError: The runs have different numbers of rows, or none.
    """
    if len(a) != len(b) or len(a) == 0:
        raise BadInputError("the runs cannot be compared", got=[len(a), len(b)], allowed="N and N")
    return float(np.mean(predictions(a) == predictions(b)))


@dataclass(frozen=True)
class HostLatency:
    """How long one inference takes on the machine that runs this program, not on a board.

    Attributes:
        runner: The engine's name.
        median_us: Median over the repeats, the call from Python included.
        p90_us: The time that nine of ten repeats do not exceed.
        repeats: How often it was measured.
    """

    runner: str
    median_us: float
    p90_us: float
    repeats: int


def measure_host_latency(
    runner: Runner, inputs: Tensors, *, warmup: int = 10, repeats: int = 100
) -> HostLatency:
    """Times single inferences on this machine.

    Args:
        runner: The engine.
        inputs: One array ``[N, ...]`` per model input; the rows are used in turn.
        warmup: Inferences before the first one that counts.
        repeats: Inferences that count.
    """
    rows = [tuple(array[i : i + 1] for array in inputs) for i in range(len(inputs[0]))]
    for number in range(warmup):
        runner.run(rows[number % len(rows)])
    times_ns = []
    for number in range(repeats):
        row = rows[number % len(rows)]
        start_ns = time.perf_counter_ns()
        runner.run(row)
        times_ns.append(time.perf_counter_ns() - start_ns)
    median_us, p90_us = _percentiles_us(times_ns)
    return HostLatency(runner.name, median_us, p90_us, repeats)


def _percentiles_us(times_ns: Sequence[int]) -> tuple[float, float]:
    median_ns, p90_ns = np.percentile(np.asarray(times_ns), [50, 90])
    return round(float(median_ns) / 1000, 1), round(float(p90_ns) / 1000, 1)


def _byte_rows(array: Tensor) -> NDArray[Any]:
    kind = np.int8 if array.dtype == np.int8 else np.uint8
    columns = math.prod(array.shape[1:])
    return np.ascontiguousarray(array).reshape(len(array), columns).view(kind)


def _largest_difference(a: Tensor, b: Tensor) -> float:
    return float(np.nanmax(np.abs(a.astype(np.float64) - b.astype(np.float64))))


def _check_labels(outputs: Tensor, labels: Tensor) -> None:
    if len(outputs) != len(labels) or len(labels) == 0:
        raise BadInputError(
            "one label is needed for each output", got=len(labels), allowed=len(outputs) or "1 up"
        )
