"""The further training of a model from outside: fewer channels, zeros, rounding."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekiln.errors import BadInputError
from edgekiln.quantize.channels import (
    ChannelPruning,
    channel_counts,
    count_macs,
    prune_channels,
)
from edgekiln.quantize.channels.groups import NothingToRemoveError
from edgekiln.quantize.finetune import Teaching, pack_inputs, predict
from edgekiln.quantize.options import Format, QuantizeOptions
from edgekiln.quantize.own_data import ModelShape, OwnData
from edgekiln.quantize.pruning import MagnitudePruning, measure_sparsity
from edgekiln.quantize.qat import QatConfig, quantize_model
from edgekiln.quantize.sparsity import parse_pattern, ramp_schedule
from edgekiln.train.datasets import spread_evenly
from edgekiln.train.loop import make_reproducible
from edgekiln.train.quiet_keras import keras

_IMPORTANCE_SAMPLES = 512
_CHANNEL_STEPS = (4, 2, 1)
_RAMP_SHARE = 2 / 3
_CALIBRATION_SAMPLES = 200


class Trainer:
    """A model that becomes a smaller one, step by step.

    Args:
        model: The float model. It is left as it is.
        data: What to train on.
        shape: What the model takes and gives.
        options: How.

    Attributes:
        model: The model after the last step.
    """

    def __init__(
        self, model: Any, data: OwnData, shape: ModelShape, options: QuantizeOptions
    ) -> None:
        self.model = model
        self._original = model
        self._data = data
        self._shape = shape
        self._options = options
        make_reproducible(options.seed)
        self._teaching = Teaching(model, data.train)

    def accuracy(self) -> float | None:
        """Returns the accuracy of the model as it is on the held-out samples, if it has labels."""
        if self._data.test.y is None:
            return None
        (outputs,) = predict(self.model, self._data.test.x)
        return float(np.mean(np.argmax(outputs, axis=-1) == self._data.test.y))

    def sparsity(self) -> dict[str, float]:
        """Returns the share of zeros in the kernel of each layer."""
        return measure_sparsity(self.model)

    def remove_channels(self) -> dict[str, Any]:
        """Removes channels, the same share of every layer's; returns what was done.

        One round: several leave narrow layers, whose channels go in multiples of four, with less
        than their share. Without labels importance is the weights' magnitude.

        Raises:
            BadInputError: So few channels are not possible, or none can be removed.
        """
        before, whole = channel_counts(self.model), count_macs(self.model)
        self.model = self._with_fewer_channels(whole)
        return {
            "macs_before": whole,
            "macs": count_macs(self.model),
            "channels_before": before,
            "channels": channel_counts(self.model),
            "history": self._fit("Training without the channels", self._options.epochs),
        }

    def _with_fewer_channels(self, whole: int) -> Any:
        """Returns the smaller model: by fours, as fast kernels take channels, else by fewer."""
        share = self._options.channels
        samples = self._importance_samples()
        for step in _CHANNEL_STEPS:
            plan = ChannelPruning(
                macs_ratio=share,
                allocation="uniform",
                importance="taylor" if samples else "l1",
                round_to=step,
            )
            try:
                return prune_channels(self.model, plan, samples, self._teaching.loss)
            except NothingToRemoveError as error:
                refused = error
        if not refused.allowed:
            raise refused
        raise BadInputError(
            "--channels is smaller than this model can become",
            where=f"model '{self.model.name}'",
            got=f"{share}, which is {refused.got} of {whole:,}",
            allowed=refused.allowed,
        )

    def _importance_samples(self) -> tuple[Any, Any] | None:
        train = self._data.train
        if train.y is None:
            return None
        few = train.take(spread_evenly(len(train), _IMPORTANCE_SAMPLES))
        return pack_inputs(self.model, few.x), few.y

    def prune(self) -> dict[str, Any]:
        """Makes the smallest weights zero while the model is trained; returns what was done."""
        sparsity, epochs = self._options.sparsity, self._options.epochs
        assert sparsity is not None
        steps = self._teaching.steps_per_epoch
        ramp_steps = max(1, round(_RAMP_SHARE * epochs * steps))
        pattern = parse_pattern(self._options.pattern)
        pruner = MagnitudePruning(ramp_schedule(sparsity, ramp_steps, steps), pattern=pattern)
        if self.model is self._original:
            self.model = _copy(self.model)
        history = self._fit(f"Pruning to {100 * sparsity:.0f} %", epochs, pruner)
        return {
            "sparsity": sparsity,
            "pattern": self._options.pattern,
            "layers": list(pruner.pruned_layers),
            "left_dense": pruner.left_dense,
            "history": history,
        }

    def train_quantized(self) -> dict[str, Any]:
        """Trains with rounded weights and activations; returns the history."""
        narrow = self._options.scheme is Format.INT4_WEIGHTS
        config = QatConfig(weight_bits=4 if narrow else 8, weight_scale="lsq" if narrow else "max")
        few = self._data.representative(_CALIBRATION_SAMPLES)
        self.model = quantize_model(self.model, config, pack_inputs(self.model, few))
        history = self._fit("Training with rounding", self._options.epochs)
        return {"weight_bits": config.weight_bits, "history": history}

    def _fit(self, description: str, epochs: int, *callbacks: Any) -> list[dict[str, float]]:
        return self._teaching.fit(
            self.model,
            epochs=epochs,
            learning_rate=self._options.learning_rate,
            description=description,
            callbacks=callbacks,
        )


def _copy(model: Any) -> Any:
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy
