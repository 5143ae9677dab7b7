"""Gates on the matter: what a translation must keep, facts of an expanded answer and of one from a passage."""

from data_gen.gates.fields import named_texts, parts_of
from data_gen.gates.ngrams import is_dense, normal_text, shingles
from data_gen.gates.quantities import Quantity, changed, missing, quantities
from mmed_jax.evaluation.extraction.extract import extract
from mmed_jax.llm_api.types import Job, Reject


def contained(small: str, large: str) -> float:
    """Share of the short character n-grams of `small` that stand in `large`, 0 to 1."""
    size = 2 if is_dense(small) else 4
    wanted = set(shingles(small, size, size).tolist())
    return len(wanted & set(shingles(large, size, size).tolist())) / len(wanted) if wanted else 1.0


def options(job: Job, record: dict) -> None:
    """A translation has its parent's letters, order and key, and options that differ as far as the parent's do.

    Reason "options".
    """
    parent = job.parent
    if "options" not in parent:
        return
    if list(record["options"]) != list(parent["options"]):
        raise Reject("options", f"letters {','.join(record['options'])}, parent {','.join(parent['options'])}")
    if record["answer_idx"] != parent["answer_idx"]:
        raise Reject("options", f"key {record['answer_idx']}, parent {parent['answer_idx']}")
    ours, theirs = ([" ".join(t.split()).casefold() for t in r["options"].values()] for r in (record, parent))
    if len(set(ours)) < len(set(theirs)):
        raise Reject("options", "two options became the same")


def numbers(job: Job, record: dict, *, tolerated: int) -> str | None:
    """A translation keeps the numbers of each of its texts, with their units and bounds. Reason "numbers".

    Whole numbers up to twelve, bare or of time, may have become words (flag "number_words"), but not others in an
    option; up to `tolerated` other numbers may be missing from long texts (one in twenty), flagged "number_missing".
    Numbers that the source has not: flag "number_added". Of several flags the first of these three is returned:
    missing, added, words.
    """
    flags = []
    theirs = dict(named_texts(job.parent))
    for name, text in named_texts(record):
        source = theirs.get(name, "")
        wanted, present = quantities(source, job.parent["language"]), quantities(text, record["language"])
        lost, new = missing(wanted, present), missing(present, wanted)
        if big := [q for q in lost if not q.small]:
            if len(big) > min(tolerated, len(wanted) // 20):
                raise Reject("numbers", f"{name}: {_shown(big)} missing")
            flags.append("number_missing")
        if len(lost) > len(big):
            numerals = [q for q in new if q.unit == "roman"] and [q for q in lost if q.unit == "roman"]
            if new and (name.startswith("option") or numerals):
                raise Reject("numbers", f"{name}: {_shown(lost)} became {_shown(new)}")
            flags.append("number_words")
        if [q for q in new if not q.small]:
            flags.append("number_added")
        for quantity, found in changed(wanted, present, text)[:1]:
            raise Reject("numbers", f"{name}: {_shown([quantity])} became {found}")
    return next((flag for flag in ("number_missing", "number_added", "number_words") if flag in flags), None)


def facts(job: Job, record: dict, *, kept: float) -> str | None:
    """An expanded answer says what the given one said; an answer from a passage invents no figures. Reason "facts".

    Expansion: all numbers of the given answer, and `kept` of the n-grams of each given text (long given texts: half of
    that, since they are reworded); letters it names are the key's (reason "key"). Answers from a passage: each number
    stands in the passage, but for bare ones up to twelve.
    """
    text = parts_of(job, record).long[-1].text
    if job.method == "qa_generation":
        passage = job.target.get("passage", "")
        answer, source = quantities(text, record["language"]), quantities(passage, job.parent["language"])
        if invented := [q for q in missing(answer, source) if not q.small]:
            raise Reject("facts", f"{_shown(invented)} not in the passage")
        for quantity, found in changed(answer, source, passage)[:1]:
            raise Reject("facts", f"{_shown([quantity])}, in the passage {found}")
        return None
    answer = quantities(text, record["language"])
    for given in job.target.get("given", []):
        wanted = quantities(given, record["language"])
        if lost := [q for q in missing(wanted, answer) if not q.small]:
            raise Reject("facts", f"{_shown(lost)} of the given answer missing")
        for quantity, found in changed(wanted, answer, text)[:1]:
            raise Reject("facts", f"{_shown([quantity])} of the given answer became {found}")
        share = contained(given, text)
        if len(normal_text(given)) > 3 and share < (kept if len(given) < 120 else kept / 2):
            raise Reject("facts", f"{share:.0%} of the given answer's wording, at least {kept:.0%}")
    if job.target.get("letters"):
        found = extract(text, job.parent["options"], record["language"])
        ours, theirs = set(job.target["letters"].split(",")), set((found.letters or "").split(",")) - {""}
        if theirs - ours:
            raise Reject("key", f"argues for {found.letters}, the key is {job.target['letters']}")
    sources = quantities("\n".join(parts_of(job, record).sources), record["language"])
    invented = [q for q in missing(answer, sources) if q.unit not in ("", "roman")]
    return "number_added" if invented else None


def _shown(found: list[Quantity]) -> str:
    return ", ".join(f"{q.text} {q.unit}".strip() for q in found[:4]) + (", ..." if len(found) > 4 else "")
