"""What comes right before a statement's letters, or its option's text: with a word for the answer, and without one.

ANCHORS name it ("the correct answer is"). PHRASES do not ("it's B", "this leaves C", "Conclusion: D", "not A but B"):
most of them stand for an answer only before a lone letter, "it's B."; "note" rules say what an answer often is, but not
always (the false statement, a diagnosis): they yield to any other.
"""

import re
from functools import lru_cache

from mmed_jax.evaluation.extraction import rules

# (rule name, pattern). A bare "Options:" or "Choices:" opens a restated list and is no anchor.
ANCHORS: tuple[tuple[str, str], ...] = (
    ("boxed", r"⟦boxed⟧\s*"),
    (
        "mark:en",
        r"\b(?:answers?|ans(?=\s*[:=])|(?:correct|final|best|right|chosen|selected|my)\s+(?:option|choice|response))"
        r"(?:\s+(?:letter|choice|option|index))?[\"']?\s*(?:[:=→➜➡⇒]|\s[-–—]+\s)",
    ),
    ("mark:en", r"\[(?:(?:final|correct)\s)?answer\]\s{0,3}:?"),
    ("mark:en", r"(?:^|\n)\W*(?:(?:final\s+|correct\s+)?answer\s+|ans(?:\.|(?=-|\s+is\b))\s*(?:is\b\s*|-\s*)?)(?=\S)"),
    (
        "sentence:en",
        rf"\b(?:answers?|{rules.EN_GOOD}\s+(?:option|choice|response|statement|one)s?)"
        r"(?:\s+(?:to|for|in)\s+(?:this|the|your)\s+(?:\w+\s+)?(?:question|case|patient|scenario|situation|vignette)|\s+here)?"
        r"\s+(?:is|are|would\s+be|should\s+be|must\s+be|will\s+be|has\s+to\s+be)\s*:?"
        r"\s*(?:therefore|thus|clearly|most\s+likely|probably|likely|definitely|indeed)?,?"
        r"(?:\s*not\s+[A-Z],?\s+but)?",
    ),
    ("sentence:en", r"\b(?:change|revise|switch)\s+(?:my|the|our)\s+(?:final\s+)?answer\s+to\s"),
    ("choose:en", r"\bso,?\s+(?=(?:option\s+)?\(?[A-Z]\)?\s+instead\b)"),
    (
        "choose:en",
        r"\b(?:(?:i|we)(?:\s+would|\s+will|\s+now|['’]d|['’]ll)?\s+(?:choose|pick|select|chose|say|go\s+(?:with|for))|it\s+must\s+be)\s",
    ),
    (
        "choose:en",
        r"(?:^|\n)(?:so,?\s+)?(?:choose|select|pick)\s",
    ),
    (
        "mark:en",
        r"(?:^|\n)\W{0,8}(?:(?:choice|selection|selected|pick|correct)|option(?=\s{0,3}:\s{0,3}\W?[A-Z]\b\W{0,3}(?:$|\n)))\s{0,3}[:=]",
    ),
    (
        "sentence:en",
        rf"\b(?:{rules.EN_MOST}|(?<!second )(?<!second-)(?<!next )(?<!next-)best|"
        r"next\s+best(?!\s+(?:answer|option|choice))|"
        r"correct|right|closest|first)\s+"
        rf"(?:(?:next|initial|first|possible|overall|single|underlying|clinical|additional|causative|electrolyte|primary)\s+){{0,3}}{rules.EN_NOUN}"
        r"(?:\s+(?:in|for|of|to(?!\s+(?:exclude|consider|rule|avoid|remember))|among|from|with|by|here|given|that)\b"
        r"[^.;:\n]{0,60}?)?"
        r"\s+(?:is|are|would\s+be|should\s+be|will\s+be|(?:seems|appears)\s+to\s+be)\s{0,3}:?"
        r"\s{0,3}(?:therefore|thus|clearly|likely|probably|most\s+likely|indeed)?,?",
    ),
    (
        "sentence:fr",
        rf"\b(?:(?:{rules.FR_NOUN}\s+)?(?:la|le)\s+plus\s+{rules.FR_MOST}|meilleure?\s+{rules.FR_NOUN})(?:\s+(?:ici|dans\s+ce\s+cas))?"
        r"\s+(?:est|serait)(?:\s+donc)?(?=[\s:])",
    ),
    (
        "sentence:es",
        rf"\b(?:(?:{rules.ES_NOUN}|lo|la|el)\s+más\s+{rules.ES_MOST}|mejor\s+{rules.ES_NOUN})(?:\s+(?:aquí|en\s+este\s+caso))?"
        r"\s+(?:es|sería)(?=[\s:])",
    ),
    (
        "sentence:ru",
        r"\bнаиболее\s+(?:вероятн|подходящ|правильн|целесообразн|обоснованн|предпочтительн)\w{1,3}(?:\s+\w{1,20}){0,2}?"
        r"\s{0,3}(?:является|будет|это|[:–—-])(?:\s+(?:это|является))?",
    ),
    (
        "sentence:ru",
        r"\bнаиболее\s+(?:вероят(?:ен|на|но)|правил(?:ен|ьна|ьно)|подходит)\s+(?:вариант|ответ|диагноз)\s{0,3}:?",
    ),
    (
        "sentence:zh",
        r"最(?:为)?(?:可能|合适|适合|适宜|恰当|佳|符合|正确|准确)(?:题意)?的?(?:诊断|治疗方案|治疗方法|治疗措施|治疗|措施|方法|原因|处理|做法|检查|病原体|致病菌|病因|选项|是|药物)?"
        r"(?:应该|应|就)?(?:(?<=是)|是|为|:)",
    ),
    (
        "sentence:ja",
        r"最も(?:可能性が高い|可能性の高い|適切な|適切だ|適当な|妥当な|考えられる|考えやすい|疑われる|疑わしい|ふさわしい|有力な)"
        r"(?:と(?:考えられる|思われる|考える|思う))?"
        r"(?:選択肢|もの|診断|診断名|疾患|治療|治療法|対応|検査|原因|処置|薬剤|の)(?:は|:)[、,]?",
    ),
    (
        "sentence:ko",
        r"가장\s?(?:적절한|적합한|가능성이?\s?(?:높은|큰)|알맞은|옳은|타당한|의심되는|유력한)\s?"
        r"(?:것|선택지|보기|진단|진단명|치료|처치|검사|원인|약물|약제|조치)?(?:은|는|:)",
    ),
    ("mark:fr", rf"\br[ée]ponses?(?:\(s\))?(?:\s+{rules.FR_GOOD})?\s*(?:[:=→]|[-–—])"),
    (
        "sentence:fr",
        rf"\b(?:r[ée]ponses?(?:\s+{rules.FR_GOOD})?|(?:option|proposition|item|affirmation)s?\s+{rules.FR_GOOD}|bons?\s+choix)"
        r"(?:\s+à\s+(?:la|cette)\s+question|\s+dans\s+ce\s+cas|\s+ici)?\s+(?:(?:est|sont|serait|seraient)(?:\s+donc)?(?=[\s:])|"
        r"n['’]est\s+(?:donc\s+)?pas\s+(?:la\s+)?[A-Z]\s*,?\s*mais\b)",
    ),
    (
        "sentence:fr",
        r"\b(?:c['’]est|il\s+s['’]agit\s+(?:donc\s+)?de)\s+(?:donc\s+)?(?:la\s+réponse|l['’]option|la\s+proposition)\s",
    ),
    ("choose:fr", r"\bje\s+(?:choisis|retiens|réponds|sélectionne)\s"),
    ("mark:es", rf"\b(?:respuestas?(?:\(s\))?|soluci[óo]n)(?:\s+{rules.ES_GOOD})?\s*(?:[:=→]|[-–—])"),
    (
        "sentence:es",
        rf"\b(?:respuestas?(?:\s+{rules.ES_GOOD})?|la\s+correcta|(?:opci[óo]n|alternativa|afirmaci[óo]n)(?:es|s)?\s+{rules.ES_GOOD})"
        r"(?:\s+a\s+(?:la|esta)\s+pregunta|\s+en\s+este\s+caso|\s+aquí)?"
        r"\s+(?:(?:es|son|sería|serían)(?:,?\s+por\s+(?:lo\s+)?tanto,?)?(?=[\s:])|"
        r"no\s+es\s+(?:la\s+)?[A-Z]\s*,?\s*sino\b)",
    ),
    ("choose:es", r"\b(?:elijo|escojo|selecciono|elegiría|seleccionaría|escogería|marcaría|contestaría)\s"),
    ("mark:ru", r"\bответы?\s*(?:[:=→]|[-–—])"),
    (
        "mark:ru",
        r"(?:(?:^|\n)\W*|\b(?:правильный|верный|следовательно|поэтому|значит|итак|таким\s+образом)[\s,]+)"
        r"ответ\s+(?=\S)",
    ),
    (
        "sentence:ru",
        r"\b(?:(?:правильн|верн|лучш)\w+\s+(?:(?:вариант|утвержден|ответ)\w*)(?:\s+ответа)?|ответом?)"
        r"\s*(?:(?:является|являются|будет|это|[:–—-])(?:\s+(?:это|является))?|"
        r"(?:[:–—-]\s*)?не\s+[A-ZАВСЕ]\s*,?\s*а\b)",
    ),
    (
        "sentence:ru",
        r"\b(?:верн|правильн)\w+\s+(?:являются\s+)?(?:вариант|ответ|утвержден)\w*(?=\s+[A-ZАВСЕ]\b)",
    ),
    ("sentence:ru", r"\b(?:верн|правильн)\w+\s+(?:является|являются|будет|только)\s"),
    ("choose:ru", r"\bя\s+(?:выбираю|бы\s+выбрала?|выберу)\s"),
    (
        "mark:zh",
        r"答案\s*[】\])]?\s*(?:应该|应当|应|就|即|只能)?\s*(?:是|为|选择|选)?\s*[:=→]?"
        r"(?:不是\s*[A-Z]\s*[,、]?\s*而是)?",
    ),
    (
        "sentence:zh",
        r"(?:正确|最佳|合适|可能|恰当|适合|适当|准确)的?(?:选项|选择|说法|一项)\s*(?:应该|应)?(?:(?:是|为|有):?|:)",
    ),
    ("choose:zh", r"(?<![不未可首备待若如误])(?:选择|选)(?:的是)?(?!\s*\n)\s*:?"),
    (
        "mark:ja",
        r"(?:(?<!不)(?:正解|正答)|答え|解答|回答|(?<![解回誤])答)\s*[】\])]?\s*(?:の選択肢)?(?:として)?(?:は[,、]?|が|:|=|→)?"
        r"(?:\s*[A-Z]\s*ではなく[,、]?)?",
    ),
    (
        "sentence:ja",
        r"(?:正しい|適切な|適当な|該当する|可能性が高い|考えられる|誤っている)"
        r"(?:選択肢|もの|答え|記述|組み合わせ|診断|解答|の)\s*(?:は|:)",
    ),
    (
        "mark:ko",
        r"(?:정답|해답|답변|답안?|(?:올바른|옳은|맞는)\s*(?:선택지|보기|것|선택)|선택\s*(?=:))"
        r"\s*[】\])]?\s*(?:은|는|이|:|=|→)?\s*:?(?:\s*[A-Z]\s*(?:가|이)\s*아니라)?",
    ),
    (
        "conclusion",
        r"(?:\b(?:therefore|thus|hence|donc|ainsi|(?:por\s+)?(?:lo\s+)?tanto|следовательно|поэтому)|"
        r"(?:因此|所以)(?:应该?)?[是为]?|したがって|よって|따라서|그러므로)\s*[:,、]?",
    ),
)
# Statements that yield to any other, by rule, the character before and the anchor: orders ("Select C for males"), and
# what answers "which is right?" or "which is wrong?" but is a note in every other question.
WEAK = r"note:|choose:en \W*(?:choose|select|pick)|sentence:zh 不|sentence:ja (?:不|[\s\S]?(?:誤っている|正しい))"
# Rules after which Cyrillic lookalikes are read as Latin letters, whatever the language of the question.
RUSSIAN = ("mark:ru", "sentence:ru", "choose:ru", "note:ru")

