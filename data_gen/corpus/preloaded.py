"""Imported by the process that workers are forked from: what each of them would load for itself, at a second or two."""

from data_gen.corpus import clean_stage, filter_stage, output_stage, run_task
from mmed_jax.data.languages.identify import language_of

__all__ = ["clean_stage", "filter_stage", "output_stage", "run_task"]

language_of("The model of the language identifier is read with the first long text in Latin letters. " * 3)
