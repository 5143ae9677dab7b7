"""The benchmarks by name: which split is reported, how many questions it has, under which licence, from where.

Counts are rows as published, by split and by part (a KorMedMCQA exam, an MMLU subject) or language; a split that is
not listed is not checked. Where they come from: MMedBench, table of sources of arXiv:2402.13963 and the totals 45,048
and 8,518 of its card (zh and ja train, ja test are what remains of them); KorMedMCQA, arXiv:2403.01469v3 (7,469 in all)
and the card's viewer; the other sets, counted in the published files or given on their cards. CasiMedicos circulates in
two sizes (553 and 622 cases): its count is not checked.
"""

import dataclasses
from collections.abc import Iterator, Mapping

from mmed_jax.common.errors import UserError, nearest
from mmed_jax.data.sources import SOURCES, Hub, Row, Source
from mmed_jax.data.sources.mmlu import SUBJECTS
from mmed_jax.data.sources.source import fingerprint, text

Counts = Mapping[str, Mapping[str, int]]  # split -> {part or language: rows published}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One benchmark.

    Attributes:
      name: what --benchmark takes. split: the one reported; "" = the set has no splits.
      languages: asked. whole: every part and language must be there, because the reported number is a mean over them.
      counts: see the module's head. drops: rows of a split that never become a question, for a reason of their own.
      parts: NAME/PART asks one; told by provenance[part_field]. asked_parts: what NAME alone asks (default: all).
      examples: splits that few-shot examples are taken from, the first that is there.
      aliases: other names of its folder or zip. prefer: a folder inside that is read instead of the whole.
      skip: files whose name holds one of these are not of the set. revision: of the hub copy the counts were seen in.
      subfolders: of the set, by which the folder that is searched is itself known as the set.
      published_average: what the publication averages: "overall" all items, or "mean_over_languages".
      note: what a reader of the number should know.
    """

    name: str
    source: Source
    split: str
    languages: tuple[str, ...] = ()
    counts: Counts = dataclasses.field(default_factory=dict)
    whole: bool = False
    drops: Mapping[str, int] = dataclasses.field(default_factory=dict)
    part_field: str = ""
    parts: tuple[str, ...] = ()
    asked_parts: tuple[str, ...] = ()
    examples: tuple[str, ...] = ("train", "validation")
    aliases: tuple[str, ...] = ()
    prefer: str = ""
    skip: tuple[str, ...] = ()
    revision: str = ""
    subfolders: tuple[str, ...] = ()
    published_average: str = "overall"
    note: str = ""

    def expected(self, split: str, cells: tuple[str, ...]) -> dict[str, int] | None:
        """Published rows of a split by part or language, of `cells` only; None when they are not known."""
        known = self.counts.get(split)
        if known is None or any(c not in known for c in cells):
            return None
        return {c: known[c] for c in cells}

    def cell(self, record: dict) -> str:
        """What a record is counted under: its part, or its language."""
        return record["provenance"].get(self.part_field, "") if self.parts else record["language"]


def _pmids(rows: Iterator[Row]) -> Iterator[Row]:
    """bigbio's tables leave the pmid out; the question names the row."""
    for row in rows:
        if "pubid" in row.raw:
            yield row
        else:
            yield row._replace(raw={**row.raw, "pubid": fingerprint(text(row.raw.get("QUESTION")))})


# The author's hub copy holds both halves as one split; bigbio's first fold has the official test half, as lm-eval uses.
_PUBMEDQA = dataclasses.replace(
    SOURCES["pubmedqa"],
    unfold=_pmids,
    hub=Hub("bigbio/pubmed_qa", ("pubmed_qa_labeled_fold0_source",), "refs/convert/parquet", subdirs=True),
)

_SIX = (
    "clinical_knowledge",
    "medical_genetics",
    "anatomy",
    "professional_medicine",
    "college_biology",
    "college_medicine",
)


def _per(names: tuple[str, ...], *counts: int) -> dict[str, int]:
    return dict(zip(names, counts, strict=True))


_MMED = ("en", "zh", "ja", "fr", "ru", "es")
_KOREAN = ("doctor", "nurse", "pharm", "dentist")
_MMLU = {
    "test": _per(SUBJECTS, 135, 265, 144, 173, 223, 100, 306, 272, 166),
    "validation": _per(SUBJECTS, 14, 29, 16, 22, 23, 11, 33, 31, 18),
    "dev": dict.fromkeys(SUBJECTS, 5),
}

