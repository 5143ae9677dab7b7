"""The flow of a table of documents: files -> units -> what is held out -> shards -> table.json, each stage a folder.

TABLE/train/fr/fineweb2_fr/00003.array_record   rows (mmed_jax/data/packed_table.py)
TABLE/validation/fr/fineweb2_fr/...             the same of held-out documents
TABLE/table.json                                written last: without it the table is not finished
TABLE/work                                      folders of stages; may be removed when the table is finished
"""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_gen.corpus.executor import Executor, complete_stage
from data_gen.corpus.held_out_documents import held_out_limits
from data_gen.corpus.readers import FORMATS, format_of
from data_gen.corpus.stage_folder import Stage, StageFolder, link_or_copy, locked
from data_gen.corpus.tokenize_stage import SPLITS
from data_gen.corpus.unit_documents import UNKNOWN
from data_gen.corpus.units import DESCRIPTIONS, InputFile, Unit, batch_files, plan_units
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.common.hashes import json_hash
from mmed_jax.common.input_files import what_is
from mmed_jax.common.output_files import check_folder, write_json
from mmed_jax.common.paths import expand_home
from mmed_jax.data.documents import RowSettings
from mmed_jax.data.packed_table import TABLE, VERSION, make_part, merge_reports, table_info
from mmed_jax.data.plain_text import text_end
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.data.tokenizers.tokenizer import load_tokenizer, tokenizer_hash

SUMMARY, WORK = "corpus.json", "work"
# Of files that lie there without a corpus: what is text already.
DIRECT = ("jsonl", "parquet", "text")
MOST_HELD_OUT = 0.5


@dataclass(frozen=True)
class Corpus:
    """What is tokenized. `kinds`: source -> kind of source (corpus_recipe.KINDS), as far as it is known."""

    root: Path
    files: list[InputFile]
    sha256: dict[str, str]  # name -> as corpus.json has it; empty for files that lie there without one
    kinds: dict[str, str]

    @property
    def is_finished(self) -> bool:
        """Whether it is one of `corpus build`, of which every document can be read."""
        return bool(self.sha256)


def find_corpus(path: str, source: str = "") -> Corpus:
    """A finished corpus, a file of documents or a folder of such.

    Args:
      source: what the documents of files count as; "" = the name of the file or folder. A corpus has names of its own.

    Raises:
      UserError: nothing is there, the corpus is not finished or damaged, no file can be read as documents.
    """
    root = expand_home(path).absolute()
    if not root.exists():
        raise UserError(f"--input={path}: no such file or folder")
    if (root / SUMMARY).is_file():
        if source:
            raise UserError(f"--source={source}: the sources of a corpus have names already")
        return _read_corpus(root, path)
    if (root / TABLE).exists():
        raise UserError(f"--input={path}: is a packed table; name the corpus that it was made from")
    if (root / WORK).is_dir():
        raise UserError(f"--input={path}: the corpus is not finished (no {SUMMARY}); run its build again to the end")
    return _read_files(root, path, source)


def _read_corpus(root: Path, path: str) -> Corpus:
    files, sha256 = [], {}
    try:
        summary = json.loads((root / SUMMARY).read_bytes())
        kinds = {name: source["kind"] for name, source in summary["recipe"]["source"].items()}
        listed = [(f["path"], f["source"], f["bytes"], f["sha256"]) for f in summary["files"]]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"--input={path}: {SUMMARY} cannot be read ({type(e).__name__}: {e})") from e
    for name, source, size, digest in listed:
        there = root / name
        actual = there.stat().st_size if there.is_file() else -1
        if actual != size:
            problem = f"has {actual:,} bytes instead of {size:,}" if actual >= 0 else "is not there"
            raise UserError(f"--input={path}: {name} {problem}; run the build of the corpus again")
        files.append(InputFile(source, name, str(there), format_of(name), size, there.stat().st_mtime_ns))
        sha256[name] = digest
    if not files:
        raise UserError(f"--input={path}: the corpus has no documents")
    return Corpus(root, files, sha256, kinds)


