"""Recipes: YAML in, a validated description of a model and of a run out. No torch in here."""