# A letter in capitals, alone or with its option's text after a mark. Not the article: "A patient", "à A patient".
_CALLED = (
    r"(?:(?:the\s+)?(?:option|choice|answer|la|le|l['’]|(?:la|les)\s+réponses?|réponses?|(?:la\s+)?opción|"
    r"las\s+opciones|вариант)\s{0,3}|选项)?"
)
_LETTER = rf"[{rules.OPEN}]{{0,2}}(?-i:[A-JАВСЕ])[{rules.CLOSE}]{{0,2}}"
_AFTER = r"(?:$|[\n.,;:!。(—–)]|-\s|(?:because|since|as|car|porque|потому|and|or|ou|et|o|y|и|или)\b)"
_LONE = rf"(?={_CALLED}{_LETTER}\s{{0,3}}{_AFTER})"
_NOT_ASKED = r"(?![^.!\n]{0,80}\?)"
_ENDS = rf"(?={_CALLED}{_LETTER}[.。!]?\s{{0,3}}(?:$|\n))"
# Nothing else is left, as "this leaves B and D" would say.
_ALONE = rf"{_LONE}(?![^.\n]{{0,80}}\b(?:and|or)\b)"
_WAS = r"(?-i:[A-JАВСЕ])[)\]\"'”]?\s{0,2},?\s{0,2}"

