"""Options in another order: which questions and options may be moved, because nothing in them speaks of the others.

An option that points at others by letter, number or as "both" ties the order of the whole question: "A and C", "Options
1 and 2", "Las respuestas 1 y 3 son correctas", "All except B", "Both". One that speaks of all or none of them keeps its
place, and what stands above it stays above it: "None of the above", "Ninguna es correcta", 以上都是, 해당 없음.

Such an option is made of nothing but words of this kind, so that "Both kidneys" and "Vitamins A and D" move. "1 and 2"
points at options only where options 1 and 2 are not of this form themselves: otherwise it numbers the statements of the
question.
"""

import hashlib
import re
import unicodedata

_ACCENTS = re.compile("[\u0300-\u036f]")


def _fold(text: str) -> str:
    """Width, case and accents aside; the marks of Korean and Japanese stay."""
    bare = _ACCENTS.sub("", unicodedata.normalize("NFKD", text))
    return " ".join(unicodedata.normalize("NFC", bare).casefold().split())


def _any(*words: str) -> str:
    return "|".join(sorted((re.escape(_fold(w)) for text in words for w in text.split()), key=len, reverse=True))


# What may stand around the others: verdicts, what an option is called, connecting words.
_TRUE = _any(
    "correct true right valid incorrect false wrong untrue applicable equal same",
    "correcta correctas correcto correctos cierta ciertas cierto ciertos verdadera verdaderas verdadero verdaderos",
    "falsa falsas falso falsos incorrecta incorrectas incorrecto incorrectos",
    "válida válidas verdad adecuada adecuadas adecuado adecuados",
    "correcte correctes correct corrects exacte exactes exact exacts vraie vraies vrai vrais juste justes",
    "fausse fausses faux inexacte inexactes",
    "верно верны верен верна правильно правильны правильный правильного неверно неверны неправильны",
)
_CALLED = _any(
    "option options answer answers choice choices opción opciones respuesta respuestas alternativa alternativas",
    "réponse réponses proposition propositions ответ ответы ответа ответов вариант варианты вариантов",
)
_SMALL = _any(
    "the of is are not or and nor but above below following given listed mentioned these this those them",
    "de del las los la el lo es son no y o ni que estas estos esta este anterior anteriores siguientes indicadas",
    "les des le du est sont ne pas et ou ni ces ce cette ci-dessus précédentes précédents citées",
    "и или из это этих не вышеперечисленных вышеперечисленные вышеперечисленное перечисленных перечисленные",
    "перечисленное перечисленного вышеперечисленного указанных указанные указанное вышеуказанное них",
    "есть один одно одна одного",
)
# Words end where letters of an alphabet do: Chinese and Japanese write on without a space.
_L, _R = r"(?<![a-z0-9а-я])", r"(?![a-z0-9а-я])"
_REST = r"[\s,.;:、，。!()/\"'«»“”*-]"
_NAMED = rf"{_L}(?:[a-h]|[абвгд]|[1-8]){_R}"
_ASIAN = "はともですのがと都均皆是不对對错誤误正确正確和及与선택지보기정답와과및이가은는번모두옳맞다"
_ONLY = _any("both either neither only all any except excepting ambas ambos solo sólo todas todos excepto salvo",
             "menos toutes tous sauf seulement uniquement все кроме только оба обе")  # fmt: skip
_WORD = rf"{_L}(?:{_TRUE}|{_CALLED}|{_SMALL}|{_ONLY}){_R}"
_POINTS = re.compile(rf"(?:{_WORD}|{_NAMED}|[&+]|{_REST}|[{_ASIAN}]|上記の|上述|以上)+")
_NAME = re.compile(_NAMED)
# Where only one is named, or only digits, some word has to say that options are meant.
_SINGLE = _any("except excepto salvo menos sauf кроме both ambas ambos only solo seulement только")
_MEANT = re.compile(rf"{_L}(?:{_CALLED}|{_SINGLE}){_R}")
_GLUED = re.compile(r"^(both|either|neither) ([a-e])([a-e])\b")
_JOINED = re.compile(r"[^\W\d_]|[&+]")

_TWO = "both|either|neither|ambas|ambos|les deux|оба|обе"
_BOTH = re.compile(
    rf"(?:{_REST}|{_L}(?:{_TWO}|{_TRUE}|{_CALLED}|{_SMALL}){_R}"
    r"|两者|二者|兩者|両方|둘 다|都是|都不是|均是|均不是|都对|とも|です)+"
)
_PAIR = re.compile(rf"{_L}(?:{_TWO}){_R}|两者|二者|兩者|両方|둘 다")

