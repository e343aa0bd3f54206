"""What a model costs: multiply-accumulate steps and bytes, also without some of its channels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgekiln.errors import BadInputError
from edgekiln.quantize.channels.lanes import Lanes
from edgekiln.quantize.channels.trace import trace
from edgekiln.quantize.channels.tracer import Term, Trace

Measure = Literal["macs", "bytes"]


class Costs:
    """Sums the terms of a trace for any choice of channels.

    Args:
        traced: The model with its channels.
        measure: What is summed.

    Raises:
        BadInputError: The multiply-accumulate steps of a layer are not known.
    """

    def __init__(self, traced: Trace, measure: Measure) -> None:
        self.unit = {"macs": "multiply-accumulate steps", "bytes": "bytes"}[measure]
        if measure == "macs":
            _require_counted(traced)
        terms = [term for layer in traced.layers for term in getattr(layer, measure)]
        self._factors = np.array([term.factor for term in terms], np.float64)
        #: For each place of a product: how often each channel counts there, [terms, channels].
        places = max((len(term.lanes) for term in terms), default=0)
        self._counts = [self._place(traced, terms, place) for place in range(places)]

    def total(self, kept: npt.NDArray[np.bool_]) -> int:
        """Returns the cost when the channels ``kept``, bool [channels], are left.

        Sums below 2**53 are exact.
        """
        products = self._factors
        chosen = kept.astype(np.float64)
        for counts, unused in self._counts:
            products = products * (counts @ chosen + unused)
        return int(products.sum())

    @staticmethod
    def _place(
        traced: Trace, terms: Iterable[Term], place: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Returns the counts, and 1 for each term that has no lanes in this place."""
        width = traced.channels.count
        rows, unused = [], []
        for term in terms:
            lanes = term.lanes[place] if place < len(term.lanes) else np.empty(0, np.intp)
            rows.append(np.bincount(traced.channels.of_lane[lanes], minlength=width))
            unused.append(float(place >= len(term.lanes)))
        return np.array(rows, np.float64), np.array(unused)


def count_macs(model: Any) -> int:
    """Returns the multiply-accumulate steps of one inference, as the compiler counts them.

    Every tap of a convolution counts, those on the padding too; additions, pooling and
    activations do not.

    Args:
        model: A functional or Sequential Keras model, built; the batch counts as 1.

    Raises:
        BadInputError: The model cannot be followed, or a layer's steps are not known.
    """
    return sum(count_layer_macs(model).values())


def count_layer_macs(model: Any) -> dict[str, int]:
    """Returns the multiply-accumulate steps of each layer that has any, by its path.

    Raises:
        BadInputError: The model cannot be followed, or a layer's steps are not known.
    """
    traced = trace(model)
    _require_counted(traced)
    return {layer.path: _full(layer.macs) for layer in traced.layers if layer.macs}


def count_flash_bytes(model: Any) -> int:
    """Returns about how many bytes the constants of the compiled 8-bit model will have.

    A weight is one byte; an output channel has its bias, multiplier and shift beside its
    weights. Batch normalization is folded and costs nothing. The code is not counted.

    Args:
        model: A functional or Sequential Keras model, built.

    Raises:
        BadInputError: The model cannot be followed.
    """
    return sum(_full(layer.bytes) for layer in trace(model).layers)


def _full(terms: Iterable[Term]) -> int:
    return sum(term.factor * _product(term.lanes) for term in terms)


def _product(places: tuple[Lanes, ...]) -> int:
    product = 1
    for lanes in places:
        product *= len(lanes)
    return product


def _require_counted(traced: Trace) -> None:
    if traced.uncounted:
        raise BadInputError(
            "channels: the multiply-accumulate steps of a layer are not known",
            where=traced.model.name,
            got=", ".join(traced.uncounted),
            hint="give flash_bytes or keep as the target instead of macs_ratio",
        )
