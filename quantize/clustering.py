"""Weight clustering as a Keras 3 callback."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, get_args

import numpy as np

from edgekiln.errors import BadInputError
from edgekiln.quantize.codebook import Codebook, Init, find_codebook, packed_bits
from edgekiln.quantize.kernels import Kernel, find_kernels, select_kernels
from edgekiln.train.quiet_keras import keras, tensorflow


class WeightClustering(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """Gives every kernel at most k distinct values, which go on learning while `fit` runs.

    Before the first batch k-means shares the weights of each kernel out among k centroids
    (`edgekiln.quantize.codebook.find_codebook`); which weight belongs to which is then fixed.
    In Deep Compression (Han et al., arXiv:1510.00149, section 3.3, formula 3) a centroid learns
    from the sum of its members' gradients. The same happens here without a train step of its
    own: after each batch every weight becomes the mean of its cluster's updated weights. With
    plain gradient descent, w_i = c - lr * g_i, that mean is c - (lr / n) * sum(g_i): formula 3
    at the learning rate divided by the number n of members. Other optimizers' steps are
    averaged in the same way. All of it stays on the device.

    Weights that are zero before the first batch, those of a pruned model, stay zero: they are a
    cluster of their own, one of the k, whose centroid does not move. So prune first, and
    cluster in a later `fit`, or in the same one after a `MagnitudePruning` in ``callbacks``
    whose `ConstantSchedule` prunes once, at step 0.

    Biases and the layers that `edgekiln.quantize.kernels.find_kernels` leaves out are not
    clustered, nor are frozen layers. Where Keras runs several steps in one execution, the means
    are taken at its end.

    Args:
        clusters: Most distinct values in a kernel, k, from 2 to 256.
        layers: Names of layers to cluster; None for all.
        exclude: Names of layers to leave as they are.
        init: Where the centroids start: "linear", "density" or "k-means++".
        preserve_zeros: False to treat weights that are zero like any other.
        seed: Of "k-means++".

    Raises:
        BadInputError: A value is out of its range.
    """

    def __init__(
        self,
        clusters: int = 16,
        *,
        layers: Collection[str] | None = None,
        exclude: Collection[str] = (),
        init: Init = "linear",
        preserve_zeros: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 2 <= clusters <= 256:
            raise BadInputError(
                "clustering: clusters is out of range", got=clusters, allowed="2 to 256"
            )
        if init not in get_args(Init):
            raise BadInputError(
                "clustering: unknown init", got=init, allowed=", ".join(get_args(Init))
            )
        self._clusters = clusters
        self._layers = layers
        self._exclude = exclude
        self._init = init
        self._preserve_zeros = preserve_zeros
        self._seed = seed
        self._kernels: dict[str, Kernel] = {}
        self._share: Callable[[], None] | None = None

    @property
    def clustered_layers(self) -> tuple[str, ...]:
        """Names of the layers that are clustered, in the model's order; empty before `fit`."""
        return tuple(self._kernels)

    def set_model(self, model: Any) -> None:
        """Called by Keras before training.

        Raises:
            BadInputError: A layer that is named does not exist, or there is none to cluster.
        """
        super().set_model(model)
        self._kernels = select_kernels(model, "cluster", layers=self._layers, exclude=self._exclude)
        self._share = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Called by Keras before each epoch; before the first one the centroids are found.

        Raises:
            CheckFailedError: A weight is not a finite number.
        """
        if self._share is None:
            codebooks = {
                name: find_codebook(
                    kernel.read_finite(),
                    self._clusters,
                    init=self._init,
                    preserve_zeros=self._preserve_zeros,
                    seed=self._seed,
                )
                for name, kernel in self._kernels.items()
            }
            with self.model.distribute_strategy.scope():
                self._share = _compile_sharing(self._kernels, codebooks)
            self._share()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Called by Keras after each batch, or after the last of several in one execution."""
        assert self._share is not None
        self._share()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Called by Keras at the end, when other weights may be in place."""
        if self._share is not None:
            self._share()


def measure_clusters(model: Any) -> dict[str, int]:
    """Returns how many distinct values each kernel of the model has, zero included, by layer."""
    return {name: len(np.unique(kernel.read())) for name, kernel in find_kernels(model).items()}


def estimate_packed_bits(model: Any, value_bits: int = 32) -> dict[str, int]:
    """Returns what each kernel would take as a codebook and indices, in bits, by layer.

    An estimate for kernels that look their weights up; a .tflite file holds the weights
    themselves. A kernel that was not clustered comes out larger than it is. One codebook a
    kernel suits float weights, ``value_bits`` 32, and int8 ones with a scale per tensor, 8; an
    int8 kernel with a scale per output channel has other codes in every channel.

    Args:
        model: Keras model.
        value_bits: Bits of a value in the codebook.
    """
    distinct = measure_clusters(model)
    return {
        name: packed_bits(int(np.prod(kernel.variable.shape)), distinct[name], value_bits)
        for name, kernel in find_kernels(model).items()
    }


def _compile_sharing(
    kernels: Mapping[str, Kernel], codebooks: Mapping[str, Codebook]
) -> Callable[[], None]:
    """Returns a function that sets all weights of a cluster to their mean, on every replica."""
    parts = [(kernel.variable, _Members(codebooks[name])) for name, kernel in kernels.items()]

    def share() -> None:
        for variable, members in parts:
            weights = tensorflow.cast(variable.value, tensorflow.float32)
            variable.assign(members.share(weights))

    compiled: Callable[[], None] = tensorflow.function(share, autograph=False)
    return compiled


class _Members:
    """Which weights belong together, in variables that lie where the weights do.

    The sums run over the weights in the order of their clusters: a sum over unordered ones takes
    several times as long, and a histogram adds up in an order that changes from run to run.
    TensorFlow keeps variables of int32 on the host, hence int64.
    """

    def __init__(self, codebook: Codebook) -> None:
        flat = codebook.assignment.ravel()
        order = np.argsort(flat, kind="stable")
        shares = np.where(codebook.fixed, 0.0, 1.0 / np.bincount(flat))
        self._assignment = _constant(codebook.assignment, np.int64)
        self._order = _constant(order, np.int64)
        self._sorted = _constant(flat[order], np.int64)
        self._shares = _constant(shares, np.float32)

    def share(self, weights: Any) -> Any:
        """Returns the weights with each cluster's mean in place of its members."""
        in_order = tensorflow.gather(tensorflow.reshape(weights, [-1]), self._order)
        means = tensorflow.math.segment_sum(in_order, self._sorted) * self._shares
        return tensorflow.gather(means, self._assignment)


def _constant(value: Any, dtype: Any) -> Any:
    return tensorflow.Variable(value.astype(dtype), trainable=False)
