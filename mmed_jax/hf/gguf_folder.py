"""A folder with a model as one GGUF file and its card: whole, read back and compared, or not there."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mmed_jax.data.tokenizers.tokenizer import check_vocab, tokenizer_hash
from mmed_jax.hf.export_folder import (
    MARKER,
    PROVENANCE,
    README,
    check_output,
    failure,
    output_folder,
    publish,
    say_leftovers,
    write_json,
    write_on_main,
)
from mmed_jax.hf.folder_hash import hash_files
from mmed_jax.hf.gguf_file import model_fields, verify_gguf, write_gguf
from mmed_jax.hf.gguf_tokenizer import tokenizer_fields
from mmed_jax.hf.licences import write_notice
from mmed_jax.hf.weight_stream import WeightStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def gguf_file_name(name: str, kind: str) -> str:
    """ "Llama-3-Med-GGUF" in q8_0 -> "Llama-3-Med-Q8_0.gguf"."""
    stem = name[:-5] if name.lower().endswith(("-gguf", "_gguf")) else name
    return f"{stem}-{kind.upper()}.gguf"


def save_gguf(
    path: str | os.PathLike,
    stream: WeightStream,
    tokenizer: "PreTrainedTokenizerFast",
    kind: str,
    *,
    name: str,
    fields: dict[str, Any],
    pre: str = "",
    info: Callable[[], dict],
    card: Callable[[], str],
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    checking: Callable[[int, int], None] | None = None,
) -> float:
    """Writes the folder; one process.

    Args:
      path: output folder: new, empty, or with `overwrite` an earlier export. stream: of float32 tensors.
      kind: of gguf_file.KINDS. name: of the model. fields: more metadata than weights and tokenizer give.
      pre: name of the tokenizer's splitting rule, "" = as found (gguf_tokenizer).
      info, card: of mmed_jax_export.json and README.md, when the weights are written.
      progress, checking: called with (bytes, bytes in all) of what is written and read back.

    Returns:
      ||stored - W|| / ||W|| over all matrices.

    Raises:
      UserError: the output is taken or cannot be written; a tokenizer that GGUF has no form for here; gguf is missing.
      WorkError: disk full, values that are not finite, or what was written reads back differently.
    """
    path = output_folder(path)
    check_vocab(tokenizer, stream.cfg.vocab_size)
    fields = {"general.name": name, **fields, **model_fields(stream.cfg, kind)}
    fields |= tokenizer_fields(tokenizer, stream.cfg.vocab_size, pre)
    check_output(path, overwrite)
    say_leftovers(path)
    stage = path.with_name(f"{path.name}.tmp-{uuid4().int % 2**31}")
    try:
        write_on_main(path, lambda: stage.mkdir(parents=True))
        file = stage / gguf_file_name(name, kind)
        written = write_gguf(file, stream, kind, fields, progress)
        if written.problem:
            raise failure(written.problem)
        verify_gguf(file, written, stream.cfg, kind, fields, checking)
        write_on_main(path, lambda: _write_small(stage, tokenizer, card(), info()))
        write_on_main(path, lambda: publish(stage, path))
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return written.error


def _write_small(stage: Path, tokenizer: "PreTrainedTokenizerFast", card: str, info: dict) -> None:
    (stage / README).write_text(card, encoding="utf-8")
    write_notice(stage, info.get(PROVENANCE))
    sizes = {p.name: p.stat().st_size for p in sorted(stage.iterdir())}
    hashes = hash_files(sorted(stage.iterdir()))
    write_json(stage / MARKER, {**info, "tokenizer_hash": tokenizer_hash(tokenizer), "files": sizes, "sha256": hashes})
