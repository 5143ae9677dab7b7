"""What a card and a report say of a set, gathered in one pass over its rows: counts, lengths, licences, samples."""

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_gen.sets.inputs import Inputs
from data_gen.sets.licenses import terms
from data_gen.sets.run_steps import Rows
from data_gen.sets.select import Selection
from mmed_jax.data.records.linked_rows import stable_hash
from mmed_jax.data.records.schema import LANGUAGES

# Characters of an answer or rationale: edges of the histogram's bins.
LENGTHS = (0, 50, 100, 200, 400, 800, 1600, 3200, 6400)


@dataclass
class Facts:
    """Counts of the published rows by (split, language), (language, source), (language, how), licence, flag; lengths of
    answers by language; `samples[language]` some rows chosen by hash."""

    rows: Counter = field(default_factory=Counter)
    sources: Counter = field(default_factory=Counter)
    methods: Counter = field(default_factory=Counter)
    licenses: Counter = field(default_factory=Counter)
    flags: Counter = field(default_factory=Counter)
    topics: Counter = field(default_factory=Counter)
    prompts: Counter = field(default_factory=Counter)
    models: Counter = field(default_factory=Counter)
    lengths: dict[str, list[int]] = field(default_factory=dict)
    samples: dict[str, list[dict]] = field(default_factory=dict)
    rationales: int = 0
    several: int = 0

    @property
    def total(self) -> int:
        """Published rows."""
        return sum(self.rows.values())


def method_shown(record: dict) -> str:
    """The method of a record; originals whose rationale was generated are told apart."""
    prompt = str(record["provenance"].get("prompt", ""))
    generated = record["method"] in ("original", "handcrafted") and prompt.startswith("rationale/")
    return f"{record['method']} + rationale" if generated else record["method"]


def answer_text(record: dict) -> str:
    """What is learned: the last answer, or the rationale."""
    return record["rationale"] if "options" in record else record["messages"][-1]["content"]


def gather(recipe: Any, read, splits: list[str]) -> Facts:
    """One pass over the rows of a set; `read(split)` yields records."""
    facts = Facts()
    best: dict[str, list[tuple[int, int, dict]]] = {code: [] for code in recipe.languages}
    number = 0
    for split in splits:
        for record in read(split):
            number += 1
            code, about = record["language"], record["provenance"]
            facts.rows[split, code] += 1
            facts.sources[code, record["source"]] += 1
            facts.methods[code, method_shown(record)] += 1
            facts.licenses[record["license"]] += 1
            facts.flags.update(str(flag).partition(":")[0] for flag in about.get("flags", ()))
            if about.get("topic"):
                facts.topics[str(about["topic"])] += 1
            for step in (about, *about.get("history", ())):
                if step.get("prompt"):
                    facts.prompts[step["prompt"]] += 1
                    facts.models[str(step.get("model", ""))] += 1
            facts.rationales += bool(record.get("rationale"))
            facts.several += "," in record.get("answer_idx", "")
            bins = facts.lengths.setdefault(code, [0] * len(LENGTHS))
            bins[int(np.searchsorted(LENGTHS, len(answer_text(record)), "right")) - 1] += 1
            item = (-stable_hash(recipe.seed, "sample", record["id"]), number, record)
            push = heapq.heappush if len(best[code]) < recipe.samples else heapq.heappushpop
            push(best[code], item)
    facts.samples = {
        code: [record for _, _, record in sorted(rows, reverse=True, key=lambda i: i[:2])]
        for code, rows in best.items()
        if rows
    }
    return facts


def license_rows(facts: Facts) -> list[tuple[str, int, str, str]]:
    """(licence, rows, kind of terms, note), most rows first."""
    return [(text, n, terms(text).kind, terms(text).note) for text, n in _most(facts.licenses)]


def loss_rows(recipe: Any, inputs: Inputs, rows: Rows, selection: Selection) -> list[tuple[str, str, str, int]]:
    """(stage, part, reason, rows) of everything that is not in the set."""
    dropped = ((name, inputs.dropped.get(name, Counter())) for name in recipe.sources)
    losses = [("source", name, why, n) for name, counts in dropped for why, n in _most(counts)]
    for name in recipe.steps:
        losses += [("step", name, f"no request: {why}", n) for why, n in _most(rows.skipped[name])]
        losses += [
            ("step", name, reason or state, n)
            for (state, reason), n in _most(rows.outcomes[name])
            if state != "accepted"
        ]
    for name in (*recipe.sources, *recipe.steps):
        losses += [("selection", name, why, n) for why, n in _most(selection.removed.get(name, Counter()))]
    return losses


def prompt_rows(facts: Facts) -> list[tuple[str, int]]:
    """(prompt version, requests behind the rows), sorted."""
    return sorted(facts.prompts.items())


def languages_present(facts: Facts) -> Iterator[str]:
    """Languages with rows, in the schema's order."""
    return (code for code in LANGUAGES if any(c == code for _, c in facts.rows))


def _most(counter: Counter) -> list:
    return sorted(counter.items(), key=lambda item: (-item[1], str(item[0])))


__all__ = [
    "LENGTHS",
    "Facts",
    "answer_text",
    "gather",
    "method_shown",
    "languages_present",
    "license_rows",
    "loss_rows",
    "prompt_rows",
]
