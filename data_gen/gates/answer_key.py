"""Which option a rationale argues for: by the letters it states, else by what its last sentences name."""

import re
from functools import lru_cache

from data_gen.gates.fields import named_texts
from data_gen.gates.ngrams import is_dense, normal_text
from data_gen.gates.refusals import EITHER, NEGATION, NONE_OF_THEM, UNCERTAIN
from mmed_jax.evaluation.extraction.extract import extract, is_correct
from mmed_jax.llm_api.types import Job, Reject

# Sentences from the end in which a rationale without a stated letter must come to its conclusion.
LAST = 3
# Rules of mmed_jax.evaluation.extraction.extract that read an opinion on one option, not the conclusion.
_WEAK = ("verdict", "leading", "first_line")
# Rules that read letters out of a sentence about the answer.
_STATEMENTS = ("boxed", "json", "mark", "sentence", "choose", "conclusion", "is_answer")
_SENTENCE = re.compile(r"(?<=[.!?])[\"'”’»)\]]*\s+(?!\d)|(?<=[。！？])|\n+")
_CLAUSE = re.compile(
    r"[,;:()，；：（）、]\s*|\s[-–—]+\s"
    r"|\s(?=(?:but|while|whereas|although|though|yet|and not|rather than|instead of|mais|alors que|tandis que|et non|"
    r"plutôt que|au lieu de|pero|sino|mientras|aunque|y no|en lugar de|en vez de|но|однако|хотя|тогда как|и не|вместо)"
    r"\b)"
    r"|(?=但|而不|而非|지만\s|しかし)|(?<=지만)\s|(?<=が、)",
    re.IGNORECASE,
)
# A letter that stands for an option; A, E, I, O, Y are words in some language and need a sign that they do.
_SIGN = (
    r"(?:options?|choices?|answers?|letter|choose|pick|select|réponses?|propositions?|lettre|opci[oó]n(?:es)?|letra|"
    r"respuestas?|alternativas?|вариант\w*|ответ\w*|букв\w+|пункт\w*)\s+(?:is\s+|are\s+|es\s+|son\s+|est\s+|sont\s+|la\s+|—\s+)?\(?"
    r"|(?:选项|选择|选|答案[是为]?|選択肢|正解は?|선택지|보기|정답은?)\s*\(?|\(|（"
)
_LETTER = re.compile(rf"(?P<sign>(?i:{_SIGN}))?(?<![\w'’.-])(?P<letter>[A-Z])(?![\w'’°+-])(?!\.\s?[a-z])")
_NO_OPTION = re.compile(
    r"(?:vitamin[ae]?|hepatitis|hépatite|type|tipo|types?|group|groupe|grupo|factor|facteur|class|classe|clase|grade|"
    r"grado|stage|influenza|protein|protéine|proteína|strain|child|витамин\w*|гепатит\w*|тип\w*|групп\w+|фактор\w*|型|类|群)"
    r"\s*$",
    re.IGNORECASE,
)
# "the correct answer is number 3": options counted from one.
_NUMBER = re.compile(
    r"(?:answer|option|respuesta|opci[oó]n|réponse|proposition|ответ|вариант|答案|选项|正解|選択肢|정답|보기)"
    r"(?:\s*(?:correcta?|correcte|exacte|is|es|est|la|el|le|number|número|numéro|no\.?|n[.ºo°]|—|是|为|は|은|는|번호))*"
    r"\s*[:=]?\s*\(?(\d)\)?(?![\d.,]*\d|\s*(?:%|m?g\b|ml\b|years?|años|ans\b))",
    re.IGNORECASE,
)


def key(job: Job, record: dict, *, stated: float, required: bool) -> str | None:
    """A rationale leads to the keyed option(s), all of them and no other. Reason "key".

    The letters that evaluation.extraction reads out of it decide. Where it states none, the last sentence of the
    last LAST that names options without denying them must name the key's only: by letter, or by `stated` of the n-grams
    that set an option's text apart. Who is not certain, or finds no option right, leads nowhere. What can't be told is
    rejected (`required`), or flagged "key_unstated".
    """
    text, options, answer = record["rationale"], record["options"], record["answer_idx"]
    wanted = set(answer.split(","))
    sources = (record["question"], *options.values())
    for pattern in (NONE_OF_THEM, UNCERTAIN):
        if (found := pattern.search(text)) and not any(pattern.search(source) for source in sources):
            raise Reject("key", f"comes to no option: {found.group()[:60]!r}")
    language = job.target.get("language", record["language"])
    said = extract(text, options, language)
    if said.rule == "ambiguous":
        raise Reject("key", "names several options as possible")
    if said.letters is not None:
        if is_correct(said.letters, answer) and said.rule not in _WEAK:
            return None
        if said.rule not in _WEAK or not set(said.letters.split(",")) <= wanted:
            raise Reject("key", f"argues for {said.letters}, the key is {answer}")
    if said.letters is None and (found := EITHER.search("\n".join(_sentences(text)[-LAST:]))):
        raise Reject("key", f"leaves it open: {found.group()[:60]!r}")
    named = conclusion(text, options if language == record["language"] else dict.fromkeys(options, ""), stated)
    if named - wanted:
        raise Reject("key", f"concludes with {','.join(sorted(named))}, the key is {answer}")
    if named == wanted or said.letters is not None and is_correct(said.letters, answer):
        return None
    if required:
        raise Reject("key", f"its end names {','.join(sorted(named)) or 'no option'}, the key is {answer}")
    return "key_unstated"


