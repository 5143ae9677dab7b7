"""Runs an adapter over its input: every row becomes a record or a counted drop."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmed_jax.common.errors import UserError, nearest
from mmed_jax.data.languages.scripts import wrong_script
from mmed_jax.data.records.reading import nearest_sibling
from mmed_jax.data.records.schema import LANGUAGE_NAMES, LANGUAGES, RecordError, validate_record
from mmed_jax.data.sources.encodings import known_encoding
from mmed_jax.data.sources.raw_file import Download
from mmed_jax.data.sources.source import Drop, Row, Source, WrongForm
from mmed_jax.data.sources.split_of_rows import Splits, is_split

_FORM = (KeyError, TypeError, AttributeError, ValueError, IndexError, ArithmeticError)


@dataclass
class Report:
    """What became of the rows: read == kept + sum(dropped). `test_copies`: duplicates left out of a test split."""

    read: int = 0
    kept: int = 0
    needs_image: int = 0
    renamed: int = 0
    test_copies: int = 0
    by_language: Counter = field(default_factory=Counter)
    by_split: Counter = field(default_factory=Counter)
    dropped: Counter = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Raises AssertionError when a row was neither kept nor dropped."""
        lost = self.read - self.kept - self.dropped.total()
        if lost or self.kept != self.by_language.total():
            raise AssertionError(f"{lost} of {self.read} rows are unaccounted for")


