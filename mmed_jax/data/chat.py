"""Conversations -> token ids and the mask of trained tokens, role by role.

Roles and contents are tokenized apart and joined as ids, so text can never become a control token and the mask needs no
search. The ids equal `apply_chat_template(tokenize=True)` of the same tokenizer (with the template of its chat format,
chat_formats.py) for every content that is free of control strings.
"""

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import numpy as np

from mmed_jax.common.errors import UserError, nearest
from mmed_jax.data.chat_formats import ChatSyntax, lacks, syntax_of, token_id
from mmed_jax.data.records.schema import ROLES
from mmed_jax.data.tokenizers.tokenizer import encode_texts, text_spans

Messages = Sequence[dict[str, str]]  # {"role": "system" | "user" | "assistant", "content": text}


@dataclass
class Example:
    """One training sample: `ids` and, for each, whether the model is trained to produce it. Same length."""

    ids: list[int]
    trained: list[bool]

    @property
    def slots(self) -> int:
        """Positions it takes in a row: every id but the last is an input."""
        return len(self.ids) - 1


class Piece(NamedTuple):
    """A stretch of a sample: control ids, or text that is encoded as plain content.

    `cut` is the range of characters that may be shortened, from its beginning, when the sample is too long, and
    `keep` how many of its tokens must stay.
    """

    ids: tuple[int, ...] = ()
    text: str = ""
    trained: bool = False
    cut: tuple[int, int] | None = None
    keep: int = 0


# An instruction's user message keeps at least so many of its last tokens when it is shortened.
MIN_KEPT = 32


@dataclass(frozen=True)
class ChatFormat:
    """A tokenizer's ids of its chat format: `headers[role]` is what stands before a message, `eot` what ends it.

    `bos` is None where the format begins with no token; `after` is what follows `eot`, never trained.
    """

    name: str
    bos: int | None
    eot: int
    headers: dict[str, tuple[int, ...]]
    after: tuple[int, ...] = ()
    # The pieces that are the same in every conversation: its beginning, what stands before and behind a role's text.
    begin: Piece = field(init=False)
    around: dict[str, tuple[Piece, tuple[Piece, ...]]] = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "begin", Piece(ids=() if self.bos is None else (self.bos,)))
        around = {r: (Piece(ids=h), self.ending(trained=r == "assistant")) for r, h in self.headers.items()}
        object.__setattr__(self, "around", around)

    def ending(self, *, trained: bool) -> tuple[Piece, ...]:
        """What stands behind the text of a message: the end token, and what the format writes after it."""
        end = Piece(ids=(self.eot,), trained=trained)
        return (end, Piece(ids=self.after)) if self.after else (end,)


_FORMATS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

_PROBES = (" a", "患者\n\n発熱 ", "1 é", "- b\n", "", "\n\n그\t")


def chat_format(tok) -> ChatFormat:
    """The ids of `tok`'s chat format, looked up once per tokenizer.

    Raises:
        UserError: it has the control tokens of no format, or its own chat template gives other ids.
    """
    if tok not in _FORMATS:
        syntax = syntax_of(tok)
        if syntax is None:
            raise UserError(
                f"tokenizer: {tok.name_or_path or 'it'} has the control tokens of no chat format ({lacks(tok)}): name "
                "one that has (config.tokenizer; scripts.make_tokenizer makes one), or use what needs none: "
                "generate --raw, evaluate --mode=loglikelihood, --prompt_family=mmedbench, export"
            )
        cut = {role: syntax.header(role) for role in ROLES}
        texts = [part for parts in cut.values() for part in parts if part not in syntax.controls]
        encoded = dict(zip(texts, encode_texts(tok, texts)))
        headers = {
            role: tuple(chain.from_iterable(encoded.get(part) or [token_id(tok, part)] for part in parts))
            for role, parts in cut.items()
        }
        bos = token_id(tok, syntax.begin or None)
        after = tuple(encode_texts(tok, [syntax.after])[0]) if syntax.after else ()
        fmt = ChatFormat(syntax.name, bos, token_id(tok, syntax.end), headers, after)
        _check_template(tok, fmt, syntax)
        _FORMATS[tok] = fmt
    return _FORMATS[tok]


def _check_template(tok, fmt: ChatFormat, syntax: ChatSyntax) -> None:
    """A tokenizer that merges what surrounds a text with it would give other ids when serving: refuse it."""
    for text in _PROBES:
        messages = [{"role": role, "content": text} for role in ROLES]
        ours = _join(_pieces(fmt, messages), iter(encode_texts(tok, [text.strip()] * len(ROLES)))).ids
        theirs = tok.apply_chat_template(messages, tokenize=True, return_dict=False)
        if ours != list(theirs):
            hint = "load it with mmed_jax.data.tokenizers.tokenizer.load_tokenizer"
            if tok.chat_template == syntax.template:
                hint = "it joins text with what stands around it; such a tokenizer serves without a chat format only"
            raise UserError(
                f"tokenizer: its chat template does not give plain {syntax.title} ids (tried on {text!r}); {hint}"
            )


