"""From what a model wrote to option letters: ordered, anchored rules for seven languages. Pure text, no jax.

Order (the first stage that finds something decides):
  1. statements: "Answer: B", "the correct answer is (B)", "答案：B", "正解はB", "정답은 B", "La réponse est la B",
     "Respuesta: B", "Ответ: В", "###Answer: OPTION A,C IS CORRECT.", "B is the correct answer", \\boxed{B}, or the same
     with an option's text in place of its letter. The LAST one in the text wins, so a restated option list or an
     earlier guess never does; if the last one hedges ("A or B", "yes or no"), there is no answer.
     A field of JSON, {"answer_choice": "B"}, goes before what else its object says (json_answers.py).
  2. the reply is an option's text that itself speaks of options ("A and D"); it is nothing but letters; its first
     line is; it opens with "B. ..." (and is not a restated list)
  3. verdicts, "B is correct", all of them together, unless one option alone is called false
  4. the last line is nothing but letters, or "yes", "no", "да", ... where those are the options
  5. the reply, or its first line, is exactly one option's text, also with its letter, "Aspirin (A)"
  6. the last sentence concludes with an option's text and its letter, "The drug of choice is aspirin (A)."
After a statement's letter the rest of it is read: "A. aspirin, C. heparin" is a set (answer_sets.py). Of a cut reply
only what opens or closes it counts (truncation.py).
What is denied, conditional or of the wrong answers is no statement ("incorrect answer: C"; see negation.py).
Nothing found is None: scored as wrong and counted as unparsed. There is no "any letter will do" rule.

A letter counts only where something that may follow an answer follows it: the end, punctuation, "because", the
option's own text. "The answer is A patient...", "C. difficile", "B cell", "Réponse : C'est..." are not answers.
NFKC is applied here only, to a copy. Cyrillic А В С Е are read as Latin in Russian context only, А Б В Г as
the first four letters where Б or Г labels an option. Several answers
("A,C", "A et C", "A、C", "ACD") are sets, returned sorted and joined by commas.

split_rationale gives what was written before the statement that decided.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mmed_jax.evaluation.extraction import rules
from mmed_jax.evaluation.extraction.json_answers import is_torn
from mmed_jax.evaluation.extraction.prepare_text import Prepared, fold, in_latin, prepare
from mmed_jax.evaluation.extraction.stages import Answer, AnswerReader, normalise
from mmed_jax.evaluation.extraction.truncation import is_cut

RULES_VERSION = 5  # goes into results; raise it when a rule changes

_LEAD_IN, _MARK = (re.compile(p, re.IGNORECASE) for p in (rules.LEAD_IN, rules.RATIONALE_MARK))
_SPECIAL = re.compile(r"<\|[a-z_]+\|>|</s>")


class Extraction(NamedTuple):
    """Letters found ("B", "A,C") or None, and the name of the rule that decided ("none", "ambiguous" for None)."""

    letters: str | None
    rule: str


def extract(
    text: str,
    options: Mapping[str, str] | Sequence[str] = "ABCDE",
    language: str | None = None,
    finish_reason: str | None = None,
) -> Extraction:
    """Finds the answer in `text` (see the module's head for the rules).

    Args:
      text: the model's reply, without the prompt.
      options: {"A": text, ...}, or only the letters; with texts, "E. coli" and "the answer is warfarin" can be read.
      language: of the question (schema.LANGUAGES); "ru" lets Cyrillic lookalikes stand for Latin letters anywhere.
      finish_reason: why the reply ends; after "length" only an answer that opens or closes it counts. Not known (None):
        a thought or an object without its end, and long texts that stop inside a sentence, are taken as cut.
    """
    answer = _decide(prepare(text), options, language, finish_reason)
    return Extraction(answer.letters, answer.rule) if answer else Extraction(None, "none")


def split_rationale(
    text: str,
    options: Mapping[str, str] | Sequence[str] = "ABCDE",
    language: str | None = None,
    finish_reason: str | None = None,
) -> str:
    """What was written before the statement that decides the answer, as it was written: the generated rationale.

    "Therefore, the" and the like go with the statement; the mark "###Rationale:" of the mmedbench family is left out.
    Where no statement decides (nothing found, or verdicts on one option after the other), it is the whole text up to an
    invented next question; where the answer comes first, it is "". A text with the marks of the mmedbench family,
    "###Rationale:" or "###Answer: OPTION", is split as the scripts of MMedLM do, to the letter: metrics are theirs.

    Args: as of `extract`.
    """
    before, family, _ = text.partition("###Answer: OPTION ")
    if family:
        text = _SPECIAL.sub("", before).replace("###Rationale: ", "").strip()
        return _MARK.sub("", text, count=1).strip() if _MARK.match(text) else text
    copy = prepare(text, aligned=True)
    answer = _decide(copy, options, language, finish_reason)
    end = copy.end
    opened = _MARK.match(text)
    if answer and answer.start is not None and (not opened or answer.rule.startswith("mark")):
        line = max(0, copy.text.rfind("\n", 0, answer.start) + 1, answer.start - 80)
        at = line + _LEAD_IN.search(copy.text[line : answer.start]).start()
        if _torn(copy.text, at, answer):
            at = answer.start
        end = copy.offsets[at] if at < len(copy.offsets) else end
    text = _SPECIAL.sub("", text[:end])
    return text[opened.end() :].strip() if opened else text.strip().rstrip("*#_` \n")


def _torn(text: str, lead: int, answer: Answer) -> bool:
    """Whether the statement is a mark of its own, "### Answer: B" or "Answer: B", behind a sentence that breaks off:
    the words from `lead` on are that sentence's."""
    own = text[: answer.start].rstrip().endswith("#") or text[answer.start : answer.start + 1].isupper()
    return answer.rule.startswith("mark") and own and text[:lead].rstrip()[-1:] not in ("", *".!?:;…。！？：")


def is_correct(extracted: str | None, answer_idx: str) -> bool:
    """Whether the extracted letters are exactly the answer's set of letters; None never is."""
    return extracted is not None and normalise(extracted) == normalise(answer_idx)


def _decide(
    copy: Prepared, options: Mapping[str, str] | Sequence[str], language: str | None, finish_reason: str | None
) -> Answer | None:
    """The first stage that finds something in the prepared text."""
    text = in_latin(copy.text) if language == "ru" else copy.text
    if not text:
        return None
    texts = {k: fold(v) for k, v in options.items()} if isinstance(options, Mapping) else {}
    reader = AnswerReader("".join(options), texts, language == "ru")
    if not copy.run_on and is_cut(copy, finish_reason):
        # What weighs options one by one, or stands on a line of its own somewhere, is not the end of it.
        inside = copy.thinking or is_torn(text)
        stages = (lambda t: reader.statements(t, cut=True, thinking=inside), reader.opening_of_cut)
        stages = stages[:1] if inside else stages
    else:
        stages = (reader.statements, reader.opening, reader.verdicts, reader.last_line)
        stages += (reader.option_text, reader.closing)
    return next((answer for stage in stages if (answer := stage(text))), None)
