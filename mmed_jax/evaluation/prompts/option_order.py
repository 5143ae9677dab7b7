"""Options in another order, where nothing in them speaks of the others, in seven languages.

An option that points at others by letter, number, order or as "both" ties the order of the whole question: "A and C",
"Options 1 and 2", "①②", "All but B", "The first two", 前两项都对, "Both". One that speaks of all, none or an open
number of them keeps its place: "None of the above", "AOTA", "More than one is correct", 以上都是, 해당 없음.

Such an option is made of nothing but words of this kind, so that "Both kidneys", "The first two weeks" and "Vitamins A
and D" are options like any other. "1 and 2" points at options only where options 1 and 2 are not of this form
themselves: otherwise it numbers the statements of the question.
"""

import hashlib
import re
import unicodedata

_ACCENTS = re.compile("[\u0300-\u036f]")
# ①, ②, ... number options as letters do.
_CIRCLED = {ord("①") + i: f" {'abcdefgh'[i]} " for i in range(8)}


def _fold(text: str) -> str:
    """Width, case and accents aside; the marks of Korean and Japanese stay."""
    bare = _ACCENTS.sub("", unicodedata.normalize("NFKD", text.translate(_CIRCLED)))
    return " ".join(unicodedata.normalize("NFC", bare).casefold().replace("’", "'").split())


def _any(*words: str) -> str:
    return "|".join(sorted((re.escape(_fold(w)) for text in words for w in text.split()), key=len, reverse=True))


# Words end where letters of an alphabet do: Chinese and Japanese write on without a space.
_L, _R = r"(?<![a-z0-9а-я])", r"(?![a-z0-9а-я])"


def _words(*alternatives: str) -> str:
    return rf"{_L}(?:{'|'.join(alternatives)}){_R}"


