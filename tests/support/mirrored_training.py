"""Trains on two virtual devices under MirroredStrategy, and once compiled by XLA; prints JSON.

A program of its own: devices are divided before TensorFlow first uses them, and Keras takes
``jit_compile`` only where no other test has asked for deterministic ops.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekiln.quantize.clustering import WeightClustering
from edgekiln.quantize.kernels import find_kernels
from edgekiln.quantize.pruning import MagnitudePruning
from edgekiln.quantize.sparsity import ConstantSchedule, NofM, PolynomialSchedule
from edgekiln.train.quiet_keras import keras, tensorflow

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 20)).astype(np.float32)
Y = RANDOM.normal(size=(64, 3)).astype(np.float32)


class Record(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps the zeros of the last kernel after each batch, on every replica."""

    def __init__(self) -> None:
        super().__init__()
        self.zeros: list[list[int]] = []

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        kernel = self.model.layers[-1].kernel
        self.zeros.append([int(np.sum(copy == 0)) for copy in replicas(kernel)])


def replicas(variable: Any) -> list[np.ndarray]:
    """Returns the value of a variable on each device."""
    return [copy.numpy() for copy in getattr(variable.value, "values", [variable.value])]


def run(strategy: Any, callbacks: Sequence[Any], **options: Any) -> dict[str, Any]:
    """Trains a new model and describes its kernels."""
    keras.utils.set_random_seed(1)
    record = Record()
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = keras.Sequential(
            [
                keras.layers.Input((20,)),
                keras.layers.Dense(16, activation="relu"),
                keras.layers.Dense(3),
            ]
        )
        model.compile(keras.optimizers.Adam(0.01), "mse", **options)
    before = [kernel.read() for kernel in find_kernels(model).values()]
    model.fit(X, Y, batch_size=16, epochs=2, verbose=0, callbacks=[*callbacks, record])
    kernels = [replicas(kernel.variable) for kernel in find_kernels(model).values()]
    return {
        "replicas": len(kernels[0]),
        "equal": all(np.array_equal(one[0], copy) for one in kernels for copy in one),
        "moved": all(
            bool(np.all(one[0][one[0] != 0] != old[one[0] != 0]))
            for one, old in zip(kernels, before, strict=True)
        ),
        "zeros": [int(np.sum(one[0] == 0)) for one in kernels],
        "distinct": [len(np.unique(one[0])) for one in kernels],
        "zeros_by_step": record.zeros,
    }


def main() -> None:
    """Prints what each kind of training left."""
    (cpu,) = tensorflow.config.list_physical_devices("CPU")
    device = tensorflow.config.LogicalDeviceConfiguration()
    tensorflow.config.set_logical_device_configuration(cpu, [device, device])
    mirrored = tensorflow.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    prune = [MagnitudePruning(PolynomialSchedule(0.8, 0, 6, 2))]
    cluster = [MagnitudePruning(ConstantSchedule(0.5), pattern=NofM(2, 4)), WeightClustering(4)]
    results = {
        "mirrored": run(mirrored, prune, jit_compile=False),
        "mirrored clustered": run(mirrored, cluster, jit_compile=False),
        "jit": run(None, prune, jit_compile=True),
        "jit clustered": run(None, cluster, jit_compile=True),
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
