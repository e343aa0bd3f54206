"""The inputs that a model is measured with, as one file that all later steps share."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekiln.bench.tensors import Tensor, Tensors
from edgekiln.errors import BadInputError
from edgekiln.files import read_input_file, write_bytes


@dataclass(frozen=True)
class ModelInputs:
    """Inputs in the model's own codes, and what is known about them.

    Attributes:
        tensors: One array ``[N, ...]`` per model input.
        labels: The right class of each row, ``int64 [N]``, or None.
        class_names: The classes, empty without labels.
        description: Where the inputs come from, for people.
    """

    tensors: Tensors
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...]
    description: str

    @property
    def samples(self) -> int:
        """Number of inferences."""
        return len(self.tensors[0])

    def head(self, samples: int) -> ModelInputs:
        """Returns the first of the inferences."""
        return replace(
            self,
            tensors=tuple(array[:samples] for array in self.tensors),
            labels=None if self.labels is None else self.labels[:samples],
        )


def spread_evenly(count: int, wanted: int) -> NDArray[np.int64]:
    """Returns up to ``wanted`` of ``count`` indices, evenly spread from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64))


def write_inputs(path: Path, inputs: ModelInputs) -> None:
    """Writes the inputs as .npz; the same inputs give the same bytes.

    Raises:
        BadInputError: The file cannot be written there.
    """
    about = {"class_names": inputs.class_names, "description": inputs.description}
    arrays: dict[str, Tensor] = {
        f"input_{number}": array for number, array in enumerate(inputs.tensors)
    }
    if inputs.labels is not None:
        arrays["labels"] = inputs.labels
    arrays["about"] = np.array(json.dumps(about))
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    write_bytes(path, stream.getvalue())


def read_inputs_file(path: Path) -> ModelInputs:
    """Reads what `write_inputs` wrote.

    Raises:
        BadInputError: The file is missing or damaged.
    """
    data = read_input_file(path)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        about = json.loads(str(arrays.pop("about")))
        labels = arrays.pop("labels", None)
        return ModelInputs(
            tensors=tuple(arrays[f"input_{number}"] for number in range(len(arrays))),
            labels=labels,
            class_names=tuple(about["class_names"]),
            description=about["description"],
        )
    except Exception as error:  # zipfile, numpy and json each have their own
        raise BadInputError(
            f"not a file of inputs: {error}", where=path, hint="remove it and deploy again"
        ) from None
