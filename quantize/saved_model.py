"""SavedModel directories, as input of the converter.

A SavedModel is a program of TensorFlow. To convert it is to trust it: unlike a Keras file it
cannot be kept from reading and writing files.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.errors import BadModelError

PROGRAM_NAME = "saved_model.pb"
_SIGNATURE = "serving_default"
_TAG = "serve"


@dataclass(frozen=True)
class _Tensor:
    """An input or output of a signature.

    Attributes:
        name: Its name in the signature.
        tensor: Its name in the graph.
        shape: Its shape, None where an axis is free; or None when even their number is.
        dtype: TensorFlow's type.
    """

    name: str
    tensor: str
    shape: tuple[int | None, ...] | None
    dtype: Any


def is_saved_model(path: Path) -> bool:
    """Tells whether a path is a directory that holds a SavedModel."""
    return (path / PROGRAM_NAME).is_file()


def freeze_saved_model(source: Path, directory: Path) -> dict[str, tuple[int | None, ...]]:
    """Writes a SavedModel anew, with constants for variables and a batch of 1.

    The graph is loaded without the Python objects of the model, so that one saved by an older
    TensorFlow, optimizer included, can be read.

    Args:
        source: The SavedModel.
        directory: Where to write the new one.

    Returns:
        Name of each input to the shape of one sample.

    Raises:
        BadModelError: It cannot be loaded, or lacks the signature ``serving_default``, or takes
            something else than float32 with an axis for the batch.
    """
    from edgekiln.train.quiet_keras import tensorflow

    try:
        graph, inputs, outputs = _load(source, tensorflow)
    except BadModelError:
        raise
    except Exception as error:
        raise BadModelError(
            "is not a SavedModel that can be loaded",
            where=source,
            got=textwrap.shorten(f"{type(error).__name__}: {error}", 200),
        ) from None
    shapes = {each.name: _sample_shape(each, source) for each in inputs}

    def call(*tensors: Any) -> dict[str, Any]:
        results = tensorflow.graph_util.import_graph_def(
            graph,
            input_map={each.tensor: tensor for each, tensor in zip(inputs, tensors, strict=True)},
            return_elements=[each.tensor for each in outputs],
            name="",
        )
        return {each.name: result for each, result in zip(outputs, results, strict=True)}

    module = tensorflow.Module()
    module.call = tensorflow.function(
        call,
        input_signature=[
            tensorflow.TensorSpec((1, *shapes[each.name]), each.dtype, name=each.name)
            for each in inputs
        ],
    )
    concrete = module.call.get_concrete_function()
    tensorflow.saved_model.save(module, str(directory), signatures={_SIGNATURE: concrete})
    return shapes


def _load(source: Path, tensorflow: Any) -> tuple[Any, list[_Tensor], list[_Tensor]]:
    """Returns the graph with constants for variables, its inputs and its outputs."""
    v1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default(), v1.Session() as session:
        loaded = v1.saved_model.loader.load(session, [_TAG], str(source))
        if _SIGNATURE not in loaded.signature_def:
            names = [name for name in loaded.signature_def if not name.startswith("__")]
            raise BadModelError(
                f"has no signature {_SIGNATURE}", where=source, got=", ".join(names) or "none"
            )
        chosen = loaded.signature_def[_SIGNATURE]
        inputs, outputs = (
            [_describe(name, info, tensorflow) for name, info in sorted(group.items())]
            for group in (chosen.inputs, chosen.outputs)
        )
        graph = v1.graph_util.convert_variables_to_constants(
            session,
            session.graph.as_graph_def(),
            [each.tensor.partition(":")[0] for each in outputs],
        )
    _drop_unused_functions(graph)
    return graph, inputs, outputs


def _describe(name: str, info: Any, tensorflow: Any) -> _Tensor:
    shape = info.tensor_shape
    sizes = tuple(None if size.size < 0 else int(size.size) for size in shape.dim)
    dtype = tensorflow.dtypes.as_dtype(info.dtype)
    return _Tensor(name, info.name, None if shape.unknown_rank else sizes, dtype)


def _drop_unused_functions(graph: Any) -> None:
    """Removes functions that no node reaches: some refer to variables that are gone."""
    functions = {function.signature.name: function for function in graph.library.function}
    used: set[str] = set()
    waiting = list(_functions_of(graph.node))
    while waiting:
        name = waiting.pop()
        if name in functions and name not in used:
            used.add(name)
            waiting += _functions_of(functions[name].node_def)
    kept = [functions[name] for name in sorted(used)]
    del graph.library.function[:]
    graph.library.function.extend(kept)


def _functions_of(nodes: Any) -> Iterator[str]:
    """Yields the names of the functions that nodes call."""
    for node in nodes:
        yield node.op
        for value in node.attr.values():
            yield value.func.name
            yield from (function.name for function in value.list.func)


def _sample_shape(each: _Tensor, source: Path) -> tuple[int | None, ...]:
    if each.dtype.name != "float32" or not each.shape or each.shape[0] not in (None, 1):
        shape = "of any shape" if each.shape is None else list(each.shape)
        raise BadModelError(
            f"input '{each.name}' cannot be used",
            where=source,
            got=f"{each.dtype.name} {shape}",
            allowed="float32 [batch, …]",
        )
    return each.shape[1:]
