"""What is scored, as rows for the model: the held-out split of a tokenised table, as a training run validates on it."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError
from mmed_jax.data.batch import Batch
from mmed_jax.data.corpus_table import CorpusTable
from mmed_jax.data.packed_table import Row, Table, read_info, split_row
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.data.tokenizers.tokenizer import tokenizer_hash
from mmed_jax.evaluation.perplexity.documents import FLAG, UNKNOWN
from mmed_jax.evaluation.perplexity.texts import Entry, Owners

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPLIT = "validation"
_PIECE = re.compile(r"(.+)#(\d+)", re.DOTALL)  # data.documents: pieces of a long document are "id#0", "id#1", ...
_BEGIN = 128  # tokens of a document whose text is shown


class TableTexts:
    """Documents of a table's split "validation": what each trained target of it costs, end tokens included.

    Rows are those of the table, so the numbers over all of it are those of a training run's validation. The pieces of a
    long document count as one.
    """

    def __init__(
        self,
        folder: Path,
        tok: "PreTrainedTokenizerFast",
        positions: int,
        languages: Sequence[str] | None = None,
        limit: int = 0,
    ):
        """
        Args:
          positions: max_position_embeddings of the model.
          languages, limit: as documents.read_documents.

        Raises:
          UserError: a table of another tokenizer or with longer rows than the model reads; no such split, or nothing of
            it is left. WorkError: the table cannot be read.
        """
        self._table, self._tok = _open(folder, tok, positions), tok
        rows = [split_row(self._table.record(i)) for i in range(len(self._table))]
        entries, self._owners, self._first = self._gather(rows)
        kept = _choose(entries, languages, limit)
        if not kept:
            held = ", ".join(sorted({e.language for e in entries})) or "nothing"
            raise UserError(f"{FLAG}={folder}: no document of {', '.join(languages or ('it',))}; it holds {held}")
        new = {old: i for i, old in enumerate(kept)}
        self.documents = [entries[i] for i in kept]
        self._first = [self._first[i] for i in kept]
        self._owners = [[new.get(i, -1) for i in of_row] for of_row in self._owners]

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the numbers: the table."""
        return {"seq_len": self._table.seq_len, "table": self._table.fingerprint}

    @property
    def info(self) -> dict[str, Any]:
        """What results.json says of the texts."""
        rule = f"trained targets of split {SPLIT}, in the table's rows of {self._table.seq_len} tokens, end tokens too"
        return {"kind": "table", "rule": rule}

    def begin(self, index: int, size: int) -> str:
        """The first `size` characters of a document."""
        row, start, stop = self._first[index]
        ids = split_row(self._table.record(row)).ids[start : min(stop, start + _BEGIN)]
        return self._tok.decode(ids.tolist(), skip_special_tokens=True)[:size]

    def batches(self, wanted: Sequence[int], rows_for: Callable[[int], int]) -> Iterator[tuple[Owners, Batch]]:
        """The rows that hold something of the documents `wanted`, in the table's order.

        Args:
          rows_for: how many rows a batch has where so many are to be scored.
        """
        some = set(wanted)
        rows = [row for row, of_row in enumerate(self._owners) if some.intersection(of_row)]
        count = rows_for(len(rows))
        for at in range(0, len(rows), count):
            here = rows[at : at + count]
            yield [self._owners[row] for row in here], self._table.batch(here + [-1] * (count - len(here)))

    def _gather(self, rows: Sequence[Row]) -> tuple[list[Entry], list[list[int]], list[tuple[int, int, int]]]:
        """(documents, for each row the document of every segment, where each begins: row, first id and end)."""
        names = [jsonl.loads(row.names, list) for row in rows]
        whole = {name for of_row in names for name in of_row}
        groups = [g for g in self._table.groups for _ in range(g.rows)]
        numbers: dict[tuple[str, str, str], int] = {}
        first: dict[int, tuple[int, int, int, int]] = {}
        tokens: Counter[int] = Counter()
        size: Counter[int] = Counter()
        owners = []
        for at, (row, group) in enumerate(zip(rows, groups, strict=True)):
            ends = np.cumsum(row.lengths).tolist()
            of_row = []
            for k, (name, end) in enumerate(zip(names[at], ends, strict=True)):
                start = end - int(row.lengths[k])
                of = _PIECE.fullmatch(name)
                ident = of[1] if of and f"{of[1]}#0" in whole else name
                number = int(row.language[k])
                language = group.language or (LANGUAGES[number - 1] if number else UNKNOWN)
                key = ident, language, group.source or group.name
                index = numbers.setdefault(key, len(numbers))
                piece = int(of[2]) if of else 0
                first[index] = min(first.get(index, (piece, at, start, end)), (piece, at, start, end))
                of_row.append(index)
                tokens[index] += int(row.trained[start + 1 : end].sum())
                size[index] += int(row.text_bytes[k])
            owners.append(of_row)
        times = Counter(ident for ident, _, _ in numbers)
        entries = [
            Entry(ident if times[ident] == 1 else f"{language}/{source}/{ident}", language, source, size[i], tokens[i])
            for i, (ident, language, source) in enumerate(numbers)
        ]
        return entries, owners, [first[i][1:] for i in range(len(entries))]


def _open(folder: Path, tok: "PreTrainedTokenizerFast", positions: int) -> Table:
    info = read_info(folder)
    if info["inputs"].get("tokenizer") != tokenizer_hash(tok):
        raise UserError(
            f"{FLAG}={folder}: the table is of another tokenizer than the model's; name the documents that it was made "
            "from, or a model of its tokenizer"
        )
    if info["seq_len"] > positions:
        raise UserError(
            f"{FLAG}={folder}: rows of {info['seq_len']} tokens, and the model's max_position_embeddings is {positions}"
        )
    if SPLIT not in info["splits"]:
        raise UserError(f"{FLAG}={folder}: the table has no split {SPLIT}; it has {', '.join(info['splits'])}")
    return CorpusTable([(folder, SPLIT)])  # which holds a few of its shards open, however many there are


def _choose(entries: Sequence[Entry], languages: Sequence[str] | None, limit: int) -> list[int]:
    """Those of the languages, at most `limit` of each language and source, that have something to score."""
    count: Counter[tuple[str, str]] = Counter()
    kept = []
    for i, entry in enumerate(entries):
        place = entry.language, entry.source
        wanted = languages is None or entry.language in languages
        if entry.tokens and wanted and not (limit and count[place] >= limit):
            count[place] += 1
            kept.append(i)
    return kept
