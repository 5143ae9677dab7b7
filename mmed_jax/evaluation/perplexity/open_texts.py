"""What --perplexity names: files of documents, or the held-out split of a tokenised table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmed_jax.evaluation.perplexity.documents import read_documents
from mmed_jax.evaluation.perplexity.score import Texts
from mmed_jax.evaluation.perplexity.texts import FileTexts, window_sizes

if TYPE_CHECKING:
    from mmed_jax.hf.open_model import ModelSource


def open_texts(
    names: Sequence[str],
    source: "ModelSource",
    seq_len: int | None = None,
    stride: int | None = None,
    languages: Sequence[str] | None = None,
    limit: int = 0,
) -> Texts:
    """The texts that the flags of --perplexity mean, for one model.

    Args:
      seq_len, stride: of windows, None = the defaults. languages, limit: as documents.read_documents.

    Raises:
      UserError: what is wrong with the flags or the files.
    """
    length, step = window_sizes(seq_len, stride, source.cfg.max_position_embeddings)
    return FileTexts(source.tokenizer, read_documents(names, languages, limit), length, step)
