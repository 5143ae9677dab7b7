"""Meta's tiktoken `tokenizer.model`: the ranks of Llama 3's vocabulary, as a fast tokenizer.

Sources: the ranks file and the split expression are those of Meta's llama3 release (llama/tokenizer.py); the names of
the 256 special tokens are those of the Llama-3.1 Hugging Face release. Llama 3.0 differs from it in names only (128004
and 128008 were reserved there), so models of both read the same ids.
"""

import base64
import binascii
from pathlib import Path
from typing import TYPE_CHECKING

from mmed_jax.common.errors import UserError
from mmed_jax.data.chat_formats import BOS, END_HEADER, EOM, EOS, EOT, PAD, START_HEADER

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NUM_SPECIAL = 256

# Meta's split expression: contractions, words with one leading non-letter, up to three digits, punctuation, space.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def special_token_names() -> list[str]:
    """Names of Llama-3's 256 special tokens in id order (the first one follows the last rank: 128000 .. 128255)."""
    named = {0: BOS, 1: EOS, 4: PAD, 6: START_HEADER, 7: END_HEADER, 8: EOM, 9: EOT, 10: "<|python_tag|>"}
    reserved = (f"<|reserved_special_token_{i}|>" for i in range(NUM_SPECIAL))
    return [named.get(i) or next(reserved) for i in range(NUM_SPECIAL)]


def byte_chars() -> dict[int, str]:
    """Byte -> printable character of byte-level BPE (GPT-2's encoder.py): printable bytes stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {b: chr(b) for b in printable}
    for b in range(256):
        if b not in table:
            table[b] = chr(256 + len(table) - len(printable))
    return table


def _read_ranks(text: str, path: Path) -> dict[bytes, int]:
    """The ranks file: one `base64(token bytes) rank` a line; ranks are 0 .. n-1 and all single bytes are there."""
    not_ranks = f"tokenizer: {path} is not Meta's tiktoken ranks file"
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as e:
            raise UserError(f"{path}:{number}: expected 'base64 rank' of a tiktoken ranks file") from e
    if sorted(ranks.values()) != list(range(len(ranks))) or not all(bytes([b]) in ranks for b in range(256)):
        raise UserError(f"{not_ranks}, or is cut short: {len(ranks)} entries, ranks or single bytes are missing")
    return ranks


def convert_ranks(text: str, path: Path) -> "Tokenizer":
    """A fast tokenizer from the text of a ranks file; `path` is what messages call it.

    Every split of a token into two tokens becomes a merge, in the order of the result's rank, so that the lowest-ranked
    result merges first as in tiktoken; a whole word that is a token is taken as it is (ignore_merges).

    Raises:
        UserError: not such a file, or cut short.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    ranks = _read_ranks(text, path)
    chars = byte_chars()
    name = {token: "".join(map(chars.__getitem__, token)) for token in ranks}
    merges: list[tuple[str, str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        cuts.sort(key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))
        merges += [(name[a], name[b]) for a, b in cuts]
    vocab = {name[token]: rank for token, rank in ranks.items()}
    fast = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special_token_names()])
    begin = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, fast.token_to_id(BOS))]
    )
    fast.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    return fast
