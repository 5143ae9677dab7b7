"""What models write instead of an answer, and around one, in seven languages."""

import re

# A refusal opens the text: a rationale may well say later that a drug can't be given.
REFUSAL = re.compile(
    r"^\W{0,5}(?:"
    r"i(?:['’]m| am) (?:sorry|unable|not able)|sorry,? (?:but )?i|i (?:cannot|can['’]?t|won['’]?t|must decline)\b"
    r"|as an? (?:ai|artificial intelligence|language model)|unfortunately,? i (?:cannot|can['’]?t|am unable)"
    r"|i apologi[sz]e|i do(?:n['’]t| not) have (?:access|enough information)"
    r"|(?:很)?(?:抱歉|对不起)|我(?:无法|不能|没有办法)(?:回答|提供|协助|帮助|翻译|完成)|作为(?:一个|一名)?(?:人工智能|AI|语言模型)"
    r"|申し訳(?:ありません|ございません)|すみませんが|(?:私は)?(?:AI|人工知能|言語モデル)(?:として|です|なので)|お答えできません"
    r"|죄송(?:합니다|하지만)|저는 (?:AI|인공지능|언어 모델)|(?:답변|도움)을? ?드릴 수 없"
    r"|(?:je suis )?désolée?|je ne (?:peux|suis) pas (?:en mesure|répondre|fournir|vous)"
    r"|en tant qu['’](?:ia|intelligence)"
    r"|en tant que (?:modèle|mod[eè]le de langage)"
    r"|lo siento|no puedo (?:responder|proporcionar|ayudar|ofrecer)|como (?:modelo de lenguaje|una? ia\b|inteligencia)"
    r"|извините|к сожалению,? я|я не могу (?:ответить|предоставить|помочь)|как (?:языковая модель|искусственный)"
    r")",
    re.IGNORECASE,
)

# Words about the task instead of the matter; anywhere in the text.
ABOUT_THE_TASK = re.compile(
    r"as an? (?:ai|artificial intelligence|language model)\b|my (?:training data|knowledge cutoff|instructions)"
    r"|\b(?:the|my|this) system (?:prompt|message)"
    r"|\bI(?: was| have been|['’]ve been) (?:told|instructed|asked) (?:by|to)\b"
    r"|\b(?:according to|as stated in|as mentioned in) the (?:passage|text|document|excerpt)\b"
    r"|\bI(?:['’]m| am)? (?:sorry|cannot|can['’]t|unable to|not able to)\b[^.;]{0,24}"
    r"\b(?:answer|assist|comply|continue|fulfil+|help|provide|translate)\b|\bI apologi[sz]e\b"
    r"|(?:the|your) (?:given|provided|supplied|correct) answer (?:was|is) (?:given|provided)"
    r"|according to the given answer"
    r"|based on the (?:provided|given|supplied) (?:passage|text|data|document|answer)"
    r"|the (?:passage|text) (?:provided|above)"
    r"|作为(?:一个)?(?:人工智能|AI)(?:语言)?(?:模型|助手)|根据(?:所)?(?:提供|给出)的(?:答案|文本|段落|资料)"
    r"|(?:根据|按照|如)(?:本|这段|上述|该)?(?:文章|段落|短文|文本|文中)|系统提示|我(?:无法|不能)(?:回答|提供|协助|帮助|翻译|继续)"
    r"|(?:本文|文章|この文|テキスト)によると|システムプロンプト|お答え(?:できません|できかねます)"
    r"|(?:지문|본문|글)에 따르면|시스템 프롬프트|(?:답변|도움)을? ?드릴 수 없"
    r"|(?:selon|d['’]après) (?:le|ce) (?:texte|passage|document|extrait)"
    r"|je ne (?:peux|suis) pas (?:en mesure|répondre|fournir|vous)"
    r"|(?:según|de acuerdo con) (?:el|este) (?:texto|pasaje|documento|fragmento)"
    r"|no puedo (?:responder|proporcionar|ayudar)"
    r"|(?:согласно|как (?:сказано|указано) в) (?:тексту|тексте|отрывку|отрывке|документу)"
    r"|системн\w+ (?:промпт|подсказк)\w*"
    r"|я не могу (?:ответить|предоставить|помочь)"
    r"|(?:AI|人工知能)(?:言語)?(?:モデル|アシスタント)(?:として|です)|(?:与えられた|提供された)(?:答え|正解|文章|テキスト)"
    r"|인공지능 (?:언어 )?모델|(?:주어진|제공된) (?:답|정답|지문|텍스트)(?:에 따르면|을 바탕)"
    r"|en tant qu['’]?(?:ia|intelligence artificielle|assistant)|(?:la réponse|le texte|le passage) fournie?\b"
    r"|como (?:modelo de|asistente de) (?:lenguaje|ia)|(?:la respuesta|el texto|el pasaje) proporcionad[ao]"
    r"|как (?:языковая модель|ии-ассистент)|(?:предоставленн|приведённ|приведенн)\w+ (?:текст|ответ|отрыв)\w*",
    re.IGNORECASE,
)

