"""A run's config: every key with its default, recipes, overrides, checks. Recipes of users import from here.

from mmed_jax.config import base, load_config
"""

from mmed_jax.config.defaults import base
from mmed_jax.config.recipes import load_config

__all__ = ["base", "load_config"]