# What may stand around the others: verdicts, what an option is called, connecting words.
_TRUE = _any(
    "correct true right valid incorrect false wrong untrue applicable equal same",
    "correcta correctas correcto correctos cierta ciertas cierto ciertos verdadera verdaderas verdadero verdaderos",
    "falsa falsas falso falsos incorrecta incorrectas incorrecto incorrectos",
    "válida válidas verdad adecuada adecuadas adecuado adecuados",
    "correcte correctes correct corrects exacte exactes exact exacts vraie vraies vrai vrais juste justes bonne bonnes",
    "fausse fausses faux inexacte inexactes",
    "верно верны верен верна правильно правильны правильный правильные правильного неверно неверны неправильны",
    "верный верные верного верных правильных",
)
_CALLED = _any(
    "option options answer answers choice choices opción opciones respuesta respuestas alternativa alternativas",
    "réponse réponses proposition propositions ответ ответы ответа ответов вариант варианты вариантов варианта",
)
_STATED = _any("statement statements afirmación afirmaciones enunciados утверждение утверждения утверждений")
_ABOVE = _any(
    "above below following given listed mentioned these those them preceding previous other others remaining",
    "otra otras otro otros restantes autres estas anterior anteriores siguientes indicadas mencionados mencionadas",
    "ellas ellos citadas señaladas",
    "ces ci-dessus précédent précédente précédentes précédents citées cela",
    "вышеперечисленных вышеперечисленные вышеперечисленное вышеперечисленного перечисленных перечисленные",
    "перечисленное перечисленного указанных указанные указанное вышеуказанное названного вышеназванное них этого",
)
_SMALL = _any(
    "the of is are not or and nor but this as well plus from together along with combination for than there to",
    "through thru no yes has have",
    "de del las los la el lo es son no y o ni que esta estos este tanto como hay hasta junto con entre u",
    "les des le du de est sont ne pas et ou ni ce cette qui à au aux ainsi soit il y",
    "и или из это этих не то как так либо чем от до по нет есть один одно одна одного",
)
_ALONE = _any(
    "both either neither only except excepting ambas ambos solo sólo excepto salvo menos sauf seulement",
    "uniquement кроме только оба обе",
)
_ALL = _any(
    "all none any nothing everything every each todo todos toda todas ninguno ninguna ningún ningunas ningunos nada",
    "cualquiera tout tous toute toutes aucun aucune rien все всё ничего ни любой любое",
)
_SOME = _any("some several many varias varios algunas algunos plusieurs несколько некоторые two dos deux два")
_MORE = _any("more most least más plus более больше combination")
_COUNT = _any("one two three four 2 3 4 uno una dos tres cuatro un une deux trois quatre два две три четыре двух")
_PLACES = _any(
    "first last former latter primera primeras primeros última últimas últimos premières premiers dernières derniers",
    "первые последние above preceding previous anteriores précédentes précédents",
)
_ORDINALS = [
    _any(words)
    for words in (
        "first primera primero première premier первый первая первое 第一",
        "second segunda segundo deuxième seconde второй вторая второе 第二",
        "third tercera tercero troisième третий третья третье 第三",
        "fourth cuarta cuarto quatrième четвертый четвертая четвертое 第四",
        "fifth quinta quinto cinquième пятый пятая пятое 第五",
    )
]
_REST = r"[\s,.;:、，。!()/\"'«»“”*~–—-]"
_ASIAN = (
    "はともですのがと都均皆是不对對错誤误正错误確正确和及与或以及至到有无者项項两兩二三四外的第也同时只仅除了可选項"
    "선택지보기정답와과및이가은는번모두옳맞다부터까지만을를제한하고나머또"
)
_ASIAN_WORDS = "|".join(
    (
        "上記の",
        "上述",
        "以上",
        "选项",
        "選項",
        "答案",
        "選択肢",
        "すべて",
        "全て",
        "両方",
        "いずれも",
        "から",
        "まで",
        "以外",
        "だけ",
        "のみ",
        "および",
        "または",
        "正しい",
        "正解",
        "である",
        "이외",
        "제외",
    )
)
_KNOWN = (_TRUE, _CALLED, _STATED, _ABOVE, _SMALL, _ALONE, _ALL, _SOME, _MORE, _COUNT, _PLACES, *_ORDINALS)
_PLAIN = rf"{_words(*_KNOWN)}|{_L}[dln]'|{_REST}"

# ---- Options by their letters, numbers or order --------------------------------------------------------------------

# Cyrillic letters stand for themselves (а, б, в, г, д) or for the Latin ones they look like (с).
_NAMED = rf"{_L}(?:[a-h]|[абвгдс]|[1-8]){_R}(?!'[a-z])"
_NAME = re.compile(_NAMED)
_POINTS = re.compile(rf"(?:{_NAMED}|{_PLAIN}|[&+]|{_ASIAN_WORDS}|[{_ASIAN}])++")
_ORDINAL = [re.compile(_words(words)) for words in _ORDINALS]
# Where only one is named, or only digits, some word has to say that options are meant.
_EXCEPT = _any("except excepto salvo menos sauf кроме but both ambas ambos only solo seulement только same")
_MEANT = re.compile(rf"{_words(_CALLED, _EXCEPT)}|选项|選項|選択肢|선택지|보기|除|以外|이외|제외|\(\d\)\W*\(\d\)")
_GLUED = re.compile(r"^(both |either |neither |选项|)([a-e]{2,5})(?=$|[两兩二三四]|均|都|皆|全|同时|项|項|者)")
_JOINED = re.compile(r"[^\W\d_]|[&+]")
_RANGE = re.compile(rf"{_words(_any('to a à до through thru hasta au'))}|至|到|から|まで|부터|까지")
_NUMBERS = re.compile(rf"{_words(_CALLED)} (?:one|two|three|four|uno|dos|tres|un|deux|trois)\b.*")
_DIGITS = {
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "uno": "1",
    "dos": "2",
    "tres": "3",
    "un": "1",
    "deux": "2",
    "trois": "3",
}

