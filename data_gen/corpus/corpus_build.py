"""The flow of a corpus: inputs -> filter -> exact and near duplicates -> clean -> documents, each stage a folder.

What the stages do stands in their modules; here is in which order they run, what each is given, and that the books of
one agree with the next. Whatever ends this process, the same command goes on with the parts that are not there.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import data_gen
from data_gen.corpus import accounting
from data_gen.corpus.accounting import Books
from data_gen.corpus.corpus_recipe import as_dict, make_settings
from data_gen.corpus.document_files import REJECTS, SAMPLES, UNKNOWN
from data_gen.corpus.duplicate_stages import languages_signed, partitions
from data_gen.corpus.executor import Executor, complete_stage
from data_gen.corpus.ocr import ocr_dependencies
from data_gen.corpus.output_stage import DOCUMENTS, group_units, put_documents
from data_gen.corpus.page_addresses import tables_of
from data_gen.corpus.pipeline_steps import FIRST, LAST, files_of
from data_gen.corpus.readers import FORMATS, PROGRAMS
from data_gen.corpus.stage_folder import Stage, StageFolder, locked
from data_gen.corpus.units import DESCRIPTIONS, InputFile, Unit, batch_files, find_files, plan_units
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.common.hashes import file_hash
from mmed_jax.common.output_files import check_folder, put_file, write_json
from mmed_jax.common.paths import expand_home

SUMMARY, WORK = "corpus.json", "work"
# What a build gives, in the order that it is written.
FOLDERS, FILES = (DOCUMENTS,), (REJECTS, "report.html", SUMMARY)
PACKAGE = Path(data_gen.__file__).parent
_SAMPLED_PARTS = 100  # whose samples the report draws from


class CorpusBuild:
    """One build of a corpus.

    Args:
      recipe: of corpus_recipe.load_recipe. data_dir: folder of the inputs. output: folder of the corpus.
      executor: runs the parts of a stage. benchmarks: folder of test sets, "" for none. earlier: folders of corpora
        that were built before; documents that they have are left out. work: of the folders of stages, None = in output;
        store: its address in a bucket, where their parts are kept too.
    """

    def __init__(
        self,
        recipe: ConfigDict,
        data_dir: str,
        output: str,
        executor: Executor,
        *,
        benchmarks: str = "",
        earlier: Sequence[str] = (),
        work: Path | None = None,
        store: str = "",
        say: Callable[[str], None] = print,
    ) -> None:
        self.recipe, self.executor, self.say = recipe, executor, say
        self.data_dir = expand_home(data_dir).absolute()  # a node of a cluster may begin in another folder
        self.benchmarks, self.settings = benchmarks or _resolved(recipe.benchmarks), make_settings(recipe)
        if not self.benchmarks:
            self.settings.pop("decontamination", None)
        self.earlier = [expand_home(path).absolute() for path in earlier]
        self.output = expand_home(output).absolute()
        if any(path.resolve() == self.output.resolve() for path in self.earlier):
            raise UserError(f"--earlier={self.output}: is --output itself, whose documents would all be left out")
        self.work, self.store = work or self.output / WORK, store
        self.missing: list[str] = []
        self.passed_over: dict[str, int] = {}  # files of no known format, by source
        self.roots: dict[str, str] = {}
        self.stages: dict[str, StageFolder] = {}
        self.ocr: tuple[dict[str, str], dict[str, Path]] = {}, {}  # engines by source, files of their data

    def __call__(self) -> dict[str, Any]:
        """Builds the corpus; returns what corpus.json holds. Raises UserError and WorkError."""
        files = self._find_inputs()
        check_folder(self.output, "--output")
        self.work.mkdir(exist_ok=True)
        with locked(self.work):
            units = self._cut(files)
            filtered = self._filter(units)
            removals = self._find_duplicates(len(units), sum(filtered.kept.values()))
            cleaned = self._clean(len(units), filtered, removals, self._index_benchmarks())
            listed = self._put(units, filtered, cleaned)
            return self._summarise(files, listed, filtered, cleaned)

    def _find_inputs(self) -> list[InputFile]:
        """The files of all sources. Raises UserError where one that must be there is missing, or all are."""
        files: list[InputFile] = []
        for name in sorted(self.recipe.sources):
            source = self.recipe.source[name]
            inside = source.path.startswith("@")
            root, path = PACKAGE if inside else self.data_dir, source.path.removeprefix("@")
            self.roots[name] = str(root)
            if not inside and not root.is_dir():
                raise UserError(f"--data_dir={root}: no such folder")
            unknown: list[str] = []
            matches = find_files(name, root, path, source.format, unknown)
            if not inside and (self.output.is_relative_to(root / path) or _below(self.output, matches)):
                raise UserError(
                    f"--output={self.output}: lies in the inputs of source.{name}; the next build would read it"
                )
            if unknown:
                self.passed_over[name] = len(unknown)
                first = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
                self.say(f"source {name}: {len(unknown):,} files of no known format are passed over: {ascii(first)}")
            if not matches and self.recipe.missing == "error":
                raise UserError(f"source.{name}: no file at {root / path} (--recipe.missing=skip leaves it out)")
            self.missing += [] if matches else [name]
            files += matches
        if not files:
            raise UserError(f"--data_dir={self.data_dir}: no source of the recipe is there: {', '.join(self.missing)}")
        self.ocr = ocr_dependencies({name: as_dict(self.recipe)["source"][name] for name in self.roots}, files)
        for name in self.missing:
            self.say(f"not there: source {name} ({self.recipe.source[name].path})")
        return files

    def _run(self, stage: Stage) -> StageFolder:
        """The folder of a stage with all its parts."""
        folder = complete_stage(self.work, stage, self.store, self.executor, self.say)
        self.stages[stage.name] = folder
        return folder

    def _cut(self, files: list[InputFile]) -> list[Unit]:
        """Checksums of the inputs, and where to cut them. A file of the same size and time is not read again."""
        unit_bytes = int(self.recipe.unit_mb * 1e6)
        keys = ("source", "name", "format", "size", "mtime_ns")
        batches = batch_files(files)
        parts = [{"files": [{k: asdict(f)[k] for k in keys} for f in batch]} for batch in batches]
        folder = self._run(
            Stage(
                "inputs",
                "data_gen.corpus.units:describe_files",
                parts,
                {"unit_bytes": unit_bytes},
                modules=_reader_modules(),
                context={"roots": self.roots},
            )
        )
        descriptions: list[dict[str, Any]] = []
        for number in range(len(parts)):
            descriptions += json.loads((folder.part(number) / DESCRIPTIONS).read_bytes())
        return plan_units(files, descriptions, unit_bytes)

    def _filter(self, units: list[Unit]) -> Books:
        """Reads and filters all units. Raises UserError where a source gives no document at all."""
        engines, engine_data = self.ocr
        sources = {name: as_dict(self.recipe)["source"][name] for name in sorted({u.source for u in units})}
        for source in sources.values():
            del source["path"], source["kind"]
        folder = self._run(
            Stage(
                "filter",
                "data_gen.corpus.filter_stage:filter_unit",
                [unit.as_dict() for unit in units],
                {
                    "steps": {name: self.settings[name] for name in FIRST if name in self.settings},
                    "sources": sources,
                    "ocr": engines,
                },
                files=files_of(self.settings) | self._address_tables(units) | engine_data,
                modules=_reader_modules(),
                context={"roots": self.roots},
            )
        )
        books = accounting.total(_counts(folder), "filter")
        for name in sources:
            unread = {reason: n for (s, _, step, reason), n in books.dropped.items() if (s, step) == (name, "read")}
            if sum(unread.values()) == accounting.by_source(books.read)[name]:
                reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(unread.items())) or "its files are empty"
                raise UserError(f"source.{name}: not one document could be read: {reasons}")
        return books

    def _address_tables(self, units: Iterable[Unit]) -> dict[str, Path]:
        """The tables that say where pages of HTML come from, by name. Raises UserError where one is wrong."""
        pages = {(u.source, p.name) for u in units for p in u.pieces if p.format == "html"}
        tables = tables_of(Path(self.roots[source]) / name for source, name in pages)
        roots = sorted(set(self.roots.values()))
        return {os.path.relpath(t, next((r for r in roots if t.is_relative_to(r)), roots[0])): t for t in tables}

    def _find_duplicates(self, units: int, documents: int) -> dict[str, StageFolder]:
        """{step: folder with its Removals}."""
        removals: dict[str, StageFolder] = {}
        before, earlier = self.stages["filter"], self._sign_earlier()
        documents += sum(earlier.marker(n)["rows"] for n in range(len(earlier.parts))) if earlier else 0
        if "exact_duplicates" in self.recipe.steps:
            removals["exact_duplicates"] = self._run(
                Stage(
                    "exact",
                    "data_gen.corpus.duplicate_stages:find_exact",
                    list(partitions(documents)),
                    before=_hashes(filter=before, earlier=earlier),
                    context=_paths(filter=before, earlier=earlier),
                )
            )
        if "near_duplicates" in self.recipe.steps:
            removals["near_duplicates"] = self._find_near(units, removals.get("exact_duplicates"), earlier)
        return removals

    def _sign_earlier(self) -> StageFolder | None:
        """Keys and signatures of the earlier corpora; None without any. Raises UserError where one is none."""
        parts = []
        for number, folder in enumerate(self.earlier):
            try:
                files = json.loads((folder / SUMMARY).read_bytes())["files"]
            except (OSError, ValueError, KeyError) as e:
                raise UserError(
                    f"--earlier={folder}: no corpus ({SUMMARY}: {getattr(e, 'strerror', None) or e})"
                ) from e
            parts += [{"corpus": number, **{k: f[k] for k in ("path", "language", "sha256")}} for f in files]
        if not parts:
            return None
        function = "data_gen.corpus.duplicate_stages:sign_earlier"
        context = {"roots": [str(folder) for folder in self.earlier]}
        return self._run(Stage("earlier", function, parts, self.settings.get("near_duplicates", {}), context=context))

    def _find_near(self, units: int, exact: StageFolder | None, earlier: StageFolder | None) -> StageFolder:
        settings, filtered = self.settings["near_duplicates"], self.stages["filter"]
        signed = self._run(
            Stage(
                "signatures",
                "data_gen.corpus.duplicate_stages:sign_unit",
                [{"unit": n} for n in range(units)],
                settings,
                before=_hashes(filter=filtered, exact=exact),
                context=_paths(filter=filtered, exact=exact),
            )
        )
        return self._run(
            Stage(
                "near",
                "data_gen.corpus.duplicate_stages:find_near",
                [{"language": language} for language in languages_signed(signed)],
                settings,
                before=_hashes(signatures=signed, earlier=earlier),
                context=_paths(signatures=signed, earlier=earlier),
            )
        )

    def _index_benchmarks(self) -> StageFolder | None:
        """The index of the test sets; None without any. Raises UserError where one cannot be read."""
        if "decontamination" not in self.settings:
            self.say("no benchmarks: nothing is checked against test sets")
            return None
        root = expand_home(self.benchmarks).absolute()
        if not root.is_dir():
            raise UserError(f"--benchmarks={self.benchmarks}: no such folder")
        files = sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith("."))
        listed = {p.relative_to(root).as_posix(): file_hash(p) for p in files}
        function = "data_gen.corpus.clean_stage:index_benchmarks"
        return self._run(Stage("benchmarks", function, [{"files": listed}], context={"folder": str(root)}))

    def _clean(self, units: int, filtered: Books, removals: dict[str, StageFolder], index: StageFolder | None) -> Books:
        """Removes duplicates, decontaminates, masks personal data."""
        before = {"filter": self.stages["filter"], **removals}
        before |= {"benchmarks": index} if index else {}
        folder = self._run(
            Stage(
                "clean",
                "data_gen.corpus.clean_stage:clean_unit",
                [{"unit": n} for n in range(units)],
                {"steps": {name: self.settings[name] for name in LAST if name in self.settings}},
                before={name: stage.hash for name, stage in before.items()},
                context={
                    "filter": str(before["filter"].path),
                    "removals": {name: str(stage.path) for name, stage in removals.items()},
                    "benchmarks": str(index.part(0)) if index else "",
                },
            )
        )
        books = accounting.total(_counts(folder), "clean")
        accounting.check_follows(filtered, books, "clean")
        return books

    def _put(self, units: list[Unit], filtered: Books, cleaned: Books) -> list[dict[str, Any]]:
        """The finished files. Raises WorkError where no document is left, or other numbers than were kept."""
        if not cleaned.kept:
            reasons = Counter[str]()
            for (_, _, step, reason), n in (filtered.dropped + cleaned.dropped).items():
                reasons[f"{step}: {reason}"] += n
            first = ", ".join(f"{reason} {n:,}" for reason, n in reasons.most_common(5))
            raise WorkError(f"no document is left for the corpus; dropped: {first}")
        clean = self.stages["clean"]
        sizes = [sum(row[-1] for row in clean.marker(n)["counts"]["bytes"]) for n in range(len(units))]
        folder = self._run(
            Stage(
                "documents",
                "data_gen.corpus.output_stage:write_group",
                group_units([unit.source for unit in units], sizes),
                {"format": self.recipe.output_format},
                before={"clean": clean.hash},
                context={"clean": str(clean.path)},
            )
        )
        files = put_documents(folder, self.output)
        written: dict[tuple[str, str], int] = {}
        for file in files:
            place = file["source"], file["language"].replace(UNKNOWN, "")
            written[place] = written.get(place, 0) + file["rows"]
        if written != dict(cleaned.kept):
            raise WorkError("documents: other numbers written than kept; this is a fault of the program")
        return files

    def _summarise(
        self, inputs: list[InputFile], files: list[dict[str, Any]], filtered: Books, cleaned: Books
    ) -> dict[str, Any]:
        """Writes corpus.json, rejects.jsonl and report.html."""
        from data_gen.corpus.corpus_report import page

        summary = {
            "name": self.recipe.name,
            "recipe": as_dict(self.recipe),
            "inputs": {"files": len(inputs), "bytes": sum(f.size for f in inputs), "passed_over": self.passed_over},
            "missing": self.missing,
            # Not of the inputs: that name has the files' times in it.
            "stages": {name: folder.path.name for name, folder in self.stages.items() if name != "inputs"},
            "files": files,
            "books": {"filter": filtered.as_dict(), "clean": cleaned.as_dict()},
        }
        with put_file(self.output / REJECTS) as temporary, open(temporary, "wb") as f:
            for number in range(len(self.stages["filter"].parts)):
                f.write((self.stages["filter"].part(number) / REJECTS).read_bytes())
        samples = [s for name in ("filter", "clean") for s in _samples(self.stages[name])]
        with put_file(self.output / FILES[1]) as temporary:
            temporary.write_text(page(self.recipe, summary, filtered, cleaned, samples), encoding="utf-8")
        write_json(self.output / SUMMARY, summary)
        return summary


def _hashes(**stages: StageFolder | None) -> dict[str, str]:
    """Hashes of stages by name; "" for those that did not run."""
    return {name: stage.hash if stage else "" for name, stage in stages.items()}


def _paths(**stages: StageFolder | None) -> dict[str, str]:
    """The same of their folders."""
    return {name: str(stage.path) if stage else "" for name, stage in stages.items()}


def _resolved(path: str) -> str:
    """A path of a recipe; one that begins with @ lies in data_gen."""
    return str(PACKAGE / path[1:]) if path.startswith("@") else path


def _below(folder: Path, files: Iterable[InputFile]) -> bool:
    """Whether one of the files lies below a folder."""
    return any(Path(file.path).is_relative_to(folder) for file in files)


def _counts(folder: StageFolder) -> Iterable[dict[str, Any]]:
    return (folder.marker(number)["counts"] for number in range(len(folder.parts)))


def _samples(folder: StageFolder) -> list[dict[str, Any]]:
    """Samples of parts spread over a stage."""
    step = max(1, len(folder.parts) // _SAMPLED_PARTS)
    return [
        sample
        for number in range(0, len(folder.parts), step)
        for sample in json.loads((folder.part(number) / SAMPLES).read_bytes())
    ]


def _reader_modules() -> tuple[str, ...]:
    """Modules of all readers, which are imported by name or started."""
    return tuple(sorted({*PROGRAMS, *(target.partition(":")[0] for _, target in FORMATS.values())}))
