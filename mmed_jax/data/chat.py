"""Conversations -> token ids and the mask of trained tokens, role by role.

Roles and contents are tokenized apart and joined as ids, so text can never become a control token and the mask needs no
search. The ids equal `apply_chat_template(tokenize=True)` of the same tokenizer (plain Llama-3 template, tokenizer.py)
for every content that is free of control strings.
"""

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import numpy as np

from mmed_jax.data.schema import ROLES
from mmed_jax.data.tokenizer import BOS, END_HEADER, EOT, START_HEADER, encode_texts
from mmed_jax.errors import UserError, nearest

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
    """Control ids of a Llama-3 tokenizer: `headers[role]` is <|start_header_id|>role<|end_header_id|>\\n\\n."""

    bos: int
    eot: int
    headers: dict[str, tuple[int, ...]]
    # The pieces that are the same in every conversation: its beginning, and what stands around a role's text.
    begin: Piece = field(init=False)
    around: dict[str, tuple[Piece, Piece]] = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "begin", Piece(ids=(self.bos,)))
        end = (self.eot,)
        around = {r: (Piece(ids=h), Piece(ids=end, trained=r == "assistant")) for r, h in self.headers.items()}
        object.__setattr__(self, "around", around)


_FORMATS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

_PROBES = (" a", "患者\n\n発熱 ", "1 é", "- b\n", "", "\n\n그\t")


def chat_format(tok) -> ChatFormat:
    """The control ids of `tok`, looked up once per tokenizer.

    Raises:
        UserError: a control token is missing, or the tokenizer's own chat template gives other ids.
    """
    if tok not in _FORMATS:
        vocab = tok.get_vocab()
        missing = [t for t in (BOS, START_HEADER, END_HEADER, EOT) if t not in vocab]
        if missing:
            raise UserError(f"tokenizer: not a Llama-3 tokenizer, it has no {', '.join(missing)}")
        *names, newlines = encode_texts(tok, [*ROLES, "\n\n"])
        start, end = vocab[START_HEADER], vocab[END_HEADER]
        headers = {role: (start, *ids, end, *newlines) for role, ids in zip(ROLES, names)}
        fmt = ChatFormat(vocab[BOS], vocab[EOT], headers)
        _check_template(tok, fmt)
        _FORMATS[tok] = fmt
    return _FORMATS[tok]


def _check_template(tok, fmt: ChatFormat) -> None:
    """A tokenizer that merges the header's newlines with text would give other ids when serving: refuse it."""
    for text in _PROBES:
        messages = [{"role": role, "content": text} for role in ROLES]
        ours = _join(_pieces(fmt, messages), iter(encode_texts(tok, [text.strip()] * len(ROLES)))).ids
        theirs = tok.apply_chat_template(messages, tokenize=True, return_dict=False)
        if ours != list(theirs):
            raise UserError(
                f"tokenizer: its chat template does not give plain Llama-3 ids (tried on {text!r}); "
                "load it with mmed_jax.data.tokenizer.load_tokenizer"
            )


def _pieces(fmt: ChatFormat, messages: Messages) -> list[Piece]:
    pieces = [fmt.begin]
    for message in messages:
        role, text = message["role"], message["content"].strip()
        if role not in fmt.around:
            raise UserError(f"chat role '{role}' is unknown{nearest(role, ROLES)}")
        before, after = fmt.around[role]
        cut = (0, len(text)) if role == "user" else None
        pieces += (before, Piece((), text, role == "assistant", cut, MIN_KEPT), after)
    return pieces


def chat_pieces(tok, messages: Messages) -> list[Piece]:
    """The pieces of a conversation: loss on assistant text and its <|eot_id|>, in every turn of the assistant.

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
    """Ids and trained mask of one conversation; exactly one <|begin_of_text|>. Raises UserError (see chat_pieces)."""
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
    encoded = [(p, next(texts) if text else p.ids, cuttable) for p, (text, cuttable) in parts]
    excess = sum(len(ids) for _, ids, _ in encoded) - 1 - slots
    out = Example([], [])
    for piece, ids, cuttable in encoded:
        if cuttable and excess > 0:
            start = min(excess, max(0, len(ids) - piece.keep))
            # A byte-level token may begin inside a character; what is left must begin with a whole one.
            while start and start < len(ids) and tok.decode(ids[start : start + 4]).startswith("\ufffd"):
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
