"""Record files of a run, the sets of data_gen that they lie in, raw sources and the ledger; all read as files.

A checkpoint keeps a hash of each record file and of build.json of the set around it; build.json keeps those of the
set's files, of its raw sources, and of the requests in the ledger behind its rows with their answers.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError, WorkError, one_line
from mmed_jax.common.hashes import file_hash
from mmed_jax.data.packed_cache import SET, content_hash, listing_hash, set_summary
from mmed_jax.data.packed_table import TABLE, read_info
from mmed_jax.data.table_check import check_table
from mmed_jax.lineage.audit_result import Section, Trail
from mmed_jax.llm_api.ledger.answers_digest import answers_digest, request_keys

LEDGER = "ledger.sqlite"
_CONTAMINATED = "contaminated.jsonl"


class DataWalk:
    """Follows record files. ledgers: SQLite files of data_gen that may hold the requests behind a set."""

    def __init__(self, trail: Trail, ledgers: Sequence[Path]):
        self._trail, self._ledgers = trail, list(ledgers)
        self._seen: set[Path] = set()

    def files(self, section: Section, files: Sequence[Mapping[str, str]]) -> None:
        """Compares the record files of a run (packed_cache.describe_files), then walks the sets they lie in."""
        sets: dict[Path, str] = {}
        for entry in files:
            what = f"{'packed table' if entry.get('kind') == 'table' else 'records'} ({entry['key']}) {entry['path']}"
            path, tail = self._locate(entry["path"])
            if path is None:
                section.missing(what, entry["sha256"])
                if entry.get("set"):
                    section.missing(f"data set of {entry['path']}", entry["set"])
                continue
            if entry.get("kind") == "table":
                self._table(section, what, path, entry["sha256"])
                continue
            section.compare(what, entry["sha256"], _listing(f"{path}{tail}"))
            summary = set_summary(path)
            if entry.get("set") and summary is None:
                section.missing(f"{SET} of the data set of {entry['path']}", entry["set"])
            elif summary is not None:
                sets.setdefault(summary, entry.get("set", ""))
        for summary, expected in sets.items():
            self._set(section, summary, expected)

    def _locate(self, name: str) -> tuple[Path | None, str]:
        """A record path with its optional :SPLIT."""
        if (found := self._trail.find(name)) is not None:
            return found, ""
        head, colon, split = name.rpartition(":")
        if colon and "/" not in split and (found := self._trail.find(head)) is not None:
            return found, f":{split}"
        return None, ""

    def _table(self, section: Section, what: str, folder: Path, expected: str) -> None:
        section.compare(what, expected, file_hash(folder / TABLE) if (folder / TABLE).is_file() else "")
        try:
            problem = ""
            check_table(folder, read_info(folder))
        except WorkError as e:
            problem = one_line(e)
        section.check(f"shards of {folder.name}", "as in its table.json", problem)

    def _set(self, user: Section, summary: Path, expected: str) -> None:
        """A set: build.json as it was when the run began, its files, sources, contamination, requests."""
        user.compare(f"{SET} of the data set {summary.parent.name}", expected, file_hash(summary))
        if summary in self._seen:
            return
        self._seen.add(summary)
        section = self._trail.section(f"Data set {summary.parent.name}")
        try:
            build = jsonl.loads(summary.read_bytes(), dict)
        except (OSError, ValueError) as e:
            section.missing(f"{SET} of {summary.parent.name}", "a summary of the set", one_line(e))
            return
        with section.reading(f"{SET} of {summary.parent.name}"):
            self._follow(section, build, summary)

    def _follow(self, section: Section, build: Mapping[str, Any], summary: Path) -> None:
        """What a set's summary says: files, sources, contamination, requests."""
        _describe_set(section, build)
        hashes = build.get("sha256")
        if not isinstance(hashes, dict):
            section.missing("hashes of the set's files", f"sha256 in {SET}")
            hashes = {}
        for name, digest in hashes.items():
            path = summary.parent / name
            section.compare(f"{summary.parent.name}/{name}", digest, file_hash(path) if path.is_file() else "")
        _contamination(section, build, summary.parent)
        self._sources(section, build)
        self._answers(section, build, summary.parent)

    def _sources(self, section: Section, build: Mapping[str, Any]) -> None:
        for name, source in (build.get("sources") or {}).items():
            place = self._trail.find(source["name"])
            what = f"source {name} ({source['name']})"
            if place is None:
                section.missing(what, source["sha256"])
            else:
                section.compare(what, source["sha256"], _listing(str(place)))

    def _answers(self, section: Section, build: Mapping[str, Any], folder: Path) -> None:
        """The requests behind the rows, in the ledger."""
        answers = build.get("answers")
        if not isinstance(answers, dict):
            section.missing("requests behind the rows", f"answers in {SET}")
            return
        if not answers["requests"]:
            section.fact("requests", "none: no row was written by a model")
            return
        what = f"{answers['requests']:,} requests and answers in the ledger"
        if not answers["found"]:
            section.missing(what, "a ledger when the set was built")
            return
        keys = {key for record in _rows(folder) for key in request_keys(record)}
        problem = ""
        for ledger in self._ledgers or [p for p in map(self._trail.find, (LEDGER, f"data/{LEDGER}")) if p]:
            try:
                found = answers_digest(ledger, keys)
            except WorkError as e:
                problem = one_line(e)
                continue
            if found["found"]:
                section.fact("ledger", ledger.name)
                section.compare(what, answers["sha256"], found["sha256"])
                return
        section.missing(what, answers["sha256"], problem)


