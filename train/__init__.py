"""Recipes: model, data and schedule in one small file each; and the training loop."""
