"""Records as prompts: zero-shot or after fixed examples, options in order or shuffled, with or without the passage.

Few-shot examples (few_shot.py) keep their options in order. In family llama3 an example is a turn of the conversation,
in mmedbench a whole wrapped text with its answer.

Items are made in words, which an endpoint is asked as they are (chat_messages); a model of ours gets their ids
(encode_items).
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from mmed_jax.data.chat import Piece, chat_format, chat_pieces, encode_pieces
from mmed_jax.data.multiple_choice import Choices, answer_text, letter_choices, prompt_text
from mmed_jax.data.plain_text import text_start
from mmed_jax.data.tokenizers.tokenizer import encode_texts
from mmed_jax.evaluation.prompts.few_shot import Examples, record_part
from mmed_jax.evaluation.prompts.option_order import shuffle_options

_MARK = "###Answer:"  # of the mmedbench family


@dataclasses.dataclass(frozen=True)
class Item:
    """One question as it is asked.

    Attributes:
      messages: what is asked, examples included, as turns {"role", "content"}; of family mmedbench the texts that are
        put one after the other. shared: how many of them all items of its benchmark, language and part begin with; 0
        without examples.
      prompt: the same as token ids; [] for an endpoint. prefix: how many ids the shared messages make.
      answer: the right letters as shown ("A,C", sorted), or the reference text of an instruction record.
      options: as shown; empty for instruction records. order: the original letters in shown order ("CABD"), "" when
        they are not shuffled.
      record: the record as published. part: a subject or exam of the benchmark, "" where it has none.
      choices: loglikelihood only: the ids that continue the prompt, an option each, in the order of `options`.
    """

    benchmark: str
    id: str
    language: str
    prompt: list[int]
    answer: str
    options: dict[str, str]
    prefix: int = 0
    record: dict = dataclasses.field(default_factory=dict)
    order: str = ""
    choices: tuple[tuple[int, ...], ...] = ()
    part: str = ""
    messages: tuple[dict, ...] = ()
    shared: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """What identifies it among the results."""
        return self.benchmark, self.id


@dataclasses.dataclass(frozen=True)
class PromptSettings:
    """How questions are put: what decides a prompt beside the record. `score` "letter" or "option" makes choices."""

    mode: str = "direct"
    family: str = "llama3"
    system_prompt: str = ""
    shuffle_seed: int | None = None
    score: str = ""

    @property
    def prompt_mode(self) -> str:
        """The mode of mmed_jax.data.multiple_choice whose words are used: log-likelihoods ask as "direct" does."""
        return "rationale" if self.mode == "rationale" else "direct"


def hide_passages(records: Iterable[dict]) -> list[dict]:
    """The records without their passages."""
    return [{k: v for k, v in r.items() if k != "context"} for r in records]


def make_items(
    benchmark: str,
    records: Sequence[dict],
    settings: PromptSettings,
    *,
    examples: Examples | None = None,
    part_field: str = "",
) -> list[Item]:
    """The records as items in words; encode_items adds the ids. `examples` as from choose_examples."""
    if "messages" in records[0]:
        return [
            Item(
                benchmark,
                r["id"],
                r["language"],
                [],
                r["messages"][-1]["content"],
                {},
                record=r,
                messages=_with_system(r["messages"][:-1], settings.system_prompt),
            )
            for r in records
        ]
    leads = {key: _lead(records_shown, settings) for key, records_shown in (examples or {}).items()}
    items = []
    for record in records:
        shown, order = record, ""
        if settings.shuffle_seed is not None:
            shown, order = shuffle_options(record, settings.shuffle_seed, benchmark)
        part = record_part(record, part_field)
        lead = leads.get((record["language"], part), ())
        question = {"role": "user", "content": _question_text(shown, settings)}
        items.append(
            Item(
                benchmark,
                record["id"],
                record["language"],
                [],
                shown["answer_idx"],
                shown["options"],
                record=record,
                order=order,
                part=part,
                shared=len(lead),
                messages=(*lead, question) if lead else _with_system([question], settings.system_prompt),
            )
        )
    return items


def _with_system(messages: Sequence[dict], system_prompt: str) -> tuple[dict, ...]:
    if system_prompt and (not messages or messages[0]["role"] != "system"):
        return ({"role": "system", "content": system_prompt}, *messages)
    return tuple(messages)


def _lead(examples: Sequence[dict], settings: PromptSettings) -> tuple[dict, ...]:
    """What precedes every question: the system message and the examples as turns."""
    end = "\n\n" if settings.family == "mmedbench" else ""
    turns = [
        {"role": role, "content": text}
        for r in examples
        for role, text in (("user", _question_text(r, settings)), ("assistant", _answer(r, settings) + end))
    ]
    return _with_system(turns, settings.system_prompt)


def _question_text(record: dict, settings: PromptSettings) -> str:
    """What one question says. To score the options' texts, llama3 asks without them, as lm-eval asks HEAD-QA; mmedbench
    has no such form and lists them."""
    if settings.score == "option" and settings.family == "llama3":
        return "\n\n".join(t for t in (record.get("context", "").strip(), record["question"].strip()) if t)
    return prompt_text(record, settings.prompt_mode, settings.family)


def _answer(record: dict, settings: PromptSettings) -> str:
    """What an example answers."""
    if settings.score == "option":
        text = ", ".join(record["options"][k].strip() for k in record["answer_idx"].split(","))
        return f"{_MARK} {text}" if settings.family == "mmedbench" else text
    return answer_text(record, settings.prompt_mode, settings.family)


def chat_messages(item: Item, family: str) -> tuple[dict, ...]:
    """The item as a chat endpoint is asked: the words that a local model reads, contents trimmed as its template does.
    An mmedbench text is one message of the user."""
    if family == "mmedbench" and item.options:
        return ({"role": "user", "content": "".join(m["content"] for m in item.messages)},)
    return tuple({"role": m["role"], "content": m["content"].strip()} for m in item.messages)


def encode_items(tok: Any, items: Sequence[Item], settings: PromptSettings) -> list[Item]:
    """The items with their token ids, exactly those of training, and with their choices where they are scored."""
    plain = settings.family == "mmedbench"
    leads = {(i.benchmark, i.language, i.part): i.messages[: i.shared] for i in items if i.shared}
    encoded = encode_pieces(tok, [_pieces(tok, lead, plain) for lead in leads.values()])
    prefixes = {key: e.ids for key, e in zip(leads, encoded)}
    rest = []
    for i in items:
        as_text = plain and bool(i.options)
        pieces = _pieces(tok, i.messages[i.shared :], as_text)[bool(i.shared) :]  # the prefix has the begin token
        rest.append(pieces if as_text else [*pieces, Piece(ids=chat_format(tok).headers["assistant"])])
    ends = _choices(tok, items, settings) if settings.score else [((), ())] * len(items)
    with_ids = []
    for i, e, (lead, choices) in zip(items, encode_pieces(tok, rest), ends):
        prefix = prefixes[i.benchmark, i.language, i.part] if i.shared else []
        with_ids.append(dataclasses.replace(i, prompt=[*prefix, *e.ids, *lead], prefix=len(prefix), choices=choices))
    return with_ids


def _pieces(tok: Any, messages: Sequence[dict], as_text: bool) -> list[Piece]:
    """Begin token (an empty piece where there is none) and messages: by the chat template, or as texts in a row."""
    if as_text:
        return [Piece(ids=text_start(tok)), *(Piece(text=m["content"]) for m in messages)]
    return chat_pieces(tok, messages)


def _choices(tok: Any, items: Sequence[Item], settings: PromptSettings) -> list[Choices]:
    """(ids that go to the prompt, ids of each choice) of every item: its letter, or an option's whole text."""
    if settings.score != "option":
        return letter_choices(tok, [(i.record, list(i.options)) for i in items], settings.family)
    marked = settings.family == "mmedbench"
    lead = tuple(encode_texts(tok, [_MARK])[0]) if marked else ()
    encoded = iter(encode_texts(tok, [" " * marked + text.strip() for i in items for text in i.options.values()]))
    return [(lead, tuple(tuple(next(encoded)) for _ in i.options)) for i in items]


def prompts_hash(items: Iterable[Item]) -> str:
    """SHA-256 over benchmark, id, token ids (messages where there are none), right answer and choices of every item, in
    order."""
    digest = hashlib.sha256()
    for i in items:
        scored = f"\0{i.choices}" if i.choices else ""
        prompt = i.prompt or json.dumps(i.messages, ensure_ascii=False, sort_keys=True)
        digest.update(f"{i.benchmark}\0{i.id}\0{prompt}\0{i.answer}{scored}\n".encode())
    return digest.hexdigest()
