"""What --perplexity names: files of documents, or the held-out split of a tokenised table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmed_jax.common.errors import UserError
from mmed_jax.common.paths import expand_home
from mmed_jax.data.corpus_table import is_table
from mmed_jax.evaluation.perplexity.documents import FLAG, read_documents
from mmed_jax.evaluation.perplexity.score import Texts
from mmed_jax.evaluation.perplexity.table_texts import TableTexts
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
    positions, tables = source.cfg.max_position_embeddings, [n for n in names if is_table(expand_home(n))]
    if tables and len(names) > 1:
        raise UserError(f"{FLAG}={','.join(names)}: {tables[0]} is a table, which is scored by itself")
    for flag, value in (("seq_len", seq_len), ("stride", stride)):
        if tables and value is not None:
            raise UserError(f"--{flag}={value}: the rows of a table are what they are ({tables[0]}); leave it out")
    if tables:
        return TableTexts(expand_home(tables[0]), source.tokenizer, positions, languages, limit)
    length, step = window_sizes(seq_len, stride, positions)
    return FileTexts(source.tokenizer, read_documents(names, languages, limit), length, step)
