"""Re-opens an exported folder and compares it with what should be in it."""

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.data.tokenizers.tokenizer import load_tokenizer, tokenizer_hash
from mmed_jax.hf.load import load_config, load_params, read_tensors
from mmed_jax.hf.mapping import Path as LeafPath
from mmed_jax.hf.mapping import hf_tensors
from mmed_jax.hf.safetensors import CODES
from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.llama import forward, unembed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PROMPT_LENGTH = 32
# Same weights, same program: differences could come from threaded sums alone.
TOLERANCE = 1e-4


def prompt_logits(params: dict[str, Any], cfg: LlamaConfig, dtype: Any = None) -> np.ndarray:
    """float32 logits [32, V] on a fixed prompt (ids spread over the vocabulary), computed in float32.

    Args:
      params: the tree, any sharding; every process calls this.
      dtype: round the parameters to this first; None leaves them.
    """
    leaves = jax.tree.leaves(params)
    mesh = getattr(getattr(leaves[0], "sharding", None), "mesh", None)
    if dtype is not None and all(x.dtype == jnp.dtype(dtype) for x in leaves):
        dtype = None
    # Token ids do not enter the computation; without them the folder's config gives the very same program.
    cfg = dataclasses.replace(cfg, bos_token_id=0, eos_token_id=(), pad_token_id=None)
    logits = _compiled(mesh, cfg, None if dtype is None else jnp.dtype(dtype))(params)
    return np.asarray(logits.addressable_data(0))


@functools.lru_cache(maxsize=8)
def _compiled(mesh: jax.sharding.Mesh | None, cfg: LlamaConfig, dtype: np.dtype | None) -> Any:
    tokens_bt = np.linspace(0, cfg.vocab_size - 1, PROMPT_LENGTH).astype(np.int32)[None]

    def run(params: dict[str, Any]) -> jax.Array:
        if dtype is not None:
            params = jax.tree.map(lambda x: x.astype(dtype), params)
        hidden_btd = forward(params, cfg, tokens_bt, compute_dtype=jnp.float32, attention="reference")
        return unembed(params, cfg, hidden_btd)[0]

    return jax.jit(run, out_shardings=None if mesh is None else NamedSharding(mesh, PartitionSpec()))


def verify_export(
    folder: Path,
    reference: np.ndarray | dict[str, Any],
    cfg: LlamaConfig,
    *,
    dtypes: dict[LeafPath, np.dtype] | None = None,
    tokenizer: "PreTrainedTokenizerFast | None" = None,
    shardings: Any = None,
) -> float:
    """Reads an exported folder back and compares config, tensor names, shapes, dtypes, tokenizer and logits.

    Args:
      folder: the export.
      reference: float32 [32, V] from `prompt_logits` of the parameters as they should be, or those parameters.
      cfg: the config they belong to; token ids may differ from the folder's.
      dtypes: expected dtype of each leaf; None = not compared.
      tokenizer: expected tokenizer; None = not compared.
      shardings: where to read the parameters to.

    Returns:
      The largest absolute logit difference.

    Raises:
      WorkError: naming the first thing that is not as it should be.
    """
    try:
        found = load_config(folder)
        stored = read_tensors(folder, found)
        reread = load_tokenizer(folder) if tokenizer is not None else None
        params = load_params(folder, found, shardings=shardings)
    except UserError as e:
        raise WorkError(f"the export cannot be read back: {e}") from e
    fields = [f.name for f in dataclasses.fields(cfg) if not f.name.endswith("_token_id")]
    if changed := [f for f in fields if getattr(found, f) != getattr(cfg, f)]:
        raise WorkError(f"the export's config.json says otherwise for {', '.join(changed)}")
    for t in hf_tensors(cfg) if dtypes is not None else ():
        if stored[t.name].dtype != CODES[dtypes[t.path]]:
            raise WorkError(f"the export holds {t.name} as {stored[t.name].dtype}, not {dtypes[t.path]}")
    if reread is not None and tokenizer_hash(reread) != tokenizer_hash(tokenizer):
        raise WorkError("the export's tokenizer is not the one that was given")
    if isinstance(reference, dict):
        reference = prompt_logits(reference, cfg)
    logits = prompt_logits(params, found)
    difference = float(np.abs(logits - reference).max())
    if not np.isfinite(logits).all() or not difference <= TOLERANCE * max(1.0, float(np.abs(reference).max())):
        raise WorkError(f"the export computes other logits than the model (largest difference {difference:g})")
    return difference
