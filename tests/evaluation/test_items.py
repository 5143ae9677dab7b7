"""Questions as prompts: examples, shuffled options, passages, choices to score."""

import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.data.multiple_choice import answer_text, encode_mcq, mcq_prompt_ids, prompt_text
from mmed_jax.data.records.schema import LANGUAGES, validate_record
from mmed_jax.evaluation.prompts.few_shot import choose_examples
from mmed_jax.evaluation.prompts.items import PromptSettings, encode_items, hide_passages, make_items, prompts_hash
from tests.support.hf_folders import tiny_tokenizer

DRUGS = {"A": "aspirin", "B": "warfarin", "C": "heparin", "D": "clopidogrel"}


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("items") / "tok")


def record(n, language="en", answer="B", options=DRUGS, **more):
    made = {
        "id": f"{language}{n}",
        "language": language,
        "question": f"Question {n}?",
        "options": options,
        "answer_idx": answer,
        "rationale": f"Reason {n}.",
        **more,
    }
    return validate_record(made, "test")


ASKED = [record(n, lang, "ABCD"[n]) for lang in LANGUAGES for n in range(3)]
POOL = [record(n, lang, "CD"[n % 2]) for lang in LANGUAGES for n in range(10, 20)]


def items(tok, how, examples=None, records=ASKED, **more):
    return encode_items(tok, make_items("b", records, how, examples=examples, **more), how)


# ---- Examples -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama3", "mmedbench"])
@pytest.mark.parametrize("mode", ["direct", "rationale"])
def test_without_examples_prompts_are_those_of_training(tok, mode, family):
    made = items(tok, PromptSettings(mode, family))
    assert [i.prompt for i in made] == [mcq_prompt_ids(tok, r, mode, family) for r in ASKED]
    assert all(i.prefix == 0 and i.order == "" and not i.choices and i.record is r for i, r in zip(made, ASKED))


@pytest.mark.parametrize("mode", ["direct", "rationale"])
def test_examples_are_turns_of_the_conversation(tok, mode):
    """The ids of the tokenizer's own chat template, to the last one."""
    examples = choose_examples("b", {"train": POOL}, ASKED, 3, mode)
    for item in items(tok, PromptSettings(mode, system_prompt="Be brief."), examples):
        messages = [{"role": "system", "content": "Be brief."}]
        for r in examples[item.language, ""]:
            messages += [
                {"role": "user", "content": prompt_text(r, mode)},
                {"role": "assistant", "content": answer_text(r, mode)},
            ]
        messages.append({"role": "user", "content": prompt_text(item.record, mode)})
        expected = tok.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
        assert item.prompt == list(expected)


@pytest.mark.parametrize("family", ["llama3", "mmedbench"])
def test_the_prefix_is_shared_and_ends_where_the_question_begins(tok, family):
    examples = choose_examples("b", {"train": POOL}, ASKED, 2, "direct")
    made = items(tok, PromptSettings("direct", family), examples)
    for language in LANGUAGES:
        mine = [i for i in made if i.language == language]
        shared = {tuple(i.prompt[: i.prefix]) for i in mine}
        assert len(shared) == 1 and 0 < mine[0].prefix < len(mine[0].prompt)
        for item in mine:
            alone = mcq_prompt_ids(tok, item.record, "direct", family)
            assert item.prompt[item.prefix :] == alone[1:]  # all but the begin token, which the prefix has


def test_mmedbench_examples_are_whole_texts_with_their_answers(tok):
    examples = choose_examples("b", {"train": POOL}, ASKED[:1], 2, "direct")
    [item] = items(tok, PromptSettings("direct", "mmedbench"), examples, ASKED[:1])
    one, two = examples["en", ""]
    texts = [
        prompt_text(one, "direct", "mmedbench"),
        answer_text(one, "direct", "mmedbench"),
        "\n\n",
        prompt_text(two, "direct", "mmedbench"),
        answer_text(two, "direct", "mmedbench"),
        "\n\n",
        prompt_text(item.record, "direct", "mmedbench"),
    ]
    assert tok.decode(item.prompt) == "<|begin_of_text|>" + "".join(texts)


def test_examples_are_fixed_whatever_is_asked_and_in_whatever_order(tok):
    whole = choose_examples("b", {"train": POOL}, ASKED, 5, "direct")
    assert all(len(found) == 5 for found in whole.values())
    assert choose_examples("b", {"train": POOL[::-1]}, ASKED[:2][::-1], 5, "direct")["en", ""] == whole["en", ""]
    assert [r["id"] for r in choose_examples("b", {"train": POOL}, ASKED, 2, "direct")["ko", ""]] == [
        r["id"] for r in whole["ko", ""][:2]
    ]
    assert [r["id"] for r in whole["en", ""]] != sorted(r["id"] for r in POOL if r["language"] == "en")[:5]


def test_an_asked_question_is_never_an_example():
    """Neither itself, nor its translation, nor one that needs an image."""
    asked = [record(1, provenance={"group": "g"})]
    same = [record(7, question="question  1?"), record(8, provenance={"group": "g"}), record(9, needs_image=True)]
    with pytest.raises(UserError, match=r"--few_shot=1: train has 0 examples for b in English"):
        choose_examples("b", {"train": same}, asked, 1, "direct")
    assert choose_examples("b", {"train": [*same, record(2)]}, asked, 1, "direct")["en", ""][0]["id"] == "en2"


