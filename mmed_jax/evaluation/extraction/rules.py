"""The patterns of answer extraction; how they are used is in extract.py. All are matched without regard to case."""

LOOKALIKES = {"А": "A", "В": "B", "С": "C", "Е": "E"}  # Cyrillic capitals -> Latin
OPEN, CLOSE = r"(\[{【「『〈《<\"'“‘«|", r")\]}】」』〉》>\"'”’»|"

# Words that may stand between an anchor and the letter. Possessive (*+), like every loop here: no backtracking.
NOISE = (
    r"(?:[\s:]|(?<=\n)(?:[-•·]|1[.)])\s|(?:the|both|options?|choice|letter|answer|number|following|la|le|les|el|los|las|"
    r"lettre|réponses?|propositions?|items?|suivantes?|siguientes?|opción|opciones|letra|número|respuesta|alternativa|"
    r"вариант(?:ы|ом|ами)?|ответ|буква|под буквой|пункт|опция)\b|l['’]|"
    r"选项|答案|如下|選択肢の?|以下の(?:通り|とおり)です[。.]?|다음과 같(?:습니다|다)[.]?|선택지|보기|옵션)*+"
)
SEPARATOR = (
    r"\s{0,6}+(?:[,、;&+・]\s{0,6}+(?:(?:and|et|y|и)\b)?|(?:and|et|y|и)\b|和|与|及|と|および|및|과|와)\s{0,6}+"
    r"(?:(?:la|le|el|option|réponse|opción)\s{1,3}+)?"
)

EN_GOOD = r"(?:correct|best|right|appropriate|suitable|likely|final|only)"
FR_GOOD = r"(?:correcte?|exacte?|juste|vraie?|attendue?|finale?|appropriée?|bonne?)s?"
ES_GOOD = r"(?:correcta|(?:más\s+)?adecuada|acertada|verdadera|final)s?"

# What is asked for: the best, most likely, ... one of these.
EN_MOST = r"most\s+(?:likely|appropriate|suitable|probable|accurate|plausible|fitting)"
EN_NOUN = (
    r"(?:steps?|diagnos[ie]s|causes?|treatments?|management|therapy|options?|choices?|answers?|explanation|interventions?|"
    r"(?:treatment\s+)?options?|drugs?|medications?|antibiotic|agent|tests?|investigation|study|imaging|procedure|modality|"
    r"approach|strategy|regimen|action|response|statements?|mechanism|etiology|organism|pathogen|microorganism|virus|"
    r"condition|disease|disorder|abnormality|deficiency|defect|lesion|structure|site|location|source|enzyme|nerve|finding|match|complication|recommendation|one|fit)"
)
FR_NOUN = (
    r"(?:diagnostic|traitement|réponse|option|proposition|choix|cause|étiologie|examen|conduite(?:\s+à\s+tenir)?|"
    r"prise\s+en\s+charge|attitude|germe|explication)"
)
FR_MOST = r"(?:probable|vraisemblable|appropri[ée]e?|adaptée?|juste|correcte?|pertinente?|plausible)"
ES_NOUN = (
    r"(?:diagnóstico|tratamiento|respuesta|opción|alternativa|elección|causa|etiología|prueba|conducta|manejo|actitud|"
    r"medida|explicación|germen|fármaco)"
)
ES_MOST = r"(?:probable|adecuad[oa]|apropiad[oa]|correct[oa]|acertad[oa]|indicad[oa]|plausible)"


