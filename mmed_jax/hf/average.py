"""The weighted mean of several models' weights, tensor by tensor: each value is the float32 sum, rounded once.

Linear merging of models that began from the same weights (Wortsman et al., "Model soups", arXiv 2203.05482). With
weights such as 1, 1, -1 the sum adds to one model what another has learnt on top of a third (Ilharco et al., "Editing
models with task arithmetic", arXiv 2212.04089).
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mmed_jax.common.errors import UserError, warn
from mmed_jax.data.tokenizers.tokenizer import encoder_hash, tokenizer_hash
from mmed_jax.hf.gather import is_finite
from mmed_jax.hf.load import leaf_kinds, read_tensors
from mmed_jax.hf.mapping import hf_tensors
from mmed_jax.hf.model_source import ModelSource
from mmed_jax.hf.safetensors import StoredTensor
from mmed_jax.hf.weight_stream import Kinds, Weight

BLOCK = 1 << 22  # values that are summed at a time
_SUM_ERROR = 1e-6  # by which decimal weights may miss 1


class AverageStream:
    """The mean of Hugging Face folders as a weight_stream.WeightStream; beside one tensor, blocks of it are in memory.

    Args:
      sources: folders of one architecture (check_alike). weights: of each; their sum is 1.
      dtype: of the tensors; None = of the first model.
    """

    def __init__(self, sources: Sequence[ModelSource], weights: Sequence[float], dtype: Any = None):
        self.cfg, self.in_order = sources[0].cfg, True
        self._folders, self._shares, self._dtype = [s.path for s in sources], weights, dtype

    def read(self, consume: Callable[[Kinds, Iterator[Weight]], Any]) -> Any:
        """See WeightStream."""
        stored = [read_tensors(folder, self.cfg) for folder in self._folders]
        kinds = leaf_kinds(self._folders[0], self.cfg, stored[0], self._dtype)

        def weights() -> Iterator[Weight]:
            for t in hf_tensors(self.cfg):
                array = np.empty(t.shape, kinds[t.path])
                _sum_into([tensors[t.name] for tensors in stored], self._shares, array)
                yield Weight(t, array, is_finite(array))

        return consume(kinds, weights())


def _sum_into(tensors: Sequence[StoredTensor], shares: Sequence[float], out: np.ndarray) -> None:
    """Fills `out` with the float32 sum of shares[i] * tensors[i], added in their order, rounded to its dtype."""
    step = max(1, BLOCK // math.prod(out.shape[1:]))
    rest = tuple(slice(0, n) for n in out.shape[1:])
    for first in range(0, len(out), step):
        rows = slice(first, min(first + step, len(out)))
        part = np.empty((rows.stop - first, *out.shape[1:]), np.float32)
        total = np.zeros_like(part)
        for tensor, share in zip(tensors, shares, strict=True):
            tensor.read((rows, *rest), part)
            part *= np.float32(share)
            total += part
        with np.errstate(over="ignore"):  # a value that does not fit is found by is_finite, and named by the writer
            out[rows] = total.astype(out.dtype)


def check_alike(names: Sequence[str], sources: Sequence[ModelSource]) -> None:
    """Refuses models whose mean means nothing; warns of what the first one decides.

    Args:
      names: as the user gave them, of `sources`, all of kind "hf".

    Raises:
      UserError: another architecture or vocabulary than the first, in one line.
    """
    first, *others = sources
    fields = [f.name for f in dataclasses.fields(first.cfg) if not f.name.endswith(("_token_id", "initializer_range"))]
    for name, source in zip(names[1:], others):
        differing = [f for f in fields if getattr(source.cfg, f) != getattr(first.cfg, f)]
        if differing == ["max_position_embeddings"]:
            warn(f"{name} has another max_position_embeddings than {names[0]}, whose config.json is used")
        elif differing:
            what = ", ".join(f"{f} ({getattr(first.cfg, f)}, {getattr(source.cfg, f)})" for f in differing)
            raise UserError(
                f"--models: {name} is of another architecture than {names[0]}: {what}; only models of one shape have "
                "a mean"
            )
        if encoder_hash(source.tokenizer) != encoder_hash(first.tokenizer):
            raise UserError(
                f"--models: {name} has another tokenizer than {names[0]}; the rows of their embeddings stand for "
                "different tokens"
            )
        if tokenizer_hash(source.tokenizer) != tokenizer_hash(first.tokenizer):
            warn(
                f"{name} has another chat template or other control tokens around texts than {names[0]}, whose are used"
            )


def read_shares(text: str, count: int) -> list[float]:
    """The weights of `count` models: "0.5,0.5" as numbers; "" = equal ones.

    Raises:
      UserError: another number of them, no finite numbers, or a sum other than 1.
    """
    if not text:
        return [1 / count] * count
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = [math.nan]
    if not all(map(math.isfinite, shares)):
        raise UserError(f"--weights={text}: must be numbers with commas between them, such as 0.5,0.5")
    if len(shares) != count:
        raise UserError(f"--weights={text}: {len(shares)} for {count} models; give one each, or leave it out")
    if abs(sum(shares) - 1) > _SUM_ERROR:
        raise UserError(
            f"--weights={text}: their sum is {sum(shares):.6g}, and must be 1; leave it out for equal weights"
        )
    return shares
