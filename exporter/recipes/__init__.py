"""Recipes: the commands of a YAML file, checked before anything runs, cached by content, shown in one table."""
