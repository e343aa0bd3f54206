"""What can be asked of the quantization of a model from outside; plain values, no TensorFlow."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from typing import Any

from edgekiln.errors import BadInputError


class Method(enum.StrEnum):
    """How a model becomes an integer model."""

    #: After the training, with ranges measured on representative data.
    PTQ = "ptq"
    #: In a further training, with the rounding in place.
    QAT = "qat"


class Format(enum.StrEnum):
    """What the quantized model is made of."""

    #: All int8.
    INT8 = "int8"
    #: Activations int16, weights int8.
    INT16X8 = "int16x8"
    #: Weights float16, computed in float32.
    FLOAT16 = "float16"
    #: Weights int8, the rest float32.
    DYNAMIC = "dynamic"
    #: Weights int4, activations int8.
    INT4_WEIGHTS = "int4-weights"


CALIBRATIONS = ("minmax", "percentile", "mse", "entropy")

_INTEGER = (Format.INT8, Format.INT4_WEIGHTS)
_FLOAT = (Format.FLOAT16, Format.DYNAMIC)


@dataclass(frozen=True)
class QuantizeOptions:
    """How a model from outside is compressed and quantized.

    Attributes:
        method: After the training, or in it.
        scheme: What the result is made of.
        calibration: How activations get their ranges: one of `CALIBRATIONS`.
        equalize: Whether the ranges of successive layers are balanced first.
        bias_correction: Whether biases make up for the mean error of rounded weights.
        sparsity: Share of zeros in every kernel, or None to leave the weights as they are.
        pattern: Which weights become zero together, as `edgekiln.quantize.sparsity.parse_pattern`
            reads it: ``unstructured``, ``1x4`` (blocks) or ``2:4``, whose sparsity is 1/2.
        channels: Share of the multiply-accumulate steps to leave by removing channels, or None.
        epochs: Epochs of each training: after channels were removed, while weights become zero,
            with the rounding in place.
        learning_rate: Where each training's half cosine starts.
        seed: Seed of the trainings.

    Raises:
        BadInputError: A value is out of its range, or does not go with another.
    """

    method: Method = Method.PTQ
    scheme: Format = Format.INT8
    calibration: str = "minmax"
    equalize: bool = False
    bias_correction: bool = False
    sparsity: float | None = None
    pattern: str = "unstructured"
    channels: float | None = None
    epochs: int = 3
    learning_rate: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.calibration in CALIBRATIONS, "--calibration", self.calibration, CALIBRATIONS)
        if self.sparsity is not None:
            _require(0 < self.sparsity < 1, "--sparsity", self.sparsity, "above 0, below 1")
        if self.pattern != "unstructured":
            self._check_pattern()
        if self.channels is not None:
            _require(0 < self.channels < 1, "--channels", self.channels, "above 0, below 1")
        _require(self.epochs >= 1, "--epochs", self.epochs, "1 or more")
        _require(0 < self.learning_rate < 1, "--learning-rate", self.learning_rate, "(0, 1)")
        if self.method is Method.QAT:
            _require(self.scheme in _INTEGER, "--scheme with --method qat", self.scheme, _INTEGER)
            self._refuse("--method qat", "which calibrates in training", self._calibrating)
        elif self.scheme in _FLOAT:
            self._refuse(f"--scheme {self.scheme}", "which needs no ranges", self._calibrating)
        elif self.scheme is Format.INT16X8:
            chosen = tuple(name for name in self._calibrating if name != "--equalize")
            self._refuse("--scheme int16x8", "which the converter calibrates", chosen)

    def _check_pattern(self) -> None:
        from edgekiln.quantize.sparsity import parse_pattern

        fixed = parse_pattern(self.pattern).fixed_sparsity
        share = "a share" if fixed is None else f"{fixed:g}"
        if self.sparsity is None or fixed not in (None, self.sparsity):
            raise BadInputError(
                f"--pattern {self.pattern} needs a sparsity",
                got="none" if self.sparsity is None else f"--sparsity {self.sparsity}",
                allowed=f"--sparsity with {share}",
            )

    def _refuse(self, option: str, why: str, chosen: tuple[str, ...]) -> None:
        if chosen:
            raise BadInputError(
                f"{chosen[0]} does not go with {option}, {why}", hint=f"leave {chosen[0]} out"
            )

    @property
    def _calibrating(self) -> tuple[str, ...]:
        """The options of post-training quantization that were given."""
        given = {
            f"--calibration {self.calibration}": self.calibration != "minmax",
            "--equalize": self.equalize,
            "--bias-correction": self.bias_correction,
        }
        return tuple(name for name, is_given in given.items() if is_given)

    @property
    def needs_keras(self) -> tuple[str, ...]:
        """The options given that work on a Keras model alone, not on a SavedModel."""
        given = {
            "--method qat": self.method is Method.QAT,
            "--scheme int4-weights": self.scheme is Format.INT4_WEIGHTS,
            "--sparsity": self.sparsity is not None,
            "--channels": self.channels is not None,
        }
        return (*(name for name, is_given in given.items() if is_given), *self._calibrating)

    @property
    def needs_calibration(self) -> bool:
        """Whether post-training quantization does more than the converter by itself."""
        return self.scheme is Format.INT4_WEIGHTS or bool(self._calibrating)

    @property
    def trains(self) -> bool:
        """Whether the model is trained further."""
        return self.method is Method.QAT or not (self.sparsity is None and self.channels is None)

    @property
    def is_integer(self) -> bool:
        """Whether activations are rounded."""
        return self.scheme not in _FLOAT

    @property
    def output_name(self) -> str:
        """The name of the file with the quantized model."""
        return f"{self.scheme}.tflite"

    def to_json(self) -> dict[str, Any]:
        """Returns the options as JSON values."""
        return {
            name: value if value is None else _plain(value) for name, value in asdict(self).items()
        }


def _plain(value: object) -> object:
    return str(value) if isinstance(value, enum.StrEnum) else value


def _require(holds: bool, name: str, got: object, allowed: object) -> None:
    if not holds:
        shown = ", ".join(map(str, allowed)) if isinstance(allowed, tuple) else allowed
        raise BadInputError(f"{name} is not possible", got=got, allowed=shown)
