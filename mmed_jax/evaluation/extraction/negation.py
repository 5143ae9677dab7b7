"""What the words around a statement make of it: "incorrect answer: C", "if ..., the answer would be D", "vitamin B is
correct" and "B is correct? No." are no statements of the answer. Patterns are matched without regard to case."""

import re

# Right before an anchor: it heads the wrong answers, or one not given ("오답" holds "답").
_OTHER_HEAD = re.compile(
    r"(?:\b(?:(?:incorrect|wrong|false|other|previous|prior|earlier|initial|traditional|tempting|alternat(?:iv)?e|common|possible|"
    r"candidate|remaining|available|"
    r"second[- ](?:best|most\s+\w+)|next[- ]best|"
    r"mauvaise|fausse|autre|incorrecte|inexacte|mala|peor|errónea|otra|incorrecta|falsa)s?|not\s+(?:the|an?)|"
    r"(?:неправильн|неверн|ошибочн|друг)\w*)(?:\s+(?:most\s+)?(?:common|likely|popular))?[ \t]+|"
    r"\b(?:no|aucune?|ninguna|hay)[ \t]+(?:(?:correct|right|clear|single|bonne|one)\s+)?|(?:没有|无)(?:正确|合适)?的?|"
    r"(?:错误?|干扰|其他|其它|其余)的?|(?:誤った|間違った|他の)|오|(?:틀린|잘못된|다른)\s*)$",
    re.IGNORECASE,
)
# Right before "choose B": it is not chosen, or only by others or in another case.
_NOT_CHOSEN = re.compile(
    r"(?:\b(?:no|ni|nunca|not|never)[ \t]+|(?:不(?:能|应该?|可以?|宜|该|得|要|会|是)?|勿|别|避免|容易|[易常误错]|往往|"
    r"考生(?:都|多)?会?|还是|如果|假如|倘若|若|为何|为什么)|오답인\s*)$",
    re.IGNORECASE,
)
# Earlier in the sentence: what others think, or what is denied as a whole ("I don't think ...", "no creo que ...").
_NOT_SAID = re.compile(
    r"(?:\b(?:students?|candidates?|people|residents?|examinees|some|others|many|(?:one|you)\s+(?:might|may|could))\s+"
    r"(?:\w+\s+)?(?:think|believe|assume|choose|say|pick|argue|guess)\b|\bdoubt\b|"
    r"(?:\b(?:not|never)|n['’]t)\s+(?:think|believe|say|agree|true|sure|certain|convinced)\b|^\W*(?:would|do|did)\s+you\s+\w+|"
    r"\b(?:wrong|incorrect|mistake|tempting)\s+to\s+(?:say|think|assume|believe|choose|pick|conclude)\b|"
    r"\b(?:no\s+(?:es\s+(?:cierto|verdad)|creo|pienso)\s+que|ne\s+(?:pense|crois)\s+pas\s+que|"
    r"n['’]est\s+pas\s+vrai\s+que|не\s+(?:думаю|считаю)|неверно,?\s+что)\b)(?:(?!\bbut\b)[^,])*$",
    re.IGNORECASE,
)
# A condition with "would"; one that opens the sentence; and what makes it a premise: "if ..., so the answer is B".
_IF = r"\b(?:if(?!\s+(?:i|we)\s+(?:had|have|must|were)\b)|unless|suppose|assuming|si|если)\b"
_CONDITION = re.compile(rf"{_IF}|^\W*(?:had|were)\b", re.IGNORECASE)
_IF_AFTER = re.compile(rf"[^.\n;]{{0,30}}?{_IF}", re.IGNORECASE)
_WOULD = re.compile(r"\b(?:would|['’]d|serait|seraient|sería|serían|elegiría|бы)\b", re.IGNORECASE)
_CASE_FIRST = re.compile(r"\W*(?:(?:if|unless|si|если)\b|若|如果|假如|倘若|もし|만약|만일)", re.IGNORECASE)
_SO = re.compile(r"(?:\b(?:so|therefore|thus|hence|donc|por\s+(?:lo\s+)?tanto|поэтому)\b|因此|所以|故)[^,]*$", re.I)
# Right after a statement: it is denied, doubted or left to a condition. In Japanese and Korean the denial ends the
# verb: what is between starts at once and holds no other letter or word, so that "정답이며 C는 아니다" denies nothing.
_TAKEN_BACK = re.compile(
    r"[^.\n;?]{0,40}?\b(?:but|though|although)\s+(?:it|this|that|they|these)\s+(?:is|are|was|would\s+be)\s+"
    r"(?:wrong|incorrect|false|not\s+(?:correct|right|true|the\b))|"
    r"[ \t]*[,:–—-]{1,2}[ \t]*(?:none|neither|aucune|ninguna|ни\s+од\w+)\b|[ \t,]*(?:都不|均不|(?:の|"
    r"は)?いずれも|모두\s?아)|"
    r"[ \t]*\?\W*(?:no|nope|wrong|non|нет|不|いいえ|아니)|"
    r"[ \t]+(?:only[ \t]+)?(?:if|unless|si|если)\b|"
    r"(?:[ \t]*,?[ \t]*(?:但|这|则|就|都|均))?(?:也|是|为)?(?:错|不对|不正确|不可|不能|不符)|"
    r"(?![\s(「『:]|[^。、,.\nA-E]{0,6}(?:違い|しか|他なら|ほかなら|問題|差し支え)は?(?:な|あり|ござ))"
    r"[^。、,.\nA-E]{0,8}?(?:ない|ません|限らな|かどうか|がち|誤り|誤っ|間違)|"
    r"[^\WA-E]{0,6}(?:지\s?(?:않|못|말|마)|면\s?(?:안|틀|오답)|(?:\s?[될할볼])?\s?수\s?(?:는\s?)?없|"
    r"\s?것[은이]\s?(?:옳지|잘못|틀|적절하지|바람직하지)|\s?(?:것[은이]\s?)?아[니닙닌]|기\s?쉽)",
    re.IGNORECASE,
)
_ASKED = re.compile(r"[ \t]*\?")

