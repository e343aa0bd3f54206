"""Follows the channels of a model from layer to layer."""

from __future__ import annotations

from typing import Any

from edgekiln.quantize.channels.graph import Call, calls, is_graph, require_graph
from edgekiln.quantize.channels.lanes import Lanes
from edgekiln.quantize.channels.rules import find_rule, has_unknown_macs
from edgekiln.quantize.channels.tracer import Trace, Tracer
from edgekiln.train.quiet_keras import keras


def trace(model: Any) -> Trace:
    """Follows the channels of a model; its inputs and outputs are pinned.

    Raises:
        BadInputError: The model is not a functional or Sequential one, or not built.
    """
    require_graph(model)
    tracer = Tracer()
    inputs = tuple(_pinned(tracer, each, "it is an input of the model") for each in model.inputs)
    for lanes in _follow(tracer, model, inputs, ""):
        tracer.book.pin(lanes, "it is an output of the model")
    return Trace(
        model,
        tracer.book.channels(),
        tuple(tracer.layers.values()),
        tracer.inner_inputs,
        tuple(dict.fromkeys(tracer.uncounted)),
    )


def _follow(
    tracer: Tracer, model: Any, inputs: tuple[Lanes, ...], prefix: str
) -> tuple[Lanes, ...]:
    """Returns the lanes of a model's outputs."""
    lanes = {id(tensor): each for tensor, each in zip(model.inputs, inputs, strict=True)}
    for call in calls(model, prefix):
        given = tuple(lanes[id(tensor)] for tensor in call.inputs)
        made = _apply(tracer, call, given)
        lanes.update((id(tensor), each) for tensor, each in zip(call.outputs, made, strict=True))
    return tuple(lanes[id(tensor)] for tensor in model.outputs)


def _apply(tracer: Tracer, call: Call, given: tuple[Lanes, ...]) -> tuple[Lanes, ...]:
    if isinstance(call.operation, keras.Model):
        made = _enter_model(tracer, call, given)
    else:
        rule = find_rule(call.operation)
        made = rule(tracer, call, given) if rule else None
    if made is not None:
        return made
    if has_unknown_macs(call.operation):
        tracer.uncounted.append(call.path)
    why = f"{call.path} ({type(call.operation).__name__}) needs all its channels"
    for lanes in given:
        tracer.book.pin(lanes, why)
    return tuple(_pinned(tracer, tensor, why) for tensor in call.outputs)


def _enter_model(tracer: Tracer, call: Call, given: tuple[Lanes, ...]) -> tuple[Lanes, ...] | None:
    model = call.operation
    if not is_graph(model) or len(model.inputs) != len(given):
        return None
    try:
        keras.tree.assert_same_structure(call.first_argument, model.input)
    except (TypeError, ValueError):
        if len(given) > 1:
            return None
    known = tracer.inner_inputs.setdefault(id(model), given)
    for old, new in zip(known, given, strict=True):
        tracer.book.tie(old, new)
    return _follow(tracer, model, given, call.path + "/")


def _pinned(tracer: Tracer, tensor: Any, why: str) -> Lanes:
    width = tensor.shape[-1] if len(tensor.shape) > 1 else 0
    lanes = tracer.book.new(width or 0)
    tracer.book.pin(lanes, why)
    return lanes