_BE_EN = (
    r"\s+(?:is|are|would\s+be|(?:seems|appears)(?:\s+to\s+be)?)\s+"
    r"(?:therefore\s+|thus\s+|clearly\s+|indeed\s+|also\s+)?"
)
# What comes right after the letters: of the answer (a statement) ...
ANSWER_AFTER = (
    rf"{_BE_EN}(?:the\s+|our\s+|my\s+)?(?:single\s+)?(?:most\s+)?{EN_GOOD}\s+(?:correct\s+)?(?:answer|option|choice|response|one\b)|"
    rf"{_BE_EN}(?:the|our|my)\s+answer|\s+(?:remains|is\s+left)(?=\s{{0,3}}(?:$|[.\n]|,\s+which\b))|"
    r"\s+(?:est|sont)\s+(?:donc\s+)?(?:la|les)\s+(?:(?:bonnes?\s+)?réponses?(?:\s+(?:correct|exact)es?)?|bonnes?(?=\W*(?:$|\n)))|"
    r"\s+(?:es|son)\s+(?:por\s+tanto\s+)?las?\s+(?:respuestas?(?:\s+correctas?)?|(?:opci[óo]n(?:es)?\s+)?correctas?)|"
    r"\s*(?:—|-|является|являются)\s*(?:правильн|верн)\w+\s+(?:ответ|вариант)|"
    r"\s*(?:选项)?(?:是|为)(?:正确|最佳|最终)的?(?:答案|选项|选择)|"
    r"\s*(?:が|は)(?:正解|正答|答え)|\s*を(?:選択|選ぶ|選び|選ん)|"
    r"\s*번?(?:\s*선택지)?(?:가|이)\s*(?:(?:가장\s*)?(?:적절한|올바른|옳은|맞는)\s*)?(?:정답|답)(?!이?\s*아)|"
    r"\s*번?(?:를|을)\s*(?:선택|고르|고른|고릅)"
)
# ... of being the best or most likely of all, where nothing goes on to say of what else ...
BEST_AFTER = (
    r"\s+(?:fits|matches)\s+best\b|\s+best\s+(?:explains|fits|matches|accounts\s+for)\b[^.,;:?\n]{0,100}|"
    rf"{_BE_EN}(?:(?:the\s+)?{EN_MOST}|the\s+(?:next\s+)?best)(?:\s+(?:next|initial|first|underlying)){{0,2}}"
    rf"(?:\s+(?:and\s+\w+\s+)?{EN_NOUN})?(?!\w|\s+to\b)|"
    rf"\s+(?:est|serait)\s+(?:donc\s+)?(?:la|le)\s+plus\s+{FR_MOST}\b|"
    rf"\s+(?:es|sería)\s+(?:por\s+tanto\s+)?(?:la|el|lo)\s+más\s+{ES_MOST}\b|"
    r"\s{0,3}(?:является|—|-)?\s{0,3}наиболее\s+(?:вероятен|подходит|(?:вероятн|подходящ|правильн|обоснованн)\w{1,3})(?:\s+(?:ответ|вариант|диагноз)\w{0,3})?|"
    r"\s{0,3}(?:选项|项)?(?:是)?最(?:为)?(?:合适|适合|适宜|可能|恰当|佳|符合|准确)的?(?:选择|选项|答案|诊断|治疗|措施|题意)?(?=\W|$|因)|\s{0,3}(?:选项|项)?符合(?:题意|题目要求)|"
    r"\s{0,3}の可能性が最も高|\s{0,3}」?(?:が|は)[、,]?最も(?:適切|適当|可能性が高|考えられ|考えやす|妥当|ふさわし|疑わし|疑われ|有力)|"
    r"\s{0,3}번?(?:가|이)\s?가장\s?(?:적절|적합|알맞|가능성이?\s?(?:높|크)|타당|옳|유력|올바르)(?![^.\n]{0,14}(?:아니|아닙|않|못|없))"
)
_EACH = r"\s{0,2}[:.–—-]\s{0,2}"
# ... or of correctness (a verdict on one option).
VERDICT_AFTER = (
    rf"{_BE_EN}(?:correct|right|true)\b|"
    r"(?:\s*[.:–—-]\s*|\s)(?:correct|true|exacte?|vraie?|verdader[oa]|ciert[oa]|correct[ao])(?=\s{0,3}(?:$|[.,;:!(–—\n]|-\s))|"
    r"\s*[:–—-]\s*(?:correct|true|exacte?|vraie?|verdader[oa]|correct[ao])\b|\svraie?\b|"
    r"\s+(?:est|sont)\s+(?:donc\s+)?(?:correct|exact|vrai|just)e?s?\b|"
    r"\s+(?:es|son)\s+(?:correct|verdader|ciert|adecuad)[oa]s?\b|"
    r"\s*(?:[.:—-]|является)?\s*(?:верн|правильн)(?:ый|ые|о|ая|ы|ым)\b|\s+(?:верен|прав(?:илен|ы))\b|"
    r"\s*(?:选项|项)?(?:是)?(?:正确|对)(?=(?:的|无误)?(?:\W|$|因))|"
    r"\s*(?:が|は|[.:\s])\s*(?:正しい|該当する|適切(?!で(?:は)?な))|"
    r"\s*번?(?:가|이)\s*(?:맞|옳|올바르|적절)|\s*번?(?:은|는)\s*(?:맞|옳)(?:다|습니다|음)|"
    # one after the other: "A - 오답", "D：正解", "E ✓"
    rf"{_EACH}(?:对|정답|정답입니다|맞음|옳음|正解|正答|正确|正しい)(?=\W{{0,3}}(?:$|\n)|[。;,])|\s{{0,2}}[:.–—-]?\s{{0,2}}[✅✓✔☑√○⭕]"
)
# ... or of falsehood.
FALSE_AFTER = (
    rf"{_BE_EN}(?:(?:the\s+)?(?:only\s+)?(?:incorrect|wrong|false)|not\s+(?:correct|true|right)|not(?=\s{{0,3}}(?:$|[.,;\n])))\b|\s{{0,3}}[.:–—-]\s{{0,3}}(?:incorrect|wrong|false)\b|"
    r"\s+(?:est|sont)\s+(?:fau(?:x|sses?)|incorrecte?s?|inexacte?s?)\b|\s+n['’]est\s+pas\s+(?:vraie?|exacte?|correcte?)\b|"
    r"\s{0,3}[.:–—-]\s{0,3}(?:faux|fausse|inexacte?|incorrecte?)\b|"
    r"\s{0,3}(?:[.:–—-]\s{0,3}|\s(?:es|son)\s+)(?:fals[oa]s?|incorrect[oa]s?|erróne[oa]s?)\b|"
    r"\s{0,3}(?:[.:–—-]|является)?\s{0,3}(?:(?:неверн|неправильн|ложн)\w{1,3}|неверен|неправилен)\b|"
    r"\s{0,3}(?:选项|项)?(?:是|说法)?(?:错误|不正确|错的|错(?=\W|$)|不对)|"
    r"\s{0,3}(?:が|は|[.:\s])\s?(?:誤り|誤っ|間違|正しくな|不適切|不正解)|"
    r"\s{0,3}번?(?:가|이|는|은)\s?(?:틀|옳지\s?않|올바르지\s?않|잘못|거짓|맞지\s?않)|"
    rf"{_EACH}(?:错|오답|틀림|不正解|誤り|错误)(?=\W{{0,3}}(?:$|\n)|[。;,])|\s{{0,2}}[:.–—-]?\s{{0,2}}[❌✗✘×☒]"
)
# Words before a letter that make a suffix statement none: "nor B is correct", "vitamin B is correct".
NEGATED_BEFORE = (
    r"(?:\b(?:nor|neither|not|no|n't|whether|if|ni|si|sauf|excepto|ни|не|если|statement|"
    r"type|group|class|grade|stage|factor|vitamin|vitamine|vitamina|hepatitis|hépatite|influenza|groupe|tipo|grupo|"
    r"гепатит\w*|витамин\w*|групп\w+|тип\w*)\s+(?:the\s+)?(?:option\s+)?|[不非型肝])$"
)
# "A or B": between two letters.
HEDGE = (
    r"(?:\.{3}|…|,)?\s*(?:\b(?:or|ou|o|u|или|либо)\b|或者?|还是(?:选择?)?|または|もしくは|か|또는|혹은|이나|나|/)"
    r"(?:\s*(?:maybe|perhaps|possibly|even|peut-être|quizás?|возможно|может быть|可能是|是)\s)?"
    rf"\s*(?:option\s+|(?:⟦boxed⟧\s*)?[{OPEN}]*)"
)
# What may follow an answer letter besides the option's own text.
FOLLOWS = (
    r"\s*(?:$|\n|[.。,、;:!?…(\[【「『〈《|⟦]|\s[-–—→]\s|[–—→])|"
    r"\s+(?:because|since|as|due|given|which|based|for|is\s+(?:the\s+)?(?:most\s+)?(?:correct|right|best)|"
    r"are\s+correct|here|not\s+(?-i:[A-Z])|rather\s+than|i\.e(?=\.)|that\s+is|the\s+(?:single\s+)?(?:most\s+)?(?:correct|best|right|likely|appropriate)|car|parce|puisque|qui\s+(?:est|sont)|est\s+(?:la|correcte?|exacte?)|sont\s+(?:les|correct|exact|vrai)\w*|"
    r"porque|ya\s+que|pues|dado|debido|es\s+(?:la|correct[ao])|son\s+(?:las|correct[ao]s)|"
    r"так\s+как|потому|поскольку|является|верн\w+|"
    r"instead(?!\s+of)|explanation|rationale|explication|explicación|объяснение|解析|解释|理由|分析|解説|説明|해설|설명)\b|"
    r"\s*(?:因为|由于|选项|[两二三四]?项|作为|是正确|正确|の|です|でし|である|であり|だ|とな[るり]|と考え|と思|と判断|にな[るり]|が正|を選|が適|"
    r"입니다|이다|이며|이고|이라|임|번|로|다(?=[.\s]|$)|가\s*(?:된|됩)|예요|이에요|가\s*정답|이\s*정답|라고|야)"
)
REASON = r"\s+(?:because|since|not\s+(?-i:[A-Z])\b|rather\s+than|car|puisque|porque|ya\s+que|потому|так\s+как)\b"
CONNECTIVE = r"[.,]\s*(?:because|since|as|due|the|this|it|car|parce|puisque|porque|ya que|так как|потому)\b"
# The rest of a species' name after its genus: "E. coli" where options are known by their letters only.
SPECIES = (
    r"\. ?(?:coli|difficile|diff|albicans|perfringens|trachomatis|tetani|botulinum|neoformans|jejuni|"
    r"diphtheriae|fragilis|cereus|"
    r"anthracis|pertussis|burgdorferi|henselae|melitensis|abortus|cepacia|faecalis|faecium|histolytica|granulosus|"
    r"multilocularis|corrodens|aerogenes|cloacae|fumigatus|flavus|baumannii|lumbricoides|duodenale|israelii|latum|dermatitidis|"
    r"elegans|canis|glabrata|immitis|burnetii|psittaci|pneumoniae)\b"
)
# Where a model begins to invent the next question.
RUN_ON = (
    r"(?<=[^\s#])(?:\s*+#{2,}\s*(?:question|instruction|input)\b|"
    # on a line of its own; a numbered vignette after an empty line
    r"(?=[^\S\n]*\n)\s*+(?:question|instruction|问题|質問|問題|문제|질문|pregunta|вопрос|q|user|human)\s*\d*\s*[:：]|"
    r"(?=[^\S\n]*\n[^\S\n]*\n)\s*+\d+\s*[.)、]\s*(?:an?\s+\d+[- ](?:year|month|week|day)|患者[,，]?\s*[男女])|"
    r"\s*+(?:<\|(?:start_header_id|begin_of_text|im_start)\|>|(?:</s>|<s>)?\s*\[INST\]|<start_of_turn>))"
)
YES_NO = frozenset("yes no maybe да нет oui non sí si là 是 否 はい いいえ 예 네 아니오 아니요".split())
# A verdict of falsehood right after a letter: "A - incorrect" opens a judgement of every option, not an answer.
WRONG_AFTER = (
    r"\W*(?:(?:is\s+|est\s+|es\s+)?(?:incorrect|wrong|false|faux|fausse|inexact|fals[oa]|неверн|неправильн)|错|不正确|"
    r"誤|正しくない|不正解|오답|[❌✗✘×☒]|틀리|틀렸|옳지|no\b(?=\W*(?:$|\n|[A-Z]\b)))"
)
# What may follow an option's text where words are not set apart by spaces: the copula of a statement.
COPULA = r"です|でし|である|であり|だ(?:[。、と]|$)|となる|と考え|と思|이다|입니다|이며|이고|임(?:\W|$)|이에요|예요"
# Of YES_NO, those that answer also without punctuation after them ("Yes the trial ..."; but "No difference ...").
YES = frozenset("yes да oui sí はい 예 네".split())
# What stands before a statement and goes with it ("Therefore, the"), at the end of what is before its anchor.
LEAD_IN = (
    r"(?:(?:\b(?:therefore|thus|hence|so|and|in conclusion|in summary|finally|consequently|overall|based on this|"
    r"i believe|i think|the|my|our|is|answers?|are|correct|right|final|best|most|options?|donc|ainsi|et|"
    r"par conséquent|en conclusion|je pense que|la|le|les|l['’]|seule|bonnes?|réponses?|propositions?|y|"
    r"por (?:lo )?(?:tanto|que)|así|en conclusión|creo que|el|los|las|opci[óo]n(?:es)?|следовательно|"
    r"таким образом|поэтому|итак|значит|вариант|ответ|правильн\w+|верн\w+)(?!\w)|"
    r"因此|所以|综上所述|综上|故|本题|的|应|正确|最佳|参考|选项|"
    r"したがって|よって|以上より|ゆえに|最も|選択肢|따라서|그러므로|최종|가장 적절한|보기|"
    r"[\s,:#*_`【\[(（{，、：\"']))*+$"
)
# The mark before a rationale in the mmedbench prompt family.
RATIONALE_MARK = r"\s*(?:#+\s*)?rationale\s*:\s*"