ENTRIES: dict[str, Entry] = {
    e.name: e
    for e in (
        Entry(
            "mmedbench",
            SOURCES["mmedbench"],
            "test",
            _MMED,
            whole=True,
            examples=("train",),
            counts={
                "train": _per(_MMED, 10178, 27400, 1590, 2171, 1052, 2657),
                "test": _per(_MMED, 1273, 3426, 199, 622, 256, 2742),
            },
            revision="d817c67",
            subfolders=("Test", "test"),
            published_average="mean_over_languages",
            note="the reported average is the mean over its six languages",
        ),
        Entry(
            "kormedmcqa",
            SOURCES["kormedmcqa"],
            "test",
            ("ko",),
            whole=True,
            part_field="subject",
            parts=_KOREAN,
            counts={
                "train": _per(_KOREAN, 1890, 582, 632, 297),
                "validation": _per(_KOREAN, 164, 291, 300, 304),
                "test": _per(_KOREAN, 435, 878, 885, 811),
                "fewshot": dict.fromkeys(_KOREAN, 5),
            },
            examples=("fewshot", "validation", "train"),
            revision="79efd6f",
            note="the second version of 2024 (dentist, new tests); the first has other test sets",
        ),
        Entry(
            "medqa_us",
            SOURCES["medqa_us"],
            "test",
            ("en",),
            prefer="4_options",
            aliases=("medqa",),
            counts={"train": {"en": 10178}, "validation": {"en": 1272}, "test": {"en": 1273}},
            note="four options",
        ),
        Entry(
            "medmcqa",
            SOURCES["medmcqa"],
            "validation",
            ("en",),
            examples=("train",),
            counts={"train": {"en": 182822}, "validation": {"en": 4183}},
            note="the test split is published without its key; everybody reports validation",
        ),
        Entry(
            "pubmedqa",
            _PUBMEDQA,
            "test",
            ("en",),
            counts={"train": {"en": 500}, "test": {"en": 500}},
            note="the official half of PQA-L, listed in test_ground_truth.json; open book unless --book=closed",
        ),
        Entry(
            "mmlu_medical",
            SOURCES["mmlu_medical"],
            "test",
            ("en",),
            _MMLU,
            whole=True,
            part_field="subject",
            parts=SUBJECTS,
            asked_parts=_SIX,
            examples=("dev", "validation"),
            aliases=("mmlu",),
            note="six subjects, those of the papers; human_aging, nutrition and virology are asked by name",
        ),
        Entry(
            "igakuqa",
            SOURCES["igakuqa"],
            "",
            ("ja",),
            {"": {"ja": 2000}},
            drops={"": 14},
            skip=("_translate", "_metadata"),
            note="no splits: no few-shot without --few_shot_data; 14 problems have no lettered options; "
            "MMedBench's 199 Japanese test questions are a part of it that is not published apart",
        ),
        Entry(
            "frenchmedmcqa",
            SOURCES["frenchmedmcqa"],
            "test",
            ("fr",),
            {"train": {"fr": 2171}, "validation": {"fr": 312}, "test": {"fr": 622}},
            note="half of the questions have several right answers; all of them must be found",
        ),
        Entry(
            "rumeddanet",
            SOURCES["rumeddanet"],
            "test",
            ("ru",),
            {"train": {"ru": 1052}, "validation": {"ru": 256}, "test": {"ru": 256}},
            skip=("private_test",),
            note="open book unless --book=closed; MMedBench asks the same questions without the passage",
        ),
        Entry(
            "headqa",
            SOURCES["headqa"],
            "test",
            ("es", "en"),
            aliases=("head-qa", "head_qa"),
            counts={
                "train": {"es": 2657, "en": 2657},
                "validation": {"es": 1366, "en": 1366},
                "test": {"es": 2742, "en": 2742},
            },
            note="the English questions are a machine translation",
        ),
        Entry("casimedicos", SOURCES["casimedicos"], "test", ("en", "es", "fr")),
        Entry(
            "jmmlu_medical",
            SOURCES["jmmlu_medical"],
            "",
            ("ja",),
            {"": _per(SUBJECTS, 132, 150, 143, 150, 150, 99, 149, 150, 150)},
            whole=True,
            part_field="subject",
            parts=SUBJECTS,
            aliases=("jmmlu",),
            note="translates MMLU's test questions; no splits: no few-shot without --few_shot_data",
        ),
    )
}

# Everything the two papers report on.
GROUPS = {"papers": ("mmedbench", "kormedmcqa", "medqa_us", "medmcqa", "pubmedqa", "mmlu_medical")}


def lookup(name: str) -> tuple[Entry, str, str] | None:
    """(entry, part, split) of "medqa_us", "kormedmcqa/doctor", "mmedbench/fr", "headqa:train"; "" for what is not said.

    A part is one of the entry's parts, or one of its languages. None for an unknown name. Raises UserError for a part
    it does not have.
    """
    whole, _, split = name.lower().partition(":")
    head, _, part = whole.partition("/")
    entry = ENTRIES.get(head)
    if entry is None:
        return None
    known = entry.parts or (entry.languages if len(entry.languages) > 1 else ())
    if part and part not in known:
        hint = nearest(part, known) or f"; {head} has no parts"
        raise UserError(f"--benchmark={name}: no such part{hint}")
    return entry, part, split


def expand(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names with groups ("papers") replaced by what they stand for, nothing twice that way; registered ones in lower
    case."""
    out: list[str] = []
    names = tuple(n.lower() if lookup(n) or n.lower() in GROUPS else n for n in names)
    for name in names:
        out += [n for n in GROUPS[name] if n not in out and n not in names] if name in GROUPS else [name]
    return tuple(out)
