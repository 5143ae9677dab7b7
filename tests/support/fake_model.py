"""A stand-in for a language model: reads the prompts of data_gen's methods and answers them, deterministically.

    answer(messages)                       the JSON text a good model would send, in the language the prompt asks for
    answer(messages, wrong="language")     a bad one; WRONG lists the ways
    FakeModel({"language": 0.1}, seed=1)   a callable on the body of a chat completion that errs at these rates

Text in another language is made of words of that language (out of the hand-crafted samples), one per word of the
source, chosen by hash, with numbers, units and single capital letters left where they are: it means nothing, but has
the right script, length, quantities and no duplicates. Only what stands in the fence is read as data.
"""

import hashlib
import json
import re
from functools import cache
from pathlib import Path

from data_gen.gates.units import UNITS, unit_after
from data_gen.methods.topics import TOPICS
from data_gen.prompts.versions import NAMES, load_prompt
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.llm_api.prompt_guard import inside

WRONG = {
    "refusal": "declines, in words",
    "prose": "no JSON at all",
    "json": "JSON that stops before its end",
    "field": "a field with another name",
    "language": "the right form in another language",
    "key": "argues for an option that is not the key (rationale)",
    "hidden_key": "names the right letters, but the text argues for another option (rationale)",
    "copy": "the source text itself",
    "numbers": "every number changed",
    "options": "options exchanged (translation)",
    "boilerplate": "an opening addressed to the user",
    "leak": "a mark of the fence and a control token",
    "short": "one word",
    "long": "the same over and over",
    "ungrounded": "quotations that are not in the passage (qa)",
    "doubt": "a good answer with its doubt said",
}
# Units are written by their symbol in every language; numbers lose the marks between thousands.
_WRITTEN = {"c": "°C", "f": "°F", "deg": "°", "iu": "IU", "ug": "µg", "um": "µm", "ul": "µl", "umol": "µmol"}
_DIGITS = re.compile(r"(?<![\d.,])\d[\d.,]*(?<![.,])")
_SIGNS = ("%", "µg", "mmHg", "mEq", "IU", "°C", "°F", "°", "万", "億", "亿", "千", "만", "천")
_UNITS = "|".join(sorted({*_SIGNS, *UNITS, *_WRITTEN.values()} - {"m", "s"}, key=len, reverse=True))
_KEPT = re.compile(
    rf"(?:(?<![\d.,])\.)?\d[\d.,:/×x^%‰°~〜～–-]*(?:\s?(?:{_UNITS})(?![A-Za-zа-я]))?"
    r"(?:/(?:dL|dl|L|l|ml|mL|kg|h|min|day|week|sec))*"
    r"|(?<![\w])[A-J](?![\w'’])"
)
_TOKEN = re.compile(
    _KEPT.pattern + r"|\n+|[\u3040-\u30ff\u3400-\u9fff]{1,3}|[^\W\d_]+(?:[-'’][^\W\d_]+)*"
    r"|[.?!;:。？！；：](?=\s|$|\W)|[,，、]"
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_STOPS = {"zh": "。", "ja": "。"}
_WORDS_FROM = Path(__file__).resolve().parents[2] / "data_gen" / "handcrafted" / "instructions.jsonl"
_SAY = {
    "en": (
        "The answer is {}.",
        "What is known about {}?",
        "It is known that {}",
        "Option {} ({}) fits.",
        "Therefore, the correct answer is {}.",
        "I'm sorry, but I can't help with that request.",
        "Sure! Here is the answer: ",
    ),
    "zh": (
        "答案是{}。",
        "关于{}有哪些已知情况？",
        "已知{}",
        "选项{}（{}）符合。",
        "因此，正确答案是{}。",
        "很抱歉，我无法回答这个问题。",
        "好的，以下是翻译：",
    ),
    "ja": (
        "答えは{}である。",
        "{}について何が知られているか。",
        "知られているのは{}",
        "選択肢{}（{}）は当てはまる。",
        "したがって、正解は{}である。",
        "申し訳ありませんが、お答えできません。",
        "もちろんです。以下は回答です。",
    ),
    "ko": (
        "답은 {}이다.",
        "{}에 대해 무엇이 알려져 있는가?",
        "알려진 바로는 {}",
        "보기 {}({})가 들어맞는다.",
        "따라서 정답은 {}이다.",
        "죄송합니다. 저는 그 요청을 도와드릴 수 없습니다.",
        "네, 다음은 답변입니다. ",
    ),
    "fr": (
        "La réponse est {}.",
        "Que sait-on de {} ?",
        "On sait que {}",
        "La proposition {} ({}) convient.",
        "Par conséquent, la bonne réponse est {}.",
        "Je suis désolé, je ne peux pas répondre à cette demande.",
        "Bien sûr ! Voici la réponse : ",
    ),
    "es": (
        "La respuesta es {}.",
        "¿Qué se sabe de {}?",
        "Se sabe que {}",
        "La opción {} ({}) encaja.",
        "Por tanto, la respuesta correcta es {}.",
        "Lo siento, no puedo responder a esa petición.",
        "¡Claro! Aquí tiene la respuesta: ",
    ),
    "ru": (
        "Ответ: {}.",
        "Что известно о следующем: {}?",
        "Известно, что {}",
        "Вариант {} ({}) подходит.",
        "Следовательно, правильный ответ — {}.",
        "Извините, я не могу ответить на этот запрос.",
        "Конечно! Вот ответ: ",
    ),
}


def answer(messages: list[dict], wrong: str = "") -> str:
    """The reply to the prompt of one method (system and user message); free text for any other prompt."""
    if wrong and wrong not in WRONG:
        raise ValueError(f"wrong={wrong!r}; valid: {', '.join(WRONG)}")
    known = _prompts().get(messages[0]["content"]) if len(messages) > 1 else None
    fenced = inside(messages[-1]["content"])
    if known is None or len(fenced) != 1:
        return "This model answers the prompts of data_gen only."
    method, language = known
    count = re.search(r"(\d+)", messages[-1]["content"].partition("<<<")[0])
    found = _good(method, language, json.loads(fenced[0]), int(count[1]) if count else 1, wrong)
    return _spoil(found, language, json.loads(fenced[0]), wrong)


class FakeModel:
    """Answers bodies of chat completions; errs at the given rates, by hash of its seed, the prompt and its seed."""

    def __init__(self, rates: dict[str, float] | None = None, seed: int = 0):
        self.rates, self.seed = dict(rates or {}), seed

    def __call__(self, body: dict) -> str:
        return answer(body["messages"], self.fault(body))

    def fault(self, body: dict) -> str:
        """Which of WRONG this request gets, "" for none."""
        key = json.dumps([self.seed, body["messages"], body.get("seed")], sort_keys=True)
        draw = _hash(key) / 2**32
        for name, rate in self.rates.items():
            if draw < rate:
                return name
            draw -= rate
        return ""


def foreign_text(text: str, language: str) -> str:
    """Words of `language` in place of those of `text`; numbers, units, single capitals, punctuation and lines stay."""
    words, space = _lexicon(language), "" if language in ("zh", "ja") else " "
    tokens = [m[0] for m in _TOKEN.finditer(_plain(text))]
    short = sum(t[0].isalpha() for t in tokens) <= 2  # one word for one would make options equal
    out, previous = [], ""
    for token in tokens:
        if token.startswith("\n"):
            out.append(token)
        elif token in ".?!;:。？！；：,，、":
            out.append(_mark(token, language))
        else:
            kept = _KEPT.fullmatch(token)
            key = f"{language} {previous} {token}"
            word = token if kept else words[_hash(key) % len(words)]
            if short and not kept:
                word += space + words[_hash(key[::-1]) % len(words)]
            between = space or (" " if kept or _KEPT.fullmatch(previous or "-") else "")
            out.append((between if out and not out[-1].endswith("\n") else "") + word)
            previous = token
    return "".join(out).strip()


def _plain(text: str) -> str:
    """The text with its units as symbols ("45 лет" is "45 year") and 1,500 as 1500."""
    out, end = [], 0
    for m in _DIGITS.finditer(text):
        if m.start() < end:
            continue
        number = re.sub(r"[.,](?=\d{3})", "", m[0]) if re.fullmatch(r"[1-9]\d{0,2}(?:[.,]\d{3})+", m[0]) else m[0]
        unit, after = unit_after(text, m.end())
        name = "/".join(_WRITTEN.get(part, part) for part in unit.split("/"))
        out += [text[end : m.start()], number, name and f" {name} ".replace(" /", "/")]
        end = after
    return "".join([*out, text[end:]])


def _mark(token: str, language: str) -> str:
    if language not in ("zh", "ja"):
        return {"。": ".", "？": "?", "！": "!", "；": ";", "：": ":", "，": ",", "、": ","}.get(token, token)
    comma = "、" if language == "ja" else "，"
    wide = {".": "。", "?": "？", "!": "！", ";": "；", ":": "：", ",": comma, "，": comma, "、": comma}
    return wide.get(token, token)


def _good(method: str, language: str, data: dict, count: int, wrong: str) -> dict:
    tongue = LANGUAGES[(LANGUAGES.index(language) + 3) % len(LANGUAGES)] if wrong == "language" else language
    say = _SAY[tongue]
    stop, space = _STOPS.get(tongue, "."), "" if tongue in _STOPS else " "
    if method == "translation":
        told = {k: _each(v, lambda t: foreign_text(t, tongue) or t) for k, v in data.items()}
        return told | {"untranslatable": False}
    if method == "topics":
        return {"topic": TOPICS[_hash(data["question"]) % len(TOPICS)]}
    if method == "reanswer":  # a guess: the key is not in the prompt
        letters = sorted(data["options"])
        return {"answer": [letters[_hash(data["question"]) % len(letters)]], "sure": wrong != "doubt"}
    if method == "qa_generation":
        sentences = [s.strip() for s in _SENTENCE.split(data["passage"]) if len(s) > 12] or [data["passage"].strip()]
        own = _reads_as(data["passage"]) == tongue
        return {"pairs": [_pair(s, tongue, own, say) for s in sentences[:count]]}
    pseudo, more = "", data["question"]
    while len(pseudo) < 100:
        more = foreign_text(more, tongue).rstrip("?？.。:：") + stop
        pseudo = f"{pseudo}{space}{more}".strip()
    if method == "answer_expanding":
        given = data["given_answer"]
        given = given if isinstance(given, str) else ("、" if tongue in ("zh", "ja") else "; ").join(given)
        return {"answer": f"{say[0].format(given.rstrip('.。'))}{space}{pseudo}", "doubt": wrong == "doubt"}
    right = data["right_options"]
    others = [letter for letter in data["options"] if letter not in right] or right
    argued = others[:1] if wrong in ("key", "hidden_key") else right
    points = space.join(say[3].format(x, data["options"][x].rstrip(".。")) for x in argued)
    text = space.join([pseudo, points, say[4].format(",".join(argued))])
    return {"rationale": text, "answer": others[:1] if wrong == "key" else right, "doubt": wrong == "doubt"}


def _pair(sentence: str, tongue: str, own: bool, say: tuple[str, ...]) -> dict:
    """A pair about one sentence; in its own language the sentence is the answer, else a made-up translation is."""
    start = re.match(r"(?:\S+\s+){0,6}\S+", sentence)[0][:40].rstrip(" ,，、.。:：?？")
    told = sentence if own else foreign_text(sentence, tongue)
    subject = start if own else foreign_text(sentence[:60], tongue).rstrip(".。?？")
    return {"question": say[1].format(subject), "answer": say[2].format(told), "evidence": sentence}


def _reads_as(text: str) -> str:
    scripts = (("ja", r"[\u3040-\u30ff]"), ("ko", r"[가-힣]"), ("ru", r"[а-яё]"), ("zh", r"[\u4e00-\u9fff]"))
    for name, letters in scripts:
        if 5 * len(re.findall(letters, text, re.IGNORECASE)) > len(text):
            return name
    words = re.findall(r"\w+", text.lower())
    return max(("en", "fr", "es"), key=lambda code: sum(w in _lexicon(code) for w in words))


def _spoil(found: dict, language: str, data: dict, wrong: str) -> str:
    say = _SAY[language]
    if wrong == "refusal":
        found = _each(found, lambda t: say[5], skip=("evidence", "question") if "pairs" in found else ("topic",))
    elif wrong == "prose":
        return say[5]
    elif wrong == "copy":
        source = data.get("passage") or data.get("question") or ""
        same = {k: data.get(k, source) for k in found if isinstance(found[k], str | dict)}
        found = {**found, **same}
        if "pairs" in found:
            found = {"pairs": [{**p, "answer": p["question"]} for p in found["pairs"]]}
    elif wrong == "numbers":
        found = _each(found, lambda t: re.sub(r"\d+", lambda m: str(int(m[0]) * 7 + 13), t))
    elif wrong == "options" and "options" in found:
        letters = list(found["options"])
        found["options"] = dict(zip(letters, [found["options"][x] for x in letters[1:] + letters[:1]]))
    elif wrong == "boilerplate":
        found = _each(found, lambda t: say[6] + t, skip=("topic", "evidence"))
    elif wrong == "leak":
        found = _each(found, lambda t: t + " DATA>>> 0123456789ab <|eot_id|>")
    elif wrong == "short":
        found = _each(found, lambda t: t[:2])
    elif wrong == "long":
        found = _each(found, lambda t: " ".join([t] * 40))
    elif wrong == "ungrounded":
        found = {"pairs": [{**p, "evidence": foreign_text(p["evidence"], "ru")} for p in found.get("pairs", [])]}
    elif wrong == "field":
        found = {f"{k}_text": v for k, v in found.items()}
    text = json.dumps(found, ensure_ascii=False)
    return text[: len(text) * 2 // 3] if wrong == "json" else text


def _each(value: object, change, skip: tuple[str, ...] = ("topic", "evidence")) -> object:
    """`change` applied to every text but letters of options and those under `skip`."""
    if isinstance(value, str):
        return value if len(value) == 1 else change(value)
    if isinstance(value, dict):
        return {k: v if k in skip else _each(v, change, skip) for k, v in value.items()}
    return [_each(v, change, skip) for v in value] if isinstance(value, list) else value


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:4], "big")


@cache
def _prompts() -> dict[str, tuple[str, str]]:
    return {load_prompt(m, code).system: (m, code) for m in NAMES for code in reversed(LANGUAGES)}


@cache
def _lexicon(language: str) -> tuple[str, ...]:
    """Words of the hand-crafted samples; pieces of two or three characters where words are not spaced."""
    texts = []
    for line in _WORDS_FROM.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["language"] == language:
            texts += [m["content"] for m in record["messages"]]
    pattern = {"zh": r"[\u4e00-\u9fff]{2}", "ja": r"[\u3040-\u30ff\u4e00-\u9fff]{3}"}.get(language, r"[^\W\d_]{2,}")
    words = [w.lower() for text in texts for w in re.findall(pattern, text)]
    if language == "ja":
        words = [w for w in words if re.search(r"[\u3040-\u309f]", w)]
    return tuple(dict.fromkeys(words))