PHRASES: tuple[tuple[str, str], ...] = (
    # A heading of its own before the letter.
    (
        "mark:en",
        r"(?:^|\n)\W{0,8}(?:(?:my|our|final|overall)\s+)?(?:decision|conclusion|verdict|diagnosis|prediction|response|"
        rf"output|result|solution|soluci[óo]n|assistant|pick|model|final)\s{{0,3}}:\s{{0,4}}{_LONE}",
    ),
    (
        "mark:en",
        r"(?:^|\n)\W{0,8}(?:final\s+)?(?:conclusion|decision|verdict|diagnosis|answer)[^\S\n]{0,4}\n\s{0,8}"
        rf"{_LONE}",
    ),
    ("mark:fr", rf"\b(?:option|proposition|affirmation)s?\s+{rules.FR_GOOD}\s{{0,3}}[:=]"),
    ("mark:es", rf"\b(?:opci[óo]n|alternativa)(?:es|s)?\s+{rules.ES_GOOD}\s{{0,3}}[:=]"),
    ("mark:ru", rf"(?:^|\n)\W{{0,8}}(?:вывод|решение|диагноз)\s{{0,2}}[:—–-]?\s{{0,2}}{_LONE}"),
    # It is this one, or is chosen.
    (
        "choose:en",
        r"(?<!if )(?<!whether )(?<!that )(?<!maybe )(?<!perhaps )(?<!possibly )(?<!unless )\b"
        r"(?:(?:it|that)(?:['’]s|\s+is)|it\s+(?:should|has\s+to)\s+be)\s+"
        rf"{_LONE}{_NOT_ASKED}",
    ),
    ("choose:en", rf"\b(?:i['’]m|i\s+am|we['’]re|we\s+are)\s+going\s+with\s+{_LONE}"),
    ("choose:en", rf"\b(?:i|we)(?:\s+would|\s+will|['’]d|['’]ll)?\s+(?:answer|recommend|suggest)\s+{_LONE}"),
    ("choose:en", rf"\byou\s+should\s+(?:choose|select|pick)\s+{_LONE}"),
    ("choose:en", r"\b(?:my|our)\s+(?:final\s+)?(?:choice|pick|selection|decision)\s+(?:is|would\s+be)\s{0,3}:?"),
    ("choose:en", rf"\b(?:i\s+(?:would\s+)?(?:choose|chose|pick|select)|the\s+choice)\s+is\s{{0,3}}:?\s{{0,3}}{_LONE}"),
    ("sentence:en", rf"\bthe\s+(?:{rules.EN_MOST}|best)\s+(?:is|would\s+be)\s{{0,3}}:?\s{{0,3}}{_LONE}"),
    ("choose:fr", rf"\bc['’]est\s+(?:donc\s+)?{_LONE}{_NOT_ASKED}"),
    ("choose:fr", rf"\bil\s+faut\s+(?:donc\s+)?(?:choisir|cocher|répondre)\s+{_LONE}"),
    ("sentence:fr", rf"(?<!ne )\bsont\s+(?:exactes?|vraies?|correctes?|justes?)\s{{0,3}}:?\s{{0,3}}{_LONE}"),
    ("choose:es", rf"(?:^|[.,;\n])\W{{0,3}}(?:es|sería)\s+(?=la\s){_LONE}"),
    ("sentence:es", rf"(?<!no )\b(?:es|son)\s+(?:correct|verdader|ciert)[ao]s?\s{{0,3}}:?\s{{0,3}}{_LONE}"),
    ("choose:ru", rf"\bвыбираю\s+{_LONE}"),
    ("choose:ru", rf"(?:^|[.,;\n—–-])\W{{0,3}}это\s+{_LONE}"),
    ("choose:zh", rf"(?:即(?:选|为|是)?|我的选择(?:是|为)){_ENDS}"),
    # What is left, or follows.
    (
        "sentence:en",
        r"\b(?:leav(?:es|ing)|left\s+with)(?:\s+(?:us|me|only|just|with)){0,3}\s+"
        rf"(?:{_ALONE}|{_CALLED}(?={_LETTER}\s+as\s))",
    ),
    ("conclusion", rf"\b(?:so|by\s+(?:(?:the\s+)?process\s+of\s+)?elimination)\s{{0,2}}[,:]?\s{{0,2}}{_LONE}"),
    (
        "sentence:en",
        r"\b(?:which\s+is|correspond(?:s|ing)?\s+to|match(?:es|ing))\s+"
        rf"(?=(?:option|choice|answer)\s+{_LETTER}[^\w\n]{{0,4}}(?:\Z|\n\s{{0,8}}\n))",
    ),
    (
        "sentence:en",
        rf"\bmak(?:es|ing)\s+(?={_CALLED}{_LETTER}\s+the\s+(?:single\s+)?(?:most\s+)?{rules.EN_GOOD}\s+(?:answer|option|choice|response)\b)",
    ),
    # Not this one, but that; a slip put right.
    (
        "sentence:en",
        r"(?:\.{2,3}|[,;—])\s{0,3}(?:no|sorry|oops|wait)\b,?\s+(?:(?:no|wait|sorry|actually)[,.]?\s+|it['’]s\s+){0,2}"
        rf"{_LONE}{_NOT_ASKED}",
    ),
    ("sentence:zh", r"(?:不对|不)[,，。]\s?(?:应该?|而?)是"),
    ("sentence:ja", rf"(?-i:[A-J])ではなく[、,]?(?={_LETTER}(?:です|である|だ|が(?:正|適)))"),
    ("sentence:ko", r"(?-i:[A-J])\s?번?(?:가|이)\s?아니라\s"),
    ("sentence:en", rf"\bnot\s+{_CALLED}[(\[\"']?{_WAS}but\s+(?:rather\s+)?{_LONE}"),
    ("sentence:fr", rf"\bpas\s+{_CALLED}{_WAS}mais\s+(?:plutôt\s+)?{_LONE}"),
    ("sentence:es", rf"\bno\s+(?:es\s+)?{_CALLED}{_WAS}sino\s+{_LONE}"),
    ("sentence:ru", rf"\bне\s+{_CALLED}{_WAS}а\s+{_LONE}"),
    ("sentence:zh", r"不(?:是|选|为)\s?(?-i:[A-J])\s?[,、]?\s?而?应?(?:是|选|为)"),
    # Notes.
    ("note:en", r"\b(?:most|best)\s+(?:consistent|compatible)\s+with\s+(?:an?\s+)?(?:diagnosis\s+of\s+)?(?:an?\s+)?"),
    ("note:en", r"\b(?:the|final|likely|probable|clinical)\s+diagnosis\s+is\s+(?:therefore\s+|thus\s+)?(?:an?\s+)?"),
    (
        "note:en",
        r"\b(?:false|incorrect|untrue|inaccurate)\s+(?:statement|one)\s+is|\bexception\s+(?:here\s+)?is|"
        r"\b(?:statement|option|one|choice)\s+that\s+(?:is|are)\s+not\s+\w+\s+is|"
        r"\b(?:all|each)\b[^.;\n]{0,50}\s(?:true|correct|right|wrong|false|incorrect),?\s+except(?:\s+for)?\s",
    ),
    (
        "note:fr",
        r"\b(?:proposition|affirmation|assertion)\s+(?:fausse|inexacte|incorrecte)\s+est\s|"
        r"\btoutes?\b[^.;\n]{0,50}\s(?:vraies|exactes|justes|correctes|fausses|inexactes),?\s+sauf\s",
    ),
    (
        "note:es",
        r"\b(?:afirmación|opción|alternativa)\s+(?:falsa|incorrecta|errónea)\s+es\s|"
        r"\btod[ao]s\b[^.;\n]{0,50}\s(?:correct|incorrect|ciert|fals|verdader)[ao]s,?\s+(?:excepto|salvo|menos)\s",
    ),
    (
        "note:ru",
        r"\b(?:неверн|неправильн|ложн|ошибочн)\w{1,3}\s+(?:является|утверждени\w{1,2}\s{0,2}[:—–-])|"
        r"\bвсе\b[^.;\n]{0,50}?\s?(?:верн|правильн)\w{1,3},?\s+кроме\s",
    ),
    ("note:zh", r"(?:错误|不恰当|不准确|有误)的?(?:选项|说法|一项)?(?:是|为)|正确的(?:是|为)"),
    ("note:ja", r"(?:適切でない|正しくない|適当でない|誤りである|不適切な)(?:もの|選択肢|記述|の)は[、,]?"),
    (
        "note:ko",
        r"(?:옳지\s?않은|적절하지\s?않은|맞지\s?않는|올바르지\s?않은|틀린|잘못된)\s?(?:것|설명|보기|선택지|문장)(?:은|는)",
    ),
)


@lru_cache(maxsize=1)
def anchor_patterns() -> tuple[tuple[str, re.Pattern], ...]:
    """(rule name, pattern) of every anchor, with the words that may follow it (group "noise")."""
    return tuple(
        (rule, re.compile(rf"(?:{pattern})(?P<noise>{rules.NOISE})", re.IGNORECASE))
        for rule, pattern in ANCHORS + PHRASES
    )