# ---- Two or three of them ------------------------------------------------------------------------------------------

_TWO = "both|either|neither|ambas|ambos|les deux|des deux|las dos|los dos|l'un et l'autre|ni l'un ni l'autre|оба|обе"
_BOTH = re.compile(rf"(?:{_TWO}|{_PLAIN}|两者|二者|兩者|両方|둘 다|都是|都不是|均是|均不是|都对|とも|です)++")
_PAIR = re.compile(rf"{_words(_TWO)}|两者|二者|兩者|両方|둘 다")
_THE_FIRST = re.compile(
    rf"{_words(_PLACES)}\s(?:{_words(_COUNT)})|{_words(_COUNT)}\s{_words(_PLACES)}|"
    rf"{_words(_any('los las les'))} (?:{_words(_COUNT)})"
)
_PLAIN_ONLY = re.compile(rf"(?:{_PLAIN})++")
_ZH_VERDICT = "(?:都|均|皆|全)?不?(?:是|对|對|正确|正確|错误?|可以?|有|非|能|需要)?"
_JA_VERDICT = "(?:が|は|も)?(?:正しい|正しくない|正解|該当する|該当しない|ない)?(?:です|である)?"
_KO_VERDICT = r"(?:\s?(?:옳다|옳음|맞다|맞음|정답|해당|아니다|아님|틀리다|가능))?(?:이다|한다)?"
_GROUP = re.compile(
    rf"(?:只有|仅有?|以上|上述)?(?:前|后|後|最后|上面)面?的?[两兩二三四2-4](?:[个個]?(?:选项|選項|答案)|[项項者个個条種种]){_ZH_VERDICT}"
    rf"|и то,? и другое|ни то,? ни другое|(?:以上|上述)?(?:两者|二者|兩者){_ZH_VERDICT}"
    r"|(?:最初|最後|前|後|上記?|はじめ)の?[二三四2-4](?:つ|個|者|項目?)(?:の(?:選択肢|項目|もの))?(?:とも|すべて|全て)?"
    rf"{_JA_VERDICT}"
    rf"|(?:(?:両方|両者)(?:とも)?|(?:二つ|2つ)とも|どちら(?:で|に)?も){_JA_VERDICT}"
    r"|(?:처음|앞|위|상기|마지막|뒤)의?\s?(?:(?:두|세|네|2|3)\s?(?:가지|개|항목|보기|선택지)|둘|셋)"
    rf"(?:의 (?:항목|보기))?(?:\s?(?:모두|다))?{_KO_VERDICT}"
    rf"|(?:둘|두 가지|양쪽|두 보기)\s?(?:다|모두){_KO_VERDICT}"
)

# ---- All, none, or an open number of them --------------------------------------------------------------------------

