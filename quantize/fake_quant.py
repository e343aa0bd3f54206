"""Keras layers that compute in float what int8 arithmetic gives: fake quantization.

A quantized tensor holds ``scale * (code - zero_point)`` with whole codes. Here the values are
rounded to that grid and stay float, so that a model can be trained, calibrated and measured
before it is converted. Rounding has no gradient of its own; the straight-through estimator
(Bengio et al., arXiv:1308.3432) passes the gradient on.

Weights: symmetric and narrow (codes -127 to 127, or -7 to 7 with 4 bits), one scale for each
output channel. Activations: one scale and zero point a tensor, codes -128 to 127; with 16 bits
symmetric, -32767 to 32767, as TensorFlow Lite's 16x8 scheme has it. Real zero has a code of its
own always, since padding writes it. Ties round to even.

Scales come from a range (weights: the channel's largest magnitude; activations: a moving average
of minimum and maximum, section 3.1 of Jacob et al., arXiv:1712.05877) or are learned: LSQ (Esser
et al., arXiv:1902.08153), with LSQ+'s offset (Bhalgat et al., arXiv:2004.09576) for activations.
What is trained is the logarithm of a learned scale, as in Jain et al. (arXiv:1903.08066): it
stays positive, and Adam, whose steps are all of one size, moves scales of any size at one rate.
Its gradient is LSQ's step relative to the scale, so that under plain gradient descent the scale
moves as in the paper.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekiln.errors import BadInputError
from edgekiln.quantize.batch_norm import channel_shape
from edgekiln.train.quiet_keras import keras, tensorflow

Array = npt.NDArray[Any]

PACKAGE = "edgekiln"
MOVING_AVERAGE, LSQ, FIXED = "moving_average", "lsq", "fixed"
MAX = "max"

#: Channels far weaker than the layer's strongest share this part of its scale: their codes
#: would carry nothing, and a bias of ordinary size would not fit 32 bits.
_WEAKEST_CHANNEL = 2.0**-12
#: Of an activation that is zero throughout.
_SMALLEST_SCALE = 1e-8
_OFFSET_STEPS = 256.0
_MSE_CANDIDATES = 80

_ops = keras.ops
_register = keras.saving.register_keras_serializable(PACKAGE)


@_ops.custom_gradient  # type: ignore[untyped-decorator]  # Keras has no types
def _straight_through(value: Any, source: Any) -> tuple[Any, Any]:
    """Returns ``value`` with the gradient of ``source``."""
    return value + 0.0, lambda upstream: (_ops.zeros_like(upstream), upstream)


@_ops.custom_gradient  # type: ignore[untyped-decorator]  # Keras has no types
def _scale_gradient(value: Any, factor: Any) -> tuple[Any, Any]:
    """Returns ``value`` with its gradient times ``factor``: LSQ's "gradscale"."""
    return value + 0.0, lambda upstream: (upstream * factor, _ops.zeros_like(factor))


def _round(x: Any) -> Any:
    return _straight_through(_ops.round(x), x)


def _lsq_variable(variable: Any, scale: Any, elements: float, largest: Any) -> Any:
    """Returns a learned variable that is relative to a scale, with LSQ's gradient.

    LSQ divides the scale's gradient by ``sqrt(elements * largest)`` (section 2.2). A step of the
    scale is ``scale`` times one of its logarithm, and so is the gradient: hence ``scale ** 2``.
    """
    factor = 1.0 / (_ops.sqrt(elements * largest) * _ops.square(scale))
    return _scale_gradient(variable, _ops.stop_gradient(factor))


