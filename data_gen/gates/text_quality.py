"""Gates on the text itself: its language, refusals, words about the task, copies of the input, length, loops."""

from data_gen.gates.fields import Part, parts_of
from data_gen.gates.ngrams import is_dense, normal_text
from data_gen.gates.refusals import ABOUT_THE_TASK, DISCLAIMER, PREAMBLE, REFUSAL, STRUCTURE
from mmed_jax.data.languages.identify import SURE_OF_NAMES, language_problem, script_shares
from mmed_jax.data.languages.scripts import SCRIPTS_OF
from mmed_jax.llm_api.types import Job, Reject

# A Han, kana or hangul character says as much as this many letters of an alphabet.
DENSITY = 2.5
# Letters by which a translation may be longer (half of it: shorter) beside the ratio: short texts vary more.
SLACK = 100


def volume(text: str) -> float:
    """Length of a text in letters of an alphabet, so that one limit serves all languages."""
    return len(text) * (DENSITY if is_dense(text) else 1.0)


def language(job: Job, record: dict, *, foreign: float) -> None:
    """Every generated text is in the language asked for, Chinese in simplified characters. Reason "language".

    Options are looked at one by one for their script, together for their language; most of them may not be prose that
    was left as it is.
    """
    parts, simplified = parts_of(job, record), job.method != "original"
    for part in parts.long:
        problem = language_problem(part.text, part.language, foreign, simplified=simplified)
        if problem:
            raise Reject("language", f"{part.name}: {problem}, asked for {part.language}")
    options = [part for part in parts.all if part.name.startswith("option")] if job.method == "translation" else []
    for part in options:
        if problem := _other_script(part):
            raise Reject("language", f"{part.name}: {problem}, asked for {part.language}")
    left = [p for p in options if normal_text(p.text) == normal_text(p.source) and _has_words(p.source)]
    if 2 * len(left) > len(options):
        raise Reject("language", f"{len(left)} of {len(options)} options left as they were")
    if options:
        joined, code = "\n".join(part.text for part in options), options[0].language
        if problem := language_problem(joined, code, foreign, sure=SURE_OF_NAMES, simplified=True):
            raise Reject("language", f"options: {problem}, asked for {code}")


def _other_script(part: Part) -> str | None:
    """Why an option is not in its language's script: another one, or prose in Latin letters that are not its own."""
    shares = script_shares(part.text)
    own = sum(shares.get(name, 0.0) for name in SCRIPTS_OF[part.language])
    strange = {name: share for name, share in shares.items() if name not in (*SCRIPTS_OF[part.language], "latin")}
    if strange and max(strange.values()) > 0.5:
        return f"in {max(strange, key=strange.get)}"
    return "not translated" if not own and _has_words(part.text) else None


def refusal(job: Job, record: dict) -> None:
    """No text opens as a refusal. Reason "refusal"."""
    for part in parts_of(job, record).long:
        if found := REFUSAL.search(part.text):
            raise Reject("refusal", f"{part.name}: {_shown(found.group())}")


def boilerplate(job: Job, record: dict) -> str | None:
    """No words about the task, no preamble, no structure of prompts or chat formats. Reason "boilerplate".

    What the source text says itself is allowed. A disclaimer ("ask your doctor") is only flagged.
    """
    parts = parts_of(job, record)
    for part in parts.all:
        for pattern in (STRUCTURE, PREAMBLE, ABOUT_THE_TASK):
            found = pattern.search(part.text)
            if found and not any(pattern.search(source) for source in parts.sources):
                raise Reject("boilerplate", f"{part.name}: {_shown(found.group())}")
    advises = any(DISCLAIMER.search(part.text) for part in parts.long)
    return "disclaimer" if advises and not any(DISCLAIMER.search(source) for source in parts.sources) else None


def copy(job: Job, record: dict, *, quoted: float) -> str | None:
    """Generated text is not its input again. Reason "copy".

    A translation that equals its source, a "full" answer that is the given one, an explanation that is the question;
    an answer that is `quoted` or more of a longer passage. Options may stay as they are (drug names): a flag
    when all of them do.
    """
    parts = parts_of(job, record)
    for part in parts.long:
        if (
            part.source
            and normal_text(part.text) == normal_text(part.source)
            and (job.method != "translation" or _has_words(part.source))
        ):
            raise Reject("copy", f"{part.name} equals its source")
    if job.method == "answer_expanding":
        questions = [job.target["question"], *parts.sources]
        if normal_text(parts.long[-1].text) in map(normal_text, questions):
            raise Reject("copy", "the answer is the question")
    if job.method == "qa_generation":
        answer, passage = (normal_text(t) for t in (parts.long[-1].text, job.target.get("passage", "")))
        if len(passage) > 600 and len(answer) >= quoted * len(passage):
            raise Reject("copy", "the answer is the passage")
    if job.method == "rationale":
        text, question = normal_text(record["rationale"]), normal_text(record["question"])
        restated = len(question) > 60 and question in text and len(text) < 1.3 * len(question)
        if restated or len(text) > 40 and text in question:
            raise Reject("copy", "the rationale is the question")
    options = [p for p in parts.all if p.name.startswith("option") and p.source]
    same = [normal_text(p.text) == normal_text(p.source) for p in options]
    prose = [alike and _has_words(p.source) for p, alike in zip(options, same)]
    return "options_unchanged" if job.method == "translation" and same and (all(same) or any(prose)) else None


def _has_words(text: str) -> bool:
    """Names, formulas and codes read the same in every language; a sentence does not."""
    return sum(word.isalpha() and word.islower() for word in text.split()) >= 3 or is_dense(text) and len(text) > 8


def length(job: Job, record: dict, *, shortest: dict, longest: dict, ratio: tuple[float, float]) -> None:
    """Texts within the method's limits, counted by `volume`; translations also by ratio to their source.

    Reasons "too_short", "too_long".
    """
    parts = parts_of(job, record)
    low, high = shortest.get(job.method, 0), longest.get(job.method, float("inf"))
    if job.method == "translation":
        ours, theirs = (sum(volume(t) for t in texts) for texts in zip(*((p.text, p.source) for p in parts.all)))
        if ours + SLACK / 2 < ratio[0] * theirs:
            raise Reject("too_short", f"{ours:.0f} letters for the source's {theirs:.0f}")
        if ours - SLACK > ratio[1] * theirs:
            raise Reject("too_long", f"{ours:.0f} letters for the source's {theirs:.0f}")
    size = volume(parts.long[-1].text)
    if size < low:
        raise Reject("too_short", f"{parts.long[-1].name}: {size:.0f} letters, at least {low}")
    if size > high:
        raise Reject("too_long", f"{parts.long[-1].name}: {size:.0f} letters, at most {high}")


def repetition(job: Job, record: dict, *, distinct: float) -> None:
    """A model in a loop: of a long text's n-grams less than `distinct` are different. Reason "repetition"."""
    for part in parts_of(job, record).long:
        text = normal_text(part.text)
        size = 6 if is_dense(text) else 16
        count = len(text) - size + 1
        if count < 100:
            continue
        share = len({text[i : i + size] for i in range(count)}) / count
        if share < distinct and not _repeats(part, size, distinct):
            raise Reject("repetition", f"{part.name}: {share:.0%} of its n-grams are different")


def _repeats(part: Part, size: int, distinct: float) -> bool:
    """Whether the source of a translation repeats itself just so."""
    text = normal_text(part.source)
    count = len(text) - size + 1
    return count >= 100 and len({text[i : i + size] for i in range(count)}) / count < distinct * 1.2


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 60 else text[:57] + "...")
