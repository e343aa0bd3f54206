"""Models of Keras 2, saved as ``.h5``, in the words of Keras 3.

Keras 3 reads the format, but not every configuration that Keras 2 wrote: depthwise and transposed
convolutions said how many ``groups`` they have (always one), recurrent layers whether time comes
first, and a ``+`` between two tensors became a layer that calls a function of TensorFlow.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from edgekiln.errors import BadModelError
from edgekiln.train.model_config import Config, walk

#: Class to the argument that Keras 3 does not know, and the only value that it could mean.
_DROPPED = {
    **{
        name: ("groups", 1)
        for name in (
            *("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
            *("DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D"),
        )
    },
    **{name: ("time_major", False) for name in ("GRU", "LSTM", "RNN", "SimpleRNN")},
}
#: TensorFlow's function to the layer which does the same to two tensors.
_LAYERS_OF_FUNCTIONS = {
    "__operators__.add": "Add",
    "math.add": "Add",
    "math.subtract": "Subtract",
    "math.multiply": "Multiply",
    "math.maximum": "Maximum",
    "math.minimum": "Minimum",
}
_OPERATOR_LAYER = "TFOpLambda"


def modernise(config: Config, where: Path) -> None:
    """Rewrites the configuration of a Keras 2 model in place.

    Args:
        config: The configuration of a whole model.
        where: The file, for messages.

    Raises:
        BadModelError: A layer means something that Keras 3 has no word for.
    """
    for entry in list(walk(config)):
        if entry.class_name in _DROPPED and isinstance(entry.value["config"], dict):
            argument, value = _DROPPED[entry.class_name]
            if entry.value["config"].pop(argument, value) != value:
                raise BadModelError(
                    f"layer '{entry.layer}' ({entry.class_name}) has another {argument} than "
                    f"{value}",
                    where=where,
                    hint="Keras 3 cannot express it",
                )
        if entry.class_name == _OPERATOR_LAYER:
            _replace_operator(entry.value, where)


def _replace_operator(value: Config, where: Path) -> None:
    """Turns a layer that calls a function of TensorFlow into one of Keras's own."""
    function = str(value["config"].get("function"))
    layer = _LAYERS_OF_FUNCTIONS.get(function)
    nodes = [_tensors_of(node) for node in value.get("inbound_nodes", [])]
    if layer is None or None in nodes:
        raise BadModelError(
            f"layer '{value['config'].get('name')}' calls TensorFlow's {function}, "
            "which is not a layer of Keras",
            where=where,
            allowed=f"{', '.join(sorted(_LAYERS_OF_FUNCTIONS))} of two tensors",
            hint="replace it by a layer of Keras and save the model again",
        )
    value["class_name"] = layer
    value["config"].pop("function")
    value["inbound_nodes"] = nodes


def _tensors_of(node: Any) -> list[Any] | None:
    """Returns the two tensors of a call as a layer's node has them, or None for other calls.

    A call was stored as ``[layer, node, tensor, {"y": [layer, node, tensor], "name": null}]``.
    """
    try:
        name, index, tensor, arguments = node
        other = arguments["y"]
        if not isinstance(other, list) or not isinstance(other[0], str) or len(other) != 3:
            return None
        return [[name, index, tensor, {}], [*other, {}]]
    except (TypeError, ValueError, KeyError, IndexError):
        return None


def write_modern(path: Path, config: Config, output: Path) -> None:
    """Copies a ``.h5`` file and replaces the configuration in the copy."""
    import h5py

    shutil.copyfile(path, output)
    with h5py.File(output, "r+") as file:
        file.attrs["model_config"] = json.dumps(config)
        # What a training was compiled with is not needed, and may name classes of its own.
        file.attrs.pop("training_config", None)
