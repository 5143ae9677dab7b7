"""`python -m mmed_jax.evaluate list`: the benchmarks, and which of them lie in a folder."""

from pathlib import Path

from mmed_jax.common.errors import UserError, one_line
from mmed_jax.common.input_files import suffix
from mmed_jax.common.paths import expand_home
from mmed_jax.data.records.reading import read_records
from mmed_jax.data.records.schema import kind_of
from mmed_jax.evaluation.benchmarks.locate import locate_entry
from mmed_jax.evaluation.benchmarks.read import count_splits
from mmed_jax.evaluation.benchmarks.registry import ENTRIES, GROUPS, Entry


def list_registered() -> str:
    """A table of all benchmarks: name, languages, split, size, licence, hub repository; then groups and notes."""
    lines = [("name", "languages", "split", "questions", "licence", "hub")]
    for e in ENTRIES.values():
        hub = e.source.hub.repo + (f"@{e.revision}" if e.revision and e.source.hub.repo else "")
        languages = " ".join(e.languages)
        lines.append((e.name, languages, e.split or "all", _size(e), e.source.license, hub or "-"))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(v.ljust(w) for v, w in zip(line, widths)).rstrip() for line in lines]
    text += ["", *(f"{e.name}/PART   {', '.join(e.parts)}" for e in ENTRIES.values() if e.parts)]
    text += [f"{name} = {','.join(names)}" for name, names in GROUPS.items()]
    text += ["", *(f"{e.name}: {e.note}" for e in ENTRIES.values() if e.note)]
    return "\n".join(text)


def _size(entry: Entry) -> str:
    cells = entry.asked_parts or entry.parts or entry.languages
    expected = entry.expected(entry.split, cells)
    if expected is None:
        return "not known"
    each = len(set(expected.values())) == 1 and len(cells) > 1 and not entry.whole
    return f"{next(iter(expected.values())):,} each" if each else f"{sum(expected.values()):,}"


def list_folder(data_dir: str) -> str:
    """What of it lies in a folder, split by split with its size, and the other record files there. Raises UserError."""
    folder = expand_home(data_dir)
    if not folder.is_dir():
        raise UserError(f"--data_dir={data_dir}: no such folder")
    lines, used = [], set()
    for entry in ENTRIES.values():
        try:
            located = locate_entry(entry, folder)
            if located is None:
                lines.append((entry.name, "-", "not here"))
                continue
            used.add(Path(located.path))
            for split, (count, expected) in count_splits(located).items():
                whole = "" if expected is None else "" if count == expected else f" of {expected:,}"
                mark = " <- reported" if split == (entry.split or "all") else ""
                lines.append((entry.name, Path(located.path).name, f"{split} {count:,}{whole}{mark}"))
        except UserError as e:
            lines.append((entry.name, "-", one_line(e)))
    for path in sorted(p for p in folder.iterdir() if suffix(p) == ".jsonl" and p not in used):
        try:
            kinds = [kind_of(r) for r in read_records(path)]
            lines.append((path.name, "records", f"{kinds[0]} {len(kinds):,}" if kinds else "empty"))
        except UserError as e:
            lines.append((path.name, "-", one_line(e)))
    widths = [max(len(line[i]) for line in lines) for i in (0, 1)]
    return "\n".join(f"{a.ljust(widths[0])}  {b.ljust(widths[1])}  {c}" for a, b, c in lines)
