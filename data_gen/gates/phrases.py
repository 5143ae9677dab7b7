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
    r"as an? (?:ai|artificial intelligence)(?: language)? (?:model|assistant)|my (?:training data|knowledge cutoff)"
    r"|(?:the|your) (?:given|provided|supplied|correct) answer (?:was|is) (?:given|provided)"
    r"|according to the given answer"
    r"|based on the (?:provided|given|supplied) (?:passage|text|data|document|answer)"
    r"|the (?:passage|text) (?:provided|above)"
    r"|作为(?:一个)?(?:人工智能|AI)(?:语言)?(?:模型|助手)|根据(?:所)?(?:提供|给出)的(?:答案|文本|段落|资料)"
    r"|(?:AI|人工知能)(?:言語)?(?:モデル|アシスタント)(?:として|です)|(?:与えられた|提供された)(?:答え|正解|文章|テキスト)"
    r"|인공지능 (?:언어 )?모델|(?:주어진|제공된) (?:답|정답|지문|텍스트)(?:에 따르면|을 바탕)"
    r"|en tant qu['’]?(?:ia|intelligence artificielle|assistant)|(?:la réponse|le texte|le passage) fournie?\b"
    r"|como (?:modelo de|asistente de) (?:lenguaje|ia)|(?:la respuesta|el texto|el pasaje) proporcionad[ao]"
    r"|как (?:языковая модель|ии-ассистент)|(?:предоставленн|приведённ|приведенн)\w+ (?:текст|ответ|отрыв)\w*",
    re.IGNORECASE,
)

# What stands before the text asked for: "Sure! Here is the translation:".
PREAMBLE = re.compile(
    r"^\W{0,3}(?:(?:sure|certainly|of course|absolutely|okay|great question)[!,.: ]"
    r"|here(?:['’]s| is| are) (?:the|a|an|your|my) (?:\w+ ){0,3}"
    r"(?:translation|answer|explanation|rationale|question|version)"
    r"|(?:translation|rationale|explanation|answer text)\s*:\s*\n"
    r"|(?:以下是|下面是|这是)(?:翻译|译文|您的|答案|解释|问答)|好的[，,！!]|当然[，,！!可]"
    r"|(?:以下(?:は|が|に)(?:翻訳|回答|解説|訳文))|(?:はい、|もちろん)"
    r"|(?:다음은|아래는) (?:번역|답변|설명)|물론(?:입니다|이죠)|네, "
    r"|(?:voici|voilà) (?:la|une|le|l['’]|votre)|bien sûr"
    r"|(?:aquí (?:está|tiene|tienes)|claro[,!: ]|por supuesto)"
    r"|(?:вот (?:перевод|ответ|объяснение)|конечно[,!])"
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