def kept(job: Job, record: dict) -> str | None:
    """A translation states the answer where its source does, and the same one. Reason "key".

    Of every text the statement that evaluation.extraction reads: other letters than the source's are rejected,
    and so is one in a question, a passage or an option where the source states none. In other texts letters of the key
    are flagged ("answer_stated"), as is a statement that got lost ("key_unstated").
    """
    flags: list[str] = []
    theirs = dict(named_texts(job.parent))
    for name, text in named_texts(record):
        ours = _stated(text, record, record["language"])
        before = _stated(theirs.get(name, ""), job.parent, job.parent["language"])
        if ours == before:
            continue
        if not ours:
            flags.append("key_unstated")
        elif before or name != "rationale" and not name.startswith("assistant"):
            raise Reject("key", f"{name}: states {ours}, its source {before or 'nothing'}")
        elif "answer_idx" in record and not set(ours.split(",")) <= set(record["answer_idx"].split(",")):
            raise Reject("key", f"{name}: argues for {ours}, the key is {record['answer_idx']}")
        else:
            flags.append("answer_stated")
    return next((flag for flag in ("answer_stated", "key_unstated") if flag in flags), None)


def _stated(text: str, record: dict, language: str) -> str:
    """Letters that a text states as the answer, "" for none; opinions and option texts are no statement."""
    found = extract(text, record["options"] if "options" in record else "ABCDE", language)
    clear = found.rule.partition(":")[0] in _STATEMENTS and not found.rule.endswith(":text")
    return found.letters if clear and found.letters else ""


def conclusion(text: str, options: dict[str, str], stated: float) -> set[str]:
    """Letters of the options that the last sentence naming any, of the last LAST, names without denying them."""
    for sentence in reversed(_sentences(text)[-LAST:]):
        named: set[str] = set()
        for clause in filter(normal_text, _CLAUSE.split(sentence)):
            found = _letters(clause, options) | _texts(clause, options, stated)
            bare = clause
            for letter in found:  # an option may hold a "not" itself
                bare = re.sub(re.escape(options[letter]), " ", bare, flags=re.IGNORECASE) if options[letter] else bare
            if found and not NEGATION.search(bare):
                named |= found
        # An option's text may be cut in pieces by its own commas.
        whole = _texts(sentence, options, stated)
        if not named and whole and not NEGATION.search(sentence):
            named = whole
        if named:
            return named
    return set()


def _sentences(text: str) -> list[str]:
    return [s for s in _SENTENCE.split(text) if normal_text(s)]


def _letters(clause: str, options: dict[str, str]) -> set[str]:
    found = set()
    for m in _LETTER.finditer(clause):
        letter = m["letter"]
        if letter in options and (m["sign"] or letter not in "AEIOY") and not _NO_OPTION.search(clause[: m.start()]):
            found.add(letter)
    number = _NUMBER.search(clause)
    if number and 0 < int(number[1]) <= len(options):
        found.add(list(options)[int(number[1]) - 1])
    return found


def _texts(clause: str, options: dict[str, str], stated: float) -> set[str]:
    """Options of whose n-grams, those of all and those it alone has, the share `stated` stands in the clause."""
    here, found = _grams(clause), set()
    for letter, (every, own) in _apart(tuple(options.items())).items():
        if every and len(every & here) >= stated * len(every) and len(own & here) >= stated * len(own):
            found.add(letter)
    return found


@lru_cache(maxsize=64)
def _apart(options: tuple[tuple[str, str], ...]) -> dict[str, tuple[frozenset, frozenset]]:
    grams = {letter: _grams(text) for letter, text in options}
    rest = {letter: set().union(*(g for other, g in grams.items() if other != letter)) for letter in grams}
    return {letter: (frozenset(g), frozenset(g - rest[letter])) for letter, g in grams.items()}


def _grams(text: str) -> set[str]:
    size = 2 if is_dense(text) else 4
    text = normal_text(text)
    return {text[i : i + size] for i in range(max(1, len(text) - size + 1))} if text else set()
