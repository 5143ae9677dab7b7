"""A run's config: every key with its default, recipes, overrides, checks."""