_SAYS_ALL = re.compile(_words(_ALL))
_SAYS_SOME = re.compile(
    rf"{_words(_SOME)}|more than one|one or more|at least|most of|combination of|mas de un|plus d'une?|больше одн"
    "|более (?:чем )?одн"
)
_SAYS_NO = re.compile(_words(_any("no нет")))
_OF_THEM = re.compile(_words(_CALLED, _STATED, _ABOVE, _TRUE))
_AN_ANSWER = re.compile(_words(_CALLED))
_NO_LISTED = re.compile(r"(?:no|not) (?:listed|given|mentioned)(?: above)?|[an]\.?o\.?t\.?a\.?|tout ce qui precede\.?")
_ALL_OF = re.compile(
    r"\b(?:all|none|any|two|three|each|some|several|most|many|(?:more than |one or more|at least |only )?(?:one|two))"
    r"(?: or more)? of the (?:above|following|options|answers|choices|listed|statements above)\b"
    r"|^(?:all|none|any|two|three|each) of (?:these|them)\b"
    r"|\bnone (?:is|are) (?:correct|right|true)\b"
    r"|\b(?:tod[ao]s?|ningun[ao]s?|cualquiera|varias|dos|mas de una) .*\b(?:anterior(?:es)?|opcion(?:es)?)$"
    r"|\b(?:tod[ao]s?|ningun[ao]s?)\b.*\b(?:anterior(?:es)?|opcion(?:es)?)\b"
    r"|\b(?:tod[ao]s|ningun[ao])\b.*\bson (?:correct|ciert|fals)"
    r"|\b(?:tou(?:te)?s|aucune?|plusieurs)\b.*\b(?:propositions?|ci-dessus|precedente?s?)\b"
    r"|\b(?:все|более (?:чем )?одного из|несколько из|два из|некоторые из) (?:выше)?(?:перечисленн|указанн|названн)"
    r"|ни од(?:ин|но|на) из|ничего из|^нет (?:правильн|верн)"
    r"|^以上(?!腹|肢|颌|唇|皮|臂|身|消化|呼吸)|^上述|^(?:上列|上面|前面|前述)(?:的)?(?:各|所有)?(?:项|选项|答案|说法)?[都均皆全不无]|^上列各项"
    r"|^上記(?:$|すべて|全て|全部|以外|いずれ|どれ|選択肢|の(?:すべて|全て|全部|うち|中|内|いずれ|どれ|選択肢|項目))"
    r"|すべて正しい|^いずれも|^위의 (?:모두|모든|전부|것|보기|어느)|모두 (?:옳|맞|정답)"
)
_BARE = re.compile(
    r"(?:都不?是|均不?是|皆不?是|都不?对|均不?对|都不?正确|均不?正确|全部|全是|全对|全都?不?是|无|無|没有|都没有|全选"
    r"|(?:都|均|皆|全都?|全部)不?(?:对|對|是|可以?|正确|正確|有|错误?|非|能)"
    rf"|(?:无|無|没有)(?:正确|正確)?(?:答案|选项|選項)|(?:所有|全部|任何)(?:选项|選項|答案){_ZH_VERDICT}"
    r"|(?:有|不止|超过|至少)?[多一两兩二](?:个|項|项)(?:以上)?(?:都|均)?(?:选项)?(?:正确|正確|对)"
    r"|(?:該当|正解|正答|正しい)(?:する)?(?:もの|選択肢|答え)?[はが]?(?:なし|ない)|(?:特に)?なし"
    r"|(?:上|これら|選択肢)?の?(?:選択肢|もの|項目)?の?(?:すべて|全て|全部|いずれ|どれ)(?:の(?:選択肢|項目|もの))?"
    r"(?:[もがは]|でも|にも)?(?:正しい|正しくない|ない|誤り|正解|該当(?:する|しない))?(?:である|です)?"
    r"|複数(?:の選択肢)?が(?:正しい|正解|該当する)"
    r"|(?:해당(?:\s?사항)?|정답(?:이)?|답)\s?없(?:음|다)|없음|없다"
    r"|(?:(?:위|상기)의?\s?)?(?:(?:보기|항목|선택지)의?\s?)?(?:모두|전부|모든 (?:것|항목|보기|선택지))"
    r"(?:[가이]?\s?(?:해당|아님|아니다|정답|맞음|맞다|옳음|옳다|옳지 않다|틀리다|가능))?"
    r"|(?:(?:위|상기|이)의?\s?(?:것|보기|항목)?\s?)?(?:중(?:에서)?\s?)?(?:둘|두 (?:개|가지)|하나)\s?이상"
    r"|(?:위의 )?어느 (?:것|보기|항목)도 (?:아니다|아님|옳지 않다))[。.]?"
)


def _places(text: str) -> list[int] | None:
    """The places of the options that a text of nothing but such words names, from 0; None for any other text."""
    if not _POINTS.fullmatch(text):
        return None
    found = [m[0] for m in _NAME.finditer(text)]
    # In "The first two" and "last of 3" no option is named by a number.
    if not found or _THE_FIRST.search(text):
        return [i for i, ordinal in enumerate(_ORDINAL) if ordinal.search(text)] or None
    places = [int(f) - 1 if f.isdigit() else "abcdefgh".find(f) for f in found]
    return [max("абвгд".find(f), 2 * (f == "с")) if p < 0 else p for f, p in zip(found, places)]


