"""The recipes: one small file each."""