def _listing(path: str) -> str:
    try:
        return listing_hash(content_hash(path))
    except (OSError, UserError):
        return ""


def _rows(folder: Path) -> list[dict]:
    """Records of a set's JSON lines, of which provenance is read."""
    found = []
    for file in sorted((folder / "jsonl").rglob("*.jsonl")):
        for line in file.read_bytes().splitlines():
            try:
                found.append(jsonl.loads(line, dict))
            except ValueError:  # the file's hash says that it was changed
                continue
    return found


def _describe_set(section: Section, build: Mapping[str, Any]) -> None:
    cost = build.get("cost") or {}
    rows: Counter[str] = Counter()
    for place, n in (build.get("rows") or {}).items():
        rows[place.rpartition("/")[2]] += n
    section.fact("recipe", f"{build.get('name')} {build.get('version')} ({build.get('recipe')})")
    section.fact("rows", f"{sum(rows.values()):,}: " + ", ".join(f"{code} {n:,}" for code, n in sorted(rows.items())))
    section.fact("licences let in", build.get("licenses"))
    section.fact("models", ", ".join(f"{name} ({n:,} requests)" for name, n in (build.get("models") or {}).items()))
    if cost:
        section.fact("cost", f"{cost.get('usd', 0):.2f} US dollars for {cost.get('requests', 0):,} answered requests")
    missing = build.get("missing") or {}
    section.fact("sources not at hand when it was built", ", ".join(missing))
    tables = (("rows_by_license", "licence"), ("rows_by_source", "language/source"), ("prompts", "prompt, version"))
    for key, head in tables:
        if counts := build.get(key):
            section.tables.append(("", (head, "rows"), sorted(counts.items())))


def _contamination(section: Section, build: Mapping[str, Any], folder: Path) -> None:
    """Which benchmarks the rows were checked against, and whether the list of hits is that of the summary."""
    benchmarks, hits = build.get("benchmarks") or {}, build.get("hits") or {}
    if not benchmarks:
        section.fact("contamination", "NOT CHECKED: no benchmark was given when the set was built")
        return
    rows = [(name, n, hits.get(name, 0)) for name, n in benchmarks.items()]
    section.tables.append(("Contamination", ("benchmark", "items", "rows taken out that give one away"), rows))
    counted: Counter[str] = Counter()
    try:
        for line in (folder / _CONTAMINATED).read_bytes().splitlines():
            row = jsonl.loads(line, dict)
            counted[str(row["detail"]).partition(": ")[0]] += row.get("how") != "family"
    except (OSError, ValueError, KeyError) as e:
        section.missing(f"list of hits, {_CONTAMINATED}", json.dumps(hits), one_line(e))
        return
    found = {name: n for name, n in counted.items() if n}
    section.compare(
        "hits by benchmark, counted in its list",
        json.dumps({k: v for k, v in hits.items() if v}, sort_keys=True),
        json.dumps(found, sort_keys=True),
    )
