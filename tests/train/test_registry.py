"""Finding recipes, without paying for TensorFlow."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgekiln.errors import BadInputError
from edgekiln.train.datasets import dataset_names
from edgekiln.train.registry import load_recipe, recipe_names


def test_names() -> None:
    assert {"digits_cnn", "digits_mlp"} <= set(recipe_names())
    assert list(recipe_names()) == sorted(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_is_sound(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name and name.isidentifier() and name == name.lower()
    assert recipe.description
    assert recipe.dataset in dataset_names()
    assert 0 < recipe.min_float_accuracy < 1
    if recipe.pruning:
        assert recipe.pruning.ramp_epochs < recipe.pruning.epochs


def test_unknown_recipe_names_the_near_one() -> None:
    with pytest.raises(BadInputError) as caught:
        load_recipe("digit_cnn")
    message = str(caught.value)
    assert message.startswith("digit_cnn: no such recipe; allowed: ")
    assert all(name in message for name in recipe_names())
    assert message.endswith("did you mean digits_cnn?")
    with pytest.raises(BadInputError, match=r"see: edgekiln models$"):
        load_recipe("zzzz")


@pytest.mark.parametrize("name", ["../recipe", "recipe", "__init__", "digits_cnn.RECIPE"])
def test_names_are_not_paths_or_modules(name: str) -> None:
    with pytest.raises(BadInputError, match="no such recipe"):
        load_recipe(name)


def test_listing_recipes_imports_no_tensorflow() -> None:
    program = (
        "import sys; from edgekiln.train.registry import *;"
        "[load_recipe(n) for n in recipe_names()];"
        "sys.exit(any(m in sys.modules for m in ('tensorflow', 'keras', 'sklearn', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
