"""Bias correction: takes back the shift of the outputs that quantization causes on average.

Rounding a layer's weights adds an error to each output channel, whose mean over real inputs is
seldom zero. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction" (arXiv:1906.04721), section 4.2, subtract that mean from the bias; here it is measured
on representative data, as in their appendix D: layer by layer, each after those before it have
been quantized and corrected.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekiln.quantize.keras_run import run_batches
from edgekiln.quantize.qat import observing, weight_quantizers
from edgekiln.quantize.representative import Array
from edgekiln.train.quiet_keras import keras

Means = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BiasCorrection:
    """What was done to one layer.

    Attributes:
        layer: Its name.
        mean_shift: Mean over the channels of what was subtracted from the bias, in magnitude.
        largest_shift: Greatest such magnitude.
    """

    layer: str
    mean_shift: float
    largest_shift: float


def correct_biases(model: Any, data: Mapping[str, Array]) -> tuple[BiasCorrection, ...]:
    """Corrects the biases of a quantized model in place.

    Args:
        model: What `edgekiln.quantize.qat.quantize_model` returned, its activations calibrated.
            With its quantizers off it computes what the float model does; after this no more.
        data: float32 [N, ...] for each input, by name, in the order of the model's inputs.

    Returns:
        What was done, layer by layer.
    """
    layers = weight_quantizers(model)
    probes = {name: _probe(model, layer) for name, layer in layers.items()}
    with observing(model):
        wanted = {name: _means(probes[name], layers[name], data) for name in layers}
    corrections = []
    for name, layer in layers.items():
        shift = _means(probes[name], layer, data) - wanted[name]
        bias = keras.ops.convert_to_numpy(layer.bias).astype(np.float64)
        layer.bias.assign((bias - shift).astype(np.float32))
        size = np.abs(shift)
        corrections.append(BiasCorrection(name, float(size.mean()), float(size.max())))
    return tuple(corrections)


def _probe(model: Any, layer: Any) -> Any:
    """Returns a model of what ``layer`` gives each time that ``model`` calls it."""
    nodes = (node for nodes in model._nodes_by_depth.values() for node in nodes)
    outputs = [node.output_tensors[0] for node in nodes if node.operation is layer]
    return keras.Model(model.input, outputs)


def _means(probe: Any, layer: Any, data: Mapping[str, Array]) -> Means:
    """Returns the mean of each output channel before the activation, float64 [channels]."""
    total: Any = 0.0
    count = 0
    with _linear(layer):
        for results in run_batches(probe, data):
            for values in results:
                pixels = values.reshape(-1, values.shape[-1])
                total = total + pixels.sum(axis=0, dtype=np.float64)
                count += len(pixels)
    return np.asarray(total / count, np.float64)


@contextlib.contextmanager
def _linear(layer: Any) -> Iterator[None]:
    """Takes a layer's activation away within a ``with``."""
    activation = layer.activation
    layer.activation = keras.activations.linear
    try:
        yield
    finally:
        layer.activation = activation
