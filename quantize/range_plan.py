"""Decides where a lowered Keras model gets activation quantizers, and which tensors share one.

The rules are those of TensorFlow Lite's int8 kernels (their quantization specification): an
activation that is fused into the op before it leaves one range, after both; a concatenation and
its branches share a range; pooling, padding and reshaping keep their input's; sigmoid, tanh and
softmax have fixed ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from edgekiln.quantize import lowering
from edgekiln.quantize.keras_graph import Call, LayerGraph, Value
from edgekiln.quantize.lowering import unsupported
from edgekiln.train.quiet_keras import keras

_layers = keras.layers

#: Real values of the codes -128 and 127.
_FIXED_RANGES = {
    keras.activations.sigmoid: (0.0, 255 / 256),
    keras.activations.softmax: (0.0, 255 / 256),
    keras.activations.tanh: (-1.0, 127 / 128),
}


@dataclass(eq=False)
class RangeGroup:
    """Tensors that share a scale and zero point.

    Attributes:
        name: After the layer that makes the first of them, or that joins them.
        nonnegative: Whether none can be below 0.
        fixed_range: Values of the lowest and highest code, where they are prescribed.
        sites: How many of them are rounded by the quantizer, each at its own site.
        is_output: Whether one of them is an output of the model.
    """

    name: str
    nonnegative: bool
    fixed_range: tuple[float, float] | None = None
    sites: int = 0
    is_output: bool = False


@dataclass(frozen=True)
class Site:
    """Where a quantizer is applied: its group, and its number there (-1: rounded again)."""

    group: RangeGroup
    number: int


@dataclass(frozen=True)
class RangePlan:
    """Where quantizers go.

    Attributes:
        after: The site of each value that is rounded when it has been computed.
        before: The site of an argument, by call and position, that is rounded on its way in.
    """

    after: Mapping[Value, Site]
    before: Mapping[tuple[Call, int], Site]


def plan_ranges(graph: LayerGraph, unquantized: Collection[str] = ()) -> RangePlan:
    """Plans the quantizers of a lowered model.

    Args:
        graph: A model of the layers that `edgekiln.quantize.lowering` leaves, with no
            BatchNormalization.
        unquantized: Names of layers whose outputs stay float.
    """
    planner = _Planner(graph, frozenset(unquantized))
    for value, name in zip(keras.tree.flatten(graph.inputs), graph.input_names, strict=True):
        planner.start(value, name, nonnegative=False)
    for call in graph.calls:
        planner.place(call)
    return planner.finish()


class _Planner:
    def __init__(self, graph: LayerGraph, unquantized: frozenset[str]) -> None:
        self._consumers = graph.consumers()
        self._outputs = frozenset(graph.output_values())
        self._unquantized = unquantized
        #: The group of each value; none for one that stays float or is fused.
        self._groups: dict[Value, RangeGroup] = {}
        #: The name of the op into which the activation that takes a value is fused.
        self._fused: dict[Value, str] = {}
        self._after: dict[Value, RangeGroup] = {}
        self._again: set[Value] = set()
        self._before: dict[tuple[Call, int], RangeGroup] = {}
        self._joined: dict[RangeGroup, RangeGroup] = {}

    def place(self, call: Call) -> None:
        layer, (value,) = call.layer, call.outputs
        taken = call.inputs[0]
        if call.name in self._unquantized:
            return
        if isinstance(layer, (*lowering.WEIGHTED, *lowering.ARITHMETIC)):
            if self._is_fused_with_next(call):
                self._fused[value] = call.name
            else:
                self.start(value, call.name, nonnegative=_ends_in_relu(layer))
        elif isinstance(layer, _layers.ReLU):
            self.start(value, self._fused.get(taken, call.name), nonnegative=True)
        elif isinstance(layer, _layers.LeakyReLU):
            self.start(value, call.name, nonnegative=False)
        elif isinstance(layer, lowering.MEANS):
            self.start(value, call.name, nonnegative=self._nonnegative(taken))
        elif isinstance(layer, _layers.Activation):
            fixed = _FIXED_RANGES[layer.activation]
            self.start(value, call.name, fixed[0] >= 0, fixed)
        elif isinstance(layer, _layers.Concatenate):
            self._join(call, value)
        elif isinstance(layer, lowering.AVERAGING):
            self._keep(taken, value)
            if value in self._groups:
                self._again.add(value)
        elif isinstance(layer, (*lowering.MOVING, *lowering.TRANSPARENT)):
            self._keep(taken, value)
        else:
            raise unsupported(call)

    def start(
        self,
        value: Value,
        name: str,
        nonnegative: bool,
        fixed_range: tuple[float, float] | None = None,
    ) -> None:
        """Opens a range for a value."""
        group = RangeGroup(name, nonnegative, fixed_range)
        self._groups[value] = self._after[value] = group

    def _keep(self, taken: Value, value: Value) -> None:
        if taken in self._groups:
            self._groups[value] = self._groups[taken]
        if taken in self._fused:
            self._fused[value] = self._fused[taken]

    def _nonnegative(self, value: Value) -> bool:
        group = self._groups.get(value)
        return group is not None and self._root(group).nonnegative

    def _join(self, call: Call, value: Value) -> None:
        """Makes one range of those of a concatenation's branches."""
        joined = RangeGroup(call.name, nonnegative=True)
        for position, branch in enumerate(call.inputs):
            root = self._root(self._groups[branch]) if branch in self._groups else None
            if root is None or root.fixed_range is not None:
                # It keeps its own, and is rounded anew on its way in.
                self._before[call, position] = joined
            elif root is not joined:
                self._joined[root] = joined
            joined.nonnegative &= root is not None and root.nonnegative
        self._groups[value] = joined

    def _root(self, group: RangeGroup) -> RangeGroup:
        while group in self._joined:
            group = self._joined[group]
        return group

    def _is_fused_with_next(self, call: Call) -> bool:
        """Tells whether a ReLU alone takes the output, so that one op computes both."""
        if _activation(call.layer) is not keras.activations.linear:
            return False
        (value,) = call.outputs
        while value not in self._outputs:
            following = self._consumers.get(value, [])
            if len(following) != 1:
                return False
            if isinstance(following[0].layer, _layers.ReLU):
                return True
            if not isinstance(following[0].layer, lowering.TRANSPARENT):
                return False
            (value,) = following[0].outputs
        return False

    def finish(self) -> RangePlan:
        """Numbers the sites."""
        for value in self._outputs & self._groups.keys():
            self._root(self._groups[value]).is_output = True
        after = {value: self._site(group) for value, group in self._after.items()}
        before = {place: self._site(group) for place, group in self._before.items()}
        again = {value: Site(self._root(self._groups[value]), -1) for value in self._again}
        return RangePlan({**after, **again}, before)

    def _site(self, group: RangeGroup) -> Site:
        root = self._root(group)
        root.sites += 1
        return Site(root, root.sites - 1)


def _activation(layer: Any) -> Any:
    return getattr(layer, "activation", keras.activations.linear)


def _ends_in_relu(layer: Any) -> bool:
    return _activation(layer) is not keras.activations.linear
