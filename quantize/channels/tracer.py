"""What is known about a model's channels, and the books kept while they are followed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgekiln.quantize.channels.graph import Call
from edgekiln.quantize.channels.lanes import Channels, LaneBook, Lanes

Role = Literal["makes", "reads", "scales", "follows"]
"""What a weight does with the channels along an axis: make them, read them, scale them, or
neither of these (a bias, a moving mean)."""


@dataclass(frozen=True, eq=False)
class WeightAxis:
    """An axis of a weight along which channels lie.

    Attributes:
        variable: The Keras variable.
        axis: The axis, counted from 0.
        lanes: intp [length of the axis].
        role: What the weight does with them.
    """

    variable: Any
    axis: int
    lanes: Lanes
    role: Role


@dataclass(frozen=True, eq=False)
class Setting:
    """An entry of a layer's config that states a number of channels.

    Attributes:
        key: Name of the entry.
        lanes: The lanes whose number it states.
        make: Returns the entry for a number.
    """

    key: str
    lanes: Lanes
    make: Callable[[int], Any] = int


@dataclass(frozen=True, eq=False)
class Term:
    """A product that a layer costs: ``factor`` times the channels left of each of ``lanes``."""

    factor: int
    lanes: tuple[Lanes, ...] = ()


@dataclass(eq=False)
class Layer:
    """What is known about a layer whose weights or settings depend on channels.

    Attributes:
        number: Place among the traced layers, which is its number as a maker.
        path: Its name; ``<model>/<layer>`` in a nested model.
        layer: The Keras layer.
        reads: Lanes of its input.
        makes: Lanes that it makes; empty for a layer that makes none.
        axes: Axes of its weights.
        settings: Entries of its config.
        macs: Multiply-accumulate steps, over all its calls.
        bytes: Constants of the compiled model, with 8-bit weights.
    """

    number: int
    path: str
    layer: Any
    reads: Lanes
    makes: Lanes
    axes: list[WeightAxis] = field(default_factory=list)
    settings: list[Setting] = field(default_factory=list)
    macs: list[Term] = field(default_factory=list)
    bytes: list[Term] = field(default_factory=list)

    def weight(self, variable: Any, axes: dict[int, tuple[Lanes, Role]]) -> None:
        """Notes the axes of a weight along which channels lie; None stands for no weight."""
        if variable is not None:
            for axis, (lanes, role) in axes.items():
                place = axis % len(variable.shape)
                self.axes.append(WeightAxis(variable, place, lanes, role))


@dataclass(frozen=True, eq=False)
class Trace:
    """A model with its channels.

    Attributes:
        model: The Keras model.
        channels: Its channels.
        layers: The layers whose weights or settings depend on them.
        inner_inputs: Lanes of the inputs of each nested model, by ``id`` of the model.
        uncounted: Paths of layers whose multiply-accumulate steps are not known.
    """

    model: Any
    channels: Channels
    layers: tuple[Layer, ...]
    inner_inputs: dict[int, tuple[Lanes, ...]]
    uncounted: tuple[str, ...]

    def stay(self, lanes: Lanes, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Returns which of ``lanes`` stay when the channels ``kept``, bool [channels], do."""
        flags: npt.NDArray[np.bool_] = kept[self.channels.of_lane[lanes]]
        return flags


class Tracer:
    """Keeps the books while rules follow the channels through a model."""

    def __init__(self) -> None:
        self.book = LaneBook()
        self.layers: dict[int, Layer] = {}
        self.inner_inputs: dict[int, tuple[Lanes, ...]] = {}
        self.uncounted: list[str] = []

    def enter(self, call: Call, lanes: Lanes, makes: int = 0) -> tuple[Layer, bool]:
        """Returns what is kept about the layer of ``call``, and whether this is its first call.

        The lanes that a shared layer reads in one call are tied to those of its others, since
        it has one set of weights; what it makes has the same lanes in every call.

        Args:
            call: The call.
            lanes: What it reads.
            makes: How many channels the layer makes.
        """
        known = self.layers.get(id(call.operation))
        if known is not None:
            self.book.tie(known.reads, lanes)
            return known, False
        number = len(self.layers)
        made = self.book.new(makes, number)
        layer = Layer(number, call.path, call.operation, lanes, made)
        self.layers[id(call.operation)] = layer
        return layer, True


Rule = Callable[[Tracer, Call, tuple[Lanes, ...]], tuple[Lanes, ...] | None]
"""Ties and pins what a call needs and returns the lanes of its outputs; None: not understood."""