# Earlier in the sentence: what follows holds of none of the letters, of one of them that is not said, or is asked.
_OF_NONE = re.compile(
    r"(?:\b(?:none|neither|either|whether|which|any|each|(?:only\s+)?one|not\s+(?:all|any|one)|no\s+(?:single\s+)?(?:option|answer|choice)s?|"
    r"aucune?s?|laquelle|lesquelles|lequel|quelles?|ni|ninguna?|ninguno|cuál(?:es)?|ни\s+од\w+|ни|как(?:ой|ая|ие|ое)|нет)\b|"
    r"没有|并非|哪|どれ|いずれ|どの|어느|어떤|아무)"
    r"(?:[^.,;:\n。]|,(?=\s{0,3}(?:(?:or|and|nor|ou|et|ni|o|y|или|и|ни)\s+)?\W?[A-ZАВСЕ]\b)|(?<=[A-ZАВСЕ]),(?=\s)){0,80}$",
    re.IGNORECASE,
)
_OR_BEFORE = re.compile(
    r"[A-ZАВСЕ][)\]]?(?:,?\s{1,3}(?:or|ou|o|u|или|либо)\s{1,3}|\s{0,2}(?:或者?|または|もしくは|또는|혹은|"
    r"/)\s{0,2})\W{0,3}$"
)
_JOINED = re.compile(r"[)\]」]\s{0,2}(?:,\s{0,2})?(?:\b(?:and|et|y|и)\s|[和与及と、,]|과|와)\s{0,2}\W?$")
_PLURAL = re.compile(r"\s{1,3}(?:are|sont|son|являются)\b", re.IGNORECASE)
# After a letter of a list: the list is of wrong or of all options.
_ALL_WRONG = re.compile(
    r"\s{0,3}(?:都|均|全部?|皆)(?:不|错|非|没)|\s{0,3}(?:のいずれも|はいずれも|はどれも|すべて誤)|"
    r"\s{0,3}(?:중|가운데)\b|\s{0,3}모두\s?(?:틀|오답|정답이\s?아|아니)"
)

