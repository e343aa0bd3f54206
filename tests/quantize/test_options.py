"""Options of quantization: which go together."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from edgekiln.errors import BadInputError
from edgekiln.quantize import Format, Method, QuantizeOptions


def test_the_defaults_are_json() -> None:
    assert json.loads(json.dumps(QuantizeOptions().to_json())) == {
        **{"method": "ptq", "scheme": "int8", "calibration": "minmax", "equalize": False},
        **{"bias_correction": False, "sparsity": None, "pattern": "unstructured"},
        **{"channels": None, "epochs": 3, "learning_rate": 1e-4, "seed": 0},
    }
    assert QuantizeOptions().output_name == "int8.tflite"
    assert not QuantizeOptions().trains and not QuantizeOptions().needs_calibration


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": "magic"}, "--calibration is not possible; got magic; allowed: minmax, pe"),
        ({"sparsity": 0.0}, r"--sparsity is not possible; got 0\.0; allowed: above 0, below 1"),
        ({"sparsity": 1.0}, "--sparsity is not possible"),
        (
            {"pattern": "1x4"},
            "--pattern 1x4 needs a sparsity; got none; allowed: --sparsity with a sh",
        ),
        (
            {"pattern": "2:4", "sparsity": 0.8},
            r"--pattern 2:4 needs a sparsity; got --sparsity 0\.8; allowed: --sparsity with 0\.5",
        ),
        (
            {"pattern": "4x4", "sparsity": 0.8},
            "pruning: unknown pattern; got 4x4; allowed: unstructured, n:m or 1xw",
        ),
        ({"channels": 1.5}, "--channels is not possible"),
        ({"channels": float("nan")}, "--channels is not possible"),
        ({"epochs": 0}, "--epochs is not possible; got 0; allowed: 1 or more"),
        ({"learning_rate": 0.0}, "--learning-rate is not possible"),
        (
            {"method": Method.QAT, "scheme": Format.FLOAT16},
            "--scheme with --method qat is not possible; got float16; allowed: int8, int4-weights",
        ),
        (
            {"method": Method.QAT, "calibration": "mse"},
            "--calibration mse does not go with --method qat, which calibrates in training",
        ),
        (
            {"scheme": Format.DYNAMIC, "equalize": True},
            "--equalize does not go with --scheme dynamic, which needs no ranges; leave --equalize",
        ),
        (
            {"scheme": Format.INT16X8, "equalize": True, "bias_correction": True},
            "--bias-correction does not go with --scheme int16x8",
        ),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=f"^{message}"):
        QuantizeOptions(**options)


@pytest.mark.parametrize(
    ("options", "needs_keras", "trains", "calibrates"),
    [
        ({}, (), False, False),
        ({"scheme": Format.FLOAT16}, (), False, False),
        ({"scheme": Format.INT16X8, "equalize": True}, ("--equalize",), False, True),
        ({"scheme": Format.INT4_WEIGHTS}, ("--scheme int4-weights",), False, True),
        ({"calibration": "entropy"}, ("--calibration entropy",), False, True),
        ({"sparsity": 0.5, "channels": 0.5}, ("--sparsity", "--channels"), True, False),
        ({"method": Method.QAT}, ("--method qat",), True, False),
    ],
)
def test_what_options_need(
    options: dict[str, Any], needs_keras: tuple[str, ...], trains: bool, calibrates: bool
) -> None:
    chosen = QuantizeOptions(**options)
    assert (chosen.needs_keras, chosen.trains, chosen.needs_calibration) == (
        *(needs_keras, trains, calibrates),
    )


def test_the_package_is_light_and_finds_its_functions_when_asked() -> None:
    program = (
        "import sys, edgekiln.quantize as q\n"
        "assert not {'numpy', 'keras', 'tensorflow'} & set(sys.modules), sys.modules.keys()\n"
        "assert q.QuantizeOptions().scheme == 'int8' and not hasattr(q, 'nothing')\n"
        "print(q.quantize_file.__module__, q.quantize_model.__module__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert result.stdout == "edgekiln.quantize.own edgekiln.quantize.own\n", result.stderr
