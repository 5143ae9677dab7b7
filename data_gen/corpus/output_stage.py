"""The finished corpus: documents of several units, by language and source, in files with their final names.

OUTPUT/documents/fr/fineweb2/00003.jsonl.zst      documents, or the same as .parquet
OUTPUT/corpus.json                                what they are: rows, bytes, checksums, the books
OUTPUT/report.html                                the same for people
OUTPUT/work                                       folders of stages; may be removed when the corpus is finished
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from data_gen.corpus.document_files import DOCUMENTS as PART_DOCUMENTS
from data_gen.corpus.document_files import UNKNOWN, LinesWriter, read_lines, unpacked_lines
from data_gen.corpus.parquet_documents import ParquetWriter, read_parquet
from data_gen.corpus.stage_folder import Result, StageFolder, link_or_copy

DOCUMENTS = "documents"


class DocumentWriter(Protocol):
    """What writes the lines of documents into a file, in a with block."""

    def write(self, line: dict[str, Any], /) -> None: ...

    def __enter__(self) -> "DocumentWriter": ...

    def __exit__(self, *_: object) -> None: ...


# corpus_recipe.OUTPUT_FORMATS -> (suffix of the files, what writes them).
_WRITERS: dict[str, tuple[str, Callable[[Path], DocumentWriter]]] = {
    "jsonl": (".jsonl.zst", LinesWriter),
    "parquet": (".parquet", ParquetWriter),
}
# Bytes of text that files of one source and all its languages hold together, at most.
FILE_BYTES = 256_000_000


def group_units(sources: Sequence[str], sizes: Sequence[int], file_bytes: int = FILE_BYTES) -> list[dict[str, Any]]:
    """The parts of the output stage: units of one source that follow each other, together up to `file_bytes`.

    Args:
      sources, sizes: source, and bytes of text that are left, of each unit in order.
    """
    groups: list[dict[str, Any]] = []
    held = 0
    for number, (source, size) in enumerate(zip(sources, sizes)):
        if groups and groups[-1]["source"] == source and held + size <= file_bytes:
            groups[-1]["units"].append(number)
            held += size
        else:
            groups.append({"source": source, "units": [number]})
            held = size
    return groups


def write_group(part: dict[str, Any], settings: dict[str, Any], context: dict[str, Any], folder: Path) -> Result:
    """A stage's function: LANGUAGE.jsonl.zst (or .parquet) of all units of a group."""
    suffix, writer = _WRITERS[settings["format"]]
    stage = StageFolder(Path(context["clean"]))
    rows: dict[str, int] = {}
    with contextlib.ExitStack() as files:
        writers: dict[str, DocumentWriter] = {}
        for unit in part["units"]:
            for line in read_lines(stage.part(unit), PART_DOCUMENTS):
                language = line.get("language", UNKNOWN)
                if language not in writers:
                    writers[language] = files.enter_context(writer(folder / f"{language}{suffix}"))
                writers[language].write(line)
                rows[language] = rows.get(language, 0) + 1
    return Result(sum(rows.values()), {"rows": rows})


def read_file(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file of a finished corpus, in either format. Raises WorkError where it is damaged."""
    if path.suffix == ".parquet":
        yield from read_parquet(path)
        return
    with open(path, "rb") as f:
        yield from unpacked_lines(f, path)


def list_files(stage: StageFolder) -> list[dict[str, Any]]:
    """The files of the corpus, sorted: {"path", "language", "source", "rows", "bytes", "sha256", "part"}."""
    files, numbers = [], dict[str, int]()
    for number, part in enumerate(stage.parts):
        marker, source = stage.marker(number), part["source"]
        index = numbers[source] = numbers.get(source, -1) + 1
        for name, (size, sha256) in marker["files"].items():
            language, _, suffix = name.partition(".")
            path = f"{DOCUMENTS}/{language}/{source}/{index:05d}.{suffix}"
            about = {"path": path, "language": language, "source": source, "rows": marker["counts"]["rows"][language]}
            files.append(about | {"bytes": size, "sha256": sha256, "part": [number, name]})
    return sorted(files, key=lambda f: f["path"])


def put_documents(stage: StageFolder, output: Path) -> list[dict[str, Any]]:
    """Gives the finished files their names below `output`; a folder of an earlier corpus goes. Returns list_files.

    They are links to the files of the stage where the disk allows, so nothing is written twice.
    """
    files = list_files(stage)
    new, old, final = (output / name for name in (f".{DOCUMENTS}.new", f".{DOCUMENTS}.old", DOCUMENTS))
    for folder in (new, old):
        shutil.rmtree(folder, ignore_errors=True)
    new.mkdir()
    for file in files:
        number, name = file.pop("part")
        target = new / Path(file["path"]).relative_to(DOCUMENTS)
        link_or_copy(stage.part(number) / name, target)
    if final.exists():
        final.rename(old)
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    return files
