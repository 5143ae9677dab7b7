"""The former home of every key; recipes that were written then say `from configs.base import base`.

The keys and their meaning: mmed_jax/config/defaults.py.
"""

from mmed_jax.config.defaults import base

__all__ = ["base"]
