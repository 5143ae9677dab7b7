"""mmed_jax: from an open Llama-3 to a multilingual medical model, in JAX."""

__version__ = "0.1.0"