def _read_files(root: Path, path: str, source: str) -> Corpus:
    base = root if root.is_dir() else root.parent
    below = sorted(p for p in root.rglob("*") if not p.is_dir()) if root.is_dir() else [root]
    shown = [p for p in below if not any(part.startswith(".") for part in p.relative_to(base).parts)]
    kept = [p for p in shown if format_of(p.name) in DIRECT]
    if not kept:
        suffixes = ", ".join(suffix for kind in DIRECT for suffix in FORMATS[kind][0][:1])
        raise UserError(
            f"--input={path}: no corpus ({SUMMARY}) and no file of documents ({suffixes}, with .gz or .zst)"
        )
    for file in kept:
        if what_is(file) != "file" or not os.access(file, os.R_OK):
            problem = what_is(file) if what_is(file) != "file" else "not to be read by this user"
            raise UserError(f"{file}: is {problem}")
    name = source or re.sub(r"[^\w.-]+", "_", root.name.partition(".")[0], flags=re.ASCII).strip("._-") or "documents"
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise UserError(f"--source={name}: its name becomes a folder; use letters, digits, _, . and -")
    files = []
    for file in kept:
        stat = file.stat()
        relative = file.relative_to(base).as_posix()
        files.append(InputFile(name, relative, str(file), format_of(file.name), stat.st_size, stat.st_mtime_ns))
    return Corpus(base, sorted(files, key=lambda f: f.name), {}, {})


