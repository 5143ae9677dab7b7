"""Statements of the answer without a word for it: "it's B", "this leaves C", "Conclusion: D", "not A but B".

Of the form of answer_rules.ANCHORS, and read with them. Most stand for an answer only before a lone letter, "it's B.";
"note" rules say what an answer often is, but not always (the false statement, a diagnosis): they yield to any other.
"""

from mmed_jax.evaluation.extraction import rules as R

# A letter in capitals, alone or with its option's text after a mark. Not the article: "A patient", "à A patient".
_CALLED = (
    r"(?:(?:the\s+)?(?:option|choice|answer|la|le|l['’]|(?:la|les)\s+réponses?|réponses?|(?:la\s+)?opción|"
    r"las\s+opciones|вариант)\s{0,3}|选项)?"
)
_LETTER = rf"[{R.OPEN}]{{0,2}}(?-i:[A-JАВСЕ])[{R.CLOSE}]{{0,2}}"
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
    ("mark:fr", rf"\b(?:option|proposition|affirmation)s?\s+{R.FR_GOOD}\s{{0,3}}[:=]"),
    ("mark:es", rf"\b(?:opci[óo]n|alternativa)(?:es|s)?\s+{R.ES_GOOD}\s{{0,3}}[:=]"),
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
    ("sentence:en", rf"\bthe\s+(?:{R.EN_MOST}|best)\s+(?:is|would\s+be)\s{{0,3}}:?\s{{0,3}}{_LONE}"),
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
        rf"\bmak(?:es|ing)\s+(?={_CALLED}{_LETTER}\s+the\s+(?:single\s+)?(?:most\s+)?{R.EN_GOOD}\s+(?:answer|option|choice|response)\b)",
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