# A letter after any other word is that word's label: "Table A", "vitamin B", "protein C", "in panel B".
_SUBJECT_BEFORE = re.compile(
    r"\b(?:options?|answers?|choices?|letters?|statements|items?|that|so|therefore|thus|hence|and|but|because|since|as|"
    r"while|whereas|however|only|why|both|then|of|here|these|this|case|above|actually|clearly|think|believe|say|conclude|"
    r"propositions?|réponses?|lettres?|affirmations?|assertions?|la|le|les|et|que|donc|mais|car|seule?s?|"
    r"opci[óo]n(?:es)?|alternativas?|respuestas?|letras?|afirmaci[óo]n(?:es)?|el|los|las|y|pero|porque|s[óo]lo|"
    r"вариант\w*|ответ\w*|утвержден\w*|пункт\w*|букв\w*|и|а|но|что|только|поэтому|значит|следовательно)[ \t]+$",
    re.IGNORECASE,
)
_WORD_BEFORE = re.compile(r"[^\W\d_]['’]?[ \t]+$")
_NAME_BEFORE = re.compile(
    r"(?:[型肝组群図图表]|[维維]生素|ビタミン|비타민|因子|蛋白|プロテイン|辅酶|补体|補体|오답인|誤りである)[ \t]*$"
)
_CJK_BEFORE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3][ \t]*$")
# After "is correct" or an option's text: anything else goes on to say for whom or of what ("right-sided", "of chronic
# disease"). New lines and punctuation end the statement.
_MORE_AFTER = re.compile(
    r"-\w|[ \t]*,?[ \t]*\bbut\b(?!\s+(?:option\s+)?[A-Z]\s+is\s+(?:not|incorrect|wrong|false)\b)|"
    r"[ \t]+(?!(?:because|since|as\s+(?:it|the|this|she|he)|and|given|due|which|here|now|so|while|whereas|among|"
    r"of\s+the|in\s+this|for\s+(?:this|her|him|the)|is|car|parce|puisque|et|porque|ya|pues|y|так|потому|поскольку|и|а|[A-ZАВСЕ])\b)"
    r"[^\W\d_\u3040-\u9fff\uac00-\ud7a3]",
    re.IGNORECASE,
)


# A verdict on one option, "D - 정답", where the next line speaks of another.
_VERDICT = re.compile(r"(?:^|\n)\W{0,4}[A-J]\s{0,2}[.:)–—-]\s{0,2}$")
# "(Choice A) ... (Choice E) ...": notes on options.
_ASIDE = re.compile(r"\W{0,4}\((?:choice|option)\s", re.IGNORECASE)


def is_verdict(text: str, start: int) -> bool:
    """Whether a letter is all that stands before `start` on its line, so that what follows judges that option."""
    return _VERDICT.search(text[max(0, start - 12) : start]) is not None


def is_aside(text: str) -> bool:
    """Whether the text opens with a note on one option, "(Choice A)"."""
    return _ASIDE.match(text) is not None


def is_withheld(text: str, start: int, end: int, choosing: bool = False) -> bool:
    """Whether the statement text[start:end] is not made: denied, left to a condition, or of the wrong answers.

    Args: choosing: its words are "choose", "选": what may stand before them differs from what may before "answer".
    """
    before, sentence = text[max(0, start - 40) : start], _sentence(text, start)
    if (_NOT_CHOSEN if choosing else _OTHER_HEAD).search(before) or _NOT_SAID.search(sentence):
        return True
    if _WOULD.search(text, start, end):
        given = _CONDITION.search(sentence) and not _SO.search(sentence)
        if given or _IF_AFTER.match(text, end):
            return True
    return _TAKEN_BACK.match(text, end) is not None


def is_hypothetical(text: str, start: int, end: int) -> bool:
    """Whether the statement says what would be the answer."""
    return _WOULD.search(text, start, end) is not None


def is_conditional(text: str, start: int) -> bool:
    """Whether the sentence opens with "if", 若, ...: such a statement yields to one without."""
    sentence = _sentence(text, start)
    return _CASE_FIRST.match(sentence) is not None and not _SO.search(sentence)


def of_none(text: str, start: int, end: int) -> bool:
    """Whether the letters text[start:end] are listed to say that none is meant ("none of A, B, C"), or not which."""
    if _OF_NONE.search(_sentence(text, start)) or _ALL_WRONG.match(text, end):
        return True
    return _OR_BEFORE.search(text[max(0, start - 20) : start]) is not None


def shares_its_verb(text: str, start: int, end: int, single: bool) -> bool:
    """Whether what the letters text[start:end] share their verb with is left out: "A (aspirin) and C are right"."""
    if _JOINED.search(text[max(0, start - 8) : start]):
        return True
    return single and _PLURAL.match(text, end) is not None


def is_label(text: str, start: int) -> bool:
    """Whether the letter at `start` belongs to the word before it ("Table A is right")."""
    before = text[max(0, start - 30) : start]
    if _NAME_BEFORE.search(before):
        return True
    return bool(_WORD_BEFORE.search(before)) and not (_CJK_BEFORE.search(before) or _SUBJECT_BEFORE.search(before))


def goes_on(text: str, end: int) -> bool:
    """Whether what is said up to `end` is narrowed by what follows, or asked."""
    return bool(_MORE_AFTER.match(text, end) or _ASKED.match(text, end))


def _sentence(text: str, pos: int) -> str:
    """The sentence that `pos` is in, up to `pos`."""
    return re.split(r"[.!?。;\n]", text[max(0, pos - 160) : pos])[-1]
