"""Multiple-choice questions as text and ids: one renderer for training, evaluation and serving.

Family "llama3" is the chat template (of the tokenizer's chat format, Llama-3's or another) with an instruction in the
language of the record. Family "mmedbench", which needs no chat format, is the Alpaca-style text of the MMedLM code
(github.com/MAGIC-AI4Med/MMedLM, finetune/train.py), character for character, for comparison with published numbers. The
original's inference.py has two spaces before "You should first" where train.py has one; here training and evaluation
both use train.py's.
"""

from collections.abc import Sequence

from mmed_jax.common.errors import nearest
from mmed_jax.data.chat import Example, Piece, chat_format, chat_pieces, encode_pieces
from mmed_jax.data.plain_text import text_end, text_start
from mmed_jax.data.records.schema import LANGUAGE_NAMES
from mmed_jax.data.tokenizers.tokenizer import encode_texts

FAMILIES = ("llama3", "mmedbench")
MODES = ("rationale", "direct")

# What precedes the letters in the last line of an answer.
ANSWER_MARKS = {
    "en": "Answer: ",
    "zh": "答案：",
    "ja": "正解：",
    "ko": "정답: ",
    "fr": "Réponse : ",
    "es": "Respuesta: ",
    "ru": "Ответ: ",
}

# Per language: the task; what to write with rationale; what to write without; several right answers.
_INSTRUCTIONS = {
    "en": (
        "Answer this medical multiple-choice question. ",
        'First explain your reasoning step by step, then end with a line of the form "Answer: <letter>". ',
        'Write only one line of the form "Answer: <letter>". ',
        "If several options are correct, give all their letters, separated by commas.",
    ),
    "zh": (
        "请回答下面这道医学选择题。",
        "先逐步说明理由，最后另起一行，按“答案：<字母>”的格式写出答案。",
        "只写一行，格式为“答案：<字母>”。",
        "如果有多个正确选项，请写出全部字母，用英文逗号隔开。",
    ),
    "ja": (
        "次の医学の選択問題に答えてください。",
        "まず根拠を順を追って説明し、最後の行に「正解：<記号>」の形式で答えを書いてください。",
        "「正解：<記号>」の形式の一行だけを書いてください。",
        "正しい選択肢が複数ある場合は、すべての記号を半角コンマで区切って書いてください。",
    ),
    "ko": (
        "다음 의학 객관식 문제에 답하십시오. ",
        '먼저 근거를 단계별로 설명한 다음, 마지막 줄에 "정답: <기호>" 형식으로 답을 쓰십시오. ',
        '"정답: <기호>" 형식의 한 줄만 쓰십시오. ',
        "정답이 여러 개이면 모든 기호를 쉼표로 구분하여 쓰십시오.",
    ),
    "fr": (
        "Répondez à cette question médicale à choix multiples. ",
        "Expliquez d'abord votre raisonnement étape par étape, puis terminez par une ligne de la forme "
        "« Réponse : <lettre> ». ",
        "Écrivez une seule ligne, de la forme « Réponse : <lettre> ». ",
        "Si plusieurs propositions sont exactes, donnez toutes leurs lettres, séparées par des virgules.",
    ),
    "es": (
        "Responda a esta pregunta médica de opción múltiple. ",
        "Explique primero su razonamiento paso a paso y termine con una línea de la forma «Respuesta: <letra>». ",
        "Escriba una sola línea, de la forma «Respuesta: <letra>». ",
        "Si hay varias opciones correctas, indique todas sus letras, separadas por comas.",
    ),
    "ru": (
        "Ответьте на медицинский вопрос с вариантами ответа. ",
        "Сначала шаг за шагом объясните ход рассуждений, затем закончите строкой вида «Ответ: <буква>». ",
        "Напишите только одну строку вида «Ответ: <буква>». ",
        "Если верных вариантов несколько, перечислите все их буквы через запятую.",
    ),
}

