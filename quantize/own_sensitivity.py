"""Which layers of a model from outside cost accuracy, on data from outside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln import files
from edgekiln.errors import BadInputError
from edgekiln.quantize.finetune import Teaching
from edgekiln.quantize.options import Method, QuantizeOptions
from edgekiln.quantize.own import REPRESENTATIVE_SAMPLES, ptq_config, require_keras, shape_of_keras
from edgekiln.quantize.own_data import read_archive
from edgekiln.quantize.sensitivity import (
    LayerSensitivity,
    Remedy,
    Score,
    SensitivityReport,
    measure_sensitivity,
)
from edgekiln.train.loop import make_reproducible
from edgekiln.train.model_file import read_model

REPORT_NAME = "sensitivity.json"
_SAMPLES = 500


def measure_file(model: Path, data: Path, directory: Path, options: QuantizeOptions) -> None:
    """Measures what each layer costs when a model file is quantized, and what helps.

    Writes ``sensitivity.json`` into ``directory``. With ``method`` qat it says too what the
    further training regains. At most 500 of the held-out samples are used.

    Args:
        model: A ``.keras`` or ``.h5`` file.
        data: An ``.npz`` file as `edgekiln.quantize.own_data` describes it.
        directory: Where to write.
        options: How the model is quantized.

    Raises:
        BadInputError: The data or the options cannot be used, with this model or at all.
        BadModelError: The model cannot be loaded, or a layer cannot be copied.
        UnsupportedOpError: A layer has no form with fake quantization.
    """
    require_keras(model, "--sensitivity")
    if not options.is_integer:
        raise BadInputError(
            f"--sensitivity does not go with --scheme {options.scheme}, which rounds no activation",
            allowed="int8, int16x8, int4-weights",
        )
    loaded = read_model(model)
    found = read_archive(data).for_model(shape_of_keras(loaded, model))
    chosen = np.linspace(0, len(found.test) - 1, min(_SAMPLES, len(found.test)))
    test = found.test.take(chosen.round().astype(np.int64))
    train = None
    if options.method is Method.QAT:
        make_reproducible(options.seed)
        teaching = Teaching(loaded, found.train)

        def train(quantized: Any) -> None:
            teaching.fit(
                quantized,
                epochs=options.epochs,
                learning_rate=options.learning_rate,
                description="Training with rounding",
            )

    report = measure_sensitivity(
        loaded,
        found.representative(REPRESENTATIVE_SAMPLES),
        test.x,
        ptq_config(options),
        test.y,
        train,
    )
    files.write_json(directory / REPORT_NAME, report.to_json())


def read_report(path: Path) -> SensitivityReport:
    """Reads what `measure_file` wrote.

    Raises:
        BadInputError: There is no such file.
    """
    facts = json.loads(files.read_input_file(path))
    trained = facts["trained"]
    return SensitivityReport(
        measure=facts["measure"],
        samples=facts["samples"],
        float_score=Score(**facts["float_score"]),
        quantized_score=Score(**facts["quantized_score"]),
        layers=tuple(_layer(each) for each in facts["layers"]),
        trained=None if trained is None else Score(**trained),
    )


def _layer(facts: Mapping[str, Any]) -> LayerSensitivity:
    return LayerSensitivity(
        layer=facts["layer"],
        alone=Score(**facts["alone"]),
        without=Score(**facts["without"]),
        remedies=tuple(
            Remedy(**{**remedy, "score": Score(**remedy["score"])}) for remedy in facts["remedies"]
        ),
    )
