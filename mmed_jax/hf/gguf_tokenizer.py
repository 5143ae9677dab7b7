"""A tokenizer as GGUF holds it: tokens, types, merges or scores, and the name of the rule that splits text.

Keys: the specification of GGUF in the ggml repository (docs/gguf.md). The rule has no place in the file but its name
(tokenizer.ggml.pre), which llama.cpp looks up; a tokenizer whose rule has no name there would get other ids, and is
refused. Of names known here: src/llama-vocab.cpp of llama.cpp.
"""

from typing import TYPE_CHECKING, Any

from mmed_jax.common.errors import UserError
from mmed_jax.data.chat_formats import syntax_of, token_id
from mmed_jax.data.plain_text import text_start
from mmed_jax.data.tokenizers.tokenizer import SPLIT_PATTERN, backend_json, control_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# (what splits text, whether a whole word that is a token is taken as it is) -> name of the rule.
_RULES = {
    ((SPLIT_PATTERN, "bytes"), True): "llama-bpe",
    ((SPLIT_PATTERN, "bytes"), False): "smaug-bpe",
    ((QWEN2_PATTERN, "bytes"), False): "qwen2",
    (("digits", "bytes by GPT-2's pattern"), False): "smollm",
    (("bytes by GPT-2's pattern",), False): "gpt-2",
}
_WORST = -1e6  # score of what no merge makes


def tokenizer_fields(tok: "PreTrainedTokenizerFast", vocab_size: int, pre: str = "") -> dict[str, Any]:
    """{key: value} of `tokenizer.*` in a GGUF file; lists, texts, numbers and truth values.

    Args:
      vocab_size: rows of the model's embedding; ids without a token are filled up as unused.
      pre: name of the splitting rule that the user vouches for; "" = as found.

    Raises:
      UserError: a kind of tokenizer that GGUF has no form for here, or a rule without a known name.
    """
    state = backend_json(tok)
    model = state["model"]
    if model.get("type") != "BPE":
        raise UserError(
            f"--gguf: its tokenizer is of the kind {model.get('type')}; written are BPE and sentencepiece's BPE"
        )
    pieces = bool(model.get("byte_fallback"))
    tokens, kinds = _tokens(tok, vocab_size, pieces, model.get("unk_token") if pieces else None)
    fields: dict[str, Any] = {"tokenizer.ggml.model": "llama" if pieces else "gpt2"}
    fields["tokenizer.ggml.pre"] = pre or ("default" if pieces else _rule(state))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    fields |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    if pieces:
        fields["tokenizer.ggml.scores"] = _scores(tokens, merges)
        fields["tokenizer.ggml.add_space_prefix"] = _space_in_front(state)
    else:
        fields["tokenizer.ggml.merges"] = merges
    syntax = syntax_of(tok)
    ids = {
        "bos": tok.bos_token_id,
        "eos": tok.eos_token_id,
        "eot": token_id(tok, syntax.end) if syntax else None,
        "unknown": tok.unk_token_id,
        "padding": tok.pad_token_id,
    }
    fields |= {f"tokenizer.ggml.{name}_token_id": i for name, i in ids.items() if i is not None and i < vocab_size}
    fields["tokenizer.ggml.add_bos_token"] = tok.bos_token_id is not None and tok.bos_token_id in text_start(tok)
    fields["tokenizer.ggml.add_eos_token"] = False
    template = tok.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return fields | ({"tokenizer.chat_template": template} if template else {})


def _tokens(
    tok: "PreTrainedTokenizerFast", vocab_size: int, pieces: bool, unknown: str | None
) -> tuple[list[str], list[int]]:
    """Every row's token and type."""
    controls, added = control_ids(tok), tok.added_tokens_decoder
    by_id = {i: t for t, i in tok.get_vocab().items()}
    tokens, kinds = [], []
    for i in range(vocab_size):
        token = by_id.get(i)
        tokens.append(f"[PAD{i}]" if token is None else token)
        if token is None:
            kinds.append(UNUSED)
        elif pieces and token == unknown:
            kinds.append(UNKNOWN)
        elif i in controls:
            kinds.append(CONTROL)
        elif i in added:
            kinds.append(USER_DEFINED)
        elif pieces and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kinds.append(BYTE)
        else:
            kinds.append(NORMAL)
    return tokens, kinds


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Sentencepiece's scores: pieces are joined in the order of the merges, the first one first."""
    first: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        first.setdefault(merge.replace(" ", "", 1), rank)
    return [float(-first[t]) if t in first else _WORST for t in tokens]


def _steps(part: dict | None, key: str) -> list[dict]:
    """The steps of a normaliser or splitter, whether it is one or a sequence."""
    if not part:
        return []
    return [s for step in part[key] for s in _steps(step, key)] if part["type"] == "Sequence" else [part]


def _space_in_front(state: dict) -> bool:
    """Of a sentencepiece tokenizer: whether a space goes in front of a text."""
    front, spaces = False, False
    for step in (*_steps(state["normalizer"], "normalizers"), *_steps(state["pre_tokenizer"], "pretokenizers")):
        if step["type"] == "Prepend" and step["prepend"] == "▁":
            front = True
        elif step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == "▁":
            spaces = True
        elif step["type"] == "Metaspace" and step["replacement"] == "▁":
            front, spaces = step.get("prepend_scheme", "always") != "never", True
        else:
            raise UserError(f"--gguf: its tokenizer changes text by a step ({step['type']}) that GGUF has no form for")
    if not spaces:
        raise UserError("--gguf: its tokenizer has bytes for pieces and keeps spaces, which GGUF has no form for")
    return front


def _rule(state: dict) -> str:
    """Name of the splitting rule of a byte-level tokenizer."""
    found: list[str] = []
    for step in _steps(state["pre_tokenizer"], "pretokenizers"):
        kind = step["type"]
        if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
            found.append(step["pattern"]["Regex"])
        elif kind == "Digits" and step["individual_digits"]:
            found.append("digits")
        elif kind == "ByteLevel" and not step["add_prefix_space"]:
            found.append("bytes by GPT-2's pattern" if step.get("use_regex", True) else "bytes")
        else:
            found.append(kind)
    normalisers = [step["type"] for step in _steps(state["normalizer"], "normalizers")]
    name = _RULES.get((tuple(found), bool(state["model"].get("ignore_merges"))))
    if name is None or normalisers not in ([], ["NFC"] if name == "qwen2" else []):
        rule = ", ".join([*normalisers, *found])[:120] or "none"
        known = ", ".join(sorted(_RULES.values()))
        raise UserError(
            f"--gguf: how its tokenizer splits text ({rule}) is none of the rules that are known here by llama.cpp's "
            f"names ({known}); where you know its name there, --gguf_pre=NAME writes it"
        )
    return name
