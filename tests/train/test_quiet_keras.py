"""Importing Keras without the noise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

#: A finder that pretends that a package is not installed.
WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {name!r}:
            raise ModuleNotFoundError("No module named " + repr({name!r}))
sys.meta_path.insert(0, Absent())
"""


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def test_import_prints_nothing_and_gives_stderr_back() -> None:
    result = run(
        "from edgekiln.train.quiet_keras import keras, tensorflow\n"
        "import numpy as np, os, sys\n"
        "model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])\n"
        "assert model.predict(np.zeros((1, 3)), verbose=0).shape == (1, 2)\n"
        "assert keras.backend.backend() == 'tensorflow'\n"
        "print('python', file=sys.stderr, flush=True)\n"
        "os.write(2, b'descriptor')\n",
        KERAS_BACKEND="torch",
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "python\ndescriptor")


@pytest.mark.parametrize("package", ["keras", "tensorflow"])
def test_missing_package_is_one_clear_error(package: str) -> None:
    result = run(
        WITHOUT.format(name=package)
        + "from edgekiln.errors import ToolMissingError\n"
        + "try:\n    import edgekiln.train.quiet_keras\n"
        + "except ToolMissingError as error:\n    print(error)\n"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("TensorFlow and Keras are needed for training and quantizing")
    assert "pip install 'edgekiln[train]'" in result.stdout
    assert package in result.stdout


def test_what_was_held_back_is_shown_when_the_import_fails() -> None:
    result = run(
        "import os, sys, types\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'tensorflow':\n"
        "            os.write(2, b'illegal instruction set')\n"
        "            raise RuntimeError('boom')\n"
        "sys.meta_path.insert(0, Broken())\n"
        "import edgekiln.train.quiet_keras\n"
    )
    assert result.returncode == 1
    assert "illegal instruction set" in result.stderr and "boom" in result.stderr
