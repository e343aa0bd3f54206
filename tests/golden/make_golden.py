"""Makes the kept models again, by the project's own train and quantize stages.

Run from anywhere: ``.venv/bin/python tests/golden/make_golden.py``. It takes about two minutes.
On the same kind of processor, with the same versions, the files come out equal to the byte.
Elsewhere the weights may differ a little, since floating point sums differ.
"""

from __future__ import annotations

import importlib.metadata
import io
import tempfile
from pathlib import Path

import numpy as np

from edgekiln import files
from edgekiln.quantize import litert
from edgekiln.quantize.affine import quantize_array
from edgekiln.quantize.stage import quantize_recipe
from edgekiln.train.datasets import load_dataset
from edgekiln.train.loop import train_recipe
from edgekiln.train.registry import load_recipe

HERE = Path(__file__).resolve().parent
RECIPES = ("digits_mlp", "digits_cnn")
SAMPLES = 32
VERSIONS = ("tensorflow", "keras", "numpy", "scikit-learn")

README = """\
Small models of our own making, kept so that tests of the later stages need no training.

Made by:  .venv/bin/python tests/golden/make_golden.py
From:     {recipes} (train/recipes/), seeds as there
With:     {versions}

digits_inputs.npz holds the first {samples} held-out digits: inputs, int8 [{samples}, 8, 8, 1] as
both models take them (scale 1/255, zero point -128), and labels, int8 [{samples}].

{sums}
"""


def make_model(name: str) -> bytes:
    """Trains, prunes and quantizes one recipe."""
    recipe = load_recipe(name)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        train_recipe(recipe, directory)
        quantize_recipe(recipe, directory / "model.keras", directory)
        return (directory / "int8.tflite").read_bytes()


def make_inputs(models: dict[str, bytes]) -> bytes:
    """Quantizes the first held-out digits, which both models take alike."""
    specs = {litert.read_input_spec(model, name) for name, model in models.items()}
    assert len(specs) == 1, specs
    spec = specs.pop()
    dataset = load_dataset("digits")
    inputs = quantize_array(dataset.x_test[:SAMPLES], spec.scale, spec.zero_point, np.int8)
    stream = io.BytesIO()
    np.savez_compressed(stream, inputs=inputs, labels=dataset.y_test[:SAMPLES].astype(np.int8))
    return stream.getvalue()


def main() -> None:
    """Writes the models, the inputs and README.txt beside this file."""
    models = {f"{name}_int8.tflite": make_model(name) for name in RECIPES}
    contents = {**models, "digits_inputs.npz": make_inputs(models)}
    for name, content in contents.items():
        files.write_bytes(HERE / name, content)
    versions = (f"{name} {importlib.metadata.version(name)}" for name in VERSIONS)
    sums = (f"{files.sha256_bytes(content)}  {name}" for name, content in contents.items())
    text = README.format(
        recipes=", ".join(RECIPES),
        versions=", ".join(versions),
        samples=SAMPLES,
        sums="\n".join(sums),
    )
    files.write_text(HERE / "README.txt", text)


if __name__ == "__main__":
    main()
