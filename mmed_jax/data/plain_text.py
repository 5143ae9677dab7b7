"""Plain text, without a chat format: what stands around it, and how ids that go on read. Any tokenizer will do."""

import json
import re
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenizers import AddedToken

from mmed_jax.common.errors import UserError
from mmed_jax.data.chat_formats import EOS, SYNTAXES, syntax_of, token_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


# <s>, </s>, <|endoftext|>, [BOS]; llama2.c writes line feeds around them. Not the bytes <0x0A> of sentencepiece.
_CONTROL = re.compile(r"\s*(<(?!0x)[^<>\s]+>|\[[A-Z_]+\])\s*")
_STARTS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def text_start(tok: "PreTrainedTokenizerFast") -> tuple[int, ...]:
    """Ids that go in front of plain text: the chat format's begin token, else what the tokenizer itself puts there.

    A tokenizer that puts nothing there may name a begin token all the same. Then add_bos_token of its config decides,
    and without it the token counts unless it is the end token or a token of a chat format as well, which stand there
    in vocabularies that have no begin token.
    """
    syntax = syntax_of(tok)
    if syntax is not None and syntax.begin:
        return (token_id(tok, syntax.begin),)
    if tok not in _STARTS:
        text, ids = (tok("a", add_special_tokens=special)["input_ids"] for special in (False, True))
        at = next((i for i in range(len(ids)) if ids[i : i + len(text)] == text), 0)
        others = {tok.eos_token, *(c for s in SYNTAXES for c in s.controls)}
        wanted = tok.init_kwargs.get("add_bos_token", tok.bos_token not in others)
        if at == 0 and tok.bos_token_id is not None and wanted:
            ids, at = [tok.bos_token_id], 1
        _STARTS[tok] = tuple(ids[:at])
    return _STARTS[tok]


def adopt_roles(tok: "PreTrainedTokenizerFast", bos: int | None, eos: Sequence[int]) -> None:
    """Gives a tokenizer without chat format the begin and end tokens that only the model's config.json names.

    Ids that stand for ordinary text are passed over: config.json may name the defaults of another vocabulary.
    """
    if syntax_of(tok) is not None:
        return
    for role, ids in (("bos_token", [bos]), ("eos_token", eos)):
        names = [tok.convert_ids_to_tokens(i) for i in ids if i is not None and i < len(tok)]
        fit = [t for t in names if t and _CONTROL.fullmatch(t)]
        if getattr(tok, role) is None and fit:
            tok.add_tokens([AddedToken(fit[0], special=True, normalized=False)])  # flags it; ids stay
            setattr(tok, role, fit[0])


def text_end(tok: "PreTrainedTokenizerFast") -> int:
    """The id that ends plain text: <|end_of_text|>, or the tokenizer's own end token where there is none.

    Raises:
        UserError: it has neither.
    """
    end = token_id(tok, EOS)
    end = tok.eos_token_id if end is None else end
    if end is None:
        raise UserError(
            f"tokenizer: {tok.name_or_path or 'it'} names no end token, which an answer must end with; set eos_token "
            "in its tokenizer_config.json"
        )
    return end


def joins_plainly(tok: "PreTrainedTokenizerFast") -> bool:
    """Whether ids read the same alone and behind others: so it is in byte-level vocabularies."""
    decoder = tok.backend_tokenizer.decoder
    state = json.loads(decoder.__getstate__()) if decoder is not None else {}
    return "ByteLevel" in {d.get("type") for d in state.get("decoders", [state])}


def decode_after(tok: "PreTrainedTokenizerFast", before: Sequence[int], ids: Sequence[int]) -> str:
    """The text of `ids` as it goes on behind `before`, control tokens left out.

    Decoders of sentencepiece vocabularies drop the space that a text begins with, so ids behind others are not decoded
    alone there.
    """
    alone = tok.decode(ids, skip_special_tokens=True)
    if not before or joins_plainly(tok):
        return alone
    head, whole = (tok.decode(x, skip_special_tokens=True) for x in (before, [*before, *ids]))
    return whole[len(head) :] if whole.startswith(head) else alone