class Conversion:
    """Checked records of one source, in order; `report` is complete when the iteration is.

    Args:
      source: the adapter. input: a file or folder, "hub" or "hub:REPO_ID[@REVISION]".
      kind: "mcq" or "instruction"; None is the source's first.
      split: keep this split only; where the files name none, they are all of this split.
      languages: keep these only.
      answer_base: 0 or 1, for sources whose answer numbering can't be seen from the file.
      encoding: of the text files; "" for UTF-8 (and GB18030 for sources published in it).
      keep_duplicates: keep rows that are equal to an earlier one, as a benchmark's counts include them.
    Raises UserError for a wrong input before the first record, WorkError when the hub can't be reached.
    """

    # What stands before the input on the command line.
    INPUT_FLAG = "--input="

    def __init__(
        self,
        source: Source,
        input: str | Path,
        *,
        kind: str | None = None,
        split: str | None = None,
        languages: tuple[str, ...] | None = None,
        answer_base: int | None = None,
        hub_config: str | None = None,
        encoding: str = "",
        keep_duplicates: bool = False,
    ) -> None:
        self.source, self.input, self.kind = source, str(input), kind or source.kinds[0]
        self.split, self.languages, self.answer_base, self.hub_config = split, languages, answer_base, hub_config
        self.encoding, self.keep_duplicates = encoding, keep_duplicates
        self.report = Report()
        self._download = Download(Path(self.input))
        if encoding:
            known_encoding(encoding)
        if self.kind not in source.kinds:
            raise UserError(f"--kind={kind}: {source.name} gives {' and '.join(source.kinds)}")
        for language in languages or ():
            if language not in LANGUAGES:
                raise UserError(f"--language={language}: unknown{nearest(language, LANGUAGES)}")
            if language not in source.languages:
                raise UserError(f"--language={language}: {source.name} holds {', '.join(source.languages)}")
        if answer_base is not None and not source.answer_base:
            raise UserError(f"--answer_base: {source.name} has one numbering only; leave it out")
        self._from_hub = self.input == "hub" or self.input.startswith("hub:")
        if hub_config and not self._from_hub:
            raise UserError("--hub_config: only with --input=hub")
        if not self._from_hub and not Path(self.input).exists():
            hint = nearest_sibling(self.input)
            raise UserError("no such file or folder", place=f"{self.INPUT_FLAG}{self.input}", hint=hint)

    def _rows(self) -> Iterator[Row]:
        """Rows as they come, those among them that could not be read with their problem."""
        source, options = self.source, {} if self.answer_base is None else {"answer_base": self.answer_base}
        lost: list[Row] = []
        self._download = download = Download(
            Path(self.input), self.encoding, source.languages, source.gb18030, lost, self._download.named
        )
        if self._from_hub:
            from mmed_jax.data.sources.hub import hub_rows

            found = hub_rows(source, self.input, self.languages, self.hub_config, options, download)
        else:
            found = source.rows(download, **options)
        last = None
        try:
            for row in found:
                last = row
                yield from _taken(lost)
                yield row
        except _FORM as e:  # in what holds the rows; what becomes of a row is caught at the row
            after = f"{last.where}: after this row" if last else self.input
            raise WrongForm("a part of unexpected form", place=after, hint=f"; {type(e).__name__}: {e}") from e
        yield from _taken(lost)

    def __iter__(self) -> Iterator[dict]:
        report = self.report = Report()
        seen: set[bytes] = set()
        ids: set[str] = set()
        try:
            splits = Splits(self.split, self._convert, self._download.named)
            for row, dropped in splits.sort(self._rows()):
                report.read += 1
                result = dropped or self._one(row)
                if isinstance(result, dict):
                    key = hashlib.sha256(repr(self.source.duplicate_key(result)).encode()).digest()[:16]
                    if key in seen and not self.keep_duplicates:
                        report.test_copies += row.split == "test"
                        result = Drop("duplicate of an earlier row")
                    seen.add(key)
                if isinstance(result, Drop):
                    report.dropped[result.reason] += 1
                    report.examples.setdefault(result.reason, row.where)
                    continue
                report.renamed += result["id"] in ids
                result["id"] = _unique(result["id"], ids)
                report.kept += 1
                report.by_language[result["language"]] += 1
                report.by_split[result["provenance"].get("split", "")] += 1
                report.needs_image += result.get("needs_image", False)
                yield result
        except WrongForm as e:
            raise UserError(f"{e} ({self.source.name} expects {self.source.expects})") from None
        if not report.read:
            raise UserError(f"{self.input}: holds no rows ({self.source.name} expects {self.source.expects})")
        report.check()
        if not report.kept:
            reasons = "; ".join(f"{why}: {n}" for why, n in report.dropped.most_common(5))
            first = report.examples[report.dropped.most_common(1)[0][0]]
            raise UserError(f"{self.input}: none of {report.read} rows became a record ({reasons}); first: {first}")

    def _convert(self, row: Row) -> dict | Drop:
        return self.source.convert(row, self.kind)

    def _one(self, row: Row) -> dict | Drop:
        if self.split is not None:
            if row.split and not is_split(row.split, self.split):
                return Drop("another split")
            row = row._replace(split=row.split or self.split)
        if row.problem:
            return Drop(_class_of(row.problem))
        try:
            try:
                result = self._convert(row)
            except _FORM as e:  # a field of another type
                raise WrongForm("a field of unexpected form", place=row.where, hint=f"; {type(e).__name__}: {e}") from e
            record = result if isinstance(result, Drop) else validate_record(result, row.where)
        except WrongForm as e:
            if self.report.read == 1:
                raise
            return Drop(_reason(e))
        except RecordError as e:
            return Drop(f"breaks the schema ({e.field})")
        except RecursionError:
            return Drop("nested too deeply")
        if isinstance(record, Drop):
            return record
        if self.languages and record["language"] not in self.languages:
            return Drop("another language")
        if wrong_script(record["language"], *_texts(record), latin=self.source.latin):
            return Drop(f"text is not in {LANGUAGE_NAMES[record['language']]}")
        return record


def _texts(record: dict) -> tuple[str, ...]:
    """What a record asks, then the rest of its texts."""
    if "messages" in record:
        question, *rest = (m["content"] for m in record["messages"])
        return question, *rest
    asked = f"{record.get('context', '')}\n{record['question']}"
    return asked, "\n".join(record["options"].values()), record["rationale"]


def _class_of(problem: str) -> str:
    """The class of a row that could not be read, without its own numbers."""
    return "row of another width (" + problem + ")" if "cells where" in problem else problem


def _taken(rows: list[Row]) -> Iterator[Row]:
    while rows:
        yield rows.pop(0)


def _reason(error: WrongForm) -> str:
    """The class of a malformed row, without its place."""
    return f"malformed row ({error.problem})"


def _unique(ident: str, ids: set[str]) -> str:
    """`ident`, or with -2, -3 ... when different rows of a publication share an id; remembered in `ids`."""
    candidate, n = ident, 1
    while candidate in ids:
        n += 1
        candidate = f"{ident}-{n}"
    ids.add(candidate)
    return candidate
