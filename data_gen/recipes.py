"""The former home of what recipes of data sets are made of; recipes that were written then import from here.

The keys and their meaning: data_gen/sets/recipes.py.
"""

from data_gen.sets.recipes import base, source, step

__all__ = ["base", "source", "step"]
