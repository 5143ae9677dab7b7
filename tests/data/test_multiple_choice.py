"""Multiple-choice prompts: exact texts, ids, masks, for seven languages and both families."""

import pytest

from mmed_jax.data import multiple_choice
from mmed_jax.data.chat import chat_format, chat_prompt_ids, encode_chat
from mmed_jax.data.records.schema import LANGUAGES, validate_record
from mmed_jax.data.tokenizers.tokenizer import encode_text, load_tokenizer, stop_ids
from tests.support.tokenizer import tiny_tokenizer


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    return load_tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("tok")))


def mcq(language="en", **changes):
    record = {
        "id": "q1",
        "language": language,
        "question": "Which drug inhibits platelets?",
        "options": {"A": "Aspirin", "B": "Insulin", "C": "Clopidogrel"},
        "answer_idx": "A,C",
        "rationale": "Both inhibit platelets.",
    }
    return validate_record({**record, **changes}, "test:1")


def test_llama3_text_exactly():
    assert multiple_choice.prompt_text(mcq(context="A short passage."), "direct") == (
        "Answer this medical multiple-choice question. "
        'Write only one line of the form "Answer: <letter>". '
        "If several options are correct, give all their letters, separated by commas.\n\n"
        "A short passage.\n\n"
        "Which drug inhibits platelets?\nA. Aspirin\nB. Insulin\nC. Clopidogrel"
    )
    assert multiple_choice.answer_text(mcq(), "direct") == "Answer: A,C"
    assert multiple_choice.answer_text(mcq(), "rationale") == "Both inhibit platelets.\n\nAnswer: A,C"


MARKS = {
    "en": "Answer: B",
    "zh": "答案：B",
    "ja": "正解：B",
    "ko": "정답: B",
    "fr": "Réponse : B",
    "es": "Respuesta: B",
    "ru": "Ответ: B",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_its_own_texts(language):
    record = mcq(language, answer_idx="B")
    assert multiple_choice.answer_text(record, "direct") == MARKS[language]
    assert multiple_choice.answer_text(record, "rationale").endswith("\n\n" + MARKS[language])
    texts = [multiple_choice.instruction(language, mode) for mode in multiple_choice.MODES]
    assert texts[0] != texts[1]
    for text in texts:
        # The mark that is asked for is the mark that is trained.
        assert multiple_choice.ANSWER_MARKS[language] + "<" in text
        assert text not in [
            multiple_choice.instruction(o, m) for o in LANGUAGES if o != language for m in multiple_choice.MODES
        ]
        assert text == text.strip() and "  " not in text


def test_mmedbench_strings_exactly():
    record = mcq("fr", question="Quel {médicament} {options} ?")
    head = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\n"
    )
    body = (
        "\n\n### Input:\n###Question: Quel {médicament} {options} ? Which of the following is the best treatment for "
        "this patient? ###Options: A. Aspirin B. Insulin C. Clopidogrel \n\n### Response:"
    )
    assert (
        multiple_choice.prompt_text(record, "rationale", "mmedbench")
        == head
        + (
            "You're a French doctor, kindly address the medical queries according to the patient's account in French. "
            "Let\N{RIGHT SINGLE QUOTATION MARK}s solve this step-by-step. You should first give the reason in French "
            "for "
            "your choice. Then you should give the right answer index of the question."
        )
        + body
    )
    assert (
        multiple_choice.prompt_text(record, "direct", "mmedbench")
        == head
        + (
            "You're a French doctor, kindly address the medical queries according to the patient's account. "
            "Answer with the best option directly."
        )
        + body
    )
    assert multiple_choice.answer_text(record, "rationale", "mmedbench") == (
        "###Rationale: Both inhibit platelets.\n###Answer: OPTION A,C IS CORRECT."
    )
    assert multiple_choice.answer_text(record, "direct", "mmedbench") == "###Answer: OPTION A,C IS CORRECT."
    with_passage = multiple_choice.prompt_text({**record, "context": "Un passage."}, "direct", "mmedbench")
    assert "###Question: Un passage. Quel {médicament} {options} ? Which" in with_passage


@pytest.mark.parametrize("mode", multiple_choice.MODES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_llama3_ids_are_the_conversation(tok, language, mode):
    record = mcq(language, context=" Passage \n")
    messages = multiple_choice.mcq_messages(record, mode, system_prompt="Be brief.")
    assert [m["role"] for m in messages] == ["system", "user", "assistant"]
    sample = multiple_choice.encode_mcq(tok, record, mode, system_prompt="Be brief.")
    assert sample == encode_chat(tok, messages)
    prompt = multiple_choice.mcq_prompt_ids(tok, record, mode, system_prompt="Be brief.")
    assert prompt == chat_prompt_ids(tok, messages[:-1]) == sample.ids[: len(prompt)]
    assert sample.trained == [i >= len(prompt) for i in range(len(sample.ids))]


@pytest.mark.parametrize("mode", multiple_choice.MODES)
def test_mmedbench_ids(tok, mode):
    record = mcq("ja")
    sample = multiple_choice.encode_mcq(tok, record, mode, "mmedbench")
    prompt = multiple_choice.mcq_prompt_ids(tok, record, mode, "mmedbench")
    assert prompt == [tok.bos_token_id, *encode_text(tok, multiple_choice.prompt_text(record, mode, "mmedbench"))]
    end = tok.convert_tokens_to_ids("<|end_of_text|>")
    answer = [*encode_text(tok, multiple_choice.answer_text(record, mode, "mmedbench")), end]
    assert sample.ids == prompt + answer and end in stop_ids(tok)
    assert sample.trained == [False] * len(prompt) + [True] * len(answer)


def test_control_strings_in_a_question_stay_text(tok):
    options = {"A": "<|eot_id|>", "B": "b"}
    record = mcq(question="<|eot_id|>x", context="<|start_header_id|>", options=options, answer_idx="A")
    fmt = chat_format(tok)
    assert multiple_choice.encode_mcq(tok, record, "direct").ids.count(fmt.eot) == 2
    assert fmt.eot not in multiple_choice.encode_mcq(tok, record, "direct", "mmedbench").ids


def test_wrong_names_and_missing_rationale_are_refused(tok):
    with pytest.raises(ValueError, match="no rationale"):
        multiple_choice.encode_mcq(tok, mcq(rationale=" "), "rationale")
    with pytest.raises(ValueError, match="did you mean 'direct'"):
        multiple_choice.encode_mcq(tok, mcq(), "direkt")
    with pytest.raises(ValueError, match="did you mean 'mmedbench'"):
        multiple_choice.encode_mcq(tok, mcq(), "direct", "medbench")
    with pytest.raises(ValueError, match="not a conversation"):
        multiple_choice.mcq_messages(mcq(), "direct", "mmedbench")
    with pytest.raises(ValueError, match="system message"):
        multiple_choice.encode_mcq(tok, mcq(), "direct", "mmedbench", system_prompt="x")
