"""Finds recipes by name."""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil

from edgekiln.errors import BadInputError
from edgekiln.train import recipes
from edgekiln.train.recipe import Recipe


@functools.cache
def recipe_names() -> tuple[str, ...]:
    """Returns the names of all recipes, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(recipes.__path__)))


def load_recipe(name: str) -> Recipe:
    """Returns the recipe ``name``. TensorFlow is not imported.

    Raises:
        BadInputError: There is no such recipe.
    """
    names = recipe_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else "see: edgekiln models"
        raise BadInputError(
            "no such recipe", where=name or "''", allowed=", ".join(names), hint=hint
        )
    recipe = importlib.import_module(f"{recipes.__name__}.{name}").RECIPE
    if not isinstance(recipe, Recipe) or recipe.name != name:
        raise TypeError(f"{recipes.__name__}.{name} must define RECIPE, a Recipe of that name")
    return recipe