# What stands before the text asked for: "Sure! Here is the translation:".
PREAMBLE = re.compile(
    r"^\W{0,3}(?:(?:sure|okay|great question)[!,.: ]|(?:certainly|of course|absolutely)(?:[!:]|[,.]? (?:here|I )|\.\s)"
    r"|here(?:['’]s| is| are) (?:the|a|an|your|my) (?:\w+ ){0,3}"
    r"(?:translation|answer|explanation|rationale|question|version)"
    r"|(?:translation|rationale|explanation|answer text)\s*:\s*\n"
    r"|(?:以下是|下面是|这是)(?:翻译|译文|您的|答案|解释|问答)|好的[，,！!]|当然(?:[！!]|可以|，以下)"
    r"|(?:以下(?:は|が|に)(?:翻訳|回答|解説|訳文))|(?:はい、|もちろん)"
    r"|(?:다음은|아래는) (?:번역|답변|설명)|물론(?:입니다|이죠)|네, "
    r"|(?:voici|voilà) (?:la|une|le|l['’]|votre)|bien sûr(?:\s?!|[,.:]\s(?:voici|je))"
    r"|(?:aquí (?:está|tiene|tienes)|(?:claro|por supuesto)(?:\s?!|[,:.]\s(?:aquí|te|le)\b))"
    r"|(?:вот (?:перевод|ответ|объяснение)|конечно(?:!|, вот))"
    r")",
    re.IGNORECASE,
)

# Structure of chat formats, prompts and half-read JSON that got into the text.
STRUCTURE = re.compile(
    r"<\|[a-z_]+\|>|</?(?:s|think|tool_call|function)>|\[/?INST\]|<<</?SYS|<<<\s*DATA|DATA\s*>>>|<(?:start|end)_of_turn>"
    r"|```|^\s*\{\s*\"\w+\"\s*:|\\u[0-9a-f]{4}|^#{1,6}\s*(?:instruction|response|input)\b",
    re.IGNORECASE | re.MULTILINE,
)

# Advice that is not wrong but says nothing; noted, not refused.
DISCLAIMER = re.compile(
    r"(?:consult|see|talk to|speak (?:to|with)|contact) (?:a|your|an?) (?:\w+ )?"
    r"(?:doctor|physician|healthcare|health care|medical professional|pharmacist)"
    r"|not (?:a substitute for|medical advice)"
    r"|(?:请|建议)(?:您)?(?:尽快|及时)?(?:咨询|询问)(?:您的)?(?:医生|医师|药师|专业)"
    r"|(?:医師|医療機関|薬剤師)に(?:ご)?相談|의사(?:나|와|에게|,)? ?(?:또는 )?(?:약사)?(?:와|에게)? ?상담"
    r"|consulte[zr]? (?:un|votre) (?:médecin|professionnel|pharmacien)"
    r"|consulte (?:a|con) (?:su|un) (?:médico|profesional|farmacéutico)"
    r"|(?:проконсультируйтесь|обратитесь|посоветуйтесь) (?:с|к) (?:\w+ )?(?:врач|специалист)",
    re.IGNORECASE,
)