def _places_pointed_at(text: str) -> list[int] | None:
    """The places an option points at; None where it is text like any other, a number, or one letter."""
    places = _places(text)
    if places is None:
        return None
    found = [m[0] for m in _NAME.finditer(text)]
    meant = _MEANT.search(text)
    if len(set(places)) == 1 and not (meant and found):
        return None
    digits = [f.isdigit() for f in found]
    if found and any(digits) and not meant:
        if not all(digits) or not _JOINED.search(_RANGE.sub("", _NAME.sub("", text))):
            return None  # "1,2", "1 to 2" and "1 a 2" are numbers
    return places


def _spell_digits(text: str) -> str:
    """The folded text with glued letters apart ("Both AB") and "options one and two" in digits."""
    text = _fold(text)
    if (m := _GLUED.match(text)) and (m[1] or m.end() < len(text)):
        text = f"{m[1]}{' '.join(m[2])} {text[m.end() :]}"
    if _NUMBERS.fullmatch(text):
        text = " ".join(_DIGITS.get(word, word) for word in text.split())
    return text


# Nobody takes more letters to speak of the others.
_LONGEST = 200


def has_references(options: dict[str, str]) -> bool:
    """Whether an option points at others by letter, number, order or "both", so that the order of all has to stay."""
    letters = list(options)
    texts = {k: _spell_digits(v[:_LONGEST]) for k, v in options.items()}
    form = {k for k, t in texts.items() if _places(t)}
    for k, text in texts.items():
        others = {letters[p] if p < len(letters) else "" for p in _places_pointed_at(text) or ()}
        if others and k not in others and "" not in others and not others & form:
            return True
    return any(_both(t) for t in texts.values())


def _both(text: str) -> bool:
    if _GROUP.fullmatch(text.rstrip("。.")):
        return True
    if _PAIR.search(text) and _BOTH.fullmatch(text):
        return True
    return bool(_THE_FIRST.search(text) and _PLAIN_ONLY.fullmatch(text))


def keeps_place(option: str) -> bool:
    """Whether an option speaks of all, none or an open number of the others and so keeps its place."""
    text = _fold(option[:_LONGEST])
    if _BARE.fullmatch(text) or _NO_LISTED.fullmatch(text) or _ALL_OF.search(text):
        return True
    if not _PLAIN_ONLY.fullmatch(text):
        return False
    some, no = _SAYS_SOME.search(text) and _OF_THEM.search(text), _SAYS_NO.search(text) and _AN_ANSWER.search(text)
    return bool(_SAYS_ALL.search(text) or some or no)


def shuffle_options(record: dict, seed: int, benchmark: str) -> tuple[dict, str]:
    """The record with its options in an order drawn from (seed, benchmark, id), and the original letters in that order.

    "None of the above" and its like keep their place, and those above it stay above it; a question with an option such
    as "A and C" keeps its order.
    """
    letters = list(record["options"])
    if has_references(record["options"]):
        return record, "".join(letters)

    def draw(letter: str) -> bytes:
        return hashlib.sha256("\0".join((str(seed), benchmark, record["id"], letter)).encode()).digest()

    order, between = [], []
    for letter in letters:
        if len(letters) > 2 and keeps_place(record["options"][letter]):  # of two, 有 and 无, neither speaks of others
            order += [*sorted(between, key=draw), letter]
            between = []
        else:
            between.append(letter)
    order += sorted(between, key=draw)
    shown = dict(zip(order, letters))
    answer = ",".join(sorted(shown[k] for k in record["answer_idx"].split(",")))
    options = {new: record["options"][old] for new, old in zip(letters, order)}
    return {**record, "options": options, "answer_idx": answer}, "".join(order)