def test_the_first_split_that_has_enough_gives_all():
    pools = {"fewshot": POOL[:1], "train": POOL}
    assert choose_examples("b", pools, ASKED[:1], 1, "direct")["en", ""] == POOL[:1]
    assert len(choose_examples("b", pools, ASKED[:1], 4, "direct")["en", ""]) == 4


def test_parts_have_examples_of_their_own(tok):
    exam = lambda n, part: record(n, provenance={"subject": part})  # noqa: E731
    pool = [exam(n, part) for part in ("doctor", "nurse") for n in (20, 21)]
    pool = [{**r, "id": f"{r['id']}{r['provenance']['subject']}"} for r in pool]
    asked = [exam(0, "doctor"), exam(1, "nurse")]
    examples = choose_examples("b", {"fewshot": pool}, asked, 2, "direct", "subject")
    assert {k: {r["provenance"]["subject"] for r in v} for k, v in examples.items()} == {
        ("en", "doctor"): {"doctor"},
        ("en", "nurse"): {"nurse"},
    }
    made = items(tok, PromptSettings(), examples, asked, part_field="subject")
    assert [i.part for i in made] == ["doctor", "nurse"] and all(i.prefix for i in made)


@pytest.mark.parametrize(
    ("pools", "mode", "message"),
    [
        ({}, "direct", "no other split is there that has examples for b in English; name a file"),
        ({"train": POOL[:1]}, "direct", "train has 1 examples for b"),
        ({"train": [{**r, "rationale": ""} for r in POOL]}, "rationale", "has 0 examples with a rationale for b"),
    ],
)
def test_too_few_examples_are_refused(pools, mode, message):
    with pytest.raises(UserError, match=message):
        choose_examples("b", pools, ASKED[:1], 2, mode)


# ---- Options and passages -----------------------------------------------------------------------------------------


def test_shuffling_keeps_the_texts_and_the_right_ones(tok):
    asked = [record(n, answer=("A", "B,D")[n % 2]) for n in range(40)]
    made = items(tok, PromptSettings(shuffle_seed=3), records=asked)
    for item, r in zip(made, asked):
        assert sorted(item.order) == list(DRUGS) and list(item.options) == list(DRUGS)
        assert list(item.options.values()) == [r["options"][k] for k in item.order]
        right = {r["options"][k] for k in r["answer_idx"].split(",")}
        assert {item.options[k] for k in item.answer.split(",")} == right
        assert item.prompt == mcq_prompt_ids(tok, {**r, "options": item.options}, "direct") and item.record is r
    assert len({i.order for i in made}) > 10
    again = items(tok, PromptSettings(shuffle_seed=3), records=asked[::-1])[::-1]
    assert [i.order for i in again] == [i.order for i in made]
    assert [i.order for i in items(tok, PromptSettings(shuffle_seed=4), records=asked)] != [i.order for i in made]


def test_closed_book_takes_the_passage_away(tok):
    r = record(1, context="A passage.")
    open_, closed = (items(tok, PromptSettings(), records=[x])[0].prompt for x in (r, *hide_passages([r])))
    assert "A passage." in tok.decode(open_) and tok.decode(closed) == tok.decode(open_).replace("A passage.\n\n", "")
    assert "context" in r


# ---- Choices ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama3", "mmedbench"])
@pytest.mark.parametrize("examples", [0, 2])
def test_letters_are_scored_where_training_writes_them(tok, family, examples):
    """Prompt and choice together are the beginning of the sample that the model would be trained on."""
    shown = choose_examples("b", {"train": POOL}, ASKED, examples, "direct") if examples else {}
    for item in items(tok, PromptSettings("loglikelihood", family, score="letter"), shown):
        assert len(item.choices) == 4 and len(set(item.choices)) == 4
        for letter, choice in zip(item.options, item.choices):
            sample = encode_mcq(tok, {**item.record, "answer_idx": letter}, "direct", family).ids
            asked = item.prompt[item.prefix :] if item.prefix else item.prompt[1:]
            assert sample[1 : 1 + len(asked) + len(choice)] == [*asked, *choice]
            assert tok.decode(choice).strip() == letter


@pytest.mark.parametrize("family", ["llama3", "mmedbench"])
def test_options_are_scored_as_their_texts(tok, family):
    examples = choose_examples("b", {"train": POOL}, ASKED, 1, "direct")
    for shown in ({}, examples):
        for item in items(tok, PromptSettings("loglikelihood", family, score="option"), shown):
            assert [tok.decode(c).strip() for c in item.choices] == list(item.options.values())
            text = tok.decode(item.prompt)
            assert text.count(f"{item.record['question']}") == 1 and "<letter>" not in text
            right = examples[item.language, ""][0]
            assert (f"{right['options'][right['answer_idx']]}" in text) == (bool(shown) or family == "mmedbench")


def test_shuffled_choices_follow_the_options(tok):
    plain = items(tok, PromptSettings("loglikelihood", score="option"))
    for a, b in zip(plain, items(tok, PromptSettings("loglikelihood", shuffle_seed=1, score="option"))):
        assert list(b.choices) == [a.choices["ABCD".index(k)] for k in b.order]


def test_prompts_hash_sees_prompts_answers_and_choices(tok):
    ways = ({}, {"score": "letter"}, {"score": "option"}, {"shuffle_seed": 1})
    made = [items(tok, PromptSettings(**way)) for way in ways]
    assert len({prompts_hash(m) for m in made}) == 4
    assert prompts_hash(made[0]) == prompts_hash(items(tok, PromptSettings()))
