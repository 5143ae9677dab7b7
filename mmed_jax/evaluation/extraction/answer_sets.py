"""Several answers in one statement, each with its option's text: "A. lisinopril, C. losartan", "A (..) et C (..)".

After the first letter of a statement the rest of it is read: further letters with their texts make a set; where it
can't be told whether they belong to the answer, there is none. Texts may be the options' own or other words.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from mmed_jax.evaluation.extraction import patterns, rules
from mmed_jax.evaluation.extraction.option_texts import OptionTexts

_CLOSE = rf"[{rules.CLOSE}]{{0,3}}"
_AND = (
    r"(?:(?:and|et|y|и|as\s+well\s+as|along\s+with|plus|also|ainsi\s+que|así\s+como|y\s+también|а\s+также|также)\b|"
    r"以及|和|与|及|と|および|ならびに|並びに|및|과|와|그리고)"
)
_OR = (
    r"(?:(?:or|ou|o|u|или|либо|possibly|maybe|perhaps|peut-être|quizás?|возможно)\b|或者?|または|もしくは|"
    r"あるいは|또는|혹은|이나)"
)
_JOINT = rf"{_CLOSE}\s{{0,3}}(?:(?P<comma>[,;、+&])\s{{0,3}})?(?:(?P<and>{_AND})\s{{0,3}})?(?:(?P<or>{_OR})\s{{0,3}})?"
_LINE = rf"{_CLOSE}\s{{0,3}}[.,;、]?[^\S\n]{{0,8}}\n(?P<blank>\s{{0,8}})(?:[-•·]\s{{0,4}}|\d\.\s{{1,3}})?"
_WORDS = (
    r"(?:(?:(?:the\s+)?options?|choice|letter|la|le|l['’]|el|réponse|proposition|opción|letra|вариант|"
    r"ответ)\s{0,2}|选项|選択肢|보기){0,2}"
)
_GROUP = re.compile(r"[^\S\n]{0,2}(?:\((?![A-Z]\))[^()\n]{1,300}\)|\[[^\[\]\n]{1,300}\]|「[^「」\n]{1,300}」)")
_COUNTER = re.compile(r"번|项|項")
_MARK = re.compile(r"\s{0,2}[.:)、=]|,(?=[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3])|\s{1,2}[-–—]\s|[–—]")
# A sentence's end that is not the point after an option's letter.
_STOP = re.compile(
    r"[\n。!?]|(?<![^\w][A-ZА-Я])(?<!^[A-ZА-Я])\.\s{1,3}(?=[^\W\d_]{2})|"
    r"(?<=[^\W\d_]{2})\.(?=\s{0,3}(?:[A-Z]\b|$))"
)
# What is said of the letter that follows: it is judged or explained, not given.
_SAYS = re.compile(
    r"\b(?:is|are|was|were|isn['’]t|aren['’]t|not|never|wrong|incorrect|false|would|could|may|can|causes?|because|has|have|"
    r"est|sont|n['’]est|faux|fausse|n['’]a|provoque|es|son|no|nunca|falsa?|не|неверн\w*|является|потому|вызывает)\b|"
    r"[错误不誤]|である(?!。|$)|ではな|でな|ない|아니|틀|않",
    re.IGNORECASE,
)
# What is said of a letter, or of a whole list of them, that leaves no doubt: they are wrong.
_WRONG = re.compile(
    r"[\s,]{0,3}(?:\b(?:is|are|was|were|would\s+be|est|sont|serait|es|son|sería)\s{1,3})?"
    r"(?:(?:all|both|clearly|tous|toutes|todas|ambas|все|都|均|すべて|모두)\s{0,3})?"
    r"(?:\b(?:wrong|incorrect\w{0,2}|false|not\s+(?:correct|right|true|appropriate|indicated)|contraindicated|faux|fauss\w{1,2}|"
    r"inexact\w{0,2}|contre-indiqué\w{0,2}|falsas?|contraindicad\w{1,2}|неверн\w{1,3}|неправильн\w{1,3}|ошибочн\w{1,3})\b|"
    r"错|不正确|不对|は?(?:誤り|間違い|不正解)|[은는이가]?\s?(?:틀|오답))",
    re.IGNORECASE,
)
# Between two letters: what follows is of another kind.
_HEAD = re.compile(
    r":|\b(?:over|than|rather|instead|unlike|versus|vs|except|but|plutôt|que|sauf|lugar|vez|salvo|вместо|чем|кроме)\b|"
    r"而不|而非|除|より|以外|보다|제외|\b(?:wrong|incorrect|fausse|falsa|неверн|ошибочн)|[错誤]|오답|(?<!\w)\(?[A-ZА-Я]\)?[.:)]",
    re.IGNORECASE,
)
_RIGHT = re.compile(
    r"\s{0,3}(?:\b(?:is|are|est|sont|es|son)\s{1,3})?(?:the\s+)?(?:both\s+|tous\s+|todas\s+)?"
    r"(?:(?:correct|exact|just|vrai|right|adecuad)\w{0,3}|верн\w+|правильн\w+|正确|です|である|입니다|이다)"
    r"(?:\s+answers?|\s+options?|\s+choices?)?\s{0,3}[.。]?\s{0,3}(?=$|\n)",
    re.IGNORECASE,
)
_END = re.compile(rf"{_CLOSE}\s{{0,3}}(?:$|[\n.。!;:(,、]|{rules.COPULA}|(?:が|は|이|가)\s?(?:正|適|답|정답|맞|옳))")
_FOLLOWS = re.compile(_CLOSE + f"(?:{rules.FOLLOWS})", re.IGNORECASE)


_ANOTHER_LINE = re.compile(rf"{_CLOSE}[.,;。]?\s{{0,8}}(?:[-•·]\s{{0,4}})?\(?[A-Z]\s?[.:)、]")
_IS_RIGHT = re.compile(r"\b(?:is|are|est|sont|es|son)\s+(?:correct|exact|right|vrai)\w{0,3}\W{0,8}$", re.IGNORECASE)


class AnswerSet(NamedTuple):
    """All letters of a statement (None where it can't be told) and where it ends."""

    letters: str | None
    end: int


class _Member(NamedTuple):
    """A letter with its text: where the text ends, and how it is known ("own", "group", "free" words, "bare")."""

    letter: str
    end: int
    known_by: str


@lru_cache(maxsize=64)
def _candidates(letters: str, russian: bool) -> tuple[re.Pattern, re.Pattern, re.Pattern]:
    """(on the same line, with a mark or bracket after it for a search, on the next line)."""
    letter = f"(?-i:[{patterns.capitals(letters, russian)}])"
    one = rf"{_WORDS}[{rules.OPEN}]{{0,2}}(?P<l>{letter})(?![{patterns.WORD}'’+-])[)\]】」』〉》>\"'”’»|]{{0,2}}"
    marked = rf"{_WORDS}(?:[(\[【「](?P<p>{letter})[)\]】」]|(?P<l>{letter})(?=\s{{0,2}}[.:)(、]|\s[-–—]\s))"
    joint = rf"(?=[\s,;、+&{rules.CLOSE}a-zа-яà-ÿ\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3]){_JOINT}"
    return (
        re.compile(joint + one, re.IGNORECASE),
        re.compile(
            r"(?:[,;、+&]|[\s)\]」』](?=and|et|y|и|or|ou|o|as|или|ainsi|así|а|또는|혹은|그리고|및)|(?=以及|和|与|及|と|および|및|과|와|그리고|或|または|もしくは|あるいは|또는|혹은|이나))"
            + joint
            + marked,
            re.IGNORECASE,
        ),
        re.compile(_LINE + one, re.IGNORECASE),
    )


def further_letters(
    text: str, pos: int, first: str, letters: str, options: OptionTexts, russian: bool, listed: bool
) -> AnswerSet | None:
    """What the rest of the statement adds to its `first` letters, which end at `pos`; None when it adds nothing.

    Args: letters: of all options. listed: the statement's letters begin on a line of their own.
    """
    window = text[: pos + 2000]
    chosen = list(first.split(","))
    member = _text_of(window, pos, chosen[-1], options, letters, russian)
    if member is None:
        return None
    for _ in range(len(letters)):
        step = _next(window, member, chosen, letters, options, russian, listed)
        if step is None:
            break
        if step.known_by == "unclear":
            return AnswerSet(None, step.end)
        chosen.append(step.letter)
        member = step
    if len(chosen) == first.count(",") + 1:
        return _side_by_side(window, member, chosen, letters, options, russian)
    if len(chosen) == len(letters) and (len(chosen) == 2 or "\n" in text[pos : member.end].strip()):
        return AnswerSet(None, member.end) if len(chosen) == 2 else None  # the options, written again
    return AnswerSet(",".join(sorted(chosen)), member.end)


def _text_of(
    text: str, pos: int, letter: str, options: OptionTexts, letters: str, russian: bool, bare: bool = False
) -> _Member | None:
    """The member whose letter ends at `pos`; None if no text follows it (with `bare` only its end is asked for)."""
    counter = _COUNTER.match(text, pos)
    pos = counter.end() if counter else pos
    own = options.at(text, pos)
    if own and own[0] == letter:
        group = _GROUP.match(text, own[1])
        return _Member(letter, group.end() if group else own[1], "own")
    if m := _GROUP.match(text, pos):
        return _Member(letter, m.end(), "group")
    if m := _MARK.match(text, pos):
        return _Member(letter, m.end(), "free")
    bracket = text[pos - 1] in ")]】」" and re.match(r"\s{0,2}\w", text[pos : pos + 4])
    if bracket and not re.match(_AND, text[pos : pos + 16].lstrip()):
        return _Member(letter, pos, "free")
    if counter:
        return _Member(letter, pos, "own")
    return _Member(letter, pos, "bare") if bare else None


def _next(
    text: str, member: _Member, chosen: list[str], letters: str, options: OptionTexts, russian: bool, listed: bool
) -> _Member | None:
    """The member after this one; None if none follows, "unclear" if it can't be told."""
    joined, searched, line = _candidates(letters, russian)
    end, m = member.end, None
    if member.known_by == "free":
        stop = _STOP.search(text, end, end + 300)
        until = stop.start() if stop else min(len(text), end + 300)
        m = searched.search(text, end, min(until + 3, len(text)))
        if m is None:
            end = until
    else:
        m = joined.match(text, end)
        if m and not (m["comma"] or m["and"] or m["or"]):
            m = None
        if m is None:
            m = _beyond(text, end, searched)
    at_line = None
    if m is None:
        at_line = line.match(text, end)
        if at_line is None:
            return None
    hit = m or at_line
    letter = hit.groupdict().get("p") or hit["l"]
    letter = rules.LOOKALIKES.get(letter, letter).upper()
    if letter in chosen:
        return None
    this = _text_of(text, hit.end(), letter, options, letters, russian, bare=True)
    if at_line:
        if "\n" in at_line["blank"] and not listed:
            return None
        return _on_its_line(text, member, this, chosen, options, listed)
    if this.known_by == "bare" and member.known_by == "free" and not m["or"]:
        return None
    given = _as_given(text, this, m, letters, russian)
    if member.known_by == "free" and given and given.known_by != "unclear":
        between = text[end if m is None else member.end : m.start()]
        if _HEAD.search(between):
            return None
        if _SAYS.search(between):
            return _Member(letter, given.end, "unclear")
    return given


def _beyond(text: str, end: int, searched: re.Pattern) -> re.Match | None:
    """The next letter after a few words on the text before it: "A. aspirin - a drug, C. heparin"."""
    stop = _STOP.search(text, end, end + 120)
    m = searched.search(text, end, min(stop.start() + 3 if stop else end + 120, len(text)))
    between = text[end : m.start()] if m else ""
    return m if m and not (_SAYS.search(between) or _HEAD.search(between)) else None


def _on_its_line(
    text: str, member: _Member, this: _Member, chosen: list[str], options: OptionTexts, listed: bool
) -> _Member | None:
    """`this` where its line holds nothing but the letter and its option's text, or short words under a heading."""
    if this.known_by == "own":
        if not re.match(rf"{_CLOSE}[.,;。]?[^\S\n]*(?:$|\n)", text[this.end : this.end + 60]):
            return None
        if member.known_by != "own" and not listed:
            return None
        if this.letter > chosen[-1]:
            return this
        again = _ANOTHER_LINE.match(text, this.end)
        return None if again else _Member(this.letter, this.end, "unclear")
    if not listed or options.texts and member.known_by == "own" or this.letter < chosen[-1] or this.known_by == "bare":
        return None
    words = text[this.end : this.end + 160].partition("\n")[0]
    if len(words) > 120 or _SAYS.search(words) or re.search(r"[:–—]|\.\s", words):
        return None
    return this


def _as_given(text: str, this: _Member, joint: re.Match, letters: str, russian: bool) -> _Member | None:
    """`this` if it is given as an answer; None if it is judged apart, "unclear" where it can't be told."""
    if _called_wrong(text, this, letters, russian):
        return None
    unclear = _Member(this.letter, this.end, "unclear")
    if joint["or"]:
        return unclear
    if this.known_by == "free":
        stop = _STOP.search(text, this.end, this.end + 300)
        words = text[this.end : stop.start() if stop else this.end + 300]
        after = _candidates(letters, russian)[1].search(words)
        words = words[: after.start()] if after else words
        if right := _IS_RIGHT.search(words):
            words = words[: right.start()]
        if _SAYS.search(words):
            return unclear if joint["and"] else None
        return this
    if _RIGHT.match(text, this.end) or _END.match(text, this.end) or _FOLLOWS.match(text, this.end):
        return this
    joined = _candidates(letters, russian)[0].match(text, this.end)
    if joined and (joined["comma"] or joined["and"] or joined["or"]):
        return this
    if _SAYS.match(text[this.end : this.end + 20].lstrip()):
        return unclear if joint["and"] else None
    # "A (x), C (y) block it"; but "B. labetalol, A beta blocker"
    return unclear if this.known_by != "bare" or joint["and"] else None


def _called_wrong(text: str, this: _Member, letters: str, russian: bool) -> bool:
    """Whether the letter, or the list that begins with it, is said to be wrong: "; A, B and C are incorrect"."""
    letter = rf"[{rules.OPEN}]{{0,2}}(?-i:[{patterns.capitals(letters, russian)}])(?![{patterns.WORD}])"
    step = rf"{_CLOSE}\s{{0,3}}(?:[,;、&]\s{{0,3}})?(?:{_AND}\s{{0,3}})?{letter}"
    listed = re.compile(rf"(?:{step}){{0,{len(letters)}}}{_CLOSE}", re.IGNORECASE).match(text, this.end)
    if this.known_by != "free":
        return bool(_WRONG.match(text, listed.end()))
    stop = _STOP.search(text, this.end, this.end + 300)
    words = text[this.end : stop.start() if stop else this.end + 300]
    after = _candidates(letters, russian)[1].search(words)
    return bool(_WRONG.search(words[: after.start()] if after else words))


def _side_by_side(
    text: str, member: _Member, chosen: list[str], letters: str, options: OptionTexts, russian: bool
) -> AnswerSet | None:
    """Unclear where another option's letter and text stand right after the first's, to the end of the line."""
    if member.known_by != "own":
        return None
    beside = rf"{_CLOSE}[. \t|/]{{1,3}}[(\[]?(?P<l>[{patterns.capitals(letters, russian)}])(?=\s?[.:)\]])"
    m = re.compile(beside).match(text, member.end)
    other = options.at(text, m.end()) if m else None
    if other is None or other[0] != m["l"] or m["l"] in chosen:
        return None
    return AnswerSet(None, other[1]) if re.match(r"[.\s]*(?:$|\n)", text[other[1] : other[1] + 40]) else None