_MMEDBENCH_WRAPPER = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
_MMEDBENCH_INSTRUCTIONS = {
    # The apostrophe of "Let’s" is U+2019, as in the original.
    "rationale": (
        "You're a {lang} doctor, kindly address the medical queries according to the patient's account in {lang}. "
        "Let\u2019s solve this step-by-step. You should first give the reason in {lang} for your choice. "
        "Then you should give the right answer index of the question."
    ),
    "direct": (
        "You're a {lang} doctor, kindly address the medical queries according to the patient's account. "
        "Answer with the best option directly."
    ),
}
# The English sentence follows every question in every language, as in the original.
_MMEDBENCH_INPUT = (
    "###Question: {question} Which of the following is the best treatment for this patient? ###Options: {options}"
)


def instruction(language: str, mode: str) -> str:
    """What the llama3 family asks for, in `language` ("en", ...), for `mode` "rationale" or "direct"."""
    task, with_rationale, direct, several = _INSTRUCTIONS[language]
    return task + (with_rationale if _checked(mode, MODES, "mode") == "rationale" else direct) + several


def answer_line(language: str, letters: str) -> str:
    """The last line of an answer: answer_line("fr", "A,C") == "Réponse : A,C"."""
    return ANSWER_MARKS[language] + letters


def answer_text(record: dict, mode: str, family: str = "llama3") -> str:
    """What the model is trained to write for an mcq record, without the end token.

    Raises:
        ValueError: mode "rationale" for a record without one, or an unknown mode or family.
    """
    rationale = record.get("rationale", "").strip()
    if _checked(mode, MODES, "mode") == "rationale" and not rationale:
        raise ValueError(f"record {record['id']!r} has no rationale")
    if _checked(family, FAMILIES, "family") == "llama3":
        line = answer_line(record["language"], record["answer_idx"])
        return f"{rationale}\n\n{line}" if mode == "rationale" else line
    line = f"###Answer: OPTION {record['answer_idx']} IS CORRECT."
    return f"###Rationale: {record['rationale']}\n{line}" if mode == "rationale" else line


def prompt_text(record: dict, mode: str, family: str = "llama3") -> str:
    """What the model is asked: the user message (llama3) or the whole prompt (mmedbench)."""
    return "".join(_prompt_parts(record, mode, family))


def _prompt_parts(record: dict, mode: str, family: str) -> tuple[str, str, str]:
    """The prompt as text before, in and after the passage, which is the only part that may be shortened.

    MMedBench's records carry no passage; in the mmedbench family one is put before the question.
    """
    passage = record.get("context", "").strip()
    if _checked(family, FAMILIES, "family") == "llama3":
        lines = [f"{letter}. {text.strip()}" for letter, text in record["options"].items()]
        after = "\n".join([record["question"].strip(), *lines])
        return f"{instruction(record['language'], mode)}\n\n", passage, f"\n\n{after}" if passage else after
    wrapped = _MMEDBENCH_WRAPPER.format(
        instruction=_MMEDBENCH_INSTRUCTIONS[_checked(mode, MODES, "mode")].format(
            lang=LANGUAGE_NAMES[record["language"]]
        ),
        input=_MMEDBENCH_INPUT,
    )
    # Split before anything is filled in: a question may hold braces of its own.
    before, rest = wrapped.split("{question}")
    between, end = rest.split("{options}")
    options = "".join(f"{letter}. {text} " for letter, text in record["options"].items())
    after = (" " if passage else "") + record["question"] + between + options + end
    return before, passage, after


def mcq_messages(record: dict, mode: str, family: str = "llama3", *, system_prompt: str = "") -> list[dict[str, str]]:
    """The conversation that trains an mcq record: optional system message, question, answer. llama3 family only."""
    if family != "llama3":
        raise ValueError(f"family {family!r} is plain text, not a conversation; use prompt_text and answer_text")
    return [
        *_question(record, mode, system_prompt),
        {"role": "assistant", "content": answer_text(record, mode)},
    ]


def _question(record: dict, mode: str, system_prompt: str) -> list[dict[str, str]]:
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": prompt_text(record, mode)}]


