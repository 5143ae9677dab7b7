"""One door to a trained model, whether it lies in a run directory or in a Hugging Face folder."""

import os
from collections.abc import Collection

from mmed_jax.hf.model_source import ASSETS, ModelSource, identity, open_whole, trained_prompts

__all__ = ["ASSETS", "ModelSource", "identity", "open_model", "trained_prompts"]


def open_model(path: str | os.PathLike, step: int | None = None, ignore_keys: Collection[str] = ()) -> ModelSource:
    """Opens a run directory or a Hugging Face folder.

    Args:
      path: the folder; for a run also its checkpoints/ or one step in it.
      step: checkpoint of a run; None = the newest good one.
      ignore_keys: of an HF folder's config.json, not known here, that the user vouches for (model.config.from_hf).

    Raises:
      UserError: nothing there (with the download command for a hub name), neither of the two, no checkpoint or not that
        one, or config.json, weights' headers wrong.
    """
    return open_whole(path, step, ignore_keys)