class TableBuild:
    """One table of documents.

    Args:
      corpus: of find_corpus. tokenizer: folder of one. output: folder of the table.
      validation_fraction: share of the documents that are held out. language: of documents that say none.
      unit_mb: what one task reads at least. work, store: as of CorpusBuild.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: str,
        output: str,
        rows: RowSettings,
        executor: Executor,
        *,
        validation_fraction: float = 0.001,
        language: str = "",
        unit_mb: float = 100.0,
        work: Path | None = None,
        store: str = "",
        say: Callable[[str], None] = print,
    ) -> None:
        """Raises UserError for settings that make no sense and a tokenizer that cannot be used."""
        rows.check()
        if not 0 <= validation_fraction <= MOST_HELD_OUT:
            raise UserError(f"--validation_fraction={validation_fraction:g}: must be 0 to {MOST_HELD_OUT}")
        if not 0 < unit_mb <= 10_000:
            raise UserError(f"--unit_mb={unit_mb:g}: must be above 0 and at most 10,000")
        self.corpus, self.rows, self.executor, self.say = corpus, rows, executor, say
        self.fraction, self.unit_bytes = validation_fraction, int(unit_mb * 1e6)
        self.tokenizer = str(expand_home(tokenizer).absolute())
        tok = load_tokenizer(tokenizer)
        text_end(tok)
        self.reading = {"language": language, "finished": corpus.is_finished}
        self.settings = {**asdict(rows), **self.reading, "tokenizer": tokenizer_hash(tok), **_versions()}
        self.output = expand_home(output).absolute()
        self.work, self.store = work or self.output / WORK, store
        self.roots = {file.source: str(corpus.root) for file in corpus.files}

    def __call__(self) -> dict[str, Any]:
        """Makes the table; returns what table.json holds. Raises UserError and WorkError."""
        _check_output(self.output)
        self.work.mkdir(exist_ok=True)
        with locked(self.work):
            units = self._cut()
            limits = self._hold_out(units) if self.fraction else {}
            return self._put(self._tokenize(units, limits))

    def _stage(self, name: str, function: str, parts: list[dict[str, Any]], settings: dict[str, Any]) -> StageFolder:
        modules = tuple(sorted({FORMATS[kind][1].partition(":")[0] for kind in DIRECT}))
        context = {"roots": self.roots, "tokenizer": self.tokenizer}
        stage = Stage(name, f"data_gen.corpus.{function}", parts, settings, modules=modules, context=context)
        return complete_stage(self.work, stage, self.store, self.executor, self.say)

    def _cut(self) -> list[Unit]:
        """Checksums of the files and where to cut them. Raises UserError where one is not as corpus.json has it."""
        keys = ("source", "name", "format", "size", "mtime_ns")
        parts = [
            {"files": [{k: asdict(f)[k] for k in keys} for f in batch]} for batch in batch_files(self.corpus.files)
        ]
        folder = self._stage("files", "units:describe_files", parts, {"unit_bytes": self.unit_bytes})
        descriptions: list[dict[str, Any]] = []
        for number in range(len(parts)):
            descriptions += json.loads((folder.part(number) / DESCRIPTIONS).read_bytes())
        for file, description in zip(self.corpus.files, descriptions, strict=True):
            if description["sha256"] != self.corpus.sha256.get(file.name, description["sha256"]):
                raise UserError(
                    f"{file.path}: has another checksum than in {SUMMARY}; run the build of the corpus again"
                )
        return plan_units(self.corpus.files, descriptions, self.unit_bytes)

    def _hold_out(self, units: list[Unit]) -> dict[str, int]:
        parts = [unit.as_dict() for unit in units]
        return held_out_limits(
            self._stage("held_out", "held_out_documents:scan_unit", parts, self.reading), self.fraction
        )

    def _tokenize(self, units: list[Unit], limits: dict[str, int]) -> StageFolder:
        parts, settings = [unit.as_dict() for unit in units], {**self.settings, "limits": limits}
        return self._stage("shards", "tokenize_stage:tokenize_unit", parts, settings)

    def _put(self, stage: StageFolder) -> dict[str, Any]:
        """Gives the shards their names and writes table.json. Raises UserError where there is no document."""
        shards, rejects, empty, first = _collect(stage)
        if not any(split == "train" for split, *_ in shards):
            reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(rejects.items())) or "the files are empty"
            raise UserError(f"--input: not one document to train on: {reasons}{f' ({first})' if first else ''}")
        (self.output / TABLE).unlink(missing_ok=True)
        splits: dict[str, Any] = {}
        for split in SPLITS:
            groups = [(f"{code}/{source}", code, source, of) for (s, code, source), of in shards.items() if s == split]
            _link(stage, self.output, split, [shard for *_, of in groups for shard in of])
            if groups:
                reports = [shard.pop("report") for *_, of in groups for shard in of]
                splits[split] = {**make_part(groups), "report": merge_reports(reports, self.rows.seq_len)}
        limits = stage.key["settings"]["limits"]
        settings = {**self.settings, "validation_fraction": self.fraction, "limits": limits}
        tokenizer = settings.pop("tokenizer")
        # What corpus.json or the names and contents of the files say; not where they lie.
        documents = json_hash(stage.parts, 64)
        inputs = {"tokenizer": tokenizer, "settings": settings, "documents": documents, "stage": stage.path.name}
        books = {"rejects": dict(sorted(rejects.items())), "empty": empty, "first_reject": first}
        info = table_info(self.rows.seq_len, "document", inputs, splits, books=books)
        info["key"] = json_hash([VERSION, inputs], 20)
        write_json(self.output / TABLE, info)
        return info


def _versions() -> dict[str, str]:
    """Of libraries that decide what a shard holds."""
    from importlib.metadata import version

    return {name: version(name) for name in ("tokenizers", "array_record")}


def _check_output(output: Path) -> None:
    """Raises UserError where the table cannot be written or would take the place of other files."""
    check_folder(output, "--output")
    there = {p.name for p in output.iterdir()}
    if there and WORK not in there and TABLE not in there:
        raise UserError(f"--output={output}: holds other files ({min(there)}); name a new folder")
    if (output / SUMMARY).exists():
        raise UserError(f"--output={output}: is the folder of a corpus; name another one")
    if TABLE in there:
        try:
            kind = json.loads((output / TABLE).read_bytes()).get("kind", "instruction")
        except (OSError, ValueError, AttributeError):
            kind = "document"  # a damaged one is written again
        if kind != "document":
            raise UserError(f"--output={output}: is a packed table of records; name another folder")


_Shards = dict[tuple[str, str, str], list[dict[str, Any]]]


def _collect(stage: StageFolder) -> tuple[_Shards, Counter[str], int, str]:
    """({(split, language, source): shards in the order of units}, rejects by reason, empty documents, first reject)."""
    made: _Shards = {}
    rejects: Counter[str] = Counter()
    empty, first = 0, ""
    for number, part in enumerate(stage.parts):
        counts = stage.marker(number)["counts"]
        rejects.update(counts["rejects"])
        empty, first = empty + counts["empty"], first or counts["first"]
        for name, shard in counts["shards"].items():
            split, language, _ = name.split(".")
            group = made.setdefault((split, language, part["source"]), [])
            path = f"{split}/{language}/{part['source']}/{len(group):05d}.array_record"
            group.append({"path": path, "part": (number, name), **shard})
    order = (*LANGUAGES, UNKNOWN)
    return dict(sorted(made.items(), key=lambda kv: (kv[0][0], order.index(kv[0][1]), kv[0][2]))), rejects, empty, first


def _link(stage: StageFolder, output: Path, split: str, shards: list[dict[str, Any]]) -> None:
    """The folder of a split, in the place of an earlier one; of links where the disk allows."""
    new, old, final = (output / name for name in (f".{split}.new", f".{split}.old", split))
    for folder in (new, old):
        shutil.rmtree(folder, ignore_errors=True)
    if shards:
        new.mkdir()
    for shard in shards:
        number, name = shard.pop("part")
        target = new / Path(shard["path"]).relative_to(split)
        link_or_copy(stage.part(number) / name, target)
        if target.stat().st_size != shard["size"]:
            raise WorkError(f"{target}: has {target.stat().st_size:,} bytes instead of {shard['size']:,}; run it again")
    if final.exists():
        final.rename(old)
    if shards:
        new.rename(final)
    shutil.rmtree(old, ignore_errors=True)