def mcq_prompt_pieces(tok, record: dict, mode: str, family: str = "llama3", *, system_prompt: str = "") -> list[Piece]:
    """The pieces of the prompt alone, ready to be continued; see mcq_prompt_ids."""
    if system_prompt and family == "mmedbench":
        raise ValueError("family 'mmedbench' has no place for a system message")
    before, passage, after = _prompt_parts(record, mode, family)
    cut = (len(before), len(before) + len(passage)) if passage else None
    if family == "mmedbench":
        return [Piece(ids=text_start(tok)), Piece(text=before + passage + after, cut=cut)]
    pieces = []
    for piece in chat_pieces(tok, _question(record, mode, system_prompt)):
        pieces.append(Piece(text=piece.text, cut=cut) if piece.cut is not None else piece)
    return [*pieces, Piece(ids=chat_format(tok).headers["assistant"])]


def mcq_pieces(tok, record: dict, mode: str, family: str = "llama3", *, system_prompt: str = "") -> list[Piece]:
    """The pieces of a whole training sample: the prompt's, then the trained answer and end token.

    The end token is that of the chat format in the llama3 family and <|end_of_text|> in the mmedbench family (the end
    token of base Llama-3, on which MMed-Llama 3 was built), or the tokenizer's own where there is no <|end_of_text|>.
    """
    if family == "mmedbench":
        ending = (Piece(ids=(text_end(tok),), trained=True),)
    else:
        ending = chat_format(tok).ending(trained=True)
    return [
        *mcq_prompt_pieces(tok, record, mode, family, system_prompt=system_prompt),
        Piece(text=answer_text(record, mode, family), trained=True),
        *ending,
    ]


def encode_mcq(tok, record: dict, mode: str, family: str = "llama3", *, system_prompt: str = "") -> Example:
    """Ids and trained mask of one mcq record; see mcq_pieces and answer_text for the rules and errors.

    In the mmedbench family prompt and answer are tokenized apart, so that the ids of the prompt are those that
    evaluation feeds (the original tokenizes them together, where ":" and "###" become one token).
    """
    return encode_pieces(tok, [mcq_pieces(tok, record, mode, family, system_prompt=system_prompt)])[0]


def mcq_prompt_ids(tok, record: dict, mode: str, family: str = "llama3", *, system_prompt: str = "") -> list[int]:
    """Ids of the prompt: always the beginning of `encode_mcq` of the same record."""
    return encode_pieces(tok, [mcq_prompt_pieces(tok, record, mode, family, system_prompt=system_prompt)])[0].ids


# What continues a prompt before the options part, and the ids of each option: see letter_choices.
Choices = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]


def letter_choices(tok, questions: Sequence[tuple[dict, Sequence[str]]], family: str = "llama3") -> list[Choices]:
    """How the letters of questions are scored: in the line that the model is trained to answer with.

    Args:
        questions: mcq records, each with the letters to score.

    Returns:
        For each question (ids that belong to the prompt: what all its lines begin with, such as "Answer:"; the ids of
        each letter). What all lines end with (" IS CORRECT.") is left out.
    """
    lines = [answer_text({**r, "answer_idx": letter}, "direct", family) for r, each in questions for letter in each]
    encoded = iter(encode_texts(tok, lines))
    choices: list[Choices] = []
    for _, letters in questions:
        ids = [next(encoded) for _ in letters]
        shortest = min(map(len, ids))
        start = next((i for i in range(shortest) if len({x[i] for x in ids}) > 1), shortest - 1)
        end = next((i for i in range(shortest - start) if len({x[-1 - i] for x in ids}) > 1), 0)
        choices.append((tuple(ids[0][:start]), tuple(tuple(x[start : len(x) - end]) for x in ids)))
    return choices


def _checked(value: str, choices: tuple[str, ...], what: str) -> str:
    if value not in choices:
        raise ValueError(f"{what} {value!r} is unknown{nearest(value, choices)}")
    return value