# What takes back or excludes what a clause names.
NEGATION = re.compile(
    r"\b(?:not|no|never|nor|neither|none|cannot|without|unlike|except|rather than|instead of|exclud\w+|"
    r"rul(?:e[sd]?|ing) out|wrong|incorrect(?:ly)?|unlikely|less likely|false|fails? to|contraindicated)\b|n['’]t\b"
    r"|\b(?:ne|pas|jamais|ni|non|sans|plutôt que|au lieu de|exclu\w*|élimin\w+|faux|fausse|incorrecte?|improbable|"
    r"peu probable|contre-indiqué\w*)\b|\bn['’]"
    r"|\b(?:nunca|sin|en lugar de|en vez de|descart\w+|exclu\w+|incorrect[ao]s?|fals[ao]s?|poco probable|"
    r"contraindicad[ao]s?)\b"
    r"|\b(?:не|ни|нет|без|исключ\w+|неверн\w+|неправильн\w+|ошибочн\w+|маловероятн\w+|вместо|противопоказан\w*)\b"
    r"|不(?!全|足|良|整|明|同|孕|稳|随|规则)|并非|而非|没有|无法|未见|排除|错误|禁忌"
    r"|ない|なく|ません|ではな|誤り|否定|除外|不適|禁忌"
    r"|아니|않|없|못하|제외|틀리|틀린|배제|부적절|금기",
    re.IGNORECASE,
)

# A writer who does not come to an answer ...
UNCERTAIN = re.compile(
    r"\b(?:I(?:['’]m| am)|we are) (?:not (?:\w+ )?(?:certain|sure)|unsure|uncertain)\b"
    r"|\bI (?:cannot|can['’]t) (?:decide|tell|be sure)|\bI do(?:n['’]t| not) know\b"
    r"|(?:cannot|can['’]t) be determined from"
    r"|\bje ne (?:suis pas (?:\w+ )?(?:certain|sûr)e?|sais pas|peux pas trancher)"
    r"|\bno (?:estoy (?:\w+ )?segur[oa]|sé (?:cuál|si)|puedo decidir)"
    r"|\bя не (?:уверен|знаю)|не могу (?:решить|определить)"
    r"|我不(?:能|太)?(?:确定|肯定|知道)|无法(?:确定|判断)(?:正确)?答案"
    r"|確信が(?:持て|ない)|断定でき(?:ない|ません)|答えは(?:わか|分か)ら"
    r"|확실하지 ?않|확신할 수 ?없|정답을 (?:알 수|정할 수) 없",
    re.IGNORECASE,
)
# ... or leaves it open between two.
EITHER = re.compile(
    r"\bit (?:could|might|may) be (?:either )?[^.;:]{1,80}\bor\b|\b(?:pourrait|peut) être [^.;:]{1,80}\bou\b"
    r"|\b(?:podría|puede) (?:ser|tratarse de) [^.;:]{1,80}\bo\b|\bможет быть [^.;:]{1,80}\bили\b"
    r"|可能是[^。；]{1,40}(?:或者?|也可能是)|かもしれないし|일 수도 있고",
    re.IGNORECASE,
)

# A writer for whom no option is right.
NONE_OF_THEM = re.compile(
    r"\b(?:none|neither) of (?:the|these|those) (?:\w+ )?(?:options?|choices|answers|alternatives|above)\b[^.;:,]{0,12}"
    r"\b(?:is|are|fits?|seems?|applies)\b|\bno option (?:is|fits)\b"
    r"|\ball (?:the |of the )?options are (?:wrong|incorrect)"
    r"|\baucune (?:des|de ces) (?:\w+ )?(?:options?|réponses|propositions)\b|\bningun[ao] de (?:las|estas) (?:\w+ )?"
    r"(?:opciones|respuestas|alternativas)\b"
    r"|\bни (?:один|одного) из (?:\w+ )?(?:вариант|ответ)\w+|нет (?:правильн|верн)\w+ ответ"
    r"|(?:没有|无)(?:一个)?(?:正确(?:的)?)?(?:选项|答案)(?:是)?(?:正确|符合)?|(?:所有|各)选项(?:都|均)(?:不正确|错误|不符合)"
    r"|(?:いずれ|どれ)の?(?:選択肢)?も(?:正しくない|当てはまらない|該当しない|誤り)|正解(?:は|が)ない|正しい選択肢(?:は|が)ない"
    r"|(?:옳은|맞는|올바른) (?:보기|선택지|답)(?:가|이|는|은)? 없|모든 (?:보기|선택지)(?:가|는) (?:틀|옳지 않)",
    re.IGNORECASE,
)
