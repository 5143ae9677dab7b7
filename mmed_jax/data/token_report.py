"""What a table holds, as text; the numbers are those of packed_table.table_report."""

from collections.abc import Callable, Mapping
from typing import Any

from mmed_jax.data.records.schema import LANGUAGE_NAMES, LANGUAGES
from mmed_jax.data.tokenize import LEFT_OUT


def print_report(report: dict, say: Callable[[str], None] = print) -> None:
    """Prints what `prepare` found: records in, samples left out and why, tokens, packing, languages, sources.

    report: {"records": {...}, "contents": counts of the training records by source, licence and language
    (RecordStore.contents), "tables": {split: table_report(...)}, "cached": bool, "folder": path}; of documents also
    "kind" and "mixture" (corpus_table.describe_mixture).
    """
    records = report["records"]
    gone = [f"{records[k]:,} {text}" for k, text in RECORDS_LEFT_OUT.items() if records.get(k)]
    unit = "pieces of documents" if report.get("kind") == "document" else "records"
    say(f"data: {records['read']:,} {unit}" + (f", left out: {', '.join(gone)}" if gone else ""))
    for split, t in report["tables"].items():
        say(
            f"  {split}: {t['samples']:,} samples, {t['tokens']:,} tokens ({t['supervised']:,} trained) "
            f"in {t['rows']:,} rows of {report['seq_len']:,}, {t['efficiency']:.1%} full"
        )
        gone = [f"{n:,} {LEFT_OUT[reason]}" for reason, n in t["left_out"].items() if n]
        if gone:
            say(f"    left out: {', '.join(gone)}")
        if t["shortened"]:
            say(f"    prompt shortened to fit: {t['shortened']:,}")
        for group in ("languages", "sources", "kinds"):
            parts = [f"{name} {c['samples']:,}" for name, c in sorted(t[group].items(), key=_most)]
            more = f" and {len(parts) - 12} more" if len(parts) > 12 else ""
            say(f"    samples by {group[:-1]}: {', '.join(parts[:12])}{more}")
    if report.get("mixture"):
        _print_mixture(report["mixture"], say)
    say(f"  table: {report['folder']}" + (" (made before)" if report["cached"] else ""))


def _print_mixture(groups: list[dict], say: Callable[[str], None]) -> None:
    """Shares of what the run reads, and how often it reads each row: by language, and the largest groups."""
    shares: dict[str, float] = {}
    for group in groups:
        shares[group["language"]] = shares.get(group["language"], 0.0) + group["share"]
    parts = [f"{code} {share:.1%}" for code, share in sorted(shares.items(), key=lambda item: (-item[1], item[0]))]
    say(f"  reads: {', '.join(parts)}")
    largest = sorted(groups, key=lambda g: (-g["share"], g["name"]))
    parts = [f"{g['name']} {g['share']:.1%} ({g['repeats']:.2f} times)" for g in largest]
    more = f" and {len(parts) - 12} more" if len(parts) > 12 else ""
    say(f"    groups: {', '.join(parts[:12])}{more}")


RECORDS_LEFT_OUT = {
    "weight_zero": "by mixing weights",
    "overlap": "because validation asks the same question",
}


def _most(item: tuple[str, dict]) -> tuple[int, str]:
    return -item[1]["samples"], item[0]


def print_histograms(table_report: dict, say: Callable[[str], None] = print, width: int = 40) -> None:
    """Prints bars of sample lengths and of languages (samples, and share of trained tokens)."""
    lengths = table_report["lengths"]
    most = max([1, *lengths.values()])
    say("length (tokens)    samples")
    lower = 1
    for upper, count in lengths.items():
        say(f"{lower:>7,} -{int(upper):>7,} {count:>9,} {'█' * _bar(count, most, width)}".rstrip())
        lower = int(upper) + 1
    languages = table_report["languages"]
    most = max([1, *(c["samples"] for c in languages.values())])
    total = max(1, table_report["supervised"])
    say("language           samples  share of trained tokens")
    for code in LANGUAGES:
        if code in languages:
            c = languages[code]
            bar = "█" * _bar(c["samples"], most, width)
            say(f"{code} {LANGUAGE_NAMES[code]:<12} {c['samples']:>9,} {c['supervised'] / total:>7.1%} {bar}".rstrip())


def _bar(count: int, most: int, width: int) -> int:
    return max(1, round(count / most * width)) if count else 0


def group_lines(info: Mapping[str, Any]) -> list[str]:
    """A line a group, and one a split: documents, tokens, rows, how full they are, tokens a byte of text."""
    rows: list[tuple[str, ...]] = [("split", "language/source", "documents", "tokens", "rows", "full", "tokens a byte")]
    for split, part in info["splits"].items():
        total = {name: sum(g[name] for g in part["groups"]) for name in ("documents", "tokens", "rows", "bytes")}
        for name, counts in [*((g["name"], g) for g in part["groups"]), ("all", total)]:
            full = counts["tokens"] / max(1, counts["rows"] * info["seq_len"])
            each = counts["tokens"] / max(1, counts["bytes"])
            numbers = (f"{counts[k]:,}" for k in ("documents", "tokens", "rows"))
            rows.append((split, name, *numbers, f"{full:.1%}", f"{each:.3f}"))
    return align(rows, 2)


def align(rows: list[tuple[str, ...]], left: int) -> list[str]:
    """Columns one beside the other: the first `left` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    padded = (
        [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(r, widths))] for r in rows
    )
    return ["  ".join(cells).rstrip() for cells in padded]
