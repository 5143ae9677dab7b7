"""mmed_jax: from an open Llama-3 to a multilingual medical model, in JAX.

`mmed_jax.Llama` is the way to hold a model in Python; see examples/python_api.py.
"""

from typing import TYPE_CHECKING, Any

from mmed_jax.common.loading import end_at_once

if TYPE_CHECKING:
    from mmed_jax.inference.pretrained import Llama

end_at_once()

__version__ = "0.1.0"
__all__ = ["Llama", "__version__"]


def __getattr__(name: str) -> Any:
    # On first use: most commands, and all of data_gen, import this package and need neither jax nor flax.
    if name == "Llama":
        from mmed_jax.inference.pretrained import Llama

        return Llama
    raise AttributeError(f"module 'mmed_jax' has no attribute {name!r}")