@_register
class ActivationQuantizer(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Fake-quantizes activations with one scale and zero point.

    Tensors that must share a range, such as the branches of a concatenation, go through one
    quantizer, each at a site of its own; the range covers all sites.

    Until it has a range it passes values on. It gets one from `set_range`, or, with
    ``ranges="moving_average"``, from the first batch of training.

    Args:
        bits: 8, or 16 for symmetric 16-bit codes.
        ranges: "moving_average", "lsq", or "fixed".
        sites: How many tensors share the range.
        momentum: Share of the old range that a training step keeps.
        nonnegative: The values are known to be 0 or more: the zero point is the lowest code.
        fixed_range: The range with ``ranges="fixed"``: values of the lowest and highest code.
        in_training: Whether a fixed quantizer rounds in training too. A model's last softmax
            does not, so that a loss sees its logits.
    """

    def __init__(
        self,
        bits: int = 8,
        ranges: str = MOVING_AVERAGE,
        sites: int = 1,
        momentum: float = 0.99,
        nonnegative: bool = False,
        fixed_range: tuple[float, float] | None = None,
        in_training: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if ranges not in (MOVING_AVERAGE, LSQ, FIXED) or (ranges == FIXED) != bool(fixed_range):
            raise BadInputError(
                "activation quantizer: ranges",
                where=self.name,
                got=f"{ranges!r} with fixed_range {fixed_range}",
                allowed="'moving_average', 'lsq', or 'fixed' with a range",
            )
        self._initial_bits = _check_bits(bits, (8, 16), self.name)
        self.ranges = ranges
        self.sites = sites
        self.momentum = momentum
        self.nonnegative = nonnegative
        self.fixed_range = None if fixed_range is None else tuple(fixed_range)
        self.in_training = in_training
        #: Set while a model is converted: the range, as a constant of the graph.
        self.constant_range: tuple[float, float] | None = None
        self.supports_masking = True

    built: bool

    def build(self, input_shape: Any) -> None:
        """Makes the variables. The quantizer's state is saved with the model."""
        if self.built:
            return
        self._elements = float(math.prod(size for size in input_shape[1:] if size))
        self._enabled = self._state("enabled", 1.0)
        self._bits = self._state("bits", float(self._initial_bits))
        low, high = self.fixed_range or (0.0, 0.0)
        known = float(self.ranges == FIXED)
        if self.ranges == LSQ:
            self._known = self._state("known", 0.0)
            self._log_scale = self.add_weight(name="log_scale", shape=(), initializer="zeros")
            lowest = -128 / _OFFSET_STEPS if self.nonnegative else 0.0
            self._offset = self.add_weight(
                name="offset",
                shape=(),
                initializer=keras.initializers.Constant(lowest),
                trainable=not self.nonnegative,
            )
        else:
            shape = (self.sites,)
            self._known = self._state("known", known, shape)
            self._minimum = self._state("minimum", low, shape)
            self._maximum = self._state("maximum", high, shape)
        self.built = True

    def _state(self, name: str, value: float, shape: tuple[int, ...] = ()) -> Any:
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=keras.initializers.Constant(value),
            trainable=False,
            aggregation="mean",
        )

    def call(self, inputs: Any, site: int = 0, training: bool | None = False) -> Any:
        """Returns ``inputs``, rounded to the grid; the same shape.

        Args:
            inputs: float, any shape.
            site: Which of the sharing tensors it is; negative for one whose values lie within
                the range anyhow (an average of the others), so that it has no say in it.
            training: Whether a moving average goes on.
        """
        if self.constant_range is not None:
            if self.ranges == FIXED:
                return inputs  # The converter knows it, and wants no word about it.
            low, high = self.constant_range
            return tensorflow.quantization.fake_quant_with_min_max_args(inputs, low, high)
        if training and not self.in_training:
            return inputs
        if training and self.ranges == MOVING_AVERAGE and site >= 0:
            self._observe(inputs, site)
        scale, zero_point, lowest, highest = self._parameters(learning=True)
        codes = _ops.clip(_round(inputs / scale) + zero_point, lowest, highest)
        active = self._enabled * _ops.min(self._known) > 0.5
        return _ops.where(active, scale * (codes - zero_point), inputs)

    def compute_output_shape(self, input_shape: Any, **_: Any) -> Any:
        """Returns the shape of the input."""
        return input_shape

    def _observe(self, inputs: Any, site: int) -> None:
        here = _ops.cast(_ops.arange(self.sites) == site, "float32")
        # The first batch is taken as it is.
        share = here * (1.0 - self.momentum * _ops.cast(self._known > 0.5, "float32"))
        batch = _ops.cast(_ops.stop_gradient(inputs), "float32")
        for variable, seen in ((self._minimum, _ops.min(batch)), (self._maximum, _ops.max(batch))):
            variable.assign(variable + share * (seen - variable))
        self._known.assign(_ops.maximum(self._known, here))

    def _ends(self) -> tuple[Any, Any]:
        """Returns the range's ends as tensors, zero within."""
        if self.ranges == LSQ:
            scale = _ops.exp(self._log_scale)
            zero_point = _ops.clip(_ops.round(self._offset * _OFFSET_STEPS), -128.0, 127.0)
            return (-128.0 - zero_point) * scale, (127.0 - zero_point) * scale
        low = 0.0 if self.nonnegative else _ops.min(self._minimum)
        return _ops.minimum(low, 0.0), _ops.maximum(_ops.max(self._maximum), 0.0)

    def _parameters(self, learning: bool = False) -> tuple[Any, Any, Any, Any]:
        """Returns scale, zero point, and the lowest and highest code, float32 tensors."""
        wide = self._bits > 8.5
        lowest = _ops.where(wide, -32767.0, -128.0)
        highest = _ops.where(wide, 32767.0, 127.0)
        low, high = self._ends()
        wide_scale = _ops.maximum(_ops.maximum(-low, high), _SMALLEST_SCALE) / 32767.0
        if self.ranges == LSQ:
            scale, zero_point = self._learned(learning)
        else:
            scale = _ops.maximum((high - low) / 255.0, _SMALLEST_SCALE)
            zero_point = _ops.clip(_ops.round(-128.0 - low / scale), -128.0, 127.0)
        return (
            _ops.where(wide, wide_scale, scale),
            _ops.where(wide, 0.0, zero_point),
            lowest,
            highest,
        )

    def _learned(self, learning: bool) -> tuple[Any, Any]:
        log_scale, offset = self._log_scale + 0.0, self._offset + 0.0
        if learning:
            scale = _ops.exp(_ops.stop_gradient(log_scale))
            # LSQ's "Q_P": codes above the zero point.
            largest = 255.0 if self.nonnegative else 127.0
            log_scale = _lsq_variable(log_scale, scale, self._elements, largest)
            steps = scale * _OFFSET_STEPS
            offset = _lsq_variable(offset, steps, self._elements, largest)
        return _ops.exp(log_scale), _ops.clip(_round(offset * _OFFSET_STEPS), -128.0, 127.0)

    @property
    def has_range(self) -> bool:
        """Whether all sites have a range."""
        return bool(_numpy(self._known).min() > 0.5)

    @property
    def range(self) -> tuple[float, float]:
        """Values of the lowest and the highest code, as they are computed with."""
        scale, zero_point, lowest, highest = (float(each) for each in self._parameters())
        return (lowest - zero_point) * scale, (highest - zero_point) * scale

    @property
    def scale(self) -> float:
        """Real value of one step; a float32."""
        return float(self._parameters()[0])

    @property
    def zero_point(self) -> int:
        """The code that stands for 0.0."""
        return int(self._parameters()[1])

    def set_range(self, low: float, high: float) -> None:
        """Sets the range of all sites, extended to take in 0.

        The ends move by up to half a step, so that 0 gets a whole code.

        Raises:
            BadInputError: The range is empty, not finite, or that of a fixed quantizer.
        """
        if self.ranges == FIXED or not (np.isfinite([low, high]).all() and low <= high):
            raise BadInputError(
                "activation quantizer: set_range",
                where=self.name,
                got=f"{low} to {high}",
                allowed=f"none: it is fixed at {self.fixed_range}"
                if self.ranges == FIXED
                else "two finite numbers, the lower one first",
            )
        low, high = min(low, 0.0), max(high, 0.0)
        if self.nonnegative:
            low = 0.0
        if self.ranges == LSQ:
            scale = max((high - low) / 255.0, _SMALLEST_SCALE)
            self._log_scale.assign(math.log(scale))
            self._offset.assign(min(max(round(-128 - low / scale), -128), 127) / _OFFSET_STEPS)
        else:
            self._minimum.assign([low] * self.sites)
            self._maximum.assign([high] * self.sites)
        self._known.assign(_ops.ones_like(self._known))

    @property
    def enabled(self) -> bool:
        """Whether it rounds; when not, it passes values on, and a range is kept and updated."""
        return bool(_numpy(self._enabled) > 0.5)

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._enabled.assign(float(value))

    @property
    def bits(self) -> int:
        """Width of the codes, 8 or 16. A learned range stays the same when it is changed."""
        return int(_numpy(self._bits))

    @bits.setter
    def bits(self, value: int) -> None:
        self._bits.assign(float(_check_bits(value, (8, 16), self.name)))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments to make it anew."""
        return {
            **super().get_config(),
            "bits": self._initial_bits,
            "ranges": self.ranges,
            "sites": self.sites,
            "momentum": self.momentum,
            "nonnegative": self.nonnegative,
            "fixed_range": self.fixed_range,
            "in_training": self.in_training,
        }


class QuantizedKernel:
    """What quantized layers have in common: a fake-quantized kernel, one scale for each channel.

    Mixed into a Keras layer with a ``kernel`` and a ``bias``, which stay as they are, float; the
    layer computes with `quantized_kernel`.

    Args of the layers, beside Keras's own:
        weight_bits: 4 or 8.
        weight_scale: "max" (the channel's largest magnitude gets the highest code) or "lsq".
        keep_zeros: Keeps a mask of the weights that must stay zero; `set_zeros` sets it.
    """

    # From the Keras layer.
    name: str
    kernel: Any
    bias: Any
    add_weight: Any
    built: bool

    def __init__(
        self,
        *args: Any,
        weight_bits: int = 8,
        weight_scale: str = MAX,
        keep_zeros: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        if weight_scale not in (MAX, LSQ):
            raise BadInputError(
                "weight_scale", where=self.name, got=weight_scale, allowed="'max' or 'lsq'"
            )
        self._initial_weight_bits = _check_bits(weight_bits, (4, 8), self.name)
        self.weight_scale = weight_scale
        self.keep_zeros = keep_zeros
        #: Set while a model is converted: the layer computes with its kernel as it is.
        self.exporting = False

    def build(self, input_shape: Any) -> None:
        """Makes the variables: Keras's first, then the quantizer's.

        Learned scales are 1 at first; `fit_weight_scales` fits them to a kernel.
        """
        if self.built:
            return
        super().build(input_shape)  # type: ignore[misc]  # Keras's, by the mixed-in class
        shape = tuple(self.kernel.shape)
        channels = channel_shape(self, shape)
        self._per_channel = float(math.prod(shape) / math.prod(channels))
        self._reduced = tuple(axis for axis, size in enumerate(channels) if size != shape[axis])
        self._weight_bits = self._state("weight_bits", float(self._initial_weight_bits))
        self._weights_enabled = self._state("weights_enabled", 1.0)
        if self.weight_scale == LSQ:
            self._log_weight_scale = self.add_weight(
                name="log_weight_scale", shape=channels, initializer="zeros"
            )
        if self.keep_zeros:
            self._mask = self._state("mask", 1.0, shape)

    def _state(self, name: str, value: float, shape: tuple[int, ...] = ()) -> Any:
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=keras.initializers.Constant(value),
            trainable=False,
            aggregation="mean",
        )

    def save_own_variables(self, store: Any) -> None:
        """Writes all variables; Conv2D and Dense by themselves know of two only."""
        keras.Layer.save_own_variables(self, store)

    def load_own_variables(self, store: Any) -> None:
        """Reads all variables."""
        keras.Layer.load_own_variables(self, store)

    def _largest_code(self) -> Any:
        return _ops.where(self._weight_bits > 4.5, 127.0, 7.0)

    def _masked_kernel(self) -> Any:
        kernel = self.kernel + 0.0
        return kernel * self._mask if self.keep_zeros else kernel

    def _max_scale(self, kernel: Any) -> Any:
        magnitudes = _ops.abs(_ops.stop_gradient(kernel))
        per_channel = _ops.max(magnitudes, axis=self._reduced, keepdims=True)
        strongest = _ops.max(magnitudes)
        strongest = _ops.where(strongest > 0, strongest, 1.0)
        return _ops.maximum(per_channel, strongest * _WEAKEST_CHANNEL) / self._largest_code()

    def _scale(self, kernel: Any, learning: bool = False) -> Any:
        if self.weight_scale == MAX:
            return self._max_scale(kernel)
        log_scale = self._log_weight_scale + 0.0
        if learning:
            scale = _ops.exp(_ops.stop_gradient(log_scale))
            log_scale = _lsq_variable(log_scale, scale, self._per_channel, self._largest_code())
        return _ops.exp(log_scale)

    def _codes(self, kernel: Any, scale: Any) -> Any:
        largest = self._largest_code()
        return _ops.clip(_round(kernel / scale), -largest, largest)

    def quantized_kernel(self) -> Any:
        """Returns the kernel that the layer computes with: whole codes times the scale."""
        if self.exporting:
            return self.kernel + 0.0
        kernel = self._masked_kernel()
        scale = self._scale(kernel, learning=True)
        rounded = self._codes(kernel, scale) * scale
        if self.weight_scale == MAX:
            rounded = _straight_through(_ops.stop_gradient(rounded), kernel)
        return _ops.where(self._weights_enabled > 0.5, rounded, kernel)

    def weight_codes(self) -> npt.NDArray[np.int8]:
        """Returns the codes of the kernel as it is now, int8 in Keras's layout."""
        kernel = self._masked_kernel()
        return _numpy(self._codes(kernel, self._scale(kernel))).astype(np.int8)

    def weight_scales(self) -> npt.NDArray[np.float32]:
        """Returns the scale of each output channel, float32 [channels]."""
        return _numpy(self._scale(self._masked_kernel())).reshape(-1)

    def fit_weight_scales(self) -> None:
        """Sets learned scales to those with the least squared error of the weights.

        To be called after the kernel was set, or its width changed.

        Raises:
            BadInputError: The layer's scales are not learned.
        """
        kernel = _numpy(self._masked_kernel())
        largest = float(self._largest_code())
        coarsest = _numpy(self._max_scale(self._masked_kernel()))
        self.set_weight_scales(_least_squares(kernel, coarsest, largest, self._reduced))

    def set_weight_scales(self, scales: npt.ArrayLike) -> None:
        """Sets learned scales.

        Args:
            scales: float [channels], above zero.

        Raises:
            BadInputError: They are not, or the layer's scales are not learned.
        """
        values = np.asarray(scales, np.float32)
        if self.weight_scale != LSQ or not (np.isfinite(values) & (values > 0)).all():
            raise BadInputError(
                "set_weight_scales",
                where=self.name,
                got=f"weight_scale '{self.weight_scale}', least scale {values.min()}",
                allowed="weight_scale 'lsq', finite scales above 0",
            )
        shape = tuple(self._log_weight_scale.shape)
        self._log_weight_scale.assign(np.log(values).reshape(shape))

    def set_zeros(self) -> None:
        """Takes the kernel's zeros of now as those that stay zero."""
        self._mask.assign((_numpy(self.kernel) != 0).astype(np.float32))

    @property
    def weights_enabled(self) -> bool:
        """Whether the kernel is rounded."""
        return bool(_numpy(self._weights_enabled) > 0.5)

    @weights_enabled.setter
    def weights_enabled(self, value: bool) -> None:
        self._weights_enabled.assign(float(value))

    @property
    def weight_bits(self) -> int:
        """Width of the kernel's codes, 4 or 8. Learned scales are fitted anew by a change."""
        return int(_numpy(self._weight_bits))

    @weight_bits.setter
    def weight_bits(self, value: int) -> None:
        self._weight_bits.assign(float(_check_bits(value, (4, 8), self.name)))
        if self.weight_scale == LSQ:
            self.fit_weight_scales()

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments to make it anew."""
        return {
            **super().get_config(),  # type: ignore[misc]  # Keras's
            "weight_bits": self._initial_weight_bits,
            "weight_scale": self.weight_scale,
            "keep_zeros": self.keep_zeros,
        }


# Keras has no types, so mypy knows nothing of the layers that the next four classes extend.


@_register
class QuantizedConv2D(QuantizedKernel, keras.layers.Conv2D):  # type: ignore[misc]
    """Conv2D with a fake-quantized kernel; see `QuantizedKernel`."""

    def call(self, inputs: Any) -> Any:
        """Returns the convolution, with bias and activation."""
        return self.activation(self.convolution_op(inputs, self.quantized_kernel()) + self.bias)


@_register
class QuantizedDepthwiseConv2D(QuantizedKernel, keras.layers.DepthwiseConv2D):  # type: ignore[misc]
    """DepthwiseConv2D with a fake-quantized kernel; see `QuantizedKernel`."""

    def call(self, inputs: Any) -> Any:
        """Returns the convolution, with bias and activation."""
        result = _ops.depthwise_conv(
            inputs,
            self.quantized_kernel(),
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
        )
        return self.activation(result + self.bias)


@_register
class QuantizedConv2DTranspose(QuantizedKernel, keras.layers.Conv2DTranspose):  # type: ignore[misc]
    """Conv2DTranspose with a fake-quantized kernel; see `QuantizedKernel`."""

    def call(self, inputs: Any) -> Any:
        """Returns the transposed convolution, with bias and activation."""
        result = _ops.conv_transpose(
            inputs,
            self.quantized_kernel(),
            strides=list(self.strides),
            padding=self.padding,
            output_padding=self.output_padding,
            dilation_rate=self.dilation_rate,
        )
        return self.activation(result + self.bias)


@_register
class QuantizedDense(QuantizedKernel, keras.layers.Dense):  # type: ignore[misc]
    """Dense with a fake-quantized kernel; see `QuantizedKernel`."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the product, with bias and activation."""
        return self.activation(_ops.matmul(inputs, self.quantized_kernel()) + self.bias)


def _least_squares(
    kernel: Array, coarsest: Array, largest: float, reduced: tuple[int, ...]
) -> Array:
    """Returns the scales, among fractions of ``coarsest``, with the least squared error."""
    best = coarsest.astype(np.float32)
    least = np.full(coarsest.shape, np.inf)
    for fraction in np.linspace(1.0, 0.2, _MSE_CANDIDATES, dtype=np.float32):
        scale = coarsest * fraction
        rounded = np.clip(np.round(kernel / scale), -largest, largest) * scale
        error = np.square(rounded - kernel).sum(axis=reduced, keepdims=True)
        better = error < least
        best, least = np.where(better, scale, best), np.where(better, error, least)
    return best


def _check_bits(bits: int, allowed: tuple[int, ...], where: str) -> int:
    if bits not in allowed:
        raise BadInputError(
            "bits", where=where, got=bits, allowed=" or ".join(str(each) for each in allowed)
        )
    return int(bits)


def _numpy(tensor: Any) -> Array:
    return np.asarray(_ops.convert_to_numpy(tensor))
