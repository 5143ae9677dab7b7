"""The options of a question in another order, with its key and the letters in its rationale moved along.

The order is that of mmed_jax.evaluation.prompts.option_order: options that speak of others keep theirs. A rationale
names options by their letters; where one letter might as well be a vitamin or a blood group, or an option is named by
its number or place, nobody can say what to move, and the question stays as it is with the flag "order_kept".
"""

import re

from mmed_jax.data.records.schema import LETTERS
from mmed_jax.evaluation.extraction.extract import extract
from mmed_jax.evaluation.prompts.option_order import shuffle_options

# What says that a letter behind it is an option's name.
_SIGN = (
    r"(?:(?:options?|choices?|answers?|letters?|choose|pick|select|statements?|"
    r"r[ée]ponses?|propositions?|lettres?|opci[oó]n(?:es)?|letras?|respuestas?|alternativas?|"
    r"вариант\w*|ответ\w*|букв\w+|пункт\w*)"
    r"(?:\s+(?:correcta?s?|correctes?|exactes?|is|are|es|son|est|sont|la|les|las|only)|\s*[:—–-])*\s*[:(\"'«“]*"
    r"|(?:选项|選項|选择|答案(?:是|为|選|选)?|故选|选|選択肢|正解は?|正答は?|答えは?|보기|선택지|정답은?)\s*[:：(（「“]?\s*"
    r"|[(（\[])"
)
_BEFORE = re.compile(rf"{_SIGN}$", re.IGNORECASE)
# What stands between the letters of a list.
_LIST = re.compile(
    r"(?:[,、，;；/・&+()（）\[\]\s]|\b(?:and|or|et|ou|y|e|o|и|или)\b|和|与|及|或|と|や|와|과|및)+", re.IGNORECASE
)
_LETTER = re.compile(r"(?<![A-Za-z0-9'’°])[A-Z](?![A-Za-z0-9'’°])")
# Words that a letter belongs to, which is then no option.
_NAMES = re.compile(
    r"(?:vitamin[ae]?s?|hepatitis|hépatites?|types?|tipos?|groups?|groupes?|grupos?|factors?|facteurs?|class|classes|"
    r"classe|clase|grades?|grado|influenza|proteins?|protéines?|proteína|child|витамин\w*|гепатит\w*|тип\w*|групп\w+|"
    r"фактор\w*|维生素|维他命|ビタミン|비타민|肝炎)[\s-]*$",
    re.IGNORECASE,
)
# Options by their number or place.
_BY_PLACE = re.compile(
    r"\b(?:first|second|third|fourth|fifth|last|former|latter)\s+(?:two\s+)?(?:option|choice|answer|statement)"
    r"|\b(?:premi[eè]re?|deuxième|troisième|dernière)\s+(?:proposition|réponse|option)"
    r"|\b(?:primera|segunda|tercera|cuarta|última)\s+(?:opción|respuesta)"
    r"|(?:первый|второй|третий|последний)\s+(?:вариант|ответ)"
    r"|(?:第[一二三四五1-5]|最初の|最後の)[个個]?の?(?:选项|選項|选择|選択肢)|[첫두세네]\s?번째\s?(?:보기|선택지)"
    r"|(?:options?|answers?|choices?|选项|選択肢|보기)\s*\(?[1-9①-⑧]|[①-⑧]",
    re.IGNORECASE,
)


def shuffle_record(record: dict, seed: int) -> dict:
    """A multiple-choice record with its options in an order drawn from (seed, source, id).

    provenance.option_order has the original letters in the new order; it is not there where the order stays.
    """
    if "options" not in record:
        return record
    new, order = shuffle_options(record, seed, record["source"])
    if order == "".join(record["options"]):
        return record
    about = record["provenance"]
    if record["rationale"].strip():
        rationale = move_letters(record, dict(zip(order, LETTERS)), new)
        if rationale is None:
            flags = sorted({*about.get("flags", ()), "order_kept"})
            return {**record, "provenance": {**about, "flags": flags}}
        new = {**new, "rationale": rationale}
    return {**new, "provenance": {**about, "option_order": order}}


def move_letters(record: dict, moved: dict[str, str], new: dict) -> str | None:
    """The rationale of `record` with options' letters as `moved` says; None where that is not certain.

    `new` is the record with its options moved: what the rationale states as its answer must be the same option there.
    """
    text, options, language = record["rationale"], record["options"], record["language"]
    if _BY_PLACE.search(text):
        return None
    pieces, end, is_list = [], 0, False
    for m in _LETTER.finditer(text):
        before = text[: m.start()]
        listed = is_list and bool(_LIST.fullmatch(text[end : m.start()]))
        if not listed and not _is_named(text, m, options):
            is_list = False
            if _NAMES.search(before) or text[m.end() : m.end() + 1] in ("-", "+") or m[0] not in options:
                continue
            return None
        if m[0] not in options:
            return None
        pieces += [text[end : m.start()], moved[m[0]]]
        end, is_list = m.end(), True
    result = "".join([*pieces, text[end:]])
    before, after = extract(text, options, language), extract(result, new["options"], language)
    stated = ",".join(sorted(moved[x] for x in before.letters.split(","))) if before.letters else before.letters
    return result if stated == after.letters else None


def _is_named(text: str, m: re.Match, options: dict[str, str]) -> bool:
    """Whether a letter is certainly an option's: by a word or bracket before it, or by the option's text behind it."""
    if _BEFORE.search(text[max(0, m.start() - 40) : m.start()]):
        return True
    option = options.get(m[0], "").strip().rstrip(".。")
    behind = re.sub(r"^[\s.):：、，(（]+", "", text[m.end() : m.end() + len(option) + 8])
    return bool(option) and behind.casefold().startswith(option.casefold())
