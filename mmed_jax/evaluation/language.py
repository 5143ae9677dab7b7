"""Which of the seven languages an output is written in."""

from mmed_jax.data.language import language_of as response_language

__all__ = ["response_language"]
