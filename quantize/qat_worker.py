"""The process that converts quantized Keras models; see `edgekiln.quantize.qat_convert`.

The converter sees the model with constant ranges and with stand-in weights. It gives the operators
and the activations' scales and zero points; of the weights only the shapes matter to it. A
stand-in has codes of its own and a scale that tells its layer, so that each operator of the file is
recognised beyond doubt. Then the layers' own codes, scales and biases are written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekiln import files
from edgekiln.errors import BadModelError
from edgekiln.quantize.process import Job, Report, serve
from edgekiln.quantize.tflite_rewrite import LinearOperator, TfliteRewriter, Weights, file_layout

Array = npt.NDArray[Any]

#: Steps between the scales of two stand-ins; float32 tells them apart.
_SCALE_STEP = 1.0 / 4096
_STAND_IN_BIAS = 0.5


def convert(job: Job, report: Report) -> Job:
    """Converts ``job["model"]``, a quantized model, to ``job["output"]``, all int8."""
    report("loading TensorFlow")
    from edgekiln.quantize.qat import activation_quantizers, weight_quantizers
    from edgekiln.train.model_file import read_model

    model = read_model(Path(job["model"]))
    layers = list(weight_quantizers(model).values())
    weights = [read_weights(layer) for layer in layers]
    stand_ins = [stand_in_codes(layer, index) for index, layer in enumerate(layers)]
    quantizers = activation_quantizers(model).values()
    grids = [(quantizer.scale, quantizer.zero_point) for quantizer in quantizers]
    for quantizer in quantizers:
        quantizer.constant_range = quantizer.range
    for index, layer in enumerate(layers):
        layer.exporting = True
        layer.kernel.assign(stand_ins[index] * _stand_in_scale(index))
        layer.bias.assign(np.full(layer.bias.shape, _STAND_IN_BIAS))
    report("converting")
    rewriter = TfliteRewriter(_convert(model), job["where"])
    report("writing the weights")
    rewriter.set_activation_scales(grids)
    _write_weights(rewriter, [layer.name for layer in layers], weights, stand_ins, job["where"])
    rewriter.order_signature(*signature_names(model))
    files.write_bytes(Path(job["output"]), rewriter.to_bytes())
    return {}


def read_weights(layer: Any) -> Weights:
    """Returns what a quantized layer computes with."""
    return Weights(
        codes=layer.weight_codes(),
        scales=layer.weight_scales(),
        bias=np.asarray(layer.bias, np.float64),
        bits=layer.weight_bits,
    )


def stand_in_codes(layer: Any, seed: int) -> npt.NDArray[np.int8]:
    """Returns codes in the shape of a layer's kernel, each channel with one of 127."""
    from edgekiln.quantize.batch_norm import channel_shape

    shape = tuple(layer.kernel.shape)
    codes = np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)
    channels = channel_shape(layer, shape)
    first = tuple(0 if size == 1 else slice(None) for size in channels)
    codes[first] = 127
    return codes


def _stand_in_scale(index: int) -> float:
    return (1.0 + index * _SCALE_STEP) / 127.0


def _convert(model: Any) -> bytes:
    from edgekiln.train.quiet_keras import keras, tensorflow

    signature = keras.tree.map_structure(
        lambda tensor: keras.InputSpec(
            shape=(1, *tensor.shape[1:]), dtype=tensor.dtype, name=tensor.name
        ),
        model.input,
    )
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as scratch:
        model.export(scratch, format="tf_saved_model", verbose=False, input_signature=[signature])
        converter = tensorflow.lite.TFLiteConverter.from_saved_model(scratch)
        converter.optimizations = [tensorflow.lite.Optimize.DEFAULT]
        converter.inference_input_type = tensorflow.int8
        converter.inference_output_type = tensorflow.int8
        return bytes(converter.convert())


def _write_weights(
    rewriter: TfliteRewriter,
    names: Sequence[str],
    weights: Sequence[Weights],
    stand_ins: Sequence[npt.NDArray[np.int8]],
    where: str,
) -> None:
    # Operators of one layer share their kernel: all are recognised before any is written.
    found = [
        (linear, _recognise(rewriter, linear, stand_ins)) for linear in rewriter.linear_operators()
    ]
    for linear, index in found:
        if index is None:
            raise BadModelError(
                "the converter made an operator that is no layer of the model",
                where=f"{where}: node {linear.index} {linear.name}",
            )
        rewriter.set_weights(linear, weights[index])
    written = {index for _, index in found}
    missing = [name for index, name in enumerate(names) if index not in written]
    if missing:
        raise BadModelError(
            "the converter left out layers",
            where=where,
            got=", ".join(missing),
            hint="remove layers whose output is not used",
        )


def _recognise(
    rewriter: TfliteRewriter, linear: LinearOperator, stand_ins: Sequence[npt.NDArray[np.int8]]
) -> int | None:
    """Returns the number of the layer whose stand-in an operator holds."""
    scale = rewriter.read_scales(linear).max()
    index = round((scale * 127.0 - 1.0) / _SCALE_STEP)
    if not 0 <= index < len(stand_ins):
        return None
    codes, wanted = rewriter.read_codes(linear), file_layout(stand_ins[index], linear.name)
    return index if codes.shape == wanted.shape and (codes == wanted).all() else None


def signature_names(model: Any) -> tuple[list[str], list[str]]:
    """Returns the names of inputs and outputs in the signature that Keras exports, in order."""
    outputs = model.output
    names = (
        sorted(outputs)  # As Keras flattens them.
        if isinstance(outputs, Mapping)
        else [f"output_{number}" for number in range(len(model.outputs))]
    )
    return [str(tensor.name) for tensor in model.inputs], names


if __name__ == "__main__":
    serve({"convert": convert})