def _pieces(fmt: ChatFormat, messages: Messages) -> list[Piece]:
    pieces = [fmt.begin]
    for message in messages:
        role, text = message["role"], message["content"].strip()
        if role not in fmt.around:
            raise UserError(f"chat role '{role}' is unknown{nearest(role, ROLES)}")
        before, after = fmt.around[role]
        cut = (0, len(text)) if role == "user" else None
        pieces += (before, Piece((), text, role == "assistant", cut, MIN_KEPT), *after)
    return pieces


def chat_pieces(tok, messages: Messages) -> list[Piece]:
    """The pieces of a conversation: loss on assistant text and its end token, in every turn of the assistant.

    Contents are trimmed as the template does. Raises UserError for an unknown role or a foreign tokenizer.
    """
    return _pieces(chat_format(tok), messages)


def _join(pieces: Iterable[Piece], encoded) -> Example:
    ids: list[int] = []
    trained: list[bool] = []
    for piece in pieces:
        part = next(encoded) if piece.text else piece.ids
        ids += part
        trained += [piece.trained] * len(part)
    return Example(ids, trained)


def encode_pieces(tok, samples: Sequence[Sequence[Piece]]) -> list[Example]:
    """Encodes many samples with one call of the tokenizer's batch encoder; order kept."""
    encoded = iter(encode_texts(tok, [p.text for pieces in samples for p in pieces if p.text]))
    return [_join(pieces, encoded) for pieces in samples]


def encode_arrays(tok, samples: Sequence[Sequence[Piece]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `encode_pieces` gives, as flat arrays and without a step of Python per token.

    Returns:
        (ids int32 [total], trained bool [total], offsets int64 [n + 1]); sample i has ids[offsets[i]:offsets[i+1]].
    """
    pieces = list(chain.from_iterable(samples))
    encoded = iter(encode_texts(tok, [p.text for p in pieces if p.text]))
    parts = [next(encoded) if p.text else p.ids for p in pieces]
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    ends = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.fromiter(chain.from_iterable(parts), np.int32, ends[-1])
    trained = np.repeat(np.fromiter((p.trained for p in pieces), bool, len(pieces)), lengths)
    counts = np.fromiter(map(len, samples), np.int64, len(samples))
    return ids, trained, ends[np.concatenate([[0], np.cumsum(counts)])]


def encode_chat(tok, messages: Messages) -> Example:
    """Ids and trained mask of one conversation; one begin token or none, as its format has it.

    Raises UserError (see chat_pieces).
    """
    return encode_pieces(tok, [chat_pieces(tok, messages)])[0]


def chat_prompt_ids(tok, messages: Messages) -> list[int]:
    """Ids of a conversation followed by the assistant's header, ready to be continued.

    For messages without the last answer these are a prefix of `encode_chat(...).ids`.
    """
    return encode_chat(tok, messages).ids + list(chat_format(tok).headers["assistant"])


def shorten(tok, pieces: Sequence[Piece], slots: int) -> Example | None:
    """Cuts text from the beginnings of the pieces that allow it until the sample takes at most `slots` positions.

    Earlier pieces lose first. Trained pieces, headers and protected text are never touched; a character is never split.
    Returns None when that is not enough.
    """
    parts = [(p, i) for p in pieces for i in _spans(p)]
    texts = iter(encode_texts(tok, [text for p, (text, _) in parts if text]))
    encoded = [(p, text, next(texts) if text else p.ids, cuttable) for p, (text, cuttable) in parts]
    excess = sum(len(ids) for _, _, ids, _ in encoded) - 1 - slots
    out = Example([], [])
    for piece, text, ids, cuttable in encoded:
        if cuttable and excess > 0:
            start = min(excess, max(0, len(ids) - piece.keep))
            # A byte-level token may begin inside a character; what is left must begin with a whole one.
            spans = text_spans(tok, text) if start else []
            while 0 < start < len(ids) and spans[start][0] < spans[start - 1][1]:
                start += 1
            ids, excess = ids[start:], excess - start
        out.ids += ids
        out.trained += [piece.trained] * len(ids)
    return out if excess <= 0 else None


def _spans(piece: Piece) -> list[tuple[str, bool]]:
    """(text, may be cut) parts of a piece, empty ones left out; control ids are one part without text."""
    if not piece.text or piece.cut is None:
        return [(piece.text, False)]
    a, b = piece.cut
    spans = ((piece.text[:a], False), (piece.text[a:b], True), (piece.text[b:], False))
    return [s for s in spans if s[0]]
