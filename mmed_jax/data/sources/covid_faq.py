"""COVID-19 questions and answers of CDC and WHO in several languages (xhlulu/covid-qa, multilingual.csv).

CSV: question, answer, url, language ("korean"), source ("CDC" | "WHO"), section, wrong_answer

CDC rows are US Government work; WHO rows are CC BY-NC-SA 3.0 IGO: each record says which. The languages of a source are
parallel row by row where they have equally many rows (CDC): these share a group. WHO's do not: there a whole section is
one group, the smallest unit that surely keeps translations together.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mmed_jax.data.records.schema import LANGUAGE_NAMES
from mmed_jax.data.sources.raw_file import Download
from mmed_jax.data.sources.raw_rows import objects
from mmed_jax.data.sources.source import Drop, Row, Source, dialogue, make_id, need, origin, text

_LICENSES = {"CDC": "public domain (US Government work)", "WHO": "CC BY-NC-SA 3.0 IGO"}
_CODES = {name.lower(): code for code, name in LANGUAGE_NAMES.items()}


def rows(given: Download | Path) -> Iterator[Row]:
    found = list(objects(given, ".csv"))
    for row in found[:1]:
        need(row, "question", "answer", "language", "source", "section")
    sizes = Counter((text(r.raw.get("source")), text(r.raw.get("language"))) for r in found)
    counts: dict[str, set[int]] = {}
    for (source, _), size in sizes.items():
        counts.setdefault(source, set()).add(size)
    place: Counter = Counter()
    for row in found:
        source, language = text(row.raw.get("source")), text(row.raw.get("language"))
        place[source, language] += 1
        parallel = len(counts[source]) == 1
        unit = place[source, language] if parallel else text(row.raw.get("section"))
        yield row._replace(raw={**row.raw, "place": place[source, language], "group": f"covid_faq:{source}:{unit}"})


def convert(row: Row, kind: str) -> dict | Drop:
    raw = row.raw
    need(row, "question", "answer", "language", "source")
    source, name = text(raw["source"]), text(raw["language"]).lower()
    if name not in _CODES:
        return Drop(f"language not supported ({name})")
    return dialogue(
        "covid_faq",
        _LICENSES.get(source, "unspecified"),
        language=_CODES[name],
        question=raw["question"],
        ident=make_id("covid_faq", row, source, _CODES[name], raw["place"]),
        answer=raw["answer"],
        provenance=origin(row, row.number, raw["group"], url=text(raw.get("url")), section=text(raw.get("section"))),
    )


COVID_FAQ = Source(
    name="covid_faq",
    kinds=("instruction",),
    languages=("en", "zh", "es", "fr", "ko", "ru"),
    license="US public domain (CDC), CC BY-NC-SA 3.0 IGO (WHO)",
    url="https://github.com/xhlulu/covid-qa",
    rows=rows,
    convert=convert,
    expects="multilingual.csv with question, answer, language, source, section",
)