_ALL = _any(
    "all none any nothing everything every each todo todos toda todas ninguno ninguna ningún ningunas ningunos nada",
    "cualquiera tout tous toute toutes aucun aucune rien все всё ничего ни любой любое",
)
_QUANTITY = re.compile(
    rf"(?:{_REST}|{_L}(?:{_ALL}|{_TRUE}|{_CALLED}|{_SMALL}|two|three|each){_R})+"
)
_SAYS_ALL = re.compile(rf"{_L}(?:{_ALL}){_R}")
_ABOVE = re.compile(
    r"\b(?:all|none|any|two|three|each) of the (?:above|following|options|answers)\b"
    r"|^(?:all|none|any|two|three|each) of (?:these|them)\b"
    r"|\bnone (?:is|are) (?:correct|right|true)\b"
    r"|\b(?:tod[ao]s?|ningun[ao]s?)\b.*\b(?:anterior(?:es)?|opcion(?:es)?)\b"
    r"|\b(?:tod[ao]s|ningun[ao])\b.*\bson (?:correct|ciert|fals)"
    r"|\b(?:tou(?:te)?s|aucune?)\b.*\b(?:propositions?|ci-dessus|precedentes?)\b"
    r"|все (?:выше)?(?:перечисленн|указанн)|ни од(?:ин|но|на) из|ничего из|^нет (?:правильн|верн)"
    r"|^以上|^上述|^上記|すべて正しい|^いずれも|^위의 (?:모두|모든|전부|것|보기|어느)|모두 (?:옳|맞|정답)|^전부"
)
_BARE = re.compile(
    r"(?:都不?是|均不?是|皆不?是|都不?对|均不?对|都不?正确|均不?正确|全部|全是|全对|全都?不?是|无|無|没有|都没有"
    r"|該当(?:する(?:もの|選択肢)は?)?なし|該当(?:する(?:もの|選択肢)は?)?ない|(?:特に)?なし|(?:すべて|全て)(?:正しい|である|該当する)?"
    r"|(?:いずれ|どれ)(?:も|でも|にも)(?:ない|該当しない|正しくない|正しい)"
    r"|(?:해당(?:\s?사항)?|정답(?:이)?|답)\s?없(?:음|다)|없음|없다|모두(?:\s?(?:해당|아님|아니다|정답|맞음|옳음|옳다|맞다))?)[。.]?"
)


def _named(text: str, letters: list[str]) -> set[str] | None:
    """The letters of the options that an option points at; None where it points at none."""
    text = _GLUED.sub(r"\1 \2 \3", text)  # "Both AB"
    if not _POINTS.fullmatch(text):
        return None
    found = [m[0] for m in _NAME.finditer(text)]
    meant = _MEANT.search(text)
    rest = _NAME.sub("", text)
    if not found or (len(set(found)) == 1 and not meant):
        return None
    if all(f.isdigit() for f in found) and not meant and not _JOINED.search(rest):
        return None  # "1,2" is a number
    places = [int(f) - 1 if f.isdigit() else "abcdefgh".find(f) for f in found]
    places = ["абвгд".find(f) if p < 0 else p for f, p in zip(found, places)]
    return {letters[p] if p < len(letters) else "" for p in places}


def tied(options: dict[str, str]) -> bool:
    """Whether an option points at others by letter, number or "both", so that the order of all has to stay."""
    letters = list(options)
    texts = {k: _fold(v) for k, v in options.items()}
    named = {k: _named(t, letters) for k, t in texts.items()}
    for k, others in named.items():
        if others and k not in others and "" not in others and not any(named[o] for o in others):
            return True
    return any(_PAIR.search(t) and _BOTH.fullmatch(t) for t in texts.values())


def stays(option: str) -> bool:
    """Whether an option speaks of all or none of the others and so keeps its place."""
    text = _fold(option)
    all_of = _SAYS_ALL.search(text) and _QUANTITY.fullmatch(text)
    return bool(all_of or _BARE.fullmatch(text) or _ABOVE.search(text))


def shuffled(record: dict, seed: int, benchmark: str) -> tuple[dict, str]:
    """The record with its options in an order drawn from (seed, benchmark, id), and the original letters in that order.

    "None of the above" and its like keep their place, and those above it stay above it; a question with an option such
    as "A and C" keeps its order.
    """
    letters = list(record["options"])
    if tied(record["options"]):
        return record, "".join(letters)

    def draw(letter: str) -> bytes:
        return hashlib.sha256("\0".join((str(seed), benchmark, record["id"], letter)).encode()).digest()

    order, between = [], []
    for letter in letters:
        if len(letters) > 2 and stays(record["options"][letter]):  # of two, 有 and 无, neither speaks of others
            order += [*sorted(between, key=draw), letter]
            between = []
        else:
            between.append(letter)
    order += sorted(between, key=draw)
    shown = dict(zip(order, letters))
    answer = ",".join(sorted(shown[k] for k in record["answer_idx"].split(",")))
    options = {new: record["options"][old] for new, old in zip(letters, order)}
    return {**record, "options": options, "answer_idx": answer}, "".join(order)
